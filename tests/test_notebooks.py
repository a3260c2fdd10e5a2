"""Every notebook runs from top to bottom: the library's, the tutorials, the explanations and the front page.

Run notebooks, those with a cell tagged `parameters`, are papermill's: see test_main_job.py.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import NOTEBOOKS, named

RUN = "import sys; from nbdev.test import test_nb as run; sys.exit(not run(sys.argv[1], do_print=True)[0])"
NOWHERE = "http://127.0.0.1:9"
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": "127.0.0.1,localhost"}


def is_run_notebook(path) -> bool:
    cells = json.loads(path.read_text())["cells"]
    return any("parameters" in c["metadata"].get("tags", []) for c in cells)


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if not is_run_notebook(p)], ids=named)
def test_notebook(path):
    "In a process of its own, with no way to the network."
    command = [sys.executable, "-c", RUN, path]
    done = subprocess.run(command, env=os.environ | OFFLINE, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-4000:]
