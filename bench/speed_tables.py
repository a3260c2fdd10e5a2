"""From a folder of Parquet to training sequences: seconds and memory by the number of interactions.

    python bench/speed_tables.py            # 1, 2, 5, 10 and 20 million interactions
    python bench/speed_tables.py 1 20       # those only

Each size is prepared by a process of its own, from a table of bench/synthetic.py in parts of 4 million rows, which is made first and
removed at the end. The process reads the table, keeps sequences and times as arrays, maps these into memory, takes the fingerprint,
splits leave-one-out, makes the vocabulary and the training sequences. A second process does the same from the kept arrays.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from record import ROOT, record
from synthetic import write_synthetic

MILLIONS, ITEMS = (1, 2, 5, 10, 20), 100_000
NOTES = (
    "bench/synthetic.py, {items:,} items, 12 interactions a user, text ids, Parquet in parts of 4 million rows. prepare_<n>m_seconds: "
    "wall time from the parts to memory-mapped sequences, fingerprint, leave-one-out split, vocabulary and training sequences, without "
    "the import of libraries; prepare_<n>m_cpu_seconds: processor time of the same; prepare_<n>m_peak_gb: the largest resident memory of "
    "the whole process (about .3 of it libraries). again_<n>m: a second process, from the arrays that the first one kept. Processes that "
    "wanted to run on the machine before: {load}."
)

PREPARE = """
import json, resource, sys, time
from pathlib import Path
from itemlm.data.batches import training_sequences
from itemlm.data.datasets import load_dataset
from itemlm.data.events import Events, read_events
from itemlm.data.split import split
from itemlm.data.tokenizer import ItemTokenizer

source, kept = map(Path, sys.argv[1:])
wall, cpu = time.perf_counter(), time.process_time()
if not kept.exists():
    read_events(source, verbose=False).save(kept)
events = Events.load(kept)
print(events.fingerprint, file=sys.stderr)
parts = split(events)
tokenizer = ItemTokenizer.from_split(parts)
sequences = training_sequences(tokenizer.encode_codes(parts.train, events.items.index), 50)
took = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in kilobytes
print(json.dumps(took | {"peak_gb": peak, "targets": sequences.targets, "interactions": events.n_interactions}))
"""


def measured(source: Path, kept: Path) -> dict:
    "Seconds and memory of a process that prepares a table"
    done = subprocess.run([sys.executable, "-c", PREPARE, str(source), str(kept)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def figures(millions: int, folder: Path) -> dict:
    "What one size costs, first from the table and then from what was kept"
    source, kept = folder / f"{millions}m", folder / f"{millions}m_kept"
    write_synthetic(source, millions * 1_000_000, ITEMS)
    found = {}
    for name in ("prepare", "again"):
        cost = measured(source, kept)
        print(f"{name} {millions}m", {key: round(value, 2) for key, value in cost.items()}, flush=True)
        found |= {f"{name}_{millions}m_{key}": cost[key] for key in ("seconds", "cpu_seconds", "peak_gb")}
    shutil.rmtree(source)
    shutil.rmtree(kept)
    return found


def main() -> None:
    load = f"{psutil.getloadavg()[0]:.1f}"
    (ROOT / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        for millions in map(int, sys.argv[1:] or MILLIONS):
            start = time.perf_counter()
            found = figures(millions, Path(folder))
            record("speed", found, NOTES.format(items=ITEMS, load=load), packages=("numpy", "pandas", "pyarrow"))
            print(f"{millions} million: {time.perf_counter() - start:.0f} s with the making of the table", flush=True)


if __name__ == "__main__":
    main()
