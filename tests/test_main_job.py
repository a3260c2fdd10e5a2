"""The main job, as a person starts it: papermill over nbs/train.ipynb, on real data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

GIVEN = filter(None, os.environ.get("ITEMLM_DATA", "").split(os.pathsep))
DATA = [*map(Path, GIVEN), ROOT / "data", ROOT / "../shared/data"]
BEAUTY = [folder / name for folder in DATA for name in ("beauty", "amazon-beauty")]


def train(out: Path, **parameters) -> subprocess.CompletedProcess:
    "Run the notebook from the root; its output notebook is `out`.ipynb, its run folder `out`."
    given = [word for k, v in {"out_dir": out, **parameters}.items() for word in ("-p", k, str(v))]
    papermill = Path(sys.executable).with_name("papermill")
    return subprocess.run([papermill, "nbs/train.ipynb", f"{out}.ipynb", "--no-progress-bar", *given],
                          cwd=ROOT, capture_output=True, text=True)


def last_line(job: subprocess.CompletedProcess) -> str:
    return job.stderr.strip().splitlines()[-1]


def metric(out: Path, name: str, part: str = "test", seen: str = "drop") -> dict:
    results = json.loads((out / "metrics.json").read_text())["results"]
    return next(r["metrics"][name] for r in results if r["part"] == part and r["protocol"]["seen"] == seen)


def test_help():
    "papermill shows every parameter with its type, default and meaning."
    papermill = Path(sys.executable).with_name("papermill")
    shown = subprocess.run([papermill, "--help-notebook", "nbs/train.ipynb"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in ("dataset: str", "model: str", "preset: str", "protocol: str", "seed: int", "epochs: int", "max_minutes: float",
                 "device: str", "out_dir: str"):
        assert name in shown


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    "The whole default run on the data set that ships."
    out = tmp_path_factory.mktemp("runs") / "small"
    job = train(out)
    assert not job.returncode, job.stderr[-4000:]
    return out


def test_run_folder(small):
    assert {p.name for p in small.iterdir()} >= {
        "run.json", "metrics.json", "per_user.parquet", "log.jsonl", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "items.parquet"}
    assert not [p for p in small.rglob("*") if p.suffix in (".pkl", ".pt", ".pth", ".bin")]


def test_metrics(small):
    metrics = json.loads((small / "metrics.json").read_text())
    assert {"name", "fingerprint", "users", "items", "interactions"} <= set(metrics["data"])
    assert metrics["data"]["name"] == "ml-latest-small" and metrics["data"]["users"] == 671
    assert {"seed", "params", "seconds"} <= set(metrics)
    for result in metrics["results"]:
        assert result["part"] in ("valid", "test")
        assert {"split", "seen", "candidates", "ties"} <= set(result["protocol"])
        for name in ("ndcg@5", "ndcg@10", "ndcg@20", "recall@5", "recall@10", "recall@20", "mrr"):
            value = result["metrics"][name]
            assert 0 <= value["lo"] <= value["mean"] <= value["hi"] <= 1
        assert 0 < result["metrics"]["coverage@10"]["mean"] <= 1
    assert {r["protocol"]["seen"] for r in metrics["results"] if r["part"] == "test"} == {"drop", "keep"}


def test_per_user_ranks(small):
    users = pd.read_parquet(small / "per_user.parquet")
    assert {"user", "part", "protocol", "rank"} <= set(users.columns)
    assert users[users.part == "test"].user.nunique() == 671


def test_log_has_a_line_an_epoch(small):
    epochs = [json.loads(line) for line in (small / "log.jsonl").read_text().splitlines()]
    assert epochs and all("ndcg@10" in json.dumps(e) for e in epochs)


def test_beats_popularity(small):
    "The lower end of the interval is above the value of recommending what is popular."
    from itemlm import evaluate, fit_popularity, load_dataset, split

    parts = split(load_dataset("ml-latest-small"))
    assert metric(small, "ndcg@10")["lo"] > evaluate(fit_popularity(parts), parts).metric("ndcg@10")["mean"]


def test_report_is_small_and_whole(small):
    report = small.with_suffix(".ipynb")
    assert report.stat().st_size < 2e6
    cells = json.loads(report.read_text())["cells"]
    assert not [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]


def test_same_run_again(small):
    "A finished run is not trained again, and reports the same numbers."
    before, weights = json.loads((small / "metrics.json").read_text()), (small / "model.safetensors").read_bytes()
    job = train(small)
    assert not job.returncode, job.stderr[-4000:]
    assert json.loads((small / "metrics.json").read_text())["results"] == before["results"]
    assert (small / "model.safetensors").read_bytes() == weights


def test_other_parameters_in_a_run_folder(small):
    before = (small / "metrics.json").read_bytes()
    job = train(small, seed=12345)
    assert job.returncode and "seed" in last_line(job)
    assert (small / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("name, value, names", [
    ("dataset", "no-such-set", ["no-such-set", "ml-latest-small", "beauty"]),
    ("preset", "gigantic", ["gigantic", "small", "dense", "tiny"]),
    ("protocol", "by_moonlight", ["by_moonlight", "leave_one_out", "global_time"]),
    ("epochs", "many", ["epochs", "many"]),
    ("epoch", 3, ["epoch", "epochs"]),
])
def test_unknown_parameter(tmp_path, name, value, names):
    "One clear line that names the valid ones; nothing is written."
    job = train(tmp_path / "run", **{name: value})
    assert job.returncode
    assert all(n in last_line(job) for n in names), last_line(job)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not any(f.exists() for f in BEAUTY), reason="Beauty is not on this machine")
def test_beauty_for_a_minute(tmp_path):
    "An int where a float is asked; the clock ends training, and the run still reports."
    job = train(tmp_path / "beauty", dataset="beauty", max_minutes=1)
    assert not job.returncode, job.stderr[-4000:]
    data = json.loads((tmp_path / "beauty/metrics.json").read_text())["data"]
    assert (data["users"], data["items"], data["interactions"]) == (22363, 12101, 198502)
    assert metric(tmp_path / "beauty", "ndcg@10")["mean"] > .01
