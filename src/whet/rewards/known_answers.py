"""A reward tried on answers whose verdict is known: false accepts, false rejects, failures and
times.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whet.data.rows import Row, read_rows
from whet.errors import DataError
from whet.rewards import Reward
from whet.types import Problem, Sample, Score

# columns that are no meta
OWN = ("id", "question", "answer", "response", "correct", "right", "wrong", "task")
SLOW = 0.1  # seconds
Verdict = Literal["false accept", "false reject", "timeout", "error", ""]


@dataclass(frozen=True, slots=True)
class Case:
    """One answer, and whether it should be paid."""

    problem: Problem
    text: str
    right: bool
    sample: Sample | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case, judged alone, in `seconds` of wall-clock."""

    case: Case
    score: Score
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The fault of the score; empty where there is none. A reward accepts an answer that
        accuracy counts as correct.
        """
        if self.score.status == "timeout" or self.score.status == "error":
            return self.score.status
        if self.score.correct == self.case.right:
            return ""
        return "false reject" if self.case.right else "false accept"


def try_cases(reward: Reward, cases: Sequence[Case]) -> list[Outcome]:
    """Each case by itself, in order. A slow case that was scored is timed once more, so that a
    worker's start does not count as an answer's time.
    """
    outcomes = []
    for case in cases:
        outcome = _alone(reward, case)
        if outcome.seconds > SLOW and outcome.score.usable:
            outcome = min(outcome, _alone(reward, case), key=lambda o: o.seconds)
        outcomes.append(outcome)
    return outcomes


def _alone(reward: Reward, case: Case) -> Outcome:
    samples = None if case.sample is None else [case.sample]
    began = time.perf_counter()
    (score,) = reward.score([case.problem], [case.text], samples)
    return Outcome(case, score, time.perf_counter() - began)


def figures(outcomes: Sequence[Outcome]) -> dict[str, float | int]:
    """The outcomes in numbers; seconds are those of one answer."""
    verdicts = [o.verdict for o in outcomes]
    times = [o.seconds for o in outcomes] or [0.0]
    return {
        "cases": len(outcomes),
        "right": sum(o.case.right for o in outcomes),
        "false_accepts": verdicts.count("false accept"),
        "false_rejects": verdicts.count("false reject"),
        "unparsed": sum(o.score.status == "unparsed" for o in outcomes),
        "unparsed_right": sum(o.score.status == "unparsed" and o.case.right for o in outcomes),
        "timeouts": verdicts.count("timeout"),
        "errors": verdicts.count("error"),
        "median_seconds": statistics.median(times),
        "worst_seconds": max(times),
    }


def read_cases(path: Path, task: str) -> list[Case]:
    """The cases of a JSONL or Parquet file.

    A row has `answer` and `question`, where there are any, and `right` and `wrong`, each a list of
    responses, or one `response` and whether it is `correct`. `task` names the problem's task in a
    mix; other columns become the problem's meta. Raises DataError, naming the row, for what is
    missing or of another form, and for a file without cases.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    cases = [case for row in read_rows(path, None) for case in _cases(row, task)]
    if not cases:
        raise DataError(
            f"{path} holds no case; a row has right and wrong (lists of responses), "
            "or response and correct"
        )
    return cases


def _cases(row: Row, task: str) -> list[Case]:
    values = row.values
    name, task = str(values.get("id") or row.where), row.text("task") or task
    messages = ({"role": "user", "content": row.text("question") or ""},)
    meta = {key: value for key, value in values.items() if key not in OWN}
    problem = Problem(name, messages, row.text("answer"), task, meta)
    if "response" in values or "correct" in values:
        response, correct = values.get("response"), values.get("correct")
        if not isinstance(response, str) or not isinstance(correct, bool):
            raise DataError(f"{row.where}: response must be a text and correct true or false")
        return [Case(problem, response, correct)]
    return [
        Case(problem, text, side == "right")
        for side in ("right", "wrong")
        for text in _texts(row, side)
    ]


def _texts(row: Row, column: str) -> list[str]:
    value = row.values.get(column)
    texts = [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{row.where}: {column} must be a list of responses")
    return texts
