"""Every control of the explorer, found by walking its widgets and driven: each choice, slider ends, hostile text, each kind of button.

No browser is needed: a click is what the page would send. `drive_all` is what bench/use_leak.py counts.
"""

import base64
import json
import re
from collections.abc import Iterator

import ipywidgets as W
import numpy as np
import pandas as pd
import pytest
from ipywidgets.widgets.widget import _instances as alive

from itemlm.data.events import read_events
from itemlm.data.split import split
from itemlm.evaluation.report import evaluate
from itemlm.explore import explore, views
from itemlm.explore.widgets import Page
from itemlm.models.item_lm import tiny
from itemlm.training.trainer import fit

HOSTILE = [
    "film",
    "",
    " " * 40,
    "<script>alert(1)</script>",
    "'\"\\`${x}",
    "\u202e\u2067",
    "a\x00b",
    ".*[(",
    "%s {0}",
    "x" * 5000,
    "Ω" * 60,
]
CHOICES = W.Dropdown, W.Select, W.ToggleButtons
DRIVEN = *CHOICES, W.IntSlider, W.Text, W.Combobox, W.Button, W.Tab, Page


def small_events(n_users: int = 40, n_items: int = 30, seed: int = 0):
    "Users with histories of 4 to 24 items that have titles, genres and times"
    rng = np.random.default_rng(seed)
    rows = [(f"u{u}", f"i{i}") for u in range(n_users) for i in rng.permutation(n_items)[: rng.integers(4, 25)]]
    frame = pd.DataFrame(rows, columns=["user", "item"]).assign(time=1_500_000_000 + 86_400 * rng.integers(0, 900, len(rows)))
    items = pd.DataFrame({"item": [f"i{i}" for i in range(n_items)], "title": [f"Film {i} (19{50 + i})" for i in range(n_items)]})
    return read_events(frame, items=items.assign(genres=[("Drama", "Comedy", "War|Drama")[i % 3] for i in range(n_items)]), verbose=False)


def small_runs(folder):
    "Two runs on the same data, and one on other data"
    for name, seed, epochs in (("elsewhere", 1, 1), ("other", 0, 1), ("main", 0, 2)):
        parts = split(small_events(seed=seed))
        evaluate(fit(parts, tiny(epochs=epochs), out_dir=folder / name, device="cpu", verbose=False), parts).save(folder / name)
    return folder / "main"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_runs(tmp_path_factory.mktemp("controls"))


def walk(widget) -> Iterator[W.Widget]:
    "A widget and all that stands in it, the tab that is looked at alone"
    yield widget
    children = getattr(widget, "children", ())
    if isinstance(widget, W.Tab):
        children = () if widget.selected_index is None else children[widget.selected_index : widget.selected_index + 1]
    for child in children:
        yield from walk(child)


def shown(explorer) -> str:
    "All that the explorer shows, and what its fields hold"
    pages = [(page.content, page.marks) for page in walk(explorer) if isinstance(page, Page)]
    lists = [str(control.options) + str(control.value) for control in walk(explorer) if isinstance(control, CHOICES)]
    return json.dumps([pages, lists])


def wishes(control) -> dict[str, list]:  # what is done: the values or clicks to try
    "What somebody can do with a control"
    if isinstance(control, CHOICES):
        values = [value for _, value in control._options_full]
        return {"choice": [*values[1:4], *values[-1:], *values[:1]] if len(values) > 8 else [*values[1:], *values[:1]]}
    if isinstance(control, W.IntSlider):
        return {"slider": [control.min, control.max]}
    if isinstance(control, W.Combobox):
        return {"field": [*HOSTILE, *control.options[-1:], *control.options[:1]]}
    if isinstance(control, W.Text):
        return {"field": [*HOSTILE, "u1", "film", ""]}
    if isinstance(control, W.Button):
        return {"button": [None]}
    return {}


def clicks(page: Page) -> dict[str, list[dict]]:
    "The first and last button of each kind on a page, and points of its figures"
    found = {}
    for do, item, at in re.findall(r'<button data-do="(\w+)" data-item="([^"]*)"(?: data-at="(\d+)")?(?![^>]*disabled)', page.html):
        found.setdefault(do, []).append({"do": do, "item": item, "at": int(at or 0)})
    points = [point for text in page.content["figures"] for trace in json.loads(text)["data"] for point in numbers(trace.get("customdata"))]
    if points and page.kind in ("map", "looks"):
        found["point"] = [{"do": "point", "item": "", "at": at} for at in points]
    return {do: [wanted[0], wanted[-1]] for do, wanted in found.items()}


def numbers(data) -> list[int]:
    "The numbers of a trace's points, as plotly writes them: a list, or bytes"
    if isinstance(data, dict):
        data = np.frombuffer(base64.b64decode(data["bdata"]), data["dtype"])
    return [] if data is None else np.asarray(data, float).ravel().astype(int).tolist()


def use(control, wish) -> None:
    "Do one thing with a control, as the page would"
    if isinstance(control, Page):
        control.clicked = wish | {"time": use.turn}
        use.turn += 1
    elif isinstance(control, W.Button):
        control.click()
    else:
        control.value = wish


use.turn = 0


def drive_all(explorer) -> dict[str, bool]:  # tab and name of a control: did it change what is shown
    "Use every control of every tab: fields and choices first, then what is on the pages, then the buttons"
    moved = {}
    for at, tab in enumerate(explorer.views):
        explorer.tabs.selected_index = at
        controls = [control for control in walk(explorer.built[at]) if isinstance(control, DRIVEN)]
        for control in sorted(controls, key=lambda control: isinstance(control, W.Button)):
            for kind, wanted in wishes(control).items():
                drive(explorer, control, wanted, f"{tab}: {kind} {name_of(control)}", moved)
        find_something(explorer)
        for page in [control for control in controls if isinstance(control, Page)]:
            press_all(explorer, page, tab, moved)
        for control in [control for control in controls if isinstance(control, W.Button)]:
            drive(explorer, control, [None], f"{tab}: button {name_of(control)}", moved)  # now there is something to undo
    return moved


def press_all(explorer, page: Page, tab: str, moved: dict) -> None:
    "The first and the last button of each kind on a page, also of the kinds that come with what was pressed"
    pressed = []
    while fresh := [do for do in clicks(page) if do not in pressed]:
        pressed.append(fresh[0])
        for end in (0, -1):
            drive(explorer, page, clicks(page).get(fresh[0], [])[end:][:1], f"{tab}: {fresh[0]} {page.kind}", moved)


def find_something(explorer) -> None:
    for control in walk(explorer.tabs):
        if isinstance(control, W.Text) and "itle" in control.description:
            control.value = "film 1"


def drive(explorer, control, wanted: list, name: str, moved: dict) -> None:
    for wish in wanted:
        was = shown(explorer)
        use(control, wish)
        moved[name] = moved.get(name, False) or shown(explorer) != was


def name_of(control) -> str:
    return control.kind if isinstance(control, Page) else control.description or type(control).__name__


@pytest.fixture
def loud(monkeypatch):
    "An error of a pressed button is an error here, and UMAP is not made"
    monkeypatch.setattr(
        W.CallbackDispatcher, "__call__", lambda self, *args, **more: [answer(*args, **more) for answer in self.callbacks][:0]
    )
    monkeypatch.setattr(views, "MapJob", lambda vectors, folder, say, done: done(np.zeros((len(vectors), 2), np.int16), ""))


def test_every_control(run, loud):
    "No error, whatever is typed, chosen or clicked, and each control does something"
    explorer = explore(run)
    moved = drive_all(explorer)
    assert not [name for name, did in moved.items() if not did], moved
    assert len(moved) >= 34, sorted(moved)
    assert {name.split(":")[0] for name in moved} == set(explorer.views)
    for option in explorer.run.options:
        explorer.run.value = option[1]
        assert not explorer.status.html, option
    explorer.refresh.click()
    assert explorer.tabs.selected_index == len(explorer.views) - 1


def test_changes_leave_nothing(run, loud):
    "Recolourings and changes of the run: as many widgets as before, and no larger state to be saved"
    explorer = explore(run)
    view = explorer.built[0]
    view.pick(0)
    size = lambda: len(json.dumps(W.Widget.get_manager_state()))
    for by in view.by.options:
        view.by.value = by
    before, state = len(alive), size()
    for n in range(40):
        view.by.value = view.by.options[n % len(view.by.options)]
    for n in range(8):
        explorer.run.value = explorer.run.options[n % 2][1]
    assert len(alive) == before and size() < state + 100_000
    assert len([page for page in walk(explorer) if isinstance(page, Page) and page.content["figures"]]) == 1


def test_a_pair_is_of_one_data_set(run):
    "Runs on other data are neither offered as the second run nor put beside"
    explorer = explore(run)
    explorer.tabs.selected_index = explorer.views.index("Runs")
    runs = explorer.built[explorer.tabs.selected_index]
    names = lambda control: {name for name, _ in control.options}
    assert names(runs.first) == {"main", "other", "elsewhere"} and names(runs.second) == {"main", "other"}
    runs.first.value = str(run.parent / "elsewhere")
    assert names(runs.second) == {"elsewhere"} and "no other run on the data of elsewhere" in runs.compared.html
    runs.first.value = str(run)
    assert runs.second.value == str(run.parent / "other") and "What came out" in runs.compared.html


def test_a_tab_says_that_it_computes(run, monkeypatch):
    "Before anything is computed, the tab says so; then what was computed is there alone"
    explorer, said = explore(run), []
    build = views._VIEWS["What-if"]
    look = lambda e: said.append(e.tabs.children[2].children[0].html) or build(e)
    monkeypatch.setitem(views._VIEWS, "What-if", look)
    explorer.tabs.selected_index = 2
    assert "What-if: computing …" in said[0] and explorer.tabs.children[2].children == (explorer.built[2],)


def test_what_if_says_how_much_is_read(run):
    explorer = explore(run)
    explorer.tabs.selected_index = 2
    view = explorer.built[2]
    view.edit([f"i{n}" for n in range(29)])
    most = view.rec.model.config.max_len
    assert f"reads only the last {most} known items" in view.board.html and f"does not read {29 - most} of these 29" in view.board.html
