"""Items with text: what one step of the head saves over spelling items out, what texts cost, and what they are worth.

    python bench/text.py                      # everything that this commit has no figure for yet
    python bench/text.py head_over_index      # one part, see PARTS at the end

The accuracy figures are read from bench/results/runs.jsonl and tests.jsonl, which nbs/compare.ipynb writes. `cold` trains in units of at
most 20 minutes: run it again until it has its figures.
"""

import json
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from statistics import mean, median

import torch
from record import RESULTS, ROOT, reached, record, recorded, runs, seconds_of

from itemlm.data.batches import epoch_order, training_sequences
from itemlm.data.datasets import load_dataset
from itemlm.data.split import split, withhold_items
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.cold import cold_ranks, cold_table
from itemlm.metrics.ranks import recall
from itemlm.metrics.statistics import paired_difference
from itemlm.models.base import ModelConfig, count_parameters
from itemlm.models.counting import popularity
from itemlm.models.item_lm import small
from itemlm.models.text.content_knn import content_knn
from itemlm.models.text.encoders import ItemLLMConfig, text_vectors
from itemlm.models.text.generative import GenerativeConfig
from itemlm.models.text.hf import HFGenerativeConfig
from itemlm.models.text.rows import hierarchy, item_plus_text
from itemlm.models.text.templates import item_texts
from itemlm.runs.folder import RESUME
from itemlm.study import matrix_operations
from itemlm.training.schedule import make_optimizer
from itemlm.training.trainer import build_model, fit, sized, train_step

T5_SMALL = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "decoder_start_token_id": 0,
}
BEAMS, ROUNDS, MINUTES = 20, 3, 20
PACKAGES = "torch", "numpy", "pandas", "transformers", "tokenizers"
NOTES = (
    "head_over_*_beam20_time: seconds a user of scoring all items of ML-1M with the item head, over those of finding the next "
    "item by beam search with 20 beams in a trie; random weights, histories of the test part cut to the newest 50 items, median "
    "of 3 interleaved rounds. Head: ItemLM of the small preset, 1,024 users in batches of 256. text: the same decoder over subwords "
    "of the titles (GenerativeLM, keys and values cached, 128 users). index: the same decoder over three random codes an item (128 "
    "users). t5small: a T5 of T5-small's dimensions over subwords of the titles, the transformers library's cached beam search "
    "(4 users). seconds_*: a thousand users each; "
    "flops_*: of one recommendation to one user; tokens_*: read of a history. encode_beauty_seconds: MiniLM over the texts of "
    "Beauty's items (title, brand "
    "and categories, keywords that add a word), nothing cached. frozen_text_step_ratio: training steps of item_plus_text over "
    "those of small(), Beauty, same batches, interleaved, median (hierarchy_step_ratio: of hierarchy()). "
    "load_*: the machine's load average when the part ended. "
    "cold_*: Beauty, 10 % of the items withheld by seed 0, hierarchy() trained without them; recall@10 of the users whose test "
    "item is withheld, ranked among the withheld items; cold_all_*: among all items; cold_gain_over_knn: hierarchy() less content-kNN "
    "among the withheld, 95 % interval and p-value of a paired test over these users. *_beauty, *_toys, *_gain_*: test part, "
    "leave-one-out, full ranking, seen items dropped, from bench/results/runs.jsonl, mean over seeds; p-values from the paired tests in "
    "bench/results/tests.jsonl."
)


def keep(figures: dict, part: str) -> None:
    "Record figures, and how busy the machine was"
    record("text", figures | {f"load_{part}": os.getloadavg()[0]}, NOTES, PACKAGES)


def head_over(name: str, config: ModelConfig, users: int) -> None:
    "Seconds a user of the item head over those of a beam search"
    parts = split(load_dataset("ml-1m"))
    tokenizer = ItemTokenizer.from_split(parts)
    histories = tokenizer.encode_codes(parts.test.histories, parts.events.items.index).last(50)
    torch.manual_seed(0)
    head = replace(small().model, n_items=tokenizer.n_items).build().eval()
    beam = replace(config, n_items=tokenizer.n_items, beams=BEAMS).build().eval()
    beam.setup(parts, tokenizer)
    many = histories.take(range(0, len(histories) // 1024 * 1024, len(histories) // 1024))
    few = many.take(range(0, 1024, 1024 // users))
    heads = [many.take(range(i, i + 256)) for i in range(0, 1024, 256)]
    head.scores(heads[0]), beam.scores(few.take([0, 1]))  # warm
    one_step = lambda: seconds_of(lambda: [head.scores(batch).topk(10) for batch in heads]) / 1024
    searched = lambda: seconds_of(lambda: beam.scores(few)) / len(few)
    fast, slow = (median(times) for times in zip(*((one_step(), searched()) for _ in range(ROUNDS))))
    figures = {f"head_over_{name}_beam{BEAMS}_time": fast / slow, "seconds_head": 1000 * fast, f"seconds_{name}_beam{BEAMS}": 1000 * slow}
    for which, model in (("head", head), (name, beam)):
        figures[f"flops_{which}"] = matrix_operations(lambda: model.scores(many.take([512])))  # noqa: B023
        figures[f"tokens_{which}"] = float(many.lengths.mean() * model.tokens_per_item)
        figures[f"parameters_{which}"] = count_parameters(model)["table"] + count_parameters(model)["trunk"]
    keep(figures, f"head_over_{name}")


def head_over_text():
    head_over("text", GenerativeConfig(), 128)


def head_over_index():
    head_over("index", GenerativeConfig(ids="random", levels=3, codebook=64), 128)


def head_over_t5small():
    head_over("t5small", HFGenerativeConfig(network=json.dumps(T5_SMALL)), 4)


def encode():
    "MiniLM over Beauty's texts, into an empty cache; then once more, out of it"
    texts = item_texts(load_dataset("beauty").items).texts
    with tempfile.TemporaryDirectory() as cache:
        took = seconds_of(lambda: text_vectors(texts, ItemLLMConfig(), cache))
        again = seconds_of(lambda: text_vectors(texts, ItemLLMConfig(), cache))
    keep({"encode_beauty_seconds": took, "encode_beauty_cached_seconds": again, "encode_threads": torch.get_num_threads()}, "encode")


def step():
    "Training steps with and without fixed text"
    parts = split(load_dataset("beauty"))
    tokenizer = ItemTokenizer.from_split(parts)
    sequences = training_sequences(tokenizer.encode_codes(parts.train, parts.events.items.index), 50)
    trained = {}
    for name, config in {"item": small(), "text": item_plus_text(), "hierarchy": hierarchy()}.items():
        model = build_model(sized(config, tokenizer))
        model.setup(parts, tokenizer)
        trained[name] = config, model.train(), make_optimizer(model, config)
    seconds = defaultdict(list)
    for n, rows in enumerate(epoch_order(sequences, small().batch, 0, 0)[:24]):
        for name, (config, model, optimizer) in trained.items():
            took = seconds_of(lambda: train_step(model, optimizer, sequences.buckets(rows), config).item())  # noqa: B023
            if n >= 4:
                seconds[name].append(took)
    ratio = lambda name: median(t / i for t, i in zip(seconds[name], seconds["item"]))
    keep({"frozen_text_step_ratio": ratio("text"), "hierarchy_step_ratio": ratio("hierarchy")}, "step")


def cold():
    "Items withheld from training"
    parts = withhold_items(split(load_dataset("beauty")), 0.1, seed=0)
    folder = ROOT / "runs/bench-text/cold"
    rec = fit(parts, hierarchy(), out_dir=folder, max_minutes=MINUTES)
    if (folder / RESUME).exists():
        print("not finished: run it again")
        return
    knn = fit(parts, content_knn())
    found = cold_table({"popularity": fit(parts, popularity()), "knn": knn, "": rec}, parts)
    gain = paired_difference(*(recall(cold_ranks(r, parts), 10) for r in (rec, knn)))
    figures = {"cold_gain_over_knn": gain.mean} | {f"cold_gain_over_knn_{name}": getattr(gain, name) for name in ("lo", "hi", "p")}
    for name, row in found.iterrows():
        name = f"{name}_" if name else ""
        figures |= {f"cold_{name}recall@10": row["recall@10, withheld"], f"cold_all_{name}recall@10": row["recall@10, all"]}
    keep(figures | {"cold_users": len(parts.test), "cold_items": parts.protocol["withheld_items"]}, "cold")


def mean_reached(dataset: str, model: str, metric: str) -> float | None:
    "Mean over seeds of a metric on the test part, as far as it is recorded"
    found = runs(dataset=dataset, model=model, preset="small", protocol="leave_one_out", ties="as_is")
    return mean(reached(run, metric) for run in found) if found else None


def p_value(dataset: str, models: set[str], metric: str) -> float | None:
    "Of the recorded paired test of two models"
    lines = (json.loads(line) for line in (RESULTS / "tests.jsonl").read_text().splitlines())
    found = [line["tests"] for line in lines if (line["dataset"], line["preset"]) == (dataset, "small")]
    return next((test["p"] for tests in found for test in tests if {test["a"], test["b"]} == models and test["metric"] == metric), None)


def accuracy():
    "What is recorded of it"
    figures = {}
    for dataset in ("beauty", "toys"):
        plain, both, text = (mean_reached(dataset, model, "ndcg@10") for model in ("item_lm", "item_plus_text", "hierarchy"))
        figures[f"hierarchy_{dataset}_ndcg@10"] = text
        figures[f"text_gain_{dataset}"] = both and both - plain
        figures[f"text_gain_{dataset}_p"] = p_value(dataset, {"item_lm", "item_plus_text"}, "ndcg@10")
    head, text = (mean_reached("ml-1m", model, "recall@10") for model in ("item_lm", "text_beam"))
    figures["ml-1m_recall_gain_over_text"] = head and text and head / text - 1
    record("text", {name: value for name, value in figures.items() if value is not None}, NOTES, PACKAGES)


PARTS = {  # name -> what to run, and a figure that says it has been
    "encode": (encode, "encode_beauty_seconds"),
    "step": (step, "frozen_text_step_ratio"),
    "head_over_text": (head_over_text, "head_over_text_beam20_time"),
    "head_over_index": (head_over_index, "head_over_index_beam20_time"),
    "head_over_t5small": (head_over_t5small, "head_over_t5small_beam20_time"),
    "cold": (cold, "cold_recall@10"),
    "accuracy": (accuracy, None),
}

if __name__ == "__main__":
    for part in sys.argv[1:] or [name for name, (_, key) in PARTS.items() if key not in recorded("text")]:
        PARTS[part][0]()
    print(json.dumps(recorded("text"), indent=1))
