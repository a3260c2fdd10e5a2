"The text recommender: its beam search against the exact answer, and a run folder."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_text import checkpoint, toy_events, workspace_in  # noqa: F401

from itemlm.evaluate import evaluate
from itemlm.recommend import load
from itemlm.split import split
from itemlm.text import ItemLLMConfig, learn_subwords
from itemlm.text_beam import (
    HFPieceConfig,
    PieceConfig,
    Trie,
    beam_search,
    hf_beam,
    hf_beam_search,
    make_index,
    scores_of_list,
    spell_all,
    text_beam,
)
from itemlm.tokenizer import Sequences
from itemlm.training import fit, tiny


@pytest.fixture(scope="module")
def parts():
    return split(toy_events())


def quick(index: str = "title", **changes) -> PieceConfig:
    shape = {"width": 16, "layers": 2, "hidden": 24, "max_len": 10, "dropout": 0.1, "vocabulary": 300, "codes": 8, "beams": 10}
    return PieceConfig(**shape | {"index": index} | changes)


def built(parts, config: PieceConfig, seed: int = 0):
    torch.manual_seed(seed)
    model = replace(config, n_items=parts.events.n_items).build()
    model.read_items(parts.events.items)
    with torch.no_grad():
        model.trunk.embed_tokens.weight.mul_(20)  # far from uniform: ties would prove nothing
    return model.eval()


HISTORIES = Sequences.from_lists([[9, 30, 40], [12], [50, 9, 8, 66, 12, 11, 33, 21], [67, 66]])


@pytest.mark.parametrize("index", ["title", "number", "random"])
@pytest.mark.parametrize("changes", [{}, {"kv_heads": 1}, {"position": "none"}, {"norm": "layer", "feed_forward": "gelu", "head": "dot"},
                                     {"max_pieces": 20}], ids=str)  # fmt: skip
def test_full_width_beam_is_exact(parts, index, changes):
    "With keys and values cached, histories padded, and as many beams as items: the log-probability of every item."
    model = built(parts, quick(index, **changes))
    columns, chances = beam_search(model, HISTORIES, beams=60)
    for row, history in enumerate(HISTORIES):
        exact = spell_all(model, torch.from_numpy(history).long())
        assert columns[row].sort().values.equal(torch.arange(60)), "every item, once"
        torch.testing.assert_close(chances[row], exact[columns[row]], rtol=1e-4, atol=1e-4)
        assert (chances[row].diff() <= 0).all()


def test_chances_sum_to_one_with_the_impossible(parts):
    "Items share no more than the whole probability."
    model = built(parts, quick("number"))
    assert 0 < float(spell_all(model, torch.tensor([9, 30])).exp().sum()) < 1


@pytest.mark.parametrize("beams", [1, 3, 10])
def test_narrow_beams_hold_items_only(parts, beams):
    model = built(parts, quick())
    columns, chances = beam_search(model, HISTORIES, beams=beams)
    assert columns.shape == (4, beams) and (columns >= 0).all() and chances.isfinite().all()
    assert all(len(set(row.tolist())) == beams for row in columns)
    for row, history in enumerate(HISTORIES):
        torch.testing.assert_close(chances[row], spell_all(model, torch.from_numpy(history).long())[columns[row]], rtol=1e-4, atol=1e-4)
    assert model.invalid == 0


def test_more_beams_than_items(parts):
    model = built(parts, quick())
    columns, chances = beam_search(model, HISTORIES, beams=200)
    assert all(sorted(row[row >= 0].tolist()) == list(range(60)) for row in columns)
    assert model.scores(HISTORIES).isfinite().all()


def test_unconstrained_is_counted(parts):
    model = built(parts, quick())
    columns, chances = beam_search(model, HISTORIES, beams=10, constrained=False)
    assert model.found == 40 and model.invalid == int((columns < 0).sum()) > 0
    free = built(parts, quick(constrained=False))
    scores = free.scores(HISTORIES)
    assert scores.shape == (4, 60) and scores.isfinite().all()
    found = columns[columns >= 0]
    assert ((0 <= found) & (found < 60)).all()


def test_unconstrained_finds_what_it_was_taught(parts):
    "After training, likely spellings are items, and then both searches agree on their log-probabilities."
    rec = fit(parts, replace(tiny(), model=quick("number"), head_start=False, epochs=6, batch=16), verbose=False)
    free, chances = beam_search(rec.model, HISTORIES, beams=60, constrained=False)
    held, exact = beam_search(rec.model, HISTORIES, beams=60)
    assert (free >= 0).any()
    for row in range(4):
        known = dict(zip(held[row].tolist(), exact[row].tolist()))
        for column, chance in zip(free[row].tolist(), chances[row].tolist()):
            assert column < 0 or known[column] == pytest.approx(chance, abs=1e-3)


def test_trie_knows_each_item_and_no_other():
    rng = np.random.default_rng(0)
    index = make_index([rng.integers(1, 5, rng.integers(1, 5)).tolist() for _ in range(300)], 5)
    trie, items = Trie(index), {tuple(row[row >= 0].tolist()): n for n, row in enumerate(index.codes)}
    assert len(items) == 300 and index.repeated > 0, "duplicates are told apart"
    for _ in range(2000):
        row = [*rng.integers(1, index.size, rng.integers(0, 5)).tolist(), 0]
        node = torch.tensor([0])
        for piece in row:
            node = trie.step(node, torch.tensor([piece]))
        found = int(trie.item[node]) if node >= 0 else -1
        assert found == items.get(tuple(row), -1)


def test_no_future_and_no_padding(parts):
    model = built(parts, quick())
    inputs, targets = model.lessons(torch.tensor([[9, 30, 40, 41], [9, 30, 40, 12], [9, 30, 0, 0]]))
    states = model(inputs)
    same = int(model.index.lengths[[1, 22, 32]].sum())  # pieces of items 9, 30, 40
    torch.testing.assert_close(states[0, :same], states[1, :same])
    same = int(model.index.lengths[[1, 22]].sum())
    torch.testing.assert_close(states[0, :same], states[2, :same])
    assert (targets[2, same:] == 0).all()
    rows = [beam_search(model, HISTORIES.take([row]))[0][0].tolist() for row in range(4)]
    assert beam_search(model, HISTORIES)[0].tolist() == rows, "neighbours in the batch do not matter"


def test_lessons_are_the_following_pieces(parts):
    model = built(parts, quick(max_pieces=30))
    codes = model.index.codes
    write = lambda *items: [8 + int(c) for item in items for c in codes[item - 8] if c >= 0]
    inputs, targets = model.lessons(torch.tensor([[9, 30]]))
    assert inputs[0].tolist() == write(9, 30)[:-1]
    assert targets[0].tolist() == [0] * (len(write(9)) - 1) + write(30)
    inputs, _ = model.lessons(torch.tensor([[9, 30, 40, 41, 42, 43]]))
    assert inputs[0].tolist() == write(9, 30, 40, 41, 42, 43)[-31:-1], "of a long history the newest pieces"


def test_ties_count_as_what_they_are():
    from itemlm.metrics import recall, target_ranks

    scores = scores_of_list(torch.tensor([[4, 2]]), torch.tensor([[-1.0, -2.0]]), 100)
    assert recall(target_ranks(scores, np.array([2])), 10)[0] == 1
    assert recall(target_ranks(scores, np.array([50])), 10)[0] == pytest.approx(8 / 98), "guessing among the 98 others"


@pytest.mark.parametrize("index", ["title", "number", "random", "clusters"])
def test_round_trip(index, parts, checkpoint, tmp_path):  # noqa: F811
    text = ItemLLMConfig(checkpoint=str(checkpoint), keep=8)
    rec = fit(parts, replace(text_beam(), model=quick(index, text=text), epochs=1, batch=32), verbose=False)
    rec.save(tmp_path / "run")
    again = load(tmp_path / "run", device="cpu")
    histories = rec.histories.take([0, 1, 2])
    assert torch.equal(again.scores(histories), rec.scores(histories))
    assert again.recommend(items=["i1"], k=5).equals(rec.recommend(items=["i1"], k=5))
    report = evaluate(again, parts)
    assert 0 <= report.metric("ndcg@10")["mean"] <= 1
    assert PieceConfig(**json.loads((tmp_path / "run/run.json").read_text())["config"]) == rec.model.config


def test_learns(parts):
    "Users walk through items of one colour: after a few epochs the text recommender knows it."
    rec = fit(parts, replace(tiny(), model=quick(dropout=0.0), head_start=False, epochs=20, patience=20, batch=16), verbose=False)
    first = rec.recommend(items=["i1", "i7", "i13"], k=5)["item"]
    assert sum(int(item[1:]) % 6 == 1 for item in first) >= 4


def test_bad_input():
    with pytest.raises(ValueError, match="position='learned'"):
        quick(position="learned")
    with pytest.raises(ValueError, match="index='isbn' is not one of title"):
        quick("isbn")
    with pytest.raises(ValueError, match="write 64 items, not 78"):
        replace(quick("random", levels=2, codes=8), n_items=80).build().read_items(toy_events(80).items)


NETWORKS = {
    "llama": {"model_type": "llama", "vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 2},
    "gpt2": {"model_type": "gpt2", "vocab_size": 320, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "t5": {"model_type": "t5", "vocab_size": 320, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
           "decoder_start_token_id": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    "A causal checkpoint as save_pretrained writes it."
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    shape = {k: v for k, v in NETWORKS["gpt2"].items() if k != "model_type"}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    learn_subwords(["red green blue", "soft hard sweet bitter"], 300).save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", [*NETWORKS, "checkpoint"])
def test_any_network(name, parts, gpt2, tmp_path):
    "Learns through fit, is saved and opened, and its widest beam holds every item in the order of their exact log-probabilities."
    pytest.importorskip("transformers")
    config = hf_beam(str(gpt2)) if name == "checkpoint" else hf_beam(network=NETWORKS[name])
    model = replace(config.model, max_len=8, vocabulary=300, beams=60)
    rec = fit(parts, replace(config, model=model, epochs=1, batch=32), verbose=False)
    rec.save(tmp_path / "run")
    again = load(tmp_path / "run", device="cpu")
    histories = rec.histories.take([0, 1, 2])
    assert torch.equal(again.scores(histories), rec.scores(histories))
    columns, chances = hf_beam_search(again.model, HISTORIES)
    for row, history in enumerate(HISTORIES):
        assert columns[row].sort().values.equal(torch.arange(60)), "every item, once"
        read = torch.tensor([[*history.tolist(), item + 8] for item in range(60)])
        with torch.inference_mode():
            inputs, targets = again.model.lessons(read)
            chance = torch.log_softmax(again.model(inputs) @ again.model.head_weight().T, -1)
        chance = chance.gather(2, (targets - 8).clamp(min=0)[..., None])[..., 0]
        exact = torch.stack([c[t > 0][-int(n) :].sum() for c, t, n in zip(chance, targets, again.model.index.lengths)])
        torch.testing.assert_close(chances[row], exact[columns[row]], rtol=1e-3, atol=1e-3)


def test_networks_too_small_or_missing(parts):
    with pytest.raises(ValueError, match="give a checkpoint, or a network"):
        HFPieceConfig()
    model = replace(hf_beam(network=NETWORKS["gpt2"]).model, n_items=60, vocabulary=400).build()
    with pytest.raises(ValueError, match="the network has 320 subwords, the items need [34]"):
        model.read_items(parts.events.items)
    with pytest.raises(ValueError, match=r"max_pieces \+ longest=528 is more than the 64 positions"):
        hf_beam(network=NETWORKS["gpt2"] | {"n_positions": 64}).model.build()


def test_one_beam(parts):
    "To the library one beam is another search; to us it is a narrow one."
    config = hf_beam(network=NETWORKS["t5"])
    rec = fit(parts, replace(config, model=replace(config.model, vocabulary=300), epochs=1, batch=32), verbose=False)
    columns, chances = hf_beam_search(rec.model, HISTORIES, beams=1)
    assert columns.shape == chances.shape == (len(HISTORIES), 1) and (columns >= 0).all() and chances.isfinite().all()
