"""Recorded figures and the log: their form, how a long job goes on where it stopped, and that the scripts find what they import."""

import ast
import importlib
import json
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import house  # noqa: E402
import record as bench  # noqa: E402

KEYS = {"figures", "measured", "date", "commit", "machine", "versions", "notes"}
SCRIPTS = sorted((ROOT / "bench").glob("*.py"))


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


def test_figures_that_no_machine_decides_stay(results, monkeypatch):
    "And one that is found again keeps its day and its machine"
    for cpu, figures, anywhere in (("one", {"a": 1, "b": 2}, False), ("another", {"a": 1, "b": 3, "c": 4}, True)):
        monkeypatch.setattr(bench, "cpu_name", lambda cpu=cpu: cpu)
        monkeypatch.setattr(bench, "machine", lambda cpu=cpu: {"cpu": cpu})
        bench.record("topic", figures, anywhere=anywhere)
    kept = bench.load("topic")
    assert kept["figures"] == {"a": 1, "b": 3, "c": 4}
    assert set(kept["machine"].values()) == {"another"}
    assert [kept["measured"][key]["cpu"] for key in "abc"] == ["one", "another", "another"]


RUN = ("dataset", "model", "preset", "protocol", "ties", "seed")
RUN_KEYS = {*RUN, "format", "date", "machine", "versions", "params", "fit", "epochs", "log", "seconds", "data", "results", "parameters"}
RUN_KEYS |= {"recommendation"}


def lines_of(name: str) -> list[dict]:
    "A table of results, a line each"
    return [json.loads(line) for line in (ROOT / "bench/results" / name).read_text(encoding="utf-8").splitlines()]


def key_of(run: dict) -> tuple:
    "What tells a run from all others"
    return tuple(run[name] for name in RUN) + tuple(run["params"].get(name, "") for name in ("init", "apart", "refit"))


def test_runs_are_one_table():
    runs = lines_of("runs.jsonl")
    keys = [key_of(run) for run in runs]
    assert keys == sorted(set(keys)), "one line a run, in order"
    assert not [run for run in runs if not RUN_KEYS <= set(run)]
    assert not [run for run in runs if [run["params"][name] for name in RUN] != [run[name] for name in RUN]]
    assert (ROOT / "bench/results/runs.jsonl").stat().st_size < 2e6
    assert not list((ROOT / "bench/results").rglob("*seed*.json"))


def test_a_run_holds_what_the_pages_show():
    for run in lines_of("runs.jsonl"):
        parts = {(row["part"], row["protocol"]["seen"]) for row in run["results"]}
        measured = ("test",) if run["params"].get("refit") else ("valid", "test")  # a refit has trained on the validation part
        assert parts == {(part, seen) for part in measured for seen in ("drop", "keep")}
        for metric in ("ndcg@10", "recall@10", "mrr"):
            assert all({"mean", "lo", "hi"} <= set(row["metrics"][metric]) for row in run["results"])
        assert set(run["recommendation"]) == {"mflop", "seconds", "tokens"} and run["parameters"] > 0
        assert all(len(row) == 3 for row in run["log"])  # epoch, NDCG@10, seconds
        assert run["fit"].get("init", "random") in ("ppmi", "random") and not {"head_start", "mixed"} & set(run["fit"])


@pytest.mark.parametrize(
    "model, preset, dataset, expected",
    [
        ("item_lm", "small", "beauty", [0.0595, 0.0595, 0.0594]),
        ("sasrec_ce", "small", "ml-latest-small", [0.0781, 0.0799, 0.0705]),
        ("item_lm", "long_history", "ml-1m", [0.2002, 0.2000]),
    ],
)
def test_recorded_figures_stay(model, preset, dataset, expected):
    "The figures that pages and log stand on"
    found = bench.runs(model=model, preset=preset, dataset=dataset, ties="as_is")
    assert [bench.reached(run, "ndcg@10") for run in found] == pytest.approx(expected, abs=5e-5)


def test_comparisons_are_one_table():
    comparisons = lines_of("tests.jsonl")
    keys = [tuple(found[name] for name in ("dataset", "preset", "protocol", "ties")) for found in comparisons]
    assert keys == sorted(set(keys)) and len(keys) >= 5
    for found in comparisons:
        models = {row["model"] for row in found["models"]}
        pairs = {frozenset((test["a"], test["b"])) for test in found["tests"]}
        assert len(pairs) == len(models) * (len(models) - 1) / 2, "every pair is tested"
        assert all(0 < test["p"] <= test["p_holm"] <= 1 and test["lo"] <= test["hi"] for test in found["tests"])


def test_a_start_of_another_kind_is_asked_for(results):
    line = {"dataset": "beauty", "model": "hstu", "seed": 0, "params": {}}
    (results / "runs.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(line | {'params': {'init': 'ppmi'}})}\n")
    assert [run["params"] for run in bench.runs(model="hstu")] == [{}]
    assert [run["params"] for run in bench.runs(model="hstu", init="ppmi")] == [{"init": "ppmi"}]
    assert bench.runs(model="gru4rec_ce") == []


def test_house_counts_lines_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(house, "ROOT", tmp_path)
    code = lambda *lines: {"cell_type": "code", "source": [f"{line}\n" for line in lines]}
    cells = [code("#| export", "a = 1", "", "b = 2"), code("a", "b", "c", "d"), code("#| export", "#| hide", "c = 3")]
    (tmp_path / "nbs/api/room").mkdir(parents=True)
    (tmp_path / "nbs/api/room/10_x.ipynb").write_text(json.dumps({"cells": [*cells, {"cell_type": "markdown", "source": ["#| export"]}]}))
    assert house.export_cells() == {"nbs/api/room/10_x.ipynb[0]": 3, "nbs/api/room/10_x.ipynb[2]": 1}
    (tmp_path / "itemlm/room").mkdir(parents=True)
    for name, text in {"__init__.py": "", "_modidx.py": "a\n", "room/__init__.py": "", "room/x.py": "a = 1\nb = 2\n"}.items():
        (tmp_path / "itemlm" / name).write_text(text)
    assert house.modules() == {"itemlm/room/x.py": 2}


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.stem != "peer_rectools"], ids=lambda path: path.stem)
def test_scripts_find_what_they_import(script):
    "Every name that a script takes from itemlm or from a neighbour is there"
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("itemlm", "record"):
            module = importlib.import_module(node.module)
            assert not [name.name for name in node.names if not hasattr(module, name.name)], node.module


HEADING = re.compile(r"## (\d{4}-\d\d-\d\d)  \S.*")
TABLE = "| change | validation | test | seeds | decision |"


def test_log_is_one_table_an_entry():
    "Newest first; a defect that was found is one line"
    title, *entries = re.split(r"\n(?=## )", (ROOT / "LOG.md").read_text(encoding="utf-8"))
    assert len(title.strip().splitlines()) == 5  # the title, an empty line and three more
    dates = [HEADING.fullmatch(entry.splitlines()[0])[1] for entry in entries]
    assert dates == sorted(dates, reverse=True)
    for entry in entries:
        heading, *lines = [line for line in entry.splitlines() if line]
        rows = [line for line in lines if line.startswith("|")]
        words = [line for line in lines if not line.startswith("|")]
        if "  Defect: " in heading:
            assert len(words) == 1 and not rows, heading
            continue
        assert rows[0] == TABLE and len(rows) > 2, heading
        assert not [row for row in rows if row.count("|") != TABLE.count("|")], heading
        assert all(len(line) <= 200 for line in words), heading
