"""Which Host and Origin headers are let in."""

import pytest

from serving.guard import refusal

HOSTS = {"localhost:8000", "127.0.0.1:8000", "[::1]:8000"}


@pytest.mark.parametrize("host", [*sorted(HOSTS), "LOCALHOST:8000"])
def test_the_page_itself_is_let_in(host: str) -> None:
    assert refusal({b"host": host.encode()}, HOSTS) is None
    assert refusal({b"host": host.encode(), b"origin": f"http://{host}".encode()}, HOSTS) is None


@pytest.mark.parametrize(
    "host", ["", "localhost", "localhost:8001", "rebound.example:8000", "localhost:8000.example", "127.0.0.1:8000@x"]
)
def test_another_name_is_turned_away(host: str) -> None:
    reason = refusal({b"host": host.encode()} if host else {}, HOSTS)
    assert reason == f"this server is localhost:8000, not {host or 'nameless'}"


@pytest.mark.parametrize(
    "origin", ["null", "http://elsewhere.example", "http://localhost:8001", "http://127.0.0.1:8000"]
)
@pytest.mark.parametrize("hosts", [HOSTS, None])
def test_another_page_is_turned_away(origin: str, hosts: set[str] | None) -> None:
    assert (
        refusal({b"host": b"localhost:8000", b"origin": origin.encode()}, hosts)
        == f"the page at {origin} may not ask here"
    )


def test_without_a_list_any_name_is_let_in() -> None:
    assert refusal({b"host": b"notebook.local:8000", b"origin": b"http://notebook.local:8000"}, None) is None
