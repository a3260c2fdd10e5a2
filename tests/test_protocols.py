"""One recommender under many protocols: each row of the table against a slow way to count it, one user at a time."""

import numpy as np
import pandas as pd
import pytest
import torch

from itemlm.core import Ragged
from itemlm.data.events import read_events
from itemlm.data.split import shuffle_ties, split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.protocols import leaked, protocols, sample_candidates
from itemlm.models.base import SequenceModel
from itemlm.models.counting import popularity
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import fit

AXES = ["targets", "data_ties", "candidates", "seen", "score_ties", "leaked"]


class Fake(SequenceModel):
    "Scores that depend on the last item, with many ties; it says that it reads four items."

    def __init__(self, n_items):
        super().__init__(self.Config(n_items=n_items, max_len=4))
        self.table = torch.randint(0, 6, (n_items, n_items), generator=torch.Generator().manual_seed(0)).float()

    def scores(self, sequences):
        return self.table[torch.tensor([row[-1] - 8 for row in sequences])]


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 12)
    times = np.sort(rng.integers(1, 14, (60, 12)), axis=1).ravel()
    return split(read_events(pd.DataFrame({"user": users, "item": rng.integers(0, 40, 720), "time": times}), name="random"))


@pytest.fixture(scope="module")
def rec(parts):
    tokenizer = ItemTokenizer.from_split(parts)
    return Recommender.from_split(Fake(tokenizer.n_items), tokenizer, parts)


@pytest.fixture(scope="module")
def table(rec, parts):
    return protocols(rec, parts).table.set_index(AXES)


def one_at_a_time(rec, parts, part, seen, ties) -> list[float]:
    "Hits among ten, by sorting every list."
    hits, ids = [], parts.events.items.index
    for history, target in zip(part.histories, part.targets):
        tokens = [int(t) for t in rec.tokenizer.encode(ids[history])]
        known = [t for t in tokens if t >= 8]
        scores = rec.scores(Ragged.from_lists([known]))[0].numpy()
        out = {"drop": set(known), "keep": set(), "window": set(known[-4:])}[seen]
        target = int(rec.tokenizer.encode([ids[target]])[0])
        others = [scores[t - 8] for t in range(8, 8 + rec.n_items) if t not in out and t != target]
        if target < 8 or target in out:
            hits.append(0.0)
            continue  # noqa: E702
        above, equal = (np.array(others) > scores[target - 8]).sum(), (np.array(others) == scores[target - 8]).sum()
        places = {"optimistic": [above], "pessimistic": [above + equal], "averaged": list(range(above, above + equal + 1))}[ties]
        hits.append(np.mean([place < 10 for place in places]))
    return hits


@pytest.mark.parametrize("ties", ["averaged", "optimistic", "pessimistic"])
@pytest.mark.parametrize("seen", ["drop", "keep", "window"])
def test_full_ranking(rec, parts, table, seen, ties):
    hits = one_at_a_time(rec, parts, parts.test, seen, ties)
    row = table.loc[("leave_one_out", "as they are", "all", seen, ties, "left out")]
    assert row["recall@10"] == pytest.approx(np.mean(hits)) and row["users"] == len(parts.test)


@pytest.mark.parametrize(("targets", "data_ties"), [("global_time", "as they are"), ("leave_one_out", "shuffled, seed 1")])
def test_leaked_questions_left_out_and_kept(rec, parts, table, targets, data_ties):
    other = split(parts.events if targets == "global_time" else shuffle_ties(parts.events, 1), targets)
    hits, trained = one_at_a_time(rec, other, other.test, "drop", "averaged"), dict(zip(parts.train_users, parts.train))
    known = [
        list(trained[user]).count(target) > list(history).count(target)
        for user, history, target in zip(other.test.users, other.test.histories, other.test.targets)
    ]
    assert 0 < sum(known) < len(known) and list(leaked(parts, other.test)) == known
    kept, left_out = (table.loc[(targets, data_ties, "all", "drop", "averaged", how)] for how in ("kept", "left out"))
    assert kept["recall@10"] == pytest.approx(np.mean(hits)) and kept["leaked_questions"] == sum(known)
    assert left_out["recall@10"] == pytest.approx(np.mean([hit for hit, k in zip(hits, known) if not k]))
    assert left_out["users"] == len(known) - sum(known)


def test_first_row_on_the_same_users(rec, parts, table):
    "So that a row about fewer people is not compared with all of them."
    other = split(parts.events, "global_time")
    users = set(other.test.users[~leaked(parts, other.test)])
    hits = one_at_a_time(rec, parts, parts.test, "drop", "averaged")
    same = np.mean([hit for user, hit in zip(parts.test.users, hits) if user in users])
    row = table.loc[("global_time", "as they are", "all", "drop", "averaged", "left out")]
    assert row["recall@10 first row, same users"] == pytest.approx(same)


def test_sampled_is_labelled_and_as_good_as_expected(parts):
    "Constant scores among n candidates and the target: ten of n + 1."
    silent = fit(parts, popularity(), verbose=False)
    silent.model.counts.zero_()
    found = protocols(silent, parts, negatives=14).table
    sampled = found[found.candidates != "all"]
    assert sampled.candidates.str.contains("sampled, for teaching").all() and len(sampled)
    averaged = sampled[(sampled.score_ties == "averaged") & (sampled.targets == "leave_one_out") & (sampled.data_ties == "as they are")]
    cold = parts.protocol["test_cold"] / len(parts.test)
    np.testing.assert_allclose(averaged["recall@10"], 10 / 15 * (1 - cold))


def test_one_change_a_line(rec, parts):
    shown = protocols(rec, parts).changes()
    assert shown.iloc[0].candidates == "all" and shown.candidates.nunique() == 3
    first = shown.iloc[0]
    for _, row in shown.iloc[1:].iterrows():
        changed = [axis for axis in AXES if row[axis] != first[axis]]
        assert len(set(changed) - {"leaked"} - ({"seen"} if row.seen == "never drawn" else set())) == 1


def test_batch_size_changes_no_candidate_and_no_number(rec, parts):
    pd.testing.assert_frame_equal(protocols(rec, parts, batch=7).table, protocols(rec, parts, batch=512).table)


def test_a_user_is_drawn_once_however_many_targets(parts):
    three = split(parts.events, "last_n", n=3)
    rec = fit(three, popularity(), verbose=False)
    found = protocols(rec, three).table.iloc[0]
    ranks = rec.rank_part(three, "test", seen=("drop",))["drop"]
    hits = pd.Series((ranks.greater < 10) * np.clip((10 - ranks.greater) / (ranks.ties + 1), 0, 1), index=three.test.users)
    assert found["users"] == 60 and found["recall@10"] == pytest.approx(hits.groupby(level=0).mean().mean())


def test_last_n_of_a_model_trained_for_it_leaks_nothing(parts):
    three = split(parts.events, "last_n", n=3)
    assert not leaked(three, three.test).any() and not leaked(three, three.valid).any()
    assert leaked(three, parts.test).sum() == 0 and leaked(parts, three.test).any()


def test_other_parts_are_refused(rec, parts):
    with pytest.raises(ValueError, match="give the split it was trained on"):
        protocols(rec, split(parts.events, "last_n"))
    with pytest.raises(ValueError, match="fingerprint"):
        protocols(rec, split(shuffle_ties(parts.events)))


def test_candidates_by_weight_follow_the_weights():
    weights = np.array([8.0, 4, 2, 1, 1])
    first = sample_candidates(Ragged.from_lists([[]] * 50_000), weights, n=1)[:, 0]
    np.testing.assert_allclose(np.bincount(first) / 50_000, weights / 16, atol=0.01)
