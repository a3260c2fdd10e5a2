"""The same budget of tuning for every trained model, on Beauty's validation part; the test part is never looked at.

    python bench/search.py               # goes on where it stopped
    python bench/search.py hstu item_lm  # these models

Four settings a model, each one change away from its preset: less dropout, half and twice the learning rate, and one thing of the
model's own. Each trains for four minutes of one thread on the preset's own schedule and stands against what the preset had reached
after as many epochs. The one furthest ahead trains to its end, if its lead is larger than what another seed makes; a setting
that is ahead there too is worth a new preset.
"""

import json
import os
import sys
from dataclasses import fields, replace

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a budget counted in minutes of one thread

import torch
from record import ROOT, record, recorded

from itemlm import fit, load_dataset, split
from itemlm.run import configured, run_folder
from itemlm.study import plan

MINUTES = 4
LEAD = 1.01  # seeds of one setting lie about a hundredth apart
SETTINGS = {
    "item_lm": {"dropout": (0.3,), "lr": (1e-3, 4e-3), "position": ("learned",)},
    "sasrec_ce": {"dropout": (0.5,), "lr": (1e-3, 4e-3), "heads": (2,)},
    "sasrec_bce": {"dropout": (0.4,), "lr": (5e-4, 2e-3), "heads": (2,)},
    "gru4rec_ce": {"dropout": (0.3,), "lr": (1e-3, 4e-3), "layers": (2,)},
    "hstu": {"dropout": (0.4,), "lr": (1e-3, 4e-3), "temperature": (0.07,)},
    "bert4rec": {"dropout": (0.1,), "lr": (2e-3, 8e-3), "masked": (0.5,)},
    "text_beam": {"dropout": (0.0,), "lr": (1e-3, 4e-3), "batch": (128,)},
}
NOTES = (
    "Validation NDCG@10 on Beauty, leave-one-out, full ranking, seen items dropped, seed 0 (text_beam: 1,000 targets by beam search). "
    "<model>_<setting>_valid: best within the _epochs trained; _preset: the preset's best within as many epochs of the same "
    "schedule; _whole: trained to the end, and then <model>_preset_whole stands beside it. One thread a run, two runs at a time."
)


def changed(config, field: str, value):
    "The same configuration with one field of it, or of its model, set to another value."
    if field in {f.name for f in fields(config.model)}:
        return replace(config, model=replace(config.model, **{field: value}))
    return replace(config, **{field: value})


def best(log: list[dict], epochs: float = float("inf")) -> float:
    "Best validation NDCG@10 within so many epochs."
    return max(row["ndcg@10"] for row in log if row["epoch"] <= epochs)


def tried(parts, model: str, field: str, value, minutes: float | None) -> list[dict]:
    "Log of one setting, trained so much longer, or to its end."
    config = changed(configured(model, "small", seed=0), field, value)
    return fit(parts, config, ROOT / f"runs/bench-search/{model}-{field}-{value}", device="cpu", max_minutes=minutes).log


def search(parts, model: str):
    "All settings of a model for four minutes each, the most promising one to its end."
    preset = fit(parts, configured(model, "small", seed=0), run_folder(plan(["beauty"], [model])[0]), device="cpu").log
    settings = [(field, value) for field, values in SETTINGS[model].items() for value in values]
    for field, value in settings:
        key = f"{model}_{field}_{value}"
        if f"{key}_valid" not in recorded("search"):
            log = tried(parts, model, field, value, MINUTES)
            epochs = int(log[-1]["epoch"]) or log[-1]["epoch"]  # whole ones, where there is one
            record("search", {f"{key}_epochs": epochs, f"{key}_valid": best(log, epochs), f"{key}_preset": best(preset, epochs)}, NOTES)
    known = recorded("search")
    ratio = {s: known[f"{model}_{s[0]}_{s[1]}_valid"] / known[f"{model}_{s[0]}_{s[1]}_preset"] for s in settings}
    field, value = max(ratio, key=ratio.get)
    if ratio[field, value] > LEAD and f"{model}_{field}_{value}_whole" not in known:
        whole = best(tried(parts, model, field, value, None))
        record("search", {f"{model}_{field}_{value}_whole": whole, f"{model}_preset_whole": best(preset)}, NOTES)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = split(load_dataset("beauty"))
    for model in sys.argv[1:] or SETTINGS:
        search(parts, model)
    print(json.dumps({key: value for key, value in recorded("search").items()}, indent=1))
