"""The main job: how long, how good, how close to what the machine's matrix multiply allows.

    python bench/main_job.py            # everything that this commit has no figure for yet
    python bench/main_job.py speed      # one part: beauty, small, speed, evaluate

Beauty is trained and tested from papermill's command line, one seed after another; each is a unit of at most ten
minutes, recorded when it ends.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import torch
from record import ROOT, record, recorded, seconds_of

from itemlm.data.batches import TrainingSequences, epoch_order, training_sequences
from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.report import evaluate
from itemlm.models.item_lm import ItemLM, small
from itemlm.models.recipe import TrainingConfig
from itemlm.serving.recommender import load
from itemlm.training.schedule import make_optimizer
from itemlm.training.trainer import train_step

RUNS = ROOT / "runs/bench-main_job"
SEEDS = 0, 1, 2
NOTES = (
    "beauty_*: papermill nbs/train.ipynb -p dataset beauty, nothing else set (ItemLM with neighbours), leave-one-out, full ranking, "
    "seen items dropped; seconds are the median, metrics the mean over seeds 0, 1, 2. small_seconds: the same for ml-latest-small, "
    "seed 0. tokens_per_second: training targets a second, Beauty, 2 blocks, width 128, batch 256, full softmax, median "
    "of interleaved rounds. matmul_share: time of the float32 matrix products of head and blocks alone (forward, both "
    "gradients; the faster of two layouts for the head) over the time of the training steps, same batches, interleaved. "
    "train_peak_mb: peak resident memory of a process that trains one such epoch. evaluate_seconds: all users of Beauty, "
    "full ranking, seen dropped and kept, median of 3."
)


def papermill(dataset: str, seed: int) -> dict:
    "Run the main job in a folder of its own; seconds from start to end, and its test metrics"
    out = RUNS / f"{dataset}-{seed}-{time.time_ns()}"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [Path(sys.executable).with_name("papermill"), "nbs/train.ipynb", f"{out}.ipynb", "--no-progress-bar"]
    start = time.perf_counter()
    subprocess.run([*command, "-p", "dataset", dataset, "-p", "seed", str(seed), "-p", "out_dir", str(out)], cwd=ROOT, check=True)
    seconds = time.perf_counter() - start
    results = json.loads((out / "metrics.json").read_text())["results"]
    metrics = next(r["metrics"] for r in results if (r["part"], r["protocol"]["seen"]) == ("test", "drop"))
    return {"out": str(out), "seconds": seconds} | {name: metrics[name]["mean"] for name in ("ndcg@10", "recall@10")}


def beauty():
    "One papermill run a seed; the means once all are there"
    for seed in SEEDS:
        if f"beauty_seed{seed}_seconds" in recorded("main_job"):
            continue
        result = papermill("beauty", seed)
        keep_run(result["out"])
        names = ("seconds", "ndcg@10", "recall@10")
        record("main_job", {f"beauty_seed{seed}_{name}": result[name] for name in names}, NOTES)
    figures = recorded("main_job")
    over_seeds = lambda name: [figures[f"beauty_seed{seed}_{name}"] for seed in SEEDS]
    summary = {"beauty_seconds": median(over_seeds("seconds"))}
    record("main_job", summary | {f"beauty_{name}": mean(over_seeds(name)) for name in ("ndcg@10", "recall@10")}, NOTES)


def keep_run(out: str):
    "Remember the newest finished run of Beauty, to evaluate it"
    (RUNS / "latest").write_text(out)


def small_job():
    "The set that ships"
    record("main_job", {"small_seconds": papermill("ml-latest-small", 0)["seconds"]}, NOTES)


def wide() -> tuple[TrainingSequences, TrainingConfig]:
    "Beauty's training sequences, and the recipe that speed is stated for: 2 blocks, width 128"
    parts = split(load_dataset("beauty"))
    tokenizer = ItemTokenizer.from_split(parts)
    config = small()
    config = replace(config, model=replace(config.model, width=128, hidden=344, layers=2, n_items=tokenizer.n_items))
    return training_sequences(tokenizer.encode_codes(parts.train, parts.events.items.index), config.model.max_len), config


def products(model: ItemLM, targets: int, chunk: int = 416):
    "A function that does the float32 matrix products of head and blocks for `targets` tokens, and nothing else"
    width, table = model.config.width, torch.randn(model.config.n_items, model.config.width)
    hidden, scores = torch.randn(chunk, width), torch.empty(model.config.n_items, chunk)
    layouts = [lambda: torch.mm(table, hidden.T, out=scores), lambda: torch.mm(hidden, table.T, out=scores.view(chunk, -1))]
    forward = min(layouts, key=lambda f: median(seconds_of(f) for _ in range(9)))
    weights = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    blocks = [(torch.randn(targets, w.shape[1]), w.detach(), torch.randn(targets, w.shape[0])) for w in weights]

    def run():
        for _ in range(targets // chunk):
            forward(), torch.mm(scores.T, table), torch.mm(scores, hidden)
        for x, w, dy in blocks:
            torch.mm(x, w.T), torch.mm(dy, w), torch.mm(dy.T, x)

    return run


def started() -> tuple:
    "Training sequences, recipe, a model in training, its optimiser and the batches of the first epoch"
    sequences, config = wide()
    model = ItemLM(config.model).train()
    return sequences, config, model, make_optimizer(model, config), epoch_order(sequences, config.batch, config.seed, 0)


def speed(rounds: int = 9, steps: int = 4):
    "Training steps and their matrix products alone, turn about"
    sequences, config, model, optimizer, order = started()
    rates, shares = [], []
    for turn in range(rounds + 1):
        rows = order[turn * steps : (turn + 1) * steps]
        targets = [int(sequences.lengths[r].sum()) - len(r) for r in rows]
        alone = products(model, sum(targets) // 416 * 416)
        before = seconds_of(alone)
        trained = seconds_of(lambda: [train_step(model, optimizer, sequences.buckets(r), config).item() for r in rows])  # noqa: B023
        if turn:  # the first round warms up
            rates.append(sum(targets) / trained)
            shares.append((before + seconds_of(alone)) / 2 / trained)
    peak = int(subprocess.run([sys.executable, __file__, "peak"], check=True, capture_output=True, text=True).stdout.split()[-1])
    record("main_job", {"tokens_per_second": median(rates), "matmul_share": median(shares), "train_peak_mb": peak}, NOTES)


def peak():
    "Print the peak resident memory, in MB, of one epoch (in a process of its own)"
    sequences, config, model, optimizer, order = started()
    for rows in order:
        train_step(model, optimizer, sequences.buckets(rows), config)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def evaluate_job():
    "Full ranking of all users of Beauty"
    parts, rec = split(load_dataset("beauty")), load((RUNS / "latest").read_text())
    record("main_job", {"evaluate_seconds": median(seconds_of(lambda: evaluate(rec, parts)) for _ in range(3))}, NOTES)


PARTS = {"beauty": beauty, "small": small_job, "speed": speed, "evaluate": evaluate_job, "peak": peak}

if __name__ == "__main__":
    for part in sys.argv[1:] or ("beauty", "small", "speed", "evaluate"):
        PARTS[part]()
    if sys.argv[1:] != ["peak"]:
        print(json.dumps(recorded("main_job"), indent=1))
