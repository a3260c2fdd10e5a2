"""Recommendations over HTTP from a saved run: a server to copy from.

    pip install '.[serve]'
    python examples/serve.py runs/mine    # http://127.0.0.1:8000, for this machine alone

    POST /recommend    a list for a known user, {"user": "7"}, or for a new one, {"items": ["1", "3114"]}
    POST /events       what a user has just had, {"user": "7", "items": ["318"]}: kept in memory until the process ends
    GET  /health       what is served
    GET  /metrics      counts for Prometheus

Lists are those of `rec.topk`. An error is {"error": one sentence}. Nobody is asked who they are: a proxy in front has to.
"""

import argparse
import asyncio
import sys
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from itemlm import Recommender, load
from itemlm.data.tokenizer import Sequences
from itemlm.serving.recommender import SEEN_RULES
from itemlm.serving.rules import seen_since

MAX_BODY = 2**20  # bytes of a request
MAX_DROPPED = 2**25  # bytes of a larger one that are taken and dropped, so that its sender hears why before the line is cut
MAX_SECONDS = 30  # for a body to arrive
MAX_ID = 200  # characters of a raw id
MAX_HISTORY = 2_000  # items of a history, or of one call that adds events
MAX_ADDED = 10_000  # events that are added to one user
MAX_LIST = 10_000  # raw ids of an allow-list or a block-list
MAX_K = 500
MAX_WAITING = 1_000  # requests that wait to be scored; the next one is told to come back
DAY = 86_400
CLOSE = 1e-5  # of the best score, or of 1: scores nearer to one another may change places with the batch that they are computed in

# --- What a request may hold ---

RawId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
History = Annotated[list[RawId], Field(max_length=MAX_HISTORY)]
Choice = Annotated[list[RawId], Field(max_length=MAX_LIST)]


class Body(BaseModel):
    "Exactly the fields it names, of exactly their types: 7 is no id, and a misspelt field is an error"

    model_config = ConfigDict(extra="forbid", strict=True)


class Wanted(Body):
    "What POST /recommend takes"

    user: RawId | None = None  # a known user
    items: History | None = None  # or a new one's history: raw ids, oldest first
    k: int = Field(10, ge=1, le=MAX_K)
    seen: str = Field("drop", max_length=40)  # drop, keep, window, a length of time or a moment, as in `rec.recommend`
    allowed: Choice | None = None  # only these
    blocked: Choice | None = None  # none of these; wins where both name an item


class Visit(Body):
    "What POST /events takes"

    user: RawId  # a new one is made
    items: Annotated[History, Field(min_length=1)]  # raw ids, oldest first
    time: int | None = Field(None, ge=1)  # Unix seconds of all of them; None = now


ADVICE = {
    "user": f"give one raw id, a text of 1 to {MAX_ID} characters",
    "items": f"give a list of at most {MAX_HISTORY:,} raw ids, texts of 1 to {MAX_ID} characters",
    "k": f"ask for 1 to {MAX_K}",
    "seen": "write drop, keep, window, a length of time ('30 days') or a moment ('2018-08-01')",
    "time": "give Unix seconds, or leave it out for now",
    **dict.fromkeys(("allowed", "blocked"), f"give a list of at most {MAX_LIST:,} raw ids, texts of 1 to {MAX_ID} characters"),
}


class Refused(Exception):
    "A request that cannot be answered, and why"

    def __init__(
        self,
        status: int,  # HTTP's
        why: str,  # one sentence: what, where, what to do
    ):
        super().__init__(why)
        self.status = status


def why_invalid(
    error: dict,  # the first that pydantic found
) -> str:
    "What is wrong with a body, where, and what to do"
    if error["type"] == "json_invalid":
        return f"the body is no JSON ({error['ctx']['error']}): send one JSON object"
    field, value = ".".join(map(str, error["loc"][1:])), error.get("input")
    if not field:
        return 'the body is no JSON object: send one, with the header "content-type: application/json"'
    if error["type"] == "extra_forbidden":
        return f"there is no field {ascii(field)[:80]}: the fields are in /openapi.json"
    if error["type"] == "missing":
        return f"{field} is missing: {ADVICE[field]}"
    got = f" (got {ascii(value)[:60]})" if isinstance(value, str | int | float | None) else ""
    return f"{field}: {error['msg'][0].lower()}{error['msg'][1:]}{got}: {ADVICE[field.split('.')[0]]}"


# --- Who is known ---


@dataclass(frozen=True)
class Ask:
    "One list that is wanted; nothing changes it while it waits"

    tokens: np.ndarray  # (T,) the history, oldest first
    latest: int  # Unix seconds of its newest event, 0 = not known
    k: int
    seen: str  # drop, keep or window
    allowed: list[str] | None  # raw ids
    blocked: list[str]


class People:
    "The run's users, and what was added to them since the start; the event loop alone touches it, so it needs no lock"

    def __init__(
        self,
        rec: Recommender,
        room: int,  # for added events, of all users together
    ):
        self.rec, self.room = rec, room
        self.rows = {user: row for row, user in enumerate(rec.users)}
        self.added: dict[str, tuple[array, array]] = {}  # tokens and times
        self.n_added = 0
        self.newest = int(rec.times.max(initial=0))
        self.timed = len(rec.times) > 0 or not len(rec.users)  # in a run without users only added events are known, and when they were

    def __len__(self) -> int:
        return len(self.rows) + sum(user not in self.rows for user in self.added)

    def history(self, user: str) -> tuple[np.ndarray, np.ndarray]:  # tokens (T,), Unix seconds (T,), 0 = not known
        "All that is known of a user, oldest first"
        if user not in self.rows and user not in self.added:
            raise Refused(404, f'user {ascii(user)} is not known: give "items", the raw ids of a history, or POST /events first')
        tokens, times = (np.array(part, np.int64) for part in self.added.get(user, ((), ())))
        if (row := self.rows.get(user)) is not None:
            own = slice(*self.rec.histories.offsets[row : row + 2])
            before = self.rec.times[own] if len(self.rec.times) else np.zeros(own.stop - own.start, np.int64)
            tokens, times = np.append(self.rec.histories.values[own], tokens), np.append(before, times)
        return tokens.astype(np.int32), times

    def add(self, user: str, items: list[str], at: int) -> int:
        "Append known items to a user's history; how many"
        tokens = self.rec.tokenizer.encode(items)
        tokens = tokens[tokens >= self.rec.tokenizer.n_special]
        own = len(self.added.get(user, ((),))[0])
        if self.n_added + len(tokens) > self.room:
            why = f"{self.n_added:,} events were added, and there is room for {self.room:,}"
            raise Refused(507, f"{why}: take them into the model with rec.update, and start the server again")
        if own + len(tokens) > MAX_ADDED:
            raise Refused(422, f"user {ascii(user)} has {own:,} added events, and may have {MAX_ADDED:,}: add fewer")
        if len(tokens):
            mine = self.added.setdefault(user, (array("i"), array("q")))
            mine[0].extend(tokens.tolist())
            mine[1].extend([at] * len(tokens))
            self.n_added += len(tokens)
            self.newest = max(self.newest, at)
        return len(tokens)

    def ask(self, wanted: Wanted) -> Ask:
        "A request as what is to be scored, or one clear refusal"
        if (wanted.user is None) == (wanted.items is None):
            raise Refused(422, 'who is it for? Give either "user", a known raw id, or "items", a list of raw ids')
        if wanted.k > self.rec.n_items:
            raise Refused(422, f"k={wanted.k}: the catalogue has {self.rec.n_items:,} items, ask for 1 to {self.rec.n_items:,}")
        if wanted.user is None:
            tokens, times = self.rec.tokenizer.encode(wanted.items), None
        else:
            tokens, times = self.history(wanted.user)
        allowed, blocked = self.choices(wanted)
        latest = int(times[-1]) if times is not None and len(times) else 0
        seen, had = self.seen(wanted.seen, tokens, times)
        return Ask(tokens, latest, wanted.k, seen, allowed, blocked + had)

    def known(self, ids: list[str]) -> list[str]:
        "Those that the model knows"
        return [item for item, token in zip(ids, self.rec.tokenizer.encode(ids)) if token >= self.rec.tokenizer.n_special]

    def choices(self, wanted: Wanted) -> tuple[list[str] | None, list[str]]:
        "Allow-list and block-list, without what the model does not know"
        allowed, blocked = None if wanted.allowed is None else self.known(wanted.allowed), self.known(wanted.blocked or [])
        left = self.rec.n_items if allowed is None else len(set(allowed) - set(blocked))
        if not left or (allowed is None and len(set(blocked)) == left):
            raise Refused(422, "allowed and blocked leave no item that the model knows: allow more, or block fewer")
        return allowed, blocked

    def seen(self, rule: str, tokens: np.ndarray, times: np.ndarray | None) -> tuple[str, list[str]]:
        "A rule that `rec.topk` takes, and raw ids to block: a time means the items that the user has had since then"
        if rule in SEEN_RULES:
            return rule, []
        try:
            since = seen_since(rule, self.newest)
        except ValueError as error:
            raise Refused(422, str(error)) from None
        if times is None or not self.timed:
            raise Refused(422, f"seen={ascii(rule)}: it is not known when these items were had; write drop, keep or window")
        had = tokens[((times >= since) | (times == 0)) & (tokens >= self.rec.tokenizer.n_special)]
        return "keep", self.rec.tokenizer.decode(had)


# --- Scoring, several requests at once ---


def sequences(asks: list[Ask]) -> Sequences:
    "Their histories, end to end"
    offsets = np.cumsum([0, *(len(ask.tokens) for ask in asks)])
    return Sequences(np.concatenate([ask.tokens for ask in asks]), offsets, np.array([ask.latest for ask in asks]))


def top(rec: Recommender, asks: list[Ask], k: int) -> tuple[np.ndarray, np.ndarray]:  # raw ids (B, k), scores (B, k)
    "`rec.topk` for asks of one rule; lists of their own are one a history"
    allowed = [ask.allowed for ask in asks] if asks[0].allowed is not None else None
    blocked = [ask.blocked for ask in asks] if any(ask.blocked for ask in asks) else None
    return rec.topk(sequences(asks), k, seen=asks[0].seen, allowed=allowed, blocked=blocked)


def near(
    scores: np.ndarray,  # (B, K) best first, -inf at the end where there are no more
    k: np.ndarray,  # (B,) items that were asked for; the one after them may be their rival
) -> np.ndarray:  # (B,) bool
    "Might a list be another one in another batch?"
    there = np.isfinite(scores)
    scale = np.abs(np.where(there, scores, 0)).max(1, keepdims=True).clip(1)
    gaps = np.subtract(scores[:, :-1], scores[:, 1:], where=there[:, 1:], out=np.full_like(scores[:, 1:], np.inf))
    return ((gaps <= CLOSE * scale) & (np.arange(gaps.shape[1]) < k[:, None])).any(1)


def answer(
    rec: Recommender,
    asks: list[Ask],
) -> list[tuple[list[str], list[float]]]:  # raw ids and scores, best first
    "What several asks get, scored together. A batch moves the last digit of a score: where that could matter, one is scored again, alone"
    groups, found = defaultdict(list), {}
    for place, ask in enumerate(asks):
        groups[ask.seen, ask.allowed is None].append(place)
    for places in groups.values():
        some = [asks[place] for place in places]
        wide = min(max(ask.k for ask in some) + 1, rec.n_items)  # one more, to see whether the last one is near the next
        lists, values = top(rec, some, wide)
        again = near(values, np.array([ask.k for ask in some])) & (len(some) > 1)
        for place, ask, items, scores, alone in zip(places, some, lists, values, again):
            if alone:
                (items,), (scores,) = top(rec, [ask], ask.k)
            there = int(np.isfinite(scores[: ask.k]).sum())
            found[place] = items[:there].tolist(), scores[:there].tolist()
    return [found[place] for place in range(len(asks))]


class Batcher:
    "Scores together whatever waits, in one thread: two never use the model at once, and nobody waits for a batch to fill"

    def __init__(
        self,
        rec: Recommender,
        most: int,  # scored together; 1 = each alone
    ):
        self.rec, self.most = rec, most
        self.waiting = asyncio.Queue(MAX_WAITING)
        self.thread = ThreadPoolExecutor(1, "scoring", torch.set_num_threads, (torch.get_num_threads(),))

    async def ask(self, ask: Ask) -> tuple[list[str], list[float]]:  # raw ids, scores
        "Wait for one list"
        found = asyncio.get_running_loop().create_future()
        try:
            self.waiting.put_nowait((ask, found))
        except asyncio.QueueFull:
            raise Refused(503, f"{MAX_WAITING:,} requests are waiting: try again in a second") from None
        return await found

    async def run(self) -> None:
        "Answer until it is cancelled"
        while True:
            some = [await self.waiting.get()]
            while not self.waiting.empty() and len(some) < self.most:
                some.append(self.waiting.get_nowait())
            try:
                asks = [ask for ask, _ in some]
                lists = await asyncio.get_running_loop().run_in_executor(self.thread, answer, self.rec, asks)
            except Exception as error:  # a failure of the model is an answer too: 500 for those who wait, and the next are served
                for _, found in some:
                    if not found.done():
                        found.set_exception(error)
            else:
                for (_, found), one in zip(some, lists):
                    if not found.done():  # it is where whoever asked has gone
                        found.set_result(one)


# --- What is counted ---

PATHS = {"/recommend": "POST", "/events": "POST", "/health": "GET", "/metrics": "GET"}
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, float("inf"))  # seconds


def label(text: object) -> str:
    "A value of a Prometheus label"
    return '"' + str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'


class Metrics:
    "Requests, errors and latencies since the start"

    def __init__(self):
        self.requests = Counter()  # (path, status) -> how many
        self.buckets, self.seconds = Counter(), 0.0  # of /recommend

    def count(self, path: str, status: int, seconds: float) -> None:
        "One more request that was answered"
        path = path if path in PATHS else "other"  # a path is the caller's text: not one counter for each
        self.requests[path, status] += 1
        if path == "/recommend":
            self.buckets[next(le for le in BUCKETS if seconds <= le)] += 1
            self.seconds += seconds

    def text(self, gauges: dict[str, object]) -> str:  # name, labels included -> value
        "The Prometheus text format"
        errors = sum(n for (_, status), n in self.requests.items() if status >= 400)
        lines = ["# TYPE itemlm_requests_total counter"]
        lines += [f'itemlm_requests_total{{path="{path}",status="{status}"}} {n}' for (path, status), n in sorted(self.requests.items())]
        lines += ["# TYPE itemlm_errors_total counter", f"itemlm_errors_total {errors}", "# TYPE itemlm_recommend_seconds histogram"]
        total = 0
        for le in BUCKETS:
            total += self.buckets[le]
            lines.append(f'itemlm_recommend_seconds_bucket{{le="{"+Inf" if le == float("inf") else le}"}} {total}')
        lines += [f"itemlm_recommend_seconds_sum {self.seconds:.6f}", f"itemlm_recommend_seconds_count {total}"]
        for name, value in gauges.items():
            lines += [f"# TYPE {name.partition('{')[0]} gauge", f"{name} {value}"]
        return "\n".join(lines) + "\n"


async def read_body(receive) -> bytes:  # ASGI's
    "A request's body, or a refusal before anything of it is parsed"
    body, size, more = bytearray(), 0, True
    try:
        async with asyncio.timeout(MAX_SECONDS):
            while more and size <= MAX_DROPPED:
                message = await receive()
                body += message.get("body", b"")
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
                if size > MAX_BODY:
                    body.clear()
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {MAX_SECONDS} seconds: send it faster, or less of it") from None
    if size > MAX_BODY:
        raise Refused(413, f"the body has more than {MAX_BODY:,} bytes: send at most {MAX_HISTORY:,} items and {MAX_LIST:,} ids a list")
    return bytes(body)


class Door:
    "What every request passes (ASGI middleware): bodies are bounded, answers are counted"

    def __init__(self, app, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500  # what a caller gets where nothing was sent

        async def noted(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            body = [{"type": "http.request", "body": await read_body(receive)}]

            async def again():  # the body, once; then what else comes
                return body.pop() if body else await receive()

            await self.app(scope, again, noted)
        except Refused as refused:
            await refusal(None, refused)(scope, receive, noted)
        finally:
            self.metrics.count(scope["path"], status, time.perf_counter() - start)


# --- The application ---


def refusal(request: Request | None, error: Refused) -> JSONResponse:
    "A refusal as an answer"
    close = {"connection": "close"} if error.status in (408, 413) else {}  # what is left of the body is not read
    return JSONResponse({"error": str(error)}, error.status, headers=close)


def why_lost(request: Request, error: HTTPException) -> str:
    "Why a request met none of the paths, or could not be read"
    if error.status_code in (404, 405):
        ways = ", ".join(f"{way} {path}" for path, way in PATHS.items())
        return f"there is no {request.method} {ascii(request.url.path)[:80]}: there are {ways}"
    return "the body cannot be read as JSON: send one JSON object"


HANDLERS = {
    Refused: refusal,
    RequestValidationError: lambda request, error: refusal(
        request, Refused(400 if error.errors()[0]["type"] == "json_invalid" else 422, why_invalid(error.errors()[0]))
    ),
    HTTPException: lambda request, error: refusal(request, Refused(error.status_code, why_lost(request, error))),
    Exception: lambda request, error: refusal(
        request, Refused(500, "the server failed at this request: its log says why; try another one")
    ),
}


def make_app(
    rec: Recommender,
    batch: int = 64,  # requests scored together; 1 = each alone
    room: int = 200_000,  # for added events, of all users together
) -> FastAPI:
    "The application that answers for a recommender"
    people, metrics = People(rec, room), Metrics()
    titles = dict(zip(rec.tokenizer.items, rec.titles(rec.tokenizer.items).tolist()))

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        with rec.model.cached_item_table():
            app.state.batcher = Batcher(rec, batch)
            task = asyncio.create_task(app.state.batcher.run())
            yield
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            app.state.batcher.thread.shutdown()

    # No pages of documentation: they would load scripts from elsewhere. /openapi.json says the same.
    app = FastAPI(title="itemlm", lifespan=life, exception_handlers=HANDLERS, docs_url=None, redoc_url=None)
    app.add_middleware(Door, metrics=metrics)

    def unknown(*lists: list[str] | None) -> list[str]:
        "Raw ids that were passed over, each once"
        return [item for item in dict.fromkeys(item for some in lists for item in some or ()) if item not in titles]

    @app.post("/recommend")
    async def recommend(wanted: Wanted) -> JSONResponse:
        "The k best items for a user, or for a history"
        ask = people.ask(wanted)
        items, scores = await app.state.batcher.ask(ask)
        nothing = not (ask.tokens >= rec.tokenizer.n_special).any()
        return JSONResponse(
            {
                "items": [{"item": item, "title": titles[item], "score": score} for item, score in zip(items, scores)],
                "unknown": unknown(wanted.items, wanted.allowed, wanted.blocked),
                "note": "no item of the history is known to the model: these are popular ones" if nothing else None,
            }
        )

    @app.post("/events")
    async def add(visit: Visit) -> JSONResponse:
        "Append to a user's history; whoever is new is made"
        now = int(time.time())
        if visit.time is not None and visit.time > now + DAY:
            raise Refused(422, f"time={visit.time} lies more than a day ahead: {ADVICE['time']}")
        added = people.add(visit.user, visit.items, now if visit.time is None else visit.time)
        return JSONResponse({"user": visit.user, "added": added, "unknown": unknown(visit.items)})

    @app.get("/health")
    async def health() -> JSONResponse:
        "What is served"
        return JSONResponse({"status": "ok", "model": type(rec.model).__name__, "items": rec.n_items, "users": len(people)})

    @app.get("/metrics")
    async def show_metrics() -> PlainTextResponse:
        "Counts for Prometheus"
        model = f"model={label(type(rec.model).__name__)},data={label(rec.data.get('name', ''))}"
        gauges = {"itemlm_users": len(people), "itemlm_added_events": people.n_added, "itemlm_items": rec.n_items}
        gauges |= {"itemlm_waiting": app.state.batcher.waiting.qsize(), f"itemlm_model_info{{{model}}}": 1}
        return PlainTextResponse(metrics.text(gauges), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    "The command line"
    parser = argparse.ArgumentParser(description="Recommendations over HTTP from a saved run.")
    parser.add_argument("folder", help="a run folder, such as runs/mine")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines ask; put a proxy in front that asks who they are")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1, help="of torch; small models answer no faster with more")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, auto")
    parser.add_argument("--batch", type=int, default=64, help="requests scored together; 1: each alone")
    parser.add_argument("--room", type=int, default=200_000, help="for added events, of all users together")
    given = parser.parse_args(argv)
    if given.threads < 1 or given.batch < 1 or given.room < 0 or not 0 <= given.port < 2**16:
        parser.error("--threads and --batch are at least 1, --room at least 0, --port lies between 0 and 65535")
    return given


def main(argv: list[str] | None = None) -> None:
    "Serve a run folder until the process is told to stop"
    given = arguments(argv)
    torch.set_num_threads(given.threads)
    try:
        rec = load(given.folder, device=given.device)  # a class of your own: load(..., model=Mine)
    except (OSError, ValueError) as error:
        sys.exit(f"serve: {error}")
    app = make_app(rec, given.batch, given.room)
    # A request under way is finished when the process is told to stop. No line a request: lists of who asked what are personal data.
    uvicorn.run(app, host=given.host, port=given.port, access_log=False, timeout_graceful_shutdown=10)


if __name__ == "__main__":
    main()
