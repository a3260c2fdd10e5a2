"""What a training target costs, against items, history length and width, one at a time from the same small model.

    python bench/speed_scaling.py

Each point is a process of its own: random histories, the trainer's own estimate of a step, and the process's peak memory.
"""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import torch
from record import ROOT, record

from itemlm.data.batches import TrainingSequences
from itemlm.models.item_lm import small
from itemlm.models.losses import full_softmax, shared_softmax
from itemlm.training.trainer import estimate

ITEMS, LENGTHS, WIDTHS = (10_000, 30_000, 100_000, 300_000, 1_000_000), (10, 20, 50, 100, 200, 400), (32, 64, 128, 256)
FULL_UP_TO, TARGETS = 100_000, 3000  # items; targets of a batch
NOTES = (
    "scale_<what>_<loss>_<value>_us: microseconds of training a target, scale_..._gb: peak memory of the process. small() with 10,000 "
    "items, width 64 and histories of 10 items, of which one is changed at a time (items under the full softmax, up to 100,000, and "
    "under shared_softmax()); random histories, batches of about 3,000 targets, {threads} threads."
)


def measure(items: int, length: int, width: int, loss: str) -> dict:
    "One point, in this process"
    torch.manual_seed(0)
    config = small(init="random", batch=max(1, TARGETS // length), loss=full_softmax() if loss == "full" else shared_softmax())
    sizes = dict(n_items=items, max_len=length, width=width, hidden=168 * width // 64)
    config = replace(config, model=replace(config.model, **sizes))
    count = 6 * config.batch
    tokens = np.random.default_rng(0).integers(config.model.n_special, items + config.model.n_special, count * (length + 1), dtype=np.int32)
    lengths = np.full(count, length + 1)
    known = estimate(config.model.build(), TrainingSequences(tokens, lengths.cumsum() - lengths, lengths), config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"us": 1e6 * known.seconds_per_epoch / known.targets, "gb": peak}


def points() -> dict[str, tuple]:
    "Name of each point, and its sizes"
    found = {f"items_full_{items}": (items, 10, 64, "full") for items in ITEMS if items <= FULL_UP_TO}
    found |= {f"items_shared_{items}": (items, 10, 64, "shared") for items in ITEMS}
    found |= {f"length_full_{length}": (ITEMS[0], length, 64, "full") for length in LENGTHS}
    return found | {f"width_full_{width}": (ITEMS[0], 10, width, "full") for width in WIDTHS}


if __name__ == "__main__":
    if sys.argv[1:]:
        items, length, width, loss = sys.argv[1:]
        print(json.dumps(measure(int(items), int(length), int(width), loss)))
        sys.exit()
    figures = {}
    for name, sizes in points().items():
        said = subprocess.run([sys.executable, __file__, *map(str, sizes)], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found = json.loads(said.splitlines()[-1])
        figures |= {f"scale_{name}_{unit}": value for unit, value in found.items()}
        print(name, found, flush=True)
    record("speed", figures | {"scale_load": os.getloadavg()[0]}, NOTES.format(threads=torch.get_num_threads()))
