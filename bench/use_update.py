"""New events every day: what an update costs and brings, against the old model and against training anew.

    python bench/use_update.py                    # MovieLens-100k, day by day
    python bench/use_update.py ml-latest-small    # two weeks at a time: a day there has three users

The data up to a moment are trained on once (the default preset), and then given one slice of time after another. After each, what
people took in the next slice is asked of the old model and of the updated one; in the middle a model is trained anew on everything
and asked the same. Every unit is recorded when it ends; runs lie under runs/. The defaults of an update were chosen on the slices of
MovieLens latest-small; those of MovieLens-100k chose nothing.
"""

import sys
import time

import numpy as np
import pandas as pd
import torch
from record import ROOT, record
from use import NOTES

from itemlm.data.datasets import load_dataset
from itemlm.data.events import read_events
from itemlm.data.split import Part, Split, split
from itemlm.metrics.ranks import ndcg
from itemlm.metrics.statistics import bootstrap_interval
from itemlm.models.item_lm import small
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import fit

DAY = 86_400
SETS = {"ml-100k": ("1998-03-22", DAY, 31), "ml-latest-small": ("2015-07-13", 14 * DAY, 32)}  # first slice, its seconds, slices


def before(frame: pd.DataFrame, stop: float) -> Split:
    "What is known at a moment, split to be trained on"
    return split(read_events(frame[frame["time"] < stop], name="the events so far", verbose=False))


def questions(frame: pd.DataFrame, start: float, stop: float, most: int = 20) -> Split:
    "The newest events of each user in a time, each to be guessed from what the user had before"
    events = read_events(frame[frame["time"] < stop], name="the events so far", verbose=False)
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


def main(name: str = "ml-100k"):
    torch.set_num_threads(1)
    frame, (first, length, slices) = load_dataset(name).to_frame(), SETS[name]
    runs, end = ROOT / f"runs/use/update-{name}", "" if name == "ml-100k" else f"_{name.replace('-', '_')}"
    keep = lambda figures: record(
        "use", {f"update_{key}{end}": value if key == "pairs" else float(value) for key, value in figures.items()}, NOTES
    )
    moments = pd.Timestamp(first).timestamp() + length * np.arange(slices + 2)
    base = fit(before(frame, moments[0]), small(), out_dir=runs / "base", device="cpu")
    asked = [questions(frame, *moments[n + 1 : n + 3]) for n in range(slices)]
    old, rec, gains, seconds = [scores(base, parts) for parts in asked], base, [], []
    for n, start in enumerate(moments[:slices]):
        some = frame[(frame["time"] >= start) & (frame["time"] < start + length)]
        rec, took = clocked(lambda: rec.update(some, verbose=False)) if len(some) else (rec, 0.0)  # noqa: B023
        seconds.append(took)
        gains.append(scores(rec, asked[n]) - old[n])
        if n == slices // 2 - 1:
            middle = rec
    paired = np.concatenate(gains)
    keep(dict(zip(("gain", "gain_lo", "gain_hi"), (paired.mean(), *bootstrap_interval(paired)))) | {"pairs": len(paired)})
    keep({"seconds": float(np.mean(seconds)), "old_ndcg@10": float(np.concatenate(old).mean())})
    epoch = clocked(lambda: fit(before(frame, moments[0]), small(epochs=1), device="cpu", verbose=False))[1]
    full = epoch * base.log[-1]["epoch"]
    keep({"full_training_seconds": full, "time_share": float(np.mean(seconds) / full)})
    anew = fit(before(frame, moments[slices // 2]), small(), out_dir=runs / "anew", device="cpu")
    differ = np.concatenate([scores(middle, parts) - scores(anew, parts) for parts in asked[slices // 2 - 1 :]])
    keep(dict(zip(("anew_gain", "anew_gain_lo", "anew_gain_hi"), (differ.mean(), *bootstrap_interval(differ)))))


if __name__ == "__main__":
    main(*sys.argv[1:2])
