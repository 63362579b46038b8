"""The MM instruction, written from docs/products.md.

A `Product` is what an MM means for one set of register values: its operands located in memory, all
addresses checked. It depends on nothing that a program changes between two executions of the
same MM, so the machine keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradiron.arch import numerics
from gradiron.arch.isa import (
    BMode,
    ErrorCause,
    Out,
    Scale,
    Skip,
    Track,
    signed_byte,
    split_address,
    unpack_tensors,
)
from gradiron.arch.numerics import (
    BIAS_EXPONENT,
    LOGIT_EXPONENT,
    MASTER_FRACTION,
    Int64,
    Rounding,
    Use,
)
from gradiron.golden.addressing import (
    Fault,
    Int8,
    Lattice,
    Place,
    Streamed,
    locate,
    locate_streamed,
    pixel_loops,
)
from gradiron.golden.arithmetic import (
    UNLIMITED,
    Integers,
    Randoms,
    matrix_product,
    round_shift,
    saturated,
    stochastic_shift,
    wrapped32,
)
from gradiron.golden.channels import (
    ARGUMENTS,
    channel_gradient,
    channel_sums,
    gated_sums,
    pooled,
)
from gradiron.golden.data import Data

OPERAND_LIMIT = 128
"""Largest magnitude of a byte read as int8."""
FLOAT32_EXACT = 1 << 24
"""Sums of integers below this are exact in float32 ..."""
FLOAT64_EXACT = 1 << 53
"""... and below this in float64."""
UPDATE_BOUND = 1 << 17
"""A step beyond this saturates every 16-bit quantity, wherever it starts."""

STEP_FRACTION = {Out.INT8_WEIGHTS: 0, Out.MASTER: MASTER_FRACTION, Out.MOMENTUM: 12}
"""Bits of a step below the int8 weight."""

_A_STRIDES = ("A_SN", "A_SY", "A_SX", "A_TY", "A_TX", "A_Y0", "A_X0")
_O_STRIDES = ("O_OFF", "O_S2", "O_S1", "O_S0")
_TWO_PLANES = (Out.LOGITS, Out.MASTER, Out.MOMENTUM, Out.POOLED)


def aligned_registers(fields: Mapping[str, int]) -> tuple[str, ...]:
    """Registers that must be even on a machine with two-byte lanes: all that the MM uses."""
    out = fields["out"]
    names = ["A_BASE", "B_BASE", "O_BASE", *_A_STRIDES, "B_R", *_O_STRIDES]
    if not fields["transposed"]:
        names += ["B_TY", "B_TX"]
    if out in _TWO_PLANES:
        names.append("O_LO")
    if fields["mask"]:
        names.append("M_BASE")
    if fields["bias"]:
        names.append("BIAS")
    if fields["skip"]:
        names.append("S_BASE")
    if out == Out.MOMENTUM:
        names += ["V_HI", "V_LO"]
        if fields["bias"]:
            names.append("V_BIAS")
    return tuple(names)


class Product:
    """An MM with the register values of the moment.

    Parameters
    ----------
    data : Data
        Memories and registers.
    fields : mapping of str to int
        The fields of the MM.

    Raises
    ------
    Fault
        For everything that is wrong with it, in the order MISALIGNED, REGION_CONFLICT,
        OPERAND_RANGE, ACCUMULATOR_DEPTH, ADDRESS_RANGE.
    """

    def __init__(self, data: Data, fields: Mapping[str, int]) -> None:
        self._data = data
        self._fast = data.fast
        r = data.registers
        config = data.config
        if config.lane_bytes == 2 and any(r[name] & 1 for name in aligned_registers(fields)):
            raise Fault(ErrorCause.MISALIGNED)
        self.out = Out(fields["out"])
        self.b_mode = BMode(fields["b"])
        self.rounding = Rounding(fields["round"])
        self.scale = Scale(fields["scale"])
        self.skip = Skip(fields["skip"])
        self.relu = bool(fields["relu"])
        self.transposed = bool(fields["transposed"])
        self.track = fields["track"] == Track.TRACK
        self.tensor_a, self.tensor_b, self.tensor_o, self.tensor_s = unpack_tensors(r["EXP"])
        self.shift = r["SHIFT"]
        self.gate = r["GATE"]
        bias = bool(fields["bias"])
        pixel_counts, keep = pixel_loops(r["N_P"], r["N_Y"], r["N_X"])
        by_channel = self.b_mode.by_channel
        tap_counts = (r["N_TY"], r["N_TX"], 1 if by_channel else r["N_J"])
        self.pixels = r["N_P"]
        self.taps = tap_counts[0] * tap_counts[1] * tap_counts[2]
        self.cols = r["N_C"]
        region_a, base = split_address(r["A_BASE"])
        region_b, gate_base = split_address(r["B_BASE"])
        if self.b_mode == BMode.GATE and region_a == region_b:
            raise Fault(ErrorCause.REGION_CONFLICT)
        if self.out == Out.LOSS and (self.pixels > 1 or self.cols > 1):
            raise Fault(ErrorCause.OPERAND_RANGE)
        if self.transposed and self.taps + bias > config.acc_depth:
            raise Fault(ErrorCause.ACCUMULATOR_DEPTH)
        self.terms = self.pixels if self.transposed else self.taps

        streamed = Streamed(
            base,
            (*pixel_counts, *tap_counts[:2], self.cols if by_channel else r["N_J"]),
            *(r[name] for name in _A_STRIDES),
            hb=r["A_HB"],
            wb=r["A_WB"],
            pad=r["PAD"],
            keep=keep,
        )
        self._a = locate_streamed(data.memory[region_a], streamed, data.modulus, fast=data.fast)

        # The stationary operand is kept (cols, terms) where that is its order in memory.
        self._b: Place | None = None
        if self.transposed:
            self._b = self._locate("B_BASE", Lattice(0, (self.pixels, self.cols), (r["B_R"], 1)))
        elif self.b_mode == BMode.COLUMNS:
            by_columns = Lattice(0, (self.cols, *tap_counts), (r["B_R"], r["B_TY"], r["B_TX"], 1))
            self._b = self._locate("B_BASE", by_columns)
        elif self.b_mode == BMode.GATE:
            # Outside the bounds no gate is open.
            gates = streamed._replace(base=gate_base, pad=(self.gate + 1) % ARGUMENTS)
            self._b = locate_streamed(data.memory[region_b], gates, data.modulus, fast=data.fast)
        elif self.b_mode != BMode.IDENTITY:
            by_rows = Lattice(0, (*tap_counts, self.cols), (r["B_TY"], r["B_TX"], r["B_R"], 1))
            self._b = self._locate("B_BASE", by_rows)

        row_counts, row_keep = (tap_counts, None) if self.transposed else (pixel_counts, keep)
        self.shape = (self.taps if self.transposed else self.pixels, self.cols)
        elements = Lattice(
            r["O_OFF"], (*row_counts, self.cols), (r["O_S2"], r["O_S1"], r["O_S0"], 1), row_keep
        )
        self._o = self._o_low = self._v_high = self._v_low = self._v_bias = None
        self._mask = self._skip = self._bias = None
        if self.out not in (Out.MEASURE, Out.LOSS):
            self._o = self._locate("O_BASE", elements)
        if self.out in _TWO_PLANES:
            self._o_low = self._locate("O_LO", elements)
        if self.out == Out.MOMENTUM:
            self._v_high = self._locate("V_HI", elements)
            self._v_low = self._locate("V_LO", elements)
        if fields["mask"]:
            self._mask = self._locate("M_BASE", elements)
        if self.skip:
            self._skip = self._locate("S_BASE", elements)
        words = Lattice(0, (self.cols, 4), (4, 1))
        if bias:
            self._bias = self._locate("BIAS", words)
            if self.out == Out.MOMENTUM:
                self._v_bias = self._locate("V_BIAS", words)
        self._randoms = Randoms(elements, data.modulus, self.shape, fast=data.fast)
        self._bias_randoms = Randoms(
            Lattice(0, (self.cols,), (1,)), data.modulus, (self.cols,), fast=data.fast
        )

    def _locate(self, register: str, lattice: Lattice) -> Place:
        data = self._data
        region, offset = split_address(data.registers[register])
        return locate(data.memory[region], lattice.moved(offset), data.modulus, fast=data.fast)

    # --- execution -----------------------------------------------------------------------------

    def execute(self) -> None:
        """Compute and write the result."""
        data = self._data
        eb = data.exponent[self.tensor_b]
        e_acc = data.exponent[self.tensor_a] + eb
        if self.out == Out.POOLED:
            self._pooled()
            return
        sums, limit, db = self._by_channel() if self.b_mode.by_channel else self._sums()
        match self.out:
            case Out.INT8:
                self._int8(sums, limit, e_acc)
            case Out.MEASURE:
                self._measure(sums, limit, e_acc)
            case Out.LOSS:
                data.loss = int(sums[0, 0])
            case Out.LOGITS:
                self._logits(sums, limit, e_acc)
            case Out.MASTER | Out.INT8_WEIGHTS | Out.MOMENTUM:
                slower = signed_byte(data.rate) + self.shift
                self._update(sums, limit, data.exponent[self.tensor_o] - e_acc + slower)
                if db is not None:
                    self._update_bias(db, BIAS_EXPONENT - eb + slower)

    def _sums(self) -> tuple[Integers, int, Int64 | None]:
        """S (rows, cols), a limit of |S|, and db (cols,) for a transposed product with bias."""
        limit = self.terms * OPERAND_LIMIT * OPERAND_LIMIT
        if not self._fast or limit >= FLOAT64_EXACT:
            number = np.int64
        else:
            number = np.float32 if limit < FLOAT32_EXACT else np.float64
        assert self._b is not None
        a = self._a.read().astype(number, order="C").reshape(self.pixels, self.taps)
        b = self._b.read().astype(number, order="C")
        db = None
        if self.transposed:
            b = b.reshape(self.pixels, self.cols)
            a = a.T
            if self._bias is not None:
                exact = np.float64 if self._fast else np.int64
                db = b.sum(axis=0, dtype=exact).astype(np.int64)
        elif self.b_mode == BMode.COLUMNS:
            b = b.reshape(self.cols, self.taps).T
        else:
            b = b.reshape(self.taps, self.cols)
        products = matrix_product(a, b)
        if self.terms > numerics.MAX_REDUCTION:
            # More than the compiler may ask for: an accumulator has 32 bits.
            sums = wrapped32(products.astype(np.int64))
            return sums, UNLIMITED, db if db is None else wrapped32(db)
        if not self._fast:
            return products.astype(np.int64), UNLIMITED, db
        return products.astype(np.int32), limit, db

    def _by_channel(self) -> tuple[Integers, int, Int64 | None]:
        """As `_sums`, of a product by channel."""
        fast = self._fast
        a = self._a.read()
        b = None if self._b is None else self._b.read()
        db = None
        if self.b_mode == BMode.GATE:
            assert b is not None
            sums = gated_sums(a, b, self.gate, fast=fast)
        elif self.transposed:
            assert b is not None
            dy = b.reshape(self.pixels, self.cols)
            sums = channel_gradient(a, dy, fast=fast)
            if self._bias is not None:
                db = dy.sum(axis=0, dtype=np.int64)
        else:
            weights = None if b is None else b.reshape(self.taps, self.cols)
            sums = channel_sums(a, weights, fast=fast)
        return sums, self.terms * OPERAND_LIMIT * OPERAND_LIMIT if fast else UNLIMITED, db

    def _pooled(self) -> None:
        data = self._data
        value, argument = pooled(self._a.read(), fast=self._fast)
        assert self._o is not None
        assert self._o_low is not None
        self._o.write(value)
        self._o_low.write(argument)
        data.exponent[self.tensor_o] = data.exponent[self.tensor_a]

    def _accumulators(self, sums: Integers, limit: int, e_acc: int) -> tuple[Integers, int]:
        """S plus bias and skip of a plain product, after the ReLU, and its limit."""
        acc = sums
        if self._bias is not None:
            preload = numerics.sat30(numerics.rn(_read_words(self._bias), e_acc - BIAS_EXPONENT))
            limit += int(np.abs(preload).max())
            acc = _sum(acc, preload, limit)
        if self._skip is not None:
            shift = numerics.clamp_shift(e_acc - self._data.exponent[self.tensor_s])
            skipped = self._skip.read().astype(np.int64, order="C").reshape(self.shape)
            skipped = numerics.rn(skipped, shift)
            limit += OPERAND_LIMIT << max(0, -shift)
            acc = _sum(acc, -skipped if self.skip == Skip.SUBTRACT else skipped, limit)
        if self.terms > numerics.MAX_REDUCTION:
            acc = wrapped32(acc)
        return np.maximum(acc, 0) if self.relu else acc, limit

    def _measure(self, sums: Integers, limit: int, e_acc: int) -> None:
        data, o = self._data, self.tensor_o
        acc, _ = self._accumulators(sums, limit, e_acc)
        data.tracker[o] = data.tracker[o].fit(e_acc, max(data.largest, _magnitude(acc)))
        data.largest = 0

    def _exponent(self, e_acc: int) -> int:
        """Exponent of an int8 result."""
        data = self._data
        match self.scale:
            case Scale.TRACKER:
                return numerics.clamp_exponent(max(data.tracker[self.tensor_o].exponent, e_acc))
            case Scale.OPERAND:
                return data.exponent[self.tensor_a]
            case Scale.PRODUCT:
                return numerics.clamp_exponent(e_acc)

    def _int8(self, sums: Integers, limit: int, e_acc: int) -> None:
        data, o = self._data, self.tensor_o
        acc, limit = self._accumulators(sums, limit, e_acc)
        if self.scale == Scale.TRACKER:
            data.largest = max(data.largest, _magnitude(acc))
        exponent = self._exponent(e_acc)
        shift = exponent - e_acc
        if self.rounding == Rounding.STOCHASTIC:
            q = stochastic_shift(
                acc, limit, shift, self._randoms, data.key(o), Use.DX, UPDATE_BOUND
            )
        else:
            q = round_shift(acc, limit, shift, self.rounding)
        y, count = saturated(q, -127, 127)
        data.count_saturations(o, count)
        if self._mask is not None:
            y = np.where(self._mask.read().reshape(self.shape) > 0, y, 0)
        assert self._o is not None
        self._o.write(y)
        data.exponent[o] = exponent
        if self.track:
            data.tracker[o] = data.tracker[o].update(e_acc, data.largest)
            data.largest = 0

    def _logits(self, sums: Integers, limit: int, e_acc: int) -> None:
        data, o = self._data, self.tensor_o
        acc, limit = self._accumulators(sums, limit, e_acc)
        shifted = round_shift(acc, limit, LOGIT_EXPONENT - e_acc, Rounding.NEAREST)
        z, count = saturated(shifted, -32767, 32767)
        data.count_saturations(o, count)
        assert self._o is not None
        assert self._o_low is not None
        self._o.write(z >> 8)
        self._o_low.write(z)
        data.exponent[o] = LOGIT_EXPONENT

    def _update(self, sums: Integers, limit: int, shift: int) -> None:
        """An update of weights; `shift` is that of a step in units of int8 weights."""
        data, o = self._data, self.tensor_o
        half = 1 << (numerics.EXPONENT_SUM_BITS - 1)
        su = (shift - STEP_FRACTION[self.out] + half) % (2 * half) - half
        key = data.key(o)

        def stochastic(v: Integers, limit: int, shift: int, use: Use) -> Integers:
            if not self._fast:
                v, limit = v.astype(np.int64), UNLIMITED
            return stochastic_shift(v, limit, shift, self._randoms, key, use, UPDATE_BOUND)

        assert self._o is not None
        high = self._o.read().astype(np.int32, order="C").reshape(self.shape)
        if self.out == Out.INT8_WEIGHTS:
            w, count = saturated(high - stochastic(sums, limit, su, Use.DW), -127, 127)
            self._o.write(w)
            data.count_saturations(o, count)
            return
        assert self._o_low is not None
        stored = _join(high, self._o_low)
        if self.out == Out.MASTER:
            step = stochastic(sums, limit, su, Use.DW)
        else:
            assert self._v_high is not None
            assert self._v_low is not None
            v = _join(
                self._v_high.read().astype(np.int32, order="C").reshape(self.shape), self._v_low
            )
            decay = stochastic(v.copy(), 1 << 15, 3, Use.MOMENTUM_DECAY)
            v = v - decay + stochastic(sums, limit, su, Use.DW)
            v, _ = saturated(v, -32767, 32767)
            self._v_high.write(v >> 8)
            self._v_low.write(v)
            step = stochastic(v.copy(), 1 << 15, 4, Use.MOMENTUM_STEP)
        # The planes hold M + 128, and so does `stored`.
        stored, count = saturated(
            stored - step, numerics.MASTER_MIN + 128, numerics.MASTER_MAX + 128
        )
        self._o.write(stored >> 8)
        self._o_low.write(stored)
        data.count_saturations(o, count)

    def _update_bias(self, db: Int64, sb: int) -> None:
        data, o = self._data, self.tensor_o
        key, randoms = data.key(o), self._bias_randoms
        assert self._bias is not None
        bias = _read_words(self._bias)
        step = numerics.sr(db, sb, randoms.numbers(key, Use.DB))
        if self._v_bias is not None:
            v = _read_words(self._v_bias)
            decay = numerics.sr(v, 3, randoms.numbers(key, Use.BIAS_DECAY))
            step = numerics.sat32(v - decay + step)
            self._v_bias.write(_bytes_of(step))
        updated, count = saturated(bias - step, -(2**31 - 1), 2**31 - 1)
        self._bias.write(_bytes_of(updated))
        data.count_saturations(o, count)


def _sum(acc: Integers, addend: Int64, limit: int) -> Integers:
    """acc + addend, of magnitudes up to the limit; acc may be overwritten."""
    if limit < 1 << 31 and acc.dtype == np.int32:
        acc += addend.astype(np.int32)
        return acc
    return acc.astype(np.int64) + addend


def _magnitude(acc: Integers) -> int:
    return max(int(acc.max()), -int(acc.min()))


def _join(high: Integers, low: Place) -> Integers:
    """256 * high + low, in place."""
    high <<= 8
    high += low.read().view(np.uint8).reshape(high.shape)
    return high


def _read_words(place: Place) -> Int64:
    """Little-endian int32 words."""
    return np.ascontiguousarray(place.read()).view("<i4").reshape(-1).astype(np.int64)


def _bytes_of(words: Integers) -> Int8:
    """The inverse of `_read_words`."""
    return words.astype("<i4").view(np.int8)
