"""A table of interactions of any size, the same for the same seed, made and written in little memory.

    python bench/synthetic.py table.parquet 5000000 1000000  # interactions, items; a path without .parquet is a folder of parts

Items have Zipf popularity and belong to latent clusters. A user stays in a cluster and now and then moves to another, drawn by how
popular it is (a Markov chain); histories have log-normal lengths. Every item is taken at least once, so the table has as many as asked.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

CHUNK = 2**20  # interactions made at once, more where one history is longer: a row group
PART = 4  # chunks in a part of a folder
LEAST, MEAN, SPREAD = 3, 12, 1.0  # of the lengths of histories: the least, the mean where users is None, of the normal's deviation
ZIPF = 1.0  # popularity of the item of rank r is r to the power of minus this
CLUSTER = 250  # items of a cluster, in the mean
STAY = 0.9  # probability that the next item is of the same cluster
START, DAY = 1_600_000_000, 86_400  # Unix seconds of the first day; histories begin within two years of it
SCHEMA = pa.schema([("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64())])


class Catalogue:
    "Items by cluster, with what they are drawn by"

    def __init__(self, items: int, rng: np.random.Generator):
        clusters = max(1, items // CLUSTER)
        owner = np.sort(np.append(np.arange(clusters), rng.integers(clusters, size=items - clusters)))  # none is empty
        weight = (rng.permutation(items) + 1.0) ** -ZIPF
        self.bounds = np.append(0, np.cumsum(np.bincount(owner, minlength=clusters)))  # where each cluster's items begin
        self.mass = np.append(0, np.cumsum(weight))  # of all items before each one
        self.unmet = rng.permutation(items)  # in the order in which each is taken for sure

    def clusters(self, count: int, rng: np.random.Generator) -> np.ndarray:  # (count,)
        "Clusters by their popularity"
        return np.searchsorted(self.mass[self.bounds], rng.uniform(0, self.mass[-1], count), side="right") - 1

    def items(self, clusters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        "An item of each of these clusters, by its popularity"
        low, high = self.mass[self.bounds[clusters]], self.mass[self.bounds[clusters + 1]]
        found = np.searchsorted(self.mass, rng.uniform(low, high), side="right") - 1
        return np.clip(found, self.bounds[clusters], self.bounds[clusters + 1] - 1)  # whatever was rounded

    def others(self, clusters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        "Any item of each of these clusters"
        return rng.integers(self.bounds[clusters], self.bounds[clusters + 1])


def lengths_of(interactions: int, users: int, rng: np.random.Generator) -> np.ndarray:  # (users,), adding up to interactions
    "Log-normal lengths of histories"
    share = rng.lognormal(sigma=SPREAD, size=users)
    ends = np.round(np.cumsum(share) / share.sum() * (interactions - LEAST * users)).astype(np.int64)
    return LEAST + np.diff(ends, prepend=0)


def histories(lengths: np.ndarray, catalogue: Catalogue, sure: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # items (n,)
    "Items of some users' histories end to end, those of `sure` among them"
    n, starts = lengths.sum(), np.cumsum(lengths) - lengths
    moves = rng.random(n) >= STAY
    moves[starts] = True
    clusters = catalogue.clusters(int(moves.sum()), rng)[np.cumsum(moves) - 1]
    items = catalogue.items(clusters, rng)
    pairs = np.repeat(np.arange(len(lengths)), lengths) * len(catalogue.mass) + items
    again = np.ones(n, bool)
    again[np.unique(pairs, return_index=True)[1]] = False
    items[again] = catalogue.others(clusters[again], rng)  # few take a thing twice
    items[rng.choice(n, len(sure), replace=False)] = sure
    return items


def chunks(interactions: int, items: int, users: int, seed: int) -> Iterator[pa.Table]:
    "The table, whole histories at a time, the events of each chunk in the order of their times"
    rng = np.random.default_rng(seed)
    catalogue, lengths = Catalogue(items, rng), lengths_of(interactions, users, rng)
    ends = np.cumsum(lengths)
    cuts = np.unique(np.append(np.searchsorted(ends, np.arange(CHUNK, interactions, CHUNK)), users))
    for first, stop in zip(np.append(0, cuts), cuts):
        own = lengths[first:stop]
        before, after = ((end * items) // interactions for end in (ends[first] - lengths[first], ends[stop - 1]))
        found = histories(own, catalogue, catalogue.unmet[before:after], rng)
        waited = np.cumsum(rng.exponential(DAY, len(found)))
        begun = np.cumsum(own) - own
        times = waited + np.repeat(rng.uniform(0, 730 * DAY, len(own)) - waited[begun], own)
        order = np.argsort(times)
        columns = np.repeat(np.arange(first, stop), own)[order], found[order], START + times[order].astype(np.int64)
        user, item, time = map(pa.array, columns)
        named = (pc.binary_join_element_wise(letter, pc.cast(column, pa.string()), "") for letter, column in (("u", user), ("i", item)))
        yield pa.table([*named, time], schema=SCHEMA)


def write_synthetic(
    path: str | Path,  # a .parquet file; any other name: a folder of parts
    interactions: int,
    items: int,  # every one of them is taken at least once
    users: int | None = None,  # None = one for 12 interactions
    seed: int = 0,
) -> Path:
    "Write a table of made-up interactions: user and item (text), timestamp (Unix seconds)"
    path, users = Path(path), users or max(1, interactions // MEAN)
    if interactions < max(items, LEAST * users):
        raise ValueError(f"{interactions:,} interactions are too few for {items:,} items and {users:,} users of {LEAST} or more each")
    whole = path.suffix == ".parquet"
    (path.parent if whole else path).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for number, table in enumerate(chunks(interactions, items, users, seed)):
            if number % PART == 0 and (number == 0 or not whole):
                stack.close()
                file = path if whole else path / f"part-{number // PART:05d}.parquet"
                writer = stack.enter_context(pq.ParquetWriter(file, SCHEMA))
            writer.write_table(table)
    return path


if __name__ == "__main__":
    write_synthetic(sys.argv[1], *map(int, sys.argv[2:]))
