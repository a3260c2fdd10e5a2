"""`compare.ipynb` as papermill runs it, and that it finds the runs which `train.ipynb` made."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from itemlm.jobs import TrainParameters, open_job
from itemlm.study import (
    StudyParameters,
    append_record,
    carry_out,
    finish_run,
    open_study,
    plan,
    read_comparisons,
    read_records,
    record_of,
    results_table,
)

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def papermill(notebook: str, out, **parameters) -> subprocess.CompletedProcess:
    "Run a notebook from the project's root."
    given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", notebook, str(out), "--no-progress-bar", *given]
    return subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=600)


def text_of(out) -> str:
    "Everything a run notebook printed or showed."
    cells = json.loads(out.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/html", "")) for o in outputs)


CSV = "user,item,time\n" + "".join(f"u{u},i{(u + t) % 12},{t}\n" for u in range(60) for t in range(6))


def test_default_page_trains_nothing_and_shows_records(tmp_path):
    tables = [ROOT / f"bench/results/{name}.jsonl" for name in ("runs", "tests")]
    before = [path.read_bytes() for path in tables]
    done = papermill("nbs/compare.ipynb", tmp_path / "out.ipynb")
    assert not done.returncode, done.stderr[-3000:]
    assert "runs finished" in text_of(tmp_path / "out.ipynb") and "seen dropped" in text_of(tmp_path / "out.ipynb")
    assert [path.read_bytes() for path in tables] == before


def test_study_of_two_models_is_made_and_continued(tmp_path):
    csv = tmp_path / "made_up.csv"
    csv.write_text(CSV)
    folders = dict(records=tmp_path / "records", runs_dir=tmp_path / "runs")
    asked = dict(datasets=csv, models="popularity,markov", minutes=2, device="cpu") | folders
    done = papermill("nbs/compare.ipynb", tmp_path / "out.ipynb", **asked)
    assert not done.returncode, done.stderr[-3000:]
    shown = text_of(tmp_path / "out.ipynb")
    assert "2 of 2 runs finished" in shown and "behind markov" in shown
    keys = [
        [run[name] for name in ("model", "preset", "protocol", "ties", "seed")] for run in read_records(tmp_path / "records/runs.jsonl")
    ]
    assert keys == [[m, "small", "leave_one_out", "as_is", 0] for m in ("markov", "popularity")]
    assert list(read_comparisons(tmp_path / "records/tests.jsonl", [str(csv)])) == [str(csv)]
    again = papermill("nbs/compare.ipynb", tmp_path / "again.ipynb", **asked | {"minutes": 0})
    assert not again.returncode and "2 of 2 runs finished" in text_of(tmp_path / "again.ipynb")


def test_what_ships_is_read_and_never_written(tmp_path, monkeypatch):
    "A user's runs, records and tests go to the workspace's runs; what ships is shown beside them"
    (tmp_path / "settings.ini").write_text("[workspace]\n")
    (tmp_path / "made_up.csv").write_text(CSV)
    monkeypatch.chdir(tmp_path)
    ask = lambda models, minutes: open_study(StudyParameters(datasets="made_up.csv", models=models, minutes=minutes, device="cpu"))
    first = ask("popularity", 2.0)
    ships = tmp_path / "bench/results"
    ships.mkdir(parents=True)
    (tmp_path / "runs/runs.jsonl").rename(ships / "runs.jsonl")
    before = (ships / "runs.jsonl").read_bytes()
    again = ask("popularity,markov", 2.0)
    assert [len(first.records), len(again.records), again.left] == [1, 2, []]
    assert [one["model"] for one in read_records(tmp_path / "runs/runs.jsonl")] == ["markov"]  # the other ships
    assert sorted(again.comparisons["made_up.csv"].names) == ["markov", "popularity"] and (tmp_path / "runs/tests.jsonl").exists()
    assert (ships / "runs.jsonl").read_bytes() == before and [path.name for path in ships.iterdir()] == ["runs.jsonl"]


def test_unknown_model_is_one_clear_error(tmp_path):
    done = papermill("nbs/compare.ipynb", tmp_path / "out.ipynb", models="sasrek")
    assert done.returncode and "there is no model sasrek: valid are item_lm" in done.stderr


@pytest.mark.parametrize("name", ["dataset", "model", "preset", "protocol", "ties", "seed", "epochs", "precision"])
def test_plan_has_the_parameters_of_train(name):
    cells = json.loads((ROOT / "nbs/train.ipynb").read_text())["cells"]
    cell = "".join(next(c["source"] for c in cells if "parameters" in c["metadata"].get("tags", [])))
    declared = dict(re.findall(r"^(\w+): \w+ = ([^#]*?)  #", cell, flags=re.M))
    run = plan(["ml-latest-small"], ["item_lm_knn"])[0]
    assert set(declared) == {field.name for field in fields(run)}
    assert vars(run)[name] == run.deciding()[name] == eval(declared[name])


# ---- one table of records


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "made_up.csv"
    path.write_text(CSV)
    return path


@pytest.fixture(scope="module")
def record(data, tmp_path_factory) -> dict:
    asked = TrainParameters(dataset=str(data), preset="tiny", epochs=1, device="cpu")
    return record_of(finish_run(asked, runs=tmp_path_factory.mktemp("runs"), verbose=False))


def with_params(record: dict, **changes) -> dict:
    return record | {name: value for name, value in changes.items() if name in record} | {"params": record["params"] | changes}


def test_a_record_stands_once_and_in_order(tmp_path, record):
    table = tmp_path / "results/runs.jsonl"
    for seed in (2, 0, 1):
        append_record(table, with_params(record, seed=seed))
    append_record(table, with_params(record, seed=0, init="random"))
    before = table.read_bytes()
    with pytest.raises(ValueError, match="runs.jsonl has a record of this run: made_up item_lm_knn tiny leave_one_out as_is"):
        append_record(table, with_params(record, seed=1, epochs=7))
    assert table.read_bytes() == before
    assert [(one["seed"], one["params"].get("init")) for one in read_records(table)] == [(0, None), (0, "random"), (1, None), (2, None)]


def test_a_table_is_written_whole_or_not_at_all(tmp_path, record, monkeypatch):
    table = tmp_path / "runs.jsonl"
    append_record(table, record)
    before = table.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="nothing was changed"):
        append_record(table, with_params(record, seed=1))
    assert table.read_bytes() == before and not list(tmp_path.glob(".*.tmp.*"))


ADD = """
import json, sys
from itemlm.study import append_record
record = json.loads(sys.stdin.read())
for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    append_record(sys.argv[1], record | {"seed": seed, "params": record["params"] | {"seed": seed}})
"""


def test_two_studies_write_one_table(tmp_path, record):
    "No line is lost, whoever comes second"
    table, small = tmp_path / "runs.jsonl", json.dumps({"params": record["params"]})
    jobs = [subprocess.Popen([sys.executable, "-c", ADD, table, str(start)], stdin=subprocess.PIPE, text=True) for start in (0, 100)]
    for job in jobs:
        job.communicate(small)
    assert [one["params"]["seed"] for one in read_records(table)] == [*range(20), *range(100, 120)]


def test_a_damaged_line_is_named(tmp_path, record):
    table = tmp_path / "runs.jsonl"
    append_record(table, record)
    table.write_text(table.read_text() + '{"dataset": "bea')
    with pytest.raises(ValueError, match="line 2 of runs.jsonl is damaged"):
        read_records(table)


# ---- what a table says


def figures(record: dict, seed: int, mean: float) -> dict:
    "A record whose test figures are this mean, between 0.01 less and more"
    ends = {"mean": mean, "lo": mean - 0.01, "hi": mean + 0.01}
    rows = [row | {"metrics": dict.fromkeys(row["metrics"], ends)} for row in record["results"]]
    return with_params(record, seed=seed) | {"results": rows}


def test_ends_of_seeds_are_not_averaged(record):
    "Intervals of single seeds are no interval of their mean: it needs the users' values, else the seeds' range stands there"
    one = results_table([figures(record, 0, 0.05)]).iloc[0]
    assert (one["ndcg@10.over"], one["ndcg@10.lo"], one["ndcg@10.hi"]) == ("users", pytest.approx(0.04), pytest.approx(0.06))
    two = results_table([figures(record, 0, 0.05), figures(record, 1, 0.07)]).iloc[0]
    assert two["seeds"] == 2 and two["ndcg@10"] == pytest.approx(0.06)
    assert (two["ndcg@10.over"], two["ndcg@10.lo"], two["ndcg@10.hi"]) == ("seeds", 0.05, 0.07)


def test_who_had_which_start_is_said(record):
    "Of trained models; one that only counts has none"
    random = with_params(record, init="random") | {"fit": record["fit"] | {"init": "random"}}
    counted = with_params(record, model="popularity") | {"fit": record["fit"] | {"init": "random"}, "epochs": 0}
    table = results_table([record, random, counted]).query("seen == 'drop'").set_index("name")
    assert table["start"].to_dict() == {"item_lm_knn": "ppmi", "item_lm_knn, random start": "random", "popularity": ""}


@pytest.mark.parametrize("dataset, model", [("beauty", "item_lm"), ("beauty", "sasrec_ce"), ("ml-latest-small", "item_lm")])
def test_one_number_has_one_interval(dataset, model):
    "What is recorded: the table of figures and the comparison under it say the same of the mean over seeds"
    records = [one for one in read_records(ROOT / "bench/results/runs.jsonl") if (one["dataset"], one["preset"]) == (dataset, "small")]
    comparisons = read_comparisons(ROOT / "bench/results/tests.jsonl", [dataset])
    table = results_table(records, comparisons).query("seen == 'drop' and ties == 'as_is'").set_index("name")
    told = comparisons[dataset].models.query("metric == 'ndcg@10'").set_index("model").loc[model]
    row = table.loc[model]
    assert row["seeds"] == told["seeds"] > 1 and row["ndcg@10.over"] == "users"
    assert [row["ndcg@10"], row["ndcg@10.lo"], row["ndcg@10.hi"]] == pytest.approx([told["mean"], told["lo"], told["hi"]], rel=1e-6)


# ---- a study goes on


def test_figures_of_other_weights_are_made_anew(data, tmp_path):
    "A report made before the last epochs does not become the record of the finished run"
    asked = TrainParameters(dataset=str(data), model="item_lm", preset="tiny", epochs=2, device="cpu")
    job = open_job(asked, tmp_path)
    job.report(job.train(minutes=1e-9, verbose=False))  # as train.ipynb -p max_minutes does
    early = json.loads((job.folder / "metrics.json").read_text())
    again = open_job(asked, tmp_path)
    again.train(verbose=False)  # went on, ended, and was killed before its report
    record = record_of(finish_run(asked, runs=tmp_path, verbose=False))
    assert record["epochs"] == 2 and record["seconds"]["fit"] == record["log"][-1][2]
    assert record["results"] != early["results"]
    truth = again.train(verbose=False)
    assert record["results"][2]["metrics"]["ndcg@10"] == again.report(truth).results[2]["metrics"]["ndcg@10"]


def test_a_study_goes_on_where_it_stopped(data, tmp_path):
    runs = plan([str(data)], ["item_lm"], seeds=2, preset="tiny", device="cpu")
    records = tmp_path / "runs.jsonl"
    assert carry_out(runs, records, minutes=1e-9, folder=tmp_path / "runs", verbose=False) == runs  # the time is up before the first
    assert not records.exists() and not (tmp_path / "runs").exists()
    assert carry_out(runs[:1], records, folder=tmp_path / "runs", verbose=False) == []
    first = read_records(records)[0]
    assert carry_out(runs, records, unit=1e-6, folder=tmp_path / "runs", verbose=False) == []  # in many pieces
    found = read_records(records)
    assert found[0] == first and [one["seed"] for one in found] == [0, 1]
    assert pd.Series([one["epochs"] for one in found]).nunique() == 1
