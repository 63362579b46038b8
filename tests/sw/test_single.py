"""Every pass of single layers on the golden device, against integer convolutions written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradiron.arch.config import Config, simulation_config, up5k_config
from gradiron.arch.numerics import Use, bit_length, random16, random_key, rn, rt, sat8, sr
from gradiron.cycles import program_cycles
from gradiron.errors import PlanError
from gradiron.golden import GoldenDevice
from gradiron.operations import Layer
from gradiron.single import DW, DX, FORWARD, LayerProgram, layer_program
from support.layers import Case, random_case

SEED, STEP, RATE = 12345, 7, 3
WIDE = np.int64


# --- convolution, written out --------------------------------------------------------------------


def pads(size: int, kernel: int, stride: int, padding: Any, axis: int) -> tuple[int, int, int]:
    """Padding before and after, and number of outputs."""
    if padding == "same":
        out = (size + stride - 1) // stride
        total = max(0, (out - 1) * stride + kernel - size)
        return total // 2, total - total // 2, out
    before, after = (0, 0) if padding == "valid" else padding[axis]
    return before, after, (size + before + after - kernel) // stride + 1


def windows(case: Case, x: Any) -> tuple[Any, tuple[int, int], tuple[int, int]]:
    """x [n, h, w, c] padded; where the image begins; number of outputs."""
    layer = case.layer
    y = pads(x.shape[1], layer.kernel[0], layer.stride[0], layer.padding, 0)
    z = pads(x.shape[2], layer.kernel[1], layer.stride[1], layer.padding, 1)
    more = ((0, 0), y[:2], z[:2], (0, 0))
    return np.pad(x, more, constant_values=layer.pad), (y[0], z[0]), (y[2], z[2])


def slices(case: Case, out: tuple[int, int], ky: int, kx: int) -> tuple[slice, slice]:
    sy, sx = case.layer.stride
    return slice(ky, ky + sy * out[0], sy), slice(kx, kx + sx * out[1], sx)


def direct(case: Case, x: Any, w: Any, dy: Any) -> tuple[Any, Any, Any]:
    """Sums of forward, dX and dW, tap by tap, in int64."""
    layer = case.layer
    if layer.operation == "dense":
        return x @ w, dy @ w.T, x.T @ dy
    padded, (top, left), out = windows(case, x)
    # What lies beyond the last window counts in no sum, but must be there to be sliced.
    sy, sx = layer.stride
    padded = np.pad(padded, ((0, 0), (0, sy), (0, sx), (0, 0)))
    y: Any = 0
    dx = np.zeros_like(padded)
    dw = np.zeros_like(w)
    for ky in range(layer.kernel[0]):
        for kx in range(layer.kernel[1]):
            rows, columns = slices(case, out, ky, kx)
            part = padded[:, rows, columns][:, : out[0], : out[1]]
            if layer.operation == "depthwise":
                y = y + part * w[ky, kx]
                dx[:, rows, columns] += dy * w[ky, kx]
                dw[ky, kx] = (part * dy).sum(axis=(0, 1, 2))
            else:
                y = y + np.einsum("nyxi,io->nyxo", part, w[ky, kx])
                dx[:, rows, columns] += np.einsum("nyxo,io->nyxi", dy, w[ky, kx])
                dw[ky, kx] = np.einsum("nyxi,nyxo->io", part, dy)
    return y, dx[:, top : top + x.shape[1], left : left + x.shape[2]], dw


# --- a layer on the golden device ----------------------------------------------------------------


class Bench:
    """A layer with random data on a device."""

    def __init__(self, case: Case, config: Config, seed: int) -> None:
        self.case = case
        rng = np.random.default_rng(seed)
        self.found: LayerProgram = layer_program(
            config,
            case.layer,
            case.shape,
            case.batch,
            masked=case.masked,
            skip=case.skip,
            partial=case.partial,
        )
        self.device = GoldenDevice(config)
        self.found.prepare(self.device)
        self.device.write_csr("SEED", SEED)
        self.device.write_csr("STEP", STEP)
        self.device.write_csr("RATE", RATE)
        self.names = set(self.found.program.plan.placements)
        self.data: dict[str, Any] = {}
        self.exponents: dict[str, int] = {}
        shape = (case.batch, *case.shape)
        out = (case.batch, *self.found.output_shape)
        for name, size in (
            ("x", shape),
            ("other", shape),
            ("dy", out),
            ("skip", out),
            ("partial", shape),
        ):
            if name in self.names:
                values = rng.integers(-127, 128, size).astype(np.int8)
                self.found.write(self.device, name, values)
                self.data[name] = values.astype(WIDE)
                self.exponents[name] = int(rng.integers(-9, 3))
                self.device.write_exponent(self.found.index(name), self.exponents[name])
        if self.found.parameter is not None:
            self._parameters(rng)

    def _parameters(self, rng: np.random.Generator) -> None:
        p, shape = self.found.parameter, self.found.weight
        assert p is not None
        self.master = rng.integers(-32640, 32640, shape.weight)
        if not p.low:
            self.master = self.master // 256 * 256
        self.bias = rng.integers(-(1 << 24), 1 << 24, shape.bias)
        stored = np.clip(self.master, -32640, 32639) + 128
        self.data["w"] = stored >> 8
        self.found.write(self.device, p.high, (stored >> 8).astype(np.int8))
        if p.low:
            self.found.write(self.device, p.low, (stored & 255).astype(np.uint8))
        self.found.write(self.device, p.bias, self.bias.astype(np.int32))
        self.exponents["weight"] = -9
        self.device.write_exponent(self.found.index("weight"), -9)

    def random(self, name: str, use: Use, count: int) -> Any:
        return random16(random_key(SEED, STEP, self.found.index(name)), use, np.arange(count))

    def run(self, entry: str, result: str, tracker: int) -> Any:
        self.device.write_exponent(self.found.index(result), 0, tracker)
        self.device.run(self.found.program.entry(entry))

    def check_exponent(self, name: str, exponent: int, tracker: int | None = None) -> None:
        found = self.device.read_exponent(self.found.index(name))
        assert found[0] == exponent
        if tracker is not None:
            assert found[1] == tracker

    def pixels(self, name: str, shape: tuple[int, ...]) -> Any:
        return self.found.read(self.device, name)[:, : shape[-1]].reshape(shape)


def need(acc: Any, e_acc: int) -> int:
    return e_acc + max(0, bit_length(int(np.abs(acc).max())) - 7)


def check(case: Case, config: Config, seed: int) -> None:
    """All passes of a layer, bit by bit."""
    b = Bench(case, config, seed)
    zero = np.zeros(1, WIDE)
    x, dy, w = b.data["x"], b.data["dy"], b.data.get("w", zero)
    if case.layer.operation in ("max_pool", "average_pool"):
        check_pool(b)
        return
    y, dx, dw = direct(case, x, w, dy)
    out = (case.batch, *b.found.output_shape)
    e = b.exponents

    # forward
    e_acc = e["x"] + e["weight"]
    acc = y + rn(b.bias, e_acc + 20)
    if case.skip:
        acc = acc + rn(b.data["skip"], e_acc - e["skip"])
    if case.layer.relu:
        acc = np.maximum(acc, 0)
    exponent = need(acc, e_acc) if np.any(acc) else e_acc
    b.run(FORWARD, "y", exponent)
    assert np.array_equal(b.found.read(b.device, "y").reshape(out), sat8(rt(acc, exponent - e_acc)))
    b.check_exponent("y", exponent, exponent)

    # dX
    if DX in b.found.program.entries:
        e_acc = e["dy"] + e["weight"]
        acc = dx
        if case.partial:
            acc = acc + rn(b.data["partial"], e_acc - e["partial"])
        exponent = max(e_acc, need(acc, e_acc)) - 1
        b.run(DX, "dx", exponent)
        r = b.random("dx", Use.DX, acc.size).reshape(acc.shape)
        shift = max(exponent, e_acc) - e_acc
        expected = sat8(sr(acc, shift, r))
        if case.masked:
            expected = np.where(x > 0, expected, 0)
        assert np.array_equal(b.found.read(b.device, "dx").reshape(acc.shape), expected)
        # The tracker has followed: it was one too small.
        if np.any(acc):
            b.check_exponent("dx", max(exponent, e_acc), need(acc, e_acc))

    # dW, db and the update
    p = b.found.parameter
    assert p is not None
    b.device.run(b.found.program.entry(DW))
    batch_shift = (case.batch - 1).bit_length()
    su = (e["weight"] - 8) - (e["x"] + e["dy"]) + RATE + batch_shift
    r = b.random("weight", Use.DW, dw.size).reshape(dw.shape)
    high = b.found.read(b.device, p.high).astype(WIDE)
    if case.layer.int8_weights:
        new = np.clip(w - sr(dw, su + 8, r), -127, 127)
        old = w
    else:
        new = np.clip(b.master - sr(dw, su, r), -32640, 32639)
        old = b.master
        high = high * 256 + b.found.read(b.device, p.low, np.uint8) - 128
    db = dy.reshape(-1, dy.shape[-1]).sum(axis=0)
    sb = -20 - e["dy"] + RATE + batch_shift
    chosen = np.zeros(dw.shape[-1], bool)
    r = np.zeros(dw.shape[-1], WIDE)
    for first, count in case.layer.columns or ((0, dw.shape[-1]),):
        chosen[first : first + count] = True
        r[first : first + count] = b.random("weight", Use.DB, count)
    assert np.array_equal(high, np.where(chosen, new, old))
    bias = np.clip(b.bias - sr(db, sb, r), -(2**31 - 1), 2**31 - 1)
    found = b.found.read(b.device, p.bias, np.dtype("<i4"))
    assert np.array_equal(found, np.where(chosen, bias, b.bias))


def check_pool(b: Bench) -> None:
    case = b.case
    x, dy = b.data["x"], b.data["dy"]
    n, height, width, c = x.shape
    kh, kw = case.layer.kernel if case.layer.kernel != (0, 0) else (height, width)
    out = (n, height // kh, width // kw, c)
    parts = x[:, : out[1] * kh, : out[2] * kw].reshape(n, out[1], kh, out[2], kw, c)
    parts = parts.transpose(0, 1, 3, 5, 2, 4).reshape(*out, kh * kw)
    shift = (kh * kw - 1).bit_length()
    b.run(FORWARD, "y", 0)
    y = b.found.read(b.device, "y").reshape(out)
    b.check_exponent("y", b.exponents["x"])
    if case.layer.operation == "max_pool":
        assert np.array_equal(y, parts.max(axis=-1))
        chosen = parts.argmax(axis=-1)[..., None] == np.arange(kh * kw)
        each, e_acc = chosen * dy[..., None], b.exponents["dy"]
    else:
        assert np.array_equal(y, sat8(rt(parts.sum(axis=-1), shift)))
        each = np.broadcast_to(dy[..., None], parts.shape)
        e_acc = b.exponents["dy"] - shift
    if DX not in b.found.program.entries:
        return
    acc = np.zeros(x.shape, WIDE)
    spread = each.reshape(*out, kh, kw).transpose(0, 1, 4, 2, 5, 3)
    acc[:, : out[1] * kh, : out[2] * kw] = spread.reshape(n, out[1] * kh, out[2] * kw, c)
    exponent = e_acc
    if case.partial:
        acc = acc + rn(b.data["partial"], e_acc - b.exponents["partial"])
        exponent = max(e_acc, need(acc, e_acc))
    b.run(DX, "dx", exponent)
    r = b.random("dx", Use.DX, acc.size).reshape(acc.shape)
    expected = sat8(sr(acc, exponent - e_acc, r))
    if case.masked:
        expected = np.where(x > 0, expected, 0)
    assert np.array_equal(b.found.read(b.device, "dx").reshape(acc.shape), expected)
    b.check_exponent("dx", exponent)


# --- random layers -------------------------------------------------------------------------------

CONFIGS = {
    "4x4": Config(4, 4, (1 << 14,) * 3, acc_depth=64),
    "8x8": simulation_config("8x8"),
    "16x16": simulation_config("16x16"),
    "8x4": Config(8, 4, (1 << 15,) * 2, acc_depth=128, program_words=2048),
    "up5k": up5k_config(),
}


def check_random(name: str, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    done = 0
    while done < count:
        case = random_case(rng, even=CONFIGS[name].lane_bytes == 2)
        try:
            check(case, CONFIGS[name], seed + done)
        except PlanError:
            # Too large for a small machine; most are not.
            continue
        except AssertionError as error:
            raise AssertionError(f"{name}: {case}") from error
        done += 1


@pytest.mark.parametrize("name", CONFIGS)
def test_random_layers(name: str) -> None:
    check_random(name, 1, 25)


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_many_random_layers(name: str) -> None:
    check_random(name, 1000, 150)


@pytest.fixture
def most_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the form with the most instructions, whatever its cycles."""

    def cycles(self: Any, form: list[Any], address: Any) -> int:
        del self, address
        return -len(form)

    monkeypatch.setattr("gradiron.compiler._Emitter.form_cycles", cycles)


@pytest.mark.parametrize("name", ["8x4", "up5k"])
@pytest.mark.usefixtures("most_divided")
def test_the_most_divided_forms(name: str) -> None:
    # What the cycle model would hardly choose is as right as what it chooses.
    check_random(name, 5, 25)


@pytest.mark.usefixtures("most_divided")
def test_a_division_leaves_padding_away() -> None:
    layer = Layer("c", "conv", ("input",), 16, kernel=(3, 3))
    found = layer_program(CONFIGS["8x8"], layer, (8, 8, 16))
    assert [found.macs(entry) for entry in (FORWARD, DX, DW)] == [8 * 8 * 9 * 16 * 16] * 3
    words = found.program.words
    counts = {
        entry: sum(o.entry == entry and words[pc] >> 24 == 0x10 for pc, o in origins.items())
        for origins in (found.program.origins,)
        for entry in (FORWARD, DX, DW)
    }
    assert counts == {FORWARD: 9, DX: 9, DW: 3}


def test_dividing_is_faster_on_a_small_image() -> None:
    config = CONFIGS["8x8"]
    layer = Layer("c", "conv", ("input",), 64, kernel=(3, 3))
    program = layer_program(config, layer, (8, 8, 64)).program
    for entry in (FORWARD, DX, DW):
        cycles = program_cycles(program.words, config, program.entry(entry)).total
        assert cycles < 8 * 8 * 9 * 64 * 64 / config.peak
