"""The main job, as a person starts it: papermill over nbs/train.ipynb, on real data."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pandas as pd
import papermill
import pytest
from conftest import ROOT

from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.evaluation.report import evaluate
from itemlm.jobs import TrainParameters, _figure_html, find_job, job_parameters, open_job, plotly_script
from itemlm.models.counting import popularity
from itemlm.parameters import ExploreParameters, recipe_of
from itemlm.runs.folder import read_record
from itemlm.show import figure
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
    kind = lambda field: (get_args(field.type) or [field.type])[0].__name__  # float of float | None: papermill knows no more
    assert told == [(field.name, kind(field), str(field.default)) for field in fields(declared)]
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


def test_report_lies_with_its_run(small):
    "It names its run and data, holds its figures, and ends with what to type next."
    cells = json.loads((small / "report.ipynb").read_text())["cells"]
    assert "".join(cells[0]["source"]).startswith("# small\n\n> item_lm_knn, small, on Events(ml-latest-small: 671 users")
    said = "".join(cells[-1]["outputs"][0]["text"])
    assert "The report: " in said and "papermill nbs/explore.ipynb out.ipynb -p run" in said and "rec = load(" in said
    assert [len(cell.get("outputs", [])) for cell in cells[:-1]] == [
        len(cell.get("outputs", [])) for cell in json.loads(small.with_suffix(".ipynb").read_text())["cells"][:-1]
    ]


def test_same_run_again(small):
    "A finished run is not trained again, and reports the same numbers."
    before, weights = json.loads((small / "metrics.json").read_text()), (small / "model.safetensors").read_bytes()
    job = train(small)
    assert not job.returncode, job.stderr[-4000:]
    assert json.loads((small / "metrics.json").read_text())["results"] == before["results"]
    assert (small / "model.safetensors").read_bytes() == weights


def test_other_parameters_in_a_run_folder(small):
    files = "metrics.json", "report.ipynb"
    before = [(small / name).read_bytes() for name in files]
    job = train(small, seed=12345)
    assert job.returncode and "seed" in last_line(job)
    assert [(small / name).read_bytes() for name in files] == before


@pytest.mark.parametrize(
    "name, value, names",
    [
        ("dataset", "no-such-set", ["no-such-set", "ml-latest-small", "beauty"]),
        ("preset", "gigantic", ["gigantic", "small", "wide", "long_history", "tiny"]),
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
        ("run", "runs/mine", ["unknown parameter run", "out_dir"]),
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
    assert job.folder.name.startswith("clicks-item_lm_knn-tiny-seed0-")
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


ODD = "kunde,ware,ts,kind\n" + "".join(f"u{u},i{(u + t) % 12},{t},view\n" for u in range(60) for t in range(6))
EVERYTHING = """
dataset: odd.csv
columns: {user: kunde, item: ware, time: ts}
model: {name: sasrec_ce, width: 8}
preset: tiny
epochs: 1
seeds: [0, 1]
out_dir: 0011
"""


def test_everything_from_one_command(tmp_path):
    "-f, -y and -p alike: data, model, loss, seeds; each run says what it was given, and is repeated from that."
    (tmp_path / "odd.csv").write_text(ODD)
    (tmp_path / "mine.yaml").write_text(EVERYTHING)
    given = ["-f", "mine.yaml", "-y", "model.heads: 1", "-p", "loss", "sampled_softmax", "-p", "loss.negatives", "4", "-p", "lr", "0.02"]
    command = [COMMAND, ROOT / "nbs/train.ipynb", "out.ipynb", "--no-progress-bar", *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-4000:]
    assert sorted(path.name for path in (tmp_path / "0011").iterdir()) == ["seed0", "seed1"]  # not in a folder named 9, as YAML has it
    record = read_record(tmp_path / "0011/seed1")
    told = record["params"]
    assert (told["columns"], told["model"], told["seed"]) == ("user=kunde, item=ware, time=ts", "sasrec_ce", 1)
    assert (told["model.width"], told["loss.negatives"], told["lr"]) == (8, 4, 0.02)
    assert record["identity"]["fit"]["loss"] == {"name": "itemlm.models.losses:SampledSoftmax", "negatives": 4}
    report = (tmp_path / "out.ipynb").read_text()
    assert "deviation" in report and "itemlmPlotly" in report and "cdn.plot.ly" not in report and len(report) < 2e6


@pytest.fixture
def beside(tmp_path, monkeypatch) -> Path:
    "A folder of data, and the current one."
    (tmp_path / "odd.csv").write_text(ODD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_repeated_from_its_own_record(beside):
    "The same folder again; with a change on top another one, and nothing else changes; a default is a change, too."
    asked = dict(dataset="odd.csv", columns="user=kunde, item=ware, time=ts", preset="tiny", lr=0.03, seed=5, protocol="last_n", n=1)
    job = open_job(TrainParameters(**asked, settings={"model.width": 8, "loss": "gbce", "loss.t": 0.5}), beside / "runs")
    again = {"like": str(job.folder)}
    assert find_job(job_parameters(TrainParameters, again), beside / "runs").folder == job.folder
    assert find_job(TrainParameters(**again), beside / "runs").folder == job.folder
    other = job_parameters(TrainParameters, again | {"seed": 0, "model.width": 32})
    assert other.deciding() == job.asked.deciding() | {"seed": 0, "model.width": 32}
    cells = ["seed: int = 0", "# Parameters\nseed = 0", "run = training_job()"]
    named = {"In": cells, "seed": 0, "like": str(job.folder), "lr": None}
    assert (job_parameters(TrainParameters, named).seed, job_parameters(TrainParameters, named | {"In": cells[2:]}).seed) == (0, 5)


def test_advice_can_be_followed_where_it_is_given(beside):
    "What an error tells to set is a parameter, and setting it helps."
    asked = {"dataset": "odd.csv", "preset": "tiny"}
    for role, column in (("user", "kunde"), ("item", "ware")):
        with pytest.raises(ValueError, match=rf"Say which one it is: columns\.{role}='\.\.\.'"):
            open_job(job_parameters(TrainParameters, asked), beside / "runs")
        asked[f"columns.{role}"] = column
    assert open_job(job_parameters(TrainParameters, asked), beside / "runs").parts.events.n_users == 60


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"text": "x"}, "unknown parameter text"),
        ({"model.widht": 3}, "unknown parameter model.widht; .* model.width"),
        ({"loss": "bce", "loss.negative": 3}, "unknown parameter loss.negative; .* loss.negatives"),
        ({"model.n_items": 3}, "unknown parameter model.n_items"),
        ({"data.colour": 3}, "data.colour|'colour'"),
        ({"columns.visitor": "x"}, "unknown role visitor; valid are user, item, time, rating"),
        ({"lr": float("nan")}, "lr=nan must be a finite number"),
        ({"settings": "lr=nan"}, "lr='nan' must be a finite number"),
        ({"max_minutes": float("inf")}, "max_minutes=inf must be a finite number"),
        ({"model.temperature": "inf"}, "temperature"),
        ({"epochs": 2.5}, "epochs=2.5 must be a whole number"),
        ({"seed": 2**40}, "seed=1099511627776 must be from 0 to"),
        ({"seeds": "0,0"}, "seeds='0,0' must be different whole numbers"),
        ({"cuts": "0.8,0.9"}, "is of protocol=global_time"),
        ({"like": "nowhere"}, "there is no run in nowhere"),
        ({"dataset": 2024.1}, "papermill -r dataset"),
    ],
)
def test_refused_before_anything_is_written(beside, given, problem):
    with pytest.raises(ValueError, match=problem):
        asked = job_parameters(TrainParameters, {"dataset": "odd.csv", "columns.user": "kunde", "columns.item": "ware"} | given)
        open_job(asked, beside / "runs")
    assert not (beside / "runs").exists()


def test_nothing_new_given_nothing_changes():
    "The parameters that every run had say what they said."
    usual = {"dataset": "ml-latest-small", "model": "item_lm_knn", "preset": "small", "protocol": "leave_one_out", "ties": "as_is"}
    assert TrainParameters().deciding() == usual | {"seed": 0, "epochs": 0, "precision": "float32"}
    assert recipe_of(TrainParameters(lr=2e-3)).identity() == recipe_of(TrainParameters()).identity()


def test_compare_and_explore_refuse_undeclared_names(beside):
    "Each names its own parameters."
    for declared, name, valid in ((StudyParameters, "loss", "datasets"), (ExploreParameters, "find_run", "run")):
        cells = ["run = ''", f"# Parameters\n{name} = 3", "job()"]
        with pytest.raises(ValueError, match=f"unknown parameter {name}; valid are {valid}"):
            job_parameters(declared, {"In": cells, name: 3})
    assert job_parameters(ExploreParameters, {"In": ["run = ''", "# Parameters\nrun = 2024", ""], "run": 2024}).run == "2024"


def test_figures_of_a_report_need_no_network(tmp_path, browser):
    "The page brings plotly along; nothing in a title ends its script."
    drawn = figure(title_text="</script><b>").add_scatter(x=[1, 2], y=[3, 4])
    (tmp_path / "report.html").write_text(f"<body>{plotly_script()}{_figure_html(drawn.to_dict())}</body>", encoding="utf-8")
    page, failed = browser.new_context(offline=True).new_page(), []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector(".plotly-graph-div .main-svg", timeout=60_000)
    assert not failed


def test_a_run_with_a_plain_item_table_can_be_explored(beside):
    "Its vectors are numbers, whatever they were in training."
    asked = TrainParameters(dataset="odd.csv", columns="user=kunde, item=ware, time=ts", model="sasrec_ce", preset="tiny", epochs=1)
    job = find_job(asked, beside / "runs")
    vectors = fit(job.parts, job.recipe, device="cpu", verbose=False).item_vectors()
    assert not vectors.requires_grad and vectors.numpy().shape == (12, 16)


STUB = '#!/bin/sh\nfor word in "$@"; do printf \'%s\\n\' "$word"; done\n'  # says what it was called with, a line each


@pytest.mark.parametrize(
    "name", ["beauty", "my data/clicks (1).csv", "it's.csv", 'a$b`c`"d"$(HOME).csv', "ü{1}&#;*.csv", "2024.10", "back\\slash"]
)
def test_make_takes_any_path(tmp_path, name):
    "Whatever a shell can quote arrives as it is, and names its report."
    (tmp_path / "papermill").write_text(STUB)
    (tmp_path / "papermill").chmod(0o755)
    command = ["make", "-s", "-o", "env", "train", f"BIN={tmp_path}", f"DATASET={name}", "ARGS=-p columns 'user=a b'"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    report = f"runs/train-{Path(name).stem}.ipynb"
    assert said[:2] == ["nbs/train.ipynb", report.replace("{", "{{").replace("}", "}}")]  # papermill formats the name
    assert said[4:] == ["-r", "dataset", name, "-p", "columns", "user=a b", f"The report: {report}"]


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
