"""The command plan: sizes, measures, and what it gives."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradiron.cli import main
from gradiron.cli.planning import parse_memory, parse_size
from gradiron.errors import ConfigError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> dict[str, Any]:
    assert main(["plan", *words, "--json", "plan.json"]) == 0
    return json.loads(Path("plan.json").read_text())


def test_sizes() -> None:
    assert parse_size("1000") == 1000
    assert parse_size("64K") == parse_size(" 64kb ") == 65536
    assert parse_size("1M") == 1 << 20
    for text in ("", "K", "12Q", "1.5K", "-1", "1KBM"):
        with pytest.raises(ConfigError, match="is not a size of memory"):
            parse_size(text)
    assert parse_memory("128K", 2) == (65536, 65536)
    assert parse_memory("64K+32K+16", 2) == (65536, 32768, 16)
    with pytest.raises(ConfigError, match="cannot be divided equally into 4 regions"):
        parse_memory("10", 4)
    with pytest.raises(ConfigError, match="5 regions; there must be 1 to 4"):
        parse_memory("1+1+1+1+1", 2)


def test_the_map_adds_up() -> None:
    found = run("digits", "--memory", "8K", "--array", "4x4")
    assert found["config"]["regions"] == [4096, 4096]
    assert found["bytes_available"] == 8192
    for region in found["regions"]:
        assert region["used"] + region["gaps"] + region["free"] == region["size"]
    assert sum(region["used"] for region in found["regions"]) == found["bytes"]
    assert max(step["live_bytes"] for step in found["steps"]) <= found["bytes"]
    # The rest are the SETs.
    assert 0 < found["cycles"] - sum(step["cycles"] for step in found["steps"]) < 200
    assert found["choice"] == {"text": "", "measures": [], "recomputed": [], "costs": []}


def test_a_budget_is_met_by_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits", "--memory", "4800"]) == 2
    message = capsys.readouterr().err
    assert "bytes are missing" in message
    assert "what would fit, as planned:" in message
    assert "cycles a step" in message
    found = run("digits", "--memory", "4800", "--allow", "int8")
    assert found["choice"]["measures"] == ["int8"]
    assert found["choice"]["text"] == "int8-only weights in layer dense1"
    assert "chosen to make it fit: int8-only weights in layer dense1" in capsys.readouterr().out
    assert found["bytes"] <= 4800
    found = run("digits", "--memory", "6144", "--batch", "32", "--allow", "batch,int8")
    assert found["choice"]["measures"] == ["batch"]
    assert found["batch"] < 32
    assert main(["plan", "digits", "--memory", "4800", "--allow", "hope"]) == 2
    assert "measure 'hope' is none of recompute, batch, momentum" in capsys.readouterr().err


def test_layers_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    whole = run("mlp", "--batch", "1")
    frozen = run("mlp", "--batch", "1", "--freeze", "dense1,dense2")
    assert frozen["macs"] < whole["macs"]
    assert run("mlp", "--batch", "1", "--update", "dense3")["tensors"] == frozen["tensors"]
    int8 = run("mlp", "--batch", "1", "--int8", "dense1")
    assert whole["bytes"] - int8["bytes"] == 784 * 128
    some = run("mlp", "--batch", "1", "--update", "dense3:0-3+6-7")
    assert frozen["macs"] - some["macs"] == 64 * 4
    assert main(["plan", "mlp", "--update", "dense3:x"]) == 2
    assert "channels are ranges, as in conv2:0-15" in capsys.readouterr().err
    assert main(["plan", "mlp", "--freeze", "dense9"]) == 2
    assert "no layer is called 'dense9'" in capsys.readouterr().err


def test_milliseconds_are_at_the_clock_of_the_board() -> None:
    assert run("digits", "--board", "icebreaker")["clock_mhz"] == 30
    assert run("digits", "--board", "icebreaker", "--clock", "12")["clock_mhz"] == 12
    assert run("digits")["clock_mhz"] == 24
    assert main(["plan", "digits", "--clock", "0"]) == 2


def test_picture() -> None:
    pytest.importorskip("matplotlib")
    run("digits", "--plot", "map.png")
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")
    run("digits", "--freeze", "dense1,dense2", "--plot", "map.svg")
    assert "<svg" in Path("map.svg").read_text()
