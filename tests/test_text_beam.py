"The text recommender: its beam search against the exact answer, and a run folder."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from test_text import checkpoint, toy_events, workspace_in  # noqa: F401

from itemlm.data.split import split
from itemlm.data.tokenizer import ItemTokenizer, Sequences
from itemlm.evaluation.report import evaluate
from itemlm.metrics.ranks import recall, target_ranks
from itemlm.models.item_lm import tiny
from itemlm.models.kmeans import kmeans
from itemlm.models.layers import rotary_angles
from itemlm.models.losses import full_softmax
from itemlm.models.text import generative, semantic_ids
from itemlm.models.text.encoders import ItemLLMConfig
from itemlm.models.text.generative import GenerativeConfig, item_log_probs, scores_of_list, text_beam
from itemlm.models.text.hf import HFGenerativeConfig, hf_beam
from itemlm.models.text.item_llm import learn_subwords
from itemlm.models.text.semantic_ids import Trie, make_codes
from itemlm.serving.recommender import load
from itemlm.training.trainer import fit


@pytest.fixture(scope="module")
def parts():
    return split(toy_events())


def quick(ids: str = "title", **changes) -> GenerativeConfig:
    shape = {"width": 16, "layers": 2, "hidden": 24, "max_len": 10, "dropout": 0.1, "vocabulary": 300, "codebook": 8, "beams": 10}
    return GenerativeConfig(**shape | {"ids": ids} | changes)


def built(parts, config: GenerativeConfig, seed: int = 0):
    torch.manual_seed(seed)
    tokenizer = ItemTokenizer(parts.events.items.index)
    model = replace(config, n_items=tokenizer.n_items).build()
    model.setup(parts, tokenizer)
    with torch.no_grad():
        model.trunk.embed_tokens.weight.mul_(20)  # far from uniform: ties would prove nothing
    return model.eval()


HISTORIES = Sequences.from_lists([[9, 30, 40], [12], [50, 9, 8, 66, 12, 11, 33, 21], [67, 66]])


@pytest.mark.parametrize("ids", ["title", "number", "random"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_heads": 1},
        {"position": "none"},
        {"norm_place": "post"},
        {"norm": "layer", "feed_forward": "gelu", "head": "dot"},
        {"max_codes": 20},
    ],
    ids=str,
)
def test_full_width_beam_is_exact(parts, ids, changes):
    "With keys and values cached, histories padded, and as many beams as items: the log-probability of every item."
    model = built(parts, quick(ids, **changes))
    columns, chances = model.generate(HISTORIES, beams=60)
    for row, history in enumerate(HISTORIES):
        exact = item_log_probs(model, torch.from_numpy(history).long())
        assert columns[row].sort().values.equal(torch.arange(60)), "every item, once"
        torch.testing.assert_close(chances[row], exact[columns[row]], rtol=1e-4, atol=1e-4)
        assert (chances[row].diff() <= 0).all()


def test_chances_sum_to_one_with_the_impossible(parts):
    "Items share no more than the whole probability."
    model = built(parts, quick("number"))
    assert 0 < float(item_log_probs(model, torch.tensor([9, 30])).exp().sum()) < 1


@pytest.mark.parametrize("beams", [1, 3, 10])
def test_narrow_beams_hold_items_only(parts, beams):
    model = built(parts, quick())
    columns, chances = model.generate(HISTORIES, beams=beams)
    assert columns.shape == (4, beams) and (columns >= 0).all() and chances.isfinite().all()
    assert all(len(set(row.tolist())) == beams for row in columns)
    for row, history in enumerate(HISTORIES):
        torch.testing.assert_close(
            chances[row], item_log_probs(model, torch.from_numpy(history).long())[columns[row]], rtol=1e-4, atol=1e-4
        )
    assert model.invalid == 0


def test_more_beams_than_items(parts):
    model = built(parts, quick())
    columns, chances = model.generate(HISTORIES, beams=200)
    assert all(sorted(row[row >= 0].tolist()) == list(range(60)) for row in columns)
    assert model.scores(HISTORIES).isfinite().all()


def test_unconstrained_is_counted(parts):
    model = built(parts, quick())
    columns, chances = model.generate(HISTORIES, beams=10, constrained=False)
    assert model.found == 40 and model.invalid == int((columns < 0).sum()) > 0
    free = built(parts, quick(constrained=False))
    scores = free.scores(HISTORIES)
    assert scores.shape == (4, 60) and scores.isfinite().all()
    found = columns[columns >= 0]
    assert ((0 <= found) & (found < 60)).all()


def test_unconstrained_finds_what_it_was_taught(parts):
    "After training, likely rows of codes are items, and then both searches agree on their log-probabilities."
    rec = fit(parts, replace(tiny(), model=quick("number"), init="random", epochs=6, batch=16), verbose=False)
    free, chances = rec.model.generate(HISTORIES, beams=60, constrained=False)
    held, exact = rec.model.generate(HISTORIES, beams=60)
    assert (free >= 0).any()
    for row in range(4):
        known = dict(zip(held[row].tolist(), exact[row].tolist()))
        for column, chance in zip(free[row].tolist(), chances[row].tolist()):
            assert column < 0 or known[column] == pytest.approx(chance, abs=1e-3)


def test_trie_knows_each_item_and_no_other():
    rng = np.random.default_rng(0)
    written = make_codes([rng.integers(1, 5, rng.integers(1, 5)).tolist() for _ in range(300)], 5)
    trie, items = Trie(written), {tuple(row[row >= 0].tolist()): n for n, row in enumerate(written.codes)}
    assert len(items) == 300 and written.collisions > 0, "duplicates are told apart"
    for _ in range(2000):
        row = [*rng.integers(1, written.size, rng.integers(0, 5)).tolist(), 0]
        node = torch.tensor([0])
        for code in row:
            node = trie.step(node, torch.tensor([code]))
        found = int(trie.item[node]) if node >= 0 else -1
        assert found == items.get(tuple(row), -1)


def test_no_future_and_no_padding(parts):
    model = built(parts, quick())
    inputs, targets = model.training_pairs(torch.tensor([[9, 30, 40, 41], [9, 30, 40, 12], [9, 30, 0, 0]]))
    states = model.read_codes(inputs)
    lengths = model.item_codes().lengths
    same = int(lengths[[1, 22, 32]].sum())  # codes of items 9, 30, 40
    torch.testing.assert_close(states[0, :same], states[1, :same])
    same = int(lengths[[1, 22]].sum())
    torch.testing.assert_close(states[0, :same], states[2, :same])
    assert (targets[2, same:] == 0).all()
    rows = [model.generate(HISTORIES.take([row]))[0][0].tolist() for row in range(4)]
    assert model.generate(HISTORIES)[0].tolist() == rows, "neighbours in the batch do not matter"


def test_targets_are_the_following_codes(parts):
    model = built(parts, quick(max_codes=30))
    codes = model.item_codes().codes
    write = lambda *items: [8 + int(c) for item in items for c in codes[item - 8] if c >= 0]
    inputs, targets = model.training_pairs(torch.tensor([[9, 30]]))
    assert inputs[0].tolist() == write(9, 30)[:-1]
    assert targets[0].tolist() == [0] * (len(write(9)) - 1) + write(30)
    inputs, _ = model.training_pairs(torch.tensor([[9, 30, 40, 41, 42, 43]]))
    assert inputs[0].tolist() == write(9, 30, 40, 41, 42, 43)[-31:-1], "of a long history the newest codes"


def test_ties_count_as_what_they_are():
    scores = scores_of_list(torch.tensor([[4, 2]]), torch.tensor([[-1.0, -2.0]]), 100)
    assert recall(target_ranks(scores, np.array([2])), 10)[0] == 1
    assert recall(target_ranks(scores, np.array([50])), 10)[0] == pytest.approx(8 / 98), "guessing among the 98 others"


@pytest.mark.parametrize("ids", ["title", "number", "random", "semantic"])
def test_round_trip(ids, parts, checkpoint, tmp_path):  # noqa: F811
    text = ItemLLMConfig(checkpoint=str(checkpoint), keep=8)
    rec = fit(parts, replace(text_beam(), model=quick(ids, text=text), epochs=1, batch=32), verbose=False)
    rec.save(tmp_path / "run")
    again = load(tmp_path / "run", device="cpu")
    histories = rec.histories.take([0, 1, 2])
    assert torch.equal(again.scores(histories), rec.scores(histories))
    assert again.recommend(items=["i1"], k=5).equals(rec.recommend(items=["i1"], k=5))
    report = evaluate(again, parts)
    assert 0 <= report.metric("ndcg@10")["mean"] <= 1
    assert GenerativeConfig(**json.loads((tmp_path / "run/run.json").read_text())["config"]) == rec.model.config


def test_learns(parts):
    "Users walk through items of one colour: after a few epochs the text recommender knows it."
    rec = fit(parts, replace(tiny(), model=quick(dropout=0.0), init="random", epochs=20, patience=20, batch=16), verbose=False)
    first = rec.recommend(items=["i1", "i7", "i13"], k=5)["item"]
    assert sum(int(item[1:]) % 6 == 1 for item in first) >= 4


def test_bad_input():
    with pytest.raises(ValueError, match="position='learned'"):
        quick(position="learned")
    with pytest.raises(ValueError, match="ids='isbn' is not one of title"):
        quick("isbn")
    with pytest.raises(ValueError, match="write 64 items, not 78"):
        built(split(toy_events(80)), quick("random", levels=2, codebook=8))


NETWORKS = {
    "llama": {
        "model_type": "llama",
        "vocab_size": 320,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "gpt2": {"model_type": "gpt2", "vocab_size": 320, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "t5": {
        "model_type": "t5",
        "vocab_size": 320,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    },
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    "A causal checkpoint as save_pretrained writes it."
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    shape = {k: v for k, v in NETWORKS["gpt2"].items() if k != "model_type"}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    learn_subwords(["red green blue", "soft hard sweet bitter"], 300).save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", [*NETWORKS, "checkpoint"])
def test_any_network(name, parts, gpt2, tmp_path):
    "Learns through fit, is saved and opened, and its widest beam holds every item in the order of their exact log-probabilities."
    config = hf_beam(str(gpt2)) if name == "checkpoint" else hf_beam(network=NETWORKS[name])
    model = replace(config.model, max_len=8, vocabulary=300, beams=60)
    rec = fit(parts, replace(config, model=model, epochs=1, batch=32), verbose=False)
    rec.save(tmp_path / "run")
    again = load(tmp_path / "run", device="cpu")
    histories = rec.histories.take([0, 1, 2])
    assert torch.equal(again.scores(histories), rec.scores(histories))
    columns, chances = again.model.generate(HISTORIES)
    for row, history in enumerate(HISTORIES):
        assert columns[row].sort().values.equal(torch.arange(60)), "every item, once"
        read = torch.tensor([[*history.tolist(), item + 8] for item in range(60)])
        with torch.inference_mode():
            inputs, targets = again.model.training_pairs(read)
            chance = torch.log_softmax(again.model.read_codes(inputs) @ again.model.code_table().T, -1)
        chance = chance.gather(2, (targets - 8).clamp(min=0)[..., None])[..., 0]
        exact = torch.stack([c[t > 0][-int(n) :].sum() for c, t, n in zip(chance, targets, again.model.item_codes().lengths)])
        torch.testing.assert_close(chances[row], exact[columns[row]], rtol=1e-3, atol=1e-3)


def test_networks_too_small_or_missing(parts):
    with pytest.raises(ValueError, match="give a checkpoint, or a network"):
        HFGenerativeConfig()
    model = replace(hf_beam(network=NETWORKS["gpt2"]).model, n_items=60, vocabulary=400).build()
    with pytest.raises(ValueError, match="the network has 320 subwords, the items need [34]"):
        model.setup(parts, ItemTokenizer(parts.events.items.index))
    with pytest.raises(ValueError, match=r"max_codes \+ longest=528 is more than the 64 positions"):
        replace(hf_beam(network=NETWORKS["gpt2"] | {"n_positions": 64}).model, n_items=60).build()


def test_one_beam(parts):
    "To the library one beam is another search; to us it is a narrow one."
    config = hf_beam(network=NETWORKS["t5"])
    rec = fit(parts, replace(config, model=replace(config.model, vocabulary=300), epochs=1, batch=32), verbose=False)
    columns, chances = rec.model.generate(HISTORIES, beams=1)
    assert columns.shape == chances.shape == (len(HISTORIES), 1) and (columns >= 0).all() and chances.isfinite().all()


def plain_kmeans(points: torch.Tensor, count: int, rounds: int = 20, seed: int = 0):
    "Written out: nearest by distance, then means; a centre without points stays."
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        for n in range(len(centres)):
            if (nearest == n).any():
                centres[n] = points[nearest == n].mean(0)
    return nearest, centres


@pytest.mark.parametrize("shape", [(200, 4, 8), (500, 16, 32), (10, 3, 20)])
def test_kmeans_by_distance(shape):
    n, width, count = shape
    torch.manual_seed(1)
    points = torch.randn(n, width)
    for seed in range(2):
        (nearest, centres), (found, middles) = plain_kmeans(points, count, seed=seed), kmeans(points, count, seed=seed)
        assert torch.equal(found, nearest)
        torch.testing.assert_close(middles, centres)


def test_kmeans_by_angle():
    "Far apart at the start, unit centres, and no point nearer to another centre than to its own."
    torch.manual_seed(1)
    points = torch.nn.functional.normalize(torch.randn(300, 5), dim=1)
    nearest, centres = kmeans(points, 6, rounds=100, cosine=True)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(6))
    assert torch.equal((points @ centres.T).argmax(1), nearest) and len(nearest.unique()) == 6
    assert torch.equal(kmeans(points * 1, 6, rounds=100, seed=5, cosine=True)[0], nearest), "no seed in it"


def test_semantic_ids_are_residual_kmeans():
    torch.manual_seed(2)
    vectors = torch.randn(120, 6)
    ids, rest = semantic_ids.semantic_ids(vectors, levels=3, codebook=5, seed=4), vectors.clone()
    for level in range(3):
        nearest, centres = plain_kmeans(rest, 5, seed=4 + level)
        assert torch.equal(ids.codes[:, level], 1 + 5 * level + nearest)
        rest = rest - centres[nearest]
    assert rest.norm() < vectors.norm() and len(ids.codes.unique(dim=0)) == 120


def test_no_item_table_but_the_contract_otherwise(parts):
    model = built(parts, quick("number"))
    assert model.item_table() is None and model.table_width == 0 and model.learns and model.embed_tokens is None
    assert model.tokens_per_item == pytest.approx(float(model.item_codes().lengths.float().mean())) == 2.0
    assert not model.extendable(parts.events.items).any()
    with pytest.raises(ValueError, match="set init='random'"):
        model.start_from(torch.zeros(1))
    with pytest.raises(ValueError, match="set init='random'"):
        fit(parts, replace(text_beam(), model=quick("number"), init="ppmi"), verbose=False)


def test_loss_is_over_codes(parts):
    "The model gives the loss its own states, its own table and its own targets."
    model, shown = built(parts, quick("number")), []

    def loss(states, table, columns):
        shown.append((states.shape, table.shape, columns))
        return full_softmax()(states, table, columns)

    batch = [torch.tensor([[9, 30, 40], [12, 13, 0]]), torch.tensor([[20, 21]])]
    model(batch, loss).backward()
    states, table, columns = shown[0]
    codes = model.item_codes().codes
    assert columns.tolist() == [int(c) for item in (30, 40, 13, 21) for c in codes[item - 8] if c >= 0]
    assert (states, table) == ((len(columns), 16), (model.n_codes, 16))
    assert all(weight.grad is not None for weight in model.parameters())


def test_one_rope(parts, monkeypatch):
    "Positions of what is being written come from the layers' own angles, beyond the trunk's table too."
    asked = []
    monkeypatch.setattr(generative, "rotary_angles", lambda steps, size: asked.append(steps.max()) or rotary_angles(steps, size))
    model = built(parts, quick(max_codes=20))
    columns, chances = model.generate(HISTORIES, beams=60)
    assert asked and max(asked) >= 20, "the item goes on where the longest history ends"
    exact = item_log_probs(model, torch.from_numpy(HISTORIES[2]).long())
    torch.testing.assert_close(chances[2], exact[columns[2]], rtol=1e-4, atol=1e-4)


def test_lists_of_many_users_come_in_batches(parts, monkeypatch):
    "As many users at once as the memory budget holds; who sits beside whom changes nothing."
    model = built(parts, quick())
    whole, sizes, generate = model.scores(HISTORIES), [], type(model).generate
    monkeypatch.setattr(generative, "memory_budget", lambda device: 2 * model.beams * max(model.n_codes, 4 * 16 * model.codes.shape[1]))
    monkeypatch.setattr(type(model), "generate", lambda self, histories: sizes.append(len(histories)) or generate(self, histories))
    torch.testing.assert_close(model.scores(HISTORIES), whole, rtol=0, atol=1e-4)
    assert sizes == [2, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("ids", ["title", "number"])
def test_beams_on_a_gpu(ids, parts):
    model = built(parts, quick(ids))
    columns, chances = model.generate(HISTORIES)
    there, scores = model.to("cuda").generate(HISTORIES)
    assert there.device.type == scores.device.type == "cuda"
    torch.testing.assert_close(scores.cpu(), chances, rtol=1e-3, atol=1e-3)
    assert (there.cpu() == columns).float().mean() > 0.9
