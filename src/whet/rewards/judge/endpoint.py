"""A judge behind an OpenAI-compatible endpoint: `POST …/chat/completions`, within a deadline
whatever the endpoint does.

The requests of a call share one event loop, in a thread of its own. A judgement that reaches its
deadline is cancelled, so neither a name server nor a reply in drips can hold a run.
"""

import asyncio
import email.utils
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
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import httpx2

from whet.errors import RewardError
from whet.rewards.judge.verdict import Failure, Verdict, confident

PATH = "/chat/completions"
MAX_REPLY = 1 << 20  # bytes
TOKENS = 8  # of the judge's reply; `body` may allow more
ALTERNATIVES = 5  # tokens whose probabilities are asked for beside the one sampled
BACKOFF, LONGEST_PAUSE = 0.5, 15.0  # seconds before the first retry, doubled with each; and at most
RETRIED = frozenset({408, 425, 429, *range(500, 600)})
REFUSED = frozenset({*range(300, 400), 401, 402, 403, 404, 405, 407})
UNREACHABLE = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
# fields of the request that `body` leaves alone
OWN = ("model", "messages", "stream", "n", "logprobs", "top_logprobs")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_DICE = random.SystemRandom()  # of its own: a retry must not move the run's random numbers

Replies = SimpleQueue[tuple[int, Verdict | Failure] | None]


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
    """Where to ask, and the name of the environment variable that holds the key.

    The key is read when asking and never kept. Raises RewardError for an address that is not usable
    and for a key that is not there; a message never repeats what may be a key.
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
        plain = self.url.isascii() and self.url.isprintable() and " " not in self.url
        fault = ""
        if parts.username is not None or parts.password is not None:
            fault = "url holds a name or password; put the key in the environment (key_env)"
        elif not usable or not plain or parts.query or parts.fragment:
            fault = f"url = {self.url!r} is no address such as http://localhost:8000/v1"
        elif self.key_env and not _VARIABLE.fullmatch(self.key_env):
            fault = "key_env must be the NAME of an environment variable, never the key itself"
        elif self.key_env and not self.key:
            fault = "key_env names no environment variable that is set; export it first"
        elif not self.key.isascii() or not self.key.isprintable():
            fault = "the environment variable that key_env names holds no usable key"
        if fault:
            raise RewardError(f"reward judge: {fault}")

    @property
    def key(self) -> str:
        return os.environ.get(self.key_env, "").strip() if self.key_env else ""

    @property
    def completions(self) -> str:
        """The URL that is asked."""
        url = self.url.rstrip("/")
        return url if url.endswith(PATH) else url + PATH


class Endpoint:
    """Asks a model for its verdicts over HTTP; where the endpoint gives no probabilities they have
    none.
    """

    def __init__(
        self, address: Address, model: str, limits: Limits, soft: bool, body: Mapping[str, Any]
    ) -> None:
        """`body`: further fields of the request. Raises RewardError for one that is ours to set."""
        taken = next((key for key in body if key in OWN), None)
        if taken is not None:
            raise RewardError(f"reward judge: body.{taken} is the judge's own to set; drop it")
        self.address, self.model, self.limits, self.body = address, model, limits, dict(body)
        self.asks_probabilities = soft
        parts = [address.url, model, soft, self.body]
        self.identity = json.dumps(parts, sort_keys=True, default=str)
        self._answered = False

    def judge(self, texts: Sequence[str]) -> Iterator[tuple[int, Verdict | Failure]]:
        """N prompts -> (position, verdict or failure) of each, as they come. Raises RewardError
        where the endpoint refuses before it ever answered.
        """
        if not texts:
            return
        replies: Replies = SimpleQueue()
        loop = asyncio.new_event_loop()
        judgements = loop.create_task(self._judge_all(texts, replies))

        def work() -> None:
            try:
                with suppress(asyncio.CancelledError):
                    loop.run_until_complete(judgements)
            finally:
                replies.put(None)
                loop.close()

        threading.Thread(target=work, name="whet-judge", daemon=True).start()
        try:
            for _ in texts:
                reply = replies.get()
                if reply is None:
                    raise RuntimeError("a judge's thread ended early; its traceback stands above")
                yield reply[0], self._checked(reply[1])
        finally:
            with suppress(RuntimeError):  # the loop is closed: all is done
                loop.call_soon_threadsafe(judgements.cancel)

    def _checked(self, reply: Verdict | Failure) -> Verdict | Failure:
        if isinstance(reply, Failure) and reply.refused and not self._answered:
            raise RewardError(f"reward judge: {self.address.url} refuses: {reply.why}")
        self._answered = self._answered or isinstance(reply, Verdict)
        return reply

    async def _judge_all(self, texts: Sequence[str], replies: Replies) -> None:
        places = asyncio.Semaphore(self.limits.concurrent)

        async def judge(i: int, text: str) -> None:
            async with places:
                try:
                    async with asyncio.timeout(self.limits.seconds) as timer:
                        reply = await self._judgement(text, timer.when() or 0.0)
                except TimeoutError:
                    reply = self._late()
            replies.put((i, reply))

        async with asyncio.TaskGroup() as tasks:
            for i, text in enumerate(texts):
                tasks.create_task(judge(i, text))

    def _late(self) -> Failure:
        return Failure("timeout", f"no verdict within {self.limits.seconds:g} s")

    async def _judgement(self, text: str, deadline: float) -> Verdict | Failure:
        """Asks until there is a verdict, a refusal, or no time or retry left; then the last
        failure.
        """
        clock = asyncio.get_running_loop().time
        reply: Verdict | Failure = self._late()
        wait: float | None = 0.0
        for attempt in range(self.limits.retries + 1):
            if attempt:
                backoff = min(LONGEST_PAUSE, BACKOFF * 2 ** min(attempt - 1, 20))
                pause = max(wait, backoff * _DICE.uniform(0.5, 1.0))
                if pause >= deadline - clock():
                    break
                await asyncio.sleep(pause)
            left = deadline - clock()
            last = attempt == self.limits.retries
            reply, wait = await self._attempt(text, left if last else left / 2)
            if wait is None:
                break
        return reply

    async def _attempt(self, text: str, seconds: float) -> tuple[Verdict | Failure, float | None]:
        """A verdict or a failure, and the least pause before asking again; None where asking again
        is no use.
        """
        try:
            status, pause, payload = await self._post(text, seconds)
            if (
                status in (400, 422)
                and self.asks_probabilities
                and b"logprob" in payload.lower()
                # before any verdict only: later an echo of an answer could hold the word
                and not self._answered
            ):
                self.asks_probabilities = False
                status, pause, payload = await self._post(text, seconds)
        except httpx2.TimeoutException:
            return Failure("timeout", f"no reply within {seconds:.3g} s"), 0.0
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            cause = _cause(error)
            why = self._safe(f"{type(cause).__name__}: {cause}")
            return Failure("error", why, isinstance(cause, UNREACHABLE)), 0.0
        if status == 200:
            return read(payload), None
        why = self._safe(f"HTTP {status} {payload[:2000].decode(errors='replace')}")
        return Failure("error", why, status in REFUSED), pause if status in RETRIED else None

    async def _post(self, text: str, seconds: float) -> tuple[int, float, bytes]:
        """Status, the pause that the endpoint asks for in seconds, and the reply. Raises HTTPError,
        OSError or ValueError. No redirect and no proxy is followed, and no cookie is kept.
        """
        body: dict[str, Any] = {"temperature": 0, **self.body}
        if "max_completion_tokens" not in body:
            body.setdefault("max_tokens", TOKENS)
        body |= {"model": self.model, "messages": [{"role": "user", "content": text}]}
        if self.asks_probabilities:
            body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        if key := self.address.key:
            headers["Authorization"] = f"Bearer {key}"
        client = httpx2.AsyncClient(
            verify=_certificates(), trust_env=False, timeout=max(seconds, 0.01)
        )
        content = json.dumps(body, default=str).encode()
        request = client.stream("POST", self.address.completions, content=content, headers=headers)
        payload = b""
        async with client, request as reply:
            async for chunk in reply.aiter_raw():
                payload += chunk
                if len(payload) > MAX_REPLY:
                    raise ValueError(f"a reply of more than {MAX_REPLY} bytes")
            return reply.status_code, retry_after(reply.headers.get("Retry-After")), payload

    def _safe(self, text: str) -> str:
        """The text in one line, without the key."""
        key = self.address.key
        return " ".join((text.replace(key, "…") if key else text).split())[:200]


def _cause(error: BaseException) -> BaseException:
    """The error below the library's own: the operating system's, where there is one."""
    if isinstance(error, BaseExceptionGroup):
        return _cause(error.exceptions[0])
    below = error.__cause__ or error.__context__
    return error if below is None else _cause(below)


def retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it does not."""
    with suppress(ValueError, TypeError, OverflowError):
        seconds = float(header or 0)
        return max(0.0, seconds) if math.isfinite(seconds) else 0.0
    with suppress(ValueError, TypeError, OverflowError):
        date = email.utils.parsedate_to_datetime(header or "")
        return max(0.0, date.timestamp() - time.time())
    return 0.0


def read(payload: bytes) -> Verdict | Failure:
    """The verdict in a reply, thinking left out. Its probability is that of all spellings of the
    label at the label's last token.

    >>> token = '{"token": "1", "logprob": -0.5, "top_logprobs": [{"token": " 1", "logprob": -2.0}]}'
    >>> choice = '{"message": {"content": "1"}, "logprobs": {"content": [%s]}}' % token
    >>> verdict = read(('{"choices": [%s]}' % choice).encode())
    >>> verdict.label, round(verdict.probability, 4)
    (1, 0.7419)
    """
    try:
        choice = json.loads(payload)["choices"][0]
        content = choice["message"]["content"]
        entries = (choice.get("logprobs") or {}).get("content") or []
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Failure("error", "the reply is no chat completion")
    word = content.rpartition("</think>")[2].strip() if isinstance(content, str) else ""
    if word not in ("0", "1"):
        return Failure("error", f"the judge said {word[-40:]!r}, neither 0 nor 1")
    return confident(int(word), probability(entries, word))


def probability(entries: Any, label: str) -> float | None:
    """P(label) at the last token that is the label, from the log-probabilities of the token and its
    alternatives; None where the endpoint gives none.
    """
    try:
        entry = next(e for e in reversed(entries) if e["token"].strip() == label)
        choices = {e["token"]: e["logprob"] for e in [*(entry.get("top_logprobs") or []), entry]}
        logps = [float(logp) for token, logp in choices.items() if token.strip() == label]
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration):
        return None
    if not all(logp <= 1e-4 for logp in logps):
        return None
    return min(1.0, math.fsum(map(math.exp, logps)))
