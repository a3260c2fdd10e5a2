"Rules at recommendation: exact against a walk down the ranking, one clear error each, and files that are whole or not there."

import os
import warnings

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from itemlm import Recommender, SequenceModel, fit, load, read_events, split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.models.counting import item_knn, markov, popularity
from itemlm.models.item_lm import tiny
from itemlm.models.neural import gru4rec
from itemlm.serving import recommender
from itemlm.serving.rules import Rules

DAY = 86_400


class Fixed(SequenceModel):
    "Whole numbers as scores, a function of the last item alone: the same whatever the batch, with many ties."

    def scores(self, histories):
        last = torch.from_numpy(histories.last(1).values.astype(np.int64))[:, None]
        return ((last * 37 + torch.arange(self.config.n_items) * 101) % 23).float()


@pytest.fixture(scope="module")
def parts():
    "Forty users with times, fifty items with attributes."
    rng = np.random.default_rng(0)
    log = pd.DataFrame(
        [(f"u{u}", f"i{i}", DAY * (1 + 10 * t + u % 5)) for u in range(40) for t, i in enumerate(rng.choice(50, 9, replace=False))],
        columns=["user", "item", "time"],
    )
    genres = ["|".join(rng.choice(list("ABCD"), rng.integers(0, 3), replace=False)) for _ in range(50)]
    items = pd.DataFrame(
        {"item": [f"i{i}" for i in range(50)], "genres": genres, "price": rng.integers(1, 30, 50), "stock": rng.random(50) < 0.5}
    )
    return split(read_events(log, name="shop", items=items, verbose=False))


@pytest.fixture(scope="module")
def rec(parts):
    tokenizer = ItemTokenizer.from_split(parts)
    return Recommender.from_split(Fixed.Config(n_items=tokenizer.n_items).build(), tokenizer, parts)


def walk(rec, user, k, may, at_most, since=None):
    "By hand: down the whole ranking, an item after the other."
    row = rec.users.tolist().index(user)
    tokens, (begin, end) = rec.histories[row], rec.histories.offsets[row : row + 2]
    times = rec.times[begin:end] if len(rec.times) else np.zeros(len(tokens))
    had = {rec.tokenizer.decode([token])[0] for token, time in zip(tokens, times) if since is None or time >= since}
    scores, found, counts = rec.scores(rec.histories.take([row]))[0], [], {}
    for column in scores.sort(descending=True, stable=True).indices.tolist():
        item = rec.tokenizer.items[column]
        values = {(c, v) for c in at_most for v in filter(None, str(rec.items[c].iloc[column]).split("|"))}
        if item in may and item not in had and len(found) < k and all(counts.get(v, 0) < at_most[v[0]] for v in values):
            found.append(item)
            counts |= {v: counts.get(v, 0) + 1 for v in values}
    return found


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_a_walk(rec, seed):
    "Random rules of every kind, of several kinds at once."
    rng = np.random.default_rng(seed)
    some = lambda low, high: rng.choice(rec.tokenizer.items, rng.integers(low, high), replace=False).tolist()
    users = rng.choice(rec.users, 15, replace=False).tolist()
    own_allowed = {user: some(0, 40) for user in users[:8]}
    own_blocked = {user: some(0, 40) for user in users[4:12]}
    price = int(rng.integers(5, 30))
    everybody = set(rec.tokenizer.items)
    allowed, may = [(None, lambda u: everybody), (f"price < {price}", lambda u: set(rec.items.index[rec.items["price"] < price]))][seed % 2]
    blocked, no = (own_blocked, lambda u: own_blocked.get(u, ())) if seed % 3 else (None, lambda u: ())
    if seed % 4 == 3:
        allowed, may = own_allowed, lambda u: own_allowed.get(u, everybody)
    at_most = [{}, {"genres": 1}, {"genres": 3, "price": 2}][seed % 3]
    seen, since = [("drop", None), ("40 days", rec.times.max() - 40 * DAY), ("keep", np.inf)][seed // 4]
    k = int(rng.integers(1, rec.n_items + 1))
    table = rec.recommend(users=users, k=k, seen=seen, allowed=allowed, blocked=blocked, at_most=at_most)
    for user in users:
        assert table[table["user"] == user]["item"].tolist() == walk(rec, user, k, set(may(user)) - set(no(user)), at_most, since), user


def test_lists_are_as_long_as_they_can_be(rec):
    stock = rec.items.index[rec.items["stock"]]
    with pytest.warns(UserWarning, match="never heard of it"):
        found, scores = rec.topk([["i1"], [], ["never heard of it", "i2"]], k=5, allowed="stock")
    assert np.isin(found, stock).all() and np.isfinite(scores).all()
    assert (
        rec.topk([["i1"]], k=5, allowed=rec.items["stock"], seen="keep")[0][0].tolist()
        == rec.recommend(items=["i1"], k=5, allowed=set(stock), seen="keep")["item"].tolist()
    )
    short, scores = rec.topk([["i1"], ["i2"]], k=4, rules=Rules(allowed=[["i1", "i3"], []]))
    assert short.tolist() == [["i3", "", "", ""], [""] * 4] and np.isneginf(scores[:, 1:]).all()


def test_new_and_old_users_the_same(rec):
    "A history in tokens, in raw ids, and of a known user; alone or with others; one by one or as a bundle."
    rules = Rules(allowed=lambda items: items["price"] > 3, blocked=["i7"], at_most={"genres": 2})
    known = rec.recommend(users=rec.users[:9].tolist(), k=6, rules=rules)
    for user, history in zip(rec.users[:9], rec.histories):
        ids = [item for item in rec.tokenizer.decode(history) if item in rec.tokenizer]
        new = rec.recommend(items=ids, k=6, allowed=rules.allowed, blocked=rules.blocked, at_most=rules.at_most)
        assert new["item"].tolist() == known[known["user"] == user]["item"].tolist()
    assert not rec.recommend(items=["i1"], rules=rules, blocked=[])["item"].isin(["i7"]).all()


@pytest.mark.parametrize("recipe", [tiny, gru4rec, popularity, markov, item_knn])
def test_every_kind_of_model(parts, recipe):
    config = recipe()
    trained = fit(parts, config if not hasattr(config.model, "width") else recipe(epochs=1), verbose=False, device="cpu")
    for seen in ("drop", "keep", "window", "25 days"):
        table = trained.recommend(users=["u1", "u2"], k=4, seen=seen, allowed="stock", at_most={"price": 1})
        assert trained.items.loc[table["item"], "stock"].all() and not table.duplicated(["user", "item"]).any()
    assert trained.recommend(items=[], k=3, blocked="stock")["item"].map(trained.items["stock"]).eq(False).all()


WRONG = {
    "an id that is a number": (dict(allowed=[7]), "allowed: raw ids are text, but one is 7 .int.: write '7'"),
    "an id in a bare text": (dict(blocked="i3"), r"blocked='i3' is no condition .* a single item is written \['i3'\]"),
    "a column that is not there": (dict(allowed="colour == 'red'"), "is no condition on the item table .*its columns are"),
    "no text of a condition": (dict(allowed="price <"), "is no condition on the item table"),
    "an assignment": (dict(allowed="price = 3"), "gives no answer for each item"),
    "a name of the caller's": (dict(allowed="price < @top"), "@names are not looked up"),
    "a condition that gives numbers": (dict(allowed="price + 1"), "gives true or false for each"),
    "nothing allowed": (dict(allowed=[]), "holds none of the 50 items"),
    "nothing that exists": (dict(allowed=["nope"]), "holds none of the 50 items"),
    "no item that cheap": (dict(allowed="price < 0"), "allowed=price < 0 holds none"),
    "everything blocked": (dict(blocked="price >= 0"), "leaves no item"),
    "a number": (dict(allowed=3), "must be raw ids, a condition"),
    "a mapping without users": (dict(allowed={"u1": ["i1"]}), "histories have no user"),
    "lists of another number": (dict(blocked=[["i1"], ["i2"]]), "holds 2 lists for 1 users"),
    "a limit of nothing": (dict(at_most={"genres": 0}), "at_most.*must be a whole number of at least 1"),
    "a limit of no column": (dict(at_most={"brand": 2}), "has no column 'brand'; it has"),
    "a limit without a column": (dict(at_most=2), "write at_most={'brand': 2}"),
    "a limit of zero without a column": (dict(at_most=0), "write at_most={.brand.: 2}"),
    "a table as a condition": (dict(allowed=lambda items: items), "gives true or false for each of 50 items"),
    "rules that are none": (dict(rules={"allowed": ["i1"]}), "is no Rules"),
    "an unknown time": (dict(seen="30 days"), "needs to know when"),
    "an unknown rule of seen": (dict(seen="30 moons"), "is not one of drop, keep, window"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_error(rec, name):
    given, message = WRONG[name]
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as caught:
        warnings.simplefilter("ignore")
        rec.recommend(items=["i1"], k=3, **given)
    assert len(str(caught.value).splitlines()) == 1


def test_a_wrong_name(rec):
    with pytest.raises(TypeError, match="no argument 'alowed'; rules are allowed=, blocked=, at_most="):
        rec.topk([["i1"]], alowed=["i1"])


def test_unknown_ids_are_named_where_they_are_given(rec):
    with pytest.warns(UserWarning, match="allowed: 1 of 2 items are not known to the model and left out: 'new'") as caught:
        assert rec.recommend(items=["i1"], allowed=["i4", "new"])["item"].tolist() == ["i4"]
    assert caught[0].filename == __file__


def test_unknown_times_count_as_recent(rec):
    times = rec.times.copy()
    times[rec.histories.offsets[3]] = 0
    again = Recommender(**{**vars(rec), "times": times})
    first = rec.tokenizer.decode(rec.histories[3][:1])[0]
    assert first in rec.recommend(users=["u3"], k=50, seen="1 day")["item"].tolist()
    assert first not in again.recommend(users=["u3"], k=50, seen="1 day")["item"].tolist()


# ---------------------------------------------------------------- everybody


def test_file_of_everybody(rec, tmp_path, monkeypatch):
    "The same lists as `recommend`, whatever the size of a row group."
    monkeypatch.setattr(recommender, "_GROUP", 7)
    own = {user: rec.tokenizer.items[n : n + 20].tolist() for n, user in enumerate(rec.users[::2])}
    rules = Rules(allowed=own, at_most={"genres": 2})
    path = rec.recommend_all(tmp_path / "new" / "lists.parquet", k=6, seen="60 days", rules=rules, verbose=False)
    table, expected = pd.read_parquet(path), rec.recommend(users=rec.users.tolist(), k=6, seen="60 days", rules=rules)
    assert table.columns.tolist() == ["user", "rank", "item", "score"] and pq.ParquetFile(path).num_row_groups == 6
    for column in table:
        assert table[column].tolist() == expected[column].tolist(), column
    some = pd.read_parquet(rec.recommend_all(tmp_path / "some.parquet", users=["u9", "u1"], k=1000, verbose=False))
    assert some["user"].unique().tolist() == ["u9", "u1"] and len(some) == 2 * (50 - 9)


def test_a_file_that_is_there_stays(rec, tmp_path):
    (tmp_path / "lists.parquet").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already: choose another name, or overwrite=True"):
        rec.recommend_all(tmp_path / "lists.parquet")
    with pytest.raises(FileExistsError, match="is a folder"):
        rec.recommend_all(tmp_path, overwrite=True)
    assert (tmp_path / "lists.parquet").read_text() == "mine"
    rec.recommend_all(tmp_path / "lists.parquet", overwrite=True, verbose=False)
    assert len(pd.read_parquet(tmp_path / "lists.parquet")) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_stopped_half_way_leaves_nothing(rec, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(recommender, "_GROUP", 7)
    (tmp_path / "old.parquet").write_text("old")
    search, calls = Recommender._search, []

    def stopping(self, *args, **how):
        calls.append(1)
        if len(calls) == 3:
            raise stop
        return search(self, *args, **how)

    for name in ("new", "old"):
        calls.clear()
        monkeypatch.setattr(Recommender, "_search", stopping)
        with pytest.raises(type(stop) if isinstance(stop, Exception) else stop):
            rec.recommend_all(tmp_path / f"{name}.parquet", overwrite=True, verbose=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.parquet": "old"}


def test_killed_half_way_leaves_nothing(rec, tmp_path, monkeypatch):
    "Until the end there is a hidden file of the writer's own; of a writer that is dead, the next call removes it."
    search, there = Recommender._search, []

    def looking(self, *args, **how):
        there.extend(path.name for path in tmp_path.iterdir())
        return search(self, *args, **how)

    monkeypatch.setattr(Recommender, "_search", looking)
    for left in (".4194399.tmp.lists.parquet", ".1.tmp.lists.parquet", ".mine.tmp.lists.parquet", ".4194399.tmp.other.parquet"):
        (tmp_path / left).touch()
    kept = {".1.tmp.lists.parquet", ".mine.tmp.lists.parquet", ".4194399.tmp.other.parquet"}  # the first is of a process that runs
    rec.recommend_all(tmp_path / "lists.parquet", verbose=False)
    assert set(there) == kept | {f".{os.getpid()}.tmp.lists.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"lists.parquet"}


def test_somebody_else_wrote_it_meanwhile(rec, tmp_path, monkeypatch):
    search = Recommender._search
    monkeypatch.setattr(Recommender, "_search", lambda *args, **how: (tmp_path / "x.parquet").write_text("theirs") and search(*args, **how))
    with pytest.raises(FileExistsError, match="somebody else wrote it meanwhile; nothing was changed"):
        rec.recommend_all(tmp_path / "x.parquet", verbose=False)
    assert (tmp_path / "x.parquet").read_text() == "theirs" and len(list(tmp_path.iterdir())) == 1


def test_nobody_is_known(rec, tmp_path):
    stranger = Recommender(model=rec.model, tokenizer=rec.tokenizer, items=rec.items)
    with pytest.raises(ValueError, match="knows no users: use topk"):
        stranger.recommend_all(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="give a list of raw user ids"):
        rec.recommend_all(tmp_path / "x.parquet", users="u1")
    with pytest.raises(ValueError, match="user 'nobody' is not among"):
        rec.recommend_all(tmp_path / "x.parquet", users=["nobody"])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- similar items


def test_similar_survives_being_saved(parts, tmp_path):
    for recipe in (markov(), item_knn(neighbours=5), tiny(epochs=1)):
        trained = fit(parts, recipe, verbose=False, device="cpu")
        found = trained.similar("i3", k=4, allowed="price > 5", at_most={"price": 1})
        assert "i3" not in set(found["item"]) and (trained.items.loc[found["item"], "price"] > 5).all()
        assert found["score"].is_monotonic_decreasing and found["score"].between(-1, 1.0001).all()
        trained.save(tmp_path / type(trained.model).__name__)
        again = load(tmp_path / type(trained.model).__name__, device="cpu").similar("i3", k=4, allowed="price > 5", at_most={"price": 1})
        pd.testing.assert_frame_equal(found, again)


def test_similar_says_what_it_cannot(parts, rec):
    with pytest.raises(ValueError, match="Popularity neither has item vectors nor counts"):
        fit(parts, popularity()).similar("i3")
    for wrong in ("nope", 3, ["i3"], None):
        with pytest.raises(ValueError, match="is not among the 50 items of the model; give one raw id, as text"):
            rec.similar(wrong)
