"""Training: learning rates, runs, what the host moves, interruption and resumption."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiron.arch.config import Config, simulation_config, up5k_config
from gradiron.arch.isa import Space
from gradiron.checkpoint import load_checkpoint, save_checkpoint
from gradiron.compiler import compile_graph
from gradiron.data import Dataset, load_digits
from gradiron.errors import DataError, DeviceError, MachineError, ModelError
from gradiron.float_twin import FloatTwin
from gradiron.golden import GoldenDevice
from gradiron.graph import INPUT, Graph
from gradiron.model import (
    calibrate,
    compare_devices,
    compare_states,
    initial_parameters,
    initial_state,
    weight_exponent,
    weights_sha256,
    write_state,
)
from gradiron.networks import mlp, network
from gradiron.operations import Layer
from gradiron.progress import EpochRecord, NoProgress, PlainProgress, make_progress
from gradiron.train import (
    Settings,
    Trainer,
    compare_histories,
    default_settings,
    diagnose,
    new_trainer,
    parse_rate,
    resume,
)

GRAPH = mlp([17, 6, 3])
CONFIG = Config(rows=4, cols=2, regions=(4096, 4096), acc_depth=16)


def blobs(graph: Graph = GRAPH, count: int = 64, seed: int = 0) -> Dataset:
    """Samples around a point per class."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(-80, 80, (graph.classes, graph.features))
    y = rng.integers(0, graph.classes, count)
    x = np.clip(centres[y] + rng.integers(-40, 40, (count, graph.features)), -127, 127)
    x = x.astype(np.int8)
    test = count // 4
    return Dataset("blobs", x[test:], y[test:], x[:test], y[:test], graph.classes)


SETTINGS = Settings(epochs=4, batch=4, rate=4, halvings=(2,), seed=5)


def trainer(
    graph: Graph = GRAPH, config: Config = CONFIG, settings: Settings = SETTINGS
) -> tuple[Trainer, Dataset]:
    data = blobs(graph)
    program = compile_graph(graph, config, settings.batch)
    return new_trainer(GoldenDevice(config), program, data, settings), data


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "k"),
    [("0.125", 3), ("1/8", 3), ("2^-3", 3), (0.125, 3), ("1", 0), ("2", -1), ("2^-31", 31)],
)
def test_learning_rates(text: str | float, k: int) -> None:
    assert parse_rate(text) == k


@given(st.integers(-32, 31))
def test_every_power_of_two_is_a_learning_rate(k: int) -> None:
    assert parse_rate(2.0**-k) == k
    assert parse_rate(f"2^{-k}") == k


def test_other_learning_rates_name_their_neighbours() -> None:
    with pytest.raises(DataError) as info:
        parse_rate("0.1")
    assert str(info.value) == (
        "learning rate 0.1 is not a power of two; its neighbours are 0.0625 (2^-4) and 0.125 (2^-3)"
    )
    with pytest.raises(DataError, match=r"0.25 \(2\^-2\) and 0.5 \(2\^-1\)"):
        parse_rate("1/3")


@pytest.mark.parametrize("text", ["", "fast", "0", "-0.5", "nan", "inf", "1/0", "2^x", "2^99999"])
def test_not_a_learning_rate(text: str) -> None:
    with pytest.raises(DataError, match="is not a positive number; give a power of two"):
        parse_rate(text)


def test_learning_rate_out_of_range() -> None:
    with pytest.raises(DataError, match=r"must be from 2\^-31 to 2\^32"):
        parse_rate("2^-40")


def test_settings() -> None:
    settings = Settings(epochs=10, batch=8, rate=3, halvings=(5, 7, 9))
    assert [settings.rate_at(e) for e in range(10)] == [3] * 5 + [4] * 2 + [5] * 2 + [6]
    for change in ({"epochs": 0}, {"batch": 0}, {"rate": 32}, {"seed": -1}, {"seed": 1 << 32}):
        with pytest.raises(DataError, match=f"{next(iter(change))} is .*; it must be from"):
            dataclasses.replace(settings, **change)


def test_default_settings() -> None:
    digits = default_settings(network("digits"), seed=3)
    assert digits == Settings(24, 8, 2, (12, 16, 21), 3)
    assert default_settings(network("mlp")) == Settings(10, 32, 3, (5, 7, 9), 0)
    assert default_settings(network("mlp"), epochs=1).halvings == ()
    rates = [default_settings(network("mlp"), batch=b).rate for b in (1, 4, 8, 32)]
    assert rates == [6, 5, 4, 3]
    assert default_settings(network("mlp"), rate=7).rate == 7


# --- beginnings ----------------------------------------------------------------------------------


def test_initial_weights() -> None:
    p = initial_parameters(network("mlp"), 0)
    limit = np.sqrt(6 / 784)
    weight = p["dense1"].weight()
    assert abs(weight).max() < limit
    assert abs(weight).max() > 0.999 * limit
    assert abs(weight.mean()) < 0.01 * limit
    assert abs(weight.std() - limit / np.sqrt(3)) < 0.01 * limit
    # One spare bit: the largest int8 weight has six bits, or is 64.
    largest = abs(p["dense1"].weight8() * 2.0 ** -p["dense1"].exponent).max()
    assert 32 < largest <= 64
    assert not p["dense1"].bias.any()
    assert weights_sha256(p) != weights_sha256(initial_parameters(network("mlp"), 1))


def test_initial_weights_never_change() -> None:
    # The digest is part of what makes a run repeatable elsewhere.
    digest = weights_sha256(initial_parameters(network("digits"), 0))
    assert digest == "18adbdbac44ad969aaa74436a0656d50f099963f417ac108c2c1bebac4a9a9e8"


@given(st.floats(2.0**-40, 2.0**40))
def test_weight_exponent(largest: float) -> None:
    exponent = weight_exponent(largest)
    assert 32 < largest * 2.0**-exponent <= 64


def test_calibration_gives_what_the_trackers_ask_for() -> None:
    data = load_digits()
    graph = network("digits")
    state = initial_state(graph, 0, data.x_train, data.y_train)
    program = compile_graph(graph, simulation_config(), 64)
    device = GoldenDevice(simulation_config())
    t = Trainer(device, program, state)
    t.set_rate(31)
    t.step(data.x_train[:64], data.y_train[:64])
    after = t.state()
    for name, entry in state.exponents.items():
        # Nothing was too small; rounding may differ by a count of the hysteresis.
        assert abs(after.exponents[name][1] - entry[1]) <= (name == "dense1.gradient"), name
    assert not any(t.saturations().values())


BRANCHED = Graph(
    "branched",
    (9, 8, 3),
    (
        Layer("conv1", "conv", (INPUT,), 6, kernel=(5, 3), stride=(2, 2), relu=True),
        Layer("depthwise", "depthwise", ("conv1",), kernel=(3, 3), relu=True),
        Layer("pointwise", "conv", ("depthwise",), 6),
        Layer("add1", "add", ("pointwise", "conv1"), relu=True),
        Layer("wide", "conv", ("add1",), 6, kernel=(3, 3)),
        Layer("project", "conv", ("add1",), 6),
        Layer("add2", "add", ("wide", "project"), relu=True),
        Layer("max", "max_pool", ("add2",), kernel=(2, 2)),
        Layer("average", "average_pool", ("max",), kernel=(0, 0)),
        Layer("flatten", "flatten", ("average",)),
        Layer("dense", "dense", ("flatten",), 4),
    ),
)
"""Every operation, values with several consumers, a projection."""
ROOMY = simulation_config("4x4")


def squared(graph: Graph, target: str = INPUT) -> Graph:
    return dataclasses.replace(graph, loss="squared_error", target=target)


@pytest.mark.parametrize("graph", [BRANCHED, squared(mlp([17, 5, 17]))], ids=str)
def test_calibration_of_branches_and_of_squared_errors(graph: Graph) -> None:
    data = blobs(graph, 128)
    y = data.y_train[:64] if graph is BRANCHED else data.x_train[:64]
    state = initial_state(graph, 0, data.x_train, y)
    program = compile_graph(graph, ROOMY, 64)
    schedule = program.schedule
    assert state.exponents.keys() == schedule.exponents.keys() - schedule.constants.keys()
    t = Trainer(GoldenDevice(ROOMY), program, state)
    t.set_rate(31)
    t.step(data.x_train[:64], y)
    after = t.state()
    for name, entry in state.exponents.items():
        # Gradients are rounded at random, and one may be at the edge of a power of two.
        assert abs(after.exponents[name][1] - entry[1]) <= (".gradient" in name), name


def test_calibration_of_silence() -> None:
    p = initial_parameters(GRAPH, 0)
    found = calibrate(GRAPH, p, np.zeros((2, 17), np.int8), np.zeros(2, np.int64))
    assert all(-64 <= entry[0] <= 63 for entry in found.values())


def test_weights_digest_is_that_of_the_contract() -> None:
    import hashlib

    p = initial_parameters(GRAPH, 0)
    h = hashlib.sha256()
    for layer in p.values():
        for value in layer.master.ravel():
            h.update(int(value).to_bytes(2, "little", signed=True))
        for value in layer.bias:
            h.update(int(value).to_bytes(4, "little", signed=True))
        h.update(layer.exponent.to_bytes(1, "little", signed=True))
    assert h.hexdigest() == weights_sha256(p)


# --- runs ----------------------------------------------------------------------------------------


def test_host_traffic_of_a_step() -> None:
    t, data = trainer()
    t.set_rate(4)
    t.device.traffic.reset()
    t.step(data.x_train[:4], data.y_train[:4])
    traffic = t.device.traffic
    # Inputs and labels; ENTRY and CONTROL to start.
    assert traffic.written == {
        Space.CSR: 8,
        Space.MEMORY: 4 * (17 + 1),
        Space.PROGRAM: 0,
        Space.EXPONENTS: 0,
    }
    # The status before and after, and the loss.
    assert traffic.read == {
        Space.CSR: 12,
        Space.MEMORY: 0,
        Space.PROGRAM: 0,
        Space.EXPONENTS: 0,
    }


def test_learns() -> None:
    t, data = trainer()
    before = t.evaluate(data.x_train, data.y_train)
    history = t.fit(data, SETTINGS)
    assert history.steps == 4 * 12
    assert [record.rate for record in history.epochs] == [4, 4, 5, 5]
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert history.accuracy >= 0.9 > before
    assert not history.diverged
    assert t.state().step == 48


@pytest.mark.parametrize("count", [1, 3, 4, 7, 16])
def test_predictions_of_any_number_of_samples(count: int) -> None:
    t, data = trainer()
    t.fit(data, dataclasses.replace(SETTINGS, epochs=1))
    state = t.state_hash()
    one_by_one = [int(t.predict(data.x_test[i : i + 1])[0]) for i in range(count)]
    assert t.predict(data.x_test[:count]).tolist() == one_by_one
    trackers = [entry[1:] for _, entry in sorted(t.state().exponents.items())]
    t.load(t.state())
    assert [entry[1:] for _, entry in sorted(t.state().exponents.items())] == trackers
    assert len(state) == 64


def test_same_bits_on_every_machine() -> None:
    graph = mlp([17, 6, 4])
    runs: list[tuple[Trainer, Any]] = []
    for config in (CONFIG, simulation_config("16x16"), up5k_config()):
        t, data = trainer(graph, config)
        runs.append((t, t.fit(data, SETTINGS)))
    first, history = runs[0]
    for other, its in runs[1:]:
        assert compare_histories(history, its) == []
        assert other.weights_sha256() == first.weights_sha256()
        assert compare_states(first.state(), other.state()) is None


def test_digits_reach_their_accuracy() -> None:
    data = load_digits()
    graph = network("digits")
    program = compile_graph(graph, simulation_config(), 8)
    settings = default_settings(graph)
    t = new_trainer(GoldenDevice(simulation_config()), program, data, settings)
    history = t.fit(data, settings)
    assert history.accuracy >= 0.96
    assert not any(record.note for record in history.epochs)


def test_a_branched_network_learns_as_in_float32() -> None:
    data = blobs(BRANCHED, 512)
    settings = Settings(6, 8, 5, (4,), 1)
    t = new_trainer(GoldenDevice(ROOMY), compile_graph(BRANCHED, ROOMY, 8), data, settings)
    history = t.fit(data, settings)
    twin = FloatTwin(BRANCHED, initial_parameters(BRANCHED, 1)).fit(data, settings)
    assert history.accuracy >= 0.9
    assert abs(history.epochs[-1].loss - twin.epochs[-1].loss) < 0.1
    first = slice(0, 20)
    np.testing.assert_allclose(history.losses[first], twin.losses[first], rtol=0.15)


def test_an_auto_encoder_learns_as_in_float32() -> None:
    graph = squared(mlp([17, 5, 17]))
    data = dataclasses.replace(blobs(graph, 512), classes=1)
    settings = Settings(8, 4, 6, (6,), 2)
    program = compile_graph(graph, CONFIG, 4)
    t = new_trainer(GoldenDevice(CONFIG), program, data, settings)
    begin = t.evaluate(data.x_test, data.x_test)
    history = t.fit(data, settings)
    twin = FloatTwin(graph, initial_parameters(graph, 2)).fit(data, settings)
    assert np.isnan(history.accuracy)
    assert history.error < begin / 2
    assert history.error == pytest.approx(twin.error, rel=0.1)
    np.testing.assert_allclose(history.losses[:20], twin.losses[:20], rtol=0.1)
    # Outputs have the exponent of the targets; samples beyond the last batch come too.
    y = t.infer(data.x_test[:7])
    assert y.shape == (7, 17)
    np.testing.assert_array_equal(y * 128, np.rint(y * 128))
    assert np.mean((y - data.x_test[:7] / 128) ** 2) < begin
    with pytest.raises(DataError, match="gives values, no classes; call infer"):
        t.predict(data.x_test)
    assert compare_histories(history, history) == []
    other = dataclasses.replace(history, epochs=[dataclasses.replace(e) for e in history.epochs])
    other.epochs[0].error = 1.0
    assert "squared errors after epoch 1" in compare_histories(history, other)[0]


def test_targets_of_their_own() -> None:
    graph = squared(mlp([17, 3]), "target")
    data = blobs(graph, 256)
    target = data.x_train[:, :3] // 2
    data = dataclasses.replace(
        data, classes=1, t_train=target, t_test=data.x_test[:, :3] // 2, target_exponent=-5
    )
    settings = Settings(20, 4, 6, (15,))
    t = new_trainer(GoldenDevice(CONFIG), compile_graph(graph, CONFIG, 4), data, settings)
    history = t.fit(data, settings)
    scale = np.mean((data.x_test[:, :3] // 2 * 2.0**-5) ** 2)
    assert history.error < 0.15 * scale
    parameters = initial_parameters(graph, 0)
    twin = FloatTwin(graph, parameters, target_exponent=-5).fit(data, settings)
    assert history.error == pytest.approx(twin.error, rel=0.1)
    with pytest.raises(DataError, match=r"has no targets, and .* learns values"):
        t.fit(dataclasses.replace(data, t_train=None), settings)
    with pytest.raises(DataError, match="targets have 17 values per sample, the network takes 3"):
        t.step(data.x_train[:4], data.x_train[:4])
    with pytest.raises(DataError, match="targets are 3, for 4 samples"):
        t.step(data.x_train[:4], target[:3])


def test_classes_must_fit() -> None:
    t, data = trainer()
    with pytest.raises(DataError, match="gives classes, no values; call predict"):
        t.infer(data.x_test)
    with pytest.raises(DataError, match="blobs has no labels"):
        t.fit(dataclasses.replace(data, classes=1), SETTINGS)
    with pytest.raises(DataError, match=r"labels up to 4 and the network .* 3 outputs; take one"):
        t.fit(dataclasses.replace(data, classes=5), SETTINGS)


def test_an_auto_encoder_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    graph = squared(mlp([17, 5, 17]))
    data = blobs(graph, 128)
    settings = Settings(3, 4, 6)
    program = compile_graph(graph, CONFIG, 4)
    whole = new_trainer(GoldenDevice(CONFIG), program, data, settings)
    history = whole.fit(data, settings)
    path = tmp_path / "c"
    short = new_trainer(GoldenDevice(CONFIG), program, data, settings)
    short.fit(data, dataclasses.replace(settings, epochs=1), checkpoint=path)
    again = resume(path, GoldenDevice(CONFIG), program, data, settings)
    assert compare_histories(again.fit(data, settings), history) == []
    assert again.state_hash() == whole.state_hash()


def test_options_train_too() -> None:
    for options in ({"momentum": ["dense1", "dense2"]}, {"int8_weights": ["dense1", "dense2"]}):
        graph = GRAPH.with_options(**options)
        settings = dataclasses.replace(SETTINGS, rate=6 if "momentum" in options else 4)
        t, data = trainer(graph, CONFIG, settings)
        assert t.fit(data, settings).accuracy >= 0.8, options
    graph = GRAPH.with_options(frozen=["dense1"])
    t, data = trainer(graph)
    before = t.parameters()["dense1"].master
    t.fit(data, SETTINGS)
    after = t.parameters()
    np.testing.assert_array_equal(after["dense1"].master, before)


def test_steps_per_epoch_can_be_limited() -> None:
    t, data = trainer()
    steps: list[int] = []
    history = t.fit(data, SETTINGS, max_steps=2, on_step=lambda step, loss: steps.append(step))
    assert history.steps == 8
    assert steps == list(range(1, 9))


# --- bad input -----------------------------------------------------------------------------------


def test_bad_samples() -> None:
    t, data = trainer()
    x, y = data.x_train[:4], data.y_train[:4]
    before = t.state_hash()
    with pytest.raises(DataError, match="sample 2 has the label 3; labels must be from 0 to 2"):
        t.step(x, np.array([0, 1, 3, 0]))
    with pytest.raises(DataError, match="inputs are float32, but int8 is expected"):
        t.step(x.astype(np.float32), y)
    with pytest.raises(DataError, match="have 16 values per sample, the network takes 17"):
        t.step(x[:, :16], y)
    with pytest.raises(DataError, match="3 samples; the program takes 4 at a time"):
        t.step(x[:3], y[:3])
    with pytest.raises(DataError, match="one label per sample"):
        t.step(x, y[:3])
    with pytest.raises(DataError, match=r"blobs: training labels: sample 0 has the label [789]"):
        t.fit(dataclasses.replace(data, y_train=data.y_train + 7), SETTINGS)
    with pytest.raises(DataError, match="has 3 training samples; a batch is 4"):
        t.fit(data.limited(3), SETTINGS)
    assert t.state_hash() == before


def test_mismatched_parts() -> None:
    t, data = trainer()
    with pytest.raises(DataError, match="settings have batch 8, the program was compiled for 4"):
        t.fit(data, dataclasses.replace(SETTINGS, batch=8))
    with pytest.raises(DataError, match="settings have seed 6, the trainer was made with 5"):
        t.fit(data, dataclasses.replace(SETTINGS, seed=6))
    with pytest.raises(DataError, match="the program was compiled for another machine"):
        Trainer(GoldenDevice(simulation_config()), t.program, t.state())
    other = initial_state(mlp([17, 5, 3]), 0, data.x_train, data.y_train)
    with pytest.raises(DataError, match=r"'dense1': the state has weights \(17, 5\)"):
        write_state(t.device, t.program, other)
    with pytest.raises(DataError, match="state has parameters of dense1, the program of dense1, d"):
        write_state(t.device, t.program, initial_state(mlp([17, 3]), 0, data.x_train, data.y_train))


def test_a_frozen_network_only_predicts() -> None:
    graph = GRAPH.with_options(frozen=["dense1", "dense2"])
    t, data = trainer(graph)
    assert 0 <= t.evaluate(data.x_test, data.y_test) <= 1
    with pytest.raises(ModelError, match="whose layers are all frozen cannot be trained"):
        t.fit(data, SETTINGS)


def test_machine_errors_name_the_layer() -> None:
    t, data = trainer()
    pc = next(pc for pc, origin in t.program.origins.items() if origin.pass_ == "dw")
    t.device.write_program([0], pc)
    with pytest.raises(MachineError, match=f"program counter {pc}: dense2 dw of 'train'") as info:
        t.step(data.x_train[:4], data.y_train[:4])
    assert info.value.pc == pc
    # A new trainer clears the error and goes on.
    again = Trainer(t.device, t.program, t.state(), seed=5)
    again.step(data.x_train[:4], data.y_train[:4])


def test_divergence_is_reported() -> None:
    settings = dataclasses.replace(SETTINGS, rate=-4, halvings=(), epochs=3)
    t, data = trainer(settings=settings)
    history = t.fit(data, settings)
    assert history.diverged
    assert "diverging: " in history.epochs[-1].note
    assert "try another learning rate" in str(history.epochs[-1])
    assert any(record.saturation for record in history.epochs)


def test_diagnosis() -> None:
    record = EpochRecord(0, 8, 3, 1.0, 0.5)
    assert diagnose(record, network("digits"), [3.0, 2.0, 1.0]) == ""
    # Slow at first is not diverging.
    assert diagnose(record, network("digits"), [4.0, 3.5, 3.4]) == ""
    assert "no better than guessing (3.32)" in diagnose(record, network("digits"), [3.3, 3.3, 3.4])
    assert "far worse than guessing" in diagnose(record, network("digits"), [3.3, 9.0])
    assert "no longer a number" in diagnose(record, network("digits"), [3.3, float("nan")])
    record.saturation = {"dense1.output": 0.25}
    assert "25.0% of dense1.output saturate" in diagnose(record, network("digits"), [1.0])
    # A squared error has nothing to be guessed: it may not rise.
    values = squared(mlp([6, 4, 6]))
    assert "has risen from 1 to 5" in diagnose(EpochRecord(0, 8, 3, 1.0, 0.5), values, [1, 1, 5])
    assert diagnose(EpochRecord(0, 8, 3, 1.0, 0.5), values, [9, 3, 5]) == ""


# --- comparison ----------------------------------------------------------------------------------


def test_comparison_names_the_first_difference() -> None:
    t, data = trainer()
    other, _ = trainer()
    assert compare_devices(t.program, t.device, other.device) is None
    address = t.program.plan.address("dense2.weight.high")
    old = other.device.read_memory(address + 4, 1)[0]
    other.device.write_memory(address + 4, bytes([old ^ 1]))
    found = compare_devices(t.program, t.device, other.device)
    assert found is not None
    assert (found.tensor, found.index) == ("dense2.master", (1, 1))
    assert abs(found.first - found.second) == 256
    assert str(found).startswith("dense2.master[1, 1] is ")
    other.load(t.state())
    index = t.program.schedule.exponents["dense1.output"]
    other.device.write_exponent(index, 3, 4, 5)
    found = compare_devices(t.program, t.device, other.device)
    assert found is not None
    assert found.tensor == "dense1.output: exponent, tracker, count"
    with pytest.raises(DeviceError, match="states of different networks"):
        compare_states(t.state(), initial_state(mlp([17, 3]), 0, data.x_train, data.y_train))
    with pytest.raises(DeviceError, match="has the shape"):
        compare_states(t.state(), initial_state(mlp([17, 5, 3]), 0, data.x_train, data.y_train))


def test_histories_are_compared_step_by_step() -> None:
    t, data = trainer()
    one = t.fit(data, SETTINGS)
    other = dataclasses.replace(one, losses=list(one.losses))
    assert compare_histories(one, other) == []
    other.losses[7] += 1
    assert compare_histories(one, other)[0].startswith("the loss of step 7 is ")


# --- interruption --------------------------------------------------------------------------------


class Interrupting(NoProgress):
    """Interrupts the run within an epoch."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == (2, 5):
            raise KeyboardInterrupt


@pytest.mark.parametrize("momentum", [[], ["dense1"]])
def test_resumes_to_the_same_bits(tmp_path: Path, momentum: list[str]) -> None:
    graph = GRAPH.with_options(momentum=momentum)
    whole, data = trainer(graph)
    expected = whole.fit(data, SETTINGS)
    path = tmp_path / "below" / "run.ckpt"
    broken, _ = trainer(graph)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(data, SETTINGS, checkpoint=path, progress=Interrupting())
    assert len(load_checkpoint(path).records) == 2
    # It goes on, on another machine.
    config = simulation_config("2x8")
    program = compile_graph(graph, config, SETTINGS.batch)
    again = resume(path, GoldenDevice(config), program, data, SETTINGS)
    assert again.history.steps == 24
    history = again.fit(data, SETTINGS, checkpoint=path)
    assert compare_histories(history, expected) == []
    assert again.state_hash() == whole.state_hash()
    assert load_checkpoint(path).state.sha256() == whole.state_hash()
    assert [p.name for p in path.parent.iterdir()] == ["run.ckpt"]
    # A run that is complete stays as it is; more epochs may follow.
    done = resume(path, GoldenDevice(config), program, data, SETTINGS)
    assert done.fit(data, SETTINGS).steps == 48
    more = dataclasses.replace(SETTINGS, epochs=5)
    assert resume(path, GoldenDevice(config), program, data, more).fit(data, more).steps == 60


def test_refuses_to_resume_another_run(tmp_path: Path) -> None:
    t, data = trainer()
    path = tmp_path / "run.ckpt"
    t.fit(data, dataclasses.replace(SETTINGS, epochs=1), checkpoint=path)

    def attempt(d: Dataset, s: Settings, graph: Graph = GRAPH) -> None:
        program = compile_graph(graph, CONFIG, s.batch)
        resume(path, GoldenDevice(CONFIG), program, d, s)

    attempt(data, SETTINGS)
    with pytest.raises(DataError, match=r"is of another run: rate \(4 then, 5 now\)"):
        attempt(data, dataclasses.replace(SETTINGS, rate=5))
    with pytest.raises(DataError, match=r"seed \(5 then, 9 now\)"):
        attempt(data, dataclasses.replace(SETTINGS, seed=9))
    with pytest.raises(DataError, match=r"is of another run: data \("):
        attempt(dataclasses.replace(data, x_train=-data.x_train), SETTINGS)
    with pytest.raises(DataError, match="or their options differ; use the same network"):
        attempt(data, SETTINGS, GRAPH.with_options(frozen=["dense1"]))


def test_damaged_checkpoints(tmp_path: Path) -> None:
    t, data = trainer()
    path = tmp_path / "run.ckpt"
    with pytest.raises(DataError, match="there is no checkpoint to go on from at"):
        load_checkpoint(path)
    t.fit(data, dataclasses.replace(SETTINGS, epochs=1), checkpoint=path)
    content = path.read_bytes()
    for position in (0, 5):
        path.write_bytes(content[:position] + b"?" + content[position + 1 :])
        with pytest.raises(DataError, match="is not a checkpoint of this version"):
            load_checkpoint(path)
    for damaged in (
        content[:-1],
        content[:200] + b"?" + content[201:],
        content + b"x",
        content[:40],
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged"):
            load_checkpoint(path)
    path.write_bytes(content)
    found = load_checkpoint(path)
    assert found.state.sha256() == t.state_hash()
    assert found.graph == GRAPH
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        save_checkpoint(blocked / "run.ckpt", found)


def test_a_failing_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t, data = trainer()
    path = tmp_path / "run.ckpt"
    t.fit(data, dataclasses.replace(SETTINGS, epochs=1), checkpoint=path)
    content = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(DataError, match="disk full"):
        t.fit(data, dataclasses.replace(SETTINGS, epochs=2), checkpoint=path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


# --- progress ------------------------------------------------------------------------------------


def test_plain_progress(capsys: pytest.CaptureFixture[str]) -> None:
    t, data = trainer()
    t.fit(data, dataclasses.replace(SETTINGS, epochs=2), progress=PlainProgress(every=0.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mlp:17-6-3 (17-6-3): 2 epochs of 12 steps"
    assert lines[1].startswith("epoch 1, step 1 of 12: loss ")
    assert lines[-1].startswith("epoch 2: loss ")
    assert isinstance(make_progress(quiet=True), NoProgress)
    assert isinstance(make_progress(), PlainProgress)


def test_rich_progress() -> None:
    pytest.importorskip("rich")
    from gradiron.progress import RichProgress

    t, data = trainer()
    t.fit(data, dataclasses.replace(SETTINGS, epochs=2), progress=RichProgress())
    assert t.history.steps == 24
