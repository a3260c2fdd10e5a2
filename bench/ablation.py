"""ItemLM with one part at a time taken back to what SASRec has, and with all of them: the same epochs, batches and rates.

    python bench/ablation.py beauty 0                     # data, seed; goes on where it stopped
    python bench/ablation.py beauty 0 dot_head gelu       # these parts
    python bench/ablation.py toys wide 0 block_of_sasrec  # at width 128

A row a variant in `bench/results/ablation.jsonl`: its figures on the validation and the test part, and its difference to ItemLM of the
same seed on the same users, with a 95 % interval and a permutation test. The page "Which parts carry the gain" shows them.
"""

import json
import os
import sys
from datetime import UTC, datetime

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import torch
from record import RESULTS, commit, machine

from itemlm.core import atomic_write
from itemlm.evaluation.report import read_report
from itemlm.jobs import Job, TrainParameters
from itemlm.metrics.statistics import paired_difference
from itemlm.study import finish_run, read_records

START = {"random_start": "init=random"}
BLOCK = {  # what is changed, as -p settings says it
    "dot_head": "model.head=dot",
    "layer_norm": "model.norm=layer",
    "post_norm": "model.norm_place=post",
    "learned_positions": "model.position=learned",
    "gelu": "model.feed_forward=gelu, model.hidden={width}",  # SASRec's feed-forward is as wide as its rows
    "no_weight_decay": "weight_decay=0",
}
OTHERS = {  # not SASRec's, and asked about
    "no_positions": "model.position=none",
    "attention_dropout": "model.attention_dropout=0.4",
    "like_lengths": "bucket=False",
    "one_block": "model.layers=1",
    "four_blocks": "model.layers=4",
    "eight_blocks": "model.layers=8",
    "width_128": "model.width=128, model.hidden=336",
    "sampled_bce": "loss=bce",
}
WHOLE = {"block_of_sasrec": ", ".join(BLOCK.values()), "all_of_sasrec": ", ".join((START | BLOCK).values())}
VARIANTS = {"item_lm": "", **START, **BLOCK, **WHOLE, **OTHERS}
WIDTHS = {"small": 64, "long_history": 64, "wide": 128}
FILE = RESULTS / "ablation.jsonl"


def run(dataset: str, size: str, variant: str, seed: int) -> Job:
    "The finished, reported run of a variant"
    asked = dict(dataset=dataset, preset=size, seed=seed, settings=VARIANTS[variant].format(width=WIDTHS[size]))
    return finish_run(TrainParameters(model="item_lm", device="cpu", **asked))


def row(dataset: str, size: str, variant: str, seed: int) -> dict:
    "What is recorded of a variant"
    job, base = run(dataset, size, variant, seed), run(dataset, size, "item_lm", seed)
    report, other = read_report(job.folder), read_report(base.folder)
    log = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    ends = {f"{part}_{name}": report.metric(name, part)["mean"] for part in ("valid", "test") for name in ("ndcg@10", "recall@10")}
    found = paired_difference(*(one.user_values("ndcg@10", "test").to_numpy() for one in (report, other)), seed=seed)
    against = dict(difference=found.mean, lo=found.lo, hi=found.hi, p=found.p, users=found.n)
    known = dict(dataset=dataset, preset=size, variant=variant, seed=seed)
    known |= dict(settings=VARIANTS[variant].format(width=WIDTHS[size]), date=datetime.now(UTC).date().isoformat())
    cost = dict(epochs=log[-1]["epoch"], seconds=log[-1]["seconds"], machine=machine(), commit=commit())
    return known | {name: float(f"{value:.6g}") for name, value in (ends | against).items()} | cost


def keep(found: dict) -> None:
    "Add a row, or put it in the place of the one that is there"
    key = lambda one: (one["dataset"], one["preset"], one["seed"], list(VARIANTS).index(one["variant"]))
    rows = [one for one in read_records(FILE) if key(one) != key(found)] + [found]
    with atomic_write(FILE) as temporary:
        temporary.write_text("".join(json.dumps(one) + "\n" for one in sorted(rows, key=key)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dataset, *given = sys.argv[1:] or ["beauty", "0"]
    size = given.pop(0) if given[0] in WIDTHS else "long_history" if dataset == "ml-1m" else "small"
    seed, *wanted = given
    known = {(one["dataset"], one["preset"], one["seed"], one["variant"]) for one in read_records(FILE)}
    for variant in wanted or VARIANTS:
        if (dataset, size, int(seed), variant) not in known:
            keep(row(dataset, size, variant, int(seed)))
