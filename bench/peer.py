"""Our SASRec beside an independent one: RecTools 0.19, same data, same settings, same questions, both scored here.

    python bench/peer.py              # makes an environment for RecTools in runs/peer, then what this commit has no figure for

Both read the newest 50 training items of each user of MovieLens-100K, width 64, 2 blocks, 1 head, dropout .2, full cross-entropy,
batches of 64 users, at most 60 epochs; the epoch is chosen by NDCG@10 on the validation part.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from statistics import mean, stdev

import numpy as np
import pandas as pd
import torch
from record import ROOT, record, recorded

from itemlm.core import Ragged
from itemlm.data.datasets import load_dataset
from itemlm.data.events import Events
from itemlm.data.split import Split, split
from itemlm.evaluation.report import evaluate
from itemlm.models.neural import sasrec
from itemlm.training.trainer import fit

SEEDS, EPOCHS, EVERY, LENGTH = 2, 60, 5, 50
THEIRS = {
    "n_factors": 64,
    "n_blocks": 2,
    "n_heads": 1,
    "dropout_rate": 0.2,
    "session_max_len": LENGTH,
    "batch_size": 64,
    "lr": 1e-3,
    "loss": "softmax",
}
NOTES = (
    "SASRec with full cross-entropy, ours (sasrec_*) and RecTools' (rectools_*): MovieLens-100K, leave-one-out, full ranking, seen "
    "items dropped, all users; the newest 51 training items of each user, width 64, 2 blocks, 1 head, dropout .2, batches of 64, "
    f"at most {EPOCHS} epochs. Ours: AdamW 2e-3 with a cosine to zero, batches of all lengths, best of every epoch on the validation part; "
    f"RecTools: its own Adam 1e-3, constant, best of every {EVERY}th epoch on the validation part. Mean and standard deviation over "
    f"{SEEDS} seeds; sasrec_over_rectools_*: ratio of the means. Seconds are not compared: the two did not run side by side."
)


def short(parts: Split) -> Split:
    "The same split with nothing but the newest items in the training part"
    return replace(parts, train=parts.train.last(LENGTH + 1))


def table(events: Events, users: np.ndarray, histories: Ragged) -> pd.DataFrame:
    "Histories as RecTools reads them; the hours stand for the order"
    order = np.arange(len(histories.values)) - np.repeat(histories.offsets[:-1], histories.lengths)
    when = pd.Timestamp("2000-01-01") + pd.to_timedelta(order, unit="h")
    return pd.DataFrame({"user_id": np.repeat(users, histories.lengths), "item_id": histories.values, "weight": 1, "datetime": when})


def python_of_peer() -> str:
    "An interpreter that knows RecTools"
    folder = ROOT / "runs/peer/env"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "-q", f"torch=={torch.__version__.split('+')[0]}"], check=True)
        subprocess.run([folder / "bin/pip", "install", "-q", "rectools[torch]==0.19.0", "pyarrow<20"], check=True)
        (folder / "done").touch()
    return str(folder / "bin/python")


def ndcg(lists: pd.DataFrame, users: np.ndarray, targets: np.ndarray) -> float:
    "NDCG@10 of written lists; a user without a list has missed"
    hit = lists.merge(pd.DataFrame({"user_id": users, "item_id": targets}))
    return float((1 / np.log2(hit["rank"] + 1)).sum() / len(users))


def rectools(parts: Split, seed: int) -> float:
    "NDCG@10 on the test part"
    folder = ROOT / f"runs/peer/rectools-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    how = {"seed": seed, "threads": torch.get_num_threads(), "epochs": EPOCHS, "every": EVERY, "parts": ["valid", "test"]}
    (folder / "settings.json").write_text(json.dumps(THEIRS | how))
    table(parts.events, parts.train_users, parts.train).to_parquet(folder / "fit.parquet")
    for part in (parts.valid, parts.test):
        table(parts.events, part.users, part.histories).to_parquet(folder / f"{part.name}.parquet")
    if not (folder / "done").exists():
        subprocess.run([python_of_peer(), ROOT / "bench/peer_rectools.py", folder], check=True)
    lists = lambda part, epoch: pd.read_parquet(folder / f"{part.name}-{epoch}.parquet")
    over_epochs = lambda part: [ndcg(lists(part, epoch), part.users, part.targets) for epoch in range(EVERY, EPOCHS + 1, EVERY)]
    return over_epochs(parts.test)[int(np.argmax(over_epochs(parts.valid)))]


def ours(parts: Split, seed: int) -> float:
    "The same of this library's SASRec"
    config = sasrec(seed=seed, batch=64, epochs=EPOCHS, patience=EPOCHS)
    config = replace(config, model=replace(config.model, dropout=0.2))
    rec = fit(parts, config, out_dir=ROOT / f"runs/peer/ours-{seed}", device="cpu")
    return evaluate(rec, parts).metric("ndcg@10", "test", "drop")["mean"]


def measure():
    "Both, seed by seed"
    parts = short(split(load_dataset("ml-100k")))
    figures = {}
    for name, model in {"sasrec": ours, "rectools": rectools}.items():
        scores = [model(parts, seed) for seed in range(SEEDS)]
        figures |= {f"{name}_ndcg@10": mean(scores), f"{name}_ndcg@10_sd": stdev(scores)}
    figures["sasrec_over_rectools_ndcg@10"] = figures["sasrec_ndcg@10"] / figures["rectools_ndcg@10"]
    record("peer", figures | {"load": os.getloadavg()[0]}, NOTES)


if __name__ == "__main__":
    if "sasrec_over_rectools_ndcg@10" not in recorded("peer"):
        measure()
    print(json.dumps(recorded("peer"), indent=1))
