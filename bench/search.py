"""The same budget of tuning for every trained model, on Beauty's validation part; the test part is never looked at.

    python bench/search.py               # goes on where it stopped
    python bench/search.py hstu item_lm  # these models

Forty minutes of one thread a model, in units of four. Four settings, each one change away from the preset, get the first units: less
dropout, half and twice the learning rate, and one thing of the model's own. Each stands against what the preset had reached after
as many epochs of the same schedule. The others go to whichever is furthest ahead, until none is ahead by more than seeds differ.
A setting that is still ahead at its end is worth a new preset. GRU4Rec's rate of 4e-3 and HSTU's temperature of .07 were, and are
the presets now, so the recorded search has them among the settings.
"""

import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a budget counted in minutes of one thread

import torch
from record import ROOT, record, recorded

from itemlm.data.datasets import load_dataset
from itemlm.data.split import Split, split
from itemlm.jobs import TrainParameters, open_job
from itemlm.models.presets import preset
from itemlm.models.recipe import TrainingConfig
from itemlm.runs.folder import RESUME
from itemlm.training.trainer import fit

UNIT, BUDGET = 4, 40  # minutes
LEAD = 1.01  # seeds of one setting lie about a hundredth apart
SETTINGS = {
    "item_lm": {"dropout": (0.3,), "lr": (1e-3, 4e-3), "position": ("learned",)},
    "sasrec_ce": {"dropout": (0.5,), "lr": (1e-3, 4e-3), "heads": (2,)},
    "sasrec_bce": {"dropout": (0.4,), "lr": (5e-4, 2e-3), "heads": (2,)},
    "gru4rec_ce": {"dropout": (0.3,), "lr": (2e-3, 8e-3), "layers": (2,)},
    "hstu": {"dropout": (0.4,), "lr": (1e-3, 4e-3), "temperature": (0.05,)},
    "bert4rec": {"dropout": (0.1,), "lr": (2e-3, 8e-3), "masked": (0.5,)},
    "text_beam": {"dropout": (0.0,), "lr": (1e-3, 4e-3), "batch": (128,)},
}
NOTES = (
    "Validation NDCG@10 on Beauty, leave-one-out, full ranking, seen items dropped, seed 0 (text_beam: 1,000 targets by beam search). "
    "<model>_<setting>_valid: best within the _epochs trained; _preset: the preset's best within as many; _seconds: what the setting "
    "had of its model's budget. One thread a run, two runs at a time."
)


def changed(config: TrainingConfig, field: str, value: object) -> TrainingConfig:
    "The same configuration with one field of it, or of its model, set to another value"
    if field in {f.name for f in fields(config.model)}:
        return replace(config, model=replace(config.model, **{field: value}))
    return replace(config, **{field: value})


def best(log: list[dict], epochs: float = float("inf")) -> float:
    "Best validation NDCG@10 within so many epochs"
    return max(row["ndcg@10"] for row in log if row["epoch"] <= epochs)


def unit(parts: Split, model: str, field: str, value: object, before: list[dict]) -> None:
    "Train a setting for another unit, and record where it and the preset stand"
    config = changed(preset(model, "small"), field, value)
    log = fit(parts, config, folder(model, field, value), device="cpu", max_minutes=UNIT).log
    epochs = int(log[-1]["epoch"]) or log[-1]["epoch"]  # whole ones, where there is one
    found = {"epochs": epochs, "seconds": log[-1]["seconds"], "valid": best(log, epochs), "preset": best(before, epochs)}
    record("search", {f"{model}_{field}_{value}_{name}": figure for name, figure in found.items()}, NOTES)


def folder(model: str, field: str, value: object) -> Path:
    "Where a setting's training goes on"
    return ROOT / f"runs/bench-search/{model}-{field}-{value}"


def search(parts: Split, model: str) -> None:
    "Spend a model's budget"
    before = fit(parts, preset(model, "small"), open_job(TrainParameters(dataset="beauty", model=model)).folder, device="cpu").log
    settings = [(field, value) for field, values in SETTINGS[model].items() for value in values]
    for setting in settings:
        if f"{model}_{setting[0]}_{setting[1]}_valid" not in recorded("search"):
            unit(parts, model, *setting, before)
    while True:
        known = {setting: stand(model, *setting) for setting in settings}
        going_on = [s for s in settings if (folder(model, *s) / RESUME).exists() and known[s]["valid"] > LEAD * known[s]["preset"]]
        if not going_on or sum(k["seconds"] for k in known.values()) >= 60 * BUDGET:
            return
        unit(parts, model, *max(going_on, key=lambda s: known[s]["valid"] / known[s]["preset"]), before)


def stand(model: str, field: str, value: object) -> dict:
    "What is recorded of a setting"
    figures = recorded("search")
    return {name: figures[f"{model}_{field}_{value}_{name}"] for name in ("epochs", "seconds", "valid", "preset")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = split(load_dataset("beauty"))
    for model in sys.argv[1:] or SETTINGS:
        search(parts, model)
    print(json.dumps(recorded("search"), indent=1))
