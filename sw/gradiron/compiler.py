"""From a network and a machine to the words of its program.

`compile_graph` derives the steps, plans the memory and emits a straight line of SET, MM, LOSS and
STEP for each entry: "train" (one whole training step) and "infer" (predictions, trackers left
alone). SETs are delta-coded: a register is written only where its value changes or is not
known yet. `gemm_program` makes one product for measurements.

A product with more rows than the machine has accumulators becomes several instructions here, and
what can be computed in several forms takes the one that the cycle model finds fastest; all of that
changes time and never a bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from gradiron.arch.config import Config
from gradiron.arch.isa import (
    REGISTERS,
    BMode,
    Decoded,
    Out,
    Pass,
    Skip,
    Track,
    encode,
    encode_set,
    make_address,
    pack_tensors,
)
from gradiron.arch.numerics import bit_length, rn, sat8
from gradiron.assembler import disassemble
from gradiron.cycles import instruction_cycles
from gradiron.errors import AssemblyError, DataError, ModelError, PlanError
from gradiron.graph import Graph, Schedule, Step, Tensor
from gradiron.operations import LossStep, Product, Result, Stationary, Streamed
from gradiron.packing import Cost
from gradiron.planner import Plan, place, plan, step_name

if TYPE_CHECKING:
    from gradiron.device import Device

MAX_MM_DIMENSION = 65535
BIAS_BYTES = 4
ALIGNED_REGISTERS = (
    *("A_SN", "A_SY", "A_SX", "A_TY", "A_TX", "B_BASE", "B_R", "B_TY", "B_TX"),
    *("O_BASE", "O_OFF", "O_S2", "O_S1", "O_S0"),
)
"""Registers that a machine with two-byte lanes looks at, also where a product does not need them:
they get a defined value once in a program."""
Values: TypeAlias = dict[str, int | tuple[str, int]]
"""Registers to numbers, or to tensors and offsets in bytes."""
_REMEDY = "use smaller images, fewer channels or a smaller batch, or a machine with larger regions"


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


Form: TypeAlias = list[Product]
"""Products that together do what one does."""
MOST_SEGMENTS = 5
"""Segments of an axis into which an image is divided at most."""
SET_CYCLES = 10
"""About what the registers of one more product cost."""


def forms_of(product: Product) -> list[Form]:
    """A product in all forms that give the same result.

    Where the bytes of a row of taps are contiguous, in the streamed operand and in the weights (or
    the result), the row may be one tap: the array's rows are filled better if a tap alone is
    shorter than they are.

    Pixels at the border of an image, whose windows reach beyond it, may be products of their own,
    with the taps alone that lie within it. In an update, taps that lie outside for rows of pixels
    may be products of their own, without those rows.
    """
    a, b, o, j = product.a, product.b, product.o, product.j
    step = o.step1 if product.transposed else b.tap_x
    each = o.step0 if product.transposed else b.pitch
    forms: list[Form] = [[product]]
    if b.by == BMode.ROWS and product.taps_x > 1 and a.tap_x == j and step == j * each:
        merged = dataclasses.replace(product, taps_x=1, j=product.taps_x * j)
        forms = [[merged], *_divided(merged), *forms]
    return [*forms, *_divided(product)]


@dataclass(frozen=True)
class _Segment:
    """Pixels of an axis, in order, that see the same taps."""

    first: int
    pixels: int
    tap: int
    taps: int


def _segments(
    pixels: tuple[int, int], taps: tuple[int, int], start: int, limit: int
) -> list[_Segment]:
    """The pixels of an axis by the taps that lie within bounds.

    Parameters
    ----------
    pixels, taps : (int, int)
        Number and distance in bytes.
    start : int
        Offset of the first tap of the first pixel.
    limit : int
        Offsets are valid from 0 and below this.
    """
    found: list[_Segment] = []
    for pixel in range(pixels[0]):
        offset = start + pixel * pixels[1]
        valid = [tap for tap in range(taps[0]) if 0 <= offset + tap * taps[1] < limit] or [0]
        last = found[-1] if found else None
        if last is not None and (last.tap, last.taps) == (valid[0], len(valid)):
            found[-1] = dataclasses.replace(last, pixels=last.pixels + 1)
        else:
            found.append(_Segment(pixel, 1, valid[0], len(valid)))
    return found


def _divided_update(product: Product) -> list[Form]:
    """An update with padding of zeros, divided by rows of taps.

    Its pixels are contiguous in B: rows of a single image can be left away at both ends. What has
    the biases must see all pixels.
    """
    a, b, o = product.a, product.b, product.o
    if product.pad or product.images > 1 or not product.pads:
        return []
    # The rows of pixels that a tap sees: the same question with pixels and taps exchanged.
    taps = _segments((product.taps_y, a.tap_y), (product.y, a.y), a.y0, a.rows)
    whole = [index for index, each in enumerate(taps) if each.taps == product.y]
    if not whole or not 1 < len(taps) <= MOST_SEGMENTS:
        return []
    parts = [
        dataclasses.replace(
            product,
            a=dataclasses.replace(a, y0=a.y0 + each.first * a.tap_y + each.tap * a.y),
            b=dataclasses.replace(b, offset=b.offset + each.tap * product.x * b.pitch),
            o=dataclasses.replace(o, offset=o.offset + each.first * o.step2),
            y=each.taps,
            taps_y=each.pixels,
            bias=product.bias if index == whole[0] else "",
            logical=0 if index else product.macs,
        )
        for index, each in enumerate(taps)
    ]
    return [parts]


def _divided(product: Product) -> list[Form]:
    """A product with padding of zeros, divided by rows, by columns, and by both."""
    a, b, o = product.a, product.b, product.o
    if product.transposed:
        return _divided_update(product)
    if (
        product.pad
        or product.out != Out.INT8
        or b.by not in (BMode.ROWS, BMode.COLUMNS, BMode.DIAGONAL)
        or not product.pads
    ):
        return []
    run = product.columns if b.by == BMode.DIAGONAL else product.j
    rows = _segments((product.y, a.y), (product.taps_y, a.tap_y), a.y0, a.rows)
    columns = _segments(
        (product.x, a.x), (product.taps_x, a.tap_x), a.x0, max(0, a.columns - run + 1)
    )
    all_rows = [_Segment(0, product.y, 0, product.taps_y)]
    all_columns = [_Segment(0, product.x, 0, product.taps_x)]
    forms: list[Form] = []
    for ys, xs in ((rows, all_columns), (all_rows, columns), (rows, columns)):
        if len(ys) * len(xs) == 1 or max(len(ys), len(xs)) > MOST_SEGMENTS:
            continue
        parts = [
            dataclasses.replace(
                product,
                a=dataclasses.replace(
                    a,
                    y0=a.y0 + y.first * a.y + y.tap * a.tap_y,
                    x0=a.x0 + x.first * a.x + x.tap * a.tap_x,
                ),
                b=dataclasses.replace(b, offset=b.offset + y.tap * b.tap_y + x.tap * b.tap_x),
                o=dataclasses.replace(o, offset=o.offset + y.first * o.step1 + x.first * o.step0),
                y=y.pixels,
                x=x.pixels,
                taps_y=y.taps,
                taps_x=x.taps,
                logical=0,
                track=Track.NONE,
            )
            for y in ys
            for x in xs
        ]
        parts[0] = dataclasses.replace(parts[0], logical=product.macs)
        parts[-1] = dataclasses.replace(parts[-1], track=product.track)
        if parts not in forms:
            forms.append(parts)
    return forms


@dataclass(frozen=True)
class Lowered:
    """An instruction, MM or LOSS, with the registers it needs."""

    fields: dict[str, int]
    values: Values
    macs: int
    comment: str
    name: str = "MM"


class _Emitter:
    """Words of one program; knows what every register holds."""

    def __init__(self, found: Plan, *, divide: bool = True) -> None:
        self.plan = found
        self.divide = divide
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

    def set(self, origin: Origin, values: Values) -> None:
        """Make registers hold values."""
        for name, given in values.items():
            comment = ""
            if isinstance(given, int):
                value = given
            else:
                comment, offset = given
                value = self.plan.address(comment) + offset
                comment += f" + {offset}" if offset else ""
            if self.registers.get(name) != value:
                self.registers[name] = value
                try:
                    word = encode_set(name, value, self.config)
                except AssemblyError as error:
                    raise PlanError(f"{self._place(origin)}: {error}; {_REMEDY}") from None
                self.put(word, origin, comment)

    def _place(self, origin: Origin) -> str:
        return f"layer {origin.layer!r}, {origin.pass_}"

    def exponents(self, names: tuple[str, ...]) -> int:
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
        """The instructions of a product, in the form that takes the fewest cycles."""
        found = self.lowered_forms(product, update_shift)
        pass_ = product.pass_.name.lower()
        for mm in min(found, key=lambda form: self.form_cycles(form, self.plan.address)):
            origin = Origin(self.entry, product.layer, pass_)
            self.set(origin, mm.values)
            word = encode("MM", self.config, **mm.fields)
            self.put(word, dataclasses.replace(origin, macs=mm.macs), mm.comment)

    def form_cycles(self, form: list[Lowered], address: Callable[[str], int]) -> int:
        """Cycles of the instructions of a form, with what the registers of each more cost."""
        return sum(self.cycles(found, address) for found in form) + SET_CYCLES * (len(form) - 1)

    def cycles(self, found: Lowered, address: Callable[[str], int]) -> int:
        """Cycles of an instruction with its tensors at these addresses."""
        registers = {register.name: register.reset for register in REGISTERS}
        for name, given in found.values.items():
            registers[name] = given if isinstance(given, int) else address(given[0]) + given[1]
        decoded = Decoded(found.name, found.fields)
        return instruction_cycles(self.config, decoded, registers)[0]

    def lowered_forms(self, product: Product, update_shift: int) -> list[list[Lowered]]:
        """The instructions of a product, in every form that gives the same result."""
        forms = forms_of(product)
        if not self.divide:
            forms = [form for form in forms if len(form) == 1]
        return [
            [found for each in form for found in self.lowered(each, update_shift)] for form in forms
        ]

    def lowered(self, product: Product, update_shift: int) -> list[Lowered]:
        """The instructions of a product in one form."""
        if not product.transposed:
            whole = _Part(0, product.taps_y, 0, product.taps_x, 0, product.j, bool(product.bias))
            return [self.mm(product, whole, update_shift, last=True)]
        parts = split_taps(product, self.config)
        return [
            self.mm(product, part, update_shift, last=index == len(parts) - 1)
            for index, part in enumerate(parts)
        ]

    def mm(self, product: Product, part: _Part, update_shift: int, *, last: bool) -> Lowered:
        a, b, o = product.a, product.b, product.o
        by_channel = b.by.by_channel
        values: Values = {
            "A_BASE": (a.tensor, 0),
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
            "N_C": product.columns,
        }
        if not by_channel:
            values["N_J"] = part.j
        if product.transposed or not by_channel:
            values["B_R"] = b.pitch
        if b.tensor:
            values["B_BASE"] = (b.tensor, b.offset)
        if product.transposed:
            outer = [(part.taps_y, "O_S2", o.step2), (part.taps_x, "O_S1", o.step1)]
            if not by_channel:
                outer.append((part.j, "O_S0", o.step0))
            offset = o.offset + part.ky * o.step2 + part.kx * o.step1 + part.j0 * o.step0
        else:
            outer = [
                (product.images, "O_S2", o.step2),
                (product.y, "O_S1", o.step1),
                (product.x, "O_S0", o.step0),
            ]
            offset = o.offset
            groups = -(-product.pixels // self.config.acc_depth)
            values["N_G"] = -(-product.pixels // groups)
            if b.by in (BMode.ROWS, BMode.COLUMNS, BMode.DIAGONAL):
                values |= {"B_TY": b.tap_y} if part.taps_y > 1 else {}
                values |= {"B_TX": b.tap_x} if part.taps_x > 1 else {}
        for count, name, step in outer:
            if count > 1:
                values[name] = step
        if product.pads:
            values["PAD"] = product.pad
        if b.by == BMode.GATE:
            values["GATE"] = product.gate
        if o.tensor:
            values |= {"O_OFF": offset, "O_BASE": (o.tensor, 0)}
        if self.config.lane_bytes > 1:
            for name in ALIGNED_REGISTERS:
                if name not in self.registers:
                    values.setdefault(name, 0)
        bias = part.bias and bool(product.bias)
        first = BIAS_BYTES * product.first
        for name, tensor, distance in (
            ("O_LO", o.low, 0),
            ("M_BASE", product.mask, 0),
            ("S_BASE", product.skip, 0),
            ("BIAS", product.bias if bias else "", first),
            ("V_HI", product.velocity[0], 0),
            ("V_LO", product.velocity[1], 0),
            ("V_BIAS", product.velocity[2] if bias else "", first),
        ):
            if tensor:
                values[name] = (tensor, distance)
        values["EXP"] = self.exponents(product.exponents)
        if product.update:
            values["SHIFT"] = update_shift
        skip = Skip.SUBTRACT if product.subtract else Skip.ADD
        fields = {
            "pass": int(product.pass_),
            "transposed": int(product.transposed),
            "b": int(b.by),
            "out": int(product.out),
            "round": int(product.rounding),
            "relu": int(product.relu),
            "bias": int(bias),
            "mask": int(bool(product.mask)),
            "skip": int(skip if product.skip else Skip.NONE),
            "track": int(product.track if last else Track.NONE),
            "scale": int(product.scale),
        }
        taps = part.taps_y * part.taps_x * part.j
        rows, depth = (taps, product.pixels) if product.transposed else (product.pixels, taps)
        macs = product.macs * taps // product.taps
        comment = (
            f"{product.layer} {product.pass_.name.lower()}: {rows} x {depth} x {product.columns}"
        )
        return Lowered(fields, values, macs, comment)

    def loss(self, step: LossStep) -> None:
        found = self.lowered_loss(step)
        origin = Origin(self.entry, step.layer, "loss")
        self.set(origin, found.values)
        self.put(encode("LOSS", self.config, **found.fields), origin, found.comment)

    def lowered_loss(self, step: LossStep) -> Lowered:
        """The LOSS of a step."""
        values: Values = {
            "A_BASE": (step.high, 0),
            "B_BASE": (step.low, 0),
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
                values[name] = (tensor, 0)
        fields = {
            "pass": int(step.pass_),
            "grad": int(bool(step.gradient)),
            "predict": int(bool(step.predictions)),
        }
        return Lowered(fields, values, 0, f"loss of {step.batch} x {step.classes}", "LOSS")

    def simple(self, name: str) -> None:
        self.put(encode(name, self.config), Origin(self.entry, name.lower(), "other"))


def _emitted(found: Plan, *, divide: bool) -> _Emitter:
    """All programs of a plan; `divide` takes several products for one where that is faster."""
    emit = _Emitter(found, divide=divide)
    update_shift = (found.schedule.batch - 1).bit_length()
    for entry, steps in found.schedule.programs.items():
        emit.begin(entry)
        for step in steps:
            emit.step(step, update_shift)
        emit.simple("HALT")
    return emit


def lower(found: Plan, graph: Graph | None = None) -> Program:
    """Emit the programs of a plan.

    Raises
    ------
    PlanError
        Where they are longer than the program memory.
    """
    room = found.config.program_words
    emit = _emitted(found, divide=True)
    if len(emit.words) > room:
        emit = _emitted(found, divide=False)
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


def step_costs(schedule: Schedule, config: Config) -> Cost:
    """A function that gives the cycles of a step of a schedule, by the regions of its tensors.

    It counts the instructions that do the work, not the SETs that prepare them.
    """
    emit = _Emitter(Plan(config, schedule, {}))
    update_shift = (schedule.batch - 1).bit_length()
    probed: dict[Step, list[Lowered]] = {}

    def cost(step: Step, regions: Mapping[str, int]) -> int:
        def address(tensor: str) -> int:
            return make_address(regions.get(tensor, 0), 0)

        if step not in probed:
            # Which form is the fastest hardly depends on the regions.
            forms: list[list[Lowered]] = [[]]
            if isinstance(step, Product):
                forms = emit.lowered_forms(step, update_shift)
            elif isinstance(step, LossStep):
                forms = [[emit.lowered_loss(step)]]
            probed[step] = min(forms, key=lambda form: emit.form_cycles(form, address))
        return emit.form_cycles(probed[step], address) if probed[step] else 0

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
