"""Numbers that can be trusted: what a full report costs, and what each model reaches on Beauty under one protocol.

    python bench/trust.py              # everything that this commit has no figure for yet
    python bench/trust.py accuracy     # one part: seconds, accuracy, equal, big

The accuracy figures are read from the records that nbs/compare.ipynb leaves in bench/results/compare.
"""

import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from statistics import mean, median

import numpy as np
import pandas as pd
import torch
from record import RESULTS, ROOT, record, recorded

from itemlm import Events, ItemLM, ItemTokenizer, Ragged, Recommender, compare, evaluate, fit, load_dataset, sasrec, small, split, tiny
from itemlm.run import run_folder
from itemlm.study import plan
from itemlm.training import estimate, make_windows

USERS, ITEMS = 100_000, 1_000_000
MODELS = "popularity", "markov", "gru4rec_ce", "sasrec_bce", "sasrec_ce", "bert4rec", "hstu", "item_lm"
NOTES = (
    "evaluate_seconds: one report of all users of Beauty: full ranking, seen items dropped and kept, all metrics, 95 % intervals and "
    "slices; an untrained ItemLM of the small preset (training changes no cost), median of 3, with evaluate_threads threads. "
    f"evaluate_big_*: the same for a made-up table of {USERS:,} users and {ITEMS:,} items with titles, genres and times, and an "
    "untrained ItemLM of width 8, in a process of its own: seconds of evaluate, and peak resident memory of the whole process, data, "
    "vocabulary and model included. <model>_beauty_ndcg@10: test part, leave-one-out in the order of the file, full ranking, seen items "
    "dropped; mean over the seeds in bench/results/compare; of several settings of a model the one with the most seeds, then the best on "
    "the validation part. equal_*: ItemLM (seed 1) and SASRec-CE (seed 0) on Beauty, width 64, 20 epochs each with a rate that falls to "
    "zero; their seconds of training (one thread, other trainings beside, not at the same time), and a paired test over users. "
    "equal_epoch_ratio: what an epoch of ItemLM costs over one of SASRec-CE, from batches timed in turns, median of 5."
)


def untrained(parts, config) -> Recommender:
    "A recommender whose model has learnt nothing."
    tokenizer = ItemTokenizer.from_split(parts)
    torch.manual_seed(0)
    model = ItemLM(replace(config, n_items=tokenizer.n_items, n_special=tokenizer.n_special)).eval()
    return Recommender.from_split(model, tokenizer, parts)


def seconds_of(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def seconds():
    "A whole report of Beauty."
    parts = split(load_dataset("beauty"))
    rec = untrained(parts, small().model)
    took = median(seconds_of(lambda: evaluate(rec, parts)) for _ in range(3))
    record("trust", {"evaluate_seconds": took, "evaluate_threads": torch.get_num_threads()}, NOTES)


def made_up_events() -> Events:
    "Every item once in the first ten events of somebody, then four events that favour low codes."
    rng = np.random.default_rng(0)
    once, again = rng.permutation(ITEMS).reshape(USERS, -1), (ITEMS * rng.random((USERS, 4)) ** 2).astype(np.int64)
    values = np.concatenate([once, again], axis=1).ravel().astype(np.int32)
    genres = np.array([f"g{i}|g{i + 1}" for i in range(20)])[rng.integers(0, 20, ITEMS)]
    names = pd.Index(np.arange(ITEMS).astype(str), name="item")
    items = pd.DataFrame({"title": names.to_numpy(), "genres": genres}, index=names)
    offsets = np.arange(USERS + 1) * (len(values) // USERS)
    return Events(name="made up", users=np.arange(USERS).astype(str).astype(object), sequences=Ragged(values, offsets),
                  times=np.arange(len(values)) + 1, items=items, provenance={})  # fmt: skip


def big_process():
    "Evaluate the made-up table and print the seconds and the peak memory of this process in GB."
    parts = split(made_up_events())
    rec = untrained(parts, replace(tiny().model, width=8, hidden=16, heads=1, kv_heads=1))
    took = seconds_of(lambda: evaluate(rec, parts))
    print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def big():
    "The same in a process of its own."
    if "evaluate_big_peak_gb" in recorded("trust"):
        return
    done = subprocess.run([sys.executable, __file__, "big_process"], check=True, stdout=subprocess.PIPE, text=True)
    took, peak = map(float, done.stdout.split()[-2:])
    record("trust", {"evaluate_big_seconds": took, "evaluate_big_peak_gb": peak}, NOTES)


def epoch_ratio(parts, config, other) -> float:
    "Seconds of an epoch of one configuration over those of another, measured in turns."
    tokenizer = ItemTokenizer.from_split(parts)
    windows = make_windows(tokenizer.encode_codes(parts.train, parts.events.items.index), config.model.max_len)
    filled = lambda c: replace(c, model=replace(c.model, n_items=tokenizer.n_items, n_special=tokenizer.n_special))
    per_epoch = lambda c: estimate(windows, filled(c), batches=8).seconds_per_epoch
    return median(per_epoch(config) / per_epoch(other) for _ in range(5))


def equal():
    "ItemLM and SASRec-CE with as many epochs, which cost about as many seconds: same width, batches and threads as in their presets."
    parts = split(load_dataset("beauty"))
    folder = ROOT / "runs/bench-trust"
    runs = {"item_lm": (small(seed=1), run_folder(plan(["beauty"], ["item_lm"], seeds=2)[1])),
            "sasrec_ce": (sasrec(epochs=small().epochs, patience=small().epochs), folder / "sasrec-equal")}  # fmt: skip
    recs = {name: fit(parts, config, out_dir=where, device="cpu") for name, (config, where) in runs.items()}
    reports = {name: evaluate(rec, parts) for name, rec in recs.items()}
    test = compare(reports, metrics=("ndcg@10",)).tests.iloc[0]
    sign = 1 if test["a"] == "item_lm" else -1
    figures = {f"equal_{name}_seconds": rec.log[-1]["seconds"] for name, rec in recs.items()}
    figures["equal_epoch_ratio"] = epoch_ratio(parts, small(), sasrec())
    figures |= {f"equal_{name}_ndcg@10": report.metric("ndcg@10", "test", "drop")["mean"] for name, report in reports.items()}
    record("trust", figures | {"equal_gain_ndcg@10": sign * test["difference"], "equal_gain_p": test["p"]}, NOTES)


def ndcg_of(result: dict, part: str) -> float | None:
    "NDCG@10 of a record under the one protocol."
    how = {"split": "leave_one_out", "seen": "drop", "candidates": "all"}
    for row in result["results"]:
        if row["part"] == part and how.items() <= row["protocol"].items() and "data_ties" not in row["protocol"]:
            return row["metrics"]["ndcg@10"]["mean"]


def settings(result: dict) -> str:
    "What two seeds of one setting have in common."
    params = {k: v for k, v in result.get("params", {}).items() if k not in ("seed", "out_dir", "device")}
    return json.dumps(params, sort_keys=True, default=str)


def accuracy():
    "Mean test NDCG@10 of each model on Beauty, from the records of nbs/compare.ipynb."
    found = defaultdict(lambda: defaultdict(dict))  # model -> setting -> seed -> its record
    for path in sorted((RESULTS / "compare").glob("*.json")):
        result = json.loads(path.read_text())
        if result.get("dataset") == "beauty" and result["model"] in MODELS and ndcg_of(result, "test") is not None:  # others hold tests
            found[result["model"]][settings(result)][result["seed"]] = result
    figures = {}
    for model in (model for model in MODELS if model in found):
        over_seeds = lambda seeds, part: mean(ndcg_of(r, part) or 0 for r in seeds.values())
        best = max(found[model].values(), key=lambda seeds: (len(seeds), over_seeds(seeds, "valid")))
        figures[f"{model}_beauty_ndcg@10"] = over_seeds(best, "test")
    if figures:
        record("trust", figures, NOTES)


PARTS = {"seconds": seconds, "equal": equal, "big": big, "accuracy": accuracy, "big_process": big_process}

if __name__ == "__main__":
    for part in sys.argv[1:] or ("seconds", "accuracy", "equal", "big"):
        PARTS[part]()
    if sys.argv[1:] != ["big_process"]:
        print(json.dumps(recorded("trust"), indent=1))
