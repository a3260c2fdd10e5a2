"""What is read, and what is right: inputs met in the wild, layouts of files, and the cost of reading 5,000,000 rows.

    python bench/open.py cases ../shared/cases    # a folder of cases: an input, and a script whose first line is the right behaviour
    python bench/open.py read ../older ../older/.venv/bin/python    # an older checkout, and the Python that runs it

A case is right when its script says what `SAID` asks for, and nothing that a `!` forbids. A script that calls names which have moved
cannot run as it stands: its kind is held by the tests that `HELD` names. A case without a line in either table counts as wrong.
Each reading is a process of its own, in turns with the older checkout's. The file holds what a log holds: ids as text, a rating, a time, a
line of text that nobody needs.
"""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from record import ROOT, record

SAID = {
    "01-recbole-presplit": [r"10 interactions", r"3 files joined", r"1 -> e, 2 -> e"],
    "02-recbole-item-list": [r"9 interactions", r"'a', 'b', 'c', 'd', 'b', 'c', 'a', 'a', 'c'"],
    "03-headerless-frame": [r"'item': \['b', 'c', 'a'\], 'time': \[1, 2, 3\]", "!!!"],
    "04-json-lines": [r"order: as in the file", r"1588687728", r"1531001351", "!!!"],
    "05-time-not-recognised": [
        r"bestelldatum looks like times",
        r"time=t_dat",
        r"time=event_timestamp",
        r"within=timeframe",
        r"'y', 'z', 'x'",
    ],
    "07-item-table-matches-nothing": [r"knows 0 of 3 items.*leading zeros", r"knows 0 of 2 items.*'\.0' at the end", r"knows 2 of 2 items"],
    "08-save-over-a-run": [r"is the home of a run of ItemLM with other weights: choose another folder"],
    "09-null-written-as-text": [r"no user id .*'NULL'.*line 3", r"no user id .*line 2"],
    "12-file-without-header": [r"'316637', '420315', '22847'", r"has no column '22847'", r"'1193', '914', '661'"],
    "13-item-attributes-with-gaps": [r"(?s)(    ok\n.*){4}", r"column 'price' of the item table holds float .* and str"],
    "14-small-catalogue": [r"0 +1 +i\d", "!catalogue has"],
    "15-two-jobs-one-run": [r"'ok', 'BlockingIOError run is in use by another process", "!FileNotFoundError"],
    "16-tilde": [r"left behind: \[\]", "!!!"],
    "17-make-and-odd-paths": [r"(?s)(set two runs side by side.*){3}exit 0"],
    "20-cuts-as-timestamps": [r"(?s)(global_time: train 30.*){3}last_n: train 30", "!!!"],
    "22-user-given-as-number": [r"7 is not known, but '7' is", r"number 0 is 7 \(int\)"],
    "25-papermill-numbers": [r"(?m)^0010$", r"(?m)^ls: .*10", "!Error: .*2024", "!(?m)^10$"],
    "26-advice-that-cannot-be-followed": [r"(?s)doing what it says.*valid are dataset.*columns", "!has no column"],
    "27-report-as-html-offline": [r"figures in the page ([1-9]\d*) drawn [1-9]", r"!failed \S*plot"],
    "29-encodings": [r"'item': \['a', 'b'\]", r"encoding='cp1252'"],
    "30-containers": [r"(?s)(3 users, 7 items, 12 interactions.*){8}", r"is an address: fetch the file first", r"make a DataFrame of it"],
    "31-only-items-in-stock": [r"(?s)allowed=stock\) *\n(?!.*!!).*i[357].*\n.*i[357]"],
    "32-train-on": [r"(?s)five more epochs.*Recommender.*one new interaction", "!Traceback"],
    "34-parameters-nobody-reads": [r"exit 1, evaluated with", r"exit 0, trained with", "!has no attribute", r"unknown parameter foo"],
    "35-explore-run": [r"exit 0", "!NameError"],
    "45-row-order": [r"(?s)as it is\n +(.+)\n.*shuffled\n +\1\n"],
    "faults/01-foreign-files-deleted": [r"left: \['.letter.tmp.odt', '.saving', '.saving/precious.txt', '.write-test', 'notes.txt'\]"],
    "faults/04-resume-advice": [r"epochs trained: \[1.0, 2.0, 3.0, 4.0, 5.0\] of 5; state: finished"],
    "faults/12-two-at-once": [r"second: BlockingIOError", r"first: ok \| state finished"],
    "faults/16-make-space": [r"runs/train", "!runs/train-my -clicks"],
}  # case -> what its output holds; what begins with ! it does not hold
HELD = {
    "faults/00-resume-other-user-order": ["test_damage.py::test_the_same_rows_in_another_order_are_another_run"],
    "faults/02-stale-metrics": ["test_damage.py::test_figures_of_other_weights_are_refused"],
    "faults/03-global-time-overflow": ["test_split.py::test_nothing_of_the_future"],
    "faults/05-leak-without-warning": ["test_damage.py::test_targets_that_were_trained_on_are_counted"],
    "faults/07-save-fails-after-training": ["test_damage.py::test_what_stops_a_save_is_met_before_training"],
    "faults/08-small-catalogue": ["test_hostile_titles.py::test_small_catalogues"],
    "faults/10-report-half-written": ["test_damage.py::test_a_disk_that_fills_up_between_two_moves"],
    "faults/13-damage-undetected": [
        "test_damage.py::test_a_flipped_bit_is_noticed",
        "test_damage.py::test_a_file_of_another_run_is_noticed",
    ],
    "faults/15-titles": ["test_hostile_titles.py::test_titles_of_one_kind"],
    "faults/17-search-memory": ["test_hostile_titles.py::test_a_title_of_a_megabyte_costs_a_megabyte"],
    "faults/18-out-dir-deleted": ["test_damage.py::test_a_folder_that_goes_while_its_run_is_trained"],
    "faults/23-zip-by-hand": ["test_files.py::test_a_zip_put_there_by_hand_meets_its_checksum"],
    "faults/25-offline": ["test_hostile_titles.py::test_static_pages"],
}  # case -> the tests of its kind
ROWS, PAIRS = 5_000_000, 3
READ = (
    "import json, resource, sys, time; from itemlm import read_events; start = time.process_time(); events = read_events(sys.argv[1]); "
    "took = time.process_time() - start; peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20; "
    "print(json.dumps({'seconds': took, 'gb': peak, 'fingerprint': events.fingerprint}))"
)
NOTES = (
    "cases: scripts in the folder of cases; cases_right: those that say what is right, or whose kind passes its tests. formats: the ways "
    "of packing and writing a table, and the published layouts, that tests/test_files.py reads a small file of. "
    f"read_5m: {ROWS:,} rows of Parquet (user, item, rating, time, text; 200,000 users, 50,000 items), read in a process of its own. "
    f"read_5m_cpu_ratio: processor seconds over those of the older checkout, median over {PAIRS} pairs in turns. read_5m_peak_gb: peak "
    "resident memory of the process, imports included; read_5m_peak_ratio: over the older's."
)


def output(case: Path) -> str:
    "What a case's script says, run in a copy of its folder"
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(shutil.copytree(case, Path(scratch) / case.name))
        for path in (here, *here.rglob("*")):
            path.chmod(0o755)
        script = next(here.glob("run.sh"), None) or next(here.glob("run.py"), None) or here / "case.py"
        command = ["bash", script.name] if script.suffix == ".sh" else [sys.executable, script.name]
        environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "REPO": str(ROOT), "PY": sys.executable}
        if script.suffix == ".sh":
            environ.pop("PYTHONPATH")
        done = subprocess.run(command, cwd=here, env=environ, capture_output=True, text=True, timeout=1200)
        return done.stdout + done.stderr


def says(text: str, wanted: list[str]) -> bool:
    "Does an output hold what it should, and nothing that it should not?"
    return all(not re.search(some[1:], text) if some.startswith("!") else re.search(some, text) for some in wanted)


def held(tests: list[str]) -> bool:
    "Do the tests of a kind pass?"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *(f"tests/{test}" for test in tests)]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def right(folder: Path) -> dict[str, bool]:
    "Case -> does it give the right behaviour?"
    found = {}
    for script in sorted(path for name in ("run.py", "run.sh", "case.py") for path in folder.rglob(name)):
        name = str(script.parent.relative_to(folder))
        found[name] = held(HELD[name]) if name in HELD else name in SAID and says(output(script.parent), SAID[name])
        print(f"{'right' if found[name] else 'WRONG'}  {name}", flush=True)
    return found


def formats() -> int:
    "Layouts and packings that the tests read"
    sys.path.insert(0, str(ROOT / "tests"))
    from test_files import COLUMNAR, ENCODINGS, JSON, LAYOUTS, PACKED

    return len({*PACKED, *COLUMNAR, *ENCODINGS, *JSON, *LAYOUTS})


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


def reading(old_root: str, old_python: str) -> dict[str, float]:
    "The figures of reading, on a log made for it"
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(Path(folder) / "log.parquet",))
        maker.start()  # a process of its own: a child's peak memory begins with its parent's
        maker.join()
        return measure(Path(old_root).resolve(), old_python, Path(folder) / "log.parquet")


def cases(folder: str) -> dict[str, int]:
    "The figures of a folder of cases"
    found = right(Path(folder).resolve())
    return {"cases": len(found), "cases_right": sum(found.values()), "formats": formats()}


if __name__ == "__main__":
    asked = {("cases", 1): cases, ("read", 2): reading}.get((*sys.argv[1:2], len(sys.argv) - 2))
    if asked is None:
        sys.exit(print(__doc__))  # nothing to measure
    figures = asked(*sys.argv[2:])
    record("open", figures, NOTES)
    print(json.dumps(figures, indent=1))
