"""What a judge says of one answer, what that pays, and the memory that keeps it from being asked
twice.
"""

import json
import math
import os
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whet.errors import RewardError

REMEMBERED = 1 << 17  # judgements held in memory
KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`said` is 1 or 0; `probability` that of what was said, None where the judge gives none."""

    said: int
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The judge's, never the answer's. `refused`: asking again would be refused again (a wrong key,
    an unknown address).
    """

    status: Literal["timeout", "error"]
    why: str
    refused: bool = False


def ruled(said: int, probability: float | None) -> Verdict | Failure:
    """The verdict, unless the judge holds its own word less likely than not.

    Else an answer that only confuses the judge would be paid for its "0": 1 - P("0") is high where
    most of the probability is on neither.

    >>> ruled(0, 0.875), ruled(0, 0.25).status
    (Verdict(said=0, probability=0.875), 'error')
    """
    if probability is not None and not probability >= 0.5:
        return Failure(
            "error",
            f"the judge said {said} with probability {probability:.2g}: it mostly means neither 0 nor 1",
        )
    return Verdict(said, probability)


def paid(verdict: Verdict, soft: bool = True) -> float:
    """P("1") where the judge said 1, 1 - P("0") where it said 0; hard, or without probabilities,
    what it said.

    Source: arXiv:2503.23829, the soft reward of the model-based verifier, before its z-score.

    >>> paid(Verdict(1, 0.75)), paid(Verdict(0, 0.875)), paid(Verdict(0, 0.875), soft=False)
    (0.75, 0.125, 0.0)
    """
    if not soft or verdict.probability is None:
        return float(verdict.said)
    return verdict.probability if verdict.said else 1.0 - verdict.probability


class Memory:
    """Verdicts by key, the most recently used REMEMBERED of them; with a path, also in a JSONL
    file, a verdict a line.

    Several runs may append to one file. A line that a killed run left half-written is passed over.
    Raises RewardError where the file cannot be read or written, or holds something else.
    """

    def __init__(self, path: Path | None = None, most: int = REMEMBERED) -> None:
        self.path, self.most = path, most
        self._held: OrderedDict[str, Verdict] = OrderedDict()
        if path is not None:
            self._read(path)

    def get(self, key: str) -> Verdict | None:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def keep(self, key: str, verdict: Verdict) -> None:
        self._hold(key, verdict)
        if self.path is None:
            return
        line = (
            json.dumps({"key": key, "said": verdict.said, "probability": verdict.probability})
            + "\n"
        )
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(
                    file, line.encode()
                )  # in one piece, so that lines of several runs do not mix
            finally:
                os.close(file)
        except OSError as error:
            raise RewardError(
                f"reward judge: cache {self.path} cannot be written: {error.strerror}"
            ) from None

    def _hold(self, key: str, verdict: Verdict) -> None:
        self._held[key] = verdict
        self._held.move_to_end(key)
        if len(self._held) > self.most:
            self._held.popitem(last=False)

    def _read(self, path: Path) -> None:
        found, empty, whole = False, True, True
        try:
            if not path.parent.is_dir():
                raise RewardError(
                    f"reward judge: cache {path}: there is no folder {path.parent}; make it"
                )
            if not path.exists():
                return
            with path.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    known = _parsed(line)
                    empty, whole = False, line.endswith("\n")
                    if known is not None:
                        found = True
                        self._hold(*known)
            if not found and not empty:
                raise RewardError(
                    f"reward judge: cache {path} holds no judgements; it is another kind of file"
                )
            if not whole:
                with path.open("a", encoding="utf-8") as lines:
                    lines.write("\n")
        except OSError as error:
            raise RewardError(
                f"reward judge: cache {path} cannot be used: {error.strerror}"
            ) from None


def _parsed(line: str) -> tuple[str, Verdict] | None:
    try:
        held = json.loads(line)
    except (ValueError, RecursionError):
        return None
    key, said, p = (
        (held.get(k) for k in ("key", "said", "probability"))
        if isinstance(held, dict)
        else (None,) * 3
    )
    if (
        not isinstance(key, str)
        or not KEY.fullmatch(key)
        or type(said) is not int
        or said not in (0, 1)
    ):
        return None
    if p is not None and (type(p) not in (int, float) or not math.isfinite(p) or not 0 <= p <= 1):
        return None
    return key, Verdict(said, p)
