"Every file a researcher has: containers, encodings, headers, lists, parts, times, ids, item tables, and the layouts of published sets"

import bz2
import gzip
import json
import lzma
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from test_data import ML_1M, project, publish, publisher, zipped  # noqa: F401 (fixtures)

from itemlm.data import datasets
from itemlm.data.datasets import load_dataset
from itemlm.data.events import read_events, with_texts

LOG = pd.DataFrame({"user": list("aabb"), "item": ["x", "007", "x", "y"], "time": [2, 1, 4, 3]})
TEXT = LOG.to_csv(index=False)


def read(source, **asked):
    return read_events(source, verbose=False, **asked)


def items_of(events) -> list[list[str]]:
    return [list(events.items.index[row]) for row in events.sequences]


def notes(events) -> str:
    return " | ".join(events.provenance.get("notes", []))


# --- containers ------------------------------------------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {
    "log.csv.gz": gzip.compress,
    "LOG.CSV.GZ": gzip.compress,
    "log.csv": gzip.compress,  # whatever it is called
    "log.csv.bz2": bz2.compress,
    "log.csv.xz": lzma.compress,
    "log.csv.zst": zstd,
    "LOG.CSV": bytes,
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_text(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name](TEXT.encode()))
    events = read(tmp_path / name)
    assert events.fingerprint == read(LOG).fingerprint and events.name.lower() == "log"
    if name != "LOG.CSV":
        (tmp_path / name).write_bytes(PACKED[name](TEXT.encode() * 50)[:-12])
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            read(tmp_path / name)


def test_zip_holds_one_table(tmp_path):
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.writestr("set/log.csv", TEXT)
        archive.writestr("set/README.md", "terms")
        archive.writestr("__MACOSX/set/._log.csv", "x")
    assert read(tmp_path / "log.zip").fingerprint == read(LOG).fingerprint
    with zipfile.ZipFile(tmp_path / "log.zip", "a") as archive:
        archive.writestr("set/other.csv", TEXT)
    with pytest.raises(ValueError, match="2 files .set/log.csv, set/other.csv.: unpack it"):
        read(tmp_path / "log.zip")


COLUMNAR = ["X.PARQUET", "df.parquet.gzip", "part-0.snappy.parquet", "log.pq", "x.feather", "x.arrow", "x.parquet.gz"]


@pytest.mark.parametrize("name", COLUMNAR)
def test_columnar(tmp_path, name):
    write = LOG.to_feather if name in ("x.feather", "x.arrow") else LOG.to_parquet
    write(tmp_path / name)
    if name == "x.parquet.gz":
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert read(tmp_path / name).fingerprint == read(LOG).fingerprint


FOREIGN = {b"\x89HDF\r\n": "HDF5", b"\x80\x04\x95": "pickle", b"<html><body>": "web page", b"version https://git-lfs.github.com": "Git LFS"}


@pytest.mark.parametrize("content", FOREIGN)
def test_what_is_not_read_is_named(tmp_path, content):
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"log.csv cannot be read: it is .*{FOREIGN[content]}"):
        read(tmp_path / "log.csv")


def test_only_needed_columns_are_read(tmp_path):
    wide = LOG.assign(text="long", rating=5)
    wide.to_parquet(tmp_path / "log.parquet")
    wide.to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "log.csv").write_bytes((tmp_path / "log.csv").read_bytes().replace(b"long", b"\xff\xfe"))  # nobody reads it
    for name in ("log.parquet", "log.csv"):
        assert read(tmp_path / name).fingerprint == read(LOG).fingerprint


# --- text ------------------------------------------------------------------------------------------------------------


ENCODINGS = ["utf-16", "utf-8-sig", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_marked_encodings(tmp_path, encoding):
    (tmp_path / "log.csv").write_bytes(TEXT.replace(",", "\t").encode(encoding))
    assert read(tmp_path / "log.csv").fingerprint == read(LOG).fingerprint


@pytest.mark.parametrize("encoding, word", [("cp1252", "Amélie"), ("cp1251", "Привет"), ("shift_jis", "となりのトトロ")])
def test_other_encodings_are_named_and_can_be_said(tmp_path, encoding, word):
    path = tmp_path / "log.csv"
    path.write_bytes(f"user,item\n1,a\n1,{word}\n".encode(encoding))
    with pytest.raises(ValueError, match=f"line 3 is not UTF-8; it looks like {encoding}.*encoding='{encoding}'"):
        read(path)
    assert list(read(path, encoding=encoding).items.index) == ["a", word]
    with pytest.raises(ValueError, match="encoding='klingon' is not one"):
        read(path, encoding="klingon")
    path.with_suffix(".jsonl").write_bytes(f'{{"user": 1, "item": "{word}"}}\n'.encode(encoding))
    assert list(read(path.with_suffix(".jsonl"), encoding=encoding).items.index) == [word]


def test_a_file_without_header_loses_no_row(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("u1\ti1\t5\nu1\ti2\t4\n")
    with pytest.raises(ValueError, match="no header: its first line looks like data .u1  i1  5.. Give the columns by number"):
        read(path)
    for asked in ({"user": 0, "item": 1, "time": 2}, {"user": "0", "item": "1", "time": "2"}):
        assert items_of(read(path, **asked)) == [["i2", "i1"]]
    with pytest.raises(ValueError, match="looks like data"):
        read(path, user="u1", item="i1")
    assert read(path, user="u1", item="i1", header=True).n_interactions == 1  # the caller insists
    path.write_text("1 7\n1 8\n2 7\n")  # between blanks
    assert items_of(read(path, user=0, item=1)) == [["7", "8"], ["7"]]


def test_columns_by_number_in_frames_and_files_with_a_header(tmp_path):
    bare = pd.DataFrame([[3, "u1", "a"], [1, "u1", "b"]])
    assert items_of(read(bare, user=1, item=2, time=0)) == [["b", "a"]] == items_of(read(bare, user="1", item="2", time="0"))
    assert items_of(read(bare, user=1, item=2, time=False)) == [["a", "b"]]
    (tmp_path / "log.csv").write_text(TEXT)
    assert read(tmp_path / "log.csv", user=0, item=1).fingerprint == read(LOG).fingerprint


def test_blanks_after_separators(tmp_path):
    (tmp_path / "log.csv").write_text("user, item, time\nu1, i1, 2\nu1, i2, 1\n")
    assert items_of(read(tmp_path / "log.csv")) == [["i2", "i1"]]


JSON = ["lines", "list", "literals", "pandas"]


@pytest.mark.parametrize("layout", JSON)
def test_json(tmp_path, layout):
    rows = LOG.to_dict("records")
    texts = {
        "lines": "".join(json.dumps(row) + "\n" for row in rows),
        "list": json.dumps(rows, indent=1),
        "literals": "".join(f"{row!r}\n" for row in rows),
        "pandas": LOG.to_json(),
    }
    (tmp_path / "log.txt").write_text(texts[layout])
    assert read(tmp_path / "log.txt").fingerprint == read(LOG).fingerprint


# --- parts, lists, tables in memory ----------------------------------------------------------------------------------


def test_hive_partitions_and_unpadded_parts(tmp_path):
    for part in (10, 2):
        (tmp_path / f"day={part}").mkdir()
        pd.DataFrame({"user": ["a"], "item": [f"i{part}"]}).to_parquet(tmp_path / f"day={part}/x.parquet")
    events = read(tmp_path)
    assert items_of(events) == [["i2", "i10"]] and "2 files joined" in notes(events)
    assert items_of(read(tmp_path, item="day")) == [["2", "10"]]


@pytest.mark.parametrize("suffix", ["inter", "csv"])
def test_train_valid_test_are_one_table(tmp_path, suffix):
    header = "user_id:token\titem_id:token\n" if suffix == "inter" else "user,item\n"
    for part, item in (("test", "c"), ("train", "a"), ("valid", "b")):
        (tmp_path / f"d.{part}.{suffix}").write_text(header + ("1\t" if suffix == "inter" else "1,") + item + "\n")
    events = read(tmp_path)
    assert items_of(events) == [["a", "b", "c"]] and f"d.train.{suffix} 1" in notes(events)
    paths = [tmp_path / f"d.{part}.{suffix}" for part in ("train", "test")]
    assert items_of(read(paths)) == [["a", "c"]]
    if suffix == "inter":
        paths[1].rename(tmp_path / "e.inter")
        with pytest.raises(ValueError, match="several sets of interactions"):
            read(tmp_path)


def test_ragged_lines(tmp_path):
    (tmp_path / "train.txt").write_text("0 5 6 7\n1 6\n")
    (tmp_path / "test.txt").write_text("0 8\n1 5 9\n")
    assert items_of(read(tmp_path)) == [["5", "6", "7", "8"], ["6", "5", "9"]]
    assert items_of(read(tmp_path / "train.txt")) == [["5", "6", "7"], ["6"]]


def test_recbole_sessions(tmp_path):
    path = tmp_path / "s.inter"
    path.write_text("session_id:token\titem_id_list:token_seq\titem_id:token\n1\ta\tb\n1\ta b\tc\n2\tc\ta\n")
    assert items_of(read(path)) == [["a", "b", "c"], ["c", "a"]]
    path.write_text("session_id:token\titem_id_list:token_seq\titem_id:token\n1\tx\tb\n1\ta b\tc\n")
    with pytest.raises(ValueError, match="do not continue each other"):
        read(path)


def test_a_session_a_row(tmp_path):
    sessions = pd.DataFrame({"session": [1, 2], "item": [["a", "b"], ["c"]], "time": [[9, 5], [7]]})
    sessions.to_parquet(tmp_path / "s.parquet")
    sessions.to_csv(tmp_path / "s.csv", index=False)
    for source in (sessions, tmp_path / "s.parquet", tmp_path / "s.csv"):
        assert items_of(read(source)) == [["b", "a"], ["c"]]
    with pytest.raises(ValueError, match="row 1: not as many of time as items"):
        read(sessions.assign(time=[[9, 5], [7, 8]]))
    (tmp_path / "otto.jsonl").write_text('{"session": 1, "events": [{"aid": 5, "ts": 8000000000000}, {"aid": 6, "ts": 7000000000000}]}\n')
    assert items_of(read(tmp_path / "otto.jsonl")) == [["6", "5"]]


class Foreign:
    "A table of another library"

    def __init__(self, way):
        setattr(self, way, lambda *_: LOG if way != "__arrow_c_stream__" else None)


class Streamed:
    "All that Arrow asks for, as Polars and DuckDB have it"

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.Table.from_pandas(LOG).__arrow_c_stream__(requested_schema)


class Lazy:
    def collect(self):
        return Streamed()


def test_tables_of_other_libraries():
    arrow = pa.Table.from_pandas(LOG)
    views = arrow.set_column(1, "item", arrow["item"].cast(pa.string_view())) if hasattr(pa, "string_view") else arrow
    sources = (arrow, arrow.to_batches()[0], views, Streamed(), Lazy(), Foreign("to_pandas"), Foreign("toPandas"))
    assert {read(source).fingerprint for source in sources} == {read(LOG).fingerprint}
    for source in ([("u", "i", 1)], 7, None):
        with pytest.raises(ValueError, match="make a DataFrame of it"):
            read(source)
    with pytest.raises(ValueError, match="is an address"):
        read("https://example.org/x.csv")


# --- times -----------------------------------------------------------------------------------------------------------

NOON = 1406116800  # 2014-07-23 12:00 UTC
SPELLED = (
    ["2014-07-23 12:00:00 UTC", "2014-07-23 11:00:00 UTC"],
    ["2014-07-23T14:00:00+02:00", "2014-07-23T11:00:00Z"],
    ["Wed Jul 23 05:00:00 -0700 2014", "Wed Jul 23 04:00:00 -0700 2014"],
    ["20140723120000", "20140723110000"],
    [NOON * 1000, NOON * 1000 - 3600000],
    [f"{NOON}.0", f"{NOON - 3600}.0"],
    pd.PeriodIndex(["2014-07-23 12:00", "2014-07-23 11:00"], freq="h"),
    ["07/23/2014 12:00", "07/23/2014 11:00"],
    ["23.07.2014 12:00", "23.07.2014 11:00"],
)


@pytest.mark.parametrize("when", SPELLED, ids=lambda when: str(when[0]))
def test_times_however_spelled(when):
    events = read(pd.DataFrame({"user": 1, "item": ["b", "a"], "time": when}))
    assert items_of(events) == [["a", "b"]] and events.times.tolist() == [NOON - 3600, NOON]


def test_compact_days(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,date\n1,b,20180920\n1,a,20180919\n")
    assert read(tmp_path / "log.csv").times.tolist() == [1537315200, 1537401600]


def test_two_units_are_never_mixed():
    frame = pd.DataFrame({"user": 1, "item": list("abc"), "time": [NOON, NOON + 1, NOON * 1000]})
    with pytest.raises(ValueError, match="two units: 2 look like seconds, 1 like milliseconds .row 2"):
        read(frame)
    with pytest.raises(ValueError, match="day or the month first"):
        read(frame.assign(time=["01/02/2014", "03/02/2014", "04/05/2014"]))


@pytest.mark.parametrize("none", [0, -1, "9999-12-31", "0001-01-01", 2**63 - 1, 253402300799])
def test_times_that_stand_for_none(none):
    when = [none, "2014-07-23 12:00:00"] if isinstance(none, str) else [none, NOON]
    events = read(pd.DataFrame({"user": 1, "item": ["a", "b"], "time": when}))
    assert events.times.tolist() == [0, NOON] and "1 of 2 times are not known" in notes(events)


@pytest.mark.parametrize(
    "column, values",
    [("bestelldatum", ["2022-03-03", "2022-03-01"]), ("clock", [NOON, NOON - 1]), ("when", pd.to_datetime(["2022-03-03", "2022-03-01"]))],
)
def test_a_column_that_looks_like_times_is_said(column, values):
    frame = pd.DataFrame({"user": 1, "item": ["a", "b"], column: values})
    assert f"{column} looks like times and is not used" in notes(read(frame))
    assert not notes(read(frame, time=False)) and items_of(read(frame, time=column)) == [["b", "a"]]


def test_a_named_index_is_a_column(tmp_path):
    frame = pd.DataFrame({"user": 1, "item": ["a", "b"], "timestamp": [3, 1]}).set_index("timestamp")
    frame.to_parquet(tmp_path / "log.parquet")
    assert items_of(read(frame)) == items_of(read(tmp_path / "log.parquet")) == [["b", "a"]]
    unnamed = frame.set_index(pd.DatetimeIndex(["2022-03-03", "2022-03-01"]))
    assert "index of the DataFrame looks like times" in notes(read(unnamed))


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("none", ["NULL", "null", "None", "<NA>", r"\N", "NaN", "nan", "", "  "])
def test_missing_ids_in_all_spellings(tmp_path, none):
    path = tmp_path / "log.csv"
    path.write_text(f"user,item,time\nu1,a,1\n{none},b,2\nu1,c,3\n")
    with pytest.raises(ValueError, match="1 interactions have no user id.*line 3.*missing='drop'"):
        read(path)
    events = read(path, missing="drop")
    assert items_of(events) == [["a", "c"]] and events.provenance["rows_without_id"] == 1
    assert "user called 'NA'" in notes(read(pd.DataFrame({"user": ["NA", "b"], "item": [1, 2]})))


def test_ids_that_are_no_text(tmp_path):
    table = pa.table({"user": pa.array([b"u1", b"u1"]), "item": ["a", "b"]})
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    assert list(read(tmp_path / "log.parquet").users) == ["u1"]
    for ids, problem in (
        ([b"\xff\xfe", b"a"], "bytes that are no text"),
        ([1e17, None], "lost their last digits"),
        ([{1: 2}, {}], "objects"),
    ):
        with pytest.raises(ValueError, match=f"the item column item of DataFrame holds .*{problem}"):
            read(pd.DataFrame({"user": 1, "item": pd.Series(ids, dtype=None if ids[0] == 1e17 else object)}))


def test_half_a_character(tmp_path):
    rows = [{"user": user, "item": item, "title": item} for user in ("a", "cut \ud83d") for item in ("x", "\ude00 y")]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = read(tmp_path / "log.jsonl")
    assert list(events.users) == ["a", "cut \\ud83d"] and list(events.items.index) == ["x", "\\ude00 y"]
    frame = pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=object) for name in ("user", "item")})
    with pytest.raises(ValueError, match="user ids may not hold .*half a character.*row 2, 3"):
        read(frame)


def test_whole_numbers_with_gaps_stay_exact(tmp_path):
    big = 2**60 + 1
    pd.DataFrame({"user": pd.array([big, None], "Int64"), "item": ["a", "b"]}).to_parquet(tmp_path / "log.parquet")
    assert list(read(tmp_path / "log.parquet", missing="drop").users) == [str(big)]


# --- filters ---------------------------------------------------------------------------------------------------------


def test_where_repeats_and_their_record():
    shop = pd.DataFrame({"user": 1, "item": list("aabaa"), "time": range(1, 6), "event": ["view", "view", "buy", "view", "view"]})
    assert items_of(read(shop, where={"event": "view"})) == [["a", "a", "a", "a"]]
    assert items_of(read(shop, repeats="collapse")) == [["a", "b", "a"]] and items_of(read(shop, repeats="first")) == [["a", "b"]]
    both = read(shop, where={"event": ["view", "buy"]}, repeats="collapse").provenance
    assert both["repeats_dropped"] == 2 and both["where"] == {"event": ["view", "buy"]} and both["rows_elsewhere"] == 0
    with pytest.raises(ValueError, match="no row of DataFrame has 'cart' in column event; it holds view, buy"):
        read(shop, where={"event": "cart"})
    with pytest.raises(ValueError, match="where: DataFrame has no column 'kind'; its columns: user"):
        read(shop, where={"kind": "view"})
    with pytest.raises(ValueError, match="repeats is 'keep' or"):
        read(shop, repeats="drop")


def test_order_and_numbers_are_those_of_a_plain_sort():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(0, 30, 3000), "item": rng.integers(0, 50, 3000), "time": rng.integers(1, 500, 3000)})
    frame["rating"] = rng.integers(1, 6, 3000)
    events = read(frame, min_rating=2, k_core=5)
    plain = frame[frame.rating >= 2].drop_duplicates(["user", "item", "time"])
    while (small := plain.groupby("user").item.transform("size").lt(5) | plain.groupby("item").user.transform("size").lt(5)).any():
        plain = plain[~small]
    plain = plain.sort_values(["user", "time"], kind="stable")
    assert list(events.users) == [str(user) for user in plain.user.unique()]
    assert events.items.index[events.sequences.values].tolist() == plain.item.astype(str).tolist()
    assert events.times.tolist() == plain.time.tolist() and list(events.items.index) == [str(item) for item in plain.item.unique()]


def test_rows_in_another_order_are_the_same_events(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(0, 300, 900), "item": rng.integers(0, 50, 900), "time": rng.permutation(900)})
    for index, rows in enumerate((frame, frame.sample(frac=1, random_state=1), frame[::-1])):
        rows.to_csv(tmp_path / f"{index}.csv", index=False)
    one, *others = (read(tmp_path / f"{index}.csv") for index in range(3))
    assert list(one.users) == sorted(one.users, key=int)
    for other in others:
        assert other.fingerprint == one.fingerprint and list(other.items.index) == list(one.items.index)
        assert list(other.users) == list(one.users) and other.sequences == one.sequences and np.array_equal(other.times, one.times)


# --- item tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids, other, how",
    [
        (["0663", "0541"], ["663", "541"], "leading zeros"),
        (["10.0", "11.0"], [10, 11], "'.0' at the end"),
        (["a", "b"], [" a", "b "], "blanks"),
    ],
)
def test_an_item_table_that_knows_nothing(ids, other, how):
    log = pd.DataFrame({"user": 1, "item": ids})
    with pytest.raises(ValueError, match=f"knows 0 of 2 items: its ids look like .*those of the events like.*but for .*{how}"):
        read(log, items=pd.DataFrame({"item": other, "title": "T"}))
    assert "knows 1 of 2 items" in notes(read(log, items=pd.DataFrame({"item": ids[:1], "title": "T"})))


def test_gaps_are_nulls_whatever_the_type():
    log = pd.DataFrame({"user": 1, "item": list("abc")})
    table = pd.DataFrame({"item": ["a", "b"], "title": [1984, "B"], "stock": [True, False], "genres": [["x"], ["y", "z"]]})
    table["genre"], table["day"] = pd.Categorical(["g", "h"]), pd.to_datetime(["2020-01-01"] * 2)
    table["hours"] = [{"mon": 8}, {}]
    items = read(log, items=table).items
    assert items.title.tolist() == ["1984", "B", ""] and items.genres["a"] == ["x"] and items.hours["a"] == '{"mon": 8}'
    assert items.loc["c", ["stock", "genres", "genre", "day"]].isna().all()
    pa.Table.from_pandas(items)  # can be saved
    mixed = table.assign(price=pd.Series([1.5, "n/a"], dtype=object))
    with pytest.raises(ValueError, match=r"column 'price' of the item table holds float \(1\) and str \(1\), which no file can keep"):
        read(log, items=mixed)
    with pytest.raises(ValueError, match="column 'price' of the text table"):
        with_texts(read(log), mixed.set_index("item")[["price"]])


# --- known sets put there by hand, and servers that waste one's time -------------------------------------------------


def test_a_zip_put_there_by_hand_meets_its_checksum(project):  # noqa: F811
    folder = project / "data/ml-1m"
    folder.mkdir(parents=True)
    zipped("ml-1m", ML_1M, folder / "ml-1m.zip")
    with pytest.raises(ValueError, match="ml-1m.zip is damaged or another file: .*checksum.*Delete it"):
        load_dataset("ml-1m")
    assert [path.name for path in folder.iterdir()] == ["ml-1m.zip"]  # nothing was unpacked


def test_a_page_instead_of_a_file_is_given_up(project, publisher, monkeypatch):  # noqa: F811
    publish(monkeypatch, publisher, "ml-1m", {"ml-1m.zip": b"<!DOCTYPE html><html>log in first</html>"})
    with pytest.raises(FileNotFoundError, match="the answer is a page or something else, not ml-1m.zip"):
        load_dataset("ml-1m")
    assert len(publisher.requests) == 1 and not (project / "data/ml-1m").exists()


def test_a_dripping_server_is_given_up(project, publisher, monkeypatch):  # noqa: F811
    publish(monkeypatch, publisher, "ml-1m", {"ml-1m.zip": zipped("ml-1m", ML_1M, project / "made.zip")})
    monkeypatch.setattr(datasets, "_GRACE", 0.0)
    monkeypatch.setattr(datasets, "_SLOW", 1e12)
    with pytest.raises(FileNotFoundError, match="only .* bytes came in"):
        load_dataset("ml-1m")
    assert len(publisher.requests) == 1 and not (project / "data/ml-1m").exists()


def test_options_of_a_data_set_are_part_of_its_cache(project):  # noqa: F811
    (project / "log.csv").write_text("who,item,time,event\na,x,1,view\na,x,2,view\na,y,3,buy\n")
    (project / "items.csv").write_text("item,title\nx,X\ny,Y\n")
    views = load_dataset("log.csv", user="who", where={"event": "view"}, repeats="collapse", items="items.csv")
    assert (items_of(views), views.items.title.tolist()) == ([["x"]], ["X"])
    assert items_of(load_dataset("log.csv", user="who")) == [["x", "x", "y"]]
    (project / "items.csv").write_text("item,title\nx,Another\n")
    assert load_dataset("log.csv", user="who", where={"event": "view"}, repeats="collapse", items="items.csv").items.title.tolist() == [
        "Another"
    ]
    with pytest.raises(ValueError, match="no data option 'colour'"):
        load_dataset("log.csv", colour="red")


# --- published layouts -----------------------------------------------------------------------------------------------

REVIEW = {
    "reviewerID": "A2SUAM1J3GNN3B",
    "asin": "0000013714",
    "reviewerName": "J",
    "helpful": [0, 0],
    "reviewText": "I, too",
    "overall": 5.0,
}
LAYOUTS = {  # name -> file, content, what is asked, raw items in order
    "amazon 2014": (
        "reviews_Tea_5.json.gz",
        [REVIEW | {"unixReviewTime": t, "reviewTime": "09 13, 2009", "asin": a} for t, a in ((1252800001, "B1"), (1252800000, "B2"))],
        {},
        ["B2", "B1"],
    ),
    "amazon 2014 csv": (
        "ratings_Tea.csv",
        "A2SUAM1J3GNN3B,0000013714,5.0,1252800001\nA2SUAM1J3GNN3B,B000F83SZQ,4.0,1252800000\n",
        {},
        ["B000F83SZQ", "0000013714"],
    ),
    "amazon 2018 csv": (
        "Tea.csv",
        "0000013714,A2SUAM1J3GNN3B,5.0,1252800001\nB000F83SZQ,A2SUAM1J3GNN3B,4.0,1252800000\n",
        {},
        ["B000F83SZQ", "0000013714"],
    ),
    "amazon 2018": (
        "Tea_5.json.gz",
        [
            REVIEW | {"unixReviewTime": t, "style": {"Size:": "1"}, "verified": True, "asin": a}
            for t, a in ((1252800001, "B1"), (1252800000, "B2"))
        ],
        {},
        ["B2", "B1"],
    ),
    "amazon 2023": (
        "Tea.jsonl",
        [
            {"rating": 5.0, "images": [], "asin": "B0", "parent_asin": a, "user_id": "AE", "timestamp": t}
            for a, t in (("B1", 1588687728923), ("B2", 1588687728922))
        ],
        {},
        ["B2", "B1"],
    ),
    "amazon 2023 csv": (
        "Tea.csv",
        "user_id,parent_asin,rating,timestamp\nAE,B1,5.0,1588687728923\nAE,B2,5.0,1588687728922\n",
        {},
        ["B2", "B1"],
    ),
    "movielens 100k": ("u.data", "196\t242\t3\t881250949\n196\t302\t3\t881250948\n", {}, ["302", "242"]),
    "movielens 1m": ("ratings.dat", "1::1193::5::978300760\n1::661::3::978300759\n", {}, ["661", "1193"]),
    "movielens 10m": ("ratings.dat", "1::122::4.5::838985046\n1::185::5::838985045\n", {}, ["185", "122"]),
    "movielens 25m": ("ratings.csv", "userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,3.5,1147868817\n", {}, ["306", "296"]),
    "yelp": (
        "review.json",
        [
            {"review_id": "r", "user_id": "u", "business_id": b, "stars": 5.0, "text": "a, b", "date": d}
            for b, d in (("b1", "2018-07-08 22:09:11"), ("b2", "2018-07-07 22:09:11"))
        ],
        {},
        ["b2", "b1"],
    ),
    "goodreads": (
        "interactions.json.gz",
        [
            {"user_id": "8842", "book_id": b, "is_read": True, "rating": 5, "date_added": d}
            for b, d in (("1", "Fri Aug 25 13:55:02 -0700 2017"), ("2", "Mon Jul 24 08:49:13 -0700 2017"))
        ],
        {},
        ["2", "1"],
    ),
    "goodreads csv": (
        "goodreads_interactions.csv",
        "user_id,book_id,is_read,rating,is_reviewed\n0,948,1,5,0\n0,947,1,5,1\n",
        {},
        ["948", "947"],
    ),
    "steam": (
        "steam_reviews.json.gz",
        "{u'username': u'Chaos', u'hours': 0.1, u'product_id': u'725280', u'date': u'2017-12-17', u'early_access': False}\n"
        "{u'username': u'Chaos', u'hours': 51.1, u'product_id': u'328100', u'date': u'2017-07-27', u'early_access': True}\n",
        {},
        ["328100", "725280"],
    ),
    "steam items": (
        "users_items.json",
        "{'user_id': 'u', 'items_count': 2, 'items': [{'item_id': '10', 'item_name': 'A'}, {'item_id': '20', 'item_name': 'B'}]}\n",
        {},
        ["10", "20"],
    ),
    "yoochoose": (
        "clicks.dat",
        "1,2014-04-07T10:51:09.277Z,214536502,0\n1,2014-04-07T10:50:09.868Z,214536500,S\n",
        {},
        ["214536500", "214536502"],
    ),
    "diginetica": (
        "train-item-views.csv",
        "sessionId;userId;itemId;timeframe;eventdate\n1;NA;81766;526309;2016-05-09\n1;NA;31331;1031018;2016-05-09\n1;NA;32118;243569;2016-05-09\n",
        {"user": "sessionId"},
        ["32118", "81766", "31331"],
    ),
    "retailrocket": (
        "events.csv",
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n1433221332116,257597,view,248676,\n1433221332118,257597,addtocart,1,\n",
        {"where": {"event": "view"}},
        ["248676", "355908"],
    ),
    "h&m": (
        "transactions_train.csv",
        "t_dat,customer_id,article_id,price,sales_channel_id\n2018-09-21,00a,0663713001,0.05,2\n2018-09-20,00a,0541518023,0.03,2\n",
        {},
        ["0541518023", "0663713001"],
    ),
    "lastfm-1k": (
        "userid-timestamp-artid-artname-traid-traname.tsv",
        "user_000001\t2009-05-04T23:08:57Z\tf1b1\tDeep Dish\t\tFlowers\nuser_000001\t2009-05-04T13:54:10Z\ta7f7\tサカモト\tt2\tComp\n",
        {"item": "artid"},
        ["a7f7", "f1b1"],
    ),
    "gowalla": (
        "loc-gowalla_totalCheckins.txt",
        "0\t2010-10-19T23:55:27Z\t30.23\t-97.79\t22847\n0\t2010-10-18T22:17:43Z\t30.26\t-97.76\t420315\n",
        {},
        ["420315", "22847"],
    ),
    "book-crossing": ("BX.csv", '"User-ID";"ISBN";"Book-Rating"\n"1";"0155061224";"5"\n"1";"844507";"0"\n', {}, ["0155061224", "844507"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts(tmp_path, name):
    file, content, asked, expected = LAYOUTS[name]
    text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    (tmp_path / file).write_bytes(gzip.compress(text.encode()) if file.endswith(".gz") else text.encode())
    events = read(tmp_path / file, **asked)
    assert items_of(events) == [expected]
    timed = name not in ("goodreads csv", "steam items", "book-crossing")
    assert events.has_times == timed and (not timed or pd.Timestamp(events.times.min(), unit="s").year > 1995)


def test_lastfm_tracks_have_gaps(tmp_path):
    path = tmp_path / "plays.tsv"
    path.write_text(LAYOUTS["lastfm-1k"][1])
    with pytest.raises(
        ValueError, match="no column with a usual name for the item; its columns: user, time, artid, artname, traid, traname"
    ):
        read(path)
    with pytest.raises(ValueError, match="1 interactions have no item id.*line 1"):
        read(path, item="traid")
    assert items_of(read(path, item="traid", missing="drop")) == [["t2"]]


@pytest.mark.parametrize("rows", [99, 100, 101, 102, 350])
def test_json_lines_lose_no_row(tmp_path, rows):
    "Whatever the size of the sample that the columns are chosen by."
    log = [{"user": f"u{n % 5}", "item": f"i{n}", "time": n + 1} for n in range(rows)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    (tmp_path / "log.json").write_text(json.dumps(log))
    expected = read_events(pd.DataFrame(log), verbose=False)
    for name in ("log.jsonl", "log.json"):
        found = read_events(tmp_path / name, verbose=False)
        assert (found.n_interactions, found.fingerprint) == (rows, expected.fingerprint)


def test_lists_in_texts_are_read_wherever_the_first_one_stands(tmp_path):
    log = pd.DataFrame({"user": [f"u{n}" for n in range(300)], "items": [f"i{n % 7}" for n in range(300)]})
    log.loc[299, "items"] = "i1,i2"
    assert set(read_events(log, verbose=False).items.index) == {f"i{n}" for n in range(7)}
    said = read_events(log, verbose=False).said
    assert "1 of 300 cells of items were cut at commas: if they are single ids, call the column item" in said
    tuples = read_events(pd.DataFrame({"user": ["a", "b"], "items": ["(1, 2, 3)", "(3, 1)"]}), verbose=False)
    assert tuples.items.index.tolist() == ["1", "2", "3"] and tuples.n_interactions == 5
    with pytest.raises(ValueError, match="is a set, which has no order"):
        read_events(pd.DataFrame({"user": ["a", "b"], "item_ids": ["{1, 2}", "{3, 1}"]}), verbose=False)
