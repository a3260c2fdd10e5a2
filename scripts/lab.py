"""Copy the notebooks of `nbs/` to `lab/`, which git ignores: there they may be run and changed, and no tracked file is touched.

A copy that nobody changed follows its original; one that was changed stays as it is.
"""

import hashlib
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KNOWN = ".copied.json"  # what each copy was when it was made


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy_notebooks(source: Path, target: Path) -> list[Path]:
    "Bring `target` up to date; the copies that were changed there while their originals changed too"
    state = target / KNOWN
    known = json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
    apart = []
    for path in sorted(path for kind in ("*.ipynb", "*.png") for path in source.rglob(kind)):
        name = path.relative_to(source)
        if any(part.startswith(".") for part in name.parts):  # checkpoints
            continue
        copy, new = target / name, digest(path)
        if not copy.exists() or digest(copy) == known.get(name.as_posix()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            known[name.as_posix()] = new
        elif new != known.get(name.as_posix()):
            apart.append(copy)
    target.mkdir(exist_ok=True)
    state.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return apart


def main() -> None:
    for copy in copy_notebooks(ROOT / "nbs", ROOT / "lab"):
        name = copy.relative_to(ROOT / "lab").as_posix()
        print(f"lab/{name} is yours and stays; nbs/{name} has changed meanwhile: delete yours to get it")
    print("The notebooks are in lab/, as copies of yours; their originals are in nbs/")


if __name__ == "__main__":
    main()
