"""What every reward is: a class whose fields are its options, and which scores responses."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import NoReturn, Protocol, runtime_checkable

from pydantic import ConfigDict

from whet.errors import RewardError
from whet.options import Options
from whet.types import Problem, Sample, Score

PROCESSES = max(2, min(4, os.cpu_count() or 2))  # workers of a reward by default


class Reward(Protocol):
    """Scores a batch of responses."""

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N responses (and their samples, where there are any) -> N scores."""
        ...


@runtime_checkable
class PaysByVerdict(Protocol):
    """A reward that depends on the verdict of a verifier, which is another part of the sum."""

    def score_given_verdicts(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None,
        verdicts: Sequence[Score],
    ) -> list[Score]:
        """N problems, responses and verdicts -> N scores."""
        ...


class RewardOptions(Options):
    """A reward, whose fields are its options; `owner` is "reward NAME"."""

    model_config = ConfigDict(allow_inf_nan=False)
    refusal = RewardError


class VerdictReward(RewardOptions):
    """A reward that pays by a verifier's verdict: `CombinedReward` asks `score_given_verdicts`."""

    @abstractmethod
    def pay(self, problem: Problem, text: str, sample: Sample | None, verdict: Score) -> Score:
        """The score of one response whose verifier did not fail."""

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> NoReturn:
        """Raises RewardError: without a verifier there is no verdict."""
        raise RewardError(
            f"{self.owner} pays by a verifier's verdict: "
            "add a [[reward]] that gives one (task, math …); weight = 0 has it only judge"
        )

    def score_given_verdicts(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None,
        verdicts: Sequence[Score],
    ) -> list[Score]:
        """N responses and their verdicts -> N scores; a failed verdict is passed on."""
        if len(texts) != len(verdicts):
            raise RewardError(f"{self.owner}: {len(verdicts)} verdicts for {len(texts)} responses")
        rows = zip(problems, texts, samples or [None] * len(texts), verdicts, strict=True)
        return [
            self.pay(problem, text, sample, verdict)
            if verdict.usable
            else Score(0.0, verdict.status, reason=verdict.reason)
            for problem, text, sample, verdict in rows
        ]


def unparsed() -> Score:
    """The score of a response that holds no answer."""
    return Score(0.0, "unparsed", {"accuracy": 0.0})
