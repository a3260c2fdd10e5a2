"""Fit RecTools' SASRec and write its lists; run by bench/peer.py in an environment of RecTools' own.

    python bench/peer_rectools.py FOLDER

FOLDER holds settings.json, fit.parquet (training part) and, for each part that is asked, <part>.parquet (histories). After every
`every` epochs the lists for all of a part's users are written to <part>-<epoch>.parquet: user, item, rank.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import torch
from pytorch_lightning import Trainer, seed_everything
from rectools.dataset import Dataset
from rectools.models import SASRecModel

folder = Path(sys.argv[1])
settings = json.loads((folder / "settings.json").read_text())
torch.set_num_threads(settings.pop("threads"))
seed_everything(settings.pop("seed"), workers=True)
epochs, every, parts = (settings.pop(name) for name in ("epochs", "every", "parts"))
quiet = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = lambda: Trainer(min_epochs=every, max_epochs=every, **quiet)
model = SASRecModel(**settings, epochs=every, deterministic=True, recommend_torch_device="cpu", get_trainer_func=trainer)
data = {name: Dataset.construct(pd.read_parquet(folder / f"{name}.parquet")) for name in ("fit", *parts)}
for epoch in range(every, epochs + 1, every):
    model.fit(data["fit"]) if epoch == every else model.fit_partial(data["fit"], every, every)
    for part in parts:
        users = data[part].user_id_map.external_ids
        lists = model.recommend(users, data[part], k=10, filter_viewed=True, on_unsupported_targets="ignore")
        lists[["user_id", "item_id", "rank"]].to_parquet(folder / f"{part}-{epoch}.parquet")
    print(epoch, flush=True)
(folder / "done").touch()
