"""What a timed stage is handed in place of the real thing: answers of given lengths, rewards that
are a coin's fall, a clock.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from whet.chat import Chat
from whet.chat.thinking import left
from whet.engines.native import NativeEngine
from whet.engines.requests import Requests
from whet.model.transformer import Transformer
from whet.preflight.dry_run import fallen
from whet.rewards import Reward
from whet.types import Problem, Progress, Prompt, Sample, Sampling, Score

Clock = Callable[[], float]
Texts = Sequence[tuple[int, str]]  # responses, each with its tokens, end of turn included


class Written(NamedTuple):
    """What a model may write: the shortest, the likeliest and the longest of it."""

    least: Texts
    likely: Texts
    most: Texts


class Paced(NativeEngine):
    """The native engine, whose answers have given lengths and texts in place of those that the
    model would choose.
    """

    def __init__(self, model: Transformer, chat: Chat, answers: Texts) -> None:
        super().__init__(model, chat, ())
        self.words, self.answers = chat, answers

    def requests(self, prompts: Sequence[Prompt], sampling: Sampling) -> Requests:
        made = super().requests(prompts, sampling)
        rng = random.Random(f"lengths {sampling.seed}")
        given = rng.choices(self.answers, k=made.total)
        self.given = [
            self.after(prompts[i // sampling.n], *answer) for i, answer in enumerate(given)
        ]
        made.limits = np.array([min(length, sampling.max_tokens) for length, _ in self.given])
        return made

    def after(self, prompt: Prompt, length: int, text: str) -> tuple[int, str]:
        """The answer less what the prompt has begun of it: with thinking off, its thinking."""
        rest = left(prompt, text) if prompt.begun else text
        return (length, text) if rest == text else (len(self.words.response(rest)), rest)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[tuple[Sample, ...]]:
        drawn = super().generate(prompts, sampling, progress)
        given = iter(self.given)
        return [
            tuple(replace(s, text=next(given)[1], finish="stop") for s in group) for group in drawn
        ]


class Paid:
    """The reward, asked as it would be; what it pays is a coin's fall, and the same throughout in
    groups without signal.
    """

    def __init__(self, reward: Reward, signal: float) -> None:
        self.reward, self.signal = reward, signal

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        scores = self.reward.score(problems, texts, samples)
        rows = enumerate(zip(problems, scores, strict=True))
        return [
            fallen(p.id if self.silent(p) else f"{p.id} {i}", s) if s.usable else s
            for i, (p, s) in rows
        ]

    def silent(self, problem: Problem) -> bool:
        return random.Random(f"signal {problem.id}").random() >= self.signal


class Watch:
    """A display that only notes when a stage began and when its steps were over."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.at = clock, list[float]()

    def begin(self, stage: str, kind: str, total: int) -> None:
        self.at = [self.clock()]

    def step(self, done: int, values: Mapping[str, float]) -> None:
        self.at.append(self.clock())

    def warn(self, text: str) -> None: ...
    def end(self) -> None: ...
