"""Which requests are let in, and what every response tells the browser: an ASGI application around another.

Any web page may make a browser send requests to 127.0.0.1. It cannot read the answers, since nothing here sends the
headers of CORS, but two ways around that are closed here: a foreign name that resolves to the loopback address (DNS
rebinding) arrives with that name as its Host, and a request from another page with that page as its Origin.
"""

import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """Passes on what comes from the page itself and puts `HEADERS` on every response.

    Args:
        app: the application within.
        hosts: the only values of the Host header let in, as "localhost:8000"; None lets in all.
    """

    def __init__(self, app: App, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        if reason := refusal(dict(scope["headers"]), self.hosts):
            await send_error(send_guarded, 403, reason)
        else:
            await self.app(scope, receive, send_guarded)


def refusal(headers: dict[bytes, bytes], hosts: Collection[str] | None) -> str | None:
    """Why a request with these headers (lower-case names) is turned away; None if it is not.

    >>> refusal({b"host": b"rebound.example:8000"}, {"localhost:8000"})
    'this server is localhost:8000, not rebound.example:8000'
    >>> refusal({b"host": b"localhost:8000", b"origin": b"http://elsewhere.example"}, {"localhost:8000"})
    'the page at http://elsewhere.example may not ask here'
    """
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if hosts is not None and host not in hosts:
        return f"this server is {sorted(hosts)[-1]}, not {host or 'nameless'}"
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    if origin and origin.partition("://")[2] != host:
        return f"the page at {origin} may not ask here"
    return None


async def send_error(send: Send, status: int, message: str) -> None:
    """A whole response, {"error": message}."""
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
