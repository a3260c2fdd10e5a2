"""What leaves the house: a Llama for transformers and back, graphs for ONNX Runtime; equal scores, or one clear error."""

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from itemlm import Recommender, evaluate, fit, read_events, split, tiny
from itemlm.data.tokenizer import ItemTokenizer, Sequences
from itemlm.models.ensemble import ensemble
from itemlm.models.item_lm import ItemLM, ItemLMConfig
from itemlm.models.mixture import with_neighbours
from itemlm.models.neural import gru4rec
from itemlm.models.presets import MODELS, preset
from itemlm.models.text.rows import item_plus_text
from itemlm.serving.hugging_face import from_hf, to_hf
from itemlm.serving.onnx import check_exportable, int8_recall, load_onnx, onnx_inputs, to_onnx

SIZES = dict(width=16, heads=4, kv_heads=2, hidden=24, layers=2, max_len=12)
N_ITEMS = 60


def recommender(**fields) -> Recommender:
    "Items with odd ids, weights far from the tame ones of the start, no user."
    torch.manual_seed(0)
    model = ItemLM(ItemLMConfig(n_items=N_ITEMS, **SIZES | fields)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
        for name, gain in model.named_parameters():
            if "norm" in name:
                gain.add_(1)
    ids = [f"id {n}" if n % 2 else f'"{n}", ä' for n in range(N_ITEMS)]
    items = pd.DataFrame({"title": [f"thing {n}" for n in range(N_ITEMS)], "count": np.arange(N_ITEMS)}, index=pd.Index(ids, name="item"))
    return Recommender(model=model, tokenizer=ItemTokenizer(ids), items=items)


def histories(rec: Recommender, rows: int = 40, longest: int = 20) -> Sequences:
    "Of every length from 1 to beyond what a model reads."
    rng = np.random.default_rng(0)
    some = [rng.integers(0, N_ITEMS, 1 + n % longest) + rec.tokenizer.n_special for n in range(rows)]
    return Sequences.from_lists([row.tolist() for row in some])


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"user": np.repeat(np.arange(40), 9), "item": rng.integers(0, 30, 360), "time": np.tile(np.arange(1, 10), 40)})
    titles = pd.DataFrame({"item": np.arange(30), "title": [f"red lamp {n}" for n in range(30)]})
    return split(read_events(log, name="ml-made-up", items=titles, duplicates="keep", verbose=False))


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def exact_norm(self, x):
    "What the reference's norm does, without its detour through float32."
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def both_scores(rec, folder, side: str):  # (B, V) ours, (B, V) of transformers, float64
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama, words = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64), AutoTokenizer.from_pretrained(folder)
    asked = histories(rec)
    raw = [rec.tokenizer.decode(row) for row in asked]
    how = dict(is_split_into_words=True, padding=True, truncation=True, return_tensors="pt", padding_side=side)
    batch, model = words(raw, **how), rec.model.double()
    with model.evaluating():
        ours = model.queries(asked) @ model.item_table().T
        last = batch["attention_mask"].sum(1) - 1 if side == "right" else torch.full((len(raw),), -1)
        theirs = llama(**batch).logits[torch.arange(len(raw)), last][:, rec.tokenizer.n_special :]
    model.float()
    return ours, theirs


VARIANTS = [{}, dict(head="dot"), dict(kv_heads=4), dict(kv_heads=1), dict(temperature=0.2, layers=1, heads=1, kv_heads=1)]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_a_llama_scores_as_we_do(fields, tmp_path, monkeypatch):
    "In float64, padded on either side; what the reference itself rounds is the only difference."
    from transformers.models.llama import modeling_llama

    rec = recommender(**fields)
    to_hf(rec, tmp_path / "hf", dtype="float64")
    for side in ("left", "right"):
        ours, theirs = both_scores(rec, tmp_path / "hf", side)
        assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()  # its norm goes through float32
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", exact_norm)
    ours, theirs = both_scores(rec, tmp_path / "hf", "right")  # on the left, angles of other positions are rounded to float32
    assert (ours - theirs).abs().max() < 1e-7 * ours.abs().max()  # speeds of rotation are float32 numbers, made in another order


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back(fields, dtype, tmp_path):
    rec = recommender(**fields)
    to_hf(rec, tmp_path / "hf", dtype=dtype)
    again = from_hf(tmp_path / "hf", dropout=rec.model.config.dropout, device="cpu")
    assert again.model.config == rec.model.config and again.tokenizer == rec.tokenizer and again.items.equals(rec.items)
    whole, back = rec.model.scores(histories(rec)), again.model.scores(histories(rec))
    torch.testing.assert_close(back, whole, atol=(1e-5 if dtype == "float32" else 0.05) * float(whole.abs().max()), rtol=0)
    again.save(tmp_path / "run")


def test_generate_says_items_alone(tmp_path):
    "Also where a special token has the best score of all."
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rec = recommender(head="dot")
    with torch.no_grad():
        rec.model.embed_tokens.weight[:8] = 50 * rec.model.embed_tokens.weight[:8]
    to_hf(rec, tmp_path / "hf")
    llama, words = AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), AutoTokenizer.from_pretrained(tmp_path / "hf")
    batch = words(
        [rec.tokenizer.items[:2].tolist(), rec.tokenizer.items[5:6].tolist()], is_split_into_words=True, padding=True, return_tensors="pt"
    )
    assert (llama(**batch).logits[:, -1].argmax(-1) < 8).any()
    said = llama.generate(**batch, max_new_tokens=6)[:, 2:]
    assert said.shape == (2, 6) and (said >= 8).all()
    assert set(words.convert_ids_to_tokens(said[0].tolist())) <= set(rec.tokenizer.items)


def test_a_trainer_goes_on(tmp_path):
    "transformers' own, on the folder as it is: the loss falls, and what it saves generates."
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate: pip install 'itemlm[hf]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    rec = recommender()
    to_hf(rec, tmp_path / "hf")
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    walks = [[rec.tokenizer.items[(start + step) % N_ITEMS] for step in range(6 + start % 5)] for start in range(48)]
    rows = [{"input_ids": words(walk, is_split_into_words=True)["input_ids"]} for walk in walks]
    how = TrainingArguments(tmp_path / "out", max_steps=24, logging_steps=4, learning_rate=3e-3, use_cpu=True, report_to=[], seed=0)
    collate = DataCollatorForLanguageModeling(words, mlm=False)
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), how, collate, rows, processing_class=words)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.5, losses
    trainer.save_model(tmp_path / "more")
    batch = words([walks[0][:3]], is_split_into_words=True, return_tensors="pt")
    said = AutoModelForCausalLM.from_pretrained(tmp_path / "more").generate(**batch, max_new_tokens=2)
    assert (said[0, 3:] >= 8).all()


def test_the_card_runs_and_tells_no_user(parts, tmp_path, monkeypatch, capsys):
    "Its five lines give the list that `topk` gives; its figures are the run's; no file names a user."
    rec = fit(parts, tiny(epochs=1), out_dir=tmp_path / "run", device="cpu", verbose=False)
    report = evaluate(rec, parts)
    report.save(tmp_path / "run")
    to_hf(rec, tmp_path / "hf", run=tmp_path / "run")
    card = (tmp_path / "hf/README.md").read_text()
    mean = report.metric("ndcg@10")["mean"]
    assert f"{mean:.4f} (" in card and "no commercial use" in card and "40 users" in card and "Not evaluated" not in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    assert len(code.splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    expected = rec.topk([rec.tokenizer.items[:2].tolist()], k=10, seen="keep")[0][0].tolist()
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(expected)
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "items.parquet",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_figures_of_another_run_are_refused(parts, tmp_path):
    rec = fit(parts, tiny(epochs=1), out_dir=tmp_path / "run", device="cpu", verbose=False)
    other = replace(rec, model=rec.model.config.build())
    with pytest.raises(ValueError, match="is not the run folder of this recommender"):
        to_hf(other, tmp_path / "hf", run=tmp_path / "run")
    assert not (tmp_path / "hf").exists()
    to_hf(rec, tmp_path / "hf", run=tmp_path / "run")
    assert "Not evaluated." in (tmp_path / "hf/README.md").read_text()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("item_lm", "text_beam")])
def test_what_is_no_llama_is_refused(name, tmp_path):
    model = preset(name, "tiny").model.with_known(n_items=N_ITEMS).build()
    with pytest.raises(ValueError, match=f"{type(model).__name__} is no Llama") as caught:
        to_hf(replace(recommender(), model=model), tmp_path / "hf")
    assert len(str(caught.value).splitlines()) == 1 and not list(tmp_path.iterdir())


def test_half_a_folder_is_none(tmp_path, monkeypatch):
    "Whatever breaks while it is written, nothing is left; what is there already stays."
    monkeypatch.setattr(
        "itemlm.serving.hugging_face._write_tokenizer", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="cannot write .*hf: No space left on device; nothing was changed"):
        to_hf(recommender(), tmp_path / "hf")
    assert not list(tmp_path.iterdir())
    (tmp_path / "hf").mkdir()
    with pytest.raises(FileExistsError, match="hf is there already"):
        to_hf(recommender(), tmp_path / "hf")


@pytest.mark.parametrize(
    "harm, said",
    [
        (dict(model_type="mistral"), "model_type='mistral'"),
        (dict(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}), "rope_theta=500000.0"),
        (dict(mlp_bias=True), "mlp_bias=True"),
        (dict(quantization_config={"bits": 4}), "quantization_config"),
        (dict(head_dim=8), "head_dim=8"),
        (dict(num_hidden_layers=1), "the weights are not those of its config.json"),
        (dict(num_hidden_layers=3), "the weights are not those of its config.json"),
        (dict(vocab_size=99), "tokenizer.json has 68 tokens, config.json 99"),
        (dict(num_hidden_layers=None), "describes no ItemLM|num_hidden_layers|layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_an_item_lm_is_not_is_refused(harm, said, tmp_path):
    folder = to_hf(recommender(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text()) | harm
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said) as caught:
        from_hf(folder, device="cpu")
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_weights_are_refused(tmp_path):
    folder = to_hf(recommender(), tmp_path / "hf")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="a weights file is damaged"):
        from_hf(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no .*safetensors"):
        from_hf(folder)


# --- ONNX ------------------------------------------------------------------------------------------------------------


def test_a_graph_recommends_as_we_do(tmp_path):
    "What is no Llama may still be a graph; any padding, any length, with and without what was seen, and a first visit."
    rec = recommender(position="learned", norm="layer", norm_place="post", feed_forward="gelu", head="dot")
    served, asked = load_onnx(to_onnx(rec, tmp_path / "onnx", quantise=True), threads=1), histories(rec)
    for seen in ("keep", "drop"):
        for k in (1, 10, N_ITEMS):
            ours, theirs = rec.topk(asked, k=k, seen=seen), served.topk(asked, k=k, seen=seen)
            np.testing.assert_allclose(theirs[1], ours[1], atol=1e-4)
            assert (ours[0] == theirs[0]).mean() > 0.99
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = [["id 1", "nobody knows it", "id 3"], [], ["nobody knows it"]]
        assert (served.topk(raw, k=5)[0] == rec.topk(raw, k=5)[0]).all()
    assert served.topk([], k=3)[0].shape == (0, 3)

    right = onnx_inputs(asked, 8, 12, seen="keep")  # and padded by hand: on the left, beyond what is read
    left = np.zeros((len(asked), 33), np.int64)
    for row, tokens in enumerate(asked):
        left[row, 33 - len(tokens) :] = tokens
    by_hand = served.session.run(None, right | {"tokens": left, "lengths": asked.lengths})
    for given, expected in zip(by_hand, served.session.run(None, right)):
        np.testing.assert_allclose(given, expected, atol=1e-5)

    assert 0.5 < int8_recall(tmp_path / "onnx", asked) <= 1
    (tmp_path / "onnx/topk.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match="topk.onnx is damaged"):
        load_onnx(tmp_path / "onnx")


@pytest.mark.parametrize("recipe", [item_plus_text(), pytest.param(gru4rec(), marks=pytest.mark.slow)], ids=["item_plus_text", "gru4rec"])
def test_other_networks(recipe, parts, tmp_path):
    "Rows that are made of texts are a table in the graph; a recurrent network is unrolled by the runtime."
    model = recipe.model.with_known(width=16, layers=1, max_len=8, n_items=30)
    words = ItemTokenizer.from_split(parts)
    rec = Recommender.from_split(replace(model, n_items=words.n_items).build(), words, parts)
    rec.model.setup(parts, words)
    served = load_onnx(to_onnx(rec, tmp_path / "onnx"), threads=1)
    ours, theirs = rec.topk(rec.histories, seen="keep"), served.topk(rec.histories, seen="keep")
    np.testing.assert_allclose(theirs[1], ours[1], atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_exported_or_refused(name):
    "Networks that score by a product may go out; the others are told by name what to do."
    if name == "text_beam":
        pytest.skip("it is made of texts")
    model = preset(name, "tiny").model.with_known(n_items=N_ITEMS).build()
    if name in ("item_lm", "gru4rec_ce", "sasrec_ce", "sasrec_bce", "hstu", "hierarchy", "item_plus_text"):
        return check_exportable(model)
    with pytest.raises(ValueError, match=f"{type(model).__name__} cannot be written as ONNX.*recommend_all") as caught:
        check_exportable(model)
    assert len(str(caught.value).splitlines()) == 1


class Undecided(ItemLM):
    "What it does depends on what it reads."

    def encode(self, tokens, cache=None):
        return super().encode(tokens) if tokens.sum() > 20 else self.embed_tokens(tokens)


@pytest.mark.slow
def test_what_the_exporter_cannot_write_is_one_clear_error(tmp_path):
    rec = recommender()
    with pytest.raises(ValueError, match="Undecided cannot be written as ONNX .*: serve it from its run folder") as caught:
        to_onnx(replace(rec, model=Undecided(Undecided.Config(n_items=N_ITEMS, **SIZES))), tmp_path / "onnx")
    assert len(str(caught.value).splitlines()) == 1 and not list(tmp_path.iterdir())


def test_the_network_of_a_mixture_may_go_out():
    for recipe in (with_neighbours(tiny()), ensemble(tiny())):
        model = recipe.model.with_known(n_items=9).build()
        with pytest.raises(ValueError, match="rec.model.network"):
            check_exportable(model)
        check_exportable(model.network)


@pytest.mark.parametrize("opset", [9, 17, 24, "18", 18.5, None])
def test_an_operation_set_that_is_not_served(opset, tmp_path):
    with pytest.raises(ValueError, match="opset=.* is (too old|none from)"):
        to_onnx(recommender(), tmp_path / "onnx", opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library, extra, call", [("transformers", "hf", to_hf), ("onnx", "onnx", to_onnx)])
def test_without_the_library(library, extra, call, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ImportError, match=rf"pip install 'itemlm\[{extra}\]'"):
        call(recommender(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_head_is_a_matrix():
    "The definition, in numbers: cosine over temperature."
    from itemlm.serving.hugging_face import llama_weights

    model = recommender().model
    head, state = llama_weights(model)["lm_head.weight"], model.queries(Sequences.from_lists([[9, 10]])).clone()
    expected = F.cosine_similarity(state, model.embed_tokens.weight[8:]) / model.config.temperature
    torch.testing.assert_close(state @ head[8:].T, expected[None], atol=1e-3, rtol=1e-3)
