"""Reports: averaging, slices, one's own metrics, run folders, and honesty about how numbers came about."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from itemlm.data.datasets import load_dataset
from itemlm.data.events import read_events
from itemlm.data.split import split, withheld, withhold_items
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.cold import cold_ranks
from itemlm.evaluation.report import Report, evaluate, read_report, slice_groups, target_facts
from itemlm.metrics.ranks import ndcg, recall
from itemlm.models.base import SequenceModel
from itemlm.serving.recommender import Recommender

PROTOCOL = {"split": "leave_one_out", "candidates": "all", "ties": "expected value", "users": 0, "targets": 0, "seen": "drop"}
DATA = {"name": "made up", "fingerprint": "a" * 32, "users": 0, "items": 0, "interactions": 0}


def made_up(ranks: np.ndarray, users=None, data=DATA, **protocol) -> Report:
    "A report with these ranks."
    users = np.array([f"u{i}" for i in range(len(ranks))]) if users is None else np.asarray(users)
    table = pd.DataFrame({"user": users, "part": "test", "protocol": "drop", "rank": np.asarray(ranks, float), "ties": 0})
    how = PROTOCOL | {"users": len(set(users)), "targets": len(ranks)} | protocol
    return Report(data=data, results=[{"part": "test", "protocol": how, "metrics": {}}], per_user=table)


def places(rng, n: int = 400, p: float = 0.05) -> np.ndarray:
    "Ranks as models have them: some in front, a long tail."
    return rng.geometric(p, n)


class Fixed(SequenceModel):
    "The same scores for everyone"

    def __init__(self, row):
        super().__init__(self.Config(n_items=len(row)))
        self.row = row

    def scores(self, histories):
        return self.row.expand(len(histories), -1)


def random_model(parts, seed: int = 0) -> Recommender:
    tokenizer = ItemTokenizer.from_split(parts)
    row = torch.randn(tokenizer.n_items, generator=torch.Generator().manual_seed(seed))
    return Recommender.from_split(Fixed(row), tokenizer, parts)


@pytest.fixture(scope="module")
def parts():
    return split(load_dataset("ml-latest-small"))


# reports
def test_a_users_targets_are_averaged_before_users_are():
    "Two users, one with a hit and a miss, one with a hit: the mean over users is .75, over targets it would be .67."
    report = made_up(np.array([1, np.inf, 1]), users=["a", "a", "b"])
    assert report.user_values("recall@10").to_dict() == {"a": 0.5, "b": 1}


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
    cuts = slice_groups(target_facts(random_model(parts), parts, parts.test))
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


def test_a_report_of_the_contract_alone_is_read(parts, tmp_path):
    "Another program may write what the contract asks for, and no more."
    evaluate(random_model(parts), parts).save(tmp_path)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    asked = {name: saved[name] for name in ("data", "seed", "params", "seconds", "results")}
    (tmp_path / "metrics.json").write_text(json.dumps(asked))
    pd.read_parquet(tmp_path / "per_user.parquet")[["user", "part", "protocol", "rank", "ties"]].to_parquet(tmp_path / "per_user.parquet")
    report = read_report(tmp_path)
    assert report.slices.empty and "ndcg@10" in report._repr_html_() and report.user_values("mrr").between(0, 1).all()


def test_a_damaged_report_is_named(tmp_path):
    made_up(np.array([1, 2])).save(tmp_path)
    (tmp_path / "metrics.json").write_text('{"data": {')
    with pytest.raises(ValueError, match=f"the report in {tmp_path} is damaged"):
        read_report(tmp_path)


# what it says of itself
def test_the_result_comes_first_in_one_sentence(parts):
    report = evaluate(random_model(parts), parts, part=("valid", "test"), ks=(5,))
    value = report.metric("ndcg@5")
    said = f"test NDCG@5 {value['mean']:.4f} ({value['lo']:.4f}–{value['hi']:.4f}), recall@5 "
    assert report.headline.startswith(said) and report.headline.endswith(f", {parts.test.n_users} users")
    assert repr(report).startswith(report.headline) and report._repr_html_().startswith(f"<p><b>{report.headline}")


def test_validation_stands_apart_from_test(parts):
    "The weights were chosen on it: its rows are folded away, and the lists' with them."
    page = evaluate(random_model(parts), parts, part=("valid", "test"))._repr_html_()
    shown, *folded = page.split("<details>")
    assert ">test<" in shown and ">valid<" not in shown and "novelty" not in shown
    assert "what the lists are like" in folded[0] and "the valid part" in folded[1] and ">valid<" in folded[1]


def test_the_length_of_the_lists_is_a_parameter(parts):
    report = evaluate(random_model(parts), parts, list_length=3)
    assert {"novelty@3", "coverage@3", "gini@3"} <= report.row()["metrics"].keys() and not any(n.endswith("y@10") for n in report.per_user)
    assert report.row(seen="keep")["metrics"]["coverage@3"]["mean"] == pytest.approx(3 / random_model(parts).n_items)
    assert report.user_values("novelty@3").mean() == pytest.approx(report.metric("novelty@3")["mean"], rel=1e-6)


def test_both_files_or_neither(parts, tmp_path, monkeypatch):
    report = evaluate(random_model(parts), parts)
    report.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("[!.]*")}
    monkeypatch.setattr("itemlm.evaluation.report.write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        evaluate(random_model(parts, seed=1), parts).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("[!.]*")} == before


# one's own metrics
def deep(ranks):
    "How far down, at most a hundred places."
    return np.minimum(ranks.rank, 100)


def fresh(lists):
    "Share of a list that few have taken; none where the list is empty."
    rare = np.append(lists.counts < 10, False)[lists.columns]
    there = (lists.columns >= 0).sum(1)
    return np.divide(rare.sum(1), there, out=np.full(len(lists), np.nan), where=there > 0)


OWN = {"deep": deep, "fresh": fresh}


def test_own_metrics_go_everywhere(parts, tmp_path):
    rec = random_model(parts)
    report = evaluate(rec, parts, metrics=OWN)
    ranks = rec.rank_part(parts, "test", top_k=10)
    for seen in ("drop", "keep"):
        by_hand = np.minimum(ranks[seen].rank, 100)
        assert report.metric("deep", seen=seen)["mean"] == pytest.approx(by_hand.mean(), abs=1e-9)
        np.testing.assert_allclose(report.user_values("deep", seen=seen).loc[parts.test.users], by_hand)
        rare = (rec.items["count"].to_numpy() < 10)[ranks[seen].top].mean(1)
        np.testing.assert_allclose(report.user_values("fresh", seen=seen).loc[parts.test.users], rare)
    assert {"deep", "fresh"} <= set(report.per_user) and {"deep", "fresh"} <= set(report.slices["metric"])
    assert report.plot_slices("fresh").layout.yaxis.title.text == "fresh" and "your metrics" in report._repr_html_()
    report.save(tmp_path)
    again = read_report(tmp_path)
    assert again.metric("fresh") == report.metric("fresh") and 0 < again.metric("fresh")["lo"] < again.metric("fresh")["hi"]
    pd.testing.assert_series_equal(again.user_values("fresh"), report.user_values("fresh"))


def test_own_metrics_are_means_over_users_and_may_be_unknown(parts):
    "A user with several targets counts once; a target without a value does not count."
    three = split(parts.events, "last_n", n=3)
    found = evaluate(random_model(three), three, metrics={"near": lambda r: np.where(r.rank > 1000, np.nan, r.rank)})
    ranks = random_model(three).rank_part(three, "test")["drop"].rank
    by_hand = pd.Series(np.where(ranks > 1000, np.nan, ranks)).groupby(three.test.users).mean().dropna()
    assert found.metric("near")["mean"] == pytest.approx(by_hand.mean()) and found.metric("near")["users"] == len(by_hand)


WRONG = {
    "a mean": (lambda ranks: ranks.missed.mean(), r"returned the shape \(\)"),
    "too few": (lambda ranks: ranks.rank[1:], "returned the shape"),
    "infinite": (lambda ranks: ranks.rank, "is infinite for .* targets"),
    "words": (lambda ranks: np.full(len(ranks), "good"), "returned .* where numbers belong"),
    "nothing": (lambda ranks: None, "returned .* where numbers belong"),
    "a slip": (lambda lists: lists.titles, "cannot be computed .AttributeError"),
    "two arguments": (lambda ranks, k: ranks.rank, "cannot be computed .TypeError"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_metric_is_named_before_anything_is_ranked(parts, what):
    class Slow(Fixed):
        def scores(self, histories):
            raise AssertionError("the catalogue was ranked")

    tokenizer = ItemTokenizer.from_split(parts)
    rec = Recommender.from_split(Slow(torch.zeros(tokenizer.n_items)), tokenizer, parts)
    metric, told = WRONG[what]
    with pytest.raises(ValueError, match=f"metric 'mine' {told}"):
        evaluate(rec, parts, metrics={"mine": metric})
    for name in ("ndcg@10", "recall@7", "mrr", "coverage@10", "novelty", "rank", "user", "history", ""):
        with pytest.raises(ValueError, match="metrics: "):
            evaluate(rec, parts, metrics={name: deep})
    for asked in (dict(ks=(0,)), dict(ks=()), dict(list_length=0), dict(ks=(2.5,)), dict(metrics={"x": 3})):
        with pytest.raises(ValueError):
            evaluate(rec, parts, **asked)


def test_a_metric_may_know_the_users(parts):
    "Something known of each target may stand in the function: it is called with all of them at once, also beforehand."
    weight = np.random.default_rng(0).random(len(parts.test))
    found = evaluate(random_model(parts), parts, metrics={"weighed": lambda ranks: weight * recall(ranks, 10)})
    ranks = random_model(parts).rank_part(parts, "test")["drop"]
    assert found.metric("weighed")["mean"] == pytest.approx((weight * recall(ranks, 10)).mean())


# new items
class Titles(SequenceModel):
    "Scores by the length of the title; takes new items whose title is known."

    def __init__(self, config, lengths=None):
        super().__init__(config)
        self.register_buffer("lengths", torch.zeros(config.n_items) if lengths is None else lengths)

    def setup(self, parts, tokenizer):
        self.lengths = self.read(parts.events.items.loc[tokenizer.items])

    def read(self, items):
        return torch.tensor(items["title"].str.len().to_numpy(), dtype=torch.float32)

    def extendable(self, items):
        return (items["title"] != "").to_numpy()

    def extend(self, items):
        return Titles(replace(self.config, n_items=self.config.n_items + len(items)), torch.cat([self.lengths, self.read(items)]))

    def scores(self, histories):
        return 1e9 + self.lengths.expand(len(histories), -1)  # so large that one less is the same number in float32


@pytest.mark.parametrize("candidates", ["withheld", "all"])
def test_new_items_are_ranked_in_the_batches_of_everything_else(parts, monkeypatch, candidates):
    silent = parts.events.items["title"].where(np.arange(parts.events.n_items) % 5 > 0, "")
    cold = withhold_items(replace(parts, events=replace(parts.events, items=parts.events.items.assign(title=silent))), 0.3)
    tokenizer = ItemTokenizer.from_split(cold)
    model = Titles(Titles.Config(n_items=tokenizer.n_items))
    model.setup(cold, tokenizer)
    rec, batches, steps = Recommender.from_split(model, tokenizer, cold), Recommender.batches, []

    def counted(self, histories, batch=512):
        for rows, scores, had in batches(self, histories, batch):
            steps.append(len(rows))
            yield rows, scores, had

    monkeypatch.setattr(Recommender, "batches", counted)
    found = cold_ranks(rec, cold, candidates, batch=7)
    assert sum(steps) == len(cold.test) and max(steps) <= 7
    new, ids = withheld(cold), cold.events.items.index[cold.test.targets]
    known = pd.concat([cold.events.items.loc[tokenizer.items], new[new["title"] != ""]]) if candidates == "all" else new[new["title"] != ""]
    score = (1e9 + torch.tensor(known["title"].str.len().to_numpy(), dtype=torch.float32)).numpy()
    mute = (new["title"] == "").sum()
    for target, greater, ties in list(zip(ids, found.greater, found.ties))[::11]:
        own = score[known.index.get_loc(target)] if target in known.index else -np.inf
        assert greater == (score > own).sum() and ties == ((score == own).sum() - 1 if np.isfinite(own) else mute - 1)


# the bench
def test_accuracy_figures_are_means_over_seeds_of_one_setting(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import record
    import trust

    def line(model, seed, test, dataset="beauty", preset="small", ties="as_is", **params):
        order = {"data_ties": "shuffled, seed 0"} if ties == "shuffled" else {}
        values = (("valid", "leave_one_out", "drop", 0.7), ("test", "leave_one_out", "keep", 0.9))
        values += (("test", "global_time", "drop", 0.8), ("test", "leave_one_out", "drop", test))
        how = lambda split, seen: {"split": split, "seen": seen, "candidates": "all"} | order
        rows = [
            {"part": part, "protocol": how(split, seen), "metrics": {"ndcg@10": {"mean": value}}} for part, split, seen, value in values
        ]
        known = {"model": model, "dataset": dataset, "preset": preset, "protocol": "leave_one_out", "ties": ties, "seed": seed}
        return json.dumps(known | {"params": params, "results": rows}) + "\n"

    made = [line("item_lm", seed, value) for seed, value in enumerate((0.05, 0.06, 0.07))]
    made += [line("item_lm", 0, 0.5, preset="long_history"), line("item_lm", 3, 0.5, dataset="toys")]
    made += [line("item_lm", seed, 0.4, ties="shuffled") for seed in range(4)]  # other data, in truth
    made += [line("popularity", 0, 0.01), line("sasrec_ce", 0, 0.04), line("sasrec_ce", 0, 0.3, init="ppmi")]  # not the preset's own start
    (tmp_path / "runs.jsonl").write_text("".join(made))
    found = {}
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(trust, "record", lambda topic, figures, notes: found.update(figures))
    trust.accuracy()
    assert found == pytest.approx(
        {f"{name}_beauty_ndcg@10": value for name, value in (("item_lm", 0.06), ("popularity", 0.01), ("sasrec_ce", 0.04))}
    )
