"""What the simulated machines have in common, whichever simulator runs them."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import Space
from gradiron.device import Device, Retirement, words_of
from gradiron.errors import DeviceError
from gradiron_sim.netlist import Component, port_widths

HOST_PORTS: dict[str, int] = {
    "req_valid": 1,
    "req_ready": 1,
    "req_space": 2,
    "req_addr": 24,
    "req_write": 1,
    "req_size": 3,
    "req_data": 32,
    "rsp_valid": 1,
    "rsp_data": 32,
    "rsp_error": 1,
    "state": 3,
    "retire": 1,
    "retire_pc": 16,
    "activity": 8,
}
"""Ports, with their widths, through which a simulation drives and watches a machine."""

PATIENCE = 1_000_000
"""Cycles within which the machine must answer a request of the host."""


class ActivityChange(NamedTuple):
    """From this cycle on these units are busy: one bit per unit."""

    cycle: int
    units: int


def check_ports(component: Component) -> None:
    """Refuse a component that is not a machine.

    Raises
    ------
    DeviceError
        Naming the ports that are missing, have another width, or are not known.
    """
    found = port_widths(component)
    wrong = [
        f"{name} ({HOST_PORTS.get(name, 'unknown')} bits expected, {found.get(name, 'none')} found)"
        for name in sorted(found.keys() | HOST_PORTS.keys())
        if found.get(name) != HOST_PORTS.get(name)
    ]
    if wrong:
        raise DeviceError(
            f"{type(component).__name__} cannot be driven as a machine, its ports differ: "
            + ", ".join(wrong)
        )


def default_component(config: Config) -> Component:
    """The hardware of a configuration."""
    from gradiron_hw.core import Core

    return Core(config)


def unit_names(component: Component) -> tuple[str, ...]:
    """Names of the units whose activity is shown, from bit 0 on."""
    names = tuple(str(name) for name in getattr(component, "ACTIVITY", ()))
    return names + tuple(f"unit{bit}" for bit in range(len(names), HOST_PORTS["activity"]))


class RtlDevice(Device):
    """A simulated machine.

    Parameters
    ----------
    config : Config
    record : bool
        Whether to record `retirements`; their cycles are those in RUNNING, from 0.
    activity : bool
        Whether to record which units are busy in which cycle.
    units : tuple of str
        Names of the units.

    Members
    -------
    activity : list of ActivityChange or None
        Changes in the busy units, in order; cycles as in `retirements`.
    units : tuple of str
    """

    kind: ClassVar[str] = "simulated"

    def __init__(
        self, config: Config, *, record: bool, activity: bool, units: tuple[str, ...]
    ) -> None:
        self.units = units
        self.activity: list[ActivityChange] | None = [] if activity else None
        self._names: dict[int, str] = {}
        super().__init__(config, record=record)

    @property
    @abstractmethod
    def cycles(self) -> int:
        """Cycles simulated since the device was opened, whatever the machine did in them."""

    @property
    @abstractmethod
    def running_cycles(self) -> int:
        """Cycles in RUNNING since the counters were cleared."""

    @abstractmethod
    def peek(self, space: Space, address: int, count: int) -> bytes:
        """Read for comparison: as fast as the simulator can, and not counted as traffic."""

    def forget(self) -> None:
        """Drop what was recorded so far; with `clear_counters` before a part of interest."""
        if self.retirements is not None:
            self.retirements.clear()
        if self.activity is not None:
            self.activity.clear()

    def _note_program(self, address: int, data: bytes) -> None:
        """Remember what instructions are called, for `retirements`."""
        for pc, word in enumerate(words_of(data), address):
            decoded = isa.decode(word, self._config)
            self._names[pc] = decoded.name if isinstance(decoded, isa.Decoded) else ".word"

    def _note_retirements(self, numbers: list[int]) -> None:
        """Append events given as pc, first cycle, last cycle, pc, ..."""
        if self.retirements is not None:
            columns = (numbers[0::3], numbers[1::3], numbers[2::3])
            for pc, first, last in zip(*columns, strict=True):
                name = self._names.get(pc, ".word")
                self.retirements.append(Retirement(pc, first, last, name))

    def _note_activity(self, numbers: list[int]) -> None:
        """Append what differs from the last change, given as cycle, units, cycle, units, ..."""
        if self.activity is not None:
            for cycle, units in zip(numbers[0::2], numbers[1::2], strict=True):
                if not self.activity or self.activity[-1].units != units:
                    self.activity.append(ActivityChange(cycle, units))

    def _refused(self, space: Space, write: bool, address: int) -> DeviceError:
        return DeviceError(
            f"the {self.kind} device refused to {'write' if write else 'read'} {space.name} at "
            f"{address:#x}: the address does not exist, or the machine is running (wait for it, "
            "or reset it)"
        )

    def _no_answer(self, space: Space, address: int) -> DeviceError:
        return DeviceError(
            f"the {self.kind} device did not answer an access to {space.name} at {address:#x} "
            f"within {PATIENCE} cycles; its host port hangs, which is a fault of the hardware"
        )

    def _broken(self, message: str) -> DeviceError:
        return DeviceError(
            f"the {self.kind} device found a broken promise of its own hardware in cycle "
            f"{self.cycles}: {message}; this is a fault of the hardware, please report it with the "
            "program"
        )

    def _closed(self) -> DeviceError:
        return DeviceError(f"the {self.kind} device is closed; open another one")

    def _running_still(self, timeout: float | None) -> DeviceError:
        return DeviceError(
            f"the {self.kind} device is still running after {timeout} s and {self.cycles} cycles; "
            "wait longer, or reset it (Device.reset)"
        )
