"""The run ledger on real runs: finished, damaged, unfinished, deleted, newer, evaluated too early; and its table in a real browser."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import restamp

from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.evaluation.report import evaluate
from itemlm.models.counting import popularity
from itemlm.models.item_lm import tiny
from itemlm.runs.folder import FORMAT
from itemlm.runs.ledger import STATES, list_runs, read_run, runs_table
from itemlm.serving.recommender import load
from itemlm.training.trainer import fit


@pytest.fixture(scope="session")
def parts():
    return split(load_dataset("ml-latest-small"))


@pytest.fixture(scope="session")
def trained(parts, tmp_path_factory):
    "Two tiny runs that differ in seed and epochs, and popularity; never changed by a test."
    folder, threads = tmp_path_factory.mktemp("ledger"), torch.get_num_threads()
    torch.set_num_threads(1)  # faster for so small a model
    for name, seed, epochs in (("first", 0, 1), ("second", 1, 2)):
        rec = fit(parts, tiny(seed=seed, epochs=epochs), out_dir=folder / name, device="cpu", verbose=False)
        evaluate(rec, parts, seed=seed).save(folder / name, params={"preset": "tiny", "seed": seed})
    popular = fit(parts, popularity(), device="cpu", verbose=False)
    popular.save(folder / "popularity")
    evaluate(popular, parts).save(folder / "popularity")
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    "A copy of the runs to do harm to."
    return shutil.copytree(trained, tmp_path / "runs")


# ---- the list


def test_finished_runs_say_what_they_are(trained):
    table = list_runs(trained).set_index("run")
    assert set(table.index) == {"first", "second", "popularity"} and (table.state == "finished").all() and table.usable.all()
    assert (table.reason == "").all() and (table.dataset == "ml-latest-small").all() and (table.protocol == "leave_one_out").all()
    second = table.loc["second"]
    assert (second.model, second.preset, second.seed, second.epochs) == ("ItemLM", "tiny", 1, 2)
    assert second.parameters == sum(w.numel() for w in load(trained / "second", "cpu").model.parameters())
    metrics = json.loads((trained / "second/metrics.json").read_text())["results"]
    drop = next(row["metrics"] for row in metrics if row["part"] == "test" and row["protocol"]["seen"] == "drop")
    for name in ("ndcg@10", "recall@10"):
        assert [second[name], second[f"{name}.lo"], second[f"{name}.hi"]] == [drop[name][end] for end in ("mean", "lo", "hi")]
    log = [json.loads(line) for line in (trained / "second/log.jsonl").read_text().splitlines()]
    assert second.valid == max(row["ndcg@10"] for row in log) and second.seconds == log[-1]["seconds"]
    assert abs((pd.Timestamp.now("UTC") - second.date).total_seconds()) < 86_400


def test_newest_first_and_studies_one_level_down(runs):
    (runs / "study").mkdir()
    (runs / "first").rename(runs / "study/first")
    (runs / ".hidden").mkdir()
    (runs / "train.ipynb").touch()
    table = list_runs(runs)
    assert set(table.run) == {"study/first", "second", "popularity"} and table.date.is_monotonic_decreasing


def test_no_folder_is_no_run(tmp_path):
    table = list_runs(tmp_path / "nowhere")
    assert len(table) == 0 and len(table.query("state == 'finished'")) == 0 and "no run here yet" in runs_table(table)


def cut(name, keep=0.5):
    def harm(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return harm


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def change(**entries):
    return lambda folder: restamp(folder, **entries)


HARM = {
    "weights cut short": (cut("model.safetensors"), "damaged", "model.safetensors is damaged"),
    "weights empty": (write("model.safetensors", ""), "damaged", "model.safetensors is damaged"),
    "run.json cut short": (cut("run.json"), "damaged", "run.json is damaged"),
    "run.json binary": (lambda f: (f / "run.json").write_bytes(b"\xff\xfe\x00\x81"), "damaged", "run.json is damaged"),
    "run.json a list": (write("run.json", "[1, 2]"), "damaged", "run.json holds no object but list"),
    "run.json of something else": (write("run.json", '{"name": "experiment"}'), "no run", "no run.json of itemlm"),
    "odd types in run.json": (change(identity=5), "damaged", "not as itemlm writes it"),
    "odd seed": (change(identity={"fit": {"seed": {}}}), "damaged", "not as itemlm writes it"),
    "metrics cut short": (cut("metrics.json"), "damaged", "metrics.json is damaged"),
    "metrics without results": (write("metrics.json", '{"results": [{}]}'), "damaged", "KeyError"),
    "log cut short": (lambda f: (f / "log.jsonl").write_text('{"epoch": 1.0, "st'), "damaged", "log.jsonl is damaged"),
    "log of other things": (write("log.jsonl", '{"step": 3}\n'), "damaged", "KeyError"),
    "histories cut short": (cut("histories.parquet"), "damaged", "histories.parquet is damaged"),
    "ranks cut short": (cut("per_user.parquet"), "damaged", "per_user.parquet is damaged"),
    "tokenizer missing": (lambda f: (f / "tokenizer.json").unlink(), "damaged", "tokenizer.json missing"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "damaged", "model.safetensors missing"),
    "emptied": (lambda f: [path.unlink() for path in f.iterdir()], "no run", "no run.json"),
    "older format": (change(format=1, versions={"itemlm": "0.1.0"}), "another format", f"run format 1, this itemlm reads {FORMAT}"),
    "format of something else": (change(format="csv", versions=5), "damaged", "not as itemlm writes it"),
    "deeply nested": (write("metrics.json", "[" * 100_000), "damaged", "metrics.json|RecursionError"),
    "log of lists": (write("log.jsonl", "[1]\n"), "damaged", "not as itemlm writes it"),
    "endless number": (change(identity={"fit": {"seed": 10**400}}), "damaged", "OverflowError"),
    "a folder for a file": (lambda f: ((f / "log.jsonl").unlink(), (f / "log.jsonl").mkdir()), "damaged", "IsADirectoryError"),
    "newer format": (change(format=99, versions={"itemlm": "7.1"}), "another format", "run format 99.*version that wrote it, 7.1"),
}


@pytest.mark.parametrize("what", HARM)
def test_harm_is_a_row_that_says_so(runs, what):
    harm, state, reason = HARM[what]
    harm(runs / "second")
    restamp(runs / "second")
    table = list_runs(runs).set_index("run")
    row = table.loc["second"]
    assert row.state == state and not row.usable and pd.Series([row.reason]).str.contains(reason).all(), row.reason
    assert "\n" not in row.reason and (table.drop("second").state == "finished").all()
    assert state in runs_table(list_runs(runs))


def test_deleted_run(runs):
    shutil.rmtree(runs / "second")
    assert set(list_runs(runs).run) == {"first", "popularity"}
    gone = read_run(runs / "second")
    assert gone.state == "no run" and "deleted or renamed" in gone.reason


def test_unfinished_run(parts, runs):
    config = tiny(epochs=500)
    rec = fit(parts, config, out_dir=runs / "going", device="cpu", max_minutes=0.06, verbose=False)
    row = list_runs(runs).set_index("run").loc["going"]
    assert row.state == "in training" and row.usable and "of 500; if it was stopped, the same command goes on" in row.reason
    assert np.isnan(row["ndcg@10"]) and row.valid == max(line["ndcg@10"] for line in rec.log)
    report = evaluate(rec, parts)
    report.save(runs / "going")  # the clock ended it; its figures are figures
    assert list_runs(runs).set_index("run").loc["going", "ndcg@10"] == report.metric("ndcg@10")["mean"]


def test_names_are_shown_as_text(runs):
    (runs / "first").rename(runs / "<b>bold<b>")
    page = runs_table(list_runs(runs))
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page


# ---- figures belong to weights


def test_evaluated_half_way(parts, runs):
    "A report from before the run went on is not shown as the finished run's"
    folder, config = runs / "slow", tiny(epochs=2)
    half = fit(parts, config, out_dir=folder, device="cpu", max_minutes=1e-9, verbose=False)
    evaluate(half, parts).save(folder, seconds={"fit": half.log[-1]["seconds"]})
    early = list_runs(runs).set_index("run").loc["slow"]
    assert early.state == "in training" and early["ndcg@10"] > 0
    rec = fit(parts, config, out_dir=folder, device="cpu", verbose=False)
    late = list_runs(runs).set_index("run").loc["slow"]
    assert late.state == "finished" and late.usable and np.isnan(late["ndcg@10"]) and "evaluate it again" in late.reason
    assert late.reason in runs_table(list_runs(runs))
    evaluate(rec, parts).save(folder, seconds={"fit": rec.log[-1]["seconds"]})
    assert list_runs(runs).set_index("run").loc["slow", ["reason", "ndcg@10"]].tolist() == [
        "",
        evaluate(rec, parts).metric("ndcg@10")["mean"],
    ]


def test_another_model_does_not_move_in(runs):
    "Not by accident; and where it is meant, nothing of the old run stays to speak of the new one."
    before = {path.name: path.read_bytes() for path in (runs / "second").iterdir()}
    popular = load(runs / "popularity", "cpu")
    with pytest.raises(FileExistsError, match="second is the home of a run of ItemLM with other weights: choose another folder"):
        popular.save(runs / "second")
    assert {path.name: path.read_bytes() for path in (runs / "second").iterdir()} == before
    popular.save(runs / "second", overwrite=True)
    assert not {"metrics.json", "per_user.parquet", "log.jsonl"} & {path.name for path in (runs / "second").iterdir()}
    row = list_runs(runs).set_index("run").loc["second"]
    assert row.state == "finished" and row.model == "Popularity" and np.isnan(row["ndcg@10"]) and not row.reason


# ---- whatever lies there


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_in_any_file(runs, seed):
    "The list goes on, whatever a file was overwritten with"
    rng = np.random.default_rng(seed)
    for path in sorted((runs / "second").glob("[!.]*")):
        data = bytearray(path.read_bytes())
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)])
    table = list_runs(runs).set_index("run")
    assert table.loc["second"].state in STATES and (table.drop("second").state == "finished").all()
    assert "second" in runs_table(list_runs(runs))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(runs):
    (runs / "second").chmod(0)
    try:
        assert list_runs(runs).set_index("run").loc["second"].state == "damaged"
    finally:
        (runs / "second").chmod(0o755)


def test_a_disk_that_fails(runs, monkeypatch):
    "An error of the system is a state of the run, not of the list"
    exists = Path.exists

    def failing(path: Path) -> bool:
        if path.parent.name == "second":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", failing)
    table = list_runs(runs).set_index("run")
    assert table.loc["second"].state == "damaged" and "Permission denied" in table.loc["second"].reason
    assert (table.drop("second").state == "finished").all()


# ---- the table on a page


def test_page_in_a_browser(runs, browser):
    "Headings sort the table, by the keyboard too, missing figures last"
    shutil.copytree(runs / "first", runs / "begun")
    (runs / "begun/metrics.json").unlink()
    page = browser.new_page()
    page.set_content("<div id=here></div>")
    page.evaluate("html => document.getElementById('here').innerHTML = html", str(runs_table(list_runs(runs))))  # as a widget would
    column = lambda n: page.locator(f".runs tbody td:nth-child({n})").all_inner_texts()
    page.get_by_role("button", name="run", exact=True).click()
    assert column(1) == sorted(column(1)) and len(column(1)) == 4
    best = list_runs(runs).set_index("run")["ndcg@10"].drop("begun").sort_values().index.tolist()
    button = page.get_by_role("button", name="test NDCG@10")
    way = lambda: button.evaluate("b => b.closest('th').ariaSort")
    button.press("Enter")  # by the keyboard; the best first
    assert column(1) == [*best[::-1], "begun"] and way() == "descending"
    button.click()
    assert column(1) == [*best, "begun"] and way() == "ascending"
    assert page.locator(".runs th[aria-sort=ascending]").all_inner_texts() == ["test NDCG@10"]
    page.close()


def test_two_tables_on_a_page_sort_apart(runs, browser):
    page = browser.new_page()
    page.set_content(str(runs_table(list_runs(runs))) * 2)
    column = lambda n: page.locator(".runs").nth(n).locator("tbody td:first-child").all_inner_texts()
    before = column(1)
    for _ in range(2):
        page.locator(".runs").first.get_by_role("button", name="run", exact=True).click()
    assert column(0) == sorted(column(0), reverse=True) and column(1) == before
    page.close()


def test_numbered_names_are_sorted_as_people_count(runs, browser):
    for n in (2, 10, 1):
        shutil.copytree(runs / "popularity", runs / f"seed{n}")
    page = browser.new_page()
    page.set_content(str(runs_table(list_runs(runs))))
    page.get_by_role("button", name="run", exact=True).click()
    names = page.locator(".runs tbody td:first-child").all_inner_texts()
    assert [name for name in names if name.startswith("seed")] == ["seed1", "seed2", "seed10"]
    page.close()
