"""The figures that the front page states, out of the recorded runs: means over seeds, strict leave-one-out, into `record.json`.

python bench/neighbours.py beauty item_lm 0 1 2    # what is not recorded yet; others with papermill nbs/compare.ipynb
python bench/headline.py                           # no training: reads bench/results/runs.jsonl and tests.jsonl
"""

import json
from statistics import mean, stdev

from record import RESULTS, reached, record, runs

SETS = {"beauty": "small", "toys": "small", "sports": "small", "ml-1m": "long_history"}  # and the preset of each
ROWS = {"single": "item_lm", "sasrec": "sasrec_ce", "knn": "sequential_knn"}
BEST = {  # the best one by validation
    "id": ("item_lm_knn", "item_lm_full"),
    "text": ("hierarchy", "item_plus_text", "hierarchy_knn", "hierarchy_full"),
}
NOTES = (
    "Test part, strict leave-one-out, whole catalogue ranked, seen items dropped, ties as in the file; mean over the seeds in _seeds. "
    "id: the best on the validation part of ItemLM mixed with sequential neighbours and of item_lm_full, two networks with neighbours and "
    "time prior (which reads other users' later events, as leave-one-out permits); single: ItemLM, one network; "
    "text: the best on the validation part of hierarchy, item + text, hierarchy with neighbours, and hierarchy and item tokens with "
    "neighbours and time prior; sasrec: SASRec "
    "with full cross-entropy, from random rows; knn: sequential item kNN. _p: paired test over users from tests.jsonl, "
    "where both were trained on one machine. beauty_id_sd: between seeds. _seconds: training and report of a run, mean over seeds, "
    "one thread, other work beside; those of the mixture lack the mixing, 17 s of one thread on Beauty, measured once. "
    "beauty_default: what `make train DATASET=beauty` trains, ItemLM alone. "
    "A figure that is not here was not measured."
)


def of(dataset: str, model: str, preset: str) -> list[dict]:
    "The recorded strict runs of a model, one a seed"
    found = runs(dataset=dataset, model=model, preset=preset, protocol="leave_one_out", ties="as_is")
    return [run for run in found if "refit" not in run["params"]]


def best(dataset: str, models: tuple[str, ...], preset: str) -> str:
    "The model that is ahead on the validation part, in the mean over its seeds"
    valid = {model: [reached(run, "ndcg@10", "valid") for run in of(dataset, model, preset)] for model in models}
    return max(models, key=lambda model: mean(valid[model]) if valid[model] else 0)


def figures(dataset: str, preset: str) -> dict[str, float]:
    "What is stated of a data set"
    known = {}
    size = {"text": "small"}  # was the preset of every model that reads texts
    chosen = {name: best(dataset, models, size.get(name, preset)) for name, models in BEST.items()}
    for name, model in (ROWS | chosen).items():
        if found := of(dataset, model, size.get(name, preset)):
            known |= {f"{dataset}_{name}_{metric}": mean(reached(run, metric) for run in found) for metric in ("ndcg@10", "recall@10")}
            known[f"{dataset}_{name}_seeds"] = len(found)
    return known | gain(dataset, preset, chosen["id"])


def gain(dataset: str, preset: str, chosen: str) -> dict[str, float]:
    "The paired test of the chosen model of ids against SASRec, where there is one"
    lines = [json.loads(line) for line in (RESULTS / "tests.jsonl").read_text().splitlines()]
    how = {"dataset": dataset, "preset": preset, "protocol": "leave_one_out", "ties": "as_is"}
    for line in (line for line in lines if how.items() <= line.items()):
        for test in line["tests"]:
            if {test["a"], test["b"]} == {chosen, "sasrec_ce"} and test["metric"] == "ndcg@10":
                return {f"{dataset}_gain_over_sasrec_p": test["p"]}
    return {}


def beauty() -> dict[str, float]:
    "What is stated of Beauty alone"
    seconds = lambda run: run["seconds"]["fit"] + run["seconds"].get("evaluate", 0)
    mixed, default = (of("beauty", model, "small") for model in (best("beauty", BEST["id"], "small"), "item_lm"))
    found = {"beauty_id_sd": stdev(reached(run, "ndcg@10") for run in mixed)} if len(mixed) > 1 else {}
    found |= {"beauty_id_seconds": mean(map(seconds, mixed))} if mixed else {}
    if default:
        found |= {"beauty_default_seconds": mean(map(seconds, default))}
        found |= {"beauty_default_ndcg@10": mean(reached(run, "ndcg@10") for run in default)}
    return found


if __name__ == "__main__":
    stated = beauty()
    for dataset, preset in SETS.items():
        stated |= figures(dataset, preset)
    record("record", stated, NOTES)
    print(json.dumps(stated, indent=1))
