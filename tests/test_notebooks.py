"""Every notebook runs from top to bottom: the library's, the tutorials, the explanations and the front page.

Run notebooks, those with a cell tagged `parameters`, are papermill's: see test_main_job.py.
"""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from conftest import NOTEBOOKS, named

NOWHERE = "http://127.0.0.1:9"
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": "127.0.0.1,localhost"}
FORKS = multiprocessing.get_context("forkserver")  # a clean process that has what most notebooks import already, for each of them
FORKS.set_forkserver_preload(
    ["itemlm.jobs", "itemlm.explore", "plotly.graph_objects", "pyarrow.parquet", "torch._dynamo", "nbdev.test", "nbformat", "IPython"]
)


def is_run_notebook(path) -> bool:
    cells = json.loads(path.read_text())["cells"]
    return any("parameters" in c["metadata"].get("tags", []) for c in cells)


def run_notebook(path: Path, log: Path) -> None:
    "What a process of its own does: no way to the network, everything that is said into `log`"
    from nbdev.test import test_nb as run

    os.environ.update(OFFLINE)
    said = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.exit(not run(path, do_print=True)[0])


@pytest.mark.parametrize("path", [p for p in reversed(NOTEBOOKS) if not is_run_notebook(p)], ids=named)
def test_notebook(path, tmp_path):
    "The last in line are the first rooms' pages, short ones: workers that share the list end together."
    process = FORKS.Process(target=run_notebook, args=(path, tmp_path / "log"))
    process.start()
    process.join(timeout=600)
    ended = process.exitcode
    process.kill()
    assert ended == 0, f"{'no end after 600 s' if ended is None else f'exit code {ended}'}\n{(tmp_path / 'log').read_text()[-6000:]}"
