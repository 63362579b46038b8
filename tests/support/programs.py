"""Random valid programs with their memory contents, for comparing machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import BMode, Out, Scale, Skip, Track
from gradiron.device import Device


@dataclass
class Case:
    """A program, what memory holds before it, and its exponent entries."""

    words: list[int]
    memory: list[tuple[int, bytes]] = field(default_factory=list)
    exponents: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    seed: int = 0
    step: int = 0
    rate: int = 0
    text: str = ""

    def load(self, device: Device, *, fill: bool = True) -> None:
        """Bring a device to the state before the program.

        Parameters
        ----------
        device : Device
        fill : bool
            Whether all of memory gets a pattern first, in which a stray access shows, and all
            exponents and saturation counts a known value.
        """
        config = device.config
        device.reset()
        device.write_program(self.words)
        if fill:
            rng = np.random.default_rng(self.seed)
            for region, size in enumerate(config.regions):
                device.write_memory(config.region_base(region), rng.bytes(size))
            for tensor in range(64):
                device.write_exponent(tensor, tensor - 40, tensor - 20, tensor % 8)
                device.write_saturations(tensor, 3 * tensor)
        for address, content in self.memory:
            device.write_memory(address, content)
        for tensor, (exponent, tracker, low) in self.exponents.items():
            device.write_exponent(tensor, exponent, tracker, low)
        device.clear_counters()
        device.write_csr("MODE", 0)
        device.write_csr("SEED", self.seed)
        device.write_csr("STEP", self.step)
        device.write_csr("RATE", self.rate)


@dataclass
class Piece:
    """One instruction of a program, and what it needs."""

    name: str
    sets: dict[str, int]
    fields: dict[str, int]
    memory: list[tuple[int, bytes]] = field(default_factory=list)
    exponents: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def split(self, columns: int) -> tuple[Piece, Piece]:
        """An MM as two, of which the first has so many columns; the last keeps the tracker."""
        left, right = dict(self.sets), dict(self.sets)
        left["N_C"] = columns
        right["N_C"] -= columns
        b = BMode(self.fields["b"])
        if b == BMode.COLUMNS:
            right["B_BASE"] += columns * self.sets["B_R"]
        elif b not in (BMode.IDENTITY, BMode.GATE):
            right["B_BASE"] += columns
        if b.by_channel:
            # The bounds are those of the whole row, so that padding stays where it is.
            right["A_X0"] = right.get("A_X0", 0) + columns
        right["O_OFF"] += columns
        for name in ("BIAS", "V_BIAS"):
            if name in right:
                right[name] += 4 * columns
        track = {} if self.fields["out"] == Out.MEASURE else {"track": 0}
        first = Piece("MM", left, {**self.fields, **track}, self.memory, self.exponents)
        return first, Piece("MM", right, self.fields)


@dataclass(frozen=True)
class Modes:
    """What random products may be made of."""

    results: tuple[Out, ...] = tuple(Out)
    operands: tuple[BMode, ...] = tuple(BMode)
    skip: bool = True
    scale: bool = True

    def has(self, fields: dict[str, int]) -> bool:
        """Whether an MM with these fields, the others being 0, is one of them."""
        return (
            fields.get("out", 0) in self.results
            and fields.get("b", 0) in self.operands
            and (self.skip or not fields.get("skip"))
            and (self.scale or fields.get("out") == Out.POOLED or not fields.get("scale"))
        )


EVERYTHING = Modes()
DENSE = Modes(
    (Out.INT8, Out.LOGITS, Out.MASTER, Out.INT8_WEIGHTS, Out.MOMENTUM),
    (BMode.ROWS, BMode.COLUMNS),
    skip=False,
    scale=False,
)
"""What dense layers need."""
BUILT = EVERYTHING
"""What the hardware has, and random programs use unless they are told otherwise."""


class NoRoom(ValueError):
    """The tensors of a random program do not fit the memory."""


class Allocator:
    """Tensors at random, non-overlapping places."""

    def __init__(self, config: Config, rng: np.random.Generator) -> None:
        self.config, self.rng = config, rng
        self.used: list[tuple[int, int, int]] = []
        self.results: list[tuple[int, int]] = []
        """Results that may be operands of later instructions: address and size."""
        self.logits: list[tuple[int, int, int, int]] = []
        """Dense logits: addresses of both planes, samples and classes."""

    def place(self, size: int, region: int | None = None) -> int:
        """An address with `size` free bytes behind it."""
        step = self.config.lane_bytes
        for _ in range(500):
            r = int(self.rng.integers(len(self.config.regions))) if region is None else region
            room = self.config.regions[r] - size
            if room < 0:
                continue
            low = int(self.rng.integers(room + 1)) // step * step
            if self.rng.random() < 0.1:
                low = room // step * step
            if all(r != q or low + size <= a or low >= b for q, a, b in self.used):
                self.used.append((r, low, low + size))
                return isa.make_address(r, low)
        raise NoRoom

    def operand(self, size: int) -> tuple[int, list[tuple[int, bytes]]]:
        """The address of an operand, perhaps an earlier result, and what must be written to it."""
        enough = [address for address, room in self.results if room >= size]
        if enough and self.rng.random() < 0.6:
            return int(self.rng.choice(enough)), []
        address = self.place(size)
        return address, [(address, _bytes(self.rng, size))]


def _bytes(rng: np.random.Generator, size: int) -> bytes:
    spread = rng.choice([3, 20, 127])
    return rng.integers(-spread, spread + 1, size, dtype=np.int64).astype(np.int8).tobytes()


def random_product(
    config: Config,
    rng: np.random.Generator,
    *,
    largest: int = 24,
    kind: Out | None = None,
    b: BMode | None = None,
    transposed: bool | None = None,
    modes: Modes | None = None,
) -> Case:
    """A program of one MM with random descriptors that the limits allow.

    Parameters
    ----------
    largest : int
        About the largest number of pixels, taps and columns.
    kind, b, transposed
        What it must be; a result or operand that is named need not be among the modes.
    modes : Modes or None
        None: those that are built.

    Raises
    ------
    NoRoom
        Where it does not fit.
    """
    place = Allocator(config, rng)
    piece = product(
        config, rng, place, largest=largest, kind=kind, b=b, transposed=transposed, modes=modes
    )
    return assemble(config, rng, [piece])


UPDATES = (Out.MASTER, Out.INT8_WEIGHTS, Out.MOMENTUM)
TWO_PLANES = (Out.LOGITS, Out.MASTER, Out.MOMENTUM, Out.POOLED)
WEIGHTS = {Out.INT8: 3, Out.MASTER: 2}
"""How much more often than others a kind of result comes."""


def _least_fields(out: Out, b: BMode, transposed: bool) -> dict[str, int]:
    """The fields that such a product must have."""
    fields = {field.name: 0 for field in isa.MM.fields}
    fields |= {"out": int(out), "b": int(b), "transposed": int(transposed)}
    if out in UPDATES:
        fields["round"] = 2
    if out == Out.MEASURE:
        fields["track"] = int(Track.FIT)
    if out == Out.POOLED:
        fields["scale"] = int(Scale.OPERAND)
    return fields


def _choose(
    config: Config,
    rng: np.random.Generator,
    modes: Modes,
    kind: Out | None,
    b: BMode | None,
    transposed: bool | None,
) -> dict[str, int]:
    """The fields of a legal combination of result, stationary operand and transposition."""
    rules = [rule for rule in isa.RULES if rule.instruction == "MM" and rule.applies(config)]
    found: list[dict[str, int]] = []
    chances: list[float] = []
    for out in modes.results if kind is None else (kind,):
        forms = [
            fields
            for operand in (modes.operands if b is None else (b,))
            for turned in ((False, True) if transposed is None else (transposed,))
            for fields in [_least_fields(out, operand, turned)]
            if not any(rule.matches(fields) for rule in rules)
            and (operand != BMode.GATE or len(config.regions) > 1)
        ]
        found += forms
        chances += [WEIGHTS.get(out, 1) / len(forms) for _ in forms]
    if not found:
        raise NoRoom
    return found[int(rng.choice(len(found), p=np.array(chances) / sum(chances)))]


@dataclass
class Windows:
    """Pixels and taps over a streamed operand of some channels."""

    sets: dict[str, int]
    size: int
    channels: int
    pixels: tuple[int, int, int]
    taps: tuple[int, int, int]


def _dense(rng: np.random.Generator, align: int, largest: int) -> Windows:
    """Rows of bytes without padding."""
    rows = int(rng.integers(1, largest + 1))
    length = -(-int(rng.integers(1, largest + 1)) // align) * align
    sets = {"A_SX": length, "A_HB": 1, "A_WB": rows * length}
    return Windows(sets, rows * length, length, (1, 1, rows), (1, 1, length))


def _convolution(rng: np.random.Generator, align: int, most: int, *, merge: bool) -> Windows:
    """Windows over images: strides, dilation, padding, taps in either direction, broadcasts.

    With `merge`, the taps of a row may be one run of bytes.
    """
    while True:
        images, *size = (int(v) for v in rng.integers(1, [3, 7, 7]))
        channels = -(-int(rng.integers(1, most + 1)) // align) * align
        kernel = [int(v) for v in rng.integers(1, 6 if rng.random() < 0.1 else 4, 2)]
        stride = kernel if rng.random() < 0.1 else [int(v) for v in rng.integers(1, 3, 2)]
        dilation = [int(rng.random() < 0.2) + 1 for _ in size]
        pad = [int(v) for v in rng.integers(0, 2, 2)]
        merged = merge and bool(rng.random() < 0.5)
        if merged:
            dilation[1] = 1
        out = [
            (s + 2 * p - d * (k - 1) - 1) // step + 1
            for s, p, d, k, step in zip(size, pad, dilation, kernel, stride, strict=True)
        ]
        if min(out) > 0:
            break
    pitch = size[1] * channels
    unit = (pitch, channels)
    steps = [s * u for s, u in zip(stride, unit, strict=True)]
    tap_steps = [d * u for d, u in zip(dilation, unit, strict=True)]
    start = [-p * u for p, u in zip(pad, unit, strict=True)]
    for axis in (0, 1):
        if rng.random() < 0.25 and not (axis == 1 and merged):
            # From the last tap to the first, as the gradient of an input has them.
            start[axis] += (kernel[axis] - 1) * tap_steps[axis]
            tap_steps[axis] = -tap_steps[axis]
        if rng.random() < 0.05:
            steps[axis] = 0
    sets = {
        "A_SN": size[0] * pitch,
        "A_SY": steps[0],
        "A_SX": steps[1],
        "A_TY": tap_steps[0],
        "A_TX": 0 if merged else tap_steps[1],
        "A_Y0": start[0],
        "A_X0": start[1],
        # Sometimes nothing is within the bounds: a fill.
        "A_HB": size[0] * pitch if rng.random() < 0.97 else 0,
        "A_WB": pitch,
    }
    taps = (kernel[0], 1, kernel[1] * channels) if merged else (kernel[0], kernel[1], channels)
    return Windows(sets, images * size[0] * pitch, channels, (images, out[0], out[1]), taps)


def product(
    config: Config,
    rng: np.random.Generator,
    place: Allocator,
    *,
    largest: int = 24,
    kind: Out | None = None,
    b: BMode | None = None,
    transposed: bool | None = None,
    modes: Modes | None = None,
) -> Piece:
    """An MM with random descriptors that the limits allow; see `random_product`."""
    modes = BUILT if modes is None else modes
    align = config.lane_bytes

    def even(value: int) -> int:
        return -(-value // align) * align

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    fields = _choose(config, rng, modes, kind, b, transposed)
    out, mode, turned = Out(fields["out"]), BMode(fields["b"]), bool(fields["transposed"])
    update, by_channel = out in UPDATES, mode.by_channel
    while True:
        if out == Out.LOSS:
            seen = _dense(rng, align, 6 * largest)
            seen.pixels, seen.taps = (1, 1, 1), (1, 1, number(1, seen.channels))
        elif chance(0.6 if by_channel else 0.5):
            most = min(largest, 20) if by_channel and chance(0.5) else 7
            seen = _convolution(rng, align, most, merge=not by_channel)
        else:
            seen = _dense(rng, align, largest)
        ky, kx, j = seen.taps
        if by_channel:
            j = 1
        taps, pixels = ky * kx * j, prod(seen.pixels)
        bias = out not in (Out.POOLED, Out.LOSS) and not (turned and not update) and chance(0.5)
        if not turned or taps + bias <= config.acc_depth:
            break

    case = Piece("MM", dict(seen.sets), fields)
    sets = case.sets
    columns = number(1, seen.channels if by_channel else largest)
    if out == Out.LOSS:
        columns = 1
    sets["A_BASE"], content = place.operand(seen.size)
    case.memory += content
    sets |= {
        "N_P": pixels,
        "N_Y": seen.pixels[1],
        "N_X": seen.pixels[2],
        "N_TY": ky,
        "N_TX": kx,
        "N_J": number(1, 99) if by_channel else j,  # without a meaning by channel
        "N_C": columns,
        "N_G": number(1, min(pixels, config.acc_depth)),
        "PAD": number(-127, 127) if chance(0.3) else 0,
    }
    if chance(0.1) and pixels > 1 and seen.pixels[0] * seen.pixels[1] > 1:
        sets["N_P"] = pixels = number(1, pixels)  # the last row or image is not complete
        sets["N_G"] = min(sets["N_G"], pixels)
    if chance(0.5):
        sets["N_G"] = min(pixels, config.acc_depth)

    # The stationary operand; registers that a mode does not read hold anything.
    sets |= {name: even(number(-99, 99)) for name in ("B_R", "B_TY", "B_TX")}
    sets["B_BASE"] = isa.make_address(0, even(number(0, 60)))
    if mode == BMode.GATE:
        region = isa.split_address(sets["A_BASE"])[0]
        others = [r for r in range(len(config.regions)) if r != region]
        sets["B_BASE"] = place.place(seen.size, int(rng.choice(others)))
        tap = number(0, 15)
        sets["GATE"] = 15 - tap
        # What pooling leaves, sometimes with other high bits.
        plane = 255 - (tap + rng.integers(0, int(rng.choice([1, 2, 4, 16])), seen.size)) % 16
        if chance(0.2):
            plane ^= rng.integers(0, 16, seen.size) << 4
        case.memory.append((sets["B_BASE"], plane.astype(np.uint8).tobytes()))
    elif mode != BMode.IDENTITY:
        by_columns = mode == BMode.COLUMNS
        pitch_b = even(taps if by_columns else columns)
        if turned:
            rows_b = pixels
        elif by_columns:
            rows_b = columns
            sets |= {"B_TX": even(j), "B_TY": even(kx * even(j))}
            pitch_b = even(ky * sets["B_TY"])
        else:
            rows_b = taps
            sets |= {"B_TX": j * pitch_b, "B_TY": kx * j * pitch_b}
        if not (by_channel and not turned):
            sets["B_R"] = pitch_b
        if out == Out.LOSS and by_columns and chance(0.5):
            sets["B_BASE"] = sets["A_BASE"]
        else:
            sets["B_BASE"], content = place.operand(rows_b * pitch_b)
            case.memory += content

    # The result, perhaps with room between its rows.
    pitch_o = even(columns)
    counts = (ky, kx, j) if turned else seen.pixels
    gaps = [number(1, 2) if chance(0.2) else 1 for _ in range(2)]
    s0 = gaps[0] * pitch_o
    s1 = (counts[2] * s0) * gaps[1]
    first = even(number(0, 39))
    size_o = first + counts[0] * counts[1] * s1
    sets |= {"O_OFF": first, "O_S2": counts[1] * s1, "O_S1": s1, "O_S0": s0}
    if by_channel and turned:
        sets["O_S0"] = even(number(-99, 99))  # without a meaning
    planes = [name for name in ("O_BASE", "O_LO") if name == "O_BASE" or out in TWO_PLANES]
    planes += ["V_HI", "V_LO"] if out == Out.MOMENTUM else []
    if out in (Out.MEASURE, Out.LOSS):
        planes = []  # nothing is written
    for name in planes:
        sets[name] = place.place(size_o)
        case.memory.append((sets[name], _bytes(rng, size_o)))
    if bias:
        for name in ("BIAS", *(("V_BIAS",) if out == Out.MOMENTUM else ())):
            sets[name] = place.place(4 * columns)
            scale = int(rng.choice([8, 16, 24, 30]))
            values = rng.integers(-(2**scale), 2**scale, columns)
            if chance(0.1):
                values[:] = 2**31 - 1
            case.memory.append((sets[name], values.astype("<i4").tobytes()))
    summed = out in (Out.INT8, Out.MEASURE) and not turned
    skip = summed and modes.skip and chance(0.4)
    mask = out == Out.INT8 and chance(0.4)
    for name, wanted in (("M_BASE", mask), ("S_BASE", skip)):
        if wanted and "O_BASE" in sets and chance(0.3):
            sets[name] = sets["O_BASE"]
        elif wanted:
            sets[name], content = place.operand(size_o)
            case.memory += content

    ta, tb, to, ts = (int(v) for v in rng.choice(64, 4, replace=False))
    if chance(0.2):
        ts = int(rng.choice([ta, tb, to]))
    sets["EXP"] = isa.pack_tensors(ta, tb, to, ts)
    sets["SHIFT"] = number(-3, 5)
    ea, eb = number(-9, -3), number(-9, -3)
    if mode in (BMode.IDENTITY, BMode.GATE):
        eb = number(-4, 2)
    near = ea + eb + number(-3, 11)
    eo = number(-9, -1) if update else max(-64, min(63, near))
    es = ea + eb + number(-10, 10)
    if chance(0.1):
        ea, eb, near, eo, es = (number(-64, 63) for _ in range(5))
    clamped = max(-64, min(63, near))
    case.exponents = {ts: (max(-64, min(63, es)), number(-64, 63), number(0, 7))}
    case.exponents |= {ta: (ea, ea, 0), tb: (eb, eb, 0), to: (eo, clamped, number(0, 7))}
    fields["pass"] = number(0, 3)
    fields["bias"], fields["mask"] = int(bias), int(mask)
    fields["relu"] = int(summed and chance(0.4))
    fields["skip"] = number(1, 2) if skip else int(Skip.NONE)
    if out == Out.INT8:
        fields["round"] = number(0, 2)
        if not turned and modes.scale and chance(0.3 if mode.by_channel else 0.15):
            fields["scale"] = number(1, 2)
        else:
            fields["track"] = int(chance(0.6))
    if out == Out.LOGITS:
        if gaps == [1, 1] and pitch_o == columns <= 256:
            place.logits.append((sets["O_BASE"] + first, sets["O_LO"] + first, pixels, columns))
    elif planes:
        place.results.append((sets["O_BASE"], size_o))
    return case


def loss(config: Config, rng: np.random.Generator, place: Allocator) -> Piece:
    """A LOSS of random logits, or of those that an MM of the same program computes."""
    piece = Piece("LOSS", {}, {})
    if place.logits and rng.random() < 0.8:
        high, low, samples, classes = place.logits[int(rng.integers(len(place.logits)))]
    else:
        samples, classes = int(rng.integers(1, 10)), int(rng.integers(1, 20))
        if rng.random() < 0.1:
            samples, classes = 1, int(rng.integers(200, 257))
        spread = int(rng.choice([1, 30, 300, 1500, 32767]))
        centre = int(rng.integers(-32767 + spread, 32768 - spread))
        z = centre + rng.integers(-spread, spread + 1, (samples, classes))
        high, low = place.place(z.size), place.place(z.size)
        piece.memory.append((high, (z >> 8).astype(np.int8).tobytes()))
        piece.memory.append((low, (z & 255).astype(np.uint8).tobytes()))
    grad = bool(rng.random() < 0.8)
    predict = not grad or bool(rng.random() < 0.5)
    piece.sets |= {"A_BASE": high, "B_BASE": low, "N_X": samples, "N_C": classes}
    if grad:
        piece.sets["M_BASE"] = place.place(samples)
        labels = rng.integers(0, classes, samples).astype(np.uint8)
        piece.memory.append((piece.sets["M_BASE"], labels.tobytes()))
        piece.sets["O_BASE"] = place.place(samples * classes)
        place.results.append((piece.sets["O_BASE"], samples * classes))
    if predict:
        piece.sets["P_BASE"] = place.place(samples)
    tensor = int(rng.integers(64))
    piece.sets["EXP"] = isa.pack_tensors(*(int(v) for v in rng.integers(64, size=2)), tensor)
    piece.exponents[tensor] = (int(rng.integers(-20, 9)), int(rng.integers(-20, 9)), 0)
    piece.fields = {"pass": int(rng.integers(4)), "grad": int(grad), "predict": int(predict)}
    return piece


def random_loss(config: Config, rng: np.random.Generator) -> Case:
    """A program of one LOSS.

    Raises
    ------
    NoRoom
        Where it does not fit.
    """
    return assemble(config, rng, [loss(config, rng, Allocator(config, rng))])


def random_sequence(
    config: Config, rng: np.random.Generator, *, largest: int = 12, modes: Modes | None = None
) -> Case:
    """A program of several products and losses that work on each other's results.

    Some products are divided into several instructions; STEPs and loops, one inside the other, are
    strewn in.

    Raises
    ------
    NoRoom
        Where it does not fit.
    """
    place = Allocator(config, rng)
    pieces: list[Piece] = []
    for _ in range(int(rng.integers(2, 6))):
        if rng.random() < 0.25:
            pieces.append(loss(config, rng, place))
            continue
        piece = product(config, rng, place, largest=largest, modes=modes)
        while piece.sets["N_C"] > 2 and rng.random() < 0.5:
            columns = int(rng.integers(1, piece.sets["N_C"] // 2 + 1)) * config.lane_bytes
            if columns >= piece.sets["N_C"]:
                break
            first, piece = piece.split(columns)
            pieces.append(first)
        pieces.append(piece)
    return assemble(config, rng, pieces, loops=True)


def assemble(
    config: Config, rng: np.random.Generator, pieces: list[Piece], *, loops: bool = False
) -> Case:
    """A program of these pieces, perhaps with loops."""
    case = Case([])
    case.seed, case.step = (int(v) for v in rng.integers(0, 2**32, 2))
    case.rate = int(rng.integers(-2, 8))
    text: list[str] = []
    depth = 0
    known: dict[str, int] = {}
    pieces[0].sets = complete(pieces[0].sets)

    def put(name: str, **fields: int) -> None:
        case.words.append(isa.encode(name, config, **fields))
        text.append(f"{name} {fields or ''}")

    for piece in pieces:
        if loops and depth < isa.LOOP_DEPTH and rng.random() < 0.3:
            put("LOOP", count=int(rng.integers(1, 4)))
            # A body begins with other values of the registers the next time.
            known.clear()
            depth += 1
        for name, value in piece.sets.items():
            if known.get(name) != value:
                case.words.append(isa.encode_set(name, value, config))
                text.append(f"SET {name} {value}")
                known[name] = value
        put(piece.name, **piece.fields)
        case.memory += piece.memory
        case.exponents |= piece.exponents
        if loops and rng.random() < 0.3:
            put("STEP")
        while depth and rng.random() < 0.4:
            put("ENDLOOP")
            depth -= 1
    for _ in range(depth):
        put("ENDLOOP")
    put("HALT")
    if len(case.words) > config.program_words:
        raise NoRoom
    case.text = "\n".join(text)
    return case


def complete(sets: dict[str, int]) -> dict[str, int]:
    """Values for all registers: what an earlier program left in them must not matter."""
    return {register.name: register.reset for register in isa.REGISTERS} | sets


def state_of(device: Device) -> dict[str, object]:
    """All architectural state that a program can change."""
    config = device.config
    state: dict[str, object] = {
        f"region {r}": device.read_memory(config.region_base(r), size)
        for r, size in enumerate(config.regions)
    }
    state["exponents"] = [device.read_exponent(t) for t in range(64)]
    state["saturations"] = [device.saturations(t) for t in range(64)]
    state["status"] = device.status()
    for name in ("STEP", "LOSS", "INSTRUCTIONS"):
        state[name] = device.read_csr(name)
    return state


def differences(a: dict[str, object], b: dict[str, object]) -> list[str]:
    """What differs between two states."""
    found = []
    for key, left in a.items():
        right = b[key]
        if left == right:
            continue
        if isinstance(left, bytes):
            x, y = np.frombuffer(left, np.int8), np.frombuffer(right, np.int8)
            where = np.flatnonzero(x != y)
            found.append(
                f"{key}: {len(where)} bytes, first at {where[0]}: {x[where[0]]} and {y[where[0]]}"
            )
        elif isinstance(left, list):
            pairs = enumerate(zip(left, right, strict=True))
            found += [f"{key} {i}: {x} and {y}" for i, (x, y) in pairs if x != y]
        else:
            found.append(f"{key}: {left} and {right}")
    return found
