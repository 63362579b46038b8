"""Convolution and pooling in real numbers: against the definition, and against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradiron import reals
from gradiron.reals import Window, window

Array = np.ndarray[Any, Any]


@st.composite
def cases(draw: st.DrawFn, *, pooled: bool = False) -> tuple[tuple[int, int], Window, int, int]:
    """A size of an image with windows on it, samples and channels."""
    size = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    if pooled:
        kernel = (min(kernel[0], size[0]), min(kernel[1], size[1]))
        found = window(size, kernel, kernel, "valid")
    else:
        stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        padding = draw(st.sampled_from(["same", "valid"]))
        found = window(size, kernel, stride, padding)
        if 0 in found.out:
            found = window(size, kernel, stride, "same")
    return size, found, draw(st.integers(1, 3)), draw(st.integers(1, 4))


def integers(rng: np.random.Generator, *shape: int, dtype: Any = np.float64) -> Array:
    """Small whole numbers, whose sums are exact in any order."""
    return rng.integers(-9, 10, shape).astype(dtype)


def patches(x: Array, w: Window) -> Array:
    """Every window by its definition, zeros around the image: (N, oy, ox, ky, kx, C)."""
    n, height, width, c = x.shape
    found = np.zeros((n, *w.out, *w.kernel, c), x.dtype)
    for oy, ox, ky, kx in np.ndindex(*w.out, *w.kernel):
        y = oy * w.stride[0] + ky - w.before[0]
        column = ox * w.stride[1] + kx - w.before[1]
        if 0 <= y < height and 0 <= column < width:
            found[:, oy, ox, ky, kx] = x[:, y, column]
    return found


def derivative(f: Any, x: Array, dy: Array) -> Array:
    """The derivative of sum(f(x) * dy) of a linear f, exactly."""
    found = np.zeros_like(x)
    zero = f(np.zeros_like(x))
    for i in np.ndindex(*x.shape):
        unit = np.zeros_like(x)
        unit[i] = 1
        found[i] = ((f(unit) - zero) * dy).sum()
    return found


def test_same_windows_are_those_of_tensorflow() -> None:
    # Spoken digits: 49 x 10, kernel 10 x 4, stride 2.
    assert window((49, 10), (10, 4), (2, 2)) == ((10, 4), (2, 2), (4, 1), (25, 5))
    assert window((49, 10), (10, 4), (2, 2)).after((49, 10)) == (5, 1)
    # An even size at stride 2: all the padding is at the end.
    assert window((32, 32), (3, 3), (2, 2)) == ((3, 3), (2, 2), (0, 0), (16, 16))
    assert window((32, 32), (1, 1), (2, 2)).before == (0, 0)
    assert window((5, 5), (3, 3)).before == (1, 1)


def test_valid_windows_lie_within_the_image() -> None:
    assert window((7, 8), (3, 3), (3, 3), "valid") == ((3, 3), (3, 3), (0, 0), (2, 2))
    assert window((7, 8), (3, 3), (3, 3), "valid").after((7, 8)) == (0, 0)
    assert window((2, 8), (3, 3), (1, 1), "valid").out == (0, 6)


@pytest.mark.parametrize(
    ("count", "shift"), [(1, 0), (2, 1), (3, 2), (4, 2), (9, 4), (64, 6), (125, 7)]
)
def test_averages_divide_by_a_power_of_two(count: int, shift: int) -> None:
    assert reals.pooling_shift(count) == shift


@given(case=cases(), seed=st.integers(0, 99), out=st.integers(1, 4))
@settings(max_examples=60)
def test_convolution(case: Any, seed: int, out: int) -> None:
    size, windows, n, c = case
    rng = np.random.default_rng(seed)
    x, w = integers(rng, n, *size, c), integers(rng, *windows.kernel, c, out)
    b, dy = integers(rng, out), integers(rng, n, *windows.out, out)
    p = patches(x, windows)
    np.testing.assert_array_equal(
        reals.conv(x, w, b, windows), np.einsum("nyxklc,klco->nyxo", p, w) + b
    )
    dx, dw, db = reals.conv_gradient(x, w, dy, windows)
    np.testing.assert_array_equal(dw, np.einsum("nyxklc,nyxo->klco", p, dy))
    np.testing.assert_array_equal(db, dy.sum(axis=(0, 1, 2)))
    one = derivative(
        lambda v: np.einsum("nyxklc,klco->nyxo", patches(v, windows), w), x[:1], dy[:1]
    )
    np.testing.assert_array_equal(dx[:1], one)


@given(case=cases(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_depthwise_convolution(case: Any, seed: int) -> None:
    size, windows, n, c = case
    rng = np.random.default_rng(seed)
    x, w = integers(rng, n, *size, c), integers(rng, *windows.kernel, c)
    b, dy = integers(rng, c), integers(rng, n, *windows.out, c)
    p = patches(x, windows)
    expected = np.einsum("nyxklc,klc->nyxc", p, w) + b
    np.testing.assert_array_equal(reals.depthwise(x, w, b, windows), expected)
    dx, dw, db = reals.depthwise_gradient(x, w, dy, windows)
    np.testing.assert_array_equal(dw, np.einsum("nyxklc,nyxc->klc", p, dy))
    np.testing.assert_array_equal(db, dy.sum(axis=(0, 1, 2)))
    one = derivative(lambda v: reals.depthwise(v, w, b, windows), x[:1], dy[:1])
    np.testing.assert_array_equal(dx[:1], one)


@given(case=cases(pooled=True), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_max_pooling(case: Any, seed: int) -> None:
    size, windows, n, c = case
    rng = np.random.default_rng(seed)
    x, dy = integers(rng, n, *size, c), integers(rng, n, *windows.out, c)
    p = patches(x, windows).reshape(n, *windows.out, -1, c)
    np.testing.assert_array_equal(reals.max_pool(x, windows), p.max(axis=3))
    expected = np.zeros_like(x)
    for i in np.ndindex(*dy.shape):
        ky, kx = divmod(int(p[i[0], i[1], i[2], :, i[3]].argmax()), windows.kernel[1])
        y, column = i[1] * windows.stride[0] + ky, i[2] * windows.stride[1] + kx
        expected[i[0], y, column, i[3]] += dy[i]
    np.testing.assert_array_equal(reals.max_pool_gradient(x, dy, windows), expected)


@given(case=cases(pooled=True), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_average_pooling(case: Any, seed: int) -> None:
    size, windows, n, c = case
    rng = np.random.default_rng(seed)
    x, dy = integers(rng, n, *size, c), integers(rng, n, *windows.out, c)
    scale = 2.0 ** -int(np.ceil(np.log2(windows.taps)))
    p = patches(x, windows)
    np.testing.assert_array_equal(reals.average_pool(x, windows), p.sum(axis=(3, 4)) * scale)
    one = derivative(lambda v: reals.average_pool(v, windows), x[:1], dy[:1])
    np.testing.assert_array_equal(reals.average_pool_gradient(x, dy, windows)[:1], one)


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    windows = window((6, 7), (3, 3), (2, 2))
    x, w, b = integers(rng, 5, 6, 7, 3), integers(rng, 3, 3, 3, 4), integers(rng, 4)
    dy = integers(rng, 5, *windows.out, 4)
    y, gradients = reals.conv(x, w, b, windows), reals.conv_gradient(x, w, dy, windows)
    monkeypatch.setattr(reals, "PORTION", 1)
    np.testing.assert_array_equal(reals.conv(x, w, b, windows), y)
    for one, other in zip(reals.conv_gradient(x, w, dy, windows), gradients, strict=True):
        np.testing.assert_array_equal(one, other)


def test_float32_stays_float32() -> None:
    rng = np.random.default_rng(0)
    windows = window((6, 6), (3, 3))
    f = np.float32
    x, dy = integers(rng, 2, 6, 6, 3, dtype=f), integers(rng, 2, 6, 6, 3, dtype=f)
    w, b = integers(rng, 3, 3, 3, 3, dtype=f), integers(rng, 3, dtype=f)
    pool = window((6, 6), (2, 2), (2, 2), "valid")
    small = integers(rng, 2, 3, 3, 3, dtype=f)
    results = [
        reals.conv(x, w, b, windows),
        *reals.conv_gradient(x, w, dy, windows),
        reals.depthwise(x, w[..., 0], b, windows),
        *reals.depthwise_gradient(x, w[..., 0], dy, windows),
        reals.max_pool(x, pool),
        reals.max_pool_gradient(x, small, pool),
        reals.average_pool(x, pool),
        reals.average_pool_gradient(x, small, pool),
    ]
    assert {result.dtype for result in results} == {np.dtype(f)}


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (10, 4)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_convolution_and_gradients_are_those_of_pytorch(
    kind: str, kernel: tuple[int, int], stride: tuple[int, int], padding: str
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    f = torch.nn.functional
    windows = window((13, 8), kernel, stride, padding)
    x = rng.normal(size=(3, 13, 8, 5))
    shape = (5,) if kind == "depthwise" else (5, 7)
    w, b = rng.normal(size=(*kernel, *shape)), rng.normal(size=shape[-1])
    (top, left), (bottom, right) = windows.before, windows.after((13, 8))
    tx, tw, tb = (torch.tensor(v, requires_grad=True) for v in (x, w, b))
    padded = f.pad(tx.permute(0, 3, 1, 2), (left, right, top, bottom))
    turned = tw[..., None].permute(2, 3, 0, 1) if kind == "depthwise" else tw.permute(3, 2, 0, 1)
    groups = 5 if kind == "depthwise" else 1
    ty = f.conv2d(padded, turned, tb, stride, groups=groups)
    y = getattr(reals, kind)(x, w, b, windows)
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1).numpy(), atol=1e-12)
    dy = rng.normal(size=y.shape)
    ty.backward(torch.tensor(dy).permute(0, 3, 1, 2))
    mine = getattr(reals, f"{kind}_gradient")(x, w, dy, windows)
    for one, other in zip(mine, (tx.grad, tw.grad, tb.grad), strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-11)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (13, 8)])
def test_pooling_and_gradients_are_those_of_pytorch(kernel: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    f = torch.nn.functional
    windows = window((13, 8), kernel, kernel, "valid")
    scale = kernel[0] * kernel[1] / 2 ** reals.pooling_shift(kernel[0] * kernel[1])
    for name, rule in (
        ("max_pool", lambda v: f.max_pool2d(v, kernel)),
        ("average_pool", lambda v: f.avg_pool2d(v, kernel) * scale),
    ):
        x = rng.normal(size=(3, 13, 8, 5))
        tx = torch.tensor(x, requires_grad=True)
        ty = rule(tx.permute(0, 3, 1, 2))
        y = getattr(reals, name)(x, windows)
        np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1).numpy(), atol=1e-12)
        dy = rng.normal(size=y.shape)
        ty.backward(torch.tensor(dy).permute(0, 3, 1, 2))
        dx = getattr(reals, f"{name}_gradient")(x, dy, windows)
        np.testing.assert_allclose(dx, tx.grad.numpy(), atol=1e-12)
