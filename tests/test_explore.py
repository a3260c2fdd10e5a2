"""The explorer in a real JupyterLab (and Voila), driven by a real browser: every control is used, the page is read.

Screenshots land in tmp/explore/ (git-ignored), to be looked at. The short form is part of `make test`; the long one adds Voila,
a wide screen and the dark theme.
"""

import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.evaluation.report import evaluate
from itemlm.explain import because, effects, trace
from itemlm.explore import explore, to_html
from itemlm.explore.search import TitleIndex, title_index
from itemlm.explore.views import MapView, UserView, WhatIfView
from itemlm.explore.widgets import plotly_library
from itemlm.models.item_lm import tiny
from itemlm.serving import recommender as serving
from itemlm.serving.recommender import load
from itemlm.training.trainer import fit

TOKEN = "explore-test"
SHOTS = ROOT / "tmp/explore"
SETTINGS = "[workspace]\ndata =\n    {data}\ncache = cache\nruns = runs\ndataset = ml-latest-small\n"
CELLS = [{"cell_type": "code", "id": id, "metadata": {}, "source": source, "outputs": [], "execution_count": None}
         for id, source in (("a", "from itemlm.explore import explore"), ("b", "explore()"))]  # fmt: skip
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("explore"))


def make_place(folder):
    "A workspace of its own with two small runs and a copy of the notebook."
    (folder / "settings.ini").write_text(SETTINGS.format(data=ROOT / "data"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for so small a model on a busy machine
    parts = split(load_dataset("ml-latest-small"))
    for name, epochs in (("other", 1), ("main", 2)):  # the newest is opened first
        rec = fit(parts, tiny(epochs=epochs), out_dir=folder / "runs" / name, device="cpu", verbose=False)
        evaluate(rec, parts).save(folder / "runs" / name)
    torch.set_num_threads(threads)
    (folder / "nbs").mkdir()
    shutil.copy(ROOT / "nbs/explore.ipynb", folder / "nbs")
    return folder


@contextmanager
def server(place, *command, path="api/status"):
    "A server on loopback, waited for until it answers."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    names = ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    private = {name: str(place / name) for name in names}
    with open(place / "server.log", "ab") as log:
        running = subprocess.Popen([sys.executable, "-m", *command, f"--port={port}"], cwd=place, stdout=log, stderr=log,
                                   env=os.environ | private | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"})  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(180):
            assert running.poll() is None, (place / "server.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{address}{path}?token={TOKEN}", timeout=60).read()
                break
            except urllib.error.HTTPError:
                break  # an answer
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("the server does not answer: " + (place / "server.log").read_text()[-3000:])
        yield address
    finally:
        running.terminate()
        running.wait(30)


def lab(place):
    "JupyterLab with a token."
    root = ["--allow-root"] if os.name == "posix" and os.getuid() == 0 else []
    return server(place, "jupyterlab", "--no-browser", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={place}",
                  "--ServerApp.port_retries=0", *root)  # fmt: skip


def set_lab(place, theme):
    "The theme, and no question about news."
    folder = place / "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "themes.jupyterlab-settings").write_text(json.dumps({"theme": f"JupyterLab {theme}"}))
    (folder / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))


@contextmanager
def lab_page(browser, place, address, width=1280, theme="Light"):
    "The notebook in JupyterLab, all cells run, the map drawn."
    set_lab(place, theme)
    page = browser.new_page(viewport={"width": width, "height": 1000})
    page.set_default_timeout(60_000)
    try:
        page.goto(f"{address}lab/tree/nbs/explore.ipynb?token={TOKEN}&reset", wait_until="domcontentloaded")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
        until(lambda: run_all(page))
        started = until(lambda: "[1]:" in "".join(texts(page, ".jp-InputPrompt")) and time.monotonic())  # the cell of imports is done
        page.wait_for_selector(".js-plotly-plot canvas", state="attached")
        page.first_view_seconds = time.monotonic() - started
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
        page.locator(".itemlm-explorer").scroll_into_view_if_needed()  # JupyterLab draws what is on the screen
        yield page
    except Exception:
        shot(page, f"failed-{theme.lower()}-{width}")
        raise
    finally:
        page.close()


def run_all(page):
    "Ask for all cells to be run; whether the kernel, which may not be ready, took them."
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    page.wait_for_timeout(300)
    return any(re.search(r"\[[*\d]", text) for text in texts(page, ".jp-InputPrompt"))


def shot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def texts(page, selector):
    "What the elements say."
    return page.locator(selector).all_inner_texts()


def until(condition, seconds=60):
    "Wait until a condition on the page holds."
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the page did not change as it should"
        time.sleep(0.1)
    return value


def tab(page, name):
    page.locator(".lm-TabBar-tabLabel", has_text=re.compile(f"^{name}$")).first.click()


LONELY = """() => {
  const gd = document.querySelector('.itemlm-map .js-plotly-plot'), l = gd._fullLayout, box = gd.getBoundingClientRect(), all = [];
  for (const t of gd._fullData) if (t.visible === true) for (let i = 0; i < t.x.length; i++)
    all.push([l.xaxis.l2p(t.x[i]) + l.xaxis._offset, l.yaxis.l2p(t.y[i]) + l.yaxis._offset, t.text[i]]);
  const far = (p) => Math.min(...all.filter(q => q !== p).map(q => Math.hypot(p[0] - q[0], p[1] - q[1])));
  const inside = all.filter(p => p[0] > 20 && p[1] > 80 && p[0] < l.width - 140 && p[1] < l.height - 30);
  const best = inside.map(p => [far(p), p]).sort((a, b) => b[0] - a[0])[0][1];
  return [best[0] + box.left, best[1] + box.top, best[2]];
}"""  # the point farthest from all others: where it is on the screen, and its title


def label(page, name):
    return page.get_by_label(name, exact=True).locator("visible=true")


def press(page, name):
    page.get_by_role("button", name=re.compile(rf"^\W*{name}$")).locator("visible=true").click()  # an icon stands before the name


def says(page, selector, text):
    "Wait until a visible part of the page says something; all that it says."
    return until(lambda: text in (said := "\n".join(texts(page, f"{selector} >> visible=true"))) and said)


def lists(page, kind, n):
    "Titles of a page's n-th list."
    return page.locator(f".itemlm-{kind}:visible ol").nth(n).locator(".t").all_inner_texts()


def use_map(page, projection=False):
    "Search by title, pick a result, follow a neighbour, change colours and projection, click a point."
    label(page, "Find title").fill("star wars")
    says(page, ".itemlm-found", "Star Wars")
    page.locator(".itemlm-found button").first.click()
    shown = says(page, ".itemlm-near", "Star Wars")
    assert page.locator(".itemlm-near ol").first.locator("li").count() >= 10
    for part in ("genres", "times in training", "Taken over time", "most:", "Nearest by cosine", "Taken next", " ×"):
        assert part in shown
    neighbour = lists(page, "near", 0)[0]
    page.locator(".itemlm-near ol button").first.press("Enter")  # by keyboard
    until(lambda: texts(page, ".itemlm-near h4.name") == [neighbour])
    label(page, "Find title").fill("no such film")
    says(page, ".itemlm-found", "try fewer letters")
    label(page, "Colour by").select_option("cluster")
    until(lambda: any("like " in text for text in page.locator(".js-plotly-plot .legendtext").all_text_contents()))
    label(page, "Colour by").select_option("first seen")
    colourbar = ".js-plotly-plot .infolayer .cbaxis, .js-plotly-plot .infolayer [class*=colorbar]"
    page.wait_for_selector(colourbar, state="attached")
    if projection:
        was = page.evaluate(PLACES)
        label(page, "Projection").select_option("UMAP")
        says(page, ".itemlm-status", "in the background")
        label(page, "Find title").fill("toy story")  # the kernel goes on answering
        says(page, ".itemlm-found", "Toy Story")
        until(lambda: page.evaluate(PLACES) not in (was, ""), 120)
        until(lambda: not "".join(texts(page, ".itemlm-status")))
    page.wait_for_timeout(500)
    before = texts(page, ".itemlm-near h4.name")
    x, y, title = page.evaluate(LONELY)
    page.mouse.move(x - 4, y)
    page.mouse.move(x, y)
    page.wait_for_selector(".js-plotly-plot .hovertext", state="attached")
    page.mouse.click(x, y)
    until(lambda: texts(page, ".itemlm-near h4.name") != before)
    assert texts(page, ".itemlm-near h4.name")[0].startswith(html.unescape(title)[:60])


PLACES = "() => document.querySelector('.itemlm-map .js-plotly-plot')?._fullData?.[1].x.slice(0, 5).join() || ''"


def use_users(page, expected):
    "Find a user, read history, list and hidden item; k, slices, a random user, seen items kept, the other run beside."
    tab(page, "Users")
    page.wait_for_selector(".itemlm-user ol")
    label(page, "Find user").fill(expected["user"])
    said = says(page, ".itemlm-user", f"User {expected['user']},")
    assert expected["rank"] in said and expected["date"] in said and all(title in said for title in expected["titles"])
    points = until(lambda: page.locator(".itemlm-user .js-plotly-plot").evaluate("gd => gd._fullData?.map(t => [t.name, t.x.length])"))
    assert points[-1] == ["hidden item", 1] and points[0][0] == "history"
    assert page.locator(".itemlm-user .js-plotly-plot .legendtext").all_text_contents() == ["history", "hidden item"]
    drop = lists(page, "user", 1)
    assert drop == expected["drop"]
    press(page, "Keep them")
    until(lambda: lists(page, "user", 1) == expected["keep"])
    press(page, "Drop seen items")
    until(lambda: lists(page, "user", 1) == drop)
    page.locator(".widget-slider:visible [role=slider], .widget-slider:visible .noUi-handle").first.press("ArrowRight")
    until(lambda: len(lists(page, "user", 1)) == 11 and lists(page, "user", 1)[:10] == drop)
    label(page, "Beside").select_option("other")
    until(lambda: page.locator(".itemlm-user .columns > div").count() == 3)
    says(page, ".itemlm-user", "items are in both lists")
    label(page, "Find user").fill("no such user")
    says(page, ".itemlm-user", "No user of this slice")
    label(page, "Find user").fill("")
    for name, user in expected["slices"].items():
        label(page, "Slice").select_option(name)
        said = says(page, ".itemlm-user", f"User {user},")
    assert expected["wrong"] in said  # the last slice is where the model is wrong by most
    label(page, "Slice").select_option("everybody")
    seen = set()
    for _ in range(3):  # two of three random users may be the same
        press(page, "Random user")
        page.wait_for_timeout(1000)
        seen |= set(texts(page, ".itemlm-user h4 >> nth=0"))
    assert len(seen) > 1


def use_what_if(page, expected):
    "A stranger's history from nothing: add two films, move and take them out by keyboard, begin with a user; the list must follow."
    tab(page, "What-if")
    page.wait_for_selector(".itemlm-board:visible")
    board = lambda: "".join(texts(page, ".itemlm-board"))
    begun = board()
    assert page.locator(".itemlm-board svg path").count()  # because you viewed
    press(page, "Empty")
    empty = until(lambda: board() != begun and board())
    for words, title in (("star wars", "Star Wars"), ("lion king", "Lion King")):
        before = board()
        label(page, "Add title").fill(words)
        until(lambda: title in "".join(texts(page, ".itemlm-found:visible")))
        page.locator(".itemlm-found:visible [data-do=add]").first.click()
        until(lambda: board() != before and title in board())
    order, moved = lists(page, "board", 0), board()
    page.locator(".itemlm-board [data-do=up]:not(:disabled)").first.press("Enter")
    until(lambda: lists(page, "board", 0) == order[::-1])
    assert board() != moved
    assert page.evaluate("document.activeElement.closest('li')?.innerText").find(order[1]) >= 0  # the focus goes with the item
    page.keyboard.press("Enter")  # its only way left is back
    until(lambda: lists(page, "board", 0) == order)
    page.locator(".itemlm-board [data-do=add]").first.click()  # of the recommendations
    until(lambda: len(lists(page, "board", 0)) == 3)
    for left in (2, 1, 0):
        page.locator(".itemlm-board [data-do=remove]").first.click()
        until(lambda: page.locator(".itemlm-board [data-do=remove]").count() == left)
    until(lambda: board() == empty)
    press(page, "Start over")
    until(lambda: board() == begun)
    label(page, "Begin with user").fill(expected["user"])
    label(page, "Begin with user").press("Enter")
    until(lambda: lists(page, "board", 0)[:3] == expected["titles"][2::-1])
    label(page, "Begin with user").fill("no such user")
    label(page, "Begin with user").press("Enter")
    says(page, ".itemlm-board", "There is no user")
    press(page, "Start over")
    until(lambda: lists(page, "board", 0)[:3] == expected["titles"][2::-1])


def use_work(page, expected):
    "A user's history read step by step, and every head once."
    tab(page, "At work")
    label(page, "User").fill(expected["user"])
    label(page, "User").press("Enter")
    drawn = lambda: page.locator(".itemlm-trace .js-plotly-plot text").all_text_contents()
    until(lambda: all(title[:20] in "".join(drawn()) for title in expected["drop"]))
    assert "rank of the hidden item" in "".join(drawn())
    assert expected["rank"].split()[1] in drawn()
    heads = page.locator(".itemlm-looks [data-do=head]")
    for at in range(1, heads.count()):
        name = heads.nth(at).inner_text().strip()
        heads.nth(at).press("Enter")
        says(page, ".itemlm-looks", f"In {name}, the last step, {expected['last']}, looks most at:")
    heat = page.locator(".itemlm-looks .js-plotly-plot").nth(1)
    assert until(lambda: heat.evaluate("gd => gd._fullData?.[0].z.flatMap(r => [...r]).filter(Number.isFinite).length")) > 5
    before = texts(page, ".itemlm-looks")
    press(page, "Random user")
    until(lambda: texts(page, ".itemlm-looks") != before)


def use_pair(page, expected):
    "This run beside its own beginning, then beside the other run: the same item in both."
    tab(page, "Side by side")
    says(page, ".itemlm-pair", expected["kept"])
    plot = page.locator(".itemlm-map:visible .js-plotly-plot")
    until(lambda: plot.count() == 1)
    label(page, "Find title").fill("star wars")
    says(page, ".itemlm-found", "Star Wars")
    page.locator(".itemlm-found:visible button").first.click()
    says(page, ".itemlm-pair", "of its 10 neighbours are the same")
    assert "Nearest in its beginning" in "".join(texts(page, ".itemlm-pair"))
    until(lambda: plot.evaluate("gd => gd._fullData.slice(-6).map(t => t.x.length)") == [10, 10, 1] * 2)
    legend = plot.locator(".legendtext").all_text_contents()
    assert all(name in legend for name in ("nearest to it", "nearest to it in the other", "picked"))
    label(page, "Colour by").select_option("neighbours kept")
    until(lambda: plot.count() == 1 and plot.evaluate("gd => gd._fullData?.length") == 8)
    label(page, "Beside").select_option("other")
    says(page, ".itemlm-pair", "nearest in other")
    changed = lists(page, "pair", 0)[0]
    page.locator(".itemlm-pair ol button").first.click()
    until(lambda: texts(page, ".itemlm-pair h4.name") == [changed])


def use_runs(page):
    "The table sorted by its headings, and two runs compared."
    tab(page, "Runs")
    page.wait_for_selector(".runs table")
    rows = lambda: page.locator(".runs tbody tr td:first-child").all_inner_texts()
    assert sorted(rows()) == ["main", "other"]
    page.locator(".runs th button", has_text="epochs").click()
    until(lambda: rows() == ["other", "main"])
    page.locator(".runs th button", has_text="epochs").press("Enter")
    until(lambda: rows() == ["main", "other"])
    said = until(lambda: "Users won and lost" in (said := "".join(texts(page, ".itemlm-compare"))) and said)
    assert "epochs" in said and "NDCG@10" in said.upper() and "rank in main" in said
    assert all(head in said for head in ("What was set", "Learning curves", "What came out", "Slices"))
    until(lambda: page.locator(".itemlm-compare .js-plotly-plot:visible").count() == 2)
    assert page.locator(".itemlm-compare th", has_text="main − other").count()
    label(page, "First").select_option("main")
    says(page, ".itemlm", "Choose two runs")
    label(page, "Second").select_option("other")
    until(lambda: page.locator(".itemlm-compare th", has_text="other − main").count())


@pytest.fixture(scope="module")
def expected(place):
    "What the page must say, found without a page; the user is one whose list the seen filter changes."
    explorer = explore(place / "runs/main")
    explorer.tabs.selected_index = 1
    view = explorer.built[1]
    rec, held = view.rec, view.held
    for row, user in enumerate(held.users):
        starts = sum(other.startswith(user) for other in held.users)
        lists = {seen: list(rec.titles(rec.topk(held.histories.take([row]), 10, seen)[0][0])) for seen in ("drop", "keep")}
        if starts == 1 and held.targets[row] >= 0 and lists["drop"] != lists["keep"]:
            break
    view.show(row)
    rank = html.unescape(re.search(r"stands at rank <b>([\d,]+)</b>", view.page.html)[1])
    newest = list(rec.titles(rec.tokenizer.items[held.histories[row][-3:] - rec.tokenizer.n_special]))
    events = load_dataset("ml-latest-small")
    sequence = events.sequences.offsets[list(events.users).index(user) + 1] - 2  # the newest but the hidden one
    slices = {name: held.users[rows[0]] for name, rows in view.slices.items() if name != "everybody"}
    slices["model most wrong"] = slices.pop("model most wrong")  # last
    worst = pd.read_parquet(place / "runs/main/per_user.parquet").query("part == 'test' and protocol == 'drop'")["rank"]
    explorer.tabs.selected_index = explorer.views.index("Side by side")
    return lists | {
        "user": user, "rank": f"rank {rank} of", "titles": [*newest, rec.items["title"].iloc[held.targets[row]]], "last": newest[-1],
        "date": str(np.datetime64(int(events.times[sequence]), "s"))[:10], "slices": slices,
        "wrong": f"rank {worst[np.isfinite(worst)].max():,.0f} of",
        "kept": f"On average {explorer.built[4].pair.mean:.0%} of an item's 10 nearest items in this run",
    }  # fmt: skip


UNFIT = """() => {
  const bad = [], whole = document.querySelector('.itemlm-explorer').getBoundingClientRect().right + 1;
  for (const g of document.querySelectorAll('.itemlm .js-plotly-plot')) { if (!g.offsetWidth) continue;
    const frame = g.closest('.figure'), width = g._fullLayout?.width, cut = frame.getBoundingClientRect().right > whole;
    if (!(Math.abs(width - frame.clientWidth) < 2) || cut) bad.push(['figure', width, frame.clientWidth]);
    const bar = g.querySelector('.modebar')?.getBoundingClientRect();
    if (bar?.width && bar.left < g.getBoundingClientRect().right - 1) bad.push(['buttons cover the figure', bar.left]); }
  for (const t of document.querySelectorAll('.itemlm table')) { if (!t.offsetWidth) continue;
    const room = t.parentElement.getBoundingClientRect();
    if (t.getBoundingClientRect().right > room.right + 1) bad.push(['table', t.innerText.slice(0, 60)]); }
  return bad;
}"""  # figures that are not as wide as their frames, or covered; tables that are cut


def fits(page, name):
    "Wait until everything that is seen has its place, and take a picture"
    until(lambda: page.evaluate(UNFIT) == [], 20)
    shot(page, name)


def wheel_over(page):
    "Range of the map's axis before and after the wheel was turned over it, with Ctrl and without"
    plot = page.locator(".itemlm-map:visible .js-plotly-plot")
    ranges = lambda: plot.evaluate("gd => [...gd._fullLayout.xaxis.range]")
    box, found = plot.bounding_box(), [ranges()]
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for key in ("Shift", "Control"):
        page.keyboard.down(key)
        page.mouse.wheel(0, -120)
        page.keyboard.up(key)
        page.wait_for_timeout(400)
        found.append(ranges())
    return found


def tour(page, width):
    "Every tab at another width, the map last: it was resized while another tab was looked at"
    page.set_viewport_size({"width": width, "height": 1000})
    for name in ("Users", "What-if", "At work", "Side by side", "Runs", "Map"):
        tab(page, name)
        fits(page, f"{name.replace(' ', '-').lower()}-{width}")


def test_lab(browser, place, expected):
    "The short form: every control once, at 1280; everything has its place, at 1920 too."
    with lab(place) as address, lab_page(browser, place, address) as page:
        lost = []
        page.on("console", lambda message: "WebGL" in message.text and lost.append(message.text))
        until(lambda: label(page, "Run").locator("option").all_text_contents()[:1] == ["main"])
        begun, plain, control = wheel_over(page)
        assert begun == plain != control
        use_map(page, projection=True)
        fits(page, "map-light-1280")
        for _ in range(3):  # more maps than a browser has WebGL contexts
            for by in ("genres", "cluster", "popularity", "year", "first seen"):
                label(page, "Colour by").select_option(by)
                page.wait_for_timeout(400)
        assert page.locator(".itemlm .js-plotly-plot").count() == 2 and not lost
        use_users(page, expected)
        fits(page, "users-light-1280")
        use_what_if(page, expected)
        use_work(page, expected)
        fits(page, "work-light-1280")
        use_pair(page, expected)
        fits(page, "pair-light-1280")
        use_runs(page)
        fits(page, "runs-light-1280")
        tour(page, 1920)
        tab(page, "Runs")
        label(page, "Run").select_option("other")
        until(lambda: page.locator(".itemlm-compare th", has_text="other − main").count())
        tab(page, "Map")
        page.wait_for_selector(".js-plotly-plot:visible")
        shutil.copytree(place / "runs/main", place / "runs/gone")
        try:
            press(page, "Refresh")
            until(lambda: "gone" in label(page, "Run").locator("option").all_text_contents())
            until(lambda: label(page, "Run").evaluate("s => s.selectedOptions[0]?.text") == "other")  # the same run, opened again
        finally:
            shutil.rmtree(place / "runs/gone", ignore_errors=True)
        label(page, "Run").select_option("gone")
        says(page, ".itemlm-status", "cannot be opened")
        press(page, "Refresh")
        until(lambda: "gone" not in label(page, "Run").locator("option").all_text_contents())
        assert not page.locator(".jp-RenderedText[data-mime-type*=stderr]").count()
    assert (place / "runs/main/map.npz").exists()  # UMAP is kept with the run


def test_error_states(place, tmp_path):
    "A run of another format, a damaged one, none at all: one sentence and a way on, without a page."
    assert "There is no run yet" in explore_in(tmp_path)
    for name, change in (("newer", lambda text: text.replace('"format": 3', '"format": 99')), ("damaged", lambda text: text[:50])):
        shutil.copytree(place / "runs/main", tmp_path / "runs" / name)
        file = tmp_path / "runs" / name / "run.json"
        file.write_text(change(file.read_text()))
    found = explore(tmp_path / "runs/newer")
    assert "run format 99" in found.status.html and "Choose another run" in found.status.html
    assert "cannot be opened" in explore(tmp_path / "runs/damaged").status.html


def explore_in(folder):
    "What the explorer says in a workspace of its own."
    (folder / "settings.ini").write_text(SETTINGS.format(data=ROOT / "data"))
    code = "from itemlm.explore import explore; print(explore().status.html)"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_titles_of_a_large_catalogue():
    "A key costs what its hits cost: titles are lower-cased once, and a search stops at the last hit that is asked for."
    n = 300_000
    words = "red blue green dark small large old new last first".split()
    titles = [f"{words[i % 10].title()} {words[i // 10 % 10]} film {i}" for i in range(n)]
    items = pd.DataFrame({"title": titles, "count": np.arange(n)}, index=[f"i{i}" for i in range(n)])
    index = TitleIndex.from_items(items)
    assert index.find("film", 3).tolist() == [n - 1, n - 2, n - 3]  # the most popular first
    assert index.find("FILM 299999").tolist() == [n - 1]
    assert index.find("i77")[0] == 77 and index.find("no such film").tolist() == []
    seen = []

    class Counted(str):
        def find(self, *args):
            seen.append(args)
            return str.find(self, *args)

        def lower(self):
            raise AssertionError("the whole text must not be made lower again")

    counted = TitleIndex(ids=index.ids, text=Counted(index.text), starts=index.starts, columns=index.columns)
    assert counted.find("film red", 5).tolist() == [i for i in range(n - 1, 0, -1) if "red" in titles[i].lower()][:5]
    assert len(seen) < 50  # of 300,000 lines


def test_one_title_index_for_all_views(place, monkeypatch):
    "Every field that searches uses the same prepared index."
    rec, made = load(place / "runs/other"), []
    build = TitleIndex.from_items.__func__
    monkeypatch.setattr(TitleIndex, "from_items", classmethod(lambda cls, items: made.append(1) or build(cls, items)))
    for view in (MapView(rec), WhatIfView(rec)):
        for text in ("toy", "toy story", "star"):
            view.find.value = text
        assert "Star Wars" in view.found.html
    assert len(made) == 1 and title_index(rec) is title_index(rec)


def test_explain_in_bounded_memory(place, monkeypatch):
    "However long the history, no more scores are made at once than the budget allows."
    rec = load(place / "runs/other")
    history = rec.tokenizer.items[:60].tolist()
    whole = effects(rec, history, history[:3]), trace(rec, history, items=history[:3], seen="keep"), because(rec, history)
    asked, scores = [], rec.model.scores
    monkeypatch.setattr(rec.model, "scores", lambda histories: asked.append(len(histories)) or scores(histories))
    monkeypatch.setattr(serving, "memory_budget", lambda *device: 4 * rec.n_items)
    few = effects(rec, history, history[:3]), trace(rec, history, items=history[:3], seen="keep"), because(rec, history)
    assert max(asked) <= 4 and sum(asked) > 80
    np.testing.assert_allclose(few[0], whole[0], atol=1e-4)
    assert few[1]["rank"].tolist() == whole[1]["rank"].tolist() and few[2]["because"].tolist() == whole[2]["because"].tolist()


ASIDE = """
import sys, warnings
import numpy, torch, pandas
state = lambda: (torch.get_num_threads(), torch.get_rng_state().tolist(), list(sys.path), sys.excepthook, list(warnings.filters))
before = state()
from itemlm.explore import explore, to_html
from itemlm.explore.widgets import Page
from itemlm.explore.pages import Sheet
from itemlm.show import figure
Page(Sheet(figure().add_scatter(y=[1])))
print(before[:4] == state()[:4], [name for name, module in sys.modules.items() if module is None], "nbformat" in sys.modules)
"""


def test_explore_changes_nothing_global():
    "Importing it and drawing a figure: no module is blocked, and the seconds-long import of jsonschema is not needed."
    done = subprocess.run([sys.executable, "-c", ASIDE], capture_output=True, text=True)
    assert done.stdout.strip() == "True [] False", done.stdout + done.stderr


def test_random_numbers_go_on(place):
    "Looking at a run draws no random number of the notebook's."
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    explorer = explore(place / "runs/main")
    for tab in range(len(explorer.views)):
        explorer.tabs.selected_index = tab
    assert torch.equal(torch.rand(2), expected)


def test_plotly_is_sent_once(place):
    "Pages hold figures as JSON; the library is one widget, whatever is drawn."
    rec = load(place / "runs/main")
    view, library = MapView(rec), plotly_library()
    view.by.value = "year"
    users = UserView(rec)
    assert plotly_library() is library and len(library._esm) > 1_000_000
    sizes = [len(page._esm) + sum(map(len, page.content["figures"])) for page in (view.page, users.page)]
    assert max(sizes) < 1_000_000


def test_pages_follow_their_window(browser, place, tmp_path):
    "Static pages without network: every figure is drawn, as wide as its page at any width, its legend beside the points."
    pages = to_html(place / "runs/main", tmp_path, beside=place / "runs/other")
    page, problems = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or problems.append(request.url))
    for path in pages:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(path.as_uri())
        figures = len(re.findall("plotly-graph-div", path.read_text()))
        until(lambda: page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].filter(g => g._fullLayout).length") == figures)
        for width in (1280, 700):
            page.set_viewport_size({"width": width, "height": 900})
            until(lambda: page.evaluate(FIT))
        assert page.evaluate(LEGENDS) == [], path
        page.screenshot(path=SHOTS.mkdir(parents=True, exist_ok=True) or SHOTS / f"static-{path.stem}.png", full_page=True)
    page.close()
    assert not problems


FIT = """() => [...document.querySelectorAll('.js-plotly-plot')].every(g => Math.abs(g._fullLayout.width - g.parentElement.clientWidth) < 3
  && g.getBoundingClientRect().right <= innerWidth + 1)"""
LEGENDS = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(g => {
  const legend = g.querySelector('.legend'), size = g._fullLayout._size, box = g.getBoundingClientRect();
  if (!legend?.querySelector('.traces')) return [];
  const it = legend.getBoundingClientRect(), top = box.top + size.t, bottom = box.bottom - size.b;
  const covers = it.top < bottom - 2 && it.bottom > top + 2, outside = it.bottom > box.bottom + 2 || it.top < box.top - 2;
  return covers || outside ? [[g._fullData[0].name, it.top, it.bottom, top, bottom]] : [];
})"""  # figures whose legend covers points, or is cut off


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("width", [1280, 1920])
def test_lab_looks(browser, place, expected, width, theme):
    "The long form: every tab at two widths and in two themes; nothing is cut off at the right."
    with lab(place) as address, lab_page(browser, place, address, width, theme) as page:
        for name, use in (("map", use_map), ("users", use_users), ("what-if", use_what_if), ("work", use_work), ("pair", use_pair)):
            use(page) if use is use_map else use(page, expected)
            fits(page, f"{name}-{theme.lower()}-{width}")
            assert page.evaluate("[...document.querySelectorAll('.itemlm')].every(e => e.getBoundingClientRect().right <= innerWidth)")
        use_runs(page)
        fits(page, f"runs-{theme.lower()}-{width}")


@pytest.mark.slow
def test_voila(browser, place, expected):
    "The same notebook without its code, as voila.json says: for those who have the token, on this machine alone."
    pytest.importorskip("voila")
    shutil.copy(ROOT / "voila.json", place)
    command = ["voila", "nbs/explore.ipynb", "--no-browser", f"--Voila.token={TOKEN}"]
    with server(place, *command, path="voila/static/") as address:
        assert "login" in urllib.request.urlopen(address, timeout=60).geturl()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(f"{address}?token={TOKEN}", headers={"Host": "elsewhere.example"}), timeout=60)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"{address}?token={TOKEN}", wait_until="domcontentloaded")
        page.wait_for_selector(".js-plotly-plot canvas", state="attached")
        try:
            use_map(page)
            use_users(page, expected)
            use_what_if(page, expected)
            use_work(page, expected)
            use_pair(page, expected)
            use_runs(page)
        finally:
            shot(page, "voila-1280")
            page.close()
