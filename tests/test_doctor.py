"What the doctor says about published data sets, and about data in which every fault was put by hand"

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from itemlm.core import Ragged
from itemlm.data.datasets import load_dataset
from itemlm.data.doctor import doctor
from itemlm.data.events import Events, read_events
from itemlm.data.split import shuffle_ties, split, withhold_items


def opened(name: str) -> Events:
    try:
        return load_dataset(name)
    except (FileNotFoundError, ConnectionError):
        pytest.skip(f"the data set {name} is not on this machine")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    "No set is downloaded for these tests"

    def refuse(known, folder):
        raise ConnectionError("no download in tests")

    monkeypatch.setattr("itemlm.data.datasets._download", refuse)


# counted by others: the README of the shared data, and the peers' own reports
PUBLISHED = {
    ("beauty", "targets decided by a tie"): 9_696 / 22_363,
    ("toys", "targets decided by a tie"): 9_283 / 19_412,
    ("ml-1m", "targets decided by a tie"): 2_544 / 6_040,
    ("beauty", "cold targets, leave-one-out"): 138 / 22_363,
    ("toys", "cold targets, leave-one-out"): 279 / 19_412,
    ("sports", "cold targets, leave-one-out"): 317 / 35_598,
    ("beauty", "unknown times"): 287 / 198_502,
    ("toys", "unknown times"): 2_350 / 167_597,
    ("beauty", "id order in ties"): 1,  # 77,201 of 77,201 rise
    ("toys", "id order in ties"): 1,  # 68,268 of 68,268
}
ABOUT = {
    ("sports", "id order outside ties"): 0.690,
    ("ml-100k", "targets older than half of training"): 0.38,
    ("ml-100k", "id order in ties"): 0.502,
}


@pytest.mark.parametrize(("name", "finding"), PUBLISHED)
def test_published_counts(name, finding):
    assert doctor(opened(name))[finding].value == pytest.approx(PUBLISHED[name, finding], abs=1e-9)


@pytest.mark.parametrize(("name", "finding"), ABOUT)
def test_published_shares(name, finding):
    assert doctor(opened(name))[finding].value == pytest.approx(ABOUT[name, finding], abs=0.005)


def test_events_that_share_user_and_time():
    assert doctor(opened("ml-100k"))["tied neighbours"].details["tied_events"] == pytest.approx(0.758, abs=0.0005)


def test_ties_sorted_by_id_are_found_in_ml_100k():
    "The file's own order is innocent; sorted by user, time, item it is not (0.652 over all neighbours)"
    frame = opened("ml-100k").to_frame()
    frame["number"] = frame.item.astype(int)
    by_id = read_events(frame.sort_values(["user", "time", "number"])[["user", "item", "time"]], name="sorted")
    assert not doctor(opened("ml-100k"))["id order in ties"].matters
    assert doctor(by_id)["id order in ties"].value == 1 and doctor(by_id)["id order in ties"].matters
    step = np.diff(by_id.items.index.astype(int).to_numpy()[by_id.sequences.values])
    inside = np.diff(np.repeat(np.arange(by_id.n_users), by_id.sequences.lengths)) == 0
    assert (step[inside] > 0).mean() == pytest.approx(0.652, abs=0.02)


def test_shuffled_beauty_is_innocent():
    assert not doctor(shuffle_ties(opened("beauty"), seed=0))["id order in ties"].matters


def slow_counts(events: Events) -> dict:
    "The same numbers, one user and one interaction at a time"
    ids, test = list(events.items.index), split(events).test
    times = Ragged(events.times, events.sequences.offsets)
    neighbours = tied = rising = unequal = again = twice = decided = old = 0
    for items, when in zip(events.sequences, times):
        had, stamps = set(), set()
        for n, (item, time) in enumerate(zip(items, when)):
            again += item in had
            twice += time != 0 and (item, time) in stamps
            had.add(item), stamps.add((item, time))
            if n:
                tie = time == when[n - 1] != 0
                neighbours, tied = neighbours + 1, tied + tie
                if tie and item != items[n - 1]:
                    unequal += 1
                    rising += int(ids[item]) > int(ids[items[n - 1]])
    seen, rows = 0, {user: n for n, user in enumerate(events.users)}
    learnt = [t for when in times for t in (when[:-2] if len(when) >= 3 else when) if t]
    for user, history, target in zip(test.users, test.histories, test.targets):
        when = times[rows[user]]
        decided += when[-1] == when[-2] != 0
        seen += target in history
        old += when[-1] < np.median(learnt)
    n = events.n_interactions
    return {
        "tied neighbours": tied / neighbours,
        "id order in ties": rising / unequal,
        "repeats": again / n,
        "duplicates": twice / n,
        "targets decided by a tie": decided / len(test),
        "targets in the history": seen / len(test),
        "targets older than half of training": old / len(test),
    }


@pytest.mark.parametrize("seed", range(5))
def test_same_as_one_at_a_time(seed):
    rng = np.random.default_rng(seed)
    n = 400
    log = pd.DataFrame({"user": rng.integers(0, 40, n), "item": rng.integers(0, 25, n), "time": rng.integers(1, 30, n)})
    events = read_events(log, name="random", duplicates="keep")
    found, slow = doctor(events), slow_counts(events)
    assert {name: found[name].value for name in slow} == pytest.approx(slow)
    times = np.where(rng.random(n) < 0.3, 0, events.times[rng.permutation(n)])  # unknown ones, in an order that contradicts the known
    odd = replace(events, times=times)
    found, slow = doctor(odd), slow_counts(odd)
    del slow["targets older than half of training"]  # of known times only
    assert {name: found[name].value for name in slow} == pytest.approx(slow)


def test_no_time_stamps_are_said_not_counted():
    untimed = doctor(opened("sports"))
    told = {finding.name: finding.text for finding in untimed.findings}
    for name in (
        "tied neighbours",
        "targets decided by a tie",
        "id order in ties",
        "cold targets, global-time",
        "time gaps",
        "targets older than half of training",
        "unknown times",
        "duplicates",
        "out of order",
    ):
        assert told[name] == "no time stamps" and untimed[name].value is None


def many(n: int) -> Events:
    "Two hundred interactions a user, a quarter of the neighbours tied"
    rng = np.random.default_rng(0)
    users, items = n // 200, 20_000
    times = rng.integers(0, 2, n).cumsum() * rng.integers(0, 2, n) + 1_000_000_000
    times = np.sort(times.reshape(users, 200)).ravel()
    codes = (items * rng.random(n) ** 3).astype(np.int32)
    table = pd.DataFrame({"title": ""}, index=pd.Index([str(i) for i in range(items)], name="item"))
    return Events(
        name="many",
        users=np.arange(users).astype(str).astype(object),
        times=times,
        items=table,
        provenance={},
        sequences=Ragged(codes, np.arange(users + 1) * 200),
    )


def test_memory_grows_with_the_data_alone():
    "Flat arrays, a few bytes an interaction: no table of users by items, and no Python object an interaction"
    peaks = []
    for n in (200_000, 400_000):
        events = many(n)
        tracemalloc.start()
        doctor(events)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.2 * peaks[0] and peaks[1] < 120 * 400_000


def test_one_dictionary_for_machines():
    found = doctor(load_dataset("ml-latest-small")).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert all(set(finding) == {"name", "value", "text", "effect", "matters", "details"} for finding in found["findings"].values())


def test_withheld_items_are_refused():
    "Their histories have gaps: the place of a target is not their length, and every count of targets would be wrong"
    parts = split(load_dataset("ml-latest-small"))
    with pytest.raises(ValueError, match="the split before withhold_items"):
        doctor(withhold_items(parts))


def test_no_plots_are_loaded_before_one_is_drawn():
    code = "import sys, itemlm.data.doctor; sys.exit(any(name.split('.')[0] in ('plotly', 'IPython') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
