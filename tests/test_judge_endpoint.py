"""A judge behind an endpoint: a loopback server that answers, limps, drips, refuses and lies."""

import json
import math
import random
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from whet.errors import RewardError
from whet.rewards import load
from whet.rewards.judge import endpoint
from whet.rewards.judge.endpoint import read, retry_after
from whet.rewards.judge.judge import JudgeReward
from whet.rewards.judge.verdict import Failure, Verdict
from whet.types import Problem, Score

from .helpers.judge_stub import Reply, Stub, completion, token

PROBLEM = Problem("p", ({"role": "user", "content": "Capital of France?"},), "Paris")
KEY = "sk-very-secret-123"


def agreeing(stub: Stub, body: dict[str, Any], number: int) -> None:
    """Says whether the answer that it reads holds the word Paris, with 0.8 and another spelling at
    0.1.
    """
    answer = body["messages"][0]["content"].split("<<begin answer")[1]
    label = "1" if "Paris" in answer else "0"
    stub.say(completion(label, {"content": [token(label, 0.8, (f" {label}", 0.1), ("x", 0.05))]}))


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    made.daemon_threads, made.lock = True, threading.Lock()
    made.url = f"http://127.0.0.1:{made.server_address[1]}/v1"
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def quick(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.seen, server.now, server.most, server.reply = [], 0, 0, agreeing
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)


def judging(server: Any, reply: Reply | None = None, **options: Any) -> JudgeReward:
    if reply is not None:
        server.reply = reply
    reward = load("judge", url=server.url, model="some/judge", **options)
    assert isinstance(reward, JudgeReward)
    return reward


def scored(reward: JudgeReward, *texts: str) -> list[Score]:
    return reward.score([PROBLEM] * len(texts), texts)


def test_what_is_asked_and_what_it_pays(server: Any):
    values = [s.value for s in scored(judging(server, body={"seed": 7}), "It is Paris", "Lyon")]
    assert values == pytest.approx([0.9, 0.1])
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert {k: body[k] for k in body if k != "messages"} == {
        "model": "some/judge", "temperature": 0, "max_tokens": endpoint.TOKENS, "seed": 7, "logprobs": True,
        "top_logprobs": endpoint.ALTERNATIVES,
    }  # fmt: skip
    assert [m["role"] for m in body["messages"]] == ["user"]
    server.seen.clear()
    hard = judging(server, soft=False, body={"max_completion_tokens": 900})
    assert [s.value for s in scored(hard, "Paris", "Lyon")] == [1.0, 0.0]
    assert "logprobs" not in server.seen[0][2] and "max_tokens" not in server.seen[0][2]


def test_many_at_once_but_no_more_than_concurrent(server: Any):
    def slowly(stub: Stub, body: dict[str, Any], number: int) -> None:
        time.sleep(0.05)
        agreeing(stub, body, number)

    texts = [f"{i} {'Paris' if i % 3 else 'Lyon'}" for i in range(24)]
    began = time.monotonic()
    scores = scored(judging(server, slowly, concurrent=6), *texts)
    assert [s.correct for s in scores] == [
        bool(i % 3) for i in range(24)
    ]  # each its own, whatever came first
    assert 2 <= server.most <= 6 and time.monotonic() - began < 24 * 0.05


def test_without_probabilities_the_verdict_is_hard(server: Any):
    def refusing(stub: Stub, body: dict[str, Any], number: int) -> None:
        if "logprobs" in body:
            stub.say('{"error": "Logprobs are not supported"}', 400)
        else:
            stub.say(completion("1"))

    reward = judging(server, refusing)
    assert [s.value for s in scored(reward, "a")] == [1.0] and len(server.seen) == 2
    assert [s.value for s in scored(reward, "b")] == [1.0] and len(server.seen) == 3
    soft = judging(server, agreeing)
    scored(soft, "Paris")
    server.reply = refusing  # an endpoint that has answered may echo an answer which says the word
    assert [s.status for s in scored(soft, "logprobs")] == ["error"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_endpoints_are_asked_again(server: Any, status: int):
    def limping(stub: Stub, body: dict[str, Any], number: int) -> None:
        stub.say("busy", status) if number < 3 else agreeing(stub, body, number)

    assert scored(judging(server, limping), "Paris")[0].value == pytest.approx(0.9)
    assert len(server.seen) == 3
    server.seen.clear()
    reward = judging(server, lambda stub, body, number: stub.say("busy", status), retries=2)
    (lost,) = scored(reward, "Paris")
    assert lost.status == "error" and len(server.seen) == 3 and f"HTTP {status} busy" in lost.reason


def test_retry_after_is_heeded_and_bounded(server: Any):
    def later(stub: Stub, body: dict[str, Any], number: int) -> None:
        stub.say("busy", 429, Retry_After="0.3") if number == 1 else agreeing(stub, body, number)

    began = time.monotonic()
    assert scored(judging(server, later), "Paris")[0].correct and time.monotonic() - began >= 0.3
    reward = judging(
        server, lambda stub, body, number: stub.say("busy", 429, Retry_After="86400"), seconds=2
    )
    began = time.monotonic()
    assert scored(reward, "Paris")[0].status == "error" and time.monotonic() - began < 1
    assert [retry_after(x) for x in ("7", "-3", "soon", None, "nan", "inf", "1e999")] == [
        7,
        0,
        0,
        0,
        0,
        0,
        0,
    ]
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60


def hang(stub: Stub, body: dict[str, Any], number: int) -> None:
    time.sleep(5)


def drip(stub: Stub, body: dict[str, Any], number: int) -> None:
    stub.send_response(200)
    stub.flush_headers()
    for byte in b"X-Slow: 1\r\n" * 50:
        stub.wfile.write(bytes([byte]))
        time.sleep(0.05)


def drip_body(stub: Stub, body: dict[str, Any], number: int) -> None:
    stub.send_response(200)
    stub.send_header("Content-Length", "5000")
    stub.end_headers()
    for _ in range(100):
        stub.wfile.write(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize("reply", [hang, drip, drip_body])
def test_the_deadline_holds_whatever_the_endpoint_does(server: Any, reply: Reply):
    began = time.monotonic()
    texts = [str(i) for i in range(6)]
    assert {
        s.status for s in scored(judging(server, reply, seconds=0.5, concurrent=3), *texts)
    } == {"timeout"}
    assert time.monotonic() - began < 2 * 0.5 + 0.75
    for thread in [t for t in threading.enumerate() if t.name == "whet-judge"]:
        thread.join(3)
        assert not thread.is_alive()


def test_the_deadline_holds_for_a_name_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    began = time.monotonic()
    reward = load("judge", url="http://judge.example/v1", model="m", seconds=0.4)
    assert [s.status for s in scored(reward, "a", "b")] == ["timeout", "timeout"]
    assert time.monotonic() - began < 1.2


def test_one_that_hangs_once_is_asked_again_in_time(server: Any):
    def once(stub: Stub, body: dict[str, Any], number: int) -> None:
        hang(stub, body, number) if number == 1 else agreeing(stub, body, number)

    assert scored(judging(server, once, seconds=1), "Paris")[0].value == pytest.approx(0.9)
    assert [s.status for s in scored(judging(server, hang, seconds=0.4, retries=0), "x")] == [
        "timeout"
    ]


def garbage(stub: Stub, body: dict[str, Any], number: int) -> None:
    stub.wfile.write(b"hello\r\n\r\n")


BROKEN: dict[str, Reply] = {
    "not JSON": lambda stub, body, number: stub.say("{"),
    "no choice": lambda stub, body, number: stub.say({"choices": []}),
    "nested": lambda stub, body, number: stub.say("[" * 100_000),
    "huge": lambda stub, body, number: stub.say(
        json.dumps(completion("1")) + " " * endpoint.MAX_REPLY
    ),
    "null": lambda stub, body, number: stub.say(completion(None)),
    "prose": lambda stub, body, number: stub.say(completion("The answer is 1")),
    "two": lambda stub, body, number: stub.say(completion("10")),
    "unfinished": lambda stub, body, number: stub.say(completion("<think>1")),
    "too long a prompt": lambda stub, body, number: stub.say("context length", 400),
    "no HTTP": garbage,
    "silence": lambda stub, body, number: None,
    "its own doubt": lambda stub, body, number: stub.say(
        completion("0", {"content": [token("0", 0.3, ("Well", 0.2))]})
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_verdict_is_the_judges_error(server: Any, name: str):
    reward = judging(server, BROKEN[name], retries=0)
    (lost,) = scored(reward, "Paris")
    assert (
        (lost.status, lost.parts) == ("error", {})
        and lost.reason
        and "\n" not in lost.reason
        and len(lost.reason) <= 200
    )
    server.reply = agreeing
    assert scored(reward, "Paris")[0].value == pytest.approx(0.9)  # a failure is not remembered


def test_a_refusal_stops_the_run_only_where_nothing_was_ever_answered(
    server: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    refused: Reply = lambda stub, body, number: stub.say(f"Incorrect API key:\n{KEY}", 401)  # noqa: E731
    with pytest.raises(RewardError, match=r"refuses: HTTP 401 Incorrect API key: …$") as error:
        scored(judging(server, refused, key_env="JUDGE_KEY"), *map(str, range(50)))
    assert "\n" not in str(error.value) and KEY not in str(error.value) and len(server.seen) <= 32
    reward = judging(server, agreeing, key_env="JUDGE_KEY")
    scored(reward, "Paris")
    assert server.seen[-1][1]["Authorization"] == f"Bearer {KEY}"
    server.reply = refused
    assert [(s.status, KEY in s.reason) for s in scored(reward, "Lyon")] == [("error", False)]
    state = (
        repr(reward)
        + repr(vars(reward))
        + repr(vars(reward.judge))
        + json.dumps(reward.judge.identity)
    )
    assert KEY not in state


def test_a_redirect_is_not_followed(server: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    moved: Reply = lambda stub, body, number: stub.say("", 307, Location=f"{server.url}/elsewhere")  # noqa: E731
    with pytest.raises(RewardError, match="refuses: HTTP 307"):
        scored(judging(server, moved, key_env="JUDGE_KEY"), "Paris")
    assert len(server.seen) == 1


def test_an_endpoint_that_is_not_there_is_said_at_once():
    reward = load("judge", url="http://127.0.0.1:9/v1", model="m", retries=1)
    with pytest.raises(
        RewardError, match=r"http://127.0.0.1:9/v1 refuses: ConnectionRefusedError"
    ) as error:
        reward.score([PROBLEM], ["Paris"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "ftp://x"}, "is no address"), ({"url": "http://"}, "is no address"),
        ({"url": "http://x:99999"}, "is no address"),
        ({"url": "http://x/v1?a=1"}, "is no address"), ({"url": "http://x/\r\nHost: y"}, "is no address"),
        ({"url": f"http://me:{KEY}@x/v1"}, "name or password"), ({"url": ""}, "url = ''"),
        ({"url": "http://[::1"}, "is no address"),
        ({"key_env": KEY}, "never the key itself"),
        ({"key_env": "hf_notset"}, "no environment variable that is set"),
        ({"key_env": "ODD_KEY"}, "holds no usable key"),
        ({"concurrent": 0}, "concurrent = 0; it must be between 1 and 1024"),
        ({"seconds": math.nan}, "seconds = NaN"),
        ({"retries": 1.5}, "retries = 1.5"),
        ({"retries": True}, "retries = true; it must be a whole number"),
        ({"body": {"messages": []}}, "body.messages"),
        ({"body": 3}, "body = 3; it must be a table"), ({"concurent": 3}, "did you mean 'concurrent'"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line_that_repeats_no_key(
    options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ODD_KEY", "a\nb")
    with pytest.raises(RewardError) as error:
        load("judge", **{"url": "http://localhost:1/v1", "model": "m", **options})
    message = str(error.value)
    assert (
        says in message
        and "\n" not in message
        and KEY not in message
        and "hf_notset" not in message
    )


def test_thinking_is_left_out_and_the_last_word_counts():
    entries = [
        token("0", 0.9),
        token("</think>", 0.9),
        token("\n", 0.9),
        token("0", 0.6, (" 0", 0.1), ("1", 0.3)),
    ]
    verdict = read(json.dumps(completion("<think>0?</think>\n0", {"content": entries})).encode())
    assert (
        isinstance(verdict, Verdict)
        and verdict.label == 0
        and verdict.probability == pytest.approx(0.7)
    )
    for odd in ({"content": [{"token": "1", "logprob": "x"}]}, {"content": [{"token": "1", "logprob": 3.0}]},
                {"content": [{"token": "token_id:16", "logprob": -1}]}, {"content": 3},
                {"content": [None]}, {}):  # fmt: skip
        assert read(json.dumps(completion("1", odd)).encode()) == Verdict(1, None)
    assert isinstance(
        read(b'{"choices": [{"message": {"content": "1"}, "logprobs": [1]}]}'), Failure
    )


def test_retries_leave_the_runs_random_numbers_alone(server: Any):
    random.seed(5)
    scored(judging(server, lambda stub, body, number: stub.say("busy", 500), retries=2), "x")
    assert random.random() == random.Random(5).random()
