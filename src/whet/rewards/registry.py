"""Rewards by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from whet.errors import RewardError, did_you_mean
from whet.types import Problem, Sample, Score

_BUILT_IN = {
    "math": (
        "whet.rewards.math.verifier:MathReward",
        "1 where the final answer equals the problem's answer mathematically",
    ),
    "format": (
        "whet.rewards.format:FormatReward",
        "1 where the response is <think>…</think><answer>…</answer>",
    ),
    "code": (
        "whet.rewards.code.verifier:CodeReward",
        "1 where the program passes the problem's tests, run isolated",
    ),
    "choice": (
        "whet.rewards.choice:ChoiceReward",
        "1 where the one letter stated last is the right choice",
    ),
    "logic": (
        "whet.rewards.logic:LogicReward",
        "Logic-RL's scale of format and answer, 3 to -3, over a verifier's verdict",
    ),
    "learned": (
        "whet.rewards.learned:LearnedReward",
        "the score of a reward model: a stage's, a directory's or the Hub's",
    ),
    "judge": (
        "whet.rewards.judge.judge:JudgeReward",
        "how likely a judging model holds the answer right, given the reference",
    ),
    "language": (
        "whet.rewards.language:LanguageReward",
        "the share of the thinking's words in a language's script",
    ),
    "length_kimi": (
        "whet.rewards.length:KimiLength",
        "short among the group's answers, 0.5 to -0.5 (Kimi k1.5)",
    ),
    "lcpo_exact": (
        "whet.rewards.length:LcpoExact",
        "minus the distance to the length asked for (L1)",
    ),
    "lcpo_max": ("whet.rewards.length:LcpoMax", "right, and within the length asked for (L1)"),
    "budget_error": (
        "whet.rewards.length:BudgetError",
        "the relative distance to the length asked for, to be logged",
    ),
    "overlong": (
        "whet.rewards.length:Overlong",
        "0 to -1 over the last tokens before the limit (DAPO)",
    ),
    "cosine": (
        "whet.rewards.length:Cosine",
        "short where right, long where wrong (arXiv:2502.03373)",
    ),
}


class Reward(Protocol):
    """Judges a batch: N problems and N completion texts (and their samples, where there are any) ->
    N scores.
    """

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]: ...


@runtime_checkable
class Judging(Protocol):
    """A part that pays by the verdict of a verifier beside it: N problems, texts and verdicts -> N
    scores.
    """

    def given(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None,
        verdicts: Sequence[Score],
    ) -> list[Score]: ...


def names() -> dict[str, str]:
    """The built-in rewards, each with what it pays for."""
    return {name: what for name, (_, what) in _BUILT_IN.items()}


def load(spec: str, **options: Any) -> Reward:
    """A built-in reward by name, or your own function: `module:function` or
    `path/to/file.py:function`.

    Raises RewardError, in one line, for a name or an option that there is not, and for a function
    that cannot be imported.

    >>> load("maths")
    Traceback (most recent call last):
    whet.errors.RewardError: unknown reward 'maths'; did you mean 'math'?
    """
    if ":" in spec:
        from whet.rewards.custom.custom import OwnReward

        return OwnReward(spec, **options)
    if spec == "task":
        raise RewardError("reward 'task' is the task's own verifier: it needs a recipe with a task")
    if spec not in _BUILT_IN:
        raise RewardError(
            f"unknown reward {spec!r}{did_you_mean(spec, [*_BUILT_IN, 'task', 'module:function'])}"
        )
    module, _, name = _BUILT_IN[spec][0].partition(":")
    kind: Callable[..., Reward] = getattr(import_module(module), name)
    parameters = inspect.signature(kind).parameters
    check_options(f"reward {spec}", options, parameters)
    for name, parameter in parameters.items():
        if (
            parameter.default is parameter.empty
            and parameter.kind is not parameter.VAR_KEYWORD
            and name not in options
        ):
            raise RewardError(f"reward {spec}: the option {name!r} is missing")
    return kind(**options)


def check_options(what: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises RewardError for an option that is not among the known ones."""
    for option in options:
        if option not in known:
            suffix = did_you_mean(option, known) if known else "; it takes none"
            raise RewardError(f"{what}: unknown option {option!r}{suffix}")
