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

import pytest
import torch
from conftest import ROOT

from itemlm import evaluate, fit, load_dataset, split, tiny
from itemlm.explore import explore

TOKEN = "explore-test"
SHOTS = ROOT / "tmp/explore"
SETTINGS = "[workspace]\ndata =\n    {data}\ncache = cache\nruns = runs\ndataset = ml-latest-small\n"
CELLS = [{"cell_type": "code", "id": id, "metadata": {}, "source": source, "outputs": [], "execution_count": None}
         for id, source in (("a", "from itemlm.explore import explore"), ("b", "explore()"))]  # fmt: skip
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A workspace of its own with two small runs and a copy of the notebook."
    folder = tmp_path_factory.mktemp("explore")
    (folder / "settings.ini").write_text(SETTINGS.format(data=ROOT / "data"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for so small a model on a busy machine
    parts = split(load_dataset("ml-latest-small"))
    for name, epochs in (("other", 1), ("main", 2)):  # the newest is opened first
        rec = fit(parts, tiny(epochs=epochs), out_dir=folder / "runs" / name, device="cpu", verbose=False)
        evaluate(rec, parts).save(folder / "runs" / name)
    torch.set_num_threads(threads)
    (folder / "nbs").mkdir()
    source = ROOT / "nbs/explore.ipynb"
    page = json.loads(source.read_text()) if source.exists() else {"cells": CELLS, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5}
    (folder / "nbs/explore.ipynb").write_text(json.dumps(page))
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
  const gd = document.querySelector('.js-plotly-plot'), l = gd._fullLayout, box = gd.getBoundingClientRect(), all = [];
  for (const t of gd._fullData) if (t.visible === true) for (let i = 0; i < t.x.length; i++)
    all.push([l.xaxis.l2p(t.x[i]) + l.xaxis._offset, l.yaxis.l2p(t.y[i]) + l.yaxis._offset, t.text[i]]);
  const far = (p) => Math.min(...all.filter(q => q !== p).map(q => Math.hypot(p[0] - q[0], p[1] - q[1])));
  const inside = all.filter(p => p[0] > 20 && p[1] > 80 && p[0] < l.width - 140 && p[1] < l.height - 30);
  const best = inside.map(p => [far(p), p]).sort((a, b) => b[0] - a[0])[0][1];
  return [best[0] + box.left, best[1] + box.top, best[2]];
}"""  # the point farthest from all others: where it is on the screen, and its title


def use_map(page):
    "Search by title, pick a result, then click a point."
    page.get_by_label("Find title").fill("star wars")
    until(lambda: any("Star Wars" in text for text in texts(page, ".itemlm-found li")))
    page.locator(".itemlm-found button").first.click()
    until(lambda: any("Star Wars" in text for text in texts(page, ".itemlm-near h4")))
    assert page.locator(".itemlm-near li").count() >= 10
    page.get_by_label("Find title").fill("no such film")
    until(lambda: any("try fewer letters" in text for text in texts(page, ".itemlm-found")))
    page.get_by_label("Colour by").select_option("popularity")
    page.wait_for_selector(".js-plotly-plot .infolayer .cbaxis, .js-plotly-plot .infolayer [class*=colorbar]", state="attached")
    page.wait_for_timeout(500)
    before = texts(page, ".itemlm-near h4")
    x, y, title = page.evaluate(LONELY)
    page.mouse.move(x - 4, y)
    page.mouse.move(x, y)
    page.wait_for_selector(".js-plotly-plot .hovertext", state="attached")
    page.mouse.click(x, y)
    until(lambda: texts(page, ".itemlm-near h4") != before)
    assert texts(page, ".itemlm-near h4")[0].startswith(title[:60])


def use_users(page, expected):
    "Find a user, read history, list and hidden item; keep seen items; put the other run beside."
    tab(page, "Users")
    page.wait_for_selector(".itemlm-user ol")
    page.get_by_label("Find user").fill(expected["user"])
    until(lambda: f"User {expected['user']}," in "".join(texts(page, ".itemlm-user h4")))
    page_text = "\n".join(texts(page, ".itemlm-user"))
    assert expected["rank"] in page_text and all(title in page_text for title in expected["titles"])
    drop = texts(page, ".itemlm-user .columns > div:nth-child(2) .t")
    assert drop == expected["drop"]
    page.get_by_role("button", name="Keep them").click()
    until(lambda: texts(page, ".itemlm-user .columns > div:nth-child(2) .t") == expected["keep"])
    page.get_by_role("button", name="Drop seen items").click()
    until(lambda: texts(page, ".itemlm-user .columns > div:nth-child(2) .t") == drop)
    page.get_by_label("Beside").select_option("other")
    until(lambda: page.locator(".itemlm-user .columns > div").count() == 3)
    assert "items are in both lists" in "".join(texts(page, ".itemlm-user"))


def use_what_if(page):
    "A stranger's history from nothing: add two films, take one out, begin again; the list must follow."
    tab(page, "What-if")
    page.wait_for_selector(".itemlm-board:visible")
    board = lambda: "".join(texts(page, ".itemlm-board"))
    begun = board()
    page.get_by_role("button", name="Empty").click()
    empty = until(lambda: board() != begun and board())
    for words, title in (("star wars", "Star Wars"), ("lion king", "Lion King")):
        before = board()
        page.get_by_label("Add title").fill(words)
        page.locator(".itemlm-found:visible [data-do=add]", has_text="Add").first.wait_for()
        until(lambda: title in "".join(texts(page, ".itemlm-found:visible")))
        page.locator(".itemlm-found:visible [data-do=add]").first.click()
        until(lambda: board() != before and title in board())
    for _ in range(2):
        before = board()
        page.locator(".itemlm-board [data-do=remove]").first.click()
        until(lambda: board() != before)
    assert board() == empty
    page.get_by_role("button", name="Start over").click()
    until(lambda: board() == begun)


@pytest.fixture(scope="module")
def expected(place):
    "What the page must say of one user whose list the seen filter changes."
    explorer = explore(place / "runs/main")
    explorer.tabs.selected_index = 1
    view = explorer.built[1]
    rec, cases = view.rec, view.cases
    for row, user in enumerate(cases.users):
        starts = sum(other.startswith(user) for other in cases.users)
        lists = {seen: list(rec.titles(rec.topk(cases.histories.take([row]), 10, seen)[0][0])) for seen in ("drop", "keep")}
        if starts == 1 and cases.targets[row] >= 0 and lists["drop"] != lists["keep"]:
            break
    view.show(row)
    rank = html.unescape(re.search(r"stands at rank <b>([\d,]+)</b>", view.page.html)[1])
    newest = rec.titles(rec.tokenizer.items[cases.histories[row][-3:] - rec.tokenizer.n_special])
    return lists | {"user": user, "rank": f"rank {rank} of", "titles": [*newest, rec.items["title"].iloc[cases.targets[row]]]}


def test_lab(browser, place, expected):
    "The short form: every tab once, at 1280."
    with lab(place) as address, lab_page(browser, place, address) as page:
        assert page.get_by_label("Run", exact=True).locator("option").all_inner_texts()[0] == "main"
        use_map(page)
        shot(page, "map-light-1280")
        use_users(page, expected)
        shot(page, "users-light-1280")
        use_what_if(page)
        shot(page, "what-if-light-1280")
        page.get_by_label("Run", exact=True).select_option("other")
        until(lambda: not page.locator(".itemlm-user ol").count())
        assert not page.locator(".jp-RenderedText[data-mime-type*=stderr]").count()


def test_deleted_run(browser, place):
    "A run that is gone is one sentence and a way on."
    shutil.copytree(place / "runs/main", place / "runs/gone")
    try:
        with lab(place) as address, lab_page(browser, place, address) as page:
            shutil.rmtree(place / "runs/gone")
            page.get_by_label("Run", exact=True).select_option("other")
            page.get_by_label("Run", exact=True).select_option("gone")
            until(lambda: "cannot be opened" in "".join(texts(page, ".itemlm-status")))
            page.locator("button.jupyter-button", has_text="Refresh").click()
            until(lambda: "gone" not in texts(page, "select >> nth=0 >> option"))
    finally:
        shutil.rmtree(place / "runs/gone", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("width", [1280, 1920])
def test_lab_looks(browser, place, expected, width, theme):
    "The long form: every tab at two widths and in two themes; nothing is cut off at the right."
    with lab(place) as address, lab_page(browser, place, address, width, theme) as page:
        use_map(page)
        shot(page, f"map-{theme.lower()}-{width}")
        assert page.evaluate("document.querySelector('.itemlm-near').getBoundingClientRect().right <= innerWidth")
        use_users(page, expected)
        shot(page, f"users-{theme.lower()}-{width}")
        use_what_if(page)
        shot(page, f"what-if-{theme.lower()}-{width}")


@pytest.mark.slow
def test_voila(browser, place, expected):
    "The same notebook without its code."
    pytest.importorskip("voila")
    command = ["voila", "nbs/explore.ipynb", "--no-browser", f"--Voila.token={TOKEN}", "--Voila.ip=127.0.0.1"]
    with server(place, *command, path="voila/static/") as address:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"{address}?token={TOKEN}", wait_until="domcontentloaded")
        page.wait_for_selector(".js-plotly-plot canvas", state="attached")
        try:
            use_map(page)
            use_users(page, expected)
            use_what_if(page)
        finally:
            shot(page, "voila-1280")
            page.close()
