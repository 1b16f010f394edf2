"""Rewards by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from whet.errors import RewardError, did_you_mean
from whet.types import Problem, Sample, Score

_BUILT_IN = {
    "math": ("whet.rewards.math:MathReward", "1 where the final answer equals the problem's answer mathematically"),
    "format": ("whet.rewards.format:FormatReward", "1 where the response is <think>…</think><answer>…</answer>"),
}


class Reward(Protocol):
    """Judges a batch: N problems and N completion texts (and their samples, where there are any) -> N scores."""

    def score(
        self, problems: Sequence[Problem], texts: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Score]: ...


def names() -> dict[str, str]:
    """The built-in rewards, each with what it pays for."""
    return {name: what for name, (_, what) in _BUILT_IN.items()}


def load(spec: str, **options: Any) -> Reward:
    """A built-in reward by name, or your own function: `module:function` or `path/to/file.py:function`.

    Raises RewardError, in one line, for a name or an option that there is not, and for a function that cannot be imported.

    >>> load("maths")
    Traceback (most recent call last):
    whet.errors.RewardError: unknown reward 'maths'; did you mean 'math'?
    """
    if ":" in spec:
        from whet.rewards.custom import CustomReward

        return CustomReward(spec, options)
    if spec == "task":
        raise RewardError("reward 'task' is the task's own verifier: it needs a recipe with a task")
    if spec not in _BUILT_IN:
        raise RewardError(f"unknown reward {spec!r}{did_you_mean(spec, [*_BUILT_IN, 'task', 'module:function'])}")
    module, _, name = _BUILT_IN[spec][0].partition(":")
    kind: Callable[..., Reward] = getattr(import_module(module), name)
    check_options(f"reward {spec}", options, inspect.signature(kind).parameters)
    return kind(**options)


def check_options(what: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises RewardError for an option that is not among the known ones."""
    for option in options:
        if option not in known:
            suffix = did_you_mean(option, known) if known else "; it takes none"
            raise RewardError(f"{what}: unknown option {option!r}{suffix}")
