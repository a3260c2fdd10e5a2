"""The PPMI start for the baselines on Beauty: what the item table begins with is the only thing changed in their presets.

    python bench/ppmi.py               # SASRec, GRU4Rec, HSTU and BERT4Rec; goes on where it stopped, in units of at most 20 minutes
    python bench/ppmi.py hstu bert4rec  # these; another process can do the others meanwhile

One thread a run, as the recorded runs from random rows had. A finished run is added to bench/results/runs.jsonl with `init: ppmi` among its
parameters; bench/house.py states its figure.
"""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import torch
from house import BASELINES
from record import RESULTS, ROOT, reached, runs

from itemlm.jobs import TrainParameters
from itemlm.study import append_record, finish_run, record_of

MINUTES = 20


def recorded(model: str) -> list[dict]:
    "Records of a model that began with the PPMI start"
    return runs(dataset="beauty", model=model, preset="small", protocol="leave_one_out", ties="as_is", init="ppmi")


def train(model: str) -> None:
    "Train to the end, unit by unit, evaluate and record"
    asked = TrainParameters(dataset="beauty", model=model, init="ppmi", device="cpu", out_dir=str(ROOT / "runs/bench-ppmi" / model))
    job = None
    while job is None:
        job = finish_run(asked, MINUTES)
    append_record(RESULTS / "runs.jsonl", record_of(job))


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = sys.argv[1:] or list(BASELINES.values())
    if unknown := set(asked) - set(BASELINES.values()):
        sys.exit(f"no baseline {', '.join(unknown)}: valid are {', '.join(BASELINES.values())}")
    for model in asked:
        if not recorded(model):
            train(model)
        print(model, *(f"{reached(run, 'ndcg@10'):.4f}" for run in recorded(model)))
