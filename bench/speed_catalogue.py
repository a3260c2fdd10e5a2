"""Catalogues of a million items: training with shared negatives, the start from co-occurrence, and the whole path from a table to a report.

    python bench/speed_catalogue.py          # all of it: about half an hour on two cores
    python bench/speed_catalogue.py train    # or one part: train, start, path

Each figure is measured in a process of its own, whose peak memory is told too. Old and new ways of training take turns.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from record import ROOT, record
from synthetic import Catalogue, histories, lengths_of, write_synthetic

from itemlm.core import Ragged
from itemlm.data.batches import training_sequences
from itemlm.models.item_lm import small
from itemlm.models.losses import sampled_softmax, shared_softmax
from itemlm.training.ppmi import ppmi_vectors
from itemlm.training.schedule import make_optimizer
from itemlm.training.trainer import build_model, train_step

ITEMS, MEAN, USERS = 1_000_000, 12, 4_000
PAPERMILL = Path(sys.executable).with_name("papermill")
NOTES = (
    "items_1m_*: small() at width 64 on 1,000,000 items, batches of 256 synthetic histories of 12 items in the mean; "
    "shared_softmax() with 8,192 negatives a step, and before: sampled_softmax() with 256 a target; the mean of two turns each, in turn. "
    "processor: for a second of processor time, which a busy machine bends less. ppmi_100k_*: ppmi_vectors of 2,000,000 synthetic "
    "interactions with 100,000 items. path_1m_*: nbs/train.ipynb by papermill on a Parquet table of 3,000,000 interactions, 1,000,000 "
    "items and 4,000 users, one minute of training, all users evaluated. Peaks are of the process, libraries included."
)


def made_up(interactions: int, items: int) -> Ragged:
    "Synthetic histories as tokens"
    rng = np.random.default_rng(0)
    lengths, catalogue = lengths_of(interactions, interactions // MEAN, rng), Catalogue(items, rng)
    found = histories(lengths, catalogue, catalogue.unmet if items < interactions else catalogue.unmet[:0], rng)
    return Ragged((found + 8).astype(np.int32), np.append(0, lengths.cumsum()))


def peak_gb() -> float:
    "Of this process so far"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def train(loss: str, steps: str) -> dict:
    "Steps of training on a million items"
    sequences = training_sequences(made_up(300_000, ITEMS), 50)
    config = small(loss={"shared": shared_softmax, "sampled": sampled_softmax}[loss]())
    config = replace(config, model=replace(config.model, n_items=ITEMS))
    model = build_model(config).train()
    optimizer, targets, warm = make_optimizer(model, config), 0, 2
    for step in range(warm + int(steps)):
        if step == warm:  # moments are there now
            start, processor = time.perf_counter(), time.process_time()
        rows = np.arange(step * config.batch, (step + 1) * config.batch)
        train_step(model, optimizer, sequences.buckets(rows), config).item()
        targets += int(sequences.lengths[rows].sum()) - len(rows) if step >= warm else 0
    took, worked = time.perf_counter() - start, time.process_time() - processor
    return {"targets_per_second": targets / took, "targets_per_processor_second": targets / worked, "peak_gb": peak_gb()}


def start() -> dict:
    "The start from co-occurrence"
    known = made_up(2_000_000, 100_000)
    begun, processor = time.perf_counter(), time.process_time()
    ppmi_vectors(known, 100_008, 64)
    return {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - processor, "peak_gb": peak_gb()}


def child(*args: str) -> dict:
    "What a process of this script measures"
    done = subprocess.run([sys.executable, __file__, "--child", *args], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_train() -> dict:
    "Both ways in turn"
    turns = [(child("train", "shared", "8"), child("train", "sampled", "3")) for _ in range(2)]
    now, before = ({key: float(np.mean([turn[way][key] for turn in turns])) for key in turns[0][way]} for way in (0, 1))
    return {f"items_1m_{key}": value for key, value in now.items()} | {f"items_1m_{key}_before": value for key, value in before.items()}


def measure_start() -> dict:
    return {f"ppmi_100k_{key}": value for key, value in child("start").items()}


def measure_path() -> dict:
    "From a table to a report in one command"
    with tempfile.TemporaryDirectory() as folder:
        table = write_synthetic(Path(folder) / "million.parquet", 3_000_000, ITEMS, users=USERS)
        asked = {"dataset": table, "loss": "auto", "max_minutes": 1, "valid_targets": 1000, "out_dir": Path(folder) / "run"}
        words = [word for name, value in asked.items() for word in ("-p", name, str(value))]
        begun, peak = time.perf_counter(), 0
        job = psutil.Popen(
            [
                Path(sys.executable).with_name("papermill"),
                ROOT / "nbs/train.ipynb",
                Path(folder) / "report.ipynb",
                "--no-progress-bar",
                *words,
            ]
        )
        while job.poll() is None:
            peak = max([peak, *(one.memory_info().rss for one in job.children(recursive=True) if one.is_running())])
            time.sleep(0.5)
        if job.wait():
            sys.exit("the path broke: see above")
        return {"path_1m_seconds": time.perf_counter() - begun, "path_1m_peak_gb": peak / 2**30}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        torch.manual_seed(0)
        print(json.dumps({"train": train, "start": start}[sys.argv[2]](*sys.argv[3:])))
        sys.exit()
    parts = {"train": measure_train, "start": measure_start, "path": measure_path}
    for part in sys.argv[1:] or parts:
        figures = parts[part]()
        print(figures)
        record("speed", figures, NOTES)
