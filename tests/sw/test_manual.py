import re
import shutil
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from gradiron import manual
from gradiron.arch import isa
from gradiron.arch.config import TENSORS, simulation_config
from gradiron.assembler import assemble

DOCS = Path(__file__).parents[2] / "docs"
REFRESH = "write it anew with: python -m gradiron.manual docs"


# --- the files in docs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"), [(manual.MANUAL, manual.manual), (manual.HEADER, manual.header)]
)
def test_committed_file_is_current(name: str, text: types.FunctionType):
    assert (DOCS / name).read_text(encoding="utf-8") == text(), f"docs/{name} is old; {REFRESH}"


def test_write(tmp_path: Path):
    manual.write({"a.md": "ä\n", "b.h": "b\n"}, [str(tmp_path / "new")])
    assert (tmp_path / "new" / "a.md").read_text(encoding="utf-8") == "ä\n"
    assert (tmp_path / "new" / "b.h").read_text(encoding="utf-8") == "b\n"


# --- the manual ----------------------------------------------------------------------------------


def section(title: str) -> str:
    """The text under a heading, up to the next of the same or a higher level."""
    level = title.split(" ")[0]
    after = manual.manual().split(f"\n{title}\n")[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", after)[0]


def test_everything_has_its_place():
    text = manual.manual()
    for instruction in isa.INSTRUCTIONS:
        page = section(f"### {instruction.name}")
        assert instruction.summary in page
        assert f"{instruction.opcode:#04x}" in page
        assert all(f"`{field.name}`" in page for field in instruction.fields)
    for rule in isa.RULES:
        assert f"| {rule.reason} | {rule.cause.name} |" in section(f"### {rule.instruction}")
    for register in isa.REGISTERS:
        assert f"`{register.name}`" in section("## Descriptor registers")
    for cause in isa.ErrorCause:
        assert f"| {cause.value} | {cause.name} |" in section("## Errors")
    for csr in isa.CSRS:
        assert f"| {csr.number} | `{csr.name}` |" in section("### Control and status registers")
    for state in isa.MachineState:
        assert f"| {state.value} | {state.name} |" in section("### States of the machine")
    for space in isa.Space:
        assert f"| {space.value} | {space.name} |" in text


@pytest.mark.parametrize("instruction", isa.INSTRUCTIONS, ids=lambda i: i.name)
def test_format_tables_account_for_every_bit(instruction: isa.Instruction):
    bits: list[int] = []
    for high, low in re.findall(
        r"^\| (\d+)(?::(\d+))? \|", section(f"### {instruction.name}"), re.M
    ):
        bits += range(int(high), int(low or high) - 1, -1)
    assert bits == list(range(31, -1, -1))


def test_links_lead_to_sections():
    headings = re.findall(r"^#+ (.*)$", (DOCS / manual.SPECIFICATION).read_text("utf-8"), re.M)
    anchors = {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}
    used = set(re.findall(rf"\({re.escape(manual.SPECIFICATION)}#([^)]*)\)", manual.manual()))
    assert used
    assert used <= anchors


def test_register_ranges():
    assert manual.register_range(isa.REGISTER_BY_NAME["PAD"]) == "-127 to 127"
    assert manual.register_range(isa.REGISTER_BY_NAME["N_C"]) == "1 to 65535"
    assert manual.register_range(isa.REGISTER_BY_NAME["N_G"]) == "1 to acc_depth"
    assert manual.register_range(isa.REGISTER_BY_NAME["A_HB"]) == "0 to 2^(offset_bits-1) - 1"
    assert manual.register_range(isa.REGISTER_BY_NAME["EXP"]).endswith(f"0 to {TENSORS - 1}")


def test_example_assembles():
    assembly = assemble(manual.EXAMPLE, simulation_config())
    assert assembly.labels == {"forward": 0}
    assert assembly.words[-1] == isa.encode("HALT")
    assert manual.EXAMPLE.splitlines()[0].strip() in section("## The assembler")


def test_language_example_assembles():
    lines = section("## The assembler").split("For example:")[0].split("\n")
    assemble("\n".join(line for line in lines if line.startswith("    ")), simulation_config())


def test_cycles_come_from_the_cycle_model(monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("gradiron.cycles")
    module.__spec__ = ModuleSpec("gradiron.cycles", None)
    vars(module)["CYCLES_DOC"] = {"HALT": "Exactly 17.", "SET": "Exactly 18."}
    monkeypatch.setitem(sys.modules, "gradiron.cycles", module)
    assert section("### HALT").count("**Cycles.** Exactly 17.") == 1
    assert section("### SET").count("**Cycles.** Exactly 18.") == 1
    assert manual.manual().count("**Cycles.**") == 2


# --- the C header --------------------------------------------------------------------------------


def facts() -> list[tuple[str, int]]:
    """C expressions and the values that they must have."""
    pairs = [("ISA_VERSION", isa.ISA_VERSION), ("DEVICE_ID", isa.DEVICE_ID)]
    pairs += [("RATE_MIN", isa.RATE_MIN), ("RATE_MAX", isa.RATE_MAX)]
    pairs += [(f"REG_{r.name}", r.number) for r in isa.REGISTERS]
    pairs += [(f"CSR_{c.name}", c.number) for c in isa.CSRS]
    pairs += [(f"ERROR_{c.name}", c.value) for c in isa.ErrorCause]
    pairs += [(f"STATE_{s.name}", s.value) for s in isa.MachineState]
    pairs += [(f"SPACE_{s.name}", s.value) for s in isa.Space]
    for i in isa.INSTRUCTIONS:
        low = [f.minimum for f in i.fields]
        high = [f.maximum for f in i.fields]
        singles = [[h if n == k else 0 for k, h in enumerate(high)] for n in range(len(high))]
        for values in (low, high, *singles):
            operand = sum(v << f.low for v, f in zip(values, i.fields, strict=True))
            arguments = ", ".join(map(str, values))
            pairs.append((f"{i.name}({arguments})", i.opcode << 24 | operand))
        for f in i.fields:
            names = [f"GRADIRON_{i.name}_{f.name.upper()}_{value.upper()}" for value in f.values]
            pairs += [(name.removeprefix("GRADIRON_"), n) for n, name in enumerate(names)]
    config = simulation_config()
    for name, argument, value in (
        ("A_BASE", "GRADIRON_ADDRESS(1, 0x100)", isa.make_address(1, 0x100)),
        ("A_SX", "-64", -64),
        ("EXP", "GRADIRON_TENSOR_NUMBERS(1, 2, 63, 5)", isa.pack_tensors(1, 2, 63, 5)),
    ):
        pairs.append((f"SET(GRADIRON_REG_{name}, {argument})", isa.encode_set(name, value, config)))
    # -1 in each part of an exponent word fills its mask.
    for n, name in enumerate(("VALUE", "TRACKER", "COUNT")):
        mask = isa.pack_exponent(*(-(k == n) for k in range(3)))
        pairs.append((f"EXPONENT_{name}_MASK", mask))
        pairs.append((f"EXPONENT_{name}_SHIFT", (mask & -mask).bit_length() - 1))
    return pairs


def compile_header(compiler: str, suffix: str, standard: str, folder: Path, check: str) -> str:
    """Compile a file of static checks; returns the compiler's messages."""
    found = shutil.which(compiler)
    if found is None:
        pytest.skip(f"no {compiler} on this machine")
    word = "static_assert" if suffix == ".cc" else "_Static_assert"
    source = folder / f"check{suffix}"
    checks = "\n".join(f'{word}({line}, "{n}");' for n, line in enumerate(check.split("\n")))
    source.write_text(f'#include "{manual.HEADER}"\n#include "{manual.HEADER}"\n{checks}\n')
    options = [f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    command = [found, *options, "-I", str(DOCS), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


COMPILERS = [("cc", ".c", "c11"), ("g++", ".cc", "c++17"), ("clang++", ".cc", "c++17")]


@pytest.mark.parametrize(("compiler", "suffix", "standard"), COMPILERS)
def test_header_compiles(compiler: str, suffix: str, standard: str, tmp_path: Path):
    checks = [f"GRADIRON_{name} == {value}" for name, value in facts()]
    sizes = [f"sizeof({word}) == 4" for word in ("GRADIRON_HALT()", "GRADIRON_SET(0, -1)")]
    text = "\n".join([*checks, *sizes])
    assert compile_header(compiler, suffix, standard, tmp_path, text) == ""


def test_a_wrong_fact_is_noticed(tmp_path: Path):
    wrong = compile_header("cc", ".c", "c11", tmp_path, "GRADIRON_OP_HALT == 0x99")
    assert "static assertion failed" in wrong
