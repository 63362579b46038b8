from enum import IntEnum
from itertools import combinations

import pytest

from gradiron.arch import isa
from gradiron.arch.config import Config, simulation_config, up5k_config
from gradiron.arch.numerics import Rounding
from gradiron.errors import AssemblyError

CONFIG = Config(regions=(4096, 1 << 17))
CONFIGS = (CONFIG, up5k_config(), simulation_config("2x16"), Config(2, 2, regions=(64,)))
FIELDS = [(i, f) for i in isa.INSTRUCTIONS for f in i.fields]
UNUSED_OPCODES = [
    opcode
    for opcode in range(256)
    if opcode not in isa.BY_OPCODE and opcode - isa.SET_OPCODE not in isa.REGISTER_BY_NUMBER
]


def decoded(word: int, config: Config = CONFIG) -> isa.Decoded:
    meaning = isa.decode(word, config)
    assert isinstance(meaning, isa.Decoded)
    return meaning


def rules_of(name: str) -> list[isa.Rule]:
    return [rule for rule in isa.RULES if rule.instruction == name]


def legal_fields(instruction: isa.Instruction, **fields: int) -> dict[str, int]:
    """These fields, with what makes them legal: an update is transposed and stochastic, ..."""
    if fields.get("track") == isa.Track.FIT:
        fields = {"out": isa.Out.MEASURE} | fields
    match fields.get("out", 0):
        case isa.Out.MASTER | isa.Out.INT8_WEIGHTS | isa.Out.MOMENTUM:
            return {"transposed": 1, "round": 2} | fields
        case isa.Out.POOLED:
            return {"b": isa.BMode.IDENTITY, "scale": isa.Scale.OPERAND} | fields
        case isa.Out.MEASURE:
            return {"track": isa.Track.FIT} | fields
        case _:
            pass
    if instruction.name == "LOSS":
        return {"grad": 1, "predict": 1} | fields
    return fields


# --- the tables ----------------------------------------------------------------------------------


def test_fields_fit_and_do_not_overlap():
    for instruction in isa.INSTRUCTIONS:
        for field in instruction.fields:
            assert field.low + field.width <= isa.OPCODE_SHIFT
            assert field.minimum <= field.maximum <= (1 << field.width) - 1
            assert field.mask & instruction.reserved_mask == 0
        for one, other in combinations(instruction.fields, 2):
            assert one.mask & other.mask == 0


def test_names_and_numbers_are_unique():
    assert len(isa.BY_NAME) == len(isa.BY_OPCODE) == len(isa.INSTRUCTIONS)
    assert len(isa.REGISTER_BY_NAME) == len(isa.REGISTER_BY_NUMBER) == len(isa.REGISTERS)
    assert len(isa.CSR_BY_NAME) == len({c.number for c in isa.CSRS}) == len(isa.CSRS)
    assert all(register.number < 64 for register in isa.REGISTERS)
    assert not any(isa.SET_OPCODE <= opcode < isa.SET_OPCODE + 64 for opcode in isa.BY_OPCODE)


def test_empty_memory_is_no_instruction():
    assert isa.decode(0, CONFIG) == isa.ErrorCause.ILLEGAL_OPCODE
    assert isa.decode(0xFFFFFFFF, CONFIG) == isa.ErrorCause.ILLEGAL_OPCODE


@pytest.mark.parametrize(
    ("field", "enumeration"),
    [
        ("pass", isa.Pass),
        ("b", isa.BMode),
        ("out", isa.Out),
        ("skip", isa.Skip),
        ("track", isa.Track),
        ("scale", isa.Scale),
    ],
)
def test_enumerations_have_the_names_of_their_fields(field: str, enumeration: type[IntEnum]):
    values = isa.MM.field(field).values
    assert values == tuple(member.name.lower() for member in enumeration)
    assert [member.value for member in enumeration] == list(range(len(values)))


def test_rounding_field_numbers_the_roundings():
    values = isa.MM.field("round").values
    assert values[Rounding.NEAREST] == "rn"
    assert values[Rounding.TFLITE] == "rt"
    assert values[Rounding.STOCHASTIC] == "sr"


def test_rules_name_fields_and_values_that_exist():
    for rule in isa.RULES:
        for name, values in rule.when.items():
            field = isa.BY_NAME[rule.instruction].field(name)
            assert all(field.minimum <= value <= field.maximum for value in values)


def test_every_error_is_documented():
    assert set(isa.ERROR_DOC) == set(isa.ErrorCause)


# --- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("instruction", "field"), FIELDS)
def test_field_at_its_limits(instruction: isa.Instruction, field: isa.Field):
    for value in (field.minimum, field.maximum):
        fields = legal_fields(instruction, **{field.name: value})
        word = isa.encode(instruction.name, CONFIG, **fields)
        assert word >> 24 == instruction.opcode
        assert (word >> field.low) & ((1 << field.width) - 1) == value
        meaning = decoded(word)
        assert meaning.name == instruction.name
        assert meaning.fields[field.name] == value


@pytest.mark.parametrize(("instruction", "field"), FIELDS)
def test_field_past_its_limits(instruction: isa.Instruction, field: isa.Field):
    for value in (field.minimum - 1, field.maximum + 1):
        with pytest.raises(AssemblyError) as error:
            isa.encode(instruction.name, CONFIG, **{field.name: value})
        assert str(error.value) == (
            f"{instruction.name}: {field.name} is {value}; "
            f"it must be from {field.minimum} to {field.maximum}"
        )


def test_missing_fields_are_zero_or_their_minimum():
    assert isa.encode("MM") == 0x10_000000
    assert isa.encode("LOOP") == 0x02_000001


def test_encode_unknown_names():
    with pytest.raises(AssemblyError) as error:
        isa.encode("MUL")
    assert str(error.value) == (
        "no instruction is called 'MUL'; known: SET, HALT, LOOP, ENDLOOP, WAIT, STEP, MM, LOSS"
    )
    with pytest.raises(AssemblyError) as error:
        isa.encode("LOOP", times=3)
    assert str(error.value) == "LOOP has no field 'times'; it has: count"
    with pytest.raises(AssemblyError) as error:
        isa.encode("HALT", count=3)
    assert str(error.value) == "HALT has no field 'count'; it has: none"


@pytest.mark.parametrize("name", ["MM", "LOSS"])
def test_every_operand_decodes_or_breaks_a_rule(name: str):
    instruction = isa.BY_NAME[name]
    bits = max(f.low + f.width for f in instruction.fields)
    legal = 0
    for operand in range(0, 1 << bits, 4):  # without the pass, which goes with everything
        word = instruction.opcode << 24 | operand
        meaning = isa.decode(word, CONFIG)
        fields = {f.name: (operand & f.mask) >> f.low for f in instruction.fields}
        in_range = all(fields[f.name] <= f.maximum for f in instruction.fields)
        broken = [r for r in rules_of(name) if not r.option and r.matches(fields)]
        assert isinstance(meaning, isa.Decoded) == (in_range and not broken)
        if isinstance(meaning, isa.Decoded):
            legal += 1
            assert meaning.fields == fields
            assert isa.encode(name, CONFIG, **meaning.fields) == word
        else:
            assert meaning == isa.ErrorCause.ILLEGAL_FIELDS
    assert legal > 0


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", isa.RULES, ids=lambda rule: rule.reason)
def test_rule(rule: isa.Rule):
    config = CONFIG.replace(**{rule.option: False}) if rule.option else CONFIG
    instruction = isa.BY_NAME[rule.instruction]
    choices: list[dict[str, int]] = [{}]
    for name, values in rule.when.items():
        choices = [{**choice, name: value} for choice in choices for value in sorted(values)]
    for choice in choices:
        fields = {f.name: f.minimum for f in instruction.fields} | choice
        if rule.option:
            fields |= {"transposed": 1, "round": 2}
        operand = sum(fields[f.name] << f.low for f in instruction.fields)
        assert isa.decode(instruction.opcode << 24 | operand, config) == rule.cause
        with pytest.raises(AssemblyError) as error:
            isa.encode(rule.instruction, config, **fields)
        reasons = [r.reason for r in rules_of(rule.instruction) if r.matches(fields)]
        assert str(error.value) in [f"{rule.instruction}: {reason}" for reason in reasons]
        assert rule.reason in reasons


def test_momentum_is_legal_where_it_was_built():
    fields: dict[str, int] = {"transposed": 1, "round": 2, "out": isa.Out.MOMENTUM}
    word = isa.encode("MM", CONFIG, **fields)
    assert word == isa.encode("MM", None, **fields)
    assert decoded(word).fields["out"] == isa.Out.MOMENTUM
    without = CONFIG.replace(momentum=False)
    assert isa.decode(word, without) == isa.ErrorCause.UNSUPPORTED
    with pytest.raises(AssemblyError) as error:
        isa.encode("MM", without, **fields)
    assert str(error.value) == "MM: momentum was not built"


# --- every illegal kind --------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", UNUSED_OPCODES)
def test_illegal_opcode(opcode: int):
    for operand in (0, 1, isa.OPERAND_MASK):
        assert isa.decode(opcode << 24 | operand, CONFIG) == isa.ErrorCause.ILLEGAL_OPCODE


@pytest.mark.parametrize("instruction", isa.INSTRUCTIONS, ids=lambda i: i.name)
def test_illegal_reserved_bit(instruction: isa.Instruction):
    word = isa.encode(instruction.name, CONFIG, **legal_fields(instruction))
    for bit in range(24):
        if instruction.reserved_mask >> bit & 1:
            assert isa.decode(word | 1 << bit, CONFIG) == isa.ErrorCause.ILLEGAL_FIELDS


@pytest.mark.parametrize(
    ("instruction", "field"), [(i, f) for i, f in FIELDS if f.maximum < (1 << f.width) - 1]
)
def test_illegal_undefined_value(instruction: isa.Instruction, field: isa.Field):
    for value in range(field.maximum + 1, 1 << field.width):
        word = (
            isa.encode(instruction.name, CONFIG, **legal_fields(instruction)) | value << field.low
        )
        assert isa.decode(word, CONFIG) == isa.ErrorCause.ILLEGAL_FIELDS


def test_illegal_loop_count():
    assert isa.decode(0x02_000000, CONFIG) == isa.ErrorCause.OPERAND_RANGE


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.array}-{len(c.regions)}")
@pytest.mark.parametrize("register", isa.REGISTERS, ids=lambda r: r.name)
def test_register_range(register: isa.Register, config: Config):
    if register.kind == isa.Kind.ADDRESS:
        legal = [isa.make_address(r, o) for r, s in enumerate(config.regions) for o in (0, s - 1)]
        illegal = [isa.make_address(r, s) for r, s in enumerate(config.regions)]
        illegal += [isa.make_address(r, 0) for r in range(len(config.regions), 4)]
    else:
        low, high = register.range(config)
        legal = [low, high]
        illegal = [low - 1, high + 1]
    opcode = isa.SET_OPCODE + register.number
    for value in legal:
        word = isa.encode_set(register.name, value, config)
        assert word == opcode << 24 | value & isa.OPERAND_MASK
        assert decoded(word, config) == isa.Decoded("SET", {}, register, value)
    for value in illegal:
        with pytest.raises(AssemblyError) as error:
            isa.encode_set(register.name, value, config)
        allowed = register.check(value, config)
        assert str(error.value) == (
            f"SET {register.name}: {value} is out of range; allowed: {allowed}"
        )
        # Where 24 bits can hold the number at all, the machine refuses it too.
        operand = value & isa.OPERAND_MASK
        if register.value(operand) == value:
            word = opcode << 24 | operand
            assert isa.decode(word, config) == isa.ErrorCause.OPERAND_RANGE


def test_reset_values_are_legal():
    for config in CONFIGS:
        for register in isa.REGISTERS:
            assert register.check(register.reset, config) == ""


def test_encode_set_unknown_register():
    with pytest.raises(AssemblyError) as error:
        isa.encode_set("A_BAS", 0, CONFIG)
    assert str(error.value).startswith("no register is called 'A_BAS'; known: A_BASE, A_SN, ")


# --- packing -------------------------------------------------------------------------------------


def test_addresses():
    for region in range(4):
        for offset in (0, 1, (1 << 22) - 1):
            assert isa.split_address(isa.make_address(region, offset)) == (region, offset)
    for region, offset in ((4, 0), (-1, 0), (0, -1), (0, 1 << 22)):
        with pytest.raises(AssemblyError) as error:
            isa.make_address(region, offset)
        assert str(error.value) == f"region {region}, offset {offset} is not an address"


def test_tensors():
    for indices in ((0, 0, 0, 0), (63, 0, 0, 0), (0, 63, 0, 0), (0, 0, 63, 0), (1, 2, 3, 63)):
        assert isa.unpack_tensors(isa.pack_tensors(*indices)) == indices
    assert isa.pack_tensors(63, 63, 63, 63) == (1 << 24) - 1
    for index in (-1, 64):
        with pytest.raises(AssemblyError) as error:
            isa.pack_tensors(o=index)
        assert str(error.value) == f"tensor {index}; it must be from 0 to 63"


def test_exponent_entries():
    for exponent in (-128, -64, -1, 0, 63, 127):
        for low in (0, 7):
            word = isa.pack_exponent(exponent, -exponent - 1, low)
            assert 0 <= word < 1 << 19
            assert isa.unpack_exponent(word) == (exponent, -exponent - 1, low)
