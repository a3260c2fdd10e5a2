"""A run that is stopped and goes on with another number of processes: where it ends, beside one process that was never stopped.

python bench/engines_resume.py          # MovieLens latest-small, three seeds, some ten minutes
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from record import reached, record

SEEDS, STOP = (0, 1, 2), 0.3  # minutes after which the first command of two is over
WAYS = {"one": [1], "one_then_two": [1, 2], "two_then_one": [2, 1]}  # processes of one command after another
NOTES = (
    "The preset small on MovieLens latest-small, test NDCG@10, mean of three seeds, one thread a process. resume_ndcg_one: one process to "
    f"the end; resume_ndcg_one_then_two: one process for {STOP} minutes, then two; resume_ndcg_two_then_one: the other way round. "
    "resume_seed_sd: between the seeds of one process. Dropout is drawn by step and process, so the runs differ as seeds do."
)


def train(folder: Path, seed: int, processes: int, minutes: float) -> None:
    "One command; it goes on with what the folder holds"
    asked = {"model": "item_lm", "seed": seed, "out_dir": folder, "processes": processes, "max_minutes": minutes, "device": "cpu"}
    words = [str(word) for pair in asked.items() for word in ("-p", *pair)]
    subprocess.run([sys.executable, "-m", "itemlm.train", *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def ended(folder: Path, seed: int, processes: list[int]) -> float:
    "Test NDCG@10 after all commands"
    for n, some in enumerate(processes, 1):
        train(folder, seed, some, STOP if n < len(processes) else 0)
    return reached(json.loads((folder / "metrics.json").read_text()), "ndcg@10")


if __name__ == "__main__":
    found = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in SEEDS:
            for way, processes in WAYS.items():
                found[way].append(ended(Path(scratch) / f"{way}-{seed}", seed, processes))
    figures = {f"resume_ndcg_{way}": mean(values) for way, values in found.items()}
    record("engines", figures | {"resume_seed_sd": stdev(found["one"])}, NOTES)
    print(json.dumps(found | figures, indent=1))
