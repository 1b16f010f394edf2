"""How long a recipe takes on this machine: a few steps of each stage at their real size, timed,
times how many there will be.

What nobody knows before is when a gate holds, how long answers become and how many groups still
have signal. Each is taken at its least, at its likeliest and at its most. Answers are as long as
the task's corpus writes them: an untrained model's own would be unlike a trained one's.
"""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from whet import config
from whet.chat import Chat
from whet.config.thinking import measured
from whet.engines import engine_for
from whet.errors import WhetError
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.pipeline.pipeline import Pipeline
from whet.pipeline.setup import origin
from whet.preflight.forecast.estimate import Estimate, Span, said, spanned, total
from whet.preflight.forecast.pace import Clock, Paced, Paid, Texts, Watch, Written
from whet.rollout.context import Context
from whet.rollout.rollout import rollout
from whet.stages.sft import BLOCK
from whet.types import Engine, Sampling

STEPS = {
    "rl": 5
}  # of a stage that are timed; the later half tells, when caches and allocations have settled
OTHERS = 30  # steps of the other kinds
WARM = 2  # rollouts of a critic's warm-up, before the steps
ANSWERS = 512  # drawn at most where a stage or a measurement draws once
SOME = 64  # responses whose lengths stand for all
RAMP = 10  # updates in which answers become what pays, as they do in the miniatures
BRIEF = ("length_kimi", "cosine")  # rewards that pay for fewer tokens
SIGNAL = Span(0.25, 0.5, 1.0)  # share of the groups whose rewards differ


def forecast(recipe: config.Recipe, clock: Clock = time.perf_counter) -> list[Estimate]:
    """An estimate for each stage. Raises WhetError where a stage cannot be timed on made-up
    answers.
    """
    with TemporaryDirectory() as scratch:
        timed = Timed.of(brief(recipe), Path(scratch) / "forecast", None)
        timed.watch = Watch(clock)
        timed.context.log.display = timed.watch
        return [timed.estimate(stage) for stage in recipe.stage]


def told(estimates: Iterable[Estimate]) -> str:
    """One line: the whole, and the stages that take long."""
    found = list(estimates)
    whole = total([e.seconds for e in found])
    longest = sorted(found, key=lambda e: -e.seconds.likely)[:4]
    parts = [e.told() for e in found if e in longest and e.seconds.likely > 0.05 * whole.likely]
    return f"about {said(whole)}: {', '.join(parts)}"


def brief(recipe: config.Recipe) -> config.Recipe:
    """The same recipe with a few steps for each stage, of their real size, and without gates."""
    held = recipe.model_dump(exclude_none=True)
    for stage, given in zip(recipe.stage, held["stage"], strict=True):
        given.pop("gate", None)
        if "steps" in given:
            given["steps"] = min(given["steps"], STEPS.get(stage.kind, OTHERS))
        if isinstance(stage, config.Reject | config.Rank):
            given["problems"] = _fewer(stage.problems, stage.samples)
        if isinstance(stage, config.RL) and stage.row.warmup:
            given |= {"steps": WARM + STEPS["rl"], "override": {**stage.override, "warmup": WARM}}
    return config.Recipe.model_validate(held)


def cases(stage: config.AnyStage, before: Written, after: Written) -> list[tuple[Texts, float]]:
    """What the stage may come to, from the quickest on: its answers, and the share of groups with
    signal.
    """
    if isinstance(stage, config.RL):
        return list(zip(after, SIGNAL, strict=True))
    spread = isinstance(stage, config.Draws) and before.least != before.most
    return [(texts, SIGNAL.likely) for texts in (before if spread else before[:1])]


def learned(steps: int, warmup: int) -> float:
    """How far answers have gone from the shorter to the longer, on average over the steps of an rl
    stage.

    >>> learned(70, 0), learned(15, 5), learned(4, 5)
    (0.92..., 0.3, 0.0)
    """
    return sum(min(1.0, max(0, i - warmup) / RAMP) for i in range(steps)) / steps


def _fewer(problems: int, samples: int) -> int:
    return min(problems, max(1, ANSWERS // samples))


@dataclass
class Timed(Pipeline):
    """A pipeline of brief stages whose answers, at each stage, are as long as they may be in the
    real one.
    """

    watch: Watch = field(default_factory=lambda: Watch(time.perf_counter))
    answers: dict[str | None, Written] = field(default_factory=dict[str | None, Written])
    now: tuple[Texts, float] = ([], 1.0)  # the answers, and the share of groups with signal
    over: float = 0.0  # when the stage was over

    def estimate(self, stage: config.AnyStage) -> Estimate:
        before = self.answers.get(self.source(stage))
        after = self.answers[stage.name] = self.written(stage, before)
        brief = next(s for s in self.recipe.stage if s.name == stage.name)
        found: list[tuple[float, float]] = []
        for self.now in cases(stage, before or after, after):
            if not isinstance(stage, config.Evaluate):
                self.stage(brief)
            found.append(self.taken(stage))
        step, work = (spanned(x) for x in zip(*found, strict=True))
        if isinstance(stage, config.RL):
            late = learned(stage.steps, stage.row.warmup)
            step = step._replace(likely=step.least + late * (step.likely - step.least))
        return self.whole(stage, step, work)

    def whole(self, stage: config.AnyStage, step: Span, work: Span) -> Estimate:
        """What was timed, for as many steps as there will be."""
        steps = Span.of(getattr(stage, "steps", 1))
        if isinstance(stage, config.SFT) and stage.gate is not None:
            gate = stage.gate
            checks = self.drawing(
                Sampling(1, 1.0, gate.max_tokens), gate.samples, self.answers[stage.name]
            )
            step = Span(*(s + c / gate.every for s, c in zip(step, checks, strict=True)))
            least = min(gate.every, stage.steps)
            steps = Span(least, (least + steps.most) / 2, steps.most)
        spec = stage if isinstance(stage, config.Evaluate) else self.recipe.evaluation
        after = Span.of(0.0)
        if isinstance(stage, config.Evaluate) or (
            isinstance(stage, config.Makes) and stage.evaluate
        ):
            sampling = Sampling(
                spec.samples, spec.temperature, spec.max_tokens, spec.top_p, spec.top_k
            )
            ways = len(measured(spec.thinking, self.recipe.ask.thinking))
            after = self.drawing(sampling, spec.problems * ways, self.answers[stage.name])
        return Estimate(stage.name, steps, step, work, after, steps.least < steps.most)

    def taken(self, stage: config.AnyStage) -> tuple[float, float]:
        """Seconds of one of the stage's steps, and of what it does once."""
        at = self.watch.at
        each = [b - a for a, b in pairwise(at)]
        if isinstance(stage, config.Reject | config.Rank):
            return each[0] * stage.problems / _fewer(stage.problems, stage.samples), 0.0
        if isinstance(stage, config.Merge | config.Evaluate):
            return 0.0, self.over - at[0] if isinstance(stage, config.Merge) else 0.0
        steps, step = stage.steps, statistics.median(each[len(each) // 2 :])
        begun = max(0.0, each[0] - step)  # what only the first step does
        if isinstance(stage, config.SFT):
            blocks = (
                begun * stage.batch * stage.shares.get("corpus", 0.0) / BLOCK
            )  # a new one whenever one is used up
            step, begun = step + blocks, 0.0 if blocks else begun
        row = stage.row if isinstance(stage, config.RL) else None
        if row is not None and row.warmup:
            warm = min(row.warmup, steps)
            step = (warm * each[WARM - 1] + (steps - warm) * step) / steps
        return step, begun + self.over - at[-1]

    def drawing(self, sampling: Sampling, problems: int, answers: Written) -> Span:
        """Seconds of drawing and scoring answers to some problems of the test split."""
        assert self.policy is not None
        size = self.context.task.size("test")
        problems = problems if size is None else min(problems, size)
        some = _fewer(problems, sampling.n)
        prompts = self.context.some("test", some, 0)
        took: list[float] = []
        for texts in answers if answers.least != answers.most else answers[:1]:
            self.now = texts, SIGNAL.likely
            began = self.watch.clock()
            rollout(
                self.engine(self.policy, self.context.chat), self.context.reward, prompts, sampling
            )
            took.append((self.watch.clock() - began) * problems / some)
        return spanned(took)

    def source(self, stage: config.AnyStage) -> str | None:
        """The stage whose model it begins with, where that is one of the recipe's."""
        if isinstance(stage, config.Merge):
            return next((name for name in stage.models if name in self.answers), None)
        if isinstance(stage, config.Evaluate):
            return next(reversed(self.answers), None) if stage.start == "previous" else stage.start
        return origin(self.recipe, stage)

    def written(self, stage: config.AnyStage, before: Written | None) -> Written:
        """What a model may write once the stage is over; `before`: as it begins."""
        context = self.handed(stage)
        if isinstance(stage, config.SFT):
            own = [self.texts(context, stage.mix)] if "corpus" in stage.shares else []
            own += [self.answers[name].likely for name in stage.shares if name in self.answers]
            texts = [t for pool in own for t in pool]
            return Written(texts, texts, texts)
        if before is None:
            known = self.texts(context, {})
            before = Written(known, known, self.capped(context, stage))
        return self.reinforced(context, stage, before) if isinstance(stage, config.RL) else before

    def texts(self, context: Context, mix: dict[str, float]) -> Texts:
        """Responses as the task's corpus writes them; bare answers where it has none."""
        try:
            pairs = context.task.corpus(mix or dict.fromkeys(context.task.modes, 1.0), SOME, 0)
        except WhetError:
            pairs = [(p, p.answer or "") for p in context.task.problems("train", 1, 0)]
        return [(len(context.chat.response(text)), text) for _, text in pairs]

    def reinforced(self, context: Context, stage: config.RL, before: Written) -> Written:
        """After reinforcement learning: all in the task's longest mode; where it tells none apart,
        as before, and nobody knows how long.
        """
        if any(part.name in BRIEF for part in stage.reward or self.recipe.reward):
            return before._replace(likely=before.least)
        modes = [self.texts(context, {mode: 1.0}) for mode in context.task.modes]
        if not modes:
            return before._replace(most=self.capped(context, stage))
        long = max([before.most, *modes], key=lambda pool: sum(n for n, _ in pool) / len(pool))
        return Written(before.least, long, long)

    def capped(self, context: Context, stage: config.AnyStage) -> Texts:
        """Answers that are all as long as they may be."""
        most = getattr(stage, "max_tokens", self.recipe.evaluation.max_tokens)
        return [(most, text) for _, text in self.texts(context, {})]

    def handed(self, stage: config.AnyStage) -> Context:
        context = super().handed(stage)
        return replace(context, engine=self.engine, reward=Paid(context.reward, self.now[1]))

    def engine(self, policy: Policy, chat: Chat) -> Engine:
        return (
            Paced(policy, chat, self.now[0])
            if isinstance(policy, Transformer)
            else engine_for(policy, chat)
        )

    def record(self, name: str, kind: str, *_: Any, **__: Any) -> None:
        """Nothing is measured; when the stage was over is noted."""
        self.over = self.watch.clock()
        self.records.append({"name": name, "kind": kind, "accuracy": None})
