"Nothing is lost, and nothing wrong passes for right: flipped bits, borrowed files, deleted ones, foreign folders, other orders, leaks."

import errno
import json
import os
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import restamp

from itemlm.data.events import read_events
from itemlm.data.split import split
from itemlm.evaluation.compare import compare
from itemlm.evaluation.report import evaluate, read_report, trained_targets
from itemlm.models.counting import item_knn, popularity
from itemlm.models.item_lm import tiny
from itemlm.runs.folder import claim_run, read_record
from itemlm.runs.ledger import list_runs, read_run
from itemlm.serving.recommender import load
from itemlm.training.trainer import Trainer, fit


def table(users: int = 60, items: int = 30, seed: int = 0) -> pd.DataFrame:
    "Users who walk through the items in steps of one, two or seven."
    rng, rows = np.random.default_rng(seed), []
    for user in range(users):
        item, time = int(rng.integers(items)), int(1.4e9 + rng.integers(1e7))
        for _ in range(int(rng.integers(5, 20))):
            rows.append((f"u{user}", f"i{item}", time))
            item, time = (item + int(rng.choice([1, 2, 7]))) % items, time + int(rng.integers(1, 1e5))
    return pd.DataFrame(rows, columns=["user", "item", "time"])


def read(data: pd.DataFrame, **more):
    return read_events(data, name="walks", verbose=False, **more)


def train(parts, config=None, **more):
    return fit(parts, config or tiny(epochs=1), verbose=False, device="cpu", **more)


@pytest.fixture(scope="module")
def parts():
    return split(read(table()))


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
    "A run `a` with its report, the same `b` of another seed, and two that were stopped; never changed by a test."
    folder = tmp_path_factory.mktemp("damage")
    for name, seed in (("a", 0), ("b", 1)):
        evaluate(train(parts, tiny(epochs=2, seed=seed), out_dir=folder / name), parts).save(folder / name)
    for name, seed in (("stopped", 0), ("stopped too", 1)):
        train(parts, tiny(epochs=3, batch=8, seed=seed), out_dir=folder / name, max_minutes=1e-9)
    return folder


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs")


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def flip(path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0x15
    path.write_bytes(data)


# ---- one flipped bit, one borrowed file

REPORT = ("metrics.json", "per_user.parquet")
OPENED = ("histories.parquet", "items.parquet", "log.jsonl", "model.safetensors", "run.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("name", [*OPENED, *REPORT])
def test_a_flipped_bit_is_noticed(runs, name, place):
    flip(runs / "a" / name, place)
    with pytest.raises(ValueError, match=name) as caught:
        (read_report if name in REPORT else load)(runs / "a")
    assert len(str(caught.value).splitlines()) == 1
    found = list_runs(runs).set_index("run")
    assert found.state["a"] in ("damaged", "another format", "no run") and not found.usable["a"] and np.isnan(found["ndcg@10"]["a"])
    assert found.state["b"] == "finished" and found["ndcg@10"]["b"] > 0
    with pytest.raises(ValueError):
        compare([runs / "a", runs / "b"])


@pytest.mark.parametrize("name", [*OPENED, *REPORT])
def test_a_file_of_another_run_is_noticed(runs, name):
    if (runs / "a" / name).read_bytes() == (runs / "b" / name).read_bytes():
        pytest.skip("both runs hold the same")
    shutil.copy(runs / "b" / name, runs / "a" / name)
    with pytest.raises(ValueError):
        (read_report if name in REPORT else load)(runs / "a")
    assert read_run(runs / "a").state == list_runs(runs).set_index("run").state["a"] == "damaged"


def test_a_resume_state_of_another_run(parts, runs):
    state = runs / "stopped/resume.safetensors"
    shutil.copy(runs / "stopped too/resume.safetensors", state)
    for _ in range(2):
        with pytest.raises(ValueError, match="resume.safetensors is damaged or of another run.*delete it, and the run starts anew"):
            train(parts, tiny(epochs=3, batch=8), out_dir=runs / "stopped")
    assert read_run(runs / "stopped").state == "damaged"
    state.unlink()  # as told
    assert "starts it anew" in read_run(runs / "stopped").reason
    rec = train(parts, tiny(epochs=3, batch=8), out_dir=runs / "stopped")
    whole = train(parts, tiny(epochs=3, batch=8))
    assert [row["epoch"] for row in rec.log] == [1, 2, 3] and read_run(runs / "stopped").state == "finished"
    for ours, theirs in zip(rec.model.parameters(), whole.model.parameters()):
        assert torch.equal(ours, theirs)


def test_a_flipped_bit_in_a_resume_state(parts, runs):
    flip(runs / "stopped/resume.safetensors", 0.8)
    with pytest.raises(ValueError, match="resume.safetensors is damaged"):
        train(parts, tiny(epochs=3, batch=8), out_dir=runs / "stopped")


def test_finished_is_what_the_record_says(runs):
    "A file more or less does not make a run finished."
    (runs / "stopped/resume.safetensors").unlink()
    assert read_run(runs / "stopped").state == "in training"
    shutil.copy(runs / "stopped too/resume.safetensors", runs / "a")
    assert read_run(runs / "a").state == "finished"


def test_large_files_are_told_by_their_heads_in_a_list(runs, monkeypatch):
    monkeypatch.setattr("itemlm.runs.ledger._WHOLE", 0)
    shutil.copy(runs / "b/model.safetensors", runs / "a")
    assert "weights of another run" in list_runs(runs).set_index("run").reason["a"]


# ---- figures and their weights


def test_figures_of_other_weights_are_refused(parts, runs):
    "Where they are saved, and where they lie."
    before = contents(runs / "a")
    with pytest.raises(
        FileExistsError, match="this report was measured on other weights than the run has; save it in the folder of its own"
    ):
        evaluate(load(runs / "b", "cpu"), parts).save(runs / "a")
    assert contents(runs / "a") == before
    for name in REPORT:
        shutil.copy(runs / "b" / name, runs / "a")
    restamp(runs / "a")  # as if they had been written there
    with pytest.raises(ValueError, match="measured on other weights"):
        read_report(runs / "a")
    assert "other weights" in read_run(runs / "a").reason and not read_run(runs / "a").report
    assert np.isnan(list_runs(runs).set_index("run")["ndcg@10"]["a"])
    with pytest.raises(ValueError, match="other weights"):
        compare([runs / "a", runs / "b"])


def test_figures_of_other_data_are_refused(runs):
    other = split(read(table(seed=3)))
    with pytest.raises(FileExistsError, match="measured on other data"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # its users have the same ids, but nothing of it was trained on
            evaluate(load(runs / "a", "cpu"), other).save(runs / "a")


@pytest.mark.parametrize("which", ["metrics.json", "per_user.parquet"])
def test_a_report_by_itself_is_of_one_evaluation(parts, made, tmp_path, which):
    for name in ("a", "b"):
        evaluate(load(made / name, "cpu"), parts).save(tmp_path / name)
    shutil.copy(tmp_path / "b" / which, tmp_path / "a")
    with pytest.raises(ValueError, match="are of two reports"):
        read_report(tmp_path / "a")


def test_a_disk_that_fills_up_between_two_moves(parts, runs, monkeypatch):
    "The new report is whole, wherever it lies, and is moved the next time."
    rec, real = load(runs / "a", "cpu"), os.replace

    def full(source, target):
        if str(target).endswith("metrics.json") and ".tmp." not in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    report = evaluate(rec, parts, ks=(3,))
    with pytest.warns(UserWarning, match="everything is saved, but some of it still lies in .saving"):
        report.save(runs / "a")
    monkeypatch.undo()
    for _ in range(2):
        found = read_report(runs / "a")
        assert found.results == report.results and found.user_values("ndcg@3").mean() == pytest.approx(found.metric("ndcg@3")["mean"])
        assert read_run(runs / "a").state == "finished" and load(runs / "a")
        rec.save(runs / "a")
    assert not (runs / "a/.saving").exists()


# ---- folders


def test_nothing_that_a_run_did_not_write_is_touched(parts, made, tmp_path):
    (tmp_path / "home/.saving").mkdir(parents=True)
    for name in ("notes.txt", ".letter.tmp.odt", ".write-test", ".saving/run.json", ".4194305.tmp.saving.odt", "items.parquet"):
        (tmp_path / "home" / name).write_text("mine")
    before = contents(tmp_path / "home")
    with pytest.raises(FileExistsError, match="holds other files .* and is no run"):
        train(parts, out_dir=tmp_path / "home")
    with pytest.raises(FileExistsError, match="holds other files of these names .items.parquet. and is no run"):
        load(made / "a").save(tmp_path / "home", overwrite=True)
    assert contents(tmp_path / "home") == before and not (tmp_path / "home/.lock").exists()


def test_a_run_json_of_somebody_else(parts, tmp_path):
    (tmp_path / "run.json").write_text('{"name": "experiment"}')
    with pytest.raises(FileExistsError, match="run.json. and is no run"):
        train(parts, out_dir=tmp_path)
    assert contents(tmp_path) == {"run.json": b'{"name": "experiment"}'}


def test_foreign_files_in_a_run_stay(parts, runs):
    for name in (".letter.tmp.odt", "notes.txt", "map.npz"):
        (runs / "stopped" / name).write_text("mine")
    train(parts, tiny(epochs=3, batch=8), out_dir=runs / "stopped")
    assert all((runs / "stopped" / name).read_text() == "mine" for name in (".letter.tmp.odt", "notes.txt", "map.npz"))


def test_a_folder_that_goes_while_its_run_is_trained(parts, tmp_path, monkeypatch):
    folder, validate = tmp_path / "run", Trainer.validate

    def gone(self):
        validate(self)
        if self.epoch == 2:
            shutil.rmtree(folder)

    monkeypatch.setattr(Trainer, "validate", gone)
    with pytest.raises(FileNotFoundError, match="was deleted or moved while it was being trained"):
        train(parts, tiny(epochs=3), out_dir=folder)
    assert not folder.exists()
    monkeypatch.undo()
    assert len(train(parts, tiny(epochs=3), out_dir=folder).log) == 3


def test_home_is_where_the_tilde_points(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rec = train(parts, out_dir="~/run")
    rec.save("~/saved")
    evaluate(rec, parts).save("~/run")
    assert load("~/saved").n_items == load("~/run").n_items and read_report("~/run").results and read_run("~/run").state == "finished"
    assert set(list_runs("~").run) == {"run", "saved"}
    evaluate(rec, parts).save("~/saved")
    assert set(compare(["~/run", "~/saved"]).names) == {"run", "saved"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
    with pytest.raises(ValueError, match="no such user"):
        rec.save("~nobody-of-that-name/run")


# ---- one run, one order


def test_the_same_rows_in_another_order_are_another_run(parts, runs):
    "Its vectors are of other items."
    turned = turned_around(parts)
    assert turned.events.fingerprint == parts.events.fingerprint
    with pytest.raises(FileExistsError, match="the same interactions in another order of users or items .order and vocabulary differ"):
        train(turned, tiny(epochs=3, batch=8), out_dir=runs / "stopped")


def turned_around(parts):
    "The same events, users from last to first."
    events = parts.events
    rows = np.arange(events.n_users)[::-1]
    times = np.concatenate([events.times[events.sequences.offsets[row] : events.sequences.offsets[row + 1]] for row in rows])
    return split(replace(events, users=events.users[rows], sequences=events.sequences.take(rows), times=times))


# ---- before the first step

TITLES = [f"T{n}" for n in range(30)]
TABLES = {
    "two kinds of values": (
        dict(price=[1, "2.5"] * 15),
        "column 'price' of the item table holds int .15. and str .15., which no file can keep",
    ),
    "texts and numbers": (
        dict(brand=["x", 1.5] * 15),
        "column 'brand' of the item table holds str .15. and float .15., which no file can keep",
    ),
}


@pytest.mark.parametrize("what", TABLES)
def test_what_stops_a_save_is_met_before_training(parts, tmp_path, monkeypatch, what):
    more, message = TABLES[what]
    items = parts.events.items.assign(**{name: pd.Series(values, parts.events.items.index, dtype=object) for name, values in more.items()})
    odd = split(replace(parts.events, items=items))
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained"))
    for out_dir in (None, tmp_path / "run"):
        with pytest.raises(ValueError, match=message):
            train(odd, out_dir=out_dir)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_too_small(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained"))
    with pytest.raises(OSError, match="0 MB are free and the run will take about"):
        train(parts, out_dir=tmp_path / "run")


# ---- trained on what is asked


SPLITS = {"another n": (dict(how="last_n", n=1), dict(how="last_n", n=3))}
SPLITS |= {"other cuts": (dict(how="global_time", cuts=(0.9, 0.95)), dict(how="global_time", cuts=(0.5, 0.6)))}
SPLITS |= {"another split": (dict(how="global_time", cuts=(0.9, 0.95)), dict(how="leave_one_out"))}


@pytest.mark.parametrize("what", SPLITS)
def test_targets_that_were_trained_on_are_counted(what, tmp_path):
    events, (first, second) = read(table(users=200)), SPLITS[what]
    theirs, ours = split(events, **first), split(events, **second)
    train(theirs, item_knn()).save(tmp_path / "run")
    rec, honest = load(tmp_path / "run"), train(ours, item_knn())
    with pytest.warns(UserWarning, match="of .* test targets .* are interactions that the model was trained on"):
        leaky = evaluate(rec, ours)
    counted = leaky.row()["protocol"]["targets_trained_on"]
    learnt = {(user, item, n) for user, row in zip(theirs.train_users, theirs.train) for n, item in enumerate(row)}
    place = dict(zip(ours.test.users, ours.test.histories.lengths)) if len(set(ours.test.users)) == len(ours.test) else None
    by_hand = sum(
        (user, item, len(history)) in learnt for user, item, history in zip(ours.test.users, ours.test.targets, ours.test.histories)
    )
    assert counted == by_hand > 0 and (place is None or len(place) == len(ours.test)) and f"⚠ {counted}" in repr(leaky)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fair = evaluate(honest, ours)
    assert fair.row()["protocol"]["targets_trained_on"] == 0
    with pytest.raises(ValueError, match=f"targets_trained_on: {counted}"):
        compare({"leaky": leaky, "fair": fair})


def test_another_filter_of_the_same_data(tmp_path):
    "Rows of items that few have taken are gone: other lengths, other item codes, the same interactions."
    data = table(users=200)
    rare = data.item.isin(["i3", "i4"])
    theirs, ours = split(read(data)), split(read(data[~rare]))
    found = trained_targets(train(theirs, popularity()), ours, ours.test)
    last = {user: rows.item.tolist()[:-2] for user, rows in data.groupby("user", sort=False)}
    kept = {user: rows.item.tolist() for user, rows in data[~rare].groupby("user", sort=False)}
    raw = ours.events.items.index
    by_hand = [last[user].count(raw[item]) > kept[user][:-1].count(raw[item]) for user, item in zip(ours.test.users, ours.test.targets)]
    assert found.tolist() == by_hand and 0 < found.sum() < len(found)


def test_an_item_taken_again_is_a_question(parts):
    events = read(pd.DataFrame({"user": list("aaaabbbb"), "item": list("xyzxxyyx"), "time": range(1, 9)}))
    again = split(events)
    assert not trained_targets(train(again, popularity()), again, again.test).any()
    assert not trained_targets(train(parts, popularity()), parts, parts.valid).any()


# ---- arguments


@pytest.mark.parametrize("wrong", [0, -1, 2.5, float("nan"), float("inf"), "10", True, None])
def test_counts_are_checked_where_they_come_in(made, parts, wrong):
    rec, history = load(made / "a", "cpu"), [["i1", "i2"]]
    asked = {
        "k": lambda: rec.topk(history, k=wrong),
        "k ": lambda: rec.recommend(items=history[0], k=wrong),
        "batch": lambda: rec.topk(history, batch=wrong),
        "ks": lambda: evaluate(rec, parts, ks=(5, wrong)),
        "list_length": lambda: evaluate(rec, parts, list_length=wrong),
        "epochs": lambda: tiny(epochs=wrong),
        "patience": lambda: tiny(patience=wrong),
    }
    for name, ask in asked.items():
        with pytest.raises(ValueError, match=f"{name.strip()}=.* must be a whole number of at least 1"):
            ask()


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), "0.1", None])
def test_numbers_are_checked_where_they_come_in(parts, wrong):
    for name in ("lr", "weight_decay", "warmup", "clip"):
        with pytest.raises(ValueError, match=f"{name}=.* must be a finite number"):
            tiny(**{name: wrong})
    with pytest.raises(ValueError, match="temperature=.* must be a finite number above 0"):
        replace(tiny().model, temperature=wrong)
    for seed in (-1, 1.5, float("nan"), 10**30, "0"):
        with pytest.raises(ValueError, match="seed=.* must be a whole number of at least 0"):
            tiny(seed=seed)
    if wrong is not None:
        with pytest.raises(ValueError, match="max_minutes=.* must be a finite number above 0"):
            train(parts, max_minutes=wrong)


def test_numbers_of_numpy_are_numbers(parts):
    config = tiny(epochs=np.int64(1), seed=np.int32(3), lr=np.float64(0.01), batch=64.0)
    assert json.loads(json.dumps(config.identity())) == tiny(epochs=1, seed=3, lr=0.01, batch=64).identity()


def test_users_are_known_by_text(tmp_path):
    data = table()
    numbers = data.assign(user=data.user.str[1:].astype(int))
    rec = train(split(read(numbers)), popularity())
    with pytest.raises(ValueError, match="user ids are text: 7 is not known, but '7' is"):
        rec.recommend(users=[7])
    assert len(rec.recommend(users=["7"], k=1000)) > 0


def test_the_record_of_a_claim_stays_whole(tmp_path):
    with claim_run(tmp_path / "run", {"fit": {"seed": 0}}, params={"dataset": "beauty"}) as folder:
        assert read_record(folder)["params"] == {"dataset": "beauty"}
    with claim_run(tmp_path / "run", {"fit": {"seed": 0}}):
        assert read_record(folder)["params"] == {"dataset": "beauty"}
