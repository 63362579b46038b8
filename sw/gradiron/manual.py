"""The instruction manual (Markdown) and the C header, written from `gradiron.arch.isa`.

`python -m gradiron.manual [FOLDER]` writes `isa.md` and `gradiron_isa.h` into the folder, `docs`
unless another is named. Both are kept in the repository; a test fails while they are not current.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gradiron import assembler
from gradiron.arch import isa, numerics
from gradiron.arch.config import (
    MAX_REGION_BYTES,
    MAX_REGIONS,
    REGION_SHIFT,
    TENSORS,
    Config,
)

MANUAL = "isa.md"
HEADER = "gradiron_isa.h"
SPECIFICATION = "products.md"

EXAMPLE = """\
; y = relu(x W + bias): 8 samples, 64 inputs, 32 outputs
forward:
    SET     A_BASE, 0:0         ; x: 8 rows of 64 bytes
    SET     A_SX, 64            ; from one sample to the next
    SET     A_HB, 1             ; every row and
    SET     A_WB, 512           ; every column of x is valid: no padding
    SET     N_P, 8              ; samples
    SET     N_X, 8
    SET     N_J, 64             ; the reduction
    SET     N_C, 32             ; outputs
    SET     N_G, 8
    SET     B_BASE, 1:0         ; W: 64 rows of 32 bytes
    SET     B_R, 32
    SET     BIAS, 1:0x800
    SET     O_BASE, 0:0x200     ; y: 8 rows of 32 bytes
    SET     O_S0, 32
    SET     EXP, a=0, b=1, o=2
    MM      pass=forward, round=rt, relu, bias, track
    HALT
"""

_INTRODUCTION = f"""\
# The instruction set

<!-- Written by `python -m gradiron.manual` from gradiron.arch.isa: change that, not this. -->

This is version {isa.ISA_VERSION} of the instruction set, as the register `VERSION` of a device
reports it. What MM and LOSS compute, to the bit, is specified in
[Products, losses and everything around them]({SPECIFICATION}); how forward, loss, dX, dW and the
update of a training step are made of them, in
[its last section]({SPECIFICATION}#how-a-training-step-maps-to-instructions).
[`{HEADER}`]({HEADER}) has the numbers of this page for C and C++.

## Programs

A program is a list of 32-bit words in the program memory of the device. The host writes it there,
sets `ENTRY`, and starts it with `CONTROL`; the memory may hold several programs. Words are executed
one after the other; `LOOP` and `ENDLOOP` repeat a part, nested at most {isa.LOOP_DEPTH} deep. `SET`
writes *descriptor registers*, which say where operands lie and how large they are; `MM` and `LOSS`
compute. A start of a program empties the loop stack and clears the register m of the trackers;
descriptor registers, memories, exponents and counters stay.

An instruction that is illegal, or whose operands lie outside their regions, stops the machine in
the state ERROR. `STATUS` then names the cause and the program counter; CONTROL.reset leaves the
state.

Every instruction takes a time that its operands fix, never the data. Waiting for the host is
counted apart.

## Encoding

Bits 31:24 of a word are the opcode, bits 23:0 the operand. Reserved bits must be zero.
"""
_SET_ACTION = """\
The register takes the value and keeps it until the next SET of the same register, also over the end
of a program. The other instructions only read registers."""
_SET_EDGE_CASES = """\
A number that no register has stops the machine with ILLEGAL_OPCODE, a value outside the range of
the register with OPERAND_RANGE; the register keeps its value. The ranges are those of this machine:
an offset must lie inside its region."""
_EXPONENTS = f"""\
A tensor is int8 values and one exponent: value = q * 2^E, with E from {numerics.EXPONENT_MIN} to
{numerics.EXPONENT_MAX}. The exponents stand in a table of {TENSORS} entries; `EXP` names those
of the operands, of the result and of a skip tensor. An entry also has the *tracker*: the exponent
that the next batch of the tensor gets at least, and how often in a row a smaller one would have
done. After {numerics.HYSTERESIS} times the tracker goes down by one; it goes up at once. The `MM`
with `track` updates it; `track=fit`, on a measurement, makes it fit that measurement at once.
"""
_SPACES: dict[isa.Space, str] = {
    isa.Space.CSR: "the control and status registers below, 32 bits each",
    isa.Space.MEMORY: "data memory, bytes",
    isa.Space.PROGRAM: "program memory, words of 32 bits",
    isa.Space.EXPONENTS: "the exponent table, words of 32 bits",
}
_STATES: dict[isa.MachineState, str] = {
    isa.MachineState.IDLE: "nothing was started since power-up or CONTROL.reset",
    isa.MachineState.RUNNING: "a program runs",
    isa.MachineState.WAITING: "a WAIT waits for CONTROL.resume",
    isa.MachineState.PAUSED: "MODE asks for a pause after every instruction",
    isa.MachineState.HALTED: "a HALT was executed",
    isa.MachineState.ERROR: "an instruction failed; STATUS has the cause and the program counter",
}
_HALF = "2^(offset_bits-1)"
_KIND_RANGES: dict[isa.Kind, str] = {
    isa.Kind.ADDRESS: "an address: region:offset, the offset inside the region",
    isa.Kind.STRIDE: f"-{_HALF} to {_HALF} - 1",
    isa.Kind.OFFSET: f"0 to {_HALF} - 1",
    isa.Kind.COUNT: "1 to acc_depth",
    isa.Kind.TENSORS: f"four tensor numbers, each 0 to {TENSORS - 1}",
}


# --- Markdown ------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(_text(str(cell)).replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *(line(row) for row in rows), ""]


def _bits(low: int, width: int) -> str:
    return f"{low + width - 1}:{low}" if width > 1 else str(low)


def _runs(mask: int) -> list[tuple[int, int]]:
    """Where a mask has ones: (lowest bit, width) of each run, from the top."""
    bits = f"{mask:032b}"[::-1]
    runs: list[tuple[int, int]] = []
    low = 0
    while (low := bits.find("1", low)) >= 0:
        end = bits.find("0", low)
        runs.append((low, end - low))
        low = end
    return runs[::-1]


def _text(text: str) -> str:
    """Text of the tables as Markdown: powers without asterisks, sections as links."""
    sections = {"the section on products": "#mm", "the section on the loss": "#loss"}
    for title, anchor in sections.items():
        text = text.replace(title, f"[{title}]({SPECIFICATION}{anchor})")
    return text.replace("2**", "2^")


def _cycles(name: str) -> list[str]:
    """The cycles that an instruction takes, where there is a cycle model that says so."""
    if importlib.util.find_spec("gradiron.cycles") is None:
        return []
    module = importlib.import_module("gradiron.cycles")
    documented: Mapping[str, str] = getattr(module, "CYCLES_DOC", {})
    return [f"**Cycles.** {documented[name]}", ""] if name in documented else []


def _values(field: isa.Field) -> str:
    if field.values:
        return ", ".join(f"{number} {name}" for number, name in enumerate(field.values))
    if field.width == 1:
        return "0, 1"
    return f"{field.minimum} to {field.maximum}"


def _format(rows: Iterable[tuple[int, int, str, str, str]]) -> list[str]:
    """The table of a word's format, from the top bit down."""
    ordered = sorted(rows, reverse=True)
    return _table(
        ("bits", "field", "values", "meaning"),
        [(_bits(low, width), *rest) for low, width, *rest in ordered],
    )


def _instruction(instruction: isa.Instruction) -> list[str]:
    rows = [(isa.OPCODE_SHIFT, 8, "opcode", f"{instruction.opcode:#04x}", "")]
    rows += [(f.low, f.width, f"`{f.name}`", _values(f), f.doc) for f in instruction.fields]
    rows += [(low, width, "", "0", "reserved") for low, width in _runs(instruction.reserved_mask)]
    lines = [f"### {instruction.name}", "", instruction.summary, "", *_format(rows)]
    lines += [f"**Action.** {_text(instruction.action)}", ""]
    lines += [f"**Edge cases.** {_text(instruction.edge_cases)}", ""]
    rules = [rule for rule in isa.RULES if rule.instruction == instruction.name]
    if rules:
        lines += ["**Illegal combinations.**", ""]
        lines += _table(
            ("fields", "why", "error"),
            [(_when(instruction, rule), rule.reason, rule.cause.name) for rule in rules],
        )
    return [*lines, *_cycles(instruction.name)]


def _when(instruction: isa.Instruction, rule: isa.Rule) -> str:
    parts: list[str] = []
    for name, values in rule.when.items():
        named = instruction.field(name).values
        texts = [named[value] if named else str(value) for value in sorted(values)]
        parts.append(f"`{name}` = {' or '.join(texts)}")
    if rule.option:
        parts.append(f"a machine without `{rule.option}`")
    return ", ".join(parts)


def _set() -> list[str]:
    first, last = isa.REGISTERS[0].number, max(r.number for r in isa.REGISTERS)
    return [
        "### SET",
        "",
        "Write a descriptor register.",
        "",
        *_format(
            [
                (
                    isa.OPCODE_SHIFT,
                    8,
                    "opcode",
                    f"{isa.SET_OPCODE:#04x} + register",
                    f"number of the register, {first} to {last}",
                ),
                (
                    0,
                    isa.OPCODE_SHIFT,
                    "value",
                    "",
                    "sign-extended where the range of the register has negative numbers",
                ),
            ]
        ),
        f"**Action.** {_SET_ACTION}",
        "",
        f"**Edge cases.** {_SET_EDGE_CASES}",
        "",
        *_cycles("SET"),
    ]


def register_range(register: isa.Register) -> str:
    """What a register may hold: numbers, or a formula where the machine's `Config` decides."""
    small = Config(rows=2, cols=2, regions=(64,), acc_depth=16)
    large = Config(regions=(MAX_REGION_BYTES,) * MAX_REGIONS, acc_depth=4096)
    low, high = register.range(small)
    fixed = (low, high) == register.range(large)
    if fixed and register.kind not in (isa.Kind.ADDRESS, isa.Kind.TENSORS):
        return f"{low} to {high}"
    return _KIND_RANGES[register.kind]


def manual() -> str:
    """The instruction set manual, in Markdown."""
    instructions = [line for i in isa.INSTRUCTIONS for line in _instruction(i)]
    opcodes = [(f"{i.opcode:#04x}", i.name, i.summary) for i in isa.INSTRUCTIONS]
    last = max(r.number for r in isa.REGISTERS)
    opcodes.append(
        (f"{isa.SET_OPCODE:#04x} to {isa.SET_OPCODE + last:#04x}", "SET", "Write a register.")
    )
    language = (assembler.__doc__ or "").partition("\n")[2].strip()
    lines = [
        _INTRODUCTION,
        *_table(("opcode", "instruction", ""), opcodes),
        "## Instructions",
        "",
        *_set(),
        *instructions,
        "## Descriptor registers",
        "",
        "`offset_bits` and `acc_depth` are properties of the machine's `Config`: `offset_bits` is "
        "enough for its largest region and one guard bit.",
        "",
        *_table(
            ("number", "opcode", "register", "range", "after a start", "meaning"),
            [
                (
                    r.number,
                    f"{isa.SET_OPCODE + r.number:#04x}",
                    f"`{r.name}`",
                    register_range(r),
                    r.reset,
                    r.doc,
                )
                for r in isa.REGISTERS
            ],
        ),
        "## Tensors and exponents",
        "",
        _EXPONENTS,
        _text(isa.EXPONENT_WORD_DOC),
        "",
        "## Errors",
        "",
        *_table(
            ("number", "cause", "meaning"),
            [(cause.value, cause.name, doc) for cause, doc in isa.ERROR_DOC.items()],
        ),
        "## What the host sees",
        "",
        "The host reads and writes four address spaces.",
        "",
        *_table(
            ("space", "name", "what"),
            [(space.value, space.name, doc) for space, doc in _SPACES.items()],
        ),
        "### Control and status registers",
        "",
        *_table(
            ("number", "register", "access", "meaning"),
            [
                (c.number, f"`{c.name}`", "read, write" if c.writable else "read", c.doc)
                for c in isa.CSRS
            ],
        ),
        "A register keeps all 32 bits that are written to it, of which bits without a meaning are "
        f"without effect. `RATE` is from {isa.RATE_MIN} to {isa.RATE_MAX}.",
        "",
        "### States of the machine",
        "",
        *_table(
            ("number", "state", "meaning"),
            [(state.value, state.name, doc) for state, doc in _STATES.items()],
        ),
        "## The assembler",
        "",
        language,
        "",
        "For example:",
        "",
        textwrap.indent(EXAMPLE, "    "),
    ]
    return "\n".join(lines).rstrip() + "\n"


# --- C -------------------------------------------------------------------------------------------


def _define(name: str, value: str, comment: str = "") -> str:
    text = f"#define GRADIRON_{name} {value}"
    return f"{text:<48} /* {comment} */" if comment else text


def _position(word: int) -> int:
    """The lowest bit that is set."""
    return (word & -word).bit_length() - 1


def _pack_macro(instruction: isa.Instruction) -> list[str]:
    names = ", ".join(f.name for f in instruction.fields)
    parts = [f"(uint32_t)GRADIRON_OP_{instruction.name} << GRADIRON_OPCODE_SHIFT"]
    for f in instruction.fields:
        prefix = f"GRADIRON_{instruction.name}_{f.name.upper()}"
        parts.append(f"GRADIRON_FIELD({f.name}, {prefix}_SHIFT, {prefix}_MASK)")
    body = " | \\\n     ".join(parts)
    return [f"#define GRADIRON_{instruction.name}({names}) \\", f"    ({body})"]


def header() -> str:
    """The C header: numbers, positions and macros that pack words."""
    positions = {
        key.upper(): _position(isa.pack_tensors(**{key: 1})) for key in ("a", "b", "o", "s")
    }
    lines = [
        "/* The Gradiron instruction set for C and C++.",
        " * Written by `python -m gradiron.manual` from gradiron.arch.isa: change that, not this.",
        " * Macros cut their arguments to the width of the field; they check no range.",
        " */",
        "#ifndef GRADIRON_ISA_H",
        "#define GRADIRON_ISA_H",
        "",
        "#include <stdint.h>",
        "",
        _define("ISA_VERSION", f"{isa.ISA_VERSION}u"),
        _define("DEVICE_ID", f"{isa.DEVICE_ID:#x}u", "CSR ID"),
        _define("OPCODE_SHIFT", str(isa.OPCODE_SHIFT)),
        _define("OPERAND_MASK", f"{isa.OPERAND_MASK:#x}u"),
        _define("LOOP_DEPTH", f"{isa.LOOP_DEPTH}u", "nested loops"),
        _define("TENSORS", f"{TENSORS}u", "entries of the exponent table"),
        _define("MAX_REGIONS", f"{MAX_REGIONS}u"),
        _define("RATE_MIN", f"({isa.RATE_MIN})"),
        _define("RATE_MAX", str(isa.RATE_MAX)),
        "",
        "/* Opcodes; SET of register r has GRADIRON_OP_SET + r. */",
        *(_define(f"OP_{i.name}", f"{i.opcode:#04x}u") for i in isa.INSTRUCTIONS),
        _define("OP_SET", f"{isa.SET_OPCODE:#04x}u"),
        "",
        "/* Fields: masks and shifts within the word, and the names of values. */",
    ]
    for i in isa.INSTRUCTIONS:
        for f in i.fields:
            prefix = f"{i.name}_{f.name.upper()}"
            lines.append(_define(f"{prefix}_SHIFT", str(f.low), f.doc))
            lines.append(_define(f"{prefix}_MASK", f"{f.mask:#010x}u"))
            lines += [_define(f"{prefix}_{v.upper()}", f"{n}u") for n, v in enumerate(f.values)]
    lines += ["", "/* Descriptor registers. */"]
    lines += [_define(f"REG_{r.name}", f"{r.number}u", r.doc) for r in isa.REGISTERS]
    lines += ["", "/* Control and status registers. */"]
    lines += [_define(f"CSR_{c.name}", f"{c.number}u", c.doc) for c in isa.CSRS]
    for title, prefix, members in (
        ("Causes of an error.", "ERROR", isa.ErrorCause),
        ("States of the machine.", "STATE", isa.MachineState),
        ("Address spaces of the host.", "SPACE", isa.Space),
    ):
        lines += ["", f"/* {title} */"]
        lines += [_define(f"{prefix}_{member.name}", f"{member.value}u") for member in members]
    lines += [
        "",
        "/* The registers CONTROL and STATUS; the state of the latter begins at bit 0. */",
    ]
    lines += [_define(f"CONTROL_{bit.name}", f"{1 << bit}u") for bit in isa.Control]
    lines.append(_define("STATUS_CAUSE_SHIFT", str(isa.STATUS_CAUSE_SHIFT)))
    lines.append(_define("STATUS_PC_SHIFT", str(isa.STATUS_PC_SHIFT)))
    entry = (isa.pack_exponent(-1, 0, 0), isa.pack_exponent(0, -1, 0), isa.pack_exponent(0, 0, -1))
    lines += ["", *textwrap.wrap(f"/* {isa.EXPONENT_WORD_DOC} */", 96, subsequent_indent=" * ")]
    for name, mask in zip(("VALUE", "TRACKER", "COUNT"), entry, strict=True):
        lines.append(_define(f"EXPONENT_{name}_SHIFT", str(_position(mask))))
        lines.append(_define(f"EXPONENT_{name}_MASK", f"{mask:#x}u"))
    lines += [
        "",
        "/* Words and operands. */",
        "#define GRADIRON_FIELD(value, shift, mask) (((uint32_t)(value) << (shift)) & (mask))",
        "#define GRADIRON_ADDRESS(region, offset) \\",
        f"    ((uint32_t)(region) << {REGION_SHIFT} | (uint32_t)(offset))",
        "#define GRADIRON_TENSOR_NUMBERS(a, b, o, s) \\",
        f"    ((uint32_t)(a) << {positions['A']} | (uint32_t)(b) << {positions['B']} | "
        f"(uint32_t)(o) << {positions['O']} | (uint32_t)(s) << {positions['S']})",
        "#define GRADIRON_SET(reg, value) \\",
        "    ((GRADIRON_OP_SET + (uint32_t)(reg)) << GRADIRON_OPCODE_SHIFT | \\",
        "     ((uint32_t)(value) & GRADIRON_OPERAND_MASK))",
    ]
    for i in isa.INSTRUCTIONS:
        lines += _pack_macro(i)
    lines += ["", "#endif", ""]
    return "\n".join(lines)


def write(texts: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Write texts by the name of their file into a folder, `docs` unless another is named."""
    folder = Path(arguments[0] if arguments else "docs")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    write({MANUAL: manual(), HEADER: header()}, sys.argv[1:])
