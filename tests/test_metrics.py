"""What metrics cost, and that they say the same on every device."""

import tracemalloc

import numpy as np
import pytest
import torch

from itemlm.events import Ragged
from itemlm.metrics import bootstrap_interval, target_ranks


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
    assert peak_mb(lambda: target_ranks(scores, targets, seen)) < .3 * scores.nbytes / 1e6  # one mask: a byte a score


@pytest.mark.parametrize("n_users", [1, 1000, 22_363, 300_000])
def test_bootstrap_memory_is_bounded(peak_mb, n_users):
    values = np.random.default_rng(0).random((n_users, 10))
    assert peak_mb(lambda: bootstrap_interval(values, resamples=20)) < 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_ranks_on_cuda(dtype):
    scores, targets, seen = batch(64, 1000)
    scores = scores.to(dtype)
    here, there = target_ranks(scores, targets, seen), target_ranks(scores.cuda(), targets, seen)
    np.testing.assert_array_equal(here.greater, there.greater)
    np.testing.assert_array_equal(here.ties, there.ties)
