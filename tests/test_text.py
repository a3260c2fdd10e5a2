"Text models as whole recommenders: through a folder and back, interrupted and resumed, and with what item tables can do to them."

import hashlib
import importlib.util
import json
import os
import shutil
import threading
import warnings
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import ROOT, restamp
from safetensors.torch import load_file, save_file

from itemlm.data.datasets import load_dataset
from itemlm.data.events import read_events, with_texts
from itemlm.data.split import split, withheld, withhold_items
from itemlm.data.tokenizer import ItemTokenizer, Sequences
from itemlm.evaluation.cold import cold_table
from itemlm.models.counting import popularity
from itemlm.models.item_lm import tiny
from itemlm.models.losses import full_softmax
from itemlm.models.text import encoders, item_llm
from itemlm.models.text.content_knn import ContentKNNConfig, content_knn
from itemlm.models.text.encoders import (
    MINILM,
    ItemLLMConfig,
    cached_vectors,
    encoder_hash,
    find_checkpoint,
    positions_of,
    reading_part,
    text_vectors,
    width_of,
)
from itemlm.models.text.item_llm import FixedReader, LearningReader, learn_subwords
from itemlm.models.text.rows import ItemTextConfig, ItemTextLM, hierarchy, item_plus_text
from itemlm.models.text.templates import ItemTexts, item_texts
from itemlm.serving.recommender import load
from itemlm.training import trainer
from itemlm.training.trainer import fit

minilm = pytest.mark.skipif(
    not importlib.util.find_spec(MINILM) and not os.environ.get("CI"), reason="MiniLM is not installed: pip install itemlm[text]"
)  # CI must have it
SCRATCH = ItemLLMConfig(checkpoint="", trainable=True, pooling="last", vocabulary=400, width=16, layers=1, encode=32)
WORDS = np.array("red green blue soft hard sweet bitter old new warm cold small large quick slow loud".split())


def toy_events(n_items: int = 60, seed: int = 0):
    "Users who walk through items of one kind; the title names the kind."
    rng = np.random.default_rng(seed)
    items = pd.DataFrame(
        {
            "item": [f"i{n}" for n in range(n_items)],
            "title": [" ".join([WORDS[n % 6], *rng.choice(WORDS[6:], 3), str(n)]) for n in range(n_items)],
        }
    )
    log = [(f"u{u}", f"i{(u % 6) + 6 * int(step)}") for u in range(80) for step in rng.permutation(n_items // 6)[:7]]
    return read_events(pd.DataFrame(log, columns=["user", "item"]), items=items, name="toy", verbose=False)


def quick(config, text: ItemLLMConfig = SCRATCH, **changes):
    model = replace(config.model, width=16, layers=1, hidden=40, max_len=10, dropout=0.1, text=text, adapter=min(config.model.adapter, 8))
    return replace(tiny(), model=model, **{"epochs": 2, "batch": 32} | changes)


def set_up(config, parts, seed: int = 0):
    "A model of a recipe that has read the texts, and nothing more."
    torch.manual_seed(seed)
    tokenizer = ItemTokenizer(parts.events.items.index)
    model = replace(config.model, n_items=tokenizer.n_items).build()
    model.setup(parts, tokenizer)
    return model


@pytest.fixture(scope="module")
def parts():
    return split(toy_events())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "A checkpoint as save_pretrained writes it: a BERT of random weights and a BPE tokenizer."
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=400, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    transformers.BertModel(config).save_pretrained(folder)
    learn_subwords(WORDS, 400).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(autouse=True)
def workspace_in(tmp_path, monkeypatch):
    "A cache of its own."
    (tmp_path / "settings.ini").write_text("[workspace]\ncache = cache\n")
    monkeypatch.chdir(tmp_path)


def fixed(checkpoint, **changes) -> ItemLLMConfig:
    return ItemLLMConfig(**{"checkpoint": str(checkpoint), "keep": 8} | changes)


def configs(checkpoint) -> dict:
    return {
        "fixed": quick(hierarchy(), fixed(checkpoint)),
        "raw and last": quick(hierarchy(), fixed(checkpoint, whiten=False, pooling="last")),
        "random weights": quick(hierarchy(), fixed(checkpoint, pretrained=False)),
        "from scratch": quick(hierarchy()),
        "fine-tuned": quick(hierarchy(), ItemLLMConfig(checkpoint=str(checkpoint), trainable=True, encode=16)),
        "sum": quick(item_plus_text(), fixed(checkpoint)),
        "gated": quick(item_plus_text(combine="gated"), fixed(checkpoint)),
        "concat": quick(item_plus_text(combine="concat"), fixed(checkpoint)),
        "start": quick(item_plus_text(combine="start"), fixed(checkpoint)),
        "sum, from scratch": quick(item_plus_text()),
    }


NAMES = ["fixed", "raw and last", "random weights", "from scratch", "fine-tuned", "sum", "gated", "concat", "start", "sum, from scratch"]


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_and_new_items(name, parts, checkpoint, tmp_path):
    rec = fit(parts, configs(checkpoint)[name], verbose=False)
    rec.save(tmp_path / "run")
    again = load(tmp_path / "run", device="cpu")
    histories = rec.encode([["i1", "i2"], ["i3"], ["i4", "i5", "i6", "i7"]])
    scores = rec.scores(histories)
    assert torch.equal(again.scores(histories), scores), "what was saved scores as it did"
    more = again.add_items(pd.DataFrame({"title": ["red warm thing", "blue cold thing"]}, index=["new 1", "new 2"]))
    torch.testing.assert_close(more.scores(histories)[:, :-2], scores, rtol=0, atol=1e-4)
    more.save(tmp_path / "more")
    assert torch.equal(load(tmp_path / "more", device="cpu").scores(histories), more.scores(histories))
    assert {"new 1", "new 2"} <= set(more.recommend(items=["i1"], k=more.n_items - 1)["item"]), "new items are recommended"
    assert again.n_items == rec.n_items, "the old recommender is what it was"


@pytest.mark.parametrize("name", ["from scratch", "sum, from scratch", "gated", "fixed"])
def test_resumed_equals_unbroken(name, parts, checkpoint, tmp_path, monkeypatch):
    config, step = configs(checkpoint)[name], trainer.Trainer.step
    whole = fit(parts, config, out_dir=tmp_path / "whole", device="cpu", verbose=False)

    def killed(run, rows):
        if run.progress.step == 4:
            raise KeyboardInterrupt
        step(run, rows)

    monkeypatch.setattr(trainer, "SAVE_EVERY", 0)
    monkeypatch.setattr(trainer.Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, config, out_dir=tmp_path / "broken", device="cpu", verbose=False)
    monkeypatch.setattr(trainer.Trainer, "step", step)
    broken = fit(parts, config, out_dir=tmp_path / "broken", device="cpu", verbose=False)
    assert {k: v for k, v in whole.log[-1].items() if k != "seconds"} == {k: v for k, v in broken.log[-1].items() if k != "seconds"}
    assert all(torch.equal(x, broken.model.state_dict()[key]) for key, x in whole.model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_no_padding_no_future(name, parts, checkpoint):
    "A score does not depend on neighbours in the batch, nor a state on later items."
    model = set_up(configs(checkpoint)[name], parts, seed=1).eval()
    histories = Sequences.from_lists([[9, 30, 40], [12], [5, 9, 8, 20, 12, 13, 14]])
    scores = model.scores(histories)
    for row in range(3):
        torch.testing.assert_close(model.scores(histories.take([row]))[0], scores[row], rtol=0, atol=1e-4)
    tokens = torch.tensor([[9, 30, 40, 41]])
    for later in (10, 0):
        changed = torch.tensor([[9, 30, 40, later]])
        torch.testing.assert_close(model.encode(tokens)[:, :3], model.encode(changed)[:, :3], rtol=0, atol=1e-5)


def test_gradients_reach_what_learns(parts, checkpoint):
    for name, config in configs(checkpoint).items():
        model = set_up(config, parts)
        model.train()([torch.tensor([[9, 30, 40, 41, 42]])], full_softmax()).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None], f"{name}: every weight has a gradient"


def test_cost_is_bounded(parts):
    "However large the batch, no more than `encode` texts are read again."
    model = set_up(quick(hierarchy(), replace(SCRATCH, encode=7)), parts)
    reader, read = model.embed_tokens.reader, []
    reader.item_llm.register_forward_hook(lambda module, given, _: read.append(len(given[0])))
    before = reader.vectors.clone()
    batch = [torch.arange(8, 48).view(4, 10), torch.arange(8, 38).view(6, 5)]
    model.train()(batch, full_softmax())
    assert read == [7] and 0 < (reader.vectors != before).any(1).sum() <= 7
    model.eval()
    assert read == [7], "nobody has asked for scores yet"
    model.item_table()
    assert sum(read) == 7 + parts.events.n_items, "all are read before scoring, once"
    model.scores(Sequences.from_lists([[9, 30]]))
    assert sum(read) == 7 + parts.events.n_items


def test_items_without_text(checkpoint, tmp_path):
    events = toy_events()
    items = events.items.assign(title=["" if n % 5 == 0 else title for n, title in enumerate(events.items["title"])])
    parts = split(replace(events, items=items))
    configs = quick(hierarchy(), fixed(checkpoint)), quick(item_plus_text(), fixed(checkpoint)), quick(hierarchy())
    for run, config in zip(map(tmp_path.joinpath, "abc"), configs):
        with pytest.warns(UserWarning, match="12 of 60 items have no text and keep a token of their own"):
            rec = fit(parts, config, verbose=False)
        rows = rec.model.item_table()
        assert len(rows.unique(dim=0)) == 60, "items without text are told apart"
        rec.save(run)
        histories = rec.histories.take([0, 1, 2])
        assert torch.equal(load(run, device="cpu").scores(histories), rec.scores(histories))
        with pytest.raises(ValueError, match="new item 'x' has no text"):
            rec.add_items(pd.DataFrame({"title": [" "]}, index=["x"]))


def test_no_text_at_all(checkpoint):
    log = pd.DataFrame({"user": list("aaaabbbb"), "item": list("wxyzwxzy")})
    with pytest.raises(ValueError, match="no item has a text"):
        fit(split(read_events(log, name="toy", verbose=False)), quick(hierarchy(), fixed(checkpoint)), verbose=False)


def test_enormous_texts(checkpoint):
    events = toy_events()
    items = events.items.assign(title=events.items["title"] + np.where(np.arange(60) == 3, " more" * 100_000, ""))
    with pytest.warns(UserWarning, match="0 of 60 items have no text.*; 1 texts were cut at 256 characters"):
        fit(split(replace(events, items=items)), quick(hierarchy(), fixed(checkpoint), epochs=1), verbose=False)


def test_every_bucket_teaches_the_reader(parts):
    "Items of all buckets of a batch have gradients at the head, not those of the last one alone."
    model = set_up(quick(hierarchy()), parts)
    batch = [torch.tensor([[8, 9, 10]]), torch.tensor([[20, 21]])]
    model.train().on_step(batch)
    for tokens in batch:
        model.encode(model.training_pairs(tokens)[0])
    for column in (0, 13):
        reader = [*model.embed_tokens.reader.item_llm.parameters()]
        weights = torch.arange(16.0)
        assert any(g.abs().sum() > 0 for g in torch.autograd.grad(model.item_table()[column] @ weights, reader, retain_graph=True))


def test_folder_without_tokenizer(checkpoint, tmp_path):
    "transformers would make an empty tokenizer, to which all words are unknown."
    shutil.copytree(checkpoint, tmp_path / "mine")
    (tmp_path / "mine/tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"mine has no tokenizer \(tokenizer.json, vocab.txt.*save_pretrained\(\) the checkpoint's"):
        text_vectors(["red warm"], fixed(tmp_path / "mine"))


def test_longer_than_the_network(checkpoint, parts):
    for text in (fixed(checkpoint, max_tokens=600), ItemLLMConfig(checkpoint=str(checkpoint), trainable=True, max_tokens=600)):
        with pytest.raises(ValueError, match="max_tokens=600: .* reads texts of 512 tokens at most"):
            fit(parts, quick(hierarchy(), text), verbose=False)


NETWORKS = {
    "roberta": ("max_position_embeddings", 34, 32),
    "gpt2": ("n_positions", 32, 32),
    "bart": ("max_position_embeddings", 32, 32),
    "distilbert": ("max_position_embeddings", 32, 32),
    "t5": ("n_positions", 32, None),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_positions_and_width_of_networks(kind):
    name, count, positions = NETWORKS[kind]
    small = {
        "vocab_size": 40,
        "num_hidden_layers": 1,
        "num_layers": 1,
        "n_layer": 1,
        "n_layers": 1,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    wide = {
        "d_model": 24,
        "hidden_size": 24,
        "n_embd": 24,
        "dim": 24,
        "num_attention_heads": 2,
        "n_head": 2,
        "n_heads": 2,
        "num_heads": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    named = transformers.AutoConfig.for_model(kind)
    config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in (small | wide).items() if hasattr(named, k)}, **{name: count})
    assert width_of(config.to_dict()) == 24
    network = reading_part(transformers.AutoModel.from_config(config))
    assert positions_of(network) == positions
    if positions:
        one = torch.ones(1, 1, dtype=torch.int64)
        network(input_ids=one.expand(1, positions) * 5)
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            network(input_ids=one.expand(1, positions + 1) * 5)


def test_another_checkpoint_for_a_trainable_reader(checkpoint, tmp_path):
    "Its configuration is the new checkpoint's, not what was kept of the old one."
    first = ItemLLMConfig(checkpoint=str(checkpoint), trainable=True)
    transformers.BertConfig(hidden_size=36, num_attention_heads=3).save_pretrained(tmp_path / "other")
    other = replace(first, checkpoint=str(tmp_path / "other"))
    assert (first.width, other.width) == (24, 36) and json.loads(other.network)["hidden_size"] == 36
    assert replace(first, checkpoint="").network == "" and ItemLLMConfig(**json.loads(json.dumps(asdict(first)))) == first


def test_missing_checkpoint(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("no/such-model", "nowhere", "/no/such/folder"):
        with pytest.raises(FileNotFoundError, match=f"checkpoint '{name}': .*without a hub: .*'minilm'.*save_pretrained.*from scratch"):
            find_checkpoint(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="its package is not installed"):
        find_checkpoint("minilm")


def test_cache_by_content(checkpoint, tmp_path):
    shards = lambda: sorted((tmp_path / "cache/text").rglob("*.safetensors"))
    folders = lambda: {path.parent for path in shards()}
    some, config = ["red warm", "blue cold", "red warm"], fixed(checkpoint)
    first = text_vectors(some, config)
    assert torch.equal(text_vectors(some[::-1], config), first.flip(0)) and len(shards()) == 1
    stamp = shards()[0].stat().st_mtime_ns
    torch.testing.assert_close(text_vectors(["blue cold", "new"], config)[0], first[1])
    assert len(shards()) == 2 and len(folders()) == 1, "a new text is a shard beside the old one"
    assert stamp in [path.stat().st_mtime_ns for path in shards()], "which is not written again"
    text_vectors(some, replace(config, pooling="last"))
    text_vectors(some, replace(config, pretrained=False))
    assert len(folders()) == 3, "another way of reading has vectors of its own"
    for path in shards():
        path.write_bytes(b"x")
    assert torch.equal(text_vectors(some, config), first)


def lengths(texts: list[str]) -> torch.Tensor:
    "What stands for a network: how long the texts are."
    return torch.tensor([[float(len(text))] for text in texts])


def test_two_writers_lose_nothing(tmp_path):
    "Each begins before the other is done; whoever comes later reads nothing again."
    both = threading.Barrier(2)

    def slow(texts):
        both.wait(10)
        return lengths(texts)

    writers = [threading.Thread(target=cached_vectors, args=([f"{who} {n}" for n in range(9)], tmp_path, slow)) for who in ("a", "bb")]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    vectors, read = cached_vectors([f"{who} {n}" for who in ("a", "bb") for n in range(9)], tmp_path, lengths)
    assert read == 0 and vectors[:, 0].tolist() == [3] * 9 + [4] * 9


def test_what_was_read_is_kept_when_a_later_batch_fails(tmp_path):
    def dies(texts):
        if "text 5" in texts:
            raise KeyboardInterrupt
        return lengths(texts)

    with pytest.raises(KeyboardInterrupt):
        cached_vectors([f"text {n}" for n in range(8)], tmp_path, dies, batch=2)
    assert cached_vectors([f"text {n}" for n in range(8)], tmp_path, lengths)[1] == 4, "four texts of two batches are there"


def test_what_another_writes_now_is_no_shard_yet(tmp_path):
    (tmp_path / ".123.tmp.abc.safetensors").write_bytes(b"half")
    assert cached_vectors(["a"], tmp_path, lengths)[1] == 1 and cached_vectors(["a"], tmp_path, lengths)[1] == 0


def test_a_checkpoint_is_hashed_once(parts, checkpoint, monkeypatch):
    "However often a training asks which network reads its texts."
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, how: read.append(file.name) or digest(file, how))
    encoders._file_hash.cache_clear()
    rec = fit(parts, quick(hierarchy(), fixed(checkpoint), epochs=1), verbose=False)
    rec.add_items(rec.items.iloc[[4]].set_axis(["new"]))
    assert len(read) == len(set(read)) > 0 and any(name.endswith("model.safetensors") for name in read)
    os.utime(checkpoint / "config.json")
    encoder_hash(fixed(checkpoint))
    assert read[-1].endswith("config.json") and len(read) == len(set(read)) + 1, "what was written again is read again, and nothing else"


class Asked(Exception):
    "Where texts would be read."


def test_texts_are_read_where_the_model_is(checkpoint, monkeypatch):
    "From the model's table down to the network, the device goes along."

    def ask(texts, config, *_, device="cpu", **__):
        raise Asked(str(device))

    monkeypatch.setattr(encoders, "read_texts", lambda texts, config, device="cpu": ask(texts, config, device=device))
    with pytest.raises(Asked, match="meta"):
        text_vectors(["red"], fixed(checkpoint), device="meta")
    monkeypatch.setattr(item_llm, "text_vectors", ask)
    reader = FixedReader(fixed(checkpoint), 2).to("meta")
    with pytest.raises(Asked, match="meta"):
        reader.read(ItemTexts(["red", "blue"]))
    with pytest.raises(Asked, match="meta"):
        reader.extended(["red"])


def test_the_network_goes_where_it_is_asked_to(checkpoint, monkeypatch):
    class Network(torch.nn.Module):
        def to(self, device):
            raise Asked(str(device))

    monkeypatch.setattr(encoders, "open_network", lambda *_: Network())
    with pytest.raises(Asked, match="cuda:7"):
        encoders.read_texts(["red"], fixed(checkpoint), "cuda:7")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name, parts, checkpoint):
    "The same model as on the processor: random numbers are drawn there, texts are read here."
    config = replace(configs(checkpoint)[name], epochs=1)
    here, there = (fit(parts, config, device=device, verbose=False) for device in ("cuda", "cpu"))
    assert {weight.device.type for weight in here.model.state_dict().values()} == {"cuda"}
    histories = here.histories.take([0, 1, 2])
    torch.testing.assert_close(here.scores(histories).cpu(), there.scores(histories), rtol=0, atol=0.05)
    new = pd.DataFrame({"title": ["red warm thing"]}, index=["new"])
    torch.testing.assert_close(here.add_items(new).scores(histories)[:, :-1], here.scores(histories), rtol=0, atol=1e-3)


def test_setup_is_a_function_of_the_seed(parts, checkpoint):
    "Whatever the cache of vectors holds already."
    for name, config in configs(checkpoint).items():
        one, two = set_up(config, parts), set_up(config, parts)
        assert all(torch.equal(x, two.state_dict()[key]) for key, x in one.state_dict().items()), name


@pytest.mark.parametrize("name", ["fixed", "from scratch", "fine-tuned", "start", "content-kNN"])
def test_texts_stand_beside_the_weights(name, parts, checkpoint, tmp_path):
    "As JSON files: no texts, vocabularies or tokenizers travel to the GPU, or into every state that training saves."
    config = content_knn(fixed(checkpoint)) if name == "content-kNN" else configs(checkpoint)[name]
    rec = fit(parts, config, verbose=False)
    assert not [key for key, x in rec.model.state_dict().items() if x.dtype == torch.uint8]
    files = rec.model.files()
    known = json.loads(files["texts.json"])
    assert known["fields"] == [["", "title"]] and all(name.endswith(".json") for name in files)
    assert ("subwords.json" in files) == (name in ("from scratch", "fine-tuned"))
    assert ("red" in known.get("words", {})) == (name not in ("start", "content-kNN"))
    rec.save(tmp_path / "run")
    assert {file: (tmp_path / "run" / file).read_text() for file in files} == files
    assert load(tmp_path / "run", device="cpu").model.files() == files


def test_a_run_without_its_texts(parts, checkpoint, tmp_path):
    fit(parts, quick(hierarchy(), fixed(checkpoint)), verbose=False).save(tmp_path / "run")
    (tmp_path / "run/texts.json").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match="texts.json"):
        load(tmp_path / "run")


def test_the_table_is_exact_whenever_it_is_looked_at(parts):
    "After steps of training, scores are those of a model that was opened with the same weights and reads all texts anew."
    model = set_up(quick(hierarchy(), replace(SCRATCH, encode=3)), parts)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for start in (8, 18, 28):
        model.train()([torch.arange(start, start + 10)[None]], full_softmax()).backward()
        optimizer.step()
        optimizer.zero_grad()
    histories = Sequences.from_lists([[9, 30, 40], [12]])
    again = replace(model.config).build()
    again.load_files(model.files(), model.saved_weights())
    again.load_weights(model.saved_weights())
    again.embed_tokens.reader.stale.fill_(True)
    assert torch.equal(model.scores(histories), again.scores(histories))


def test_checkpoint_changed_in_place(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "mine")
    config = fixed(tmp_path / "mine")
    first = text_vectors(["red warm"], config)
    path = tmp_path / "mine/model.safetensors"
    save_file({name: x * 1.5 for name, x in load_file(path).items()}, path, {"format": "pt"})
    assert not torch.allclose(text_vectors(["red warm"], config), first)


@pytest.mark.parametrize("kind", ["hierarchy", "content-kNN"])
def test_new_items_want_the_checkpoint_of_old_ones(kind, parts, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "mine")
    text = fixed(tmp_path / "mine")
    rec = fit(parts, content_knn(text) if kind == "content-kNN" else quick(hierarchy(), text), verbose=False)
    rec.save(tmp_path / "run")
    new, rec = rec.items.iloc[[4]].set_axis(["new"]), load(tmp_path / "run", device="cpu")
    rec.add_items(new)
    path = tmp_path / "mine/model.safetensors"
    save_file({name: x * 1.5 for name, x in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="is not the one this model was trained with: its files have changed"):
        rec.add_items(new)


@pytest.mark.parametrize("finished", [True, False])
def test_other_texts_are_another_run(finished, parts, checkpoint, tmp_path):
    config = quick(hierarchy(), fixed(checkpoint))
    fit(parts, config, out_dir=tmp_path / "run", max_minutes=None if finished else 1e-9, verbose=False)
    other = replace(parts, events=with_texts(parts.events, pd.DataFrame({"title": ["quite another title"]}, index=["i5"])))
    with pytest.raises(FileExistsError, match="belongs to another run \\(items: "):
        fit(other, config, out_dir=tmp_path / "run", verbose=False)
    told = replace(parts, events=replace(parts.events, items=parts.events.items.assign(price=1.0)))
    fit(told, config, out_dir=tmp_path / "run", verbose=False)  # what is not read decides nothing


def test_an_opened_model_reads_new_items_as_the_first_ones(parts, checkpoint, tmp_path):
    "By the fields that it was trained with, whatever columns a later table has."
    rec = fit(parts, quick(hierarchy(), fixed(checkpoint)), verbose=False)
    rec.save(tmp_path / "run")
    again = load(tmp_path / "run", device="cpu")
    new = rec.items.iloc[[4]].set_axis(["new"])
    histories = rec.encode([["i1", "i2"]])
    torch.testing.assert_close(again.add_items(new).scores(histories), rec.add_items(new).scores(histories))
    told = again.add_items(new.assign(plot="quite another story"))
    torch.testing.assert_close(told.scores(histories), rec.add_items(new).scores(histories))


def test_cold_items(parts, checkpoint):
    cold = withhold_items(parts, 0.2, seed=1)
    assert len(withheld(cold)) == cold.protocol["withheld_items"] > 0
    recipes = {"popularity": popularity(), "kNN": content_knn(fixed(checkpoint)), "text": quick(hierarchy(), fixed(checkpoint))}
    recs = {name: fit(cold, recipe, verbose=False) for name, recipe in recipes.items()}
    table = cold_table(recs, cold, k=3)
    assert table.loc["random", "recall@3, withheld"] == pytest.approx(3 / len(withheld(cold)))
    assert table.loc["popularity", "recall@3, withheld"] == pytest.approx(table.loc["random", "recall@3, withheld"])
    assert table.loc["popularity", "recall@3, all"] == 0
    assert ((0 <= table) & (table <= 1)).all(axis=None)


def test_content_knn_round_trip(parts, checkpoint, tmp_path):
    rec = fit(parts, content_knn(fixed(checkpoint)), verbose=False)
    rec.save(tmp_path / "run")
    histories = rec.histories.take([0, 1, 2])
    assert torch.equal(load(tmp_path / "run", device="cpu").scores(histories), rec.scores(histories))
    nearest = rec.recommend(items=["i1"], k=59, seen="keep")["item"][0]
    assert nearest == "i1", "nothing is more like an item than the item"


def test_content_knn_reads_items_only(parts, checkpoint):
    "A special token, such as that of an unknown item, is no item: not the last one of the catalogue either."
    model = set_up(content_knn(fixed(checkpoint)), parts)
    with_unknown, without = (model.scores(Sequences.from_lists([row])) for row in ([9, 1, 30], [9, 2, 30]))
    torch.testing.assert_close(with_unknown, without)
    vectors = model.item_table()
    profile = torch.nn.functional.normalize(0.64 * vectors[1] + vectors[22], dim=0)
    torch.testing.assert_close(with_unknown[0], vectors @ profile)


def test_content_knn_against_the_formula(parts, checkpoint):
    "The states of all steps at once are what a loop over the history says, to its first item."
    model = set_up(content_knn(fixed(checkpoint), decay=0.9), parts)
    row = [8 + n for n in np.random.default_rng(0).permutation(60)]
    profile = torch.zeros(8)
    for token in row:
        profile = 0.9 * profile + model.item_table()[token - 8]
    expected = model.item_table() @ torch.nn.functional.normalize(profile, dim=0)
    torch.testing.assert_close(model.scores(Sequences.from_lists([row]))[0], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="nothing learns here"):
        ContentKNNConfig(text=SCRATCH)


def test_what_reads_no_texts_takes_no_new_items(parts):
    rec = fit(parts, tiny(epochs=1), verbose=False)
    assert not rec.model.extendable(parts.events.items).any()
    with pytest.raises(ValueError, match="ItemLM knows items by their tokens only"):
        rec.add_items(pd.DataFrame({"title": ["red"]}, index=["new"]))


@pytest.mark.parametrize("combine", ["text", "sum", "gated", "concat", "start"])
def test_a_start_from_directions(combine, parts, checkpoint):
    "Rows come near the directions asked for, whatever they are made of; those of `start` keep something of the text."
    model = set_up(quick(item_plus_text(combine=combine), fixed(checkpoint)), parts)
    directions = torch.nn.functional.normalize(torch.randn(68, 16), dim=1)
    assert model.table_width == 16
    model.start_from(directions)
    rows = model.eval().embed_tokens.rows().detach()
    assert torch.cosine_similarity(rows, directions[8:]).mean() > 0.3
    if combine == "sum":
        assert not model.embed_tokens.weight[8:].any(), "the text speaks first"


def test_run_json_is_whole(parts, tmp_path):
    "A folder says everything about the Item LLM, and another field is refused."
    rec = fit(parts, quick(hierarchy()), verbose=False)
    rec.save(tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert ItemTextConfig(**record["config"]) == rec.model.config
    record["config"]["text"]["colour"] = "red"
    restamp(tmp_path / "run", config=record["config"])
    with pytest.raises(ValueError, match="colour"):
        load(tmp_path / "run")


@minilm
def test_minilm_knows_the_world():
    vectors = text_vectors(["Toy Story", "Finding Nemo", "Nail polish remover", "Acetone for manicure"])
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2] and near[2, 3] > near[1, 3]
    assert vectors.shape == (4, 384)


def test_small_texts_stay_apart(monkeypatch):
    monkeypatch.setenv("ITEMLM_DATA", str(ROOT / "data"))
    events = load_dataset("ml-latest-small")
    texts = item_texts(events.items)
    assert not texts.empty.any() and texts.cut == 0 and len(set(texts.texts)) > 3_400
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(item_texts(events.items, "{title}")) == len(events.items)


def rows_of(items: pd.DataFrame, **changes) -> torch.Tensor:
    "Rows of a hierarchy whose words are all it has: the network's part is switched off."
    torch.manual_seed(0)
    model: ItemTextLM = replace(quick(hierarchy()).model, n_items=len(items), **changes).build()
    model.embed_tokens.read_items(items)
    torch.nn.init.zeros_(model.embed_tokens.adapter.straight.weight)
    return model.eval().embed_tokens.rows().detach()


def test_words_are_shared_between_items():
    titles = ["red shoe", "red hat", "blue shoe", "blue hat", "red shoe", "green tea with mint"]
    rows = rows_of(pd.DataFrame({"title": titles}))
    torch.testing.assert_close(rows[0], rows[4])  # the same words, the same row
    assert not rows[5].any()  # nobody else has any of its words
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(rows[0], rows[1], dim=0) > cosine(rows[0], rows[3], dim=0) + 0.2  # a word in common, and none


def test_a_hierarchy_without_words(parts):
    rec = fit(parts, quick(replace(hierarchy(), model=replace(hierarchy().model, words=0))), verbose=False)
    assert not [name for name in rec.model.state_dict() if "lexicon" in name] and len(rec.recommend(items=["i0"], k=3)) == 3
    assert not rows_of(parts.events.items, words=0).any()
    with pytest.raises(ValueError, match="words=-1 must be at least 0"):
        ItemTextConfig(words=-1)


def test_titles_that_share_no_word():
    assert not rows_of(pd.DataFrame({"title": ["alpha", "beta", "gamma"]})).any()


def test_live_table_is_of_one_step(parts):
    "Between steps no graph is kept: a model in training can be copied and moved."
    model = set_up(quick(hierarchy()), parts)
    model.train()([torch.tensor([[8, 9, 10]])], full_softmax()).backward()
    reader: LearningReader = model.embed_tokens.reader
    assert reader.live is not None
    model.eval()
    assert reader.live is None and reader().grad_fn is None
