"""What daily use costs: rules, lists for everybody. Of the same topic: use_update.py, use_referee.py and use_leak.py.

    python bench/use.py                # everything that this commit has no figure for yet
    python bench/use.py rules          # one part, also a second time: rules, recommend_all

All on Beauty. Speed does not depend on what a model has learnt, so the models of `rules` and `recommend_all` are as wide as the
default and untrained.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from record import record, recorded, seconds_of

from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.models.item_lm import small
from itemlm.serving.recommender import Recommender
from itemlm.serving.rules import Rules

K, ROUNDS, SAMPLE = 100, 3, 40
NOTES = (  # of this and of the scripts use_update, use_referee and use_leak: one topic
    "Beauty, 22,363 users, lists of 100, seen items dropped, an untrained model of the default width. rules_time_ratio: processor time "
    "of all lists with an allow-list of half the catalogue, drawn at random, and at most 5 items of a brand, over that without rules, "
    "median of 3 interleaved rounds; a sample of the lists is equal to a walk down the whole ranking. Beauty's copy has no brands: "
    "they are drawn by Zipf's law with exponent 1 from 2,000. recommend_all_seconds: all lists, without rules, into a Parquet file. "
    "recommend_all_peak_gb: peak resident memory of a process that loads the data and writes them. "
    "update_*: MovieLens-100k, default preset, trained on what lies before 1998-03-22, then updated with 31 days, one after another; "
    "update_*_ml_latest_small: the same before 2015-07-13 and with 32 slices of two weeks, on which the defaults of an update were "
    "chosen. update_gain: NDCG@10 (full ranking, seen items dropped, mean over a user's events, at most 20) of the next slice, updated "
    "minus old, paired over users and slices; lo and hi: 95 % bootstrap. update_time_share: processor seconds of an update, the mean "
    "over slices, over those of a full training (an epoch with its validation, times the epochs that were trained). update_anew_gain: "
    "updated minus trained anew in the middle of the slices, on those after it, neither learning on. "
    "referee_difference: the largest difference of any metric, over its mean and the values of single users, between a report of the "
    "internal path and one of the same lists (50 items, scores) given as a table, between tables by rank and ir-measures, and the same "
    "for lists of RecTools 0.19 (cosine item kNN); leave-one-out test part, a model of one epoch, all users. "
    "leak_mb_100_changes: what 76 recolourings of the map and 24 changes of the run add to the browser tab's JavaScript heap after garbage "
    "collection and to the kernel's memory, together, after a first round of half as many; of the figures only the shown one is left. "
    "controls_tested: kinds of controls, by tab and name, that tests/test_controls.py finds and drives."
)


def beauty() -> Recommender:
    "A recommender of all of Beauty's users, with a brand for each item"
    parts = split(load_dataset("beauty"))
    tokenizer = ItemTokenizer.from_split(parts)
    torch.manual_seed(0)
    rec = Recommender.from_split(small().model.with_known(n_items=tokenizer.n_items).build().eval(), tokenizer, parts)
    if "brand" not in rec.items:
        share = 1 / np.arange(1, 2001)
        rec.items["brand"] = [f"brand {n}" for n in np.random.default_rng(0).choice(2000, rec.n_items, p=share / share.sum())]
    return rec


def by_walking(rec: Recommender, row: int, allowed: set, most: int) -> list[str]:
    "A user's list, by a walk down the whole ranking"
    ids, brands = rec.tokenizer.items, rec.items["brand"].to_numpy()
    scores = rec.scores(rec.histories.take([row]))[0]
    had, found, counts = set(rec.tokenizer.decode(rec.histories[row])), [], {}
    for column in scores.sort(descending=True, stable=True).indices.tolist():
        brand = brands[column]
        if len(found) < K and ids[column] in allowed and ids[column] not in had and counts.get(brand, 0) < most:
            found.append(ids[column])
            counts[brand] = counts.get(brand, 0) + 1
    return found


def rules() -> dict:
    "The same lists with and without rules"
    rec, rng = beauty(), np.random.default_rng(0)
    allowed, most = rng.choice(rec.tokenizer.items, rec.n_items // 2, replace=False), 5
    ruled = Rules(allowed=allowed, at_most={"brand": most})
    for row in rng.choice(len(rec.users), SAMPLE, replace=False):  # alone, so that the scores are the same to the last digit
        assert rec.recommend(users=[rec.users[row]], k=K, rules=ruled)["item"].tolist() == by_walking(rec, row, set(allowed), most)
    runs = {"with": lambda: rec.topk(rec.histories, K, rules=ruled), "without": lambda: rec.topk(rec.histories, K)}
    seconds = [{name: processor_seconds(run) for name, run in runs.items()} for _ in range(ROUNDS)]
    return {"rules_time_ratio": median(found["with"] / found["without"] for found in seconds)}


def processor_seconds(call: Callable[[], object]) -> float:
    "How long a call keeps one thread busy, whatever else the machine does"
    start = time.process_time()
    call()
    return time.process_time() - start


def write_lists(folder: str) -> dict:
    "What a process of its own does, and what it took"
    rec, path = beauty(), Path(folder) / "lists.parquet"
    seconds = seconds_of(lambda: rec.recommend_all(path, k=K, verbose=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert len(pd.read_parquet(path, columns=["rank"])) == K * len(rec.users)
    return {"recommend_all_seconds": seconds, "recommend_all_peak_gb": peak}


def recommend_all() -> dict:
    "The lists of everybody as a file"
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(write_lists, [folder])


PARTS: dict[str, tuple[Callable[[], dict], tuple[str, ...]]] = {  # name -> what measures it, the figures it gives
    "rules": (rules, ("rules_time_ratio",)),
    "recommend_all": (recommend_all, ("recommend_all_seconds", "recommend_all_peak_gb")),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        measure, figures = PARTS[name]
        if sys.argv[1:] or not set(figures) <= set(recorded("use")):
            record("use", measure(), NOTES)
    print(json.dumps(recorded("use"), indent=1))
