"""Data memory: regions of byte lanes that serve windows starting at any byte.

A *region* is a word of S bytes, split into lanes of one byte (block RAM) or two (iCE40 UP5K SPRAM).
Each lane has its own address, so that a window of S bytes that straddles two words is read or
written in one cycle: the lanes below the start take the next word. A region has one read and one
write port, or a single port (`Config.single_port`).

Requests name a region and an offset. A needed byte (`mask`) outside the region raises `oor` in the
same cycle and suppresses the access. No two read channels (nor two write channels) may address one
region in the same cycle; a single-ported region serves one request in all. The core's schedule
guarantees both.
"""

from __future__ import annotations

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config


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
    single_port : bool
    technology : str
        "generic", or "up5k" to instantiate SPRAM.
    """

    def __init__(self, *, width: int, depth: int, single_port: bool, technology: str) -> None:
        self.width, self.depth = width, depth
        self.single_port, self.technology = single_port, technology
        address = max(1, (depth - 1).bit_length())
        super().__init__(
            {
                "r_en": In(1),
                "r_addr": In(address),
                "r_data": Out(width),
                "w_en": In(width // 8),
                "w_addr": In(address),
                "w_data": In(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.technology == "up5k":
            enable = Signal()
            m.d.comb += enable.eq(self.w_en.any())
            m.submodules.spram = Instance(
                "SB_SPRAM256KA",
                i_CLOCK=ClockSignal(),
                i_ADDRESS=Mux(enable, self.w_addr, self.r_addr),
                i_DATAIN=self.w_data,
                i_MASKWREN=Cat(self.w_en[0].replicate(2), self.w_en[1].replicate(2)),
                i_WREN=enable,
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
        address = Mux(self.w_en.any(), self.w_addr, self.r_addr) if self.single_port else None
        m.d.comb += [
            read.en.eq(self.r_en),
            read.addr.eq(self.r_addr if address is None else address),
            self.r_data.eq(read.data),
            write.en.eq(self.w_en),
            write.addr.eq(self.w_addr if address is None else address),
            write.data.eq(self.w_data),
        ]
        return m


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

    def _window(self, m: Module, name: str, channel: wiring.PureInterface) -> dict[str, Value]:
        """Word, next word, start lane, and the bounds check of one channel."""
        config = self.config
        size = config.word_bytes
        bits = size.bit_length() - 1
        start = channel.offset[:bits]
        word = channel.offset[bits:]
        following = Signal(len(word), name=f"{name}_following")
        first = Signal(size, name=f"{name}_first")
        m.d.comb += [
            following.eq(word + 1),
            first.eq((Const((1 << size) - 1, size) >> start)[:size]),
        ]
        needs_first = (channel.mask & first).any()
        needs_next = (channel.mask & ~first).any()
        out_of_range = Signal(name=f"{name}_out_of_range")
        with m.Switch(channel.region):
            for index, length in enumerate(config.regions):
                depth = length // size
                with m.Case(index):
                    m.d.comb += out_of_range.eq(
                        (needs_first & (word >= depth)) | (needs_next & (following >= depth))
                    )
            with m.Default():
                m.d.comb += out_of_range.eq(channel.mask.any())
        m.d.comb += channel.oor.eq(channel.en & out_of_range)
        access = Signal(name=f"{name}_access")
        m.d.comb += access.eq(channel.en & ~out_of_range)
        return {"start": start, "word": word, "following": following, "access": access}

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        size, lane_bytes = config.word_bytes, config.lane_bytes
        lanes = size // lane_bytes
        shift = lane_bytes.bit_length() - 1

        readers = [(n, getattr(self, f"r_{n}")) for n in self.reads]
        writers = [(n, getattr(self, f"w_{n}")) for n in self.writes]
        windows = {f"r_{n}": self._window(m, f"r_{n}", ch) for n, ch in readers}
        windows |= {f"w_{n}": self._window(m, f"w_{n}", ch) for n, ch in writers}

        written: dict[str, tuple[Value, Value]] = {}
        for name, channel in writers:
            start = windows[f"w_{name}"]["start"][shift:]
            data = Signal(8 * size, name=f"w_{name}_data")
            mask = Signal(size, name=f"w_{name}_mask")
            flags = Cat(*[Cat(channel.mask[i], Const(0, 7)) for i in range(size)])
            padded = Cat(Const(0, shift), start)
            turned = rotate_bytes(m, f"w_{name}_m", flags, padded, left=True)
            m.d.comb += [
                data.eq(rotate_bytes(m, f"w_{name}_d", channel.data, padded, left=True)),
                mask.eq(Cat(*[turned[8 * i] for i in range(size)])),
            ]
            written[name] = (data, mask)

        raw: list[Signal] = []
        for region, length in enumerate(config.regions):
            depth = length // size
            address_bits = max(1, (depth - 1).bit_length())

            def chosen(
                kind: str,
                channels: list[tuple[str, wiring.PureInterface]],
                region: int = region,
                address_bits: int = address_bits,
            ) -> tuple[Value, Value, Value, Value]:
                """Word, next word and start lane of the channel that addresses this region."""
                word: Value = Const(0, address_bits)
                following: Value = Const(0, address_bits)
                start: Value = Const(0, size.bit_length() - 1)
                enable: Value = Const(0, 1)
                for name, channel in channels:
                    window = windows[f"{kind}_{name}"]
                    hit = Signal(name=f"{kind}_{name}_hit{region}")
                    m.d.comb += hit.eq(window["access"] & (channel.region == region))
                    word = word | Mux(hit, window["word"][:address_bits], 0)
                    following = following | Mux(hit, window["following"][:address_bits], 0)
                    start = start | Mux(hit, window["start"], 0)
                    enable = enable | hit
                return word, following, start, enable

            def settle(name: str, value: Value) -> Value:
                signal = Signal(len(value), name=name)
                m.d.comb += signal.eq(value)
                return signal

            prefix = f"region{region}"
            r_word, r_next, r_start, r_en = (
                settle(f"{prefix}_r{i}", v) for i, v in enumerate(chosen("r", readers))
            )
            w_word, w_next, w_start, _ = (
                settle(f"{prefix}_w{i}", v) for i, v in enumerate(chosen("w", writers))
            )
            w_data: Value = Const(0, 8 * size)
            w_mask: Value = Const(0, size)
            for name, channel in writers:
                hit = windows[f"w_{name}"]["access"] & (channel.region == region)
                data, mask = written[name]
                w_data = w_data | Mux(hit, data, 0)
                w_mask = w_mask | Mux(hit, mask, 0)
            w_data = settle(f"{prefix}_w_data", w_data)
            w_mask = settle(f"{prefix}_w_mask", w_mask)
            out = Signal(8 * size, name=f"{prefix}_data")
            for lane in range(lanes):
                bank = Bank(
                    width=8 * lane_bytes,
                    depth=depth,
                    single_port=config.single_port,
                    technology=self.technology,
                )
                m.submodules[f"{prefix}_lane{lane}"] = bank
                low = lane * lane_bytes
                m.d.comb += [
                    bank.r_en.eq(r_en),
                    bank.r_addr.eq(Mux(lane < r_start[shift:], r_next, r_word)),
                    bank.w_en.eq(w_mask[low : low + lane_bytes]),
                    bank.w_addr.eq(Mux(lane < w_start[shift:], w_next, w_word)),
                    bank.w_data.eq(w_data[8 * low : 8 * (low + lane_bytes)]),
                    out[8 * low : 8 * (low + lane_bytes)].eq(bank.r_data),
                ]
            raw.append(out)

        for name, channel in readers:
            region = Signal(2, name=f"r_{name}_region_q")
            start = Signal(len(windows[f"r_{name}"]["start"]) - shift, name=f"r_{name}_start_q")
            with m.If(channel.en):
                m.d.sync += [
                    region.eq(channel.region),
                    start.eq(windows[f"r_{name}"]["start"][shift:]),
                ]
            data: Value = raw[0]
            for index in range(1, len(raw)):
                selected = Signal(8 * size, name=f"r_{name}_select{index}")
                m.d.comb += selected.eq(Mux(region == index, raw[index], data))
                data = selected
            padded = Cat(Const(0, shift), start)
            m.d.comb += channel.data.eq(rotate_bytes(m, f"r_{name}_d", data, padded, left=False))
        return m
