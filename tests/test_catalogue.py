"Large catalogues: steps that move only the rows they read are those of the whole table, and go on where they stopped."

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from itemlm import fit, read_events, split, tiny
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.models.ensemble import ensemble
from itemlm.models.losses import Drawn, SharedSoftmax, shared_gbce, shared_softmax
from itemlm.models.mixture import with_neighbours
from itemlm.models.neural import bert4rec, gru4rec, hstu, sasrec
from itemlm.models.text.rows import hierarchy
from itemlm.training.checkpoint import Progress, load_progress, save_progress
from itemlm.training.rows import item_tables, some_rows
from itemlm.training.schedule import make_optimizer
from itemlm.training.trainer import estimate, initial_model, sized, train_step, training_sequences

rng = np.random.default_rng(0)
LOG = pd.DataFrame({"user": rng.integers(0, 120, 2400).astype(str), "item": (rng.zipf(1.3, 2400) % 200).astype(str)})
MODELS = {"item_lm": tiny, "gru4rec": gru4rec, "sasrec": sasrec, "bert4rec": bert4rec, "hstu": hstu}
MODELS |= {"ensemble": lambda: ensemble(tiny()), "mixture": lambda: with_neighbours(sasrec())}


class Same(SharedSoftmax):
    "Draws the same items always"

    def draw(self, n_items, device="cpu") -> Drawn:
        return Drawn(torch.arange(0, n_items, 5), torch.full((len(range(0, n_items, 5)),), 5.0), 0.2)


@pytest.fixture(scope="module")
def parts():
    return split(read_events(LOG, name="synthetic"))


def made(name: str, parts, loss):
    "A recipe of any size's width 16, its model and a batch of two buckets"
    recipe = MODELS[name]()
    recipe = replace(recipe, init="random", loss=loss, model=recipe.model.with_known(width=16))
    model = initial_model(recipe, parts, ItemTokenizer.from_split(parts))
    high = 8 + model.config.n_items
    generator = torch.Generator().manual_seed(0)
    return recipe, model, [torch.randint(8, high, shape, generator=generator) for shape in ((4, 7), (3, 4))]


@pytest.mark.parametrize("name", MODELS)
def test_some_rows_are_as_good_as_all(name, parts):
    "Loss and gradients of every model that says where its rows are."
    recipe, model, batch = made(name, parts, Same())
    batch[0][0, 3:] = 0  # padding
    torch.manual_seed(1)
    whole = model(batch, recipe.loss)
    whole.backward()
    dense = {key: weight.grad.clone() for key, weight in model.named_parameters()}
    model.zero_grad()
    optimizer = make_optimizer(model, recipe)
    some = some_rows(optimizer, batch, recipe.loss)
    torch.manual_seed(1)  # the same dropout
    part = some.forward(model, recipe.loss)
    part.backward()
    some.hand_over()
    assert len(item_tables(model, recipe)) == {"ensemble": 2, "bert4rec": 2}.get(name, 1)
    assert part.item() == pytest.approx(whole.item(), rel=1e-5)
    for key, weight in model.named_parameters():
        assert torch.allclose(weight.grad.to_dense(), dense[key], atol=1e-5), key


def test_rows_made_of_more_than_a_weight_are_trained_whole(parts):
    recipe = replace(hierarchy(), loss=shared_softmax(8))
    config = sized(recipe, ItemTokenizer.from_split(parts))
    assert not item_tables(config.model.build(), config)
    config = sized(tiny(loss=shared_softmax(8), neighbour_labels=0.2), ItemTokenizer.from_split(parts))
    assert not item_tables(config.model.build(), config)


@pytest.mark.parametrize("changes", [{}, {"clip": 0.5}, {"precision": "bfloat16"}])
def test_a_step_leaves_other_rows_alone(changes, parts):
    recipe, model, batch = made("item_lm", parts, Same())
    recipe = replace(recipe, weight_decay=0.0, **changes)
    optimizer, before = make_optimizer(model, recipe), model.embed_tokens.weight.detach().clone()
    read = some_rows(optimizer, batch, recipe.loss).places[model.embed_tokens.weight]
    train_step(model.train(), optimizer, batch, recipe)
    moved = (model.embed_tokens.weight.detach() != before).any(1).nonzero()[:, 0]
    assert set(moved.tolist()) <= set(read.tolist()) and len(moved) > 10


def test_resumed_in_the_middle_of_an_epoch(parts, tmp_path):
    "A run stopped after each of its first three steps ends as one that was never stopped, to the bit."
    recipe = tiny(epochs=2, batch=16, loss=shared_softmax(40))
    fit(parts, recipe, out_dir=tmp_path / "whole", verbose=False)
    for _ in range(3):
        stopped = fit(parts, recipe, out_dir=tmp_path / "stopped", max_minutes=1e-9, verbose=False)
    assert (tmp_path / "stopped/resume.safetensors").exists() and stopped.log[-1]["step"] == 3
    fit(parts, recipe, out_dir=tmp_path / "stopped", verbose=False)
    rows = [
        pd.read_json(tmp_path / name / "log.jsonl", lines=True).set_index("step").drop(columns="seconds") for name in ("whole", "stopped")
    ]
    assert rows[1].loc[rows[0].index].to_numpy().tolist() == rows[0].to_numpy().tolist()
    best = [int(table["ndcg@10"].idxmax()) for table in rows]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped")]
    assert best[0] != best[1] or all(weights[0][key].equal(weights[1][key]) for key in weights[0])


def test_what_a_table_is_owed_is_kept(parts, tmp_path):
    recipe, model, batch = made("item_lm", parts, Same())
    optimizer = make_optimizer(model, recipe)
    for _ in range(2):
        train_step(model.train(), optimizer, batch, recipe)
    save_progress(tmp_path / "resume.safetensors", Progress(step=2), model, optimizer)
    twin = model.config.build()
    twin_optimizer = make_optimizer(twin, recipe)
    load_progress(tmp_path / "resume.safetensors", twin, twin_optimizer)
    assert twin_optimizer.state[twin.embed_tokens.weight]["decay"].item() == optimizer.state[model.embed_tokens.weight]["decay"].item() < 1
    for one, other in ((model, optimizer), (twin.train(), twin_optimizer)):
        torch.manual_seed(5)
        train_step(one, other, batch, recipe)
    assert all(a.equal(b) for a, b in zip(model.parameters(), twin.parameters()))


@pytest.mark.parametrize("loss", [shared_softmax(64), shared_gbce(0.5, 64)])
def test_it_learns(loss, parts):
    first, last = (fit(parts, tiny(epochs=epochs, loss=loss), verbose=False).log[-1]["loss"] for epochs in (1, 5))
    assert last < first


def test_rows_need_no_gradient_of_the_tables_size(parts):
    recipe, model, _ = made("item_lm", parts, shared_softmax(8))
    tokenizer = ItemTokenizer.from_split(parts)
    sequences = training_sequences(tokenizer.encode_codes(parts.train, parts.events.items.index), 20)
    whole, some = (estimate(model, sequences, replace(recipe, loss=loss)).memory_mb for loss in (tiny().loss, recipe.loss))
    assert some < whole
