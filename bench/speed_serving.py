"""Answers at size: everybody's lists, one visitor's, a million items, an index of them, a title found while it is typed.

    python bench/speed_serving.py                # everything, some three minutes on two quiet cores
    python bench/speed_serving.py million        # beauty | million | search

Each part is a process of its own. No model is trained: weights take the same time whatever they are, and where they matter, for an
index, the items lie in clusters as those of a trained table do.
"""

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import torch
from record import PACKAGES, ROOT, record

from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.data.tokenizer import ItemTokenizer, Sequences
from itemlm.explore.search import TitleIndex
from itemlm.models.item_lm import ItemLMConfig, small
from itemlm.serving.index import build_index
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import build_model, sized

PARTS = ("beauty", "million", "search")
MILLION, CLUSTERS, SPREAD, K = 1_000_000, 5_000, 0.7, 10
NOTES = (
    "bench/speed_serving.py, all cores, warm, through the public API; nothing is trained. topk_beauty_seconds: rec.topk, top 10 of all "
    "22,363 Beauty users (12,101 items, the preset small, width 64), seen items dropped, best of five; p99_ms_beauty, median_ms_beauty: "
    "rec.topk for one of 1,000 users at a time; recommend_p99_ms_beauty: rec.recommend(items=...), with titles. *_1m_items: rec.topk for "
    "one of 200 users at a time, 1,000,000 items, width 64, exact. ann_*: the same with build_index(rec), "
    "int8_*: with build_index(rec, 'int8'); recall: share of the exact top 10, seen items dropped, of 500 histories. Items lie around "
    "5,000 directions (a direction plus .7 of noise of its size), a history within one of them. ann_build_seconds: of the graph. "
    "search_300k_ms: the slowest of twelve kinds of text, each the best of five, in 300,000 synthetic titles of nine Zipf words."
)


def milliseconds(ask, many: int, warm: int = 10) -> dict[str, float]:
    "Median and 99th percentile of one answer at a time"
    taken = []
    for n in [*range(warm), *range(many)]:
        start = time.perf_counter()
        ask(n)
        taken.append(1e3 * (time.perf_counter() - start))
    return {"median": float(np.median(taken[warm:])), "p99": float(np.quantile(taken[warm:], 0.99))}


def raw(rec: Recommender, rows: np.ndarray) -> list[list[str]]:
    "Known items of some users, as raw ids"
    return [rec.tokenizer.decode(tokens[tokens >= rec.tokenizer.n_special]) for tokens in map(rec.histories.__getitem__, rows)]


def beauty() -> dict[str, float]:
    "Everybody, and one at a time"
    parts = split(load_dataset("beauty"))
    tokenizer = ItemTokenizer.from_split(parts)
    rec = Recommender.from_split(build_model(sized(small(), tokenizer)).eval(), tokenizer, parts)
    rec.topk(rec.histories, K)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        rec.topk(rec.histories, K)
        taken.append(time.perf_counter() - start)
    asked = raw(rec, np.random.default_rng(0).choice(len(rec.users), 1000, replace=False))
    one = milliseconds(lambda n: rec.topk([asked[n]], K), len(asked))
    shown = milliseconds(lambda n: rec.recommend(items=asked[n], k=K), len(asked))
    return {
        "topk_beauty_seconds": min(taken),
        "median_ms_beauty": one["median"],
        "p99_ms_beauty": one["p99"],
        "recommend_p99_ms_beauty": shown["p99"],
    }


def clustered(n_items: int, users: int = 1000) -> Recommender:
    "Items around directions, users who stay with one"
    rng, tokenizer = np.random.default_rng(0), ItemTokenizer([f"i{n}" for n in range(n_items)])
    cluster = np.sort(rng.integers(0, CLUSTERS, n_items))
    torch.manual_seed(0)
    model = ItemLMConfig(n_items=n_items).build().eval()
    with torch.no_grad():
        near = torch.randn(CLUSTERS, model.config.width)[cluster] + SPREAD * torch.randn(n_items, model.config.width)
        model.embed_tokens.weight[model.config.n_special :] = near
    starts = np.searchsorted(cluster, np.arange(CLUSTERS + 1))
    rows = [rng.integers(starts[c], starts[c + 1], rng.integers(3, 30)) for c in rng.integers(0, CLUSTERS, users)]
    had = Sequences.from_lists([(row + model.config.n_special).tolist() for row in rows])
    table = pd.DataFrame({"title": [f"title {n}" for n in range(n_items)], "count": 1}, index=tokenizer.items)
    names = np.array([f"u{n}" for n in range(users)], object)
    return Recommender(model=model, tokenizer=tokenizer, items=table, users=names, histories=had)


def million() -> dict[str, float]:
    "A million items: exact, by a graph, by a table of one byte a number"
    rec = clustered(MILLION)
    asked = raw(rec, np.arange(200))
    exact = milliseconds(lambda n: rec.topk([asked[n]], K), len(asked))
    figures = {"median_ms_1m_items": exact["median"], "p99_ms_1m_items": exact["p99"]}
    fast = build_index(rec, "int8", K)
    one = milliseconds(lambda n: fast.topk([asked[n]], K), 100)
    figures |= {"int8_recall_1m": fast.facts.recall, "int8_median_ms_1m_items": one["median"]}
    start = time.perf_counter()
    fast = build_index(rec, "ann", K)
    figures["ann_build_seconds"] = time.perf_counter() - start
    one = milliseconds(lambda n: fast.topk([asked[n]], K), len(asked))
    return figures | {"ann_recall": fast.facts.recall, "ann_median_ms_1m_items": one["median"], "ann_p99_ms_1m_items": one["p99"]}


def titles(n: int) -> tuple[pd.DataFrame, np.ndarray]:
    "Items with titles of nine words, and the words, the frequent ones first"
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("etaoinshrdlucmfwypvb"), rng.integers(2, 10))) for _ in range(20_000)], object)
    share = 1 / np.arange(1, len(words) + 1)
    lines = words[rng.choice(len(words), (n, 9), p=share / share.sum())]
    counts = rng.zipf(1.5, n).clip(max=10_000)
    return pd.DataFrame({"title": [" ".join(line) for line in lines], "count": counts}, index=[f"B{k:09d}" for k in range(n)]), words


def search() -> dict[str, float]:
    "The slowest text of many kinds"
    items, words = titles(300_000)
    index = TitleIndex.from_items(items)
    pairs = [f"{words[a]} {words[b]}" for a, b in ((0, 1), (0, 9000), (30, 41), (3000, 4000))]
    texts = [words[0], words[15_000], "e", "e t a o i n", "qqqq", f"{words[0]} qqqq", "B000123456", "x z j q k", *pairs]
    index.find(texts[0])
    return {"search_300k_ms": max(min(milliseconds(lambda _: index.find(text), 1, 0)["median"] for _ in range(5)) for text in texts)}  # noqa: B023


def main() -> None:
    "Measure each part in a process of its own"
    if sys.argv[1:2] == ["--here"]:
        figures = {part.__name__: part for part in (beauty, million, search)}[sys.argv[2]]()
        record("speed", figures, NOTES, (*PACKAGES, "usearch", "pyarrow"))
        return print(figures)
    for part in sys.argv[1:] or PARTS:
        subprocess.run([sys.executable, __file__, "--here", part], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
