"""`gradiron asm`, `disasm` and `isa`: the instruction set for people.

A program file holds 32-bit words, the first at program counter 0: little-endian and nothing else,
or, where its name ends in .hex, as hexadecimal text, one word of eight digits a line, with # or ;
before comments.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from gradiron import manual
from gradiron.arch import isa
from gradiron.assembler import assemble, disassemble
from gradiron.cli import machines
from gradiron.cli.output import check_output, read_file, write_file, write_json
from gradiron.errors import AssemblyError, DataError

FORMATS = ("text", "markdown", "c")
_FILES = (
    "Program files hold little-endian 32-bit words, or, with a name that ends in .hex, one word of "
    "eight hexadecimal digits a line."
)


def add_asm(commands: Any) -> None:
    """The command asm."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "asm", help="text to a program file", description=f"Assembles a text. {_FILES}"
    )
    parser.add_argument("file", metavar="FILE", help="the text")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="the program (default: FILE with the ending .bin)"
    )
    machines.add_machine(parser, board=True)
    parser.add_argument("--json", metavar="FILE", help="write words, labels and lines there")
    parser.set_defaults(run=asm)


def add_disasm(commands: Any) -> None:
    """The command disasm."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "disasm",
        help="a program file to text",
        description=f"Disassembles a program; the text assembles to the same words. {_FILES}",
    )
    parser.add_argument("file", metavar="FILE", help="the program")
    parser.add_argument("-o", "--output", metavar="OUT", help="where to (default: standard output)")
    machines.add_machine(parser, board=True)
    parser.add_argument("--json", metavar="FILE", help="write words and text there")
    parser.set_defaults(run=disasm)


def add_isa(commands: Any) -> None:
    """The command isa."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "isa",
        help="the instruction set",
        description="Prints the instruction set: a summary, the manual, or a C header.",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="(default text)")
    parser.add_argument("-o", "--output", metavar="OUT", help="where to (default: standard output)")
    parser.add_argument("--json", metavar="FILE", help="write instructions and registers there")
    parser.set_defaults(run=show_isa)


def words_to_file(path: str, words: list[int]) -> None:
    """Write a program file."""
    if path.endswith(".hex"):
        write_file(path, "".join(f"{word:08x}\n" for word in words))
    else:
        write_file(path, np.array(words, "<u4").tobytes())


def words_from_file(path: str) -> list[int]:
    """Read a program file.

    Raises
    ------
    DataError
        For anything else.
    """
    data = read_file(path)
    if not path.endswith(".hex"):
        if len(data) % 4:
            raise DataError(
                f"{path} has {len(data)} bytes; a program has a multiple of 4 (hexadecimal text "
                "needs a name that ends in .hex)"
            )
        return [int(word) for word in np.frombuffer(data, "<u4")]
    words: list[int] = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        for text in line.replace(";", "#").partition("#")[0].split():
            try:
                word = int(text, 16)
            except ValueError:
                word = -1
            if not 0 <= word <= 0xFFFFFFFF:
                raise DataError(f"{path}, line {number}: {text!r} is not a word of 32 bits in hex")
            words.append(word)
    return words


def asm(args: argparse.Namespace) -> int:
    """Run the command asm."""
    output = args.output or str(Path(args.file).with_suffix(".bin"))
    check_output(args.json, output)
    if Path(output) == Path(args.file):
        raise DataError(f"{output} is the text itself; name another file with -o")
    try:
        text = read_file(args.file).decode("utf-8")
    except UnicodeDecodeError:
        raise AssemblyError(
            f"{args.file} is not text; to read a program use: gradiron disasm {args.file}"
        ) from None
    config = machines.text_config(args.board, args.array)
    found = assemble(text, config, source=args.file)
    words_to_file(output, found.words)
    result = {"words": found.words, "labels": found.labels, "lines": found.lines, "output": output}
    write_json(args.json, result)
    print(f"{output}: {len(found.words)} words")
    for label, pc in found.labels.items():
        print(f"  {label}: program counter {pc}")
    return 0


def disasm(args: argparse.Namespace) -> int:
    """Run the command disasm."""
    check_output(args.json, args.output)
    words = words_from_file(args.file)
    text = disassemble(words, machines.text_config(args.board, args.array))
    write_json(args.json, {"words": words, "text": text})
    _emit(args.output, text)
    return 0


def _emit(path: str | None, text: str) -> None:
    if path is None:
        print(text, end="")
    else:
        write_file(path, text)


def summary() -> str:
    """The instruction set in short."""
    lines = [f"Instruction set, version {isa.ISA_VERSION}", ""]
    for instruction in isa.INSTRUCTIONS:
        lines.append(f"{instruction.opcode:#04x}  {instruction.name:8} {instruction.summary}")
        for field in instruction.fields:
            values = ", ".join(field.values) or f"{field.minimum} to {field.maximum}"
            if field.width == 1 and not field.values:
                values = "flag"
            lines.append(f"          {field.name:12} {field.doc} ({values})")
    lines += [
        f"{isa.SET_OPCODE:#04x}+ SET      Write a descriptor register.",
        *(f"          {register.name:12} {register.doc}" for register in isa.REGISTERS),
        "",
        "Control and status registers",
        *(f"  {csr.number:3}  {csr.name:16} {csr.doc}" for csr in isa.CSRS),
        "",
        "gradiron isa --format markdown prints the whole manual.",
    ]
    return "\n".join(lines) + "\n"


def show_isa(args: argparse.Namespace) -> int:
    """Run the command isa."""
    check_output(args.json, args.output)
    texts = {"text": summary, "markdown": manual.manual, "c": manual.header}
    _emit(args.output, texts[args.format]())
    instructions = [
        {
            "name": i.name,
            "opcode": i.opcode,
            "summary": i.summary,
            "fields": [
                {"name": f.name, "low": f.low, "width": f.width, "values": list(f.values)}
                for f in i.fields
            ],
        }
        for i in isa.INSTRUCTIONS
    ]
    registers = [{"name": r.name, "number": r.number, "doc": r.doc} for r in isa.REGISTERS]
    csrs = [{"name": c.name, "number": c.number, "writable": c.writable} for c in isa.CSRS]
    result = {"version": isa.ISA_VERSION, "instructions": instructions}
    write_json(args.json, {**result, "registers": registers, "csrs": csrs})
    return 0
