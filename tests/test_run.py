"""The run ledger on real runs: finished, damaged, unfinished, deleted, newer, of other data; and its table in a real browser."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from itemlm import evaluate, fit, fit_popularity, load, load_dataset, ndcg, split, tiny
from itemlm.metrics import target_ranks
from itemlm.run import compare_runs, list_runs, read_run, runs_html


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
    popular = fit_popularity(parts)
    popular.save(folder / "popularity")
    evaluate(popular, parts).save(folder / "popularity")
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    "A copy of the runs to do harm to."
    return shutil.copytree(trained, tmp_path / "runs")


@pytest.fixture(scope="session")
def both(trained):
    return compare_runs(trained / "first", trained / "second")


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
    assert len(table) == 0 and len(table.query("state == 'finished'")) == 0 and "no run here yet" in runs_html(table)


def cut(name, keep=0.5):
    def harm(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])
    return harm


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def change(**entries):
    return lambda folder: (folder / "run.json").write_text(json.dumps(json.loads((folder / "run.json").read_text()) | entries))


HARM = {
    "weights cut short": (cut("model.safetensors"), "damaged", "model.safetensors is damaged"),
    "weights empty": (write("model.safetensors", ""), "damaged", "model.safetensors is damaged"),
    "run.json cut short": (cut("run.json"), "damaged", "run.json is damaged"),
    "run.json binary": (lambda f: (f / "run.json").write_bytes(b"\xff\xfe\x00\x81"), "damaged", "run.json is damaged"),
    "run.json a list": (write("run.json", "[1, 2]"), "damaged", "run.json holds no object but list"),
    "run.json of something else": (write("run.json", '{"name": "experiment"}'), "no run", "no run.json of itemlm"),
    "odd types in run.json": (change(identity=5), "damaged", "not as itemlm writes it"),
    "odd seed": (change(identity={"params": {"seed": {}}}), "damaged", "not as itemlm writes it"),
    "metrics cut short": (cut("metrics.json"), "damaged", "metrics.json is damaged"),
    "metrics without results": (write("metrics.json", '{"results": [{}]}'), "damaged", "KeyError"),
    "log cut short": (lambda f: (f / "log.jsonl").write_text('{"epoch": 1.0, "st'), "damaged", "log.jsonl is damaged"),
    "log of other things": (write("log.jsonl", '{"step": 3}\n'), "damaged", "KeyError"),
    "histories cut short": (cut("histories.parquet"), "damaged", "histories.parquet is damaged"),
    "ranks cut short": (cut("per_user.parquet"), "damaged", "per_user.parquet is damaged"),
    "tokenizer missing": (lambda f: (f / "tokenizer.json").unlink(), "damaged", "tokenizer.json missing"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "damaged", "model.safetensors missing"),
    "emptied": (lambda f: [path.unlink() for path in f.iterdir()], "no run", "no run.json"),
    "newer format": (change(format=99, versions={"itemlm": "7.1"}), "another format", "run format 99.*version that wrote it, 7.1"),
}


@pytest.mark.parametrize("what", HARM)
def test_harm_is_a_row_that_says_so(runs, what):
    harm, state, reason = HARM[what]
    harm(runs / "second")
    table = list_runs(runs).set_index("run")
    row = table.loc["second"]
    assert row.state == state and not row.usable and pd.Series([row.reason]).str.contains(reason).all(), row.reason
    assert "\n" not in row.reason and (table.drop("second").state == "finished").all()
    assert state in runs_html(list_runs(runs))
    with pytest.raises(ValueError, match=rf"second cannot be compared \({state}\)"):
        compare_runs(runs / "first", runs / "second")


def test_deleted_run(runs):
    shutil.rmtree(runs / "second")
    assert set(list_runs(runs).run) == {"first", "popularity"}
    with pytest.raises(ValueError, match="second cannot be compared .no run.*deleted or renamed"):
        compare_runs(runs / "first", runs / "second")
    assert read_run(runs / "second").state == "no run"


def test_unfinished_run(parts, runs):
    config = tiny(epochs=500)
    rec = fit(parts, config, out_dir=runs / "going", device="cpu", max_minutes=0.06, verbose=False)
    row = list_runs(runs).set_index("run").loc["going"]
    assert row.state == "in training" and row.usable and "of 500; if it was stopped, the same command goes on" in row.reason
    assert np.isnan(row["ndcg@10"]) and row.valid == max(line["ndcg@10"] for line in rec.log)
    found = compare_runs(runs / "first", runs / "going")
    assert "going has no test figures (in training" in found.refused and found.parameters.loc["epochs"].tolist() == [1, 500]
    assert {trace.name for trace in found.curves.data} >= {"first", "going"} and found.ranks is None and not len(found.metrics)
    evaluate(rec, parts).save(runs / "going")  # the clock ended it; its figures are figures
    assert compare_runs(runs / "first", runs / "going").refused == ""


def test_names_are_shown_as_text(runs):
    (runs / "first").rename(runs / "<b>bold<b>")
    page = runs_html(list_runs(runs)) + compare_runs(runs / "<b>bold<b>", runs / "second")._repr_html_()
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page


# ---- two runs


def test_settings_that_differ(both, trained, runs):
    assert both.names == ("first", "second") and set(both.parameters.index) == {"seed", "epochs"}
    assert both.parameters.loc["epochs"].tolist() == [1, 2]
    stated = {"dataset": "ml-latest-small", "model": "item_lm", "preset": "tiny", "protocol": "leave_one_out", "seed": 0}
    record = json.loads((runs / "first/run.json").read_text())
    (runs / "first/run.json").write_text(json.dumps(record | {"identity": record["identity"] | {"params": stated}}))
    assert set(compare_runs(runs / "first", runs / "second").parameters.index) == {"seed", "epochs"}  # the other states no more
    (runs / "second/run.json").write_text(json.dumps(record | {"identity": record["identity"] | {"params": stated | {"preset": "small"}}}))
    assert set(compare_runs(runs / "first", runs / "second").parameters.index) == {"preset"}
    other = compare_runs(trained / "first", trained / "popularity")
    assert other.parameters.loc["class"].tolist() == ["itemlm.model:ItemLM", "itemlm.baselines:Popularity"]


def test_curves(both, trained):
    by_name = {trace.name: trace for trace in both.curves.data}
    log = [json.loads(line) for line in (trained / "second/log.jsonl").read_text().splitlines()]
    assert list(by_name["second"].y) == [row["ndcg@10"] for row in log]
    assert list(by_name["second: loss"].y) == [row["loss"] for row in log]
    assert by_name["first"].line.color != by_name["second"].line.color


def test_users_from_scratch(both, trained, parts):
    "Ranks, wins and the difference, computed anew from the models."
    ranks = {}
    for name in ("first", "second"):
        rec = load(trained / name, "cpu")
        histories, targets = rec.part_columns(parts, parts.test)
        seen = replace(histories, values=histories.values - rec.tokenizer.n_special)
        ranks[name] = target_ranks(rec.scores(histories), targets, seen)
    a, b = ranks["first"].rank, ranks["second"].rank
    users = both.users.droplevel("target").loc[parts.test.users]
    np.testing.assert_array_equal(users["first"], a)
    np.testing.assert_array_equal(users["second"], b)
    assert both.top10 == {"both": ((a <= 10) & (b <= 10)).sum(), "won": ((a > 10) & (b <= 10)).sum(),
                          "lost": ((a <= 10) & (b > 10)).sum(), "neither": ((a > 10) & (b > 10)).sum()}  # fmt: skip
    assert both.users["gain"].iloc[0] == np.log2(a / b).max() and both.users["gain"].iloc[-1] == np.log2(a / b).min()
    gap = ndcg(ranks["second"], 10) - ndcg(ranks["first"], 10)
    row = both.metrics.loc[("drop", "ndcg@10")]
    assert row["difference", "mean"] == pytest.approx(gap.mean(), abs=1e-12)
    half = 1.96 * gap.std() / np.sqrt(len(gap))  # the normal interval, which the bootstrap's must be near
    assert row["difference", "hi"] - row["difference", "mean"] == pytest.approx(half, rel=0.25)
    assert (row["difference", "p"] < 0.05) == (abs(gap.mean()) > half) or abs(abs(gap.mean()) - half) < 0.2 * half


def test_map_counts_every_user(both, parts):
    counts = [[int(n or 0) for n in row] for row in both.ranks.data[0].text]
    assert np.sum(counts) == len(parts.test)
    x, y = (both.users[name] for name in ("first", "second"))
    column = list(both.ranks.layout.xaxis.ticktext).index("6–10")
    row = list(both.ranks.layout.yaxis.ticktext).index("21–50")
    assert counts[row][column] == ((x > 5) & (x <= 10) & (y > 20) & (y <= 50)).sum()


def test_turned_round(both, trained):
    back = compare_runs(trained / "second", trained / "first")
    assert (back.top10["won"], back.top10["lost"]) == (both.top10["lost"], both.top10["won"])
    mine, theirs = both.metrics["difference"], back.metrics["difference"]
    np.testing.assert_allclose(theirs["mean"].dropna(), -mine["mean"].dropna(), atol=1e-12)
    np.testing.assert_allclose(theirs["p"].dropna(), mine["p"].dropna())


def test_slices_add_up(both, parts):
    known = both.slices.loc["items known"]
    assert known["users", ""].sum() == parts.test.n_users
    whole = both.metrics.loc[("drop", "ndcg@10")]
    for name in (*both.names, "difference"):
        assert (known[name, "mean"] * known["users", ""]).sum() / parts.test.n_users == pytest.approx(whole[name, "mean"], abs=1e-9)
    assert "target's count in training" in both.slices.index.unique("slice")


def test_reports_without_slices(runs):
    for name in ("first", "second"):
        path = runs / name / "metrics.json"
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "slices"}))
    assert compare_runs(runs / "first", runs / "second").slices.index.unique("slice").tolist() == ["items known"]


def test_several_targets_a_user(tmp_path):
    last = split(load_dataset("ml-latest-small"), "last_n", n=2)
    popular = fit_popularity(last)
    for name in ("a", "b"):
        popular.save(tmp_path / name)
        evaluate(popular, last).save(tmp_path / name)
    same = compare_runs(tmp_path / "a", tmp_path / "b")
    assert same.refused == "" and len(same.users) == len(last.test) > last.test.n_users
    assert same.top10["won"] == same.top10["lost"] == 0 and same.metrics.loc[("drop", "ndcg@10")]["difference", "p"] == 1
    assert same.slices.loc["items known"]["users", ""].sum() == last.test.n_users and "Nothing differs" in same.tables()


def test_other_data_and_other_protocol(runs):
    for name, events, how in (("ten-core", load_dataset("ml-latest-small", k_core=10), "leave_one_out"),
                              ("by-time", load_dataset("ml-latest-small"), "global_time")):  # fmt: skip
        there = split(events, how)
        popular = fit_popularity(there)
        popular.save(runs / name)
        evaluate(popular, there).save(runs / name)
    for other, why in (("ten-core", "different data"), ("by-time", "'global_time' in by-time")):
        found = compare_runs(runs / "first", runs / other)
        assert why in found.refused and "\n" not in found.refused and found.curves is not None and len(found.parameters)
        assert not len(found.users) and not len(found.metrics) and not len(found.slices) and found.ranks is None
        page = found._repr_html_()
        assert "Not compared." in page and "Learning curves" in page and "Users won and lost" not in page


def test_other_user_ids(runs):
    path = runs / "second/per_user.parquet"
    table = pd.read_parquet(path)
    table.assign(user="u" + table["user"]).to_parquet(path)
    assert "other ids" in compare_runs(runs / "first", runs / "second").refused


def test_same_run_and_same_name(runs):
    with pytest.raises(ValueError, match="the same run: choose two"):
        compare_runs(runs / "first", runs / "." / "first")
    shutil.copytree(runs / "second", runs / "study/first")
    assert compare_runs(runs / "first", runs / "study/first").names == ("runs/first", "study/first")


def test_page_in_a_browser(runs, both, browser):
    "Headings sort the table, missing figures last; the comparison's frames hold figures' pages."
    shutil.copytree(runs / "first", runs / "begun")
    (runs / "begun/metrics.json").unlink()
    page = browser.new_page()
    page.set_content(f"<div id=here></div>{both.tables()}")
    page.evaluate("html => document.getElementById('here').innerHTML = html", str(runs_html(list_runs(runs))))  # as a widget would
    column = lambda n: page.locator(f"table.runs tbody td:nth-child({n})").all_inner_texts()  # noqa: E731
    page.get_by_role("button", name="run", exact=True).click()
    assert column(1) == sorted(column(1)) and len(column(1)) == 4
    best = list_runs(runs).set_index("run")["ndcg@10"].drop("begun").sort_values().index.tolist()
    button = page.get_by_role("button", name="test NDCG@10")
    button.press("Enter")  # by the keyboard
    assert column(1) == [*best, "begun"]
    button.click()
    assert column(1) == [*best[::-1], "begun"]
    assert page.locator("table.runs th[aria-sort=descending]").all_inner_texts() == ["test NDCG@10"]
    assert page.get_by_text("Won most").count() == 1
    page.close()
