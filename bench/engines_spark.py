"""Is a table in DuckDB or Spark prepared as one in a file, and are the lists of a Spark job those of `rec.recommend`?

    python bench/engines_spark.py            # MovieLens latest-small and Beauty, where it is at hand

Needs Java and pyspark (pip install 'itemlm[spark]').
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from record import ROOT, record

from itemlm.data.datasets import load_dataset
from itemlm.data.events import Events, read_events
from itemlm.data.split import split
from itemlm.models.item_lm import tiny
from itemlm.training.trainer import fit

try:
    from pyspark.sql import SparkSession
except ImportError:  # 400 MB that not everybody has
    SparkSession = None

CLOSE = 1e-5  # scores nearer to one another may change places with the users who are scored beside them
NOTES = (
    "{names}; PySpark in local mode with two threads. spark_equal: 1 where sequences, times, users and fingerprint read from a Spark "
    "DataFrame of 8 partitions and from a DuckDB relation are those read from the same rows in a pandas DataFrame (with and without a "
    "5-core), and where examples/spark_recommend.py gives every user the list of rec.recommend (k = 10, preset tiny, one epoch; scores "
    "to {close}). spark_same_items: share of the places of these lists with the same item."
)


def same(found: Events, known: Events) -> bool:
    "Are they the same events?"
    alike = found.fingerprint == known.fingerprint and found.sequences == known.sequences
    return alike and np.array_equal(found.times, known.times) and np.array_equal(found.users, known.users)


def prepared_alike(events: Events, spark: "SparkSession") -> bool:
    "Is the log of these events the same, read through each engine?"
    log = events.to_frame()
    log["time"] = np.arange(len(log)) + 1  # a total order
    scattered = log.sample(frac=1, random_state=0)
    frames = spark.createDataFrame(pa.Table.from_pandas(scattered, preserve_index=False)).repartition(8), duckdb.from_df(scattered)
    pairs = [(frame, core) for frame in frames for core in (0, 5)]
    return all(same(read_events(frame, k_core=core, verbose=False), read_events(log, k_core=core, verbose=False)) for frame, core in pairs)


def lists_alike(events: Events, folder: Path) -> tuple[bool, float]:
    "Are the lists of the Spark job those of the run, and in how many places?"
    rec = fit(split(events), tiny(epochs=1), verbose=False)
    rec.save(folder / "run")
    command = [sys.executable, "examples/spark_recommend.py", str(folder / "run"), str(folder / "lists"), "--master", "local[2]"]
    subprocess.run(command, cwd=ROOT, check=True)
    order = ["user", "rank"]
    found = pd.read_parquet(folder / "lists").sort_values(order, ignore_index=True)
    known = rec.recommend(users=rec.users.tolist(), k=10).sort_values(order, ignore_index=True)
    alike = len(found) == len(known) and found[order].equals(known[order].astype(found[order].dtypes.to_dict()))
    alike = alike and np.allclose(found["score"], known["score"], rtol=CLOSE, atol=CLOSE)
    return alike, float((found["item"].to_numpy() == known["item"].to_numpy()).mean()) if alike else 0.0


def main() -> None:
    if SparkSession is None:
        print("left out: it needs Java, and pyspark: pip install 'itemlm[spark]'")
        return
    spark = (
        SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").config("spark.sql.shuffle.partitions", 4).getOrCreate()
    )
    found, names = [], []
    for name in ("ml-latest-small", "beauty"):
        try:
            events = load_dataset(name)
        except FileNotFoundError as error:
            print(f"without {name}: {error}")
            continue
        names.append(f"{name} ({events.n_interactions:,} interactions)")
        with tempfile.TemporaryDirectory() as folder:
            found.append((prepared_alike(events, spark), *lists_alike(events, Path(folder))))
        print(name, found[-1], flush=True)
    spark.stop()
    equal = int(all(events and lists for events, lists, _ in found))
    figures = {"spark_equal": equal, "spark_same_items": min(places for *_, places in found)}
    record("engines", figures, NOTES.format(names=" and ".join(names), close=CLOSE), packages=("pyspark", "duckdb", "narwhals", "pyarrow"))


if __name__ == "__main__":
    main()
