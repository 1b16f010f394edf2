"""What every stage is handed: the task, its reward, the tokenizer, the log, and the means to sample."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from whet.chat import Chat
from whet.config import Ask
from whet.model.policy import Policy
from whet.rewards import Reward
from whet.rollout import endless
from whet.runlog import RunLog
from whet.types import Engine, Problem, Prompt, Task


@dataclass(frozen=True)
class Context:
    task: Task
    reward: Reward
    chat: Chat
    ask: Ask
    log: RunLog
    seed: int
    engine: Callable[[Policy, Chat], Engine]
    data: dict[str, list[tuple[Problem, str]]]  # by reject stage: (problem, verified response)
    model: Callable[[str], Policy]  # of an earlier stage, a directory or a Hub id

    def prompts(self, problems: Sequence[Problem]) -> list[Prompt]:
        return [self.chat.prompt(p, thinking=self.ask.thinking, system=self.ask.system) for p in problems]

    def some(self, split: Literal["train", "test"], n: int, seed: int) -> list[Prompt]:
        """n problems of a split, as prompts, in an order that the seed fixes; all there are where they are fewer."""
        size = self.task.size(split)
        return self.prompts(self.task.problems(split, n if size is None else min(n, size), seed))

    def stream(self, split: Literal["train", "test"]) -> Iterator[Problem]:
        return endless(self.task, split, self.seed)
