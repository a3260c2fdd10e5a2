"Saved tokenizers, as Hugging Face's libraries read them, and the table from item codes to tokens"

import gc
import json
import time

import pandas as pd
import pytest
from tokenizers import Tokenizer

from itemlm.core import Ragged
from itemlm.data.tokenizer import SEPARATOR, ItemTokenizer

transformers = pytest.importorskip("transformers")

ITEMS = {
    "spaces": ["a b", "a", "b", " a", "a ", " ", "\u00a0"],
    "punctuation": ["a,b", ",", '"a"', "it's", "a\\b", "a/b", "a\tb", "a\nb", "#1", "##a", "\u2581a", "Ġa"],
    "numbers": ["007", "07", "7", "7.0", "-7"],
    "case and accents": ["A", "STRASSE", "straße", "été", "e\u0301te\u0301", "İ", "ı"],
    "scripts": ["日本語", "عربى", "हिन्दी", "🎬", "👩‍👩‍👧", "ﬁ", "fi"],
    "names of special tokens": ["[PAD]", "[PAD] explained", "PAD", "[UNK]", "<unk>", "a<unk>b", "[MASK]", "<s>", "</s>"],
}
CODES = Ragged.from_lists([[0, 2], [1]])
RAW_IDS = [item for items in ITEMS.values() for item in items]


@pytest.fixture
def tokenizer():
    return ItemTokenizer(RAW_IDS)


@pytest.fixture
def auto(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    return transformers.AutoTokenizer.from_pretrained(tmp_path)


def test_special_tokens_are_known(tokenizer, auto):
    assert (auto.pad_token_id, auto.unk_token_id, auto.mask_token_id) == (0, 1, 2)
    assert len(auto) == auto.vocab_size == tokenizer.vocab_size
    assert auto.convert_ids_to_tokens(range(tokenizer.n_special)) == tokenizer.decode(range(tokenizer.n_special))


@pytest.mark.parametrize("kind", ITEMS)
def test_same_tokens(tokenizer, auto, kind):
    items = ITEMS[kind]
    expected = tokenizer.encode(items).tolist()
    assert min(expected) >= tokenizer.n_special
    assert auto(SEPARATOR.join(items))["input_ids"] == expected
    assert [auto(item)["input_ids"] for item in items] == [[token] for token in expected]


def test_same_tokens_for_pairs_and_repeats(tokenizer, auto):
    for first in RAW_IDS:
        history = [first, *RAW_IDS, first, "an unknown item", first]
        assert auto(SEPARATOR.join(history))["input_ids"] == tokenizer.encode(history).tolist()


def test_unknown_items(tokenizer, auto):
    items = ["a", "A b", "日本", "[pad]", "0007", "b"]
    tokens = auto(SEPARATOR.join(items))["input_ids"]
    assert tokens == tokenizer.encode(items).tolist()
    assert tokens.count(auto.unk_token_id) == tokenizer.encode_batch([items]).unknown == 4


def test_text_comes_back(auto):
    text = SEPARATOR.join(RAW_IDS)
    assert auto.decode(auto(text)["input_ids"]) == text


def test_padded_batch(tokenizer, auto):
    histories = [["a b", "[PAD]", "007"], ["été"], []]
    batch = auto([SEPARATOR.join(items) for items in histories], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    for items, tokens, mask in zip(histories, batch["input_ids"], batch["attention_mask"], strict=True):
        real, padding = tokenizer.encode(items).tolist(), 3 - len(items)
        assert tokens == real + [auto.pad_token_id] * padding
        assert mask == [1] * len(items) + [0] * padding


def test_tokenizers_library_reads_the_same(tokenizer, auto, tmp_path):
    tokens = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(SEPARATOR.join(RAW_IDS)).ids
    assert tokens == tokenizer.encode(RAW_IDS).tolist()


def test_saved_again_by_hugging_face(tokenizer, auto, tmp_path):
    auto.save_pretrained(tmp_path / "again")
    assert ItemTokenizer.load(tmp_path / "again") == tokenizer


def test_extended_vocabulary(tokenizer, auto, tmp_path):
    longer = tokenizer.extend(["new, item"])
    longer.save(tmp_path)  # over the old files
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(SEPARATOR.join(RAW_IDS + ["new, item"]))["input_ids"] == [
        *auto(SEPARATOR.join(RAW_IDS))["input_ids"],
        tokenizer.vocab_size,
    ]


@pytest.mark.parametrize("kind", ["WordPiece", "Whitespace"])
def test_other_tokenizers_are_refused(kind, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    if kind == "WordPiece":
        saved["model"]["type"] = kind
    else:
        saved["pre_tokenizer"] = {"type": kind}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(ValueError, match="not one of ItemTokenizer"):
        ItemTokenizer.load(tmp_path)


def test_unwritable_folder(tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write"):
        tokenizer.save(tmp_path / "file")


def test_a_vocabulary_is_looked_up_once(monkeypatch):
    asked = []
    look_up = ItemTokenizer._look_up
    monkeypatch.setattr(ItemTokenizer, "_look_up", lambda self, items: asked.append(len(items)) or look_up(self, items))
    ids, other = pd.Index(["tea", "scones", "cake"]), pd.Index(["cake", "tea", "scones"])
    tokenizer = ItemTokenizer(["tea", "cake"])
    for index, tokens in ((ids, [8, 9, 1]), (other, [9, 1, 8])) * 3:
        assert tokenizer.encode_codes(CODES, index).tokens.tolist() == tokens
    assert asked == [3, 3]
    del ids, index
    gc.collect()
    assert len(tokenizer._tables) == 1  # one index is gone, the other still there


def test_a_list_of_ids_may_change():
    ids, tokenizer = ["tea", "scones", "cake"], ItemTokenizer(["tea", "cake"])
    assert tokenizer.encode_codes(CODES, ids).tokens.tolist() == [8, 9, 1]
    ids[0] = "cake"
    assert tokenizer.encode_codes(CODES, ids).tokens.tolist() == [9, 9, 1]


def test_half_a_million_items_cost_nothing_the_second_time():
    ids = pd.Index([f"item {n}" for n in range(500_000)])
    tokenizer = ItemTokenizer(ids)
    tokenizer.encode_codes(CODES, ids)
    start = time.process_time()
    tokenizer.encode_codes(CODES, ids)
    assert time.process_time() - start < 0.1  # 1 s where the vocabulary is looked up again
