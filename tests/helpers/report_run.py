"""A made-up run directory in the shape that whet.storage.run_log writes: chain, a base that
guesses, RL, a student.
"""

import base64
import gzip
import json
import math
import random
import re
from pathlib import Path
from typing import Any

ATTACKS = (
    "<script>document.title='owned'</script>",
    "</script><b>bold</b>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\u202eevil\u2028\x00",
)
ALPHABET = ["<|end|>", *"0123456789+-*=;", "<think>", "</think>", *ATTACKS]
IDS = {piece: i for i, piece in enumerate(ALPHABET)}
SAMPLING = {"n": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 64, "seed": 7}
RECIPE = 'name = "fake"\nseed = 1\n\n[task]\nname = "chain"  # <b>not bold</b>\n'


def apply(a: int, op: str, b: int) -> int:
    return (a + b if op == "+" else a - b if op == "-" else a * b) % 10


def expression(rng: random.Random, operations: int = 6) -> str:
    return str(rng.randrange(10)) + "".join(
        rng.choice("+-*") + str(rng.randrange(10)) for _ in range(operations)
    )


def working(question: str) -> tuple[list[str], int]:
    value, pieces = int(question[0]), []
    for op, digit in zip(question[1::2], question[2::2], strict=True):
        new = apply(value, op, int(digit))
        pieces += [";"] * bool(pieces) + [str(value), op, digit, "=", str(new)]
        value = new
    return pieces, value


def sample(
    rng: random.Random, question: str, mode: str, right: bool, version: int
) -> dict[str, Any]:
    steps, answer = working(question)
    if not right:
        answer = (answer + rng.randrange(1, 10)) % 10
    thought = ["<think>", *(steps if mode == "careful" else []), "</think>"]
    pieces = [*thought, str(answer), "<|end|>"]
    finish = "stop"
    if not right and mode == "careful" and rng.random() < 0.15:
        pieces, finish = pieces[: len(pieces) // 2], "length"
    status = "scored" if right else "unparsed" if finish == "length" else "wrong"
    mask = [1] * len(pieces)
    logp = [round(-rng.expovariate(4.0), 5) for _ in pieces]
    return {
        "text": "".join(p for p in pieces if p != "<|end|>"),
        "finish": finish,
        "status": status,
        "reward": float(right),
        "correct": right,
        "parts": {"accuracy": float(right)},
        "mode": mode,
        "advantage": None,
        "version": version,
        "ids": [IDS[p] for p in pieces],
        "pieces": pieces,
        "mask": mask,
        "logp": logp,
    }


def group(
    rng: random.Random, stage: str, step: int, question: str, n: int, careful: float, trained: bool
) -> dict[str, Any]:
    samples = []
    for _ in range(n):
        mode = rng.choices(
            ["careful", "coarse", "direct"], [careful, (1 - careful) * 0.2, (1 - careful) * 0.8]
        )[0]
        chance = {"careful": 0.6 + 0.35 * careful, "coarse": 0.3, "direct": 0.12}[mode]
        samples.append(sample(rng, question, mode, rng.random() < chance, step))
    if trained:
        middle = sum(s["reward"] for s in samples) / n
        for s in samples:
            s["advantage"] = s["reward"] - middle
    prompt = {
        "id": f"chain:{question}",
        "messages": [{"role": "user", "content": question}],
        "answer": str(working(question)[1]),
    }
    return {
        "stage": stage,
        "step": step,
        "prompt": prompt,
        "prompt_tokens": [*question, "="],
        "samples": samples,
    }


def careful_share(step: int, steps: int) -> float:
    return 0.02 + 0.92 / (1 + math.exp(-(step / steps - 0.35) * 14))


def update(rng: random.Random, step: int, steps: int) -> dict[str, Any]:
    careful = careful_share(step, steps)
    accuracy = min(1, max(0, careful * 0.92 + (1 - careful) * 0.15 + rng.gauss(0, 0.03)))
    values: dict[str, float] = {
        "reward": accuracy,
        "accuracy": accuracy,
        "length": 4 + 30 * careful,
        "entropy": 0.35 - 0.25 * careful + rng.gauss(0, 0.01),
        "length_wrong": 4 + 26 * careful + rng.gauss(0, 2),
        "groups_with_signal": 4 * accuracy * (1 - accuracy),
        "loss": rng.gauss(0, 0.02),
        "kl": 0.04 * careful + abs(rng.gauss(0, 0.003)),
        "clipped": abs(rng.gauss(0, 0.01)),
        "grad_norm": 0.3 + abs(rng.gauss(0, 0.1)),
        "truncated": abs(rng.gauss(0.02, 0.01)),
        "unparsed": abs(rng.gauss(0.03, 0.01)),
        "gap": 10 ** rng.gauss(-6, 0.2),
        "tokens": 8000.0,
        "share_direct": (1 - careful) * 0.8,
        "share_coarse": (1 - careful) * 0.2,
        "share_careful": careful,
    }
    if not 8 < step < 12:
        values["length_right"] = 5 + 28 * careful + rng.gauss(0, 1.5)
    seconds = {
        "sample": 0.2 + 0.5 * careful + abs(rng.gauss(0, 0.03)),
        "score": 0.02,
        "update": 0.15 + 0.4 * careful,
    }
    return {"stage": "rl", "kind": "rl", "step": step, "values": values, "seconds": seconds}


def measured(name: str, accuracy: float, careful: float, **more: Any) -> dict[str, Any]:
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 1000)
    modes = {
        "direct": {"share": (1 - careful) * 0.8, "accuracy": 0.13, "n": round(800 * (1 - careful))},
        "coarse": {"share": (1 - careful) * 0.2, "accuracy": 0.31, "n": round(200 * (1 - careful))},
        "careful": {
            "share": careful,
            "accuracy": 0.9 if careful else None,
            "n": round(1000 * careful),
        },
    }
    return {
        "name": name,
        "accuracy": accuracy,
        "low": accuracy - half,
        "high": accuracy + half,
        "n": 1000,
        "sampling": SAMPLING,
        "length": 5 + 30 * careful,
        "length_right": 6 + 30 * careful,
        "length_wrong": 5 + 25 * careful,
        "truncated": 0.01,
        "tokens": 90210,
        "parameters": 205_000,
        "pass_at": {"1": accuracy},
        "modes": modes,
        **more,
    }


def summary() -> dict[str, Any]:
    quiet = {"accuracy": None, "low": None, "high": None, "n": None, "parameters": 205_000}
    return {
        "name": "r1-zero-mini",
        "task": "chain",
        "seed": 1,
        "result": "rl",
        "seconds": 203.4,
        "device": "cpu",
        "versions": {"whet": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "stages": [
            {"name": "pretrain", "kind": "sft", "seconds": 50.2, **quiet},
            measured("base", 0.173, 0.02, kind="sft", seconds=9.7),
            measured("rl", 0.884, 0.94, kind="rl", seconds=88.1),
            {"name": "verified", "kind": "reject", "seconds": 9.0, **quiet},
            measured("student", 0.951, 0.99, kind="sft", seconds=14.3, parameters=94_000),
        ],
        "gain": {
            "before": "base",
            "after": "rl",
            "total": 0.711,
            "choosing": 0.655,
            "reasoning": 0.056,
            "paired": {
                "n": 1000,
                "difference": 0.711,
                "low": 0.682,
                "high": 0.74,
                "p": 1e-90,
                "test": "McNemar, exact",
            },
        },
        "warnings": [
            {
                "stage": "rl",
                "step": 9,
                "text": "more than a fifth of the answers are cut off <b>here</b>",
            }
        ],
    }


def attacks() -> dict[str, Any]:
    """A group whose model wrote HTML, and whose data set did too."""
    made = sample(random.Random(0), "1+1", "direct", True, 1)
    pieces = [*ATTACKS, "<|end|>"]
    made |= {
        "pieces": pieces,
        "ids": [IDS[p] for p in pieces],
        "mask": [1, 0, 1, 1, 1],
        "logp": [-0.5, 0.0, -1.5, -3.0, -9.9],
        "advantage": 0.25,
    }
    wrong = sample(random.Random(1), "1+1", "direct", False, 1) | {"advantage": -0.25}
    prompt = {
        "id": "attack",
        "messages": [{"role": "user", "content": "".join(ATTACKS)}],
        "answer": ATTACKS[0],
    }
    return {
        "stage": "rl",
        "step": 1,
        "prompt": prompt,
        "prompt_tokens": list(ATTACKS),
        "samples": [made, wrong],
    }


def write_samples(directory: Path, stage: str, step: int, groups: list[dict[str, Any]]) -> None:
    folder = directory / "samples" / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{step:06d}.jsonl").write_text(
        "".join(json.dumps(g) + "\n" for g in groups), encoding="utf-8"
    )


def make(
    directory: Path, steps: int = 70, prompts: int = 12, samples: int = 8, seed: int = 0
) -> Path:
    """The whole directory. Step 1 of rl begins with the attacks; one problem comes back at every
    fifth step.
    """
    rng = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "summary.json").write_text(json.dumps(summary()), encoding="utf-8")
    (directory / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    losses = [("pretrain", 300, 2.4, 0.9), ("base", 60, 0.9, 0.6), ("student", 80, 2.4, 0.3)]
    lines = [
        {
            "stage": name,
            "kind": "sft",
            "step": i + 1,
            "seconds": {"update": 0.02},
            "values": {
                "loss": low + (high - low) * math.exp(-5 * i / count) + rng.gauss(0, 0.04),
                "tokens": 600.0,
                "lr": 0.012 * (1 - i / count),
                "grad_norm": 1.0,
            },
        }
        for name, count, high, low in losses
        for i in range(count)
    ]
    lines += [update(rng, step, steps) for step in range(1, steps + 1)]
    (directory / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    again, tests = expression(rng), [expression(rng) for _ in range(20)]
    for step in range(1, steps + 1):
        questions = [again if step % 5 == 0 and i == 0 else expression(rng) for i in range(prompts)]
        groups = [
            group(rng, "rl", step, q, samples, careful_share(step, steps), trained=True)
            for q in questions
        ]
        write_samples(directory, "rl", step, [attacks(), *groups] if step == 1 else groups)
    for stage, careful in (("base", 0.02), ("rl", 0.94), ("student", 0.99)):
        write_samples(
            directory,
            f"{stage}-test",
            0,
            [group(rng, stage, 0, q, 1, careful, trained=False) for q in tests],
        )
    return directory


def data_of(html: str) -> dict[str, Any]:
    """The data embedded in a report, its samples unpacked."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert match
    data = json.loads(match[1])
    return data | {"samples": unpack(data["samples"])}


def unpack(text: str) -> dict[str, Any]:
    return json.loads(gzip.decompress(base64.b64decode(text)))


if __name__ == "__main__":
    import sys

    print(make(Path(sys.argv[1]), *map(int, sys.argv[2:])))
