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
    "The Markdown blocks of one cell; `#| hide` leaves it out, `#| output: false` what it printed."
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown": return [from_root(source)]
    directives = re.findall(r"^#\| *(.+)", source, flags=re.M)
    if "hide" in directives: return []
    outputs = [] if "output: false" in directives else map(shown, cell["outputs"])
    return [fence(re.sub(r"^#\|.*\n", "", source, flags=re.M), "python"), *filter(None, outputs)]


def from_root(text: str) -> str:
    "Links relative to nbs/ become relative to the root."
    return re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", lambda m: f"]({posixpath.normpath('nbs/' + m[1])})", text)


def shown(output: dict) -> str:
    "A table as HTML without its looks, anything else as plain text."
    data = output.get("data", {})
    table = "".join(data.get("text/html", ""))
    if "<table" in table:
        table = re.sub(r"<style.*?</style>|<!--.*?-->", "", table, flags=re.S)
        return re.sub(r"\n\s*", "\n", re.sub(r' (style|class|border)="[^"]*"', "", table)).strip()
    text = "".join(output.get("text") or data.get("text/plain", "")).rstrip()
    return fence(text) if text else ""


def fence(text: str, language: str = "") -> str:
    "A fenced block."
    return f"```{language}\n{text}\n```"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme())
