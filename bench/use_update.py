"""New events every two weeks: what an update costs and brings, against the old model and against training anew.

    python bench/use_update.py

MovieLens latest-small up to its last tenth of the time is trained on once (the default preset), and then given two weeks of
events after another. After each, what people took in the next two weeks is asked of the old model and of the updated one; in the
middle a model is trained anew on everything and asked the same. Every unit is recorded when it ends; runs lie under runs/.
"""

import sys
import time

import numpy as np
import pandas as pd
import torch
from record import ROOT, record, recorded
from use import NOTES

from itemlm.data.datasets import load_dataset
from itemlm.data.events import read_events
from itemlm.data.split import Part, Split, split
from itemlm.metrics.ranks import ndcg
from itemlm.metrics.statistics import bootstrap_interval
from itemlm.models.item_lm import small
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import fit

RUNS = ROOT / "runs/bench-use_update"
NAME, CUT, SLICE, SLICES = "ml-latest-small", pd.Timestamp("2015-07-13").timestamp(), 14 * 86_400, 32


def before(frame: pd.DataFrame, stop: float) -> Split:
    "What is known at a moment, split to be trained on"
    return split(read_events(frame[frame["time"] < stop], name=NAME, verbose=False))


def questions(frame: pd.DataFrame, start: float, stop: float, most: int = 20) -> Split:
    "The newest events of each user in a time, each to be guessed from what the user had before"
    events = read_events(frame[frame["time"] < stop], name=NAME, verbose=False)
    rows = np.repeat(np.arange(events.n_users), events.sequences.lengths)
    place = np.arange(events.n_interactions) - events.sequences.offsets[rows]
    asked = np.flatnonzero((events.times >= start) & (place > 0) & (events.sequences.lengths[rows] - place <= most))
    rows, place = rows[asked], place[asked]
    part = Part(
        name="test", users=events.users[rows], histories=events.sequences.take(rows).head(place), targets=events.sequences.values[asked]
    )
    return Split(events=events, train=events.sequences, train_users=events.users, valid=part, test=part, protocol={"split": "slices"})


def scores(rec: Recommender, parts: Split) -> pd.Series:
    "NDCG@10 of each user"
    ranks = rec.rank_part(parts, "test", seen=("drop",))["drop"]
    return pd.Series(ndcg(ranks, 10), parts.test.users).groupby(level=0).mean()


def clocked(run) -> tuple[object, float]:  # what it returns, processor seconds
    started = time.process_time()
    return run(), time.process_time() - started


def main():
    torch.set_num_threads(1)
    frame = load_dataset(NAME).to_frame()
    moments = CUT + SLICE * np.arange(SLICES + 2)
    base = fit(before(frame, CUT), small(), out_dir=RUNS / "base", device="cpu")
    asked = [questions(frame, *moments[n + 1 : n + 3]) for n in range(SLICES)]
    old, rec, gains, seconds = [scores(base, parts) for parts in asked], base, [], []
    for n, start in enumerate(moments[:SLICES]):
        day = frame[(frame["time"] >= start) & (frame["time"] < start + SLICE)]
        rec, took = clocked(lambda: rec.update(day, verbose=False)) if len(day) else (rec, 0.0)  # noqa: B023
        seconds.append(took)
        gains.append(scores(rec, asked[n]) - old[n])
        if n == SLICES // 2 - 1:
            middle = rec
    paired = np.concatenate(gains)
    lo, hi = map(float, bootstrap_interval(paired))
    figures = {"update_gain": float(paired.mean()), "update_gain_lo": lo, "update_gain_hi": hi, "update_pairs": len(paired)}
    record("use", figures | {"update_seconds": float(np.mean(seconds)), "update_old_ndcg@10": float(np.concatenate(old).mean())}, NOTES)
    epoch = clocked(lambda: fit(before(frame, CUT), small(epochs=1), device="cpu", verbose=False))[1]
    full = epoch * base.log[-1]["epoch"]
    record("use", {"update_full_training_seconds": full, "update_time_share": float(np.mean(seconds) / full)}, NOTES)
    if "anew" in sys.argv or "update_anew_gain" not in recorded("use"):
        half = SLICES // 2
        anew = fit(before(frame, moments[half]), small(), out_dir=RUNS / "anew", device="cpu")
        differ = np.concatenate([scores(middle, parts) - scores(anew, parts) for parts in asked[half - 1 :]])
        lo, hi = map(float, bootstrap_interval(differ))
        record("use", {"update_anew_gain": float(differ.mean()), "update_anew_gain_lo": lo, "update_anew_gain_hi": hi}, NOTES)


if __name__ == "__main__":
    main()
