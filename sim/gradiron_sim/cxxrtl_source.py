"""The C++ that CXXRTL generates, rearranged: it compiles in a fraction of the time and runs faster.

CXXRTL writes one function of many thousand lines in terms of its own runtime, for any number of
clocks and delta cycles. Compilers spend minutes on it. A design with one clock and without
combinational loops needs less:

* only the rising edge is evaluated, so that "is this an edge" is a constant;
* all registers take their new values in one copy;
* the runtime is `cxxrtl_fast.h`, where a value is an integer of the machine;
* the function is divided into pieces that are compiled side by side.

What does not look as expected is left alone: it then compiles slowly, and is as right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PIECE = 150_000
"""Characters of C++ in a piece."""
MAX_WRITES = 8
"""Writes to one memory in a cycle, as in `cxxrtl_fast.h`."""

_NAMESPACE = "namespace cxxrtl_design {\n"
_END = "} // namespace cxxrtl_design\n"
_EVAL = "bool p_top::eval(performer *performer) {\n"
_RESET = "void p_top::reset() {\n"
_STRUCT = "struct p_top : public module {\n"

_DECLARATION = re.compile(r"\t(?:/\*\w+\*/ )?(value|wire)<(\d+)> (\w+);\n")
_MEMORY = re.compile(r"\tmemory<(\d+)> (memory_\w+) \{ (\d+)u \};\n")
_STATE = re.compile(r"\b([pi]_\w+)\.(curr|next)\b")
_NAME = re.compile(r"\b[pi]_\w+")
_TEMPORARY = re.compile(r"\btmp_\d+\b")
_UPDATE = re.compile(r"\b(memory_\w+)\.update\(")
_INITIAL = re.compile(r"\t(\w+) = wire<(\d+)>\{(.*)\};\n")
_FILL = re.compile(
    r"\tstd::copy\(std::begin\((\w+)\), std::end\(\1\), &(memory_\w+)\.data\[(\d+)\]\);\n"
)
_CALL = re.compile(r"(?<![.\w])([a-z]\w*)<\d")
_METHOD = re.compile(r"\.([a-z]\w*)[<(]")
_PART = re.compile(
    r'fmt_part::(LITERAL|INTEGER), ("(?:[^"\\]|\\.)*"), fmt_part::\w+, \(char\)\d+, \d+, (\d+),'
    r".*\.render\((\w+|value<0>\(\)), performer\)"
)
_ARGUMENT = re.compile(r"\t+value<(\d+)> (arg\d+);\n")
_GIVEN = re.compile(r"\t+formatter\.(arg\d+) = (.*);\n")
_PLACE = re.compile(r'\{ "src", ("(?:[^"\\]|\\.)*") \}')

_PLAIN = (
    "not_u",
    "not_s",
    "pos_u",
    "pos_s",
    "neg_u",
    "neg_s",
    "logic_not",
    "logic_and",
    "logic_or",
)
_REDUCE = ("reduce_and", "reduce_or", "reduce_xor", "reduce_xnor", "reduce_bool")
_SIGNED = ("and", "or", "xor", "xnor", "add", "sub", "mul", "eq", "ne", "eqx", "nex")
_ORDER = ("lt", "le", "gt", "ge")
_SHIFT = ("shl", "shr", "sshl", "sshr", "shift", "shiftx")
CELLS = frozenset(
    (
        *("value", "memory"),
        *_PLAIN,
        *_REDUCE,
        *(f"{name}_{signs}" for name in (*_SIGNED, *_ORDER) for signs in ("uu", "ss")),
        *(f"{name}_{signs}" for name in _SHIFT for signs in ("uu", "su")),
    )
)
"""Functions and types of the runtime that `cxxrtl_fast.h` has."""
_METHODS = frozenset(("val", "slice", "concat", "repeat", "update"))


class _UnexpectedError(Exception):
    """The text is not of the form that this module knows."""


@dataclass(frozen=True)
class Source:
    """C++ to compile.

    Attributes
    ----------
    header : str
        Declares the design.
    main : str
        Definitions that are part of the driver's translation unit.
    pieces : sequence of str
        Definitions, each to be compiled on its own after `header`.
    fast : bool
        Whether it is rearranged.
    feedback : bool
        Whether the design has combinational loops and has to be evaluated until it settles.
    checks : bool
        Whether the design has assertions.
    registered : frozenset of str
        Members that are registers.
    memories : tuple of (width, member, depth)
    """

    header: str
    main: str
    pieces: Sequence[str]
    fast: bool
    feedback: bool
    checks: bool
    registered: frozenset[str]
    memories: tuple[tuple[int, str, int], ...]


def _lines(text: str) -> list[str]:
    """Lines without comments, which name cells by text that may look like code."""
    return [line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("//")]


def _check_calls(lines: Iterable[str]) -> None:
    for line in lines:
        unknown = set(_CALL.findall(line)) - CELLS
        unknown |= {name for name in _METHOD.findall(line) if name not in _METHODS}
        if unknown:
            raise _UnexpectedError(f"unknown: {', '.join(sorted(unknown))}")


def _assertion(lines: Sequence[str], start: int) -> tuple[list[str], int]:
    """An assertion that formats its message, as one that does so only if it fails; and its end."""
    indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
    parts: list[str] = []
    widths: dict[str, str] = {}
    arguments: dict[str, str] = {}
    condition = place = ""
    at = start
    while not lines[at].startswith(f"{indent}}} else {{"):
        line = lines[at]
        if found := _PART.search(line):
            if found[1] == "LITERAL":
                parts.append(f".add({found[2]})")
            else:
                parts.append(f".number(@{found[4]}@, {found[3]})")
        elif found := _ARGUMENT.fullmatch(line):
            widths[found[2]] = found[1]
        elif found := _GIVEN.fullmatch(line):
            arguments[found[1]] = found[2]
        elif line.startswith(f"{indent}bool condition = "):
            condition = line
        elif found := _PLACE.search(line):
            place = f'.add(" at ").add({found[1]})'
        at += 1
        if ("fmt_part::" in line and not parts) or at - start > 10_000:
            raise _UnexpectedError("the text of an assertion")
    while lines[at] != f"{indent}}}\n":
        at += 1
    if not condition or widths.keys() != arguments.keys():
        raise _UnexpectedError("an assertion")
    text = "".join(parts) or '.add("no message")'
    for name, width in widths.items():
        given = f"static_cast<const value<{width}> &>({arguments[name]}).low()"
        text = text.replace(f"@{name}@", given)
    failed = f"{indent}if (!condition && failure.empty()) failure{text}{place};\n"
    return [condition, failed], at + 1


def _without_formatting(lines: Sequence[str]) -> list[str]:
    found: list[str] = []
    at = 0
    while at < len(lines):
        if lines[at].strip() == "struct : public lazy_fmt {":
            assertion, at = _assertion(lines, at)
            found += assertion
        else:
            found.append(lines[at])
            at += 1
    return found


def _statements(lines: Sequence[str]) -> list[str]:
    """The statements of the function's body."""
    found: list[str] = []
    current = ""
    temporaries: set[str] = set()
    for line in lines:
        current += line
        if line.startswith("\t\t") or line.rstrip().endswith("{"):
            continue
        used = set(_TEMPORARY.findall(current))
        if found and used & temporaries:
            found[-1] += current
        else:
            found.append(current)
        # What is declared within a block is nobody else's.
        declares = re.match(r"\tauto tmp_", current) is not None
        temporaries = temporaries | used if declares or used & temporaries else set()
        current = ""
    if current:
        raise _UnexpectedError("the function ends within a statement")
    return found


def _divide(widths: dict[str, int], statements: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the values that several pieces share, and the bodies of the pieces."""
    texts = [""]
    parts: list[list[str]] = [[]]
    size = 0
    for statement in statements:
        if size > PIECE:
            parts.append([])
            size = 0
        parts[-1].append(statement)
        size += len(statement)
    texts = ["".join(part) for part in parts]
    used = [set(_NAME.findall(text)) for text in texts]
    count = Counter(name for names in used for name in names if name in widths)
    shared = [name for name in widths if count[name] > 1]
    bodies: list[str] = []
    for text, names in zip(texts, used, strict=True):
        own = [name for name in widths if name in names and count[name] == 1]
        bodies.append("".join(f"\tvalue<{widths[name]}> {name};\n" for name in own) + text)
    return shared, bodies


def _rearranged(source: str) -> Source:
    head, has_struct, after = source.partition(_STRUCT)
    members, has_reset, after = after.partition(_RESET)
    reset, has_eval, after = after.partition(_EVAL)
    body, has_end, rest = after.partition("\treturn converged;\n}\n")
    if not (has_struct and has_reset and has_eval and has_end) or _NAMESPACE not in head:
        raise _UnexpectedError("the outline")
    if rest.strip() != _END.strip():
        raise _UnexpectedError("something after the function")

    # What the design consists of.
    registers: dict[str, int] = {}
    values: dict[str, int] = {}
    memories: list[tuple[int, str, int]] = []
    declared = _lines(members.partition("\tp_top(interior) {}\n")[0])
    inside = False
    for line in declared:
        if inside:
            inside = line != "\t}\n"
        elif found := _DECLARATION.fullmatch(line):
            kind = registers if found[1] == "wire" else values
            kind[found[3]] = int(found[2])
        elif found := _MEMORY.fullmatch(line):
            memories.append((int(found[1]), found[2], int(found[3])))
        elif line == "\tbool posedge_p_clk() const {\n":
            inside = True
        elif line.strip():
            raise _UnexpectedError(f"member {line.strip()!r}")
    if values.get("p_clk") != 1 or "p_clk" in registers:
        raise _UnexpectedError("the clock")

    # Initial values.
    initial: list[str] = []
    for line in _lines(reset):
        if found := _INITIAL.fullmatch(line):
            initial.append(f"\tcurr.{found[1]} = value<{found[2]}>{{{found[3]}}};\n")
        elif found := _FILL.fullmatch(line):
            initial.append(f"\t{found[2]}.fill({found[3]}, {found[1]});\n")
        elif re.fullmatch(
            r"\tstatic const value<\d+> mem_init_\d+\[\d+\] \{\n", line
        ) or re.fullmatch(r"\t\t(?:value<\d+>\{[0-9a-fxu,]+\},? ?)+\n|\t\};\n|\}\n|\n", line):
            initial.append(line if line != "}\n" else "")
        else:
            raise _UnexpectedError(f"initial value {line.strip()!r}")

    # The function.
    lines = _lines(body)
    prefix = ["\tbool converged = true;\n", "\tbool posedge_p_clk = this->posedge_p_clk();\n"]
    if lines[:2] != prefix:
        raise _UnexpectedError("the beginning of the function")
    lines = _without_formatting(lines[2:])
    local: dict[str, int] = {}
    while lines and (found := _DECLARATION.fullmatch(lines[0])) and found[1] == "value":
        local[found[3]] = int(found[2])
        lines = lines[1:]
    lines = [_STATE.sub(r"\2.\1", line) for line in lines]
    _check_calls(line for line in lines if "failure.empty()" not in line)
    writes = Counter(name for line in lines for name in _UPDATE.findall(line))
    if any(count > MAX_WRITES for count in writes.values()):
        raise _UnexpectedError("too many writes to a memory")
    shared, bodies = _divide(local, _statements(lines))

    checks = any("failure.empty()" in text for text in bodies)
    evaluate = [f"eval_{number}" for number in range(len(bodies))]
    header = [
        '#include "cxxrtl_fast.h"\n',
        _NAMESPACE,
        "using namespace cxxrtl_fast;\n",
        "struct registers {\n",
        *(f"\tvalue<{width}> {name};\n" for name, width in registers.items()),
        "};\n",
        "struct p_top {\n\tregisters curr, next;\n",
        *(f"\tvalue<{width}> {name};\n" for name, width in values.items()),
        *(f"\tvalue<{local[name]}> {name};\n" for name in shared),
        *(f"\tmemory<{width}> {name} {{ {depth}u }};\n" for width, name, depth in memories),
        "\tmessage failure;\n",
        "\tp_top() { reset(); }\n",
        "\tvoid reset();\n",
        *(f"\tvoid {name}();\n" for name in evaluate),
        "\tbool eval() {\n",
        *(f"\t\t{name}();\n" for name in evaluate),
        "\t\treturn true;\n\t}\n",
        "\tbool commit() {\n\t\tcurr = next;\n",
        *(f"\t\t{name}.commit();\n" for _width, name, _depth in memories if writes[name]),
        "\t\treturn true;\n\t}\n};\n",
        _END,
    ]
    main = f"{_NAMESPACE}{_RESET}{''.join(initial)}\tnext = curr;\n}}\n{_END}"
    pieces = [
        f"{_NAMESPACE}void p_top::{name}() {{\n\tconstexpr bool posedge_p_clk = true;\n"
        f"{text}}}\n{_END}"
        for name, text in zip(evaluate, bodies, strict=True)
    ]
    return Source(
        "".join(header),
        main,
        pieces,
        True,
        False,
        checks,
        frozenset(registers),
        tuple(memories),
    )


def arrange(source: str, *, fast: bool = True) -> Source:
    """Rearrange generated C++, or, where that is not possible or not wanted, describe it."""
    feedback = "bool converged = false" in source
    if fast and not feedback:
        try:
            return _rearranged(source)
        except _UnexpectedError:
            pass
    declared = _lines(source.partition(_STRUCT)[2].partition(_RESET)[0])
    found = [match for line in declared if (match := _DECLARATION.fullmatch(line))]
    memories = [match for line in declared if (match := _MEMORY.fullmatch(line))]
    return Source(
        source,
        "",
        (),
        False,
        feedback,
        "->on_check(" in source,
        frozenset(match[3] for match in found if match[1] == "wire"),
        tuple((int(match[1]), match[2], int(match[3])) for match in memories),
    )
