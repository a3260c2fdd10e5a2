"""A server under load: examples/serve.py over Beauty, asked by 50 clients at once, against answers worked out beforehand.

    python bench/serve.py                      # 60 seconds
    python bench/serve.py --seconds 20
    python bench/serve.py --batch 1 --dry      # each request scored alone; nothing is recorded

The server is a process of its own and shares the machine with the clients. A client asks again as soon as it has its answer: known
users, new ones, some with a block-list, some that have just had one more item.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from record import PACKAGES, ROOT, record

from itemlm.data.datasets import load_dataset
from itemlm.data.split import split
from itemlm.models.item_lm import tiny
from itemlm.serving.recommender import Recommender
from itemlm.training.trainer import fit

K, QUESTIONS, WARM_UP = 10, 500, 5  # seconds of it
NOTES = (
    "examples/serve.py over Beauty (12,068 items, a trained model of the preset tiny), {clients} clients at once for {seconds} seconds, "
    "each asking again as soon as it is answered; clients and server share the machine. server_p99_ms, server_p50_ms: from a request's "
    "first byte sent to its answer's last one read. server_per_second: requests answered. server_cpu_ms: processor time of the server "
    "a request, whatever else the machine does. server_errors: answers that are lost, late by "
    "ten seconds, no success, or not the items of the list that rec.topk gave beforehand for the same history, of {asked} asked. "
    "server_memory_growth: resident memory of the server's process at the end over that after {warm} seconds of warm-up, in per cent."
)


def trained() -> Recommender:
    "A small model that has learnt something: scores as far apart as in use"
    return fit(split(load_dataset("beauty")), tiny(epochs=1), verbose=False)


def known(rec: Recommender, row: int) -> list[str]:
    "What a user has had that the model knows, as raw ids"
    tokens = rec.histories[row]
    return rec.tokenizer.decode(tokens[tokens >= rec.tokenizer.n_special])


def questions(rec: Recommender) -> list[tuple[dict, list[str]]]:  # bodies of requests, items of their answers
    "What is asked, and what rec.topk says to it"
    rng, found = np.random.default_rng(0), []
    for place, row in enumerate(rng.choice(len(rec.users), QUESTIONS, replace=False)):
        history, blocked = known(rec, row), None
        body = {"user": rec.users[row], "k": K} if place % 2 else {"items": history, "k": K}
        if place % 5 == 0:
            blocked = rng.choice(rec.tokenizer.items, 20, replace=False).tolist()
            body["blocked"] = blocked
        found.append((body, rec.topk([history], K, blocked=blocked)[0][0].tolist()))
    return found


def with_events(rec: Recommender) -> tuple[list[dict], list[tuple[dict, list[str]]]]:  # events, questions after them
    "Users who have had one more item, a new user among them"
    events, asked = [], []
    for n in range(20):
        user, had = (rec.users[n], known(rec, n)) if n % 2 else (f"new {n}", [])
        more = [rec.tokenizer.items[n]]
        events.append({"user": user, "items": more})
        asked.append(({"user": user, "k": K}, rec.topk([had + more], K)[0][0].tolist()))
    gone = {event["user"] for event in events}
    return events, [(body, items) for body, items in questions(rec) if body.get("user") not in gone] + asked


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: dict) -> tuple[int, dict]:  # status, answer
    "One request over a connection that stays open"
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(answer.split("content-length:")[1].split()[0])
    return int(answer.split()[1]), json.loads(await reader.readexactly(length))


async def client(port: int, asked: list, seed: int, end: float, took: list[float]) -> int:  # requests that went wrong
    "Ask until the end"
    rng, wrong = np.random.default_rng(seed), 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < end:
        body, items = asked[rng.integers(len(asked))]
        start = time.perf_counter()
        try:
            status, answer = await asyncio.wait_for(post(reader, writer, "/recommend", body), 10)
            took.append(time.perf_counter() - start)
            wrong += status != 200 or [one["item"] for one in answer["items"]] != items
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            wrong += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    return wrong


async def load_for(port: int, asked: list, clients: int, seconds: float) -> tuple[list[float], int]:  # seconds of each answer, wrong ones
    "Many clients at once"
    took, end = [], time.perf_counter() + seconds
    wrong = await asyncio.gather(*(client(port, asked, seed, end, took) for seed in range(clients)))
    return took, sum(wrong)


async def measure(server: psutil.Process, port: int, rec: Recommender, clients: int, seconds: float) -> dict[str, float]:
    "Warm-up, then the figures"
    events, asked = with_events(rec)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for event in events:
        status, answer = await post(reader, writer, "/events", event)
        assert status == 200 and answer["added"] == 1, answer
    writer.close()
    _, early = await load_for(port, asked, clients, WARM_UP)
    before, busy = server.memory_info().rss, sum(server.cpu_times()[:2])
    took, wrong = await load_for(port, asked, clients, seconds)
    return {
        "server_p99_ms": 1e3 * float(np.quantile(took, 0.99)),
        "server_p50_ms": 1e3 * float(np.median(took)),
        "server_per_second": len(took) / seconds,
        "server_cpu_ms": 1e3 * (sum(server.cpu_times()[:2]) - busy) / len(took),
        "server_errors": wrong + early,
        "server_asked": len(took),
        "server_memory_growth": 100 * (server.memory_info().rss / before - 1),
    }


def started(folder: Path, batch: int) -> tuple[subprocess.Popen, int]:  # the process, its port
    "A server that answers"
    command = [sys.executable, "examples/serve.py", str(folder), "--port", "0", "--batch", str(batch)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "running on" in line:
            return process, int(line.split("127.0.0.1:")[1].split()[0])
    sys.exit("the server did not start")


def main() -> None:
    "Serve, ask, record"
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dry", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rec = trained()
    with tempfile.TemporaryDirectory() as folder:
        rec.save(Path(folder) / "run")
        process, port = started(Path(folder) / "run", given.batch)
        try:
            figures = asyncio.run(measure(psutil.Process(process.pid), port, rec, given.clients, given.seconds))
        finally:
            process.terminate()
            process.wait(20)
    if not given.dry:
        asked = f"{figures['server_asked']:,}"
        notes = NOTES.format(clients=given.clients, seconds=f"{given.seconds:g}", asked=asked, warm=WARM_UP)
        record("engines", figures, notes, (*PACKAGES, "fastapi", "uvicorn"))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
