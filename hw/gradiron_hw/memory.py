"""Data memory: regions of byte lanes that serve windows starting at any byte.

A *region* is a word of S bytes, split into lanes of one byte (block RAM) or two (iCE40 UP5K SPRAM).
Each lane has its own address, so that a window of S bytes that straddles two words is read or
written in one cycle: the lanes below the start take the next word. A region has one read and one
write port, or a single port (`Config.single_port`).

Requests name a region and an offset. A needed byte (`mask`) outside the region raises `oor` in the
same cycle and suppresses the access. No two read channels (nor two write channels) may address one
region in the same cycle; a single-ported region serves one request in all, and in a cycle with a
write the last read channel must rest. The core's schedule guarantees all of it.

As a port serves one request per cycle, what a request needs stands once per port and not once per
channel: the port chooses an offset and a mask, checks them, and turns the window it has read;
a channel only picks the region it has asked. Addresses do not wait for the check.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, ClockSignal, Const, Instance, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import MAX_REGIONS, Config


def read_channel(config: Config) -> wiring.Signature:
    """A read request and its data, which are valid during exactly the next cycle.

    Members
    -------
    en, region, offset : request
    mask : needed bytes of the window
    oor : the request needs a byte outside its region (same cycle)
    data : window, byte 0 lowest
    """
    return wiring.Signature(
        {
            "en": Out(1),
            "region": Out(2),
            "offset": Out(config.offset_bits),
            "mask": Out(config.word_bytes),
            "oor": In(1),
            "data": In(8 * config.word_bytes),
        }
    )


def write_channel(config: Config) -> wiring.Signature:
    """A write request; members as in `read_channel`, `data` going out."""
    return wiring.Signature(
        {
            "en": Out(1),
            "region": Out(2),
            "offset": Out(config.offset_bits),
            "mask": Out(config.word_bytes),
            "oor": In(1),
            "data": Out(8 * config.word_bytes),
        }
    )


def rotate_bytes(m: Module, name: str, value: Value, amount: Value, *, left: bool) -> Value:
    """A barrel rotator over whole bytes; `amount` has log2(number of bytes) bits."""
    size = len(value)
    for stage in range(len(amount)):
        turn = 8 << stage
        if left:
            turned = Cat(value[size - turn :], value[: size - turn])
        else:
            turned = Cat(value[turn:], value[:turn])
        result = Signal(size, name=f"{name}_rotate{stage}")
        m.d.comb += result.eq(Mux(amount[stage], turned, value))
        value = result
    return value


class Bank(wiring.Component):
    """One lane of one region.

    Parameters
    ----------
    width : int
        Bits, a multiple of 8.
    depth : int
    technology : str
        "generic", or "up5k" to instantiate SPRAM, for which both addresses must be the same.
    """

    def __init__(self, *, width: int, depth: int, technology: str) -> None:
        self.width, self.depth, self.technology = width, depth, technology
        address = max(1, (depth - 1).bit_length())
        super().__init__(
            {
                "r_en": In(1),
                "r_addr": In(address),
                "r_data": Out(width),
                "w_en": In(1),
                "w_mask": In(width // 8),
                "w_addr": In(address),
                "w_data": In(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.technology == "up5k":
            m.submodules.spram = Instance(
                "SB_SPRAM256KA",
                i_CLOCK=ClockSignal(),
                i_ADDRESS=self.r_addr,
                i_DATAIN=self.w_data,
                i_MASKWREN=Cat(self.w_mask[0].replicate(2), self.w_mask[1].replicate(2)),
                i_WREN=self.w_en,
                i_CHIPSELECT=Const(1),
                i_STANDBY=Const(0),
                i_SLEEP=Const(0),
                i_POWEROFF=Const(1),
                o_DATAOUT=self.r_data,
            )
            return m
        m.submodules.memory = memory = Memory(shape=self.width, depth=self.depth, init=[])
        write = memory.write_port(granularity=8)
        read = memory.read_port()
        m.d.comb += [
            read.en.eq(self.r_en),
            read.addr.eq(self.r_addr),
            self.r_data.eq(read.data),
            write.en.eq(Mux(self.w_en, self.w_mask, 0)),
            write.addr.eq(self.w_addr),
            write.data.eq(self.w_data),
        ]
        return m


class _Port:
    """A port of a region: the request that it serves, its check and the addresses of its lanes.

    Parameters
    ----------
    m : Module
    name : str
        Prefix of the signals.
    config : Config
    length : int
        Bytes of the region.
    offset, mask : Value
        The request.

    Attributes
    ----------
    start : Value
        First lane of the window.
    addresses : list of Value
        Of every lane.
    out_of_range : Signal
        A needed byte is not there.
    """

    def __init__(
        self, m: Module, name: str, config: Config, length: int, offset: Value, mask: Value
    ) -> None:
        size = config.word_bytes
        shift = config.lane_bytes.bit_length() - 1
        bits = size.bit_length() - 1
        depth = length // size
        where = Signal(config.offset_bits, name=f"{name}_offset")
        needed = Signal(size, name=f"{name}_mask")
        self.start = where[shift:bits]
        word = where[bits:]
        following = Signal(len(word), name=f"{name}_following")
        first = Signal(size, name=f"{name}_first")
        start = Cat(Const(0, shift), self.start)
        self.out_of_range = Signal(name=f"{name}_out_of_range")
        m.d.comb += [
            where.eq(offset),
            needed.eq(mask),
            # The first lane takes this always: the next word, but where a window is one word.
            following.eq(word + (self.start != 0)),
            first.eq((Const((1 << size) - 1, size) >> start)[:size]),
            self.out_of_range.eq(
                ((needed & first).any() & (word >= depth))
                | ((needed & ~first).any() & (following >= depth))
            ),
        ]
        others = range(1, size // config.lane_bytes)
        self.addresses = [following, *(Mux(lane < self.start, following, word) for lane in others)]


def _named(kind: str, channels: dict[str, Any]) -> dict[str, Any]:
    """Channels by names that tell readers from writers."""
    return {f"{kind}_{name}": channel for name, channel in channels.items()}


class DataMemory(wiring.Component):
    """All regions behind named channels.

    Parameters
    ----------
    config : Config
    reads, writes : tuple of str
        Names of the channels; members `r_<name>` and `w_<name>`.
    technology : str
    """

    def __init__(
        self,
        config: Config,
        *,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        technology: str = "generic",
    ) -> None:
        self.config, self.reads, self.writes, self.technology = config, reads, writes, technology
        members = {f"r_{name}": In(read_channel(config)) for name in reads}
        members |= {f"w_{name}": In(write_channel(config)) for name in writes}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        size, lane_bytes = config.word_bytes, config.lane_bytes
        shift = lane_bytes.bit_length() - 1
        select = (len(config.regions) - 1).bit_length()

        readers = {name: getattr(self, f"r_{name}") for name in self.reads}
        writers = {name: getattr(self, f"w_{name}") for name in self.writes}
        everyone = [*readers.values(), *writers.values()]
        # A region that does not exist has no byte.
        faults: list[list[Value]] = [
            [ch.en & (ch.region >= len(config.regions)) & ch.mask.any()]
            if len(config.regions) < MAX_REGIONS
            else []
            for ch in everyone
        ]

        def hits(kind: str, channels: dict[str, wiring.PureInterface], region: int) -> list[Signal]:
            found: list[Signal] = []
            for name, channel in channels.items():
                hit = Signal(name=f"{kind}_{name}_hit{region}")
                m.d.comb += hit.eq(channel.en & (channel.region == region))
                found.append(hit)
            return found

        def choose(
            hits: list[Signal], channels: dict[str, wiring.PureInterface], member: str
        ) -> Value:
            """What the channel that hits has; the first one's where none does."""
            first, *others = channels.values()
            value = getattr(first, member)
            for hit, channel in zip(hits[1:], others, strict=True):
                value = Mux(hit, getattr(channel, member), value)
            return value

        # With a single port, the last reader and the only writer have one path in common.
        common: dict[str, Value] = {}
        if config.single_port and len(writers) == 1:
            last, (writer,) = list(readers.values())[-1], writers.values()
            for member in ("offset", "mask"):
                common[member] = Signal.like(getattr(writer, member), name=f"common_{member}")
                m.d.comb += common[member].eq(
                    Mux(writer.en, getattr(writer, member), getattr(last, member))
                )

        turned: list[tuple[Value, Value]] = []
        for name, channel in writers.items():
            bits = size.bit_length() - 1
            start = Cat(Const(0, shift), channel.offset[shift:bits])
            flags = Cat(*[Cat(channel.mask[i], Const(0, 7)) for i in range(size)])
            flags = rotate_bytes(m, f"w_{name}_m", flags, start, left=True)
            turned_data = rotate_bytes(m, f"w_{name}_d", channel.data, start, left=True)
            turned.append((turned_data, Cat(*[flags[8 * i] for i in range(size)])))

        windows: list[Value] = []
        for region, length in enumerate(config.regions):
            prefix = f"region{region}"
            r_hits, w_hits = hits("r", readers, region), hits("w", writers, region)
            if common:
                rest = dict(list(readers.items())[:-1])
                hit = Signal(name=f"{prefix}_common")
                m.d.comb += hit.eq(r_hits[-1] | w_hits[0])
                r_port = w_port = _Port(
                    m,
                    prefix,
                    config,
                    length,
                    Mux(hit, common["offset"], choose(r_hits[:-1], rest, "offset")),
                    Mux(hit, common["mask"], choose(r_hits[:-1], rest, "mask")),
                )
            elif config.single_port:
                both, all_hits = {**_named("r", readers), **_named("w", writers)}, r_hits + w_hits
                r_port = w_port = _Port(
                    m,
                    prefix,
                    config,
                    length,
                    choose(all_hits, both, "offset"),
                    choose(all_hits, both, "mask"),
                )
            else:
                r_port, w_port = (
                    _Port(
                        m,
                        f"{prefix}_{kind}",
                        config,
                        length,
                        choose(found, channels, "offset"),
                        choose(found, channels, "mask"),
                    )
                    for kind, found, channels in (("r", r_hits, readers), ("w", w_hits, writers))
                )
            for index, hit in enumerate([*r_hits, *w_hits]):
                port = r_port if index < len(r_hits) else w_port
                faults[index].append(hit & port.out_of_range)
            data, mask = turned[0]
            for hit, (other_data, other_mask) in zip(w_hits[1:], turned[1:], strict=True):
                data, mask = Mux(hit, other_data, data), Mux(hit, other_mask, mask)
            window = Signal(8 * size, name=f"{prefix}_window")
            for lane in range(size // lane_bytes):
                depth = length // size
                bank = Bank(width=8 * lane_bytes, depth=depth, technology=self.technology)
                m.submodules[f"{prefix}_lane{lane}"] = bank
                low, high = lane * lane_bytes, (lane + 1) * lane_bytes
                m.d.comb += [
                    bank.r_en.eq(Cat(*r_hits).any()),
                    bank.r_addr.eq(r_port.addresses[lane]),
                    bank.w_en.eq(Cat(*w_hits).any() & ~w_port.out_of_range),
                    bank.w_mask.eq(mask[low:high]),
                    bank.w_addr.eq(w_port.addresses[lane]),
                    bank.w_data.eq(data[8 * low : 8 * high]),
                    window[8 * low : 8 * high].eq(bank.r_data),
                ]
            start_q = Signal(len(r_port.start), name=f"{prefix}_start_q")
            m.d.sync += start_q.eq(r_port.start)
            padded = Cat(Const(0, shift), start_q)
            windows.append(rotate_bytes(m, prefix, window, padded, left=False))

        for channel, found in zip(everyone, faults, strict=True):
            m.d.comb += channel.oor.eq(Cat(*found).any())
        for name, channel in readers.items():
            region = Signal(select, name=f"r_{name}_region_q")
            m.d.sync += region.eq(channel.region)
            m.d.comb += channel.data.eq(Array(windows)[region] if select else windows[0])
        return m
