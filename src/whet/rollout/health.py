"""Plain-word warnings about a run, from its last updates. Pure: numbers in, sentences out."""

from collections.abc import Mapping, Sequence
from statistics import median

Values = Mapping[str, float]
SEEN, SPIKE = 20, 20  # steps, and how many times their median makes a jump
LEAST = {
    "grad_norm": 1e-3,
    "loss": 0.05,
}  # a median below this is taken for this: losses of a policy's gradient pass through 0


def concerns(history: Sequence[Values], window: int = 5) -> list[str]:
    """What a person should know after the newest of `history` (one entry a step of RL, oldest
    first).
    """
    recent = history[-window:]
    found: list[str] = []
    if len(recent) == window:
        if all(v.get("tokens", 1.0) == 0 for v in recent):
            reward = recent[-1].get("reward", 0.0)
            why = (
                "all answers are right: the task is solved"
                if reward >= 1
                else "the task is too hard, or the reward never pays"
            )
            found.append(
                f"no group has had signal for {window} steps, so nothing is learned ({why})"
            )
        truncated = sum(v.get("truncated", 0.0) for v in recent) / window
        if truncated > 0.2:
            found.append(
                "more than a fifth of the answers are cut off at max_tokens: raise it, or shape the length"
            )
        started = history[0].get("entropy")
        now = recent[-1].get("entropy")
        if (
            started
            and now is not None
            and now < 0.1 * started
            and recent[-1].get("accuracy", 1.0) < 0.5
        ):
            found.append(
                "entropy has fallen below a tenth of its start while most answers are wrong: exploration is collapsing"
            )
        if all(v.get("explained", 0.0) < -0.1 for v in recent):
            found.append(
                "the critic predicts returns worse than their mean would: give it a warm-up (override warmup), or a lower learning rate (critic = { lr = ... })"
            )
        if all(v.get("unparsed", 0.0) > 0.9 for v in recent):
            found.append(
                "over nine tenths of the answers cannot be parsed: check the prompt's format against the reward's"
            )
    for key, name in (("grad_norm", "the gradient's norm"), ("loss", "the loss")):
        sizes = [abs(v[key]) for v in history[-SEEN:] if key in v]
        if len(sizes) == SEEN and sizes[-1] > SPIKE * max(median(sizes[:-1]), LEAST[key]):
            found.append(
                f"{name} has jumped to over {SPIKE} times its median of the last {SEEN} steps: lower the learning rate"
            )
    if history and history[-1].get("gap", 0.0) > 1e-2:
        found.append("sampler and trainer disagree on a token's log-probability by more than 0.01")
    if history and history[-1].get("errors", 0.0) > 0:
        found.append(
            "the verifier failed on some samples (timeout or error); they are left out of the update"
        )
    return found
