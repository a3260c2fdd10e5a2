"""ItemLM beside RecTools, RecBole, RePlay and a plain Hugging Face loop: the same data and sizes, turn by turn in one run.

    python bench/speed_peers.py                       # Beauty, then MovieLens-1M: targets a second, lists, one user, memory
    python bench/speed_peers.py --answers             # Beauty's lists and one user alone

Each library is a process of its own, with its packages from PyPI in an environment of its own under runs/peers; it waits while another
one works. A round is some steps of ours, then of each other; the figures are medians over rounds of ratios within a round.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import torch
from record import ROOT, record

from itemlm.core import Ragged
from itemlm.data.datasets import load_dataset
from itemlm.data.split import Split, split
from itemlm.data.tokenizer import ItemTokenizer

TORCH = f"torch=={torch.__version__.split('+')[0]}"
PACKAGES = {  # of each environment
    "rectools": ["rectools[torch]==0.19.0", "pyarrow<20"],
    "recbole": ["recbole==1.2.1", "numpy<2", "scipy<1.13", "pandas<2.2", "setuptools<81"],
    "replay": ["replay-rec[torch]==0.22.0"],
}
HOME = {"rectools": "rectools", "ligr": "rectools", "fast_transformers": "rectools", "recbole": "recbole", "replay": "replay"}  # or ours
ROUNDS = 3
STEPS = {"itemlm": 20}  # of a round; others take 1
LENGTHS = {"beauty": 50, "ml-1m": 200}
BATCHES = {"beauty": 256, "ml-1m": 32}
NOTES = (
    "Real targets a second of ItemLM over those of another library, medians of {rounds} rounds in which each works in turn (ours "
    f"{STEPS['itemlm']} steps, others 1), {{threads}} threads: Beauty, 2 blocks, 2 heads, the newest 51 items of a user, batches of "
    "256 users (RecBole: 2,048 targets, a row each, as its augmentation has it), full softmax everywhere; RecTools 0.19.0 with its "
    "own loader, step and optimiser, without its trainer; ligr: its LiGR layers; fast_transformers: its flat SASRec under a full "
    "softmax; RePlay 0.22.0, RecBole 1.2.1 and transformers' LlamaForCausalLM in a plain loop over padded rectangles. Networks differ "
    "in feed-forward and norms. topk_ratio_rectools: seconds for the ten best unseen items of all {users} users, from raw ids to raw "
    "ids. ml1m_*: MovieLens-1M, 200 items of a user, batches of 32."
)


def python_of(name: str) -> Path:
    "An interpreter that knows the packages of a library"
    if name not in HOME:
        return Path(sys.executable)
    folder = ROOT / "runs/peers" / HOME[name]
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "-q", TORCH], check=True)
        subprocess.run([folder / "bin/pip", "install", "-q", *PACKAGES[HOME[name]]], check=True)
        (folder / "done").touch()
    return folder / "bin/python"


class Library:
    "A process that works when it is asked"

    def __init__(self, name: str, folder: Path):
        where = {"PYTHONPATH": str(ROOT)} if name not in HOME else {}
        command = [python_of(name), ROOT / "bench/speed_worker.py", name, folder]
        self.log = open(folder / f"{name}.log", "w")
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)
        self.process = subprocess.Popen(command, text=True, env=os.environ | where, cwd=ROOT, **pipes)
        self.read()

    def read(self) -> dict:
        "Its next answer; a library may say other things first"
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the library has ended: {Path(self.log.name).read_text()[-2000:]}")

    def ask(self, line: str) -> dict:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def write_part(file: Path, tokens: list[np.ndarray], targets: np.ndarray) -> None:
    "Histories as item numbers from 1"
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in tokens])])
    np.savez(file, values=np.concatenate(tokens).astype(np.int64), offsets=offsets, targets=targets.astype(np.int64))


def write_data(parts: Split, folder: Path, width: int, dataset: str, threads: int) -> int:  # users of the test part
    "What the libraries read"
    tokenizer = ItemTokenizer.from_split(parts)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = lambda histories: tokenizer.encode_codes(histories, parts.events.items.index)
    shift = tokenizer.n_special - 1

    def known(histories: Ragged) -> list[np.ndarray]:  # item numbers from 1; items that training has not seen are left out
        rows = numbers(histories)
        rows = [rows[n] for n in range(len(rows))]
        return [row[row > shift] - shift for row in rows]

    write_part(folder / "train.npz", train := known(parts.train), np.zeros(0))
    for part in (parts.valid, parts.test):
        targets = numbers(Ragged(part.targets, np.arange(len(part.targets) + 1))).values - shift
        write_part(folder / f"{part.name}.npz", known(part.histories), targets)
    targets = sum(min(len(row) - 1, LENGTHS[dataset]) for row in train if len(row) > 1)
    sizes = dict(width=width, blocks=2, heads=2, hidden=168 * width // 64, dropout=0.2, length=LENGTHS[dataset], batch=BATCHES[dataset])
    settings = sizes | {"items": tokenizer.n_items, "dataset": dataset, "threads": threads, "targets": targets}
    (folder / "settings.json").write_text(json.dumps(settings))
    return len(parts.test)


def rates(libraries: dict[str, Library], rounds: int) -> dict[str, list[float]]:
    "Real targets a second, round by round, after one that warms up"
    found = {name: [] for name in libraries}
    for number in range(rounds + 1):
        for name, library in libraries.items():
            done = library.ask(f"step {STEPS.get(name, 1)}")
            if number:
                found[name].append(done["targets"] / done["seconds"])
            print(f"round {number} {name:18s} {done['targets'] / done['seconds']:10,.0f} targets/s", flush=True)
    return found


def ratios(found: dict[str, list[float]], name: str) -> float:
    return median(ours / theirs for ours, theirs in zip(found["itemlm"], found[name]))


def started(dataset: str, width: int, names: list[str], threads: int) -> tuple[int, dict[str, Library]]:
    "Users of the test part, and the libraries, waiting"
    folder = ROOT / f"runs/peers/{dataset}-{width}"
    users = write_data(split(load_dataset(dataset)), folder, width, dataset, threads)
    return users, {name: Library(name, folder) for name in ["itemlm", *names]}


def compare(dataset: str, width: int, names: list[str], threads: int, prefix: str = "") -> tuple[dict, dict[str, Library]]:
    "Figures of a data set at a width, and the libraries, still waiting"
    users, libraries = started(dataset, width, names, threads)
    found = rates(libraries, ROUNDS)
    figures = {f"{prefix}train_ratio_{name}_{width}": ratios(found, name) for name in names}
    figures |= {f"{prefix}targets_per_second_{name}_{width}": median(found[name]) for name in libraries}
    figures |= {f"{prefix}peak_gb_{name}_{width}": library.ask("peak")["gb"] for name, library in libraries.items()}
    return figures | {f"{prefix}users": users}, libraries


def answers(libraries: dict[str, Library]) -> dict:
    "Lists of all users, and of one at a time"
    found = {name: median(library.ask("lists")["seconds"] for _ in range(ROUNDS)) for name, library in libraries.items()}
    alone = {name: library.ask("one 50") for name, library in libraries.items()}
    figures = {f"topk_seconds_{name}": seconds for name, seconds in found.items()}
    figures |= {f"topk_ratio_{name}": seconds / found["itemlm"] for name, seconds in found.items() if name != "itemlm"}
    return figures | {f"one_user_ms_{name}": known["p50"] for name, known in alone.items()}


def measure_answers(threads: int) -> None:
    "Lists of all users and of one, and nothing else"
    users, libraries = started("beauty", 64, ["rectools", "recbole", "replay", "hf"], threads)
    write(answers(libraries) | {"users": users}, threads)
    for library in libraries.values():
        library.close()


def write(figures: dict, threads: int) -> None:
    "Record and show them"
    figures["peers_load"] = os.getloadavg()[0]
    words = dict(rounds=ROUNDS, threads=threads, rectools="0.19.0", replay="0.22.0", users=figures.pop("users"))
    record("speed", figures, NOTES.format(**words), ("torch", "numpy", "pandas", "transformers"))
    print(json.dumps(figures, indent=1))


def measure(threads: int) -> None:
    "All of it"
    everyone = ["rectools", "ligr", "fast_transformers", "recbole", "replay", "hf"]
    figures, libraries = compare("beauty", 64, everyone, threads)
    figures |= answers({name: libraries[name] for name in ("itemlm", "rectools", "recbole", "replay", "hf")})
    for library in libraries.values():
        library.close()
    for dataset, width, names, prefix in (("beauty", 128, ["rectools", "hf"], ""), ("ml-1m", 64, ["rectools", "recbole", "hf"], "ml1m_")):
        more, libraries = compare(dataset, width, names, threads, prefix)
        figures |= more
        for library in libraries.values():
            library.close()
    for name in ("recbole", "hf"):
        figures[f"train_ratio_{name}"] = figures[f"train_ratio_{name}_64"]
    write(figures, threads)


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked.add_argument("--answers", action="store_true", help="no training: lists of Beauty's users alone")
    known = asked.parse_args()
    (measure_answers if known.answers else measure)(known.threads)
