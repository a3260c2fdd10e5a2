"""What leaves for Hugging Face and ONNX beside the model itself: differences of scores, equal lists, recall of int8, latency.

python bench/engines_export.py
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from record import PACKAGES, record
from transformers import AutoModelForCausalLM

from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.models.item_lm import small
from itemlm.serving.hugging_face import to_hf
from itemlm.serving.onnx import int8_recall, load_onnx, to_onnx
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import fit

USERS, CALLS = 512, 300
NOTES = (
    "ItemLM of the preset small, six epochs on Beauty. hf_score_difference: largest difference of any item's score after the histories of "
    f"{USERS} users between the model and transformers' Llama of the folder that to_hf wrote, both in float64, in shares of the largest "
    "score; transformers' norm and angles are float32. onnx_top10_equal: 1 if ONNX Runtime's ten best of every test user are rec.topk's, "
    "or differ only where scores are within 1e-5. onnx_int8_recall: int8_recall over the same users. onnx_latency_ratio: median "
    f"milliseconds of one user's answer in ONNX Runtime over those of rec.topk, {CALLS} users in turn, one thread each."
)


def histories_of(rec: Recommender) -> list[list[str]]:
    "What each user has had that the model knows; those with nothing are left out"
    rows = (rec.histories[row] for row in range(len(rec.users)))
    found = (rec.tokenizer.decode(tokens[tokens >= rec.tokenizer.n_special]) for tokens in rows)
    return [history for history in found if len(history)]


def hf_difference(rec: Recommender, histories: list[list[str]], folder: Path) -> float:
    "Largest difference of a score, in shares of the largest score"
    llama = AutoModelForCausalLM.from_pretrained(to_hf(rec, folder, dtype="float64"), dtype=torch.float64)
    model, n_special, found, largest = rec.model.double(), rec.tokenizer.n_special, 0.0, 0.0
    with torch.inference_mode():
        for history in histories:
            tokens = rec.tokenizer.encode_batch([history]).last(model.config.max_len)
            ours = model.queries(tokens)[0] @ model.item_table().T
            theirs = llama(torch.from_numpy(tokens.values)[None].long(), logits_to_keep=1).logits[0, -1, n_special:]
            found, largest = max(found, (ours - theirs).abs().max().item()), max(largest, ours.abs().max().item())
    rec.model.float()
    return found / largest


def equal_lists(rec: Recommender, folder: Path, histories: list[list[str]]) -> bool:
    "Are all lists the same, but for ties?"
    ours, theirs = rec.topk(histories, 10), load_onnx(folder).topk(histories, 10)
    other = (ours[0] != theirs[0]) & (np.abs(ours[1] - theirs[1]) > 1e-5 * np.abs(ours[1]))
    print(f"{(ours[0] != theirs[0]).any(1).mean():.2%} of lists differ in a place, {other.any(1).mean():.2%} by more than a tie")
    return not other.any()


def latencies(rec: Recommender, folder: Path, histories: list[list[str]]) -> float:
    "Median of ONNX Runtime's over median of PyTorch's"
    onnx = load_onnx(folder, threads=1)
    seconds = {"torch": [], "onnx": []}
    for history in histories[:CALLS]:
        for name, one in (("torch", rec), ("onnx", onnx)):
            started = time.perf_counter()
            one.topk([history], 10)
            seconds[name].append(time.perf_counter() - started)
    return median(seconds["onnx"]) / median(seconds["torch"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    rec = fit(split(load_dataset("beauty")), small(epochs=6), device="cpu", verbose=False)
    histories = histories_of(rec)
    with tempfile.TemporaryDirectory() as scratch:
        folder = to_onnx(rec, Path(scratch) / "onnx", quantise=True)
        figures = {"onnx_top10_equal": int(equal_lists(rec, folder, histories)), "onnx_int8_recall": int8_recall(folder, histories)}
        figures["onnx_latency_ratio"] = latencies(rec, folder, histories)
        figures["hf_score_difference"] = hf_difference(rec, histories[:USERS], Path(scratch) / "hf")
    record("engines", figures, NOTES, (*PACKAGES, "transformers", "onnxruntime"))
    print(json.dumps(figures, indent=1))
