"The server to copy from: its lists are the recommender's, a caller's faults are told in one sentence, and many may ask at once."

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from fastapi.testclient import TestClient

from itemlm import Recommender, SequenceModel, read_events, split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.models.item_lm import ItemLM, ItemLMConfig

sys.path.insert(0, str(ROOT / "examples"))
import serve  # noqa: E402

DAY = 86_400


def make(model=None, times: bool = True) -> Recommender:
    "An untrained model of fifty items; forty users, a day between two events of one"
    rng = np.random.default_rng(0)
    log = pd.DataFrame(
        [(f"u{u}", f"i{i}", DAY * (100 + 10 * t + u % 5)) for u in range(40) for t, i in enumerate(rng.choice(50, 9, replace=False))],
        columns=["user", "item", "time"],
    )
    parts = split(read_events(log if times else log.drop(columns="time"), name="shop", verbose=False))
    tokenizer = ItemTokenizer.from_split(parts)
    torch.manual_seed(0)
    config = ItemLMConfig(n_items=tokenizer.n_items, width=16, heads=2, layers=1, hidden=24, max_len=8)
    return Recommender.from_split(ItemLM(config).eval() if model is None else model(tokenizer.n_items), tokenizer, parts)


@pytest.fixture(scope="module")
def rec():
    return make()


@pytest.fixture
def client(rec):
    with TestClient(serve.make_app(rec, room=100), raise_server_exceptions=False) as client:
        yield client


def asked(client, status: int = 200, path: str = "/recommend", **body) -> dict:
    "The answer to a request, which has the status expected; an error is one sentence and nothing else"
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    found = answer.json()
    if status >= 400:
        assert list(found) == ["error"] and "\n" not in found["error"]
        return found["error"]
    return found


def same(found: dict, table: pd.DataFrame) -> None:
    "A list is the one that `recommend` gives"
    assert [one["item"] for one in found["items"]] == table["item"].tolist()
    assert [one["title"] for one in found["items"]] == table["title"].tolist()
    np.testing.assert_allclose([one["score"] for one in found["items"]], table["score"], rtol=1e-5, atol=1e-5)


# --- Its lists are the recommender's ---

RULES = [
    {},
    {"k": 50},
    {"seen": "keep", "k": 1},
    {"seen": "window", "k": 45},
    {"allowed": ["i1", "i2", "i3", "i4"]},
    {"blocked": ["i1", "i2", "i3"], "k": 45},
    {"allowed": ["i1", "i2", "i3"], "blocked": ["i2"], "seen": "keep"},
]
TIMES = [{"seen": "30 days", "k": 50}, {"seen": "1970-05-20", "k": 50}, {"seen": "9000 days"}, {"seen": "20 days", "blocked": ["i5"]}]


@pytest.mark.parametrize("rules", RULES + TIMES, ids=str)
def test_a_known_user(client, rec, rules):
    for user in ("u0", "u7"):
        same(asked(client, user=user, **rules), rec.recommend(users=[user], **rules))


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_new_user(client, rec, rules):
    history = [f"i{i}" for i in range(20, 32)]
    same(asked(client, items=history, **rules), rec.recommend(items=history, **rules))


def test_what_a_user_has_had_may_be_all_that_is_allowed(client, rec):
    had = rec.tokenizer.decode(rec.history(["u3"])[0])
    assert asked(client, user="u3", allowed=had)["items"] == []
    assert asked(client, user="u3", allowed=had, seen="9000 days")["items"] == []


def test_unknown_items_are_passed_over_and_named(client, rec):
    found = asked(client, items=["?", "i1", "i2", "?"], allowed=["i3", "!"], blocked=["%"])
    assert found["unknown"] == ["?", "!", "%"] and found["note"] is None
    same(found, rec.recommend(items=["i1", "i2"], allowed=["i3"]))


@pytest.mark.parametrize("items", [[], ["?"]])
def test_nothing_known_means_popular(client, rec, items):
    found = asked(client, items=items, k=5)
    same(found, rec.recommend(items=[], k=5))
    assert "popular" in found["note"] and found["unknown"] == items


def test_without_times_a_length_of_time_is_refused():
    with TestClient(serve.make_app(rec := make(times=False))) as client:
        same(asked(client, user="u1"), rec.recommend(users=["u1"]))
        assert "not known when" in asked(client, 422, user="u1", seen="30 days")


# --- Several at once ---


def ask(rec, row: int, **kwargs) -> serve.Ask:
    given = {"latest": 0, "k": 10, "seen": "drop", "allowed": None, "blocked": []}
    return serve.Ask(tokens=rec.histories[row], **given | kwargs)


def test_a_batch_of_all_kinds_is_each_alone(rec):
    "The same items whatever else is scored; other rules and lengths side by side"
    kinds = [
        {},
        {"k": 50},
        {"seen": "keep", "k": 3},
        {"allowed": ["i1", "i2"]},
        {"blocked": ["i1", "i2"]},
        {"allowed": ["i5"], "seen": "keep"},
    ]
    asks = [ask(rec, row, **kinds[row % len(kinds)]) for row in range(len(rec.users))]
    for one, (items, scores) in zip(asks, serve.answer(rec, asks)):
        (alone,) = serve.answer(rec, [one])
        assert items == alone[0]
        np.testing.assert_allclose(scores, alone[1], rtol=1e-5, atol=1e-5)
        whole, _ = rec.topk([rec.tokenizer.decode(one.tokens)], one.k, seen=one.seen, allowed=one.allowed, blocked=one.blocked or None)
        assert items == [item for item in whole[0] if item]


class Wavering(SequenceModel):
    "Two neighbours of nearly one score change places with the size of the batch"

    def scores(self, histories):
        scores = -torch.arange(self.config.n_items, dtype=torch.float32).repeat(len(histories), 1)
        scores[:, 1] = scores[:, 0] + (1e-6 if len(histories) > 1 else -1e-6)
        return scores


def test_lists_do_not_depend_on_who_else_asks():
    rec = make(lambda n: Wavering.Config(n_items=n).build())
    assert rec.topk(rec.histories.take([0, 1]), 2, seen="keep")[0][0].tolist() == rec.tokenizer.items[[1, 0]].tolist()
    for k in (1, 2):  # with k = 1 the rival is the next one
        for items, _ in serve.answer(rec, [ask(rec, row, seen="keep", k=k) for row in range(4)]):
            assert items == rec.tokenizer.items[:k].tolist()


class Counting(SequenceModel):
    "Notes how many histories are scored together, and whether two calls overlap; the first one waits to be let go"

    def __init__(self, config):
        super().__init__(config)
        self.sizes, self.inside, self.go = [], 0, threading.Event()

    def scores(self, histories):
        self.inside += 1
        assert self.inside == 1, "two threads use the model"
        self.go.wait(10)
        self.sizes.append(len(histories))
        self.inside -= 1
        last = torch.from_numpy(histories.last(1).values.astype(np.int64))[:, None]
        return ((last * 37 + torch.arange(self.config.n_items) * 101) % 997).float()


def test_what_waits_is_scored_together_and_each_gets_its_own():
    rec = make(lambda n: Counting.Config(n_items=n).build())
    with TestClient(serve.make_app(rec, batch=8)) as client, ThreadPoolExecutor(21) as pool:
        first = pool.submit(asked, client, items=["i0"], seen="keep")
        wait_until(lambda: rec.model.inside)
        others = [pool.submit(asked, client, items=[f"i{n}"], seen="keep") for n in range(1, 21)]
        wait_until(lambda: "itemlm_waiting 20\n" in client.get("/metrics").text)
        rec.model.go.set()
        found = [job.result() for job in (first, *others)]
    assert rec.model.sizes[:4] == [1, 8, 8, 4]
    for n, answer in enumerate(found):
        same(answer, rec.recommend(items=[f"i{n}"], seen="keep"))


def wait_until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_too_many_who_wait_are_told_to_come_back(monkeypatch):
    monkeypatch.setattr(serve, "MAX_WAITING", 2)
    rec = make(lambda n: Counting.Config(n_items=n).build())
    with TestClient(serve.make_app(rec)) as client, ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(asked, client, items=["i0"])]
        wait_until(lambda: rec.model.inside)
        jobs += [pool.submit(asked, client, items=["i0"]) for _ in range(2)]
        wait_until(lambda: "itemlm_waiting 2\n" in client.get("/metrics").text)
        assert "try again" in asked(client, 503, items=["i0"])
        rec.model.go.set()
        assert all(job.result()["items"] for job in jobs)


class Broken(SequenceModel):
    "Fails at one item"

    def scores(self, histories):
        if (histories.values == 8).any():
            raise RuntimeError("secret path")
        return torch.zeros(len(histories), self.config.n_items)


def test_a_model_that_fails_is_an_answer_and_the_next_is_served():
    rec = make(lambda n: Broken.Config(n_items=n).build())
    first, second = rec.tokenizer.items[:2]
    with TestClient(serve.make_app(rec), raise_server_exceptions=False) as client:
        assert "secret" not in asked(client, 500, items=[first])
        assert asked(client, items=[second])["items"]
        assert 'path="/recommend",status="500"} 1\n' in client.get("/metrics").text


# --- Events ---


def test_events_are_appended(client, rec):
    had = rec.tokenizer.decode(rec.history(["u1"])[0])
    assert asked(client, path="/events", user="u1", items=["i1", "?", "i2"]) == {"user": "u1", "added": 2, "unknown": ["?"]}
    assert asked(client, path="/events", user="u1", items=["i3"])["added"] == 1
    same(asked(client, user="u1", k=50), rec.recommend(items=[*had, "i1", "i2", "i3"], k=50))
    same(asked(client, user="u2"), rec.recommend(users=["u2"]))


def test_a_new_user_is_made(client, rec):
    user = "a/new one?"
    assert "POST /events first" in asked(client, 404, user=user)
    assert asked(client, path="/events", user=user, items=["?"])["added"] == 0
    asked(client, 404, user=user)  # nothing is known of them yet
    asked(client, path="/events", user=user, items=["i1", "i2"])
    same(asked(client, user=user), rec.recommend(items=["i1", "i2"]))
    assert client.get("/health").json()["users"] == len(rec.users) + 1


def test_added_events_have_times(client, rec):
    "A length of time is counted back from the newest event there is"
    newest = int(rec.times.max())
    asked(client, path="/events", user="n", items=["i1"], time=newest - 5 * DAY)
    asked(client, path="/events", user="n", items=["i2"], time=newest + DAY)
    items = lambda seen: {one["item"] for one in asked(client, user="n", seen=seen, k=50)["items"]}
    assert items("3 days") & {"i1", "i2"} == {"i1"} and not items("10 days") & {"i1", "i2"}
    assert "a day ahead" in asked(client, 422, path="/events", user="n", items=["i1"], time=int(time.time()) + 10 * DAY)


def test_room_for_events_is_bounded(client, monkeypatch):
    for n in range(5):
        assert asked(client, path="/events", user=f"n{n}", items=["i1"] * 19)["added"] == 19
    assert "room for 100" in asked(client, 507, path="/events", user="n", items=["i1"] * 6)
    assert "itemlm_added_events 95\n" in client.get("/metrics").text
    monkeypatch.setattr(serve, "MAX_ADDED", 20)
    assert "add fewer" in asked(client, 422, path="/events", user="n1", items=["i1"] * 2)
    assert asked(client, path="/events", user="n1", items=["i1"])["added"] == 1


def test_many_add_and_ask_at_once(client, rec):
    "No event is lost, and every list is of a history that was whole"
    possible = [rec.recommend(items=["i1"] * n)["item"].tolist() for n in range(1, 17)]

    def visit(n: int) -> list[str]:
        asked(client, path="/events", user="one", items=["i1"])
        return [item["item"] for item in asked(client, user="one")["items"]]

    with ThreadPoolExecutor(8) as pool:
        assert all(found in possible for found in pool.map(visit, range(16)))
    assert "itemlm_added_events 16\n" in client.get("/metrics").text
    same(asked(client, user="one"), rec.recommend(items=["i1"] * 16))


# --- A caller's faults ---

LONG = ["i1"] * (serve.MAX_HISTORY + 1)
FAULTS = [
    ({"items": ["i1"], "k": -1}, "k: .*got -1.*ask for 1 to 500"),
    ({"items": ["i1"], "k": 0}, "k: "),
    ({"items": ["i1"], "k": 10**9}, "k: .*ask for 1 to 500"),
    ({"items": ["i1"], "k": 400}, "catalogue has 50 items"),
    ({"items": ["i1"], "k": "3"}, "k: .*valid integer"),
    ({"items": ["i1"], "k": True}, "k: .*valid integer"),
    ({"items": "i1"}, "items: .*valid list.*list of at most"),
    ({"items": [7]}, r"items.0: .*got 7.*raw ids"),
    ({"items": LONG}, "items: .*at most 2,000"),
    ({"items": ["i" * 201]}, "items.0: .*200 characters"),
    ({"items": ["i1"], "allowed": ["x"] * 10_001}, "allowed: .*10,000"),
    ({"items": ["i1"], "allowed": []}, "leave no item"),
    ({"items": ["i1"], "allowed": ["?"]}, "leave no item"),
    ({"items": ["i1"], "blocked": [f"i{i}" for i in range(50)]}, "leave no item"),
    ({"items": ["i1"], "seen": "dropped"}, "is not one of drop, keep, window"),
    ({"items": ["i1"], "seen": "30 days"}, "not known when"),
    ({"items": ["i1"], "itms": []}, "no field 'itms'"),
    ({"items": ["i1"], "user": "u1"}, "either"),
    ({}, "either"),
    ({"user": ""}, "user: "),
    ({"user": 7}, "user: .*got 7.*raw id"),
]


@pytest.mark.parametrize("body, said", FAULTS, ids=lambda value: str(value)[:50])
def test_a_fault_is_told(client, body, said):
    assert re.search(said, asked(client, 422, **body))


EVENT_FAULTS = [({"user": "u1"}, "items is missing"), ({"user": "u1", "items": []}, "items: "), ({"items": ["i1"]}, "user is missing")]
EVENT_FAULTS += [({"user": "u1", "items": ["i1"], "time": -1}, "time: "), ({"user": "u1", "items": LONG}, "items: ")]


@pytest.mark.parametrize("body, said", EVENT_FAULTS, ids=lambda value: str(value)[:50])
def test_a_fault_of_events_is_told(client, body, said):
    assert re.search(said, asked(client, 422, path="/events", **body))


BODIES = [(b"{", 400), (b"", 422), (b"[1]", 422), (b"\xff\xfe", 400), (b"[" * 500_000, 400), (b'{"k": ' + b"1" * 5000 + b"}", 400)]
BODIES += [(b'{"items": [], "k": NaN}', 422), (b'{"items": ["\\ud800"]}', 422), (b'{"\\ud800": 1}', 422)]


@pytest.mark.parametrize("body, status", BODIES, ids=lambda value: str(value)[:30])
def test_a_body_that_cannot_be_read(client, body, status):
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status and list(answer.json()) == ["error"]
    assert asked(client, items=["i1"])["items"]


def test_a_form_of_a_web_page_is_no_request(client):
    "What a page can send without asking its browser's leave adds no events"
    answer = client.post("/events", content=b'{"user": "x", "items": ["i1"]}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422 and "content-type" in answer.json()["error"]
    asked(client, 404, user="x")


def test_a_large_body_is_refused_before_it_is_parsed(client, monkeypatch):
    monkeypatch.setattr(json, "loads", lambda *args, **kwargs: pytest.fail("it was parsed"))
    body = b'{"items": [' + b'"i1",' * 2_000_000 + b'"i1"]}'
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    monkeypatch.undo()
    assert len(body) > 10_000_000 and answer.status_code == 413 and "1,048,576 bytes" in answer.json()["error"]
    chunks = client.post("/recommend", content=iter([body[:700_000], body[:700_000]]), headers={"content-type": "application/json"})
    assert chunks.status_code == 413
    within = b" " * (serve.MAX_BODY - 20) + b'{"items": ["i1"]}'
    assert client.post("/recommend", content=within, headers={"content-type": "application/json"}).status_code == 200


def test_other_paths(client):
    for method, path, status in (("get", "/recommend", 405), ("get", "/nowhere", 404), ("get", "/docs", 404), ("delete", "/events", 405)):
        answer = getattr(client, method)(path)
        assert answer.status_code == status and "POST /recommend" in answer.json()["error"]
    assert {"/recommend", "/events"} <= set(client.get("/openapi.json").json()["paths"])


# --- Health, metrics, start and stop ---


def test_metrics_count(client, rec):
    asked(client, user="u1")
    asked(client, 422)
    client.get("/one/caller's/text")
    text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['itemlm_requests_total{path="/recommend",status="200"}'] == "1"
    assert lines['itemlm_requests_total{path="/recommend",status="422"}'] == "1"
    assert lines['itemlm_requests_total{path="other",status="404"}'] == "1" and "caller" not in text
    assert lines["itemlm_errors_total"] == "2" and lines["itemlm_users"] == str(len(rec.users))
    assert lines["itemlm_recommend_seconds_count"] == lines['itemlm_recommend_seconds_bucket{le="+Inf"}'] == "2"
    assert lines['itemlm_model_info{model="ItemLM",data="shop"}'] == "1"
    assert all(re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})?', name) for name in lines)
    assert serve.label('a"b\\c\nd') == r'"a\"b\\c\nd"'


def test_the_command_line(tmp_path, capsys):
    assert serve.arguments(["runs/mine"]).host == "127.0.0.1", "this machine alone, if nothing else is asked for"
    for wrong in (["x", "--port", "70000"], ["x", "--threads", "0"], ["x", "--batch", "0"], []):
        with pytest.raises(SystemExit):
            serve.arguments(wrong)
    with pytest.raises(SystemExit, match="serve: .*nowhere does not exist"):
        serve.main([str(tmp_path / "nowhere")])


def test_a_process_starts_answers_and_stops(rec, tmp_path):
    "A large body gets its answer over a real connection too; told to stop, it stops cleanly"
    rec.save(tmp_path / "run")
    command = [sys.executable, "examples/serve.py", str(tmp_path / "run"), "--port", "0"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environ)
    try:
        address = next(line for line in process.stderr if "running on" in line)
        here = re.search(r"http://127\.0\.0\.1:\d+", address)[0]
        body = json.dumps({"user": "u1", "k": 5}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{here}/recommend", body, {"content-type": "application/json"})) as answer:
            same(json.load(answer), rec.recommend(users=["u1"], k=5))
        large = urllib.request.Request(f"{here}/recommend", b" " * 10_000_000, {"content-type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(large)
        assert refused.value.code == 413 and "bytes" in json.load(refused.value)["error"]
        with socket.create_connection(("127.0.0.1", int(here.rsplit(":", 1)[1]))) as half:  # a caller who goes in the middle
            half.sendall(b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        with urllib.request.urlopen(f"{here}/health") as answer:
            assert json.load(answer)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert "Traceback" not in said and "shutdown complete" in said.lower()
    finally:
        process.kill()
