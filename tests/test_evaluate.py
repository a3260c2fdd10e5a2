"""Reports and comparisons: averaging, slices, run folders, and honesty about differences."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from torch import nn

from itemlm.evaluate import Report, compare, evaluate, read_report, slices_of
from itemlm.events import load_dataset, read_events
from itemlm.metrics import ndcg
from itemlm.recommend import Recommender
from itemlm.split import split
from itemlm.tokenizer import ItemTokenizer

PROTOCOL = {"split": "leave_one_out", "candidates": "all", "ties": "expected value", "users": 0, "targets": 0, "seen": "drop"}
DATA = {"name": "made up", "fingerprint": "a" * 32, "users": 0, "items": 0, "interactions": 0}


def made_up(ranks: np.ndarray, users=None, data=DATA, **protocol) -> Report:
    "A report with these ranks."
    users = np.array([f"u{i}" for i in range(len(ranks))]) if users is None else np.asarray(users)
    table = pd.DataFrame({"user": users, "part": "test", "protocol": "drop", "rank": np.asarray(ranks, float), "ties": 0})
    how = PROTOCOL | {"users": len(set(users)), "targets": len(ranks)} | protocol
    return Report(data=data, results=[{"part": "test", "protocol": how, "metrics": {}}], per_user=table)


def places(rng, n: int = 400, p: float = .05) -> np.ndarray:
    "Ranks as models have them: some in front, a long tail."
    return rng.geometric(p, n)


class Fixed(nn.Module):
    "The same scores for everyone."
    def __init__(self, row):
        super().__init__()
        self.row, self.config = row, type("Config", (), {"n_items": len(row)})

    def scores(self, sequences): return self.row.expand(len(sequences), -1)


def random_model(parts, seed: int = 0) -> Recommender:
    tokenizer = ItemTokenizer.from_split(parts)
    row = torch.randn(tokenizer.n_items, generator=torch.Generator().manual_seed(seed))
    return Recommender.from_split(Fixed(row), tokenizer, parts)


@pytest.fixture(scope="module")
def parts():
    return split(load_dataset("ml-latest-small"))


# compare
def test_the_same_model_twice_is_no_difference():
    one = made_up(places(np.random.default_rng(0)))
    found = compare({"old": one, "new": one, "newer": one})
    assert {found.verdict(name, metric) for name in ("new", "newer") for metric in found.metrics} == {
        "no difference from old, newer", "no difference from old, new"}
    assert (found.tests["p_holm"] == 1).all() and "no difference from new, newer" == found.verdict("old")


def test_a_better_model_is_found_and_the_sign_is_right():
    rng = np.random.default_rng(0)
    slow = places(rng, 2000)
    found = compare({"slow": made_up(slow), "fast": made_up(np.maximum(slow - rng.integers(0, 3, 2000), 1))})
    assert found.reference == "fast" and found.verdict("fast") == "ahead of all others" and found.verdict("slow") == "behind fast"
    against = compare({"slow": made_up(slow), "fast": made_up(np.maximum(slow - 1, 1))}, baseline="slow")
    assert against.verdict("slow") == "baseline" and against.verdict("fast") == "ahead of slow"
    row = against.to_frame().query("model == 'fast' and metric == 'ndcg@10'").iloc[0]
    assert 0 < row.difference_lo < row.difference < row.difference_hi


def test_equal_models_are_seldom_told_apart():
    "Four models of equal worth, six pairs: a false claim anywhere in the table in at most one of twenty tables."
    rng, wrong, n = np.random.default_rng(0), 0, 120
    for _ in range(n):
        found = compare({name: made_up(places(rng, 150)) for name in "abcd"}, metrics="ndcg@10", resamples=1000)
        wrong += (found.tests["p_holm"] < .05).any()
    assert wrong / n <= .05 + 2.6 * np.sqrt(.05 * .95 / n)


@pytest.mark.parametrize("what, named", [
    (dict(seen="drop", candidates="100 random"), "candidates: all .a, c., 100 random .b."),
    (dict(split="global_time", cuts=["2010"]), "split: leave_one_out .a, c., global_time .b.; cuts: not stated .a, c."),
    (dict(data=DATA | {"fingerprint": "b" * 32}), "data: made up aaaaaaaa .a, c., made up bbbbbbbb .b."),
])
def test_unlike_results_are_refused_or_marked(what, named):
    ranks = places(np.random.default_rng(0))
    reports = {"a": made_up(ranks), "b": made_up(ranks + 1, **what), "c": made_up(ranks)}
    with pytest.raises(ValueError, match=f"not measured alike: {named}"):
        compare(reports)
    found = compare(reports, mixed=True)
    assert set(found.tests["a"]) | set(found.tests["b"]) == {"a", "c"}
    assert found.verdict("b") == "not comparable with a"
    marks = found.models.groupby("model")["measured"].first()
    assert marks["b"] and not marks["a"] and not marks["c"]
    assert marks["b"].split(",")[0].split(" ")[0] in found._repr_html_() and "measured otherwise" in found._repr_html_()


def test_cold_targets_may_differ():
    "They depend on what the model can rank, not on how it was measured; for who cannot rank them they are misses."
    ranks = places(np.random.default_rng(0)).astype(float)
    reports = {"ids": made_up(np.where(ranks > 30, np.inf, ranks), cold_targets=9), "text": made_up(ranks, cold_targets=0)}
    found = compare(reports, metrics="mrr")
    assert found.verdict("text") == "ahead of all others"


def test_users_are_matched_by_id():
    rng = np.random.default_rng(0)
    ranks, order = places(rng), rng.permutation(400)
    a, names = made_up(ranks), np.array([f"u{i}" for i in range(400)])
    shuffled = made_up(ranks[order], users=names[order])
    assert (compare({"a": a, "b": shuffled}).tests["difference"] == 0).all()
    with pytest.raises(ValueError, match="2 users are in only one of 'a' and 'b', such as 'stranger' .in 'b'."):
        compare({"a": a, "b": made_up(ranks, users=["stranger", *names[1:]])})


def test_seeds_are_averaged_within_the_user_and_their_spread_is_shown():
    rng = np.random.default_rng(0)
    seeds = [places(rng) for _ in range(3)]
    found = compare({"model": [made_up(r) for r in seeds], "other": made_up(places(rng))}, metrics="ndcg@10")
    row = found.models[found.models["model"] == "model"].iloc[0]
    means = [made_up(r).user_values("ndcg@10").mean() for r in seeds]
    assert row.seeds == 3 and np.isclose(row["mean"], np.mean(means))
    assert np.isclose(row.seed_min, min(means)) and np.isclose(row.seed_max, max(means))
    assert f"[{min(means):.4f}, {max(means):.4f}]" in found._repr_html_()
    with pytest.raises(ValueError, match="All reports of 'model' must be of one kind"):
        compare({"model": [made_up(seeds[0]), made_up(seeds[1], split="global_time")], "other": made_up(seeds[2])}, mixed=True)


def test_run_folders_stand_for_their_reports(tmp_path):
    rng = np.random.default_rng(0)
    reports = {"a": made_up(places(rng)), "b": made_up(places(rng))}
    for name, report in reports.items():
        report.save(tmp_path / name)
    there = compare({"a": tmp_path / "a", "b": [str(tmp_path / "b")]})
    pd.testing.assert_frame_equal(there.tests, compare(reports).tests)
    with pytest.raises(FileNotFoundError, match="has no metrics.json and no per_user.parquet"):
        compare({"a": tmp_path / "a", "c": tmp_path / "c"})


def test_metrics_of_lists_have_no_better_side():
    "More popular lists are not better ones: higher and lower, not ahead and behind."
    rng = np.random.default_rng(0)
    reports = {name: made_up(places(rng)) for name in ("plain", "popular")}
    for shift, report in enumerate(reports.values()):
        report.per_user["popularity_lift@10"] = rng.random(400) + shift
    found = compare(reports, metrics="popularity_lift@10")
    assert found.verdict("popular") == "higher than all others" and found.verdict("plain") == "lower than popular"
    reports["plain"].per_user.loc[:9, "popularity_lift@10"] = np.nan  # not defined for ten users: they are left out of the pair
    assert np.isfinite(compare(reports, metrics="popularity_lift@10").tests["difference"]).all()


def test_forest_shows_every_model():
    rng = np.random.default_rng(0)
    reports = {name: made_up(places(rng)) for name in "abc"} | {"odd": made_up(places(rng), split="global_time")}
    figure = compare(reports, mixed=True, baseline="a").forest("mrr")
    assert sorted(y for trace in figure.data for y in trace.y) == ["a", "b", "c", "odd"]
    assert [trace.text[0].strip() for trace in figure.data if trace.y[0] == "odd"] == ["not comparable"]


# reports
def test_a_users_targets_are_averaged_before_users_are():
    "Two users, one with a hit and a miss, one with a hit: the mean over users is .75, over targets it would be .67."
    report = made_up(np.array([1, np.inf, 1]), users=["a", "a", "b"])
    assert report.user_values("recall@10").to_dict() == {"a": .5, "b": 1}


def test_several_targets_a_user(parts):
    three = split(parts.events, "last_n", n=3)
    report = evaluate(random_model(three), three)
    row, users = report.row(), report.user_values("ndcg@10")
    assert (row["protocol"]["users"], row["protocol"]["targets"]) == (three.test.n_users, 3 * three.test.n_users)
    assert np.isclose(row["metrics"]["ndcg@10"]["mean"], users.mean())
    ranks = random_model(three).rank_part(three, "test")["drop"]
    by_hand = pd.Series(ndcg(ranks, 10)).groupby(three.test.users).mean()
    np.testing.assert_allclose(users, by_hand)
    whole = report.slices.query("slice == 'history length' and seen == 'drop' and metric == 'ndcg@10'")
    assert whole["users"].sum() >= three.test.n_users  # a user may be in two groups


def test_slices_of_a_toy_table():
    rows = [("u", item, 1_000_000 + when) for item, when in zip("abcd", (0, 0, 0, 3600))]  # the last after an hour
    rows += [("v", item, 2_000_000 + when) for item, when in zip("abca", (0, 5, 9, 9 + 9 * 86_400))]  # after nine days, taken before
    rows += [("w", item, 3_000_000) for item in "cab"]  # all at once
    parts = split(read_events(pd.DataFrame(rows, columns=["user", "item", "time"])))
    cuts = slices_of(random_model(parts), parts, parts.test)
    group = {name: dict(zip(parts.test.users, cut)) for name, cut in cuts.items()}
    assert group["time since the last event"] == {"u": "within a day", "v": "a month", "w": "same moment"}
    assert group["target"] == {"u": "cold", "v": "in training", "w": "in training"}
    assert group["taken before"] == {"u": "no", "v": "yes", "w": "no"}
    assert dict(zip(parts.test.users, parts.test.histories.lengths)) == {"u": 3, "v": 3, "w": 2}
    assert group["history length"] == {"u": "3", "v": "3", "w": "2"}


def test_slices_without_times(parts):
    events = parts.events
    blind = split(replace(events, times=np.zeros_like(events.times)))
    report = evaluate(random_model(blind), blind)
    assert "time since the last event" not in set(report.slices["slice"]) and len(report.slices)


def test_slices_cover_everyone_once(parts):
    report = evaluate(random_model(parts), parts)
    sums = report.slices[report.slices["metric"] == "recall@10"].groupby(["seen", "slice"])["users"].sum()
    warm = len(parts.test) - report.row()["protocol"]["cold_targets"]
    for (_, cut), users in sums.items():
        assert users == (warm if "count" in cut else len(parts.test))


def test_items_without_attributes_have_no_diversity(parts):
    events = replace(parts.events, items=parts.events.items[["title"]])
    plain = split(events)
    report = evaluate(random_model(plain), plain)
    assert not any(name.startswith(("diversity", "calibration")) for name in report.row()["metrics"]) and "attributes" not in report.data


def test_metrics_json_keeps_its_contract(parts, tmp_path):
    report = evaluate(random_model(parts), parts, part=("valid", "test"))
    report.save(tmp_path, seed=3, params={"dataset": "x"}, seconds={"fit": 1.5})
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["seed"] == 3 and saved["params"] == {"dataset": "x"} and saved["seconds"] == {"fit": 1.5}
    assert {"itemlm", "torch", "numpy", "python"} <= saved["versions"].keys() and saved["model"]["class"].endswith(":Fixed")
    for row in saved["results"]:
        for name, value in row["metrics"].items():
            ends = value["mean"] if "lo" not in value else (value["lo"] <= value["mean"] <= value["hi"])
            assert ends is True or name in ("coverage@10", "gini@10")
    again = read_report(tmp_path)
    assert again.results == report.results and again.seed == 3 and again.seconds == {"fit": 1.5}
    pd.testing.assert_frame_equal(again.slices, report.slices)


def test_a_report_of_an_older_version_is_read(parts, tmp_path):
    evaluate(random_model(parts), parts).save(tmp_path)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    old = {name: saved[name] for name in ("data", "seed", "params", "seconds", "results")}
    for row in old["results"]:
        del row["protocol"]["targets"]
    (tmp_path / "metrics.json").write_text(json.dumps(old))
    pd.read_parquet(tmp_path / "per_user.parquet")[["user", "part", "protocol", "rank", "ties"]].to_parquet(tmp_path / "per_user.parquet")
    report = read_report(tmp_path)
    assert report.slices.empty and "ndcg@10" in report._repr_html_() and report.user_values("mrr").between(0, 1).all()


def test_a_damaged_report_is_named(tmp_path):
    made_up(np.array([1, 2])).save(tmp_path)
    (tmp_path / "metrics.json").write_text('{"data": {')
    with pytest.raises(ValueError, match=f"the report in {tmp_path} is damaged"):
        read_report(tmp_path)


# the bench
def test_accuracy_figures_are_means_over_seeds_of_one_setting(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import trust

    def note(name, model, seed, test, valid=.1, dataset="beauty", **params):
        order = {"data_ties": "shuffled, seed 0"} if params.get("ties") == "shuffled" else {}
        rows = [{"part": part, "protocol": {"split": split, "seen": seen, "candidates": "all"} | order,
                 "metrics": {"ndcg@10": {"mean": value}}}
                for part, split, seen, value in (("valid", "leave_one_out", "drop", valid), ("test", "leave_one_out", "keep", .9),
                                                 ("test", "global_time", "drop", .8), ("test", "leave_one_out", "drop", test))]
        record = {"model": model, "dataset": dataset, "seed": seed, "params": {"seed": seed, **params}, "results": rows}
        (tmp_path / "compare" / f"{name}.json").write_text(json.dumps(record))

    (tmp_path / "compare").mkdir()
    (tmp_path / "compare/tests-beauty.json").write_text('{"tests": []}')
    for seed, value in enumerate((.05, .06, .07)):
        note(f"a{seed}", "item_lm", seed, value, width=64)
    note("wide", "item_lm", 0, .5, width=128)  # one seed only
    for seed in range(4):
        note(f"shuffled{seed}", "item_lm", seed, .4, width=64, ties="shuffled")  # other data, in truth
    note("toys", "item_lm", 3, .5, dataset="toys", width=64)
    note("p1", "popularity", 0, .01, valid=.02)
    note("p2", "popularity", 0, .03, valid=.01, window=7)  # better on test, but not on validation
    found = {}
    monkeypatch.setattr(trust, "RESULTS", tmp_path)
    monkeypatch.setattr(trust, "record", lambda topic, figures, notes: found.update(figures))
    trust.accuracy()
    assert found == pytest.approx({"item_lm_beauty_ndcg@10": .06, "popularity_beauty_ndcg@10": .01})
