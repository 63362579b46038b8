"""Deployed models, converted: the two of MLPerf Tiny, and integers against the golden device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.support.tflite_files import small_network

from gradiron.arch.config import Config
from gradiron.compiler import compile_graph
from gradiron.errors import DataError, ModelError
from gradiron.golden.device import GoldenDevice
from gradiron.importing.conversion import Conversion, convert, input_range
from gradiron.importing.mapping import to_graph, to_state
from gradiron.importing.meaning import Meaning, Node, check_meaning, fusion
from gradiron.importing.simulate import run_integers
from gradiron.importing.tflite import parse_tflite, read_tflite
from gradiron.train import Trainer

Int8 = npt.NDArray[np.int8]
Real = npt.NDArray[Any]
CONFIG = Config(rows=8, cols=8, regions=(1 << 21, 1 << 20), acc_depth=512)
NOISE = 12


def real(meaning: Meaning, x8: Int8) -> Real:
    """What stored inputs stand for."""
    assert meaning.input is not None
    return (x8.astype(np.float64) - meaning.input.zero_point) * meaning.input.scale


def relative(y: Real, wanted: Real) -> float:
    """Error by norm."""
    return float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))


def trainer(conversion: Conversion, calibration: Int8, batch: int = 4, **options: Any) -> Trainer:
    """The golden device with a converted model on it."""
    graph = to_graph(conversion)
    state = to_state(conversion, graph, conversion.quantise(calibration), **options)
    return Trainer(GoldenDevice(CONFIG), compile_graph(graph, CONFIG, batch), state, seed=1)


def mlperf(folder: Path, name: str) -> Path:
    """A file of MLPerf Tiny."""
    path = folder / "mlperf_tiny" / name
    if not path.is_file():
        pytest.skip(f"{path} does not exist; put the model of MLPerf Tiny there")
    return path


# --- keyword spotting ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Keywords:
    """The network, the inputs that came with it, and its conversion."""

    meaning: Meaning
    inputs: Int8
    labels: npt.NDArray[np.int64]
    calibration: Int8
    conversion: Conversion

    def perturbed(self, count: int, seed: int) -> Int8:
        return perturbed(self.inputs, count, seed)


def perturbed(inputs: Int8, count: int, seed: int) -> Int8:
    """Half of them an input with noise, half a mixture of two with noise."""
    rng = np.random.default_rng(seed)
    first, second = (inputs[rng.integers(0, len(inputs), count)].astype(float) for _ in range(2))
    share = rng.uniform(0, 1, (count, 1, 1, 1)) * (np.arange(count) % 2).reshape(-1, 1, 1, 1)
    noise = rng.integers(-NOISE, NOISE + 1, first.shape)
    mixed = (1 - share) * first + share * second + noise
    return np.clip(np.rint(mixed), -128, 127).astype(np.int8)


@pytest.fixture(scope="module")
def keywords(data_folder: Path) -> Keywords:
    meaning = read_tflite(mlperf(data_folder, "kws_ref_model.tflite"))
    with np.load(mlperf(data_folder, "kws_golden.npz")) as golden:
        inputs: Int8 = golden["inputs"].astype(np.int8)
        labels = golden["outputs"].argmax(axis=1)
    calibration = perturbed(inputs, 100, 7)
    return Keywords(meaning, inputs, labels, calibration, convert(meaning, calibration))


def test_keyword_spotting_means_what_it_says(keywords: Keywords, data_folder: Path) -> None:
    y = keywords.meaning.run(real(keywords.meaning, keywords.inputs))
    assert (y.argmax(axis=1) == keywords.labels).all()


def test_keyword_spotting_on_its_golden_inputs(keywords: Keywords, data_folder: Path) -> None:
    c = keywords.conversion
    y = run_integers(c, c.quantise(keywords.inputs))
    assert (y.argmax(axis=1) == keywords.labels).all()


def test_keyword_spotting_on_perturbed_inputs(keywords: Keywords, data_folder: Path) -> None:
    c, x = keywords.conversion, keywords.perturbed(1000, 11)
    y, wanted = run_integers(c, c.quantise(x)), keywords.meaning.run(real(keywords.meaning, x))
    assert (y.argmax(axis=1) == wanted.argmax(axis=1)).mean() >= 0.95
    assert relative(y, wanted) <= 0.03


def mixtures(inputs: Int8, count: int, seed: int) -> Int8:
    """Of two inputs, without noise."""
    rng = np.random.default_rng(seed)
    first, second = (inputs[rng.integers(0, len(inputs), count)].astype(float) for _ in range(2))
    share = rng.uniform(0, 1, (count, 1, 1, 1))
    return np.rint((1 - share) * first + share * second).astype(np.int8)


@pytest.mark.long
def test_keyword_spotting_on_clean_mixtures(keywords: Keywords, data_folder: Path) -> None:
    """They need samples of their kind: calibrated on noisy ones alone, the error reaches .06."""
    some = [keywords.perturbed(50, 7), mixtures(keywords.inputs, 50, 8)]
    c = convert(keywords.meaning, np.concatenate(some))
    x = mixtures(keywords.inputs, 400, 12)
    y, wanted = run_integers(c, c.quantise(x)), keywords.meaning.run(real(keywords.meaning, x))
    assert (y.argmax(axis=1) == wanted.argmax(axis=1)).mean() >= 0.95
    assert relative(y, wanted) <= 0.04


def test_keyword_spotting_on_the_golden_device(keywords: Keywords, data_folder: Path) -> None:
    c = keywords.conversion
    x = np.concatenate([keywords.inputs, keywords.perturbed(50, 3)])
    found = trainer(c, keywords.calibration).predict(c.quantise(x))
    np.testing.assert_array_equal(found, run_integers(c, c.quantise(x)).argmax(axis=1))


def test_a_dozen_samples_calibrate(keywords: Keywords, data_folder: Path) -> None:
    c = convert(keywords.meaning, keywords.perturbed(12, 5))
    x = keywords.perturbed(200, 6)
    y, wanted = run_integers(c, c.quantise(x)), keywords.meaning.run(real(keywords.meaning, x))
    assert (y.argmax(axis=1) == wanted.argmax(axis=1)).mean() >= 0.9


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_keyword_spotting_calibrated_on_others(
    keywords: Keywords, data_folder: Path, seed: int
) -> None:
    c = convert(keywords.meaning, keywords.perturbed(100, 100 + seed))
    x = keywords.perturbed(1000, 200 + seed)
    y, wanted = run_integers(c, c.quantise(x)), keywords.meaning.run(real(keywords.meaning, x))
    assert (y.argmax(axis=1) == wanted.argmax(axis=1)).mean() >= 0.95
    assert relative(y, wanted) <= 0.03


# --- anomaly detection ---------------------------------------------------------------------------

BANDS, FRAMES = 128, 5


def noise(count: int, seed: int) -> Int8:
    """Every value of its own."""
    shape = (count, BANDS * FRAMES)
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def spectra(count: int, seed: int) -> Int8:
    """Frames of smooth spectra that change a little from one to the next."""
    rng = np.random.default_rng(seed)
    band = np.linspace(0, 1, BANDS)
    waves, phase = (rng.uniform(*limits, (count, 1)) for limits in ((0.5, 3), (0, 1)))
    base = 40 + 30 * np.cos(2 * np.pi * (band * waves + phase)) - 60 * band
    level = rng.normal(0, 10, (count, FRAMES, 1))
    frames = base[:, None] + level + rng.normal(0, 4, (count, FRAMES, BANDS))
    return np.clip(np.rint(frames), -128, 127).astype(np.int8).reshape(count, -1)


@dataclass(frozen=True)
class Anomalies:
    """The auto-encoder and its conversion."""

    path: Path
    meaning: Meaning
    calibration: Int8
    conversion: Conversion


@pytest.fixture(scope="module")
def anomalies(data_folder: Path) -> Anomalies:
    path = mlperf(data_folder, "ad01_int8.tflite")
    meaning = read_tflite(path)
    calibration = np.concatenate([noise(50, 1), spectra(50, 2)])
    return Anomalies(path, meaning, calibration, convert(meaning, calibration))


def error(y: Real, x: Real) -> float:
    """Of a reconstruction: mean square."""
    return float(((y - x) ** 2).mean())


@pytest.mark.parametrize("inputs", [noise, spectra])
def test_anomaly_detection(anomalies: Anomalies, data_folder: Path, inputs: Any) -> None:
    c, x8 = anomalies.conversion, inputs(400, 9)
    x = real(anomalies.meaning, x8)
    wanted = error(anomalies.meaning.run(x), x)
    assert error(run_integers(c, c.quantise(x8)), x) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("inputs", [noise, spectra])
def test_anomaly_detection_against_litert(
    anomalies: Anomalies, data_folder: Path, inputs: Any
) -> None:
    litert: Any = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="LiteRT (ai-edge-litert) is not installed"
    )
    runner = litert.Interpreter(
        model_path=str(anomalies.path),
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF,
    )
    runner.allocate_tensors()
    x8, rows = inputs(200, 10), []
    for row in x8:
        runner.set_tensor(runner.get_input_details()[0]["index"], row[None])
        runner.invoke()
        rows.append(runner.get_tensor(runner.get_output_details()[0]["index"])[0])
    out = anomalies.meaning.output
    assert out is not None
    x, c = real(anomalies.meaning, x8), anomalies.conversion
    wanted = error((np.array(rows).astype(float) - out.zero_point) * out.scale, x)
    assert error(run_integers(c, c.quantise(x8)), x) == pytest.approx(wanted, rel=0.03)


def test_anomaly_detection_on_the_golden_device(anomalies: Anomalies, data_folder: Path) -> None:
    c = anomalies.conversion
    graph = to_graph(c)
    assert graph.loss == "squared_error"
    x8 = spectra(8, 4)
    found = trainer(c, anomalies.calibration).infer(c.quantise(x8)).reshape(len(x8), -1)
    y = run_integers(c, c.quantise(x8))
    # The device gives int8 in a unit that is a power of two.
    unit = np.exp2(np.ceil(np.log2(np.abs(y).max() / 127)))
    assert np.abs(found - y).max() <= unit
    assert relative(found, y) < 0.05


# --- any network ---------------------------------------------------------------------------------


def test_a_network_with_every_layer_on_the_golden_device() -> None:
    meaning = parse_tflite(small_network().write(), "small")
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (120, *meaning.input_shape)).astype(np.int8)
    c = convert(meaning, x[:60])
    found = trainer(c, x[:60]).predict(c.quantise(x[60:]))
    y = run_integers(c, c.quantise(x[60:]))
    np.testing.assert_array_equal(found, y.argmax(axis=1))
    assert relative(y, meaning.run(real(meaning, x[60:]))) < 0.06


def images(*nodes: Node) -> Meaning:
    """Nodes on images of 8 x 8 x 2; six channels of 4 x 4 then go into a dense layer."""
    rng = np.random.default_rng(3)
    tail = (
        Node("f", "flatten", (nodes[-1].name,)),
        Node("d", "dense", ("f",), *normals(rng, (96, 5), (5,))),
    )
    return Meaning("images", "test", (8, 8, 2), (*nodes, *tail))


def normals(rng: Any, *shapes: tuple[int, ...]) -> list[Any]:
    return [(rng.normal(size=shape) * 0.3).astype(np.float32) for shape in shapes]


def conv(name: str, source: str, channels: int, **options: Any) -> Node:
    rng = np.random.default_rng(len(name))
    weights = normals(rng, (3, 3, channels, 6), (6,))
    return Node(name, "conv", (source,), *weights, kernel=(3, 3), padding="same", **options)


def close_on_the_golden_device(meaning: Meaning) -> None:
    """Integers against the meaning, and the device against the integers."""
    x = np.random.default_rng(4).normal(size=(120, *meaning.input_shape))
    c = convert(meaning, x[:60])
    y = run_integers(c, c.quantise(x[60:]))
    assert relative(y, meaning.run(x[60:])) < 0.1
    assert fusion(meaning.nodes) == to_graph(c).fusion
    graph = to_graph(c)
    state = to_state(c, graph, c.quantise(x[:60]))
    device = Trainer(GoldenDevice(CONFIG), compile_graph(graph, CONFIG, 4), state, seed=1)
    np.testing.assert_array_equal(device.predict(c.quantise(x[60:])), y.argmax(axis=1))


@pytest.mark.parametrize("ceiling", [None, 0.8])
def test_a_relu_behind_the_largest_stands_before_it(ceiling: float | None) -> None:
    window = {"kernel": (2, 2), "stride": (2, 2)}
    pool = Node("p", "max_pool", ("c",), relu=True, ceiling=ceiling, **window)
    given = images(conv("c", "input", 2), pool)
    meaning = check_meaning(given)
    assert [n.relu for n in meaning.nodes] == [True, False, False, False]
    x = np.random.default_rng(0).normal(size=(9, 8, 8, 2))
    np.testing.assert_allclose(meaning.run(x), given.run(x), rtol=1e-9)
    close_on_the_golden_device(meaning)


@pytest.mark.parametrize("ceiling", [2.0, 1.0, 0.5])
def test_a_ceiling_cuts_every_channel_at_its_value(ceiling: float) -> None:
    """Channels of different magnitudes, which would have different scales without it."""
    first = conv("c", "input", 2, relu=True, ceiling=ceiling)
    assert first.weight is not None
    first = replace(first, weight=first.weight * np.array([0.5, 1, 1, 2, 2, 3], np.float32))
    pool = Node("p", "max_pool", ("cc",), kernel=(2, 2), stride=(2, 2))
    close_on_the_golden_device(images(first, conv("cc", "c", 6, relu=True), pool))


def test_a_relu_behind_a_mean_is_refused() -> None:
    window = {"kernel": (2, 2), "stride": (2, 2)}
    pool = Node("p", "average_pool", ("c",), relu=True, place="operator 1", **window)
    with pytest.raises(ModelError, match="operator 1: a ReLU behind pooling"):
        check_meaning(images(conv("c", "input", 2), pool))
    same = check_meaning(images(conv("c", "input", 2, relu=True), pool))
    assert not same.nodes[1].relu


@pytest.mark.parametrize("relu", [False, True])
def test_a_sum_joins_an_addition_whatever_comes_first(relu: bool) -> None:
    """The layer that takes the addition may stand before the value that it adds."""
    meaning = images(
        conv("a", "input", 2),
        conv("bb", "input", 2, relu=relu),
        Node("s", "add", ("a", "bb"), relu=True),
        Node("p", "max_pool", ("s",), kernel=(2, 2), stride=(2, 2)),
    )
    assert fusion(meaning.nodes) == ({"a": "s"} if relu else {"bb": "s"})
    close_on_the_golden_device(meaning)


def dense_network(weight: Real, bias: Real) -> Meaning:
    node = Node("dense1", "dense", ("input",), weight.astype(np.float32), bias.astype(np.float32))
    return Meaning("dense", "test", (weight.shape[0],), (node,))


def test_inputs_in_real_numbers() -> None:
    rng = np.random.default_rng(0)
    meaning = dense_network(rng.normal(size=(12, 4)), rng.normal(size=4))
    x = rng.uniform(0, 5, (200, 12))
    c = convert(meaning, x[:100])
    assert c.input.zero_point == -127
    y = run_integers(c, c.quantise(x[100:]))
    assert relative(y, meaning.run(x[100:])) < 0.01


def test_range_of_inputs() -> None:
    found = input_range(np.array([[0.0, 2.54]]))
    assert found.zero_point == -127
    assert found.scale == pytest.approx(0.01)
    assert input_range(np.zeros((3, 2))).scale == 1.0
    with pytest.raises(DataError, match="NaN"):
        input_range(np.array([[np.nan]]))


def test_wrong_samples() -> None:
    meaning = dense_network(np.eye(4), np.zeros(4))
    with pytest.raises(DataError, match="no calibration samples"):
        convert(meaning, np.zeros((0, 4)))
    with pytest.raises(DataError, match=r"takes \(N, 4\)"):
        convert(meaning, np.zeros((3, 5)))
    c = convert(meaning, np.random.default_rng(0).normal(size=(20, 4)))
    with pytest.raises(DataError, match="NaN"):
        c.quantise(np.full((1, 4), np.inf))


def test_a_bias_that_no_machine_holds() -> None:
    meaning = dense_network(np.eye(4) * 1e-3, np.full(4, 1e7))
    with pytest.raises(ModelError, match="biases reach 2048"):
        convert(meaning, np.random.default_rng(0).normal(size=(20, 4)))


def test_silent_layers() -> None:
    """All weights zero, and inputs that never change."""
    c = convert(dense_network(np.zeros((4, 3)), np.arange(3)), np.ones((5, 4)))
    y = run_integers(c, c.quantise(np.ones((2, 4))))
    np.testing.assert_allclose(y, [[0, 1, 2]] * 2, atol=1e-3)
