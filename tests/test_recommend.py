"A run folder under bad luck: no room, no permission, files damaged or mixed up. One clear error each, and nothing half-written."

import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import ROOT, restamp

from itemlm.data.events import read_events
from itemlm.data.split import split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.models.counting import popularity
from itemlm.models.item_lm import ItemLM, ItemLMConfig
from itemlm.serving.recommender import Recommender, load
from itemlm.training.trainer import fit

ODD = ["a b", "007", "7", 'say "hi"', "x,y", "naïve ☕", "it's", "[PAD]"]
FILES = ["histories.parquet", "items.parquet", "model.safetensors", "run.json", "tokenizer.json", "tokenizer_config.json"]


def make(width: int = 16, items: list[str] = ODD) -> Recommender:
    "An untrained recommender of items with awkward ids: five users who walk through all of them, each from another start."
    log = pd.DataFrame([(f"u {n}", item) for n in range(5) for item in items[n:] + items[:n]], columns=["user", "item"])
    parts = split(read_events(log, name="odd"))
    tokenizer = ItemTokenizer.from_split(parts)
    torch.manual_seed(width)
    model = ItemLM(ItemLMConfig(n_items=tokenizer.n_items, width=width, heads=2, layers=1, hidden=24, max_len=8))
    return Recommender.from_split(model, tokenizer, parts)


@pytest.fixture
def run(tmp_path):
    make().save(tmp_path / "run")
    return tmp_path / "run"


def contents(folder) -> dict[str, bytes]:
    "Every file but the lock, which stays and holds nothing."
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_round_trip(run):
    rec, again = make(), load(run, device="cpu")
    assert sorted(contents(run)) == FILES
    assert list(again.tokenizer.items) == list(rec.tokenizer.items) and list(again.users) == list(rec.users)
    assert again.histories == rec.histories and again.data == rec.data
    pd.testing.assert_frame_equal(again.items, rec.items)
    for item in ODD:
        pd.testing.assert_frame_equal(again.recommend(items=[item], k=3), rec.recommend(items=[item], k=3))
    pd.testing.assert_frame_equal(again.recommend(users=["u 3"], k=3, seen="keep"), rec.recommend(users=["u 3"], k=3, seen="keep"))


def test_baseline_round_trip(tmp_path):
    log = pd.DataFrame({"user": list("aaaabbbb"), "item": list("wxyzwxzy")})
    rec = fit(split(read_events(log, name="toy")), popularity())
    rec.save(tmp_path)
    assert load(tmp_path).recommend(items=[], k=2).equals(rec.recommend(items=[], k=2))


def test_saved_over_another_run(run):
    before, other = contents(run), make(width=32, items=ODD[::-1])
    with pytest.raises(FileExistsError, match="home of a run of ItemLM with other weights: choose another folder, or save"):
        other.save(run)
    assert contents(run) == before
    make().save(run)  # the same once more
    other.save(run, overwrite=True)
    assert load(run).model.config.width == 32 and sorted(contents(run)) == FILES


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write .*file"):
        make().save(tmp_path / "file" / "run")
    assert contents(tmp_path) == {"file": b"in the way"}


SAVE = "import sys; sys.path.insert(0, 'tests'); from test_recommend import make; rec = make(width=64, items=list(map(str, range(500))))\n"
FULL = (
    SAVE
    + """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # a file beyond this fails as on a full disk
rec.save(sys.argv[1], overwrite=True)
"""
)
KILLED = (
    SAVE
    + """
import os, signal
from itemlm.data.tokenizer import ItemTokenizer
ItemTokenizer.save = lambda self, folder: os.kill(os.getpid(), signal.SIGKILL)
rec.save(sys.argv[1], overwrite=True)
"""
)


def python(code: str, run) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT, capture_output=True, text=True)


def test_full_disk(run):
    before = contents(run)
    job = python(FULL, run)
    assert "OSError" in job.stderr and "cannot write" in job.stderr.splitlines()[-1], job.stderr
    assert contents(run) == before and load(run)


def test_killed_while_saving(run):
    before = contents(run)
    assert python(KILLED, run).returncode == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"} == before and load(run)
    make(width=32).save(run, overwrite=True)
    assert sorted(contents(run)) == FILES, "what the killed process left is gone"


INTERRUPTED = (
    SAVE
    + """
import os, signal
real, left = os.replace, [int(sys.argv[2])]
def replace(source, target):
    left[0] -= 1
    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
rec.save(sys.argv[1], overwrite=True)
"""
)


@pytest.mark.parametrize("moves", [0, 2, 3, 4, 6, 8, 99])
def test_killed_between_two_moves(run, moves):
    "Whenever the power goes, the folder holds one whole recommender: all of the old one or all of the new one."
    old = load(run, device="cpu")
    job = subprocess.run([sys.executable, "-c", INTERRUPTED, str(run), str(moves)], cwd=ROOT, capture_output=True, text=True)
    assert job.returncode == (0 if moves == 99 else -signal.SIGKILL), job.stderr
    found = load(run, device="cpu")
    assert (found.model.config.width, found.n_items) in ((16, old.n_items), (64, 500))
    make(width=32).save(run, overwrite=True)
    assert load(run).model.config.width == 32 and sorted(contents(run)) == FILES


def record(**changes):
    def change(run):
        restamp(run, **changes)

    return change


def damaged(name: str, keep: float):
    def damage(run):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: int(len(whole) * keep)])

    return damage


def copied(name: str, **other):
    def copy(run):
        make(**other).save(run / "other")
        (run / name).write_bytes((run / "other" / name).read_bytes())

    return copy


DAMAGE = {
    "weights cut short": (damaged("model.safetensors", 0.7), "model.safetensors is damaged"),
    "weights empty": (damaged("model.safetensors", 0), "model.safetensors is damaged"),
    "items cut short": (damaged("items.parquet", 0.5), "items.parquet is damaged"),
    "histories empty": (damaged("histories.parquet", 0), "histories.parquet is damaged"),
    "tokenizer cut short": (damaged("tokenizer.json", 0.5), "tokenizer.json is damaged"),
    "run.json cut short": (damaged("run.json", 0.5), "run.json is damaged"),
    "weights of another width": (copied("model.safetensors", width=32), "of another model than run.json says"),
    "tokenizer in another order": (copied("tokenizer.json", items=ODD[::-1]), "another vocabulary"),
    "items in another order": (copied("items.parquet", items=ODD[::-1]), "not in the tokenizer's order"),
    "tokenizer of another size": (copied("tokenizer.json", items=ODD[:5]), "another vocabulary"),
    "a newer format": (record(format=99), "run format 99"),
    "a field of a newer version": (record(config={"n_items": 8, "wings": 2}), "cannot build its itemlm.models.item_lm:ItemLM.*wings"),
    "a class from elsewhere": (record(**{"class": "os:system"}), "is no model"),
    "a class that is no model": (record(**{"class": "itemlm.data.events:Events"}), "is no model"),
    "a module that is not there": (record(**{"class": "itemlm.nowhere:Model"}), "is no model"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_run(run, name):
    damage, message = DAMAGE[name]
    damage(run)
    restamp(run)
    with pytest.raises(ValueError, match=message) as caught:
        load(run)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", FILES)
def test_missing_file(run, name):
    (run / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no finished recommender: {name} missing"):
        load(run)
