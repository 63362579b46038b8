"""What goes wrong stops the machine where the golden model stops, and harms nothing else."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gradiron.arch import isa
from gradiron.arch.config import TENSORS, Config
from gradiron.arch.isa import BMode, ErrorCause, Kind, MachineState, Out, Space, make_address
from gradiron.device import CONTROL_CLEAR, CONTROL_RESUME, CONTROL_START, Device, Status
from gradiron.errors import DeviceError, MachineError
from gradiron_sim.cxxrtl import CxxrtlDevice
from gradiron_sim.lockstep import Lockstep, difference, run_checked
from support.machines import FOUR, SINGLE, TWO, golden, name_of, simulated
from support.programs import BUILT, Case, NoRoom, complete, random_product, random_sequence

HALT, STEP, WAIT, ENDLOOP = (isa.encode(name) for name in ("HALT", "STEP", "WAIT", "ENDLOOP"))

MACHINES = [pytest.param(TWO, marks=pytest.mark.long), SINGLE]

ROWS, DEPTH, COLUMNS = 8, 6, 6
SPAN = ROWS * COLUMNS


def places(config: Config) -> dict[str, int]:
    """Where the operands of the product below lie; all in region 1 but the streamed one."""
    names = (
        "B_BASE",
        "O_BASE",
        "O_LO",
        "M_BASE",
        "BIAS",
        "V_HI",
        "V_LO",
        "V_BIAS",
        "P_BASE",
        "S_BASE",
    )
    region = len(config.regions) > 1
    found = {name: make_address(region, 0x40 * (2 * i + 1)) for i, name in enumerate(names)}
    return {"A_BASE": make_address(0, 0x1000), **found}


def product_sets(config: Config, changes: dict[str, int]) -> dict[str, int]:
    """A product of 8 x 6 x 6, as plain and as transposed."""
    sets = {
        **places(config),
        "A_SX": DEPTH,
        "A_HB": 1,
        "A_WB": ROWS * DEPTH,
        "N_P": ROWS,
        "N_X": ROWS,
        "N_J": DEPTH,
        "N_C": COLUMNS,
        "N_G": ROWS,
        "B_R": COLUMNS,
        "O_S0": COLUMNS,
        "EXP": isa.pack_tensors(1, 2, 3),
    }
    return sets | changes


def program(config: Config, name: str, sets: dict[str, int], **fields: int) -> Case:
    words = [isa.encode_set(k, v, config) for k, v in complete(sets).items()]
    words += [isa.encode(name, config, **fields), HALT]
    rng = np.random.default_rng(1)
    small = rng.integers(-100, 100, 64, dtype=np.int8).tobytes()
    memory = [(address, small) for address in places(config).values()]
    return Case(words, memory, {1: (-5, -5, 0), 2: (-6, -6, 0), 3: (-4, -4, 0)}, seed=7)


def small_case(make: Callable[[], Case]) -> Case:
    """The first random case that fits the memory."""
    while True:
        with contextlib.suppress(NoRoom):
            return make()


def memories(device: CxxrtlDevice) -> list[bytes]:
    sizes = enumerate(device.config.regions)
    return [device.peek(Space.MEMORY, make_address(r, 0), size) for r, size in sizes]


def fails(
    case: Case, config: Config, cause: ErrorCause, pc: int, *, results: tuple[int, ...] = ()
) -> None:
    """The program stops both machines at `pc`; only the results' 64 bytes may change."""
    reference, subject = golden(config), simulated(config)
    for device in (reference, subject):
        case.load(device)
    before = memories(subject)
    status = run_checked(reference, subject, timeout=20)
    assert status == Status(MachineState.ERROR, cause, pc), case.text
    after = memories(subject)
    for address in results:
        region, offset = isa.split_address(address)
        for memory in (before, after):
            memory[region] = memory[region][:offset] + bytes(64) + memory[region][offset + 64 :]
    assert before == after


def recovers(config: Config) -> None:
    """After a reset the machine runs a good program."""
    reference, subject = golden(config), simulated(config)
    assert subject.status().state == MachineState.ERROR
    with pytest.raises(DeviceError, match="ERROR and cannot start"):
        subject.start()
    subject.write_csr("CONTROL", CONTROL_START)  # ignored in this state
    assert subject.status().state == MachineState.ERROR
    case = random_product(config, np.random.default_rng(11))
    for device in (reference, subject):
        case.load(device)
        assert device.status()[:2] == (MachineState.IDLE, ErrorCause.NONE)
    assert run_checked(reference, subject, timeout=20).state == MachineState.HALTED


# --- words ---------------------------------------------------------------------------------------


def rule_fields(rule: isa.Rule) -> dict[str, int]:
    """Field values that break this rule and, if possible, no other."""
    fields = [f for f in isa.BY_NAME[rule.instruction].fields if f.name != "pass"]
    best: tuple[int, dict[str, int]] | None = None
    ranges = [
        (min(rule.when[f.name]),) if f.name in rule.when else range(f.minimum, f.maximum + 1)
        for f in fields
    ]
    for numbers in itertools.product(*ranges):
        values = {f.name: value for f, value in zip(fields, numbers, strict=True)}
        broken = sum(
            r.matches({"pass": 0, **values})
            for r in isa.RULES
            if r is not rule and r.instruction == rule.instruction and not r.option
        )
        if best is None or broken < best[0]:
            best = broken, values
        if not broken:
            break
    assert best is not None
    return best[1]


def illegal_words(config: Config) -> Iterator[int]:
    """Every kind of word that is none."""
    for opcode in range(256):
        register = isa.REGISTER_BY_NUMBER.get(opcode - isa.SET_OPCODE)
        if opcode not in isa.BY_OPCODE and register is None:
            yield opcode << 24
    for instruction in isa.INSTRUCTIONS:
        least = sum(f.minimum << f.low for f in instruction.fields)
        good = instruction.opcode << 24 | least | (8 if instruction.name == "LOSS" else 0)
        for bit in range(24):
            if instruction.reserved_mask >> bit & 1:
                yield good | 1 << bit
        for field in instruction.fields:
            for value in (*range(field.minimum), *range(field.maximum + 1, 1 << field.width)):
                yield good & ~field.mask | value << field.low
    for rule in isa.RULES:
        if rule.applies(config):
            operand = sum(
                value << isa.BY_NAME[rule.instruction].field(name).low
                for name, value in rule_fields(rule).items()
            )
            yield isa.BY_NAME[rule.instruction].opcode << 24 | operand
    for register in isa.REGISTERS:
        head = (isa.SET_OPCODE + register.number) << 24
        if register.kind == Kind.ADDRESS:
            for region, size in enumerate(config.regions):
                yield head | make_address(region, size)
            for region in range(len(config.regions), 4):
                yield head | make_address(region, 0)
        elif register.kind != Kind.TENSORS:
            low, high = register.range(config)
            yield head | (low - 1) & isa.OPERAND_MASK
            yield head | (high + 1) & isa.OPERAND_MASK


@pytest.mark.parametrize("config", MACHINES, ids=name_of)
def test_illegal_words(config: Config) -> None:
    subject = simulated(config)
    case = program(config, "MM", product_sets(config, {}))
    case.load(subject)
    before = memories(subject)
    seen: set[ErrorCause] = set()
    for word in illegal_words(config):
        cause = isa.decode(word, config)
        assert isinstance(cause, ErrorCause), f"{word:#010x}"
        seen.add(cause)
        subject.write_program([STEP, word, HALT])
        step = subject.read_csr("STEP")
        with pytest.raises(MachineError):
            subject.run(timeout=20)
        assert subject.status() == Status(MachineState.ERROR, cause, 1), f"{word:#010x}"
        assert subject.read_csr("STEP") == step + 1
        assert memories(subject) == before, f"{word:#010x}"
        subject.reset()
    wanted = {ErrorCause.ILLEGAL_OPCODE, ErrorCause.ILLEGAL_FIELDS, ErrorCause.OPERAND_RANGE}
    assert seen == wanted | (set() if config.momentum else {ErrorCause.UNSUPPORTED})
    fails(Case([STEP, 0xFF << 24]), config, ErrorCause.ILLEGAL_OPCODE, 1)
    recovers(config)


@pytest.mark.parametrize(
    ("words", "pc"),
    [
        ([STEP, ENDLOOP, HALT], 1),
        ([isa.encode("LOOP", count=2), ENDLOOP, ENDLOOP, HALT], 2),
        ([isa.encode("LOOP", count=2)] * 3 + [HALT], 2),
    ],
    ids=["none", "one too many", "too deep"],
)
def test_loop_misuse(words: list[int], pc: int) -> None:
    fails(Case(words), TWO, ErrorCause.LOOP_STACK, pc)
    recovers(TWO)


@pytest.mark.parametrize("last", [STEP, WAIT, isa.encode("LOOP", count=1)])
def test_end_of_the_program_memory(last: int) -> None:
    words = [STEP] * (TWO.program_words - 1) + [last]
    fails(Case(words), TWO, ErrorCause.PROGRAM_END, TWO.program_words - 1)
    recovers(TWO)


def test_halt_in_the_last_word() -> None:
    reference, subject = golden(TWO), simulated(TWO)
    for device in (reference, subject):
        Case([STEP] * (TWO.program_words - 1) + [HALT]).load(device)
    status = run_checked(reference, subject, TWO.program_words - 2, counters=("INSTRUCTIONS",))
    assert status == Status(MachineState.HALTED, ErrorCause.NONE, TWO.program_words - 1)


# --- addresses -----------------------------------------------------------------------------------

UPDATE = {"transposed": 1, "round": 2, "bias": 1}
POOLED = {"out": Out.POOLED, "b": BMode.IDENTITY, "scale": 1}
MEASURE = {"out": Out.MEASURE, "track": 2}
DIAGONAL, IDENTITY, GATE = ({"b": mode} for mode in list(BMode)[2:])
STREAMS: dict[str, tuple[str, int, dict[str, int], tuple[str, ...]]] = {
    "A": ("A_BASE", 48, {"out": Out.INT8}, ("O_BASE",)),
    "A transposed": ("A_BASE", 48, {"out": Out.INT8, "transposed": 1}, ("O_BASE",)),
    "B rows": ("B_BASE", 36, {"out": Out.INT8}, ("O_BASE",)),
    "B columns": ("B_BASE", 36, {"out": Out.INT8, "b": 1}, ("O_BASE",)),
    "B transposed": ("B_BASE", 48, {"out": Out.INT8, "transposed": 1}, ("O_BASE",)),
    "result": ("O_BASE", 48, {"out": Out.INT8}, ()),
    "mask": ("M_BASE", 48, {"out": Out.INT8, "mask": 1}, ("O_BASE",)),
    "bias": ("BIAS", 24, {"out": Out.INT8, "bias": 1}, ("O_BASE",)),
    "high plane of logits": ("O_BASE", 48, {"out": Out.LOGITS}, ("O_LO",)),
    "low plane of logits": ("O_LO", 48, {"out": Out.LOGITS}, ("O_BASE",)),
    "high plane": ("O_BASE", 36, {"out": Out.MASTER, **UPDATE}, ("O_LO", "BIAS")),
    "low plane": ("O_LO", 36, {"out": Out.MASTER, **UPDATE}, ("O_BASE", "BIAS")),
    "int8 weights": ("O_BASE", 36, {"out": Out.INT8_WEIGHTS, **UPDATE}, ("BIAS",)),
    "bias of an update": ("BIAS", 24, {"out": Out.MASTER, **UPDATE}, ("O_BASE", "O_LO")),
    "momentum, high plane": ("V_HI", 36, {"out": Out.MOMENTUM, **UPDATE}, ()),
    "momentum, low plane": ("V_LO", 36, {"out": Out.MOMENTUM, **UPDATE}, ()),
    "momentum, bias": ("V_BIAS", 24, {"out": Out.MOMENTUM, **UPDATE}, ()),
    "skip": ("S_BASE", 48, {"skip": 1}, ("O_BASE",)),
    "skip of a measurement": ("S_BASE", 48, {**MEASURE, "skip": 2}, ()),
    "A by channel": ("A_BASE", 48, IDENTITY, ("O_BASE",)),
    "B diagonal": ("B_BASE", 6, DIAGONAL, ("O_BASE",)),
    "B diagonal, transposed": ("B_BASE", 48, {**DIAGONAL, "transposed": 1}, ("O_BASE",)),
    "gate": ("B_BASE", 48, GATE, ("O_BASE",)),
    "largest values": ("O_BASE", 48, POOLED, ("O_LO",)),
    "their arguments": ("O_LO", 48, POOLED, ("O_BASE",)),
}
MOMENTUM_RESULTS = ("O_BASE", "O_LO", "BIAS", "V_HI", "V_LO", "V_BIAS")


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("config", MACHINES, ids=name_of)
def test_addresses_past_the_end(config: Config, stream: str) -> None:
    register, size, fields, results = STREAMS[stream]
    if not BUILT.has(fields):
        pytest.skip("the hardware does not have it")
    if fields.get("out") == Out.MOMENTUM:
        if not config.momentum:
            pytest.skip("the machine has no momentum")
        results = tuple(name for name in MOMENTUM_RESULTS if name != register)
    reference, subject = golden(config), simulated(config)
    region = len(config.regions) - 1
    end = config.regions[region]
    # The last place that is right, and the first that is not.
    sets = product_sets(config, {register: make_address(region, end - size)})
    good = program(config, "MM", sets, **fields)
    for device in (reference, subject):
        good.load(device)
    assert run_checked(reference, subject, timeout=20).state == MachineState.HALTED
    for missing in (config.lane_bytes, size // 4 * 2):
        sets = product_sets(config, {register: make_address(region, end - size + missing)})
        case = program(config, "MM", sets, **fields)
        pc = len(case.words) - 2
        touched = tuple(sets[name] for name in results)
        if register in (*MOMENTUM_RESULTS[:2], *results) or register.startswith(("V_", "BIAS")):
            touched += (make_address(region, end - 64),)
        fails(case, config, ErrorCause.ADDRESS_RANGE, pc, results=touched)
    recovers(config)


@pytest.mark.parametrize("config", MACHINES, ids=name_of)
@pytest.mark.parametrize(
    "changes",
    [
        {"B_R": -COLUMNS, "B_BASE": 4},
        {"A_SX": -DEPTH, "A_BASE": 4, "A_WB": 2000},
        {"O_S0": -COLUMNS, "O_BASE": 0},
        {"O_OFF": 2047 * 4, "O_BASE": 64},
    ],
    ids=["B", "A", "O", "offset"],
)
def test_addresses_before_the_beginning(config: Config, changes: dict[str, int]) -> None:
    sets = product_sets(config, changes)
    # Column offsets before 0 are padding; rows of the stationary operand and results are not.
    case = program(config, "MM", sets)
    reference, subject = golden(config), simulated(config)
    for device in (reference, subject):
        case.load(device)
    status = run_checked(reference, subject, timeout=20)
    right = MachineState.HALTED if "A_SX" in changes else MachineState.ERROR
    assert status.state == right
    if right == MachineState.ERROR:
        assert status.cause == ErrorCause.ADDRESS_RANGE
        recovers(config)


def loss_sets(config: Config, changes: dict[str, int]) -> dict[str, int]:
    names = ("A_BASE", "B_BASE", "M_BASE", "O_BASE", "P_BASE")
    sets = {name: address for name, address in places(config).items() if name in names}
    return {**sets, "N_X": 4, "N_C": 9, "EXP": isa.pack_tensors(0, 0, 3)} | changes


def loss_case(config: Config, changes: dict[str, int], label: int = 8) -> Case:
    case = program(config, "LOSS", loss_sets(config, changes), grad=1, predict=1)
    case.memory.append((places(config)["M_BASE"], bytes([0, 3, 8, label])))
    return case


@pytest.mark.parametrize("label", [9, 128, 255])
@pytest.mark.parametrize("config", MACHINES, ids=name_of)
def test_labels_out_of_range(config: Config, label: int) -> None:
    case = loss_case(config, {}, label)
    fails(case, config, ErrorCause.LABEL_RANGE, len(case.words) - 2)
    recovers(config)


@pytest.mark.parametrize("register", ["A_BASE", "B_BASE", "M_BASE", "O_BASE", "P_BASE"])
@pytest.mark.parametrize("config", MACHINES, ids=name_of)
def test_loss_past_the_end(config: Config, register: str) -> None:
    size = 4 if register in ("M_BASE", "P_BASE") else 36
    end = make_address(1, config.regions[1])
    case = loss_case(config, {register: end - size + 1})
    if register == "M_BASE":
        case.memory.append((end - size + 1, bytes(3)))
    sets = loss_sets(config, {})
    results = tuple(sets[name] for name in ("A_BASE", "B_BASE", "O_BASE", "P_BASE"))
    pc = len(case.words) - 2
    fails(case, config, ErrorCause.ADDRESS_RANGE, pc, results=(*results, end - 64))
    recovers(config)


def test_loss_too_large() -> None:
    case = loss_case(SINGLE, {"N_X": 1024, "N_C": 1024})
    reference, subject = golden(SINGLE), simulated(SINGLE)
    for device in (reference, subject):
        case.load(device)
    before = memories(subject)
    status = run_checked(reference, subject, timeout=20)
    assert status == (MachineState.ERROR, ErrorCause.ADDRESS_RANGE, len(case.words) - 2)
    # The planes of the logits, which the probabilities replace, reach to the end of their regions.
    for old, new, register in zip(before, memories(subject), ("A_BASE", "B_BASE"), strict=True):
        begin = isa.split_address(places(SINGLE)[register])[1]
        assert old[:begin] == new[:begin]
    recovers(SINGLE)


@pytest.mark.parametrize(
    ("taps", "bias", "wrong"), [(64, 0, False), (65, 0, True), (63, 1, False), (64, 1, True)]
)
def test_accumulator_depth(taps: int, bias: int, wrong: bool) -> None:
    changes = {"N_J": taps, "A_SX": taps, "A_WB": 8 * taps, "O_BASE": 0x1800, "O_LO": 0x1C00}
    fields = {"transposed": 1, "round": 2, "out": Out.MASTER, "bias": bias}
    case = program(FOUR, "MM", product_sets(FOUR, changes), **fields)
    if wrong:
        fails(case, FOUR, ErrorCause.ACCUMULATOR_DEPTH, len(case.words) - 2)
        recovers(FOUR)
        return
    for device in (golden(FOUR), simulated(FOUR)):
        case.load(device)
    assert run_checked(golden(FOUR), simulated(FOUR)).state == MachineState.HALTED


ALWAYS = ("A_BASE", "A_SN", "A_SY", "A_SX", "A_TY", "A_TX", "A_Y0", "A_X0", "B_BASE", "B_R")
ODD: list[tuple[str, dict[str, int]]] = [
    *((name, {}) for name in (*ALWAYS, "B_TY", "B_TX", "O_BASE", "O_OFF", "O_S2", "O_S1", "O_S0")),
    ("O_LO", {"out": Out.LOGITS}),
    ("O_LO", {"out": Out.MASTER, **UPDATE}),
    ("M_BASE", {"mask": 1}),
    ("BIAS", {"bias": 1}),
    ("S_BASE", {"skip": 1}),
    ("O_LO", POOLED),
    ("O_BASE", MEASURE),
    ("B_BASE", IDENTITY),
    ("B_R", DIAGONAL),
    ("B_TX", GATE),
]


@pytest.mark.parametrize(
    ("register", "fields"), ODD, ids=[f"{r}{i}" for i, (r, _) in enumerate(ODD)]
)
def test_odd_offsets_of_two_byte_lanes(register: str, fields: dict[str, int]) -> None:
    if not BUILT.has(fields):
        pytest.skip("the hardware does not have it")
    odd = product_sets(SINGLE, {}).get(register, 0) + 1
    case = program(SINGLE, "MM", product_sets(SINGLE, {register: odd}), **fields)
    fails(case, SINGLE, ErrorCause.MISALIGNED, len(case.words) - 2)
    recovers(SINGLE)


@pytest.mark.parametrize(
    ("register", "fields"),
    [
        *(("O_LO", {}), ("M_BASE", {}), ("BIAS", {}), ("B_TY", {"transposed": 1}), ("V_HI", {})),
        *(("S_BASE", {}), ("GATE", {})),
    ],
)
def test_odd_registers_that_are_not_used(register: str, fields: dict[str, int]) -> None:
    odd = product_sets(SINGLE, {}).get(register, 0) + 1
    case = program(SINGLE, "MM", product_sets(SINGLE, {register: odd}), **fields)
    for device in (golden(SINGLE), simulated(SINGLE)):
        case.load(device)
    assert run_checked(golden(SINGLE), simulated(SINGLE)).state == MachineState.HALTED


@pytest.mark.parametrize("config", MACHINES, ids=name_of)
@pytest.mark.parametrize(
    ("changes", "fields", "cause"),
    [
        ({}, GATE, ErrorCause.REGION_CONFLICT),
        ({"A_BASE": make_address(1, 0x1FFC)}, GATE, ErrorCause.REGION_CONFLICT),
        ({"N_P": 2, "N_C": 1}, {"out": Out.LOSS}, ErrorCause.OPERAND_RANGE),
        ({"N_P": 1, "N_C": 2}, {"out": Out.LOSS}, ErrorCause.OPERAND_RANGE),
        (
            {"N_C": 300, "B_BASE": make_address(0, 0x1FFE)},
            {"out": Out.LOSS},
            ErrorCause.OPERAND_RANGE,
        ),
        (
            {"N_TY": 65},
            {**DIAGONAL, "out": Out.INT8_WEIGHTS, "transposed": 1, "round": 2},
            ErrorCause.ACCUMULATOR_DEPTH,
        ),
    ],
)
def test_conflicts_and_shapes(
    config: Config, changes: dict[str, int], fields: dict[str, int], cause: ErrorCause
) -> None:
    if not BUILT.has(fields):
        pytest.skip("the hardware does not have it")
    sets = product_sets(config, changes)
    if cause == ErrorCause.REGION_CONFLICT:
        sets["B_BASE"] = make_address(isa.split_address(sets["A_BASE"])[0], 0)
    case = program(config, "MM", sets, **fields)
    fails(case, config, cause, len(case.words) - 2)
    recovers(config)


@pytest.mark.parametrize("config", MACHINES, ids=name_of)
@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"O_BASE": make_address(1, 0x1FFE)}, MEASURE),
        ({"O_BASE": make_address(1, 0x1FFE), "N_P": 1, "N_C": 1, "O_OFF": 98}, {"out": Out.LOSS}),
        ({"B_BASE": make_address(1, 0x1FFE), "B_TX": 98, "N_TX": 2, "A_TX": 0}, IDENTITY),
        ({"B_BASE": make_address(1, 0x1FFE), "A_HB": 0}, GATE),
    ],
)
def test_bytes_that_are_not_used(
    config: Config, changes: dict[str, int], fields: dict[str, int]
) -> None:
    if not BUILT.has(fields):
        pytest.skip("the hardware does not have it")
    reference, subject = golden(config), simulated(config)
    case = program(config, "MM", product_sets(config, changes), **fields)
    for device in (reference, subject):
        case.load(device)
    assert run_checked(reference, subject, timeout=20).state == MachineState.HALTED


def test_loss_at_odd_offsets_of_two_byte_lanes() -> None:
    places_ = loss_sets(SINGLE, {})
    names = ("A_BASE", "B_BASE", "M_BASE", "O_BASE", "P_BASE")
    case = loss_case(SINGLE, {name: places_[name] + 1 for name in names})
    case.memory.append((places_["M_BASE"] + 1, bytes([0, 3, 8, 1])))
    for device in (golden(SINGLE), simulated(SINGLE)):
        case.load(device)
    assert run_checked(golden(SINGLE), simulated(SINGLE)).state == MachineState.HALTED


@pytest.mark.parametrize("config", MACHINES, ids=name_of)
def test_host_reaches_every_byte(config: Config) -> None:
    device = simulated(config)
    device.reset()
    rng = np.random.default_rng(3)
    content = bytearray(rng.bytes(64))
    device.write_memory(0, bytes(content))
    for _ in range(60):
        start, count = int(rng.integers(60)), int(rng.integers(1, 5))
        data = rng.bytes(count)
        device.write_memory(start, data)
        content[start : start + count] = data
        start, count = int(rng.integers(60)), int(rng.integers(1, 5))
        assert device.read_memory(start, count) == content[start : start + count]
    assert device.read_memory(0, 64) == content
    golden(config).write_memory(0, bytes(content))


# --- host and control ----------------------------------------------------------------------------


@pytest.mark.parametrize("space", [Space.MEMORY, Space.PROGRAM, Space.EXPONENTS])
def test_no_access_while_running(space: Space) -> None:
    with CxxrtlDevice(TWO) as device:
        device.write_program([isa.encode("LOOP", count=60000), STEP, ENDLOOP, HALT])
        device.write_memory(0, b"abcd")
        device.start()
        with pytest.raises(DeviceError, match="refused to read"):
            device._read(space, 0, 4)
        with pytest.raises(DeviceError, match="refused to write"):
            device._write(space, 0, bytes(4))
        assert device.status().state == MachineState.RUNNING
        device.reset()
        assert device.read_memory(0, 4) == b"abcd"
        assert device.read_program(0, 1) == [isa.encode("LOOP", count=60000)]


def test_what_the_machine_says_of_itself() -> None:
    with CxxrtlDevice(TWO) as device:
        assert device.read_csr("ID") == isa.DEVICE_ID
        assert device.read_csr("VERSION") == isa.ISA_VERSION
        assert device.read_csr("CONFIG") == TWO.digest()
        assert not any(device.counters().values())


def test_addresses_that_do_not_exist() -> None:
    with CxxrtlDevice(TWO) as device:
        for space, address in (
            (Space.MEMORY, make_address(0, TWO.regions[0])),
            (Space.MEMORY, make_address(3, 0)),
            (Space.PROGRAM, TWO.program_words),
            (Space.EXPONENTS, 128),
        ):
            with pytest.raises(DeviceError, match="refused to read"):
                device._read(space, address, 1)
            with pytest.raises(DeviceError, match="refused to write"):
                device._write(space, address, bytes(4))
        assert device._read(Space.CSR, 200, 1) == bytes(4)


@pytest.mark.parametrize("config", MACHINES, ids=name_of)
def test_every_word_that_the_host_may_write(config: Config) -> None:
    """Whatever it writes to registers and exponent table, both machines hold and do the same."""
    rng = np.random.default_rng(17)
    numbers = {name: isa.CSR_BY_NAME[name].number for name in ("ENTRY", "MODE", "SEED", "RATE")}
    devices = (golden(config), simulated(config))
    results = [out for out in Out if config.momentum or out != Out.MOMENTUM]
    for turn in range(40):
        kind = results[turn % len(results)]
        case = small_case(lambda kind=kind: random_product(config, rng, kind=kind))
        entries, counts = rng.bytes(4 * TENSORS), rng.bytes(4 * TENSORS)
        words = {name: int(rng.integers(1 << 32)) for name in numbers}
        words["ENTRY"] &= -config.program_words  # the program begins at 0
        words["MODE"] &= -1 - (turn % 8 > 0)
        for device in devices:
            case.load(device)
            device._write(Space.EXPONENTS, 0, entries + counts)
            for name, word in words.items():
                device._write(Space.CSR, numbers[name], word.to_bytes(4, "little"))
                assert device._read(Space.CSR, numbers[name], 1) == word.to_bytes(4, "little")
            device.write_csr("CONTROL", CONTROL_START)
            while device.status().state in (MachineState.RUNNING, MachineState.PAUSED):
                device.write_csr("CONTROL", CONTROL_RESUME)
        assert devices[0].status().state == MachineState.HALTED
        assert difference(*devices, counters=("MODE", "INSTRUCTIONS")) is None, case.text
        for device in devices:
            device._write(Space.EXPONENTS, 0, entries + counts)
        assert difference(*devices) is None


@pytest.mark.parametrize("config", MACHINES, ids=name_of)
def test_a_register_that_does_not_exist_is_read_during_a_product(config: Config) -> None:
    """It reads as 0, and nothing is counted less for it."""
    reference, subject = golden(config), simulated(config)
    rng = np.random.default_rng(5)
    for _ in range(8):
        case = small_case(lambda: random_product(config, rng, kind=Out.INT8))
        case.exponents = dict.fromkeys(range(TENSORS), (60, 60, 0))  # all is saturated
        for device in (reference, subject):
            case.load(device)
            device.write_csr("ENTRY", 0)
            device.write_csr("CONTROL", CONTROL_START)
            while device.status().state == MachineState.RUNNING:
                for number in range(29, 33):
                    assert device._read(Space.CSR, number, 1) == bytes(4)
        assert difference(reference, subject) is None, case.text


@pytest.mark.parametrize("config", [TWO, SINGLE], ids=name_of)
def test_single_steps(config: Config) -> None:
    reference, subject = golden(config), simulated(config)
    case = random_sequence(config, np.random.default_rng(5))
    for device in (reference, subject):
        case.load(device)
    lockstep = Lockstep(reference, subject, counters=("INSTRUCTIONS",), watch=16, timeout=20)
    assert lockstep.run().state == MachineState.HALTED
    assert lockstep.instructions == subject.read_csr("INSTRUCTIONS") >= len(case.words)


def test_wait_and_resume() -> None:
    reference, subject = golden(TWO), simulated(TWO)
    words = [isa.encode("LOOP", count=3), STEP, WAIT, ENDLOOP, HALT]
    for device in (reference, subject):
        Case(words).load(device)
    status = run_checked(reference, subject)
    for turn in range(3):
        assert status == Status(MachineState.WAITING, ErrorCause.NONE, 3)
        for device in (reference, subject):
            device.write_memory(turn, bytes([turn]))
            status = device.resume(20)
    assert status == Status(MachineState.HALTED, ErrorCause.NONE, 4)
    counters = subject.counters()
    assert counters["INSTRUCTIONS"] == 1 + 3 * 3 + 1
    assert counters["CYCLES"] == counters["DESCRIPTOR"]
    assert counters["WAIT_CYCLES"] > 0
    subject.write_csr("CONTROL", CONTROL_RESUME)  # ignored in this state
    assert subject.status() == status


def test_reset_stops_a_product() -> None:
    def stopped(device: Device, cycles: int) -> None:
        device.write_csr("CONTROL", CONTROL_START)
        for _ in range(cycles):
            device.read_csr("STEP")
        device.reset()
        assert device.status()[:2] == (MachineState.IDLE, ErrorCause.NONE)

    reference, subject = golden(FOUR), simulated(FOUR)
    case = program(FOUR, "MM", product_sets(FOUR, {}), bias=1, relu=1)
    for cycles in (20, 30, 50, 60, 70):
        case.load(subject)
        subject.write_csr("ENTRY", 0)
        stopped(subject, cycles)
        for device in (reference, subject):
            case.load(device)
        assert run_checked(reference, subject).state == MachineState.HALTED


@pytest.mark.parametrize("config", MACHINES, ids=name_of)
def test_counters_add_up(config: Config) -> None:
    with CxxrtlDevice(config, record=True) as device:
        for seed in range(6):
            random_sequence(config, np.random.default_rng(seed)).load(device)
            device.forget()
            device.write_csr("CONTROL", CONTROL_CLEAR)
            device.run(timeout=20)
            counters = device.counters()
            assert device.retirements is not None
            # The cycle in which an instruction is decoded counts under DESCRIPTOR.
            done = [(r.name, r.last_cycle - r.first_cycle) for r in device.retirements]
            loss = sum(cycles for name, cycles in done if name == "LOSS")
            products = sum(cycles for name, cycles in done if name == "MM")
            array = [n for n in counters if n == "BUSY" or n.startswith("STALL_")]
            passes = [n for n in counters if n.startswith("CYCLES_")]
            assert sum(counters[n] for n in array) == products
            assert sum(counters[n] for n in passes) == products + loss
            # All further cycles of other instructions, and of the first one that of the start.
            others = sum(cycles for name, cycles in done if name not in ("MM", "LOSS"))
            assert counters["DESCRIPTOR"] == len(done) + others
            assert counters["DESCRIPTOR"] + products + loss == counters["CYCLES"]
            assert counters["INSTRUCTIONS"] == len(done)
            assert counters["CYCLES"] == device.running_cycles
