"""The figures that the front page states, out of the recorded runs: means over seeds, strict leave-one-out, into `record.json`.

python bench/neighbours.py beauty item_lm 0 1 2    # what is not recorded yet; others with papermill nbs/compare.ipynb
python bench/headline.py                           # no training: reads bench/results/runs.jsonl; paired tests: bench/gain.py
"""

import json
from statistics import mean, stdev

from record import load, reached, record, runs

SETS = {"beauty": "small", "toys": "small", "sports": "small", "ml-1m": "long_history"}  # and the preset of each
NARROW = {"narrow": "item_lm", "sasrec_narrow": "sasrec_ce", "knn": "sequential_knn"}
WIDE = {"wide": "item_lm", "sasrec_wide": "sasrec_ce"}  # the same with the preset of that name
BEST = {  # the best one by validation
    "single": ("item_lm",),
    "sasrec": ("sasrec_ce",),
    "id": ("item_lm_knn", "item_lm_full", "item_lm_sasrec_full"),
    "text": ("hierarchy", "item_plus_text", "hierarchy_knn", "hierarchy_full"),
}
NOTES = (
    "Test part, strict leave-one-out, whole catalogue ranked, seen items dropped, ties as in the file; mean over the seeds in _seeds. id: "
    "the best on the validation part of ItemLM mixed with sequential neighbours, of item_lm_full, several networks with neighbours and time"
    " prior, and of item_lm_sasrec_full, ItemLM and SASRec likewise (the prior counts other users' later events, as leave-one-out permits);"
    " its networks may have been trained apart, seed by seed, and count as one model then; each in the presets small and wide. single, "
    "sasrec: one network of ItemLM, and of SASRec with full cross-entropy from random rows, each at the width that is ahead on the "
    "validation part; narrow, sasrec_narrow: at width 64; wide, sasrec_wide: at 128. text: the best on "
    "the validation part of hierarchy, item + text, hierarchy with neighbours, and hierarchy and item tokens with neighbours and time "
    "prior. refit: ItemLM with neighbours, chosen strictly and then trained anew on training and validation events for as many steps: to be"
    " held against no strict figure. knn: sequential item kNN. beauty_id_sd: "
    "between three seeds of ItemLM mixed with neighbours. _seconds: one thread, all networks one after another, other work beside; those of"
    " the mixture of one network lack the mixing, 17 s on Beauty, measured once. beauty_default: what `make train DATASET=beauty` "
    "trains, ItemLM with neighbours, mean over seeds 0, 1, 2; its seconds from command to report, median, nothing beside (main_job.json). "
    "A figure that is not here was not measured."
)


def of(dataset: str, model: str, preset: str, apart: bool = False) -> list[dict]:
    "The recorded strict runs of a model, one a seed; with `apart` those of networks that were trained apart as well"
    found = runs(dataset=dataset, model=model, preset=preset, protocol="leave_one_out", ties="as_is")
    return [run for run in found if "refit" not in run["params"] and (apart or "apart" not in run["params"])]


def best(dataset: str, models: tuple[str, ...], presets: tuple[str, ...]) -> list[dict]:
    "The runs of the model that is ahead on the validation part, in the mean over its seeds; networks trained apart are a model"
    kinds: dict[tuple, list[dict]] = {}
    for run in (run for preset in presets for model in models for run in of(dataset, model, preset, apart=True)):
        kinds.setdefault((run["model"], run["preset"], run["params"].get("apart")), []).append(run)
    return max(kinds.values(), key=lambda found: mean(reached(run, "ndcg@10", "valid") for run in found), default=[])


def figures(dataset: str, preset: str) -> dict[str, float]:
    "What is stated of a data set"
    known = {}
    sizes = {"text": ("small", "wide")}  # small was the preset of every model that reads texts
    found = {name: of(dataset, model, preset) for name, model in NARROW.items()}
    found |= {name: of(dataset, model, "wide") for name, model in WIDE.items()}
    found |= {name: best(dataset, models, sizes.get(name, (preset, "wide"))) for name, models in BEST.items()}
    found["refit"] = [run for run in runs(dataset=dataset, model="item_lm_knn", preset=preset, ties="as_is") if run["params"].get("refit")]
    for name, chosen in found.items():
        if chosen:
            known |= {f"{dataset}_{name}_{metric}": mean(reached(run, metric) for run in chosen) for metric in ("ndcg@10", "recall@10")}
            known[f"{dataset}_{name}_seeds"] = len(chosen)
    return known


def beauty() -> dict[str, float]:
    "What is stated of Beauty alone"
    seconds = lambda run: run["seconds"]["fit"] + run["seconds"].get("evaluate", 0)
    best_of_ids, mixed = best("beauty", BEST["id"], ("small", "wide")), of("beauty", "item_lm_knn", "small")
    found = {"beauty_id_sd": stdev(reached(run, "ndcg@10") for run in mixed)} if len(mixed) > 1 else {}
    found |= {"beauty_id_seconds": mean(map(seconds, best_of_ids))} if best_of_ids else {}
    command = load("main_job")["figures"]
    return found | {f"beauty_default_{name}": command[f"beauty_{name}"] for name in ("seconds", "ndcg@10", "recall@10")}


if __name__ == "__main__":
    stated = beauty()
    for dataset, preset in SETS.items():
        stated |= figures(dataset, preset)
    record("record", stated, NOTES, anywhere=True)
    print(json.dumps(stated, indent=1))
