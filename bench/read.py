"""Reading 5,000,000 rows from Parquet: processor time and peak memory, beside an older checkout in the same run.

    python bench/read.py ../older ../older/.venv/bin/python    # a checkout that holds itemlm, and the Python that runs it

Each reading is a process of its own, in turns with the other's. The file holds what a log holds: ids as text, a rating, a time, a line of
text that nobody needs.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from record import ROOT, record

ROWS, PAIRS = 5_000_000, 3
READ = (
    "import json, resource, sys, time; from itemlm import read_events; start = time.process_time(); events = read_events(sys.argv[1]); "
    "took = time.process_time() - start; peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20; "
    "print(json.dumps({'seconds': took, 'gb': peak, 'fingerprint': events.fingerprint}))"
)
NOTES = (
    f"{ROWS:,} rows of Parquet (user, item, rating, time, text; 200,000 users, 50,000 items), read_events in a process of its own. "
    f"read_5m_cpu_ratio: processor seconds over those of the older checkout, median over {PAIRS} pairs in turns. read_5m_peak_gb: peak "
    "resident memory of the process, imports included; read_5m_peak_ratio: over the older's."
)


def make(path: Path) -> None:
    "A log of random visits"
    rng = np.random.default_rng(0)
    users, items = (np.array([f"{letter}{i:09d}" for i in range(n)]) for letter, n in (("A", 200_000), ("B", 50_000)))
    user, item = rng.integers(0, len(users), ROWS), rng.zipf(1.3, ROWS) % len(items)
    columns = {"user_id": users[user], "item_id": items[item], "rating": rng.integers(1, 6, ROWS).astype(float)}
    columns |= {"timestamp": rng.integers(1_400_000_000, 1_600_000_000, ROWS), "text": users[user]}
    pd.DataFrame(columns).to_parquet(path)


def read(python: str, root: Path, path: Path) -> dict:
    "Seconds, peak memory and fingerprint of one reading"
    environ = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, "-c", READ, str(path)], cwd=root, env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"reading with {root} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(old_root: Path, old_python: str, path: Path) -> dict[str, float]:
    "This checkout beside an older one"
    pairs = [(read(sys.executable, ROOT, path), read(old_python, old_root, path)) for _ in range(PAIRS)]
    if len({one["fingerprint"] for pair in pairs for one in pair}) > 1:
        sys.exit("the two checkouts read different events")
    return {
        "read_5m_cpu_ratio": median(new["seconds"] / old["seconds"] for new, old in pairs),
        "read_5m_peak_gb": median(new["gb"] for new, _ in pairs),
        "read_5m_peak_ratio": median(new["gb"] / old["gb"] for new, old in pairs),
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(print(__doc__))  # nothing to compare with
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(Path(folder) / "log.parquet",))
        maker.start()  # a process of its own: a child's peak memory begins with its parent's
        maker.join()
        figures = measure(Path(sys.argv[1]).resolve(), sys.argv[2], Path(folder) / "log.parquet")
    record("open", figures, NOTES)
    print(json.dumps(figures, indent=1))
