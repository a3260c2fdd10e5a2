"The training loop: what a review of it found stays mended, and its numbers stay what they were."

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from itemlm import fit, load, load_dataset, read_events, small, split, tiny
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.models.neural import bert4rec
from itemlm.serving.recommender import Recommender
from itemlm.show import ProgressLine
from itemlm.training import trainer
from itemlm.training.schedule import learning_rate, make_optimizer
from itemlm.training.trainer import Trainer, initial_model, read_config, sized, train_step


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"user": np.repeat(np.arange(80), 10), "item": (40 * rng.random(800) ** 1.5).astype(int)})
    return split(read_events(log, name="training", verbose=False))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 19, 21, 30, 222, 1000, 1740])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 0.9])
def test_the_rate_rises_to_its_peak_and_not_beyond(steps, warmup):
    config = small(warmup=warmup)
    rates = np.array([learning_rate(step, steps, config) for step in range(steps)])
    assert 0 < rates.min() and rates.max() <= config.lr
    peak = rates.argmax()
    assert (np.diff(rates[: peak + 1]) >= 0).all() and (np.diff(rates[peak:]) <= 0).all()


def test_biases_and_gains_are_not_decayed(parts):
    "An item bias is a bias, whatever its shape."
    model = initial_model(bert4rec(), parts, ItemTokenizer.from_split(parts))
    decay, free = (group["params"] for group in make_optimizer(model, bert4rec()).param_groups)
    names = {id(w): name for name, w in model.named_parameters()}
    assert "bias" in {names[id(w)] for w in free}
    assert not [names[id(w)] for w in decay if "norm" in names[id(w)] or names[id(w)].endswith("bias")]


def test_gradients_are_clipped(parts):
    model = initial_model(tiny(), parts, ItemTokenizer.from_split(parts))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [w.detach().clone() for w in model.parameters()]
    wild = tiny(clip=0.5, loss=lambda s, t, c: 1e5 * tiny().loss(s, t, c))
    train_step(model, optimizer, [torch.tensor([[9, 10, 11]])], wild)
    moved = sum(((w.detach() - b) ** 2).sum() for w, b in zip(model.parameters(), before)).sqrt()
    assert float(moved) == pytest.approx(0.5, rel=1e-3)


def test_nothing_is_estimated_that_nobody_reads(parts, monkeypatch):
    monkeypatch.setattr(trainer, "estimate", lambda *_: pytest.fail("estimated, and nobody asked"))
    fit(parts, tiny(epochs=1), device="cpu", verbose=False)


def test_an_estimate_changes_nothing(parts, capsys):
    quiet, loud = (fit(parts, tiny(epochs=1), device="cpu", verbose=verbose) for verbose in (False, True))
    assert "about" in capsys.readouterr().out
    for a, b in zip(quiet.model.parameters(), loud.model.parameters()):
        assert torch.equal(a, b)


# --- one folder, one owner -------------------------------------------------------------------------------------------

JOB = """
import sys, time
import numpy as np, pandas as pd
from itemlm import *
from itemlm.training import trainer
rng = np.random.default_rng(0)
log = pd.DataFrame({"user": rng.integers(0, 300, 6000).astype(str), "item": (rng.zipf(1.3, 6000) % 200).astype(str)})
step = trainer.Trainer.step
trainer.Trainer.step = lambda self, rows: (time.sleep(float(sys.argv[2])), step(self, rows))
fit(split(read_events(log, name="two", verbose=False)), tiny(epochs=2, batch=32), out_dir=sys.argv[1])
"""


def job(folder, pause: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", JOB, str(folder), str(pause)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_in_one_run_folder(tmp_path):
    "The second is told so in one line, and takes nothing from the first, which ends as if alone."
    first = job(tmp_path / "run", 0.2)
    while not (tmp_path / "run/run.json").exists():
        time.sleep(0.05)
    second = job(tmp_path / "run", 0.0)
    _, errors = second.communicate(timeout=120)
    assert second.returncode and "in use by another process" in errors.strip().splitlines()[-1]
    _, errors = first.communicate(timeout=300)
    assert not first.returncode, errors
    alone = job(tmp_path / "alone", 0.0)
    alone.communicate(timeout=120)
    mine, theirs = (load(tmp_path / name, device="cpu") for name in ("run", "alone"))
    for a, b in zip(mine.model.parameters(), theirs.model.parameters()):
        assert torch.equal(a, b)


def test_a_lock_dies_with_its_owner(tmp_path):
    first = job(tmp_path / "run", 0.5)
    while not (tmp_path / "run/run.json").exists():
        time.sleep(0.05)
    first.kill()
    first.wait()
    second = job(tmp_path / "run", 0.0)
    _, errors = second.communicate(timeout=120)
    assert not second.returncode, errors


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_thread():
    "Sums of several threads round otherwise"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_same_numbers_as_recorded(one_thread):
    "The default preset on the set that ships, first epoch: what it was when it was recorded."
    recorded = json.loads((ROOT / "tests/reference.json").read_text())
    known = [recorded["ml-latest-small, small(), seed 0"]]
    if torch.backends.cpu.get_cpu_capability() == "AVX512":  # its kernels draw and round otherwise; those of Intel's and AMD's differ
        known.append(recorded["ml-latest-small, small(), seed 0, AVX-512 (Intel Xeon)"])
    parts = split(load_dataset("ml-latest-small"))
    tokenizer = ItemTokenizer.from_split(parts)
    rec = Recommender.from_split(initial_model(small(), parts, tokenizer), tokenizer, parts)
    run = Trainer(rec, parts, sized(small(), tokenizer), verbose=False)
    run.train_epoch()
    nearest = min(known, key=lambda log: abs(log[0]["recall@10"] - run.progress.log[0]["recall@10"]))
    for name, tolerance in (("loss", 1e-3), ("ndcg@10", 2e-3), ("recall@10", 4e-3)):
        assert run.progress.log[0][name] == pytest.approx(nearest[0][name], abs=tolerance), name


def test_a_run_can_be_prepared_again_from_its_folder(parts, tmp_path):
    rec = fit(parts, tiny(epochs=1, seed=3), out_dir=tmp_path / "run", device="cpu", verbose=False)
    config = read_config(tmp_path / "run")
    assert config == sized(tiny(epochs=1, seed=3), rec.tokenizer)
    again, fresh = (initial_model(c, parts, rec.tokenizer) for c in (config, tiny(epochs=1, seed=3)))
    for a, b in zip(again.parameters(), fresh.parameters()):
        assert torch.equal(a, b)


DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_way_to_train(parts, device, precision, compiled):
    rec = fit(parts, tiny(epochs=2, precision=precision, compile=compiled), device=device, verbose=False)
    assert rec.log[1]["loss"] < rec.log[0]["loss"] and rec.model.device.type == device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_resumed_on_a_gpu(parts, tmp_path):
    whole = fit(parts, tiny(epochs=3), device="cuda", verbose=False)
    folder = tmp_path / "run"
    fit(parts, tiny(epochs=3), out_dir=folder, device="cuda", max_minutes=1e-6, verbose=False)
    again = fit(parts, tiny(epochs=3), out_dir=folder, device="cuda", verbose=False)
    assert [row["step"] for row in again.log][-1] == whole.log[-1]["step"]


def test_longest_rows_in_buckets_or_not(parts):
    "The same targets are learnt from, whichever way they are laid out."
    cut, whole = (fit(parts, replace(tiny(epochs=1), bucket=bucket), device="cpu", verbose=False) for bucket in (True, False))
    assert cut.log[0]["step"] == whole.log[0]["step"]


def test_every_epoch_is_told_and_changes_nothing(parts):
    "A callable gets a row of its own an epoch; what it raises ends the training."
    rows, quiet = [], fit(parts, tiny(epochs=2), verbose=False)
    told = fit(parts, tiny(epochs=2), verbose=lambda row: rows.append(row) or row.clear())
    plain = [{name: value for name, value in row.items() if name != "seconds"} for row in told.log]
    assert plain == [{name: value for name, value in row.items() if name != "seconds"} for row in quiet.log] and len(rows) == 2
    with pytest.raises(ZeroDivisionError):
        fit(parts, tiny(epochs=2), verbose=lambda row: 1 / 0)


def test_an_epoch_says_how_far_it_is(parts, capsys, monkeypatch):
    "On a line that moves, at a terminal or past a notebook's cell; nothing of what is soon done, and the same numbers."
    fit(parts, tiny(epochs=1))
    assert "steps" not in capsys.readouterr().err
    said = []
    monkeypatch.setattr("itemlm.show._line_writer", lambda: (said.append, 0.0))
    monkeypatch.setattr("itemlm.show.ProgressLine.show", slowly(ProgressLine.show))
    moved = fit(parts, tiny(epochs=2, batch=16))
    assert said[0].startswith("epoch 1/2:  20%|") and "| 1/5 [" in said[0] and "loss" in said[0]
    assert [line.startswith("epoch 2/2") for line in said[6:11]] == [True] * 5 and said[5] == said[
        11
    ] == ""  # taken away before its results
    assert moved.log[-1]["loss"] == fit(parts, tiny(epochs=2, batch=16), verbose=False).log[-1]["loss"]


def slowly(show):
    "As if a second went by before each look"

    def shown(line, *given):
        line.due = 0.0
        show(line, *given)

    return shown
