"""Logic-RL's scale: a strict format pays +1 or -1, the answer +2, -1.5 or -2 (arXiv:2502.14768,
sec. 2.2).
"""

from whet.rewards.base import VerdictReward
from whet.rewards.format import Layout
from whet.types import Problem, Sample, Score

RIGHT, WRONG, UNPARSED = 2.0, -1.5, -2.0


def logic(format_holds: bool, verdict: Score) -> tuple[float, float]:
    """(format, answer) of one response. Totals: 3 right, -0.5 wrong, -1 unparsed, and -3 wherever
    the format fails.

    The paper adds the two scales; its released code does not look at an answer whose format failed
    but scores it as unparsed, and so does this.

    >>> right, wrong, unparsed = Score(1.0), Score(0.0, "wrong"), Score(0.0, "unparsed")
    >>> cases = [(True, right), (True, wrong), (True, unparsed), (False, right)]
    >>> [sum(logic(*case)) for case in cases]
    [3.0, -0.5, -1.0, -3.0]
    """
    if not format_holds:
        return -1.0, UNPARSED
    if verdict.correct:
        return 1.0, RIGHT
    return 1.0, UNPARSED if verdict.status == "unparsed" else WRONG


class LogicReward(Layout, VerdictReward):
    """`logic` over the verdict of the verifier beside it: the whole reward, so give that verifier
    weight 0.

    The format is that of `FormatReward`. Logged beside the sum: logic_format and logic_answer.
    """

    owner = "reward logic"

    def pay(self, problem: Problem, text: str, sample: Sample | None, verdict: Score) -> Score:
        form, answer = logic(self.holds(text), verdict)
        return Score(form + answer, "scored", {"logic_format": form, "logic_answer": answer})
