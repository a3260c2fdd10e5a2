"""Write README.md from nbs/index.ipynb: its text, its code and what the code printed."""

import json
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def readme() -> str:
    "The front page as GitHub shows it."
    nb = json.loads((ROOT / "nbs/index.ipynb").read_text())
    return "\n\n".join(part for cell in nb["cells"] for part in blocks(cell)) + "\n"


def blocks(cell: dict) -> list[str]:
    "The Markdown blocks of one cell; a cell marked `#| hide` has none."
    source = "".join(cell["source"]).strip()
    if re.match(r"#\|\s*hide\b", source) or not source: return []
    if cell["cell_type"] == "markdown": return [from_root(source)]
    return [fence(source, "python"), *(fence(t) for o in cell.get("outputs", []) if (t := printed(o)))]


def from_root(text: str) -> str:
    "Links relative to nbs/ become relative to the root."
    return re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", lambda m: f"]({posixpath.normpath('nbs/' + m[1])})", text)


def printed(output: dict) -> str:
    "An output as plain text."
    return "".join(output.get("text") or output.get("data", {}).get("text/plain") or "").rstrip()


def fence(text: str, language: str = "") -> str:
    "A fenced block."
    return f"```{language}\n{text}\n```"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme())
