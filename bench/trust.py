"""Numbers that can be trusted: what a full report costs, and what each model reaches on Beauty under one protocol.

    python bench/trust.py              # everything that this commit has no figure for yet
    python bench/trust.py accuracy     # one part: seconds, accuracy, equal, big

The accuracy figures are read from bench/results/runs.jsonl, which nbs/compare.ipynb writes.
"""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from statistics import mean, median

import numpy as np
import pandas as pd
import torch
from record import ROOT, reached, record, recorded, runs, seconds_of

from itemlm.core import Ragged
from itemlm.data.batches import training_sequences
from itemlm.data.datasets import load_dataset
from itemlm.data.events import Events
from itemlm.data.split import Split, split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.compare import compare
from itemlm.evaluation.report import evaluate
from itemlm.jobs import TrainParameters, open_job
from itemlm.models.item_lm import small, tiny
from itemlm.models.neural import sasrec
from itemlm.models.recipe import TrainingConfig
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import build_model, estimate, fit, initial_model, sized

USERS, ITEMS = 100_000, 1_000_000
MODELS = "popularity", "markov", "gru4rec_ce", "sasrec_bce", "sasrec_ce", "bert4rec", "hstu", "item_lm"
NOTES = (
    "evaluate_seconds: one report of all users of Beauty: full ranking, seen items dropped and kept, all metrics, 95 % intervals and "
    "slices; an untrained ItemLM of the small preset (training changes no cost), median of 3, with evaluate_threads threads. "
    f"evaluate_big_*: the same for a made-up table of {USERS:,} users and {ITEMS:,} items with titles, genres and times, and an "
    "untrained ItemLM of width 8, in a process of its own: seconds of evaluate, and peak resident memory of the whole process, data, "
    "vocabulary and model included. <model>_beauty_ndcg@10: test part, leave-one-out in the order of the file, full ranking, seen items "
    "dropped; mean over the seeds of the preset `small` in bench/results/runs.jsonl. equal_*: ItemLM (seed 1, PPMI start) and SASRec-CE "
    "(seed 0, random rows) on Beauty, width 64, 20 epochs each with a rate that falls to zero; their seconds of training (one thread, "
    "other trainings beside, not at the same time), and a paired test over users. equal_epoch_ratio: what an epoch of ItemLM costs over "
    "one of SASRec-CE, from batches timed in turns, median of 5."
)


def untrained(parts: Split, config: TrainingConfig) -> Recommender:
    "A recommender whose model has learnt nothing"
    tokenizer = ItemTokenizer.from_split(parts)
    return Recommender.from_split(build_model(sized(config, tokenizer)).eval(), tokenizer, parts)


def seconds():
    "A whole report of Beauty"
    parts = split(load_dataset("beauty"))
    rec = untrained(parts, small())
    took = median(seconds_of(lambda: evaluate(rec, parts)) for _ in range(3))
    record("trust", {"evaluate_seconds": took, "evaluate_threads": torch.get_num_threads()}, NOTES)


def made_up_events() -> Events:
    "Every item once in the first ten events of somebody, then four events that favour low codes"
    rng = np.random.default_rng(0)
    once, again = rng.permutation(ITEMS).reshape(USERS, -1), (ITEMS * rng.random((USERS, 4)) ** 2).astype(np.int64)
    values = np.concatenate([once, again], axis=1).ravel().astype(np.int32)
    genres = np.array([f"g{i}|g{i + 1}" for i in range(20)])[rng.integers(0, 20, ITEMS)]
    names = pd.Index(np.arange(ITEMS).astype(str), name="item")
    return Events(
        name="made up",
        users=np.arange(USERS).astype(str).astype(object),
        sequences=Ragged(values, np.arange(USERS + 1) * (len(values) // USERS)),
        times=np.arange(len(values)) + 1,
        items=pd.DataFrame({"title": names.to_numpy(), "genres": genres}, index=names),
        provenance={},
    )


def big_process():
    "Evaluate the made-up table and print the seconds and the peak memory of this process in GB"
    parts, shape = split(made_up_events()), tiny()
    rec = untrained(parts, replace(shape, model=replace(shape.model, width=8, hidden=16, heads=1, kv_heads=1)))
    took = seconds_of(lambda: evaluate(rec, parts))
    print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def big():
    "The same in a process of its own"
    if "evaluate_big_peak_gb" in recorded("trust"):
        return
    done = subprocess.run([sys.executable, __file__, "big_process"], check=True, stdout=subprocess.PIPE, text=True)
    took, peak = map(float, done.stdout.split()[-2:])
    record("trust", {"evaluate_big_seconds": took, "evaluate_big_peak_gb": peak}, NOTES)


def epoch_ratio(parts: Split, config: TrainingConfig, other: TrainingConfig) -> float:
    "Seconds of an epoch of one recipe over those of another, measured in turns"
    tokenizer = ItemTokenizer.from_split(parts)
    histories = tokenizer.encode_codes(parts.train, parts.events.items.index)
    timed = [(initial_model(c, parts, tokenizer), training_sequences(histories, c.model.max_len), c) for c in (config, other)]
    rounds = [[estimate(*each, batches=8).seconds_per_epoch for each in timed] for _ in range(5)]
    return median(ours / theirs for ours, theirs in rounds)


def equal():
    "ItemLM and SASRec-CE with as many epochs, which cost about as many seconds: same width, batches and threads as in their presets"
    parts, shorter = split(load_dataset("beauty")), sasrec(epochs=small().epochs, patience=small().epochs)
    ours = open_job(TrainParameters(dataset="beauty", model="item_lm", seed=1)).folder
    recipes = {"item_lm": (small(seed=1), ours), "sasrec_ce": (shorter, ROOT / "runs/bench-trust/sasrec-equal")}
    recs = {name: fit(parts, config, out_dir=where, device="cpu") for name, (config, where) in recipes.items()}
    reports = {name: evaluate(rec, parts) for name, rec in recs.items()}
    test = compare(reports, metrics=("ndcg@10",)).against("item_lm", "sasrec_ce", "ndcg@10")
    figures = {f"equal_{name}_seconds": rec.log[-1]["seconds"] for name, rec in recs.items()}
    figures["equal_epoch_ratio"] = epoch_ratio(parts, small(), sasrec())
    figures |= {f"equal_{name}_ndcg@10": report.metric("ndcg@10", "test", "drop")["mean"] for name, report in reports.items()}
    record("trust", figures | {"equal_gain_ndcg@10": test["difference"], "equal_gain_p": test["p"]}, NOTES)


def accuracy():
    "Mean test NDCG@10 of each model on Beauty, as far as it is recorded"
    found = {model: runs(dataset="beauty", model=model, preset="small", protocol="leave_one_out", ties="as_is") for model in MODELS}
    figures = {f"{model}_beauty_ndcg@10": mean(reached(run, "ndcg@10") for run in made) for model, made in found.items() if made}
    record("trust", figures, NOTES)


PARTS = {"seconds": seconds, "equal": equal, "big": big, "accuracy": accuracy, "big_process": big_process}

if __name__ == "__main__":
    for part in sys.argv[1:] or ("seconds", "accuracy", "equal", "big"):
        PARTS[part]()
    if sys.argv[1:] != ["big_process"]:
        print(json.dumps(recorded("trust"), indent=1))
