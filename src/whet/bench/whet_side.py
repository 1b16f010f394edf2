"""whet's side: the RL stage as `whet run` runs it, log and samples included, with fixed lengths."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from whet import config
from whet.bench.workload import Workload
from whet.chat import Chat
from whet.engines.native import NativeEngine
from whet.engines.requests import Requests
from whet.model import pretrained
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.rollout.context import Context
from whet.stages import rl
from whet.storage.run_log import RunLog
from whet.types import Problem, Prompt, Sample, Sampling, Score, Update


class Fixed(NativeEngine):
    """The native engine, but every answer has the workload's length; no token ends it before."""

    def __init__(self, model: Transformer, chat: Chat, work: Workload) -> None:
        super().__init__(model, chat, ())
        self.work, self.calls = work, 0

    def requests(self, prompts: Sequence[Prompt], sampling: Sampling) -> Requests:
        made = super().requests(prompts, sampling)
        made.limits = self.work.lengths(self.calls)
        self.calls += 1
        return made


class Words:
    """The workload as a task: its questions, and rewards that do not read the answer."""

    name, modes = "words", ()

    def __init__(self, work: Workload) -> None:
        self.work, self.asked = work, 0

    def size(self, split: Literal["train", "test"]) -> int | None:
        return None

    def problems(self, split: Literal["train", "test"], n: int, seed: int) -> list[Problem]:
        texts = [q for step in range(-(-n // self.work.prompts)) for q in self.work.questions(step)]
        return [
            Problem(f"{i}", ({"role": "user", "content": text},))
            for i, text in enumerate(texts[:n])
        ]

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        return [Score(value) for value in self.work.rewards()]

    def mode(self, problem: Problem, text: str) -> str:
        return ""

    def alphabet(self) -> str:
        return ""

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        return []


class Clock(RunLog):
    """A log that also measures the seconds of each step."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.steps: list[dict[str, float]] = []
        self.last = time.perf_counter()

    def update(self, update: Update, kind: str) -> None:
        super().update(update, kind)
        now = time.perf_counter()
        phases = {k: v for k, v in update.seconds.items() if k in ("sample", "update")}
        self.steps.append({"step": now - self.last, **phases})
        self.last = now


def stage(work: Workload, steps: int, lr: float = 1e-6) -> config.RL:
    """Dr. GRPO: every token weighs 1 / (answers x cap), as in TRL's loss_type of the same name."""
    override: dict[str, Any] = {"updates": work.updates}
    if work.beta:
        override |= {"beta": work.beta, "kl": "k3"}
    return config.RL(
        name="rl", kind="rl", algorithm="dr_grpo", override=override, steps=steps,
        prompts=work.prompts, samples=work.samples,
        max_tokens=work.cap, temperature=1.0, probe=0, optimizer=config.Optimizer(lr=lr, max_grad_norm=1.0),
    )  # fmt: skip


def context(work: Workload, chat: Chat, log: RunLog, policy: Policy) -> Context:
    task = Words(work)
    engine = Fixed(policy, chat, work) if isinstance(policy, Transformer) else None
    assert engine is not None
    return Context(
        task, task, chat, config.Ask(), log, 0, lambda model, chat: engine, lambda name: policy
    )


def loaded(directory: Path) -> Policy:
    """The model, on a GPU in bfloat16 if there is one (`whet bench` hides it from a CPU's bench)."""
    device, dtype = (
        ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    )
    return pretrained.load(directory, dtype, device)


def run(work: Workload, directory: Path, steps: int) -> list[dict[str, float]]:
    """Seconds of each step: the whole, sampling, update."""
    policy, chat = loaded(directory), Chat.load(directory)
    with tempfile.TemporaryDirectory() as scratch:
        log = Clock(Path(scratch))
        rl.run(policy, stage(work, steps), context(work, chat, log, policy))
    return log.steps


def sample(work: Workload, directory: Path, steps: int) -> list[dict[str, float]]:
    """Seconds of sampling each step's answers."""
    policy, chat = loaded(directory), Chat.load(directory)
    assert isinstance(policy, Transformer)
    engine, seconds = Fixed(policy, chat, work), list[dict[str, float]]()
    for step in range(steps):
        prompts = [
            chat.prompt(Problem(f"{i}", ({"role": "user", "content": q},)))
            for i, q in enumerate(work.questions(step))
        ]
        began = time.perf_counter()
        drawn = engine.generate(prompts, Sampling(work.samples, 1.0, work.cap, seed=step))
        seconds.append({"sample": time.perf_counter() - began})
        assert [s.length for group in drawn for s in group] == work.lengths(step).tolist()
    return seconds
