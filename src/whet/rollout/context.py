"""The context of a stage: the task, its reward, the tokenizer, the log, and the means to sample."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from whet.chat import Chat
from whet.chat.thinking import left
from whet.config import Ask
from whet.config.thinking import stands
from whet.errors import ModelError
from whet.model.policy import Policy
from whet.rewards import Reward
from whet.rollout.rollout import endless
from whet.storage.checkpoint import Checkpoints
from whet.storage.run_log import RunLog
from whet.types import Engine, Problem, Prompt, Sample, Task


@dataclass(frozen=True)
class Context:
    task: Task
    reward: Reward
    chat: Chat
    ask: Ask
    log: RunLog
    seed: int
    engine: Callable[[Policy, Chat], Engine]
    model: Callable[[str], Policy]  # of an earlier stage, a directory or a Hub id
    # of the stage; by default none are written
    checkpoints: Checkpoints = field(default_factory=lambda: Checkpoints(Path(), every=1 << 62))

    def prompts(
        self, problems: Sequence[Problem], seed: int | None = None, thinking: bool | None = None
    ) -> list[Prompt]:
        """The problems as prompts of the model.

        `thinking` sets the template's thinking switch; None leaves it to the problem's meta, and
        then to the recipe. Where the recipe has a share, a hash of the problem's id and the seed
        (by default the context's) decides.
        """
        return [self._prompt(p, self.seed if seed is None else seed, thinking) for p in problems]

    def _prompt(self, problem: Problem, seed: int, thinking: bool | None) -> Prompt:
        if thinking is None:
            own = problem.meta.get("thinking")
            thinking = (
                own if isinstance(own, bool) else stands(self.ask.thinking, f"{seed} {problem.id}")
            )
        if thinking is not None:
            problem = replace(problem, meta={**problem.meta, "thinking": thinking})
        return self.chat.prompt(problem, thinking=thinking, system=self.ask.system)

    def some(
        self, split: Literal["train", "test"], n: int, seed: int, thinking: bool | None = None
    ) -> list[Prompt]:
        """n problems of a split as prompts, in an order that the seed fixes; a small split has
        fewer.
        """
        size = self.task.size(split)
        problems = self.task.problems(split, n if size is None else min(n, size), seed)
        return self.prompts(problems, seed, thinking)

    def policy(self, source: str) -> Policy:
        """A model, as `model` loads it. Raises ModelError for a reward model."""
        policy = self.model(source)
        if policy.config.scalar:
            raise ModelError(f"{source} is a reward model: it scores texts and cannot write any")
        return policy

    def example(self, problem: Problem, response: str, seed: int | None = None) -> Sample:
        """A problem and a response to learn, as a sample that ends with the end of the turn.

        The response is the whole answer, thinking included. The part of it that the prompt has
        begun is not trained on; with thinking off its thinking is left out. Raises DataError where
        nothing is left to train on.
        """
        prompt = self.prompts([problem], seed)[0]
        text = left(prompt, response)
        answer = self.chat.response(text)
        mask = np.concatenate([np.zeros(len(prompt.tokens), bool), np.ones(len(answer), bool)])
        return Sample(
            np.array([*prompt.tokens, *answer]), mask, np.zeros(len(mask), np.float32), text, "stop"
        )

    def stream(self, split: Literal["train", "test"]) -> Iterator[Problem]:
        """The problems of a split without end."""
        return endless(self.task, split, self.seed)
