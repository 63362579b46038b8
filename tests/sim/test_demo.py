"""What a newcomer runs: the demo and the measurements, on the simulated hardware."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradiron.cli import main

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_json(*words: str) -> Any:
    assert main([*words, "--json", "result.json"]) == 0
    return json.loads(Path("result.json").read_text())


def test_demo() -> None:
    found = run_json("demo", "--trace", "step.json")
    assert found["bit_exact"] is True
    assert found["mismatches"] == 0
    assert found["engine"] == "cxxrtl"
    assert found["array"] == "8x8"
    assert found["accuracy"] >= 0.96
    assert found["accuracy"] >= found["accuracy_float32"] - 0.01
    assert found["cycles"] > 0
    assert found["seconds"] < 180
    assert len(found["loss"]) == found["steps"]
    assert Path(found["plot"]).read_bytes().startswith(b"\x89PNG")
    events = json.loads(Path("step.json").read_text())["traceEvents"]
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert tracks >= {"layers", "instructions", "array", "vector path", "loss"}
    golden = run_json("demo", "--engine", "golden")
    assert golden["weights_sha256"] == found["weights_sha256"]
    assert golden["cycles"] == found["cycles"]


def test_bench_step() -> None:
    rows = run_json("bench", "step", "--model", "digits", "--batch", "8")
    total = rows[-1]
    assert total["name"] == "total"
    assert sum(row["macs"] for row in rows[:-1]) == total["macs"] == 40_448
    assert sum(row["cycles"] for row in rows[:-1]) <= total["cycles"]
    assert {row["pass"] for row in rows} == {"forward", "loss", "dx", "dw", "other"}
    plan = run_json("plan", "digits", "--batch", "8")
    assert plan["cycles"] == total["cycles"]


def test_bench_gemm() -> None:
    rows = run_json("bench", "gemm", "--m", "64", "--n", "64", "--k", "64")
    assert [row["name"] for row in rows] == ["gemm NN", "gemm NT", "gemm TN"]
    for row in rows:
        assert row["macs"] == 64**3
        assert row["utilisation"] == row["macs"] / row["cycles"] / 64 >= 0.95
