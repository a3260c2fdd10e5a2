"""Records of networks with neighbours, and of several networks together, out of the recorded trainings of the networks alone.

    python bench/neighbours.py beauty item_lm 0 1 2          # data, model, seeds; trains where no run is here
    python bench/neighbours.py ml-1m item_lm 0 long_history
    python bench/neighbours.py beauty item_lm 0+1+2          # these seeds as one model, with neighbours and time prior
    python bench/neighbours.py ml-1m item_lm 0+ long_history # one network, with both
    python bench/neighbours.py beauty item_lm+sasrec_ce 0    # two kinds of networks, likewise
    python bench/neighbours.py beauty hierarchy+item_lm 0    # late fusion, likewise
    python bench/neighbours.py toys item_lm+sasrec_ce 0+1/0  # other seeds of each kind
    python bench/neighbours.py beauty item_lm_ensemble 0     # two networks on the same batches; mixed, it is item_lm_full

`-p model item_lm_knn` trains the same network once more and ends at the same figures: the votes play no part before the last step.
"""

import json
import os
import sys
import time
from dataclasses import replace

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import torch
from record import RESULTS

from itemlm.jobs import Job, TrainParameters, find_job
from itemlm.runs.folder import claim_run
from itemlm.serving.recommender import load, write_run
from itemlm.study import append_record, finish_run, read_records, record_of
from itemlm.training.mix import mix, together

MIXED = {"item_lm_ensemble": ("item_lm_full", dict(time_prior=None))}  # of others: model_knn, without a time prior
FULL = {  # several networks, by their names
    "item_lm": "item_lm_full",
    "item_lm+sasrec_ce": "item_lm_sasrec_full",
    "hierarchy+item_lm": "hierarchy_full",
}


def asked(dataset: str, model: str, preset: str, seed: int, ties: str = "as_is") -> TrainParameters:
    "The parameters of a run"
    return TrainParameters(dataset=dataset, model=model, seed=seed, preset=preset, ties=ties, device="cpu")


def recorded(params: dict) -> bool:
    "Has the table a record of this run?"
    return any(one["params"] == params for one in read_records(RESULTS / "runs.jsonl"))


def trained(wanted: TrainParameters) -> Job:
    "The finished run, recorded"
    job = finish_run(wanted)
    if not recorded(wanted.deciding()):
        append_record(RESULTS / "runs.jsonl", record_of(job))
    return job


def log_of(job: Job) -> list[dict]:
    return [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]


def both(dataset: str, model: str, seed: int, preset: str, ties: str = "as_is") -> None:
    "Train, or open, a network; mix it; report and record what is not recorded"
    name, how = MIXED.get(model, (f"{model}_knn", {}))
    job, mixed = trained(asked(dataset, model, preset, seed, ties)), asked(dataset, name, preset, seed, ties)
    if not (recorded(mixed.deciding()) and find_job(mixed).reported):
        keep([job], find_job(mixed), mixed.deciding(), how)


def several(dataset: str, models: str, seeds: str, preset: str) -> None:
    "The same for networks of several seeds, or of two kinds, as one model"
    if models not in FULL:
        sys.exit(f"no model is named for {models} together: there are {', '.join(FULL)}")
    kinds, apart = models.split("+"), seeds.split("/")
    apart = apart * len(kinds) if len(apart) == 1 else apart
    jobs = [trained(asked(dataset, kind, preset, int(seed))) for kind, some in zip(kinds, apart) for seed in some.split("+") if seed]
    job = find_job(asked(dataset, FULL[models], preset, int(apart[0].partition("+")[0])))
    identity = json.loads(json.dumps(job.identity)) | {"apart": [one.identity for one in jobs]}
    if "+" not in models:
        identity["fit"]["model"]["network"]["members"] = len(jobs)  # the recipe's are two
    params, digest = job.asked.deciding() | {"apart": f"{models} {seeds}"}, job.folder.name.rpartition("-")[2]
    if not recorded(params):
        folder = job.folder.with_name(f"{dataset}-{FULL[models]}-{preset}-seeds{seeds.replace('/', '-')}-{digest}")
        keep(jobs, replace(job, folder=folder, identity=identity), params, dict(time_prior=None))


def keep(jobs: list[Job], other: Job, params: dict, how: dict) -> None:
    "Put the networks of runs together, with neighbours; save and report it, and record what is not recorded"
    recs, started = [load(job.folder, "cpu") for job in jobs], time.perf_counter()
    with claim_run(other.folder, other.identity, params=params) as folder:
        made = mix(recs[0] if len(recs) == 1 else together(recs, jobs[0].parts), jobs[0].parts, **how)
        seconds = round(sum(log_of(job)[-1]["seconds"] for job in jobs) + time.perf_counter() - started, 2)
        *before, last = log_of(jobs[0])
        made.log = [*before, last | {"seconds": seconds}]  # of all networks, and of putting them together
        write_run(made, folder, finished=True)
    other.seconds["fit"] = seconds
    other.report(load(other.folder, "cpu"))
    if not recorded(params):
        append_record(RESULTS / "runs.jsonl", record_of(other) | {"params": params})


if __name__ == "__main__":
    torch.set_num_threads(1)
    dataset, model, *rest = sys.argv[1:] or ["beauty", "item_lm", "0"]
    seeds = [word for word in rest if word[0].isdigit()] or ["0"]
    preset = next((word for word in rest if not word[0].isdigit()), "small")
    for seed in seeds:
        if "+" in model or {"+", "/"} & set(seed):
            several(dataset, model, seed, preset)
        else:
            both(dataset, model, int(seed), preset)
