"""The workspace agrees with itself: settings, notebooks, modules, README."""

import configparser
import filecmp
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from conftest import NOTEBOOKS, ROOT, named

import itemlm

sys.path.insert(0, str(ROOT / "scripts"))
import lab  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NBDEV = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]


def settings() -> configparser.ConfigParser:
    ini = configparser.ConfigParser()
    ini.read(ROOT / "settings.ini")
    return ini


def test_settings_equal_pyproject():
    ini = settings()["DEFAULT"]
    assert dict(ini) | {"requirements": ini["requirements"].split()} == {
        "lib_name": PROJECT["name"],
        "version": itemlm.__version__,
        "description": PROJECT["description"],
        "author": PROJECT["authors"][0]["name"],
        "license": PROJECT["license"],
        "min_python": PROJECT["requires-python"].removeprefix(">="),
        "keywords": ", ".join(PROJECT["keywords"]),
        "requirements": PROJECT["dependencies"],
        **{k: NBDEV[k] for k in ("nbs_path", "lib_path", "doc_path")},
    }


def test_workspace_settings():
    workspace = settings()["workspace"]
    assert workspace["data"].split() == ["data", "../shared/data"]
    assert [workspace[k] for k in ("cache", "runs", "dataset")] == ["cache", "runs", "ml-latest-small"]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    "A copy of the notebooks and the package, cleaned and exported anew."
    copy = tmp_path_factory.mktemp("fresh")
    for name in ("nbs", "itemlm"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    for command in ("clean", "export"):
        subprocess.run([Path(sys.executable).with_name(f"nbdev-{command}")], cwd=copy, check=True)
    return copy


@pytest.mark.parametrize("folder, pattern", [("nbs", "*.ipynb"), ("itemlm", "*.py")])
def test_clean_and_in_sync(fresh, folder, pattern):
    "nbdev-clean and nbdev-export change nothing."
    files = {
        p.relative_to(top / folder) for top in (ROOT, fresh) for p in (top / folder).rglob(pattern) if ".ipynb_checkpoints" not in p.parts
    }
    _, different, missing = filecmp.cmpfiles(ROOT / folder, fresh / folder, files, shallow=False)
    assert not different and not missing, f"run nbdev-clean and nbdev-export: {[*map(str, different + missing)]}"


def test_ruff():
    ruff = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."]
    done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def test_readme_is_the_front_page():
    sys.path.insert(0, str(ROOT / "scripts"))
    from readme import readme

    assert (ROOT / "README.md").read_text() == readme(), "run: python scripts/readme.py"


def test_readme_links():
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", (ROOT / "README.md").read_text())
    assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_title_cell(path):
    "A title and its promise stand alone in their cell: nbdev makes the page's header of it and drops what follows."
    cells = json.loads(path.read_text())["cells"]
    title = next("".join(c["source"]).strip() for c in cells if c["cell_type"] == "markdown")
    assert re.fullmatch(r"# ([A-Z]|itemlm)[^\n]*\n\n> [^\n]+", title), f"want '# Title' and '> promise':\n{title}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_saved_outputs(path):
    "They are small, and name no folder of the machine they were made on."
    assert path.stat().st_size < 1e6, "over 1 MB: saved widgets or large plots"
    outputs = json.dumps([c.get("outputs") for c in json.loads(path.read_text())["cells"]])
    assert not re.findall(r"[^\s\"']*/(?:home|root|tmp|work|Users)/[^\s\"']*", outputs)


def test_lab_opens_copies(tmp_path):
    "A copy nobody changed follows its original, one that was changed stays; git sees nothing of it."
    source, copies = tmp_path / "nbs", tmp_path / "lab"
    for name in ("train.ipynb", "how-to/mine.ipynb", ".ipynb_checkpoints/train.ipynb"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("old")
    assert not lab.copy_notebooks(source, copies)
    assert sorted(path.relative_to(copies).as_posix() for path in copies.rglob("*.ipynb")) == ["how-to/mine.ipynb", "train.ipynb"]
    (copies / "train.ipynb").write_text("changed in JupyterLab")
    assert not lab.copy_notebooks(source, copies)
    for name in ("train.ipynb", "how-to/mine.ipynb"):
        (source / name).write_text("new")
    assert lab.copy_notebooks(source, copies) == [copies / "train.ipynb"]
    assert [(copies / name).read_text() for name in ("train.ipynb", "how-to/mine.ipynb")] == ["changed in JupyterLab", "new"]
    (copies / "train.ipynb").unlink()
    assert not lab.copy_notebooks(source, copies) and (copies / "train.ipynb").read_text() == "new"
    assert "/lab/" in (ROOT / ".gitignore").read_text().split() and "lab/tree/lab/index.ipynb" in (ROOT / "Makefile").read_text()


def test_an_installed_clone_is_found_from_the_folder_above(tmp_path):
    "Python started beside a clone called itemlm sees that folder first; an install by path still brings the package."
    clone = tmp_path / "itemlm"
    (clone / "itemlm").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    (clone / "itemlm/__init__.py").write_text('"A package"\n\n__version__ = "1"\n')
    build = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        entry = next(wheel.read(name).decode().strip() for name in wheel.namelist() if name.endswith(".pth"))
    assert Path(entry).resolve() == clone.resolve()
    assert PathFinder.find_spec("itemlm", [str(tmp_path)]).origin is None  # the folder alone: an empty namespace
    assert PathFinder.find_spec("itemlm", [str(tmp_path), entry]).origin == str(clone / "itemlm/__init__.py")
