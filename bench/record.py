"""Write `bench/results/<topic>.json`, the one place for figures that this project states.

A script under `bench/` measures and calls `record("topic", {"key": number})`. Every figure keeps the commit and the day it was
measured at. A long job records after every unit of work and asks `recorded("topic")` where it stopped: figures of this commit.
What many runs reached is one table, `bench/results/runs.jsonl`, which nbs/compare.ipynb writes with `-p records bench/results` and
`runs` reads.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
MEASURED = "itemlm", "nbs"  # a change of these makes older figures stale
PACKAGES = "torch", "numpy", "pandas"


def record(
    topic: str,  # Name of the file
    figures: dict,  # key -> number
    notes: str = "",  # What was measured and how
    packages: tuple = PACKAGES,  # Whose versions to state
    anywhere: bool = False,  # What is measured is no matter of the machine: figures of another one stay, and say whose they are
) -> Path:
    "Add `figures` to the topic's file; those of another machine are dropped first, those of another commit say so"
    old = load(topic) if anywhere or load(topic).get("machine") == machine() else {}
    here = {"commit": commit(), "date": datetime.now(UTC).date().isoformat()}
    rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in figures.items()}
    before, measured = old.get("figures", {}), old.get("measured", {})
    if anywhere:
        measured = {key: {"cpu": old["machine"]["cpu"]} | at for key, at in measured.items()}
    new = [key for key in rounded if not (anywhere and key in before and before[key] == rounded[key])]
    result = {
        "figures": before | rounded,
        "measured": measured | dict.fromkeys(new, here | ({"cpu": cpu_name()} if anywhere else {})),
        **here,
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "notes": notes_beside(old.get("notes", ""), notes, topic),
    }
    return write(topic, result)


def notes_beside(old: str, new: str, topic: str) -> str:
    "The notes of a topic that several scripts write: a paragraph each, begun with the script's name"
    script = Path(sys.argv[0]).stem
    if script == topic:
        return new
    others = [line for line in old.split("\n") if line and not line.startswith(f"{script}: ")]
    return "\n".join([*others, f"{script}: {new}"])


def recorded(topic: str) -> dict:
    "The figures recorded for this commit on this machine, so that a long job can go on where it stopped"
    old, now = load(topic), commit()
    if old.get("machine") != machine():
        return {}
    return {key: value for key, value in old["figures"].items() if old["measured"][key]["commit"] == now}


def load(topic: str) -> dict:
    "The topic's file, empty when there is none"
    file = RESULTS / f"{topic}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def write(topic: str, result: dict) -> Path:
    "Write the topic's file whole or not at all"
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{topic}.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(file)
    return file


def runs(
    **known,  # fields of the runs wanted, such as dataset="beauty"; init="ppmi" where the start is not the preset's own
) -> list[dict]:
    "Recorded runs, one a seed"
    file = RESULTS / "runs.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    wanted = {"init": ""} | known
    value = lambda run, name: run["params"].get("init", "") if name == "init" else run[name]
    return [run for run in found if all(value(run, name) == want for name, want in wanted.items())]


def reached(run: dict, metric: str, part: str = "test") -> float:
    "A metric of a recorded run: leave-one-out, full ranking, seen items dropped"
    how = {"split": "leave_one_out", "seen": "drop", "candidates": "all"}
    rows = [row for row in run["results"] if row["part"] == part and how.items() <= row["protocol"].items()]
    return rows[0]["metrics"][metric]["mean"]


def seconds_of(call: Callable[[], object]) -> float:
    "How long a call takes"
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def commit() -> str:
    "The last commit that changed what is measured, marked when the files differ from it"
    return git("log", "-1", "--format=%h", "--", *MEASURED) + ("-dirty" if git("status", "-s", "--", *MEASURED) else "")


def git(*args: str) -> str:
    "What git says"
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict:
    "What the figures are measured on"
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    return {
        "cpu": cpu_name(),
        "cores": len(cores),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_name() -> str:
    "The processor's name, as Linux tells it"
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
