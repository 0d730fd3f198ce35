"""The server: an address to listen at, loopback unless told otherwise, and an orderly end."""

import ipaddress
import socket
from collections.abc import Sequence

import uvicorn

from recipe import Inference
from serving.app import Asking, build_app
from serving.guard import Guard

MAX_CONNECTIONS = 64
END_WITHIN = 2
"""Seconds that a reader gets to take what was sent when the server ends."""


class PageServer(uvicorn.Server):
    """uvicorn's server, whose answers end when it does."""

    def __init__(self, config: uvicorn.Config, asking: Asking) -> None:
        super().__init__(config)
        self.asking = asking

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the answers, then everything else."""
        self.asking.stop_all()
        await super().shutdown(sockets)


def make_server(inference: Inference, listener: socket.socket, stop_strings: Sequence[str] = ()) -> PageServer:
    """The server for this model; `run(sockets=[listener])` serves until Ctrl-C.

    Args:
        listener: see `listen`; decides which values of the Host header are let in.
        stop_strings: texts that end an answer.
    """
    asking = Asking(inference, stop_strings)
    app = Guard(build_app(inference, asking), allowed_hosts(listener))
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=END_WITHIN,
    )
    return PageServer(config, asking)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the first address the name has; port 0 takes a free one.

    Raises:
        ValueError: there is no such address here, or the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65,536
        raise ValueError(f"port {port} must be from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ValueError(f"cannot listen at {host}, port {port}: {error}; try another --port, or --host") from error


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def page_url(listener: socket.socket) -> str:
    """What to type into the browser."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}/"


def allowed_hosts(listener: socket.socket) -> set[str] | None:
    """The values of the Host header that mean this server; None, all of them, where other machines may call it."""
    if not is_loopback(listener):
        return None
    address, port = listener.getsockname()[:2]
    names = {"localhost", "127.0.0.1", "[::1]", f"[{address}]" if ":" in address else address}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())
