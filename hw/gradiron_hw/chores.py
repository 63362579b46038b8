"""Chores of the vector path: fixed sequences for whole rows, during which the engine stands still.

Biases and momenta wait in a *bank*: a word of 32 bits per column, in as many slots as are needed. A
*pass* sends elements through the lanes one group after the other, each when the one before has
left, so that a pass can read what the one before wrote.
"""

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.numerics import Rounding, Use
from gradiron.arch.timing import CHORE_STEPS, PASS_CYCLES, bank_words, step_cycles
from gradiron_hw.bank import Slot
from gradiron_hw.descriptor import bundle
from gradiron_hw.lane import Post, control_layout, control_of


@dataclass(frozen=True)
class Chore:
    """A step of a chore.

    Parameters
    ----------
    kind : str
        "wait", "read" or "write" (slot and memory), "read planes", "write planes", "pass",
        "settle" or "release".
    base, low : str
        Registers with the address, and with that of the low plane.
    slot : Slot
        What is read, written, or added to; the result's place if it stays in the bank.
    source : str
        Of a pass: "row", "planes", or a slot by name.
    shift : str or int
        "main", "bias", or the amount.
    """

    kind: str
    base: str = ""
    low: str = ""
    slot: Slot = Slot.BIAS
    source: str = ""
    shift: str | int = 0
    round: Rounding = Rounding.NEAREST
    use: Use = Use.DX
    post: Post = Post.INT8
    count: bool = False


_SR = Rounding.STOCHASTIC
_V = Slot.MOMENTUM
CHORES: dict[str, tuple[Chore, ...]] = {
    "load bias": (
        Chore("wait"),
        Chore("read", "BIAS"),
        Chore("pass", source="BIAS", shift="bias", post=Post.BIAS_LOAD),
    ),
    "update bias": (
        Chore("wait"),
        Chore("read", "BIAS"),
        Chore(*("pass", "", "", Slot.BIAS, "row", "bias", _SR, Use.DB, Post.BIAS_SUB), count=True),
        Chore("write", "BIAS"),
        Chore("release"),
    ),
    "momentum bias": (
        Chore("wait"),
        Chore("read", "V_BIAS", slot=_V),
        Chore("pass", "", "", _V, "MOMENTUM", 3, _SR, Use.BIAS_DECAY, Post.BIAS_SUB),
        Chore("pass", "", "", _V, "row", "bias", _SR, Use.DB, Post.BIAS_ADD),
        Chore("write", "V_BIAS", slot=_V),
        Chore("read", "BIAS"),
        Chore("pass", source="MOMENTUM", post=Post.BIAS_SUB, count=True),
        Chore("write", "BIAS"),
        Chore("release"),
    ),
    "momentum row": (
        Chore("wait"),
        Chore("read planes", "V_HI", "V_LO"),
        Chore("pass", "", "", _V, "planes", 3, _SR, Use.MOMENTUM_DECAY, Post.DECAY),
        Chore("pass", "", "", _V, "row", "main", _SR, Use.DW, Post.MOMENTUM_ADD),
        Chore("write planes", "V_HI", "V_LO"),
        Chore("read planes", "O_BASE", "O_LO"),
        Chore(
            *("pass", "", "", _V, "MOMENTUM", 4, _SR, Use.MOMENTUM_STEP, Post.MASTER), count=True
        ),
        Chore("settle"),
    ),
}
"""The chores, step by step; their lengths are in `gradiron.arch.timing`."""
assert {name: tuple(s.kind for s in steps) for name, steps in CHORES.items()} == CHORE_STEPS


def chore_names(config: Config) -> list[str]:
    """The chores that a machine has, by number."""
    return [n for n in CHORES if config.momentum or not n.startswith("momentum")]


class Chores(wiring.Component):
    """The sequencer of the chores.

    Members
    -------
    d, shift_main, shift_bias : as in `VectorPath`
    start, which : begin a chore, from the next cycle on; this is its first cycle
    clear : stop at once
    held : a chore is in progress
    released : its last cycle, and its row is done with
    reopens : the cycle after: the row's window begins
    row_done : with `released`: a row of the result has been handled

    read, write, planes, low, word, address : access to data memory: word number `word` of a slot,
        or a plane of the row; the address of its beginning
    slot, group : place in the bank, as that of the data before has been used
    passes : a pass is in progress; control, source_row, source_planes (else the bank), use, counts
        and to_bank (else to memory) are about it
    issue, last : an element group enters the lanes; the last one
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        groups = max(1, (config.groups - 1).bit_length())
        super().__init__(
            {
                "d": In(bundle(config)),
                "shift_main": In(6),
                "shift_bias": In(6),
                "start": In(1),
                "which": In(range(len(chore_names(config)))),
                "clear": In(1),
                "held": Out(1),
                "released": Out(1),
                "reopens": Out(1),
                "row_done": Out(1),
                "read": Out(1),
                "write": Out(1),
                "planes": Out(1),
                "low": Out(1),
                "word": Out(max(1, (bank_words(config) - 1).bit_length())),
                "address": Out(2 + config.offset_bits - 1),
                "slot": Out(2),
                "group": Out(groups),
                "passes": Out(1),
                "issue": Out(1),
                "last": Out(1),
                "source_row": Out(1),
                "source_planes": Out(1),
                "control": Out(control_layout()),
                "use": Out(3),
                "counts": Out(1),
                "to_bank": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        names = chore_names(config)
        longest = max(step_cycles(s.kind, config) for n in names for s in CHORES[n])
        chore = Signal(range(len(names)))
        step = Signal(range(max(len(CHORES[n]) for n in names)))
        tick = Signal(range(longest))
        before = Signal(len(self.word))  # number of the tick before
        m.d.sync += [before.eq(tick), self.reopens.eq(0)]
        step_ends, ends = Signal(), Signal()
        m.d.comb += self.address.eq(self.d.regs.BIAS)
        with m.If(self.held):
            m.d.sync += tick.eq(tick + 1)
            with m.If(step_ends):
                m.d.sync += [tick.eq(0), step.eq(step + 1)]
            with m.If(ends):
                m.d.sync += self.held.eq(0)
            with m.Switch(chore):
                for index, name in enumerate(names):
                    with m.Case(index):
                        self._chore(m, name, step, tick, before, step_ends, ends)
        with m.If(self.start):
            m.d.sync += [self.held.eq(1), chore.eq(self.which), step.eq(0), tick.eq(1)]
        with m.If(self.clear):
            m.d.sync += [self.held.eq(0), self.reopens.eq(0)]
        return m

    def _chore(
        self,
        m: Module,
        name: str,
        step: Signal,
        tick: Signal,
        before: Signal,
        step_ends: Signal,
        ends: Signal,
    ) -> None:
        steps = CHORES[name]
        with m.Switch(step):
            for number, action in enumerate(steps):
                with m.Case(number):
                    m.d.comb += step_ends.eq(tick == step_cycles(action.kind, self.config) - 1)
                    if number == len(steps) - 1:
                        m.d.comb += ends.eq(step_ends)
                        if name == "load bias":
                            m.d.sync += self.reopens.eq(step_ends)
                        else:
                            m.d.comb += self.released.eq(step_ends)
                        if name == "momentum row":
                            m.d.comb += self.row_done.eq(step_ends)
                    self._step(m, action, tick, before)

    def _step(self, m: Module, action: Chore, tick: Signal, before: Signal) -> None:
        """Signals of one step."""
        config, r = self.config, self.d.regs
        words = bank_words(config)
        per_group = (words // config.groups).bit_length() - 1
        m.d.comb += self.slot.eq(action.slot)
        if action.base and action.base != "BIAS":
            m.d.comb += self.address.eq(r[action.base])
        match action.kind:
            case "read":
                m.d.comb += [
                    self.word.eq(tick),
                    self.read.eq(tick < words),
                    self.group.eq(before >> per_group),
                ]
            case "write":
                # The bank is read a cycle before.
                m.d.comb += [
                    self.word.eq(before),
                    self.write.eq(tick != 0),
                    self.group.eq(tick >> per_group),
                ]
            case "read planes" | "write planes":
                access = self.read if action.kind == "read planes" else self.write
                with m.If(tick[0]):
                    m.d.comb += self.address.eq(r[action.low])
                m.d.comb += [
                    self.planes.eq(1),
                    self.low.eq(tick[0]),
                    access.eq(tick < 2),
                ]
            case "pass":
                self._pass(m, action, tick)
            case _:
                pass

    def _pass(self, m: Module, action: Chore, tick: Signal) -> None:
        shifts: dict[str | int, Any] = {"main": self.shift_main, "bias": self.shift_bias}
        assert PASS_CYCLES == 4
        fields = control_of(action.post)
        m.d.comb += [
            self.passes.eq(1),
            self.issue.eq(tick[:2] == 0),
            self.group.eq(tick[2:]),
            self.last.eq(tick[2:] == self.config.groups - 1),
            self.control.round.eq(action.round),
            self.control.amount.eq(shifts.get(action.shift, action.shift)),
            *[getattr(self.control, name).eq(value) for name, value in fields.items()],
            self.use.eq(action.use),
            self.counts.eq(action.count),
            self.to_bank.eq(action.post.to_bank),
            self.source_row.eq(action.source == "row"),
            self.source_planes.eq(action.source == "planes"),
        ]
        with m.If(self.issue):
            m.d.comb += self.slot.eq(Slot.__members__.get(action.source, Slot.NOTHING))
