"""The protocol over real sockets: what is let in, how answers stream, stop and wait, what a failure leaves behind."""

import json
import re
from typing import Any

import pytest
from browser import soon

from lora import adapters_disabled, lora_layers
from recipe import Inference, load_for_inference
from serving.answer import answer_events
from serving.question import Question

pytest.importorskip("starlette", reason="install the extra serve")

from serving.app import MAX_BODY, MAX_WAITING

JSON = {"content-type": "application/json"}
PLAIN = {"instruction": "What is gout?", "sides": ["base"], "max_new_tokens": 4}


def untimed(events: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in event.items() if name != "seconds"} for event in events]


# --- What is served ---


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
)
def test_the_page_is_whole_and_asks_nobody_else(client: Any, path: str, kind: str) -> None:
    connection = client.connect()
    connection.request("GET", path)
    response = connection.getresponse()
    text = response.read().decode()
    assert response.status == 200
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    assert "default-src 'none'; script-src 'self'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in response.headers
    assert not re.search(r"https?:|//\w+\.|@import|<script>|style=| on\w+=", text)
    connection.close()


def test_the_page_learns_about_the_model(client: Any) -> None:
    about = json.loads(client.call("GET", "/model")[1])
    assert about["description"] == "a tiny model"
    assert about["adapter"] is True
    assert about["defaults"].keys() - {"input"} == about["ranges"].keys()


def test_a_model_without_adapter_says_so(serve: Any) -> None:
    client = serve(load_for_inference(progress=False))
    assert json.loads(client.call("GET", "/model")[1])["adapter"] is False
    assert client.call("POST", "/answer", json.dumps(PLAIN | {"sides": ["adapter"]}), JSON)[0] == 400
    assert [event["event"] for event in client.ask(max_new_tokens=1)][-1] == "end"


# --- What is refused ---


@pytest.mark.parametrize(
    ("status", "message", "request_"),
    [
        (404, "Not Found", {"method": "GET", "path": "/../pyproject.toml"}),
        (404, "Not Found", {"method": "GET", "path": "/%2e%2e/app.py"}),
        (404, "Not Found", {"method": "GET", "path": "/page.html"}),
        (405, "Method Not Allowed", {"method": "GET"}),
        (405, "Method Not Allowed", {"path": "/model"}),
        (415, "content-type missing: send application/json", {"headers": {}}),
        (415, "text/plain", {"headers": {"content-type": "text/plain"}}),
        (415, "x-www-form-urlencoded", {"headers": {"content-type": "application/x-www-form-urlencoded"}}),
        (413, "more than 65,536 bytes", {"body": json.dumps(PLAIN | {"input": "x" * MAX_BODY})}),
        (413, "more than 65,536 bytes", {"body": iter([b" " * 1000] * 70)}),  # in chunks, its length not announced
        (400, "not valid JSON", {"body": "{"}),
        (400, "not valid JSON", {"body": b"\xff\xfe\xfd"}),
        (400, "not valid JSON", {"body": "[" * 60_000}),
        (400, "must be a JSON object", {"body": "[]"}),
        (400, "temperature = -1 must be from 0 to 5", {"body": json.dumps(PLAIN | {"temperature": -1})}),
        (400, "temperature = inf", {"body": json.dumps(PLAIN)[:-1] + ', "temperature": 1e999}'}),
        (400, "seed", {"body": json.dumps(PLAIN | {"seed": 2**64})}),
        (400, "temperature = 1e-09 must be 0", {"body": json.dumps(PLAIN | {"temperature": 1e-9})}),
        (400, "fills the model's window of 256", {"body": json.dumps(PLAIN | {"input": "x" * 300})}),
        (400, "lone surrogate", {"body": '{"instruction": "\\ud800", "sides": ["base"]}'}),
        (403, "not rebound.example", {"headers": JSON | {"host": "rebound.example"}}),
        (403, "may not ask here", {"headers": JSON | {"origin": "http://elsewhere.example"}}),
    ],
)
def test_refused_in_one_line_of_json(client: Any, status: int, message: str, request_: dict[str, Any]) -> None:
    found, text = client.call(
        **({"method": "POST", "path": "/answer", "body": json.dumps(PLAIN), "headers": JSON} | request_)
    )
    assert found == status
    assert message in json.loads(text)["error"]
    assert "\n" not in json.loads(text)["error"]
    assert not client.asking.turns


def test_the_page_may_ask_from_its_own_address(client: Any) -> None:
    headers = JSON | {"origin": f"http://localhost:{client.port}", "host": f"localhost:{client.port}"}
    assert client.call("POST", "/answer", json.dumps(PLAIN), headers)[0] == 200


# --- How answers stream ---


def test_events_arrive_as_they_happen_and_are_those_of_the_library(serve: Any, miniature: Inference, gate: Any) -> None:
    client = serve(miniature, ("gout",))
    stream = client.ask(("base", "adapter"))
    events = iter(stream)
    found = [next(events)]
    assert stream.response.headers["content-type"] == "application/x-ndjson"
    gate.open(1)
    found.append(next(events))
    assert [event["event"] for event in found] == ["begin", "token"]
    assert client.call("GET", "/model")[0] == 200  # while the model computes, the server goes on
    assert gate.passed == 1
    gate.open()
    found += events
    question = Question("What is gout?", ("base", "adapter"), max_new_tokens=8)
    assert untimed(found) == untimed(answer_events(miniature, question, ("gout",)))


def test_base_is_the_model_without_its_adapter(serve: Any, miniature: Inference) -> None:
    client = serve(miniature)
    with adapters_disabled(miniature.model):
        bare = untimed(answer_events(miniature, Question("What is gout?", ("adapter",), max_new_tokens=8)))
    assert untimed(client.ask(("base",)))[1:] == bare[1:]
    assert untimed(client.ask(("adapter",)))[1:] != bare[1:]


def test_a_reader_who_leaves_ends_the_answer_within_a_token(serve: Any, miniature: Inference, gate: Any) -> None:
    client = serve(miniature)
    stream = client.ask(("base", "adapter"), max_new_tokens=200)
    gate.open(2)
    assert [event["event"] for event, _ in zip(stream, range(2), strict=False)] == ["begin", "token"]
    (turn,) = client.asking.turns
    stream.leave()
    soon(turn.stopped.is_set)
    gate.open()
    soon(lambda: not client.asking.turns)
    assert gate.passed <= 3  # the pass that was under way is the last
    assert not client.asking.lock.locked()
    assert all(layer.enabled for _, layer in lora_layers(miniature.model))


def test_one_answer_at_a_time(serve: Any, miniature: Inference, gate: Any) -> None:
    """Others wait their turn, in order; too many are turned away; one that leaves makes room."""
    client = serve(miniature)
    first = client.ask()
    assert next(iter(first))["event"] == "begin"
    waiting = [client.ask() for _ in range(MAX_WAITING)]
    assert [next(iter(stream)) for stream in waiting] == [{"event": "wait"}] * MAX_WAITING
    surplus = client.ask()
    assert surplus.response.status == 429
    assert "4 questions are waiting already" in json.loads(surplus.response.read())["error"]
    surplus.leave()
    waiting.pop().leave()
    soon(lambda: len(client.asking.turns) == MAX_WAITING)
    assert client.ask().response.status == 200
    assert gate.passed == 0
    gate.open()
    answers = [untimed(stream) for stream in (first, *waiting)]
    assert [events[-1]["event"] for events in answers] == ["end"] * MAX_WAITING
    assert answers[1] == answers[2] == answers[3]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (ValueError("the logits are not finite: load the model in float32"), "the logits are not finite"),
        (RuntimeError("a bug"), "the server's terminal says why"),
    ],
)
def test_a_failure_is_told_and_leaves_nothing_behind(
    serve: Any, miniature: Inference, gate: Any, fault: Exception, message: str
) -> None:
    client = serve(miniature)
    gate.open()
    gate.fault = fault
    *_, last = client.ask(("base",))
    assert last["event"] == "error"
    assert message in last["message"]
    gate.fault = None
    assert untimed(client.ask(("base", "adapter")))[-1]["event"] == "end"
    assert all(layer.enabled for _, layer in lora_layers(miniature.model))
    soon(lambda: not client.asking.turns)


def test_the_servers_end_ends_the_answers(serve: Any, miniature: Inference, gate: Any) -> None:
    """Those under way and those that wait; a reader sees its stream close without an "end"."""
    client = serve(miniature)
    streams = [client.ask(max_new_tokens=200), client.ask()]
    events = [next(iter(stream))["event"] for stream in streams]
    assert events == ["begin", "wait"]
    turns = list(client.asking.turns)
    client.server.should_exit = True
    soon(lambda: all(turn.stopped.is_set() for turn in turns))
    gate.open()
    assert [[event["event"] for event in stream] for stream in streams] == [[], []]
    assert gate.passed <= 1
