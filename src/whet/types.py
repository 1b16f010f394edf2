"""The data of a run: Problem -> Prompt -> Sample -> Score -> Group -> (batch) -> Update. No torch.

Index t always speaks of `tokens[t]`: `mask[t]` says whether the policy chose that token, `logp[t]`
is the log-probability under the policy that chose it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Finish = Literal["stop", "length"]
Status = Literal["scored", "wrong", "unparsed", "timeout", "error"]
Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True, slots=True)
class Problem:
    """One question of a task, before any tokenizer.

    `answer` is for the verifier; the policy never sees it.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    task: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as one model reads it.

    `problem.meta["thinking"]` is the state of the template's thinking switch, where it has one.
    """

    problem: Problem
    tokens: tuple[int, ...]  # [P]
    # the start of the answer that the prompt ends with: thinking that is open, or shut and empty
    begun: str = ""

    @property
    def id(self) -> str:
        return self.problem.id


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn.

    Temperature 0 is greedy; its log-probabilities are those at temperature 1.
    """

    n: int = 8
    temperature: float = 1.0
    max_tokens: int = 1024
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One completion of one prompt.

    Raises ValueError where the arrays disagree, the first token claims to be chosen, or a
    log-probability of a chosen token is not a finite number <= 0.
    """

    tokens: NDArray[np.int64]  # [T] prompt, then completion
    mask: NDArray[np.bool_]  # [T] True where the policy chose the token
    logp: NDArray[np.float32]  # [T] under the distribution sampled from; 0 where mask is False
    text: str  # the completion, special tokens left out
    finish: Finish
    version: int = 0  # of the weights that sampled

    def __post_init__(self) -> None:
        lengths = len(self.tokens), len(self.mask), len(self.logp)
        if len(set(lengths)) > 1:
            raise ValueError(
                f"Sample: tokens, mask and logp have lengths {lengths}; they must be equal"
            )
        if len(self.mask) and self.mask[0]:
            raise ValueError(
                "Sample: the first token has no predecessor, so no policy can have chosen it"
            )
        chosen = self.logp[self.mask]
        if not np.isfinite(chosen).all() or (chosen > 1e-4).any():
            raise ValueError(
                "Sample: log-probabilities of chosen tokens must be finite and not above 0"
            )

    @property
    def length(self) -> int:
        """Tokens the policy chose, end of sequence included."""
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class Score:
    """A verifier's verdict. Samples with `timeout` or `error`, its failures, are not trained on."""

    value: float
    status: Status = "scored"
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    reason: str = ""  # of a timeout or an error, in one line

    @property
    def usable(self) -> bool:
        return self.status not in ("timeout", "error")

    @property
    def correct(self) -> bool:
        """Whether accuracy counts it: its part `accuracy`, or else its value, is above one half."""
        return self.usable and self.parts.get("accuracy", self.value) > 0.5


@dataclass(frozen=True, slots=True)
class Group:
    """The G samples of one prompt, with their scores."""

    prompt: Prompt
    samples: tuple[Sample, ...]  # [G]
    scores: tuple[Score, ...]  # [G]

    @property
    def texts(self) -> list[str]:
        """[G] whole answers: the start that the prompt has written, and the completion."""
        return [self.prompt.begun + s.text for s in self.samples]

    @property
    def rewards(self) -> list[float]:
        return [s.value for s in self.scores]

    @property
    def usable(self) -> "Group":
        """The group without the samples whose verifier failed."""
        keep = [i for i, s in enumerate(self.scores) if s.usable]
        if len(keep) == len(self.scores):
            return self
        return Group(
            self.prompt, tuple(self.samples[i] for i in keep), tuple(self.scores[i] for i in keep)
        )

    @property
    def has_signal(self) -> bool:
        """Whether rewards differ: where all are equal, every group-relative advantage is 0."""
        return len(self.scores) > 1 and max(self.rewards) > min(self.rewards)


@dataclass(frozen=True, slots=True)
class Ranking:
    """K >= 2 different responses to one problem, best first."""

    problem: Problem
    texts: tuple[str, ...]  # [K]


@dataclass(frozen=True, slots=True)
class Update:
    """The figures of one step: plain numbers, one line of metrics.jsonl."""

    stage: str
    step: int
    values: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # by phase


class Task(Protocol):
    """Problems and what counts as solving them. A split never shares a problem with another."""

    @property
    def name(self) -> str: ...

    @property
    def modes(self) -> tuple[str, ...]:
        """Ways of answering that the task can tell apart; empty where it cannot."""
        ...

    def size(self, split: Literal["train", "test"]) -> int | None:
        """The number of different problems; None where they are made as needed, without end."""
        ...

    def problems(self, split: Literal["train", "test"], n: int, seed: int) -> list[Problem]:
        """n different problems, in an order that the seed fixes.

        Raises DataError where there are fewer.
        """
        ...

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]: ...

    def mode(self, problem: Problem, text: str) -> str: ...

    def alphabet(self) -> str:
        """Every character its prompts and corpus use, for tokenizers made from nothing."""
        ...

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        """n (training problem, response text) pairs; `mix` gives the share of each mode."""
        ...


@runtime_checkable
class Ranker(Protocol):
    """A task that knows which of several responses a person would prefer."""

    def rank(self, problem: Problem, texts: Sequence[str], rng: random.Random) -> list[int]:
        """Indices of the K texts, best first; `rng` is the labeller's noise."""
        ...


class Engine(Protocol):
    """Draws completions. One call has all prompts: the engine batches, drops finished rows, refills."""

    version: int  # of the weights, stamped on samples

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[tuple[Sample, ...]]:
        """P prompts -> P tuples of `sampling.n` samples, in order."""
        ...
