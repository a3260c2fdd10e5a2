"""Every model keeps the contract of itemlm.models.base, one that is defined here included.

A model is made as `fit` makes it: built from the seed, shown the data, started from co-occurrence where it can be.
"""

import copy
import inspect
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import restamp
from torch import nn
from torch.nn.functional import cross_entropy

from itemlm import Recommender, SequenceModel, TrainingConfig, evaluate, fit, load, read_events, split, tiny
from itemlm.data.tokenizer import PAD, ItemTokenizer, Sequences
from itemlm.models.losses import LOSSES, full_softmax
from itemlm.models.mixture import with_neighbours
from itemlm.models.presets import MODELS, preset
from itemlm.models.text.encoders import ItemLLMConfig
from itemlm.models.text.generative import text_beam
from itemlm.models.text.hf import hf_beam
from itemlm.models.text.rows import hierarchy, item_plus_text
from itemlm.training.trainer import initial_model

SPECIAL = ItemTokenizer.n_special


class LSTMRec(SequenceModel):
    "A new baseline: everything that is not its network stands here, and in one line of a table."

    class Config(SequenceModel.Config):
        width: int = 64  # D
        layers: int = 2
        dropout: float = 0.2

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.n_special + config.n_items, config.width)
        self.lstm = nn.LSTM(config.width, config.width, config.layers, batch_first=True, dropout=config.dropout * (config.layers > 1))

    def encode(self, tokens, cache=None):  # (B, T) -> (B, T, D)
        return self.lstm(self.embed_tokens(tokens))[0]


def lstm(**changes) -> TrainingConfig:
    return replace(TrainingConfig(model=LSTMRec.Config(), epochs=3), **changes)


def shrunk(recipe: TrainingConfig) -> TrainingConfig:
    return replace(recipe, model=recipe.model.with_known(width=16, layers=1, dropout=0.1, max_len=8), epochs=1, batch=16, valid_targets=0)


GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 600, "vocab_size": 600}
VARIANTS = {
    "item_lm, learned positions": tiny(model=replace(tiny().model, position="learned", norm="layer", feed_forward="gelu", head="dot")),
    "item_lm, grouped heads": tiny(model=replace(tiny().model, heads=4, kv_heads=2)),
    "hierarchy, gated": item_plus_text(combine="gated"),
    "hierarchy, an Item LLM that learns": hierarchy(ItemLLMConfig(checkpoint="", trainable=True, width=16, layers=1, vocabulary=300)),
    "text_beam, titles": text_beam("title"),
    "text_beam, semantic IDs": text_beam("semantic"),
    "hf_beam": hf_beam(network=GPT2),
    "hierarchy with neighbours": with_neighbours(
        hierarchy(ItemLLMConfig(checkpoint="", trainable=True, width=16, layers=1, vocabulary=300))
    ),
    "bert4rec with neighbours": with_neighbours(preset("bert4rec"), weight=0.3),
}
RECIPES = {name: preset(name) for name in MODELS} | VARIANTS | {"lstm, defined here": lstm()}


@pytest.fixture(scope="module")
def parts():
    "Sixty people, thirty-odd items with titles."
    rng = np.random.default_rng(0)
    words = "red green blue small large old new soap cup lamp chair".split()
    items = pd.DataFrame({"item": np.arange(30), "title": [" ".join(rng.choice(words, 3, replace=False)) + f" {n}" for n in range(30)]})
    log = pd.DataFrame(
        {"user": np.repeat(np.arange(60), 12), "item": (30 * rng.random(720) ** 1.5).astype(int), "time": np.tile(np.arange(1, 13), 60)}
    )
    return split(read_events(log, name="contract", items=items, duplicates="keep", verbose=False))


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request, parts):
    recipe = shrunk(RECIPES[request.param])
    return (
        recipe
        if initial_model(replace(recipe, init="random"), parts, ItemTokenizer.from_split(parts)).table_width
        else replace(recipe, init="random")
    )


@pytest.fixture(scope="module")
def rec(recipe, parts):
    tokenizer = ItemTokenizer.from_split(parts)
    return Recommender.from_split(initial_model(recipe, parts, tokenizer).eval(), tokenizer, parts)


@pytest.fixture
def model(rec):
    return copy.deepcopy(rec.model)


ROWS = [[9, 10, 11, 12, 13], [14], [15, 16, 17], list(range(8, 28))]  # one is longer than max_len
HISTORIES = Sequences.from_lists(ROWS)
BATCH = [torch.tensor([[9, 10, 11, 12], [13, 14, 15, PAD]]), torch.tensor([[16, 17], [18, 19], [20, 21]])]


def plain(states, table, columns):
    return cross_entropy(states @ table.T, columns)


def encodes(model) -> bool:
    return model.item_table() is not None and type(model).encode is not SequenceModel.encode


def test_shapes(rec, model):
    scores = model.scores(HISTORIES)
    assert scores.shape == (4, rec.n_items) and scores.dtype == torch.float32 and torch.isfinite(scores).all()
    table = model.item_table()
    assert table is None or table.ndim == 2 and len(table) == rec.n_items
    cosines = model.item_cosines(3)
    assert cosines is not None or table is None  # who has vectors can say
    assert cosines is None or cosines.shape == (rec.n_items,) and not cosines.isnan().any() and cosines.max() < 1.0001
    if encodes(model):
        states = model.eval().encode(torch.tensor([[9, 10, 11], [12, PAD, PAD]]))
        assert states.shape == (2, 3, table.shape[1]) and model.queries(HISTORIES).shape == (4, table.shape[1])


def test_causal_where_it_is_claimed(model):
    if not encodes(model):
        pytest.skip("it does not read step by step")
    tokens = torch.tensor([[9, 10, 11, 12, 13]])
    changed = tokens.clone()
    changed[0, 3] = 20
    model = model.double().eval()
    same = torch.equal(model.encode(changed)[0, :3], model.encode(tokens)[0, :3])
    assert same == model.causal and not torch.equal(model.encode(changed)[0, 3:], model.encode(tokens)[0, 3:])


def test_alone_or_together(model):
    "Company in a batch, and with it the width of the padding, changes no score."
    together = model.scores(HISTORIES)
    for row in range(len(ROWS)):
        torch.testing.assert_close(model.scores(HISTORIES.take([row])), together[row : row + 1], atol=2e-5, rtol=1e-5)


def test_padding_is_never_read_nor_guessed(model):
    before = model.scores(HISTORIES)
    if model.embed_tokens is None:
        pytest.skip("it has no vector of padding")
    with torch.no_grad():
        model.embed_tokens.weight[PAD] = 1e3
    torch.testing.assert_close(model.scores(HISTORIES), before, atol=0, rtol=0)
    loss = [model.train(False)(BATCH, lambda s, t, c: (seen.append((t.shape[0], c)), plain(s, t, c))[1]) for seen in [[]]][0]
    assert torch.isfinite(loss) and (seen_columns(model) >= 0).all()


def seen_columns(model) -> torch.Tensor:
    "Targets that a loss is shown."
    shown = []
    torch.manual_seed(0)
    model([torch.tensor([[9, 10, PAD, PAD], [11, 12, 13, PAD]])], lambda s, t, c: (shown.append(c), plain(s, t, c))[1])
    return shown[0]


def test_save_and_load(rec, tmp_path):
    rec.save(tmp_path / "run")
    again = load(tmp_path / "run", device="cpu", model=type(rec.model))
    assert again.model.config == rec.model.config and type(again.model) is type(rec.model)
    torch.testing.assert_close(again.model.scores(HISTORIES), rec.model.scores(HISTORIES), atol=1e-6, rtol=0)
    histories = [[str(n) for n in row] for row in ([1, 2, 3], [4])]
    assert (again.topk(histories, k=5)[0] == rec.topk(histories, k=5)[0]).all()


def test_new_items_or_one_clear_error(rec, parts):
    new = pd.DataFrame({"title": ["red lamp 99", "old cup 98"]}, index=["new 1", "new 2"])
    before = rec.model.scores(HISTORIES)
    if not rec.model.extendable(new).all():
        with pytest.raises(ValueError, match="knows items by") as caught:
            rec.add_items(new)
        assert len(str(caught.value).splitlines()) == 1
        return
    grown = rec.add_items(new)
    assert grown.n_items == rec.n_items + 2 and list(grown.tokenizer.items[-2:]) == ["new 1", "new 2"]
    torch.testing.assert_close(grown.model.scores(HISTORIES)[:, : rec.n_items], before, atol=1e-5, rtol=1e-5)


def test_forward_gives_every_weight_its_gradient(model):
    if not model.learns:
        return
    torch.manual_seed(0)
    model.train()(BATCH, full_softmax()).backward()
    without = [name for name, w in model.named_parameters() if w.requires_grad and w.grad is None]
    assert not without


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "fused_softmax"])  # for GPUs: test_liger
def test_every_loss(model, name):
    if not model.learns:
        return
    torch.manual_seed(0)
    loss = model.train()(BATCH, LOSSES[name]())
    assert loss.shape == () and torch.isfinite(loss)


def test_two_halves_are_the_whole(model):
    "The loss of a batch is the mean over its targets, however it is cut."
    if not model.learns:
        return
    model = model.double().eval()

    def counted(batch):
        counts = []

        def counting(states, table, columns):
            counts.append(len(columns))
            return plain(states, table, columns)

        loss = model(batch, counting)
        assert len(set(counts)) == 1  # several networks of one model answer the same targets
        return loss, counts[0]

    torch.manual_seed(0)
    whole, count = counted(BATCH)
    torch.manual_seed(0)
    halves = [counted([bucket]) for bucket in BATCH]
    assert count == sum(n for _, n in halves)
    torch.testing.assert_close(sum(loss * n for loss, n in halves) / count, whole, atol=1e-6, rtol=1e-6)


def test_deep_copy(rec):
    twin = copy.deepcopy(rec.model)
    assert twin.scores(HISTORIES).equal(rec.model.scores(HISTORIES))
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                tensor.zero_()
    assert not torch.equal(rec.model.scores(HISTORIES), torch.zeros_like(rec.model.scores(HISTORIES)))


def test_moves_as_a_whole(model):
    "Nothing stays behind when a model moves to another device."
    model.scores(HISTORIES)
    moved = model.to("meta")
    assert {t.device.type for t in (*moved.parameters(), *moved.buffers())} <= {"meta"}
    left = [f"{type(m).__name__}.{name}" for m in moved.modules() for name, value in vars(m).items() if isinstance(value, torch.Tensor)]
    assert not left


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_same_scores_on_cuda(model):
    before = model.scores(HISTORIES)
    torch.testing.assert_close(model.to("cuda").scores(HISTORIES).cpu(), before, atol=1e-3, rtol=1e-3)


def test_weights_hold_no_text(model):
    assert not [name for name, tensor in model.state_dict().items() if tensor.dtype == torch.uint8]
    for name, text in model.files().items():
        assert name.endswith(".json") and json.loads(text) is not None


def test_cached_table_is_reentrant(model):
    if model.item_table() is None:
        return
    with model.cached_item_table():
        kept = model._cached_table
        with model.cached_item_table():
            model.scores(HISTORIES)
        assert model._cached_table is kept
    assert model._cached_table is None


def test_through_the_whole_house(recipe, parts, tmp_path):
    "fit, evaluate, finished run opened again: one kind of object, whatever the model."
    rec = fit(parts, recipe, out_dir=tmp_path / "run", device="cpu", verbose=False)
    report = evaluate(rec, parts)
    assert 0 <= report.metric("ndcg@10")["mean"] <= 1 and len(rec.log) == (1 if rec.model.learns else 0)
    again = fit(parts, recipe, out_dir=tmp_path / "run", device="cpu", verbose=False)
    assert evaluate(again, parts).metric("ndcg@10")["mean"] == pytest.approx(report.metric("ndcg@10")["mean"], abs=1e-9)


# --- what is refused, before the first step --------------------------------------------------------------------------


class Tongue(LSTMRec):
    class Config(LSTMRec.Config):
        activation: object = None


def test_what_cannot_be_saved_is_refused_before_the_first_step(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("itemlm.training.trainer.Trainer.step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(ValueError, match="Tongue could not be opened again"):
        fit(parts, TrainingConfig(model=Tongue.Config(activation=torch.relu)), out_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [nn.Linear(2, 2), LSTMRec.Config(), "small", lstm])
def test_what_is_no_recipe_is_refused(parts, given):
    with pytest.raises(ValueError, match="fit takes a TrainingConfig"):
        fit(parts, given)


def test_a_class_of_a_notebook_is_found_or_handed_over(parts, tmp_path):
    rec = fit(parts, shrunk(lstm()), out_dir=tmp_path / "run", verbose=False)
    assert json.loads((tmp_path / "run/run.json").read_text())["class"] == f"{__name__}:LSTMRec"
    assert (load(tmp_path / "run").topk([["1"]], k=3)[0] == rec.topk([["1"]], k=3)[0]).all()
    restamp(tmp_path / "run", **{"class": "somewhere:LSTMRec"})
    with pytest.raises(ValueError, match="import somewhere first, or hand it over"):
        load(tmp_path / "run")
    assert (load(tmp_path / "run", model=LSTMRec).topk([["1"]], k=3)[0] == rec.topk([["1"]], k=3)[0]).all()


def test_a_file_imports_nothing(parts, tmp_path):
    "A class named in run.json is never a reason to import its module."
    fit(parts, shrunk(lstm()), out_dir=tmp_path / "run", verbose=False)
    for name in ("antigravity:Model", "itemlm.models:os.system", "os:system", "itemlm.core:Ragged"):
        restamp(tmp_path / "run", **{"class": name})
        with pytest.raises(ValueError, match="is not here|is no model"):
            load(tmp_path / "run")
    import sys

    assert "antigravity" not in sys.modules


def test_a_new_baseline_is_small():
    "Everything beside the network of a two-layer LSTM: at most 40 lines."
    assert len(inspect.getsource(LSTMRec).splitlines()) + len(inspect.getsource(lstm).splitlines()) <= 40


def test_labels_are_shared_with_neighbours_or_refused(rec, recipe, parts):
    "A network that guesses the next item from a table learns from votes too; any other one says why not, before it has trained."
    shared = replace(recipe, neighbour_labels=0.5)
    table = rec.model.item_table() if rec.model.causal else None
    if not rec.model.learns or (table is not None and len(table) == rec.n_items):
        found = fit(parts, shared, device="cpu", verbose=False)
        assert all(np.isfinite(row["loss"]) for row in found.log) and len(found.log) == rec.model.learns
    else:
        with pytest.raises(ValueError, match="neighbour_labels=0.5: .* has no use"):
            fit(parts, shared, device="cpu", verbose=False)
