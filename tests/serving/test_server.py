"""Addresses: which are this machine's own, what they are called, and what happens where one cannot listen."""

import pytest

pytest.importorskip("uvicorn", reason="install the extra serve")

from serving.server import allowed_hosts, is_loopback, listen, page_url


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback(host: str) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        assert is_loopback(listener)
        assert page_url(listener) == f"http://127.0.0.1:{port}/"
        assert allowed_hosts(listener) == {f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"}


def test_loopback_of_version_6() -> None:
    try:
        listener = listen("::1", 0)
    except ValueError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener:
        port = listener.getsockname()[1]
        assert page_url(listener) == f"http://[::1]:{port}/"
        assert allowed_hosts(listener) == {f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"}


def test_any_name_leads_to_an_open_address() -> None:
    with listen("0.0.0.0", 0) as listener:
        assert not is_loopback(listener)
        assert allowed_hosts(listener) is None


def test_where_one_cannot_listen() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1, port {port}: .*in use.*try another --port"):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"cannot listen at 192\.0\.2\.1"):  # an address of nobody (RFC 5737)
        listen("192.0.2.1", 0)
    with pytest.raises(ValueError, match="port 70000 must be from 0"):
        listen("127.0.0.1", 70000)
