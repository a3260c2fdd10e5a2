"""`compare.ipynb` as papermill runs it, and that it finds the runs which `train.ipynb` made."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def papermill(notebook: str, out, **parameters) -> subprocess.CompletedProcess:
    "Run a notebook from the project's root."
    given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", notebook, str(out), "--no-progress-bar", *given]
    return subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=600)


def text_of(out) -> str:
    "Everything a run notebook printed or showed."
    cells = json.loads(out.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/html", "")) for o in outputs)


def test_default_page_trains_nothing_and_shows_records(tmp_path):
    records = set((ROOT / "bench/results/compare").glob("*.json"))
    done = papermill("nbs/compare.ipynb", tmp_path / "out.ipynb")
    assert not done.returncode, done.stderr[-3000:]
    assert "runs finished" in text_of(tmp_path / "out.ipynb") and "seen dropped" in text_of(tmp_path / "out.ipynb")
    assert set((ROOT / "bench/results/compare").glob("*.json")) == records


def test_study_of_two_models_is_made_and_continued(tmp_path):
    csv = tmp_path / "made_up.csv"
    csv.write_text("user,item,time\n" + "".join(f"u{u},i{(u + t) % 12},{t}\n" for u in range(60) for t in range(6)))
    folders = dict(records=tmp_path / "records", runs_dir=tmp_path / "runs")
    asked = dict(datasets=csv, models="popularity,markov", minutes=2, device="cpu") | folders
    done = papermill("nbs/compare.ipynb", tmp_path / "out.ipynb", **asked)
    assert not done.returncode, done.stderr[-3000:]
    shown = text_of(tmp_path / "out.ipynb")
    assert "2 of 2 runs finished" in shown and "behind markov" in shown
    names = sorted(path.name for path in (tmp_path / "records").iterdir())
    assert names == [f"made_up-{m}-small-leave_one_out-as_is-seed0.json" for m in ("markov", "popularity")] + [
        "tests-made_up-small-leave_one_out-as_is.json"]
    again = papermill("nbs/compare.ipynb", tmp_path / "again.ipynb", **asked | {"minutes": 0})
    assert not again.returncode and "2 of 2 runs finished" in text_of(tmp_path / "again.ipynb")


def test_unknown_model_is_one_clear_error(tmp_path):
    done = papermill("nbs/compare.ipynb", tmp_path / "out.ipynb", models="sasrek")
    assert done.returncode and "there is no model sasrek: valid are item_lm" in done.stderr


@pytest.mark.parametrize("name", ["dataset", "model", "preset", "protocol", "ties", "seed", "epochs", "precision"])
def test_plan_has_the_parameters_of_train(name):
    from itemlm import plan
    from itemlm.run import decisive

    cells = json.loads((ROOT / "nbs/train.ipynb").read_text())["cells"]
    cell = "".join(next(c["source"] for c in cells if "parameters" in c["metadata"].get("tags", [])))
    declared = dict(re.findall(r"^(\w+): \w+ = ([^#]*?)  #", cell, flags=re.M))
    run = plan(["ml-latest-small"], ["item_lm"])[0]
    assert set(decisive(declared)) == set(run)
    assert run[name] == eval(declared[name])
