"""Build the documentation site into `_docs`: with Quarto where it is installed, else with smalldocs.

Both render the notebooks that nbdev stages in `_proc`. The second way needs nothing but Python: plots, maths and
source listings are served from the site itself.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path, PurePosixPath

from smalldocs import layout
from smalldocs.config import load
from smalldocs.site import Page, Site

ROOT = Path(__file__).resolve().parent.parent
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
KATEX = re.search(r"katex@[\d.]+", layout.KATEX)[0]
SOURCE_STYLE = "body { margin: 2rem; font-family: sans-serif } .linenos a { color: #9aa5b1; text-decoration: none }"


class Docs(Site):
    "A site whose notebooks `room/NN_name.ipynb` become pages `room/name.html`"

    def read(self, src: PurePosixPath) -> Page:
        page = super().read(src)
        page.out = src.with_name(re.sub(r"^\d+_", "", src.stem) + ".html")
        return page

    def find_page(self, target: PurePosixPath) -> Page | None:
        return super().find_page(target) or next((p for p in self.pages.values() if p.out == target), None)

    def resolve(self, href: str, page: Page | None, record: bool = True) -> str:
        code = re.match(r"/blob/\w+/itemlm/(.+)\.py#L(\d+)$", href)  # nbdev's link to the code of a symbol, in any room
        if not code:
            return super().resolve(href, page, record)
        return "../" * len(page.out.parent.parts) + f"source/{code[1]}.html#L-{code[2]}"


def run_definitions_only() -> None:
    "Let nbdev run what its entries of symbols need, and no example that also imports something: it lacks the cells before"
    from nbdev import processors

    chosen = processors._do_eval
    example = lambda cell: not cell.directives_.keys() & {"export", "exports", "exporti", "exec_doc"} and "show_doc" not in cell.source
    mixed = lambda cell: not all(isinstance(node, ast.Import | ast.ImportFrom) for node in cell.parsed_() or [])
    processors._do_eval = lambda cell: chosen(cell) and not (example(cell) and mixed(cell))


def stage() -> Path:
    "Let nbdev process the notebooks into `_proc`"
    from nbdev import config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    config._load_toml = cache(config._load_toml)  # nbdev reads pyproject.toml anew for each cell
    refresh_quarto_yml()
    folder = proc_nbs(force=True, n_workers=0)
    for nb in folder.rglob("*.ipynb"):
        up = "../" * (len(nb.relative_to(folder).parts) - 1)
        text = nb.read_text().replace("__main__.", "")  # in a signature, a type that the notebook itself defines
        nb.write_text(json.dumps(with_static_outputs(json.loads(text), up)))
    return folder


def with_static_outputs(nb: dict, up: str) -> dict:
    "Plots load the site's own plotly.js; widgets, which need a kernel, are left out (their static twin stands beside)"
    from plotly.io import to_html

    for cell in nb["cells"]:
        outputs = [o for o in cell.get("outputs", []) if WIDGET not in o.get("data", {}) and not loads_plotly(o)]
        for data in (o["data"] for o in outputs if PLOTLY in o.get("data", {})):
            fig = {k: v for k, v in data.pop(PLOTLY).items() if k in ("data", "layout", "frames")}
            data["text/html"] = to_html(
                fig,
                {"displaylogo": False, "responsive": True},
                full_html=False,
                validate=False,
                default_height="450px",
                include_plotlyjs=f"{up}site_libs/plotly.min.js",
            )
        if "outputs" in cell:
            cell["outputs"] = joined(outputs)
    return nb


def joined(outputs: list[dict]) -> list[dict]:
    "Lines that were printed one after another, as one output"
    out = []
    for o in outputs:
        if out and "name" in o and o["name"] == out[-1].get("name"):
            out[-1]["text"] = [*out[-1]["text"], *o["text"]]
        else:
            out.append(o)
    return out


def loads_plotly(output: dict) -> bool:
    "Whether an output only fetches plotly.js from the net, as plotly's notebook renderer does once a notebook"
    data = output.get("data", {})
    return PLOTLY not in data and "cdn.plot.ly" in "".join(data.get("text/html", ""))


def katex() -> Path | None:
    "KaTeX's files from npm, fetched once into the cache; None where npm has no answer"
    folder = ROOT / "cache/npm"
    dist = folder / "node_modules/katex/dist"
    if not (dist / "katex.min.js").exists() and shutil.which("npm"):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", folder, KATEX], capture_output=True)
    return dist if (dist / "katex.min.js").exists() else None


def mend_anchors(out: Path) -> None:
    "Links to a method without an entry of its own go to its class; anchors as JupyterLab writes them, to the site's"
    texts = {f.resolve(): f.read_text() for f in out.rglob("*.html")}
    ids = {f: set(re.findall(r'\bid="([^"]+)"', t)) for f, t in texts.items()}

    def mend(f: Path, link: re.Match) -> str:
        there = ids.get((f.parent / link[1]).resolve() if link[1] else f, {link[2]})
        anchors = link[2], link[2].lower(), link[2].lower().split(".")[0]
        return f'href="{link[1]}#{next((a for a in anchors if a in there), link[2])}"'

    for f, t in texts.items():
        f.write_text(re.sub(r'href="([\w./-]*)#([^"]+)"', lambda link, f=f: mend(f, link), t))


def add_assets(site: Docs) -> None:
    "Copy plotly.js and KaTeX into the site, where pages use them"
    import plotly

    texts = {f: f.read_text() for f in site.out.rglob("*.html")}
    if any("site_libs/plotly.min.js" in t for t in texts.values()):
        shutil.copy(Path(plotly.__file__).parent / "package_data/plotly.min.js", site.out / "site_libs")
    with_maths = {f: t for f, t in texts.items() if layout.KATEX in t}
    if with_maths and (dist := katex()):
        leave = shutil.ignore_patterns("*.mjs", "*.ttf", "*.woff", "*.md")
        shutil.copytree(dist, site.out / "site_libs/katex", ignore=leave)
        for f, t in with_maths.items():
            f.write_text(t.replace(layout.KATEX, os.path.relpath(site.out / "site_libs/katex", f.parent)))
    elif with_maths:
        print("npm could not fetch KaTeX: formulas will load it from its CDN", file=sys.stderr)


CLOSE_SEARCH = """
// a result on the page that is open: nothing is loaded, so nothing else closes the list
document.addEventListener("click", (event) => { const list = event.target.closest(".search-result")?.parentNode;
  if (list) { list.classList.remove("show"); document.activeElement?.blur(); } });
"""


def mend_search(site: Docs) -> None:
    "A picked search result closes the list"
    script = site.out / "site_libs/smalldocs.js"
    script.write_text(script.read_text(encoding="utf-8") + CLOSE_SEARCH, encoding="utf-8")


def add_sources(site: Docs) -> None:
    "Write every module as a page, for the `source` links"
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    package = ROOT / "itemlm"
    for f in package.rglob("*.py"):
        name = f.relative_to(package).with_suffix(".html")
        page = HtmlFormatter(full=True, title=f"itemlm/{name.with_suffix('.py')}", linenos="inline", lineanchors="L", anchorlinenos=True)
        text = highlight(f.read_text(), PythonLexer(), page)
        (site.out / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (site.out / "source" / name).write_text(text.replace("</style>", f"{SOURCE_STYLE}</style>"))


def main() -> None:
    os.chdir(ROOT)
    run_definitions_only()
    if shutil.which("quarto"):
        from nbdev.quarto import nbdev_docs

        return nbdev_docs()
    warnings.filterwarnings("ignore")
    site = Docs(load(stage()), quiet=True)
    site.out = ROOT / "_docs"
    pages = site.build()
    add_assets(site)
    mend_search(site)
    add_sources(site)
    mend_anchors(site.out)
    for src, href in site.broken:
        print(f"{src}: broken link {href}", file=sys.stderr)
    print(f"{pages} pages in _docs; read them with: python -m http.server -d _docs")
    sys.exit(bool(site.broken))


if __name__ == "__main__":
    main()
