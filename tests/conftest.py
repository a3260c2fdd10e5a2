"""What several tests share."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def named(path: Path) -> str:
    "A notebook's name in the list of tests."
    return path.relative_to(ROOT / "nbs").with_suffix("").as_posix()


# Beside other workers, a second thread waits more than it works; notebooks' own processes inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    "With several workers a file stays with one of them, which makes its costly fixtures once; notebooks are dealt out singly."
    tree = "test_docs.py", "test_workspace.py"  # one stages pages beside the notebooks which the other copies
    for item in items:
        if item.path.name != "test_notebooks.py":
            item.add_marker(pytest.mark.xdist_group("tree" if item.path.name in tree else item.path.name))


@pytest.fixture(scope="session")
def browser():
    "A headless Chromium; the test is skipped where there is none, except in CI."
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ["chromium", "google-chrome"])), None)
    if not program:
        if os.environ.get("CI"): pytest.fail("CI must have a browser: apt-get install chromium")
        pytest.skip("no chromium on this machine")
    with sync_playwright() as p:
        yield p.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
