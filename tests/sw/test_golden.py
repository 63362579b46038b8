"""The golden model against a naive reading of docs/products.md, and its fast forms against its own
general ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from math import log2

import numpy as np
import pytest

from gradiron.arch import isa, numerics
from gradiron.arch.config import Config, simulation_config, up5k_config
from gradiron.arch.isa import (
    BMode,
    ErrorCause,
    MachineState,
    Out,
    Scale,
    Skip,
    Track,
    encode,
    encode_set,
)
from gradiron.arch.numerics import Rounding, Tracker, Use
from gradiron.device import Status
from gradiron.errors import MachineError
from gradiron.golden import GoldenDevice
from gradiron.golden.addressing import (
    Canvas,
    Fault,
    Indexed,
    Lattice,
    Streamed,
    Strided,
    locate,
    locate_streamed,
    pixel_loops,
)
from gradiron.golden.arithmetic import (
    UNLIMITED,
    Randoms,
    matrix_product,
    round_shift,
    saturated,
    stochastic_shift,
    wrapped32,
)
from gradiron.golden.channels import channel_gradient, channel_sums, gated_sums, pooled
from support import programs

# --- a naive machine -----------------------------------------------------------------------------
#
# Plain Python integers and loops, straight from docs/products.md. Nothing is shared with the golden
# model but the names of registers and fields.


class NaiveError(Exception):
    def __init__(self, cause: ErrorCause) -> None:
        super().__init__(cause.name)
        self.cause = cause


Triple = tuple[int, int, int]


def limit(v: int, low: int, high: int) -> int:
    return max(low, min(high, v))


def rn(v: int, s: int) -> int:
    s = limit(s, -16, 31)
    return (v + 2 ** (s - 1)) // 2**s if s > 0 else v * 2**-s


def rt(v: int, s: int) -> int:
    s = limit(s, -16, 31)
    if s <= 1:
        return rn(v, s)
    t = (v + 1) // 2
    magnitude = (abs(t) + 2 ** (s - 2)) // 2 ** (s - 1)
    return magnitude if t >= 0 else -magnitude


def sr(v: int, s: int, r: int) -> int:
    s = limit(s, -16, 31)
    if s <= 0:
        return v * 2**-s
    return (v + (r % 2**s if s <= 16 else r * 2 ** (s - 16))) // 2**s


def int8(byte: int) -> int:
    return byte - 256 if byte >= 128 else byte


def int16(high: int, low: int) -> int:
    return 256 * int8(high) + low


@dataclass
class Naive:
    """Everything that an instruction reads or writes."""

    config: Config
    memory: list[bytearray]
    registers: dict[str, int]
    exponent: list[int]
    tracker: list[tuple[int, int]]
    saturations: list[int]
    seed: int = 0
    step: int = 0
    rate: int = 0
    largest: int = 0
    loss: int = 0
    touched: set[tuple[str, int]] = field(default_factory=set)

    def place(self, register: str, offset: int) -> tuple[bytearray, int]:
        address = self.registers[register]
        memory = self.memory[address >> 22]
        offset = ((address & 0x3FFFFF) + offset) % 2**self.config.offset_bits
        if offset >= len(memory):
            raise NaiveError(ErrorCause.ADDRESS_RANGE)
        return memory, offset

    def get(self, register: str, offset: int) -> int:
        memory, offset = self.place(register, offset)
        return memory[offset]

    def put(self, register: str, offset: int, value: int) -> None:
        memory, offset = self.place(register, offset)
        memory[offset] = value % 256

    def get32(self, register: str, col: int) -> int:
        data = bytes(self.get(register, 4 * col + i) for i in range(4))
        return int.from_bytes(data, "little", signed=True)

    def put32(self, register: str, col: int, value: int) -> None:
        for i, byte in enumerate(value.to_bytes(4, "little", signed=True)):
            self.put(register, 4 * col + i, byte)

    def signed(self, offset: int) -> int:
        half = 2 ** (self.config.offset_bits - 1)
        return (offset + half) % (2 * half) - half

    def streamed(self, name: str, pixel: Triple, ky: int, kx: int, j: int) -> int | None:
        """A byte at the distances of the streamed operand; None outside the bounds."""
        r = self.registers
        n, y, x = pixel
        yq = self.signed(r["A_Y0"] + y * r["A_SY"] + ky * r["A_TY"])
        xq = self.signed(r["A_X0"] + x * r["A_SX"] + kx * r["A_TX"] + j)
        if 0 <= yq < r["A_HB"] and 0 <= xq < r["A_WB"]:
            return self.get(name, n * r["A_SN"] + yq + xq)
        return None

    def a(self, pixel: Triple, ky: int, kx: int, j: int) -> int:
        byte = self.streamed("A_BASE", pixel, ky, kx, j)
        return self.registers["PAD"] if byte is None else int8(byte)

    def saturate(self, tensor: int, v: int, low: int, high: int) -> int:
        self.saturations[tensor] += not low <= v <= high
        return limit(v, low, high)

    def random(self, tensor: int, use: Use, index: int) -> int:
        key = numerics.random_key(self.seed, self.step, tensor)
        return int(numerics.random16(key, use, index))

    def used(self, f: dict[str, int]) -> list[str]:
        """Registers that must be even where lanes have two bytes."""
        out = Out(f["out"])
        names = "A_BASE B_BASE O_BASE A_SN A_SY A_SX A_TY A_TX A_Y0 A_X0 B_R O_OFF O_S2 O_S1 O_S0"
        used = names.split()
        used += ["B_TY", "B_TX"] * (not f["transposed"])
        used += ["O_LO"] * (out in (Out.LOGITS, Out.MASTER, Out.MOMENTUM, Out.POOLED))
        used += ["M_BASE"] * f["mask"] + ["BIAS"] * f["bias"] + ["S_BASE"] * (f["skip"] > 0)
        used += ["V_HI", "V_LO"] * (out == Out.MOMENTUM)
        used += ["V_BIAS"] * (out == Out.MOMENTUM and f["bias"])
        return used

    def by_channel(
        self, f: dict[str, int], pixels: list[Triple], taps: list[Triple]
    ) -> dict[tuple[int, int], int]:
        """The accumulators of a plain product by channel; pooled: the keys."""
        r = self.registers
        sums: dict[tuple[int, int], int] = {}
        for p, pixel in enumerate(pixels):
            for c in range(r["N_C"]):
                terms: list[int] = []
                for t, (ky, kx, _) in enumerate(taps):
                    a = self.a(pixel, ky, kx, c)
                    if f["out"] == Out.POOLED:
                        terms.append(256 * a + 255 - t % 16)
                    elif f["b"] == BMode.DIAGONAL:
                        weight = self.get("B_BASE", ky * r["B_TY"] + kx * r["B_TX"] + c)
                        terms.append(a * int8(weight))
                    elif f["b"] == BMode.IDENTITY:
                        terms.append(a)
                    else:
                        gate = self.streamed("B_BASE", pixel, ky, kx, c)
                        terms.append(a if gate is not None and gate % 16 == r["GATE"] else 0)
                sums[p, c] = max(terms) if f["out"] == Out.POOLED else sum(terms)
        return sums

    def mm(self, f: dict[str, int]) -> None:
        r = self.registers
        out = Out(f["out"])
        used = self.used(f)
        if self.config.lane_bytes == 2 and any(r[name] % 2 for name in used):
            raise NaiveError(ErrorCause.MISALIGNED)
        if f["b"] == BMode.GATE and r["A_BASE"] >> 22 == r["B_BASE"] >> 22:
            raise NaiveError(ErrorCause.REGION_CONFLICT)
        if out == Out.LOSS and (r["N_P"] != 1 or r["N_C"] != 1):
            raise NaiveError(ErrorCause.OPERAND_RANGE)
        by_channel = f["b"] in (BMode.DIAGONAL, BMode.IDENTITY, BMode.GATE)
        taps = [
            (ky, kx, j)
            for ky in range(r["N_TY"])
            for kx in range(r["N_TX"])
            for j in range(1 if by_channel else r["N_J"])
        ]
        pixels = [
            (p // (r["N_X"] * r["N_Y"]), p // r["N_X"] % r["N_Y"], p % r["N_X"])
            for p in range(r["N_P"])
        ]
        if f["transposed"] and len(taps) + f["bias"] > self.config.acc_depth:
            raise NaiveError(ErrorCause.ACCUMULATOR_DEPTH)
        cols = range(r["N_C"])
        b: dict[tuple[int, int], int] = {}
        if f["transposed"]:
            b = {
                (p, c): int8(self.get("B_BASE", p * r["B_R"] + c))
                for p in range(len(pixels))
                for c in cols
            }
            rows = taps
            sums = {
                (i, c): sum(
                    self.a(pixel, ky, kx, c if by_channel else j) * b[p, c]
                    for p, pixel in enumerate(pixels)
                )
                for i, (ky, kx, j) in enumerate(taps)
                for c in cols
            }
        elif by_channel:
            rows = pixels
            sums = self.by_channel(f, pixels, taps)
        else:
            a = {
                (p, i): self.a(pixel, *tap)
                for p, pixel in enumerate(pixels)
                for i, tap in enumerate(taps)
            }

            def stationary(i: int, c: int) -> int:
                ky, kx, j = taps[i]
                offset = ky * r["B_TY"] + kx * r["B_TX"]
                offset += j + c * r["B_R"] if f["b"] else j * r["B_R"] + c
                return int8(self.get("B_BASE", offset))

            b = {(i, c): stationary(i, c) for i in range(len(taps)) for c in cols}
            rows = pixels
            sums = {
                (p, c): sum(a[p, i] * b[i, c] for i in range(len(taps)))
                for p in range(len(pixels))
                for c in cols
            }
        element = {
            (row, c): (r["O_OFF"] + k[0] * r["O_S2"] + k[1] * r["O_S1"] + k[2] * r["O_S0"] + c)
            % 2**self.config.offset_bits
            for row, k in enumerate(rows)
            for c in cols
        }
        # All bytes must exist before anything is written.
        per_element = [n for n in ("O_LO", "M_BASE", "S_BASE", "V_HI", "V_LO") if n in used]
        per_element += ["O_BASE"] * (out not in (Out.MEASURE, Out.LOSS))
        for name in per_element:
            for e in element.values():
                self.place(name, e)
        for name in ("BIAS", "V_BIAS"):
            if name in used:
                for c in cols:
                    self.get32(name, c)

        ta, tb, o = r["EXP"] & 63, r["EXP"] >> 6 & 63, r["EXP"] >> 12 & 63
        ea, eb = self.exponent[ta], self.exponent[tb]
        e_acc = ea + eb
        acc = dict(sums)
        if f["bias"] and not f["transposed"]:
            for row, c in acc:
                acc[row, c] += limit(rn(self.get32("BIAS", c), e_acc + 20), -(2**30), 2**30)
        if f["skip"]:
            es = self.exponent[r["EXP"] >> 18]
            for k, e in element.items():
                skipped = rn(int8(self.get("S_BASE", e)), e_acc - es)
                acc[k] += skipped if f["skip"] == 1 else -skipped
        if f["relu"]:
            acc = {k: max(v, 0) for k, v in acc.items()}
        largest = max(abs(v) for v in acc.values())
        match out:
            case Out.POOLED:
                for k, key in sums.items():
                    self.put("O_BASE", element[k], key // 256)
                    self.put("O_LO", element[k], key % 256)
                self.exponent[o] = ea
            case Out.LOSS:
                (self.loss,) = sums.values()
            case Out.MEASURE:
                m = max(self.largest, largest)
                if m:
                    self.tracker[o] = limit(e_acc + max(0, m.bit_length() - 7), -64, 63), 0
                self.largest = 0
            case Out.INT8:
                if f["scale"] == Scale.TRACKER:
                    self.largest = max(self.largest, largest)
                    eu = limit(max(self.tracker[o][0], e_acc), -64, 63)
                else:
                    eu = ea if f["scale"] == Scale.OPERAND else limit(e_acc, -64, 63)
                for k, v in acc.items():
                    match Rounding(f["round"]):
                        case Rounding.NEAREST:
                            q = rn(v, eu - e_acc)
                        case Rounding.TFLITE:
                            q = rt(v, eu - e_acc)
                        case Rounding.STOCHASTIC:
                            q = sr(v, eu - e_acc, self.random(o, Use.DX, element[k]))
                    y = self.saturate(o, q, -127, 127)
                    if f["mask"] and int8(self.get("M_BASE", element[k])) <= 0:
                        y = 0
                    self.put("O_BASE", element[k], y)
                self.exponent[o] = eu
                if f["track"]:
                    new = Tracker(*self.tracker[o]).update(e_acc, self.largest)
                    self.tracker[o] = (new.exponent, new.low)
                    self.largest = 0
            case Out.LOGITS:
                for k, v in acc.items():
                    z = self.saturate(o, rn(v, -8 - e_acc), -32767, 32767)
                    self.put("O_BASE", element[k], z >> 8)
                    self.put("O_LO", element[k], z)
                self.exponent[o] = -8
            case Out.INT8_WEIGHTS:
                su = self.exponent[o] - 8 - e_acc + self.rate + r["SHIFT"]
                for k, v in sums.items():
                    w = int8(self.get("O_BASE", element[k]))
                    w -= sr(v, su + 8, self.random(o, Use.DW, element[k]))
                    self.put("O_BASE", element[k], self.saturate(o, w, -127, 127))
            case Out.MASTER | Out.MOMENTUM:
                su = self.exponent[o] - 8 - e_acc + self.rate + r["SHIFT"]
                for k, v in sums.items():
                    e = element[k]
                    m = int16(self.get("O_BASE", e), self.get("O_LO", e)) - 128
                    if out == Out.MASTER:
                        m -= sr(v, su, self.random(o, Use.DW, e))
                    else:
                        u = int16(self.get("V_HI", e), self.get("V_LO", e))
                        u = (
                            u
                            - sr(u, 3, self.random(o, Use.MOMENTUM_DECAY, e))
                            + sr(v, su - 4, self.random(o, Use.DW, e))
                        )
                        u = limit(u, -32767, 32767)
                        self.put("V_HI", e, u >> 8)
                        self.put("V_LO", e, u)
                        m -= sr(u, 4, self.random(o, Use.MOMENTUM_STEP, e))
                    m = self.saturate(o, m, -32640, 32639)
                    self.put("O_BASE", e, (m + 128) >> 8)
                    self.put("O_LO", e, m + 128)
        if f["bias"] and f["transposed"]:
            sb = -20 - eb + self.rate + r["SHIFT"]
            top = 2**31 - 1
            for c in cols:
                db = sum(b[p, c] for p in range(len(pixels)))
                step = sr(db, sb, self.random(o, Use.DB, c))
                if out == Out.MOMENTUM:
                    u = self.get32("V_BIAS", c)
                    u = limit(u - sr(u, 3, self.random(o, Use.BIAS_DECAY, c)) + step, -top, top)
                    self.put32("V_BIAS", c, u)
                    step = u
                self.put32("BIAS", c, self.saturate(o, self.get32("BIAS", c) - step, -top, top))

    def loss_instruction(self, f: dict[str, int]) -> None:
        r = self.registers
        samples, classes, o = r["N_X"], r["N_C"], r["EXP"] >> 12 & 63
        if samples * classes >= 2 ** (self.config.offset_bits - 1):
            raise NaiveError(ErrorCause.ADDRESS_RANGE)
        z = [
            [
                int16(self.get("A_BASE", n * classes + c), self.get("B_BASE", n * classes + c))
                for c in range(classes)
            ]
            for n in range(samples)
        ]
        for n in range(samples):
            if f["predict"]:
                self.place("P_BASE", n)
            if f["grad"]:
                self.place("M_BASE", n)
                self.place("O_BASE", n * classes + classes - 1)
        labels = [self.get("M_BASE", n) for n in range(samples)] if f["grad"] else []
        if any(label >= classes for label in labels):
            raise NaiveError(ErrorCause.LABEL_RANGE)
        for n in range(samples):
            if f["predict"]:
                self.put("P_BASE", n, z[n].index(max(z[n])))
        if not f["grad"]:
            return
        g: list[list[int]] = []
        self.loss = 0
        for n, label in enumerate(labels):
            t = [v * 369 // 256 for v in z[n]]
            d = [max(t) - v for v in t]
            e = [round(32768 * 2 ** (-(v % 256 // 4) / 64)) >> min(v // 256, 31) for v in d]
            total = sum(e)
            p = [v * 32768 // total for v in e]
            lead = total.bit_length() - 1
            fraction = total * 64 // 2**lead - 64
            self.loss += d[label] + 256 * (lead - 15) + round(256 * log2(1 + fraction / 64))
            for c, v in enumerate(p):
                self.put("A_BASE", n * classes + c, v // 256)
                self.put("B_BASE", n * classes + c, v)
            g.append([v - 32768 * (c == label) for c, v in enumerate(p)])
        sh = max(0, max(abs(v) for row in g for v in row).bit_length() - 7)
        for n, row in enumerate(g):
            for c, v in enumerate(row):
                index = n * classes + c
                q = sr(v, sh, self.random(o, Use.LOSS, index))
                self.put("O_BASE", index, self.saturate(o, q, -127, 127))
        self.exponent[o] = sh - 15
        self.loss = (self.loss + 2**31) % 2**32 - 2**31


# --- running both --------------------------------------------------------------------------------

Step = tuple[str, dict[str, int], dict[str, int]]
"""Instruction name, its fields, and the registers set before it."""


def small_config(**changes: object) -> Config:
    values: dict[str, object] = {
        "rows": 4,
        "cols": 4,
        "regions": (1024, 1024, 768, 512),
        "acc_depth": 16,
        "program_words": 256,
    }
    return Config(**{**values, **changes})  # type: ignore[arg-type]


def assemble(steps: list[Step], config: Config) -> list[int]:
    words: list[int] = []
    for name, fields, registers in steps:
        words += [encode_set(r, v, config) for r, v in registers.items()]
        words.append(encode(name, config, **fields))
    return [*words, encode("HALT")]


def check_program(rng: random.Random, config: Config, steps: list[Step]) -> ErrorCause:
    """Run the steps on the naive machine and on both forms of the golden model; returns how the
    program ended."""
    memory = [bytearray(rng.randbytes(size)) for size in config.regions]
    exponents = [rng.randint(-24, 4) for _ in range(64)]
    trackers = [(rng.randint(-30, 6), rng.randrange(8)) for _ in range(64)]
    seed, step, rate = rng.getrandbits(32), rng.getrandbits(32), rng.randint(-4, 9)
    # Labels and small biases, with some that are out of range.
    for n in range(0, 128, 4):
        memory[3][n : n + 4] = rng.randint(-(2**18), 2**18).to_bytes(4, "little", signed=True)
    for n in range(256, 512):
        memory[3][n] = rng.randrange(4)

    devices = [GoldenDevice(config, fast=fast) for fast in (True, False)]
    for device in devices:
        for region, content in enumerate(memory):
            device.write_memory(isa.make_address(region, 0), content)
        for t in range(64):
            device.write_exponent(t, exponents[t], *trackers[t])
        device.write_csr("SEED", seed)
        device.write_csr("STEP", step)
        device.write_csr("RATE", rate)
        device.write_program(assemble(steps, config))

    reset = {r.name: r.reset for r in isa.REGISTERS}
    naive = Naive(config, memory, reset, exponents, trackers, [0] * 64, seed, step, rate)
    cause = ErrorCause.NONE
    before = [bytes(m) for m in memory]
    for name, fields, registers in steps:
        naive.registers.update(registers)
        f = dict.fromkeys((x.name for x in isa.BY_NAME[name].fields), 0) | fields
        before = [bytes(m) for m in naive.memory]
        try:
            naive.mm(f) if name == "MM" else naive.loss_instruction(f)
        except NaiveError as error:
            cause = error.cause
            naive.memory = [bytearray(m) for m in before]
            break

    for device in devices:
        if cause == ErrorCause.NONE:
            assert device.run().state == MachineState.HALTED
        else:
            with pytest.raises(MachineError) as error:
                device.run()
            assert error.value.cause == cause.name
        for region, content in enumerate(naive.memory):
            got = device.read_memory(isa.make_address(region, 0), len(content))
            assert got == bytes(content), f"region {region} differs"
        for t in range(64):
            expected = (naive.exponent[t], *naive.tracker[t])
            assert device.read_exponent(t) == expected
            assert device.saturations(t) == naive.saturations[t]
        assert device.read_csr("LOSS") == naive.loss
        assert device.machine.largest == naive.largest
    return cause


# --- random programs -----------------------------------------------------------------------------


@cache
def legal_fields() -> dict[tuple[int, int, int], list[dict[str, int]]]:
    """Everything that an MM may be, by result, stationary operand and transposition."""
    fields = [f for f in isa.BY_NAME["MM"].fields if f.name != "pass"]
    rules = [rule for rule in isa.RULES if rule.instruction == "MM" and not rule.option]
    found: dict[tuple[int, int, int], list[dict[str, int]]] = {}
    for values in product(*(range(f.maximum + 1) for f in fields)):
        given = {f.name: value for f, value in zip(fields, values, strict=True)}
        if not any(rule.matches(given) for rule in rules):
            key = given["out"], given["b"], given["transposed"]
            found.setdefault(key, []).append(given)
    return found


def test_every_mode_is_legal_somewhere():
    assert {out for out, _, _ in legal_fields()} == set(Out)
    assert {b for _, b, _ in legal_fields()} == set(BMode)


def random_fields(rng: random.Random) -> dict[str, int]:
    kind = rng.choice(list(legal_fields()))
    return {"pass": rng.randrange(4), **rng.choice(legal_fields()[kind])}


def nest(rng: random.Random, counts: list[int], unit: int = 1) -> tuple[int, list[int]]:
    """Strides that give every combination of loops its own bytes, the innermost loop with stride 1;
    and the offset that keeps all of them at 0 and above."""
    strides = [1] * len(counts)
    extent = counts[-1]
    order = list(range(len(counts) - 1))
    rng.shuffle(order)
    base = 0
    for loop in order:
        stride = -(-(extent + rng.choice((0, 0, 1, 2))) // unit) * unit
        extent = stride * (counts[loop] - 1) + extent
        if rng.random() < 0.2:
            base += stride * (counts[loop] - 1)
            stride = -stride
        strides[loop] = stride
    return base, strides[:-1]


def random_mm(rng: random.Random, config: Config, *, even: bool = False) -> Step:
    fields = random_fields(rng)
    r: dict[str, int] = {}
    nx, ny = rng.randint(1, 4), rng.randint(1, 3)
    images = rng.randint(1, 2)
    pixels = nx * ny * images if rng.random() < 0.7 else rng.randint(1, nx * ny * images)
    taps = [rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 4)]
    if fields["transposed"]:
        taps[2] = min(taps[2], 3)
    if BMode(fields["b"]).by_channel and rng.random() < 0.3:
        taps[:2] = rng.randint(1, 4), rng.randint(4, 6)
    cols = rng.randint(1, 6)
    r |= {"N_P": pixels, "N_Y": ny, "N_X": nx, "N_C": cols, "N_G": rng.randint(1, 16)}
    r |= dict(zip(("N_TY", "N_TX", "N_J"), taps, strict=True))

    def stride(most: int) -> int:
        return rng.choice((0, 1, rng.randint(-most, most), rng.randint(0, most)))

    r |= {
        "A_BASE": isa.make_address(0, rng.randint(100, 500)),
        "A_SN": stride(120),
        "A_SY": stride(24),
        "A_SX": stride(8),
        "A_TY": stride(24),
        "A_TX": stride(8),
        "A_Y0": rng.choice((0, rng.randint(-24, 24))),
        "A_X0": rng.choice((0, rng.randint(-6, 6))),
        "A_HB": rng.choice((1, rng.randint(0, 90), 300)),
        "A_WB": rng.choice((rng.randint(0, 20), 40, 300)),
        "PAD": rng.randint(-127, 127),
        "B_BASE": isa.make_address(0, rng.randint(300, 600)),
        "B_R": stride(16),
        "B_TY": stride(40),
        "B_TX": stride(20),
    }
    rows = taps if fields["transposed"] else [images, ny, nx]
    base, (s2, s1, s0) = nest(rng, [*rows, cols], 2 if even else 1)
    r |= {"O_OFF": base, "O_S2": s2, "O_S1": s1, "O_S0": s0}
    if rng.random() < 0.3:
        # The whole result is moved by its offset instead of by its base, or counted from below.
        r["O_OFF"] += rng.randrange(60)
    result = rng.randrange(64) + (base if rng.random() < 0.1 else 0)
    if result >= base and base and rng.random() < 0.3:
        r["O_OFF"], result = 0, result + base
    r |= {
        "O_BASE": isa.make_address(1, result),
        "O_LO": isa.make_address(2, rng.randrange(40)),
        "V_HI": isa.make_address(1, 512 + rng.randrange(40)),
        "V_LO": isa.make_address(2, 400 + rng.randrange(40)),
        "BIAS": isa.make_address(3, 4 * rng.randrange(8)),
        "V_BIAS": isa.make_address(3, 64 + rng.randrange(8)),
        "M_BASE": isa.make_address(0, rng.randrange(200)),
        "S_BASE": isa.make_address(0, rng.randrange(300)),
        "EXP": isa.pack_tensors(*(rng.randrange(64) for _ in range(4))),
        "SHIFT": rng.randint(-16, 15),
        "GATE": rng.randrange(16),
    }
    if fields["b"] == BMode.GATE and rng.random() < 0.9:
        r["B_BASE"] = isa.make_address(3, rng.randint(50, 300))
    if fields["out"] == Out.LOSS and rng.random() < 0.9:
        r |= {"N_P": 1, "N_C": 1}
    if rng.random() < 0.2:
        # Near the end of a region, so that some bytes may be outside.
        name = rng.choice([n for n in r if isa.REGISTER_BY_NAME[n].kind == isa.Kind.ADDRESS])
        region = r[name] >> 22
        r[name] = isa.make_address(region, config.regions[region] - rng.randint(1, 120))
    if fields["mask"] and rng.random() < 0.3:
        r["M_BASE"] = r["O_BASE"]
    if fields["skip"] and rng.random() < 0.3:
        r["S_BASE"] = r["O_BASE"]
    if even:
        registers = isa.REGISTER_BY_NAME
        r = {
            name: value & ~1
            if registers[name].kind in (isa.Kind.ADDRESS, isa.Kind.STRIDE) or name == "O_OFF"
            else value
            for name, value in r.items()
        }
        if rng.random() < 0.5:
            name = rng.choice([n for n in r if registers[n].kind != isa.Kind.COUNT])
            if not registers[name].check(r[name] + 1, config):
                r[name] += 1
    return "MM", fields, r


@pytest.mark.parametrize("seed", range(12))
def test_products_equal_the_naive_machine(seed: int):
    rng = random.Random(seed)
    config = small_config(acc_depth=rng.choice((16, 32)))
    ends = [
        check_program(rng, config, [random_mm(rng, config) for _ in range(rng.randint(1, 3))])
        for _ in range(30)
    ]
    assert set(ends) <= {
        ErrorCause.NONE,
        ErrorCause.ADDRESS_RANGE,
        ErrorCause.ACCUMULATOR_DEPTH,
        ErrorCause.REGION_CONFLICT,
        ErrorCause.OPERAND_RANGE,
    }
    assert ends.count(ErrorCause.NONE) >= 10


@pytest.mark.parametrize("seed", range(3))
def test_products_equal_the_naive_machine_with_two_byte_lanes(seed: int):
    rng = random.Random(seed)
    config = small_config(lane_bytes=2)
    ends = [check_program(rng, config, [random_mm(rng, config, even=True)]) for _ in range(40)]
    assert ends.count(ErrorCause.NONE) >= 5
    assert ends.count(ErrorCause.MISALIGNED) >= 3


def random_loss(rng: random.Random) -> Step:
    samples, classes = rng.randint(1, 6), rng.randint(1, 12)
    grad = rng.randrange(2)
    registers = {
        "N_X": samples,
        "N_C": classes,
        "A_BASE": isa.make_address(0, rng.randrange(980)),
        "B_BASE": isa.make_address(1, rng.randrange(200)),
        "M_BASE": isa.make_address(3, 256 + rng.randrange(100)),
        "O_BASE": isa.make_address(2, rng.randrange(300)),
        "P_BASE": isa.make_address(2, 400 + rng.randrange(300)),
        "EXP": isa.pack_tensors(0, 0, rng.randrange(64)),
    }
    return "LOSS", {"grad": grad, "predict": 1 if not grad else rng.randrange(2)}, registers


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_naive_machine(seed: int):
    rng = random.Random(seed)
    ends = [check_program(rng, small_config(), [random_loss(rng)]) for _ in range(25)]
    assert ends.count(ErrorCause.NONE) >= 8


def test_a_loss_with_equal_logits_predicts_the_first():
    device = GoldenDevice(small_config())
    address = isa.make_address
    registers = {
        "N_X": 2,
        "N_C": 3,
        "A_BASE": address(0, 0),
        "B_BASE": address(1, 0),
        "M_BASE": address(3, 0),
        "O_BASE": address(2, 0),
        "P_BASE": address(2, 64),
    }
    device.write_memory(address(0, 0), bytes([1, 2, 2, 255, 255, 254]))
    device.write_memory(address(3, 0), bytes([2, 0]))
    steps: list[Step] = [("LOSS", {"grad": 1, "predict": 1}, registers)]
    device.write_program(assemble(steps, device.config))
    device.run()
    assert device.read_memory(address(2, 64), 2) == bytes([1, 0])
    # e, 1, 1 to the power of the logits: the loss is log2 of a sum in units of 2**-8 bits.
    odds = np.exp([[1.0, 2, 2], [2, 2, 1]])
    real = -np.log2(odds[[0, 1], [2, 0]] / odds.sum(axis=1)).sum() * 256
    assert abs(device.read_csr("LOSS") - real) < 12
    high = np.frombuffer(device.read_memory(address(0, 0), 6), np.uint8).astype(int)
    low = np.frombuffer(device.read_memory(address(1, 0), 6), np.uint8)
    p = (256 * high + low).reshape(2, 3) / 32768
    assert np.abs(p - odds / odds.sum(axis=1, keepdims=True)).max() < 0.01


def test_the_only_class_has_the_probability_one():
    device = GoldenDevice(small_config())
    steps: list[Step] = [
        (
            "LOSS",
            {"grad": 1},
            {"N_X": 1, "B_BASE": 1 << 22, "M_BASE": 3 << 22, "O_BASE": 2 << 22},
        )
    ]
    device.write_program(assemble(steps, device.config))
    device.run()
    # 32768 has a high byte that reads as -128.
    assert device.read_memory(0, 1) == b"\x80"
    assert device.read_memory(1 << 22, 1) == b"\0"
    assert device.read_exponent(0).exponent == -15
    assert device.read_csr("LOSS") == 0


# --- the programs that the hardware is tested with ------------------------------------------------

LAYERS = (
    Config(rows=4, cols=4, regions=(2048, 2048, 1024), acc_depth=64, program_words=512),
    Config(rows=4, cols=2, regions=(2048, 2048), acc_depth=32, program_words=512, lane_bytes=2),
)


def run_naive(case: programs.Case, device: GoldenDevice) -> Naive:
    """What the naive machine makes of a case without loops, which the device has loaded."""
    config = device.config
    memory = [
        bytearray(device.read_memory(config.region_base(r), size))
        for r, size in enumerate(config.regions)
    ]
    entries = [device.read_exponent(t) for t in range(64)]
    naive = Naive(
        config,
        memory,
        {},
        [entry.exponent for entry in entries],
        [(entry.tracker, entry.low) for entry in entries],
        [device.saturations(t) for t in range(64)],
        case.seed,
        case.step,
        case.rate,
        loss=device.read_csr("LOSS"),
    )
    for word in case.words:
        meaning = isa.decode(word, config)
        assert isinstance(meaning, isa.Decoded)
        if meaning.register is not None:
            naive.registers[meaning.register.name] = meaning.value
        elif meaning.name == "MM":
            naive.mm(meaning.fields)
    return naive


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("config", LAYERS, ids=["4x4", "4x2-two-byte-lanes"])
def test_random_layers_equal_the_naive_machine(config: Config, seed: int):
    done = 0
    for turn in range(40):
        try:
            rng = np.random.default_rng([seed, turn])
            case = programs.random_product(config, rng, largest=8, modes=programs.EVERYTHING)
        except programs.NoRoom:
            continue
        devices = [GoldenDevice(config, fast=fast) for fast in (True, False)]
        for device in devices:
            case.load(device)
        naive = run_naive(case, devices[0])
        for device in devices:
            assert device.run().state == MachineState.HALTED, case.text
            for r, content in enumerate(naive.memory):
                got = device.read_memory(config.region_base(r), len(content))
                assert got == bytes(content), f"region {r} differs\n{case.text}"
            for t in range(64):
                assert device.read_exponent(t) == (naive.exponent[t], *naive.tracker[t]), case.text
                assert device.saturations(t) == naive.saturations[t], case.text
            assert device.read_csr("LOSS") == naive.loss
            assert device.machine.largest == naive.largest
        done += 1
    assert done > 25


# --- larger products: the fast forms against the general ones ------------------------------------


def convolution(rng: random.Random, config: Config, transposed: bool) -> Step:
    """A 3x3 convolution with SAME padding, forward or its weight gradient with momentum."""
    images, height, width, channels, outputs = 2, 7, 6, rng.choice((1, 4)), rng.choice((4, 10))
    step = rng.choice((1, 2))
    ny, nx = -(-height // step), -(-width // step)
    row = width * channels
    r = {
        "A_BASE": isa.make_address(0, 64),
        "A_SN": height * row,
        "A_SY": step * row,
        "A_SX": step * channels,
        "A_TY": row,
        "A_TX": channels,
        "A_Y0": -row,
        "A_X0": -channels,
        "A_HB": height * row,
        "A_WB": row,
        "N_P": images * ny * nx,
        "N_Y": ny,
        "N_X": nx,
        "N_TY": 3,
        "N_TX": 3,
        "N_J": channels,
        "N_C": outputs,
        "N_G": 32,
        "B_BASE": isa.make_address(1, 0),
        "B_R": outputs,
        "B_TY": 3 * channels * outputs,
        "B_TX": channels * outputs,
        "BIAS": isa.make_address(3, 0),
        "V_BIAS": isa.make_address(3, 128),
        "EXP": isa.pack_tensors(1, 2, 3),
        "PAD": rng.choice((0, -5)),
    }
    if transposed:
        r |= {
            "O_BASE": isa.make_address(2, 0),
            "O_LO": isa.make_address(2, 400),
            "V_HI": isa.make_address(3, 256),
            "V_LO": isa.make_address(3, 656),
            "O_S2": 3 * channels * outputs,
            "O_S1": channels * outputs,
            "O_S0": outputs,
        }
        return "MM", {"transposed": 1, "out": Out.MOMENTUM, "round": 2, "bias": 1}, r
    r |= {
        "O_BASE": isa.make_address(2, 0),
        "O_S2": ny * nx * outputs,
        "O_S1": nx * outputs,
        "O_S0": outputs,
    }
    rounding = rng.randrange(3)
    return "MM", {"round": rounding, "relu": rng.randrange(2), "bias": 1, "track": 1}, r


@pytest.mark.parametrize("seed", range(12))
def test_convolutions_equal_the_naive_machine(seed: int):
    rng = random.Random(seed)
    config = small_config(
        regions=(2048, 2048, 2048, 2048), acc_depth=64, momentum=True, program_words=128
    )
    steps = [convolution(rng, config, transposed=seed % 3 == 0)]
    assert check_program(rng, config, steps) == ErrorCause.NONE


def random_streamed(rng: random.Random) -> Streamed:
    def stride(most: int) -> int:
        return rng.choice((0, 1, rng.randint(-most, most), rng.randint(0, most)))

    nx, ny = rng.randint(1, 6), rng.randint(1, 5)
    (n, y, x), keep = pixel_loops(rng.choice((rng.randint(1, 40), 2 * nx * ny)), ny, nx)
    step = rng.choice((1, 3, 24))
    return Streamed(
        base=rng.randint(0, 1023),
        counts=(n, y, x, rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 5)),
        sn=stride(200),
        sy=step * stride(4),
        sx=stride(8),
        ty=step * stride(4),
        tx=stride(8),
        y0=step * rng.randint(-2, 2),
        x0=rng.randint(-6, 6),
        hb=rng.choice((1, rng.randint(0, 150), 400)),
        wb=rng.choice((rng.randint(0, 24), 400)),
        pad=rng.randint(-127, 127),
        keep=keep,
    )


def test_streamed_operands_are_read_alike_by_all_forms():
    rng = random.Random(1)
    memory = np.frombuffer(rng.randbytes(1024), np.int8).copy()
    kinds: dict[str, int] = {}
    for turn in range(1500):
        a = random_streamed(rng)
        if turn % 50 == 0:
            # Offsets that wrap around the modulus.
            a = a._replace(sy=a.sy + 2048, tx=a.tx - 2000)
        forms: list[object] = []
        for fast in (True, False):
            try:
                forms.append(locate_streamed(memory, a, 2048, fast=fast))
            except Fault as fault:
                forms.append(fault.cause)
        fast_form, general = forms
        kinds[type(fast_form).__name__] = kinds.get(type(fast_form).__name__, 0) + 1
        if isinstance(general, ErrorCause):
            assert fast_form == general
            continue
        assert isinstance(general, Indexed)
        assert isinstance(fast_form, (Strided, Canvas, Indexed))
        for _ in range(2):
            expected = general.read().reshape(-1)
            assert np.array_equal(fast_form.read().reshape(-1), expected)
            memory[:] = memory[::-1].copy()
    assert all(kinds[kind] > 50 for kind in ("Strided", "Canvas", "Indexed", "ErrorCause")), kinds


def test_other_operands_are_read_and_written_alike_by_all_forms():
    rng = random.Random(2)
    faults = 0
    for _ in range(300):
        counts = tuple(rng.randint(1, 4) for _ in range(4))
        base, strides = nest(rng, list(counts))
        lattice = Lattice(base + rng.randint(-40, 160), counts, (*strides, 1))
        content = np.frombuffer(rng.randbytes(512), np.int8)
        values = np.frombuffer(rng.randbytes(4 * int(np.prod(counts))), np.int32)
        found: list[object] = []
        for fast in (True, False):
            memory = content.copy()
            try:
                place = locate(memory, lattice, 1024, fast=fast)
            except Fault as fault:
                found.append(fault.cause.name)
                faults += 1
            else:
                assert isinstance(place, Strided if fast and lattice.low >= 0 else Indexed)
                before = place.read().tobytes()
                place.write(values)
                found.append((before, memory.tobytes()))
        assert found[0] == found[1]
    assert faults


def test_random_numbers_are_alike_in_all_forms():
    rng = random.Random(3)
    for _ in range(200):
        counts = tuple(rng.randint(1, 7) for _ in range(4))
        base, strides = nest(rng, list(counts))
        if rng.random() < 0.5:
            strides = [counts[1] * counts[2] * counts[3], counts[2] * counts[3], counts[3]]
            base = 0
        keep = rng.choice((None, None, rng.randint(1, counts[0] * counts[1] * counts[2])))
        lattice = Lattice(base + rng.randrange(2000), counts, (*strides, 1), keep)
        shape = (keep or counts[0] * counts[1] * counts[2], counts[3])
        modulus = rng.choice((2048, 1 << 22))
        key, use = rng.getrandbits(32), rng.choice(list(Use))
        expected = numerics.random16(key, use, lattice.offsets() % modulus).reshape(shape)
        for fast in (True, False):
            randoms = Randoms(lattice, modulus, shape, fast=fast)
            assert np.array_equal(randoms.numbers(key, use), expected)
            for s in (1, 5, 15, 16, 17, 31):
                v = np.asarray(rng.choices(range(-(2**31), 2**31), k=expected.size)).reshape(shape)
                low_bits = (v + randoms.addend(key, use, s)) >> s
                assert np.array_equal(low_bits, numerics.sr(v, s, expected))


def test_shifts_are_alike_in_all_forms():
    rng = np.random.default_rng(4)
    randoms = Randoms(Lattice(5, (400,), (1,)), 1 << 12, (400,), fast=True)
    for turn in range(400):
        limit_bits = turn % 32
        most = (1 << limit_bits) - 1
        v = rng.integers(-most, most + 1, 400)
        if turn % 3 == 0:
            v = np.abs(v)
        for s in (-20, -16, -5, 0, 1, 2, 3, 9, 17, 30, 31, 40):
            for rounding, formula in (
                (Rounding.NEAREST, numerics.rn),
                (Rounding.TFLITE, numerics.rt),
            ):
                got = round_shift(v.astype(np.int32), most, s, rounding)
                assert np.array_equal(got, formula(v, s))
            expected = numerics.sr(v, s, randoms.numbers(turn, Use.DX))
            for form, known in ((v.astype(np.int32), most), (v.copy(), UNLIMITED)):
                got = stochastic_shift(form, known, s, randoms, turn, Use.DX, 1 << 17)
                beyond = np.abs(expected) > 1 << 17
                assert np.array_equal(got[~beyond], expected[~beyond])
                assert np.array_equal(np.sign(got[beyond]), np.sign(expected[beyond]))
                assert (np.abs(got[beyond]) >= 1 << 17).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrix_products_are_exact_in_tiles(dtype: type[np.float32] | type[np.float64]):
    rng = np.random.default_rng(5)
    shapes = [(1, 1, 1), (1, 900, 300), (900, 300, 1), (3, 4, 5), (70, 300, 130), (2000, 70, 9)]
    for rows, terms, cols in [*shapes, (33, 1000, 257), (300, 3, 300), (130, 1000, 2)]:
        a = rng.integers(-128, 128, (rows, terms))
        b = rng.integers(-128, 128, (terms, cols))
        x, y = a.astype(dtype), b.astype(dtype)
        transposed = np.ascontiguousarray(x.T).T, np.ascontiguousarray(y.T).T
        for left, right in ((x, y), transposed):
            assert np.array_equal(matrix_product(left, right), a @ b)


def test_saturated_counts_what_it_changes():
    v = np.array([-200, -128, -127, 0, 127, 128])
    clamped, count = saturated(v, -127, 127)
    assert clamped.tolist() == [-127, -127, -127, 0, 127, 127]
    assert count == 3
    assert saturated(v, -200, 128)[1] == 0


def test_an_accumulator_has_32_bits():
    assert wrapped32(np.array([2**31, -(2**31) - 1, 5])).tolist() == [-(2**31), 2**31 - 1, 5]


# --- by channel -----------------------------------------------------------------------------------


def test_products_by_channel_are_alike_in_all_forms():
    rng = np.random.default_rng(6)
    for turn in range(120):
        n, y, x, ky, kx, cols = (int(v) for v in rng.integers(1, [3, 6, 6, 5, 6, 9]))
        if turn % 4 == 0:
            # Taps that overlap, as a convolution sees them.
            image = rng.integers(-128, 128, (n, y + ky, x + kx, cols), dtype=np.int8)
            s = image.strides
            shape, strides = (n, y, x, ky, kx, cols), (s[0], s[1], s[2], s[1], s[2], s[3])
            a = np.lib.stride_tricks.as_strided(image, shape, strides)
        else:
            spread = int(rng.choice([1, 127]))
            a = rng.integers(-spread - 1, spread + 1, (n, y, x, ky, kx, cols), dtype=np.int8)
            if turn % 4 == 1:
                a = a.reshape(n * y * x, ky, kx, cols)
        pixels, taps = n * y * x, ky * kx
        flat = a.astype(np.int64).reshape(pixels, taps, cols)
        w = rng.integers(-128, 128, (taps, cols), dtype=np.int8)
        dy = rng.integers(-128, 128, (pixels, cols), dtype=np.int8)
        gates = rng.integers(-128, 128, a.shape, dtype=np.int8)
        gate = int(rng.integers(16))
        opened = gates.astype(np.int64).reshape(flat.shape) % 16 == gate
        first = flat.argmax(axis=1) if taps <= 16 else None
        for fast in (True, False):
            products = np.einsum("ptc,tc->pc", flat, w.astype(np.int64))
            assert np.array_equal(channel_sums(a, w, fast=fast), products)
            assert np.array_equal(channel_sums(a, None, fast=fast), flat.sum(axis=1))
            assert np.array_equal(
                gated_sums(a, gates, gate, fast=fast), (flat * opened).sum(axis=1)
            )
            gradient = np.einsum("ptc,pc->tc", flat, dy.astype(np.int64))
            assert np.array_equal(channel_gradient(a, dy, fast=fast), gradient)
            value, argument = pooled(a, fast=fast)
            assert np.array_equal(value, flat.max(axis=1))
            tap = 255 - argument
            if first is not None:
                assert np.array_equal(tap, first)
        again = pooled(a, fast=True)
        assert all(np.array_equal(x, y) for x, y in zip(again, pooled(a, fast=False), strict=True))


def run_steps(device: GoldenDevice, steps: list[Step]) -> None:
    """Run instructions whose registers are all set, as they would be after power-on."""
    reset = {register.name: register.reset for register in isa.REGISTERS}
    device.write_program(
        assemble(
            [(name, fields, reset | registers) for name, fields, registers in steps], device.config
        )
    )
    assert device.run().state == MachineState.HALTED


def region(device: GoldenDevice, number: int, shape: tuple[int, ...]) -> np.ndarray:
    content = device.read_memory(isa.make_address(number, 0), int(np.prod(shape)))
    return np.frombuffer(content, np.int8).reshape(shape)


def layer_machine(*images: np.ndarray) -> GoldenDevice:
    """A machine with an image at the start of each region."""
    device = GoldenDevice(small_config(regions=(1024,) * 4, program_words=1024))
    for number, image in enumerate(images):
        device.write_memory(isa.make_address(number, 0), image.astype(np.int8))
    return device


def windows(images: int, out: int, k: int, channels: int) -> dict[str, int]:
    """Registers of k x k windows without overlap over out*k square images, by channel."""
    size = out * k
    return {
        "A_SN": size * size * channels,
        "A_SY": k * size * channels,
        "A_SX": k * channels,
        "A_TY": size * channels,
        "A_TX": channels,
        "A_HB": size * size * channels,
        "A_WB": size * channels,
        "N_P": images * out * out,
        "N_Y": out,
        "N_X": out,
        "N_TY": k,
        "N_TX": k,
        "N_C": channels,
        "O_S2": out * out * channels,
        "O_S1": out * channels,
        "O_S0": channels,
    }


@pytest.mark.parametrize("k", [2, 3])
def test_max_pooling_and_its_way_back(k: int):
    rng = np.random.default_rng(k)
    n, out, c = 2, 2, 3
    x = rng.integers(-2, 3, (n, out * k, out * k, c))  # with many equal values
    dy = rng.integers(-127, 128, (n, out, out, c))
    device = layer_machine(x, np.zeros(1), np.zeros(1), dy)
    device.write_exponent(1, -5)
    device.write_exponent(2, 0, 9, 4)
    device.write_exponent(5, -3)
    shared = windows(n, out, k, c)
    plane = isa.make_address(2, 0)
    forward = {"EXP": isa.pack_tensors(1, 0, 2), "O_BASE": 1 << 22, "O_LO": plane}
    pool = {"b": BMode.IDENTITY, "out": Out.POOLED, "scale": Scale.OPERAND}
    run_steps(device, [("MM", pool, {**shared, **forward})])
    tiles = x.reshape(n, out, k, out, k, c).transpose(0, 1, 3, 5, 2, 4).reshape(n, out, out, c, -1)
    first = tiles.argmax(axis=-1)
    assert np.array_equal(region(device, 1, dy.shape), tiles.max(axis=-1))
    assert np.array_equal(region(device, 2, dy.shape).view(np.uint8), 255 - first)
    assert device.read_exponent(2) == (-5, 9, 4)
    # The gradient goes where the largest was: an MM for each tap, with all others closed.
    size = out * k
    back = [
        (
            "MM",
            {"b": BMode.GATE, "scale": Scale.PRODUCT},
            {
                **windows(n, out, 1, c),
                "A_BASE": isa.make_address(3, 0),
                "B_BASE": plane,
                "GATE": 15 - t,
                "EXP": isa.pack_tensors(5, 0, 6),
                "O_OFF": (t // k * size + t % k) * c,
                "O_S2": size * size * c,
                "O_S1": k * size * c,
                "O_S0": k * c,
            },
        )
        for t in range(k * k)
    ]
    run_steps(device, back)
    dx = np.where(np.arange(k * k) == first[..., None], dy[..., None], 0)
    dx = dx.reshape(n, out, out, c, k, k).transpose(0, 1, 4, 2, 5, 3).reshape(x.shape)
    assert np.array_equal(region(device, 0, x.shape), dx)
    assert device.read_exponent(6).exponent == -3
    assert device.machine.largest == 0


def test_average_pooling_and_its_way_back():
    rng = np.random.default_rng(7)
    n, out, k, c = 2, 2, 3, 5
    x = rng.integers(-127, 128, (n, out * k, out * k, c))
    device = layer_machine(x)
    for tensor, exponent in ((1, -5), (2, -4), (5, -7)):
        device.write_exponent(tensor, exponent)
    registers = {**windows(n, out, k, c), "EXP": isa.pack_tensors(1, 2, 3), "O_BASE": 1 << 22}
    average = {"b": BMode.IDENTITY, "round": Rounding.TFLITE, "scale": Scale.OPERAND}
    run_steps(device, [("MM", average, registers)])
    total = x.reshape(n, out, k, out, k, c).sum(axis=(2, 4))
    y = region(device, 1, total.shape).astype(int)
    # Nine values: divided by 16, in the exponent of the input.
    assert np.array_equal(y, numerics.rt(total, 4))
    assert device.read_exponent(3).exponent == -5
    assert device.machine.largest == 0
    # Back, each value of a window gets the gradient as it is, a sixteenth of its weight: windows
    # of one pixel, whose strides within the window are 0, are computed tap by tap.
    size = out * k
    back = [
        (
            "MM",
            {"b": BMode.IDENTITY, "scale": Scale.PRODUCT, "round": Rounding.STOCHASTIC},
            {
                **windows(n, out, 1, c),
                "A_BASE": 1 << 22,
                "EXP": isa.pack_tensors(5, 2, 6),
                "O_BASE": 2 << 22,
                "O_OFF": (t // k * size + t % k) * c,
                "O_S2": size * size * c,
                "O_S1": k * size * c,
                "O_S0": k * c,
            },
        )
        for t in range(k * k)
    ]
    run_steps(device, back)
    assert np.array_equal(region(device, 2, x.shape), y.repeat(k, axis=1).repeat(k, axis=2))
    assert device.read_exponent(6).exponent == -11


def test_a_product_without_valid_bytes_fills_with_padding():
    device = layer_machine()
    device.write_memory(1 << 22, bytes(range(1, 101)))
    registers = {"N_P": 7, "N_X": 7, "N_C": 5, "O_BASE": 1 << 22, "O_S0": 10}
    run_steps(device, [("MM", {"b": BMode.IDENTITY, "scale": Scale.PRODUCT}, registers)])
    expected = np.arange(1, 101).reshape(10, 10)
    expected[:7, :5] = 0
    assert np.array_equal(region(device, 1, (10, 10)), expected)


def test_squared_error():
    rng = np.random.default_rng(8)
    samples, inputs, outputs = 4, 6, 5
    x = rng.integers(-127, 128, (samples, inputs))
    w = rng.integers(-127, 128, (inputs, outputs))
    target = rng.integers(-127, 128, (samples, outputs))
    device = layer_machine(x, w, target)
    for tensor, exponent in ((1, -6), (2, -7), (4, -5)):
        device.write_exponent(tensor, exponent)
    device.write_exponent(3, 0, 50, 6)
    registers = {
        "A_SX": inputs,
        "A_HB": 1,
        "A_WB": 100,
        "N_P": samples,
        "N_X": samples,
        "N_J": inputs,
        "N_C": outputs,
        "B_BASE": 1 << 22,
        "B_R": outputs,
        "S_BASE": 2 << 22,
        "O_BASE": 3 << 22,
        "O_S0": outputs,
        "EXP": isa.pack_tensors(1, 2, 3, 4),
    }
    loss = {
        "A_BASE": 3 << 22,
        "B_BASE": 3 << 22,
        "B_R": 1,
        "A_HB": 1,
        "A_WB": 100,
        "N_J": samples * outputs,
    }
    run_steps(
        device,
        [
            ("MM", {"out": Out.MEASURE, "track": Track.FIT, "skip": Skip.SUBTRACT}, registers),
            ("MM", {"round": Rounding.STOCHASTIC, "skip": Skip.SUBTRACT}, registers),
            ("MM", {"out": Out.LOSS}, loss),
        ],
    )
    g = x @ w - (target << 8)
    shift = numerics.gradient_shift(int(np.abs(g).max()))
    assert shift > 0
    key = numerics.random_key(0, 0, 3)
    r = numerics.random16(key, Use.DX, np.arange(g.size)).reshape(g.shape)
    dy = numerics.sat8(numerics.sr(g, shift, r))
    assert np.array_equal(region(device, 3, g.shape), dy)
    assert device.read_exponent(3) == (shift - 13, shift - 13, 0)
    assert device.read_csr("LOSS") == (dy**2).sum()


def test_a_measurement_of_zeros_changes_nothing():
    device = layer_machine()
    device.write_exponent(3, -2, 5, 6)
    registers = {"EXP": isa.pack_tensors(0, 0, 3)}
    run_steps(device, [("MM", {"out": Out.MEASURE, "track": Track.FIT}, registers)])
    assert device.read_exponent(3) == (-2, 5, 6)


@pytest.mark.parametrize(("scale", "largest"), [(0, 100), (1, 0), (2, 0)])
def test_what_follows_no_tracker_is_not_measured(scale: int, largest: int):
    device = layer_machine()
    device.write_memory(0, bytes([100]))
    registers = {"A_HB": 1, "A_WB": 1, "O_BASE": 1 << 22}
    run_steps(device, [("MM", {"b": BMode.IDENTITY, "scale": scale}, registers)])
    assert device.machine.largest == largest


def test_the_first_of_several_errors_is_reported():
    config = small_config(lane_bytes=2)
    too_long = {"N_J": 17, "N_C": 2, "O_BASE": isa.make_address(1, 1022)}
    far = {"A_BASE": 1022, "A_HB": 9, "A_WB": 9, "N_J": 3, "N_TX": 3}
    gate = {"b": BMode.GATE}
    update = {"transposed": 1, "out": Out.MASTER, "round": 2}
    for fields, registers, cause in (
        (gate, {**far, "N_C": 4, "S_BASE": 1}, ErrorCause.REGION_CONFLICT),
        (gate, {**far, "N_C": 4, "A_SX": 1}, ErrorCause.MISALIGNED),
        (gate, {**far, "N_C": 4, "B_BASE": 1 << 22}, ErrorCause.ADDRESS_RANGE),
        ({"skip": 1}, {"S_BASE": 1, **too_long}, ErrorCause.MISALIGNED),
        ({"out": Out.LOSS}, {**far, "N_C": 2, "A_TX": 1}, ErrorCause.MISALIGNED),
        ({"out": Out.LOSS}, {**far, "N_C": 2}, ErrorCause.OPERAND_RANGE),
        ({"out": Out.LOSS}, {**far, "N_P": 2}, ErrorCause.OPERAND_RANGE),
        ({"out": Out.LOSS}, far, ErrorCause.ADDRESS_RANGE),
        (update, {**too_long, "B_R": 1}, ErrorCause.MISALIGNED),
        (update, too_long, ErrorCause.ACCUMULATOR_DEPTH),
        (update, {**too_long, "N_J": 16, "N_C": 3}, ErrorCause.ADDRESS_RANGE),
        ({**update, "b": BMode.DIAGONAL}, {**too_long, "N_TY": 17}, ErrorCause.ACCUMULATOR_DEPTH),
        (
            {**update, "b": BMode.DIAGONAL},
            {**too_long, "O_BASE": 1 << 22, "O_LO": 2 << 22, "A_SX": 2},
            ErrorCause.NONE,
        ),
    ):
        device = GoldenDevice(config)
        reset = {register.name: register.reset for register in isa.REGISTERS}
        device.write_program(assemble([("MM", fields, reset | registers)], config))
        if cause == ErrorCause.NONE:
            assert device.run().state == MachineState.HALTED
        else:
            with pytest.raises(MachineError, match=cause.name):
                device.run()


@pytest.mark.parametrize(
    ("fields", "registers"),
    [
        ({"out": Out.MEASURE, "track": Track.FIT}, {"O_BASE": 1023, "N_C": 9}),
        ({"out": Out.LOSS}, {"O_BASE": 1023, "O_OFF": 500}),
        ({"b": BMode.IDENTITY}, {"B_BASE": 1023, "N_C": 9, "B_TX": 99, "N_TX": 3}),
        ({}, {"S_BASE": 1023, "M_BASE": 1023, "O_LO": 1023, "N_C": 9}),
        # Without a byte of A within the bounds, no gate is read.
        ({"b": BMode.GATE}, {"B_BASE": isa.make_address(1, 1023), "N_C": 9, "A_HB": 0}),
    ],
)
def test_bytes_that_no_formula_uses_may_be_anywhere(
    fields: dict[str, int], registers: dict[str, int]
):
    run_steps(layer_machine(), [("MM", fields, registers)])


@pytest.mark.parametrize(
    ("fields", "registers"),
    [
        ({"skip": Skip.ADD}, {"S_BASE": 1023, "N_C": 2}),
        ({"out": Out.MEASURE, "track": Track.FIT, "skip": 1}, {"S_BASE": 1023, "N_C": 2}),
        ({"out": Out.POOLED, "b": BMode.IDENTITY, "scale": 1}, {"O_LO": 1023, "N_C": 2}),
        ({"out": Out.POOLED, "b": BMode.IDENTITY, "scale": 1}, {"O_BASE": 1023, "N_C": 2}),
        ({"b": BMode.DIAGONAL}, {"B_BASE": 1022, "N_TX": 3, "B_TX": 1}),
        ({"b": BMode.IDENTITY}, {"A_BASE": 1022, "N_C": 3}),
        ({"b": BMode.GATE}, {"B_BASE": isa.make_address(1, 1022), "N_C": 3}),
    ],
)
def test_bytes_past_the_end(fields: dict[str, int], registers: dict[str, int]):
    device = layer_machine()
    reset = {register.name: register.reset for register in isa.REGISTERS}
    inside = {"A_HB": 9, "A_WB": 9}
    device.write_program(assemble([("MM", fields, reset | inside | registers)], device.config))
    with pytest.raises(MachineError, match="ADDRESS_RANGE"):
        device.run()
    columns = {"N_C": registers["N_C"] - 1} if "N_C" in registers else {"N_TX": 2}
    device.reset()
    run_steps(device, [("MM", fields, inside | registers | columns)])


# --- control -------------------------------------------------------------------------------------


def device_with(words: list[int], **changes: object) -> GoldenDevice:
    device = GoldenDevice(small_config(**changes))
    device.write_program(words)
    return device


def fails(words: list[int], cause: ErrorCause, pc: int, **changes: object) -> GoldenDevice:
    device = device_with(words, **changes)
    with pytest.raises(MachineError, match=cause.name) as error:
        device.run()
    assert (error.value.cause, error.value.pc) == (cause.name, pc)
    assert device.status() == Status(MachineState.ERROR, cause, pc)
    assert device.read_csr("INSTRUCTIONS") == pc
    return device


STEP = encode("STEP")
HALT = encode("HALT")


@pytest.mark.parametrize("word", [0, 0xFF000000, 0x7F000000, 0x06000000])
def test_unknown_opcodes_stop_the_machine(word: int):
    fails([STEP, word], ErrorCause.ILLEGAL_OPCODE, 1)


def test_memory_without_a_program_is_illegal():
    fails([STEP, STEP, STEP], ErrorCause.ILLEGAL_OPCODE, 3)


@pytest.mark.parametrize(
    "word",
    [
        encode("HALT") | 1,
        encode("MM") | 3 << 9,
        encode("MM") | 5 << 3,
        encode("MM") | 3 << 14,
        encode("MM") | 1 << 20,
        encode("MM") | 1 << 2 | 1 << 3,
        encode("LOSS", grad=1) & ~(1 << 2),
    ],
)
def test_illegal_fields_stop_the_machine(word: int):
    fails([STEP, word], ErrorCause.ILLEGAL_FIELDS, 1)


@pytest.mark.parametrize(
    "word",
    [
        encode("LOOP", count=1) & ~0xFFFF,
        0x40 + 0 << 24 | 1024,
        0x40 + 17 << 24 | 17,
        0x40 + 10 << 24,
        0x40 + 35 << 24 | 128,
    ],
)
def test_operands_out_of_range_stop_the_machine(word: int):
    fails([STEP, word], ErrorCause.OPERAND_RANGE, 1)


def test_momentum_needs_its_option():
    word = encode("MM", small_config(), transposed=1, out=Out.MOMENTUM, round=2)
    fails([STEP, word], ErrorCause.UNSUPPORTED, 1, momentum=False)


def test_an_address_out_of_range_stops_the_machine_before_anything_is_written():
    config = small_config()
    words = [
        encode_set("O_BASE", isa.make_address(1, 1023), config),
        encode_set("N_C", 2, config),
        encode_set("PAD", 3, config),
        encode("MM"),
    ]
    device = fails(words, ErrorCause.ADDRESS_RANGE, 3)
    assert not any(device.read_memory(isa.make_address(1, 0), 1024))


def test_too_many_rows_of_a_transposed_product_stop_the_machine():
    config = small_config()
    product = {"transposed": 1, "out": Out.MASTER, "round": 2}
    words = [encode_set("N_J", 16, config), encode_set("N_C", 1, config)]
    fails([*words, encode("MM", **product, bias=1)], ErrorCause.ACCUMULATOR_DEPTH, 2)
    words += [encode_set("O_LO", 1 << 22, config)]
    device = device_with([*words, encode("MM", **product), HALT])
    assert device.run().state == MachineState.HALTED


def test_a_wrong_label_stops_the_machine_before_anything_is_written():
    config = small_config()
    words = [
        encode_set("N_C", 2, config),
        encode_set("N_X", 2, config),
        encode_set("B_BASE", 64, config),
        encode_set("O_BASE", 128, config),
        encode_set("P_BASE", 256, config),
        encode_set("M_BASE", 320, config),
        encode("LOSS", grad=1, predict=1),
    ]
    device = device_with(words)
    device.write_memory(0, bytes(range(1, 200)))
    device.write_memory(320, bytes([1, 2]))
    before = device.read_memory(0, 1024)
    with pytest.raises(MachineError, match=r"'LABEL_RANGE' at program counter 6"):
        device.run()
    assert device.read_memory(0, 1024) == before


def test_too_large_a_loss_is_an_address_error():
    config = small_config()
    words = [encode_set("N_C", 1024, config), encode_set("N_X", 65535, config)]
    fails([*words, encode("LOSS", predict=1)], ErrorCause.ADDRESS_RANGE, 2)


def test_odd_offsets_stop_a_machine_with_two_byte_lanes():
    config = small_config()
    words = [encode_set("B_TX", 3, config), encode("MM")]
    fails(words, ErrorCause.MISALIGNED, 1, lane_bytes=2)
    update = encode("MM", transposed=1, out=Out.INT8_WEIGHTS, round=2)
    device = device_with([words[0], update, HALT], lane_bytes=2)
    assert device.run().state == MachineState.HALTED
    device = device_with([*words, HALT])
    assert device.run().state == MachineState.HALTED


def test_a_loss_may_start_at_odd_offsets():
    config = small_config()
    words = [
        encode_set("B_BASE", 65, config),
        encode_set("P_BASE", 129, config),
        encode("LOSS", predict=1),
        HALT,
    ]
    assert device_with(words, lane_bytes=2).run().state == MachineState.HALTED


def test_loops_repeat_their_bodies():
    loop = [encode("LOOP", count=3), encode("LOOP", count=4), STEP, encode("ENDLOOP")]
    words = [*loop, STEP, encode("ENDLOOP"), encode("LOOP", count=1), STEP, encode("ENDLOOP"), HALT]
    device = device_with(words)
    assert device.run() == Status(MachineState.HALTED, ErrorCause.NONE, 9)
    assert device.read_csr("STEP") == 3 * (4 + 1) + 1
    # LOOP; 3 times (LOOP, 4 times (STEP, ENDLOOP), STEP, ENDLOOP); LOOP, STEP, ENDLOOP, HALT
    assert device.read_csr("INSTRUCTIONS") == 1 + 3 * (1 + 8 + 2) + 4


def test_the_loop_stack_has_its_limits():
    loop = encode("LOOP", count=2)
    fails([loop] * 3, ErrorCause.LOOP_STACK, 2)
    fails([STEP, encode("ENDLOOP")], ErrorCause.LOOP_STACK, 1)


def test_a_start_clears_loops_and_keeps_registers():
    config = small_config()
    words = [encode("LOOP", count=2), encode_set("N_C", 7, config), HALT, encode("ENDLOOP")]
    device = device_with(words)
    device.run()
    assert device.machine.registers["N_C"] == 7
    with pytest.raises(MachineError, match="LOOP_STACK"):
        device.run(3)
    assert device.machine.registers["N_C"] == 7


@pytest.mark.parametrize("last", [STEP, encode("WAIT"), encode("LOOP", count=2)])
@pytest.mark.parametrize("mode", [0, 1])
def test_the_program_ends_where_its_memory_ends(last: int, mode: int):
    device = GoldenDevice(small_config(program_words=64))
    device.write_program([last], origin=63)
    device.write_csr("MODE", mode)
    with pytest.raises(MachineError, match="PROGRAM_END"):
        device.run(63)
    assert device.status() == Status(MachineState.ERROR, ErrorCause.PROGRAM_END, 63)
    assert device.read_csr("INSTRUCTIONS") == 1


def test_the_last_word_may_halt_or_branch_back():
    device = GoldenDevice(small_config(program_words=64))
    device.write_program([HALT], origin=63)
    assert device.run(63) == Status(MachineState.HALTED, ErrorCause.NONE, 63)
    device.write_program([encode("LOOP", count=5), STEP, encode("ENDLOOP")], origin=61)
    with pytest.raises(MachineError, match="PROGRAM_END"):
        device.run(61)
    assert device.read_csr("STEP") == 5


def test_step_wraps():
    device = device_with([STEP, HALT])
    device.write_csr("STEP", 2**32 - 1)
    device.run()
    assert device.read_csr("STEP") == 0


def test_wait_lets_the_host_in_and_keeps_registers_and_loops():
    config = small_config()
    words = [
        encode_set("N_C", 2, config),
        encode_set("O_BASE", isa.make_address(1, 0), config),
        encode_set("A_HB", 1, config),
        encode_set("A_WB", 1, config),
        encode_set("B_BASE", 8, config),
        encode("LOOP", count=2),
        encode("WAIT"),
        encode("MM"),
        STEP,
        encode("ENDLOOP"),
        HALT,
    ]
    device = device_with(words)
    device.write_memory(8, bytes([1, 2]))
    status = device.run()
    assert status == Status(MachineState.WAITING, ErrorCause.NONE, 7)
    for turn, value in enumerate((5, -6)):
        device.write_memory(0, np.array([value], np.int8))
        status = device.resume()
        got = np.frombuffer(device.read_memory(isa.make_address(1, 0), 2), np.int8)
        assert got.tolist() == [value, 2 * value]
        assert status.state == (MachineState.WAITING, MachineState.HALTED)[turn]
    assert status.pc == 10


def test_single_steps_pause_after_every_instruction():
    words = [encode("LOOP", count=2), STEP, encode("WAIT"), encode("ENDLOOP"), HALT]
    device = device_with(words)
    device.write_csr("MODE", 1)
    trail = [device.run()]
    while trail[-1].state != MachineState.HALTED:
        trail.append(device.resume())
    paused, waiting = MachineState.PAUSED, MachineState.WAITING
    turn = [(paused, 2), (waiting, 3)]
    expected = [(paused, 1), *turn, (paused, 1), *turn, (paused, 4), (MachineState.HALTED, 4)]
    assert [(s.state, s.pc) for s in trail] == expected
    device.write_csr("MODE", 0)
    assert device.run().state == waiting


def test_errors_stop_single_steps_too():
    device = device_with([STEP, 0])
    device.write_csr("MODE", 1)
    assert device.run().state == MachineState.PAUSED
    with pytest.raises(MachineError, match="ILLEGAL_OPCODE"):
        device.resume()


def test_the_largest_accumulator_spans_the_parts_of_a_tensor():
    config = small_config()
    words = [
        encode_set("N_J", 2, config),
        encode_set("A_HB", 1, config),
        encode_set("A_WB", 2, config),
        encode_set("B_BASE", 8, config),
        encode_set("B_R", 1, config),
        encode_set("O_BASE", isa.make_address(1, 0), config),
        encode_set("O_OFF", 0, config),
        encode_set("EXP", isa.pack_tensors(0, 1, 2), config),
        encode("MM"),
        encode_set("B_BASE", 16, config),
        encode_set("O_OFF", 1, config),
        encode("MM", track=1),
        HALT,
    ]
    device = device_with(words)
    device.write_memory(0, np.array([100, 100], np.int8))
    device.write_memory(8, np.array([100, 100], np.int8))
    device.write_memory(16, np.array([1, 1], np.int8))
    device.write_exponent(2, 0)
    device.run()
    # The first part has the larger sum, 20000: BL = 15, so that the tensor needs the exponent 8.
    assert device.read_exponent(2) == (0, 8, 0)
    got = np.frombuffer(device.read_memory(isa.make_address(1, 0), 2), np.int8)
    assert got.tolist() == [127, 127]
    assert device.saturations(2) == 2
    device.run()
    assert np.frombuffer(device.read_memory(1 << 22, 2), np.int8).tolist() == [78, 1]
    assert device.read_exponent(2) == (8, 8, 0)
    assert device.saturations(2) == 2


def test_a_reduction_that_is_too_long_wraps_as_an_accumulator_does():
    config = simulation_config("4x4", regions=[1 << 17] * 2)
    device = GoldenDevice(config)
    device.write_memory(0, np.full(8, -128, np.int8))
    # 140 000 products of 128 * 128 and a zero exponent: 2**31 and more.
    words = [
        encode_set("N_J", 35000, config),
        encode_set("N_TX", 4, config),
        encode_set("A_HB", 1, config),
        encode_set("A_WB", 35000, config),
        encode_set("B_R", 0, config),
        encode_set("O_BASE", isa.make_address(1, 0), config),
        encode("MM"),
        HALT,
    ]
    device.write_memory(0, np.full(35000, -128, np.int8))
    device.write_program(words)
    device.run()
    assert 140000 << 14 > 2**31
    assert device.machine.largest == 2**32 - (140000 << 14)
    assert device.read_memory(isa.make_address(1, 0), 1) == b"\x81"


def test_saturation_counts_stop_at_their_end():
    config = small_config()
    words = [
        encode_set("PAD", 100, config),
        encode_set("N_C", 4, config),
        encode_set("O_BASE", 1 << 22, config),
        encode("MM"),
        HALT,
    ]
    device = device_with(words)
    device.write_memory(0, bytes([100] * 4))
    device.write_saturations(0, 2**32 - 3)
    device.run()
    assert device.saturations(0) == 2**32 - 1


def test_rewritten_programs_are_decoded_anew():
    device = device_with([STEP, HALT])
    device.run()
    device.write_program([HALT])
    device.run()
    assert device.read_csr("STEP") == 1


def test_a_cycle_model_feeds_the_counters():
    def model(config: Config, decoded: isa.Decoded, registers: object) -> dict[str, int]:
        return {"CYCLES": 10, "DESCRIPTOR": 9} if decoded.name == "STEP" else {"CYCLES": 1}

    device = GoldenDevice(small_config(), record=True, cycle_model=model)
    device.write_program([STEP, STEP, HALT])
    device.run()
    counters = device.counters()
    assert (counters["CYCLES"], counters["DESCRIPTOR"], counters["INSTRUCTIONS"]) == (21, 18, 3)
    assert device.retirements == [(0, 0, 9, "STEP"), (1, 10, 19, "STEP"), (2, 20, 20, "HALT")]


def test_the_smallest_board_has_a_golden_model():
    device = GoldenDevice(up5k_config())
    device.write_program([HALT])
    assert device.run().state == MachineState.HALTED
