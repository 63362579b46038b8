"""The LOSS instruction, written from docs/products.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradiron.arch import numerics
from gradiron.arch.isa import ErrorCause, split_address, unpack_tensors
from gradiron.arch.numerics import Use
from gradiron.golden.addressing import Fault, Lattice, Place, locate
from gradiron.golden.arithmetic import Randoms, saturated, wrapped32
from gradiron.golden.data import Data

MAX_CLASSES = 4095
"""More than so many N_C are refused."""


@dataclass(frozen=True)
class _Tensors:
    """Where everything but the labels is."""

    high: Place
    low: Place
    o: Place | None
    predicted: Place | None
    randoms: Randoms

    def predict(self, classes: numerics.Int64) -> None:
        """Write the predicted classes where they are wanted."""
        if self.predicted is not None:
            self.predicted.write(classes)


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
        OPERAND_RANGE for more than `MAX_CLASSES`; ADDRESS_RANGE of a label.
    """

    def __init__(self, data: Data, fields: Mapping[str, int]) -> None:
        self._data = data
        r = data.registers
        self.shape = (r["N_X"], r["N_C"])
        samples, classes = self.shape
        if classes > MAX_CLASSES:
            raise Fault(ErrorCause.OPERAND_RANGE)
        self.tensor_o = unpack_tensors(r["EXP"])[2]
        column = Lattice(0, (samples,), (1,))
        self._labels = self._locate("M_BASE", column) if fields["grad"] else None
        self._tensors: _Tensors | Fault
        try:
            self._tensors = self._locate_tensors(fields, column)
        except Fault as fault:
            self._tensors = fault  # a label out of range comes before it

    def _locate_tensors(self, fields: Mapping[str, int], column: Lattice) -> _Tensors:
        samples, classes = self.shape
        data = self._data
        if samples * classes >= data.modulus // 2:
            raise Fault(ErrorCause.ADDRESS_RANGE)
        elements = Lattice(0, self.shape, (classes, 1))
        return _Tensors(
            high=self._locate("A_BASE", elements),
            low=self._locate("B_BASE", elements),
            o=self._locate("O_BASE", elements) if fields["grad"] else None,
            predicted=self._locate("P_BASE", column) if fields["predict"] else None,
            randoms=Randoms(elements, data.modulus, self.shape, fast=data.fast),
        )

    def _locate(self, register: str, lattice: Lattice) -> Place:
        data = self._data
        region, offset = split_address(data.registers[register])
        return locate(data.memory[region], lattice.moved(offset), data.modulus, fast=data.fast)

    def execute(self) -> None:
        """Compute and write the results.

        Raises
        ------
        Fault
            LABEL_RANGE, then ADDRESS_RANGE, before anything is written; ADDRESS_RANGE also where
            N_X * N_C is too large.
        """
        data, o = self._data, self.tensor_o
        label = None
        if self._labels is not None:
            label = self._labels.read().view(np.uint8).astype(np.int64)
            if (label >= self.shape[1]).any():
                raise Fault(ErrorCause.LABEL_RANGE)
        if isinstance(self._tensors, Fault):
            raise self._tensors
        t = self._tensors
        z = (t.high.read().astype(np.int64) << 8) + t.low.read().view(np.uint8)
        if label is None or t.o is None:
            t.predict(z.argmax(axis=1))
            return
        result = numerics.softmax(z, label)
        assert result.loss is not None
        t.predict(result.prediction)
        t.high.write(result.probability >> 8)
        t.low.write(result.probability)
        g = numerics.softmax_gradient(result.probability, label)
        shift = numerics.gradient_shift(int(np.abs(g).max()))
        numbers = t.randoms.numbers(data.key(o), Use.LOSS)
        dy, count = saturated(numerics.sr(g, shift, numbers), -127, 127)
        t.o.write(dy)
        data.count_saturations(o, count)
        data.exponent[o] = shift - numerics.PROBABILITY_BITS
        data.loss = int(wrapped32(result.loss.sum(keepdims=True))[0])
