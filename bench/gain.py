"""Is ItemLM's gain over SASRec, and over counting, more than chance? With and without neighbours, paired over users.

python bench/gain.py toys                        # ties as in the file; trains what has no run here
python bench/gain.py toys shuffled               # the order of equal times drawn by the seed
python bench/gain.py toys wide                   # both networks at width 128
python bench/gain.py toys wide 0 1 2             # a user's value is the mean over these seeds; without numbers it is seed 0
python bench/gain.py ml-1m long_history shuffled
python bench/gain.py ml-1m long_history item_lm  # without SASRec, which takes hours there: beside counting alone
"""

import json
import sys

import neighbours  # one thread, before torch
from record import record

from itemlm.evaluation.compare import Comparison, compare
from itemlm.jobs import find_job

NETWORKS, COUNTED = ("item_lm", "sasrec_ce"), ("sequential_knn", "symmetric_knn")
METRIC = "ndcg@10"
NOTES = (
    "Seed 0 of each, or a user's mean over as many seeds of each network as _gain_seeds says; strict leave-one-out, whole catalogue, seen "
    "items dropped, NDCG@10. gain_over_sasrec, gain_over_sasrec_knn, gain_over_knn: ItemLM with neighbours (one network) minus SASRec with "
    "full cross-entropy from random rows, minus the same SASRec with the same neighbours, and minus the better of the two sequential kNNs; "
    "single_gain_over_sasrec: ItemLM alone minus SASRec alone; _lo, _hi: 95 % bootstrap interval over users; _p: paired test over users, "
    "Holm's correction over all pairs of the six models, or of the four without SASRec where its figures are missing. wide: both networks "
    "at width 128. shuffled: ties in time in an order drawn by the seed, the same for every model; _shuffled_gain_p: the larger p of the "
    "gains over SASRec and over kNN, 1 where one of them is no gain."
)


def compared(dataset: str, preset: str, ties: str, networks: tuple[str, ...] = NETWORKS, seeds: tuple[int, ...] = (0,)) -> Comparison:
    "All models on the same users"
    for network in networks:
        for seed in seeds:
            neighbours.both(dataset, network, seed, preset, ties)
    counted = {name: [neighbours.asked(dataset, name, "small" if preset == "wide" else preset, 0, ties)] for name in COUNTED}
    for [params] in counted.values():  # they have no width, and no seed
        neighbours.trained(params)
    names = [*networks, *(f"{network}_knn" for network in networks)]
    asked = {name: [neighbours.asked(dataset, name, preset, seed, ties) for seed in seeds] for name in names} | counted
    return compare({name: [find_job(params).folder for params in several] for name, several in asked.items()}, metrics=(METRIC,))


def gain(found: Comparison, name: str, model: str, other: str) -> dict[str, float]:
    "A difference with its interval and its test"
    test = found.against(model, other, METRIC)
    ends = {"": test["difference"], "_lo": test["lo"], "_hi": test["hi"], "_p": test["p_holm"]}
    return {f"{name}{end}": value for end, value in ends.items()}


def figures(found: Comparison, prefix: str) -> dict[str, float]:
    "What is stated of one data set and one order of ties"
    better = next(name for name in found.names if name in COUNTED)  # best first
    pairs = {
        "single_gain_over_sasrec": ("item_lm", "sasrec_ce"),
        "gain_over_sasrec": ("item_lm_knn", "sasrec_ce"),
        "gain_over_sasrec_knn": ("item_lm_knn", "sasrec_ce_knn"),
        "gain_over_knn": ("item_lm_knn", better),
    }
    there = {name: pair for name, pair in pairs.items() if set(pair) <= set(found.names)}
    return {key: value for name, pair in there.items() for key, value in gain(found, f"{prefix}_{name}", *pair).items()}


def whole(stated: dict[str, float], prefix: str) -> float:
    "The p-value of a gain over both: of the less certain one"
    pairs = [(stated[f"{prefix}_gain_over_{other}"], stated[f"{prefix}_gain_over_{other}_p"]) for other in ("sasrec", "knn")]
    return max(p if difference > 0 else 1.0 for difference, p in pairs)


if __name__ == "__main__":
    dataset, *words = sys.argv[1:] or ["beauty"]
    ties = "shuffled" if "shuffled" in words else "as_is"
    networks = tuple(word for word in words if word in NETWORKS) or NETWORKS
    seeds = tuple(int(word) for word in words if word.isdigit()) or (0,)
    preset = next((word for word in words if word not in ("shuffled", *NETWORKS) and not word.isdigit()), "small")
    prefix = dataset + "_wide" * (preset == "wide") + "_shuffled" * (ties == "shuffled")
    stated = figures(compared(dataset, preset, ties, networks, seeds), prefix) | {f"{prefix}_gain_seeds": len(seeds)}
    if ties == "shuffled" and networks == NETWORKS:
        stated[f"{prefix}_gain_p"] = whole(stated, prefix)
    record("record", stated, NOTES, anywhere=True)
    print(json.dumps(stated, indent=1))
