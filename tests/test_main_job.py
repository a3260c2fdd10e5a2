"""The main job, as a person starts it: papermill over nbs/train.ipynb, on real data."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pandas as pd
import papermill
import pytest
from conftest import ROOT

from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.evaluation.report import evaluate
from itemlm.jobs import TrainParameters, job_parameters, open_job
from itemlm.models.counting import popularity
from itemlm.runs.folder import read_record
from itemlm.study import StudyParameters
from itemlm.training.trainer import fit

GIVEN = filter(None, os.environ.get("ITEMLM_DATA", "").split(os.pathsep))
DATA = [*map(Path, GIVEN), ROOT / "data", ROOT / "../shared/data"]
BEAUTY = [folder / name for folder in DATA for name in ("beauty", "amazon-beauty")]


COMMAND = Path(sys.executable).with_name("papermill")


def train(out: Path, cwd: Path = ROOT, **parameters) -> subprocess.CompletedProcess:
    "Run the notebook from the root; its output notebook is `out`.ipynb, its run folder `out`."
    given = [word for k, v in {"out_dir": out, **parameters}.items() for word in ("-p", k, str(v))]
    command = [COMMAND, ROOT / "nbs/train.ipynb", f"{out}.ipynb", "--no-progress-bar", *given]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def last_line(job: subprocess.CompletedProcess) -> str:
    return job.stderr.strip().splitlines()[-1]


def metric(out: Path, name: str, part: str = "test", seen: str = "drop") -> dict:
    results = json.loads((out / "metrics.json").read_text())["results"]
    return next(r["metrics"][name] for r in results if r["part"] == part and r["protocol"]["seen"] == seen)


def test_help():
    "papermill shows every parameter with its type, default and meaning."
    shown = subprocess.run([COMMAND, "--help-notebook", "nbs/train.ipynb"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in (
        "dataset: str",
        "model: str",
        "preset: str",
        "protocol: str",
        "seed: int",
        "epochs: int",
        "max_minutes: float",
        "device: str",
        "out_dir: str",
        "init: str",
        "loss: str",
        "metrics: str",
        "precision: str",
    ):
        assert name in shown
    assert len(re.findall(r"\(default .*\)\s+\S", shown)) == len(fields(TrainParameters))  # each with its meaning


@pytest.mark.parametrize("notebook, declared", [("train", TrainParameters), ("compare", StudyParameters)])
def test_notebook_and_python_declare_the_same(notebook, declared):
    "Names, types and defaults, in one order; every one explained."
    cell = papermill.inspect_notebook(str(ROOT / f"nbs/{notebook}.ipynb"))
    told = [(name, known["inferred_type_name"], known["default"].strip('"')) for name, known in cell.items()]
    assert told == [(field.name, field.type.__name__, str(field.default)) for field in fields(declared)]
    assert all(known["help"] for known in cell.values())


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    "The whole default run on the data set that ships."
    out = tmp_path_factory.mktemp("runs") / "small"
    job = train(out)
    assert not job.returncode, job.stderr[-4000:]
    return out


def test_run_folder(small):
    assert {p.name for p in small.iterdir()} >= {
        "run.json",
        "metrics.json",
        "per_user.parquet",
        "log.jsonl",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "items.parquet",
    }
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
    parts = split(load_dataset("ml-latest-small"))
    popular = fit(parts, popularity(), device="cpu", verbose=False)
    assert metric(small, "ndcg@10")["lo"] > evaluate(popular, parts).metric("ndcg@10")["mean"]


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


@pytest.mark.parametrize(
    "name, value, names",
    [
        ("dataset", "no-such-set", ["no-such-set", "ml-latest-small", "beauty"]),
        ("preset", "gigantic", ["gigantic", "small", "long_history", "tiny"]),
        ("preset", "dense", ["dense", "long_history"]),
        ("model", "sasrek", ["sasrek", "sasrec_ce", "item_lm"]),
        ("init", "ones", ["ones", "ppmi", "random"]),
        ("loss", "gcbe", ["gcbe", "gbce", "full_softmax"]),
        ("metrics", "no_such_module:f", ["no_such_module"]),
        ("protocol", "by_moonlight", ["by_moonlight", "leave_one_out", "global_time"]),
        ("epochs", "many", ["epochs", "many"]),
        ("epoch", 3, ["epoch", "epochs"]),
        ("max_minutes", -1, ["max_minutes", "negative"]),
        ("split", "global_time", ["unknown parameter split", "protocol"]),  # names that stand for something in the notebook, or could
        ("time", "ts", ["unknown parameter time", "epochs"]),
        ("fit", 3, ["unknown parameter fit", "epochs"]),
        ("run", "runs/mine", ["unknown parameter run", "out_dir"]),
        ("training_job", 1, ["unknown parameter training_job", "epochs"]),
        ("globals", 1, ["unknown parameter globals", "epochs"]),
    ],
)
def test_unknown_parameter(tmp_path, name, value, names):
    "One clear line that names the valid ones; nothing is written."
    job = train(tmp_path / "run", **{name: value})
    assert job.returncode
    assert all(n in last_line(job) for n in names), last_line(job)
    assert not (tmp_path / "run").exists()


CSV = "user,item,time\n" + "".join(f"u{u},i{(u + t) % 12},{t}\n" for u in range(60) for t in range(6))
MINE = """
from dataclasses import replace
import torch.nn.functional as F
from itemlm.models.item_lm import tiny

def model(): return tiny(epochs=1, lr=5e-3)
def loss(states, table, columns): return F.cross_entropy(states @ table.T, columns)
def hit3(ranks): return (ranks.rank <= 3).astype(float)
"""


def test_own_model_loss_and_metric(tmp_path):
    "A module of the user's own beside the data, named on the command line."
    (tmp_path / "clicks.csv").write_text(CSV)
    (tmp_path / "mine.py").write_text(MINE)
    job = train(tmp_path / "run", tmp_path, dataset="clicks.csv", model="mine:model", loss="mine:loss", metrics="mine:hit3", max_minutes=5)
    assert not job.returncode, job.stderr[-4000:]
    assert 0 <= metric(tmp_path / "run", "hit3")["mean"] <= 1
    fitted = read_record(tmp_path / "run")["identity"]["fit"]
    assert (fitted["lr"], fitted["epochs"], fitted["loss"]["name"]) == (5e-3, 1, "mine:loss")


def test_start_loss_and_numbers_as_text(tmp_path):
    "init and loss reach the recipe; a data set and a folder may be called by a number."
    (tmp_path / "2024").write_text(CSV)
    job = train(tmp_path / "2025", tmp_path, dataset="2024", preset="tiny", epochs=1, init="random", loss="gbce", out_dir=2025)
    assert not job.returncode, job.stderr[-4000:]
    record = read_record(tmp_path / "2025")
    assert record["identity"]["fit"]["init"] == "random" and "BinaryCrossEntropy" in record["identity"]["fit"]["loss"]["name"]
    assert (record["params"]["init"], record["params"]["loss"], record["params"]["dataset"]) == ("random", "gbce", "2024")


def test_a_run_without_a_folder_finds_its_own(tmp_path):
    "The name says what the run is, and is made from the identity that fit writes."
    (tmp_path / "clicks.csv").write_text(CSV)
    asked = TrainParameters(dataset=str(tmp_path / "clicks.csv"), preset="tiny")
    job = open_job(asked, tmp_path / "runs")
    fit(job.parts, job.recipe, out_dir=job.folder, device="cpu", verbose=False)  # accepts what open_job wrote
    assert job.folder.name.startswith("clicks-item_lm-tiny-seed0-")
    same = TrainParameters(dataset=str(tmp_path / "clicks.csv"), preset="tiny", epochs=3, init="ppmi", device="cpu", max_minutes=9.0)
    assert open_job(same, tmp_path / "runs").folder == job.folder and open_job(same, tmp_path / "runs").finished
    for other in ({"epochs": 2}, {"init": "random"}, {"loss": "bce"}, {"seed": 1}, {"precision": "bfloat16"}, {"protocol": "global_time"}):
        assert open_job(TrainParameters(dataset=asked.dataset, preset="tiny", **other), tmp_path / "runs").folder != job.folder, other
    (tmp_path / "clicks.csv").write_text(CSV + "u0,i3,99\n")
    assert open_job(asked, tmp_path / "runs").folder != job.folder  # other data, though the same name
    assert len(list((tmp_path / "runs").iterdir())) == 8


def test_home_is_home(tmp_path, monkeypatch):
    "A folder called ~ is nobody's wish."
    (tmp_path / "clicks.csv").write_text(CSV)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    job = open_job(TrainParameters(dataset="clicks.csv", preset="tiny", out_dir="~/run"))
    assert job.folder == tmp_path / "home/run" and not (tmp_path / "~").exists()


def test_parameters_without_a_kernel():
    "Given as a dictionary they are checked as well; what is not given has its default."
    assert job_parameters(TrainParameters, {"seed": 3, "max_minutes": 1}) == TrainParameters(seed=3, max_minutes=1.0)
    cells = ["", "import x", "seed: int = 0", "# Parameters\nseed = 1\nfit = 2\nmax_minutes = float('inf')", "%time\nrun = training_job()"]
    with pytest.raises(ValueError, match="unknown parameter fit; valid are dataset, model"):
        job_parameters(TrainParameters, {"In": cells, "seed": 1})
    assert job_parameters(TrainParameters, {"In": [*cells, "mine = 5", "run = training_job()"], "seed": 1}).seed == 1


def test_saved_page_shows_a_training():
    "From an empty folder, with its epochs, its seconds, and the large number."
    cells = json.loads((ROOT / "nbs/train.ipynb").read_text())["cells"]
    text = "".join(
        "".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/html", "")) for c in cells for o in c.get("outputs", [])
    )
    assert len(re.findall(r"^epoch +\d+/\d+ .* s in all", text, flags=re.M)) > 5 and "opened, not trained again" not in text
    assert re.search(r"NDCG@10 <b>0\.\d{4}</b> \(0\.\d{4}–0\.\d{4}\), popularity 0\.\d{4}", text)


@pytest.mark.skipif(not any(f.exists() for f in BEAUTY), reason="Beauty is not on this machine")
def test_beauty_for_a_minute(tmp_path):
    "An int where a float is asked; the clock ends training, and the run still reports."
    job = train(tmp_path / "beauty", dataset="beauty", max_minutes=1)
    assert not job.returncode, job.stderr[-4000:]
    data = json.loads((tmp_path / "beauty/metrics.json").read_text())["data"]
    assert (data["users"], data["items"], data["interactions"]) == (22363, 12101, 198502)
    assert metric(tmp_path / "beauty", "ndcg@10")["mean"] > 0.01
