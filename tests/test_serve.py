"""serve.py: the command line in a process, and what it says where it cannot serve."""

import http.client
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import serve

ROOT = Path(__file__).resolve().parent.parent


def test_without_the_extra_it_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as if it were not installed
    with pytest.raises(SystemExit, match=r"error: the page needs the extra serve .*pip install -e '\.\[serve\]'"):
        serve.main([])


def test_a_taken_port_shows_before_the_model_is_loaded() -> None:
    pytest.importorskip("uvicorn", reason="install the extra serve")
    from serving.server import listen

    with listen("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        with pytest.raises(SystemExit, match=f"error: cannot listen at 127.0.0.1, port {port}"):
            serve.main(["--port", port, "--base", "no such model"])


def test_an_open_address_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn", reason="install the extra serve")
    with pytest.raises(SystemExit, match="no such model"):
        serve.main(["--host", "0.0.0.0", "--port", "0", "--base", "no such model"])
    assert "there is no password" in capsys.readouterr().err


def ask(host: str, seed: int) -> http.client.HTTPResponse:
    """A long answer to be read as it comes."""
    connection = http.client.HTTPConnection(host, timeout=60)
    row = {"instruction": "What is gout?", "sides": ["base"], "temperature": 5, "max_new_tokens": 4000, "seed": seed}
    connection.request("POST", "/answer", json.dumps(row), {"content-type": "application/json"})
    return connection.getresponse()


def test_from_start_to_ctrl_c() -> None:
    """The address on standard output, questions taken, and an end with 130 before all of them are answered."""
    pytest.importorskip("uvicorn", reason="install the extra serve")
    command = [sys.executable, str(ROOT / "serve.py"), "--port", "0", "--stop", "zzz"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout and server.stderr
            url = server.stdout.readline().strip()
            host = url.removeprefix("http://").rstrip("/")
            assert host.startswith("127.0.0.1:")
            # One is answered, the others wait: work for longer than an end takes.
            streams = [ask(host, seed) for seed in range(5)]
            assert json.loads(streams[0].readline()) == {"event": "begin", "side": "base"}
            assert [json.loads(stream.readline()) for stream in streams[1:]] == [{"event": "wait"}] * 4
            server.send_signal(signal.SIGINT)
            assert streams[-1].read() == b""
            assert server.wait(timeout=30) == 130
            assert server.stdout.read() == ""
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()
