"""Mistakes that were found in published code, each with the test that would catch it here.

A number is the mistake's; some are caught in another file and not twice.

 #  mistake                                             caught by
 1  an unstable sort picks another last item            test_data.py::test_equal_times_keep_the_order_of_the_file, and
                                                        test_01_unstable_sort on a table large enough for a quicksort
 2  ties broken by item id                              test_02_ties_by_id; test_doctor.py on published sets
 3  ids given from data that hold the test items        test_03_ids_from_test_data, test_property_random_test_items
 4  ties in scores broken in favour of the target       test_04_ties_in_scores; test_protocols.py::test_full_ranking
 5  NaN ranks first                                     test_05_nan_scores
 6  NDCG that cannot reach 1                            test_06_ndcg_of_an_oracle_is_one
 7  sampled metrics reported as if they were full ones  test_protocols.py::test_sampled_is_labelled_and_as_good_as_expected,
                                                        test_07_nothing_is_sampled_unasked
 8  sampled candidates twice, or known to the user      test_08_sampled_candidates
 9  the test part chooses the weights                   test_09_selection_on_test
10  seen items masked in the window only; repeats       test_10_seen_items
11  padding is a class, or is attended                  test_11_padding
12  a step sees the future                              test_12_future
13  leave-one-out asks about the past                   test_doctor.py::test_same_as_one_at_a_time counts it,
                                                        test_13_leave_one_out_mixes_time
14  several workers: users twice, means of means        test_14_several_workers
15  the history lacks the valid item, or its newest     test_15_test_history, test_15_long_history
16  negatives that are the target; an item never drawn  test_16_negatives
17  a gain smaller than the noise                       test_17_noise_is_no_gain
18  means of unequal batches; users dropped silently    test_18_every_user_counts_once
19  k larger than the catalogue                         test_19_k_beyond_the_catalogue

The properties at the end hold for every model: item ids, order of users, size of a batch and side of the padding change no
metric; uniform scores and an oracle get what they must; test items teach nothing.
"""

import copy
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from itemlm.core import Ragged
from itemlm.data.datasets import load_dataset
from itemlm.data.doctor import doctor
from itemlm.data.events import Events, read_events
from itemlm.data.split import Part, Split, split
from itemlm.data.tokenizer import MASK, PAD, ItemTokenizer, Sequences
from itemlm.evaluation.protocols import protocols, sample_candidates
from itemlm.evaluation.report import evaluate, user_metrics
from itemlm.metrics.ranks import ndcg, recall
from itemlm.metrics.statistics import paired_difference
from itemlm.models.base import SequenceModel
from itemlm.models.counting import item_knn, markov, popularity, sequential_knn
from itemlm.models.item_lm import ItemLMConfig, tiny
from itemlm.models.losses import sample_negatives
from itemlm.models.neural import HSTU, BERT4Rec, GRU4Rec, SASRec, bert4rec, gru4rec, hstu, sasrec, sasrec_bce
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import fit

SPECIAL = ItemTokenizer.n_special


class Scripted(SequenceModel):
    "A model whose scores a function of the histories decides; it remembers what it was asked."

    class Config(SequenceModel.Config):
        max_len: int = 20

    def __init__(self, config, function=None):
        super().__init__(config)
        self.function, self.asked = function, []

    def scores(self, histories):
        self.asked += [list(row) for row in histories]
        return self.function(histories)


def scripted(parts: Split, function, **how) -> Recommender:
    tokenizer = ItemTokenizer.from_split(parts)
    model = Scripted(Scripted.Config(n_items=tokenizer.n_items, **how), lambda rows: function(rows, tokenizer.n_items))
    return Recommender.from_split(model, tokenizer, parts)


def uniform(rows, n_items):
    return torch.zeros(len(rows), n_items)


def hashed(rows, n_items):
    "Whole numbers that depend on the last three items of each history: exact whatever the batch, with a few ties."
    keys = torch.tensor([sum(int(token) * 31**n for n, token in enumerate(row[-3:])) for row in rows])
    return ((keys[:, None] * 7919 + torch.arange(n_items) * 104729) % 1009).float()


def oracle(parts: Split) -> Recommender:
    "Knows what each history is followed by."
    rec = scripted(parts, uniform)
    answers = {}
    for part in (parts.valid, parts.test):
        histories, targets = rec.part_columns(parts, part)
        answers |= {tuple(row[row >= SPECIAL]): max(int(target), 0) for row, target in zip(histories, targets)}
    rec.model.function = lambda rows: torch.eye(rec.n_items)[[answers[tuple(row)] for row in rows]]
    return rec


def table(n_users=60, length=12, n_items=50, days=9, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(1, days, (n_users, length)), axis=1).ravel()
    items = (n_items * rng.random(n_users * length) ** 2).astype(int)
    return pd.DataFrame({"user": np.repeat(np.arange(n_users), length), "item": items, "time": times})


@pytest.fixture(scope="module")
def parts() -> Split:
    return split(read_events(table(), name="random", duplicates="keep"))


@pytest.fixture(scope="module")
def films() -> Split:
    "150 people of MovieLens."
    events = load_dataset("ml-latest-small")
    some = events.to_frame()[: events.sequences.offsets[150]]
    return split(read_events(some, name="150 people", k_core=5))


MODELS = {"ItemLM": tiny(epochs=2), "popularity": popularity(), "Markov": markov(), "item-kNN": item_knn(),
          "sequential item-kNN": sequential_knn(),
          "GRU4Rec": gru4rec(epochs=1), "SASRec": sasrec(epochs=1), "SASRec, BCE": sasrec_bce(epochs=1),
          "BERT4Rec": bert4rec(epochs=1), "HSTU": hstu(epochs=1)}  # fmt: skip


def trained(parts: Split, name: str) -> Recommender:
    return fit(parts, MODELS[name], device="cpu", verbose=False)


@pytest.fixture(scope="module", params=MODELS)
def named(request, parts) -> tuple[str, Recommender]:
    "Every model of this project, trained for a moment."
    return request.param, trained(parts, request.param)


@pytest.fixture(scope="module")
def precise(named) -> Recommender:
    "Networks in float64, where sums in another order differ far behind the digits that decide a rank; counts as they are."
    rec = named[1]
    return replace(rec, model=copy.deepcopy(rec.model).double()) if any(True for _ in rec.model.parameters()) else rec


def means(rec: Recommender, parts: Split, **how) -> pd.DataFrame:
    return evaluate(rec, parts, **how).to_frame().xs("mean", level=2)


# --- the data --------------------------------------------------------------------------------------------------------


def test_01_unstable_sort():
    "An unstable sort keeps the order of equal times in small tables only; this one is large, and its order is not that of the ids."
    log = pd.DataFrame({"user": 1, "item": np.random.default_rng(0).permutation(5000), "time": np.repeat([3, 1, 2], [2000, 1000, 2000])})
    events = read_events(log, name="one evening")
    kept = log.sort_values("time", kind="stable").item.astype(str)
    assert list(events.items.index[events.sequences.values]) == list(kept)
    assert split(events).test.targets == events.items.index.get_loc(kept.iloc[-1])
    assert doctor(events)["targets decided by a tie"].value == 1


def test_02_ties_by_id():
    "Sorted by user, time, item, the next id is the higher one; in the file's own order it is not."
    log = table(n_users=200)
    by_id = doctor(read_events(log.sort_values(["user", "time", "item"]), name="by id", duplicates="keep"))["id order in ties"]
    as_found = doctor(read_events(log, name="as found", duplicates="keep"))["id order in ties"]
    assert by_id.value == 1 and by_id.matters and not as_found.matters and as_found.details["lo"] < 0.5 < as_found.details["hi"]


def test_03_ids_from_test_data(parts):
    "An item that occurs in valid or test alone is no token, whatever it is called."
    log = table()
    last = log.groupby("user").tail(2)
    log.loc[last.index, "item"] = 1000 + np.arange(len(last))
    held_out = split(read_events(log, name="new at the end", duplicates="keep"))
    tokenizer = ItemTokenizer.from_split(held_out)
    assert all(int(item) < 1000 for item in tokenizer.items)
    assert list(tokenizer.items) == list(held_out.events.items.index[pd.unique(held_out.train.values)])
    assert held_out.protocol["test_cold"] == len(held_out.test)


# --- the metrics -----------------------------------------------------------------------------------------------------


def test_04_ties_in_scores(parts):
    "A target first in the catalogue, or last, gets the same from a model that scores all the same."
    rec = scripted(parts, uniform)
    ranks = rec.rank_part(parts, "test", seen=("keep",))["keep"]
    assert set(ranks.rank[~ranks.missed]) == {(rec.n_items + 1) / 2}
    places = 1 / np.log2(2 + np.arange(10))
    for values, each in ((recall(ranks, 10), 10 / rec.n_items), (ndcg(ranks, 10), places.sum() / rec.n_items)):
        np.testing.assert_allclose(values[~ranks.missed], each)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_05_nan_scores(parts, bad):
    "Other libraries put a NaN first in the list; here it has no place at all."

    def broken(rows, n_items):
        scores = hashed(rows, n_items)
        scores[-1, n_items // 2] = bad
        return scores

    rec = scripted(parts, broken)
    with pytest.raises(ValueError, match="NaN or infinity.*diverged"):
        evaluate(rec, parts)
    with pytest.raises(ValueError, match="NaN or infinity.*diverged"):
        rec.topk([[rec.tokenizer.items[0]]], k=3)


def test_06_ndcg_of_an_oracle_is_one(parts):
    found = means(oracle(parts), parts, ks=(1, 5, 10)).loc["test", "keep"]
    reachable = 1 - parts.protocol["test_cold"] / len(parts.test)
    for name in ("ndcg@1", "ndcg@5", "ndcg@10", "recall@10", "mrr"):
        assert found[name] == pytest.approx(reachable)


def test_07_nothing_is_sampled_unasked(parts):
    "The report says that all items are candidates, and they are: of a uniform model the mean rank is the middle of all."
    report = evaluate(scripted(parts, uniform), parts)
    assert {row["protocol"]["candidates"] for row in report.results} == {"all"}
    rank = report.per_user.query("protocol == 'keep' and rank < inf")["rank"]
    assert rank.mean() == (len(parts.train_items()) + 1) / 2


def test_08_sampled_candidates():
    "Never an item the user has had at any time, valid and test targets included; none twice; few items left are no crash."
    rng = np.random.default_rng(0)
    known = Ragged.from_lists([list(rng.integers(-1, 30, n)) for n in range(1, 60)])
    for weights in (np.ones(30), rng.random(30) + 0.01):
        drawn = sample_candidates(known, weights, n=20)
        for row, had in zip(drawn, known):
            real = row[row >= 0]
            assert len(set(real)) == len(real) == min(20, 30 - len(set(had) - {-1})) and not set(real) & set(had)


def test_08_protocols_leave_out_the_whole_history(parts, monkeypatch):
    "What `protocols` hands to the sampler holds the history, the valid item, the target and what came later."
    asked = []

    def spy(known, *rest):
        asked.append(known)
        return sample_candidates(known, *rest)  # noqa: E702

    monkeypatch.setattr(sys.modules["itemlm.evaluation.protocols"], "sample_candidates", spy)
    rec = scripted(parts, hashed)
    protocols(rec, parts, tie_seeds=())
    whole = dict(zip(parts.events.users, rec.histories))
    for known, part in zip(asked[::2], (parts.test, split(parts.events, "global_time").test)):
        for user, columns in zip(part.users, known):
            assert list(columns + SPECIAL) == list(whole[user])


# --- selection and seen items ----------------------------------------------------------------------------------------


class Forbidden:
    "A test part that nobody may look at."

    def __getattribute__(self, name):
        raise AssertionError(f"training looked at the test part: {name}")


def test_09_selection_on_test(parts, named):
    "A model that cannot see the test part is the same model, and the weights kept are those of the best validation epoch."
    name, rec = named
    blind = trained(replace(parts, test=Forbidden()), name)
    assert losses(blind) == losses(rec)
    assert_same_weights(blind, rec)
    if rec.log:
        best = max(row["ndcg@10"] for row in rec.log)
        assert means(rec, parts, part="valid").loc[("valid", "drop"), "ndcg@10"] == pytest.approx(best)


def test_10_seen_items():
    "Dropped is the whole history, not what the model reads; a repeated target is then a miss, is counted, and can be kept."
    log = pd.DataFrame({"user": np.repeat([1, 2], 40), "item": [*range(38), 38, 0, *range(40)], "time": np.tile(np.arange(1, 41), 2)})
    again = split(read_events(log, name="again"))

    def newest_last(rows, n_items):
        return -torch.arange(n_items).float().expand(len(rows), -1)

    rec = scripted(again, newest_last, max_len=5)
    found = rec.rank_part(again, "test", seen=("drop", "keep", "window"), top_k=3)
    assert found["drop"].rank[0] == np.inf and found["keep"].rank[0] == found["window"].rank[0] == 1
    for row, history in zip(found["drop"].top, rec.part_columns(again, again.test)[0]):
        assert not set(row + SPECIAL) & set(history)
    assert all(row["protocol"]["targets_in_history"] == 1 for row in evaluate(rec, again).results)
    assert doctor(again)["targets in the history"].value == 0.5
    assert {row["protocol"]["seen"] for row in evaluate(rec, again).results} == {"drop", "keep"}


# --- the model -------------------------------------------------------------------------------------------------------

SIZE = {"n_items": 30, "width": 16, "layers": 2, "max_len": 10}
NETWORKS = {"ItemLM": ItemLMConfig(**SIZE), "ItemLM without positions": ItemLMConfig(**SIZE, position="none"),
            "ItemLM with learned positions": ItemLMConfig(**SIZE, position="learned", norm="layer", feed_forward="gelu", head="dot"),
            "GRU4Rec": GRU4Rec.Config(**SIZE), "SASRec": SASRec.Config(**SIZE), "HSTU": HSTU.Config(**SIZE),
            "BERT4Rec": BERT4Rec.Config(**SIZE)}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def network(request) -> torch.nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[request.param].build().double().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


def test_11_padding(network):
    "Histories of different length together score as each alone; padding has no column, and its vector plays no part."
    rng = np.random.default_rng(0)
    rows = [list(rng.integers(SPECIAL, 38, n)) for n in (1, 3, 10, 14, 2)]
    together = network.scores(Sequences.from_lists(rows))
    assert together.shape == (5, 30)
    for row, scores in zip(rows, together):
        torch.testing.assert_close(network.scores(Sequences.from_lists([row]))[0], scores)
    with torch.no_grad():
        network.embed_tokens.weight[PAD] += 100
    torch.testing.assert_close(network.scores(Sequences.from_lists(rows)), together)


def test_11_padding_is_no_target(network):
    tokens = torch.tensor([[9, 10, 11, 12], [9, 10, PAD, PAD], [9, PAD, PAD, PAD]])
    for _ in range(20):
        inputs, targets = network.training_pairs(tokens)
        assert ((targets == PAD) | (targets >= SPECIAL)).all() and not targets[inputs == PAD].any()


def test_12_future(network):
    "Another item at step t changes nothing before t and something from t on; what BERT4Rec has to guess it cannot see."
    tokens = torch.randint(SPECIAL, 38, (4, 10), generator=torch.Generator().manual_seed(0))
    inputs, targets = network.training_pairs(tokens)
    if isinstance(network, BERT4Rec):
        assert (targets > PAD).any() and torch.equal(inputs == MASK, targets > PAD) and torch.equal(torch.maximum(inputs, targets), tokens)
        return
    assert torch.equal(inputs, tokens[:, :-1]) and torch.equal(targets, tokens[:, 1:]), "each step guesses the item after it"
    before = network.encode(tokens)
    for step in range(10):
        other = tokens.clone()
        other[:, step] = (tokens[:, step] - SPECIAL + 7) % 30 + SPECIAL
        after = network.encode(other)
        torch.testing.assert_close(after[:, :step], before[:, :step])
        assert (after[:, step:] != before[:, step:]).any(-1).all()


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_13_leave_one_out_mixes_time():
    "Early birds are asked about a past that lies before most of what was learnt, under global time nobody is."
    early = table(n_users=20, days=5)
    late = table(n_users=40, days=5, seed=1).assign(user=lambda t: t.user + 100, time=lambda t: t.time + 100)
    events = read_events(pd.concat([early, late]), name="early and late", duplicates="keep")
    assert doctor(events)["targets older than half of training"].value == pytest.approx(20 / 60)
    by_time = split(events, "global_time", cuts=(102, 103))
    assert doctor(by_time)["targets older than half of training"].value == 0
    times = Ragged(events.times, events.sequences.offsets).take(np.isin(events.users, by_time.train_users)).head(by_time.train.lengths)
    assert times.values.max() < 102


def some_of(part: Part, rows: np.ndarray) -> Part:
    return Part(name=part.name, users=part.users[rows], histories=part.histories.take(rows), targets=part.targets[rows])


def test_14_several_workers(parts):
    "Two workers with unequal shares, joined by user, say what one says; the mean of their means does not."
    rec = scripted(parts, hashed)
    whole = rec.rank_part(parts, "test", seen=("drop",))["drop"]
    shares = np.arange(0, 17), np.arange(17, 60)
    halves = [rec.rank_part(parts, some_of(parts.test, rows), seen=("drop",))["drop"] for rows in shares]
    np.testing.assert_array_equal(np.concatenate([half.rank for half in halves]), whole.rank)
    per_user = evaluate(rec, parts).per_user
    assert not per_user.duplicated(["user", "part", "protocol"]).any() and len(per_user) == 2 * len(parts.test)
    assert np.mean([ndcg(half, 10).mean() for half in halves]) != pytest.approx(ndcg(whole, 10).mean(), rel=1e-3)


def test_15_test_history(parts):
    "Asked for the test item a model is given everything before it, the valid item last."
    rec = scripted(parts, hashed)
    rec.rank_part(parts, "test")
    whole = {tuple(row[:-1]) for row in rec.histories}
    known = {tuple(token for token in row if token >= SPECIAL) for row in whole}
    assert {tuple(row) for row in rec.model.asked} == known


def test_15_long_history(network):
    "Of more items than it can read a model reads the newest, not the oldest."
    long = list(np.random.default_rng(0).integers(SPECIAL, 38, 25))
    whole, newest, oldest = (network.scores(Sequences.from_lists([row])) for row in (long, long[-10:], long[:10]))
    torch.testing.assert_close(whole, newest)
    assert not torch.allclose(whole, oldest)


def test_16_negatives():
    "No negative is the target; every other item is drawn, the first and the last too, equally often."
    torch.manual_seed(0)
    targets = torch.tensor([0, 4, 9]).repeat(4000)
    drawn = sample_negatives(targets, 10, 9)
    assert not (drawn == targets[:, None]).any()
    for target in (0, 4, 9):
        counts = torch.bincount(drawn[targets == target].flatten(), minlength=10)
        assert counts[target] == 0
        np.testing.assert_allclose(np.delete(counts.numpy(), target) / 36_000, 1 / 9, atol=0.01)


def test_17_noise_is_no_gain():
    "Two models of the same quality differ in the mean and not in the test, except for one pair in twenty; a real gain is found."
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        same, better = (rng.random((2, 800)) < 0.1).astype(float), (rng.random(800) < 0.2).astype(float)
        found.append((paired_difference(*same, resamples=500).p, paired_difference(better, same[0], resamples=500).p))
    same, better = np.array(found).T
    assert (same < 0.05).mean() <= 0.11 and (better < 0.05).mean() > 0.95


def test_18_every_user_counts_once(parts):
    "The mean is over users, whatever batches they came in; a target that was never seen in training is a miss and counts."
    log = table()
    log.loc[log.groupby("user").tail(1).index[:15], "item"] = 999
    cold = split(read_events(log, name="cold", duplicates="keep"))
    rec = scripted(cold, hashed)
    for batch in (1, 7, 60, 512):
        report = evaluate(rec, cold, batch=batch)
        drop = report.per_user.query("protocol == 'drop'")
        assert report.results[0]["protocol"]["users"] == len(drop) == 60 and np.isinf(drop["rank"]).sum() >= 15
        assert report.results[0]["protocol"]["cold_targets"] == 15
        ranks = rec.rank_part(cold, "test", seen=("drop",))["drop"]
        assert report.metric("ndcg@10")["mean"] == pytest.approx(ndcg(ranks, 10).sum() / 60)
    assert "60 test targets" in repr(report) and "15 of" in repr(report)


def test_19_k_beyond_the_catalogue(parts):
    rec = scripted(parts, hashed)
    ranks = rec.rank_part(parts, "test", seen=("keep",))["keep"]
    for k in (rec.n_items, rec.n_items + 1, 10**6):
        np.testing.assert_array_equal(recall(ranks, k), (~ranks.missed).astype(float))
    wide = means(rec, parts, ks=(10, 2500)).loc["test", "keep"]
    assert wide["recall@2500"] == pytest.approx((~ranks.missed).mean())
    with pytest.raises(ValueError, match=f"catalogue has {rec.n_items} items"):
        rec.topk([[rec.tokenizer.items[0]]], k=rec.n_items + 1)


# --- properties ------------------------------------------------------------------------------------------------------


def renamed(events: Events, seed: int) -> Events:
    "Other names for the items and other rows for them in the item table, in the same sequences."
    order = np.random.default_rng(seed).permutation(events.n_items)
    place = np.argsort(order)
    items = events.items.iloc[order].set_axis([f"item {n}" for n in range(events.n_items)])
    return replace(events, items=items, sequences=replace(events.sequences, values=place[events.sequences.values].astype(np.int32)))


def losses(rec: Recommender) -> list:
    return [(row["loss"], row["ndcg@10"], row["recall@10"]) for row in rec.log]


def assert_same_weights(a: Recommender, b: Recommender) -> None:
    weights = b.model.state_dict()
    for name, mine in a.model.state_dict().items():
        assert torch.equal(mine, weights[name]), name


def test_property_item_ids(parts, named):
    "Trained and evaluated on items of other names, in another order: the same losses and the same metrics."
    name, rec = named
    again = split(renamed(parts.events, seed=1))
    other = trained(again, name)
    assert list(other.tokenizer.items) != list(rec.tokenizer.items) and losses(other) == losses(rec)
    pd.testing.assert_frame_equal(means(other, again), means(rec, parts))


def shuffled_users(parts: Split, seed: int) -> Split:
    order = np.random.default_rng(seed).permutation(len(parts.test))
    return replace(parts, test=some_of(parts.test, order), valid=some_of(parts.valid, order))


def ranked(rec: Recommender, parts: Split, batch: int = 512) -> pd.DataFrame:
    "Rank of every target and the top of every list, by user: all that a metric is made of."
    found = rec.rank_part(parts, "test", top_k=10, batch=batch)
    columns = {rule: {"rank": r.rank, "ties": r.ties, "top": list(r.top)} for rule, r in found.items()}
    return pd.concat({rule: pd.DataFrame(c, index=parts.test.users) for rule, c in columns.items()}, axis=1).sort_index()


def test_property_order_of_users(parts, precise):
    pd.testing.assert_frame_equal(ranked(precise, shuffled_users(parts, 3)), ranked(precise, parts))


def test_property_order_of_users_changes_no_report(parts):
    mixed, rec = shuffled_users(parts, 3), scripted(parts, hashed)
    assert evaluate(rec, mixed).results == evaluate(rec, parts).results, "the intervals too"


def test_property_size_of_a_batch(parts, precise):
    for batch in (1, 7):
        pd.testing.assert_frame_equal(ranked(precise, parts, batch), ranked(precise, parts))


def test_property_side_of_the_padding(precise):
    "A history with padding before, behind or within it is the same history."
    rng = np.random.default_rng(0)
    for n in (1, 5, 19, 20, 40):
        row = list(rng.integers(SPECIAL, SPECIAL + precise.n_items, n))
        plain = precise.scores(Sequences.from_lists([row]))
        for padded in ([PAD] * 7 + row, row + [PAD] * 7, [PAD, *row[:1], PAD, *row[1:], PAD]):
            torch.testing.assert_close(precise.scores(Sequences.from_lists([padded])), plain, rtol=0, atol=0)


def test_property_uniform_scores_get_the_expected_random_value(films):
    "10 of the catalogue, or of what is left of it once seen items are out; NDCG and MRR the means over all places."
    report = evaluate(scripted(films, uniform), films)
    n = len(films.train_items())
    left = np.array([n - len(set(row) & set(films.train_items())) for row in films.test.histories])
    ranked = np.isin(films.test.targets, films.train_items())
    gains = {"recall@10": lambda v: 10 / v, "ndcg@10": lambda v: (1 / np.log2(2 + np.arange(10))).sum() / v,
             "mrr": lambda v: (1 / np.arange(1, v + 1)).sum() / v}  # fmt: skip
    for name, gain in gains.items():
        assert report.metric(name, seen="keep")["mean"] == pytest.approx(gain(n) * ranked.mean())
        assert report.metric(name, seen="drop")["mean"] == pytest.approx(np.mean([gain(v) for v in left] * ranked))


def test_property_an_oracle_is_perfect(films):
    rec = oracle(films)
    assert films.protocol["test_cold"] == 0 and films.protocol["valid_cold"] == 0
    for part in ("valid", "test"):
        ranks = rec.rank_part(films, part)["drop"]
        for name, values in user_metrics(ranks, (1, 10)).items():
            if not name.startswith("precision"):
                assert (values == 1).all(), name


def test_property_random_test_items(parts, named):
    "Every test item another one, some of them never seen anywhere: same vocabulary, validation curve and weights."
    (name, first), rng, events = named, np.random.default_rng(0), parts.events
    values = events.sequences.values.copy()
    values[events.sequences.offsets[1:] - 1] = rng.integers(0, events.n_items + 20, events.n_users)
    new = pd.DataFrame("", index=[f"new {n}" for n in range(20)], columns=events.items.columns)
    other = replace(events, items=pd.concat([events.items, new]), sequences=replace(events.sequences, values=values))
    assert (split(other).test.targets != parts.test.targets).mean() > 0.9
    rec = trained(split(other), name)
    assert rec.tokenizer == first.tokenizer and losses(rec) == losses(first)
    assert rec.items["count"].equals(first.items["count"])
    assert_same_weights(rec, first)
