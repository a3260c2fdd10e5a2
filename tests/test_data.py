"Data from disk and from publishers: every layout, every kind of damage; loopback only"

import gzip
import hashlib
import json
import os
import re
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from itemlm.core import Ragged, atomic_write
from itemlm.data import datasets, readers
from itemlm.data.datasets import load_dataset
from itemlm.data.events import read_events
from itemlm.data.split import split
from itemlm.workspace import workspace

ROOT = Path(__file__).resolve().parents[1]


# --- a small publisher on the loopback interface ---------------------------------------------------------------------


class Publisher(BaseHTTPRequestHandler):
    "Serves `server.files`; can cut answers short, ignore ranges or fail"

    def do_GET(self):
        server, body = self.server, self.server.files.get(self.path)
        server.requests.append((self.path, self.headers.get("Range")))
        if server.failures:
            server.failures -= 1
            return self.send_error(503)
        if body is None:
            return self.send_error(404)
        asked, start = self.headers.get("Range"), 0
        if asked and server.ranges:
            start = int(re.match(r"bytes=(\d+)-", asked)[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + server.cut] if server.cut else body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def publisher(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets, "_PAUSE", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    server.files, server.requests, server.cut, server.ranges, server.failures = {}, [], 0, True, 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def project(tmp_path, monkeypatch):
    "An empty project, entered"
    (tmp_path / "settings.ini").write_text("[workspace]\ndata = data\ncache = cache\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ITEMLM_DATA", raising=False)
    return tmp_path


def publish(monkeypatch, publisher, name, bodies, **changes):
    "Let `name` be fetched from the loopback publisher, with the checksums of these files"
    known = datasets.KNOWN[name]
    files = tuple(file._replace(sha256=hashlib.sha256(bodies[file.name]).hexdigest()) for file in known.files)
    monkeypatch.setitem(datasets.KNOWN, name, replace(known, base=publisher.url, **{"files": files, **changes}))
    publisher.files |= {f"/{file}": body for file, body in bodies.items()}


# --- what publishers serve -------------------------------------------------------------------------------------------

REVIEWS = [
    ("R3", "B001", 300),
    ("R1", "B001", 100),
    ("R1", "B002", 100),
    ("R2", "B002", 50),
    ("R3", "B002", 200),
    ("R1", "B003", 50),
    ("R2", "B003", 50),
    ("R2", "B004", 40),
]  # sorted by asin, as the original is
META = [
    {"asin": "B001", "title": "Salt &amp; Pepper", "brand": "Acme's", "categories": [["Top", "Spice", "Mixed"]]},
    {"asin": "B002", "title": 'The "big" one', "categories": [["Top"]]},
    {"asin": "B003"},
    {"asin": "B999", "title": "never reviewed", "categories": [["Top"]]},
]


def amazon():
    review = '{{"reviewerID": "{}", "asin": "{}", "overall": 4.0, "unixReviewTime": {}}}\n'
    reviews = "".join(review.format(*row) for row in REVIEWS)
    return {
        "reviews_Beauty_5.json.gz": gzip.compress(reviews.encode()),
        "meta_Beauty.json.gz": gzip.compress("".join(f"{row!r}\n" for row in META).encode()),
    }


def zipped(folder, files, path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{folder}/{name}", text.encode("latin-1"))
    return path.read_bytes()


ML_1M = {
    "README": "terms",
    "users.dat": "1::F::1::10::48067\n",
    "movies.dat": "1::Amélie (2001)::Comedy|Romance\n2::B::Drama\n",
    "ratings.dat": "1::2::5::20\n1::1::3::10\n2::1::4::5\n2::2::4::5\n",
}
FLAGS = "|".join("0000010000000010000")  # comedy, romance
ML_100K = {
    "README": "terms",
    "u.item": f"1|Amélie (2001)|01-Jan-2001||http://x|{FLAGS}\n2|B|||" + "|0" * 19 + "\n",
    "u.data": "1\t2\t5\t20\n1\t1\t3\t10\n2\t1\t4\t5\n2\t2\t4\t5\n",
}


def test_raw_reviews_equal_their_sequence_twin(project, publisher, monkeypatch):
    publish(monkeypatch, publisher, "beauty", amazon())
    events = load_dataset("beauty")
    twin = project / "twin"  # numbered by first appearance, as the papers' files are
    twin.mkdir()
    (twin / "items.tsv").write_text("id\tasin\ttitle\n1\tB002\t\n2\tB001\t\n3\tB003\t\n4\tB004\t\n")
    (twin / "sequences.txt").write_text("1 1 2\n2 3 2 1\n3 4 1 3\n")
    assert read_events(twin).fingerprint == events.fingerprint
    assert list(events.users) == ["R3", "R1", "R2"]
    assert list(events.items.index) == ["B002", "B001", "B003", "B004"]
    assert list(events.items.title) == ['The "big" one', "Salt & Pepper", "", ""]
    assert list(events.items.attributes) == ["", "Acme's; Spice; Mixed", "", ""]
    assert sorted(path.name for path in (project / "data/beauty").iterdir()) == sorted(amazon())
    publisher.requests.clear()
    assert load_dataset("beauty").fingerprint == events.fingerprint and not publisher.requests


@pytest.mark.parametrize("name, files", [("ml-1m", ML_1M), ("ml-100k", ML_100K)])
def test_raw_movielens(project, publisher, monkeypatch, name, files):
    publish(monkeypatch, publisher, name, {f"{name}.zip": zipped(name, files, project / "made.zip")})
    events = load_dataset(name, k_core=0)
    assert [list(events.items.index[row]) for row in events.sequences] == [["1", "2"], ["1", "2"]]
    assert list(events.items.title) == ["Amélie (2001)", "B"]
    assert events.items.genres["1"] == "Comedy|Romance"
    assert sorted(path.name for path in (project / "data" / name).iterdir()) == sorted({*files, f"{name}.zip"} - {"users.dat"})


# --- broken downloads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_continues(project, publisher, monkeypatch, ranges):
    bodies = amazon()
    publish(monkeypatch, publisher, "beauty", bodies)
    publisher.cut, publisher.ranges = max(map(len, bodies.values())) // 2 + 1, ranges
    if ranges:
        assert load_dataset("beauty").n_interactions == len(REVIEWS)
        assert any(asked for _, asked in publisher.requests)
    else:  # without ranges every try starts anew, and ends at the same byte
        with pytest.raises(FileNotFoundError, match="the connection ended at"):
            load_dataset("beauty")
        publisher.cut = 0
        assert load_dataset("beauty").n_interactions == len(REVIEWS)


def test_a_killed_download_continues(project, publisher, monkeypatch):
    bodies = amazon()
    publish(monkeypatch, publisher, "beauty", bodies)
    folder = project / "data/beauty"
    folder.mkdir(parents=True)
    (folder / "meta_Beauty.json.gz.part").write_bytes(bodies["meta_Beauty.json.gz"])  # whole, but not renamed
    (folder / "reviews_Beauty_5.json.gz.part").write_bytes(bodies["reviews_Beauty_5.json.gz"][:20])
    assert load_dataset("beauty").n_interactions == len(REVIEWS)
    assert [asked for _, asked in publisher.requests] == [f"bytes={len(bodies['meta_Beauty.json.gz'])}-", "bytes=20-"]


def test_a_busy_publisher_is_asked_again(project, publisher, monkeypatch):
    publish(monkeypatch, publisher, "beauty", amazon())
    publisher.failures = 2
    assert load_dataset("beauty").n_interactions == len(REVIEWS)


def test_wrong_checksum(project, publisher, monkeypatch, capsys):
    body = zipped("ml-1m", ML_1M, project / "made.zip")
    publish(monkeypatch, publisher, "ml-1m", {"ml-1m.zip": body}, files=(datasets._File("ml-1m.zip", "0" * 64),))
    with pytest.raises(ValueError, match="checksum"):
        load_dataset("ml-1m")
    assert not list((project / "data/ml-1m").iterdir())  # nothing half-written
    (project / "data/ml-1m/ml-1m.zip").write_bytes(body[:-30])  # put there by hand
    with pytest.raises(ValueError, match="ml-1m.zip is damaged"):
        load_dataset("ml-1m")
    bodies = amazon()  # Amazon's checksums are another party's: a warning
    publish(monkeypatch, publisher, "beauty", bodies, files=tuple(datasets._File(name, "0" * 64, False) for name in sorted(bodies)))
    assert load_dataset("beauty").n_interactions == len(REVIEWS)
    assert capsys.readouterr().out.count("warning: ") == 2


def test_a_damaged_file_says_so(project):
    (project / "data/beauty").mkdir(parents=True)
    (project / "data/beauty/reviews_Beauty_5.json.gz").write_bytes(amazon()["reviews_Beauty_5.json.gz"][:-9])
    with pytest.raises(ValueError, match="damaged Amazon files"):
        load_dataset("beauty")


def test_no_network(project, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("ITEMLM_DATA", str(project / "elsewhere"))
    monkeypatch.setattr(datasets, "_PAUSE", 0.01)
    monkeypatch.setitem(datasets.KNOWN, "toys", replace(datasets.KNOWN["toys"], base="http://127.0.0.1:9"))
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("toys")
    for part in (
        "elsewhere/toys",
        "elsewhere/amazon-toys",
        "data/toys",
        "data/amazon-toys",
        "http://127.0.0.1:9/meta_Toys",
        "ITEMLM_DATA",
        "reviews_Toys_and_Games_5.json.gz",
    ):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="ships with the project"):
        load_dataset("ml-latest-small")


def test_a_missing_file_is_not_asked_for_again(project, publisher, monkeypatch):
    publish(monkeypatch, publisher, "beauty", amazon())
    publisher.files.clear()
    with pytest.raises(FileNotFoundError, match="404"):
        load_dataset("beauty")
    assert len(publisher.requests) == 1


def test_unwritable_data_folder(project, publisher, monkeypatch):
    publish(monkeypatch, publisher, "beauty", amazon())
    (project / "data").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cannot write.*data"):
        load_dataset("beauty")


# --- search order and cache ------------------------------------------------------------------------------------------


def toy_set(folder, item="tea"):
    folder.mkdir(parents=True)
    (folder / "sequences.txt").write_text("ann 1 2 1\n")
    (folder / "items.tsv").write_text(f"id\tasin\ttitle\n1\t{item}\t\n2\tegg\t\n")
    return folder


def test_search_order(project, monkeypatch):
    first = lambda: load_dataset("beauty").items.index[0]
    (project / "settings.ini").write_text("[workspace]\ndata = mine\n  shared\n")
    toy_set(project / "shared/amazon-beauty", "shared")
    assert first() == "shared"
    toy_set(project / "mine/beauty", "mine")
    assert first() == "mine"
    toy_set(project / "disk/amazon-beauty", "disk")
    monkeypatch.setenv("ITEMLM_DATA", os.pathsep.join([str(project / "none"), str(project / "disk")]))
    assert first() == "disk"


def test_cache_follows_the_source(project, capsys, monkeypatch):
    folder = toy_set(project / "data/beauty")
    reads = []
    monkeypatch.setitem(readers._LAYOUTS, "sequences.txt", lambda folder: reads.append(1) or readers._read_sequences(folder))
    assert load_dataset("beauty").n_interactions == 3 and len(reads) == 1
    assert load_dataset("beauty").n_interactions == 3 and len(reads) == 1  # from the cache
    (folder / "sequences.txt").write_text("ann 1 2 1 2\n")
    assert load_dataset("beauty").n_interactions == 4 and len(reads) == 2  # the source changed
    monkeypatch.setattr(datasets, "_VERSION", datasets._VERSION + 1)
    assert load_dataset("beauty").n_interactions == 4 and len(reads) == 3  # the preparation changed
    assert "cache" not in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["items.tsv", "sequences.txt"]  # nothing beside the source


@pytest.mark.parametrize("damage", [b"", b"PAR1 no more"])
@pytest.mark.parametrize("name", ["users", "items"])
def test_a_corrupt_cache_is_made_anew(project, capsys, name, damage):
    toy_set(project / "data/beauty")
    good = load_dataset("beauty").fingerprint
    (project / f"cache/events/beauty-k0-r0/{name}.parquet").write_bytes(damage)
    assert load_dataset("beauty").fingerprint == good
    assert capsys.readouterr().out.count("damaged") == 1
    assert load_dataset("beauty").fingerprint == good
    assert "damaged" not in capsys.readouterr().out


def test_a_flipped_byte_in_the_cache_is_noticed(project, capsys):
    toy_set(project / "data/beauty")
    good = load_dataset("beauty").fingerprint
    path = project / "cache/events/beauty-k0-r0/items.parquet"
    body = path.read_bytes()
    at = body.index(b"tea")  # in a data page
    path.write_bytes(body[:at] + b"sea" + body[at + 3 :])
    assert load_dataset("beauty").fingerprint == good
    assert "damaged" in capsys.readouterr().out


def test_no_room_for_a_cache(project, capsys):
    toy_set(project / "data/beauty")
    (project / "cache").write_text("a file where the folder should be")
    assert load_dataset("beauty").n_interactions == 3
    assert "going on without a cache" in capsys.readouterr().out


def test_load_dataset_takes_paths(project, capsys):
    (project / "log.csv").write_text("user,item,time\na,x,1\na,y,2\n")
    assert load_dataset("log.csv").fingerprint == read_events(project / "log.csv").fingerprint
    assert capsys.readouterr().out.count("user=user, item=item, time=time") == 2
    assert load_dataset(str(project / "log.csv"), k_core=1).n_items == 2
    with pytest.raises(FileNotFoundError, match="known are ml-latest-small, beauty"):
        load_dataset("lgo.csv")


# --- bad tables ------------------------------------------------------------------------------------------------------

IDS = ["007", "7", "a, b", 'say "x"', "Æsop 東京", " lead", "1e5", "NA", "x;y|z"]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "parquet"])
def test_ids_stay_text(tmp_path, suffix):
    table = pd.DataFrame({"user": "u01", "item": IDS, "time": range(1, 10)})
    path = tmp_path / f"log.{suffix}"
    table.to_parquet(path) if suffix == "parquet" else table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    events = read_events(path)
    assert list(events.items.index) == IDS and list(events.users) == ["u01"] and events.name == "log"
    assert all(type(id) is str for id in [*events.users, *events.items.index])


BAD = {
    "": "empty",
    "user,item\n": "empty",
    "a,b\n1,2\n": "no column with a usual name for the user; its columns: a, b",
    "user,b\n1,2\n": "no column with a usual name for the item.*user, b.*item=",
    "user,uid,item\n1,2,3\n": r"2 columns that could be the user \(user, uid\)",
    "user,user,item\n1,2,3\n": "several columns of one name: user",
    "user,item,time\n1,2,3\n1,2,soon\n1,2,\n": "'soon', ''.*line 3, 4",
    "user,item,time\n1,2,2014-01-01\n1,2,2014-13-01\n": "line 3",
    "user,item\n1,2\n,3\n1,\n": "no user id.*line 3",
    "user,item\n1,2\n1,nan\n": "no item id.*line 3",
    "user,item\n1,2\n1,a,b\n": "Row #3: Expected 2 columns, got 3",
    "user,item\n1,a\x1fb\n": r"control characters.*line 2",
}


@pytest.mark.parametrize("text, message", BAD.items())
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_events(tmp_path / "log.csv")


def test_json_lines_keep_their_types(tmp_path):
    rows = [{"user": "007", "item": 5, "time": "2014-07-23"}, {"user": "7", "item": 6.0, "time": "2014-07-24"}]
    for name in ("log.jsonl", "log.jsonl.gz"):
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        events = read_events(tmp_path / name)
        assert (list(events.users), list(events.items.index), events.name) == (["7", "007"], ["6", "5"], "log")
    (tmp_path / "log.jsonl").write_text('{"user": 1, "item": 2}\n{"user": 1')
    with pytest.raises(ValueError, match="log.jsonl: line 2 cannot be read as JSON"):
        read_events(tmp_path / "log.jsonl")


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    table = pd.DataFrame({"user": list("aabb"), "item": list("xyxz"), "time": [1, 2, 1, 2]})
    for part in (0, 1):
        table[2 * part : 2 * part + 2].to_parquet(tmp_path / f"part-{part}.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    assert read_events(tmp_path).fingerprint == read_events(table).fingerprint
    (tmp_path / "part-1.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="part-1.parquet is not a whole Parquet file"):
        read_events(tmp_path)


def test_a_raw_table_is_read_as_it_stands(capsys):
    table = readers.RawTable(frame=pd.DataFrame({"user": [1], "item": [2]}), name="mine")
    assert read_events(table).name == "mine" and capsys.readouterr().out.count("user=user") == 1
    assert read_events(table, name="yours", verbose=False).name == "yours" and not capsys.readouterr().out


def test_bad_files(tmp_path):
    pd.DataFrame({"user": [1], "item": [2]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut.parquet is not a whole Parquet file"):
        read_events(tmp_path / "cut.parquet")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"user,item\n" + os.urandom(999).hex().encode())[:-30])
    with pytest.raises(ValueError, match="cut.csv.gz cannot be read"):
        read_events(tmp_path / "cut.csv.gz")
    (tmp_path / "latin.csv").write_bytes("user,item\n1,Amélie\n".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        read_events(tmp_path / "latin.csv")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.txt").write_text("no data here")
    with pytest.raises(ValueError, match="holds none of sequences.txt"):
        read_events(tmp_path / "notes")
    with pytest.raises(FileNotFoundError):
        read_events(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    "sequences, times, items, message",
    [
        ("", None, None, "line 1"),
        ("1 1 2\n2\n", None, None, "line 2"),
        ("1 1 2\n1 2 1\n", None, None, "line 2"),
        ("1 1 2\n", "1 5\n", None, "timestamps.txt: line 1"),
        ("1 1 2\n2 1\n", "1 5 6\n", None, "timestamps.txt: line 2"),
        ("1 1 2\n", "1 5 later\n", None, "interaction 2"),
        ("1 1 2\n", None, "id\tasin\n1\tA\n", "lacks items of the sequences: 2"),
        ("1 1 2\n", None, "id\tasin\n1\tA\n2\tA\n", "lists an id twice: A"),
    ],
)
def test_bad_sequence_folder(tmp_path, sequences, times, items, message):
    for name, text in (("sequences.txt", sequences), ("timestamps.txt", times), ("items.tsv", items)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_events(tmp_path)


def test_sequence_folder_is_never_sorted(tmp_path):
    (tmp_path / "sequences.txt").write_text("ann 3 1 1 2\n")
    (tmp_path / "timestamps.txt").write_text("ann 30 0 0 10\n")
    events = read_events(tmp_path)
    assert list(events.to_frame()["item"]) == ["3", "1", "1", "2"]
    assert events.times.tolist() == [30, 0, 0, 10]


def test_equal_times_keep_the_order_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"user": rng.integers(0, 5, 500), "item": rng.permutation(500), "time": rng.integers(1, 4, 500)})
    events = read_events(table)
    for user, codes in zip(events.users, events.sequences):
        mine = table[table.user == int(user)].sort_values("time", kind="stable")
        assert list(events.items.index[codes]) == [str(item) for item in mine["item"]]
    assert read_events(table).fingerprint == events.fingerprint == read_events(table.sort_values("user", kind="stable")).fingerprint


def test_fine_times_order_the_same_second():
    table = pd.DataFrame({"user": 1, "item": ["b", "a"], "time": [1406073600900, 1406073600100]})
    assert list(read_events(table).items.index) == ["a", "b"]


def test_one_interaction_a_user():
    events = read_events(pd.DataFrame({"user": range(5), "item": 1, "time": 9}))
    with pytest.raises(ValueError, match="at least 3 interactions.*longest of 5 users.*has 1"):
        split(events)
    with pytest.raises(ValueError, match="cuts"):
        split(events, "global_time")


def test_filters_that_leave_nothing():
    with pytest.raises(ValueError, match="no interaction is left.*k_core"):
        read_events(pd.DataFrame({"user": [1], "item": [1]}), k_core=5)
    with pytest.raises(ValueError, match="min_rating needs a rating column"):
        read_events(pd.DataFrame({"user": [1], "item": [1]}), min_rating=3)


# --- files -----------------------------------------------------------------------------------------------------------


def test_atomic_write_on_a_full_disk(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match="cannot write .*a: No space left on device; nothing was changed"):
        with atomic_write(tmp_path / "a") as path:
            path.write_text("ne")
            raise OSError(28, "No space left on device")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_ragged_refuses_half_a_file(tmp_path):
    Ragged.from_lists([[1, 2], [3]]).save(tmp_path)
    (tmp_path / "values.npy").write_bytes((tmp_path / "values.npy").read_bytes()[:-4])
    with pytest.raises(ValueError, match="holds no whole ragged array"):
        Ragged.load(tmp_path)


def test_workspace_is_found_from_below(project, monkeypatch):
    (project / "nbs/api").mkdir(parents=True)
    monkeypatch.chdir(project / "nbs/api")
    assert workspace().root == project.resolve() and workspace().data == (project.resolve() / "data",)


# --- the real sets ---------------------------------------------------------------------------------------------------

COUNTS = {
    "beauty": (22363, 12101, 198502),
    "toys": (19412, 11924, 167597),
    "sports": (35598, 18357, 296337),
    "ml-1m": (6040, 3416, 999611),
    "ml-100k": (943, 1682, 100000),
    "ml-latest-small": (671, 3496, 90072),
}
COLD = {"beauty": 138, "toys": 279, "sports": 317, "ml-1m": 0}


def here(name):
    places = [place / folder for place in workspace(ROOT).data for folder in (name, datasets.KNOWN[name].folder)]
    return any(place.is_dir() and readers.layout_of(place) for place in places)


@pytest.mark.parametrize("name", COUNTS)
def test_real_sets(name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    if not here(name):
        pytest.skip(f"{name} is not in the data folders of this machine")
    events = load_dataset(name)
    assert (events.n_users, events.n_items, events.n_interactions) == COUNTS[name]
    parts = split(events)
    assert len(parts.test) == events.n_users
    if name in COLD:
        assert parts.protocol["test_cold"] == COLD[name]
    if name == "sports":
        with pytest.raises(ValueError, match="sports has no time stamps"):
            split(events, "global_time")


def test_a_million_interactions_in_seconds(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"user": (0, 6000), "item": (0, 4000), "time": (10**9, 2 * 10**9)}
    table = pd.DataFrame({name: rng.integers(*ends, 10**6) for name, ends in columns.items()})
    table.to_csv(tmp_path / "big.csv", index=False)
    start = time.process_time()  # whoever else uses the machine
    events = read_events(tmp_path / "big.csv")
    assert time.process_time() - start < 10  # 2 s on a quiet one
    assert events.n_users == 6000


def test_columns_with_a_meaning_that_nothing_reads_are_said(tmp_path, capsys):
    "A title, or what was done, is no part of the events: the note says what to type, and after that it is gone."
    (tmp_path / "shop.csv").write_text("user,item,time,event_type,title,price\na,x,1,view,Tea,3\na,y,2,buy,Egg,1\n")
    read_events(tmp_path / "shop.csv")
    said = capsys.readouterr().out
    assert "note: column event_type is not read, all rows count alike; where={'event_type': 'view'} reads some alone" in said
    assert "note: column title is not read; titles come from an item table" in said and "price" not in said
    titles = pd.DataFrame({"item": ["x", "y"], "title": ["Tea", "Egg"]})
    events = read_events(tmp_path / "shop.csv", where={"event_type": ["view", "buy"]}, items=titles)
    assert "is not read" not in capsys.readouterr().out and events.items["title"].tolist() == ["Tea", "Egg"]
