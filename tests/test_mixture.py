"""Models around a network (neighbours, a time prior, more networks): trained as it is without them, weighed by validation, saved, resumed,
explained, named in a job."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from itemlm import evaluate, fit, load, read_events, split, tiny
from itemlm.data.split import gapped, with_validation
from itemlm.data.tokenizer import Sequences
from itemlm.explain import attention_weights, because, effects, items_read, trace, what_if
from itemlm.explore.pages import user_sheet
from itemlm.explore.users import held_out, known_history, known_times, newest_time, recommend_one
from itemlm.metrics.ranks import ndcg
from itemlm.models.counting import SequentialKNN, sequential_knn
from itemlm.models.ensemble import ensemble
from itemlm.models.mixture import POWERS, WEIGHTS, with_neighbours
from itemlm.models.neural import sasrec
from itemlm.models.text.encoders import ItemLLMConfig
from itemlm.models.text.rows import hierarchy
from itemlm.models.time_prior import MONTH, REACH, USUAL, TimePrior
from itemlm.parameters import TrainParameters, recipe_of
from itemlm.show import page_text
from itemlm.training.mix import mix, together
from itemlm.training.trainer import Trainer


@pytest.fixture(scope="module")
def parts():
    "Eighty people who mostly walk on through forty items with titles."
    rng = np.random.default_rng(0)
    walks = (rng.integers(0, 40, (80, 1)) + np.cumsum(rng.choice([1, 1, 1, 3, 7], (80, 11)), 1)) % 40
    items = pd.DataFrame({"item": np.arange(40), "title": [f"{word} {n}" for n, word in zip(range(40), ["cup", "lamp", "chair"] * 14)]})
    log = pd.DataFrame({"user": np.repeat(np.arange(80), 11), "item": walks.ravel(), "time": np.tile(np.arange(1, 12), 80)})
    return split(read_events(log, name="walks", items=items, verbose=False))


RECIPE = tiny(epochs=2, batch=16)
READER = ItemLLMConfig(checkpoint="", trainable=True, width=16, layers=1, vocabulary=300)


def without_seconds(rec) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rec.log]


@pytest.fixture(scope="module")
def alone(parts):
    return fit(parts, RECIPE, device="cpu", verbose=False)


@pytest.fixture(scope="module")
def both(parts):
    return fit(parts, with_neighbours(RECIPE, shrink=5.0), device="cpu", verbose=False)


def test_the_network_is_the_one_without_neighbours(alone, both):
    assert without_seconds(both) == without_seconds(alone)
    for ours, theirs in zip(both.model.network.parameters(), alone.model.parameters(), strict=True):
        assert ours.equal(theirs)


def test_the_weight_is_the_best_on_validation_and_test_has_no_say(parts, both):
    def reached(weight):
        rec = replace(both, model=replace(both.model.config, weight=weight).build())
        rec.model.load_files({}, both.model.saved_weights())
        rec.model.load_weights(both.model.saved_weights() | {"weight": torch.tensor(weight)})
        return ndcg(rec.rank_part(parts, "valid", seen=("drop",))["drop"], 10).mean()

    marks = [reached(weight) for weight in WEIGHTS]
    assert both.model.config.weight == WEIGHTS[int(np.argmax(marks))] > 0
    other = replace(parts, test=replace(parts.test, targets=parts.test.targets[::-1].copy()))
    assert fit(other, with_neighbours(RECIPE, shrink=5.0), device="cpu", verbose=False).model.config == both.model.config


def test_training_holds_and_saves_no_neighbours(parts, tmp_path, monkeypatch):
    "They are counted when the network has learnt: a resume state is as large as without them."
    sizes = []
    monkeypatch.setattr(
        Trainer,
        "finish",
        lambda self: sizes.append(
            {name: len(weight) for name, weight in self.progress.best_weights.items() if name.startswith("neighbours.")}
        ),
    )
    fit(parts, with_neighbours(RECIPE), tmp_path / "run", device="cpu", verbose=False)
    assert sizes == [{"neighbours.offsets": 0, "neighbours.columns": 0, "neighbours.weights": 0}]
    with safe_open(tmp_path / "run/resume.safetensors", "pt") as file:
        assert not any(file.get_tensor(name).numel() for name in file.keys() if ".neighbours." in name)


def test_a_warm_restart_validates_the_network_alone_again(parts, tmp_path):
    "What validation chose for the finished run is chosen anew: every epoch is measured alike, and as without neighbours."
    runs = {}
    for name, recipe in dict(alone=RECIPE, mixed=with_neighbours(RECIPE, shrink=5.0)).items():
        for epochs in (2, 4):
            runs[name] = fit(parts, replace(recipe, epochs=epochs), tmp_path / name, device="cpu", verbose=False)
    assert [row["epoch"] for row in runs["mixed"].log] == [1, 2, 3, 4] and without_seconds(runs["mixed"]) == without_seconds(runs["alone"])
    assert float(runs["mixed"].model.weight) == pytest.approx(runs["mixed"].model.config.weight) != 0


def test_broken_off_and_gone_on_with_it_is_the_same(parts, both, tmp_path, monkeypatch):
    recipe, step = with_neighbours(RECIPE, shrink=5.0), Trainer.step

    def breaks(trainer, rows):
        if trainer.progress.step == 7:  # in the second epoch
            raise InterruptedError
        step(trainer, rows)

    monkeypatch.setattr(Trainer, "step", breaks)
    with pytest.raises(InterruptedError):
        fit(parts, recipe, tmp_path / "run", device="cpu", verbose=False)
    monkeypatch.setattr(Trainer, "step", step)
    rec = fit(parts, recipe, tmp_path / "run", device="cpu", verbose=False)
    assert without_seconds(rec) == without_seconds(both) and rec.model.config == both.model.config
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["weight"] == both.model.config.weight
    again = fit(parts, recipe, tmp_path / "run", device="cpu", verbose=False)
    some = both.history(both.users[:9].tolist())
    assert again.scores(some).equal(both.scores(some)) and again.model.config == both.model.config


def test_mixed_afterwards_it_is_the_same(parts, alone, both):
    mixed, some = mix(alone, parts, SequentialKNN.Config(shrink=5.0)), both.history(both.users[:9].tolist())
    assert mixed.scores(some).equal(both.scores(some)) and mixed.model.config == both.model.config
    assert type(alone.model) is type(both.model.network) and mixed.model.network is not alone.model


def test_a_weight_can_be_chosen_on_a_gapped_validation_part(parts):
    "Gapped training has not learnt the validation part: only a refit has."
    closed = gapped(parts)
    rec = fit(closed, RECIPE, device="cpu", verbose=False)
    assert mix(rec, closed).model.config.weight in WEIGHTS


def test_networks_and_neighbours_have_learnt_from_the_same(parts, alone):
    "Neighbours that have counted the test part, or a network that has, would make a mixture look better than it is."
    whole = with_validation(parts, True)
    with pytest.raises(ValueError, match="not what this recommender was trained on"):
        mix(alone, whole, weight=0.5)
    everything = fit(parts, RECIPE, device="cpu", verbose=False, refit="everything")
    with pytest.raises(ValueError, match="not what this recommender was trained on|trained on different parts of the data"):
        together([alone, everything], parts)


def test_two_weights_are_two_runs(parts, alone, tmp_path):
    "A folder that holds one weight is not overwritten by another, and reports of the two are kept apart."
    mix(alone, parts, weight=0.2).save(tmp_path / "run")
    with pytest.raises(FileExistsError, match="other weights"):
        mix(alone, parts, weight=0.5).save(tmp_path / "run")


def test_a_given_weight_is_kept(parts):
    rec = fit(parts, with_neighbours(RECIPE, weight=0.35), device="cpu", verbose=False)
    assert rec.model.config.weight == 0.35 and float(rec.model.weight) == pytest.approx(0.35)


def test_probabilities_and_where_they_came_from(parts, both):
    some = both.history(both.users[:9].tolist())
    assert both.scores(some).exp().sum(1).numpy() == pytest.approx(np.ones(9), abs=1e-4)
    shares, near = both.model.shares(some), both.model.neighbours.scores(some)
    assert sorted(shares) == ["neighbours", "network"] and (shares["neighbours"][near == 0] == 0).all()
    assert (shares["neighbours"][near > 0] > 0).all() and torch.allclose(shares["network"] + shares["neighbours"], torch.ones(()))
    why = because(both, ["1", "2", "3"], k=4)
    assert (
        np.allclose(why.share_network + why.share_neighbours, 1)
        and why.item.tolist() == both.recommend(items=["1", "2", "3"], k=4).item.tolist()
    )


def test_new_users_and_histories_that_nothing_is_known_of(both):
    assert len(both.recommend(items=[], k=5)) == 5
    with pytest.warns(UserWarning, match="not known"):
        assert len(both.recommend(items=["no such item"], k=5)) == 5


def test_without_a_single_vote_the_network_decides(both):
    silent = replace(both, model=mix_of(both, torch.zeros(both.n_items + 1, dtype=torch.int64)))
    some = both.history(both.users[:9].tolist())
    assert torch.allclose(silent.scores(some), both.model.network.scores(some).log_softmax(1))


def mix_of(rec, offsets):
    model = type(rec.model)(rec.model.config, rec.model.network)
    model.neighbours.take_rows(offsets, torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    return model


def test_new_items_are_recommended_by_their_text(parts):
    rec = fit(parts, with_neighbours(replace(hierarchy(READER), epochs=1), weight=0.4), device="cpu", verbose=False)
    grown = rec.add_items(pd.DataFrame({"title": ["cup 99"]}, index=["new"]))
    some = rec.history(rec.users[:9].tolist())
    scores = grown.scores(some)
    assert scores.shape == (9, rec.n_items + 1) and torch.isfinite(scores).all() and grown.model.config.weight == 0.4
    assert (grown.model.shares(some)["neighbours"][:, -1] == 0).all()


def test_every_field_has_a_name_in_a_job():
    asked = {"model.network.width": "32", "model.neighbours.shrink": "80", "model.weight": "0.3"}
    recipe = recipe_of(TrainParameters(model="item_lm_knn", settings=", ".join(f"{k}={v}" for k, v in asked.items())))
    assert (recipe.model.network.width, recipe.model.neighbours.shrink, recipe.model.weight) == (32, 80.0, 0.3)
    with pytest.raises(ValueError, match="model.weight.*must be"):
        recipe_of(TrainParameters(model="item_lm_knn", settings="model.weight=1"))
    assert recipe_of(TrainParameters(model="item_lm_knn", preset="long_history")).model.max_len == 200


def test_any_network(parts):
    rec = fit(parts, with_neighbours(sasrec(epochs=1)), device="cpu", verbose=False)
    assert 0 <= evaluate(rec, parts).metric("ndcg@10")["mean"] <= 1


def test_pairs_are_what_a_loop_counts(parts):
    rec = fit(parts, sequential_knn(reach=4, shrink=2.0, neighbours=0), device="cpu", verbose=False)
    config, counts = rec.model.config, np.zeros((rec.n_items, rec.n_items))
    for history in rec.tokenizer.encode_codes(parts.train, parts.events.items.index):
        for i, one in enumerate(history - 8):
            for gap, other in enumerate(history[i + 1 : i + 5] - 8):
                counts[one, other] += config.distance_decay**gap
                counts[other, one] += config.backward * config.distance_decay**gap
    counts /= counts.sum(1, keepdims=True) + 2.0
    got = rec.model.scores(Sequences.from_lists([[8 + n] for n in range(rec.n_items)]))
    assert got.numpy() == pytest.approx(counts, abs=1e-6)
    two = rec.model.scores(Sequences.from_lists([[9, 8]]))[0].numpy()
    assert two == pytest.approx(counts[0] + config.decay * counts[1], abs=1e-6)


@pytest.fixture(scope="module")
def pair(parts):
    return fit(parts, ensemble(RECIPE), device="cpu", verbose=False)


def test_networks_of_an_ensemble_learn_as_each_would_alone(parts):
    recipe = replace(RECIPE, epochs=1)
    both, one = (fit(parts, made, device="cpu", verbose=False) for made in (ensemble(recipe), recipe))
    for ours, theirs in zip(both.model.network.parameters(), one.model.parameters(), strict=True):
        assert ours.equal(theirs)
    assert not both.model.others[0].embed_tokens.weight.equal(one.model.embed_tokens.weight)
    clipped = fit(parts, replace(ensemble(recipe), clip=0.5), device="cpu", verbose=False)
    assert np.isfinite(clipped.log[-1]["loss"])


def test_probabilities_of_an_ensemble_are_the_mean(pair):
    some = pair.history(pair.users[:9].tolist())
    each = torch.stack([network.scores(some).softmax(1) for network in pair.model.networks])
    assert torch.allclose(pair.model.scores(some).exp(), each.mean(0), atol=1e-6)


def test_an_ensemble_broken_off_goes_on(parts, pair, tmp_path, monkeypatch):
    step = Trainer.step

    def breaks(trainer, rows):
        if trainer.progress.step == 7:
            raise InterruptedError
        step(trainer, rows)

    monkeypatch.setattr(Trainer, "step", breaks)
    with pytest.raises(InterruptedError):
        fit(parts, ensemble(RECIPE), tmp_path / "run", device="cpu", verbose=False)
    monkeypatch.setattr(Trainer, "step", step)
    rec = fit(parts, ensemble(RECIPE), tmp_path / "run", device="cpu", verbose=False)
    some = pair.history(pair.users[:9].tolist())
    assert without_seconds(rec) == without_seconds(pair) and rec.scores(some).equal(pair.scores(some))


def test_text_beside_tokens_is_saved_and_opened(parts, tmp_path):
    beside = replace(RECIPE.model, width=64)
    fused = fit(parts, replace(ensemble(hierarchy(READER), 1, beside), epochs=1), tmp_path / "run", device="cpu", verbose=False)
    again, some = load(tmp_path / "run", device="cpu"), fused.history(fused.users[:9].tolist())
    assert again.scores(some).equal(fused.scores(some)) and again.model.config == fused.model.config
    with pytest.raises(ValueError, match="ItemLM knows items by their tokens only"):
        fused.add_items(pd.DataFrame({"title": ["cup 99"]}, index=["new"]))
    with pytest.raises(ValueError, match="16 and 64 wide"):
        replace(ensemble(hierarchy(READER), 1, RECIPE.model).model, n_items=40).build()


def test_members_have_a_name_in_a_job():
    asked = {"model.network.members": "3", "model.network.network.width": "32", "model.time_prior": "0.5"}
    recipe = recipe_of(TrainParameters(model="item_lm_full", settings=", ".join(f"{k}={v}" for k, v in asked.items())))
    assert (recipe.model.network.members, recipe.model.network.network.width, recipe.model.time_prior) == (3, 32, 0.5)
    assert recipe_of(TrainParameters(model="item_lm_full")).model.time_prior is None
    assert recipe_of(TrainParameters(model="hierarchy_full", preset="tiny")).model.network.beside.width == 16
    both = recipe_of(TrainParameters(model="item_lm_sasrec_full", settings="model.width=32, model.kv_heads=1")).model.network
    assert (both.network.width, both.beside.width, both.network.kv_heads) == (32, 32, 1)
    only = recipe_of(TrainParameters(model="item_lm_sasrec_full", settings="model.network.beside.dropout=0.2")).model.network
    assert (only.network.dropout, only.beside.dropout) == (0.4, 0.2)


@pytest.fixture(scope="module")
def fashions():
    "Eight seasons two years apart, each with items of its own, which everybody comes to after four that are always there."
    rng, rows = np.random.default_rng(1), []
    for user in range(240):
        season = int(rng.integers(8))
        for place in range(6 if user % 2 else 9):
            item = f"season{season}-{rng.integers(4)}" if place > 3 else f"always-{rng.integers(30)}"
            rows.append((user, item, 1_300_000_000 + 24 * season * MONTH + place * 3600))
    return split(read_events(pd.DataFrame(rows, columns=["user", "item", "time"]), name="fashions", verbose=False))


@pytest.fixture(scope="module")
def timed(fashions):
    return fit(fashions, with_neighbours(RECIPE, time_prior=None), device="cpu", verbose=False)


def test_the_time_prior_is_what_a_loop_counts(fashions, timed):
    prior, times, n = TimePrior(), fashions.events.times, timed.n_items
    prior.setup(fashions, timed.tokenizer)
    near, usual, whole, asked = np.zeros(n), np.zeros(n), 0.0, int(times[700])
    for user, raw in zip(fashions.train_users, timed.tokenizer.encode_codes(fashions.train, fashions.events.items.index)):
        row = list(fashions.events.users).index(user)
        for token, when in zip(raw, times[fashions.events.sequences.offsets[row] :]):
            weight = np.exp(-abs(int(when) // MONTH - asked // MONTH) / REACH)
            near[token - 8], usual[token - 8], whole = near[token - 8] + weight, usual[token - 8] + 1, whole + weight
    expected = np.log((near * usual.sum() / whole + USUAL) / (usual + USUAL))
    assert prior.log_ratio(np.array([asked]), n)[0].numpy() == pytest.approx(expected, abs=1e-5)


def test_what_was_in_fashion_then_is_recommended(fashions, timed):
    assert timed.model.config.time_prior in POWERS[1:]
    without = fit(fashions, with_neighbours(RECIPE), device="cpu", verbose=False)
    reached = {name: evaluate(rec, fashions).metric("ndcg@10")["mean"] for name, rec in {"with": timed, "without": without}.items()}
    assert reached["with"] > reached["without"]


def test_the_time_of_the_hidden_item_has_no_say(fashions, timed):
    "Only what the history shows dates a question: a test item bought years later changes nothing."
    late, ends = fashions.events.times.copy(), fashions.events.sequences.offsets[1:] - 1
    late[ends] += 900 * MONTH // 30
    moved = replace(fashions, events=replace(fashions.events, times=late))
    (ours, _), (theirs, _) = (timed.part_columns(parts, parts.test) for parts in (fashions, moved))
    assert (ours.latest == theirs.latest).all() and timed.scores(ours).equal(timed.scores(theirs))


def test_no_times_no_prior(parts, fashions, timed):
    rng = np.random.default_rng(0)
    bare = pd.DataFrame({"user": np.repeat(np.arange(60), 5), "item": rng.integers(0, 20, 300)})
    rec = fit(split(read_events(bare, name="bare", verbose=False)), with_neighbours(RECIPE, time_prior=None), device="cpu", verbose=False)
    assert rec.model.config.time_prior == 0 and len(rec.recommend(users=[rec.users[0]], k=3)) == 3
    some = timed.history(timed.users[:5].tolist())
    forgotten = replace(some, latest=None)
    assert not timed.scores(some).equal(timed.scores(forgotten)) and torch.isfinite(timed.scores(forgotten)).all()
    shares = timed.model.shares(some)
    assert torch.allclose(shares["network"] + shares["neighbours"], torch.ones(()))


def test_the_time_prior_is_saved_and_known_users_are_dated(timed, tmp_path):
    timed.save(tmp_path / "run")
    again, users = load(tmp_path / "run", device="cpu"), timed.users[:5].tolist()
    assert again.recommend(users=users, k=5).equals(timed.recommend(users=users, k=5))
    assert again.scores(again.history(users)).equal(timed.scores(timed.history(users)))


def test_explanations_and_the_explorer_ask_when(fashions, timed):
    "What is shown of a user is what evaluation and `recommend` say of that user: the time prior has its say everywhere."
    held = held_out(timed, fashions)
    truth = timed.scores(held.histories)
    for row in range(5):
        when, history = newest_time(timed, held, row), known_history(timed, held, row)
        best = truth[row].clone()
        best[held.histories[row].astype(int) - 8] = -torch.inf
        shown = recommend_one(timed, held.histories[row], k=5, latest=when)
        assert shown.columns.tolist() == best.topk(5).indices.tolist()
        why = because(timed, history, k=5, latest=when)
        assert why.item.tolist() == timed.tokenizer.items[shown.columns].tolist() and why.score.to_numpy() == pytest.approx(
            shown.scores, abs=1e-4
        )
        moved = what_if(timed, history, history[:1], k=5, latest=when).sort_values("rank_before")
        assert moved.score_before.iloc[0] == pytest.approx(shown.scores[0], abs=1e-4)
        last = trace(timed, history, k=5, last=1, times=known_times(timed, held, row))
        assert last[last.step == len(history)].item.tolist() == why.item.tolist()
        assert page_text(why.title[0]) in user_sheet(timed, held, row).text
    undated = because(timed, history, k=5)
    assert not np.allclose(undated.score, why.score)
    with pytest.raises(ValueError, match="2 times for a history of"):
        trace(timed, history, times=np.array([1, 2]))


def test_neighbours_that_look_further_back_are_explained(parts):
    "An item that only neighbours still read can be what a recommendation owes most to."
    short = replace(RECIPE, model=replace(RECIPE.model, max_len=2))
    rec = fit(parts, with_neighbours(short, weight=0.9, max_len=8, decay=1.0), device="cpu", verbose=False)
    history = [str(n) for n in (3, 9, 15, 21, 27)]
    lost = effects(rec, history, k=10)
    assert (lost.iloc[:3].abs().to_numpy() > 0).any() and rec.window(history)[1].tolist() == [0, 1, 2, 3, 4]
    assert items_read(rec, history, rec.model.config.max_len) == history[-2:]
    assert attention_weights(rec, history).shape[-1] == 2
