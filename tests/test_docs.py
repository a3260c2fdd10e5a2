"""The documentation site builds, every page opens, and no link of it is broken; the front page becomes a README of Markdown."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from conftest import NOTEBOOKS, ROOT, named
from lxml import html

from itemlm.show import Table, Value

sys.path.insert(0, str(ROOT / "scripts"))
import readme  # noqa: E402

SITE = ROOT / "_docs"


@pytest.fixture(scope="module")
def pages() -> dict[Path, html.HtmlElement]:
    "The site as `make docs` builds it: page -> its document."
    done = subprocess.run([sys.executable, "scripts/docs.py"], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    return {p: html.fromstring(p.read_text()) for p in SITE.rglob("*.html") if "site_libs" not in p.parts}


def test_every_notebook_is_a_page_and_in_the_sidebar(pages):
    sidebar = set(pages[SITE / "index.html"].xpath("//*[@id='quarto-sidebar']//a/@href"))
    for nb in NOTEBOOKS:
        page = nb.relative_to(ROOT / "nbs").with_name(nb.stem.lstrip("0123456789_") + ".html")
        assert SITE / page in pages, f"{named(nb)} has no page"
        assert page.as_posix() in sidebar, f"{named(nb)} is not in nbs/sidebar.yml"


def test_pages_have_titles(pages):
    for page, document in pages.items():
        assert document.findtext(".//title").strip(), page
        assert len(document.findall(".//h1")) <= 1 or "source" in page.parts, page


def test_every_module_has_a_page_of_its_source(pages):
    "Those in rooms too, and the pages of the library lead there"
    sources = {SITE / "source" / f.relative_to(ROOT / "itemlm").with_suffix(".html") for f in (ROOT / "itemlm").rglob("*.py")}
    assert sources <= set(pages), [str(f) for f in sources - set(pages)]
    linked = set()
    for page, document in pages.items():
        links = map(urlsplit, document.xpath("//a[contains(@href, 'source/')]/@href"))
        linked |= {(page.parent / unquote(url.path)).resolve() for url in links if not url.netloc}
    rooms = {SITE / "source" / f.parent.relative_to(ROOT / "itemlm") for f in (ROOT / "itemlm").rglob("*.py") if f.stem != "__init__"}
    assert rooms <= {link.parent for link in linked}, "no page leads to the modules of a room"


def test_no_broken_links(pages):
    "Every internal link, anchor, picture, script and style sheet is there."
    ids = {p: set(d.xpath("//@id")) for p, d in pages.items()}
    broken = []
    for page, document in pages.items():
        for element in document.xpath("//*[@href or @src]"):
            url = urlsplit(element.get("href") or element.get("src") or "")
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if target.is_dir():
                target /= "index.html"
            if not target.exists() or (url.fragment and target in ids and unquote(url.fragment) not in ids[target]):
                broken.append(f"{page.relative_to(SITE)}: {url.geturl()}")
    assert not broken


@pytest.fixture(scope="module")
def site_in_browser(pages, browser):
    "The site's address, and a tab for it."
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=SITE)
    handler.log_message = lambda *args: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tab = browser.new_page()
    yield f"http://127.0.0.1:{server.server_port}", tab
    tab.close()
    server.shutdown()


def test_pages_open_in_a_browser(pages, site_in_browser):
    "No script fails and nothing comes from another address."
    (here, tab), problems = site_in_browser, []
    tab.on("pageerror", lambda error: problems.append(f"{tab.url}: {error}"))
    tab.on("request", lambda r: r.url.startswith((here, "data:", "blob:")) or problems.append(f"{tab.url}: {r.url}"))
    tab.on("response", lambda r: r.status >= 400 and problems.append(f"{tab.url}: {r.url} {r.status}"))
    for page in pages:
        tab.goto(f"{here}/{page.relative_to(SITE).as_posix()}")
        assert tab.title()
    assert not problems


@pytest.mark.parametrize(
    "query, page", [("deploy", "how-to/deploy.html"), ("onnx", "api/serving/onnx.html"), ("exclude items", "how-to/rules.html")]
)
def test_a_search_leads_to_its_page(site_in_browser, query, page):
    "The page that it is about stands first; a result on the page that is open closes the list."
    here, tab = site_in_browser
    tab.goto(f"{here}/{page}")
    tab.fill(".smalldocs-search input", query)
    first = tab.locator(".search-result").first
    first.wait_for()
    assert page in first.get_attribute("href")
    first.click()
    tab.wait_for_timeout(200)
    assert page in tab.url and not tab.locator(".smalldocs-search-results.show").count()


def test_readme_is_short_and_markdown():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= readme.LONGEST
    prose = "".join(text.split("```")[::2])
    assert not re.search(r"</?(table|tr|td|th|div|style|small|br)\b", prose), "HTML in README.md"


def output(**data) -> dict:
    "A saved output"
    return {"output_type": "display_data", "data": {kind.replace("_", "/"): text for kind, text in data.items()}}


def test_readme_takes_markdown_before_html():
    cell = {"cell_type": "code", "source": ["#| echo: false\n", "table"]}
    both = output(text_markdown="| a |\n| --- |\n| [b](c.ipynb) |\n", text_html="<table></table>", text_plain="a")
    assert readme.blocks(cell | {"outputs": [both]}) == ["| a |\n| --- |\n| [b](nbs/c.ipynb) |"]
    plain = {"cell_type": "code", "source": ["#| output: true\n", "1 + 1"], "outputs": [output(text_plain="2")]}
    assert readme.blocks(plain) == ["```python\n1 + 1\n```", "```\n2\n```"]
    assert readme.blocks(plain | {"source": ["#| hide\n", "1"]}) == []


def test_readme_turns_tables_into_markdown():
    shown = Table(head=["model", "ndcg@10"], rows=[["a|b", Value(0.1, 0.05, 0.2)], ["c <d>", 3]], title="T", note="A note.")
    lines = ["T", "", "| model | ndcg@10 |", "| --- | ---: |", "| a\\|b | 0.1000 (0.0500–0.2000) |", "| c &lt;d> | 3 |", "", "A note."]
    assert readme.shown(output(text_html=shown._repr_html_())).splitlines() == lines
    frame = pd.DataFrame({"title": ["x", "y"], "score": [-0.5, 2.0]}, index=pd.Index([1, 2], name="rank"))
    rows = ["| rank | title | score |", "| ---: | --- | ---: |", "| 1 | x | -0.5 |", "| 2 | y | 2.0 |"]
    assert readme.shown(output(text_html=frame._repr_html_())).splitlines() == rows
    two = shown._repr_html_() + frame._repr_html_()
    assert readme.markdown_of(two).splitlines() == [*lines, "", *rows]
