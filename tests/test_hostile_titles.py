"""Whatever a title, an attribute, an id or the name of a run holds is shown as text: in tables, pages, figures and widgets, on every tab.

And catalogues so small that a list cannot be filled, titles of a megabyte, and views that are closed.
"""

import gc
import html
import json
import re
import tracemalloc
import weakref
from dataclasses import replace
from html.parser import HTMLParser

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from ipywidgets.widgets.widget import _instances as alive

from itemlm.data.events import read_events
from itemlm.data.split import Split, split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.report import evaluate
from itemlm.explain import because, trace, what_if
from itemlm.explore import explore, to_html
from itemlm.explore.search import TitleIndex
from itemlm.explore.views import MapView
from itemlm.explore.widgets import Page, close_whole, found_html
from itemlm.jobs import show_users
from itemlm.models.item_lm import ItemLM, ItemLMConfig
from itemlm.serving.recommender import Recommender
from itemlm.show import item_names, plot_text

LONG = "long " * 200_000  # a megabyte
TEXTS = [
    "$x^2$ and $5",
    "$$y$$",
    r"\(z\) \[z\] \begin{a}",
    "<b>bold</b>",
    "<a href='javascript:hostile()'>link</a>",
    "one<br>two<br/>three",
    "%{y} %{customdata[0]} %%{x}",
    "<img src=x onerror=hostile()>",
    "</script><script>hostile()</script>",
    "\"quotes' &amp; &lt;",
    "<!-- no",
    "two\nlines\r\nand\ttab",
    " ",
    "",
    "\u202eturned",
    "\u2067\u05d0\u05d1 5",
    "nul\x00 bell\x07 escape\x1b[31m",
    "{braces} ${js}",
    "<sup>2</sup>",
]
ODD = [
    1995,
    7.5,
    True,
    None,
    np.nan,
    pd.NA,
    pd.NaT,
    ["a <b>", None, ["$n$"]],
    {"en": "<i>"},
    np.array([["$1$", "<u>"]]),
    b"bytes <b>",
    "half \ud800",
]
TITLES = [*TEXTS, LONG, *ODD]
RUN = "a <b>run & $x$ %{y}"


def objects(values: list) -> pd.Series:
    "A column of anything."
    column = np.empty(len(values), object)
    column[:] = values
    return pd.Series(column)


def walks(n_items: int, users: int = 9, length: int = 6) -> pd.DataFrame:
    "Users who walk through the items one after another, some of them hostile themselves."
    names = ["<b>u</b> $1$ $", "u\n2", "%{u}", "u <script>"] + [f"u{n}" for n in range(users)]
    return pd.DataFrame(
        [
            (user, f"i{(3 * n + step) % n_items}", 1_400_000_000 + 1000 * n + step)
            for n, user in enumerate(names[:users])
            for step in range(length)
        ],
        columns=["user", "item", "time"],
    )


def made(n_items: int, items: pd.DataFrame | None = None, **how) -> tuple[Recommender, Split]:
    "An untrained recommender of a small log, with this table of items."
    events = read_events(walks(n_items, **how), verbose=False, duplicates="keep")
    if items is not None:
        events = replace(events, items=items.set_index(pd.Index([f"i{n}" for n in range(len(items))])).loc[events.items.index])
    parts = split(events)
    tokenizer = ItemTokenizer.from_split(parts)
    torch.manual_seed(0)
    model = ItemLM(ItemLMConfig(n_items=tokenizer.n_items, width=16, heads=2, layers=1, hidden=24, max_len=8)).eval()
    return Recommender.from_split(model, tokenizer, parts), parts


def table(titles: list) -> pd.DataFrame:
    "Titles, and attributes as hostile as they: a list, a truth, texts, a table of names, long texts."
    n = np.arange(len(titles))
    attributes = {
        "genres": objects([["<b>$g$", f"%{{g}}{i % 3}"] if i % 4 else [] for i in n]),
        "<i>truth</i> $t$ $": n % 2 == 0,
        "maker": objects([TEXTS[i % 5] for i in n]),
        "more": objects([{"a": None, "<u>": i % 2} for i in n]),
        "nested": objects([np.array([["$", "<s>"], ["\\(", "b"]]) for _ in n]),
        "text": objects([LONG if i == 3 else "" for i in n]),
    }
    return pd.DataFrame({"title": objects(titles), **attributes})


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    "A workspace of its own."
    folder, monkeypatch = tmp_path_factory.mktemp("hostile"), pytest.MonkeyPatch()
    (folder / "settings.ini").write_text("[workspace]\ncache = cache\nruns = runs\n")
    monkeypatch.chdir(folder)
    yield folder
    monkeypatch.undo()


@pytest.fixture(scope="module")
def hostile() -> tuple[Recommender, Split]:
    return made(len(TITLES), table(TITLES), users=12, length=9)


@pytest.fixture(scope="module")
def folder(place):
    "The same as a run with a hostile name, and another one; what no file holds is left out."
    rec, parts = made(len(TEXTS), table(TEXTS)[["title", "genres", "maker"]])
    for name in (RUN, "other"):
        rec.save(place / "runs" / name)
        evaluate(rec, parts).save(place / "runs" / name)
    return place / "runs" / RUN


# --- what is looked at -----------------------------------------------------------------------------------------------

VOID = {"br", "hr", "meta", "path", "circle"}
TAGS = set("b br button code circle div h4 hr li ol p path small span svg table tbody td th thead tr details summary i".split())


class Reader(HTMLParser):
    "What a browser and a typesetter of formulas find in a page."

    def __init__(self, text: str, static: bool = False):
        super().__init__()
        self.allowed = TAGS | (set("html head body meta title style script a".split()) if static else set())
        self.texts, self.stack, self.static = [], [], static
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        assert tag in self.allowed, tag
        for name, value in attributes:
            if (name, tag, attributes[0]) == ("onclick", "div", ("class", "runs")) and "<" not in value:
                continue  # the table of runs sorts itself
            assert not name.startswith("on") and "javascript:" not in (value or "") or name in ("title", "aria-label"), (name, value)
            assert len(value or "") < 2000
            assert name not in ("src", "href") or self.static and re.fullmatch(r"[\w.-]+", value), value
        if tag not in VOID:
            self.stack.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop()[0] == tag

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_data(self, data):
        if self.stack and self.stack[-1][0] in ("script", "style"):
            return
        if "$" in data or "\\" in data:  # alone, in an element that typesetters pass over
            assert data in ("$", "\\") and "mathjax_ignore" in self.stack[-1][1].get("class", ""), data
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", data)
        self.texts.append(data)


def read(text: str, static: bool = False) -> str:
    "The words of a page that has passed."
    text.encode()
    reader = Reader(text, static)
    assert reader.stack == [] or static
    return "".join(reader.texts)


def look(node, found: list, key: str = "") -> list[str]:
    "All texts of a figure; none of them is markup, a formula or a variable."
    if isinstance(node, dict):
        for name, part in node.items():
            if name not in ("bdata", "template"):
                look(part, found, name)
    elif isinstance(node, list):
        for part in node:
            look(part, found, key)
    elif isinstance(node, str):
        template = key in ("hovertemplate", "texttemplate")  # ours; a title is never in it
        assert len(node) < 1500 and not re.search(r"[$]|<[^be/]|<b>" if template else r"[<>$]|%{", node), node
        node.encode()
        found.append(html.unescape(node))
    return found


def pages(widget) -> list[Page]:
    "All pages in a widget."
    return [widget] * isinstance(widget, Page) + [page for child in getattr(widget, "children", ()) for page in pages(child)]


def shown(widget) -> tuple[str, list[str]]:
    "Words of all pages in a widget, and texts of all figures."
    words, labels = [], []
    for page in pages(widget):
        words.append(read(page.html))
        for figure in page.content["figures"]:
            look(json.loads(figure), labels)
        look({"text": page.marks.get("text", [])}, labels)
    return "\n".join(words), labels


def use(explorer, most: int = 99) -> dict[str, tuple[str, list[str]]]:
    "Every tab with every control that brings titles to the screen, each at so many settings at most."
    found = {}
    for index, name in enumerate(explorer.views):
        explorer.tabs.selected_index = index
        view = explorer.built[index]
        assert not isinstance(view, Page) or name == "Side by side", view.html  # a sentence instead of the view
        if name == "Map":
            view.labels = []
            for by in view.by.options[:most]:
                view.by.value = by
                view.labels += shown(view)[1]
            for column in range(0, explorer.rec.n_items, 3)[:most]:
                view.pick(column)
                shown(view.near)
            view.find.value = "i"
        if name == "Users":
            for row in view.rows[:most]:
                view.show(int(row))
                shown(view)
            view.controls.seen.value = "keep"
        if name == "What-if":
            for item in explorer.rec.tokenizer.items[: min(most, 5)]:
                view.edit([*view.history, item])
            view.find.value = "i"
        if name == "Side by side" and not isinstance(view, Page) and view.pair:
            view.pick(explorer.rec.tokenizer.items[view.pair.columns[0]])
        found[name] = shown(view)
    assert not [w for w in alive.values() if isinstance(w, ipywidgets.HTML | ipywidgets.HTMLMath | ipywidgets.Label)]  # each typesets
    return found


# --- titles ----------------------------------------------------------------------------------------------------------


def test_every_tab(hostile):
    rec, parts = hostile
    explorer = explore(rec, parts)
    found = use(explorer)
    assert "<b>bold</b>" in found["Map"][0] + found["Users"][0] + found["What-if"][0]
    names = item_names(rec.items)
    assert all(html.unescape(plot_text(name)) in found["Map"][1] for name in names)  # every point's hover box
    assert "<b>$g$" in explorer.built[0].labels and "<i>truth</i> $t$ $" in read(explorer.built[0].near.html)
    close_whole(explorer)


def test_every_tab_of_a_run(folder):
    explorer = explore(folder)
    found = use(explorer, 1)
    assert list(found) == ["Map", "Users", "What-if", "At work", "Side by side", "Runs"]
    explorer.tabs.selected_index = 1
    view = explorer.built[1]
    view.controls.beside.value = str(folder.parent / "other")
    view.controls.beside.options = [(RUN, str(folder))]
    assert RUN in shown(view)[0]
    close_whole(explorer)


def test_static_pages(folder, tmp_path):
    for path in to_html(folder, tmp_path, beside=folder.parent / "other"):
        text = path.read_text(encoding="utf-8")
        words = read(text, static=True)
        assert "https://" not in text and "http://" not in text.replace("http://www.w3.org", "")
        for data in re.findall(r'Plotly\.newPlot\(\s*"[\w-]+",\s*(\[.*?\]),\s*\{"', text, re.DOTALL):
            look(json.loads(data), [])
        assert path.stem in ("index", "map", "runs", "side-by-side") or "$" in words
    assert RUN in read((tmp_path / "index.html").read_text(), static=True)


def test_static_pages_in_a_browser(browser, folder, tmp_path):
    "No script runs, no markup is made, and legends say what the table says."
    to_html(folder, tmp_path)
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    for name in ("map", "users", "at-work"):
        page.goto((tmp_path / f"{name}.html").as_uri())
        page.wait_for_function("[...document.querySelectorAll('.plotly-graph-div')].every(g => g._fullLayout)")
        assert page.evaluate("document.querySelectorAll('svg a, svg sup, .itemlm img, [onerror], svg [style*=bold]').length") == 0
        if name == "map":
            assert "<b>$g$" in page.locator(".legendtext").all_text_contents()
    page.close()
    assert not problems


def test_tables(hostile):
    "The report of the job, and what explains a list, have names in them that a page and a terminal can bear."
    rec, parts = hostile
    shown = show_users(rec, parts, n=12, k=5)
    assert "<b>bold</b>" in read(shown._repr_html_()) and len(str(shown)) < 100_000
    history = rec.tokenizer.items[:6].tolist()
    for found in (because(rec, history, k=50), what_if(rec, history, history[:2], k=50), trace(rec, history, k=50)):
        assert all(isinstance(title, str) and title and len(title) <= 302 for title in found["title"])
    assert shown.to_markdown().count("\n") == len(shown.rows) + 1


@pytest.mark.parametrize("title", [2000, 2000.0, None, True], ids=str)
def test_titles_of_one_kind(title):
    "A whole column of numbers, of truths, of nothing."
    column = [title] * 12 if not isinstance(title, float) else [title, np.nan] * 6
    rec, parts = made(12, pd.DataFrame({"title": column}))
    names = item_names(rec.items)
    assert rec.recommend(items=names[:0].tolist(), k=99)["title"].map(type).eq(str).all()
    assert names[0] == ("2000" if isinstance(title, float) else str(title) if title else rec.tokenizer.items[0])
    view = MapView(rec)
    view.find.value = names[0]
    view.pick(0)
    assert names[0] in shown(view)[0]
    assert names[0] in read(show_users(rec, parts, k=3)._repr_html_())
    close_whole(view)


# --- small catalogues ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_items", [1, 2, 3, 4, 7])
def test_small_catalogues(n_items, tmp_path):
    "Lists are shorter than asked for; users have had everything; each tab and each page is there."
    rec, parts = made(n_items, users=4, length=8)
    explorer = explore(rec, parts)
    found = use(explorer, 2 if n_items in (1, 4) else 0)
    assert "No item is left to recommend" in found["At work"][0] or n_items == 7
    slider = explorer.built[1].controls.k
    assert slider.min < slider.max and slider.min <= slider.value <= slider.max
    close_whole(explorer)
    history = rec.tokenizer.items.tolist()
    assert len(rec.recommend(items=history)) == 0 and len(rec.recommend(items=history[:1])) == n_items - 1
    assert len(because(rec, history)) == len(what_if(rec, history, history)) == 0
    assert len(because(rec, history[:1])) == n_items - 1 and len(because(rec, history, k=99, seen="keep")) == n_items
    read("".join(path.read_text() for path in to_html(rec, tmp_path)), static=True)
    report = evaluate(rec, parts)
    assert report.metric("recall@10", seen="keep")["mean"] == 1
    assert {row["protocol"]["seen"] for row in report.results} == {"drop", "keep"}


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_title_of_a_megabyte_costs_a_megabyte(hostile):
    "Not items times the longest title: neither in the index, nor at a key, nor on the page."
    items = pd.DataFrame({"title": [f"T{n}" for n in range(3000)], "count": np.arange(3000)}, index=[f"i{n}" for n in range(3000)])
    items.loc["i7", "title"] = LONG + "needle"
    tracemalloc.start()
    index = TitleIndex.from_items(items)
    assert index.find("needle").tolist() == [7] and index.find("t1")[0] == 1999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(LONG)
    assert len(found_html(hostile[0], "long")) < 5000


def test_closed_views_are_closed(hostile):
    "However often another run is opened, the kernel holds the widgets of one."
    explorer = explore(*hostile)
    counts, views, view = [], [], None
    for _ in range(2):
        for index in range(len(explorer.views)):
            explorer.tabs.selected_index = index
        for view in explorer.built.values():
            views.append(weakref.ref(view))
        counts.append(len(alive))
        explorer.built[0].by.value = "popularity"
        explorer.open_run()
    assert len(set(counts)) == 1
    del view
    gc.collect()
    assert sum(view() is not None for view in views) <= len(explorer.built)
    before = len(alive)
    close_whole(explorer)
    assert len(alive) < before - 10
