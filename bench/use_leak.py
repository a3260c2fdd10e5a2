"""What a hundred recolourings and changes of the run leave behind in JupyterLab, and how many controls of the explorer are driven.

    python bench/use_leak.py

JupyterLab, the browser and the runs are those of tests/test_explore.py; the controls those of tests/test_controls.py.
"""

import json
import sys
import tempfile
from pathlib import Path

import ipywidgets as W
import psutil
from explore import chromium
from record import ROOT, record, recorded
from use import NOTES

sys.path.insert(0, str(ROOT / "tests"))
import test_controls as controls  # noqa: E402
import test_explore as lab  # noqa: E402

from itemlm.explore import explore, views  # noqa: E402

COLOURS, RUNS = 76, 24


def heap_mb(page) -> float:
    "The tab's JavaScript heap after garbage collection"
    session = page.context.new_cdp_session(page)
    for method in ("HeapProfiler.enable", "Performance.enable", "HeapProfiler.collectGarbage", "HeapProfiler.collectGarbage"):
        session.send(method)
    return {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}["JSHeapUsedSize"] / 1e6


def kernel_mb() -> float:
    "Memory of the notebook's kernel, which this script's server started"
    return (
        sum(p.memory_info().rss for p in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())) / 1e6
    )


def idle(page):
    page.wait_for_timeout(250)
    page.locator("text=Python 3 (ipykernel) | Idle").wait_for()  # a handle would keep what it was found in
    lab.until(lambda: page.locator(".itemlm-map .js-plotly-plot canvas").count())


def change(page, colours: int, runs: int):
    "Recolour the map, and change the run, as somebody would"
    options = lab.label(page, "Colour by").locator("option").all_text_contents()
    for n in range(colours):
        lab.label(page, "Colour by").select_option(options[n % len(options)])
        idle(page)
    for n in range(runs):
        lab.label(page, "Run").select_option(("other", "main")[n % 2])
        idle(page)


def leak(place) -> float:
    "Megabytes left behind in the tab and the kernel"
    with chromium() as browser, lab.lab(place) as address, lab.lab_page(browser, place, address) as page:
        change(page, COLOURS // 2, RUNS // 2)
        before = heap_mb(page) + kernel_mb()
        change(page, COLOURS, RUNS)
        assert page.locator(".itemlm .js-plotly-plot").count() == 1, "a figure was left behind"
        return heap_mb(page) + kernel_mb() - before


def driven(folder) -> int:
    "Controls that are found and driven"
    views.MapJob = lambda vectors, folder, say, done: done(views.np.zeros((len(vectors), 2), "int16"), "")
    explorer = explore(controls.small_runs(folder))
    moved = controls.drive_all(explorer)
    return sum(moved.values()) + len([control for control in explorer.children[0].children if isinstance(control, W.Widget)])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        record("use", {"controls_tested": driven(Path(folder))}, NOTES)
    with tempfile.TemporaryDirectory() as folder:
        record("use", {"leak_mb_100_changes": leak(lab.make_place(Path(folder)))}, NOTES)
    print(json.dumps(recorded("use"), indent=1))
