"""From a network and a machine to the words of its program.

`compile_graph` derives the steps, plans the memory and emits a straight line of SET, MM, LOSS and
STEP for each entry: "train" (one whole training step) and "infer" (predictions, trackers left
alone). SETs are delta-coded: a register is written only where its value changes or is not
known yet. `gemm_program` makes one product for measurements.

A product with more rows than the machine has accumulators becomes several instructions here; which
ones, changes time and never a bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gradiron.arch.config import Config
from gradiron.arch.isa import (
    REGISTERS,
    BMode,
    Decoded,
    Out,
    Pass,
    decode,
    encode,
    encode_set,
    make_address,
    pack_tensors,
)
from gradiron.arch.numerics import bit_length, rn, sat8
from gradiron.assembler import disassemble
from gradiron.cycles import instruction_cycles
from gradiron.errors import DataError, ModelError, PlanError
from gradiron.graph import Graph, Schedule, Step, Tensor
from gradiron.operations import LossStep, Product, Result, Stationary, Streamed
from gradiron.packing import Cost
from gradiron.planner import Plan, place, plan, step_name

if TYPE_CHECKING:
    from gradiron.device import Device

MAX_MM_DIMENSION = 65535
OPTIONAL_REGISTERS = (
    *("A_SN", "A_SY", "A_SX", "A_TY", "A_TX", "B_TY", "B_TX", "O_S2", "O_S1", "O_S0", "PAD"),
)
"""Registers of an MM that get a defined value once, also where a product does not need them: a
machine with two-byte lanes looks at all of them."""


@dataclass(frozen=True)
class Origin:
    """Where a word comes from.

    Attributes
    ----------
    entry : str
        The program it is part of.
    layer : str
    pass_ : str
        "forward", "loss", "dx", "dw" or "other", as in the results of `bench`.
    macs : int
        Logical products of this instruction; 0 for anything but MM.
    """

    entry: str
    layer: str
    pass_: str
    macs: int = 0


@dataclass(frozen=True)
class Symbol:
    """A tensor of a program: where it lies, and its entry of the exponent table (-1: none)."""

    name: str
    address: int
    bytes: int
    kind: str
    exponent: int


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes
    ----------
    config : Config
    plan : Plan
    words : list of int
    entries : dict of program counter by entry name
    origins : dict of Origin by program counter
        For every word. A SET belongs to the instruction that it prepares.
    comments : dict of str by program counter
    graph : Graph or None
    """

    config: Config
    plan: Plan
    words: list[int]
    entries: dict[str, int]
    origins: dict[int, Origin]
    comments: dict[int, str]
    graph: Graph | None = None

    @property
    def schedule(self) -> Schedule:
        """The steps that the program carries out."""
        return self.plan.schedule

    @property
    def batch(self) -> int:
        """Samples of one run."""
        return self.schedule.batch

    @property
    def symbols(self) -> dict[str, Symbol]:
        """Every tensor by name."""
        exponents = self.schedule.exponents
        return {
            name: Symbol(
                name,
                placement.address,
                placement.tensor.bytes,
                placement.tensor.kind,
                exponents.get(placement.tensor.exponent, -1),
            )
            for name, placement in self.plan.placements.items()
        }

    def entry(self, name: str) -> int:
        """Program counter at which an entry begins.

        Raises
        ------
        ModelError
            Where the program does not have it: all layers frozen, nothing to train.
        """
        if name not in self.entries:
            raise ModelError(
                f"the program has no entry {name!r}, only {', '.join(self.entries)}; a network "
                "whose layers are all frozen cannot be trained"
            )
        return self.entries[name]

    def macs(self, entry: str) -> int:
        """Logical products of one run."""
        return sum(origin.macs for origin in self.origins.values() if origin.entry == entry)

    def explain(self, pc: int) -> str:
        """What the program does at a program counter, in words."""
        origin = self.origins.get(pc)
        if origin is None:
            return f"program counter {pc} is outside the program"
        name = origin.layer if origin.layer == origin.pass_ else f"{origin.layer} {origin.pass_}"
        return f"program counter {pc}: {name} of {origin.entry!r}"

    def listing(self) -> str:
        """The program as text that assembles to the same words, with comments."""
        return disassemble(self.words, self.config, self.comments, self.entries)


# --- lowering ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A part of the taps of a transposed product: first and number in ky, kx and j."""

    ky: int
    taps_y: int
    kx: int
    taps_x: int
    j0: int
    j: int
    bias: bool


def _ranges(count: int, room: int, align: int = 1) -> Iterator[tuple[int, int]]:
    """Cut `count` into pieces of at most `room`, about equal, at multiples of `align`."""
    pieces = -(-count // room)
    size = -(-count // pieces)
    size = min(room, -(-size // align) * align)
    start = 0
    while start < count:
        yield start, min(size, count - start)
        start += size


def split_taps(product: Product, config: Config) -> list[_Part]:
    """The instructions of a transposed product: as many as the accumulators demand.

    The bias goes with the last, whose rows leave room for it.
    """
    depth = config.acc_depth
    whole = (product.taps_y, product.taps_x, product.j)
    bias = bool(product.bias)
    room = depth - bias

    def parts(ky: tuple[int, int], kx: tuple[int, int], j: tuple[int, int]) -> _Part:
        return _Part(*ky, *kx, *j, bias=False)

    row, tap = product.taps_x * product.j, product.j
    if row <= room:
        found = [parts(ky, (0, whole[1]), (0, tap)) for ky in _ranges(whole[0], room // row)]
    elif tap <= room:
        found = [
            parts((ky, 1), kx, (0, tap))
            for ky in range(whole[0])
            for kx in _ranges(whole[1], room // tap)
        ]
    else:
        align = config.word_bytes
        found = [
            parts((ky, 1), (kx, 1), j)
            for ky in range(whole[0])
            for kx in range(whole[1])
            for j in _ranges(tap, room // align * align, align)
        ]
    if bias:
        last = found[-1]
        found[-1] = _Part(last.ky, last.taps_y, last.kx, last.taps_x, last.j0, last.j, bias=True)
    return found


class _Emitter:
    """Words of one program; knows what every register holds."""

    def __init__(self, found: Plan) -> None:
        self.plan = found
        self.config = found.config
        self.words: list[int] = []
        self.origins: dict[int, Origin] = {}
        self.comments: dict[int, str] = {}
        self.entries: dict[str, int] = {}
        self.entry = ""
        self.registers: dict[str, int] = {}

    def begin(self, entry: str) -> None:
        self.entry = entry
        self.entries[entry] = len(self.words)
        self.registers = {}

    def put(self, word: int, origin: Origin, comment: str = "") -> None:
        if comment:
            self.comments[len(self.words)] = comment
        self.origins[len(self.words)] = origin
        self.words.append(word)

    def set(self, origin: Origin, values: dict[str, int | str]) -> None:
        """Make registers hold values; a string is the address of the tensor of that name."""
        for name, given in values.items():
            value = self.plan.address(given) if isinstance(given, str) else given
            if self.registers.get(name) != value:
                self.registers[name] = value
                comment = given if isinstance(given, str) else ""
                self.put(encode_set(name, value, self.config), origin, comment)

    def exponents(self, names: tuple[str, str, str]) -> int:
        table = self.plan.schedule.exponents
        return pack_tensors(*(table[name] for name in names))

    def step(self, step: Step, update_shift: int) -> None:
        if isinstance(step, Product):
            self.product(step, update_shift)
        elif isinstance(step, LossStep):
            self.loss(step)
        else:
            self.simple("STEP")

    def product(self, product: Product, update_shift: int) -> None:
        if not product.transposed:
            whole = _Part(0, product.taps_y, 0, product.taps_x, 0, product.j, bool(product.bias))
            self.mm(product, whole, update_shift, last=True)
            return
        parts = split_taps(product, self.config)
        for index, part in enumerate(parts):
            self.mm(product, part, update_shift, last=index == len(parts) - 1)

    def mm(self, product: Product, part: _Part, update_shift: int, *, last: bool) -> None:
        a, b, o = product.a, product.b, product.o
        taps = part.taps_y * part.taps_x * part.j
        pass_ = product.pass_.name.lower()
        origin = Origin(self.entry, product.layer, pass_)
        values: dict[str, int | str] = {
            "A_BASE": a.tensor,
            "N_P": product.pixels,
            "N_Y": product.y,
            "N_X": product.x,
            "N_TY": part.taps_y,
            "N_TX": part.taps_x,
        }
        for size, name, stride in (
            (product.images, "A_SN", a.image),
            (product.y, "A_SY", a.y),
            (product.x, "A_SX", a.x),
            (part.taps_y, "A_TY", a.tap_y),
            (part.taps_x, "A_TX", a.tap_x),
        ):
            if size > 1:
                values[name] = stride
        values |= {
            "A_Y0": a.y0 + part.ky * a.tap_y,
            "A_X0": a.x0 + part.kx * a.tap_x + part.j0,
            "A_HB": a.rows,
            "A_WB": a.columns,
            "N_J": part.j,
            "N_C": product.columns,
            "B_BASE": b.tensor,
            "B_R": b.pitch,
            "O_BASE": o.tensor,
            "O_S0": o.step0,
        }
        if product.transposed:
            outer = ((part.taps_y, "O_S2", o.step2), (part.taps_x, "O_S1", o.step1))
            values["O_OFF"] = part.ky * o.step2 + part.kx * o.step1 + part.j0 * o.step0
        else:
            outer = ((product.images, "O_S2", o.step2), (product.y, "O_S1", o.step1))
            values["O_OFF"] = 0
            groups = -(-product.pixels // self.config.acc_depth)
            values["N_G"] = -(-product.pixels // groups)
            values |= {"B_TY": b.tap_y} if part.taps_y > 1 else {}
            values |= {"B_TX": b.tap_x} if part.taps_x > 1 else {}
        for count, name, step in outer:
            if count > 1:
                values[name] = step
        for name in OPTIONAL_REGISTERS:
            if name not in self.registers:
                values.setdefault(name, 0)
        bias = part.bias and bool(product.bias)
        for name, tensor in (
            ("O_LO", o.low),
            ("M_BASE", product.mask),
            ("BIAS", product.bias if bias else ""),
            ("V_HI", product.velocity[0]),
            ("V_LO", product.velocity[1]),
            ("V_BIAS", product.velocity[2] if bias else ""),
        ):
            if tensor:
                values[name] = tensor
        values["EXP"] = self.exponents(product.exponents)
        if product.update:
            values["SHIFT"] = update_shift
        self.set(origin, values)
        word = encode(
            "MM",
            self.config,
            **{
                "pass": int(product.pass_),
                "transposed": int(product.transposed),
                "b": int(b.by),
                "out": int(product.out),
                "round": int(product.rounding),
                "relu": int(product.relu),
                "bias": int(bias),
                "mask": int(bool(product.mask)),
                "track": int(product.track and last),
            },
        )
        rows, depth = (taps, product.pixels) if product.transposed else (product.pixels, taps)
        macs = product.pixels * taps * product.columns
        comment = f"{product.layer} {pass_}: {rows} x {depth} x {product.columns}"
        self.put(word, Origin(self.entry, product.layer, pass_, macs), comment)

    def loss(self, step: LossStep) -> None:
        origin = Origin(self.entry, step.layer, "loss")
        values: dict[str, int | str] = {
            "A_BASE": step.high,
            "B_BASE": step.low,
            "N_X": step.batch,
            "N_C": step.classes,
            "EXP": self.exponents(step.exponents),
        }
        for name, tensor in (
            ("M_BASE", step.labels),
            ("O_BASE", step.gradient),
            ("P_BASE", step.predictions),
        ):
            if tensor:
                values[name] = tensor
        self.set(origin, values)
        word = encode(
            "LOSS",
            self.config,
            **{
                "pass": int(step.pass_),
                "grad": int(bool(step.gradient)),
                "predict": int(bool(step.predictions)),
            },
        )
        self.put(word, origin, f"loss of {step.batch} x {step.classes}")

    def simple(self, name: str) -> None:
        self.put(encode(name, self.config), Origin(self.entry, name.lower(), "other"))


def lower(found: Plan, graph: Graph | None = None) -> Program:
    """Emit the programs of a plan.

    Raises
    ------
    PlanError
        Where they are longer than the program memory.
    """
    emit = _Emitter(found)
    update_shift = (found.schedule.batch - 1).bit_length()
    for entry, steps in found.schedule.programs.items():
        emit.begin(entry)
        for step in steps:
            emit.step(step, update_shift)
        emit.simple("HALT")
    room = found.config.program_words
    if len(emit.words) > room:
        sizes = ", ".join(
            f"{entry} {sum(o.entry == entry for o in emit.origins.values())}"
            for entry in emit.entries
        )
        raise PlanError(
            f"the program has {len(emit.words)} words ({sizes}) and the machine's program memory "
            f"{room}: {len(emit.words) - room} are missing; use fewer layers, more accumulators "
            f"(acc_depth, now {found.config.acc_depth}: fewer parts per update) or a larger "
            "program memory (program_words)"
        )
    return Program(
        found.config, found, emit.words, emit.entries, emit.origins, emit.comments, graph
    )


def compile_graph(graph: Graph, config: Config, batch: int) -> Program:
    """The program of a network on a machine.

    Parameters
    ----------
    graph : Graph
    config : Config
    batch : int
        Samples of one step.

    Raises
    ------
    DoesNotFitError
        Where the tensors do not fit the data memory.
    PlanError
        Where the program does not fit the program memory, or the machine lacks an option.
    ModelError
        For a batch that no machine can handle.
    """
    return lower(plan(graph, config, batch, costs=step_costs), graph)


# --- the cycles of a step by the regions of its tensors ------------------------------------------


class _Probe(_Emitter):
    """Emits a step without addresses: registers that would hold one have the tensor's name."""

    def __init__(self, schedule: Schedule, config: Config) -> None:
        super().__init__(Plan(config, schedule, {}))
        self.named: dict[str, int | str] = {r.name: r.reset for r in REGISTERS}
        self.found: list[tuple[Decoded, dict[str, int], dict[str, str]]] = []

    def set(self, origin: Origin, values: dict[str, int | str]) -> None:
        self.registers |= dict.fromkeys(values, 0)
        self.named |= values

    def put(self, word: int, origin: Origin, comment: str = "") -> None:
        decoded = decode(word, self.config)
        assert isinstance(decoded, Decoded)
        numbers = {name: v for name, v in self.named.items() if isinstance(v, int)}
        names = {name: v for name, v in self.named.items() if isinstance(v, str)}
        self.found.append((decoded, numbers, names))


def step_costs(schedule: Schedule, config: Config) -> Cost:
    """A function that gives the cycles of a step of a schedule, by the regions of its tensors.

    It counts the instructions that do the work, not the SETs that prepare them.
    """
    probed: dict[Step, list[tuple[Decoded, dict[str, int], dict[str, str]]]] = {}
    update_shift = (schedule.batch - 1).bit_length()

    def cost(step: Step, regions: Mapping[str, int]) -> int:
        if step not in probed:
            probe = _Probe(schedule, config)
            probe.step(step, update_shift)
            probed[step] = probe.found
        return sum(
            instruction_cycles(
                config,
                decoded,
                numbers
                | {name: make_address(regions.get(tensor, 0), 0) for name, tensor in names.items()},
            )[0]
            for decoded, numbers, names in probed[step]
        )

    return cost


# --- one product ---------------------------------------------------------------------------------

ORDERS = ("NN", "NT", "TN")
GEMM_ENTRY = "gemm"


@dataclass(frozen=True)
class GemmProgram:
    """C[M, N] = A B in int8, for measurements and tests.

    Attributes
    ----------
    program : Program
        Entry "gemm"; tensors "a", "b" and "c".
    m, n, k : int
    order : str
        "NN": A is stored [M, K] and B [K, N]; "NT": B is stored [N, K]; "TN": A is stored [K, M].
    exponent : int
        Exponent of C, where A and B have 0: the right shift of the sums.
    """

    program: Program
    m: int
    n: int
    k: int
    order: str
    exponent: int

    @property
    def macs(self) -> int:
        """Logical products."""
        return self.m * self.n * self.k

    def load(self, device: Device, a: npt.NDArray[np.int8], b: npt.NDArray[np.int8]) -> None:
        """Write program, operands and exponents; a is [M, K] and b is [K, N], whatever the order.

        Raises
        ------
        DataError
            For other shapes or types.
        """
        for name, given, shape in (("a", a, (self.m, self.k)), ("b", b, (self.k, self.n))):
            if given.dtype != np.int8 or given.shape != shape:
                raise DataError(
                    f"operand {name} is {given.dtype} {given.shape}; it must be int8 {shape}"
                )
        device.write_program(self.program.words)
        self._write(device, "a", a.T if self.order == "TN" else a)
        self._write(device, "b", b.T if self.order == "NT" else b)
        exponents = self.program.schedule.exponents
        device.write_exponent(exponents["a"], 0)
        device.write_exponent(exponents["b"], 0)
        device.write_exponent(exponents["c"], 0, self.exponent)

    def _write(self, device: Device, name: str, values: npt.NDArray[np.int8]) -> None:
        placement = self.program.plan.placements[name]
        padded = np.zeros((len(values), placement.tensor.pitch), np.int8)
        padded[:, : values.shape[1]] = values
        device.write_memory(placement.address, padded.tobytes())

    def result(self, device: Device) -> npt.NDArray[np.int8]:
        """Read C."""
        placement = self.program.plan.placements["c"]
        data = device.read_memory(placement.address, placement.tensor.bytes)
        return np.frombuffer(data, np.int8).reshape(self.m, -1)[:, : self.n]

    def expected(self, a: npt.NDArray[np.int8], b: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """C by numpy, in exact integers."""
        product = a.astype(np.int64) @ b.astype(np.int64)
        return sat8(rn(product, self.exponent)).astype(np.int8)


def gemm_program(
    config: Config, m: int, n: int, k: int, order: str = "NN", *, exponent: int | None = None
) -> GemmProgram:
    """A program with a single product.

    Parameters
    ----------
    config : Config
    m, n, k : int
        Rows and columns of the result, length of the reduction; each from 1 to 65535.
    order : str
        "NN", "NT" or "TN".
    exponent : int or None
        Exponent of C, 0 to 31; None takes the smallest at which nothing can saturate.

    Raises
    ------
    ModelError
        For sizes or an order out of range.
    PlanError
        Where the operands do not fit.
    """
    if order not in ORDERS:
        raise ModelError(f"operand order {order!r} is none of {', '.join(ORDERS)}")
    for name, size in (("M", m), ("N", n), ("K", k)):
        if not 1 <= size <= MAX_MM_DIMENSION:
            raise ModelError(f"{name} is {size}; it must be from 1 to {MAX_MM_DIMENSION}")
    shapes = {"a": (k, m) if order == "TN" else (m, k), "b": (n, k) if order == "NT" else (k, n)}
    shapes["c"] = (m, n)
    pitch = {
        name: -(-shape[1] // config.lane_bytes) * config.lane_bytes
        for name, shape in shapes.items()
    }
    tensors = {
        name: Tensor(
            name,
            "operand",
            shape[0] * pitch[name],
            shape,
            pitch=pitch[name],
            exponent=name,
            host_writes=name != "c",
            host_reads=name == "c",
            part=name,
        )
        for name, shape in shapes.items()
    }
    transposed = order == "TN"
    product = Product(
        "gemm",
        Pass.OTHER,
        Streamed("a", columns=tensors["a"].bytes, x=pitch["a"]),
        Stationary("b", pitch["b"], BMode.COLUMNS if order == "NT" else BMode.ROWS),
        Result("c", step0=pitch["c"]),
        ("a", "b", "c"),
        x=k if transposed else m,
        j=m if transposed else k,
        columns=n,
        transposed=transposed,
        out=Out.INT8,
    )
    exponents = {"a": 0, "b": 1, "c": 2}
    schedule = Schedule(tensors, exponents, {GEMM_ENTRY: (product,)}, 1, {}, {})
    found = place(schedule, config)
    if found is None:
        needed = sum(tensor.bytes for tensor in tensors.values())
        raise PlanError(
            f"a product of {m} x {k} by {k} x {n} needs {needed} bytes, no operand divided; the "
            f"machine has {config.memory_bytes} in regions of "
            f"{', '.join(str(size) for size in config.regions)}; use smaller sizes or more memory"
        )
    if exponent is None:
        exponent = max(0, bit_length(k * 127 * 127) - 7)
    return GemmProgram(lower(found), m, n, k, order, exponent)


__all__ = [
    "GEMM_ENTRY",
    "ORDERS",
    "GemmProgram",
    "Origin",
    "Program",
    "Symbol",
    "compile_graph",
    "gemm_program",
    "lower",
    "split_taps",
    "step_costs",
    "step_name",
]
