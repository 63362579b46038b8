"""All that instructions compute with: memories, exponent table, registers, random state."""

from __future__ import annotations

import numpy as np

from gradiron.arch import numerics
from gradiron.arch.config import TENSORS, Config
from gradiron.arch.isa import REGISTERS
from gradiron.arch.numerics import Tracker
from gradiron.golden.addressing import Int8

SATURATION_LIMIT = (1 << 32) - 1
RESET_REGISTERS: dict[str, int] = {r.name: r.reset for r in REGISTERS}


class Data:
    """The state that products and losses read and write.

    Parameters
    ----------
    config : Config
    fast : bool
        Whether the fast forms may be used; the results are the same.

    Members
    -------
    memory : list of (bytes,) int8
        The regions.
    registers : dict of str to int
        Descriptor registers, in the order of `isa.REGISTERS`.
    exponent : list of int
        Exponent of the stored data, per tensor.
    tracker : list of Tracker
    saturations : list of int
    largest : int
        The register m: the largest accumulator of the tensor that is being computed.
    loss, seed, step, rate : int
        As the CSRs of these names; `rate` is all of the word.
    """

    def __init__(self, config: Config, *, fast: bool = True) -> None:
        self.config = config
        self.fast = fast
        self.memory: list[Int8] = [np.zeros(size, np.int8) for size in config.regions]
        self.registers: dict[str, int] = dict(RESET_REGISTERS)
        self.exponent: list[int] = [0] * TENSORS
        self.tracker: list[Tracker] = [Tracker(0)] * TENSORS
        self.saturations: list[int] = [0] * TENSORS
        self.largest = 0
        self.loss = 0
        self.seed = 0
        self.step = 0
        self.rate = 0

    @property
    def modulus(self) -> int:
        """Offsets and element numbers are modulo this."""
        return 1 << self.config.offset_bits

    def key(self, tensor: int) -> int:
        """The random key of a tensor at this step."""
        return numerics.random_key(self.seed, self.step, tensor)

    def count_saturations(self, tensor: int, count: int) -> None:
        """Add to a tensor's count, which stops at 2**32 - 1."""
        self.saturations[tensor] = min(SATURATION_LIMIT, self.saturations[tensor] + count)
