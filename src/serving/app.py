"""The page's routes, and the one that asks the model: one answer at a time, computed in a thread.

The event loop only moves bytes. A request that finds the model busy waits its turn, or is turned away when too many
wait already. When its reader leaves, an answer ends within a token, whether it waits or runs.
"""

import json
import logging
import math
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import closing
from dataclasses import MISSING, dataclass, field, fields
from importlib.resources import files
from threading import Event as Flag
from typing import Any

from anyio import (
    CancelScope,
    Lock,
    create_memory_object_stream,
    create_task_group,
    from_thread,
    move_on_after,
    to_thread,
)
from anyio.streams.memory import MemoryObjectSendStream
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from recipe import Inference
from serving.answer import Event, answer_events, has_adapter
from serving.guard import Message, Receive, Send
from serving.question import RANGES, Question, parse_question

MAX_BODY = 64 * 1024
"""Bytes of a request at most; a window of 4,096 tokens holds about 16 KB of English."""
PATIENCE = 60
"""Seconds that a reader may take for one event."""

MAX_WAITING = 4
"""Requests that may wait while one is answered."""

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def build_app(inference: Inference, asking: "Asking") -> Starlette:
    """The routes: the page's files, GET /model, POST /answer. Put a `Guard` around it."""
    about = Route("/model", _always(JSONResponse(describe(inference))))
    pages = [Route(path, _always(_file(name, kind))) for path, (name, kind) in FILES.items()]
    routes = [*pages, about, Route("/answer", asking, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={HTTPException: _error})


def describe(inference: Inference) -> dict[str, Any]:
    """What the page has to know: the model in a line, whether it has an adapter, what the controls may be set to."""
    return {
        "description": inference.description,
        "adapter": has_adapter(inference),
        "defaults": {setting.name: setting.default for setting in fields(Question) if setting.default is not MISSING},
        "ranges": RANGES,
    }


@dataclass(eq=False)
class Turn:
    """A request from its arrival to its end, waiting for the model or using it."""

    stopped: Flag = field(default_factory=Flag)
    scope: CancelScope = field(default_factory=CancelScope)

    def stop(self) -> None:
        """End it within a token. The flag reaches the thread that computes, the scope what waits for it."""
        self.stopped.set()
        self.scope.cancel()


class Asking:
    """POST /answer: a question as JSON; its events come back as lines of JSON while they happen.

    Attributes:
        lock: held while an answer is computed.
        turns: the requests under way, the one that holds the lock among them.
    """

    def __init__(self, inference: Inference, stop_strings: Sequence[str] = ()) -> None:
        self.inference, self.stop_strings = inference, stop_strings
        self.lock = Lock()
        self.turns: set[Turn] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        row = await read_json(Request(scope, receive))
        turn = Turn()
        if len(self.turns) > MAX_WAITING:
            raise HTTPException(429, f"{MAX_WAITING} questions are waiting already: ask again in a moment")
        self.turns.add(turn)
        try:
            # In a thread: to encode a long question takes a while.
            events = await to_thread.run_sync(self._events, row, turn.stopped)
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"application/x-ndjson")],
                }
            )
            await self._stream(events, turn, receive, send)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        finally:
            self.turns.remove(turn)

    def stop_all(self) -> None:
        """End every answer within a token."""
        for turn in self.turns:
            turn.stop()

    def _events(self, row: Any, stopped: Flag) -> Generator[Event, None, None]:
        return answer_events(self.inference, parse_question(row), self.stop_strings, stopped)

    async def _stream(self, events: Generator[Event, None, None], turn: Turn, receive: Receive, send: Send) -> None:
        """Send the events as they come, until they end or the reader leaves."""
        # Without a bound, so that a slow reader does not hold the model; an answer's length bounds it.
        into, out = create_memory_object_stream[Event](math.inf)
        with turn.scope:
            async with out, create_task_group() as group:  # out last: the thread may still put one in
                group.start_soon(_stop_when_gone, turn, receive)
                group.start_soon(self._compute, events, turn, into)
                async for event in out:
                    line = json.dumps(event, ensure_ascii=False) + "\n"
                    with move_on_after(PATIENCE) as sending:
                        await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
                    if sending.cancelled_caught:  # who keeps the line open and reads nothing would keep others out
                        turn.stop()
                group.cancel_scope.cancel()
        await send({"type": "http.response.body"})

    async def _compute(
        self, events: Generator[Event, None, None], turn: Turn, into: MemoryObjectSendStream[Event]
    ) -> None:
        """Wait for the model, then let it answer in a thread. Whatever happens there, the model is free afterwards."""

        def run() -> None:
            with closing(events):
                for event in events:
                    if turn.stopped.is_set():
                        return
                    from_thread.run_sync(into.send_nowait, event)

        with into:
            if self.lock.locked():
                into.send_nowait({"event": "wait"})
            async with self.lock:
                try:
                    await to_thread.run_sync(run)  # a cancelled scope waits here for the thread to notice the flag
                except ValueError as error:
                    into.send_nowait({"event": "error", "message": str(error)})
                except Exception:
                    logging.getLogger(__name__).exception("an answer failed")
                    into.send_nowait({"event": "error", "message": "the answer failed: the server's terminal says why"})


async def _stop_when_gone(turn: Turn, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    turn.stop()


async def read_json(request: Request) -> Any:
    """The request's body, decoded; HTTPException 400, 413 or 415 if it is not JSON, too long, or not sent as JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another site cannot send this type without being asked first
        raise HTTPException(415, f"content-type {kind or 'missing'}: send application/json")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"the request has more than {MAX_BODY:,} bytes: shorten the question")
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from error
    except ClientDisconnect as error:  # nobody is left to read this
        raise HTTPException(400, "the connection ended within the body") from error


def _file(name: str, kind: str) -> Response:
    return Response(files("serving").joinpath(name).read_bytes(), media_type=kind)


def _always(response: Response) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_: Request) -> Response:
        return response

    return endpoint


async def _error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
