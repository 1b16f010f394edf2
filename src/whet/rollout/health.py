"""Warnings about a run in plain words, from its last updates. Pure: numbers in, sentences out."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

Values = Mapping[str, float]
JUMP_STEPS, JUMP = 20, 20  # steps of a median, and how many times that median a jump exceeds
# A median below this counts as this: losses of a policy gradient pass through 0.
LEAST = {"grad_norm": 1e-3, "loss": 0.05}


def concerns(history: Sequence[Values], window: int = 5) -> list[str]:
    """Warnings about the newest step; `history` has the figures of each step, oldest first."""
    recent = history[-window:]
    texts = [*_trends(recent, history[0].get("entropy"))] if len(recent) == window else []
    return [*texts, *_jumps(history), *(_faults(history[-1]) if history else ())]


def _trends(recent: Sequence[Values], entropy: float | None) -> Iterator[str]:
    """Warnings about the last few steps; `entropy` is that of the first step."""
    last = recent[-1]
    if all(v.get("tokens", 1.0) == 0 for v in recent):
        why = "the task is too hard, or the reward never pays"
        if last.get("reward", 0.0) >= 1:
            why = "all answers are right: the task is solved"
        yield f"no group has had signal for {len(recent)} steps, so nothing is learned ({why})"
    if sum(v.get("truncated", 0.0) for v in recent) / len(recent) > 0.2:
        yield "more than a fifth of the answers are cut off at max_tokens: raise it, or shape the length"
    if entropy and last.get("entropy", entropy) < 0.1 * entropy and last.get("accuracy", 1.0) < 0.5:
        yield (
            "entropy has fallen below a tenth of its start while most answers are wrong: "
            "exploration is collapsing"
        )
    if all(v.get("explained", 0.0) < -0.1 for v in recent):
        yield (
            "the critic predicts returns worse than their mean would: give it a warm-up (override "
            "warmup), or a lower learning rate (critic = { lr = ... })"
        )
    if all(v.get("unparsed", 0.0) > 0.9 for v in recent):
        yield (
            "over nine tenths of the answers cannot be parsed: check the prompt's format against "
            "the reward's"
        )


def _jumps(history: Sequence[Values]) -> Iterator[str]:
    for key, name in (("grad_norm", "the gradient's norm"), ("loss", "the loss")):
        sizes = [abs(v[key]) for v in history[-JUMP_STEPS:] if key in v]
        if len(sizes) == JUMP_STEPS and sizes[-1] > JUMP * max(median(sizes[:-1]), LEAST[key]):
            yield (
                f"{name} has jumped to over {JUMP} times its median of the last {JUMP_STEPS} "
                "steps: lower the learning rate"
            )


def _faults(last: Values) -> Iterator[str]:
    if last.get("gap", 0.0) > 1e-2:
        yield "sampler and trainer disagree on a token's log-probability by more than 0.01"
    if last.get("errors", 0.0) > 0:
        yield "the verifier failed on some samples (timeout or error); they are left out of the update"
