"""The runners of the guest: bubblewrap on this machine, a Docker container, a SandboxFusion endpoint.

Only inputs go to a runner, only outputs come from it.
"""

import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from whet.errors import RewardError
from whet.sandbox.bubblewrap import Bubblewrap
from whet.sandbox.exchange import (
    CURE,
    GRACE,
    MAX_REPLY,
    PROCESSES,
    GuestRun,
    encode_order,
    memory_file,
    parse_output,
    read_output,
    source,
)

IMAGE = "python:3.12-slim"
DOCKER_START = 20.0  # seconds a container may take beyond the order's own
PATIENCE = 30.0  # seconds for a service to answer beyond what it was asked to run


class Runner(Protocol):
    """Runs an order of the guest, isolated."""

    def run(self, order: Mapping[str, Any]) -> GuestRun: ...


def runner(sandbox: str, memory_mb: int) -> Runner:
    """The runner of a name: "bubblewrap", "docker", "docker:IMAGE" or the URL of an endpoint.

    Raises RewardError for any other name, and where the runner is not installed.

    >>> runner("chroot", 512)
    Traceback (most recent call last):
    whet.errors.RewardError: code sandbox: 'chroot' is none of bubblewrap, docker, docker:IMAGE and http(s)://…
    """
    if sandbox == "bubblewrap":
        return Bubblewrap(memory_mb)
    name, _, image = sandbox.partition(":")
    if name == "docker":
        return Docker(image or IMAGE, memory_mb)
    if name in ("http", "https") and urlsplit(sandbox).hostname:
        return SandboxFusion(sandbox, memory_mb)
    raise RewardError(
        f"code sandbox: {sandbox!r} is none of bubblewrap, docker, docker:IMAGE and http(s)://…"
    )


@dataclass(frozen=True, slots=True)
class Docker:
    """`docker run`: one new container an order, without network, capabilities or a writable disk.

    It has nobody's uid and limits on memory and processes.
    """

    image: str
    memory_mb: int

    def __post_init__(self) -> None:
        if self.image.startswith("-") or not self.image.isprintable() or " " in self.image:
            raise RewardError(f"code sandbox: {self.image!r} is no name of a Docker image")
        if shutil.which("docker") is None:
            raise RewardError(f"code sandbox: docker is not here; {CURE}")

    def command(self, name: str) -> list[str]:
        memory = f"{self.memory_mb + 128}m"
        options = (
            f"--rm --interactive --name {name} --network none --read-only --pull never "
            "--tmpfs /tmp:rw,nosuid,nodev,size=32m --workdir /tmp --cap-drop ALL "
            "--security-opt no-new-privileges --user 65534:65534 --ipc none --log-driver none "
            f"--memory {memory} --memory-swap {memory} --pids-limit {PROCESSES} --cpus 1 "
            "--env PYTHONHASHSEED=0 --entrypoint python3"
        )
        return ["docker", "run", *options.split(), self.image, "-sSB", "-c", source()]

    def run(self, order: Mapping[str, Any]) -> GuestRun:
        start = time.monotonic()
        name = f"whet-{os.getpid()}-{time.monotonic_ns()}"
        env = {key: os.environ[key] for key in ("PATH", "HOME", "DOCKER_HOST") if key in os.environ}
        stdin = memory_file(encode_order(order, self.memory_mb))
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                self.command(name), stdin=stdin, stdout=pipe, stderr=pipe, env=env
            )
        except OSError as error:
            return GuestRun([], False, "died", f"docker does not start: {error}")
        finally:
            os.close(stdin)
        with process:
            raw, errors, ended = read_output(process, start + order["total"] + GRACE + DOCKER_START)
            if ended != "died":
                with suppress(subprocess.TimeoutExpired):  # the guest ends by itself at its total
                    subprocess.run(
                        ["docker", "rm", "--force", name],
                        capture_output=True,
                        env=env,
                        timeout=PATIENCE,
                    )
                process.kill()
        return parse_output(raw, ended, errors)


@dataclass(frozen=True, slots=True)
class SandboxFusion:
    """An endpoint's `POST /run_code` (github.com/bytedance/SandboxFusion) with the guest as the code
    and the order as its standard input.

    Other processes of the service share the guest's uid, so the guest kills only the session of its
    program.
    """

    url: str
    memory_mb: int

    def run(self, order: Mapping[str, Any]) -> GuestRun:
        body = {
            "code": source(),
            "language": "python",
            "stdin": encode_order(order, self.memory_mb, alone=False).decode(),
            "run_timeout": order["total"] + GRACE,
            "compile_timeout": GRACE,
        }
        try:
            reply = self.post(json.dumps(body).encode(), order["total"] + PATIENCE)
            result = reply["run_result"]
            raw, status = result["stdout"].encode(), result["status"]
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return GuestRun(
                [], False, "died", f"{self.url} does not answer as SandboxFusion does ({reason})"
            )
        ended = "time" if status == "TimeLimitExceeded" else "died"
        return parse_output(raw, ended, str(reply.get("message", ""))[:200])

    def post(self, body: bytes, seconds: float) -> Any:
        """The endpoint's JSON answer.

        Raises ValueError for an answer that is no JSON or too long, OSError past `seconds`.
        """
        parts = urlsplit(self.url)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        path = parts.path if parts.path.rstrip("/") else "/run_code"
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read(4 * MAX_REPLY)
            if answer.status != 200:
                raise ValueError(f"HTTP {answer.status}")
            return json.loads(text)
        finally:
            with suppress(OSError):
                connection.close()
