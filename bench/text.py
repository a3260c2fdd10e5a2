"""Items with text: what one step of the head saves over spelling items out, what texts cost, and what they are worth.

    python bench/text.py                      # everything that this commit has no figure for yet
    python bench/text.py head_over_index      # one part, see PARTS at the end

The accuracy figures are read from the records that nbs/compare.ipynb leaves in bench/results/compare. `cold` trains in units of at most 20
minutes: run it again until it has its figures.
"""

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from statistics import mean, median

import torch
from record import RESULTS, ROOT, record, recorded

from itemlm import ItemTokenizer, fit, fit_popularity, item_plus_text, load_dataset, small, split
from itemlm.metrics import paired_difference, recall
from itemlm.model import count_parameters
from itemlm.study import matrix_operations, read_records
from itemlm.text import ItemLLMConfig, cold_ranks, cold_table, fit_content_knn, hierarchy, item_texts, text_vectors, withhold_items
from itemlm.text_beam import HFPieceConfig, PieceConfig
from itemlm.training import epoch_order, make_optimizer, make_windows, train_step

T5_SMALL = {"model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
            "decoder_start_token_id": 0}  # fmt: skip
BEAMS, ROUNDS, MINUTES = 20, 3, 20
PACKAGES = "torch", "numpy", "pandas", "transformers", "tokenizers"
NOTES = (
    "head_over_*_beam20_time: seconds a user of scoring all items of ML-1M with the item head, over those of finding the next "
    "item by beam search with 20 beams in a trie; random weights, histories of the test part cut to the newest 50 items, median "
    "of 3 interleaved rounds. Head: ItemLM of the small preset, 1,024 users in batches of 256. text: the same trunk over subwords "
    "of the titles (PieceLM, keys and values cached, 128 users). index: the same trunk over three random codes an item (128 "
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
    "leave-one-out, full ranking, seen items dropped, from the records in bench/results/compare, mean over seeds; p-values "
    "from the paired tests recorded there."
)


def keep(figures: dict, part: str) -> None:
    "Record figures, and how busy the machine was."
    record("text", figures | {f"load_{part}": os.getloadavg()[0]}, NOTES, PACKAGES)


def seconds_of(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def ml_1m():
    "Item table in token order, and test histories as tokens."
    parts = split(load_dataset("ml-1m"))
    tokenizer = ItemTokenizer.from_split(parts)
    histories = tokenizer.encode_codes(parts.test.histories, parts.events.items.index)
    return parts.events.items.loc[tokenizer.items], histories.last(50)


def head_over(name: str, config, users: int) -> None:
    "Seconds a user of the item head over those of a beam search."
    items, histories = ml_1m()
    torch.manual_seed(0)
    head = replace(small().model, n_items=len(items)).build().eval()
    beam = replace(config, n_items=len(items), beams=BEAMS).build().eval()
    beam.read_items(items)
    step = len(histories) // 1024
    many = histories.take(range(0, 1024 * step, step))
    few = many.take(range(0, 1024, 1024 // users))
    head_batches = [many.take(range(i, i + 256)) for i in range(0, 1024, 256)]
    head.scores(head_batches[0]), beam.scores(few.take([0, 1]))  # warm
    rounds = [(seconds_of(lambda: [head.scores(b).topk(10) for b in head_batches]) / 1024, seconds_of(lambda: beam.scores(few)) / len(few))
              for _ in range(ROUNDS)]  # fmt: skip
    fast, slow = (median(x) for x in zip(*rounds))
    figures = {f"head_over_{name}_beam{BEAMS}_time": fast / slow, "seconds_head": 1000 * fast, f"seconds_{name}_beam{BEAMS}": 1000 * slow}
    one = many.take([512])
    figures |= {"flops_head": matrix_operations(lambda: head.scores(one)), f"flops_{name}": matrix_operations(lambda: beam.scores(one))}
    figures |= {"tokens_head": float(many.lengths.mean()), f"tokens_{name}": float(many.lengths.mean() * beam.index.lengths.float().mean())}
    figures |= {f"parameters_{which}": count_parameters(model)["table"] + count_parameters(model)["trunk"]
                for which, model in (("head", head), (name, beam))}  # fmt: skip
    keep(figures, f"head_over_{name}")


def head_over_text():
    head_over("text", PieceConfig(), 128)


def head_over_index():
    head_over("index", PieceConfig(index="random", levels=3, codes=64), 128)


def head_over_t5small():
    head_over("t5small", HFPieceConfig(network=json.dumps(T5_SMALL)), 4)


def encode():
    "MiniLM over Beauty's texts, into an empty cache; then once more, out of it."
    texts = item_texts(load_dataset("beauty").items).texts
    with tempfile.TemporaryDirectory() as cache:
        took = seconds_of(lambda: text_vectors(texts, ItemLLMConfig(), cache))
        again = seconds_of(lambda: text_vectors(texts, ItemLLMConfig(), cache))
    keep({"encode_beauty_seconds": took, "encode_beauty_cached_seconds": again, "encode_threads": torch.get_num_threads()}, "encode")


def step():
    "Training steps with and without fixed text."
    parts = split(load_dataset("beauty"))
    tokenizer = ItemTokenizer.from_split(parts)
    windows = make_windows(tokenizer.encode_codes(parts.train, parts.events.items.index), 50)
    trained = {}
    for name, config in {"item": small(), "text": item_plus_text(), "hierarchy": hierarchy()}.items():
        torch.manual_seed(0)
        model = replace(config.model, n_items=tokenizer.n_items).build()
        if name != "item":
            model.read_items(parts.events.items.loc[tokenizer.items])
        trained[name] = config, model.train(), make_optimizer(model, config)
    seconds = defaultdict(list)
    for n, rows in enumerate(epoch_order(windows, small(), 0)[:24]):
        for name, (config, model, optimizer) in trained.items():
            took = seconds_of(lambda: train_step(model, model, optimizer, windows.rectangles(rows, config.mixed), config).item())
            if n >= 4:
                seconds[name].append(took)
    ratio = lambda name: median(t / i for t, i in zip(seconds[name], seconds["item"]))
    keep({"frozen_text_step_ratio": ratio("text"), "hierarchy_step_ratio": ratio("hierarchy")}, "step")


def cold():
    "Items withheld from training."
    parts = withhold_items(split(load_dataset("beauty")), 0.1, seed=0)
    folder = ROOT / "runs/bench-text/cold"
    rec = fit(parts, hierarchy(), out_dir=folder, max_minutes=MINUTES)
    if (folder / "resume.safetensors").exists():
        print("not finished: run it again")
        return
    knn = fit_content_knn(parts)
    found = cold_table({"popularity": fit_popularity(parts), "knn": knn, "": rec}, parts)
    gain = paired_difference(*(recall(cold_ranks(r, parts), 10) for r in (rec, knn)))
    figures = {"cold_gain_over_knn": gain.mean} | {f"cold_gain_over_knn_{name}": getattr(gain, name) for name in ("lo", "hi", "p")}
    for name, row in found.iterrows():
        name = f"{name}_" if name else ""
        figures |= {f"cold_{name}recall@10": row["recall@10, withheld"], f"cold_all_{name}recall@10": row["recall@10, all"]}
    keep(figures | {"cold_users": len(parts.test), "cold_items": parts.protocol["withheld_items"]}, "cold")


def reached(dataset: str, model: str, metric: str) -> float | None:
    "Mean over seeds of a metric on the test part, from the records of nbs/compare.ipynb."
    how, found = {"split": "leave_one_out", "seen": "drop", "candidates": "all"}, []
    for made in read_records(RESULTS / "compare"):
        if [made[name] for name in ("dataset", "model", "preset", "ties")] == [dataset, model, "small", "as_is"]:
            rows = [row for row in made["results"] if row["part"] == "test" and how.items() <= row["protocol"].items()]
            found += [row["metrics"][metric]["mean"] for row in rows]
    return mean(found) if found else None


def accuracy():
    "What is recorded of it."
    figures = {}
    for dataset in ("beauty", "toys"):
        plain, both, text = (reached(dataset, model, "ndcg@10") for model in ("item_lm", "item_plus_text", "hierarchy"))
        if text is not None:
            figures[f"hierarchy_{dataset}_ndcg@10"] = text
        if None not in (plain, both):
            figures[f"text_gain_{dataset}"] = both - plain
        tests = RESULTS / f"compare/tests-{dataset}-small-leave_one_out-as_is.json"
        for test in json.loads(tests.read_text())["tests"] if tests.exists() else []:
            if {test["a"], test["b"]} == {"item_lm", "item_plus_text"} and test["metric"] == "ndcg@10":
                figures[f"text_gain_{dataset}_p"] = test["p"]
    head, text = (reached("ml-1m", model, "recall@10") for model in ("item_lm", "text_beam"))
    if None not in (head, text):
        figures["ml-1m_recall_gain_over_text"] = head / text - 1
    if figures:
        record("text", figures, NOTES, PACKAGES)
    else:
        print("no records of these models in bench/results/compare yet")


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
