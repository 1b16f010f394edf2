"""The same guest in Docker and behind an endpoint: a stand-in executable and a loopback server,
well-behaved and not.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from whet.errors import RewardError
from whet.rewards.code.verifier import CodeReward
from whet.rewards.registry import Reward
from whet.sandbox import exchange, runners
from whet.sandbox.runners import Docker, SandboxFusion, runner
from whet.types import Problem

ORDER: dict[str, Any] = {
    "mode": "stdio",
    "program": "print(int(input()) * 2)",
    "inputs": ["21"],
    "seconds": 2.0,
    "total": 2.0,
    "bytes": 1 << 16,
    "stop": False,
}
ANSWER = ['{"output": "42\\n", "ended": "exit 0"}']

DOCKER = """#!{python} -B
import os, subprocess, sys
log = open({log!r}, "a")
print(*sys.argv[1:-1], file=log, flush=True)
if sys.argv[1] == "run":
    program = sys.argv[-1]
    subprocess.run([sys.executable, "-sSB", "-c", program.replace("os.kill(-1, 9) if self.alone else ", "")])
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that notes its arguments and runs the guest as it is. Returns the notes' path."""
    fake, log = tmp_path / "docker", tmp_path / "log"
    fake.write_text(DOCKER.format(python=sys.executable, log=str(log)))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


def test_docker_gets_one_closed_container_an_order(docker: Path, monkeypatch: pytest.MonkeyPatch):
    assert runner("docker:py:3", 256).run(ORDER).replies == ANSWER
    notes = docker.read_text()
    for option in (
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--user 65534:65534",
        "--memory 384m",
        "--memory-swap 384m",
        "--pids-limit 64",
        "--pull never",
        "--rm",
        "py:3 -sSB",
    ):
        assert option in notes, option
    assert "--privileged" not in notes and "--volume" not in notes
    monkeypatch.setattr(runners, "DOCKER_START", 0.5 - exchange.GRACE)
    hung = runner("docker", 256).run(
        {
            **ORDER,
            "mode": "record",
            "setup": "while True: pass",
            "test": "",
            "entry": "f",
            "total": 0.5,
        }
    )
    assert hung.ended == "time" and "rm --force" in docker.read_text()


def test_docker_that_is_not_here_or_misnamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RewardError, match="no name of a Docker image"):
        Docker("--privileged", 256)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RewardError, match="docker is not here"):
        runner("docker", 256)


class Fusion(BaseHTTPRequestHandler):
    """A SandboxFusion that runs the code it is sent, as it is, or misbehaves as the path says."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["language"] == "python"
        reply: Any = {"status": "Success", "message": "", "run_result": None}
        if self.path == "/run_code":
            done = subprocess.run(
                [sys.executable, "-sSB", "-c", body["code"]],
                input=body["stdin"],
                capture_output=True,
                text=True,
            )
            reply["run_result"] = {
                "status": "Finished",
                "stdout": done.stdout,
                "return_code": done.returncode,
            }
        elif self.path == "/list":
            reply = [1]
        elif self.path == "/slow":
            time.sleep(2)
        with suppress(BrokenPipeError):  # whoever asked a slow one has left
            self.send_response(500 if self.path == "/broken" else 200)
            self.end_headers()
            self.wfile.write(b"{" if self.path == "/text" else json.dumps(reply).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fusion)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_endpoint_runs_the_same_guest(endpoint: str):
    assert runner(endpoint, 4096).run(ORDER).replies == ANSWER
    reward: Reward = CodeReward(sandbox=f"{endpoint}/run_code", memory_mb=4096, processes=1)
    tests = {"kind": "call", "entry": "f", "tests": [{"args": [2], "expected": 4}]}
    texts = [f"```python\ndef f(x): return x {op}\n```" for op in ("* 2", "* 3")]
    assert [
        s.value for s in reward.score([Problem("p", (), None, "", {"tests": tests})] * 2, texts)
    ] == [1.0, 0.0]


@pytest.mark.parametrize("path", ["/broken", "/text", "/list", "/none", "/slow"])
def test_an_endpoint_that_misbehaves_is_an_error(
    endpoint: str, path: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runners, "PATIENCE", -1.6)
    ran = SandboxFusion(endpoint + path, 512).run({**ORDER, "total": 2.0})
    assert (
        not ran.began
        and "does not answer as SandboxFusion does" in ran.message
        and "\n" not in ran.message
    )


def test_an_endpoint_that_is_not_there_is_refused_at_loading():
    with pytest.raises(
        RewardError, match=r"^code sandbox: http://127.0.0.1:9 cannot isolate here .*start it"
    ) as error:
        CodeReward(sandbox="http://127.0.0.1:9", processes=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["chroot", "http://", "ftp://x", ""])
def test_an_unknown_sandbox_is_refused(name: str):
    with pytest.raises(RewardError, match="none of bubblewrap, docker"):
        CodeReward(sandbox=name, processes=1)
