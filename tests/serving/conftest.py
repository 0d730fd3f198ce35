"""Models to serve, a running server to talk to, and a gate that lets a model take its steps one by one."""

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Semaphore, Thread
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama, train_tokenizer

from data import PromptTemplate
from llama.tokenizer import Tokenizer
from lora import LoraConfig, add_lora
from recipe import Inference, load_for_inference

JSON = {"content-type": "application/json"}


def adapt(inference: Inference, spread: float) -> Inference:
    """The model with a random adapter that changes its answers."""
    generator = torch.Generator().manual_seed(1)
    add_lora(inference.model, LoraConfig(r=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj")), generator=generator)
    with torch.no_grad():
        for name, parameter in inference.model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=spread, generator=generator)
    inference.model.eval()
    return inference


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Inference:
    """A random model with an adapter; most of its tokens are single bytes."""
    tokenizer = Tokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    model = tiny_llama(0, vocab_size=tokenizer.vocab_size, max_seq_len=256)
    return adapt(Inference(model, tokenizer, PromptTemplate.named("alpaca_short"), "a tiny model"), 1.0)


@pytest.fixture(scope="session")
def miniature() -> Inference:
    """The bundled model with a random adapter; its answers are words."""
    return adapt(load_for_inference(progress=False), 0.05)


@dataclass
class Gate:
    """Holds every forward pass of a model until it is let through.

    Attributes:
        passed: how many were.
        fault: what the next one raises.
    """

    passed: int = 0
    fault: Exception | None = None
    _tickets: Semaphore = field(default_factory=lambda: Semaphore(0))

    def open(self, steps: int = 10_000) -> None:
        self._tickets.release(steps)

    def __call__(self, *_: Any) -> None:
        assert self._tickets.acquire(timeout=20)
        self.passed += 1
        if self.fault:
            raise self.fault


@pytest.fixture
def gate(miniature: Inference) -> Iterator[Gate]:
    gate = Gate()
    hook = miniature.model.norm.register_forward_pre_hook(gate)
    yield gate
    gate.open()
    hook.remove()


class Stream:
    """The events of an answer, as they come over the wire."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self.response = connection.getresponse()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, iter(self.response.readline, b""))

    def leave(self) -> None:
        """Close the connection before the end."""
        self.response.close()
        self._connection.close()


@dataclass
class Client:
    """Talks to a running server. `server` and `asking` are its insides, to look at."""

    port: int
    server: Any

    @property
    def asking(self) -> Any:
        return self.server.asking

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Status and text of the response. A body that is an iterator is sent in chunks, without its length."""
        connection = self.connect()
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        found = response.status, response.read().decode()
        connection.close()
        return found

    def ask(self, sides: tuple[str, ...] = ("base",), **settings: Any) -> Stream:
        row = {"instruction": "What is gout?", "sides": sides, "max_new_tokens": 8} | settings
        connection = self.connect()
        connection.request("POST", "/answer", json.dumps(row), JSON)
        return Stream(connection)


@contextmanager
def servers() -> Iterator[Callable[..., Client]]:
    """A function that starts a server for a model on a free port; all of them end with the context."""
    pytest.importorskip("uvicorn", reason="install the extra serve")
    from serving.server import listen, make_server

    running = []

    def start(inference: Inference, stop_strings: tuple[str, ...] = ()) -> Client:
        listener = listen("127.0.0.1", 0)
        server = make_server(inference, listener, stop_strings)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        return Client(listener.getsockname()[1], server)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive(), "the server does not end"


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """serve(model): start a server that ends with the test."""
    with servers() as start:
        yield start


@pytest.fixture(scope="module")
def client(babbler: Inference) -> Iterator[Client]:
    """One server for the tests that need nothing special of it."""
    with servers() as start:
        yield start(babbler)
