"Whatever the times and the cuts: nothing of training is later than the first cut, and no target earlier than its own."

import datetime

import numpy as np
import pandas as pd
import pytest

from itemlm.core import Ragged
from itemlm.data.events import Events, read_events
from itemlm.data.split import Split, split

ENDS = np.iinfo(np.int64)
WILD = {
    "none": [],
    "nanoseconds": [1_400_000_000_000_000_000],
    "the largest": [ENDS.max],
    "the smallest": [ENDS.min],
    "both": [ENDS.max, ENDS.min],
    "far": [-62_135_596_800, 253_402_300_799],
    "many": [ENDS.max - 1, 10**18, -(10**18), ENDS.min + 1],
}


def log(wild: list[int], seed: int = 0, users: int = 40, unknown: float = 0.0, ordered: bool = True) -> Events:
    "Users of different length in the order of their times, or in any order; some times are wild, some not known."
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 15, users)
    rows, n = np.repeat(np.arange(users), lengths), lengths.sum()
    times = rng.integers(1_400_000_000, 1_410_000_000, n)
    times[rng.choice(n, len(wild), replace=False)] = wild
    times[rng.random(n) < unknown] = 0
    times = times[np.lexsort((times if ordered else rng.random(n), rows))]
    offsets = np.append(0, lengths.cumsum())
    table = pd.DataFrame({"title": ""}, index=pd.Index([f"i{i}" for i in range(20)], name="item"))
    names = np.array([f"u{u}" for u in range(users)], dtype=object)
    items = rng.integers(0, 20, n).astype(np.int32)
    return Events(name="log", users=names, sequences=Ragged(items, offsets), times=times, items=table, provenance={})


def cut_of(parts: Split, which: int) -> int:
    return int(np.datetime64(parts.protocol["cuts"][which], "s").astype(np.int64))


def check(events: Events, parts: Split):
    "The property, and that everybody who does something after a cut is asked, one user at a time."
    first, second = cut_of(parts, 0), cut_of(parts, 1)
    train = dict(zip(parts.train_users, parts.train))
    asked = {part.name: {u: (h, t) for u, h, t in zip(part.users, part.histories, part.targets)} for part in (parts.valid, parts.test)}
    for user, items, times in zip(events.users, events.sequences, Ragged(events.times, events.sequences.offsets)):
        known = times != 0
        late, later = (np.append(np.flatnonzero(known & (times >= cut)), len(times))[0] for cut in (first, second))
        assert list(train.get(user, [])) == list(items[:late]) and not (times[:late][known[:late]] >= first).any()
        for name, at, end in (("valid", late, later), ("test", later, len(times))):
            assert (user in asked[name]) == (at < end)
            if at < end:
                history, target = asked[name][user]
                assert list(history) == list(items[:at]) and target == items[at] and times[at] >= (first if name == "valid" else second)


@pytest.mark.parametrize("wild", WILD)
@pytest.mark.parametrize("cuts", [(0.8, 0.9), (0.5, 0.55), ("2014-07-01", "2014-08-01")], ids=str)
def test_nothing_of_the_future(wild, cuts):
    for seed, unknown, ordered in ((0, 0, True), (1, 0, True), (2, 0.2, False), (3, 0, False)):
        events = log(WILD[wild], seed, unknown=unknown, ordered=ordered)
        check(events, split(events, "global_time", cuts=cuts))


def test_before_1970():
    "Where all times are negative, a time that is not known is not later than all of them."
    events = log([], 4, unknown=0.2, ordered=False)
    old = Events(**vars(events) | {"times": np.where(events.times == 0, 0, events.times - 2_000_000_000)})
    parts, same = split(old, "global_time"), split(events, "global_time")
    check(old, parts)
    assert parts.train == same.train and list(parts.test.targets) == list(same.test.targets)


@pytest.mark.parametrize("wild", WILD)
def test_the_last_items_whatever_the_times(wild):
    "Leave-one-out and last-n go by the order alone."
    events = log(WILD[wild], 5, users=60)
    try:  # what a table's time may be is the reader's matter: it refuses two units in one column
        read = read_events(events.to_frame(), verbose=False, duplicates="keep").to_frame()
    except ValueError as error:
        assert "the times are of two units" in str(error) and wild != "none"
    else:
        order = [rows["time"].is_monotonic_increasing for _, rows in read.groupby("user")]
        assert wild in ("the smallest", "both", "far") or all(order)
    for how, n in (("leave_one_out", 1), ("last_n", 2)):
        parts = split(events, how, n=n)
        for name, first in (("valid", 2 * n), ("test", n)):
            rows = {user: [] for user in parts.part(name).users}
            for user, target in zip(parts.part(name).users, parts.part(name).targets):
                rows[user].append(target)
            for user, targets in rows.items():
                whole = events.sequences[list(events.users).index(user)]
                assert targets == list(whole[len(whole) - first :][:n])


CUTS = {
    "text": ("2014-07-01 10:00", "2014-08-01 00:00"),
    "pandas": (pd.Timestamp("2014-07-01 10:00"), pd.Timestamp("2014-08-01")),
    "zones": (pd.Timestamp("2014-07-01 12:00", tz="Europe/Berlin"), "2014-07-31T19:00:00-05:00"),
    "datetime": (datetime.datetime(2014, 7, 1, 10), datetime.datetime(2014, 8, 1, tzinfo=datetime.UTC)),
    "date": (datetime.datetime(2014, 7, 1, 10), datetime.date(2014, 8, 1)),
    "numpy": (np.datetime64("2014-07-01T10"), np.datetime64("2014-08")),
    "seconds": (1404208800, 1406851200.0),
    "numpy numbers": (np.int64(1404208800), np.float64(1406851200)),
    "list": [1404208800, "2014-08-01"],
    "array": np.array(["2014-07-01T10", "2014-08-01T00"], dtype="datetime64[h]"),
}


@pytest.mark.parametrize("kind", CUTS)
def test_kinds_of_cuts(kind):
    events = log([])
    assert split(events, "global_time", cuts=CUTS[kind]).protocol["cuts"] == ["2014-07-01T10:00:00", "2014-08-01T00:00:00"]


WRONG = {
    "NaN": (0.8, np.nan),
    "infinite": (0.8, np.inf),
    "no time": (pd.NaT, 0.9),
    "numpy's no time": (np.datetime64("NaT"), 0.9),
    "none": (None, 0.9),
    "text": ("0.8", "0.9"),
    "words": ("yesterday", 0.9),
    "reversed": (0.9, 0.8),
    "reversed dates": ("2014-08-01", "2014-07-01"),
    "equal": (0.8, 0.8),
    "one": (0.8,),
    "a number": 0.8,
    "three": (0.7, 0.8, 0.9),
    "one text": "0.8,0.9",
    "outside": ("2030-01-01", "2031-01-01"),
    "milliseconds": (1404208800000, 1406851200000),
    "a truth": (True, 0.9),
    "huge": (0.8, 10**30),
    "nothing": None,
}


@pytest.mark.parametrize("kind", WRONG)
def test_cuts_that_are_none(kind):
    with pytest.raises(ValueError, match="cuts[:=]"):
        split(log([]), "global_time", cuts=WRONG[kind])


@pytest.mark.parametrize("n", [0, -1, 1.5, np.nan, True, "2", None])
def test_numbers_of_targets_that_are_none(n):
    with pytest.raises(ValueError, match="n="):
        split(log([]), "last_n", n=n)
    assert split(log([]), "last_n", n=np.int64(1)).protocol["n"] == 1
