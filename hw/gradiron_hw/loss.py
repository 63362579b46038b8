"""The loss unit: softmax cross-entropy, its gradient and the predictions, by section LOSS of
docs/products.md, bit for bit what `gradiron.arch.numerics` says.

It has a byte-wide port to data memory, three small ROMs and a serial divider, and no multiplier:

* t = (z * 369) >> 8 is the sum of two look-ups, one per byte of the logit. Logits are taken as
  z + 32768, which cancels in differences.
* e = 2**-d is a look-up by six bits of the fraction and the two low bits of the integer part of d,
  then a shift by 0, 4, 8 or 12.
* p = (e << 15) / sum(e) is a restoring division.
* For log2 of the sum, its complement goes through the remainder register, shifted until the top bit
  is 0.
* The largest |g| is kept as a thermometer of the powers of two that matter for the shift.

Rows are walked to and fro (largest logit upwards, sum downwards, division upwards), so that no
start of a row has to be remembered.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import REGION_SHIFT, Config
from gradiron.arch.isa import ErrorCause
from gradiron.arch.numerics import EXP_ROM, LOG2_E_Q8, LOG_ROM, PROBABILITY_BITS, Use
from gradiron.arch.timing import LOSS_LOG_CYCLES, loss_divider_bits, loss_divider_cycles

__all__ = ["MAX_CLASSES", "LossUnit"]

MAX_CLASSES = 4095
"""Largest N_C of a LOSS: it fixes the width of the sum and of the divider."""

CLASS_BITS = MAX_CLASSES.bit_length()
SUM_BITS = (MAX_CLASSES << PROBABILITY_BITS).bit_length()
T_BITS = 17
"""369 * 65535 >> 8 has 17 bits."""
SHIFTS = 9
"""The largest gradient shift: |g| is at most 2**15, and 7 bits are left."""
LEADING = SUM_BITS - 1 - PROBABILITY_BITS
"""Shifts that find the leading one of a sum: it is at least 2**15, the e of the largest logit."""

assert LOSS_LOG_CYCLES == LEADING + 2


class LossUnit(wiring.Component):
    """Executes LOSS.

    `start` begins with the parameters, which must be stable until `done` or `error`. `done` is high
    `gradiron.cycles.loss_cycles(...)` cycles after `start`. `error` is high in the cycle after the
    one that failed, and from then on nothing is accessed. In the order in which they are
    found: OPERAND_RANGE where N_C is above `MAX_CLASSES`, in the cycle after `start`; for the
    labels ADDRESS_RANGE, then LABEL_RANGE, before anything is written; ADDRESS_RANGE for the rest,
    also where there are 2**(config.offset_bits - 1) elements or more.

    At most one of `rd_en` and `wr_en` is high. `rd_data` must have the byte in the cycle after
    `rd_en`. `rd_oor` and `wr_oor` say in the very cycle of an access that the address lies outside
    its region; the memory itself suppresses the access.

    Parameters
    ----------
    config : Config

    Members
    -------
    start, clear : In(1)
        `clear` (with priority) stops the unit without `done` or `error`.
    z_hi, z_lo, labels, dy, predictions : In(24)
        Addresses of the tensors. Element numbers are added to the offsets modulo
        2**config.offset_bits.
    n_samples, n_classes : In(16)
        At least 1 each.
    grad, predict : In(1)
        Which of the results are wanted.
    busy : Out(1)
        From the cycle after `start` until the one before `done` or `error`.
    done, error : Out(1)
        Pulses.
    cause : Out(4)
        An `ErrorCause`, valid with `error`.
    loss : Out(32)
        Sum over the batch. Like `shift` valid from `done` until the next start;
        written only with `grad`.
    shift : Out(5)
        The gradient's shift `sh`.
    saturated : Out(1)
        High in each cycle in which a saturated element of the gradient is written.
    rd_en, rd_addr, rd_data, rd_oor : read port, 8 bits
    wr_en, wr_addr, wr_data, wr_oor : write port, 8 bits
        Both addresses are always the same.
    rnd_index : Out(config.offset_bits)
    rnd_use : Out(3)
    rnd_r : In(16)
        The random number of an element, by two cycles after `rnd_index` became stable.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        address = In(24)
        super().__init__(
            {
                "start": In(1),
                "clear": In(1),
                "z_hi": address,
                "z_lo": address,
                "labels": address,
                "dy": address,
                "predictions": address,
                "n_samples": In(16),
                "n_classes": In(16),
                "grad": In(1),
                "predict": In(1),
                "busy": Out(1),
                "done": Out(1),
                "error": Out(1),
                "cause": Out(4),
                "loss": Out(32),
                "shift": Out(5),
                "saturated": Out(1),
                "rd_en": Out(1),
                "rd_addr": Out(24),
                "rd_data": In(8),
                "rd_oor": In(1),
                "wr_en": Out(1),
                "wr_addr": Out(24),
                "wr_data": Out(8),
                "wr_oor": In(1),
                "rnd_index": Out(config.offset_bits),
                "rnd_use": Out(3),
                "rnd_r": In(16),
            }
        )

    @property
    def config(self) -> Config:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        divider_bits = loss_divider_bits(config)
        waits = loss_divider_cycles(config) - 6

        # --- passes and steps -------------------------------------------------------------------
        # One bit per pass over the data:
        check = Signal()  # the labels
        largest = Signal()  # the largest logit of a row, upwards
        total = Signal()  # the sum of a row, downwards
        divide = Signal()  # the probabilities of a row, upwards
        logarithm = Signal()  # of the sum; no elements
        finish = Signal()  # one cycle at the end of a row
        output = Signal()  # the gradient of the whole batch, upwards
        passes = (check, largest, total, divide, logarithm, finish, output)
        # and per step of an element. Most passes go low, high, label, scale. A division waits for
        # its last bits and then writes the element before; the output puts its result.
        low, high, label, scale = Signal(), Signal(), Signal(), Signal()
        wait, write_high, write_low, put = Signal(), Signal(), Signal(), Signal()
        scaled = Signal()  # the cycle after `scale`, whatever else happens in it
        summed = Signal()  # the cycle after that, in the sum
        steps = (low, high, label, scale, wait, write_high, write_low, put, scaled, summed)

        sample = Signal(16, reset_less=True)
        element = Signal(config.offset_bits, reset_less=True)
        # A bit more than a class needs: downwards it ends at -1.
        column = Signal(CLASS_BITS + 1, reset_less=True)
        last_sample, last_column = Signal(), Signal()  # one beyond the last
        pass_end, row_end, row_divided = Signal(), Signal(), Signal()
        m.d.comb += [
            last_sample.eq(sample == self.n_samples),
            last_column.eq(column[-1] | (column[:-1] == self.n_classes[:CLASS_BITS])),
            pass_end.eq(low & last_sample),
            row_end.eq(low & last_column & ~divide),
            row_divided.eq(write_low & last_column),
        ]

        count = Signal(range(max(waits, LOSS_LOG_CYCLES)), reset_less=True)
        divided, loaded, found = Signal(), Signal(), Signal()
        m.d.comb += [
            divided.eq(wait & (count == waits - 1)),
            loaded.eq(logarithm & (count == 0)),
            found.eq(logarithm & (count == LOSS_LOG_CYCLES - 1)),
        ]
        m.d.sync += count.eq(Mux((wait & ~divided) | logarithm, count + 1, 0))

        begin = Signal()
        m.d.sync += [
            check.eq((begin & self.grad) | (check & ~pass_end)),
            largest.eq(
                (begin & ~self.grad)
                | (check & pass_end)
                | finish
                | (largest & ~pass_end & ~row_end)
            ),
            total.eq((largest & row_end & self.grad) | (total & ~row_end)),
            divide.eq((total & row_end) | (divide & ~row_divided)),
            logarithm.eq(row_divided | (logarithm & ~found)),
            finish.eq(found | (largest & row_end & ~self.grad)),
            output.eq((largest & pass_end & self.grad) | (output & ~pass_end)),
            self.done.eq(pass_end & (output | ~self.grad)),
            self.busy.eq(begin | (self.busy & ~(pass_end & (output | ~self.grad)))),
            low.eq(
                begin
                | (scale & ~divide & ~output)
                | put
                | finish
                | (write_low & ~last_column)
                | (pass_end & ~output & self.grad)
                | (row_end & (~largest | self.grad))
            ),
            high.eq(low & ~last_sample & (~last_column | divide)),
            label.eq(high),
            scale.eq(label),
            scaled.eq(scale),
            summed.eq(scaled & total),
            put.eq(scale & output),
            wait.eq((scale & divide) | (wait & ~divided)),
            write_high.eq(divided),
            write_low.eq(write_high),
        ]

        # --- where we are -----------------------------------------------------------------------
        down = Signal()
        m.d.comb += down.eq(total | low)
        walk = Signal()
        m.d.comb += walk.eq((scale & (largest | total)) | put | write_low)
        stride = Cat(Const(1, 1), down).as_signed()
        with m.If(~self.busy | pass_end):
            m.d.sync += element.eq(0)
        with m.Elif(walk | (row_end & largest & self.grad)):
            m.d.sync += element.eq(element + stride)
        with m.If(~self.busy | finish | (row_end & ~largest)):
            m.d.sync += column.eq(0)
        with m.Elif(walk | row_end):
            m.d.sync += column.eq(column + stride)
        with m.If(~self.busy | pass_end):
            m.d.sync += sample.eq(0)
        with m.Elif((scale & check) | finish | (row_end & output)):
            m.d.sync += sample.eq(sample + 1)

        # --- memory -----------------------------------------------------------------------------
        # Selects are encoded so that a bit of the address takes few LUTs.
        by_sample, second = Signal(), Signal()
        base = Signal(24)
        m.d.comb += [
            by_sample.eq(label | finish),
            second.eq(high | write_high | finish),
            base.eq(
                Mux(
                    put,
                    self.dy,
                    Mux(
                        by_sample,
                        Mux(second, self.predictions, self.labels),
                        Mux(second, self.z_hi, self.z_lo),
                    ),
                )
            ),
        ]
        # A division reads one element ahead of the one it writes: a carry into the address.
        ahead = Signal()
        number = Signal(config.offset_bits)
        m.d.comb += [
            ahead.eq(divide & (low | high)),
            number.eq(Mux(by_sample, sample, element)),
        ]
        sum_with_carry = Cat(Const(1, 1), base[: config.offset_bits]) + Cat(ahead, number)
        offset = sum_with_carry[1 : 1 + config.offset_bits]
        valid = Signal(reset_less=True)  # an element has been divided
        with m.If(~divide):
            m.d.sync += valid.eq(0)
        with m.Elif(write_low):
            m.d.sync += valid.eq(1)
        m.d.comb += [
            self.rd_addr.eq(
                Cat(offset, Const(0, REGION_SHIFT - config.offset_bits), base[REGION_SHIFT:])
            ),
            self.wr_addr.eq(self.rd_addr),
            self.rd_en.eq(
                ~last_column
                & ((low & ~check & ~last_sample) | (high & ~check) | (label & ~largest))
            ),
            self.wr_en.eq((valid & (write_high | write_low)) | put | (finish & self.predict)),
        ]

        # --- errors -----------------------------------------------------------------------------
        bad_label = Signal(reset_less=True)
        # Compared bit by bit: with a carry chain, one operand would have to be inverted first.
        below = Const(0, 1)
        for ours, limit in zip(self.rd_data, self.n_classes[:8], strict=True):
            below = Mux(ours ^ limit, limit, below)
        below |= self.n_classes[8:CLASS_BITS].any()
        with m.If(~check):
            m.d.sync += bad_label.eq(0)
        with m.Elif(scale & ~below):
            m.d.sync += bad_label.eq(1)
        too_many = self.n_classes[CLASS_BITS:].any()
        bad_address = Signal()
        bad = Signal()
        m.d.comb += [
            begin.eq(self.start & ~too_many),
            # Elements that fill the largest region to its end are one too many.
            bad_address.eq(
                (self.rd_en & self.rd_oor) | (self.wr_en & self.wr_oor) | (largest & element[-1])
            ),
            bad.eq(bad_address | (check & pass_end & bad_label)),
        ]
        m.d.sync += [
            self.error.eq(bad | (self.start & too_many)),
            # One bit for each of the three: 0b0100, 0b1000, 0b0011.
            self.cause.eq(
                Mux(bad_address, ErrorCause.ADDRESS_RANGE, 0)
                | Mux(self.start, ErrorCause.OPERAND_RANGE, 0)
                | Mux(check & pass_end, ErrorCause.LABEL_RANGE, 0)
            ),
        ]
        with m.If(bad | self.clear):
            m.d.sync += [bit.eq(0) for bit in (*passes, *steps, self.busy, self.done)]
        with m.If(self.clear):
            m.d.sync += self.error.eq(0)

        # --- logit to exponential ---------------------------------------------------------------
        # The low byte's product comes first and waits for the high one. Bit 0 of a product is bit 0
        # of its byte, so that 16 bits of ROM are enough.
        m.submodules.scale_rom = scale_rom = Memory(
            shape=16, depth=256, init=[LOG2_E_Q8 * byte >> 1 for byte in range(256)]
        )
        product = scale_rom.read_port()
        t_low = Signal(9, reset_less=True)
        t_bit = Signal(reset_less=True)
        t = Signal(T_BITS, reset_less=True)
        m.d.comb += product.addr.eq(self.rd_data ^ (label << 7))
        m.d.sync += [
            t_low.eq(product.data[7:]),
            t_bit.eq(self.rd_data[0]),
            t.eq(Cat(t_bit, product.data) + t_low),
        ]

        largest_n = Signal(T_BITS, reset_less=True)  # complement of the largest t
        distance_n = Signal(T_BITS + 1)  # of d = largest - t; above -1 where t is larger
        previous = Signal(8, reset_less=True)
        winner = Signal(8, reset_less=True)
        m.d.comb += distance_n.eq(largest_n + t)
        m.d.sync += previous.eq(column[:8])
        with m.If(finish | ~self.busy):
            m.d.sync += [largest_n.eq(-1), winner.eq(0)]
        with m.Elif(scaled & largest & distance_n[-1]):
            m.d.sync += [largest_n.eq(~t), winner.eq(previous)]

        m.submodules.exp_rom = exp_rom = Memory(
            shape=16,
            depth=256,
            # Addressed by the complement of d.
            init=[EXP_ROM[63 - (a & 63)] >> (3 - (a >> 6)) for a in range(256)],
        )
        power = exp_rom.read_port()
        fours = Signal(2, reset_less=True)
        gone = Signal(reset_less=True)
        m.d.comb += [power.addr.eq(distance_n[2:10]), power.en.eq(scaled)]
        with m.If(scaled):
            m.d.sync += [
                fours.eq(~distance_n[10:12]),
                gone.eq(~distance_n[12:T_BITS].all()),
            ]
        e = Signal(16)
        with m.If(~gone & (summed | write_high)):
            m.d.comb += e.eq(power.data >> (fours << 2))

        # --- sum and division -------------------------------------------------------------------
        sum_n = Signal(SUM_BITS, reset_less=True)  # complement of the sum
        with m.If(largest):
            m.d.sync += sum_n.eq(-1)
        with m.Elif(summed):
            m.d.sync += sum_n.eq(sum_n - e)

        remainder = Signal(SUM_BITS + 1, reset_less=True)
        word = Signal(16, reset_less=True)  # quotient, later p
        stage: Value = remainder
        stages: list[Value] = []
        bits: list[Value] = []
        for index in range(divider_bits):
            # Without the carry the difference from 0 is the complement of the sum: the logarithm's.
            carry = ~loaded if index == 0 else Const(1, 1)
            trial = Signal(len(remainder) + 2, name=f"trial{index}")
            taken = Signal(name=f"taken{index}")
            m.d.comb += [
                trial.eq(Cat(Const(1, 1), stage) + Cat(carry, sum_n, Const(1, 1))),
                taken.eq(Mux(logarithm, loaded, trial[-1])),
            ]
            stage = Cat(Const(0, 1), Mux(taken, trial[1:-1], stage)[:-1])
            stages.append(stage)
            bits.append(taken)
        # The remainder is 0 before an exponential is loaded: the load needs no multiplexer.
        with m.If(divided | row_divided):
            m.d.sync += remainder.eq(0)
        with m.Elif(~logarithm | loaded | remainder[-1]):
            m.d.sync += remainder.eq(Mux(logarithm, stages[0], stage) | e)
        with m.If(~divide & high):
            m.d.sync += word[:8].eq(self.rd_data)
        with m.If(~divide & label):
            m.d.sync += word[8:].eq(self.rd_data)
        with m.If(divide & ~write_high):
            m.d.sync += word.eq(Mux(row_divided, 0, Cat(*reversed(bits), word)))

        # --- loss -------------------------------------------------------------------------------
        marked = Signal(reset_less=True)  # the element is that of the label
        marked_before = Signal(reset_less=True)
        with m.If(scale):
            m.d.sync += marked.eq(column == self.rd_data)
        with m.If(write_low):
            m.d.sync += marked_before.eq(marked)

        m.submodules.log_rom = log_rom = Memory(
            shape=8,
            depth=64,
            init=[LOG_ROM[63 - a] for a in range(64)],
            attrs={"rom_style": "block"},
        )
        fraction = log_rom.read_port()
        m.d.comb += fraction.addr.eq(remainder[-7:-1])
        # Place of the leading one, above 2**15.
        leading = Signal(range(LEADING + 1), reset_less=True)
        with m.If(~logarithm & ~finish):
            m.d.sync += leading.eq(LEADING)
        with m.Elif(remainder[-1]):
            m.d.sync += leading.eq(leading - 1)
        part = Signal(T_BITS)
        m.d.comb += part.eq(Mux(finish, Cat(fraction.data, leading), ~distance_n[:-1]))
        with m.If(check):
            m.d.sync += self.loss.eq(0)
        with m.Elif((finish & self.grad) | (scaled & total & marked)):
            m.d.sync += self.loss.eq(self.loss + part)

        # --- gradient ---------------------------------------------------------------------------
        # One adder rounds, p + random, and negates for the label's |g| = 32768 - p, as the
        # complement of p - 1. What else the label takes off g concerns two bits, after the
        # register.
        negate = Signal()
        negated = Signal(reset_less=True)
        measured = Signal(reset_less=True)
        # Bit k: some |g| is at least 2**(k + 7). In the end also the mask of the shift.
        above = Signal(SHIFTS, reset_less=True)
        addend = Signal(SHIFTS)
        moved = Signal(16, reset_less=True)
        m.d.comb += [
            negate.eq(write_low & marked_before),
            addend.eq(
                (self.rnd_r[:SHIFTS] & above & output.replicate(SHIFTS)) | negate.replicate(SHIFTS)
            ),
            self.rnd_index.eq(element),
            self.rnd_use.eq(Use.LOSS),
        ]
        m.d.sync += [
            moved.eq(word + Cat(addend, negate.replicate(16 - SHIFTS))),
            negated.eq(negate),
            measured.eq(write_low & valid),
        ]
        # The logarithm takes longer than a bit needs to reach all below it.
        magnitude = Cat(moved[7:15] ^ negated.replicate(8), moved[15])
        with m.If(check):
            m.d.sync += above.eq(0)
        with m.Elif(measured | logarithm):
            m.d.sync += above.eq(above | (above >> 1) | magnitude)
        m.d.comb += self.shift.eq(
            Cat(
                above.xor(),
                (above[1] & ~above[3]) | (above[5] & ~above[7]),
                above[3] & ~above[7],
                above[7],
            )
        )
        rounded = Cat(moved[:15], moved[15] ^ marked, marked & ~moved[15])
        by8 = Cat(Mux(self.shift[3], rounded[8:17], rounded[:9]), rounded[9:])
        by4 = Mux(self.shift[2], by8[4:15], by8[:11]) & output.replicate(11)
        by2 = Mux(self.shift[1], by4[2:11], by4[:9])
        by1 = Mux(self.shift[0], by2[1:9], by2[:8])
        # +128 becomes 127, -128 becomes -127.
        edge, positive = Signal(), Signal()
        gradient = Signal(8)
        m.d.comb += [
            edge.eq(by1[7] & ~by1[:7].any()),
            positive.eq(by1[7] & ~rounded[-1]),
            gradient.eq(Cat(by1[:7] | positive.replicate(7), by1[7] & rounded[-1]) | edge),
            self.saturated.eq(put & edge),
        ]
        m.d.comb += self.wr_data.eq(
            (Mux(write_high, word[8:], word[:8]) & divide.replicate(8))
            | gradient
            | (winner & finish.replicate(8))
        )
        return m
