"""Your own reward function, the side that asks: the function runs in workers, which can be killed,
and all it can break is one answer's score.
"""

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from whet.errors import RewardError
from whet.rewards.base import PROCESSES, RewardOptions
from whet.rewards.custom.function import SPEC_VARIABLE
from whet.sandbox.pool import Pool, Result
from whet.types import Problem, Sample, Score


class Limit(BaseModel):
    """What one call of a user's function may take."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    seconds: float = Field(default=10.0, gt=0, description="wall-clock of one call")
    memory_mb: int = Field(default=2048, ge=1, description="memory of a worker beyond its imports")
    processes: int | None = Field(
        default=None, ge=1, description="calls that run at once; default: one for each core, 2 to 4"
    )


class CustomReward(RewardOptions):
    """A user's `module:function` or `path/to/file.py:function`, in whet's form or TRL's, unmodified
    (see `function.UserFunction`).

    A function of a prompt and a sample is called for each response; one of `completions` for each
    problem's responses together. Statuses: the function's own; timeout (over its seconds, killed)
    and error (an exception, no number, more than its memory, a dead process), both with the reason.
    Further options are the function's keywords.

    Raises RewardError where the function cannot be imported or called so, or takes no such option.
    """

    model_config = ConfigDict(extra="allow")
    owner = "reward {spec}"
    spec: str = Field(description="module:function or path/to/file.py:function")
    limit: Limit = Field(default=Limit(), strict=False, description="limits of one call")

    @cached_property
    def pool(self) -> Pool:
        try:
            function = json.dumps([self.spec, self.model_extra])
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {self.spec}: its options are no plain data ({error})"
            ) from None
        worker, limit = "whet.rewards.custom.worker:serve", self.limit
        env = {**os.environ, SPEC_VARIABLE: function}
        return Pool(worker, limit.processes or PROCESSES, limit.seconds, limit.memory_mb, env)

    @cached_property
    def batched(self) -> bool:
        """Whether the function takes many responses at once, as TRL's do."""
        return bool(self._reply(self.pool.map([{}])[0])["batched"])

    def model_post_init(self, _: object) -> None:
        _ = self.batched  # the first call imports the function

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N responses -> N scores. Raises RewardError where no answer could be
        scored, such as for a missing column.
        """
        calls = list(self._calls(problems))
        columns = dict.fromkeys(str(k) for p in problems for k in p.meta) if self.batched else {}
        items = [
            {
                "problems": [self._problem(p, columns) for p in problems[at]],
                "texts": list(texts[at]),
                "samples": samples and list(map(_sample, samples[at], texts[at])),
            }
            for at in calls
        ]
        results = zip(calls, self.pool.map(items), strict=True)
        return [s for at, result in results for s in self._scores(result, at.stop - at.start)]

    def _calls(self, problems: Sequence[Problem]) -> Iterator[slice]:
        """The responses of each call: one, or all of a problem."""
        if not self.batched:
            yield from (slice(i, i + 1) for i in range(len(problems)))
            return
        start = 0
        for _, same in groupby(problems, key=lambda p: p.id):
            end = start + len(list(same))
            yield slice(start, end)
            start = end

    def _problem(self, problem: Problem, columns: dict[str, None]) -> dict[str, Any]:
        return {
            "id": problem.id,
            "messages": [dict(message) for message in problem.messages],
            "answer": problem.answer,
            "task": problem.task,
            "meta": {
                **columns,
                **{str(k): self._plain(problem, v) for k, v in problem.meta.items()},
            },
        }

    def _plain(self, problem: Problem, value: Any) -> Any:
        """A column's value as plain data: arrays as lists, dates as text."""
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

    def _reply(self, result: Result) -> dict[str, Any]:
        """The worker's reply. Raises RewardError where it refuses to serve."""
        if result.status != "ok":
            return {"failed": f"reward {self.spec}: {result.message}"}
        if "refused" in result.value:
            raise RewardError(result.value["refused"])
        return result.value

    def _scores(self, result: Result, n: int) -> list[Score]:
        reply = self._reply(result)
        if "scores" in reply:
            return [Score(*score) for score in reply["scores"]]
        status = "timeout" if result.status == "timeout" else "error"
        return [Score(0.0, status, {}, reply["failed"])] * n


def _sample(sample: Sample, text: str) -> dict[str, Any]:
    """A sample as plain data; `text` is the whole answer that is judged."""
    return {
        "tokens": sample.tokens.tolist(),
        "mask": sample.mask.tolist(),
        "logp": sample.logp.tolist(),
        "text": text,
        "finish": sample.finish,
        "version": sample.version,
    }
