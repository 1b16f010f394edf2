"""Pays for form alone: the thinking, then the answer, each in its tags (the format reward of
arXiv:2501.12948, §2.2.2).
"""

import re
from collections.abc import Sequence

from whet.errors import RewardError
from whet.types import Problem, Sample, Score


class FormatReward:
    """1 where a response is exactly `<think>…</think><answer>…</answer>`: every tag once, in order,
    the answer not blank.

    Space between the parts is allowed, anything else is not. `answer=""`: the answer is what
    follows the thinking, untagged. What a prompt has begun of the thinking is part of the response.
    Raises RewardError for what cannot be a tag.

    >>> one, two = FormatReward().score([], ["<think>6*7</think> <answer>42</answer>", "<answer>42</answer>"])
    >>> one.value, two.value
    (1.0, 0.0)
    """

    name = "format"

    def __init__(self, think: str = "think", answer: str = "answer") -> None:
        for tag in (think, answer or think):
            if not isinstance(tag, str) or not re.fullmatch(r"[A-Za-z][\w-]*", tag):
                raise RewardError(
                    f"reward format: {tag!r} cannot be a tag; give a word such as 'think'"
                )
        if think == answer:
            raise RewardError(
                f"reward format: think and answer are both {think!r}; they must differ"
            )
        self.start = f"<{think}>"
        self.ends = [f"</{think}>", *([f"<{answer}>", f"</{answer}>"] if answer else [])]
        self.tags = [self.start, *self.ends]

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N completion texts -> N scores, scored (1) or wrong (0); the problems do not matter."""
        return [Score(1.0, "scored") if self.holds(text) else Score(0.0, "wrong") for text in texts]

    def holds(self, text: str) -> bool:
        if any(text.count(tag) != 1 for tag in self.tags):
            return False
        before, _, rest = text.partition(self.start)
        if before.strip():
            return False
        _, _, rest = rest.partition(self.ends[0])
        if len(self.ends) == 1:
            return bool(rest.strip())
        between, _, rest = rest.partition(self.ends[1])
        answer, end, after = rest.partition(self.ends[2])
        return bool(end) and not between.strip() and bool(answer.strip()) and not after.strip()
