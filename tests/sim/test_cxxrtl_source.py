"""The rearranged C++ means the same: the fast runtime against CXXRTL's own, and whole machines."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gradiron_hw
from gradiron.arch import isa
from gradiron.arch.config import Config, simulation_config
from gradiron.cache import Cache
from gradiron.errors import DeviceError, ToolError
from gradiron_sim import cxxrtl, toolchain
from gradiron_sim.cxxrtl import CxxrtlDevice
from gradiron_sim.cxxrtl_source import CELLS, PIECE, arrange

WIDTHS = (1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 200)
SHOW = """
#include <stdio.h>
template<size_t Bits> void show(const value<Bits> &v) {
  constexpr size_t each = sizeof(v.data[0]) == 8 ? 2 : 1;
  printf("%zu:", Bits);
  for (size_t n = 0; n < (Bits + 31) / 32; n++)
    printf(" %x", (unsigned)((unsigned long long)v.data[n / each] >> n % each * 32));
  puts("");
}
"""


def literal(width: int, value: int) -> str:
    chunks = [f"0x{value >> 32 * n & 0xFFFFFFFF:x}u" for n in range((width + 31) // 32)]
    return f"value<{width}>{{{','.join(chunks)}}}"


def statements(seed: int) -> list[str]:
    """Every cell, slice and concatenation with values and widths at which something may break."""
    rng = random.Random(seed)

    def number(width: int) -> int:
        ones = (1 << width) - 1
        special = (0, 1, ones, ones >> 1, 1 << (width - 1), rng.getrandbits(width))
        return rng.choice(special) & ones

    def operand(width: int) -> str:
        return literal(width, number(width))

    found: list[str] = []
    single = ("eq", "ne", "lt", "gt", "le", "ge", "logic", "reduce")
    for name in sorted(CELLS - {"value", "memory"}):
        unary = name.startswith(("not_", "pos_", "neg_", "reduce_", "logic_not"))
        for _ in range(8 if unary else 12):
            a, b = rng.choice(WIDTHS), rng.choice(WIDTHS)
            y = 1 if name.startswith(single) else rng.choice(WIDTHS)
            if unary:
                found.append(f"show({name}<{y}>({operand(a)}));")
            elif name.startswith(("sh", "ssh")):
                b = rng.choice((1, 3, 6, 8, 33, 70))
                amount = rng.choice((rng.randrange(a + 2), number(b))) & ((1 << b) - 1)
                found.append(f"show({name}<{y}>({operand(a)}, {literal(b, amount)}));")
            else:
                found.append(f"show({name}<{y}>({operand(a)}, {operand(b)}));")
    for _ in range(80):
        a = rng.choice(WIDTHS)
        low = rng.randrange(a)
        high = rng.randrange(low, a)
        size = high - low + 1
        found.append(f"show({operand(a)}.slice<{high},{low}>().val());")
        found.append(f"show({operand(1)}.repeat<{rng.randrange(1, 130)}>().val());")
        parts = [rng.choice(WIDTHS) for _ in range(rng.randrange(2, 5))]
        names = [f"x{n}" for n in range(len(parts))]
        values = " ".join(
            f"value<{part}> {name} = {operand(part)};"
            for part, name in zip(parts, names, strict=True)
        )
        joined = names[0] + "".join(f".concat({name})" for name in names[1:])
        shows = " ".join(f"show({name});" for name in names)
        whole = operand(sum(parts))
        found.append(f"{{ {values} show({joined}.val()); {joined} = {whole}; {shows} }}")
        partial = f"x.slice<{high},{low}>().concat(z) = {operand(size + 9)};"
        found.append(f"{{ value<{a}> x = {operand(a)}; value<9> z; {partial} show(x); show(z); }}")
    return found


def test_the_fast_runtime_means_the_same(tmp_path: Path) -> None:
    compiler = toolchain.find_compiler()
    body = "\n".join(statements(3))
    fast = toolchain_file("cxxrtl_fast.h")
    (tmp_path / "cxxrtl_fast.h").write_text(fast)
    heads = {
        "fast": '#include "cxxrtl_fast.h"\nusing namespace cxxrtl_fast;\n',
        "own": "#include <cxxrtl/cxxrtl.h>\nusing namespace cxxrtl_yosys;\n",
    }
    outputs: list[list[str]] = []
    for name, head in heads.items():
        (tmp_path / f"{name}.cc").write_text(f"{head}{SHOW}int main() {{\n{body}\n}}\n")
        flags = ["-std=c++17", "-w", "-DNDEBUG", f"-I{toolchain.cxxrtl_include()}"]
        command = [*compiler.command, *flags, "-o", name, f"{name}.cc"]
        toolchain.run_tool(command, what="compiler", cwd=tmp_path)
        outputs.append(toolchain.run_tool([str(tmp_path / name)], what=name).splitlines())
    assert len(outputs[0]) > 1200
    assert outputs[0] == outputs[1]


def toolchain_file(name: str) -> str:
    return (Path(cxxrtl.__file__).parent / name).read_text("utf-8")


def test_rearranged_and_not_are_one_machine(
    small: Config, stub: Callable[..., Any], tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    program = [isa.LOOP.opcode << 24 | 0x0709, isa.encode("STEP"), 0x7F << 24, isa.encode("HALT")]
    found: list[tuple[object, ...]] = []
    for fast in (True, False):
        options = {"record": True, "activity": True, "fast": fast, "cache": cache}
        with CxxrtlDevice(small, component=stub(small), **options) as device:
            assert device.rearranged == fast
            device.write_program(program)
            device.write_memory(0, bytes(range(100, 200)))
            device.write_exponent(3, -7, 9, 1)
            with pytest.raises(DeviceError) as caught:
                device.run()
            broken = str(caught.value).partition(";")[0]
            device.wait()
            found.append(
                (
                    device.retirements,
                    device.activity,
                    device.cycles,
                    device.read_memory(0, 256),
                    device.read_exponent(3),
                    broken,
                )
            )
    assert found[0] == found[1]
    assert str(found[0][-1]).endswith(": opcode 7f is poison")


@pytest.fixture(scope="module")
def generated(
    small: Config, stub: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The small machine as CXXRTL writes it."""
    folder = tmp_path_factory.mktemp("generated")
    kept: list[str] = []

    def spy(source: str, *, fast: bool = True) -> object:
        kept.append(source)
        raise ToolError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cxxrtl, "arrange", spy)
        with pytest.raises(ToolError, match="enough"):
            cxxrtl.build(small, stub(small), cache=Cache(folder))
    return kept[0]


def test_the_pieces(generated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = arrange(generated)
    assert whole.fast
    assert len(whole.pieces) == 1 + len(whole.pieces[0]) // (2 * PIECE)
    monkeypatch.setattr("gradiron_sim.cxxrtl_source.PIECE", 5_000)
    small = arrange(generated)
    assert len(small.pieces) > 3
    assert small.registered == whole.registered
    # Every statement is in one piece.
    assert sum(p.count("next.") for p in small.pieces) == whole.pieces[0].count("next.")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bool converged = true", "bool converged = false"),
        ("struct p_top : public module {", "struct p_other : public module {"),
        ("value<1> prev_p_clk;", "value<1> prev_p_clk; int more;"),
        ("add_uu<", "div_uu<"),
        (".val()", ".bmux<1>(x).val()"),
        ("return converged;", "return converged && true;"),
    ],
)
def test_what_is_not_known_is_left_alone(generated: str, old: str, new: str) -> None:
    assert old in generated
    text = generated.replace(old, new)
    source = arrange(text)
    assert not source.fast
    assert source.header == text
    assert source.pieces == ()
    assert source.feedback == ("converged = false" in new)
    if "p_other" not in new:
        assert source.registered == arrange(generated).registered


def test_the_description_of_the_hardware_is_all_in_the_shortcut() -> None:
    # A build is found again without describing the hardware anew, by the text of these packages.
    pattern = re.compile(r"^\s*(?:from|import) (gradiron[\w.]*)", re.MULTILINE)
    folder = Path(gradiron_hw.__file__).parent
    used = {name for path in folder.glob("*.py") for name in pattern.findall(path.read_text())}
    assert all(
        name.startswith(("gradiron_hw", "gradiron.arch")) or name == "gradiron.errors"
        for name in used
    )
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_a_build_of_the_core_is_found_without_describing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(rows=2, cols=2, regions=(256,), acc_depth=16, program_words=64)
    with CxxrtlDevice(config, cache=Cache(tmp_path)) as device:
        assert device.rearranged
        first = device.build
    assert not first.cached
    with monkeypatch.context() as patch:
        patch.setattr(cxxrtl, "to_rtlil", lambda machine: pytest.fail("described again"))
        with CxxrtlDevice(config, cache=Cache(tmp_path)) as device:
            assert device.build.cached
            assert device.build.key == first.key
            assert device.units == first.units
    with monkeypatch.context() as patch:
        patch.setattr(cxxrtl, "_description", lambda: ["another text"])
        assert cxxrtl.build(config, cache=Cache(tmp_path)).key == first.key


@pytest.mark.long
@pytest.mark.parametrize("array", ["2x16", "8x8", "16x2", "16x16"])
def test_every_core_is_rearranged(array: str, tmp_path: Path) -> None:
    with CxxrtlDevice(simulation_config(array), cache=Cache(tmp_path)) as device:
        assert device.rearranged
