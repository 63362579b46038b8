"""Text to words and back: `assemble(disassemble(words, config), config).words == words`, always.

The language, one instruction a line; all names and ranges come from `gradiron.arch.isa`:

    train:                              ; a label: a program counter to start at
        SET     A_BASE, 0:0x100         ; an address: region:offset
        SET     A_SX, -64               ; a number: decimal, 0x, 0b, _ between digits
        SET     EXP, a=1, b=2, o=3      ; indices into the exponent table
        LOOP    10
        MM      pass=dw, transposed, out=master, round=sr, bias
        ENDLOOP
        .word   0x01000000              ; a word as it is, legal or not

Case does not matter in mnemonics and registers. A flag is set by its name, and so is a field with a
value of that name (`track`); any other field is given as `name=value`, where the value is a number
or the name of one; the only number of an instruction needs no name. What is not given is zero (a
count: its minimum). Operands are checked against the machine's `Config`, loops against each other,
and all problems of a text are reported at once, each with its line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.errors import AssemblyError

WORD_MAX = 0xFFFFFFFF
RAW = ".word"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_LABEL = re.compile(rf"\s*({_NAME.pattern})\s*:")


@dataclass(frozen=True)
class Assembly:
    """An assembled text.

    Attributes
    ----------
    words : list of int
        The program; the index is the program counter.
    labels : dict of str to int
        Program counter of each label.
    lines : list of int
        Line of the text, from 1, that each word comes from.
    """

    words: list[int]
    labels: dict[str, int]
    lines: list[int]


class _Problems(Exception):
    """What is wrong with one line."""

    def __init__(self, *messages: str) -> None:
        self.messages = messages


# --- text to words -------------------------------------------------------------------------------


def assemble(text: str, config: Config, *, source: str = "program") -> Assembly:
    """Assemble a text for one machine.

    Parameters
    ----------
    text : str
        The program in the language of this module.
    config : Config
        The machine; decides ranges, and whether optional instructions exist.
    source : str
        Name of the text in messages, for example that of a file.

    Raises
    ------
    AssemblyError
        Lists every problem of the text with its line.
    """
    words: list[int] = []
    lines: list[int] = []
    names: list[str] = []
    labels: dict[str, int] = {}
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        statement = line.partition(";")[0]
        while label := _LABEL.match(statement):
            if label[1] in labels:
                problems.append((number, f"the label {label[1]!r} stands above already"))
            labels.setdefault(label[1], len(words))
            statement = statement[label.end() :]
        if not statement.strip():
            continue
        name, operands = _split(statement)
        word = 0
        try:
            word = _word(name, operands, config)
        except _Problems as found:
            problems += [(number, message) for message in found.messages]
        words.append(word)
        lines.append(number)
        names.append(name)
    problems += [(lines[pc], reason) for pc, reason in _loop_faults(names).items()]
    if len(words) > config.program_words:
        first = lines[config.program_words]
        problems.append(
            (first, f"{len(words)} words; the program memory has {config.program_words}")
        )
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        problems.sort(key=lambda problem: problem[0])
        listing = "\n".join(f"  line {number}: {message}" for number, message in problems)
        raise AssemblyError(f"{source}: {count}\n{listing}")
    return Assembly(words, labels, lines)


def _split(statement: str) -> tuple[str, list[str]]:
    """A statement to its mnemonic, in capitals, and its operands."""
    name, _, rest = statement.strip().replace("\t", " ").partition(" ")
    rest = rest.strip()
    return name.upper(), [part.strip() for part in rest.split(",")] if rest else []


def _word(name: str, operands: Sequence[str], config: Config) -> int:
    if "" in operands:
        raise _Problems(f"{name}: an operand is empty; is there a comma too many?")
    if name == RAW.upper():
        return _raw(operands)
    if name == "SET":
        return _set(operands, config)
    if name not in isa.BY_NAME:
        known = [*isa.BY_NAME, "SET", RAW]
        raise _Problems(f"no instruction is called {name!r}{_hint(name, known)}")
    return _instruction(isa.BY_NAME[name], operands, config)


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _hint(name: str, known: Iterable[str]) -> str:
    """The known name that is most alike, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"


def _raw(operands: Sequence[str]) -> int:
    value = _number(operands[0]) if len(operands) == 1 else None
    if value is None or not 0 <= value <= WORD_MAX:
        raise _Problems(f"{RAW} takes one number from 0 to {WORD_MAX:#x}")
    return value


def _set(operands: Sequence[str], config: Config) -> int:
    if len(operands) < 2:
        raise _Problems("SET takes a register and a value: SET N_C, 10")
    name = operands[0].upper()
    register = isa.REGISTER_BY_NAME.get(name)
    if register is None:
        raise _Problems(f"no register is called {name!r}{_hint(name, isa.REGISTER_BY_NAME)}")
    given = ", ".join(operands[1:])
    try:
        if register.kind == isa.Kind.TENSORS and "=" in given:
            value = isa.pack_tensors(**_tensors(name, operands[1:]))
        elif register.kind == isa.Kind.ADDRESS and ":" in given:
            region, offset = (_number(part) for part in given.split(":", 1))
            value = None
            if region is not None and offset is not None:
                value = isa.make_address(region, offset)
        else:
            value = _number(given)
    except AssemblyError as error:
        raise _Problems(f"SET {name}: {error}") from None
    if value is None:
        form = "region:offset, for example 0:0x100" if ":" in given else "a number"
        raise _Problems(f"SET {name}: {given!r} is not {form}")
    allowed = register.check(value, config)
    if allowed:
        raise _Problems(f"SET {name}: {given} is out of range; allowed: {allowed}")
    return isa.encode_set(name, value, config)


def _tensors(register: str, operands: Sequence[str]) -> dict[str, int]:
    """The operands a=, b=, o=, s= of SET EXP."""
    indices: dict[str, int] = {}
    messages: list[str] = []
    for operand in operands:
        key, _, text = (part.strip() for part in operand.partition("="))
        value = _number(text)
        if key not in ("a", "b", "o", "s"):
            messages.append(f"SET {register}: {operand!r} is none of a=, b=, o=, s=")
        elif key in indices:
            messages.append(f"SET {register}: {key} is given twice")
        elif value is None:
            messages.append(f"SET {register}: {text!r} is not a number")
        else:
            indices[key] = value
    if messages:
        raise _Problems(*messages)
    return indices


def _instruction(instruction: isa.Instruction, operands: Sequence[str], config: Config) -> int:
    values: dict[str, int] = {}
    messages: list[str] = []
    for operand in operands:
        try:
            field, value = _operand(instruction, operand)
        except _Problems as found:
            messages += found.messages
            continue
        if field.name in values:
            messages.append(f"{field.name} is given twice")
        values[field.name] = value
        if not field.minimum <= value <= field.maximum:
            messages.append(
                f"{field.name} is {value}; it must be from {field.minimum} to {field.maximum}"
            )
    if not messages:
        complete = {field.name: field.minimum for field in instruction.fields} | values
        messages = [
            rule.reason
            for rule in isa.RULES
            if rule.instruction == instruction.name
            and rule.applies(config)
            and rule.matches(complete)
        ]
    if messages:
        raise _Problems(*(f"{instruction.name}: {message}" for message in messages))
    return isa.encode(instruction.name, config, **values)


def _operand(instruction: isa.Instruction, operand: str) -> tuple[isa.Field, int]:
    """One operand to its field and value."""
    key, equals, text = (part.strip() for part in operand.partition("="))
    fields = {field.name: field for field in instruction.fields}
    plain = [field for field in instruction.fields if not field.values and field.width > 1]
    number = _number(key)
    if not equals and number is not None and len(plain) == 1:
        return plain[0], number
    if key not in fields:
        owner = next((field.name for field in instruction.fields if key in field.values), None)
        raise _Problems(
            f"{key!r} is a value of {owner}: write {owner}={key}"
            if owner and not equals
            else f"no field is called {key!r}{_hint(key, fields)}"
        )
    field = fields[key]
    if not equals and (field.width == 1 or key in field.values):
        return field, field.values.index(key) if field.values else 1
    value = field.values.index(text) if text in field.values else _number(text)
    if value is None:
        allowed = ", ".join(field.values) or f"{field.minimum} to {field.maximum}"
        raise _Problems(f"{key}={text}: the value must be one of {allowed}")
    return field, value


def _loop_faults(names: Sequence[str]) -> dict[int, str]:
    """Program counters whose LOOP or ENDLOOP cannot work, and why."""
    faults: dict[int, str] = {}
    opened: list[int] = []
    for pc, name in enumerate(names):
        if name == isa.LOOP.name:
            opened.append(pc)
            if len(opened) > isa.LOOP_DEPTH:
                faults[pc] = f"LOOP: more than {isa.LOOP_DEPTH} nested loops"
        elif name == isa.ENDLOOP.name:
            if not opened:
                faults[pc] = "ENDLOOP without a LOOP"
            elif opened.pop() in faults:
                faults[pc] = "ENDLOOP of a loop that is nested too deep"
    return faults | dict.fromkeys(opened, "LOOP without an ENDLOOP")


# --- words to text -------------------------------------------------------------------------------


def disassemble(
    words: Iterable[int],
    config: Config,
    comments: Mapping[int, str] | None = None,
    labels: Mapping[str, int] | None = None,
) -> str:
    """A program as text that assembles to the same words.

    A word that this machine would refuse, and a LOOP or ENDLOOP without its partner, becomes
    `.word` with the reason as a comment.

    Parameters
    ----------
    words : iterable of int
        Each from 0 to 2**32 - 1.
    config : Config
        The machine the program is for.
    comments : mapping of int to str
        Comment on the word at a program counter.
    labels : mapping of str to int
        Program counters to mark with a label.

    Raises
    ------
    AssemblyError
        For a number that is not a word, or a label that is not a name or lies outside.
    """
    program = [int(word) for word in words]
    for pc, word in enumerate(program):
        if not 0 <= word <= WORD_MAX:
            raise AssemblyError(f"word {pc} is {word}; it must be from 0 to {WORD_MAX:#x}")
    marks: dict[int, list[str]] = {}
    for label, pc in (labels or {}).items():
        if not _NAME.fullmatch(label) or not 0 <= pc <= len(program):
            raise AssemblyError(
                f"label {label!r} at {pc}; it must be a name, and lie from 0 to {len(program)}"
            )
        marks.setdefault(pc, []).append(f"{label}:")
    decoded = [isa.decode(word, config) for word in program]
    faults = _loop_faults(["" if isinstance(d, isa.ErrorCause) else d.name for d in decoded])
    lines: list[str] = []
    for pc, (word, meaning) in enumerate(zip(program, decoded, strict=True)):
        lines += marks.get(pc, [])
        remarks = [" ".join((comments or {}).get(pc, "").split())]
        if isinstance(meaning, isa.ErrorCause) or pc in faults:
            reason = meaning.name if isinstance(meaning, isa.ErrorCause) else faults[pc]
            statement = f"{RAW:8}{word:#010x}"
            remarks.insert(0, reason)
        else:
            statement = _statement(meaning)
        remark = "; ".join(filter(None, remarks))
        lines.append(f"    {statement:44}; {remark}" if remark else f"    {statement}")
    lines += marks.get(len(program), [])
    return "".join(f"{line}\n" for line in lines)


def _statement(meaning: isa.Decoded) -> str:
    if meaning.register is not None:
        operands = [meaning.register.name, _value(meaning.register, meaning.value)]
    else:
        fields = isa.BY_NAME[meaning.name].fields
        operands = [text for field in fields if (text := _shown(field, meaning.fields[field.name]))]
    return f"{meaning.name:8}{', '.join(operands)}".rstrip()


def _value(register: isa.Register, value: int) -> str:
    if register.kind == isa.Kind.ADDRESS:
        region, offset = isa.split_address(value)
        return f"{region}:{offset:#x}"
    if register.kind == isa.Kind.TENSORS:
        a, b, o, s = isa.unpack_tensors(value)
        return f"a={a}, b={b}, o={o}" + (f", s={s}" if s else "")
    return str(value)


def _shown(field: isa.Field, value: int) -> str:
    if field.quiet and not value:
        return ""
    if field.values:
        name = field.values[value]
        return name if name == field.name else f"{field.name}={name}"
    if field.width == 1:
        return field.name if value else ""
    return str(value)
