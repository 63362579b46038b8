"""The command line: results, files, errors. Everything that simulates is in tests/sim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradiron
from gradiron.cli import main, training
from gradiron.cli.machines import find_graph, fitted_config, product_program
from gradiron.cli.output import plain_table
from gradiron.cli.programs import words_from_file, words_to_file
from gradiron.compiler import compile_graph
from gradiron.progress import NoProgress

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "accuracy",
    "accuracy_float32",
    "bit_exact",
    "mismatches",
    "steps",
    "cycles",
    "weights_sha256",
    "engine",
    "seconds",
}
SHORT = ("--model", "digits", "--dataset", "digits", "--train-samples", "64", "--epochs", "2")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_json(*words: str) -> Any:
    assert main([*words, "--json", "result.json"]) == 0
    return json.loads(Path("result.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("gradiron: ")
    assert "Traceback" not in message
    return message


# --- train ---------------------------------------------------------------------------------------


def test_train_gives_the_fixed_keys_and_the_same_bits_on_every_array() -> None:
    small = run_json("train", *SHORT, "--array", "4x4", "--check", "--quiet")
    large = run_json("train", *SHORT, "--array", "16x8", "--no-float32", "--quiet")
    assert small.keys() >= KEYS
    assert small["steps"] == 16
    assert small["engine"] == "golden"
    assert small["bit_exact"] is True
    assert small["mismatches"] == 0
    assert 0 < small["accuracy_float32"] <= 1
    assert large["bit_exact"] is None
    assert large["accuracy_float32"] is None
    assert small["weights_sha256"] == large["weights_sha256"]
    assert small["loss"] == large["loss"]


def test_train_takes_every_option() -> None:
    words = ("--batch", "4", "--lr", "1/16", "--halve-at", "1", "--seed", "3", "--quiet")
    found = run_json("train", *SHORT, *words, "--momentum")
    assert (found["batch"], found["lr"], found["halve_at"], found["seed"]) == (4, 0.0625, [1], 3)
    other = run_json("train", *SHORT, *words, "--int8-weights")
    assert other["weights_sha256"] != found["weights_sha256"]
    assert run_json("train", *SHORT, "--halve-at", "--quiet")["halve_at"] == []


def test_train_measures_with_held_back_training_samples() -> None:
    found = run_json("train", *SHORT, "--validation", "14", "--quiet")
    assert (found["train_samples"], found["test_samples"]) == (50, 14)


def test_train_convolutional_networks_with_what_suits_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    y = np.arange(48) % 10
    np.savez("images.npz", x=np.repeat(12 * y[:, None], 784, axis=1).astype(np.int8), y=y)
    common = ("--dataset", "images.npz", "--epochs", "1", "--no-float32", "--quiet")
    words = ("train", "--model", "cnn", *common)
    found = run_json(*words)
    assert (found["model"], found["momentum"], found["batch"]) == ("cnn", True, 32)
    other = run_json(*words, "--no-momentum", "--array", "4x4")
    assert other["momentum"] is False
    assert other["weights_sha256"] != found["weights_sha256"]
    assert run_json(*words, "--int8-weights")["momentum"] is False
    assert run_json("train", "--model", "ds-residual", *common)["momentum"] is False
    capsys.readouterr()
    words = ("train", "--model", "cnn:3", "--dataset", "images.npz", "--quiet")
    assert "has labels up to 9 and the network 'cnn:3' 3 outputs" in refused(capsys, *words)


def test_train_an_auto_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    base = np.random.default_rng(0).normal(size=(3, 640))
    x = np.tanh(np.random.default_rng(1).normal(size=(80, 3)) @ base / 4)
    np.savez("sounds.npz", x=x)
    words = ("train", "--model", "autoencoder", "--dataset", "sounds.npz", "--quiet")
    found = run_json(*words, "--epochs", "2", "--batch", "4", "--plot", "errors.png", "--check")
    assert found["accuracy"] is None
    assert found["accuracy_float32"] is None
    assert found["bit_exact"] is True
    assert found["error"] == pytest.approx(found["error_float32"], rel=0.1)
    assert found["errors"][-1] == found["error"]
    assert found["loss"][-1] < found["loss"][0]
    assert Path("errors.png").read_bytes().startswith(b"\x89PNG")
    assert "mean squared error" in capsys.readouterr().out
    words = ("train", "--model", "digits", "--dataset", "sounds.npz", "--quiet")
    assert "has no labels" in refused(capsys, *words)


def test_train_on_a_folder_of_recordings(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for label in ("hm", "ts"):
        for index in range(10):
            noise = rng.normal(size=3000) if label == "ts" else np.sin(np.arange(3000) / 9)
            path = Path("sounds") / label / f"{index}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes((noise * 5000).astype("<i2").tobytes())
    words = ("train", "--model", "ds-cnn:2", "--dataset", "sounds", "--batch", "4", "--quiet")
    found = run_json(*words, "--epochs", "1")
    assert (found["train_samples"], found["test_samples"]) == (16, 4)
    assert found["dataset"] == "sounds"
    empty = ("train", "--model", "ds-cnn", "--dataset", "spoken-digits", "--data", ".", "--quiet")
    assert "Free Spoken Digit Dataset" in refused(capsys, *empty)


def test_demo_on_the_golden_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json("demo", "--engine", "golden", "--epochs", "1", "--quiet")
    assert found.keys() >= KEYS
    assert Path(found["plot"]).read_bytes().startswith(b"\x89PNG")
    assert found["plot"] == training.DEMO_PLOT
    assert found["cycles"] > 0  # by the cycle model
    assert "yes" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_json("train", *SHORT, "--checkpoint", "whole.checkpoint", "--quiet")

    class Interruption(NoProgress):
        def step(self, epoch: int, step: int, loss: float) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "make_progress", lambda quiet: Interruption())
        words = ["train", *SHORT, "--checkpoint", "half.checkpoint", "--check"]
        assert main(words) == 130
    message = capsys.readouterr().err
    assert "half.checkpoint" in message
    again = message.split("gradiron ")[-1].split()
    assert again == ["train", *SHORT, "--check", "--resume", "half.checkpoint"]
    resumed = run_json(*again, "--quiet")
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["bit_exact"] is True
    assert resumed["loss"] == whole["loss"]


def test_an_interruption_in_the_first_epoch_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interruption(NoProgress):
        def step(self, epoch: int, step: int, loss: float) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "make_progress", lambda quiet: Interruption())
    assert main(["train", *SHORT]) == 130
    assert "nothing is kept" in capsys.readouterr().err


def test_a_difference_is_counted_named_and_makes_the_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true_step = training.Trainer._step

    def step(self: Any, x: Any, labels: Any) -> int:
        loss = true_step(self, x, labels)
        is_reference = threading.current_thread().name == "golden model"
        return loss if is_reference or self.history.steps else loss + 1

    monkeypatch.setattr(training.Trainer, "_step", step)
    words = ["train", *SHORT, "--check", "--quiet", "--json", "result.json"]
    assert main(words) == 1
    found = json.loads(Path("result.json").read_text())
    assert found["bit_exact"] is False
    assert found["mismatches"] == 8
    assert found["first_mismatch"].startswith("the loss of step 1 is ")
    assert "first difference: the loss of step 1" in capsys.readouterr().out


# --- bad inputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--data", "nowhere"), "the data folder nowhere does not exist"),
        (("--lr", "0.1"), "0.0625 (2^-4) and 0.125 (2^-3)"),
        (("--epochs", "0"), "--epochs is 0; it must be at least 1"),
        (("--batch", "65"), "a batch is 65"),
        (("--train-samples", "100000"), "take 1 to 1437"),
        (("--array", "3x3"), "array '3x3' is not RxC"),
        (("--model", "mlp:64-x"), "are not numbers"),
        (("--model", "nowhere.json"), "the model file nowhere.json cannot be read"),
        (("--dataset", "nowhere.npz"), "nowhere.npz does not exist"),
        (("--resume", "nowhere"), "no checkpoint to go on from"),
        (("--json", "nowhere/x.json"), "does not exist"),
        (("--plot", "plot.nonsense"), "end its name in .png"),
        (("--trace", "trace.json"), "take --engine cxxrtl"),
        (("--model", "mlp:64-60000-10"), "bytes are missing"),
    ],
)
def test_train_refuses(
    words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in refused(capsys, "train", *SHORT, "--quiet", *words)


def test_train_refuses_bad_samples(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.zeros((20, 64), np.int8)
    words = ("train", "--model", "digits", "--dataset", "bad.npz", "--quiet")
    np.savez("bad.npz", x=x.astype(np.int32), y=np.zeros(20, np.int64))
    assert "int32, but int8 is expected" in refused(capsys, *words)
    np.savez("bad.npz", x=x, y=np.full(20, 12))
    assert "has labels up to 12 and the network 'digits' 10 outputs" in refused(capsys, *words)
    np.savez("bad.npz", x=x[:, :60], y=np.arange(20) % 2)
    assert "60 values per sample, the network takes 64" in refused(capsys, *words)


def test_debug_shows_where_an_error_comes_from() -> None:
    with pytest.raises(gradiron.ModelError):
        main(["--debug", "plan", "nonsense"])


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("amaranth")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in refused(capsys, "train", *SHORT, "--engine", "cxxrtl", "--quiet")


def without_packages(*words: str) -> subprocess.CompletedProcess[str]:
    """The command where numpy is all there is."""
    code = (
        "import sys\n"
        "for name in 'amaranth rich matplotlib sklearn jinja2'.split(): sys.modules[name] = None\n"
        "import gradiron, gradiron.cli\n"
        "assert not [name for name in sys.modules if name.startswith(('gradiron_', 'yowasp'))]\n"
        f"sys.exit(gradiron.cli.main({list(words)!r}))\n"
    )
    path = os.pathsep.join(str(ROOT / part) for part in ("sw", "sim", "hw"))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_numpy_alone_is_enough_for_what_does_not_simulate() -> None:
    done = without_packages("isa")
    assert done.returncode == 0, done.stderr
    assert "MM" in done.stdout
    done = without_packages("plan", "digits")
    assert done.returncode == 0, done.stderr
    assert "dense1.weight.high" in done.stdout
    done = without_packages("bench", "gemm", "--order", "NN")
    assert done.returncode == 2
    assert "pip install 'gradiron[sim]'" in done.stderr
    done = without_packages("train", *SHORT)
    assert done.returncode == 2
    assert "scikit-learn" in done.stderr
    assert "pip install 'gradiron[" in done.stderr


# --- plan, machines ------------------------------------------------------------------------------


def test_plan() -> None:
    found = run_json("plan", "mlp", "--batch", "8", "--board", "sim", "--array", "4x4")
    assert found["macs"] == 8 * (3 * 109_184 - 784 * 128)
    assert found["array"] == "4x4"
    assert sum(region["used"] for region in found["regions"]) == found["bytes"]
    assert {tensor["name"] for tensor in found["tensors"]} >= {"input", "dense1.weight.high"}


def test_plan_refuses_what_a_board_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "plan", "mlp", "--board", "up5k", "--batch", "64")
    assert "bytes are missing" in message or "what would fit" in message
    message = refused(capsys, "plan", "digits", "--board", "up5k", "--array", "8x8")
    assert "has the array 4x4, not 8x8" in message


@pytest.mark.parametrize("name", ["digits", "mlp", "mlp:4096-2", "mlp:2-2", "mlp:2048-256-10"])
@pytest.mark.parametrize("array", ["2x2", "16x16"])
def test_simulated_memories_are_small_and_the_plan_stays(name: str, array: str) -> None:
    graph = find_graph(name)
    config = fitted_config(graph, 8, array)
    program = compile_graph(graph, config, 8)
    wide = gradiron.simulation_config(array, regions=(1 << 21,) * 3)
    large = compile_graph(graph, wide, 8)
    assert program.words == large.words
    for use in program.plan.regions():
        assert use.size & (use.size - 1) == 0
        # The largest region may be twice as large, for the sake of the offsets.
        assert use.size <= max(4 * (use.size - use.free), 4096)


def test_products_share_a_machine() -> None:
    configs = {
        product_program(size, size, size, order, "8x8").program.config
        for size in (1, 64, 256)
        for order in ("NN", "NT", "TN")
    }
    assert len(configs) == 1


def test_a_model_file() -> None:
    Path("net.json").write_text(json.dumps(find_graph("digits").to_dict()))
    assert run_json("plan", "net.json")["macs"] == run_json("plan", "digits")["macs"]
    Path("net.json").write_text("{}")
    assert main(["plan", "net.json"]) == 2


# --- programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["program.bin", "program.hex"])
def test_asm_and_disasm_are_inverse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("program.s").write_text("start: SET N_C, 10\nSTEP\nHALT\n")
    found = run_json("asm", "program.s", "-o", name)
    assert found["labels"] == {"start": 0}
    assert words_from_file(name) == found["words"]
    capsys.readouterr()
    assert main(["disasm", name]) == 0
    Path("again.s").write_text(capsys.readouterr().out)
    assert run_json("asm", "again.s")["words"] == found["words"]
    assert words_from_file("again.bin") == found["words"]


def test_program_files(capsys: pytest.CaptureFixture[str]) -> None:
    words_to_file("a.bin", [1, 0x01020304])
    assert Path("a.bin").read_bytes() == bytes([1, 0, 0, 0, 4, 3, 2, 1])
    words_to_file("a.hex", [1, 0x01020304])
    assert Path("a.hex").read_text() == "00000001\n01020304\n"
    Path("a.hex").write_text("# nothing\n00000001 ; one\n\n1020304\n")
    assert words_from_file("a.hex") == [1, 0x01020304]
    Path("a.hex").write_text("00000001\nhello\n")
    assert "a.hex, line 2: 'hello'" in refused(capsys, "disasm", "a.hex")
    Path("a.bin").write_bytes(b"abc")
    assert "has 3 bytes" in refused(capsys, "disasm", "a.bin")
    Path("a.s").write_text("NONSENSE\n")
    assert "line 1" in refused(capsys, "asm", "a.s")
    assert "cannot be read" in refused(capsys, "asm", "nowhere.s")


@pytest.mark.parametrize(
    ("form", "text"), [("text", "STEP"), ("markdown", "# The instruction"), ("c", "#ifndef")]
)
def test_isa(form: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json("isa", "--format", form)
    assert text in capsys.readouterr().out
    assert {i["name"] for i in found["instructions"]} >= {"MM", "LOSS", "STEP", "HALT"}


def test_plain_table() -> None:
    text = plain_table("t", ("name", "n"), [["a", "1"], ["b", "10"]], [False, True])
    assert text.split("\n") == ["t", "name   n", "----  --", "a      1", "b     10"]


# --- the driver's names --------------------------------------------------------------------------


def test_public_names() -> None:
    for name in gradiron.__all__:
        assert getattr(gradiron, name) is not None
        assert name in dir(gradiron)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gradiron.nonsense  # pyright: ignore[reportAttributeAccessIssue]


def test_open() -> None:
    with gradiron.open("golden:4x8") as device:
        assert device.config.array == "4x8"
        device.write_program(gradiron.assemble("STEP\nHALT", device.config).words)
        device.run()
        assert device.read_csr("STEP") == 1
    with gradiron.open(config=gradiron.up5k_config()) as device:
        assert device.config.array == "4x4"
    with pytest.raises(gradiron.DeviceError, match="no engine is called 'nonsense'"):
        gradiron.open("nonsense:4x4")
    with pytest.raises(gradiron.ConfigError, match="leave one of them out"):
        gradiron.open("golden:8x8", config=gradiron.up5k_config())
