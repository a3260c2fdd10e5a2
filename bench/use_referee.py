"""Is the referee just? The same lists scored by the internal path, as a table, and by ir-measures.

    python bench/use_referee.py                  # Beauty, a model of one epoch, and lists of RecTools, which gets an environment of its own
    python bench/use_referee.py ml-100k          # another set; prints, and records nothing

The environment is made in runs/use once, by pip. Where that cannot be done, the lists of RecTools are left out and the notes say so.
"""

import json
import subprocess
import sys
from pathlib import Path

import ir_measures
import numpy as np
import pandas as pd
import torch
from ir_measures import AP, RR, P, R, nDCG
from record import ROOT, record
from use import NOTES

from itemlm.core import Ragged
from itemlm.data.datasets import load_dataset
from itemlm.data.split import Split, split
from itemlm.evaluation.report import Report, evaluate
from itemlm.evaluation.tables import read_lists
from itemlm.models.item_lm import small
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import fit

K = 50
MEASURES = {nDCG @ k: f"ndcg@{k}" for k in (5, 10, 20)} | {R @ k: f"recall@{k}" for k in (5, 10, 20)}
MEASURES |= {P @ 10: "precision@10", AP @ 20: "map@20", RR @ 20: "mrr@20"}
RECTOOLS = """
import sys
import pandas as pd
from implicit.nearest_neighbours import CosineRecommender
from rectools.dataset import Dataset
from rectools.models import ImplicitItemKNNWrapperModel
folder, IDS = sys.argv[1], {"user_id": str, "item_id": str}
train = Dataset.construct(pd.read_csv(f"{folder}/train.csv", dtype=IDS, parse_dates=["datetime"]))
model = ImplicitItemKNNWrapperModel(CosineRecommender(K=100)).fit(train)
lists = model.recommend(train.user_id_map.external_ids, train, k=50, filter_viewed=True, on_unsupported_targets="ignore")
lists.to_csv(f"{folder}/lists.csv", index=False)
"""


def written(rec: Recommender, parts: Split) -> pd.DataFrame:
    "The lists of a recommender as a table"
    found, values = rec.topk(rec.part_columns(parts, parts.test)[0], K)
    rows, places = np.nonzero(found != "")
    return pd.DataFrame(
        {"user_id": parts.test.users[rows], "item_id": found[rows, places], "score": values[rows, places], "rank": places + 1}
    )


def between_reports(inside: Report, outside: Report) -> float:
    "The largest difference of two reports' metrics, with their intervals, and of single users"
    names = inside.row()["metrics"].keys() & outside.row()["metrics"].keys()
    ends = [abs(inside.metric(name)[end] - outside.metric(name)[end]) for name in names for end in inside.metric(name)]
    users = [(inside.user_values(name) - outside.user_values(name)).abs().max() for name in MEASURES.values()]
    print(f"internal path and table: {len(names)} metrics, {max(*ends, *users):.2g}", flush=True)
    return float(max(*ends, *users))


def from_ir_measures(table: pd.DataFrame, parts: Split) -> float:
    "The largest difference of a table's values of single users, by rank, from those of ir-measures"
    report = evaluate(read_lists(table, score=False), parts)
    owners, items = np.repeat(parts.test.users, parts.test.histories.lengths), parts.events.items.index.to_numpy()
    had = pd.MultiIndex.from_arrays([owners, items[parts.test.histories.values]])
    table = table[~pd.MultiIndex.from_frame(table[["user_id", "item_id"]]).isin(had)]  # ir-measures takes nothing out by itself
    run = pd.DataFrame(
        {"query_id": table["user_id"].astype(str), "doc_id": table["item_id"].astype(str), "score": -table["rank"].astype(float)}
    )
    judged = {user: {parts.events.items.index[item]: 1} for user, item in zip(parts.test.users, parts.test.targets)}
    found = {name: {} for name in MEASURES.values()}
    for value in ir_measures.iter_calc(list(MEASURES), judged, run):
        found[MEASURES[value.measure]][value.query_id] = value.value
    theirs = {name: pd.Series(values).reindex(parts.test.users).fillna(0).sort_index() for name, values in found.items()}
    most = max(float((report.user_values(name).sort_index() - values).abs().max()) for name, values in theirs.items())
    means = max(abs(report.metric(name)["mean"] - theirs[name].mean()) for name in found if name in report.row()["metrics"])
    print(f"table and ir-measures: {len(found)} metrics, {max(most, means):.2g}", flush=True)
    return max(most, means)


def as_interactions(parts: Split, users: np.ndarray, histories: Ragged) -> pd.DataFrame:
    "Histories as RecTools reads them; the hours stand for the order"
    order = np.arange(len(histories.values)) - np.repeat(histories.offsets[:-1], histories.lengths)
    when, items = pd.Timestamp("2000-01-01") + pd.to_timedelta(order, unit="h"), parts.events.items.index.to_numpy()[histories.values]
    return pd.DataFrame({"user_id": np.repeat(users, histories.lengths), "item_id": items, "weight": 1, "datetime": when})


def rectools_lists(parts: Split, folder: Path) -> pd.DataFrame | None:
    "What RecTools recommends; None where it cannot be installed"
    python = ROOT / "runs/use/env/bin/python"
    try:
        if not (python.parent / "done").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", python.parent.parent], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "rectools==0.19.0"], check=True)
            (python.parent / "done").touch()
    except subprocess.CalledProcessError:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    as_interactions(parts, parts.train_users, parts.train).to_csv(folder / "train.csv", index=False)
    subprocess.run([python, "-c", RECTOOLS, folder], check=True)
    return pd.read_csv(folder / "lists.csv", dtype={"user_id": str, "item_id": str})


def referee(dataset: str = "beauty") -> dict:
    "The largest difference of all"
    parts = split(load_dataset(dataset))
    rec = fit(parts, small(epochs=1), out_dir=ROOT / f"runs/use/{dataset}", device="cpu")
    table = written(rec, parts)
    differences = [between_reports(evaluate(rec, parts), evaluate(table, parts)), from_ir_measures(table, parts)]
    theirs = rectools_lists(parts, ROOT / f"runs/use/rectools-{dataset}")
    if theirs is not None:
        differences.append(from_ir_measures(theirs, parts))
    return {"referee_difference": max(differences), "referee_rectools": int(theirs is not None)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    figures = referee(*sys.argv[1:2])
    if not sys.argv[1:]:
        record("use", figures, NOTES)
    print(json.dumps(figures, indent=1))
