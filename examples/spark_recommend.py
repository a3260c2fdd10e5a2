"""The k best items of every user of a saved run, as a Spark job: a job to copy from.

    pip install 'itemlm[spark]'
    python examples/spark_recommend.py runs/mine lists --k 100             # on all cores of this machine
    spark-submit examples/spark_recommend.py runs/mine lists --k 100       # on a cluster, which says what the master is
    python examples/spark_recommend.py runs/mine lists --histories clicks  # other users, or newer histories

Lists are those of `rec.topk`: Parquet files with user, rank (1 ... k), item, score. Histories are those that the run knows, or a Parquet
table of user (text) and items (list of raw ids, oldest first). Each task opens the run once and works on one partition of the users, so
every machine must see the run's folder at the same path, and have itemlm installed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from itemlm import Recommender, load

LISTS = pa.schema([("user", pa.string()), ("rank", pa.int32()), ("item", pa.string()), ("score", pa.float32())])
TYPES = "user string, rank int, item string, score float"


def lists_of(rec: Recommender, users: pa.RecordBatch, k: int, seen: str) -> pa.RecordBatch:
    "Lists of some users, best first, one user after another"
    names = users["user"].to_pylist()
    histories = users["items"].to_pylist() if "items" in users.schema.names else rec.history(names)
    ids, scores = rec.topk(histories, k=k, seen=seen)
    rows, ranks = np.nonzero(ids != "")  # rules and seen filter may leave fewer than k
    columns = np.array(names, object)[rows], ranks + 1, ids[rows, ranks], scores[rows, ranks]
    return pa.record_batch([pa.array(column, field.type) for column, field in zip(columns, LISTS)], schema=LISTS)


def recommend(run: str, k: int, seen: str) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    "What a task does with its users"

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        torch.set_num_threads(1)  # Spark runs a task a core
        rec = load(run)
        for users in batches:
            yield lists_of(rec, users, min(k, rec.n_items), seen)

    return work


def users_of(spark: SparkSession, run: str, histories: str) -> DataFrame:
    "Who is to have a list: users the run knows, or histories of one's own"
    if histories:
        return spark.read.parquet(histories).select(F.col("user").cast("string"), F.col("items").cast("array<string>"))
    return spark.read.parquet(f"{run}/histories.parquet").select("user")


def main() -> None:
    words = argparse.ArgumentParser(description="The k best items of every user of a saved run, as a Spark job.")
    words.add_argument("run", help="folder of a saved run")
    words.add_argument("out", help="folder to write, which must not be there")
    words.add_argument("--k", type=int, default=10)
    words.add_argument("--seen", default="drop", choices=["drop", "keep", "window"])
    words.add_argument("--histories", default="", help="Parquet table of user and items; without it the users of the run")
    words.add_argument("--tasks", type=int, default=0, help="partitions of the users; 0 = two a core")
    words.add_argument("--master", default="", help="such as local[2]; without it what spark-submit says, or all cores of this machine")
    asked = words.parse_args()
    if asked.k < 1:
        words.error(f"--k {asked.k} must be at least 1")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # of the tasks, where a cluster names no other
    builder = SparkSession.builder.appName("spark_recommend").config("spark.sql.execution.arrow.maxRecordsPerBatch", 4096)
    spark = (builder.master(asked.master) if asked.master else builder).getOrCreate()
    users = users_of(spark, asked.run, asked.histories).repartition(asked.tasks or 2 * spark.sparkContext.defaultParallelism)
    users.mapInArrow(recommend(asked.run, asked.k, asked.seen), TYPES).write.parquet(asked.out)
    spark.stop()


if __name__ == "__main__":
    main()
