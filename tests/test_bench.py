"""Recorded figures: their form, and how a long job goes on where it stopped."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import record as bench  # noqa: E402

KEYS = {"figures", "measured", "date", "commit", "machine", "versions", "notes"}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "commit", lambda: "abc1234")
    return tmp_path


def test_record_and_go_on(results):
    bench.record("topic", {"seconds": 1.23456789, "users": 3}, notes="first unit")
    assert bench.recorded("topic") == {"seconds": 1.23457, "users": 3}
    bench.record("topic", {"seconds_again": 2.0}, notes="second unit")
    assert set(bench.recorded("topic")) == {"seconds", "users", "seconds_again"}
    assert set(json.loads((results / "topic.json").read_text())) == KEYS


def test_figures_of_another_commit_say_so(results, monkeypatch):
    bench.record("topic", {"old": 1, "again": 1})
    monkeypatch.setattr(bench, "commit", lambda: "def5678")
    assert bench.recorded("topic") == {}
    bench.record("topic", {"new": 2, "again": 2})
    assert bench.recorded("topic") == {"new": 2, "again": 2}
    kept = bench.load("topic")
    assert kept["figures"] == {"old": 1, "again": 2, "new": 2}
    assert {key: at["commit"] for key, at in kept["measured"].items()} == {"old": "abc1234", "again": "def5678", "new": "def5678"}


def test_figures_of_another_machine_are_dropped(results, monkeypatch):
    bench.record("topic", {"old": 1})
    monkeypatch.setattr(bench, "machine", lambda: {"cpu": "another"})
    assert bench.recorded("topic") == {}
    bench.record("topic", {"new": 2})
    assert bench.load("topic")["figures"] == {"new": 2}


@pytest.mark.parametrize("file", sorted((ROOT / "bench/results").glob("*.json")), ids=lambda p: p.stem)
def test_recorded_results(file):
    result = json.loads(file.read_text())
    assert set(result) == KEYS and {"cpu", "cores", "memory_gb", "gpu"} <= set(result["machine"])
    assert set(result["measured"]) == set(result["figures"])
    assert result["figures"] and all(isinstance(v, int | float) for v in result["figures"].values())
