"""The documentation site builds, every page opens, and no link of it is broken."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from conftest import NOTEBOOKS, ROOT, named

SITE = ROOT / "_docs"


@pytest.fixture(scope="module")
def pages() -> dict[Path, BeautifulSoup]:
    "The site as `make docs` builds it: page -> its document."
    done = subprocess.run([sys.executable, "scripts/docs.py"], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    return {p: BeautifulSoup(p.read_text(), "html.parser") for p in SITE.rglob("*.html") if "site_libs" not in p.parts}


def test_every_notebook_is_a_page_and_in_the_sidebar(pages):
    sidebar = {a["href"] for a in pages[SITE / "index.html"].select("#quarto-sidebar a[href]")}
    for nb in NOTEBOOKS:
        page = nb.relative_to(ROOT / "nbs").with_name(nb.stem.lstrip("0123456789_") + ".html")
        assert SITE / page in pages, f"{named(nb)} has no page"
        assert page.as_posix() in sidebar, f"{named(nb)} is not in nbs/sidebar.yml"


def test_pages_have_titles(pages):
    for page, document in pages.items():
        assert document.title and document.title.get_text(strip=True), page
        assert len(document.find_all("h1")) <= 1 or "source" in page.parts, page


def test_no_broken_links(pages):
    "Every internal link, anchor, picture, script and style sheet is there."
    ids = {p: {e["id"] for e in d.select("[id]")} for p, d in pages.items()}
    broken = []
    for page, document in pages.items():
        for element in document.select("[href], [src]"):
            url = urlsplit(element.get("href") or element.get("src") or "")
            if url.scheme or url.netloc: continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if target.is_dir(): target /= "index.html"
            if not target.exists() or (url.fragment and target in ids and unquote(url.fragment) not in ids[target]):
                broken.append(f"{page.relative_to(SITE)}: {url.geturl()}")
    assert not broken


def test_pages_open_in_a_browser(pages, browser):
    "No script fails and nothing comes from another address."
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=SITE)
    handler.log_message = lambda *args: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    problems, tab = [], browser.new_page()
    tab.on("pageerror", lambda error: problems.append(f"{tab.url}: {error}"))
    tab.on("request", lambda r: r.url.startswith((here, "data:", "blob:")) or problems.append(f"{tab.url}: {r.url}"))
    tab.on("response", lambda r: r.status >= 400 and problems.append(f"{tab.url}: {r.url} {r.status}"))
    for page in pages:
        tab.goto(f"{here}/{page.relative_to(SITE).as_posix()}")
        assert tab.title()
    tab.close()
    server.shutdown()
    assert not problems
