"""The math reward: answers compared as text, then as exact numbers, then by math-verify in workers
that can be killed.

A verifier that ran out of time or failed is never a silent zero: the status says so. An unusable
gold answer is never paid.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, lru_cache

from pydantic import Field

from whet.errors import DataError
from whet.rewards.base import PROCESSES, RewardOptions
from whet.rewards.extract import boxed, final_answer, hashed
from whet.rewards.math.numbers import Number, cleaned, number, same
from whet.sandbox.pool import Pool
from whet.types import Problem, Sample, Score, Status

LONGEST = 400  # characters of an answer for a worker

_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTION = re.compile(
    r"sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|inf|infinity|abs|min|max|and|or|det|theta|alpha|beta"
    r"|pi",
    re.IGNORECASE,
)
# Mathematics that costs without bound: a large literal exponent, a tower, a high power of a sum or
# a power, factorials of large numbers.
_COSTLY = re.compile(
    r"\^[\s{(]*[-+]?\d{5,}|\^[\s{(]*[-+]?[\d.]+\s*\^|\d{4,}[\s)}]*!|!\s*[)}]*\s*!|\d{60,}"
    r"|\\binom\s*\{?\s*\d{4,}"
    r"|\((?=[^()]*(?:\^|(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])))[^()]*\)\s*\^[\s{(]*\d{3,}"
)
# Work left undone: it is no final answer, and may keep the algebra busy for ever.
_UNDONE = re.compile(r"\\(?:i*int|oint|sum|prod|lim)(?![a-z])|[∫∑∏]")
_BASE = re.compile(r"([0-9A-Fa-f]+)_\{?(\d+)\}?")
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\*\*", "^"),
        (r"(?<!\\)\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)|√\s*\{([^{}]*)\}|√\s*(\w+)", r"\\sqrt{\1\2\3}"),
        (r"(?<!\\)\b(sin|cos|tan|ln|log|exp|pi|theta|alpha|beta)\b", r"\\\1 "),
        (r"(?<![\\A-Za-z])(?:infinity|inf|oo)\b|∞", r"\\infty "),
        (r"(?<=[\w)])\s*\*\s*(?=[\w(\\])|×|·", r"\\cdot "),
        (r"π", r"\\pi "),
        (r"<=|≤", r"\\le "),
        (r">=|≥", r"\\ge "),
        (r"≠|!=", r"\\ne "),
        (r"∪|(?<=[\])])\s*U\s*(?=[\[(])", r"\\cup "),
        (r"∈", r"\\in "),
        (r"±|\+/-", r"\\pm "),
        (r"∅", r"\\emptyset "),
        (r"÷", "/"),
        (r"\^\(([^()]*)\)", r"^{\1}"),
    )
]


class MathReward(RewardOptions):
    """1 where a response's final answer is mathematically the problem's `answer`, else 0.

    Statuses: scored (right), wrong, unparsed (no answer, or one that means nothing or is beyond
    bounds), timeout (over `seconds` of wall-clock, killed), error (the verifier failed, or the
    problem's own answer means nothing).
    """

    owner = "reward math"
    processes: int | None = Field(
        default=None,
        ge=1,
        le=999,
        description="answers compared at once; default: one for each core, 2 to 4",
    )
    seconds: float = Field(
        default=1.5,
        gt=0,
        lt=1000,
        description="wall-clock for one comparison, which is then killed",
    )

    @cached_property
    def pool(self) -> Pool:
        return Pool(
            "whet.rewards.math.equivalence:verdict", self.processes or PROCESSES, self.seconds
        )

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N responses -> N scores. Raises DataError where a problem has no answer."""
        for problem in problems:
            if problem.answer is None or not problem.answer.strip():
                raise DataError(
                    f"problem {problem.id!r} has no answer to verify against; "
                    "name the right answer column"
                )
        answers = [final_answer(text) for text in texts]
        golds = [gold_answer(problem.answer or "") for problem in problems]
        statuses = self.compare(golds, answers)
        return [graded(status, gold) for status, gold in zip(statuses, golds, strict=True)]

    def compare(self, golds: Sequence[str], answers: Sequence[str | None]) -> list[Status]:
        """N gold answers and N extracted ones -> N statuses. Equal pairs are compared once."""
        pairs = list(zip(golds, answers, strict=True))
        verdicts: dict[tuple[str, str | None], Status | None] = {
            pair: quick(*pair) for pair in dict.fromkeys(pairs)
        }
        open_pairs = [
            (gold, answer)
            for (gold, answer), status in verdicts.items()
            if status is None and answer is not None
        ]
        results = self.pool.map([[latex(gold), latex(answer)] for gold, answer in open_pairs])
        meaning: dict[str, Status] = {
            "same": "scored",
            "different": "wrong",
            "gold": "error",
            "answer": "unparsed",
        }
        for pair, result in zip(open_pairs, results, strict=True):
            verdicts[pair] = meaning[result.value] if result.status == "ok" else result.status
        return [verdicts[pair] or "error" for pair in pairs]


def graded(status: Status, gold: str) -> Score:
    """The score of a status: accuracy is a part only where there is a verdict."""
    if status in ("timeout", "error"):
        reason = f"no comparison with the problem's own answer {gold!r:.60}"
        return Score(0.0, status, reason=reason)
    value = float(status == "scored")
    return Score(value, status, {"accuracy": value})


def gold_answer(answer: str) -> str:
    """The answer itself where a data set keeps it boxed or after `####`."""
    marked = boxed(answer)
    if marked is None:
        marked = hashed(answer)
    return (answer if marked is None else marked).strip()


def quick(gold: str, answer: str | None) -> Status | None:
    """The verdict where it needs no algebra, else None.

    >>> quick("18", "18.00"), quick("1/2", "\\\\frac{1}{3}"), quick("18", None), quick("18", "6\\\\pi")
    ('scored', 'wrong', 'unparsed', None)
    """
    plain_gold = _plain(gold)
    if not any(map(str.isalnum, plain_gold)) and "\\" not in plain_gold and "∞" not in plain_gold:
        return "error"
    if answer is None:
        return "unparsed"
    gold_number, plain = _number(gold), _plain(answer)
    if gold_number is not None:
        value = _number(answer)
        if value is not None:
            return "scored" if same(gold_number, value) else "wrong"
    elif plain == plain_gold and _balanced(gold):
        return "scored"
    if gold_number is None and (_wordy(plain_gold) or len(plain_gold) == 1):
        return "scored" if plain.casefold() == plain_gold.casefold() else "wrong"
    if (bases := _bases(plain_gold, plain)) is not None:
        return "scored" if bases else "wrong"
    if _wordy(plain) or not plain:
        return "unparsed"
    if beyond_bounds(gold):
        return "error"
    if beyond_bounds(answer) or (_UNDONE.search(answer) and not _UNDONE.search(gold)):
        return "unparsed"
    return None


def beyond_bounds(answer: str) -> bool:
    """Whether comparing could cost without bound: such text never reaches the algebra.

    >>> beyond_bounds("9**9**9"), beyond_bounds("10^{100000}"), beyond_bounds("2^{10}")
    (True, True, False)
    """
    return (
        len(answer) > LONGEST
        or _COSTLY.search(latex(answer)) is not None
        or answer.count("(") + answer.count("{") > 60
    )


@lru_cache(maxsize=1 << 14)
def latex(answer: str) -> str:
    """Typed mathematics (`sqrt(2)`, `2**x`, `x >= 1`, `∞`) in LaTeX; LaTeX itself is unchanged."""
    text = cleaned(answer)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


@lru_cache(maxsize=1 << 14)
def _number(answer: str) -> Number | None:
    with suppress(ValueError, ZeroDivisionError):
        return number(answer)
    return None


def _plain(answer: str) -> str:
    """The answer to compare as text: without markup and a choice's parentheses, spaces made one."""
    text = re.sub(r"\s+", " ", cleaned(answer))
    letter = re.fullmatch(r"\(([A-Za-z])\)", text)
    return letter.group(1) if letter else text


def _balanced(text: str) -> bool:
    return text.count("{") == text.count("}")


def _wordy(text: str) -> bool:
    """Words, not mathematics: no digit, no operator, and a word that is no function's name."""
    if re.search(r"[\d\\^_=+*/<>≤≥∞π√]", text):
        return False
    return not all(_FUNCTION.fullmatch(word) for word in _WORD.findall(text))


def _bases(gold: str, answer: str) -> bool | None:
    """Whether numbers with a base agree, base and digits; None where neither has one."""
    ours, theirs = (
        match and (match[1].upper().lstrip("0"), match[2])
        for match in (_BASE.fullmatch(gold), _BASE.fullmatch(answer))
    )
    return None if ours is None and theirs is None else ours == theirs
