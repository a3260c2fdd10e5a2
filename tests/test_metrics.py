"""What metrics cost, that they say the same on every device, and the same as another library."""

import tracemalloc
from itertools import permutations

import ir_measures
import numpy as np
import pytest
import torch
from ir_measures import AP, RR, P, R, Success, nDCG

from itemlm.core import Ragged
from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.metrics.lists import calibration, intra_list_diversity
from itemlm.metrics.ranks import Ranks, average_precision, mrr, ndcg, precision, recall, target_ranks
from itemlm.metrics.statistics import bootstrap_interval, holm, paired_difference
from itemlm.models.item_lm import tiny
from itemlm.training.trainer import fit


@pytest.fixture
def peak_mb():
    "Measures the memory numpy allocates while a function runs."

    def measure(function) -> float:
        tracemalloc.start()
        function()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 1e6

    return measure


def batch(n_users: int, n_items: int) -> tuple[torch.Tensor, np.ndarray, Ragged]:
    "Scores with many ties, targets (some -1), and ten seen items a user."
    rng = np.random.default_rng(0)
    scores = torch.as_tensor(rng.integers(0, 50, (n_users, n_items)), dtype=torch.float32)
    seen = Ragged(rng.integers(0, n_items, 10 * n_users).astype(np.int32), np.arange(n_users + 1) * 10)
    return scores, rng.integers(-1, n_items, n_users), seen


def test_no_second_table_of_scores(peak_mb):
    scores, targets, seen = batch(200, 50_000)
    assert peak_mb(lambda: target_ranks(scores, targets, seen)) < 0.3 * scores.nbytes / 1e6  # one mask: a byte a score


@pytest.mark.parametrize("n_users", [1, 1000, 22_363, 300_000])
def test_bootstrap_memory_is_bounded(peak_mb, n_users):
    values = np.random.default_rng(0).random((n_users, 10))
    assert peak_mb(lambda: bootstrap_interval(values, resamples=20)) < 60


def test_a_million_users_are_compared_in_little_memory(peak_mb):
    a, b = np.random.default_rng(0).random((2, 1_000_000))
    assert peak_mb(lambda: paired_difference(a, b, resamples=500)) < 100  # a dozen numbers a user, none a user and resample


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_ranks_on_cuda(dtype):
    scores, targets, seen = batch(64, 1000)
    scores = scores.to(dtype)
    here, there = target_ranks(scores, targets, seen), target_ranks(scores.cuda(), targets, seen)
    np.testing.assert_array_equal(here.greater, there.greater)
    np.testing.assert_array_equal(here.ties, there.ties)


# Another library: ir-measures, which asks trec_eval.
PAIRS = [(nDCG @ k, lambda r, k=k: ndcg(r, k)) for k in (5, 10, 20)]
PAIRS += [(R @ k, lambda r, k=k: recall(r, k)) for k in (5, 10, 20)]
PAIRS += [(Success @ 10, lambda r: recall(r, 10)), (P @ 10, lambda r: precision(r, 10)), (AP @ 10, lambda r: average_precision(r, 10))]
PAIRS += [(RR, mrr), (AP, average_precision)]


def theirs(scores: np.ndarray, targets: np.ndarray, seen: list) -> dict:
    "measure -> values of all users, by ir-measures."
    users = range(len(scores))
    run = {str(u): {str(c): float(s) for c, s in enumerate(scores[u]) if c not in seen[u]} for u in users}
    judged = {str(u): {str(targets[u]): 1} for u in users}
    found = {measure: np.full(len(scores), np.nan) for measure, _ in PAIRS}
    for m in ir_measures.iter_calc(list(found), judged, run):
        found[m.measure][int(m.query_id)] = m.value
    return found


def assert_agree(scores: np.ndarray, targets: np.ndarray, seen: list):
    ranks = target_ranks(torch.as_tensor(scores), targets, Ragged.from_lists(seen))
    for measure, values in theirs(scores, targets, [set(row) for row in seen]).items():
        ours = dict(PAIRS)[measure](ranks)
        np.testing.assert_allclose(ours, values, atol=1e-6, err_msg=str(measure))


def test_metrics_agree_with_ir_measures_on_random_rankings():
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(400, dtype=np.float32), (100, 1)), axis=1)  # no ties
    targets = np.where(rng.random(100) < 0.5, scores.argsort(1)[:, -rng.integers(1, 30)], rng.integers(0, 400, 100))  # half near the top
    seen = [rng.choice(400, n).tolist() for n in rng.integers(0, 50, 100)]  # some of them hold the target
    assert_agree(scores, targets, seen)


def test_metrics_agree_with_ir_measures_on_real_rankings():
    parts = split(load_dataset("ml-latest-small"))
    rec = fit(parts, tiny(epochs=1), verbose=False)
    histories, targets = rec.part_columns(parts, parts.test)
    rows = np.flatnonzero(targets >= 0)[:80]
    scores = rec.scores(histories.take(rows)).numpy()
    scores = scores.argsort(1).argsort(1).astype(np.float32)  # the model's ranking, its few ties broken for both
    seen = [(histories[row][histories[row] >= rec.tokenizer.n_special] - rec.tokenizer.n_special).tolist() for row in rows]
    assert_agree(scores, targets[rows], seen)


def test_ties_are_the_mean_of_ir_measures_over_every_order():
    scores, target = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1]), 2
    ranks = target_ranks(torch.as_tensor(scores)[None], [target])
    orders = np.array([scores - 0.01 * np.append(np.append(0, order), 0) for order in permutations(range(4))])
    for measure, values in theirs(orders, np.full(len(orders), target), [set()] * len(orders)).items():
        np.testing.assert_allclose(dict(PAIRS)[measure](ranks), values.mean(), atol=1e-6, err_msg=str(measure))


# Statistics
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(size=200),
        lambda rng: ndcg(Ranks(greater=rng.geometric(0.1, 300) - 1, ties=np.zeros(300, int)), 10),
    ],
    ids=["continuous", "ndcg@10"],
)
def test_p_values_are_uniform_where_there_is_no_difference(draw):
    rng, n = np.random.default_rng(0), 400
    p = np.sort([paired_difference(draw(rng), draw(rng), resamples=999).p for _ in range(n)])
    distance = np.abs(p - np.arange(1, n + 1) / n).max()  # Kolmogorov and Smirnov's
    assert distance < 1.63 / np.sqrt(n)  # its 1 % point


def test_rare_hits_are_not_called_a_difference_too_often():
    rng, n = np.random.default_rng(1), 400
    p = np.array([paired_difference(rng.random(500) < 0.02, rng.random(500) < 0.02, resamples=999).p for _ in range(n)])
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 2.6 * np.sqrt(level * (1 - level) / n)


def test_a_p_value_is_never_zero_and_depends_on_no_order():
    rng = np.random.default_rng(0)
    a = rng.random(500)
    sure = paired_difference(a + 1, a)
    assert sure.p == 1 / 10_001 and sure.lo > 0.99
    b, order = rng.random(500), rng.permutation(500)
    once, again = paired_difference(a, b), paired_difference(a[order], b[order])
    assert once.p == again.p and np.allclose([once.lo, once.hi, once.mean], [again.lo, again.hi, again.mean], rtol=1e-12)


def test_the_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for values in (ndcg(Ranks(greater=rng.geometric(0.05, 300) - 1, ties=np.zeros(300, int)), 10), rng.exponential(size=400)):
        theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
        ours = bootstrap_interval(values, resamples=4000)
        np.testing.assert_allclose(ours, theirs, atol=0.06 * (theirs.high - theirs.low))


def test_the_interval_of_a_difference_covers_the_truth():
    rng = np.random.default_rng(0)
    found = [paired_difference(rng.exponential(size=150) + 0.3, rng.exponential(size=150), resamples=500) for _ in range(300)]
    assert 0.91 < np.mean([f.lo <= 0.3 <= f.hi for f in found]) < 0.985


@pytest.mark.parametrize("k", [0, -1, 2.5, np.nan, np.inf, True, "3"])
def test_a_length_of_list_that_is_none(k):
    ranks = Ranks(greater=np.array([0, 3]), ties=np.zeros(2, np.int64))
    for metric in (recall, ndcg, mrr, precision):
        with pytest.raises(ValueError, match="k=.* must be a whole number of at least 1"):
            metric(ranks, k)
    assert recall(ranks, np.int64(1)).tolist() == [1, 0] and recall(ranks, 10**9).tolist() == [1, 1]


@pytest.mark.parametrize("how", [dict(resamples=0), dict(level=np.nan), dict(level=95), dict(resamples=np.nan)], ids=str)
def test_an_interval_that_is_none(how):
    with pytest.raises(ValueError, match="resamples="):
        bootstrap_interval(np.arange(5.0), **how)


def test_holm_on_a_textbook_example():
    "The fifteen p-values of Benjamini and Hochberg (1995): three of them stand."
    p = np.array([0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0])
    adjusted = holm(p)
    np.testing.assert_allclose(adjusted[:5], [0.0015, 0.0056, 0.0247, 0.1140, 0.2211], atol=1e-12)
    assert (adjusted < 0.05).sum() == 3 and (np.diff(adjusted) >= 0).all() and adjusted[-1] == 1
    order = np.random.default_rng(0).permutation(15)
    np.testing.assert_array_equal(holm(p[order]), adjusted[order])


# Lists
def test_renaming_items_changes_no_list_metric():
    rng = np.random.default_rng(0)
    kinds = [rng.choice(6, n, replace=False) for n in rng.integers(0, 4, 40)]
    top, past = rng.integers(-1, 40, (50, 5)), [rng.integers(-1, 40, n) for n in rng.integers(0, 9, 50)]
    new = np.append(rng.permutation(40), -1)  # -1 stays
    renamed = Ragged.from_lists([kinds[old] for old in new[:-1].argsort()])
    for metric in (lambda t, h, a: intra_list_diversity(t, a), calibration):
        before = metric(top, Ragged.from_lists(past), Ragged.from_lists(kinds))
        np.testing.assert_allclose(metric(new[top], Ragged.from_lists([new[row] for row in past]), renamed), before, atol=1e-12)
