"""One library's SASRec or Llama, stepped and asked from outside; run by bench/speed_peers.py, each in an environment of its own.

    python bench/speed_worker.py rectools FOLDER      # then a line on standard input: step 3 | lists | one 50 | peak | train 60

FOLDER holds settings.json, train.npz, valid.npz and test.npz (values and offsets of item numbers from 1; targets). Every answer is one
line of JSON. Real targets are counted: a padded place is none.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

folder = Path(sys.argv[2])
settings = json.loads((folder / "settings.json").read_text())

WIDTH, BLOCKS, HEADS, LENGTH, BATCH = (settings[name] for name in ("width", "blocks", "heads", "length", "batch"))
ITEMS, HIDDEN, DROPOUT = settings["items"], settings["hidden"], settings["dropout"]
IGNORE = -100


def read(part: str) -> dict:
    "A part's item numbers, offsets and targets"
    with np.load(folder / f"{part}.npz") as stored:
        return dict(stored)


def rows_of(part: dict, length: int) -> np.ndarray:  # (B, length), left-padded with 0
    "The newest items of each history"
    values, offsets = part["values"], part["offsets"]
    places = offsets[1:, None] - length + np.arange(length)
    return np.where(places >= offsets[:-1, None], values[np.maximum(places, 0)], 0)


class Padded:
    "A plain loop over left-padded rectangles of full length, Adam 1e-3"

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None):
        torch.manual_seed(0)
        self.model, self.optimizer = model, optimizer or torch.optim.Adam(model.parameters(), lr=1e-3)
        rows = rows_of(read("train"), LENGTH + 1)
        self.rows = torch.from_numpy(rows[(rows > 0).sum(1) > 1])
        self.batches = iter(())

    def batch(self) -> torch.Tensor:  # (B, LENGTH + 1)
        "The next one; a new order when all are done"
        found = next(self.batches, None)
        if found is None:
            self.batches = iter(self.rows[torch.randperm(len(self.rows))].split(BATCH))
            found = next(self.batches)
        return found

    def step(self) -> int:  # real targets
        self.model.train()
        rows = self.batch()
        inputs, targets = rows[:, :-1], rows[:, 1:].where(rows[:, :-1] > 0, 0)
        self.optimizer.zero_grad()
        self.loss(inputs, targets).backward()
        self.optimizer.step()
        return int((targets > 0).sum())

    @torch.no_grad()
    def lists(self, part: dict) -> np.ndarray:  # (B, 10) item numbers
        "The ten best unseen items of each history"
        self.model.eval()
        rows, found = torch.from_numpy(rows_of(part, LENGTH)), []
        for start in range(0, len(rows), 512):
            scores = self.scores(rows[start : start + 512])
            lo, hi = part["offsets"][start], part["offsets"][min(start + 512, len(rows))]
            lengths = np.diff(part["offsets"][start : start + 513])
            scores[np.repeat(np.arange(len(lengths)), lengths), part["values"][lo:hi]] = -torch.inf
            scores[:, 0] = -torch.inf
            found.append(scores.topk(10).indices.numpy())
        return np.concatenate(found)


class HuggingFace(Padded):
    "LlamaForCausalLM over item tokens, its own loss"

    def __init__(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = dict(hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=BLOCKS, num_attention_heads=HEADS)
        super().__init__(LlamaForCausalLM(LlamaConfig(vocab_size=ITEMS + 1, max_position_embeddings=LENGTH, pad_token_id=0, **sizes)))

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=inputs, attention_mask=(inputs > 0).long()).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.where(targets > 0, IGNORE).flatten(), ignore_index=IGNORE)

    def scores(self, rows: torch.Tensor) -> torch.Tensor:  # (B, V + 1)
        return self.model(input_ids=rows, attention_mask=(rows > 0).long(), logits_to_keep=1).logits[:, -1]


class FastTransformers(Padded):
    "RecTools' flat SASRec network under the full softmax over all of its logits, as its own training step asks for them"

    def __init__(self):
        from rectools.fast_transformers import FlatSASRecNet

        super().__init__(FlatSASRecNet(ITEMS, WIDTH, BLOCKS, HEADS, LENGTH, DROPOUT))

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.model({"x": inputs, "y": targets})
        return F.cross_entropy(logits.flatten(0, 1), (targets - 1).where(targets > 0, IGNORE).flatten(), ignore_index=IGNORE)

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        return F.pad(self.model.encode_last(rows) @ self.model.all_item_embeddings().T, (1, 0))


class RePlay(Padded):
    "RePlay's SasRec with its cross-entropy"

    def __init__(self):
        from replay.data import FeatureHint, FeatureType
        from replay.data.nn import TensorFeatureInfo, TensorSchema
        from replay.nn.sequential import SasRec

        items = TensorFeatureInfo(
            "item_id", FeatureType.CATEGORICAL, True, FeatureHint.ITEM_ID, cardinality=ITEMS, embedding_dim=WIDTH, padding_value=ITEMS
        )
        super().__init__(SasRec.from_params(TensorSchema([items]), WIDTH, HEADS, BLOCKS, LENGTH, DROPOUT))

    def asked(self, rows: torch.Tensor) -> dict:
        return {"feature_tensors": {"item_id": (rows - 1).where(rows > 0, ITEMS)}, "padding_mask": rows > 0}

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        wanted = (targets - 1).where(targets > 0, ITEMS)[..., None]
        labels = {"positive_labels": wanted, "negative_labels": None, "target_padding_mask": targets[..., None] > 0}
        return self.model.forward_train(**self.asked(inputs), **labels)["loss"]

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        return F.pad(self.model.forward_inference(**self.asked(rows))["logits"], (1, 0))


class RecBole(Padded):
    "RecBole's SASRec with cross-entropy: a row for each target, as its augmentation makes them; its batches of 2,048"

    def __init__(self):
        import recbole.model.layers  # noqa: F401  (its package must be whole before a model is)
        from recbole.model.sequential_recommender import SASRec

        class Config(dict):
            def __getitem__(self, name):
                return self.get(name)

        class Data:
            field2type = {}

            def num(self, field):
                return ITEMS + 1

        sizes = dict(hidden_size=WIDTH, inner_size=HIDDEN, n_layers=BLOCKS, n_heads=HEADS, MAX_ITEM_LIST_LENGTH=LENGTH)
        rates = dict(
            hidden_dropout_prob=DROPOUT, attn_dropout_prob=DROPOUT, hidden_act="gelu", layer_norm_eps=1e-12, initializer_range=0.02
        )
        names = dict(USER_ID_FIELD="user", ITEM_ID_FIELD="item", LIST_SUFFIX="_list", ITEM_LIST_LENGTH_FIELD="length", NEG_PREFIX="neg_")
        super().__init__(SASRec(Config(**sizes, **rates, **names, loss_type="CE", device="cpu"), Data()))
        train = read("train")
        owner = np.repeat(np.arange(len(train["offsets"]) - 1), np.diff(train["offsets"]))
        self.values, self.starts = train["values"], train["offsets"][:-1][owner]
        self.places = np.flatnonzero(np.arange(len(owner)) > self.starts)  # of every target

    def batch(self) -> tuple:  # rows (B, LENGTH) right-padded, lengths, targets
        found = next(self.batches, None)
        if found is None:
            self.batches = iter(np.array_split(np.random.default_rng(0).permutation(self.places), -(-len(self.places) // 2048)))
            found = next(self.batches)
        first = np.maximum(self.starts[found], found - LENGTH)
        places = first[:, None] + np.arange(LENGTH)
        rows = np.where(places < found[:, None], self.values[np.minimum(places, len(self.values) - 1)], 0)
        return torch.from_numpy(rows), torch.from_numpy(found - first), torch.from_numpy(self.values[found])

    def step(self) -> int:
        self.model.train()
        rows, lengths, targets = self.batch()
        self.optimizer.zero_grad()
        self.model.calculate_loss({"item_list": rows, "length": lengths, "item": targets}).backward()
        self.optimizer.step()
        return len(targets)

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        lengths = (rows > 0).sum(1)
        shifted = torch.arange(LENGTH) + (LENGTH - lengths)[:, None]
        right = rows.gather(1, shifted.clamp(max=LENGTH - 1)).where(torch.arange(LENGTH) < lengths[:, None], 0)
        return self.model.full_sort_predict({"item_list": right, "length": lengths})


class RecTools:
    "RecTools' SASRecModel: its own loader, its own training step, its own optimiser, stepped without its trainer"

    layers = None

    def __init__(self):
        from rectools.dataset import Dataset
        from rectools.models import SASRecModel

        torch.manual_seed(0)
        more = {"transformer_layers_type": self.layers} if self.layers else {}
        sizes = dict(n_factors=WIDTH, n_blocks=BLOCKS, n_heads=HEADS, dropout_rate=DROPOUT, session_max_len=LENGTH)
        self.recommender = SASRecModel(**sizes, batch_size=BATCH, loss="softmax", recommend_torch_device="cpu", **more)
        self.construct = Dataset.construct
        self.recommender._build_model_from_dataset(self.construct(self.table(read("train"))))
        self.module = self.recommender.lightning_model
        self.module._xavier_normal_init()
        self.module.log = lambda *_, **__: None
        self.loader, self.optimizer = self.recommender.data_preparator.get_dataloader_train(), self.module.configure_optimizers()
        self.batches = iter(self.loader)

    def table(self, part: dict):
        import pandas as pd

        lengths = np.diff(part["offsets"])
        order = np.arange(len(part["values"])) - np.repeat(part["offsets"][:-1], lengths)
        when = pd.Timestamp("2000-01-01") + pd.to_timedelta(order, unit="h")
        users = np.repeat(np.arange(len(lengths)), lengths)
        return pd.DataFrame({"user_id": users, "item_id": part["values"], "weight": 1, "datetime": when})

    def step(self) -> int:
        self.module.train()
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        self.optimizer.zero_grad()
        self.module.training_step(batch, 0).backward()
        self.optimizer.step()
        return int((batch["y"] > 0).sum())

    def lists(self, part: dict) -> np.ndarray:
        self.recommender.is_fitted = self.module.is_fitted = True
        table = self.table(part)
        users = np.arange(len(part["offsets"]) - 1)
        known = dict(k=10, filter_viewed=True, on_unsupported_targets="ignore")
        found = self.recommender.recommend(users, self.construct(table), **known)
        lists = np.zeros((len(users), 10), np.int64)
        lists[found["user_id"], found["rank"] - 1] = found["item_id"]
        return lists


class LiGR(RecTools):
    "RecTools' SASRecModel with its LiGR layers"

    def __init__(self):
        from rectools.models.nn.transformers.ligr import LiGRLayers

        self.layers = LiGRLayers
        super().__init__()


class ItemLM:
    "This library's model at the same sizes: its trainer's step, its public lists"

    def __init__(self):
        from itemlm.data.batches import epoch_order
        from itemlm.data.tokenizer import ItemTokenizer
        from itemlm.serving.recommender import Recommender
        from itemlm.training.trainer import Trainer, initial_model, sized

        started = time.perf_counter()
        tokenizer = ItemTokenizer.from_split(parts := self.parts())
        model = initial_model(config := self.config(), parts, tokenizer)
        self.recommender = Recommender.from_split(model, tokenizer, parts)
        self.items = np.array([None, *tokenizer.items], object)  # raw ids by number
        self.trainer = Trainer(self.recommender, parts, sized(config, tokenizer), verbose=False)
        self.order, self.batches = lambda: iter(epoch_order(self.trainer.sequences, config.batch, 0, 0)), iter(())
        self.prepared = time.perf_counter() - started

    def parts(self):
        from itemlm.data.datasets import load_dataset
        from itemlm.data.split import split

        return split(load_dataset(settings["dataset"]))

    def config(self):
        from dataclasses import replace

        from itemlm.models.item_lm import small

        sizes = dict(width=WIDTH, layers=BLOCKS, heads=HEADS, kv_heads=HEADS, hidden=HIDDEN, max_len=LENGTH)
        return replace(small(batch=BATCH), model=replace(small().model, **sizes))

    def step(self) -> int:
        rows = next(self.batches, None)
        if rows is None:
            self.batches = self.order()
            rows = next(self.batches)
        self.trainer.model.train()
        self.trainer.step(rows)
        return int(self.trainer.sequences.lengths[rows].sum()) - len(rows)

    def lists(self, part: dict) -> np.ndarray:
        self.trainer.model.eval()
        histories = np.split(self.items[part["values"]], part["offsets"][1:-1])
        return self.recommender.topk([history.tolist() for history in histories], 10, seen="drop")[0]

    def train(self, wanted: float, seconds: float) -> dict:
        trainer, started = self.trainer, time.perf_counter() - self.prepared  # the start from co-occurrence is part of it
        while not trainer.done and trainer.progress.best < wanted and time.perf_counter() - started < seconds:
            trainer.train_epoch(started + seconds)
        return {"seconds": time.perf_counter() - started, "ndcg@10": trainer.progress.best, "epochs": trainer.epoch}


LIBRARIES = {"itemlm": ItemLM, "rectools": RecTools, "ligr": LiGR, "fast_transformers": FastTransformers}
LIBRARIES |= {"recbole": RecBole, "replay": RePlay, "hf": HuggingFace}


def ndcg(lists: np.ndarray, targets: np.ndarray) -> float:
    "NDCG@10 of lists; a user without a hit has missed"
    users, ranks = np.nonzero(lists == targets[:, None])
    return float((1 / np.log2(ranks + 2)).sum() / len(targets))


def subset(part: dict, users: np.ndarray) -> dict:
    "Some histories of a part"
    lengths = np.diff(part["offsets"])[users]
    values = np.concatenate([part["values"][part["offsets"][u] : part["offsets"][u + 1]] for u in users])
    return {"values": values, "offsets": np.concatenate([[0], lengths.cumsum()]), "targets": part["targets"][users]}


def steps(library, count: int) -> dict:
    started, targets = time.perf_counter(), 0
    for _ in range(count):
        targets += library.step()
    return {"seconds": time.perf_counter() - started, "targets": targets}


def lists(library) -> dict:
    part = read("test")
    started = time.perf_counter()
    library.lists(part)
    return {"seconds": time.perf_counter() - started, "users": len(part["targets"])}


def one(library, count: int) -> dict:
    "Milliseconds of answers to one user at a time"
    part, found = read("test"), []
    for user in np.random.default_rng(0).choice(len(part["targets"]), count + 3):
        asked, started = subset(part, np.array([user])), time.perf_counter()
        library.lists(asked)
        found.append(1000 * (time.perf_counter() - started))
    return {"p50": float(np.median(found[3:])), "p99": float(np.quantile(found[3:], 0.99))}


def train(library, wanted: float, seconds: float) -> dict:
    "Train until the validation part's NDCG@10 is reached or the time is over; validation counts as well"
    if isinstance(library, ItemLM):
        return library.train(wanted, seconds)
    part, started, epoch, best, done = read("valid"), time.perf_counter(), settings["targets"], 0.0, 0
    while time.perf_counter() - started < seconds and best < wanted:
        goal = done + epoch
        while done < goal and time.perf_counter() - started < seconds:
            done += library.step()
        best = max(best, ndcg(library.lists(part), part["targets"]))
    return {"seconds": time.perf_counter() - started, "ndcg@10": best, "epochs": done / epoch}


def answer(library, line: str) -> dict:
    name, *numbers = line.split()
    if name == "peak":
        return {"gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    return {"step": steps, "lists": lists, "one": one, "train": train}[name](library, *map(float if name == "train" else int, numbers))


if __name__ == "__main__":
    torch.set_num_threads(settings["threads"])
    library = LIBRARIES[sys.argv[1]]()
    print(json.dumps({"ready": sys.argv[1]}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(library, line)), flush=True)
