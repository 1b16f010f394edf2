"""The format reward: the thinking, then the answer, each in its tags (arXiv:2501.12948, §2.2.2)."""

import re
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from whet.rewards.base import RewardOptions
from whet.types import Problem, Sample, Score


def _tag(word: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w-]*", word):
        raise ValueError("it cannot be a tag; give a word such as 'think'")
    return word


Tag = Annotated[str, AfterValidator(_tag)]
OptionalTag = Annotated[str, AfterValidator(lambda word: word and _tag(word))]


class Layout(RewardOptions):
    """The tags around the thinking and the answer of a response."""

    think: Tag = Field(default="think", description="tag around the thinking")
    answer: OptionalTag = Field(
        default="answer", description='tag around the answer; "": the answer has no tag'
    )

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.think == self.answer:
            raise ValueError(f"think and answer are both {self.think!r}; they must differ")
        return self

    def holds(self, text: str) -> bool:
        """Whether every tag stands once and in order, with an answer and nothing outside."""
        names = [name for name in (self.think, self.answer) if name]
        if any(text.count(f"{start}{name}>") != 1 for name in names for start in ("<", "</")):
            return False
        answer = (
            f"<{self.answer}>(?P<answer>.*)</{self.answer}>" if self.answer else "(?P<answer>.*)"
        )
        layout = rf"\s*<{self.think}>.*</{self.think}>\s*{answer}\s*"
        match = re.fullmatch(layout, text, re.DOTALL)
        return match is not None and bool(match["answer"].strip())


class FormatReward(Layout):
    """1 where a response is exactly `<think>…</think><answer>…</answer>`, else 0.

    Every tag stands once and in order, and the answer is not blank. Space between the parts is
    allowed, anything else is not. With `answer=""` the untagged text after the thinking is the
    answer. The part of the thinking that a prompt has begun belongs to the response.

    >>> texts = ["<think>6*7</think> <answer>42</answer>", "<answer>42</answer>"]
    >>> [score.value for score in FormatReward().score([], texts)]
    [1.0, 0.0]
    """

    owner = "reward format"

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N responses -> N scores, scored (1) or wrong (0); the problems do not matter."""
        return [Score(1.0) if self.holds(text) else Score(0.0, "wrong") for text in texts]
