"One log in every form that a table can have: the same sequences, and the same fingerprint."

import importlib.util
import shutil
import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import ROOT

from itemlm.data.datasets import load_dataset
from itemlm.data.events import Events, read_events
from itemlm.data.readers import read_table

HERE = {"Polars": pl.from_pandas, "lazy Polars": lambda log: pl.from_pandas(log).lazy(), "Arrow": pa.Table.from_pandas}
FORMS = HERE | {"DuckDB": lambda log: duckdb.from_df(log)}
ML = ROOT / "data/ml-latest-small/ratings.csv"


def made(n: int = 4000, ties: bool = False, seed: int = 0) -> pd.DataFrame:
    "A log of 4,000 rows; without ties no user has two at one time."
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 200, n), rng.zipf(1.3, n) % 150
    times = 1_600_000_000 + (rng.integers(0, 40, n) if ties else rng.permutation(n))
    log = pd.DataFrame(
        {"user_id": users, "item_id": [f"b{item}" for item in items], "timestamp": times, "rating": rng.integers(1, 6, n) / 1.0}
    )
    return log.assign(page="long text")


def read(source: object, **asked) -> Events:
    return read_events(source, verbose=False, **asked)


def same(found: Events, known: Events) -> None:
    assert found.fingerprint == known.fingerprint and found.sequences == known.sequences
    assert found.users.tolist() == known.users.tolist() and found.times.tolist() == known.times.tolist()
    pd.testing.assert_frame_equal(found.items, known.items)
    assert {**found.provenance, "order": ""} == {**known.provenance, "order": ""}


ASKED = ({}, {"min_rating": 3}, {"k_core": 5, "min_rating": 2}, {"repeats": "first"}, {"where": {"rating": 4}, "min_rating": 3})


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form, asked):
    same(read(FORMS[form](made()), **asked), read(made(), **asked))


@pytest.mark.parametrize("form", HERE)
def test_ties_stand_as_in_the_frame(form):
    log = made(ties=True)
    same(read(HERE[form](log)), read(log))
    assert read(log[::-1]).fingerprint != read(log).fingerprint


def test_without_an_order_the_item_decides_ties():
    log = made(ties=True).assign(item_id=lambda log: log.item_id.str[1:].astype(int))
    found = read(duckdb.from_df(log.sample(frac=1, random_state=1)))
    same(found, read(log.sort_values("item_id")))  # numbers as they count: 9 before 10
    assert "equal times by item id (rows of DuckDB stand in no order)" in found.said


def test_movielens_through_duckdb():
    found = read(duckdb.read_csv(str(ML)), k_core=5, duplicates="keep")  # its file has equal times in the order of the films
    assert found.fingerprint == load_dataset("ml-latest-small").fingerprint


def test_an_engine_gives_what_is_needed_only():
    found = read_table(duckdb.from_df(made()))
    assert list(found.frame) == list(made())
    events = read(duckdb.from_df(made().assign(text="x" * 1000)), min_rating=4)
    assert events.provenance["rows"] == 4000 and events.provenance["rows_below_min_rating"] == (made().rating < 4).sum()


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_rating_is_an_error_wherever_it_is(form):
    log = made().assign(rating=lambda log: log.rating.where(log.index != 7))
    with pytest.raises(ValueError, match="1 ratings in column rating are not numbers"):
        read(FORMS[form](log), min_rating=3)


def test_rows_without_order_or_time_are_refused():
    log = made().drop(columns="timestamp")
    for asked in ({}, {"time": False}):
        with pytest.raises(ValueError, match=r"rows of DuckDB stand in no order.*time='\.\.\.'"):
            read(duckdb.from_df(log), **asked)
    assert read(pl.from_pandas(log)).n_interactions == 4000
    numbered = duckdb.sql("select *, row_number() over () as place from log")
    assert read(numbered, time="place").fingerprint == read(log).fingerprint


def test_lists_keep_their_order_in_an_engine():
    lists = pd.DataFrame({"user": ["ann", "bob"], "item_list": [["tea", "egg"], ["jam"]]})
    assert read(duckdb.from_df(lists)).fingerprint == read(lists).fingerprint
    with pytest.raises(ValueError, match="several rows of lists of one user"):
        read(duckdb.from_df(lists.assign(user="ann")))


def test_nothing_left_and_nothing_there():
    with pytest.raises(ValueError, match="no interaction is left"):
        read(duckdb.from_df(made()), min_rating=9)
    with pytest.raises(ValueError, match="is empty"):
        read(duckdb.from_df(made()).filter("rating > 9"))


def test_prepared_events_are_kept_and_mapped(tmp_path, capsys):
    events = read(duckdb.from_df(made()))
    events.save(tmp_path / "kept")
    for found in (Events.load(tmp_path / "kept"), load_dataset(tmp_path / "kept")):
        same(found, events)
        assert all(isinstance(values, np.memmap) for values in (found.sequences.values, found.times))
    with pytest.raises(ValueError, match="k_core.*prepared already"):
        load_dataset(tmp_path / "kept", k_core=5)
    with pytest.raises(FileExistsError, match="there already"):
        events.save(tmp_path / "kept")
    body = bytearray((tmp_path / "kept/values.npy").read_bytes())
    body[-4] ^= 1
    (tmp_path / "kept/values.npy").write_bytes(body)
    with pytest.raises(ValueError, match="kept is damaged.*values.npy changed since"):
        Events.load(tmp_path / "kept")


# --- Spark ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spark():
    if not importlib.util.find_spec("pyspark") or not shutil.which("java"):
        pytest.skip("needs Java, and pyspark: pip install 'itemlm[spark]'")
    from pyspark.sql import SparkSession

    local = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").config("spark.sql.shuffle.partitions", 2)
    session = local.getOrCreate()
    yield session
    session.stop()


@pytest.mark.slow
def test_spark_gives_the_same(spark):
    log = made()
    frame = spark.createDataFrame(pa.Table.from_pandas(log)).repartition(3)
    for asked in ASKED[:3]:
        same(read(frame, **asked), read(log, **asked))
    ties = made(ties=True)
    found = read(spark.createDataFrame(pa.Table.from_pandas(ties)).repartition(3))
    same(found, read(duckdb.from_df(ties)))
    assert "rows of Spark stand in no order" in found.origin
    films = spark.read.csv(str(ML), header=True, inferSchema=True)
    assert read(films, k_core=5, duplicates="keep").fingerprint == load_dataset("ml-latest-small").fingerprint


@pytest.mark.slow
def test_lists_for_everybody_from_spark(spark, tmp_path):
    from itemlm.data.split import split
    from itemlm.models.counting import item_knn
    from itemlm.training.trainer import fit

    rec = fit(split(load_dataset("ml-latest-small")), item_knn(), verbose=False)
    rec.save(tmp_path / "run")
    command = [sys.executable, "examples/spark_recommend.py", str(tmp_path / "run"), str(tmp_path / "lists"), "--k", "7"]
    subprocess.run([*command, "--master", "local[2]"], cwd=ROOT, check=True, capture_output=True, timeout=300)
    order = ["user", "rank"]
    found = pd.read_parquet(tmp_path / "lists").sort_values(order, ignore_index=True)
    known = rec.recommend(users=rec.users.tolist(), k=7)[["user", "rank", "item", "score"]].sort_values(order, ignore_index=True)
    assert found.user.tolist() == known.user.tolist() and found["rank"].tolist() == known["rank"].tolist()
    assert found.score.to_numpy() == pytest.approx(known.score.to_numpy(), abs=1e-5)
    assert (found.item.to_numpy() == known.item.to_numpy()).mean() > 0.999
