"""Random valid programs with their memory contents, for comparing machines."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import Out
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
        right["B_BASE"] += columns * (self.sets["B_R"] if self.fields["b"] else 1)
        right["O_OFF"] += columns
        for name in ("BIAS", "V_BIAS"):
            if name in right:
                right[name] += 4 * columns
        first = Piece("MM", left, {**self.fields, "track": 0}, self.memory, self.exponents)
        return first, Piece("MM", right, self.fields)


RESULTS = (Out.INT8, Out.LOGITS, Out.MASTER, Out.INT8_WEIGHTS, Out.MOMENTUM)
"""The kinds of results that the hardware has."""


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
    transposed: bool | None = None,
) -> Case:
    """A program of one MM with random descriptors that the limits allow.

    Raises
    ------
    NoRoom
        Where it does not fit.
    """
    place = Allocator(config, rng)
    piece = product(config, rng, place, largest=largest, kind=kind, transposed=transposed)
    return assemble(config, rng, [piece])


def product(
    config: Config,
    rng: np.random.Generator,
    place: Allocator,
    *,
    largest: int = 24,
    kind: Out | None = None,
    transposed: bool | None = None,
) -> Piece:
    """An MM with random descriptors that the limits allow."""
    if kind is None:
        kinds = [Out.INT8, Out.INT8, Out.INT8, Out.LOGITS, Out.MASTER, Out.MASTER, Out.INT8_WEIGHTS]
        if config.momentum:
            kinds.append(Out.MOMENTUM)
        kind = Out(int(rng.choice(kinds)))
    update = kind in (Out.MASTER, Out.INT8_WEIGHTS, Out.MOMENTUM)
    if transposed is None:
        transposed = update or (kind == Out.INT8 and bool(rng.random() < 0.3))
    align = config.lane_bytes

    def even(value: int) -> int:
        return -(-value // align) * align

    while True:
        conv = rng.random() < 0.5
        n, h, w = (int(v) for v in rng.integers(1, [3, 6, 6])) if conv else (1, 1, 1)
        channels = even(int(rng.integers(1, largest + 1)))
        if conv:
            channels = even(int(rng.integers(1, 8)))
            kh, kw = (int(v) for v in rng.integers(1, 4, 2))
            stride = int(rng.integers(1, 3))
            pad = int(rng.integers(0, 2))
            oh, ow = (h + 2 * pad - kh) // stride + 1, (w + 2 * pad - kw) // stride + 1
            if oh < 1 or ow < 1:
                continue
            merged = bool(rng.random() < 0.5)
            if (align == 2 and (channels * stride) % 2) or (pad * channels) % align:
                continue
            pixels = n * oh * ow
            taps = (kh, 1, kw * channels) if merged else (kh, kw, channels)
        else:
            n = int(rng.integers(1, largest + 1))
            pixels, oh, ow, taps = n, 1, n, (1, 1, channels)
            kh = kw = h = w = stride = 1
            pad = 0
            merged = True
        reduce = taps[0] * taps[1] * taps[2]
        columns = int(rng.integers(1, largest + 1))
        bias = bool(rng.random() < 0.5) and not (transposed and kind == Out.INT8)
        if transposed and reduce + bias > config.acc_depth:
            continue
        break

    case = Piece("MM", {}, {})
    sets = case.sets
    size_a = n * h * w * channels
    a, content = place.operand(size_a)
    case.memory += content
    pitch = w * channels
    if conv:
        sets |= {
            "A_SN": h * pitch,
            "A_SY": stride * pitch,
            "A_SX": stride * channels,
            "A_TY": pitch,
            "A_TX": 0 if merged else channels,
            "A_Y0": -pad * pitch,
            "A_X0": -pad * channels,
            "A_HB": h * pitch,
            "A_WB": pitch,
        }
    else:
        sets |= {"A_SX": channels, "A_HB": 1, "A_WB": size_a}
    sets |= {
        "A_BASE": a,
        "N_P": pixels,
        "N_Y": oh,
        "N_X": ow,
        "N_TY": taps[0],
        "N_TX": taps[1],
        "N_J": taps[2],
        "N_C": columns,
        "N_G": int(rng.integers(1, min(pixels, config.acc_depth) + 1)),
        "PAD": int(rng.integers(-127, 128)) if rng.random() < 0.3 else 0,
    }
    if rng.random() < 0.5:
        sets["N_G"] = min(pixels, config.acc_depth)
    by_columns = not transposed and bool(rng.random() < 0.4)
    pitch_b = even(reduce if by_columns else columns)
    rows_b = columns if by_columns else (pixels if transposed else reduce)
    size_b = rows_b * pitch_b
    b, content = place.operand(size_b)
    case.memory += content
    sets |= {"B_BASE": b, "B_R": pitch_b}
    if not transposed:
        if by_columns:
            sets |= {"B_TX": taps[2], "B_TY": taps[1] * taps[2]}
        else:
            sets |= {"B_TX": taps[2] * pitch_b, "B_TY": taps[1] * taps[2] * pitch_b}
        if (sets["B_TX"] % align) or (sets["B_TY"] % align):
            return product(config, rng, place, largest=largest, kind=kind)
    rows_o = reduce if transposed else pixels
    pitch_o = even(columns)
    first = int(rng.integers(0, 40)) // align * align
    size_o = first + rows_o * pitch_o
    if transposed:
        strides = (taps[1] * taps[2] * pitch_o, taps[2] * pitch_o, pitch_o)
    else:
        strides = (oh * ow * pitch_o, ow * pitch_o, pitch_o)
    sets |= dict(zip(("O_S2", "O_S1", "O_S0"), strides, strict=True))
    sets["O_OFF"] = first
    for name in ("O_BASE", *(("O_LO",) if kind in (Out.LOGITS, Out.MASTER, Out.MOMENTUM) else ())):
        sets[name] = place.place(size_o)
        case.memory.append((sets[name], _bytes(rng, size_o)))
    if kind == Out.MOMENTUM:
        for name in ("V_HI", "V_LO"):
            sets[name] = place.place(size_o)
            case.memory.append((sets[name], _bytes(rng, size_o)))
    mask = kind == Out.INT8 and bool(rng.random() < 0.4)
    if mask:
        sets["M_BASE"] = place.place(size_o)
        if rng.random() < 0.3:
            sets["M_BASE"] = sets["O_BASE"]
        case.memory.append((sets["M_BASE"], _bytes(rng, size_o)))
    if bias:
        for name in ("BIAS", *(("V_BIAS",) if kind == Out.MOMENTUM else ())):
            sets[name] = place.place(4 * columns)
            scale = int(rng.choice([8, 16, 24, 30]))
            values = rng.integers(-(2**scale), 2**scale, columns)
            if rng.random() < 0.1:
                values[:] = 2**31 - 1
            case.memory.append((sets[name], values.astype("<i4").tobytes()))
    ta, tb, to = (int(v) for v in rng.choice(64, 3, replace=False))
    sets["EXP"] = isa.pack_tensors(ta, tb, to)
    sets["SHIFT"] = int(rng.integers(-3, 6))
    ea, eb = (int(v) for v in rng.integers(-9, -2, 2))
    near = ea + eb + int(rng.integers(-3, 12))
    if update:
        eo = int(rng.integers(-9, 0))
    else:
        eo = max(-64, min(63, near))
    if rng.random() < 0.1:
        ea, eb, near, eo = (int(v) for v in rng.integers(-64, 64, 4))
    case.exponents = {
        ta: (ea, ea, 0),
        tb: (eb, eb, 0),
        to: (eo, max(-64, min(63, near)), int(rng.integers(8))),
    }
    rounding = 2 if update else 0 if kind == Out.LOGITS else int(rng.integers(3))
    fields = {
        "pass": int(rng.integers(4)),
        "transposed": int(transposed),
        "b": int(by_columns),
        "out": int(kind),
        "round": rounding,
        "relu": int(kind == Out.INT8 and not transposed and rng.random() < 0.4),
        "bias": int(bias),
        "mask": int(mask),
        "track": int(kind == Out.INT8 and rng.random() < 0.6),
    }
    case.fields = fields
    if kind == Out.LOGITS:
        if pitch_o == columns and columns <= 256:
            place.logits.append((sets["O_BASE"] + first, sets["O_LO"] + first, pixels, columns))
    else:
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


def random_sequence(config: Config, rng: np.random.Generator, *, largest: int = 12) -> Case:
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
        piece = product(config, rng, place, largest=largest)
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
