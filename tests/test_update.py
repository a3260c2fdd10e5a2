"Life after training: more epochs, new events, a refit, and a checkpoint without its users."

import copy
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from itemlm.data.batches import epoch_order, training_sequences
from itemlm.data.events import read_events
from itemlm.data.split import Split, split, with_validation
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.compare import comparable
from itemlm.evaluation.protocols import protocols
from itemlm.evaluation.report import evaluate
from itemlm.models.base import SequenceModel
from itemlm.models.counting import item_knn, markov, popularity
from itemlm.models.ensemble import ensemble
from itemlm.models.item_lm import tiny
from itemlm.models.mixture import with_neighbours
from itemlm.models.neural import bert4rec, gru4rec
from itemlm.models.recipe import TrainingConfig
from itemlm.runs.folder import read_record
from itemlm.runs.ledger import read_run
from itemlm.serving.recommender import Recommender, load
from itemlm.training.schedule import learning_rate, make_optimizer
from itemlm.training.trainer import Trainer, fit, initial_model, sized, train_step
from itemlm.training.update import UpdateConfig

T0, DAY = 1_600_000_000, 86_400


def of(u: int) -> str:
    return f"person{u:03}@mail"


def clicks(users=30, items=40, length=8, seed=0) -> pd.DataFrame:
    "Interactions whose user ids look like nothing else in a run."
    rng = np.random.default_rng(seed)
    starts, steps = rng.integers(items, size=users), np.arange(length) * 3
    rows = [(of(u), f"i{(starts[u] + step) % items}", T0 + t * DAY + u) for u in range(users) for t, step in enumerate(steps)]
    return pd.DataFrame(rows, columns=["user", "item", "time"])


def events(frame: pd.DataFrame, **more):
    return read_events(frame, verbose=False, **more)


def row(user: str, item: str, day: float) -> dict:
    return {"user": user, "item": item, "time": int(T0 + day * DAY)}


@pytest.fixture(scope="module")
def parts() -> Split:
    return split(events(clicks(), name="clicks"))


@pytest.fixture(scope="module")
def rec(parts):
    return fit(parts, tiny(epochs=2), device="cpu", verbose=False)


NEW = pd.DataFrame([row(of(0), "i1", 20), row(of(1), "fresh", 20), row("somebody", "i2", 20), row("somebody", "fresh", 21)])


# ---- more epochs


def test_a_finished_run_goes_on_for_more_epochs(parts, tmp_path):
    folder = tmp_path / "run"
    first = fit(parts, tiny(epochs=1), out_dir=folder, device="cpu", verbose=False)
    evaluate(first, parts).save(folder)
    longer = fit(parts, tiny(epochs=4), out_dir=folder, device="cpu", verbose=False)
    record, run = read_record(folder), read_run(folder)
    assert [line["epoch"] for line in longer.log] == [1, 2, 3, 4] and longer.log[0] == first.log[0]
    assert record["restarts"] == [1] and record["finished"] and record["identity"]["fit"]["epochs"] == 4
    assert run.state == "finished" and not run.reason and not run.report, "figures of the weights before are gone with them"
    assert not (folder / "metrics.json").exists() and not (folder / "per_user.parquet").exists()
    evaluate(longer, parts).save(folder)
    again = fit(parts, tiny(epochs=4), out_dir=folder, device="cpu", verbose=False)
    assert again.log == longer.log and read_run(folder).report, "opened, not trained again"


def killed_after(saves: int, monkeypatch, run) -> None:
    "Let a training die right after some of its saves."
    save, left = Trainer.save, [saves]

    def save_and_die(self):
        save(self)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run()


def same_weights(first: Recommender, second: Recommender) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_more_epochs_resume_and_repeat(parts, tmp_path, monkeypatch):
    "Killed on the way and started again, it ends with the same weights."
    ask = lambda name, epochs: fit(parts, tiny(epochs=epochs, batch=8), out_dir=tmp_path / name, device="cpu", verbose=False)
    for name in ("whole", "killed"):
        ask(name, 1)
    killed_after(1, monkeypatch, lambda: ask("killed", 3))
    assert same_weights(ask("whole", 3), ask("killed", 3))
    assert [read_record(tmp_path / name)["restarts"] for name in ("whole", "killed")] == [[1], [1]]


def test_only_more_epochs_go_on(parts, tmp_path):
    fit(parts, tiny(epochs=2), out_dir=tmp_path / "run", device="cpu", verbose=False)
    for config in (tiny(epochs=1), tiny(epochs=3, lr=1e-3)):
        with pytest.raises(FileExistsError, match="belongs to another run"):
            fit(parts, config, out_dir=tmp_path / "run", device="cpu", verbose=False)
    more = split(events(pd.concat([clicks(), NEW]), name="clicks"))
    with pytest.raises(FileExistsError, match=r"or train it on, load\(folder\).update\(new_events\)"):
        fit(more, tiny(epochs=2), out_dir=tmp_path / "run", device="cpu", verbose=False)
    fit(parts, tiny(epochs=3, batch=8), out_dir=tmp_path / "going", device="cpu", max_minutes=1e-9, verbose=False)
    with pytest.raises(FileExistsError, match="belongs to another run"):  # its schedule has not come to its end
        fit(parts, tiny(epochs=5, batch=8), out_dir=tmp_path / "going", device="cpu", verbose=False)


# ---- update


def test_an_update_knows_what_is_new_and_leaves_the_old_one_alone(rec, parts):
    weights, histories, data = copy.deepcopy(rec.model.state_dict()), rec.histories, copy.deepcopy(rec.data)
    new = rec.update(NEW, verbose=False)
    assert rec.data == data and rec.histories is histories and rec.n_items == new.n_items - 1
    assert all(torch.equal(value, rec.model.state_dict()[name]) for name, value in weights.items())
    assert new.tokenizer.items[:-1].tolist() == rec.tokenizer.items.tolist() and new.tokenizer.items[-1] == "fresh"
    assert new.tokenizer.decode(new.history([of(0)])[0]) == [*rec.tokenizer.decode(rec.history([of(0)])[0]), "i1"]
    assert new.tokenizer.decode(new.history(["somebody"])[0]) == ["i2", "fresh"] and "somebody" not in rec.users
    assert new.items["count"]["fresh"] == 2 and len(new.recommend(users=["somebody"])) == 10
    assert "fresh" in new.recommend(items=["i1"], k=50)["item"].to_numpy()
    told = new.data["updates"][0]
    assert new.data["name"] == "clicks" and told["added"] == 4 and (told["new_users"], told["new_items"]) == (1, 1) and told["steps"] == 2
    assert not torch.equal(new.model.embed_tokens.weight[:-1], rec.model.embed_tokens.weight)


def test_an_update_is_repeatable_saved_and_updated_again(rec, tmp_path):
    torch.manual_seed(1)
    one = rec.update(NEW, verbose=False)
    torch.manual_seed(2)
    other = rec.update(NEW, verbose=False)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters()))
    one.save(tmp_path / "one")
    opened = load(tmp_path / "one", "cpu")
    assert opened.data == one.data and opened.recipe == rec.recipe and opened.histories == one.histories
    twice = opened.update(pd.DataFrame([row("somebody", "i3", 25)]), verbose=False)
    assert len(twice.data["updates"]) == 2 and len(twice.history(["somebody"])[0]) == 3


@pytest.mark.parametrize("recipe", [popularity(), popularity(half_life=2.0), markov(), item_knn(neighbours=500)], ids=str)
def test_a_counting_model_counts_anew_exactly(recipe, parts):
    "Updating equals training anew on everything, score for score."
    new = fit(parts, recipe, device="cpu", verbose=False).update(pd.concat([clicks(), NEW]), verbose=False)
    all_of_it = events(pd.concat([clicks(), NEW]), name="clicks")
    whole = with_validation(split(all_of_it), everything=True)
    tokens = ItemTokenizer.from_split(whole)
    anew = Recommender.from_split(initial_model(recipe, whole, tokens), tokens, whole)
    histories = [["i1", "i2"], ["fresh"], ["i7", "i9", "fresh", "i3"]]
    ours, theirs = (one.scores(one.encode(histories)).numpy() for one in (new, anew))
    order = pd.Index(anew.tokenizer.items).get_indexer(new.tokenizer.items)
    assert new.n_items == anew.n_items and np.allclose(ours, theirs[:, order], rtol=1e-6, atol=0)
    assert new.items["count"].sum() == all_of_it.n_interactions


def test_a_mixture_learns_and_counts_anew(parts):
    mixed = fit(parts, with_neighbours(tiny(epochs=1)), device="cpu", verbose=False)
    later = mixed.update(events(NEW), verbose=False)
    assert later.n_items == mixed.n_items + 1 and float(later.model.weight) == float(mixed.model.weight) > 0
    alone = replace(mixed, model=mixed.model.neighbours).update(events(NEW), verbose=False)
    history = later.encode([["i1", "fresh"]])
    assert torch.equal(later.model.neighbours.scores(history), alone.scores(history))
    with pytest.raises(ValueError, match="Mixture counts anew"):
        mixed.without_users().update(events(NEW), verbose=False)
    again = fit(parts, with_neighbours(tiny(epochs=1)), device="cpu", verbose=False, refit=True)
    assert float(again.model.weight) == float(mixed.model.weight), "chosen before the validation part was trained on"


def test_the_same_events_twice(rec):
    new = rec.update(NEW, verbose=False)
    with pytest.raises(ValueError, match="nothing is new"):
        new.update(NEW, verbose=False)
    both = new.update(pd.concat([NEW, pd.DataFrame([row("somebody", "i9", 30)])]), verbose=False)
    assert both.data["updates"][1]["added"] == 1 and len(both.history(["somebody"])[0]) == 3


def test_late_events_are_put_in_their_place_and_that_is_said(rec, capsys):
    late = pd.DataFrame([row(of(3), "i39", 1.5), row(of(3), "i38", 40)])
    new = rec.update(late)
    before, after = (one.tokenizer.decode(one.history([of(3)])[0]) for one in (rec, new))
    assert after == [*before[:2], "i39", *before[2:], "i38"] and [item for item in after if item not in ("i38", "i39")] == before
    assert "1 events of 1 users are older than what is known of them, and put in their place by time" in capsys.readouterr().out
    assert (np.diff(new.times[new.histories.offsets[3] : new.histories.offsets[4]]) >= 0).all()


def test_what_is_held_back_after_the_newest_event_stays_held_back(parts):
    "An update with the validation period leaves the test as honest as it was; without an error it says what it read on the way."
    rec = fit(parts, tiny(epochs=1), device="cpu", verbose=False)
    period = events(clicks().groupby("user").nth(-2).reset_index(drop=True))
    new = rec.update(period, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(new, parts)
    with pytest.warns(UserWarning, match="100.0%"):
        evaluate(new, parts, part="valid")
    with pytest.warns(UserWarning, match="30 of 30 test targets"):
        evaluate(rec.update(clicks(), verbose=False), parts)


def test_a_cold_item_held_back_is_recognised(capsys):
    log = pd.concat([clicks(), pd.DataFrame([row(of(5), "cold", 9)])])
    rec = fit(split(events(log)), tiny(epochs=1), device="cpu", verbose=False)
    assert "cold" not in rec.tokenizer.items
    new = rec.update(pd.DataFrame([row(of(5), "cold", 9)]), verbose=False)
    assert new.tokenizer.decode(new.history([of(5)])[0])[-1] == "cold" and len(new.histories.values) == len(rec.histories.values)


def test_no_times():
    log = clicks().drop(columns="time")
    rec = fit(split(events(log)), tiny(epochs=1), device="cpu", verbose=False)
    new = rec.update(NEW.drop(columns="time"), verbose=False)
    assert new.tokenizer.decode(new.history(["somebody"])[0]) == ["i2", "fresh"]
    with pytest.raises(ValueError, match="was given before"):
        new.update(NEW.drop(columns="time"), verbose=False)
    assert len(new.update(NEW.drop(columns="time").tail(1), verbose=False).history(["somebody"])[0]) == 3


def test_what_cannot_be_an_update_is_one_clear_error(rec, parts):
    with pytest.raises(ValueError, match="is empty"):
        rec.update(NEW.head(0))
    with pytest.raises(ValueError, match="column"):
        rec.update(NEW.rename(columns={"user": "a", "item": "b", "time": "c"}))
    with pytest.raises(ValueError, match="has no times and the known histories have"):
        rec.update(NEW.drop(columns="time"))
    with pytest.raises(ValueError, match="does not say which of its users' events it was trained on"):
        replace(rec, trained=np.empty(0, np.int64)).update(NEW)
    with pytest.raises(ValueError, match="hand it over, update"):
        replace(rec, recipe={}).update(NEW)
    assert replace(rec, recipe={}).update(NEW, config=tiny(), verbose=False).n_items == rec.n_items + 1
    with pytest.raises(ValueError, match="lr"):
        UpdateConfig(lr=0)


class Codes(SequenceModel):
    "A model with something that depends on the catalogue and is not learnt."

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = torch.nn.Embedding(config.n_special + config.n_items, 8)
        self.register_buffer("codes", torch.arange(config.n_items))

    def encode(self, tokens, cache=None):
        return self.embed_tokens(tokens)


def test_models_that_can_take_in_new_items_and_one_that_cannot(parts):
    for recipe in (gru4rec(epochs=1), bert4rec(epochs=1)):
        recipe = replace(recipe, model=recipe.model.with_known(width=8, layers=1, max_len=10))
        new = fit(parts, recipe, device="cpu", verbose=False).update(NEW, verbose=False)
        assert np.isfinite(new.topk([["fresh"]], k=5)[1]).all()
    rec = fit(parts, TrainingConfig(model=Codes.Config(), init="random", epochs=1), device="cpu", verbose=False)
    with pytest.raises(ValueError, match="Codes cannot take in new items"):
        rec.update(NEW)
    assert rec.update(NEW.iloc[[0, 2]], verbose=False).n_items == rec.n_items


# ---- refit


def test_a_new_item_begins_among_its_neighbours_in_each_of_several_networks(parts):
    rec = fit(parts, ensemble(tiny(epochs=1)), device="cpu", verbose=False)
    known = rec.items.index[:2].tolist()
    between = pd.DataFrame([row(of(n), item, 20 + day) for n in range(3) for day, item in enumerate((known[0], "fresh", known[1]))])
    after = rec.update(events(between), UpdateConfig(lr=1e-12), verbose=False)
    for network in after.model.networks:
        table = torch.nn.functional.normalize(network.embed_tokens.weight.detach()[8:], dim=-1)
        assert set((table[:-1] @ table[-1]).topk(2).indices.tolist()) == {0, 1}


def test_a_refit_equals_its_steps_by_hand(parts):
    config = tiny(epochs=3, batch=8)
    strict, refit = (fit(parts, config, device="cpu", verbose=False, refit=how) for how in (False, True))
    best = max(strict.log, key=lambda line: line["ndcg@10"])
    whole = with_validation(parts)
    tokens = ItemTokenizer.from_split(whole)
    config, model = sized(config, tokens), initial_model(config, whole, tokens)
    sequences = training_sequences(tokens.encode_codes(whole.train, whole.events.items.index), config.model.max_len)
    optimizer, per_epoch = make_optimizer(model, config), -(-len(sequences) // 8)
    for step in range(best["step"]):
        torch.manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 3 * strict.log[0]["step"], config)
        rows = epoch_order(sequences, 8, config.seed, step // per_epoch)[step % per_epoch]
        train_step(model.train(), optimizer, sequences.buckets(rows), config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), refit.model.parameters()))
    assert refit.data["training"] == "refit" and refit.data["chosen"]["step"] == best["step"] and "training" not in strict.data


def test_a_refit_is_a_protocol_of_its_own(parts, tmp_path):
    "Said in run.json and metrics.json, never compared with the strict one; its test is honest, its validation is not."
    for how in (False, True):
        rec = fit(parts, tiny(epochs=1), out_dir=tmp_path / str(how), device="cpu", verbose=False, refit=how)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate(rec, parts).save(tmp_path / str(how))
    record, metrics = (json.loads((tmp_path / "True" / name).read_text()) for name in ("run.json", "metrics.json"))
    assert record["identity"]["training"] == record["data"]["training"] == metrics["results"][0]["protocol"]["training"] == "refit"
    assert "training is 'strict' in False, 'refit' in True" in comparable(tmp_path / "False", tmp_path / "True")
    with pytest.warns(UserWarning, match="30 of 30 valid targets"):
        evaluate(rec, parts, part="valid")
    with pytest.raises(ValueError, match="trained on other parts than these"):
        protocols(rec, parts)
    assert read_run(tmp_path / "True").state == "finished" and read_run(tmp_path / "True/strict").state == "finished"
    with pytest.raises(FileExistsError, match="training: None there, 'refit' here"):
        fit(parts, tiny(epochs=1), out_dir=tmp_path / "False", device="cpu", verbose=False, refit=True)
    with pytest.raises(ValueError, match="refit='valid' is not True"):
        fit(parts, tiny(epochs=1), device="cpu", verbose=False, refit="valid")


def test_a_refit_on_everything_leaves_nothing_to_measure(parts):
    for recipe in (tiny(epochs=1), popularity()):
        rec = fit(parts, recipe, device="cpu", verbose=False, refit="everything")
        assert rec.data["training"] == "everything" and rec.trained.sum() == parts.events.n_interactions
        with pytest.warns(UserWarning, match="30 of 30 test targets"):
            evaluate(rec, parts)


@pytest.mark.parametrize("how", ["leave_one_out", "last_n", "global_time"])
def test_the_training_part_of_a_refit_ends_before_the_test(how):
    parts = split(events(clicks()), how)
    whole = with_validation(parts)
    wanted = {user: len(history) for user, history in zip(whole.train_users, whole.train)}
    for user, history in zip(parts.test.users, parts.test.histories):
        assert wanted[user] <= len(history)
    assert whole.test is parts.test and len(whole.train.values) > len(parts.train.values)


def test_a_refit_that_was_killed_or_stopped_goes_on(parts, tmp_path, monkeypatch):
    ask = lambda name, minutes=None: fit(parts, tiny(epochs=2, batch=8), tmp_path / name, "cpu", minutes, False, refit=True)
    stopped = ask("killed", 1e-9)
    assert "training" not in stopped.data and read_run(tmp_path / "killed").state == "in training"
    shutil.rmtree(tmp_path / "killed")
    for saves in (1, 2):  # once in the strict run, once in the refit
        killed_after(saves, monkeypatch, lambda: ask("killed"))
    assert same_weights(ask("whole"), ask("killed"))


# ---- without users


def words_of_folder(folder: Path) -> bytes:
    "Everything that the files of a folder say, tables unpacked."
    files = [path for path in folder.rglob("*") if path.is_file()]
    tables = [repr(pq.read_table(path).to_pydict()).encode() for path in files if path.suffix == ".parquet"]
    return b"\n".join([path.read_bytes() for path in files] + tables)


@pytest.mark.parametrize("updated", [False, True])
def test_no_user_is_in_a_shared_checkpoint(rec, parts, tmp_path, updated):
    whole = rec.update(NEW, verbose=False) if updated else rec
    whole.save(tmp_path / "own")
    whole.save(tmp_path / "shared", users=False)
    times = [str(time).encode() for time in {*whole.times.tolist()}]
    own, shared = words_of_folder(tmp_path / "own"), words_of_folder(tmp_path / "shared")
    assert b"@mail" in own and any(time in own for time in times)
    assert b"@mail" not in shared and b"somebody" not in shared and not any(time in shared for time in times)
    opened = load(tmp_path / "shared", "cpu")
    assert len(opened.users) == len(opened.histories) == len(opened.times) == len(opened.trained) == 0
    pd.testing.assert_frame_equal(opened.recommend(items=["i1", "i2"]), whole.recommend(items=["i1", "i2"]))
    with pytest.raises(FileExistsError, match="holds what is known of users"):
        whole.save(tmp_path / "own", users=False)
    assert load(tmp_path / "own", "cpu").users.tolist() == whole.users.tolist()


def test_a_shared_checkpoint_still_knows_what_its_figures_would_be_worth(parts):
    refit = fit(parts, tiny(epochs=1), device="cpu", verbose=False, refit=True).without_users()
    with pytest.warns(UserWarning, match="valid part of this data was trained on"):
        evaluate(refit, parts, part="valid")
    learnt = events(clicks(), name="clicks")
    new = fit(parts, tiny(epochs=1), device="cpu", verbose=False).update(learnt, verbose=False).without_users()
    with pytest.warns(UserWarning, match="was updated with events of this data"):
        evaluate(new, parts)


def test_a_shared_checkpoint_can_be_updated_or_says_why_not(rec, parts):
    shared = rec.without_users()
    new = shared.update(NEW, verbose=False)
    assert sorted(new.users) == [of(0), of(1), "somebody"] and new.n_items == rec.n_items + 1
    with pytest.raises(ValueError, match="the events it was made of are not here"):
        fit(parts, markov(), device="cpu", verbose=False).without_users().update(NEW)
