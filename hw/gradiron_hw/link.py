"""The device's end of the link: frames in a stream of bytes to accesses of the host port, and back.

A byte is taken into the buffer at once and then looked at bit by bit, from the buffer's output: for
the checksum, and into one long shift register where the header of a request is taken apart without
any logic. An answer leaves through a part of the same register. Nothing of a request takes effect
before its checksum has been compared, and no state depends on time.

Ref: `gradiron.arch.link`, which describes the frames.
"""

from functools import reduce
from operator import or_

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.isa import Space
from gradiron.arch.link import (
    CRC_POLYNOMIAL,
    ESCAPE,
    ESCAPE_BIT,
    FLAG,
    HEADER_BYTES,
    LINK_VERSION,
    PAGE,
    VERSION_SHIFT,
    Code,
)

_STATES = (
    "settle",  # the buffer's output becomes the byte received last
    "take",  # its bits are looked at
    "open",  # the flag in front of an answer is sent
    "number",  # the number of the request comes to the end of the register
    "send",  # a byte, or the escape in front of it
    "send_escaped",
    "sent",  # its bits go into the checksum
    "unit",  # something is left to do
    "fetch",  # a unit to write comes out of the buffer
    "request",  # the core does it
    "status",  # the status comes to the end of the register
    "checksum",  # the checksum fills it
    "close",  # the flag behind an answer is sent
)


class Link(wiring.Component):
    """Requests from a stream of bytes, done at the host port of a core, and answered.

    A received byte takes 10 cycles, in which `i` is not ready. From the end of a request to the end
    of its answer `i` is not ready; what a sender that cannot wait sends then is lost, and asked for
    again. A unit takes a few cycles of the core and those of its bytes: 8 to fetch one, about 10 to
    send one (the stream `o` permitting).

    A request to the core is held until `req_ready`; its answer may come in that cycle or later.

    Members
    -------
    i : In(stream) of bytes from the host
    o : Out(stream) of bytes to the host
    req_*, rsp_* : host port of the core, see `gradiron_hw.core.Core`
    busy : a request is being done or answered
    """

    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))
    req_valid: Out(1)
    req_ready: In(1)
    req_space: Out(2)
    req_addr: Out(24)
    req_write: Out(1)
    req_size: Out(3)
    req_data: Out(32)
    rsp_valid: In(1)
    rsp_data: In(32)
    rsp_error: In(1)
    busy: Out(1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # The upper half holds the checksum of a request, the lower one its header, then its data.
        m.submodules.buffer = buffer = Memory(shape=8, depth=2 * PAGE, init=[])
        read, write = buffer.read_port(), buffer.write_port()
        position = Signal(8)  # in the buffer; in a read, units so far
        end = Signal(8)
        at_end = Signal()
        bits = Signal(5)
        last_of_8, last_of_32 = Signal(), Signal()
        m.d.comb += [
            at_end.eq(position == end),
            last_of_8.eq(bits[:3] == 7),
            last_of_32.eq(last_of_8 & (bits[3:] == 3)),
        ]

        # --- where the link is --------------------------------------------------------------------
        # One register per state, none of which is set while it listens. Likewise for the part of a
        # frame that is received (none: what comes is dropped up to the next flag), and the part
        # of an answer that is sent (none: the number).
        at = {name: Signal(name=f"at_{name}") for name in _STATES}
        into: dict[str, list[Value]] = {name: [] for name in _STATES}
        leaving = {name: Signal(name=f"leave_{name}") for name in _STATES}
        in_header, in_data, in_sum = Signal(), Signal(), Signal()
        sends_data, sends_status, sends_sum = Signal(), Signal(), Signal()
        listening = Signal()
        m.d.comb += [
            listening.eq(~_any(*at.values())),
            self.busy.eq(~(listening | at["settle"] | at["take"])),
        ]

        def leave(state: str, when: Value | Const, **targets: Value) -> None:
            """Leave a state for one of the targets: the one whose condition holds, or none."""
            m.d.comb += leaving[state].eq(at[state] & when)
            into[state].append(at[state] & ~leaving[state])
            for target, condition in targets.items():
                into[target].append(leaving[state] & condition)

        # --- shift registers ----------------------------------------------------------------------
        # The bits of a header go through address and command into `word`; so its number comes to
        # the top of that, and the count before it is kept in `end`.
        word, command, low, high = Signal(32), Signal(8), Signal(8), Signal(16)
        bit, header_bit, word_bit = Signal(), Signal(), Signal()
        m.d.comb += [
            bit.eq(Array(read.data[i] for i in range(8))[bits[:3]]),
            header_bit.eq(at["take"] & in_header),
        ]
        with m.If(header_bit):
            m.d.sync += Cat(command, high).eq(Cat(command[1:], low[0], high[1:], bit))
            m.d.sync += low.eq(Cat(low[1:], high[0]))
        with m.Elif(leaving["request"]):
            m.d.sync += low.eq(low + 1)
        with m.If(header_bit & (position[:3] == 0)):
            m.d.sync += end.eq(read.data)
        with m.If(leaving["request"]):
            m.d.sync += word.eq(self.rsp_data)
        with m.Elif(
            header_bit | _any(*(at[n] for n in ("number", "sent", "fetch", "status", "checksum")))
        ):
            m.d.sync += word.eq(Cat(word[1:], word_bit))

        crc = Signal(32, init=0xFFFFFFFF)
        crc_begin, crc_take, crc_out, feedback = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            crc_take.eq((at["take"] & ~in_sum) | (at["sent"] & ~sends_sum)),
            # What leaves as a checksum makes room for ones: the register begins afresh.
            crc_out.eq((at["take"] & in_sum) | at["checksum"]),
            feedback.eq(crc_take & (crc[0] ^ Mux(at["take"], bit, word[0]))),
        ]
        with m.If(crc_begin):
            m.d.sync += crc.eq(crc.init)
        with m.Elif(crc_take | crc_out):
            taps = (CRC_POLYNOMIAL >> i & 1 for i in range(31))
            m.d.sync += crc.eq(
                Cat(*(crc[i + 1] ^ (feedback & tap) for i, tap in enumerate(taps)), crc_out)
                ^ feedback << 31
            )

        # --- the host port ------------------------------------------------------------------------
        writes, space = command[0], command[1:3]
        in_bytes = space == Space.MEMORY
        taken = Signal()
        m.d.sync += taken.eq(at["request"] & ~leaving["request"] & (taken | self.req_ready))
        m.d.comb += [
            # The answer may come at once or later: then the request is not made twice.
            self.req_valid.eq(at["request"] & ~taken),
            self.req_space.eq(space),
            self.req_write.eq(writes),
            self.req_addr.eq(Cat(low, high)),
            self.req_size.eq(Mux(in_bytes, 1, 4)),
            # A single byte has only come to the top.
            self.req_data.eq(Cat(Mux(in_bytes, word[24:], word[:8]), word[8:])),
        ]

        # --- receiving ----------------------------------------------------------------------------
        arrives, special, flag, escaped = Signal(), Signal(), Signal(), Signal()
        good, header_ends, data_ends = Signal(), Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(listening),
            arrives.eq(listening & self.i.valid),
            special.eq(_is_special(self.i.payload)),
            flag.eq(arrives & special & (self.i.payload[0] == FLAG & 1)),
            crc_begin.eq(flag),
            good.eq(flag & in_sum & position[2]),
            write.en.eq(arrives),
            write.addr.eq(Cat(position, in_sum)),
            read.addr.eq(Cat(position, in_sum)),
            write.data.eq(self.i.payload ^ (escaped << ESCAPE_BIT.bit_length() - 1)),
            header_ends.eq(leaving["take"] & in_header & (position[:3] == HEADER_BYTES)),
            data_ends.eq(leaving["take"] & in_data & at_end),
        ]
        into["open"].append(good)
        into["settle"].append(arrives & ~special & (in_header | in_data | in_sum))
        leave("settle", Const(1), take=Const(1))
        leave("take", last_of_8)
        with m.If(arrives):
            m.d.sync += escaped.eq(special & ~flag)
        with m.If(flag):
            m.d.sync += [in_header.eq(~good), in_data.eq(0), in_sum.eq(0)]
        with m.Elif(header_ends):
            # The bit that is about to be the command's lowest: a write has data.
            m.d.sync += [in_header.eq(0), in_data.eq(command[1]), in_sum.eq(~command[1])]
        with m.Elif(data_ends):
            m.d.sync += [in_data.eq(0), in_sum.eq(1)]
        # Wrong, or a fifth byte.
        with m.Elif(at["take"] & ((bit == crc[0]) | (position[2] & position[0]))):
            m.d.sync += in_sum.eq(0)

        # Moved on while the last bit but one is taken: the buffer's output follows just in time.
        with m.If(flag | header_ends | data_ends):
            m.d.sync += position.eq(0)
        with m.Elif(
            ((at["take"] | at["fetch"]) & (bits[:3] == 6)) | (leaving["request"] & ~writes)
        ):
            m.d.sync += position.eq(position + 1)

        # --- doing --------------------------------------------------------------------------------
        last = Signal()  # lowest bit of the last request's number
        again, refused, malformed, skip = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            malformed.eq(
                (command[3:] != LINK_VERSION << VERSION_SHIFT - 3)
                | (writes & ~in_bytes & (end[:2] != 0))
            ),
            skip.eq(malformed | (writes & again)),
        ]
        with m.If(good):
            m.d.sync += [again.eq(word[24] == last), last.eq(word[24])]
        with m.If(at["unit"] | at["request"]):
            m.d.sync += refused.eq(at["request"] & self.rsp_error)
        leave("unit", Const(1), fetch=writes, request=~writes)
        leave("fetch", Mux(in_bytes, last_of_8, last_of_32), request=Const(1))
        finished = self.rsp_error | (writes & at_end)
        leave(
            "request",
            self.rsp_valid,
            status=finished,
            unit=~finished & writes,
            send=~finished & ~writes,
        )

        # --- answering ----------------------------------------------------------------------------
        byte = word[:8]
        byte_special, sends_number, whole = Signal(), Signal(), Signal()
        m.d.comb += [
            byte_special.eq(_is_special(byte)),
            sends_number.eq(~(sends_data | sends_status | sends_sum)),
            # Of what is sent, the last byte: of one byte, or of a word.
            whole.eq(sends_number | sends_status | (sends_data & in_bytes) | (bits[3:] == 3)),
            self.o.valid.eq(_any(*(at[n] for n in ("open", "send", "send_escaped", "close")))),
            self.o.payload.eq(
                Mux(at["send_escaped"], byte ^ ESCAPE_BIT, Mux(byte_special, ESCAPE, byte))
            ),
        ]
        with m.If(at["open"] | at["close"]):
            m.d.comb += self.o.payload.eq(FLAG)
        leave("open", self.o.ready, number=Const(1))
        leave("number", last_of_8 & (bits[3:] == 2), send=Const(1))
        leave("send", self.o.ready, send_escaped=byte_special, sent=~byte_special)
        leave("send_escaped", self.o.ready, sent=Const(1))
        leave(
            "sent",
            last_of_8,
            send=~whole,
            unit=(sends_number & ~skip) | (sends_data & whole & ~at_end),
            status=(sends_number & skip) | (sends_data & whole & at_end),
            checksum=sends_status,
            close=sends_sum & whole,
        )
        leave("status", last_of_32, send=Const(1))
        leave("checksum", last_of_32, send=Const(1))
        leave("close", self.o.ready)
        with m.If(at["open"]):
            m.d.sync += [sends_data.eq(0), sends_status.eq(0), sends_sum.eq(0)]
        with m.If(at["request"]):
            m.d.sync += sends_data.eq(1)
        with m.If(at["status"]):
            m.d.sync += [sends_data.eq(0), sends_status.eq(1)]
        with m.If(at["checksum"]):
            m.d.sync += [sends_status.eq(0), sends_sum.eq(1)]
        codes = {Code.REFUSED: refused & ~malformed, Code.MALFORMED: malformed}
        status = Array(
            [*codes.values(), *Const(0, VERSION_SHIFT - len(codes)), *Const(LINK_VERSION, 4)]
        )[bits[:3]]
        m.d.comb += word_bit.eq(
            (at["take"] & command[0])
            | (at["fetch"] & bit)
            | (at["status"] & status)
            | (at["checksum"] & ~crc[0])
        )

        m.d.sync += bits.eq(bits + 1)
        with m.If(
            _any(*(at[n] for n in ("settle", "open", "unit", "request")))
            | (leaving["sent"] & whole)
        ):
            m.d.sync += bits.eq(0)
        with m.If(at["send"] | at["send_escaped"]):
            m.d.sync += bits.eq(bits)
        m.d.sync += [at[name].eq(_any(*into[name])) for name in _STATES]
        return m


def _any(*conditions: Value) -> Value:
    """Whether one of them holds."""
    return reduce(or_, conditions)


def _is_special(byte: Value) -> Value:
    """Whether a byte is a flag or an escape, which differ in their two lowest bits."""
    return (byte[2:] == FLAG >> 2) & (byte[0] ^ byte[1])
