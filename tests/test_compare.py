"""Comparisons: honesty about differences, of made-up ranks and of real runs, whose folders tell what was set and how it went."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import restamp
from test_evaluate import DATA, made_up, places

from itemlm.core import file_hash
from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.evaluation.compare import Comparison, comparable, compare
from itemlm.evaluation.report import evaluate
from itemlm.metrics.ranks import ndcg, target_ranks
from itemlm.models.counting import popularity
from itemlm.models.item_lm import tiny
from itemlm.runs.folder import sealed
from itemlm.serving.recommender import load
from itemlm.training.trainer import fit


# ---- made-up ranks
def test_the_same_model_twice_is_no_difference():
    one = made_up(places(np.random.default_rng(0)))
    found = compare({"old": one, "new": one, "newer": one})
    same, level = "{} (400 users; difference 0.0000 to 0.0000)".format, "0.0000 to 0.0000"
    told = {name: {found.verdict(name, metric) for metric in found.metrics} for name in ("old", "new", "newer")}
    assert told["new"] == {f"not told apart from {same('old')}, newer ({level})"}
    assert told["newer"] == {f"not told apart from {same('old')}, new ({level})"}
    assert (found.tests["p_holm"] == 1).all() and told["old"] == {f"not told apart from {same('new')}, newer ({level})"}


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
        wrong += (found.tests["p_holm"] < 0.05).any()
    assert wrong / n <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / n)


@pytest.mark.parametrize(
    "what, named",
    [
        (dict(seen="drop", candidates="100 random"), "candidates: all .a, c., 100 random .b."),
        (dict(split="global_time", cuts=["2010"]), "split: leave_one_out .a, c., global_time .b.; cuts: not stated .a, c."),
        (dict(data=DATA | {"fingerprint": "b" * 32}), "data: made up aaaaaaaa .a, c., made up bbbbbbbb .b."),
    ],
)
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
    with pytest.raises(ValueError, match="c cannot be compared .no run.: the folder is not there"):
        compare({"a": tmp_path / "a", "c": tmp_path / "c"})
    (tmp_path / "c").mkdir()
    shutil.copy(tmp_path / "a/metrics.json", tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="has no per_user.parquet"):
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


def test_what_was_not_told_apart_may_be_equivalent():
    "Only the whole interval inside the margin says so, and a difference that was found is still said to be one."
    rng = np.random.default_rng(0)
    ranks = places(rng, 4000)
    moved = np.where(rng.random(4000) < 0.02, np.maximum(ranks + rng.choice([-1, 1], 4000), 1), ranks)
    reports = {"a": made_up(ranks), "b": made_up(moved)}
    gap = compare(reports, metrics="ndcg@10", baseline="a").against("b", "a", "ndcg@10")
    widest = max(-gap["lo"], gap["hi"])
    verdict = lambda margin: compare(reports, metrics="ndcg@10", baseline="a", margin=margin).verdict("b")
    assert verdict(None).startswith("not told apart from a (4,000 users; difference ") and verdict(widest * 0.9) == verdict(None)
    wide = round(widest * 1.1, 6)
    assert verdict(wide).startswith(f"equivalent within ±{wide:g} to a (4,000 users; difference ")
    ahead = {"a": made_up(ranks), "b": made_up(np.maximum(ranks - 1, 1))}
    assert compare(ahead, metrics="ndcg@10", baseline="a", margin=0.5).verdict("b") == "ahead of a (equivalent within ±0.5)"
    with pytest.raises(ValueError, match="margin=-0.1 must be above 0"):
        compare(reports, margin=-0.1)


def test_one_seed_is_said_to_be_one():
    rng = np.random.default_rng(0)
    learnt, counted = {"class": "x:Net", "parameters": 9, "config": {}}, {"class": "x:Counts", "parameters": 0, "config": {}}
    many = [replace(made_up(places(rng)), model=learnt) for _ in range(2)]
    alone, plain = replace(made_up(places(rng)), model=learnt), replace(made_up(places(rng)), model=counted)
    found = compare({"seeds": many, "alone": alone, "plain": plain})
    assert "one seed of alone: seed-to-seed spread unknown, and outside the tests, which are over users" in found.footer
    assert "one seed" not in compare({"seeds": many, "plain": plain}).footer
    assert "over users" in compare({"seeds": many, "plain": plain}).footer


def test_one_number_has_one_interval():
    "That of the report, whatever its seed; with several seeds, over users, of each user's mean."
    rng = np.random.default_rng(0)
    ranks = [places(rng) for _ in range(3)]
    values = made_up(ranks[0]).user_values("mrr").to_numpy()
    told = {"mean": values.mean(), "lo": values.mean() - 0.012, "hi": values.mean() + 0.034}
    one = replace(made_up(ranks[0]), seed=5)
    one.results[0]["metrics"]["mrr"] = told
    found = compare({"one": one, "two": [made_up(ranks[1]), made_up(ranks[2])]}, metrics="mrr").models.set_index("model")
    assert found.loc["one", ["mean", "lo", "hi"]].to_dict() == told
    each = [made_up(r).user_values("mrr").to_numpy() for r in ranks[1:]]
    half = 1.96 * np.mean(each, axis=0).std() / np.sqrt(400)
    row = found.loc["two"]
    assert row["hi"] - row["mean"] == pytest.approx(half, rel=0.25) and half < 0.9 * 1.96 * each[0].std() / np.sqrt(400)


def test_own_metrics_are_compared(tmp_path):
    rng = np.random.default_rng(0)
    reports = {name: made_up(places(rng)) for name in "ab"}
    for shift, report in enumerate(reports.values()):
        report.per_user["mine"] = rng.random(400) + shift
        report.save(tmp_path / "ab"[shift])
    found = compare({name: tmp_path / name for name in "ab"}, metrics="mine")
    assert found.verdict("b") == "higher than all others" and found.against("b", "a", "mine")["difference"] == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="no metric 'yours' in this report; besides those of ranks there are mine"):
        compare({name: tmp_path / name for name in "ab"}, metrics="yours")


def test_all_p_values_are_corrected_and_say_so():
    rng = np.random.default_rng(0)
    found = compare({name: made_up(places(rng)) for name in "abcd"})
    page, plain = found._repr_html_(), found.to_frame()
    assert "p (Holm)" in page and "Holm-corrected (18 tests, all pairs on every metric)" in page and ">p<" not in page
    shown = [f"{p:.3f}" for p in plain.query("metric == 'ndcg@10'")["p_holm"].dropna()]
    assert [row[-1] for row in found.table().rows if row[-1]] == shown


def test_an_interval_beside_a_corrected_test_has_its_p_value():
    "An interval stands for one comparison: where it leaves 0 out and the corrected test does not reject, the words say why."
    rng = np.random.default_rng(0)
    ranks = places(rng, 1000)
    near = made_up(np.where(rng.random(1000) < 0.06, np.maximum(ranks - 1, 1), np.where(rng.random(1000) < 0.04, ranks + 1, ranks)))
    found = compare({"a": made_up(ranks), "b": near} | {name: made_up(places(rng, 1000)) for name in "cdefgh"}, metrics="ndcg@10")
    test = found.against("b", "a", "ndcg@10")
    assert test["lo"] > 0 and test["p"] < 0.05 < test["p_holm"]
    assert f"a ({test['lo']:+.4f} to {test['hi']:+.4f}; p {test['p_holm']:.3f} after Holm" in found.verdict("b")


def test_kept_figures_open_again():
    rng = np.random.default_rng(0)
    found = compare({name: made_up(places(rng)) for name in "abc"}, margin=0.01)
    again = Comparison.from_dict(json.loads(json.dumps(found.to_dict())))
    assert [again.verdict(name) for name in again.names] == [found.verdict(name) for name in found.names]
    assert again._repr_html_() == found._repr_html_() and len(again.forest().data) == 3
    for asked in (again.settings, again.curves, again.slices, again.moved_users, again.rank_map, again.top10):
        with pytest.raises(ValueError, match="only its figures were kept"):
            asked()


def test_reports_alone_say_what_is_missing():
    rng = np.random.default_rng(0)
    found = compare({name: made_up(places(rng)) for name in "ab"})
    for asked, told in (
        (found.settings, "settings are read from run folders, and none was given .a, b."),
        (found.curves, "curves are read from run folders"),
        (found.slices, "says nothing of its targets but their ranks"),
    ):
        with pytest.raises(ValueError, match=told):
            asked()
    assert sum(found.top10().values()) == 400 and list(found.sections()) == ["What came out", "Users won and lost"]
    three = compare({name: made_up(places(rng)) for name in "abc"})
    with pytest.raises(ValueError, match="name two of the models a, b, c"):
        three.moved_users()
    with pytest.raises(ValueError, match="'x' is not among the models a, b, c"):
        three.moved_users("a", "x")


# ---- runs


@pytest.fixture(scope="module")
def parts():
    return split(load_dataset("ml-latest-small"))


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    "Two tiny runs that differ in seed and epochs, and popularity; never changed by a test."
    folder, threads = tmp_path_factory.mktemp("ledger"), torch.get_num_threads()
    torch.set_num_threads(1)  # faster for so small a model
    for name, seed, epochs in (("first", 0, 1), ("second", 1, 2)):
        rec = fit(parts, tiny(seed=seed, epochs=epochs), out_dir=folder / name, device="cpu", verbose=False)
        evaluate(rec, parts, seed=seed).save(folder / name, params={"preset": "tiny", "seed": seed})
    popular = fit(parts, popularity(), verbose=False)
    popular.save(folder / "popularity")
    evaluate(popular, parts).save(folder / "popularity")
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    "A copy of the runs to do harm to."
    return shutil.copytree(trained, tmp_path / "runs")


def two(first, second, **how) -> Comparison:
    "The second run beside the first."
    return compare([first, second], baseline=None if isinstance(first, str) else first.name, **how)


@pytest.fixture(scope="module")
def both(trained):
    return two(trained / "first", trained / "second")


def page_of(found: Comparison) -> str:
    "A page about two runs, without its figures."
    shown = ((head, part) for head, some in found.sections().items() for part in some if hasattr(part, "_repr_html_"))
    return "".join(f"<h4>{head}</h4>{part._repr_html_()}" for head, part in shown if "plotly" not in type(part).__module__)


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
    "run.json of something else": (write("run.json", '{"name": "experiment"}'), "no run", "no run.json of itemlm"),
    "odd types in run.json": (change(identity=5), "damaged", ""),
    "metrics cut short": (cut("metrics.json"), "damaged", "metrics.json is damaged"),
    "metrics without results": (write("metrics.json", '{"results": [{}]}'), "damaged", "KeyError"),
    "log of other things": (write("log.jsonl", '{"step": 3}\n'), "damaged", "KeyError"),
    "histories cut short": (cut("histories.parquet"), "damaged", "histories.parquet is damaged"),
    "ranks cut short": (cut("per_user.parquet"), "damaged", "per_user.parquet is damaged"),
    "tokenizer missing": (lambda f: (f / "tokenizer.json").unlink(), "damaged", "tokenizer.json missing"),
    "emptied": (lambda f: [path.unlink() for path in f.iterdir()], "no run", "no run.json"),
    "newer format": (change(format=99, versions={"itemlm": "7.1"}), "another format", "run format 99.*version that wrote it, 7.1"),
}


@pytest.mark.parametrize("what", HARM)
def test_a_harmed_run_is_not_compared(runs, what):
    harm, state, reason = HARM[what]
    harm(runs / "second")
    restamp(runs / "second")
    with pytest.raises(ValueError, match=rf"second cannot be compared \({state}\).*{reason}"):
        two(runs / "first", runs / "second")
    with pytest.raises(ValueError, match=rf"second cannot be compared \({state}\)"):
        comparable(runs / "first", runs / "second")


def test_deleted_run(runs):
    shutil.rmtree(runs / "second")
    with pytest.raises(ValueError, match="second cannot be compared .no run.*deleted or renamed"):
        two(runs / "first", runs / "second")


def test_unfinished_run(parts, runs):
    rec = fit(parts, tiny(epochs=500), out_dir=runs / "going", device="cpu", max_minutes=0.06, verbose=False)
    with pytest.raises(ValueError, match="going has no test figures .in training: epoch"):
        two(runs / "first", runs / "going")
    assert "going has no test figures (in training" in comparable(runs / "first", runs / "going")
    found = two(runs / "first", runs / "going", mixed=True)
    assert found.settings().loc["epochs"].tolist() == [1, 500] and not len(found.tests)
    assert {trace.name for trace in found.curves().data} >= {"first", "going"}
    assert found.verdict("going") == "not comparable with first" and "no test figures" in found._repr_html_()
    with pytest.raises(ValueError, match="going has no test figures"):
        found.rank_map()
    evaluate(rec, parts).save(runs / "going")  # the clock ended it; its figures are figures
    assert comparable(runs / "first", runs / "going") == "" and len(two(runs / "first", runs / "going").tests) == 3


def test_figures_of_other_weights_are_not_compared(parts, runs):
    "A run that was trained again after it was evaluated has no figures yet."
    log = (runs / "second/log.jsonl").read_text().splitlines()
    (runs / "second/log.jsonl").write_text("\n".join([*log, json.dumps(json.loads(log[-1]) | {"epoch": 3.0, "seconds": 1e6})]) + "\n")
    saved = json.loads((runs / "second/metrics.json").read_text())
    (runs / "second/metrics.json").write_text(json.dumps(sealed(saved | {"seconds": {"fit": 1.0}})))
    restamp(runs / "second")
    with pytest.raises(ValueError, match="second has no test figures .finished: metrics.json was made after"):
        two(runs / "first", runs / "second")


def test_names_are_shown_as_text(runs):
    (runs / "first").rename(runs / "<b>bold<b>")
    page = page_of(two(runs / "<b>bold<b>", runs / "second"))
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page


def test_settings_that_differ(both, trained, runs):
    settings = both.settings()
    assert settings.columns.tolist() == ["first", "second"] and set(settings.index) == {"seed", "epochs"}
    assert settings.loc["epochs"].tolist() == [1, 2]
    stated = {"dataset": "ml-latest-small", "model": "item_lm", "preset": "tiny", "protocol": "leave_one_out", "seed": 0}
    restamp(runs / "first", params=stated)
    assert set(two(runs / "first", runs / "second").settings().index) == {"seed", "epochs"}  # the other states no more
    shutil.rmtree(runs / "second")
    shutil.copytree(runs / "first", runs / "second")
    restamp(runs / "second", params=stated | {"preset": "small"})
    assert set(two(runs / "first", runs / "second").settings().index) == {"preset"}
    other = two(trained / "first", trained / "popularity").settings()
    assert other.loc["class"].tolist() == ["itemlm.models.item_lm:ItemLM", "itemlm.models.counting:Popularity"]


def test_three_runs_beside_one_another(trained):
    found = compare([trained / name for name in ("first", "second", "popularity")])
    assert found.settings().columns.tolist() == ["first", "second", "popularity"] and found.names[0] == "second"
    assert {trace.name for trace in found.curves().data if "kept" not in trace.name and "loss" not in trace.name} == {"first", "second"}
    slices = found.slices()
    assert set(slices["model"]) == {"first", "second", "popularity"} and slices["p"].notna().sum() == 2 * len(slices) / 3
    assert found.top10("popularity", "second") == two(trained / "popularity", trained / "second").top10()


def test_curves(both, trained):
    by_name = {trace.name: trace for trace in both.curves().data}
    log = [json.loads(line) for line in (trained / "second/log.jsonl").read_text().splitlines()]
    assert list(by_name["second"].y) == [row["ndcg@10"] for row in log]
    assert list(by_name["second: loss"].y) == [row["loss"] for row in log]
    assert by_name["first"].line.color != by_name["second"].line.color
    assert (
        by_name["second"].yaxis != by_name["second: loss"].yaxis and by_name["second"].xaxis != by_name["second: loss"].xaxis
    )  # two panels


def test_users_from_scratch(both, trained, parts):
    "Ranks, wins and the difference, computed anew from the models."
    ranks = {}
    for name in ("first", "second"):
        rec = load(trained / name, "cpu")
        histories, targets = rec.part_columns(parts, parts.test)
        seen = replace(histories, values=histories.values - rec.tokenizer.n_special)
        ranks[name] = target_ranks(rec.scores(histories), targets, seen)
    a, b = ranks["first"].rank, ranks["second"].rank
    moved = both.moved_users()
    users = moved.droplevel("target").loc[parts.test.users]
    np.testing.assert_array_equal(users["first"], a)
    np.testing.assert_array_equal(users["second"], b)
    assert both.top10() == {
        "both": ((a <= 10) & (b <= 10)).sum(),
        "won": ((a > 10) & (b <= 10)).sum(),
        "lost": ((a <= 10) & (b > 10)).sum(),
        "neither": ((a > 10) & (b > 10)).sum(),
    }
    assert moved["gain"].iloc[0] == np.log2(a / b).max() and moved["gain"].iloc[-1] == np.log2(a / b).min()
    gap = ndcg(ranks["second"], 10) - ndcg(ranks["first"], 10)
    row = both.against("second", "first", "ndcg@10")
    assert row["difference"] == pytest.approx(gap.mean(), abs=1e-12)
    half = 1.96 * gap.std() / np.sqrt(len(gap))  # the normal interval, which the bootstrap's must be near
    assert row["hi"] - row["difference"] == pytest.approx(half, rel=0.25)
    assert (row["p"] < 0.05) == (abs(gap.mean()) > half) or abs(abs(gap.mean()) - half) < 0.2 * half


def test_map_counts_every_user(both, parts):
    drawn, moved = both.rank_map(), both.moved_users()
    counts = [[int(n or 0) for n in row] for row in drawn.data[0].text]
    assert np.sum(counts) == len(parts.test)
    x, y = moved["first"], moved["second"]
    column = list(drawn.layout.xaxis.ticktext).index("6–10")
    row = list(drawn.layout.yaxis.ticktext).index("21–50")
    assert counts[row][column] == ((x > 5) & (x <= 10) & (y > 20) & (y <= 50)).sum()


def test_turned_round(both, trained):
    back = two(trained / "second", trained / "first")
    assert (back.top10()["won"], back.top10()["lost"]) == (both.top10()["lost"], both.top10()["won"])
    mine, theirs = both.beside()["difference", "mean"], back.beside()["difference", "mean"]
    np.testing.assert_allclose(theirs.dropna(), -mine.dropna(), atol=1e-12)
    np.testing.assert_allclose(both.tests["p"], back.tests["p"])
    np.testing.assert_allclose(both.tests["p_holm"], back.tests["p_holm"])


def test_a_page_has_one_answer(both):
    "The same difference has the same interval wherever it stands, and only the corrected test has a p-value."
    beside = both.beside()
    for metric in both.metrics:
        test, row = both.against("second", "first", metric), beside.loc[metric]
        assert [row["difference", end] for end in ("mean", "lo", "hi")] == [test[end] for end in ("difference", "lo", "hi")]
        told = both.models[(both.models["model"] == "second") & (both.models["metric"] == metric)].iloc[0]
        assert [row["second", end] for end in ("mean", "lo", "hi")] == [told[end] for end in ("mean", "lo", "hi")]
    page = page_of(both)
    assert "p (Holm)" in page and ">p<" not in page and "no difference" not in page


def test_slices_add_up(both, parts):
    slices = both.slices()
    for name in ("first", "second"):
        known = slices[(slices["slice"] == "history length") & (slices["model"] == name)]
        whole = both.models[(both.models["model"] == name) & (both.models["metric"] == "ndcg@10")]["mean"].iloc[0]
        assert known["users"].sum() == parts.test.n_users
        assert (known["mean"] * known["users"]).sum() / parts.test.n_users == pytest.approx(whole, abs=1e-9)
    total = (known["difference"] * known["users"]).sum() / parts.test.n_users
    assert total == pytest.approx(both.against("second", "first", "ndcg@10")["difference"], abs=1e-9)
    assert "target's count in training" in set(slices["slice"])
    assert "p (Holm)" in both.slice_table().head and f"over the {slices['p'].notna().sum()} tests" in both.slice_table().note
    report = both.runs["second"][0].report.slices.query("seen == 'drop' and metric == 'ndcg@10'").set_index(["slice", "group"])
    mine = slices[slices["model"] == "second"].set_index(["slice", "group"])
    pd.testing.assert_series_equal(mine["mean"], report["mean"].loc[mine.index], check_names=False)


def test_reports_without_slices(runs):
    "The groups are made of what is known of each target, not read from metrics.json."
    before = two(runs / "first", runs / "second").slices()
    for name in ("first", "second"):
        path = runs / name / "metrics.json"
        path.write_text(json.dumps(sealed({key: value for key, value in json.loads(path.read_text()).items() if key != "slices"})))
        restamp(runs / name)
    pd.testing.assert_frame_equal(two(runs / "first", runs / "second").slices(), before)


def test_several_targets_a_user(tmp_path):
    last = split(load_dataset("ml-latest-small"), "last_n", n=2)
    popular = fit(last, popularity(), verbose=False)
    for name in ("a", "b"):
        popular.save(tmp_path / name)
        evaluate(popular, last).save(tmp_path / name)
    same = two(tmp_path / "a", tmp_path / "b")
    assert len(same.moved_users()) == len(last.test) > last.test.n_users
    assert same.top10()["won"] == same.top10()["lost"] == 0 and same.against("b", "a", "ndcg@10")["p"] == 1
    lengths = same.slices().query("slice == 'history length' and model == 'a'")
    assert lengths["users"].sum() >= last.test.n_users and (lengths["users"] <= last.test.n_users).all()  # a user may be in two groups
    assert "Nothing differs" in page_of(same)


def test_other_data_and_other_protocol(runs):
    for name, events, how in (
        ("ten-core", load_dataset("ml-latest-small", k_core=10), "leave_one_out"),
        ("by-time", load_dataset("ml-latest-small"), "global_time"),
    ):
        there = split(events, how)
        popular = fit(there, popularity(), verbose=False)
        popular.save(runs / name)
        evaluate(popular, there).save(runs / name)
    for other, why in (("ten-core", "different data"), ("by-time", "'global_time' in by-time")):
        reason = comparable(runs / "first", runs / other)
        assert why in reason and "\n" not in reason
        with pytest.raises(ValueError, match="not measured alike"):
            two(runs / "first", runs / other)
        found = two(runs / "first", runs / other, mixed=True)
        assert len(found.curves().data) and len(found.settings()) and not len(found.tests)
        for asked in (found.moved_users, found.rank_map, found.beside):
            with pytest.raises(ValueError, match=why):
                asked()
        assert set(found.slices()["model"]) == {"first"}
        page = page_of(found)
        assert "Not compared." in page and "Learning curves" in found.sections() and "Users won and lost" not in page


def test_other_user_ids(runs):
    path = runs / "second/per_user.parquet"
    table = pd.read_parquet(path)
    table.assign(user="u" + table["user"]).to_parquet(path)
    report = json.loads((runs / "second/metrics.json").read_text()) | {"per_user": file_hash(path)}
    (runs / "second/metrics.json").write_text(json.dumps(sealed(report)))
    restamp(runs / "second")
    assert "other ids" in comparable(runs / "first", runs / "second")
    with pytest.raises(ValueError, match="users are in only one of 'first' and 'second'"):
        two(runs / "first", runs / "second")


def test_same_run_and_same_name(runs):
    with pytest.raises(ValueError, match="the same run: choose two"):
        two(runs / "first", runs / "." / "first")
    with pytest.raises(ValueError, match="the same run: choose two"):
        compare({"seeds": [runs / "first", runs / "first"], "other": runs / "second"})
    shutil.copytree(runs / "second", runs / "study/first")
    found = compare([runs / "first", runs / "study/first"])
    assert list(found.runs) == ["runs/first", "study/first"]


def test_page_in_a_browser(both, browser):
    "What folds opens, and the page says who won."
    page = browser.new_page()
    page.set_content(f"<div id=here></div>{page_of(both)}")
    assert page.get_by_text("Won most").count() == 1 and page.get_by_text("all metrics, seen items: drop").count() == 1
    assert not page.get_by_text("recall@20").first.is_visible()
    page.get_by_text("all metrics, seen items: drop").click()
    assert page.get_by_text("recall@20").first.is_visible()
    page.close()
