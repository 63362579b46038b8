"""The state memory: all words of 32 bits that are needed now and then, behind one adder.

    0 to 31         the CSRs, by number; what they are after configuration is their initial content
    32 to 63        constants and a scratch word of the scalar unit (`gradiron_hw.control.WORDS`)
    128 to 191      the exponent table
    192 to 255      the saturation counts

A word is requested in one cycle; in the next one it stands at `word`, and the sum of it and the
chosen addend may be written back to it, by bytes. The scalar unit comes first, then the host; all
other cycles belong to the counters.

A counter is the word and a short register in front of it, which counts in every cycle and is added
to the word in turn. The host's read of a counter is such an addition, whose sum is the answer, so
that it is exact.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import TENSORS, Config
from gradiron.arch.isa import CSR_BY_NAME, DEVICE_ID, ISA_VERSION, Pass, pack_exponent
from gradiron.arch.isa import Out as Result
from gradiron.arch.numerics import BIAS_EXPONENT, KEY_CONSTANTS, LOGIT_EXPONENT, MASTER_FRACTION
from gradiron.arch.timing import POST_CYCLES, PREPARE_CYCLES
from gradiron_hw.control import WORDS, Store

ADDRESS_BITS = 8
EXPONENTS = 1 << (ADDRESS_BITS - 1)
ENTRY_BITS = pack_exponent(-1, -1, -1).bit_length()
"""Of an entry of the exponent table; the others are 0 whatever the host writes."""
FIRST_COUNTER = CSR_BY_NAME["CYCLES"].number
LAST_COUNTER = CSR_BY_NAME["DESCRIPTOR"].number
FIRST_PASS = CSR_BY_NAME["CYCLES_FORWARD"].number

EVENTS: dict[str, int] = {
    "CYCLES": 6,
    "WAIT_CYCLES": 5,
    "PASS": 6,
    "BUSY": 5,
    "STALL_EMIT": 5,
    "STALL_WRITE": 5,
    "STALL_LOAD": 5,
    "STALL_FILL": 6,
    "INSTRUCTIONS": 5,
    "DESCRIPTOR": 5,
    "SATURATIONS": 5,
}
"""Widths of the registers in front of the counters, in the order of their turns, for one event per
cycle. PASS stands for the counter of the instruction's pass, SATURATIONS for the count of its
result."""
SATURATIONS = LAST_COUNTER - FIRST_COUNTER + 1
"""Number of the turn of the saturations, behind those of the CSRs."""

ROUND = len(EVENTS) + 2 * (len(EVENTS) // 2 + 1)
"""Most cycles between two turns of a counter while the scalar unit rests: the host takes two cycles
after every other turn at most."""
assert min(EVENTS.values()) >= ROUND.bit_length()
# These count while the scalar unit works, at most in two sequences one after the other.
assert all(
    EVENTS[name] >= (ROUND + PREPARE_CYCLES + POST_CYCLES + 1).bit_length()
    for name in ("CYCLES", "PASS", "STALL_FILL")
)


def initial_words(config: Config) -> dict[int, int]:
    """Words that are not 0 after configuration."""
    words = {
        CSR_BY_NAME["ID"].number: DEVICE_ID,
        CSR_BY_NAME["VERSION"].number: ISA_VERSION,
        CSR_BY_NAME["CONFIG"].number: config.digest(),
        WORDS["KEY_2"]: KEY_CONSTANTS[2],
        WORDS["KEY_3"]: KEY_CONSTANTS[3],
        WORDS["BIAS"]: -BIAS_EXPONENT,
        WORDS["HEAD"] + Result.LOGITS: LOGIT_EXPONENT,
        WORDS["LAST"] + Result.MASTER: -MASTER_FRACTION,
        WORDS["LAST"] + Result.MOMENTUM: -MASTER_FRACTION - 4,
    }
    assert KEY_CONSTANTS[1] == 0
    return {address: value & 0xFFFFFFFF for address, value in words.items()}


class StateMemory(wiring.Component):
    """Words of state, counters, and their adder.

    Parameters
    ----------
    config : Config

    Members
    -------
    active : the scalar unit has the memory
    address : its request
    word : the word requested in the cycle before
    store : what it writes to that word now
    bytes : which bytes of an entry `Store.TRACKER` writes: tracker, count
    raised, stepped : the tracker takes `exponent`; the count takes one more; otherwise the tracker
        one less, and the count 0
    exponent : an exponent to be written
    loss : a result to be written
    saturated : elements saturated in this cycle
    pass_ : the instruction's pass
    host_request : held until `host_taken`; `sum` is the word in the next cycle
    host_number : address
    host_write, host_data : in that cycle: write `host_data` to it
    clear_counters : all counters begin at 0
    abandon : what has been saturated is forgotten
    blind : nothing is requested in this cycle
    capture : `row` of the next cycle goes to the CSR LOSS; not while the scalar unit works
    event_* : a cycle to be counted
    sum : what may be written: the word with what has been added to it
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "active": In(1),
                "address": In(ADDRESS_BITS),
                "word": Out(32),
                "store": In(3),
                "bytes": In(2),
                "raised": In(1),
                "stepped": In(1),
                "exponent": In(8),
                "loss": In(32),
                "saturated": In(range(self.config.lanes + 1)),
                "pass_": In(2),
                "host_request": In(1),
                "host_taken": Out(1),
                "host_number": In(ADDRESS_BITS),
                "host_write": In(1),
                "host_data": In(32),
                "clear_counters": In(1),
                "abandon": In(1),
                "blind": In(1),
                "capture": In(1),
                "row": In(32),
                "sum": Out(32),
                **{f"event_{name.lower()}": In(1) for name in EVENTS if name != "SATURATIONS"},
            }
        )

    def _counters(self, m: Module, number: Value) -> Value:
        """The registers in front of the counters; the one whose turn it is."""
        more = self.config.lanes.bit_length() - 1  # as many elements are saturated in a cycle
        amount = Signal(max(*EVENTS.values(), EVENTS["SATURATIONS"] + more))
        first = FIRST_PASS - FIRST_COUNTER
        chosen: dict[str, Value] = {
            name: number == CSR_BY_NAME[name].number - FIRST_COUNTER
            for name in EVENTS
            if name not in ("PASS", "SATURATIONS")
        }
        chosen["SATURATIONS"] = number == SATURATIONS
        chosen["PASS"] = Cat(
            *[(number == first + i) & (self.pass_ == i) for i in range(len(Pass))]
        ).any()
        added: list[Value] = []
        for name, width in EVENTS.items():
            event: Value = self.saturated
            if name == "SATURATIONS":
                width += more
            else:
                event = getattr(self, f"event_{name.lower()}")
            count = Signal(width, name=f"count_{name.lower()}")
            mine = Signal(name=f"turn_{name.lower()}")
            m.d.comb += mine.eq(chosen[name])
            if name == "SATURATIONS":
                m.d.sync += count.eq(Mux(mine | self.abandon, event, count + event))
            else:
                m.d.sync += count.eq(
                    Mux(mine | self.clear_counters, event & ~self.clear_counters, count + event)
                )
            added.append(Mux(mine, count, 0))
        total: Value = added[0]
        for value in added[1:]:
            total = total | value
        m.d.comb += amount.eq(total)
        return amount

    def elaborate(self, platform: object) -> Module:
        m = Module()
        init = [0] * (1 << ADDRESS_BITS)
        for number, value in initial_words(self.config).items():
            init[number] = value
        m.submodules.memory = memory = Memory(shape=32, depth=1 << ADDRESS_BITS, init=init)
        read, write = memory.read_port(), memory.write_port(granularity=8)

        # --- whose request it is ------------------------------------------------------------------
        turn = Signal(4)  # the counter whose turn comes
        counting, serving = (
            Signal(),
            Signal(),
        )  # what was requested in the cycle before, and for whom
        grant_turn, grant_host, waits = Signal(), Signal(), Signal()
        clearing = Signal()
        taken = self.active | self.blind | self.capture
        m.d.comb += [
            waits.eq(self.host_request & ~serving & ~clearing & ~turn[0]),
            grant_turn.eq(~taken & ~waits),
            # A counter that is being written now is not read.
            grant_host.eq(~taken & waits & ~counting),
        ]
        captured = Signal()
        m.d.sync += [counting.eq(grant_turn), serving.eq(grant_host), captured.eq(self.capture)]
        with m.If(self.capture):
            m.d.comb += read.addr.eq(CSR_BY_NAME["LOSS"].number)
        with m.Elif(waits & ~self.active):
            m.d.comb += read.addr.eq(self.host_number)
        with m.Elif(self.active | (turn == SATURATIONS)):
            m.d.comb += read.addr.eq(self.address)
        with m.Else():
            m.d.comb += read.addr.eq(FIRST_COUNTER | turn)
        address = Signal(ADDRESS_BITS)
        number = Signal(4, init=15)  # which counter it is; all ones for no counter
        void = self.blind | (waits & counting)
        nothing = void | (read.addr[4:] != FIRST_COUNTER >> 4)
        of_result = read.addr[6:].all() & ~void
        m.d.sync += [
            address.eq(read.addr),
            number.eq(Mux(of_result, SATURATIONS, read.addr[:4] | nothing.replicate(4))),
        ]
        assert FIRST_COUNTER & 15 == 0
        assert SATURATIONS < 15
        # Turns go round; of the passes' counters only that of the present pass has one, but all are
        # cleared, and first of all.
        first, last = FIRST_PASS - FIRST_COUNTER, LAST_COUNTER - FIRST_COUNTER
        following = Signal(4)
        with m.Switch(turn):
            with m.Case(last):
                m.d.comb += following.eq(Mux(clearing, 0, SATURATIONS))
            with m.Case(SATURATIONS):
                m.d.comb += following.eq(0)
            with m.Case(first - 1):
                m.d.comb += following.eq(first + self.pass_)
            with m.Case(*range(first, first + len(Pass))):
                m.d.comb += following.eq(Mux(clearing, turn + 1, first + len(Pass)))
            with m.Default():
                m.d.comb += following.eq(turn + 1)
        with m.If(grant_turn):
            m.d.sync += turn.eq(following)
            with m.If(turn == first - 1):
                m.d.sync += clearing.eq(0)
        with m.If(self.clear_counters):
            m.d.sync += [turn.eq(first), clearing.eq(1)]
        cleared = Signal()  # the counter requested in the cycle before is being cleared
        m.d.sync += cleared.eq(clearing & grant_turn)

        # --- the adder ----------------------------------------------------------------------------
        store = self.store
        overflowed = Signal()
        amount = self._counters(m, number)
        # One source at a time; all others are 0.
        host_writes = serving & self.host_write
        is_entry = address[6:] == EXPONENTS >> 6
        from_host = Cat(
            Mux(host_writes, self.host_data[:ENTRY_BITS], 0),
            Mux(host_writes & ~is_entry, self.host_data[ENTRY_BITS:], 0),
        )
        from_loss = Mux(store == Store.LOSS, self.loss, 0)
        from_row = Mux(captured, self.row, 0)
        takes_exponent = store == Store.EXPONENT
        filled = (store == Store.FILL) & overflowed
        tracking = store == Store.TRACKER
        low = Mux(takes_exponent, self.exponent, 0)
        middle = Mux(tracking & ~self.stepped, Mux(self.raised, self.exponent, 0xFF), 0)
        high = tracking & self.stepped
        addend = Signal(32)
        m.d.comb += addend.eq(
            from_host
            | from_loss
            | from_row
            | amount
            | Cat(low, middle[:8], high)
            | filled.replicate(32)
        )
        total = Signal(33)
        m.d.comb += [
            self.word.eq(read.data),
            total.eq(
                Cat(Const(1, 1), read.data, Const(0, 1))
                + Cat(store == Store.COUNT, addend, Const(0, 1))
                >> 1
            ),
        ]
        # The word itself has no part in the sum where it is replaced.
        replaced = (
            host_writes | cleared | takes_exponent | (store == Store.LOSS) | captured | filled
        )
        replaces = Cat(
            replaced,
            replaced | (tracking & self.raised),
            replaced | (tracking & ~self.stepped),
            replaced,
        )
        with m.If(self.abandon | (store == Store.FILL)):
            m.d.sync += overflowed.eq(0)
        with m.Elif((number == SATURATIONS) & total[32]):
            m.d.sync += overflowed.eq(1)
        written = Signal(32)
        for i in range(32):
            m.d.comb += written[i].eq(Mux(replaces[i // 8], addend[i], total[i]))
        m.d.comb += [
            self.sum.eq(written),
            write.addr.eq(address),
            write.data.eq(written),
            self.host_taken.eq(grant_host),
        ]
        whole = (
            ~number.all()
            | host_writes
            | captured
            | (store == Store.LOSS)
            | (store == Store.COUNT)
            | filled
        )
        m.d.comb += write.en.eq(
            Cat(
                whole | takes_exponent,
                whole | (tracking & self.bytes[0]),
                whole | (tracking & self.bytes[1]),
                whole,
            )
        )
        assert EXPONENTS == 2 * TENSORS
        return m
