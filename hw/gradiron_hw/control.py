"""The control store: the scalar unit's steps, and the stack of open loops.

Two users of one small memory that are never active together. A step of the scalar unit is a word
of fixed content; what the words mean is said at `Step`. A loop is the address of its body and the
complement of the rounds that are left, which counts up to all ones: the same word comes from the
operand of LOOP with an inversion, and from itself with an increment.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import CSR_BY_NAME, LOOP_DEPTH
from gradiron.arch.timing import COUNT_STEP_CYCLES, POST_CYCLES, PREPARE_CYCLES

LEAD = 2
"""Cycles from the start of a sequence to its first step."""


class Where(IntEnum):
    """Which word of the state memory a step requests."""

    WORD = 0
    """`word`; of the last sixteen the low three bits are those of the field `out`."""
    A = 1
    B = 2
    RESULT = 3
    SKIP = 4
    """The entries of the tensors that EXP names."""
    SATURATIONS = 5
    """The saturation count of the result."""
    HEAD = 6
    """What the exponent of the result starts from: the entry of the result in an update, that of A
    where the result follows it, otherwise `word`."""
    PASS = 7
    """The counter of the instruction's pass."""


class Source(IntEnum):
    """Operand of the exponent adder."""

    EXPONENT = 0
    """Byte 0 of the word requested in the step before."""
    TRACKER = 1
    """Byte 1."""
    SHIFT = 2
    """The register SHIFT."""
    OUTCOME = 3
    """What the largest magnitude or the loss unit asks for."""


class Load(IntEnum):
    """When the exponent register takes the adder's result."""

    NEVER = 0
    ALWAYS = 1
    UPDATE = 2
    """The instruction is an update of weights."""
    TRANSPOSED = 3
    PLAIN = 4
    """Not transposed."""
    RAISED = 5
    """The result follows its tracker, and the sum of the step before was not negative."""
    HEAD = 6
    """An update, logits, or a result that follows operand A."""
    OUTCOME = 7
    """LOSS."""


class Store(IntEnum):
    """What is written to the word requested in the step before.

    A counter that was requested takes what has been counted since, whatever the step says.
    """

    NOTHING = 0
    EXPONENT = 1
    """The exponent register to byte 0, where the instruction gives its result an exponent."""
    FILL = 2
    """All ones, where a saturation count has passed its end."""
    TRACKER = 3
    """The tracker's update to bytes 1 and 2."""
    LOSS = 4
    COUNT = 5
    """The word plus one."""


class Take(IntEnum):
    """Which shift amount takes the limited exponent register."""

    NOTHING = 0
    MAIN = 1
    BIAS = 2
    SKIP = 3


class Invert(IntEnum):
    """Whether the exponent register takes the complement of the sum."""

    NO = 0
    YES = 1
    TRANSPOSED = 2


@dataclass(frozen=True)
class Step:
    """One step of the scalar unit: a request, and what is done with the word requested before.

    Parameters
    ----------
    word, where : the request
    source, zero, one, invert, load : exponent register := [~] (source + [register] + [one])
    clamp : the register, as an operand, is limited to the range of exponents where the result
        follows its tracker or the product
    store : what is written
    take : which shift amount is settled
    key, tensor : a round of the random key, with the number of the result's tensor
    done : the last step
    """

    word: int = CSR_BY_NAME["CONTROL"].number
    where: Where = Where.WORD
    source: Source = Source.EXPONENT
    zero: bool = False
    one: bool = False
    invert: Invert = Invert.NO
    load: Load = Load.NEVER
    clamp: bool = False
    store: Store = Store.NOTHING
    take: Take = Take.NOTHING
    key: bool = False
    tensor: bool = False
    done: bool = False

    def encode(self) -> int:
        """The word of the control store."""
        value = 0
        low = 0
        for field in fields(self):
            content = int(getattr(self, field.name))
            width = STEP_WIDTHS[field.name]
            assert 0 <= content < 1 << width
            value |= content << low
            low += width
        return value


STEP_WIDTHS: dict[str, int] = {
    "word": 6,
    "where": 3,
    "source": 2,
    "zero": 1,
    "one": 1,
    "invert": 2,
    "load": 3,
    "clamp": 1,
    "store": 3,
    "take": 2,
    "key": 1,
    "tensor": 1,
    "done": 1,
}


def step_layout() -> data.StructLayout:
    """A step as the scalar unit sees it."""
    return data.StructLayout(STEP_WIDTHS)


WORDS: dict[str, int] = {
    "KEY_2": 32,
    "KEY_3": 33,
    "BIAS": 34,
    "SCRATCH": 35,
    "HEAD": 48,
    "LAST": 56,
}
"""Constants and a scratch word of the state memory, besides the CSRs; the last two are tables of
eight, one word per value of the field `out`."""


def _sequence(*steps: Step) -> list[Step]:
    return list(steps)


_RATE = CSR_BY_NAME["RATE"].number

# The comments give the exponent register after the step; acc = ea + eb.
PREPARE: list[Step] = _sequence(
    Step(where=Where.A),
    Step(where=Where.B, zero=True, load=Load.ALWAYS),  # ea
    Step(where=Where.RESULT, invert=Invert.YES, load=Load.ALWAYS),  # ~acc
    # The exponent v of the result: of its tracker and acc the larger one, or what HEAD says.
    Step(where=Where.RESULT, source=Source.TRACKER, one=True),  # tracker - acc: only its sign
    Step(WORDS["HEAD"], Where.HEAD, Source.TRACKER, True, False, Invert.YES, Load.RAISED),
    Step(WORDS["SCRATCH"], zero=True, invert=Invert.YES, load=Load.HEAD),  # ~v
    Step(where=Where.A, store=Store.EXPONENT, clamp=True),
    Step(where=Where.B, clamp=True, load=Load.ALWAYS),  # ea + ~v
    Step(_RATE, invert=Invert.YES, load=Load.ALWAYS),  # v - acc
    Step(CSR_BY_NAME["SEED"].number, load=Load.UPDATE),  # + RATE
    Step(WORDS["LAST"], source=Source.SHIFT, load=Load.UPDATE, key=True),  # + SHIFT
    Step(WORDS["BIAS"], load=Load.ALWAYS),
    # Transposed -20 - eb + RATE + SHIFT, otherwise acc + 20.
    Step(where=Where.B, zero=True, load=Load.ALWAYS, take=Take.MAIN),  # 20
    Step(where=Where.A, invert=Invert.TRANSPOSED, load=Load.ALWAYS),
    Step(_RATE, load=Load.PLAIN),
    Step(CSR_BY_NAME["STEP"].number, load=Load.TRANSPOSED),
    Step(WORDS["KEY_2"], source=Source.SHIFT, one=True, load=Load.TRANSPOSED, key=True),
    Step(where=Where.SKIP, take=Take.BIAS, key=True, tensor=True),
    # acc - es
    Step(where=Where.A, zero=True, invert=Invert.YES, load=Load.ALWAYS),  # ~es
    Step(where=Where.B, one=True, load=Load.ALWAYS),
    Step(WORDS["KEY_3"], load=Load.ALWAYS),
    Step(where=Where.SKIP, take=Take.SKIP, key=True),
    Step(load=Load.ALWAYS, done=True),  # acc
)
POST: list[Step] = _sequence(
    Step(where=Where.SATURATIONS),
    Step(
        where=Where.RESULT,
        source=Source.OUTCOME,
        invert=Invert.YES,
        load=Load.ALWAYS,
    ),  # ~ what the largest magnitude needs
    Step(where=Where.SATURATIONS, source=Source.TRACKER, one=True, clamp=True, store=Store.TRACKER),
    Step(WORDS["SCRATCH"], store=Store.FILL),
    Step(CSR_BY_NAME["LOSS"].number, zero=True, invert=Invert.YES, load=Load.ALWAYS),  # ~v
    Step(
        where=Where.RESULT,
        source=Source.OUTCOME,
        zero=True,
        one=True,
        invert=Invert.YES,
        load=Load.OUTCOME,
        store=Store.LOSS,
    ),
    Step(where=Where.PASS, store=Store.EXPONENT),
    Step(done=True),
)
COUNT: list[Step] = _sequence(
    Step(CSR_BY_NAME["STEP"].number),
    Step(store=Store.COUNT, done=True),
)
"""The sequences before and after an instruction, and that of STEP."""

assert len(PREPARE) + LEAD == PREPARE_CYCLES
assert len(POST) + LEAD == POST_CYCLES
assert len(COUNT) + LEAD == COUNT_STEP_CYCLES

_SEQUENCES = (PREPARE, POST, COUNT)
_REST = Step(where=Where.SATURATIONS)
"""Word 0, where the unit rests, and the word after a sequence: nothing is done, and the counters of
the state memory find the address of the saturation count."""
STORE: list[int] = [_REST.encode()]
ENTRIES: list[int] = []
"""Words at which the sequences begin."""
for _steps in _SEQUENCES:
    ENTRIES.append(len(STORE))
    STORE += [step.encode() for step in _steps] + [_REST.encode()]
STORE_BITS = (len(STORE) - 1).bit_length()


class ControlStore(wiring.Component):
    """Steps and loops.

    Members
    -------
    address : number of the step that is wanted
    step : the step whose number was given in the cycle before
    push : a LOOP is executed: `body` and `count` go onto the stack
    count : operand of the instruction, 0 but in a LOOP
    top : the innermost loop is wanted instead of a step
    again : in the cycle after `top`: one round more has been made
    left : in that cycle: another round follows
    body : in that cycle: where it begins
    depth : number of open loops
    pop, empty : the innermost loop is closed; all are forgotten
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "address": In(STORE_BITS),
                "step": Out(step_layout()),
                "push": In(1),
                "next_pc": In(config.pc_bits),
                "count": In(16),
                "top": In(1),
                "again": In(1),
                "pop": In(1),
                "empty": In(1),
                "left": Out(1),
                "body": Out(config.pc_bits),
                "depth": Out(range(LOOP_DEPTH + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.memory = memory = Memory(shape=32, depth=256, init=STORE)
        read, write = memory.read_port(), memory.write_port()
        place = Signal(range(LOOP_DEPTH))
        m.d.comb += [
            place.eq(self.depth - 1),
            read.addr.eq(Mux(self.top, place, self.address)),
            read.addr[-1].eq(self.top),
            self.step.eq(read.data),
            self.body.eq(read.data[16:]),
        ]
        rounds, total = Signal(16), Signal(17)
        m.d.comb += [
            # The operand of ENDLOOP is 0: the sum is one more, and the adder has no other operand.
            total.eq(Cat(Const(1, 1), read.data[:16]) + Cat(Const(1, 1), self.count)),
            rounds.eq(Mux(self.push, ~self.count, total[1:])),
            self.left.eq(~rounds.all()),
            write.addr.eq(Mux(self.push, self.depth, place)),
            write.addr[-1].eq(1),
            write.data.eq(Cat(rounds, Mux(self.push, self.next_pc, read.data[16:]))),
            write.en.eq(self.push | self.again),
        ]
        with m.If(self.push):
            m.d.sync += self.depth.eq(self.depth + 1)
        with m.If(self.pop):
            m.d.sync += self.depth.eq(self.depth - 1)
        with m.If(self.empty):
            m.d.sync += self.depth.eq(0)
        assert config.pc_bits <= 16
        return m
