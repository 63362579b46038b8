"""Carriers without an operating system: simulated hardware, with noise on its line."""

from __future__ import annotations

import random
from collections.abc import Iterable

from gradiron_sim.board import Line

PATIENCE = 1 << 13
"""Cycles without a byte after which none will come: the longest write takes fewer."""


class Noise:
    """Flips, drops, repeats and inserts bytes, each at a rate."""

    def __init__(self, seed: int, rate: float) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self.events = 0

    def __call__(self, data: Iterable[int]) -> bytes:
        out = bytearray()
        for byte in data:
            draw = self._random.random() / self._rate if self._rate else 4
            if draw < 4:
                self.events += 1
            if draw < 1:
                out.append(byte ^ 1 << self._random.randrange(8))
            elif draw < 2:
                pass
            elif draw < 3:
                out += bytes((byte, byte))
            elif draw < 4:
                out += bytes((self._random.randrange(256), byte))
            else:
                out.append(byte)
        return bytes(out)


class SimulatedLine:
    """A `Transport` into simulated hardware; its time is that of the hardware."""

    def __init__(self, line: Line, *, seed: int = 0, rate: float = 0.0) -> None:
        self.name = "the simulated line"
        self.line = line
        self.to_device, self.to_host = Noise(seed, rate), Noise(seed + 1, rate)
        self.frames = 0

    def write(self, data: bytes) -> None:
        self.frames += 1
        self.line.put(self.to_device(data))

    def read(self, timeout: float) -> bytes:
        return self.to_host(self.line.run(1 << 16, quiet=PATIENCE))

    def close(self) -> None:
        pass
