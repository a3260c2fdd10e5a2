"Two processes train as one would, a killed one ends the job with a line, and a table cut by rows scores, learns and ranks as a whole one."

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from itemlm import fit, load, read_events, split, tiny
from itemlm.core import Ragged
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.report import evaluate, read_report
from itemlm.models.losses import full_softmax, gbce
from itemlm.models.neural import sasrec
from itemlm.models.presets import MODELS, preset
from itemlm.models.text.encoders import ItemLLMConfig
from itemlm.models.text.rows import hierarchy
from itemlm.serving.recommender import Recommender
from itemlm.serving.topk import top_lists
from itemlm.training.parallel import process_group, this_world
from itemlm.training.schedule import make_optimizer
from itemlm.training.sharding import (
    fully_sharded,
    gathered_state,
    own_items,
    sharded_model,
    sharded_softmax,
    sharded_top_lists,
)
from itemlm.training.trainer import initial_model, sized, train_step

SMALL = dict(epochs=2, batch=13, bucket=True, lr=5e-3)  # the last batch of an epoch is one sequence: a process has none
STEPS, K = 6, 7


def some_parts(seed: int = 0):
    "40 users, 30 items with titles; histories of 4 to 23."
    rng = np.random.default_rng(seed)
    many = rng.integers(4, 24, 40)
    log = pd.DataFrame(
        {"user": np.repeat(np.arange(40), many), "item": rng.integers(0, 30, many.sum()), "time": np.arange(1, many.sum() + 1)}
    )
    titles = pd.DataFrame({"item": np.arange(30), "title": [f"{'red blue green'.split()[n % 3]} lamp {n}" for n in range(30)]})
    return split(read_events(log, name="made-up", items=titles, duplicates="keep", verbose=False))


def recipes() -> dict:
    "Without dropout, so that two processes can do what one does."
    still = dict(dropout=0.0, max_len=12)
    text = hierarchy(ItemLLMConfig(pretrained=False, keep=16))
    text = replace(text, model=replace(text.model, width=16, layers=1, hidden=24, text_dropout=0.0, word_dropout=0.0, words=50, **still))
    return {
        "item_lm": tiny(**still, clip=0.5, **SMALL),
        "sasrec": sasrec(width=16, layers=1, **still, **SMALL),
        "hierarchy": text.with_fields(**SMALL),
    }


def with_a_table() -> dict:
    "With dropout: all processes read the same batch, so that it may be the same in all."
    known = {name: preset(name, "tiny").with_fields(**SMALL) for name in ("item_lm", "gru4rec_ce", "hstu", "item_lm_knn", "item_lm_full")}
    return known | {"sasrec": recipes()["sasrec"]}


def sharded_config():
    return replace(tiny().model, n_items=31, dropout=0.0)  # an odd number: one process has an item more


def batches() -> list:
    "The same in every process."
    rng = np.random.default_rng(0)
    return [[torch.from_numpy(rng.integers(8, 39, (5, 9)))] for _ in range(STEPS)]


def questions() -> tuple[torch.Tensor, Ragged]:
    "Scores with many ties, and what was seen: nothing, all of one process, most of all."
    scores = torch.randint(0, 6, (4, 31), generator=torch.Generator().manual_seed(0)).float()
    return scores, Ragged.from_lists([[], list(range(16)), [-1, 3, 3, 30], list(range(28))])


def fsdp_steps(parts) -> dict:
    "Six steps of an ItemLM under FSDP2, each process with its share."
    recipe, world = recipes()["item_lm"], this_world()
    tokenizer = ItemTokenizer.from_split(parts)
    model = fully_sharded(initial_model(recipe, parts, tokenizer))
    optimizer = make_optimizer(model, recipe)
    for (tokens,) in batches():
        own, weight = world.share((tokens != 0).sum(1).numpy())
        train_step(model, optimizer, [tokens[own].clamp(max=tokenizer.vocab_size - 1)], recipe, weight=weight)
    return gathered_state(model)


def shared_beside_whole(parts) -> dict[str, float]:
    "Of every model that learns, dropout and all: how far shared weights end from those that each process has."
    apart = {}
    for name in MODELS:
        recipe = preset(name, "tiny").with_fields(epochs=1, batch=13)
        whole, shared = (fit(parts, recipe, device="cpu", shard=shard, verbose=False) for shard in ("", "weights"))
        if whole.model.learns:
            pairs = zip(whole.model.state_dict().values(), shared.model.state_dict().values(), strict=True)
            apart[name] = max(float((ours.float() - theirs.float()).abs().max()) for ours, theirs in pairs if ours.numel())
    return apart


def sharded_steps() -> dict:
    "Six steps of a model with a sharded table."
    model = sharded_model(sharded_config(), seed=3)
    start, optimizer = gathered_state(model), make_optimizer(model, tiny())
    losses = [train_step(model, optimizer, batch, replace(tiny(), loss=sharded_softmax(model))).item() for batch in batches()]
    ends = {f"end.{name}": weight for name, weight in gathered_state(model).items()}
    return {f"start.{name}": weight for name, weight in start.items()} | ends | {"losses": torch.tensor(losses)}


def as_one_of_two(out: Path) -> None:
    "What a process of the fixture does."
    parts = some_parts()
    for name, recipe in recipes().items():
        fit(parts, recipe, out / name, device="cpu")
        fit(parts, recipe, out / f"{name} weights", device="cpu", shard="weights")
    for name, recipe in with_a_table().items():
        fit(parts, recipe, out / f"{name} table", device="cpu", shard="table")
    fit(parts, recipes()["item_lm"], out / "refit", device="cpu", refit=True, shard="weights")
    for shard, minutes in (("weights", 1e-6), ("", 1e-6), ("table", 1e-6), ("weights", None)):  # a step, another, one more, and the rest
        fit(parts, with_a_table()["sasrec"], out / "halves", device="cpu", max_minutes=minutes, shard=shard)
    rank = this_world().rank
    (out / f"apart{rank}.json").write_text(json.dumps(shared_beside_whole(parts)))
    save_file(fsdp_steps(parts), out / f"fsdp{rank}.safetensors")
    save_file(sharded_steps(), out / f"sharded{rank}.safetensors")
    scores, seen = questions()
    first, stop = own_items(scores.shape[1], this_world())
    for rule, found in sharded_top_lists(scores[:, first:stop].contiguous(), K, seen, scores.shape[1]).items():
        np.savez(out / f"{rule}{rank}.npz", *found)
    np.save(out / f"dropout{rank}.npy", this_world().seed(0, 5))
    (out / f"refused{rank}.json").write_text(json.dumps(refused(out)))


def refused(out: Path) -> dict[str, str]:
    "What each process is told of a batch that is too small, and of data that the other does not have."
    parts, said = some_parts(), {}
    asked = {"batch": (parts, tiny(batch=1)), "data": (some_parts(this_world().rank), tiny())}
    cut = {"model": preset("bert4rec", "tiny"), "loss": tiny(loss=gbce()), "labels": tiny(neighbour_labels=0.2), "how": tiny()}
    for name, (data, recipe) in (asked | {name: (parts, recipe) for name, recipe in cut.items()}).items():
        try:
            fit(data, recipe, out / f"refused {name}", device="cpu", shard="rows" if name == "how" else "table" if name in cut else "")
        except ValueError as error:
            said[name] = str(error)
    return said


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    "What two processes leave behind."
    out = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(out)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert not done.returncode, done.stderr[-5000:]
    assert done.stdout.count("epoch     1/2") == 8 + len(with_a_table()), "one process speaks"
    return out


def same_run(recipe, folder: Path) -> None:
    "Weights, losses, and the ranks of the validation part; the run is one like any other."
    alone, together = fit(some_parts(), recipe, device="cpu", verbose=False), load(folder)
    for a, b in zip(alone.log, together.log, strict=True):
        assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["ndcg@10"] == pytest.approx(b["ndcg@10"])
    for (key, ours), theirs in zip(alone.model.state_dict().items(), together.model.state_dict().values(), strict=True):
        if not key.endswith("k_proj.bias"):  # attention does not depend on it: its gradient is rounding, which Adam makes a step of
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg=key)
    assert together.recipe == alone.recipe


@pytest.mark.parametrize("how", ["", " weights"])
@pytest.mark.parametrize("name", recipes())
def test_two_train_as_one(name, how, two):
    "Whether each has all weights or a part of all."
    same_run(recipes()[name], two / f"{name}{how}")


@pytest.mark.parametrize("name", with_a_table())
def test_two_with_a_part_of_the_table_train_as_one(name, two):
    same_run(with_a_table()[name], two / f"{name} table")


def test_every_model_shares_its_weights(two):
    "What is left of a difference are the biases of keys, whose gradients are rounding."
    for rank in range(2):
        apart = json.loads((two / f"apart{rank}.json").read_text())
        assert {"item_lm_sasrec_full", "gru4rec_ce", "bert4rec", "hstu", "item_plus_text", "text_beam"} <= set(apart)
        assert {name: value for name, value in apart.items() if value > 1e-4} == {}


def test_a_refit_of_shared_weights_is_that_of_whole_ones(two):
    alone, together = fit(some_parts(), recipes()["item_lm"], device="cpu", verbose=False, refit=True), load(two / "refit")
    assert together.data["training"] == "refit"
    for ours, theirs in zip(alone.model.state_dict().values(), together.model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_shared_weights_go_on_where_whole_ones_stopped(two):
    "And the other way round: what is saved is the same."
    alone, together = fit(some_parts(), with_a_table()["sasrec"], device="cpu", verbose=False), load(two / "halves")
    found = {row["step"]: row for row in together.log}
    assert sorted(found)[:3] == [1, 2, 3] and len(found) == 5
    for row in alone.log:
        assert found[row["step"]]["loss"] == pytest.approx(row["loss"], abs=1e-5)
        assert found[row["step"]]["ndcg@10"] == pytest.approx(row["ndcg@10"])


def test_fsdp_trains_as_one(two, tmp_path):
    "And what it gathers is a run that opens."
    parts, recipe = some_parts(), recipes()["item_lm"]
    tokenizer = ItemTokenizer.from_split(parts)
    model, found = initial_model(recipe, parts, tokenizer), load_file(two / "fsdp0.safetensors")
    optimizer = make_optimizer(model, recipe)
    for (tokens,) in batches():
        train_step(model, optimizer, [tokens.clamp(max=tokenizer.vocab_size - 1)], recipe)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, found[name], atol=1e-5, rtol=0)
    other = sized(recipe, tokenizer).model.build()
    other.load_state_dict(found)
    Recommender.from_split(other, tokenizer, parts).save(tmp_path / "run")
    assert load(tmp_path / "run").topk([["3"]], k=3)[0].shape == (1, 3)


def test_sharded_table_trains_as_a_whole_one(two):
    "From the same start: the loss of each step, and all weights at the end; both processes have the same."
    found, other = (load_file(two / f"sharded{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(found[name], other[name]) for name in found)
    of = lambda when: {name.removeprefix(f"{when}."): weight for name, weight in found.items() if name.startswith(f"{when}.")}
    model = sharded_config().build()
    model.load_state_dict(of("start"))
    rows = of("start")["embed_tokens.weight"][8:]
    assert not torch.equal(rows[:15], rows[16:]), "each process begins with rows of its own"
    optimizer = make_optimizer(model, tiny())
    losses = [train_step(model, optimizer, batch, tiny(loss=full_softmax())).item() for batch in batches()]
    assert losses == pytest.approx(found["losses"].tolist(), abs=1e-5)
    for name, weight in of("end").items():
        torch.testing.assert_close(model.state_dict()[name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["keep", "drop"])
def test_sharded_lists_are_the_whole_ones(rule, two):
    expected = top_lists(questions()[0], K, questions()[1])[rule]
    for rank in range(2):
        found = np.load(two / f"{rule}{rank}.npz")
        assert np.array_equal(found["arr_0"], expected[0]) and np.array_equal(found["arr_1"], expected[1])


def test_dropout_is_each_ones_own(two):
    assert np.load(two / "dropout0.npy") == 5 != np.load(two / "dropout1.npy")


def test_what_cannot_be_shared_is_refused_by_all(two):
    "And nothing is written."
    said = [json.loads((two / f"refused{rank}.json").read_text()) for rank in range(2)]
    assert said[0] == said[1] and said[0].keys() == {"batch", "data", "model", "loss", "labels", "how"}
    assert "batch=1" in said[0]["batch"] and "2 processes" in said[0]["batch"]
    assert "process 1 has other data or parameters than process 0" in said[0]["data"]
    assert "BERT4Rec has no plain table of items to cut; shard='weights' cuts any model" in said[0]["model"]
    assert "loss=BinaryCrossEntropy goes with shard='weights'" in said[0]["loss"]
    assert "shard='rows' is not one of weights, table" in said[0]["how"]
    assert "neighbour_labels=0.2 goes with shard='weights'" in said[0]["labels"]
    assert not list(two.glob("refused *"))


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are GPUs for two processes")
def test_a_process_without_a_gpu_is_refused(clicks, tmp_path):
    "As the first of two processes that torchrun starts on a machine."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    env = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"} | place
    done = subprocess.run(command(tmp_path / "run", clicks, "-p", "device", "cuda"), capture_output=True, text=True, env=env)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 1 and len(said) == 1 and "2 processes" in said[0] and "-p device cpu" in said[0], done.stderr
    assert not (tmp_path / "run").exists()


# --- the command -----------------------------------------------------------------------------------------------------


def command(folder: Path, data: Path, *more: str, processes: int = 2) -> list[str]:
    given = dict(dataset=data, k_core=1, preset="tiny", epochs=12, patience=12, batch=16, device="cpu", out_dir=folder, processes=processes)
    return [sys.executable, "-m", "itemlm.train", "--fit-only", *(w for k, v in given.items() for w in ("-p", k, str(v))), *more]


@pytest.fixture(scope="module")
def clicks(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    path.write_text(
        "user,item,time\n" + "".join(f"u{u},i{(u * u + t * (1 + u % 3)) % 40},{t + 1}\n" for u in range(150) for t in range(12))
    )
    return path


def rows(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def workers(starter: int) -> list[psutil.Process]:
    return [one for one in psutil.Process(starter).children(recursive=True) if "itemlm.train" in " ".join(one.cmdline())]


def test_a_killed_process_ends_the_job_and_another_number_goes_on(clicks, tmp_path):
    folder = tmp_path / "run"
    job = subprocess.Popen(command(folder, clicks), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(rows(folder)) < 2:
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.02)
    left = workers(job.pid)
    left[-1].send_signal(signal.SIGKILL)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 1
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("Events(", "note:"))]
    assert len(lines) == 1 and "a process of this job has ended" in lines[0] and "the same command goes on" in lines[0], said
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in left), "nobody is left waiting"
    known = rows(folder)
    done = subprocess.run(command(folder, clicks, processes=1), capture_output=True, text=True)
    assert not done.returncode and "going on from step" in done.stdout, done.stderr
    assert rows(folder)[: len(known)] == known and rows(folder)[-1]["epoch"] == 12
    assert load(folder).log == rows(folder)


def test_a_report_is_shared_and_is_that_of_one_process(clicks, tmp_path):
    "Lists, ranks and intervals; it is written once, and said once."
    asked = [word for word in command(tmp_path / "run", clicks, "-p", "epochs", "2") if word != "--fit-only"]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    said = [done.stdout.count(words) for words in (str(tmp_path / "run"), "test NDCG@10", "Events(")]
    assert said == [1, 1, 1], done.stdout
    written = read_report(tmp_path / "run")
    alone = evaluate(load(tmp_path / "run"), split(read_events(clicks, k_core=1, verbose=False)), ("valid", "test"))
    pd.testing.assert_frame_equal(written.per_user, alone.per_user)
    assert written.results == json.loads(json.dumps(alone.results))


if __name__ == "__main__":
    with process_group("cpu"):
        as_one_of_two(Path(sys.argv[1]))
