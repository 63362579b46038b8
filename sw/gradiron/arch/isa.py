"""The instruction set, described once.

Decoder, assembler, disassembler, golden model, manual and C header all derive from the tables in
this file: `INSTRUCTIONS` (opcodes and fields), `REGISTERS` (what SET writes), `RULES` (field
combinations that are illegal), `CSRS` (what the host sees) and `ErrorCause`.

A program is a list of 32-bit words. Bits 31:24 are the opcode, bits 23:0 the operand; a SET has the
number of the register in its opcode. A word that matches no instruction, a field with an undefined
value, a non-zero reserved bit and a combination named in `RULES` stop the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from gradiron.arch.config import MAX_REGIONS, REGION_SHIFT, TENSORS, Config
from gradiron.errors import AssemblyError

ISA_VERSION = 2
OPCODE_SHIFT = 24
OPERAND_MASK = (1 << OPCODE_SHIFT) - 1
SET_OPCODE = 0x40
"""SET of register r has the opcode SET_OPCODE + r."""
LOOP_DEPTH = 2


class ErrorCause(IntEnum):
    """Why the machine is in its error state."""

    NONE = 0
    ILLEGAL_OPCODE = 1
    ILLEGAL_FIELDS = 2
    OPERAND_RANGE = 3
    ADDRESS_RANGE = 4
    MISALIGNED = 5
    PROGRAM_END = 6
    LOOP_STACK = 7
    LABEL_RANGE = 8
    ACCUMULATOR_DEPTH = 9
    UNSUPPORTED = 10
    REGION_CONFLICT = 11


ERROR_DOC: dict[ErrorCause, str] = {
    ErrorCause.NONE: "No error.",
    ErrorCause.ILLEGAL_OPCODE: "No instruction has this opcode, or no register this number.",
    ErrorCause.ILLEGAL_FIELDS: "A reserved bit is set, a field has an undefined value, or the "
    "combination of fields is one of the illegal ones.",
    ErrorCause.OPERAND_RANGE: "The operand of a SET or LOOP is outside its range; a LOSS has too "
    "many classes, or an MM with `out` = loss more than one row or column.",
    ErrorCause.ADDRESS_RANGE: "A byte that an instruction needs lies outside its region.",
    ErrorCause.MISALIGNED: "A window starts at an odd offset on a machine with two-byte lanes.",
    ErrorCause.PROGRAM_END: "The program counter ran past the end of the program memory.",
    ErrorCause.LOOP_STACK: f"More than {LOOP_DEPTH} nested loops, or an ENDLOOP without a LOOP.",
    ErrorCause.LABEL_RANGE: "A label is not below the number of classes.",
    ErrorCause.ACCUMULATOR_DEPTH: "A group, or the rows of a transposed product, exceed the "
    "accumulator memory.",
    ErrorCause.UNSUPPORTED: "The instruction needs an option that this machine was built without.",
    ErrorCause.REGION_CONFLICT: "The streamed operand and its gate lie in one region, and both are "
    "needed in each cycle.",
}


class MachineState(IntEnum):
    """The state in the STATUS register."""

    IDLE = 0
    RUNNING = 1
    WAITING = 2
    PAUSED = 3
    HALTED = 4
    ERROR = 5


# --- fields and instructions ---------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A field of an operand.

    Parameters
    ----------
    name : str
    low, width : int
        Position within the operand.
    doc : str
    values : tuple of str
        Names of the defined values, in order from 0; empty for a plain number.
    minimum : int
        Smallest legal number (plain numbers only).
    """

    name: str
    low: int
    width: int
    doc: str
    values: tuple[str, ...] = ()
    minimum: int = 0
    quiet: bool = False
    """Whether a listing leaves it out where it is 0."""

    @property
    def mask(self) -> int:
        """The field's bits within the operand."""
        return ((1 << self.width) - 1) << self.low

    @property
    def maximum(self) -> int:
        """Largest legal value."""
        return len(self.values) - 1 if self.values else (1 << self.width) - 1


@dataclass(frozen=True)
class Instruction:
    """An instruction other than SET."""

    name: str
    opcode: int
    fields: tuple[Field, ...]
    summary: str
    action: str
    edge_cases: str

    @property
    def reserved_mask(self) -> int:
        """Operand bits that must be zero."""
        used = 0
        for field in self.fields:
            used |= field.mask
        return OPERAND_MASK & ~used

    def field(self, name: str) -> Field:
        """The field of that name."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)


class Pass(IntEnum):
    """Which pass an instruction is counted under."""

    FORWARD = 0
    DX = 1
    DW = 2
    OTHER = 3


class BMode(IntEnum):
    """What the stationary operand is."""

    ROWS = 0
    COLUMNS = 1
    DIAGONAL = 2
    """One weight per tap and column: depthwise convolution."""
    IDENTITY = 3
    """The unit matrix, without a read: pooling, addition, copies."""
    GATE = 4
    """The unit matrix, for streamed bytes whose gate is open: the backward pass of max pooling."""

    @property
    def by_channel(self) -> bool:
        """Whether column c of the result sees column c of the streamed operand alone."""
        return self >= BMode.DIAGONAL


class Out(IntEnum):
    """What becomes of the accumulators."""

    INT8 = 0
    LOGITS = 1
    MASTER = 2
    INT8_WEIGHTS = 3
    MOMENTUM = 4
    POOLED = 5
    """The accumulators take the maximum: value and argument to two planes."""
    MEASURE = 6
    """Nothing is written; the tracker takes the largest magnitude."""
    LOSS = 7
    """The only accumulator goes to the CSR LOSS."""


class Skip(IntEnum):
    """What is done with a second operand of the result's shape."""

    NONE = 0
    ADD = 1
    SUBTRACT = 2


class Track(IntEnum):
    """What is done with the tracker of the result after the instruction."""

    NONE = 0
    TRACK = 1
    FIT = 2
    """It becomes what the largest magnitude needs, at once."""


class Scale(IntEnum):
    """Where the exponent of an int8 result comes from."""

    TRACKER = 0
    OPERAND = 1
    """It is that of operand A."""
    PRODUCT = 2
    """It is that of the accumulators: nothing is shifted."""


_PASS = Field("pass", 0, 2, "pass under which cycles are counted", ("forward", "dx", "dw", "other"))

HALT = Instruction(
    "HALT",
    0x01,
    (),
    "Stop the program.",
    "The machine enters the state HALTED. All writes of earlier instructions are complete.",
    "The host may start any program afterwards; memories, exponents and counters stay.",
)
LOOP = Instruction(
    "LOOP",
    0x02,
    (Field("count", 0, 16, "number of times the body is executed", minimum=1),),
    "Repeat the instructions up to the matching ENDLOOP.",
    "Pushes the address of the next instruction and `count`.",
    f"At most {LOOP_DEPTH} loops may be nested.",
)
ENDLOOP = Instruction(
    "ENDLOOP",
    0x03,
    (),
    "End of a loop body.",
    "Decrements the innermost count; while it is not zero, execution goes on at the body's start. "
    "At zero the loop is popped.",
    "Without an open loop the machine stops with LOOP_STACK.",
)
WAIT = Instruction(
    "WAIT",
    0x04,
    (),
    "Wait for the host.",
    "The machine enters the state WAITING until the host writes CONTROL.resume; the host may "
    "access all memories meanwhile. Cycles spent here are counted apart.",
    "The descriptor registers and the loop stack keep their values.",
)
STEP = Instruction(
    "STEP",
    0x05,
    (),
    "Count a training step.",
    "STEP := STEP + 1 (modulo 2**32). The step enters the key of every random number.",
    "None.",
)
MM = Instruction(
    "MM",
    0x10,
    (
        _PASS,
        Field("transposed", 2, 1, "reduce over pixels instead of over taps (weight gradient)"),
        Field(
            "b",
            3,
            3,
            "the stationary operand",
            ("rows", "columns", "diagonal", "identity", "gate"),
        ),
        Field(
            "out",
            6,
            3,
            "what becomes of the accumulators",
            (
                *("int8", "logits", "master", "int8_weights", "momentum"),
                *("pooled", "measure", "loss"),
            ),
        ),
        Field("round", 9, 2, "rounding of the result", ("rn", "rt", "sr")),
        Field("relu", 11, 1, "replace negative accumulators by zero"),
        Field("bias", 12, 1, "add the bias (or, transposed, update it)"),
        Field("mask", 13, 1, "zero the result where the mask tensor is not positive"),
        Field(
            "skip",
            14,
            2,
            "a second operand of the result's shape",
            ("none", "add", "subtract"),
            quiet=True,
        ),
        Field(
            "track",
            16,
            2,
            "last part of its tensor: update the exponent tracker",
            ("none", "track", "fit"),
            quiet=True,
        ),
        Field(
            "scale",
            18,
            2,
            "exponent of an int8 result",
            ("tracker", "operand", "product"),
            quiet=True,
        ),
    ),
    "Tiled int8 matrix product with everything that follows it.",
    "See the section on products.",
    "See the section on products.",
)
LOSS = Instruction(
    "LOSS",
    0x11,
    (
        _PASS,
        Field("grad", 2, 1, "labels are given: compute loss and gradient"),
        Field("predict", 3, 1, "write the predicted classes"),
    ),
    "Softmax cross-entropy of a batch of logits, its gradient, and the predictions.",
    "See the section on the loss.",
    "See the section on the loss.",
)

INSTRUCTIONS: tuple[Instruction, ...] = (HALT, LOOP, ENDLOOP, WAIT, STEP, MM, LOSS)
BY_NAME: dict[str, Instruction] = {i.name: i for i in INSTRUCTIONS}
BY_OPCODE: dict[int, Instruction] = {i.opcode: i for i in INSTRUCTIONS}


@dataclass(frozen=True)
class Rule:
    """A combination of field values that is illegal.

    Parameters
    ----------
    instruction : str
    when : mapping of field name to set of values
        The word is illegal if every named field has one of the named values.
    reason : str
    cause : ErrorCause
    """

    instruction: str
    when: Mapping[str, frozenset[int]]
    reason: str
    cause: ErrorCause = ErrorCause.ILLEGAL_FIELDS
    option: str = ""
    """Name of the `Config` option without which the rule applies; empty: it always applies."""

    def applies(self, config: Config) -> bool:
        """Whether this machine has the rule."""
        return not (self.option and bool(getattr(config, self.option)))

    def matches(self, fields: Mapping[str, int]) -> bool:
        """Whether these field values are the forbidden ones."""
        return all(fields[name] in values for name, values in self.when.items())


def _rule(reason: str, **when: tuple[int, ...] | int) -> Rule:
    values = {name: frozenset((v,) if isinstance(v, int) else v) for name, v in when.items()}
    return Rule("MM", values, reason)


_UPDATES = (Out.MASTER, Out.INT8_WEIGHTS, Out.MOMENTUM)
_OTHERS = (Out.POOLED, Out.MEASURE, Out.LOSS)
_NOT_INT8 = (Out.LOGITS, *_UPDATES, *_OTHERS)
_NOT_SUMS = (Out.LOGITS, *_UPDATES, Out.POOLED, Out.LOSS)
"""All but int8 and measure, which see bias, skip and ReLU."""

RULES: tuple[Rule, ...] = (
    _rule("an update needs the transposed product", out=_UPDATES, transposed=0),
    _rule(
        "a transposed product has a stationary operand by rows, or a diagonal",
        transposed=1,
        b=(BMode.COLUMNS, BMode.IDENTITY, BMode.GATE),
    ),
    _rule("an update rounds stochastically", out=_UPDATES, round=(0, 1)),
    _rule("only int8 results and updates are rounded", out=(Out.LOGITS, *_OTHERS), round=(1, 2)),
    _rule("this result comes from a plain product", out=(Out.LOGITS, *_OTHERS), transposed=1),
    _rule("ReLU goes with an int8 result", relu=1, out=_NOT_SUMS),
    _rule("ReLU goes with a plain product", relu=1, transposed=1),
    _rule("a mask goes with an int8 result", mask=1, out=_NOT_INT8),
    _rule("a skip goes with an int8 result", skip=(1, 2), out=_NOT_SUMS),
    _rule("a skip goes with a plain product", skip=(1, 2), transposed=1),
    _rule("a tracker belongs to an int8 result", track=1, out=_NOT_INT8),
    _rule("a tracker needs a result that follows it", track=1, scale=(1, 2)),
    _rule(
        "only a measurement is fitted",
        track=2,
        out=(Out.INT8, Out.LOGITS, *_UPDATES, Out.POOLED, Out.LOSS),
    ),
    _rule("a measurement is fitted", out=Out.MEASURE, track=(0, 1)),
    _rule(
        "only an int8 result follows an exponent",
        scale=(1, 2),
        out=(Out.LOGITS, *_UPDATES, Out.MEASURE, Out.LOSS),
    ),
    _rule("a transposed product follows its tracker", scale=(1, 2), transposed=1),
    _rule("pooling keeps the exponent", out=Out.POOLED, scale=(0, 2)),
    _rule(
        "pooling streams through the unit matrix",
        out=Out.POOLED,
        b=(BMode.ROWS, BMode.COLUMNS, BMode.DIAGONAL, BMode.GATE),
    ),
    _rule(
        "a loss is a sum over rows or columns",
        out=Out.LOSS,
        b=(BMode.DIAGONAL, BMode.IDENTITY, BMode.GATE),
    ),
    _rule("a transposed int8 product has no bias", bias=1, transposed=1, out=Out.INT8),
    _rule("this result has no bias", bias=1, out=(Out.POOLED, Out.LOSS)),
    Rule(
        "MM",
        {"out": frozenset((Out.MOMENTUM,))},
        "momentum was not built",
        ErrorCause.UNSUPPORTED,
        "momentum",
    ),
    Rule(
        "LOSS",
        {"grad": frozenset((0,)), "predict": frozenset((0,))},
        "a LOSS must compute a gradient or a prediction",
    ),
)


# --- descriptor registers ------------------------------------------------------------------------


class Kind(IntEnum):
    """What a register holds; decides its range."""

    ADDRESS = 0
    """Region in bits 23:22, offset below; the offset must lie inside the region."""
    STRIDE = 1
    """Signed bytes, from -2**(offset_bits-1) to 2**(offset_bits-1) - 1."""
    OFFSET = 2
    """Unsigned bytes or elements, below 2**(offset_bits-1)."""
    COUNT = 3
    """An unsigned number from 1 up to `limit`."""
    NUMBER = 4
    """A signed or unsigned number, from `low` up to `limit`."""
    TENSORS = 5
    """Four 6-bit indices into the exponent table."""


@dataclass(frozen=True)
class Register:
    """A descriptor register; SET writes it, and nothing else changes it.

    `reset` is its value when the machine is switched on.
    """

    name: str
    number: int
    kind: Kind
    doc: str
    limit: int = 0
    low: int = 0
    reset: int = 0

    def range(self, config: Config) -> tuple[int, int]:
        """Smallest and largest legal value (of an address: of its offset; see `check`)."""
        half = 1 << (config.offset_bits - 1)
        match self.kind:
            case Kind.STRIDE:
                return -half, half - 1
            case Kind.OFFSET:
                return 0, half - 1
            case Kind.COUNT:
                limit = config.acc_depth if self.name == "N_G" else self.limit
                return 1, limit
            case Kind.NUMBER:
                return self.low, self.limit
            case _:
                return 0, OPERAND_MASK

    @property
    def signed(self) -> bool:
        """Whether the 24-bit operand is sign-extended."""
        return self.kind == Kind.STRIDE or (self.kind == Kind.NUMBER and self.low < 0)

    def value(self, operand: int) -> int:
        """The operand as a number."""
        return operand - (1 << OPCODE_SHIFT) if self.signed and operand >> 23 else operand

    def check(self, value: int, config: Config) -> str:
        """Empty if the value is legal for this machine, else what is allowed."""
        if self.kind == Kind.ADDRESS:
            region, offset = split_address(value) if 0 <= value <= OPERAND_MASK else (99, 0)
            if region >= len(config.regions):
                return f"an address in one of the {len(config.regions)} regions"
            if offset >= config.regions[region]:
                return f"an offset below {config.regions[region]} in region {region}"
            return ""
        low, high = self.range(config)
        return "" if low <= value <= high else f"{low} to {high}"


_A = Kind.ADDRESS
_S = Kind.STRIDE

REGISTERS: tuple[Register, ...] = (
    Register("A_BASE", 0, _A, "streamed operand: address of row 0, column 0 of image 0"),
    Register("A_SN", 1, _S, "streamed operand: bytes from one image to the next"),
    Register("A_SY", 2, _S, "streamed operand: bytes per step in y"),
    Register("A_SX", 3, _S, "streamed operand: bytes per step in x"),
    Register("A_TY", 4, _S, "streamed operand: bytes per tap in ky"),
    Register("A_TX", 5, _S, "streamed operand: bytes per tap in kx"),
    Register(
        "A_Y0", 6, _S, "streamed operand: row offset of the first pixel and tap (padding: < 0)"
    ),
    Register("A_X0", 7, _S, "streamed operand: column offset of the first pixel and tap"),
    Register("A_HB", 8, Kind.OFFSET, "streamed operand: row offsets are valid from 0 to A_HB - 1"),
    Register(
        "A_WB", 9, Kind.OFFSET, "streamed operand: column offsets are valid from 0 to A_WB - 1"
    ),
    Register("N_P", 10, Kind.COUNT, "pixels in all images together", limit=65535, reset=1),
    Register("N_Y", 11, Kind.COUNT, "pixels in y of one image", limit=4095, reset=1),
    Register(
        "N_X",
        12,
        Kind.COUNT,
        "pixels in x of one image (dense layers, LOSS: samples)",
        limit=65535,
        reset=1,
    ),
    Register("N_TY", 13, Kind.COUNT, "taps in ky", limit=255, reset=1),
    Register("N_TX", 14, Kind.COUNT, "taps in kx", limit=255, reset=1),
    Register(
        "N_J",
        15,
        Kind.COUNT,
        "contiguous bytes per tap (by channel: without a meaning)",
        limit=65535,
        reset=1,
    ),
    Register("N_C", 16, Kind.COUNT, "columns of the result (LOSS: classes)", limit=65535, reset=1),
    Register("N_G", 17, Kind.COUNT, "pixels per group; at most the accumulator depth", reset=1),
    Register(
        "B_BASE", 18, _A, "stationary operand: address of its first element (gate: as A_BASE)"
    ),
    Register("B_R", 19, _S, "stationary operand: bytes per row (b=columns: per column)"),
    Register("B_TY", 20, _S, "stationary operand: bytes per tap in ky"),
    Register("B_TX", 21, _S, "stationary operand: bytes per tap in kx"),
    Register("O_BASE", 22, _A, "result: address of its element 0 (high plane)"),
    Register("O_LO", 23, _A, "result: address of element 0 of the low plane"),
    Register("O_OFF", 24, Kind.OFFSET, "result: number of the first element computed"),
    Register("O_S2", 25, _S, "result: elements per image (transposed: per ky)"),
    Register("O_S1", 26, _S, "result: elements per step in y (transposed: per kx)"),
    Register("O_S0", 27, _S, "result: elements per step in x (transposed: per j)"),
    Register("M_BASE", 28, _A, "mask tensor, element by element as the result (LOSS: labels)"),
    Register("BIAS", 29, _A, "int32 biases, little-endian, one per column"),
    Register("V_HI", 30, _A, "momentum: high plane, element by element as the result"),
    Register("V_LO", 31, _A, "momentum: low plane"),
    Register("V_BIAS", 32, _A, "momentum of the biases: int32, little-endian"),
    Register("P_BASE", 33, _A, "LOSS: predicted classes, one byte per sample"),
    Register(
        "EXP",
        34,
        Kind.TENSORS,
        "exponent table indices: A 5:0, B 11:6, result 17:12, skip 23:18",
    ),
    Register("PAD", 35, Kind.NUMBER, "value read outside the bounds", limit=127, low=-127),
    Register(
        "SHIFT", 36, Kind.NUMBER, "added to update shifts: ceil(log2 batch)", limit=15, low=-16
    ),
    Register("S_BASE", 37, _A, "skip tensor, element by element as the result"),
    Register("GATE", 38, Kind.NUMBER, "gate: low four bits of the bytes that open it", limit=15),
)
REGISTER_BY_NAME: dict[str, Register] = {r.name: r for r in REGISTERS}
REGISTER_BY_NUMBER: dict[int, Register] = {r.number: r for r in REGISTERS}


def split_address(address: int) -> tuple[int, int]:
    """Address to (region, offset)."""
    return address >> REGION_SHIFT, address & ((1 << REGION_SHIFT) - 1)


def make_address(region: int, offset: int) -> int:
    """(region, offset) to address."""
    if not 0 <= region < MAX_REGIONS or not 0 <= offset < 1 << REGION_SHIFT:
        raise AssemblyError(f"region {region}, offset {offset} is not an address")
    return region << REGION_SHIFT | offset


def pack_tensors(a: int = 0, b: int = 0, o: int = 0, s: int = 0) -> int:
    """Exponent table indices of A, B, result and skip to the operand of SET EXP."""
    for index in (a, b, o, s):
        if not 0 <= index < TENSORS:
            raise AssemblyError(f"tensor {index}; it must be from 0 to {TENSORS - 1}")
    return a | b << 6 | o << 12 | s << 18


def unpack_tensors(operand: int) -> tuple[int, int, int, int]:
    """The inverse of `pack_tensors`."""
    return operand & 63, operand >> 6 & 63, operand >> 12 & 63, operand >> 18 & 63


# --- encoding ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """A decoded word: a SET (register and value) or another instruction (its fields)."""

    name: str
    fields: dict[str, int]
    register: Register | None = None
    value: int = 0


def encode(name: str, config: Config | None = None, **fields: int) -> int:
    """An instruction other than SET to its word; missing fields are 0 (or their minimum).

    Raises
    ------
    AssemblyError
        For an unknown name or field, a value out of range, or an illegal combination.
    """
    if name not in BY_NAME:
        raise AssemblyError(f"no instruction is called {name!r}; known: SET, {', '.join(BY_NAME)}")
    instruction = BY_NAME[name]
    values = {f.name: f.minimum for f in instruction.fields}
    for key, value in fields.items():
        if key not in values:
            raise AssemblyError(
                f"{name} has no field {key!r}; it has: {', '.join(values) or 'none'}"
            )
        field = instruction.field(key)
        if not field.minimum <= value <= field.maximum:
            raise AssemblyError(
                f"{name}: {key} is {value}; it must be from {field.minimum} to {field.maximum}"
            )
        values[key] = int(value)
    for rule in RULES:
        if rule.instruction == name and rule.matches(values):
            if rule.option and (config is None or rule.applies(config) is False):
                continue
            raise AssemblyError(f"{name}: {rule.reason}")
    operand = sum(values[f.name] << f.low for f in instruction.fields)
    return instruction.opcode << OPCODE_SHIFT | operand


def encode_set(name: str, value: int, config: Config) -> int:
    """SET to its word.

    Raises
    ------
    AssemblyError
        For an unknown register or a value outside the register's range on this machine.
    """
    if name not in REGISTER_BY_NAME:
        raise AssemblyError(f"no register is called {name!r}; known: {', '.join(REGISTER_BY_NAME)}")
    register = REGISTER_BY_NAME[name]
    allowed = register.check(value, config)
    if allowed:
        raise AssemblyError(f"SET {name}: {value} is out of range; allowed: {allowed}")
    return (SET_OPCODE + register.number) << OPCODE_SHIFT | (value & OPERAND_MASK)


def decode(word: int, config: Config) -> Decoded | ErrorCause:
    """A word to what it means on this machine, or to the error it causes."""
    opcode, operand = word >> OPCODE_SHIFT, word & OPERAND_MASK
    if SET_OPCODE <= opcode < SET_OPCODE + 64:
        register = REGISTER_BY_NUMBER.get(opcode - SET_OPCODE)
        if register is None:
            return ErrorCause.ILLEGAL_OPCODE
        value = register.value(operand)
        if register.check(value, config):
            return ErrorCause.OPERAND_RANGE
        return Decoded("SET", {}, register, value)
    instruction = BY_OPCODE.get(opcode)
    if instruction is None:
        return ErrorCause.ILLEGAL_OPCODE
    if operand & instruction.reserved_mask:
        return ErrorCause.ILLEGAL_FIELDS
    fields = {f.name: (operand & f.mask) >> f.low for f in instruction.fields}
    for f in instruction.fields:
        if fields[f.name] > f.maximum:
            return ErrorCause.ILLEGAL_FIELDS
        if fields[f.name] < f.minimum:
            return ErrorCause.OPERAND_RANGE
    for rule in RULES:
        if rule.instruction == instruction.name and rule.applies(config) and rule.matches(fields):
            return rule.cause
    return Decoded(instruction.name, fields)


# --- what the host sees --------------------------------------------------------------------------


class Space(IntEnum):
    """Address spaces of the host port."""

    CSR = 0
    MEMORY = 1
    PROGRAM = 2
    EXPONENTS = 3


WORD_BYTES = 4
"""Bytes of a word: the unit of every space but MEMORY, where it is a byte."""


class Control(IntEnum):
    """Bits of the CSR CONTROL."""

    START = 0
    RESUME = 1
    RESET = 2
    CLEAR = 3


STATUS_CAUSE_SHIFT, STATUS_PC_SHIFT = 4, 16
"""In the CSR STATUS: positions of the error cause and the program counter, behind the state."""


@dataclass(frozen=True)
class Csr:
    """A control or status register of 32 bits at a word number of the CSR space."""

    name: str
    number: int
    writable: bool
    doc: str


CSRS: tuple[Csr, ...] = (
    Csr("ID", 0, False, "0x47524431 ('GRD1')"),
    Csr("VERSION", 1, False, "instruction set version"),
    Csr("CONFIG", 2, False, "digest of the machine's Config"),
    Csr("STATUS", 3, False, "state 3:0, error cause 11:4, program counter 31:16"),
    Csr(
        "CONTROL",
        4,
        True,
        "write: bit 0 start at ENTRY, 1 resume after WAIT or a pause, 2 reset (leave the error "
        "state, stop a program at its next instruction), 3 clear the counters",
    ),
    Csr("ENTRY", 5, True, "program counter at which CONTROL.start begins, modulo program words"),
    Csr("MODE", 6, True, "bit 0: pause after every instruction"),
    Csr("SEED", 7, True, "seed of the random numbers"),
    Csr("STEP", 8, True, "training step, counted by the STEP instruction"),
    Csr("RATE", 9, True, "learning rate 2**-k: k in 7:0 (signed), added to update shifts"),
    Csr(
        "LOSS",
        10,
        False,
        "loss of the last LOSS with gradient, summed over its batch, 2**-8 bits; or the sum of the "
        "last MM with `out` = loss",
    ),
    Csr("CYCLES", 16, False, "cycles in RUNNING"),
    Csr("WAIT_CYCLES", 17, False, "cycles in WAITING or PAUSED"),
    Csr("CYCLES_FORWARD", 18, False, "cycles of MM and LOSS counted as forward"),
    Csr("CYCLES_DX", 19, False, "cycles of MM and LOSS counted as dx"),
    Csr("CYCLES_DW", 20, False, "cycles of MM and LOSS counted as dw"),
    Csr("CYCLES_OTHER", 21, False, "cycles of MM and LOSS counted as other"),
    Csr("BUSY", 22, False, "cycles in which the array multiplied a streamed row"),
    Csr("STALL_EMIT", 23, False, "cycles the array stood still for the vector path"),
    Csr("STALL_WRITE", 24, False, "cycles the array stood still for a memory write"),
    Csr(
        "STALL_LOAD",
        25,
        False,
        "cycles without a streamed row: the stationary tile was loading, or "
        "an accumulator row was still in flight",
    ),
    Csr(
        "STALL_FILL", 26, False, "cycles of an MM before its first and after its last streamed row"
    ),
    Csr("INSTRUCTIONS", 27, False, "instructions completed"),
    Csr("DESCRIPTOR", 28, False, "cycles of the sequencer: SET and control, decoding, the start"),
)
CSR_BY_NAME: dict[str, Csr] = {c.name: c for c in CSRS}
DEVICE_ID = 0x47524431
RATE_MIN, RATE_MAX = -32, 31

EXPONENT_WORD_DOC = (
    "Word t of the exponent space is the entry of tensor t: exponent of the stored data 7:0 "
    "(signed), tracker exponent 15:8 (signed), tracker count 18:16, the others are 0; "
    "word 64 + t is the number of saturated elements (32 bits, stops at 2**32 - 1)."
)


def pack_exponent(exponent: int, tracker: int, low: int) -> int:
    """An entry of the exponent table to its word."""
    return (exponent & 0xFF) | (tracker & 0xFF) << 8 | (low & 7) << 16


def unpack_exponent(word: int) -> tuple[int, int, int]:
    """The inverse of `pack_exponent`: (exponent, tracker exponent, tracker count)."""
    return signed_byte(word), signed_byte(word >> 8), word >> 16 & 7


def signed_byte(word: int) -> int:
    """The lowest byte of a word as a signed number."""
    return (word & 0xFF ^ 0x80) - 0x80
