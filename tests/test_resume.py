"A run killed with SIGKILL and started again ends with the numbers of one that was never killed."

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

FIT = """
import resource, sys
if len(sys.argv) > 2:  # a full disk, as the operating system tells it
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
import numpy as np, pandas as pd, torch
from itemlm import *
from itemlm.training import trainer
torch.set_num_threads(1)
trainer.SAVE_EVERY = 0.05  # save inside epochs too
rng = np.random.default_rng(0)
log = pd.DataFrame({"user": rng.integers(0, 300, 6000).astype(str), "item": (rng.zipf(1.3, 6000) % 200).astype(str)})
fit(split(read_events(log, name="synthetic")), tiny(epochs=4, batch=8), out_dir=sys.argv[1])
"""


def start(folder: Path, *disk: str) -> subprocess.Popen:
    "A process that fits into `folder`, with room for files of so many bytes."
    command = [sys.executable, "-c", FIT, str(folder), *disk]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def results(folder: Path) -> tuple[list, dict]:
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in log], load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert start(folder).wait() == 0
    return results(folder)


def kill_when(process: subprocess.Popen, ready) -> None:
    "SIGKILL as soon as `ready()`; fails if the process ends before."
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


MOMENTS = {
    "before the first save": lambda run, _: (run / "run.json").exists(),
    "inside an epoch": lambda run, _: (run / "resume.safetensors").exists(),
    "while a file is being written": lambda run, _: any(run.glob(".*.tmp.*")),
    "after an epoch": lambda run, rows: rows(run) >= 1,
    "late": lambda run, rows: rows(run) >= 3,
}


def rows(run: Path) -> int:
    return len((run / "log.jsonl").read_text().splitlines()) if (run / "log.jsonl").exists() else 0


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again(moment, tmp_path, unbroken):
    folder = tmp_path / "run"
    kill_when(start(folder), lambda: MOMENTS[moment](folder, rows))
    assert start(folder).wait() == 0
    log, weights = results(folder)
    assert log == unbroken[0]
    assert all(weights[name].equal(w) for name, w in unbroken[1].items()) and weights.keys() == unbroken[1].keys()
    assert not (folder / "resume.safetensors").exists()
    assert not list(folder.glob(".*.tmp.*")), "a killed writer's leftovers are cleaned up"


def test_killed_again_and_again(tmp_path, unbroken):
    folder = tmp_path / "run"
    for n in (1, 2, 3):
        kill_when(start(folder), lambda: rows(folder) >= n)
    assert start(folder).wait() == 0
    assert results(folder)[0] == unbroken[0]


def as_read(folder: Path) -> dict[str, bytes]:
    "What a reader finds; what is still in its stage, if the kill came between two moves, instead of what it replaces."
    places = (place for place in (folder, folder / ".saving") if place.is_dir())
    files = (path for place in places for path in place.iterdir() if path.is_file() and ".tmp." not in path.name)
    return {path.name: path.read_bytes() for path in files if path.name != ".itemlm"}


def test_full_disk(tmp_path, unbroken):
    folder = tmp_path / "run"
    kill_when(start(folder), lambda: rows(folder) >= 1)
    before = as_read(folder)
    full = start(folder, "20000")
    assert full.wait() == 1
    last = full.stderr.read().strip().splitlines()[-1]
    assert last.startswith("OSError") and "cannot write" in last and "resume.safetensors" in last, last
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert start(folder).wait() == 0
    assert results(folder)[0] == unbroken[0]


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_folder_that_cannot_be_made(place, tmp_path):
    (tmp_path / "file").write_text("in the way")
    process = start(tmp_path / place)
    assert process.wait() == 1
    last = process.stderr.read().strip().splitlines()[-1]
    assert "cannot write the run to" in last and "choose another out_dir" in last, last
    assert (tmp_path / "file").read_text() == "in the way"
