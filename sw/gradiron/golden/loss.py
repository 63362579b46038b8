"""The LOSS instruction, written from docs/products.md."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradiron.arch import numerics
from gradiron.arch.isa import ErrorCause, split_address, unpack_tensors
from gradiron.arch.numerics import Use
from gradiron.golden.addressing import Fault, Lattice, Place, locate
from gradiron.golden.arithmetic import Randoms, saturated, wrapped32
from gradiron.golden.data import Data


class Loss:
    """A LOSS with the register values of the moment.

    Parameters
    ----------
    data : Data
        Memories and registers.
    fields : mapping of str to int
        The fields of the LOSS.

    Raises
    ------
    Fault
        ADDRESS_RANGE, also where N_X * N_C is too large.
    """

    def __init__(self, data: Data, fields: Mapping[str, int]) -> None:
        self._data = data
        r = data.registers
        self.shape = (r["N_X"], r["N_C"])
        samples, classes = self.shape
        if samples * classes >= data.modulus // 2:
            raise Fault(ErrorCause.ADDRESS_RANGE)
        elements = Lattice(0, self.shape, (classes, 1))
        column = Lattice(0, (samples,), (1,))
        self.tensor_o = unpack_tensors(r["EXP"])[2]
        self._high = self._locate("A_BASE", elements)
        self._low = self._locate("B_BASE", elements)
        self._predicted = self._labels = self._o = None
        if fields["grad"]:
            self._labels = self._locate("M_BASE", column)
            self._o = self._locate("O_BASE", elements)
        if fields["predict"]:
            self._predicted = self._locate("P_BASE", column)
        self._randoms = Randoms(elements, data.modulus, self.shape, fast=data.fast)

    def _locate(self, register: str, lattice: Lattice) -> Place:
        data = self._data
        region, offset = split_address(data.registers[register])
        return locate(data.memory[region], lattice.moved(offset), data.modulus, fast=data.fast)

    def execute(self) -> None:
        """Compute and write the results.

        Raises
        ------
        Fault
            LABEL_RANGE, before anything is written.
        """
        data, o = self._data, self.tensor_o
        z = (self._high.read().astype(np.int64) << 8) + self._low.read().view(np.uint8)
        if self._labels is None or self._o is None:
            self._predict(z.argmax(axis=1))
            return
        label = self._labels.read().view(np.uint8).astype(np.int64)
        if (label >= self.shape[1]).any():
            raise Fault(ErrorCause.LABEL_RANGE)
        result = numerics.softmax(z, label)
        assert result.loss is not None
        self._predict(result.prediction)
        self._high.write(result.probability >> 8)
        self._low.write(result.probability)
        g = numerics.softmax_gradient(result.probability, label)
        shift = numerics.gradient_shift(int(np.abs(g).max()))
        numbers = self._randoms.numbers(data.key(o), Use.LOSS)
        dy, count = saturated(numerics.sr(g, shift, numbers), -127, 127)
        self._o.write(dy)
        data.count_saturations(o, count)
        data.exponent[o] = shift - numerics.PROBABILITY_BITS
        data.loss = int(wrapped32(result.loss.sum(keepdims=True))[0])

    def _predict(self, classes: numerics.Int64) -> None:
        if self._predicted is not None:
            self._predicted.write(classes)
