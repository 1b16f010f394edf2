"""Logic-RL's scale: a strict format pays +1 or -1, the answer +2, -1.5 or -2 (arXiv:2502.14768,
sec. 2.2).
"""

from collections.abc import Sequence

from whet.errors import RewardError
from whet.rewards.format import FormatReward
from whet.rewards.length import Judged
from whet.types import Problem, Sample, Score

RIGHT, WRONG, UNPARSED = 2.0, -1.5, -2.0


def logic(format_holds: bool, verdict: Score) -> tuple[float, float]:
    """(format, answer) of one response. Totals: 3 right, -0.5 wrong, -1 unparsed, and -3 wherever
    the format fails.

    The paper adds the two scales; its released code does not look at an answer whose format failed
    but scores it as unparsed, and so does this.

    >>> right, wrong, unparsed = Score(1.0), Score(0.0, "wrong"), Score(0.0, "unparsed")
    >>> [sum(logic(*case)) for case in [(True, right), (True, wrong), (True, unparsed), (False, right)]]
    [3.0, -0.5, -1.0, -3.0]
    """
    if not format_holds:
        return -1.0, UNPARSED
    if verdict.correct:
        return 1.0, RIGHT
    return 1.0, UNPARSED if verdict.status == "unparsed" else WRONG


class LogicReward(Judged):
    """`logic` over the verdict of the verifier it is combined with: the whole reward, so give that
    verifier weight 0.

    The format is that of `FormatReward`, whose options it takes. Logged beside the sum:
    logic_format and logic_answer.
    """

    name = "logic"

    def __init__(self, think: str = "think", answer: str = "answer") -> None:
        self.format = FormatReward(think, answer)

    def given(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None,
        verdicts: Sequence[Score],
    ) -> list[Score]:
        """N responses and their verdicts -> N scores."""
        if len(texts) != len(verdicts):
            raise RewardError(f"reward logic: {len(verdicts)} verdicts for {len(texts)} responses")
        return [self._scored(text, verdict) for text, verdict in zip(texts, verdicts, strict=True)]

    def _scored(self, text: str, verdict: Score) -> Score:
        if not verdict.usable:
            return Score(0.0, verdict.status, reason=verdict.reason)
        form, answer = logic(self.format.holds(text), verdict)
        return Score(form + answer, "scored", {"logic_format": form, "logic_answer": answer})
