import textwrap
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiron.arch import isa
from gradiron.arch.config import Config, simulation_config, up5k_config
from gradiron.assembler import assemble, disassemble
from gradiron.errors import AssemblyError

CONFIG = Config(regions=(4096, 1 << 17))
CONFIGS = (CONFIG, up5k_config(), simulation_config("2x16"), Config(2, 2, regions=(64,)))


def words_of(text: str, config: Config = CONFIG) -> list[int]:
    return assemble(text, config).words


def problems_of(text: str, config: Config = CONFIG) -> list[str]:
    with pytest.raises(AssemblyError) as error:
        assemble(textwrap.dedent(text).lstrip("\n"), config, source="test.gr")
    first, *rest = str(error.value).split("\n")
    plural = "1 problem" if len(rest) == 1 else f"{len(rest)} problems"
    assert first == f"test.gr: {plural}"
    return [line.strip() for line in rest]


# --- examples ------------------------------------------------------------------------------------


def test_every_form_of_operand():
    assert words_of("SET A_BASE, 1:0x100") == [0x40_400100]
    assert words_of("set a_base, 0x400100") == [0x40_400100]
    assert words_of("SET A_SX, -64") == [0x43_FFFFC0]
    assert words_of("SET N_J, 0b1_0") == [0x4F_000002]
    assert words_of("SET EXP, a=1, b=2, o=3") == [0x62_003081]
    assert words_of("SET EXP, o=3") == [0x62_003000]
    assert words_of("SET EXP, s=63, a=1") == [0x62_FC0001]
    assert words_of("SET EXP, 0xFFFFFF") == [0x62_FFFFFF]
    assert words_of("LOOP 10\nENDLOOP") == [0x02_00000A, 0x03_000000]
    assert words_of("LOOP count=10\nENDLOOP") == words_of("loop 10\nendloop")
    assert words_of("LOOP\nENDLOOP")[0] == 0x02_000001
    assert words_of("HALT") == [0x01_000000]
    assert words_of(".word 0xDEADBEEF") == [0xDEADBEEF]


def test_mm_by_names_and_by_numbers():
    assert words_of("MM track") == words_of("MM track=track") == words_of("MM track=1")
    named = words_of("MM pass=dw, transposed, out=master, round=sr, bias")
    assert named == words_of("mm  pass = 2 ,transposed=1, b=rows, out=2, round=2, relu=0, bias=1")
    assert named == [
        isa.encode(
            "MM", CONFIG, transposed=1, out=isa.Out.MASTER, round=2, bias=1, **{"pass": isa.Pass.DW}
        )
    ]


def test_labels_and_lines():
    result = assemble("; program\n\ntrain: HALT ; one\ninfer:\n  a: b: STEP\n\nend:", CONFIG)
    assert result.words == words_of("HALT\nSTEP")
    assert result.labels == {"train": 0, "infer": 1, "a": 1, "b": 1, "end": 2}
    assert result.lines == [3, 5]


def test_empty_text_is_an_empty_program():
    assert assemble(" ; nothing\r\n", CONFIG).words == []
    assert disassemble([], CONFIG) == ""


def test_disassembly_reads_well():
    words = words_of(
        """
        SET A_BASE, 1:256
        SET A_SX, -64
        SET EXP, a=1, b=2, o=3
        LOOP 10
        MM pass=dw, transposed, out=master, round=sr, bias
        ENDLOOP
        SET EXP, a=1, b=2, o=3, s=4
        MM b=identity, skip=add, track
        MM out=measure, track=fit, skip=subtract
        MM b=3, out=pooled, scale=operand
        HALT
        .word 0xFF000000
        """
    )
    text = disassemble(words, CONFIG, {0: "the\ninput", 11: "on purpose"}, {"train": 0, "end": 12})
    pad = " " * 19
    assert text == (
        "train:\n"
        "    SET     A_BASE, 1:0x100                     ; the input\n"
        "    SET     A_SX, -64\n"
        "    SET     EXP, a=1, b=2, o=3\n"
        "    LOOP    10\n"
        "    MM      pass=dw, transposed, b=rows, out=master, round=sr, bias\n"
        "    ENDLOOP\n"
        "    SET     EXP, a=1, b=2, o=3, s=4\n"
        "    MM      pass=forward, b=identity, out=int8, round=rn, skip=add, track\n"
        "    MM      pass=forward, b=rows, out=measure, round=rn, skip=subtract, track=fit\n"
        "    MM      pass=forward, b=identity, out=pooled, round=rn, scale=operand\n"
        "    HALT\n"
        f"    .word   0xff000000{pad}       ; ILLEGAL_OPCODE; on purpose\n"
        "end:\n"
    )
    again = assemble(text, CONFIG)
    assert again.words == words
    assert again.labels == {"train": 0, "end": 12}


# --- problems ------------------------------------------------------------------------------------


def test_all_problems_at_once():
    assert problems_of(
        """
        here: SETT A_BASE, 0
              SET A_BAS, 0
        here: MM relu, wobble, out=9, out=int8
              LOOP 0
              ENDLOOP
              ENDLOOP
        """
    ) == [
        "line 1: no instruction is called 'SETT'; did you mean 'SET'?",
        "line 2: no register is called 'A_BAS'; did you mean 'A_BASE'?",
        "line 3: the label 'here' stands above already",
        "line 3: MM: no field is called 'wobble'; known: pass, transposed, b, out, round, relu, "
        "bias, mask, skip, track, scale",
        "line 3: MM: out is 9; it must be from 0 to 7",
        "line 3: MM: out is given twice",
        "line 4: LOOP: count is 0; it must be from 1 to 65535",
        "line 6: ENDLOOP without a LOOP",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("SET", "SET takes a register and a value: SET N_C, 10"),
        ("SET N_C", "SET takes a register and a value: SET N_C, 10"),
        ("SET N_C, ten", "SET N_C: 'ten' is not a number"),
        ("SET N_C, 1, 2", "SET N_C: '1, 2' is not a number"),
        ("SET N_C, 1:2", "SET N_C: '1:2' is not region:offset, for example 0:0x100"),
        ("SET N_C, 0", "SET N_C: 0 is out of range; allowed: 1 to 65535"),
        ("SET N_C, ", "SET: an operand is empty; is there a comma too many?"),
        ("SET PAD, -128", "SET PAD: -128 is out of range; allowed: -127 to 127"),
        (
            "SET A_BASE, 0:4096",
            "SET A_BASE: 0:4096 is out of range; allowed: an offset below 4096 in region 0",
        ),
        (
            "SET A_BASE, 2:0",
            "SET A_BASE: 2:0 is out of range; allowed: an address in one of the 2 regions",
        ),
        (
            "SET A_BASE, -1",
            "SET A_BASE: -1 is out of range; allowed: an address in one of the 2 regions",
        ),
        ("SET A_BASE, 4:0", "SET A_BASE: region 4, offset 0 is not an address"),
        ("SET A_BASE, 0:0:0", "SET A_BASE: '0:0:0' is not region:offset, for example 0:0x100"),
        ("SET EXP, a=64", "SET EXP: tensor 64; it must be from 0 to 63"),
        ("SET EXP, a=1, a=2", "SET EXP: a is given twice"),
        ("SET EXP, a=x", "SET EXP: 'x' is not a number"),
        ("SET EXP, c=1", "SET EXP: 'c=1' is none of a=, b=, o=, s="),
        ("MM dw", "MM: 'dw' is a value of pass: write pass=dw"),
        ("MM pass", "MM: pass=: the value must be one of forward, dx, dw, other"),
        ("MM pass=up", "MM: pass=up: the value must be one of forward, dx, dw, other"),
        ("MM relu=2", "MM: relu is 2; it must be from 0 to 1"),
        ("MM relu=yes", "MM: relu=yes: the value must be one of 0 to 1"),
        (
            "MM 1",
            "MM: no field is called '1'; known: pass, transposed, b, "
            "out, round, relu, bias, mask, skip, track, scale",
        ),
        ("HALT 1", "HALT: no field is called '1'; known: none"),
        ("LOSS", "LOSS: a LOSS must compute a gradient or a prediction"),
        (".word", ".word takes one number from 0 to 0xffffffff"),
        (".word 0x100000000", ".word takes one number from 0 to 0xffffffff"),
        (".word -1", ".word takes one number from 0 to 0xffffffff"),
        (".word 1, 2", ".word takes one number from 0 to 0xffffffff"),
    ],
)
def test_wrong_line(line: str, problem: str):
    assert problems_of(f"HALT\n{line}\nHALT") == [f"line 2: {problem}"]


@pytest.mark.parametrize("rule", [rule for rule in isa.RULES if not rule.option])
def test_wrong_combination(rule: isa.Rule):
    operands = ", ".join(f"{name}={min(values)}" for name, values in rule.when.items())
    assert f"line 1: {rule.instruction}: {rule.reason}" in problems_of(
        f"{rule.instruction} {operands}"
    )


def test_option_of_the_machine():
    line = "MM transposed, out=momentum, round=sr"
    words_of(line, CONFIG.replace(momentum=True))
    assert problems_of(line, CONFIG.replace(momentum=False)) == [
        "line 1: MM: momentum was not built"
    ]


def test_loops():
    words_of("LOOP 2\nLOOP 2\nENDLOOP\nLOOP 2\nENDLOOP\nENDLOOP")
    assert problems_of("LOOP 2\nHALT") == ["line 1: LOOP without an ENDLOOP"]
    assert problems_of("LOOP 2\nLOOP 2\nLOOP 2\nENDLOOP\nENDLOOP\nENDLOOP") == [
        "line 3: LOOP: more than 2 nested loops",
        "line 4: ENDLOOP of a loop that is nested too deep",
    ]


def test_program_too_long():
    config = CONFIG.replace(program_words=64)
    assert len(words_of("STEP\n" * 64, config)) == 64
    assert problems_of("STEP\n" * 66, config) == ["line 65: 66 words; the program memory has 64"]


@pytest.mark.parametrize("word", [-1, 1 << 32])
def test_disassemble_wrong_word(word: int):
    with pytest.raises(AssemblyError) as error:
        disassemble([0, word], CONFIG)
    assert str(error.value) == f"word 1 is {word}; it must be from 0 to 0xffffffff"


@pytest.mark.parametrize(("label", "pc"), [("a b", 0), ("a", 2), ("a", -1), ("", 0)])
def test_disassemble_wrong_label(label: str, pc: int):
    with pytest.raises(AssemblyError) as error:
        disassemble([0], CONFIG, labels={label: pc})
    assert str(error.value) == f"label {label!r} at {pc}; it must be a name, and lie from 0 to 1"


# --- the round trip ------------------------------------------------------------------------------


@st.composite
def legal_words(draw: st.DrawFn, config: Config) -> int:
    """Any word that the machine accepts."""
    name = draw(st.sampled_from(["SET", *isa.BY_NAME]))
    if name == "SET":
        register = draw(st.sampled_from(isa.REGISTERS))
        if register.kind == isa.Kind.ADDRESS:
            region = draw(st.integers(0, len(config.regions) - 1))
            offset = draw(st.integers(0, config.regions[region] - 1))
            value = isa.make_address(region, offset)
        else:
            value = draw(st.integers(*register.range(config)))
        return isa.encode_set(register.name, value, config)
    instruction = isa.BY_NAME[name]
    fields = {f.name: draw(st.integers(f.minimum, f.maximum)) for f in instruction.fields}
    if any(
        rule.instruction == name and rule.applies(config) and rule.matches(fields)
        for rule in isa.RULES
    ):
        fields = {"predict": 1} if name == "LOSS" else {}
    return isa.encode(name, config, **fields)


@given(st.data())
def test_round_trip_of_legal_words(data: st.DataObject):
    config = data.draw(st.sampled_from(CONFIGS))
    words = data.draw(st.lists(legal_words(config), max_size=30))
    for word in words:
        assert isinstance(isa.decode(word, config), isa.Decoded)
    assert words_of(disassemble(words, config), config) == words


@given(st.data())
def test_round_trip_of_any_words(data: st.DataObject):
    config = data.draw(st.sampled_from(CONFIGS))
    opcodes = [i.opcode for i in isa.INSTRUCTIONS] + [isa.SET_OPCODE + n for n in range(64)]
    near = st.builds(
        lambda opcode, operand: opcode << 24 | operand,
        st.sampled_from(opcodes),
        st.integers(0, isa.OPERAND_MASK) | st.integers(0, 1 << 14),
    )
    words = data.draw(st.lists(st.integers(0, 0xFFFFFFFF) | near, max_size=30))
    comments = data.draw(st.dictionaries(st.integers(0, 30), st.text(max_size=20), max_size=5))
    text = disassemble(words, config, comments)
    assert words_of(text, config) == words
    for word, line in zip(words, text.split("\n"), strict=False):
        meaning = isa.decode(word, config)
        if isinstance(meaning, isa.ErrorCause):
            assert line.split(";")[0].split() == [".word", f"{word:#010x}"]
            assert line.split(";")[1].strip() == meaning.name


def test_every_legal_mm_and_loss_survives():
    for name in ("MM", "LOSS"):
        instruction = isa.BY_NAME[name]
        # The pass goes with everything.
        fields = [f for f in instruction.fields if f.name != "pass"]
        rules = [rule for rule in isa.RULES if rule.instruction == name and not rule.option]
        program: list[int] = []
        for values in product(*(range(f.maximum + 1) for f in fields)):
            given = {f.name: value for f, value in zip(fields, values, strict=True)}
            if not any(rule.matches(given) for rule in rules):
                operand = sum(value << f.low for f, value in zip(fields, values, strict=True))
                program.append(instruction.opcode << 24 | operand | len(program) % 4)
        config = CONFIG.replace(program_words=1 << 14)
        assert all(isinstance(isa.decode(word, config), isa.Decoded) for word in program)
        assert words_of(disassemble(program, config), config) == program
