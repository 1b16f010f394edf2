"""A judge's verdict on one answer, what the verdict pays, and the memory that saves asking twice."""

import json
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
    """`label` is 1 (right) or 0; `probability` is that label's, None where the judge gives none."""

    label: int
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of the judge, never of the answer. `refused`: asking again would be refused again
    (a wrong key, an unknown address).
    """

    status: Literal["timeout", "error"]
    why: str
    refused: bool = False


def confident(label: int, probability: float | None) -> Verdict | Failure:
    """The verdict, unless the judge holds its own label less likely than not.

    Otherwise an answer that only confuses the judge would be paid for a "0": 1 - P("0") is high
    where most of the probability is on neither label.

    >>> confident(0, 0.875), confident(0, 0.25).status
    (Verdict(label=0, probability=0.875), 'error')
    """
    if probability is not None and not probability >= 0.5:
        why = f"the judge said {label} with probability {probability:.2g}: it mostly means neither"
        return Failure("error", f"{why} 0 nor 1")
    return Verdict(label, probability)


def paid(verdict: Verdict, soft: bool = True) -> float:
    """P("1") for the label 1, 1 - P("0") for the label 0; the label itself where `soft` is off or
    there is no probability.

    Source: arXiv:2503.23829, the soft reward of the model-based verifier, before its z-score.

    >>> paid(Verdict(1, 0.75)), paid(Verdict(0, 0.875)), paid(Verdict(0, 0.875), soft=False)
    (0.75, 0.125, 0.0)
    """
    if not soft or verdict.probability is None:
        return float(verdict.label)
    return verdict.probability if verdict.label else 1.0 - verdict.probability


class Memory:
    """Verdicts by key, the most recently used REMEMBERED of them; with a path, also in a JSONL
    file, a verdict a line.

    Several runs may append to one file. A line that a killed run left half-written is passed over.
    Raises RewardError where the file cannot be read or written, or holds something else.
    """

    def __init__(self, path: Path | None = None, most: int = REMEMBERED) -> None:
        self.path, self.most = path, most
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()
        if path is not None:
            self._read(path)

    def get(self, key: str) -> Verdict | None:
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
        return self._verdicts.get(key)

    def keep(self, key: str, verdict: Verdict) -> None:
        self._remember(key, verdict)
        if self.path is None:
            return
        row = {"key": key, "said": verdict.label, "probability": verdict.probability}
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:  # the line in one piece, so that lines of several runs do not mix
                os.write(file, json.dumps(row).encode() + b"\n")
            finally:
                os.close(file)
        except OSError as error:
            raise RewardError(
                f"reward judge: cache {self.path} cannot be written: {error.strerror}"
            ) from None

    def _remember(self, key: str, verdict: Verdict) -> None:
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > self.most:
            self._verdicts.popitem(last=False)

    def _read(self, path: Path) -> None:
        line, judgements = "\n", 0
        try:
            if not path.parent.is_dir():
                raise RewardError(
                    f"reward judge: cache {path}: there is no folder {path.parent}; make it"
                )
            if not path.exists():
                return
            with path.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if (judgement := _parsed(line)) is not None:
                        judgements += 1
                        self._remember(*judgement)
            if not judgements and path.stat().st_size:
                raise RewardError(
                    f"reward judge: cache {path} holds no judgements; it is another kind of file"
                )
            if not line.endswith("\n"):  # a killed run left it half-written
                with path.open("a", encoding="utf-8") as lines:
                    lines.write("\n")
        except OSError as error:
            raise RewardError(
                f"reward judge: cache {path} cannot be used: {error.strerror}"
            ) from None


def _parsed(line: str) -> tuple[str, Verdict] | None:
    """(key, verdict) of a line; None where it is anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    key, label, p = (row.get(name) for name in ("key", "said", "probability"))
    if not isinstance(key, str) or not KEY.fullmatch(key):
        return None
    if type(label) is not int or label not in (0, 1):
        return None
    if p is not None and (type(p) not in (int, float) or not 0 <= p <= 1):
        return None
    return key, Verdict(label, p)
