"""The explorer on Beauty: how soon the map is there, how fast it answers, how large a static map is.

    python bench/explore.py

The model has the default preset's shape and untrained weights: they take the same time. JupyterLab and the browser are those of
tests/test_explore.py.
"""

import json
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright
from record import ROOT, record, recorded, seconds_of

sys.path.insert(0, str(ROOT / "tests"))
import test_explore as lab  # noqa: E402

from itemlm.data.datasets import load_dataset  # noqa: E402
from itemlm.data.split import split  # noqa: E402
from itemlm.data.tokenizer import ItemTokenizer  # noqa: E402
from itemlm.explain import because  # noqa: E402
from itemlm.explore.maps import map_figure  # noqa: E402
from itemlm.explore.umap import umap_points  # noqa: E402
from itemlm.models.item_lm import small  # noqa: E402
from itemlm.serving.recommender import Recommender  # noqa: E402
from itemlm.training.trainer import build_model, sized  # noqa: E402

NOTES = (
    "Beauty, 12,101 items, default preset, untrained. first_view_seconds: from the start of the cell `explore()`, imports done, to "
    "the map drawn in headless Chromium. neighbours_ms: from the click on a found title to its neighbours on the page, median of 10. "
    "whatif_ms: from a press on remove or add to the new list on the page, median of 15. whatif_kernel_ms: top 10 and leave-one-out "
    "of a 10-item history, median of 50. map_mb: the map as a page of its own without plotly's file."
)


def beauty() -> Recommender:
    "A model that has learnt nothing, over all of Beauty"
    parts = split(load_dataset("beauty"))
    tokenizer = ItemTokenizer.from_split(parts)
    return Recommender.from_split(build_model(sized(small(), tokenizer)).eval(), tokenizer, parts)


def kernel(rec: Recommender):
    "What needs no browser"
    history = rec.tokenizer.items[5:105:10].tolist()
    because(rec, history)
    page = map_figure(umap_points(rec.item_vectors()), rec).to_html(include_plotlyjs=False)
    times = [1000 * seconds_of(lambda: because(rec, history)) for _ in range(50)]
    record("explore", {"whatif_kernel_ms": median(times), "map_mb": len(page.encode()) / 1e6}, NOTES)


def in_browser(rec: Recommender):
    "What a person waits for"
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        place = Path(folder)
        (place / "settings.ini").write_text(lab.SETTINGS.format(data="data"))
        rec.save(place / "runs/beauty")
        (place / "nbs").mkdir()
        book = {"cells": lab.CELLS, "metadata": lab.KERNEL, "nbformat": 4, "nbformat_minor": 5}
        (place / "nbs/explore.ipynb").write_text(json.dumps(book))
        with lab.lab(place) as address, lab.lab_page(browser, place, address) as page:
            record("explore", {"first_view_seconds": page.first_view_seconds}, NOTES)
            record("explore", {"neighbours_ms": median(neighbours(page))}, NOTES)
            if page.locator(".lm-TabBar-tabLabel", has_text="What-if").count():
                record("explore", {"whatif_ms": median(what_if(page))}, NOTES)


def neighbours(page) -> list[float]:
    "Found titles clicked, one after another"
    page.get_by_label("Find title").fill("shampoo")
    page.wait_for_selector(".itemlm-found button")
    buttons = page.locator(".itemlm-found button")
    return [press(page, buttons.nth(i % buttons.count()), ".itemlm-near") for i in range(11)][1:]


def what_if(page) -> list[float]:
    "Items added to a history, then taken out, one after another"
    lab.tab(page, "What-if")
    page.get_by_label("Add title").fill("shampoo")
    add, remove = page.locator(".itemlm-found:visible [data-do=add]"), page.locator(".itemlm-board [data-do=remove]")
    add.first.wait_for()
    times = [press(page, add.nth(i % add.count()), ".itemlm-board") for i in range(10)]
    return times + [press(page, remove.first, ".itemlm-board") for _ in range(5)]


PRESS = """([button, selector]) => new Promise(done => {
  const page = document.querySelector(selector), start = performance.now();
  new MutationObserver((_, o) => { o.disconnect(); requestAnimationFrame(() => done(performance.now() - start)); })
    .observe(page, {childList: true, subtree: true, characterData: true});
  button.click();
})"""


def press(page, button, selector: str) -> float:
    "Milliseconds from a click to the next frame with the change"
    return page.evaluate(PRESS, [button.element_handle(), selector])


@contextmanager
def chromium():
    "A headless browser, as the tests start it"
    with sync_playwright() as p:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        yield p.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])


if __name__ == "__main__":
    rec = beauty()
    kernel(rec)
    in_browser(rec)
    print(json.dumps(recorded("explore"), indent=1))
