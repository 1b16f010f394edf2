"""The asking side of your own reward function: it runs in workers, which can be killed, and all it
can break is one answer's score.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from whet.errors import RewardError, did_you_mean
from whet.rewards.custom.function import NAMED
from whet.sandbox.pool import Pool, Result
from whet.types import Problem, Sample, Score

LIMIT = {"seconds": 10.0, "memory_mb": 2048, "processes": max(2, min(4, os.cpu_count() or 2))}


class OwnReward:
    """A user's `module:function` or `path/to/file.py:function`, in whet's form or TRL's, unmodified
    (see `custom.CustomReward`).

    A function of a prompt and a sample is called for each response; one of `completions` for each
    problem's responses together. `limit` = { seconds = 10, memory_mb = 2048, processes = 2 } is for
    one call, and how many run at once; what a worker imports is not charged. Statuses: what the
    function returns; timeout (over its seconds, killed) and error (an exception, no number, more
    than its memory, a dead process), both with the reason. All other options are the function's.

    Raises RewardError where the function cannot be imported or called so, or takes no such option.
    """

    def __init__(self, spec: str, limit: Mapping[str, float] | None = None, **options: Any) -> None:
        self.spec = spec
        held = {**LIMIT, **_limit(spec, limit)}
        try:
            named = json.dumps([spec, options])
        except (TypeError, ValueError) as error:
            raise RewardError(f"reward {spec}: its options are no plain data ({error})") from None
        self.seconds = float(held["seconds"])
        env = {**os.environ, NAMED: named}
        self.pool = Pool(
            "whet.rewards.custom.worker:serve",
            int(held["processes"]),
            self.seconds,
            int(held["memory_mb"]),
            env,
        )
        self.batched = bool(self._told(self.pool.map([{}])[0])["batched"])

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N completion texts -> N scores. Raises RewardError where no answer could
        be scored, such as for a missing column.
        """
        calls = list(self._calls(problems))
        columns = (
            dict.fromkeys(str(key) for p in problems for key in p.meta) if self.batched else {}
        )
        results = self.pool.map(
            [self._item(problems[at], texts[at], samples and samples[at], columns) for at in calls]
        )
        return [
            s
            for at, result in zip(calls, results, strict=True)
            for s in self._scores(result, at.stop - at.start)
        ]

    def _calls(self, problems: Sequence[Problem]) -> Iterator[slice]:
        """What is asked in one call: a response, or a problem's responses."""
        if not self.batched:
            yield from (slice(i, i + 1) for i in range(len(problems)))
            return
        start = 0
        for _, same in groupby(problems, key=lambda p: p.id):
            end = start + len(list(same))
            yield slice(start, end)
            start = end

    def _item(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None,
        columns: dict[str, None],
    ) -> dict[str, Any]:
        asked = [
            {
                "id": p.id,
                "messages": [dict(m) for m in p.messages],
                "answer": p.answer,
                "task": p.task,
            }
            | {"meta": {**columns, **{str(k): self._plain(p, v) for k, v in p.meta.items()}}}
            for p in problems
        ]
        drawn = None
        if samples is not None:
            drawn = [
                {
                    "tokens": s.tokens.tolist(),
                    "mask": s.mask.tolist(),
                    "logp": s.logp.tolist(),
                    "text": text,
                }
                | {"finish": s.finish, "version": s.version}
                for s, text in zip(samples, texts, strict=True)
            ]
        return {"problems": asked, "texts": list(texts), "samples": drawn}

    def _plain(self, problem: Problem, value: Any) -> Any:
        """A column's value as a worker can be told it: arrays as lists, dates as text."""
        for form in ("tolist", "isoformat"):
            if hasattr(value, form):
                value = getattr(value, form)()
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            kind = type(value).__name__
            raise RewardError(
                f"reward {self.spec}: problem {problem.id!r} has a {kind}, which is no plain data"
            ) from None
        return value

    def _told(self, result: Result) -> dict[str, Any]:
        """What the worker said. Raises RewardError where it refused."""
        if result.status != "ok":
            return {"failed": f"reward {self.spec}: {result.message}"}
        if "refused" in result.value:
            raise RewardError(result.value["refused"])
        return result.value

    def _scores(self, result: Result, n: int) -> list[Score]:
        told = self._told(result)
        if "scores" in told:
            return [
                Score(value, status, parts, reason)
                for value, status, parts, reason in told["scores"]
            ]
        return [
            Score(0.0, "timeout" if result.status == "timeout" else "error", {}, told["failed"])
        ] * n


def _limit(spec: str, given: Mapping[str, float] | None) -> dict[str, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise RewardError(
            f"reward {spec}: limit = {given!r} is no table such as {{ seconds = 10 }}"
        )
    for name, value in given.items():
        if name not in LIMIT:
            raise RewardError(
                f"reward {spec}: limit has an unknown key {name!r}{did_you_mean(str(name), LIMIT)}"
            )
        whole = name == "seconds" or (isinstance(value, int) and value >= 1)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not whole or not 0 < value < math.inf:
            raise RewardError(f"reward {spec}: limit.{name} = {value!r} must be a number above 0")
    return dict(given)
