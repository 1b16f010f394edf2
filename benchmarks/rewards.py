"""Measures how rewards withstand bad answers and bad functions, and how fast they are.

    python benchmarks/rewards.py fuzz --answers 10000   # fuzzed answers to the maths verifier
    python benchmarks/rewards.py broken --answers 500   # functions that hang or die, in a run
    python benchmarks/rewards.py speed                  # answers a second

`broken` takes about 3 minutes on 2 cores, the others about 1 each.
"""

import argparse
import collections
import json
import os
import random
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from whet.rewards import load
from whet.rewards.known_answers import Case, try_cases
from whet.types import Problem

CANARY = "/tmp/whet-canary"
GOLDS = ["18", "-3/4", "1,234.5", "\\frac{\\sqrt{3}}{2}", "x^2+2x+1", "\\{1,2,3\\}", "(0,\\infty)",
"\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
         "50\\%", "x=3", "2^{100}", "\\text{blue}", "7 \\text{ cm}", "10!", "e^{i\\pi}"]  # fmt: skip
PIECES = [*"0123456789.,/-+*^(){}[]$%\\ =xe!_&|<>;:'\"\n\t\0", "\\frac", "\\boxed{", "}",
"<answer>", "</answer>", "####", "answer is ", "\\text{",
          "\\sqrt", "\\left(", "\\right)", "\\begin{pmatrix}", "\\end{pmatrix}", "\\cup", "\\int",
          "\\sum_{i=1}^{", "\\lim", "\\infty", "10^", "!", "9**9**9",
          "million", "kg", "</think>", "°", "−", "²", "٣", "１", "½", "Ⅷ", "∞", "\u202e", "\ud83d",
          "🦜", "é"]  # fmt: skip
BOMBS = [
    "9**9**9**9", "10^{10^{10^{10}}}", "\\boxed{" * 5000, "{" * 20000 + "}" * 20000,
    "(" * 3000 + "1" + ")" * 3000, "1" * 100_000, "1/" * 40_000 + "1",
    "\\frac{1}{" * 800 + "2" + "}" * 800, "99999999!", "((((3!)!)!)!)!",
    "\\sqrt{" * 900 + "2" + "}" * 900, "(x+1)^{99999}", "x" + "^x" * 500,
    f"__import__('os').system('touch {CANARY}')", f"\\boxed{{open('{CANARY}','w')}}",
    f"{{{{''.__class__.__mro__[1].__subclasses__()}}}} {CANARY}",
    f"\\input{{{CANARY}}}", "\\def\\a{\\a\\a}\\a", "<answer>" * 20000, "####" * 20000,
    "\\boxed{1}" * 10000, "\0" * 1000, "0x" + "f" * 5000, "1e999999999",
    "\\int_0^{\\infty} e^{-x^{100}} \\sin(x^{50}) dx", "\\sum_{i=1}^{10^{12}} \\frac{1}{i^i}",
    "\\prod_{i=1}^{99999} i", "\\lim_{x\\to 0} x^{x^{x^x}}",
    "\\binom{99999999}{4999999}", "x^5+x+1=0, x^7-3x+2=0, y^9=x", "\\{" + ",".join(map(str,
    range(5000))) + "\\}", "1,000," * 10000, "a" * 50_000 + "!",
    "\\begin{pmatrix}" + "1&" * 3000 + "\\end{pmatrix}", "[" * 9999 + "1,2" + "]" * 9999,
    "-" * 50_000 + "1", "+-" * 30_000 + "5", "0." + "3" * 30_000,
]  # fmt: skip


def nasty(rng: random.Random) -> str:
    """An answer that a verifier would rather not see."""
    if rng.random() < 0.25:
        text = rng.choice(BOMBS)
    elif rng.random() < 0.2:
        text = rng.choice(PIECES) * rng.choice([50, 400, 3000]) + rng.choice(PIECES)
    else:
        text = "".join(rng.choice(PIECES) for _ in range(rng.choice([3, 8, 20, 100, 400])))
    frame = rng.choice(
        [
            "{}",
            "\\boxed{{{}}}",
            "<answer>{}</answer>",
            "#### {}",
            "so the answer is {}.",
            "\\boxed{{{}",
            "<answer>{}",
        ]
    )
    return frame.format(text)


def fuzz(answers: int, seed: int = 0) -> dict[str, Any]:
    """Fuzzed answers through the maths verifier, one by one. Any exception ends it."""
    rng = random.Random(seed)
    Path(CANARY).unlink(missing_ok=True)
    cases = []
    for i in range(answers):
        gold = rng.choice(GOLDS)
        cases.append(
            Case(Problem(str(i), ({"role": "user", "content": "?"},), gold), nasty(rng), False)
        )
    tried = try_cases(load("math"), cases)
    seconds = sorted(t.seconds for t in tried)
    worst = max(tried, key=lambda t: t.seconds)
    return {
        "answers": answers,
        "statuses": dict(collections.Counter(t.score.status for t in tried)),
        "paid": [
            (t.case.problem.answer, t.case.text[:40], t.case.text[-40:])
            for t in tried
            if t.score.correct
        ],
        "median_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * seconds[int(0.99 * len(seconds))],
        "worst_s": worst.seconds,
        "worst": worst.case.text[:60],
        "over_2_s": sum(s > 2.0 for s in seconds),
        "evaluated": Path(CANARY).exists(),
    }


BROKEN = '''"""A reward that fails in every way on a share of the answers, by a hash of the answer."""
import ctypes, hashlib, os, re, signal, subprocess, sys, threading, time

WAYS = ("sleep", "loop", "locked", "signals", "exit", "abort", "kill", "memory", "children",
        "closes", "raise", "recursion", "nan", "deadlock")

def way(problem_id, text, share):
    number = int(hashlib.sha256(f"{problem_id}|{text}".encode()).hexdigest(), 16)
    return WAYS[number % len(WAYS)] if number // 97 % 1000 < 1000 * share else None

def reward(prompt, sample, *, share=0.5):
    how = way(prompt.id, sample.text, share)
    if how == "sleep":
        time.sleep(3600)
    elif how == "loop":
        while True:
            pass
    elif how == "locked":
        re.match(r"(a+)+$", "a" * 40 + "b")  # holds the interpreter's lock
    elif how == "signals":
        for number in range(1, 32):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_IGN)
        time.sleep(3600)
    elif how == "exit":
        os._exit(0)
    elif how == "abort":
        os.abort()
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "memory":
        hoard = [bytearray(1 << 28) for _ in range(1000)]
    elif how == "children":
        for _ in range(3):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        time.sleep(3600)
    elif how == "closes":
        os.closerange(0, 256)
        time.sleep(3600)
    elif how == "raise":
        raise KeyError("no such thing")
    elif how == "recursion":
        return reward.__wrapped__ if False else (lambda f: f(f))(lambda f: f(f))
    elif how == "nan":
        return float("nan")
    elif how == "deadlock":
        lock = threading.Lock(); lock.acquire(); lock.acquire()
    return float(len(sample.text) % 2)
'''
RECIPE = """
name = "broken"
task = { name = "chain", operations = 2 }
[model.shape]
hidden = 32
layers = 1
heads = 2
kv_heads = 2
ffn = 48
[evaluation]
problems = 8
max_tokens = 12
[[reward]]
name = "FILE:reward"
share = SHARE
limit = { seconds = LIMIT, memory_mb = 512 }
[[stage]]
name = "base"
kind = "sft"
steps = 20
mix = { careful = 1.0 }
evaluate = false
[[stage]]
name = "rl"
kind = "rl"
steps = STEPS
prompts = 8
samples = 8
max_tokens = 12
max_errors = 1.0
probe = 0
evaluate = false
"""


def alive(token: str) -> list[str]:
    """Command lines of the processes that carry the token in their environment."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (process / "environ").read_bytes():
                commands.append((process / "cmdline").read_text().replace("\0", " ")[:80])
        except OSError:
            continue
    return commands


def broken(answers: int, limit: float = 0.5, share: float = 0.5) -> dict[str, Any]:
    """A recipe whose reward hangs, dies or eats memory on that many answers at least."""
    steps = max(1, -(-answers // int(64 * share * 0.85)))
    token = f"whet-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory() as folder:
        file, recipe = Path(folder) / "mine.py", Path(folder) / "r.toml"
        file.write_text(BROKEN)
        text = (
            RECIPE.replace("FILE", str(file))
            .replace("SHARE", str(share))
            .replace("LIMIT", str(limit))
            .replace("STEPS", str(steps))
        )
        recipe.write_text(text)
        began = time.monotonic()
        command = [sys.executable, "-m", "whet.cli.main", "run", str(recipe), "--runs", folder]
        done = subprocess.run(
            command,
            env={**os.environ, "WHET_BENCH": token},
            capture_output=True,
            text=True,
            timeout=3600,
        )
        seconds = time.monotonic() - began
        time.sleep(0.5)
        left = alive(token)
        scope: dict[str, Any] = {}
        exec(BROKEN, scope)  # our own text, above
        rows = []
        for path in sorted((Path(folder) / "broken" / "samples" / "rl").glob("*.jsonl")):
            for line in path.read_text().splitlines():
                group = json.loads(line)
                rows += [
                    (scope["way"](group["prompt"]["id"], s["text"], share), s)
                    for s in group["samples"]
                ]
        metrics = [
            json.loads(x)
            for x in (Path(folder) / "broken" / "metrics.jsonl").read_text().splitlines()
        ]
    bad = [(how, s) for how, s in rows if how]
    took = [
        float(m[1])
        for _, s in bad
        if (m := re.search(r"killed after ([\d.]+) s", s.get("reason", "")))
    ]
    return {
        "exit": done.returncode,
        "error": done.stderr[-300:],
        "broken": len(bad),
        "ways": dict(collections.Counter(how for how, _ in bad)),
        "statuses": dict(collections.Counter(s["status"] for _, s in bad)),
        "trained_on_broken": sum(s["advantage"] is not None for _, s in bad),
        "sound": sum(how is None for how, _ in rows),
        "sound_lost": sum(how is None and s["status"] in ("timeout", "error") for how, s in rows),
        "errors_logged": round(
            sum(
                m["values"].get("errors", 0) * m["values"].get("samples", 0)
                for m in metrics
                if m.get("stage") == "rl"
            )
        ),
        "longest_s": max(took, default=0.0),
        "limit_s": limit,
        "run_s": seconds,
        "left_processes": left,
    }


def speed(answers: int = 2000) -> list[tuple[str, int, float]]:
    """(kind, workers, answers a second): each kind in one call, after a call that has started the
    workers.
    """
    own = Path(tempfile.mkdtemp()) / "own.py"
    own.write_text("def reward(prompt, sample):\n    return float(prompt.answer in sample.text)\n")
    rng = random.Random(0)
    kinds: dict[str, list[tuple[str, str]]] = {
        "math, integers": [
            (str(n), f"so it is \\boxed{{{n + i % 2}}}")
            for i, n in enumerate(rng.sample(range(10**6), answers))
        ],
        "math, fractions": [
            (f"{n}/7", f"\\boxed{{\\frac{{{n}}}{{7}}}}") for n in rng.sample(range(10**6), answers)
        ],
        "math, expressions": [
            (f"{n}\\sqrt{{2}}+x", f"\\boxed{{x+\\sqrt{{2}}\\cdot {n}}}")
            for n in rng.sample(range(10**6), answers // 10)
        ],
        "own function": [(str(n), f"it is {n}") for n in rng.sample(range(10**6), answers)],
    }
    rates = []
    for kind, pairs in kinds.items():
        problems = [
            Problem(str(i), ({"role": "user", "content": "?"},), gold)
            for i, (gold, _) in enumerate(pairs)
        ]
        texts = [text for _, text in pairs]
        for workers in (1, 2):
            reward = (
                load(f"{own}:reward", limit={"processes": workers})
                if kind == "own function"
                else load("math", processes=workers)
            )
            reward.score(problems[:workers], texts[:workers])
            if kind == "math, expressions":
                reward.score(problems[:8], texts[:8])
            began = time.perf_counter()
            reward.score(problems, texts)
            rates.append((kind, workers, len(texts) / (time.perf_counter() - began)))
    return rates + programs(answers // 20)


def programs(answers: int) -> list[tuple[str, int, float]]:
    from whet.errors import RewardError

    table = {
        "kind": "stdio",
        "tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "3 4\n", "output": "7\n"}],
    }
    rates = []
    for workers in (1, 2):
        try:
            reward = load("code", processes=workers)
        except RewardError as error:
            print(f"code: {error}")
            return []
        problems = [
            Problem(str(i), ({"role": "user", "content": "?"},), "", meta={"tests": table})
            for i in range(answers)
        ]
        texts = [
            f"```python\na, b = map(int, input().split())\nprint(a + b)  # {i}\n```"
            for i in range(answers)
        ]
        reward.score(problems[:2], texts[:2])
        began = time.perf_counter()
        scores = reward.score(problems, texts)
        assert all(s.correct for s in scores), scores[0]
        rates.append(
            ("code, two inputs a program", workers, answers / (time.perf_counter() - began))
        )
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("fuzz", "broken", "speed"))
    parser.add_argument("--answers", type=int)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        print("| reward | workers | answers a second |\n|---|---|---|")
        for kind, workers, rate in speed(arguments.answers or 2000):
            print(f"| {kind} | {workers} | {rate:,.0f} |")
        return
    report = (
        fuzz(arguments.answers or 10_000)
        if arguments.what == "fuzz"
        else broken(arguments.answers or 500)
    )
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
