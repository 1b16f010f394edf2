"""A judge behind an OpenAI-compatible endpoint: `POST …/chat/completions`, within a deadline
whatever the endpoint does.

Every judgement has a thread of its own, at most `concurrent` at once. Its socket has a time limit,
and the caller keeps the clock: past the deadline the connection is shut and the judgement given up,
so neither a name server nor a reply in drips can hold a run.
"""

import email.utils
import http.client
import json
import math
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from whet.errors import RewardError
from whet.rewards.judge.verdict import Failure, Verdict, ruled

PATH = "/chat/completions"
MAX_REPLY = 1 << 20  # bytes
TOKENS = 8  # that the judge may say; `body` may allow more
ALTERNATIVES = 5  # tokens whose probabilities are asked for beside the one said
BACKOFF, LONGEST_PAUSE = 0.5, 15.0  # seconds before the first retry, doubled with each; and at most
GRACE = 0.25  # seconds past the deadline for a thread to say itself that it is over
RETRIED = frozenset({408, 425, 429, *range(500, 600)})
REFUSED = frozenset({*range(300, 400), 401, 402, 403, 404, 405, 407})
UNREACHABLE = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
OWN = (
    "model",
    "messages",
    "stream",
    "n",
    "logprobs",
    "top_logprobs",
)  # fields of the request that `body` leaves alone
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_DICE = random.SystemRandom()  # of its own: a retry must not move the run's random numbers


@cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


@dataclass(frozen=True, slots=True)
class Limits:
    concurrent: int
    seconds: float  # of one judgement, retries included
    retries: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where to ask, and the name of the environment variable that holds the key. The key is read
    when asking and never kept.

    Raises RewardError for an address that is not usable and a key that is not there; what was given
    for a key is not repeated.
    """

    url: str
    key_env: str = ""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
            )
        except ValueError:
            parts, usable = urlsplit(""), False
        if parts.username is not None or parts.password is not None:
            raise RewardError(
                "reward judge: url holds a name or password; put the key in the environment (key_env)"
            )
        plain = self.url.isascii() and self.url.isprintable() and " " not in self.url
        if not usable or not plain or parts.query or parts.fragment:
            raise RewardError(
                f"reward judge: url = {self.url!r} is no address such as http://localhost:8000/v1"
            )
        if not isinstance(self.key_env, str) or (
            self.key_env and not _VARIABLE.fullmatch(self.key_env)
        ):
            raise RewardError(
                "reward judge: key_env must be the NAME of an environment variable, never the key itself"
            )
        if self.key_env and not self.key:
            raise RewardError(
                "reward judge: key_env names no environment variable that is set; export it first"
            )
        if not self.key.isascii() or not self.key.isprintable():
            raise RewardError(
                "reward judge: the environment variable that key_env names holds no usable key"
            )

    @property
    def key(self) -> str:
        return os.environ.get(self.key_env, "").strip() if self.key_env else ""

    @property
    def path(self) -> str:
        path = urlsplit(self.url).path.rstrip("/")
        return path if path.endswith(PATH) else path + PATH

    def connection(self, seconds: float) -> http.client.HTTPConnection:
        """Follows no redirect and no proxy: what is sent goes where the recipe says."""
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=seconds, context=_certificates()
            )
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)


@dataclass(slots=True, eq=False)
class Call:
    """One judgement under way."""

    deadline: float
    over: threading.Event = field(
        default_factory=threading.Event
    )  # given up: nobody waits for it any more
    connection: http.client.HTTPConnection | None = None

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def abandon(self) -> None:
        self.over.set()
        held = self.connection.sock if self.connection is not None else None
        if held is not None:
            with suppress(OSError):
                socket.socket.shutdown(
                    held, socket.SHUT_RDWR
                )  # wakes the thread that reads from it


class Endpoint:
    """Asks a model for its verdicts over HTTP; where the endpoint gives no probabilities they have
    none.
    """

    def __init__(
        self, address: Address, model: str, limits: Limits, soft: bool, body: Mapping[str, Any]
    ) -> None:
        """`body`: further fields of the request. Raises RewardError for one that is ours to set."""
        if not isinstance(body, Mapping):
            raise RewardError(
                f"reward judge: body = {body!r:.60} is no table of the request's further fields"
            )
        taken = next((key for key in body if key in OWN), None)
        if taken is not None:
            raise RewardError(f"reward judge: body.{taken} is the judge's own to set; drop it")
        self.address, self.model, self.limits, self.body = address, model, limits, dict(body)
        self.asks_probabilities = soft
        self.identity = json.dumps(
            [address.url, model, soft, self.body], sort_keys=True, default=str
        )
        self._answered = False

    def judge(self, texts: Sequence[str]) -> Iterator[tuple[int, Verdict | Failure]]:
        """N prompts -> (position, verdict) of each, as they come. Raises RewardError where the
        endpoint refuses before it ever answered.
        """
        done: SimpleQueue[tuple[int, Verdict | Failure | None]] = SimpleQueue()
        active: dict[int, Call] = {}
        following = 0
        try:
            while following < len(texts) or active:
                while following < len(texts) and len(active) < self.limits.concurrent:
                    call = active[following] = Call(time.monotonic() + self.limits.seconds)
                    arguments = (following, texts[following], call, done)
                    threading.Thread(
                        target=self._run, args=arguments, name="whet-judge", daemon=True
                    ).start()
                    following += 1
                for i in [i for i, call in active.items() if call.left + GRACE <= 0]:
                    active.pop(i).abandon()
                    yield i, Failure("timeout", f"no verdict within {self.limits.seconds:g} s")
                with suppress(Empty):
                    i, said = done.get(
                        timeout=max(
                            0.0, min((c.left for c in active.values()), default=0.0) + GRACE
                        )
                    )
                    if active.pop(i, None) is not None:
                        yield i, self._checked(said)
        finally:
            for call in active.values():
                call.abandon()

    def _checked(self, said: Verdict | Failure | None) -> Verdict | Failure:
        if said is None:
            raise RuntimeError("a judge's thread ended without a word; its traceback stands above")
        if isinstance(said, Failure) and said.refused and not self._answered:
            raise RewardError(f"reward judge: {self.address.url} refuses: {said.why}")
        self._answered = self._answered or isinstance(said, Verdict)
        return said

    def _run(
        self,
        i: int,
        text: str,
        call: Call,
        done: "SimpleQueue[tuple[int, Verdict | Failure | None]]",
    ) -> None:
        said = None
        try:
            said = self._judgement(text, call)
        finally:
            done.put((i, said))

    def _judgement(self, text: str, call: Call) -> Verdict | Failure:
        """Asks until there is a verdict, a refusal, or no time or retry left; then the last
        failure.
        """
        failure = Failure("timeout", f"no verdict within {self.limits.seconds:g} s")
        wait = 0.0
        for attempt in range(self.limits.retries + 1):
            if attempt:
                pause = max(
                    wait,
                    min(LONGEST_PAUSE, BACKOFF * 2 ** min(attempt - 1, 20))
                    * _DICE.uniform(0.5, 1.0),
                )
                if pause >= call.left or call.over.wait(pause):
                    break
            last = attempt == self.limits.retries
            said, wait = self._once(text, call, call.left if last else call.left / 2)
            if isinstance(said, Verdict) or wait is None:
                return said
            failure = said
        return failure

    def _once(
        self, text: str, call: Call, seconds: float
    ) -> tuple[Verdict | Failure, float | None]:
        """A verdict or a failure; and how long to wait at least before asking again, None where
        that is no use.
        """
        try:
            status, told, payload = self._post(self._request(text), call, max(seconds, 0.01))
            if (
                status in (400, 422)
                and self.asks_probabilities
                and b"logprob" in payload.lower()
                and not self._answered
            ):
                self.asks_probabilities = (
                    False  # before any verdict only: later an echo of an answer could say the word
                )
                status, told, payload = self._post(self._request(text), call, max(seconds, 0.01))
        except TimeoutError:
            return Failure("timeout", f"no reply within {seconds:.3g} s"), 0.0
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
        ) as error:  # ValueError: a socket shut while it was read
            status = "timeout" if call.left <= 0 else "error"
            return Failure(
                status,
                self._safe(f"{type(error).__name__}: {error}"),
                isinstance(error, UNREACHABLE),
            ), 0.0
        if status == 200:
            return read(payload), None
        failure = Failure(
            "error",
            self._safe(f"HTTP {status} {payload[:2000].decode(errors='replace')}"),
            status in REFUSED,
        )
        return failure, told if status in RETRIED else None

    def _request(self, text: str) -> bytes:
        body: dict[str, Any] = {"temperature": 0, **self.body}
        if "max_completion_tokens" not in body:
            body.setdefault("max_tokens", TOKENS)
        body |= {"model": self.model, "messages": [{"role": "user", "content": text}]}
        if self.asks_probabilities:
            body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        return json.dumps(body, default=str).encode()

    def _post(self, body: bytes, call: Call, seconds: float) -> tuple[int, float, bytes]:
        """Status, seconds that the endpoint wants us to wait, and the reply. Raises OSError,
        HTTPException or ValueError.
        """
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Connection": "close",
        }
        if key := self.address.key:
            headers["Authorization"] = f"Bearer {key}"
        connection = call.connection = self.address.connection(seconds)
        try:
            connection.connect()
            if call.over.is_set():
                raise TimeoutError
            connection.request("POST", self.address.path, body, headers)
            answer = connection.getresponse()
            payload = answer.read(MAX_REPLY + 1)
            if len(payload) > MAX_REPLY:
                raise ValueError(f"a reply of more than {MAX_REPLY} bytes")
            return answer.status, retry_after(answer.getheader("Retry-After")), payload
        finally:
            call.connection = None
            connection.close()

    def _safe(self, text: str) -> str:
        """In one line, without the key."""
        key = self.address.key
        return " ".join((text.replace(key, "…") if key else text).split())[:200]


def retry_after(said: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it does not."""
    with suppress(ValueError, TypeError, OverflowError):
        seconds = float(said or 0)
        return max(0.0, seconds) if math.isfinite(seconds) else 0.0
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(said or "").timestamp() - time.time())
    return 0.0


def read(payload: bytes) -> Verdict | Failure:
    """The verdict in a reply, thinking left out. Its probability is that of all spellings of the
    label where it was said last.

    >>> said = '{"token": "1", "logprob": -0.5, "top_logprobs": [{"token": " 1", "logprob": -2.0}]}'
    >>> verdict = read(b'{"choices": [{"message": {"content": "1"}, "logprobs": {"content": [%s]}}]}' % said.encode())
    >>> verdict.said, round(verdict.probability, 4)
    (1, 0.7419)
    """
    try:
        choice = json.loads(payload)["choices"][0]
        content = choice["message"]["content"]
        entries = (choice.get("logprobs") or {}).get("content") or []
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Failure("error", "the reply is no chat completion")
    said = content.rpartition("</think>")[2].strip() if isinstance(content, str) else ""
    if said not in ("0", "1"):
        return Failure("error", f"the judge said {said[-40:]!r}, neither 0 nor 1")
    return ruled(int(said), probability(entries, said))


def probability(entries: Any, said: str) -> float | None:
    """P(said) at the last token that says it, from its log-probability and its alternatives'; None
    where they are not given.
    """
    try:
        entry = next(e for e in reversed(entries) if e["token"].strip() == said)
        given = {e["token"]: e["logprob"] for e in [*(entry.get("top_logprobs") or []), entry]}
        logps = [float(logp) for token, logp in given.items() if token.strip() == said]
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration):
        return None
    if not all(logp <= 1e-4 for logp in logps):
        return None
    return min(1.0, math.fsum(map(math.exp, logps)))
