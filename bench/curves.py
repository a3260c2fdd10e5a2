"""Architecture or world knowledge: learning curves of item tokens, text, and both, over shares of Beauty's users.

    python bench/curves.py                    # goes on where it stopped, in units of at most 20 minutes
    python bench/curves.py hierarchy 10 25    # one model, these shares in percent

`hierarchy_random` is the hierarchy whose MiniLM has random weights: the same network, no knowledge of the world. `minilm` and
`minilm_random` have no vectors of words: what the network makes of a text is all they know of it.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from record import ROOT, record, recorded

from itemlm.data.datasets import load_dataset
from itemlm.data.split import fewer_users, split
from itemlm.evaluation.report import evaluate
from itemlm.jobs import TrainParameters, open_job
from itemlm.models.item_lm import small
from itemlm.models.presets import MODELS as NAMED
from itemlm.models.recipe import TrainingConfig
from itemlm.models.text.encoders import ItemLLMConfig
from itemlm.models.text.rows import hierarchy, item_plus_text
from itemlm.runs.folder import RESUME
from itemlm.training.trainer import fit

MINUTES, SHARES = 20, (10, 25, 50, 100)
MODELS = {
    "item_lm": small,
    "hierarchy": hierarchy,
    "item_plus_text": item_plus_text,
    "hierarchy_random": lambda **changes: hierarchy(ItemLLMConfig(pretrained=False), **changes),
    "minilm": lambda **changes: without_words(hierarchy(**changes)),
    "minilm_random": lambda **changes: without_words(hierarchy(ItemLLMConfig(pretrained=False), **changes)),
}
NOTES = (
    "Test part of Beauty, leave-one-out, full ranking, seen items dropped, all users: <model>_<percent>_ndcg@10 and _recall@10 with "
    "95 % intervals over users (_lo, _hi), one seed. Trained on that share of the users (fewer_users, seed 0), the smaller shares within "
    "the larger, in batches of 256 training sequences times the share, 20 epochs: as many steps at every share. Models that read text know "
    "the whole catalogue (add_items), item tokens only what occurs in training. _valid: NDCG@10 on the validation part."
)


def without_words(config: TrainingConfig) -> TrainingConfig:
    "The same, without vectors of words"
    return replace(config, model=replace(config.model, words=0))


def folder_of(model: str, percent: int) -> Path:
    "Where its training goes on; the whole of a model that has a name is the very run of nbs/compare.ipynb"
    if percent == 100 and model in NAMED:
        return open_job(TrainParameters(dataset="beauty", model=model)).folder
    return ROOT / f"runs/bench-curves/{model}-{percent}"


def point(model: str, percent: int) -> dict | None:
    "Figures of one model at one share; None = not finished yet"
    whole = split(load_dataset("beauty"))
    parts, folder = fewer_users(whole, percent / 100), folder_of(model, percent)
    rec = fit(parts, MODELS[model](batch=max(16, 256 * percent // 100)), out_dir=folder, device="cpu", max_minutes=MINUTES)
    if (folder / RESUME).exists():
        return None
    unseen = whole.events.items[~whole.events.items.index.isin(rec.items.index)]
    unseen = unseen[rec.model.extendable(unseen)]
    if len(unseen):
        rec = rec.add_items(unseen)
    report = evaluate(rec, parts)
    found = {"valid": max(row["ndcg@10"] for row in rec.log)}
    for metric in ("ndcg@10", "recall@10"):
        value = report.metric(metric, "test", "drop")
        found |= {metric: value["mean"], f"{metric}_lo": value["lo"], f"{metric}_hi": value["hi"]}
    return {f"{model}_{percent}_{name}": value for name, value in found.items()}


if __name__ == "__main__":
    models = sys.argv[1:2] or MODELS
    shares = [int(share) for share in sys.argv[2:]] or SHARES
    for model in models:
        for percent in shares:
            figures = None
            while f"{model}_{percent}_ndcg@10" not in recorded("curves") and figures is None:
                if figures := point(model, percent):
                    record("curves", figures, NOTES)
    print(json.dumps(recorded("curves"), indent=1))
