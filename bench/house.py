"""The house: how many names and modules, how large, how dear to import, and what the PPMI start does for the baselines.

python bench/house.py            # seconds
python bench/house.py --check    # `make check` too, timed
"""

import json
import subprocess
import sys
from statistics import mean, median

from record import ROOT, reached, record, recorded, runs, seconds_of

BASELINES = {"sasrec": "sasrec_ce", "gru4rec": "gru4rec_ce", "hstu": "hstu", "bert4rec": "bert4rec"}  # name of the figure -> model
PAIRS = 7
TIMED = "import time; start = time.perf_counter(); import {modules}; print(time.perf_counter() - start)"
NOTES = (
    "public_names: len(itemlm.__all__). import_ratio: seconds of `import itemlm` over those of `import torch, pandas, pyarrow`, median "
    f"over {PAIRS} pairs of fresh processes, in turns, after one pair to warm up. longest_export_cell: lines of the longest export cell "
    "under nbs/api, lines that begin with #| not counted. modules: Python files under itemlm but _modidx.py and __init__.py; "
    "largest_module_lines: of the longest of them. check_seconds: `make check`, environment built. readme_lines: of README.md. "
    "ppmi_*_beauty_ndcg@10: test part of Beauty, leave-one-out, full ranking, seen items dropped, from bench/results/runs.jsonl: the "
    "baseline's preset `small`, changed by init only."
)


def public_names() -> int:
    "What `from itemlm import *` brings"
    code = "import itemlm; print(len(itemlm.__all__))"
    return int(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def import_seconds(modules: str) -> float:
    "Seconds of an import in a process of its own"
    command = [sys.executable, "-c", TIMED.format(modules=modules)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def import_ratio() -> float:
    "What the package adds to what it stands on"
    pairs = [(import_seconds("itemlm"), import_seconds("torch, pandas, pyarrow")) for _ in range(PAIRS + 1)]
    return median(ours / theirs for ours, theirs in pairs[1:])


def export_cells() -> dict[str, int]:
    "Lines of each export cell: notebook[cell] -> lines"
    found = {}
    for path in sorted((ROOT / "nbs/api").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        for n, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            lines = "".join(cell["source"]).strip().splitlines()
            if cell["cell_type"] == "code" and any(line.startswith("#| export") for line in lines):
                found[f"{path.relative_to(ROOT)}[{n}]"] = sum(not line.startswith("#|") for line in lines)
    return found


def modules() -> dict[str, int]:
    "Lines of each module"
    files = [path for path in (ROOT / "itemlm").rglob("*.py") if path.name not in ("_modidx.py", "__init__.py")]
    return {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}


def baselines_with_ppmi() -> dict[str, float]:
    "Test NDCG@10 of the baselines that began with the PPMI start, as far as they are recorded"
    of = lambda model: runs(dataset="beauty", model=model, preset="small", protocol="leave_one_out", ties="as_is", init="ppmi")
    made = {name: of(model) for name, model in BASELINES.items()}
    return {f"ppmi_{name}_beauty_ndcg@10": mean(reached(run, "ndcg@10") for run in found) for name, found in made.items() if found}


def check() -> float:
    "Seconds of `make check`; its output only where it fails"
    run = lambda: subprocess.run(["make", "check"], cwd=ROOT, capture_output=True, text=True)
    subprocess.run(["make", "dev"], cwd=ROOT, check=True, capture_output=True)
    done = []
    took = seconds_of(lambda: done.append(run()))
    if done[0].returncode:
        sys.exit(f"make check failed:\n{done[0].stdout[-3000:]}{done[0].stderr[-3000:]}")
    return took


def measure() -> dict[str, float]:
    "All that takes seconds"
    cells, files = export_cells(), modules()
    for name, lines in {"longest export cell": cells, "longest module": files}.items():
        print(f"{name}: {max(lines, key=lines.get)}")
    return {
        "public_names": public_names(),
        "import_ratio": import_ratio(),
        "longest_export_cell": max(cells.values()),
        "modules": len(files),
        "largest_module_lines": max(files.values()),
        "readme_lines": len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()),
    } | baselines_with_ppmi()


if __name__ == "__main__":
    record("house", measure(), NOTES)
    if "--check" in sys.argv[1:]:
        record("house", {"check_seconds": check()}, NOTES)
    print(json.dumps(recorded("house"), indent=1))
