"""The slow, independent simulation: Amaranth's own simulator behind the device interface.

It needs no other tool, and it is the second opinion on what the C++ simulation does. The simulator
stands still between calls; a call hands an errand to a test bench inside it and lets time pass
until the errand is done.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

from amaranth.sim import Simulator

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import MachineState, Space
from gradiron.errors import DeviceError
from gradiron_sim.netlist import Component
from gradiron_sim.rtl import PATIENCE, RtlDevice, check_ports, default_component, unit_names

_PERIOD = 1e-6
"""Seconds of simulated time in a cycle: a cycle is a microsecond in the waves."""
_CONTROL = isa.CSR_BY_NAME["CONTROL"].number
_CLEAR = 8
VCD_LIMIT = 1 << 18
"""Bytes of data memory up to which waves can be written."""
_LOOK = 256
"""Cycles between two looks at the clock."""


@dataclass
class _Errand:
    """What the test bench shall do: accesses one after the other, or waiting until a stop."""

    accesses: list[tuple[int, int, int, int, int]] = field(
        default_factory=list[tuple[int, int, int, int, int]]
    )
    """(space, address, write, size, data)"""
    wait: bool = False
    end: float | None = None
    answers: list[int] = field(default_factory=list[int])
    outcome: str = ""
    """Empty while under way, then done, refused, silent or late."""


class PysimDevice(RtlDevice):
    """A machine simulated by Amaranth.

    Parameters
    ----------
    config : Config
    record : bool
        Whether to record `retirements`.
    activity : bool
        Whether to record which units are busy in which cycle.
    vcd : path, optional
        Write waves of everything to this file, complete after `close`; for machines with up to
        `VCD_LIMIT` bytes of data memory.
    component : Component, optional
        The machine; `gradiron_hw.core.Core(config)` if not given.
    """

    kind: ClassVar[str] = "pysim"

    def __init__(
        self,
        config: Config,
        *,
        record: bool = False,
        activity: bool = False,
        vcd: str | os.PathLike[str] | None = None,
        component: Component | None = None,
    ) -> None:
        if vcd is not None and config.memory_bytes > VCD_LIMIT:
            raise DeviceError(
                f"waves of a machine with {config.memory_bytes} bytes of data memory: pysim "
                f"writes every byte as a variable of its own, and does so up to {VCD_LIMIT} "
                "bytes; use the engine cxxrtl, or a configuration with smaller regions"
            )
        machine: Any = default_component(config) if component is None else component
        check_ports(machine)
        self._core: Any = machine
        self._ports = [
            machine.state,
            machine.retire,
            machine.retire_pc,
            machine.activity,
            machine.req_ready,
            machine.rsp_valid,
            machine.rsp_data,
            machine.rsp_error,
        ]
        self._cycles = self._running_cycles = self._first = 0
        self._errand: _Errand | None = None
        self._is_open = True
        self._largest = min(4, config.word_bytes)
        self._simulator = Simulator(machine)
        self._files = contextlib.ExitStack()
        waves = None
        if vcd is not None:
            try:
                waves = self._files.enter_context(open(vcd, "w", encoding="utf-8"))
            except OSError as error:
                message = f"the waves cannot be written to {os.fspath(vcd)!r}: {error}"
                raise DeviceError(message) from error
        self._simulator.add_clock(_PERIOD)
        self._simulator.add_testbench(self._bench, background=True)
        if waves is not None:
            self._files.enter_context(self._simulator.write_vcd(waves))
        super().__init__(config, record=record, activity=activity, units=unit_names(machine))

    @property
    def cycles(self) -> int:
        """Cycles simulated since the device was opened, whatever the machine did in them."""
        return self._cycles

    @property
    def running_cycles(self) -> int:
        """Cycles in RUNNING since the counters were cleared."""
        return self._running_cycles

    # --- inside the simulation -----------------------------------------------------------------

    async def _tick(self, context: Any) -> tuple[int, ...]:
        """One cycle: what the outputs were at its edge."""
        _clock, _reset, *sampled = await context.tick().sample(*self._ports)
        state, retire, pc, units = (int(value) for value in sampled[:4])
        self._cycles += 1
        if state == MachineState.RUNNING:
            self._note_activity([self._running_cycles, units])
            if retire:
                self._note_retirements([pc, self._first, self._running_cycles])
                self._first = self._running_cycles + 1
            self._running_cycles += 1
        else:
            if retire:
                last = max(self._first, self._running_cycles - 1)
                self._note_retirements([pc, self._first, last])
            self._first = self._running_cycles
        return (state, *(int(value) for value in sampled[4:]))

    async def _bench(self, context: Any) -> None:
        while True:
            errand, self._errand = self._errand, None
            if errand is None:
                # Time passes only for the sake of an errand: in this cycle the next one has come.
                await self._tick(context)
            elif errand.wait:
                errand.outcome = await self._until_stopped(context, errand.end)
            else:
                errand.outcome = await self._transfer(context, errand)

    async def _until_stopped(self, context: Any, end: float | None) -> str:
        count = 0
        while True:
            state, *_ = await self._tick(context)
            if state != MachineState.RUNNING:
                return "done"
            count += 1
            if end is not None and count % _LOOK == 0 and time.monotonic() >= end:
                return "late"

    async def _transfer(self, context: Any, errand: _Errand) -> str:
        core = self._core
        for space, address, write, size, data in errand.accesses:
            for port, value in (
                (core.req_space, space),
                (core.req_addr, address),
                (core.req_write, write),
                (core.req_size, size),
                (core.req_data, data),
                (core.req_valid, 1),
            ):
                context.set(port, value)
            taken = False
            for _ in range(PATIENCE):
                _state, ready, answered, answer, refused = await self._tick(context)
                if not taken and ready:
                    taken = True
                    context.set(core.req_valid, 0)
                    if write and space == Space.CSR and address == _CONTROL and data & _CLEAR:
                        self._running_cycles = self._first = 0
                if taken and answered:
                    break
            else:
                context.set(core.req_valid, 0)
                return "silent"
            if refused:
                return "refused"
            errand.answers.append(answer)
        return "done"

    # --- outside -------------------------------------------------------------------------------

    def _perform(self, errand: _Errand) -> None:
        if not self._is_open:
            raise self._closed()
        self._errand = errand
        try:
            while not errand.outcome:
                self._simulator.advance()
        except AssertionError as error:
            raise self._broken(str(error)) from error

    def _accesses(self, space: Space, address: int, count: int) -> list[tuple[int, int]]:
        """Addresses and sizes of the accesses that move a block."""
        if space != Space.MEMORY:
            return [(address + index, 4) for index in range(count)]
        pieces: list[tuple[int, int]] = []
        at, end = address, address + count
        while at < end:
            size = self._largest
            while at % size or at + size > end:
                size >>= 1
            pieces.append((at, size))
            at += size
        return pieces

    def _move(self, space: Space, write: bool, pieces: list[tuple[int, int, int]]) -> list[int]:
        errand = _Errand([(int(space), at, int(write), size, data) for at, size, data in pieces])
        self._perform(errand)
        if errand.outcome != "done":
            at = pieces[len(errand.answers)][0]
            raise (
                self._refused(space, write, at)
                if errand.outcome == "refused"
                else self._no_answer(space, at)
            )
        return errand.answers

    def _read(self, space: Space, address: int, count: int) -> bytes:
        pieces = [(at, size, 0) for at, size in self._accesses(space, address, count)]
        answers = self._move(space, False, pieces)
        return b"".join(
            answer.to_bytes(4, "little")[:size]
            for answer, (_at, size, _data) in zip(answers, pieces, strict=True)
        )

    def _write(self, space: Space, address: int, data: bytes) -> None:
        if space == Space.PROGRAM:
            self._note_program(address, data)
        count = len(data) if space == Space.MEMORY else len(data) // 4
        pieces: list[tuple[int, int, int]] = []
        place = 0
        for at, size in self._accesses(space, address, count):
            pieces.append((at, size, int.from_bytes(data[place : place + size], "little")))
            place += size
        self._move(space, True, pieces)

    def _wait(self, timeout: float | None) -> None:
        errand = _Errand(wait=True, end=None if timeout is None else time.monotonic() + timeout)
        self._perform(errand)
        if errand.outcome == "late":
            raise self._running_still(timeout)

    def peek(self, space: Space, address: int, count: int) -> bytes:
        """Read for comparison, through the host port."""
        return self._read(space, address, count)

    def close(self) -> None:
        """Finish the waves; closing twice is harmless."""
        self._is_open = False
        self._files.close()
