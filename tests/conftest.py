"""What several tests share."""

import json
import os
import shutil
from pathlib import Path

import pytest

from itemlm.core import file_hash
from itemlm.runs.folder import sealed

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def named(path: Path) -> str:
    "A notebook's name in the list of tests."
    return path.relative_to(ROOT / "nbs").with_suffix("").as_posix()


def restamp(folder: Path, **entries) -> None:
    "Make run.json say, sealed, what the files of a run hold now, so that a test reaches what is behind the hashes."
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text()) | entries
        record["hashes"] = {name: file_hash(folder / name) for name in record["hashes"] if (folder / name).is_file()}
        path.write_text(json.dumps(sealed(record)))
    except (ValueError, OSError, KeyError, TypeError):  # it was harmed itself
        pass


# Beside other workers, a second thread waits more than it works; notebooks' own processes inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "With several workers a file stays with one of them, which makes its costly fixtures once; notebooks are dealt out singly."
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::")[0]).name
            if file == "test_notebooks.py":
                return nodeid
            tree = "test_docs.py", "test_workspace.py"  # one stages pages beside the notebooks which the other copies
            return "tree" if file in tree else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def browser():
    "A headless Chromium; the test is skipped where there is none, except in CI."
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ["chromium", "google-chrome"])), None)
    if not program:
        if os.environ.get("CI"):
            pytest.fail("CI must have a browser: apt-get install chromium")
        pytest.skip("no chromium on this machine")
    with sync_playwright() as p:
        yield p.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
