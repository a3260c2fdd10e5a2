"""Seconds to a validation NDCG@10 of .060 on Beauty: ItemLM, then another library, in turn and at the same sizes.

    python bench/speed_quality.py                          # each of four libraries for at most an hour
    python bench/speed_quality.py hf --minutes 30 --threads 1

Each library's figures are recorded when it is done; the ratio that counts is the least of all four, once all are there.
"""

import argparse
import os

from record import ROOT, load, machine, record
from speed_peers import Library, write_data

from itemlm.data.datasets import load_dataset
from itemlm.data.split import split

WANTED = 0.060
LIBRARIES = "hf", "replay", "recbole", "rectools"
NOTES = (
    f"quality_ratio_*: seconds of another library to a validation NDCG@10 of {WANTED} on Beauty over ItemLM's right before it, both on "
    "{threads} thread(s), start from co-occurrence and validations included; sizes, batches and losses as for speed_peers; load of the "
    "machine in quality_load_*. quality_bound_* is 1 where the library had not reached it when it was stopped, at the seconds stated: "
    "the ratio is then a lower bound. time_to_quality_ratio: the least of {libraries}."
)


def reach(name: str, seconds: float) -> dict:
    "Seconds, the best NDCG@10 and epochs of a library that is stopped once it has reached what is wanted, or is out of time"
    library = Library(name, ROOT / "runs/peers/beauty-64")
    done = library.ask(f"train {WANTED} {seconds}")
    library.close()
    print(name, done, flush=True)
    return done


def least(figures: dict) -> dict:
    "The ratio to the fastest library, if all have been measured"
    ratios = {figures.get(f"quality_ratio_{name}"): name for name in LIBRARIES}
    if None in ratios:
        return {}
    fastest = min(ratios)
    return {"time_to_quality_ratio": fastest, "time_to_quality_is_bound": figures[f"quality_bound_{ratios[fastest]}"]}


def measure(name: str, minutes: float, threads: int) -> None:
    "One library beside ours"
    ours, theirs = reach("itemlm", 60 * minutes), reach(name, 60 * minutes)
    if ours["ndcg@10"] < WANTED:
        raise RuntimeError(f"ItemLM has not reached {WANTED} in {minutes:g} minutes")
    figures = {"ratio": theirs["seconds"] / ours["seconds"], "bound": int(theirs["ndcg@10"] < WANTED)}
    figures |= {"seconds": theirs["seconds"], "ndcg": theirs["ndcg@10"], "epochs": theirs["epochs"]}
    figures |= {"seconds_itemlm_beside": ours["seconds"], "threads": threads, "load": os.getloadavg()[0]}
    figures = {f"quality_{what}_{name}": figure for what, figure in figures.items()}
    known = load("speed")["figures"] if load("speed").get("machine") == machine() else {}
    words = dict(threads=threads, libraries=", ".join(LIBRARIES))
    record("speed", figures | least(known | figures), NOTES.format(**words), ("torch", "numpy", "pandas", "transformers"))


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("libraries", nargs="*", default=LIBRARIES, choices=[*LIBRARIES, LIBRARIES], metavar="library")
    asked.add_argument("--minutes", type=float, default=60, help="that each may take")
    asked.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    known = asked.parse_args()
    write_data(split(load_dataset("beauty")), ROOT / "runs/peers/beauty-64", 64, "beauty", known.threads)
    for name in known.libraries:
        measure(name, known.minutes, known.threads)
