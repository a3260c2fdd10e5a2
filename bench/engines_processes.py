"""Several processes: two against one, and a table that is cut by rows against a whole one.

    python bench/engines_processes.py          # under five minutes
    python bench/engines_processes.py fsdp     # speed | weights | memory | fsdp
    python bench/engines_processes.py --dry    # nothing is recorded

Every figure is of processes of one thread each. Speed: a window with one process, a window with two, in turn, so that whatever else
the machine does meets both. Memory: processes of their own, by the peak of their resident set.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from record import record
from safetensors.torch import load_file, save_file

from itemlm.data.batches import epoch_order, training_sequences
from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.models.item_lm import ItemLMConfig, small, tiny
from itemlm.models.losses import full_softmax
from itemlm.training.parallel import World, process_group, this_world
from itemlm.training.schedule import learning_rate, make_optimizer
from itemlm.training.sharding import check_table_fits, sharded_model, sharded_softmax, sharded_training
from itemlm.training.trainer import initial_model, sized, train_step

ROWS, WIDTH = 2_000_000, 64
WINDOWS, SECONDS = 8, 4.0  # of each kind
BUDGET = 3_600 * 2**20  # bytes of address space: one process's whole table does not fit, half a table does
NOTES = (
    "Two gloo processes with one thread each on one machine. ddp_speedup_2: real targets a second of two processes over those of one, "
    "median of {windows} pairs of windows of {seconds:g} s in turn; ItemLM of the preset small (width 64) on Beauty, full softmax, 256 "
    "sequences a step, training steps as fit takes them, without validation; ddp_targets_per_second_1 and _2 are the medians. "
    "apart_speedup_2: likewise of two processes that train two networks and know nothing of each other: what the machine has for two. "
    "ddp_weight_difference: largest difference of any weight after 50 steps, dropout 0. sharded_memory_ratio: peak resident memory of a "
    "process with half of a table of 2,000,000 rows of width 64 over that of a process with all of it, three training steps with the "
    "exact loss over the catalogue; sharded_peak_mb_1 and _2 are the peaks. sharded_budget_trains: 1 if, with {budget} MB of address space "
    "a process, one process refuses the whole table with one line and two processes train it. fsdp_memory_ratio: the same steps of two "
    "processes, peak resident memory of one under FSDP2 (fit's shard='weights') over that of one under DDP."
)


class Steps:
    "Training steps on Beauty as `fit` takes them, in one process or as one of two"

    def __init__(self, world: World, **changes):
        parts = split(load_dataset("beauty"))
        tokenizer = ItemTokenizer.from_split(parts)
        self.world, self.recipe = world, sized(small(**changes), tokenizer)
        self.model = initial_model(self.recipe, parts, tokenizer).train()
        self.sequences = training_sequences(tokenizer.encode_codes(parts.train, parts.events.items.index), self.recipe.model.max_len)
        self.order = epoch_order(self.sequences, self.recipe.batch, 0, 0)
        self.forward = world.wrapped(self.model, [self.sequences.rectangle(self.order[0][:1])], self.recipe.loss)
        self.optimizer, self.done = make_optimizer(self.model, self.recipe), 0
        self.steps = self.recipe.epochs * len(self.order)

    def step(self) -> int:  # targets
        rows = self.order[self.done % len(self.order)]
        torch.manual_seed(self.world.seed(0, self.done))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(min(self.done, self.steps - 1), self.steps, self.recipe)
        batch, weight = self.world.cut(self.sequences.buckets(rows))
        loss = train_step(self.forward, self.optimizer, batch, self.recipe, weight=weight).item()
        self.world.mean(loss, weight)
        self.done += 1
        return int(self.sequences.lengths[rows].sum()) - len(rows)

    def window(self, seconds: float) -> float:  # targets a second
        start, targets, over = time.perf_counter(), 0, False
        while not over:
            targets += self.step()
            (over,) = self.world.agreed(time.perf_counter() - start > seconds)
        return targets / (time.perf_counter() - start)


def speed(out: Path) -> None:
    "A window alone, the other process waiting without work, then a window together, then both at once without each other"
    world, rank = this_world(), dist.get_rank()
    alone, together, found = Steps(World()), Steps(world), []
    for window in range(WINDOWS + 1):
        one = alone.window(SECONDS) if rank == 0 else None
        wait_for(out / f"window{window}", rank)
        dist.barrier()
        both = together.window(SECONDS)
        apart = torch.tensor(alone.window(SECONDS))
        dist.all_reduce(apart)
        found.append([one, both, apart.item()])
    if rank == 0:
        (out / "speed.json").write_text(json.dumps(found[1:]))  # the first one warms up


def wait_for(file: Path, rank: int) -> None:
    "Sleep until the first process is there: a barrier of gloo would spin"
    if rank == 0:
        file.touch()
    while not file.exists():
        time.sleep(0.01)


def weights(out: Path) -> None:
    "Fifty steps without dropout"
    steps = Steps(this_world(), dropout=0.0, attention_dropout=0.0)
    for _ in range(50):
        steps.step()
    if this_world().writes:
        save_file(
            {name: weight.contiguous() for name, weight in steps.model.state_dict().items()}, out / f"by{this_world().size}.safetensors"
        )


LARGE = ItemLMConfig(n_items=ROWS, width=WIDTH, layers=1, heads=2, kv_heads=2, hidden=64, dropout=0.0)


def few_batches() -> Iterator[torch.Tensor]:
    "The same in every process"
    for step in range(3):
        yield torch.randint(8, ROWS, (4, 9), generator=torch.Generator().manual_seed(step))


def memory(out: Path) -> None:
    "Three steps with a table of two million rows, or of this process's half of them"
    if "BUDGET" in os.environ:
        resource.setrlimit(resource.RLIMIT_AS, (int(os.environ["BUDGET"]),) * 2)
        check_table_fits(LARGE, WIDTH)
    model = sharded_model(LARGE)
    optimizer, recipe = make_optimizer(model, tiny()), replace(tiny(), loss=sharded_softmax(model))
    losses = [train_step(model, optimizer, [tokens], recipe).item() for tokens in few_batches()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (out / f"memory{this_world().size}_{this_world().rank}.json").write_text(json.dumps({"peak_mb": peak, "losses": losses}))


def fsdp(out: Path) -> None:
    "Three steps with all of that table's weights in each of two processes, or, where SHARED is said, a part of them"
    world, recipe = this_world(), tiny(loss=full_softmax())
    model = LARGE.build()
    optimizer = make_optimizer(model, recipe)
    if "SHARED" in os.environ:
        learner, optimizer = sharded_training(model, optimizer, recipe)
        del model
    else:
        learner = world.wrapped(model, [next(few_batches())[:1]], recipe.loss)
    with peak_memory() as peak:
        for tokens in few_batches():
            own, weight = world.share((tokens > 0).sum(1).numpy())
            train_step(learner, optimizer, [tokens[own]], recipe, weight=weight)
    (out / f"{'parts' if 'SHARED' in os.environ else 'whole'}_{world.rank}.json").write_text(json.dumps(peak[0]))


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    "The highest resident memory inside, MB, looked at a hundred times a second"
    process, over, found = psutil.Process(), threading.Event(), [0.0]

    def watch() -> None:
        while not over.wait(0.01):
            found[0] = max(found[0], process.memory_info().rss / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def start(job: str, out: Path, processes: int, **env: str) -> subprocess.CompletedProcess:
    "Some processes of this script"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), __file__, "--job", job, "--out", str(out)]
    threads = {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=os.environ | threads | env)


def finished(*jobs: subprocess.CompletedProcess) -> None:
    if failed := [done.stderr for done in jobs if done.returncode]:
        sys.exit(failed[0][-3000:])


def speed_figures(out: Path) -> dict[str, float]:
    "Two against one"
    finished(start("speed", out, 2))
    pairs = json.loads((out / "speed.json").read_text())
    return {
        "ddp_speedup_2": statistics.median(both / alone for alone, both, _ in pairs),
        "apart_speedup_2": statistics.median(apart / alone for alone, _, apart in pairs),
        "ddp_targets_per_second_1": statistics.median(alone for alone, _, _ in pairs),
        "ddp_targets_per_second_2": statistics.median(both for _, both, _ in pairs),
    }


def weights_figures(out: Path) -> dict[str, float]:
    "Two as one"
    finished(*(start("weights", out, processes) for processes in (1, 2)))
    one, two = (load_file(out / f"by{n}.safetensors") for n in (1, 2))
    return {"ddp_weight_difference": max(float((one[name] - two[name]).abs().max()) for name in one)}


def memory_figures(out: Path) -> dict[str, float]:
    "A table cut by rows"
    finished(*(start("memory", out, processes) for processes in (1, 2)))
    peaks = {n: max(json.loads(file.read_text())["peak_mb"] for file in out.glob(f"memory{n}_*.json")) for n in (1, 2)}
    refused, trained = (start("memory", out, n, BUDGET=str(BUDGET)) for n in (1, 2))
    print(next(line for line in refused.stderr.splitlines() if "items takes" in line), flush=True)
    return {
        "sharded_memory_ratio": peaks[2] / peaks[1],
        "sharded_peak_mb_1": peaks[1],
        "sharded_peak_mb_2": peaks[2],
        "sharded_budget_trains": int(refused.returncode == 1 and trained.returncode == 0),
    }


def fsdp_figures(out: Path) -> dict[str, float]:
    "Weights in parts"
    finished(start("fsdp", out, 2), start("fsdp", out, 2, SHARED="1"))
    peaks = {how: max(json.loads(file.read_text()) for file in out.glob(f"{how}_*.json")) for how in ("whole", "parts")}
    return {"fsdp_memory_ratio": peaks["parts"] / peaks["whole"], "fsdp_peak_mb": peaks["parts"], "ddp_peak_mb": peaks["whole"]}


JOBS = {"speed": speed, "weights": weights, "memory": memory, "fsdp": fsdp}
PARTS = {"speed": speed_figures, "weights": weights_figures, "memory": memory_figures, "fsdp": fsdp_figures}


def main() -> None:
    "Measure and record, or be one of the processes that are measured"
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them, if none is named")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--job", choices=JOBS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.job:
        torch.set_num_threads(1)
        with process_group("cpu"):
            JOBS[given.job](given.out)
        return
    figures = {}
    for part in given.parts or PARTS:
        with tempfile.TemporaryDirectory() as out:
            figures |= PARTS[part](Path(out))
    if not given.dry:
        notes = NOTES.format(windows=WINDOWS, seconds=SECONDS, budget=f"{BUDGET // 2**20:,}")
        record("engines", figures, notes)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
