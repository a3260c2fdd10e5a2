"`tune.ipynb` as papermill runs it: goes on where it stopped, keeps the test shut, and says what cannot be searched."

import json
import signal
import subprocess
import sys

import pytest
from test_study import CSV, papermill, text_of

from itemlm.parameters import pairs_of


@pytest.fixture
def asked(tmp_path):
    (tmp_path / "clicks.csv").write_text(CSV)
    own = dict(dataset=tmp_path / "clicks.csv", k_core=1, preset="tiny", device="cpu", runs_dir=tmp_path / "runs", seed=3)
    return own | {"space": "lr=0.003..0.03 log, model.dropout=0.0..0.4, batch=16|32", "settings": "epochs=1", "minutes": 5}


def trials(tmp_path) -> list[dict]:
    (path,) = (tmp_path / "runs").glob("tune-*/trials.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_search_goes_on_and_ends_on_the_test_part(tmp_path, asked):
    done = papermill("nbs/tune.ipynb", tmp_path / "out.ipynb", **asked, trials=1)
    assert not done.returncode, done.stderr[-3000:]
    (first,) = trials(tmp_path)
    assert first["state"] == "complete" and first["values"]["batch"] == "64"  # the preset's, not among the choices
    assert not [path for path in (tmp_path / "runs").rglob("metrics.json")], "nothing is measured on the test part"
    again = papermill("nbs/tune.ipynb", tmp_path / "again.ipynb", **asked, trials=2)
    assert not again.returncode and trials(tmp_path)[0] == first and len(trials(tmp_path)) == 2
    shown = text_of(tmp_path / "again.ipynb")
    assert "papermill nbs/train.ipynb" in shown and "gapped validation part" in shown
    last = papermill("nbs/tune.ipynb", tmp_path / "last.ipynb", **asked, trials=2, test=True)
    assert not last.returncode, last.stderr[-3000:]
    shown = text_of(tmp_path / "last.ipynb")
    assert "the preset is the winner" in shown or "tuned" in shown


SEARCH = """
import sys
from itemlm.tuning import TuneParameters, open_search
asked = dict(k_core=30, preset="tiny", device="cpu", space="lr=0.003..0.03 log, model.dropout=0.0..0.4", settings="epochs=1")
search = open_search(TuneParameters(**asked, trials=4, minutes=5, runs_dir=sys.argv[1]))
search.go_on()
"""


def test_two_processes_share_a_search_and_one_takes_up_what_a_killed_one_left(tmp_path):
    "On MovieLens latest-small, thinned out: four trials, none of them twice."
    first, second = (
        subprocess.Popen([sys.executable, "-c", SEARCH, str(tmp_path / "runs")], stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    tried = next(line for line in second.stdout if line.startswith("trial")).partition(": ")[2]
    second.send_signal(signal.SIGKILL)
    second.communicate()
    said = first.communicate(timeout=300)[0]
    assert not first.returncode
    found = [row["values"] for row in trials(tmp_path)]
    assert len(found) == len({json.dumps(values) for values in found}) == 4
    assert pairs_of(tried.strip()) in found and tried.strip() in said, "the first one goes on with it"
    assert not list((tmp_path / "runs").glob("tune-*/.worker-*.lock"))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("space", "model.widht=8..16", ["model.widht", "model.width"]),
        ("space", "lr=0.1", ["parameter space", "lr=0.1", "0.1..0.5"]),
        ("validation", "none", ["validation", "gapped, plain"]),
        ("budget", 3, ["unknown parameter budget", "minutes"]),
    ],
)
def test_what_cannot_be_searched(tmp_path, asked, name, value, words):
    done = papermill("nbs/tune.ipynb", tmp_path / "out.ipynb", **asked | {name: value})
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode and all(word in said for word in words), said
    assert not (tmp_path / "runs").exists()
