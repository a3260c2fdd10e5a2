"""Write README.md from nbs/index.ipynb: its text, its code and what the code showed, tables as Markdown, at most 90 lines."""

import json
import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 90  # lines


def readme() -> str:
    "The front page as GitHub shows it"
    nb = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    return "\n\n".join(part for cell in nb["cells"] for part in blocks(cell)) + "\n"


def blocks(cell: dict) -> list[str]:
    "The Markdown blocks of one cell; `#| hide` leaves it out, `#| echo: false` its code, `#| output: false` what it showed"
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown":
        return [from_root(source)]
    directives = re.findall(r"^#\| *(.+)", source, flags=re.M)
    if "hide" in directives:
        return []
    code = "" if "echo: false" in directives else fence(re.sub(r"^#\|.*\n", "", source, flags=re.M), "python")
    outputs = [] if "output: false" in directives else map(shown, cell["outputs"])
    return [part for part in (code, *outputs) if part]


def from_root(text: str) -> str:
    "Links relative to nbs/ become relative to the root"
    return re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", lambda m: f"]({posixpath.normpath('nbs/' + m[1])})", text)


def shown(output: dict) -> str:
    "What a cell showed: Markdown as it is, a table as Markdown, anything else as plain text"
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
    if "text/markdown" in data:
        return from_root(data["text/markdown"].strip())
    if "<table" in data.get("text/html", ""):
        return markdown_of(data["text/html"])
    text = "".join(output.get("text", "")) or data.get("text/plain", "")
    return fence(text.rstrip()) if text.strip() else ""


def fence(text: str, language: str = "") -> str:
    "A fenced block"
    return f"```{language}\n{text}\n```"


class Parts(HTMLParser):
    "The rows of an HTML table, how many of them are headings, and the words above and below it"

    def __init__(self):
        super().__init__()
        self.above, self.rows, self.below, self.headings = [], [], [], 0
        self.words = self.above  # where text goes

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.words = []
            self.rows[-1].append(self.words)
        elif tag == "br":
            self.words.append(" ")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.words = []  # between cells stands nothing
        elif tag == "thead":
            self.headings = len(self.rows)
        elif tag == "table":
            self.words = self.below

    def handle_data(self, data):
        self.words.append(data)


def markdown_of(html: str) -> str:
    "HTML tables with their titles and notes as Markdown"
    html = re.sub(r"<style.*?</style>", "", html, flags=re.S)
    html = re.sub(r"<br>\s*<small[^>]*>(.*?)</small>", r" (\1)", html, flags=re.S)  # the interval of a number
    return "\n\n".join(filter(None, map(table_of, re.split(r"(?<=</table>)", html))))


def table_of(html: str) -> str:
    "At most one HTML table as Markdown; columns of numbers stand at the right"
    parts = Parts()
    parts.feed(html)
    plain = lambda words: " ".join("".join(words).split()).replace("<", "&lt;")
    rows = [[plain(cell).replace("|", "\\|") for cell in row] for row in parts.rows]
    rows = [row + [""] * (max(map(len, rows)) - len(row)) for row in rows]
    headings = max(parts.headings, 1)  # pandas gives the index's name a line of its own
    head, rows = [" ".join(filter(None, cells)) for cells in zip(*rows[:headings])], rows[headings:]
    rule = ["---:" if all(re.match(r"[−+\-\d.]|$", cell) for cell in column) else "---" for column in zip(*rows)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows) if row)
    return "\n\n".join(filter(None, (plain(parts.above), table, plain(parts.below))))


if __name__ == "__main__":
    text = readme()
    if (lines := text.count("\n")) > LONGEST:
        sys.exit(f"README.md would have {lines} lines, {LONGEST} at most: shorten nbs/index.ipynb")
    (ROOT / "README.md").write_text(text, encoding="utf-8")
