"What is written here is Python for every version from 3.11 on: whichever newer ones a machine has read all of it."

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import NOTEBOOKS, ROOT

NEWER = [f"python3.{minor}" for minor in range(12, 20)]
PYENV = sorted(Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/3.*/bin/python3"))

READ = """
import json, sys, warnings
warnings.simplefilter("error")  # a SyntaxWarning of today is an error of tomorrow
for name, source in json.load(sys.stdin): compile(source, name, "exec")
assert sys.version_info >= (3, 12)
print(sys.version.split()[0])
"""


def interpreters() -> list[str]:
    "Newer Pythons of this machine, one of each minor version"
    there = [shutil.which(name) for name in NEWER] + [str(path) for path in PYENV]
    found = {}
    for path in filter(None, there):
        told = subprocess.run([path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
        if not told.returncode and (version := tuple(map(int, told.stdout.split()))) > (3, 11):
            found[version] = path
    return [found[version] for version in sorted(found)]


def cell_source(cell: dict) -> str:
    "A code cell as Python alone"
    return re.sub(r"^\s*[%!].*$", "pass", "".join(cell["source"]), flags=re.M)


def test_newer_pythons_read_everything():
    "Every module, script, test and notebook cell compiles without a warning."
    pythons = interpreters()
    if not pythons:
        pytest.skip("there is no Python newer than 3.11 on this machine")
    files = [path for folder in ("itemlm", "scripts", "tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    sources = [(str(path.relative_to(ROOT)), path.read_text()) for path in files]
    for path in NOTEBOOKS:
        code = [cell_source(cell) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        sources += [(f"{path.stem}[{n}]", source) for n, source in enumerate(code)]
    for python in pythons:
        done = subprocess.run([python, "-c", READ], input=json.dumps(sources), capture_output=True, text=True)
        assert not done.returncode, f"{python}: {done.stderr}"


def test_nobody_asks_the_module_for_annotations():
    "Python 3.14 keeps none in globals() until they are asked for (PEP 649)."
    for path in (ROOT / "itemlm").rglob("*.py"):
        assert "__annotations__" not in path.read_text(), path
    for path in NOTEBOOKS:
        assert "__annotations__" not in path.read_text(), path
