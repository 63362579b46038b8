"""From a model's meaning in real numbers to integers of the machine, calibrated on samples.

The steps, in this order: channel scales (`scales`), exponents of weights and values, weights
rounded layer by layer with error feedback on inputs that are quantised already, biases that give
every output its mean. Batch normalisation is gone before (readers fold it), zero points go into the
first layer, a ceiling (ReLU6) becomes the saturation of int8.

Ref: E. Frantar et al., "GPTQ: Accurate post-training quantization for generative pre-trained
transformers", ICLR 2023 (error feedback); M. Nagel et al., ICCV 2019 (bias correction).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron import reals
from gradiron.arch.numerics import BIAS_EXPONENT, EXPONENT_MAX, EXPONENT_MIN
from gradiron.errors import DataError, ModelError
from gradiron.importing.meaning import (
    INPUT,
    Meaning,
    Node,
    Quantisation,
    compute,
    fusion,
    node_windows,
)
from gradiron.importing.scales import LEVELS, REACHED, Real, Scales, equalise, measure

ROWS_PER_WEIGHT = 100
"""Rows per input from which weights are fitted to what the inputs became: with fewer, they would
fit the samples alone. On the two models of `docs/importing.md` the error is the same from 10 on,
and grows by a quarter at 1. With MAX_ROWS it leaves out layers of more than 81 inputs."""
DAMPING = 0.01
MAX_ROWS = 8192
"""Rows of the input matrix from which a layer's error feedback is computed."""
CANDIDATES = 3
"""Exponents tried for a value: that of the maximum, and smaller ones that saturate a little."""
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class ConvertedLayer:
    """A layer in integers.

    Attributes
    ----------
    node : Node
        The layer it came from; `pad_value` is the int8 that its padding reads.
    weight : int8 array or None
    exponent : int
        Exponent of the weights.
    bias : int32 array or None
        Exponent -20.
    output : int
        Exponent of the result.
    error : float
        Error of the result against the meaning, relative to its standard deviation.
    saturated : float
        Share of the results at the limit of int8.
    """

    node: Node
    weight: npt.NDArray[np.int8] | None
    exponent: int
    bias: npt.NDArray[np.int32] | None
    output: int
    pad_value: int
    error: float
    saturated: float


@dataclass(frozen=True)
class Conversion:
    """A model in integers.

    Attributes
    ----------
    meaning : Meaning
    layers : tuple of ConvertedLayer
    input : Quantisation
        How inputs become int8: x8 = max(q, -127), its exponent is 0.
    scales : Scales
        Real value = 2**u * stored value, per channel.
    """

    meaning: Meaning
    layers: tuple[ConvertedLayer, ...]
    input: Quantisation
    scales: Scales

    def quantise(self, x: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
        """The user's inputs as the machine's int8.

        Parameters
        ----------
        x : (N, ...) array
            int8 or uint8 where the model has such inputs, else (or as well) real numbers.
        """
        return quantise_input(x, self.input, self.meaning)

    def report(self) -> list[dict[str, Any]]:
        """A row per layer: name, operation, exponents, error, saturation."""
        return [
            {
                "layer": layer.node.name,
                "operation": layer.node.operation,
                "place": layer.node.place,
                "weight_exponent": layer.exponent if layer.weight is not None else None,
                "output_exponent": layer.output,
                "relative_error": layer.error,
                "saturated": layer.saturated,
            }
            for layer in self.layers
        ]


def quantise_input(x: npt.NDArray[Any], q: Quantisation, meaning: Meaning) -> npt.NDArray[np.int8]:
    """See `Conversion.quantise`.

    Raises
    ------
    DataError
        For another shape, NaN or infinity.
    """
    x = np.asarray(x)
    if x.shape[1:] != meaning.input_shape:
        raise DataError(
            f"inputs of the shape {x.shape}; {meaning.name} takes (N, "
            f"{', '.join(map(str, meaning.input_shape))})"
        )
    if x.dtype == np.int8 and not q.unsigned:
        stored = x.astype(np.int64)
    elif x.dtype == np.uint8 and q.unsigned:
        stored = x.astype(np.int64) - 128
    else:
        values = x.astype(np.float64)
        if not np.isfinite(values).all():
            raise DataError("inputs contain NaN or infinity; remove those samples")
        zero = q.zero_point - 128 * q.unsigned
        stored = np.clip(np.rint(values / q.scale) + zero, -128, 127).astype(np.int64)
    return np.maximum(stored, -LEVELS).astype(np.int8)


def input_range(x: npt.NDArray[Any]) -> Quantisation:
    """A scale and a zero point for inputs in real numbers, from samples."""
    values = np.asarray(x, np.float64)
    if not np.isfinite(values).all():
        raise DataError("calibration samples contain NaN or infinity; remove them")
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = (high - low) / (2 * LEVELS) or 1.0
    return Quantisation(scale, round(-LEVELS - low / scale))


def convert(
    meaning: Meaning,
    samples: npt.NDArray[Any],
    progress: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a model.

    Parameters
    ----------
    meaning : Meaning
    samples : (N, ...) array
        Calibration samples as the application gives them to the model: integers for a quantised
        model, else real numbers. A dozen do for a small network, a hundred are comfortable.
    progress : function or None
        Called with the name of each layer.

    Raises
    ------
    DataError
        For samples of the wrong shape.
    ModelError
        Where the network has something that integers cannot express.
    """
    if len(samples) < 1:
        raise DataError("no calibration samples; give at least a dozen typical inputs")
    q = meaning.input or input_range(samples)
    x8 = quantise_input(samples, q, meaning).astype(np.float64)
    folded = fold_input(meaning, q)
    seen = measure(folded, x8)
    scales = equalise(folded, seen)
    return _Converter(meaning, folded, q, scales, x8, progress).run()


def fold_input(meaning: Meaning, q: Quantisation) -> Meaning:
    """The same model on stored inputs x8: scale and zero point go into the layers that read it.

    Raises
    ------
    ModelError
        Where the input goes into something else than a layer with weights.
    """
    zero = q.zero_point - 128 * q.unsigned
    affine = {INPUT}
    nodes: list[Node] = []
    for node in meaning.nodes:
        if not affine.intersection(node.inputs):
            nodes.append(node)
        elif node.operation in ("flatten", "max_pool") and not node.relu:
            affine.add(node.name)
            nodes.append(node)
        elif node.weight is not None and node.bias is not None:
            w = node.weight.astype(np.float64) * q.scale
            axes = tuple(range(w.ndim - 1)) if node.operation != "depthwise" else (0, 1)
            b = node.bias - zero * w.sum(axis=axes)
            nodes.append(replace(node, weight=w, bias=b))
        else:
            raise ModelError(
                f"{node.place or node.name}: {node.operation} directly on the network's input; the "
                "first layer must be a convolution or a dense layer"
            )
    pads = {node.name: max(zero, -LEVELS) for node in nodes if affine.intersection(node.inputs)}
    return replace(meaning, nodes=tuple(nodes), pads=pads)


class _Converter:
    """One conversion, front to back."""

    def __init__(
        self,
        meaning: Meaning,
        folded: Meaning,
        q: Quantisation,
        scales: Scales,
        x8: Real,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.meaning, self.folded, self.q, self.scales = meaning, folded, q, scales
        self.progress = progress
        self.values: dict[str, tuple[Real, int]] = {INPUT: (x8, 0)}
        """What the machine has: integers, and their exponent."""
        self.exact: dict[str, Real] = {INPUT: x8}
        """What it should have, in units of the channel scales."""
        self.layers: list[ConvertedLayer] = []
        self.rng = np.random.default_rng(0)
        users: dict[str, list[Node]] = {}
        for node in folded.nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        self.users = users
        self.fused = fusion(folded.nodes)

    def run(self) -> Conversion:
        for node in self.folded.nodes:
            if self.progress is not None:
                self.progress(node.name)
            if node.weight is not None:
                self.weighted(node)
            else:
                self.plain(node)
        # Nodes as the user's file has them, not as the folded copy does.
        return Conversion(self.meaning, tuple(self.layers), self.q, self.scales)

    def pad(self, node: Node) -> int:
        return self.folded.pads.get(node.name, 0)

    # --- layers with weights -------------------------------------------------------------------

    def weighted(self, node: Node) -> None:
        assert node.weight is not None
        assert node.bias is not None
        x, ex = self.values[node.inputs[0]]
        ui, uo = self.scales.value(node.inputs[0]), self.scales.value(node.name)
        w = node.weight.astype(np.float64)
        if node.operation == "depthwise":
            w = w * 2.0 ** (ui - uo)
        else:
            w = w * 2.0 ** (ui[:, None] - uo)
        bias = node.bias.astype(np.float64) * 2.0**-uo
        hat = replace(node, weight=w, bias=bias)
        target = compute(hat, [self.exact[node.inputs[0]]], self.pad(node))
        largest = float(np.abs(w).max())
        ew = _exponent(largest) if largest else 0
        real = x * 2.0**ex
        pad = self.pad(node)
        wq = self.rounded(hat, real, self.exact[node.inputs[0]], ew, pad)
        silent = replace(hat, weight=wq * 2.0**ew, bias=np.zeros_like(bias))
        raw = compute(silent, [real], pad)
        axes = tuple(range(raw.ndim - 1))
        b = target.mean(axis=axes) - raw.mean(axis=axes)
        stored = np.rint(b * 2.0**-BIAS_EXPONENT)
        if np.abs(stored).max(initial=0) > INT32_MAX:
            raise ModelError(
                f"{node.place or node.name}: a bias is {np.abs(b).max():.3g} times the unit of its "
                "output; biases reach 2048. Check the scales of the file"
            )
        acc = raw + stored * 2.0**BIAS_EXPONENT
        if node.name in self.fused:
            # The sum goes on into the addition without being rounded.
            self.values[node.name] = (acc, EXPONENT_MIN)
            self.exact[node.name] = target
            output, saturated = 0, 0.0
        else:
            output, saturated = self.finish(node, acc, activate_hat(node, target, uo), ex + ew)
        self.layers.append(
            ConvertedLayer(
                self.original(node),
                wq.astype(np.int8),
                ew,
                stored.astype(np.int32),
                output,
                pad,
                self.relative(node),
                saturated,
            )
        )

    def original(self, node: Node) -> Node:
        return next(n for n in self.meaning.nodes if n.name == node.name)

    def rounded(self, node: Node, x: Real, exact: Real, ew: int, pad: int) -> Real:
        """Weights as integers, rounded with error feedback."""
        assert node.weight is not None
        w = node.weight * 2.0**-ew
        seed = int(self.rng.integers(1 << 32))
        given, wanted = (self.rows(node, values, pad, seed) for values in (x, exact))
        if node.operation == "depthwise":
            taps = w.reshape(-1, w.shape[-1])
            done = np.empty_like(taps)
            for c in range(taps.shape[1]):
                done[:, c : c + 1] = feedback(taps[:, c : c + 1], given[:, :, c], wanted[:, :, c])
            return done.reshape(w.shape)
        return feedback(w.reshape(-1, w.shape[-1]), given, wanted).reshape(w.shape)

    def rows(self, node: Node, x: Real, pad: int, seed: int) -> Real:
        """The inputs of every output as rows: [rows, K], of a depthwise layer [rows, K, c].

        Of many rows some are chosen; the same ones for the same seed.
        """
        rng = np.random.default_rng(seed)
        if node.operation == "dense":
            rows = x
        else:
            windows = node_windows(node, x.shape[1:])
            (top, left), after = windows.before, windows.after((x.shape[1], x.shape[2]))
            padded = np.pad(
                x,
                ((0, 0), (top, after[0]), (left, after[1]), (0, 0)),
                constant_values=pad,
            )
            view = np.lib.stride_tricks.sliding_window_view(padded, windows.kernel, (1, 2))
            view = view[:, :: windows.stride[0], :: windows.stride[1]]
            view = view[:, : windows.out[0], : windows.out[1]]
            n, oy, ox, c, ky, kx = view.shape
            count = n * oy * ox
            chosen = _sample(rng, count)
            at = np.unravel_index(chosen, (n, oy, ox))
            picked = view[at].transpose(0, 2, 3, 1)
            if node.operation == "depthwise":
                return picked.reshape(len(chosen), ky * kx, c)
            return picked.reshape(len(chosen), -1)
        return rows[_sample(rng, len(rows))]

    # --- layers without weights ----------------------------------------------------------------

    def plain(self, node: Node) -> None:
        given = [self.values[name] for name in node.inputs]
        exact = [self.exact[name] for name in node.inputs]
        x, ex = given[0]
        match node.operation:
            case "flatten":
                self.keep(node, x.reshape(len(x), -1), ex, exact[0].reshape(len(x), -1))
                output, saturated = ex, 0.0
            case "max_pool":
                windows = node_windows(node, x.shape[1:])
                self.keep(node, reals.max_pool(x, windows), ex, reals.max_pool(exact[0], windows))
                output, saturated = ex, 0.0
            case "average_pool":
                windows = node_windows(node, x.shape[1:])
                mean = reals.average_pool(x, windows)
                y = np.clip(np.floor(mean + 0.5), -LEVELS, LEVELS)
                self.keep(node, y, ex, reals.average_pool(exact[0], windows))
                output, saturated = ex, 0.0
            case _:
                target = exact[0] + exact[1]
                # A fused convolution has its accumulators in units of one.
                parts = [value if e == EXPONENT_MIN else value * 2.0**e for value, e in given]
                total = parts[0] + parts[1]
                uo = self.scales.value(node.name)
                output, saturated = self.finish(
                    node, total, activate_hat(node, target, uo), EXPONENT_MIN
                )
        self.layers.append(
            ConvertedLayer(
                self.original(node), None, 0, None, output, 0, self.relative(node), saturated
            )
        )

    def keep(self, node: Node, y: Real, exponent: int, exact: Real) -> None:
        self.values[node.name] = (y, exponent)
        self.exact[node.name] = exact

    def finish(self, node: Node, acc: Real, target: Real, least: int) -> tuple[int, float]:
        """Choose the exponent of a result and round it; (exponent, share of saturated results)."""
        if node.relu:
            acc = np.maximum(acc, 0)
        if node.name == self.folded.nodes[-1].name:
            # The last result is read from the wide logits.
            self.keep(node, acc, 0, target)
            return 0, 0.0
        top = float(np.abs(acc).max())
        start = _exponent(top) if top else 0
        tries = range(start, start - CANDIDATES, -1)
        if node.ceiling is not None:
            limit = float(np.abs(target).max())
            if limit < top:
                # It is the largest int8 times a power of two, but for rounding.
                start = _exponent(limit * REACHED)
                tries = range(start, start + 1)
        best: tuple[float, int, Real] | None = None
        for exponent in tries:
            e = min(max(exponent, least, EXPONENT_MIN), EXPONENT_MAX)
            y = np.clip(np.floor(acc * 2.0**-e + 0.5), -LEVELS, LEVELS)
            error = self.pooled_error(node, y, e, target)
            if best is None or error < best[0]:
                best = (error, e, y)
        assert best is not None
        self.keep(node, best[2], best[1], target)
        return best[1], float((np.abs(best[2]) == LEVELS).mean())

    def pooled_error(self, node: Node, y: Real, exponent: int, target: Real) -> float:
        """Mean square error of a result, or of its average where nothing else is read."""
        users = self.users.get(node.name, [])
        if len(users) == 1 and users[0].operation == "average_pool":
            windows = node_windows(users[0], y.shape[1:])
            y = np.floor(reals.average_pool(y, windows) + 0.5)
            target = reals.average_pool(target, windows)
        return float(((y * 2.0**exponent - target) ** 2).mean())

    def relative(self, node: Node) -> float:
        y, exponent = self.values[node.name]
        real = y if exponent == EXPONENT_MIN else y * 2.0**exponent
        exact = self.exact[node.name]
        return float(np.sqrt(((real - exact) ** 2).mean()) / (exact.std() + 1e-30))


def activate_hat(node: Node, y: Real, u: Real) -> Real:
    """The activation of a result in units of its channel scales."""
    if node.relu:
        y = np.maximum(y, 0)
    if node.ceiling is not None:
        y = np.minimum(y, node.ceiling * 2.0**-u)
    return y


def _exponent(largest: float) -> int:
    """The smallest exponent at which a magnitude fits int8."""
    return int(np.ceil(np.log2(largest / LEVELS)))


def _sample(rng: np.random.Generator, count: int) -> npt.NDArray[np.intp]:
    """Rows to look at: all, or some of many."""
    if count <= MAX_ROWS:
        return np.arange(count)
    chosen: Any = rng.choice(count, MAX_ROWS, replace=False)
    return np.sort(chosen)


def _solve(a: Real, b: Real) -> Real:
    found: Any = np.linalg.solve(a, b)
    return found


def feedback(w: Real, x: Real, exact: Real) -> Real:
    """Round the rows of `w` one after the other; each error is made up for by the rows to come.

    Before that the weights are moved to where they give the outputs of the exact inputs best, in
    the sense of least squares.

    Parameters
    ----------
    w : (K, O) float array
        Weights in units of the grid.
    x, exact : (N, K) float array
        Inputs as the machine has them, and as they should be.

    Returns
    -------
    (K, O) float array of integers, within +-127
    """
    k = w.shape[0]
    if len(x) < 2:
        return np.clip(np.rint(w), -LEVELS, LEVELS)
    x = x - x.mean(axis=0)
    h = x.T @ x / len(x)
    diagonal = np.diag(h).copy()
    damping = DAMPING * float(diagonal.mean())
    if damping <= 0:
        return np.clip(np.rint(w), -LEVELS, LEVELS)
    difference = x.T @ (exact - exact.mean(axis=0) - x) / len(x)
    h = h + damping * np.eye(k)
    if len(x) > ROWS_PER_WEIGHT * k:
        w = w + _solve(h, difference @ w)
    order = np.argsort(-diagonal, kind="stable")
    inverse: Real = np.linalg.inv(h[np.ix_(order, order)])
    upper: Real = np.linalg.cholesky((inverse + inverse.T) / 2).T
    left = w[order].copy()
    done = np.empty_like(left)
    for j in range(k):
        done[j] = np.clip(np.rint(left[j]), -LEVELS, LEVELS)
        error = (left[j] - done[j]) / upper[j, j]
        left[j + 1 :] -= np.outer(upper[j, j + 1 :], error)
    result = np.empty_like(done)
    result[order] = done
    return result
