"""Rewards by name: how one is loaded, and which options it takes."""

from importlib import import_module
from typing import Any, cast

from whet.errors import RewardError, did_you_mean
from whet.options import Option
from whet.options import options as options_of
from whet.rewards.base import Reward, RewardOptions

_CUSTOM = "whet.rewards.custom.custom:CustomReward"
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


def names() -> dict[str, str]:
    """The built-in rewards, each with what it pays for."""
    return {name: about for name, (_, about) in _BUILT_IN.items()}


def load(name: str, **options: Any) -> Reward:
    """A built-in reward by name, or your own `module:function` or `path/to/file.py:function`.

    Raises RewardError, in one line, for an unknown name, for options that do not fit, and for a
    function that cannot be imported.

    >>> load("maths")
    Traceback (most recent call last):
    whet.errors.RewardError: unknown reward 'maths'; did you mean 'math'?
    """
    if ":" in name:
        options["spec"] = name
    return cast(Reward, model(name)(**options))


def options(name: str) -> list[Option]:
    """The options of a reward, as `load` takes them. Raises RewardError for an unknown name."""
    return [option for option in options_of(model(name)) if option.name != "spec"]


def model(name: str) -> type[RewardOptions]:
    """The class of a reward, whose fields are its options. Raises RewardError."""
    if name == "task":
        raise RewardError("reward 'task' is the task's own verifier: it needs a recipe with a task")
    if ":" not in name and name not in _BUILT_IN:
        known = [*_BUILT_IN, "task", "module:function"]
        raise RewardError(f"unknown reward {name!r}{did_you_mean(name, known)}")
    module, _, kind = (_CUSTOM if ":" in name else _BUILT_IN[name][0]).partition(":")
    return getattr(import_module(module), kind)
