"""How much of a training step is matrix products: the step, and then its products alone, turn by turn.

    python bench/speed_step.py

The products of head and blocks are noted, with shapes and strides, while a step runs, and repeated on matrices of their own.
"""

import json
import os
import time
from dataclasses import replace
from statistics import median

import torch
from record import record
from torch.utils._python_dispatch import TorchDispatchMode

from itemlm.data.batches import epoch_order
from itemlm.data.datasets import load_dataset
from itemlm.data.split import Split, split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.models.item_lm import small
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import Trainer, initial_model, sized

STEPS, TURNS, SQUARE = 15, 3, 1024
NOTES = (
    "Beauty, small() with random rows, full softmax, batches of 256 users: matmul_share is the time of a step's matrix products (head and "
    "blocks, forward and backward, the same shapes and strides, repeated alone) over the time of the step, optimiser and all, at width "
    f"128; medians over {STEPS} steps, {TURNS} turns each. step_of_ceiling_*: the same arithmetic at the rate of a product of {SQUARE} by "
    f"{SQUARE} matrices, over the step. Processor time of one thread."
)
PRODUCTS = torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.addmm_
Layout = tuple[tuple, tuple]  # sizes, strides


class Products(TorchDispatchMode):
    "Notes the layouts of what is multiplied"

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Layout, Layout]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in PRODUCTS:
            left, right = args[:2] if function.overloadpacket in PRODUCTS[:2] else args[1:3]
            self.calls.append(((tuple(left.shape), left.stride()), (tuple(right.shape), right.stride())))
        return function(*args, **(kwargs or {}))


def trainer(parts: Split, width: int) -> Trainer:
    "A run at its first step"
    tokenizer = ItemTokenizer.from_split(parts)
    config = small(init="random")
    config = replace(config, model=replace(config.model, width=width, hidden=168 * width // 64))
    rec = Recommender.from_split(initial_model(config, parts, tokenizer), tokenizer, parts)
    return Trainer(rec, parts, sized(config, tokenizer), verbose=False)


def laid_out(layout: Layout) -> torch.Tensor:
    "A matrix of that layout"
    sizes, strides = layout
    return torch.randn(sum((size - 1) * stride for size, stride in zip(sizes, strides)) + 1).as_strided(sizes, strides)


def seconds_of(call) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def shares(run: Trainer) -> tuple[float, float, float]:
    "Seconds of a step; of it, the products' share; and the share at the rate of a large square product"
    run.model.train()
    order = epoch_order(run.sequences, run.config.batch, 0, 0)
    for rows in order[:5]:
        run.step(rows)
    square, steps, found, ceiling = torch.randn(SQUARE, SQUARE), [], [], []
    for rows in order[5 : 5 + STEPS]:
        with Products() as noted:
            run.step(rows)
        layouts = {layout: laid_out(layout) for call in noted.calls for layout in call}
        pairs = [(layouts[left], layouts[right]) for left, right in noted.calls]
        flops = sum(2 * left.numel() * right.shape[-1] for left, right in pairs)
        for _ in range(TURNS):
            step = seconds_of(lambda: run.step(rows))
            products = seconds_of(lambda: [left @ right for left, right in pairs])
            rate = 2 * SQUARE**3 / seconds_of(lambda: square @ square)
            steps.append(step), found.append(products / step), ceiling.append(flops / rate / step)
    return median(steps), median(found), median(ceiling)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts, figures = split(load_dataset("beauty")), {}
    for width in (64, 128):
        seconds, share, ceiling = shares(trainer(parts, width))
        figures |= {f"step_ms_{width}": 1000 * seconds, f"matmul_share_{width}": share, f"step_of_ceiling_{width}": ceiling}
    figures |= {"matmul_share": figures["matmul_share_128"], "step_load": os.getloadavg()[0]}
    record("speed", figures, NOTES)
    print(json.dumps(figures, indent=1))
