"""Other people's lists: what a table of recommendations may hold, and that it is judged as our own models are, to the last digit."""

from dataclasses import replace

import ir_measures
import numpy as np
import pandas as pd
import pytest
import torch
from ir_measures import RR, P, R, nDCG

from itemlm.data.datasets import load_dataset
from itemlm.data.events import read_events
from itemlm.data.split import split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.compare import compare
from itemlm.evaluation.report import evaluate, read_report
from itemlm.evaluation.tables import read_lists
from itemlm.metrics.ranks import recall
from itemlm.models.base import SequenceModel
from itemlm.models.counting import popularity
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import fit


class Noise(SequenceModel):
    "Scores that depend on what was taken last, some of them equal"

    def __init__(self, n_items):
        super().__init__(self.Config(n_items=n_items))
        rough = torch.randn(n_items, n_items // 4, generator=torch.Generator().manual_seed(0))
        self.table = torch.repeat_interleave(rough, 4, 1)  # four items a score

    def scores(self, histories):
        last = torch.tensor([histories[row][-1] - 3 for row in range(len(histories))])
        scores = torch.full((len(histories), self.config.n_items), -9.0)
        scores[:, : self.table.shape[1]] = self.table[last]
        return scores


@pytest.fixture(scope="module")
def parts():
    "Sixty users and 200 items, whose last item is often one of the first."
    rng = np.random.default_rng(0)
    items = rng.zipf(1.3, (60, 30)) % 200
    rows = [(1000 + user, item, 86_400 * step) for user, some in enumerate(items) for step, item in enumerate(some)]
    return split(read_events(pd.DataFrame(rows, columns=["user", "item", "time"]), verbose=False))


@pytest.fixture(scope="module")
def rec(parts):
    tokenizer = ItemTokenizer.from_split(parts)
    return Recommender.from_split(Noise(tokenizer.n_items), tokenizer, parts)


def written(rec, parts, k: int, seen: str = "drop", part: str = "test") -> pd.DataFrame:
    "What a recommender recommends, as any program would write it."
    asked = parts.part(part)
    found, values = rec.topk(rec.part_columns(parts, asked)[0], k, seen)
    rows, places = np.nonzero(found != "")
    table = {"user_id": asked.users[rows].astype(int), "item_id": found[rows, places].astype(int), "score": values[rows, places]}
    return pd.DataFrame(table | {"rank": places + 1})


def same(one, other, seen: str, eps: float = 1e-9) -> set:
    "The metrics that two reports share, which must agree with their intervals."
    names = one.row("test", seen)["metrics"].keys() & other.row("test", seen)["metrics"].keys()
    for name in names:
        for end, value in one.metric(name, "test", seen).items():
            assert abs(value - other.metric(name, "test", seen)[end]) <= eps, (name, end)
    return names


# the same numbers
@pytest.mark.parametrize("seen", ["drop", "keep"])
def test_own_lists_as_a_table_score_as_by_the_internal_path(rec, parts, seen):
    mine = {"third": lambda ranks: (ranks.rank <= 3).astype(float), "low": lambda lists: (lists.columns < 9).mean(1)}
    inside = evaluate(rec, parts, metrics=mine)
    outside = evaluate(read_lists(written(rec, parts, 60, seen), seen=seen), parts, metrics=mine)
    names = same(inside, outside, seen)
    assert {f"{family}@{k}" for family in ("recall", "ndcg", "precision", "map") for k in (5, 10, 20)} | {"third", "low"} <= names
    assert {"novelty@10", "popularity_lift@10", "coverage@10", "gini@10"} <= names and "mrr" not in names
    cut = lambda report: report.slices[report.slices["seen"] == seen].reset_index(drop=True)
    pd.testing.assert_frame_equal(cut(inside), cut(outside), rtol=0, atol=1e-9)
    known = inside.user_values("mrr@20", "test", seen)
    np.testing.assert_allclose(outside.user_values("mrr@20", "test", seen), known, atol=1e-9)


def test_lists_with_seen_items_are_judged_both_ways(rec, parts):
    inside, outside = evaluate(rec, parts), evaluate(written(rec, parts, 80, "keep"), parts)
    assert {"ndcg@20", "coverage@10"} <= same(inside, outside, "keep") & same(inside, outside, "drop")
    assert outside.depth("test", "keep") == 80 and 20 < outside.depth("test", "drop") < 80


def test_whole_rankings_know_the_mean_reciprocal_rank(rec, parts):
    outside = evaluate(written(rec, parts, rec.n_items, "keep"), parts)
    assert outside.depth("test", "drop") is None and outside.depth("test", "keep") is None
    for seen in ("drop", "keep"):
        assert "mrr" in same(evaluate(rec, parts), outside, seen)


@pytest.mark.parametrize("form", ["csv", "parquet", "arrow", "polars", "text ids", "ranks from 0", "shuffled"])
def test_every_form_of_a_table(rec, parts, tmp_path, form):
    table = written(rec, parts, 20)
    whole = evaluate(table.drop(columns="score"), parts)
    if form == "csv":
        table.drop(columns="score").to_csv(source := tmp_path / "lists.csv", index=False)
    elif form == "parquet":
        table.drop(columns="score").to_parquet(source := tmp_path / "lists.parquet")
    elif form == "arrow":
        source = pytest.importorskip("pyarrow").Table.from_pandas(table.drop(columns="score"))
    elif form == "polars":
        source = pytest.importorskip("polars").from_pandas(table.drop(columns="score"))
    elif form == "text ids":
        source = table.drop(columns="score").astype({"user_id": str, "item_id": str}).rename(columns={"user_id": "uid", "item_id": "iid"})
    elif form == "ranks from 0":
        source = table.drop(columns="score").assign(rank=table["rank"] - 1)
    else:
        source = table.drop(columns="score").sample(frac=1, random_state=0)
    report = evaluate(source, parts)
    assert report.row()["metrics"] == whole.row()["metrics"]


def test_metrics_of_a_table_agree_with_ir_measures(rec, parts):
    table = written(rec, parts, 30)
    table["score"] = -table["rank"]  # ir-measures breaks ties, so there are none
    report = evaluate(table, parts)
    run = {str(user): dict(zip(of["item_id"].astype(str), of["score"].astype(float))) for user, of in table.groupby("user_id")}
    judged = {user: {parts.events.items.index[item]: 1} for user, item in zip(parts.test.users, parts.test.targets)}
    measures = {nDCG @ 10: "ndcg@10", nDCG @ 20: "ndcg@20", R @ 10: "recall@10", P @ 5: "precision@5", RR @ 20: "mrr@20"}
    found = {measure: np.zeros(len(judged)) for measure in measures}
    for value in ir_measures.iter_calc(list(measures), judged, run):
        found[value.measure][list(judged).index(value.query_id)] = value.value
    for measure, name in measures.items():
        np.testing.assert_allclose(report.user_values(name).reindex(list(judged)), found[measure], atol=1e-9, err_msg=name)


def test_equal_scores_count_by_their_expected_value(parts):
    user, target = parts.test.users[0], parts.events.items.index[parts.test.targets[0]]
    others = [item for item in parts.events.items.index if item != target][:9]
    table = pd.DataFrame({"user": user, "item": [target, *others], "score": [0.5] * 10})
    assert evaluate(read_lists(table, seen="keep"), parts, ks=(5, 10)).user_values("recall@5", seen="keep")[user] == 0.5


# what is said aloud
def test_who_has_no_list_is_a_miss_and_said(rec, parts, capsys):
    table = written(rec, parts, 20)
    some = table[table["user_id"] >= 1010]
    report = evaluate(some, parts)
    assert "10 users have no list and count as misses" in capsys.readouterr().out
    assert "⚠ 10 users without a list count as misses" in repr(report) and report.row()["protocol"]["users"] == 60
    values = evaluate(table, parts).user_values("recall@10")
    values[values.index.astype(int) < 1010] = 0
    assert report.metric("recall@10")["mean"] == pytest.approx(values.mean(), abs=1e-12)


def test_short_lists_strange_users_and_slips_are_said(rec, parts, capsys):
    table = written(rec, parts, 20)
    evaluate(pd.concat([table[(table["user_id"] > 1000) | (table["rank"] < 4)], table.tail(1).assign(user_id=7, rank=1)]), parts)
    said = capsys.readouterr().out
    assert (
        "1 lists are shorter than the longest, of 20" in said and "1 users of the table are not in the data ('7') and passed over" in said
    )
    valid = dict(zip(parts.valid.users.astype(int), parts.events.items.index[parts.valid.targets].astype(int)))
    trained = {user: set(parts.events.items.index[items]) for user, items in zip(parts.train_users.astype(int), parts.train)}
    slipped = [user for user, item in valid.items() if str(item) not in trained[user]]
    table.loc[table["user_id"].isin(slipped) & (table["rank"] == 1), "item_id"] = [valid[user] for user in slipped]
    table = table.drop(columns="score").drop_duplicates(["user_id", "item_id"])
    report = evaluate(table, parts)
    assert f"but for {len(slipped)} that are taken out here: results for seen='drop' only" in capsys.readouterr().out
    assert [row["protocol"]["seen"] for row in report.results] == ["drop"] and report.depth() == 19
    assert list(report.targets()["rank"].dropna())


def test_items_that_only_the_item_table_knows_widen_the_catalogue(parts):
    unseen = parts.events.items.index.difference(parts.events.items.index[parts.train_items()])
    assert len(unseen)
    table = pd.DataFrame({"user": parts.test.users, "item": unseen[0], "rank": 1})
    with pytest.raises(ValueError, match="1 items that users have had are taken out of the lists, and of some nothing is left"):
        evaluate(table, parts, ks=1)  # it is somebody's item of the validation part
    report = evaluate(read_lists(table, seen="keep"), parts, ks=1)
    assert report.metric("coverage@1", seen="keep")["mean"] == pytest.approx(1 / parts.events.n_items)


# errors
def bad(table, **changes):
    return table.assign(**changes)


ERRORS = {
    "duplicate": (lambda t: pd.concat([t, t.head(1)]), "item .* stands twice or more in the list of user '1000' .row 0, 1200"),
    "rank twice": (lambda t: bad(t, rank=t["rank"].replace(2, 1)).drop(columns="score"), "user '1000' has rank 1 twice .row 0, 1"),
    "gap": (lambda t: t[t["rank"] != 3].drop(columns="score"), "user '1000' has no rank 3 but a rank 4 .*rank anew"),
    "some from 0": (
        lambda t: bad(t, rank=t["rank"] - (t["user_id"] > 1005)).drop(columns="score"),
        "begins at rank 1: every|begins at rank 0",
    ),
    "half a rank": (lambda t: bad(t, rank=t["rank"] + 0.5).drop(columns="score"), "1,200 ranks are not whole numbers"),
    "nan score": (lambda t: bad(t, score=t["score"].where(t["rank"] != 2)), "60 scores in column score of .* are no numbers .*row 1, 21"),
    "no order": (lambda t: t[["user_id", "item_id"]], "neither a rank nor a score"),
    "two orders": (lambda t: bad(t, score=-t["score"]), "tell two orders, first for user '1000'"),
    "no item id": (lambda t: bad(t, item_id=t["item_id"].where(t["rank"] != 1)), "60 rows of DataFrame have no item id: row 0, 20"),
    "strange item": (
        lambda t: t.replace({"item_id": {t["item_id"].iloc[0]: 9999}}),
        "1 of its .* items are not in DataFrame .such as '9999'",
    ),
    "strange users": (
        lambda t: bad(t, user_id=t["user_id"] - 999),
        "none of its 60 users is among the 60 test users .ids there look like '1'",
    ),
    "no user column": (lambda t: t.rename(columns={"user_id": "who"}), r"no column with a usual name for the user.*in read_lists\("),
    "empty": (lambda t: t.head(0), "holds no recommendation"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_one_clear_error(rec, parts, case):
    change, why = ERRORS[case]
    with pytest.raises(ValueError, match=why):
        evaluate(change(written(rec, parts, 20)), parts)


def test_what_lists_cannot_answer(rec, parts, tmp_path):
    table = written(rec, parts, 10)
    report = evaluate(table, parts)
    assert not any(name.endswith("@20") for name in report.row()["metrics"])
    for ask in (lambda: report.user_values("ndcg@20"), lambda: report.user_values("mrr")):
        with pytest.raises(ValueError, match="lists that are known to place 10"):
            ask()
    with pytest.raises(ValueError, match="give ks=.10,."):
        evaluate(table, parts, ks=(50,))
    with pytest.raises(ValueError, match="'far' asks where a target stands behind the lists' last place, 10"):
        evaluate(table, parts, metrics={"far": lambda ranks: np.minimum(ranks.rank, 100)})
    with pytest.raises(ValueError, match="lists answer one part"):
        evaluate(table, parts, part=("valid", "test"))
    with pytest.raises(ValueError, match="asks a user several times"):
        evaluate(table, split(parts.events, "last_n", n=2))
    report.save(tmp_path)
    again = read_report(tmp_path)
    assert again.depth() == 10 and again.row() == report.row()
    with pytest.raises(ValueError, match="known to place 10"):
        again.user_values("recall@11")


def test_a_metric_that_is_nowhere_is_refused_before_ranking(rec, parts):
    for metric, why in {
        (lambda ranks: np.full(len(ranks), np.nan)): "is NaN for every target",
        (lambda ranks: ranks.rank): "is infinite",
        (lambda ranks: recall(ranks, 5).mean()): "one number a target",
    }.items():
        for given in (rec, written(rec, parts, 20)):
            with pytest.raises(ValueError, match=why):
                evaluate(given, parts, metrics={"mine": metric})
    with pytest.raises(ValueError, match="would hide .*'my_mrr@5'"):
        evaluate(rec, parts, metrics={"mrr@5": lambda ranks: recall(ranks, 5)})


# side by side
def test_tables_are_compared_as_reports_are(rec, parts, tmp_path):
    table = written(rec, parts, 60)
    table.to_parquet(tmp_path / "lists.parquet")
    popular = fit(parts, popularity(), verbose=False)
    inside = compare({"noise": evaluate(rec, parts), "popularity": popular}, metrics=("ndcg@10", "recall@20"), parts=parts)
    for given in (table, tmp_path / "lists.parquet", str(tmp_path / "lists.parquet"), [table]):
        found = compare({"noise": given, "popularity": popular}, metrics=("ndcg@10", "recall@20"), parts=parts)
        pd.testing.assert_frame_equal(found.tests, inside.tests, rtol=0, atol=1e-9)
        pd.testing.assert_frame_equal(found.models, inside.models, rtol=0, atol=1e-9)
        pd.testing.assert_frame_equal(found.slices(), inside.slices(), rtol=0, atol=1e-9)
    assert compare({"noise": table, "popularity": popular}, parts=parts).metrics == ("ndcg@10", "recall@10", "mrr@10")
    assert {line.name for line in found.trade_off("novelty@10").data} == {"Pareto front", "models"}
    with pytest.raises(ValueError, match="noise: these ranks are of lists that are known to place 60"):
        compare({"noise": table, "popularity": popular}, metrics="mrr", parts=parts)
    with pytest.raises(ValueError, match=r"compare\(..., parts=parts\)"):
        compare({"noise": table, "popularity": inside.runs["popularity"][0].report})


def test_the_pareto_front_knows_where_less_is_better(rec, parts):
    found = compare({"noise": rec, "popularity": fit(parts, popularity(), verbose=False)}, parts=parts)
    front = lambda *pair, **how: {tuple(np.round(point, 9)) for point in zip(*(found.trade_off(*pair, **how).data[0][end] for end in "xy"))}
    ends = {name: {m: found._mean_of(name, m)["mean"] for m in ("coverage@10", "gini@10", "novelty@10")} for name in found.names}
    best = {(max(of["coverage@10"] for of in ends.values()), min(of["gini@10"] for of in ends.values()))}
    assert front("coverage@10", "gini@10") == {tuple(np.round(point, 9)) for point in best}
    assert len(front("coverage@10", "novelty@10", less=("novelty@10",))) >= 1


def test_real_lists_of_a_real_split(capsys):
    parts = split(load_dataset("ml-latest-small"))
    rec = fit(parts, popularity(), verbose=False)
    inside, outside = evaluate(rec, parts), evaluate(written(rec, parts, 100), parts)
    assert {"ndcg@20", "diversity@10", "calibration@10"} <= same(inside, outside, "drop")
    assert replace(outside, model=inside.model).data == inside.data


def test_sampled_candidates_leave_a_trace(parts, capsys):
    rng, items = np.random.default_rng(0), parts.events.items.index.to_numpy()
    lists = [np.append(rng.choice(np.setdiff1d(items, [items[target]]), 19, replace=False), items[target]) for target in parts.test.targets]
    table = pd.DataFrame({"user": np.repeat(parts.test.users, 20), "item": np.concatenate(lists), "score": rng.random(1200)})
    report = evaluate(read_lists(table, seen="keep"), parts)
    assert "⚠ every target stands in its list" in capsys.readouterr().out and "⚠ rankings of sampled candidates" in repr(report)
