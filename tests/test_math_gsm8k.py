"""GSM8K's 8,792 gold answers: right in every phrasing, and every kind of damaged answer wrong."""

import json
import random
from pathlib import Path

import pytest

from whet.rewards.math.verifier import MathReward
from whet.types import Problem

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "gsm8k"


def problem(answer: str) -> Problem:
    return Problem("p", ({"role": "user", "content": "?"},), answer)


@pytest.fixture(scope="module")
def gsm8k() -> list[tuple[str, str]]:
    """(solution, gold) of all problems."""
    if not DATA.is_dir():
        pytest.skip(f"needs the GSM8K files in {DATA}")
    lines = [
        line
        for name in ("train", "test")
        for line in (DATA / f"{name}.jsonl").read_text().splitlines()
    ]
    pairs = [json.loads(line)["answer"].split("####") for line in lines]
    return [(solution.strip(), gold.strip()) for solution, gold in pairs]


PHRASINGS = [
    "{s}\n#### {g}",
    "{s}\nSo it is \\boxed{{{g}}}.",
    "<think>{s}</think>\n<answer>{g}</answer>",
    "<think>{s}</think>{p}",
    "{s}\nThe answer is ${g}.",
    "{s}\n**Answer:** {p} dollars",
    "Therefore, the final answer is \\( {g} \\). It took 3 steps.",
    "{s} In total that is {g} apples.",
    "The answer is **{p}.00**.",
    "We find $x = {p}$.",
]


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_every_gold_answer_of_gsm8k_is_right(gsm8k: list[tuple[str, str]], phrasing: str) -> None:
    assert len(gsm8k) == 8792
    texts = [phrasing.format(s=s, g=g, p=g.replace(",", "")) for s, g in gsm8k]
    scores = MathReward().score([problem(f"{s}\n#### {g}") for s, g in gsm8k], texts)
    assert [(t, s.status) for t, s in zip(texts, scores, strict=True) if s.status != "scored"] == []


def swapped(digits: str) -> str:
    """Two neighbouring digits exchanged; another digit added where that changes nothing."""
    for i in range(len(digits) - 1):
        if digits[i] != digits[i + 1]:
            return digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :]
    return digits + "1"


def perturbed(kind: str, solution: str, value: int, rng: random.Random) -> str:
    digits = str(abs(value))
    answers = {
        "off by one": str(value + 1),
        "sign": str(-value) if value else "-1",
        "digit dropped": digits[1:] or "no number",
        "digits swapped": swapped(digits),
        "times ten": str(value * 10) if value else "10",
        "decimal shifted": f"{digits[:-1] or '0'}.{digits[-1]}" if value else "0.1",
        "other number": str(value + rng.choice([-1, 1]) * rng.randrange(2, 1000)),
        "unknown": "unknown",
        "empty": "",
    }
    if kind == "gold elsewhere":
        return f"{solution}\nFirst I had {value}, then {value}. The answer is {value + 7}."
    return f"{solution} This gives {value}.\n\\boxed{{{answers[kind]}}}"


@pytest.mark.parametrize(
    "kind",
    ["off by one", "sign", "digit dropped", "digits swapped", "times ten", "decimal shifted",
        "other number", "unknown",
     "gold elsewhere", "empty"],
)  # fmt: skip
def test_perturbed_answers_of_gsm8k_are_not(gsm8k: list[tuple[str, str]], kind: str) -> None:
    rng = random.Random(kind)
    texts = [perturbed(kind, s, int(g.replace(",", "")), rng) for s, g in gsm8k]
    scores = MathReward().score([problem(g) for _, g in gsm8k], texts)
    assert [
        (t, g)
        for t, (_, g), s in zip(texts, gsm8k, scores, strict=True)
        if s.status not in ("wrong", "unparsed")
    ] == []
    assert sum(s.value for s in scores) == 0.0
    if kind in ("unknown", "empty"):
        assert {s.status for s in scores} == {"unparsed"}
