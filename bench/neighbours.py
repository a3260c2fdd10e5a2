"""Records of networks with neighbours out of the recorded trainings of the networks alone: they are the same, seed for seed.

    python bench/neighbours.py beauty item_lm 0 1 2          # data, model, seeds; trains where no run is here
    python bench/neighbours.py ml-1m item_lm 0 long_history
    python bench/neighbours.py beauty item_lm_ensemble 0    # two networks; with neighbours and the time prior, item_lm_full

`-p model item_lm_knn` trains the same network once more and ends at the same figures: the votes play no part before the last step.
"""

import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import torch
from record import RESULTS

from itemlm.jobs import TrainParameters, find_job
from itemlm.runs.folder import claim_run
from itemlm.serving.recommender import load, write_run
from itemlm.study import append_record, finish_run, read_records, record_of
from itemlm.training.mix import mix


def recorded(asked: TrainParameters) -> bool:
    "Has the table a record of this run?"
    return any(one["params"] == asked.deciding() for one in read_records(RESULTS / "runs.jsonl"))


MIXED = {"item_lm_ensemble": ("item_lm_full", dict(time_prior=None))}  # of others: model_knn, without a time prior


def both(dataset: str, model: str, seed: int, preset: str) -> None:
    "Train, or open, a network; mix it; report and record what is not recorded"
    asked = lambda name: TrainParameters(dataset=dataset, model=name, seed=seed, preset=preset, device="cpu")
    name, how = MIXED.get(model, (f"{model}_knn", {}))
    alone, mixed = asked(model), asked(name)
    job = finish_run(alone)
    if not recorded(alone):
        append_record(RESULTS / "runs.jsonl", record_of(job))
    if recorded(mixed):
        return
    rec, other = load(job.folder, "cpu"), find_job(mixed)
    log = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    started = time.perf_counter()
    with claim_run(other.folder, other.identity, params=mixed.deciding()) as folder:
        together = mix(rec, job.parts, **how)
        together.log = log
        write_run(together, folder, finished=True)
    other.seconds["fit"] = log[-1]["seconds"] + time.perf_counter() - started
    other.report(load(other.folder, "cpu"))
    append_record(RESULTS / "runs.jsonl", record_of(other))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dataset, model, *rest = sys.argv[1:]
    preset = next((word for word in rest if not word.isdigit()), "small")
    for seed in [int(word) for word in rest if word.isdigit()] or [0]:
        both(dataset, model, seed, preset)
