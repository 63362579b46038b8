"""The loss unit against `gradiron.arch.numerics`, byte by byte and cycle by cycle."""

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.hdl import Assert, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from gradiron.arch import numerics
from gradiron.arch.config import REGION_SHIFT, Config
from gradiron.arch.isa import ErrorCause, make_address
from gradiron.arch.numerics import Use
from gradiron.cycles import loss_cycles
from gradiron_hw.loss import MAX_CLASSES, LossUnit
from gradiron_hw.random import RandomBlock

REGION = 1024
POISON = 0xA7
Bytes = npt.NDArray[np.uint8]


def config(lanes: int, regions: tuple[int, ...] = (REGION, REGION)) -> Config:
    return Config(rows=4, cols=4, regions=regions, lanes=lanes)


class Bench(wiring.Component):
    """The unit with a single-ported memory of equal regions and the shared random numbers."""

    key: In(32)
    accesses: Out(16)

    def __init__(self, config: Config) -> None:
        self.dut = LossUnit(config)
        self.memory = Memory(shape=8, depth=config.memory_bytes, init=[])
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dut = dut = self.dut
        m.submodules.memory = self.memory
        m.submodules.random = block = RandomBlock(lanes=1, offset_bits=self.dut.config.offset_bits)
        read, write = self.memory.read_port(), self.memory.write_port()
        oor, was_read = Signal(), Signal()
        regions = self.dut.config.regions
        offset, region = dut.rd_addr[:REGION_SHIFT], dut.rd_addr[REGION_SHIFT:]
        address = Cat(offset[: regions[0].bit_length() - 1], region)
        m.d.comb += [
            oor.eq((offset >= regions[0]) | (region >= len(regions))),
            dut.rd_oor.eq(oor),
            dut.wr_oor.eq(oor),
            read.addr.eq(address[: len(read.addr)]),
            read.en.eq(dut.rd_en & ~oor),
            write.addr.eq(address[: len(write.addr)]),
            write.en.eq(dut.wr_en & ~oor),
            write.data.eq(dut.wr_data),
            # What the unit takes later than in the next cycle is rubbish.
            dut.rd_data.eq(Mux(was_read, read.data, POISON)),
            block.en.eq(dut.busy),
            block.key.eq(self.key),
            block.use.eq(dut.rnd_use),
            block.index.eq(dut.rnd_index),
            dut.rnd_r.eq(block.r[0]),
        ]
        m.d.sync += [
            was_read.eq(dut.rd_en),
            self.accesses.eq(self.accesses + (dut.rd_en | dut.wr_en)),
            Assert(~(dut.rd_en & dut.wr_en), "reads and writes at once"),
            Assert(dut.rd_addr == dut.wr_addr, "two addresses"),
            Assert(dut.busy | ~(dut.rd_en | dut.wr_en), "an access while idle"),
            Assert(~(dut.done & dut.error), "done and in error"),
        ]
        return m


@dataclass
class Case:
    """A LOSS, and what it must make of the memory.

    `places` names the offsets of tensors that must not lie where there is room.
    """

    z: Any
    label: Any = None
    predict: bool = False
    places: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    """What N_C says, if not the truth."""

    def __post_init__(self) -> None:
        self.z = np.asarray(self.z, np.int64)
        self.grad = self.label is not None
        self.label = np.asarray(self.label if self.grad else [], np.int64)
        self.samples, classes = self.z.shape
        self.classes = self.classes or classes

    def prepare(self, rng: random.Random) -> None:
        """Fill a memory, find room for all tensors, and compute the expected outcome."""
        size = self.z.size
        self.saturations = 0
        self.key = rng.getrandbits(32)
        free = [rng.randrange(16), rng.randrange(16)]
        self.addresses: dict[str, int] = {}
        memory = np.asarray(rng.choices(range(256), k=2 * REGION), np.uint8)
        spans: dict[str, slice] = {}
        for name in rng.sample(("z_hi", "z_lo", "labels", "dy", "predictions"), 5):
            length = size if name in ("z_hi", "z_lo", "dy") else self.samples
            region = rng.randrange(2)
            if free[region] + length > REGION:
                region = 1 - region
            offset = self.places.get(name, free[region])
            assert name in self.places or offset + length <= REGION
            if name not in self.places:
                free[region] += length + rng.randrange(8)
            start = (region & 1) * REGION + offset
            spans[name] = slice(start, start + length)
            self.addresses[name] = make_address(region, offset)
        # What a LOSS has no use for may lie anywhere.
        unused = () if self.grad else ("labels", "dy")
        for name in unused if self.predict else (*unused, "predictions"):
            self.addresses[name] = make_address(3, 0)
        if not self.places:
            memory[spans["z_hi"]] = (self.z >> 8).astype(np.uint8).ravel()
            memory[spans["z_lo"]] = self.z.astype(np.uint8).ravel()
        if self.grad and "labels" not in self.places:
            memory[spans["labels"]] = self.label
        self.before = memory.copy()
        self.after = memory
        if self.places or (self.label >= self.classes).any():
            return
        result = numerics.softmax(self.z, self.label if self.grad else None)
        if self.predict:
            memory[spans["predictions"]] = result.prediction
        if self.grad:
            assert result.loss is not None
            g = numerics.softmax_gradient(result.probability, self.label)
            self.shift = numerics.gradient_shift(int(abs(g).max()))
            r = numerics.random16(self.key, Use.LOSS, np.arange(size)).reshape(g.shape)
            rounded = numerics.sr(g, self.shift, r)
            dy = numerics.sat8(rounded)
            self.saturations = int((dy != rounded).sum())
            self.loss = int(result.loss.sum()) & 0xFFFFFFFF
            memory[spans["z_hi"]] = (result.probability >> 8).astype(np.uint8).ravel()
            memory[spans["z_lo"]] = result.probability.astype(np.uint8).ravel()
            memory[spans["dy"]] = dy.astype(np.uint8).ravel()


class Runner:
    """Runs cases on one unit, in one simulation."""

    def __init__(self, lanes: int, **changes: Any) -> None:
        self.config = config(lanes, **changes)
        self.bench = Bench(self.config)
        assert self.bench.dut.config is self.config
        self.now = np.zeros(2 * REGION, np.uint8)
        self.saturated = 0  # elements of the gradient, since the last start

    def run(self, test: Callable[["Runner"], Awaitable[None]]) -> None:
        async def testbench(ctx: Any) -> None:
            self.ctx = ctx
            await test(self)

        simulator = Simulator(self.bench)
        simulator.add_clock(1e-6)
        simulator.add_testbench(testbench)
        simulator.run()

    def load(self, memory: Bytes) -> None:
        data = self.bench.memory.data
        for index in np.flatnonzero(memory != self.now):
            self.ctx.set(data[int(index)], int(memory[index]))
        self.now = memory.copy()

    def stored(self) -> Bytes:
        data = self.bench.memory.data
        self.now = np.asarray([self.ctx.get(data[i]) for i in range(2 * REGION)], np.uint8)
        return self.now

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self.ctx.set(getattr(self.bench.dut, name), value)

    def get(self, name: str) -> int:
        return int(self.ctx.get(getattr(self.bench.dut, name)))

    def flags(self) -> list[str]:
        """Which of the outputs that say something are high."""
        return [name for name in ("busy", "done", "error") if self.get(name)]

    async def start(self, case: Case) -> None:
        """Leaves off in the cycle after `start`."""
        self.saturated = 0
        self.load(case.before)
        self.ctx.set(self.bench.key, case.key)
        self.set(
            start=1,
            n_samples=case.samples,
            n_classes=case.classes,
            grad=case.grad,
            predict=case.predict,
            **case.addresses,
        )
        await self.ctx.tick()
        self.set(start=0)

    async def until(self, name: str, limit: int) -> int:
        """Cycles from `start` to a pulse."""
        cycles = 1
        while not self.get(name):
            assert cycles < limit
            assert self.flags() == ["busy"]
            self.saturated += self.get("saturated")
            await self.ctx.tick()
            cycles += 1
        assert self.flags() == [name]
        return cycles

    async def succeeds(self, case: Case) -> None:
        await self.start(case)
        expected = loss_cycles(case.samples, case.classes, case.grad, case.predict, self.config)
        assert await self.until("done", expected + 1) == expected
        if case.grad:
            assert self.get("shift") == case.shift
            assert self.get("loss") == case.loss
            assert self.saturated == case.saturations
        np.testing.assert_array_equal(self.stored(), case.after)

    async def fails(self, case: Case, cause: ErrorCause, *, untouched: bool) -> None:
        await self.start(case)
        await self.until("error", 4000)
        assert ErrorCause(self.get("cause")) == cause
        accesses = self.ctx.get(self.bench.accesses)
        for _ in range(30):
            await self.ctx.tick()
            assert self.flags() == []
        assert self.ctx.get(self.bench.accesses) == accesses
        if untouched:
            np.testing.assert_array_equal(self.stored(), case.before)
        else:
            self.stored()


def random_case(rng: random.Random, samples: int, classes: int, spread: int) -> Case:
    centre = rng.randint(-32768 + spread, 32767 - spread)
    z = [[centre + rng.randint(-spread, spread) for _ in range(classes)] for _ in range(samples)]
    label = [rng.randrange(min(classes, 256)) for _ in range(samples)]
    grad = rng.random() < 0.8
    return Case(z, label if grad else None, predict=not grad or rng.random() < 0.5)


def extreme_cases() -> Iterable[Case]:
    low, high = -32767, 32767
    yield Case([[5]], [0], predict=True)
    yield Case([[low], [high], [0]], [0, 0, 0], predict=True)
    yield Case([[7] * 40], [39], predict=True)
    yield Case([[low] * 3, [high] * 3, [-32768] * 3], [0, 1, 2], predict=True)
    yield Case([[low, high], [high, low], [high, low]], [0, 0, 1], predict=True)
    yield Case([[low, high], [high, low]], [1, 0])  # no gradient at all
    yield Case([[-32768, high, high, -32768]], [3], predict=True)
    yield Case([[0, -1, -256, -712, -2840, -2841, -11000, -11200]], [4])  # all shifts of e
    yield Case([[i, -i] for i in range(9)], [0, 1] * 4 + [0])
    # The label's |g| is exactly a power of two.
    yield Case([[0, 0], [0, 0]], [0, 1])
    yield Case([[0, 0, 0, 0]], [2])
    # The label's g is -32767 and the shift 8: nearly always rounded to -128, which saturates.
    yield Case([[0, -2487]] * 3, [1, 1, 1])
    yield Case([list(range(0, 100, 10))] * 2, None, predict=True)


BITS = pytest.mark.parametrize("lanes", [2, 4], ids=["one_bit", "two_bits"])


@BITS
def test_extreme_logits(lanes: int) -> None:
    async def test(runner: Runner) -> None:
        rng = random.Random(1)
        saturations = 0
        for case in extreme_cases():
            case.prepare(rng)
            await runner.succeeds(case)
            saturations += case.saturations
        assert saturations

    Runner(lanes).run(test)


@BITS
def test_random_logits(lanes: int) -> None:
    async def test(runner: Runner) -> None:
        rng = random.Random(lanes)
        for spread in (1, 30, 300, 1500, 32767):
            for _ in range(3):
                samples = rng.randint(1, 9)
                classes = rng.randint(2, max(2, min(40, 60 // samples)))
                case = random_case(rng, samples, classes, spread)
                case.prepare(rng)
                # The start comes in the very cycle of the `done` before.
                await runner.succeeds(case)

    Runner(lanes).run(test)


def test_more_classes_than_a_byte_counts() -> None:
    async def test(runner: Runner) -> None:
        rng = random.Random(5)
        z = np.asarray([rng.choices(range(-2000, 0), k=260)])
        z[0, 259] = 0
        # A label is not the class 256 above it.
        for case in (Case(z, [2], predict=True), Case(z, [255])):
            case.prepare(rng)
            await runner.succeeds(case)

    Runner(4).run(test)


def test_labels_are_checked_before_anything_is_written() -> None:
    async def test(runner: Runner) -> None:
        rng = random.Random(2)
        for classes, label in ((3, [0, 1, 2, 3]), (1, [1]), (20, [19, 255])):
            case = Case(np.zeros((len(label), classes)), label, predict=True)
            case.prepare(rng)
            await runner.fails(case, ErrorCause.LABEL_RANGE, untouched=True)
            case = Case(np.zeros((len(label), classes)), [v % classes for v in label])
            case.prepare(rng)
            await runner.succeeds(case)

    Runner(4).run(test)


def test_too_many_classes_are_refused_before_anything_is_read() -> None:
    async def test(runner: Runner) -> None:
        rng = random.Random(3)
        for classes in (MAX_CLASSES + 1, 0x8001, 0xFFFF):
            case = Case([[1, 2]], [0] if classes & 1 else None, predict=True, classes=classes)
            case.prepare(rng)
            before = runner.ctx.get(runner.bench.accesses)
            await runner.start(case)
            assert runner.flags() == ["error"]
            assert runner.get("cause") == ErrorCause.OPERAND_RANGE
            for _ in range(20):
                await runner.ctx.tick()
                assert runner.flags() == []
            assert runner.ctx.get(runner.bench.accesses) == before

    Runner(4).run(test)


def test_addresses_out_of_their_region_stop_the_unit() -> None:
    async def test(runner: Runner) -> None:
        rng = random.Random(4)
        for tensor in ("z_hi", "z_lo", "labels", "dy", "predictions"):
            for beyond in (1, 3):
                label = [0, 1, 0, 1]
                case = Case([[1, 2]] * 4, label, predict=True)
                size = 4 if tensor in ("labels", "predictions") else 8
                case.places = {tensor: REGION - size + beyond}
                case.prepare(rng)
                await runner.fails(case, ErrorCause.ADDRESS_RANGE, untouched=tensor == "labels")
        # A label that cannot be read goes before one that is wrong.
        case = Case([[1]] * 3, [0] * 3, places={"labels": REGION - 1})
        case.prepare(rng)
        case.before[[REGION - 1, 2 * REGION - 1]] = 7
        await runner.fails(case, ErrorCause.ADDRESS_RANGE, untouched=True)
        # A region that there is not.
        case = Case([[1]], predict=True)
        case.prepare(rng)
        case.addresses["z_hi"] = make_address(3, 0)
        await runner.fails(case, ErrorCause.ADDRESS_RANGE, untouched=True)
        # Nothing is left behind.
        case = random_case(rng, 3, 5, 700)
        case.prepare(rng)
        await runner.succeeds(case)

    Runner(4).run(test)


def test_elements_that_reach_half_the_offsets_are_too_many() -> None:
    async def test(runner: Runner) -> None:
        runner.set(z_hi=0, z_lo=make_address(1, 0), predictions=make_address(2, 0), predict=1)
        for samples, classes in ((2, 1024), (23, 89)):
            runner.set(start=1, n_samples=samples, n_classes=classes)
            await runner.ctx.tick()
            runner.set(start=0)
            if samples * classes < 2048:
                await runner.until("done", 10000)
            else:
                await runner.until("error", 10000)
                assert runner.get("cause") == ErrorCause.ADDRESS_RANGE

    Runner(4, regions=(2048,) * 3).run(test)


def test_clear_stops_the_unit_in_every_pass() -> None:
    async def test(runner: Runner) -> None:
        rng = random.Random(6)
        case = Case([[5, -5, 90]] * 2, [0, 2], predict=True)
        case.prepare(rng)
        for cycles in range(0, 250, 7):
            await runner.start(case)
            for _ in range(cycles):
                await runner.ctx.tick()
            runner.set(clear=1)
            await runner.ctx.tick()
            runner.set(clear=0)
            for _ in range(3):
                assert runner.flags() == []
                await runner.ctx.tick()
            runner.stored()
        await runner.succeeds(case)

    Runner(4).run(test)


def test_cycles_are_known_figures() -> None:
    small, large = config(2), config(4)
    assert loss_cycles(1, 10, False, True, small) == 44
    assert loss_cycles(1, 10, True, False, small) == loss_cycles(1, 10, True, True, small)
    # Per further element: 4 + 4 + 5 and the division.
    for machine, per_element in ((small, 30), (large, 22)):
        for n in (1, 4):
            more = loss_cycles(n, 21, True, True, machine) - loss_cycles(n, 20, True, True, machine)
            assert more == n * per_element
