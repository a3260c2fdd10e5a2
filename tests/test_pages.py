"Pages worth reading: short cells, an example after each, a picture on every page."

import ast
import json

import pytest
from conftest import NOTEBOOKS, ROOT, named

API = [path for path in NOTEBOOKS if path.is_relative_to(ROOT / "nbs/api")]
LONGEST = 35  # lines of an export cell


def cells(path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def exports(cell: dict) -> bool:
    return cell["cell_type"] == "code" and "#| export" in source(cell)


def imports_only(cell: dict) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source(cell)).body)


@pytest.mark.parametrize("path", API, ids=named)
def test_export_cells_are_short(path):
    for cell in filter(exports, cells(path)):
        lines = [line for line in source(cell).splitlines() if not line.startswith("#|")]
        assert len(lines) <= LONGEST, lines[0]


@pytest.mark.parametrize("path", API, ids=named)
def test_an_example_follows_each_export_cell(path):
    "At once, or after a sentence."
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    lonely = [
        source(a).splitlines()[1]
        for a, b in zip(code, [*code[1:], {"cell_type": "code", "source": ["#| export"]}])
        if exports(a) and not imports_only(a) and exports(b)
    ]
    assert not lonely


@pytest.mark.parametrize("path", API, ids=named)
def test_a_picture_on_every_page(path):
    kinds = {kind for cell in cells(path) for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert {"application/vnd.plotly.v1+json", "image/png", "image/svg+xml"} & kinds
