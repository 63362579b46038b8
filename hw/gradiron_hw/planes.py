"""The planes of a row: what is stored of it comes in, results go out."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config


class Planes(wiring.Component):
    """Two words of C bytes, high and low (a mask is a high plane).

    In steps a word is shifted on by one group with every result, which enters behind, so that the
    lowest bytes are always those of the group in the lanes' last stage. At full speed what comes in
    waits until its row's elements are there, and results have registers of their own.

    Members
    -------
    load_high, load_low, new_high, new_low : words from memory
    approach : the row's elements are one stage before the last
    high, low : bytes that belong to the elements of the last stage
    push_high, push_low, result_high, result_low : results take their place
    out_high, out_low : the row of results
    direct : words that come are for the next elements, not for the next row's
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        word, group = 8 * config.cols, 8 * config.lanes
        super().__init__(
            {
                "load_high": In(1),
                "load_low": In(1),
                "new_high": In(word),
                "new_low": In(word),
                "approach": In(1),
                "direct": In(1),
                "high": Out(group),
                "low": Out(group),
                "push_high": In(1),
                "push_low": In(1),
                "result_high": In(group),
                "result_low": In(group),
                "out_high": Out(word),
                "out_low": Out(word),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        group = 8 * self.config.lanes
        for name in ("high", "low"):
            load, new = getattr(self, f"load_{name}"), getattr(self, f"new_{name}")
            result, out = getattr(self, f"result_{name}"), getattr(self, f"out_{name}")
            here = getattr(self, name)
            with m.If(getattr(self, f"push_{name}")):
                m.d.sync += out.eq(Cat(out[group:], result))
            if self.config.stepwise:
                with m.If(load):
                    m.d.sync += out.eq(new)
                m.d.comb += here.eq(out[:group])
                continue
            waiting = Signal(group, name=f"waiting_{name}")
            with m.If(load):
                m.d.sync += waiting.eq(new)
            with m.If(self.approach):
                m.d.sync += here.eq(waiting)
            with m.If(load & self.direct):
                m.d.sync += here.eq(new)
        return m
