"""The full softmax by Liger's kernel is the full softmax: loss, gradients, a training; under Triton's interpreter without a GPU."""

import os
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from itemlm.data.datasets import load_dataset
from itemlm.data.events import read_events
from itemlm.data.split import split
from itemlm.models.item_lm import tiny
from itemlm.models.losses import IGNORE, check_loss, full_softmax, fused_softmax
from itemlm.training.trainer import fit

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
runs = pytest.mark.skipif(not (GPU or INTERPRETED), reason="the kernel runs on a GPU, or with TRITON_INTERPRET=1 in the environment")
DEVICE = "cuda" if GPU else "cpu"


def both(hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> list[list[torch.Tensor]]:
    "Loss and gradients of the two"
    found = []
    for loss in (full_softmax(), fused_softmax()):
        h, w = hidden.clone().requires_grad_(), table.clone().requires_grad_()
        value = loss(h, w, targets)
        found.append([value.detach(), *torch.autograd.grad(3 * value, (h, w))])
    return found


@runs
@pytest.mark.parametrize("n, width, items", [(1, 4, 2), (13, 16, 50), (300, 64, 1237)])
def test_loss_and_gradients(n, width, items):
    torch.manual_seed(0)
    hidden, table = torch.randn(n, width, device=DEVICE), torch.randn(items, width, device=DEVICE)
    targets = torch.randint(items, (n,), device=DEVICE)
    targets[1::5] = IGNORE
    for ours, theirs in zip(*both(hidden, table, targets)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@runs
def test_large_scores():
    "A cosine at a temperature of .01"
    torch.manual_seed(0)
    unit = lambda *size: torch.nn.functional.normalize(torch.randn(*size, device=DEVICE), dim=-1)
    for ours, theirs in zip(*both(100 * unit(40, 8), unit(200, 8), torch.arange(40, device=DEVICE))):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@runs
def test_no_target_is_no_loss():
    hidden, table = torch.randn(4, 8, device=DEVICE), torch.randn(9, 8, device=DEVICE)
    (_, (loss, *gradients)) = both(hidden, table, torch.full((4,), IGNORE, device=DEVICE))
    assert loss == 0 and not any(one.any() for one in gradients)


@runs
def test_columns_outside_the_catalogue():
    with pytest.raises(ValueError, match="item columns 0..8"):
        fused_softmax()(torch.randn(1, 8, device=DEVICE), torch.randn(9, 8, device=DEVICE), torch.tensor([9], device=DEVICE))


@runs
def test_a_training_ends_at_the_same_weights():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user": np.repeat(np.arange(12), 8), "item": rng.integers(20, size=96), "time": np.arange(96)})
    parts = split(read_events(rows))
    learnt = lambda loss: fit(parts, tiny(epochs=1, loss=loss), device=DEVICE, verbose=False).model.state_dict()
    weights = learnt(full_softmax()), learnt(fused_softmax())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(GPU, reason="there is a GPU here")
def test_without_a_gpu_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="fused_softmax is a kernel for GPUs, and the device is cpu: full_softmax"):
        fit(split(load_dataset("ml-latest-small")), tiny(loss=fused_softmax()), tmp_path / "run", device="cpu")
    assert not list(tmp_path.iterdir())


def test_without_the_library(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", None)
    with pytest.raises(ImportError, match=r"pip install 'itemlm\[liger\]'"):
        check_loss(fused_softmax(), "cpu")
