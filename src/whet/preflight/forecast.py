"""Estimates how long a recipe takes on this machine: times a few steps of each stage at full size.

Three things are not known in advance: when a gate holds, how long answers become, and how many
groups still have signal. Each is taken at its least, its likeliest and its most. Answers are as
long as the task's corpus writes them: an untrained model's would be unlike a trained one's.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from whet import config
from whet.chat import Chat
from whet.config.thinking import measured
from whet.engines import engine_for
from whet.errors import WhetError
from whet.format import rough_duration
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.pipeline.pipeline import Pipeline
from whet.pipeline.setup import stage_task, starting_model
from whet.preflight.dry_run import CoinReward
from whet.preflight.scripted_engine import Answers, ScriptedEngine
from whet.rollout.context import Context
from whet.rollout.rollout import rollout
from whet.stages.sft import BLOCK
from whet.storage.run_log import Silent
from whet.types import Engine, Sampling, Task

# Steps of a stage that are timed. The later half counts: caches and allocations have settled.
RL_STEPS, OTHER_STEPS = 5, 30
WARMUP = 2  # rollouts of a critic's warm-up that are timed before those steps
DRAWN = 512  # most answers drawn where a stage or a measurement draws once
CORPUS = 64  # responses whose lengths stand for the corpus
LEARNING = 10  # updates in which answers reach the length that pays, as in the miniatures
SHORTENING = ("length_kimi", "cosine")  # rewards that pay for fewer tokens
CLOSE = 1.5  # most over least up to which one number says enough: it is within a fifth of either

Clock = Callable[[], float]  # seconds


class Span(NamedTuple):
    """An estimate: at least, likely, at most."""

    least: float
    likely: float
    most: float

    @classmethod
    def of(cls, value: float) -> "Span":
        return cls(value, value, value)

    @classmethod
    def over(cls, cases: Sequence[float]) -> "Span":
        """Spans the times of cases, the quickest first; noise may have changed their order.

        >>> Span.over([2.0]), Span.over([2.0, 1.9, 3.0])
        (Span(least=2.0, likely=2.0, most=2.0), Span(least=1.9, likely=1.9, most=3.0))
        """
        return cls(min(cases), cases[len(cases) // 2], max(cases))

    def text(self) -> str:
        """Says seconds: one number, and the range where it is wide.

        >>> Span(40, 44, 50).text(), Span(30, 44.2, 80).text()
        ('44 s', '44 s (30 to 80 s)')
        >>> Span(163, 422, 600).text()
        '422 s (163 s to 10 min)'
        >>> Span(0.2, 0.22, 0.25).text(), Span(5000, 6000, 7000).text()
        ('0.2 s', '100 min')
        """
        if self.most <= CLOSE * self.least or self.most < 1:
            return rough_duration(self.likely)
        least, most = rough_duration(self.least), rough_duration(self.most)
        if least.split()[1] == most.split()[1]:
            least = least.split()[0]
        return f"{rough_duration(self.likely)} ({least} to {most})"


SIGNAL = Span(0.25, 0.5, 1.0)  # share of the groups whose rewards differ


def total(spans: Sequence[Span]) -> Span:
    return Span(*(sum(values) for values in zip(*spans, strict=True))) if spans else Span.of(0.0)


@dataclass(frozen=True)
class Estimate:
    """The time of one stage, in seconds but for `steps`.

    Where a gate ends the stage, nobody can say when: `steps.likely` is the middle of the range.
    """

    name: str
    steps: Span  # how many there will be
    step: Span  # each
    work: Span  # once, as part of the stage: data, models on disk
    measured: Span  # once, after the stage
    gated: bool = False

    @property
    def stage(self) -> Span:
        """The seconds that summary.json has for the stage: without its measurement."""
        return Span(*(n * s + o for n, s, o in zip(self.steps, self.step, self.work, strict=True)))

    @property
    def seconds(self) -> Span:
        return total([self.stage, self.measured])

    def text(self) -> str:
        gate = ""
        if self.gated:
            gate = f" (its gate may hold after {self.steps.least:g} to {self.steps.most:g} steps)"
        return f"{self.name} {self.seconds.text()}{gate}"


class AnswerRange(NamedTuple):
    """The answers that a model may write: the shortest, the likeliest and the longest."""

    least: Answers
    likely: Answers
    most: Answers

    def cases(self) -> tuple[Answers, ...]:
        """The three where they differ, else one."""
        return self if self.least != self.most else self[:1]


def forecast(recipe: config.Recipe, clock: Clock = time.perf_counter) -> list[Estimate]:
    """Returns an estimate for each stage. Raises WhetError where a stage cannot be timed."""
    with TemporaryDirectory() as scratch:
        forecaster = Forecaster(recipe, Path(scratch) / "forecast", clock)
        return [forecaster.estimate(stage) for stage in recipe.stage]


def describe(estimates: Sequence[Estimate]) -> str:
    """Says the whole time, and the four longest stages, in one line."""
    whole = total([e.seconds for e in estimates])
    longest = sorted(estimates, key=lambda e: -e.seconds.likely)[:4]
    stages = [
        e.text() for e in estimates if e in longest and e.seconds.likely > 0.05 * whole.likely
    ]
    return f"about {whole.text()}: {', '.join(stages)}"


def shorten(recipe: config.Recipe) -> config.Recipe:
    """Returns the recipe with a few steps a stage, of their full size; no gate, no measurement."""
    data = recipe.model_dump(exclude_none=True)
    for stage, table in zip(recipe.stage, data["stage"], strict=True):
        table.pop("gate", None)
        if "steps" in table:
            timed = RL_STEPS if isinstance(stage, config.RL) else OTHER_STEPS
            table["steps"] = min(table["steps"], timed)
        if isinstance(stage, config.Makes):
            table["evaluate"] = False
        if isinstance(stage, config.Reject | config.Rank):
            table["problems"] = _problems_drawn(stage.problems, stage.samples)
        if isinstance(stage, config.RL) and stage.row.warmup:
            table["steps"] = WARMUP + RL_STEPS
            table["override"] = {**stage.override, "warmup": WARMUP}
    return config.Recipe.model_validate(data)


def _problems_drawn(problems: int, samples: int) -> int:
    return min(problems, max(1, DRAWN // samples))


def lengthening(steps: int, warmup: int) -> float:
    """Returns how far answers are from the shorter to the longer, averaged over an rl stage's steps.

    >>> lengthening(70, 0), lengthening(15, 5), lengthening(4, 5)
    (0.92..., 0.3, 0.0)
    """
    return sum(min(1.0, max(0, i - warmup) / LEARNING) for i in range(steps)) / steps


class StepTimer(Silent):
    """A display that notes the time when a stage begins, ends a step, and ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.ended = clock, 0.0
        self.times: list[float] = []  # of the stage's beginning, then of each step's end

    def begin(self, stage: str, kind: str, total: int) -> None:
        self.times = [self.clock()]

    def step(self, done: int, values: Mapping[str, float]) -> None:
        self.times.append(self.clock())

    def end(self) -> None:
        self.ended = self.clock()


class Forecaster:
    """Runs the shortened stages of a recipe in order, with scripted answers and tossed rewards."""

    def __init__(self, recipe: config.Recipe, directory: Path, clock: Clock) -> None:
        self.recipe, self.timer = recipe, StepTimer(clock)
        self.pipeline = Pipeline.of(shorten(recipe), directory, self.timer, adapt=self._adapt)
        self.answers: dict[str | None, AnswerRange] = {}  # of each stage's model, by stage
        self.script: Answers = []  # the answers that are being sampled
        self.signal = 1.0  # the share of groups with signal

    def _adapt(self, context: Context) -> Context:
        reward = CoinReward(context.reward, self.signal)
        return replace(context, engine=self._engine, reward=reward)

    def _engine(self, policy: Policy, chat: Chat) -> Engine:
        if isinstance(policy, Transformer):
            return ScriptedEngine(policy, chat, self.script)
        return engine_for(policy, chat)

    def estimate(self, stage: config.AnyStage) -> Estimate:
        """Times a stage of the recipe, those before it having been timed."""
        before = self.answers.get(self._source(stage))
        after = self.answers[stage.name] = self._answers_after(stage, before)
        short = next(s for s in self.pipeline.recipe.stage if s.name == stage.name)
        cases = self._cases(stage, before or after, after)
        timings: list[tuple[float, float]] = []
        for self.script, self.signal in cases:
            if not isinstance(stage, config.Evaluate):
                self.pipeline.run_stage(short)
            timings.append(self._timing(stage))
        step, work = (Span.over(seconds) for seconds in zip(*timings, strict=True))
        if isinstance(stage, config.RL):
            late = lengthening(stage.steps, stage.row.warmup)
            step = step._replace(likely=step.least + late * (step.likely - step.least))
        return self._estimate(stage, step, work)

    @staticmethod
    def _cases(
        stage: config.AnyStage, before: AnswerRange, after: AnswerRange
    ) -> list[tuple[Answers, float]]:
        """Lists what may happen, the quickest first: (answers, share of groups with signal)."""
        if isinstance(stage, config.RL):
            return list(zip(after, SIGNAL, strict=True))
        scripts = before.cases() if isinstance(stage, config.Draws) else before[:1]
        return [(answers, SIGNAL.likely) for answers in scripts]

    def _estimate(self, stage: config.AnyStage, step: Span, work: Span) -> Estimate:
        """Counts the steps, and adds the seconds of the gate's checks and of the measurement."""
        steps = Span.of(getattr(stage, "steps", 1))
        answers = self.answers[stage.name]
        if isinstance(stage, config.SFT) and stage.gate is not None:
            gate = stage.gate
            checks = self._drawing(Sampling(1, 1.0, gate.max_tokens), gate.samples, answers)
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
            after = self._drawing(sampling, spec.problems * ways, answers)
        return Estimate(stage.name, steps, step, work, after, steps.least < steps.most)

    def _timing(self, stage: config.AnyStage) -> tuple[float, float]:
        """Returns the seconds of one step of the stage just run, and of the work done once."""
        times, ended = self.timer.times, self.timer.ended
        each = [b - a for a, b in pairwise(times)]
        if isinstance(stage, config.Reject | config.Rank):
            return each[0] * stage.problems / _problems_drawn(stage.problems, stage.samples), 0.0
        if isinstance(stage, config.Merge):
            return 0.0, ended - times[0]
        if isinstance(stage, config.Evaluate):
            return 0.0, 0.0
        steps, step = stage.steps, statistics.median(each[len(each) // 2 :])
        once = max(0.0, each[0] - step)  # what only the first step does
        if isinstance(stage, config.SFT) and stage.shares.get("corpus", 0.0):
            # A new block of the corpus is written whenever one is used up.
            step, once = step + once * stage.batch * stage.shares["corpus"] / BLOCK, 0.0
        row = stage.row if isinstance(stage, config.RL) else None
        if row is not None and row.warmup:
            warmup = min(row.warmup, steps)
            step = (warmup * each[WARMUP - 1] + (steps - warmup) * step) / steps
        return step, once + ended - times[-1]

    def _drawing(self, sampling: Sampling, problems: int, answers: AnswerRange) -> Span:
        """Returns the seconds of drawing and scoring answers to problems of the test split."""
        pipeline, clock = self.pipeline, self.timer.clock
        context = pipeline.context
        assert pipeline.policy is not None
        size = context.task.size("test")
        problems = problems if size is None else min(problems, size)
        drawn = _problems_drawn(problems, sampling.n)
        prompts = context.some("test", drawn, 0)
        seconds: list[float] = []
        for self.script in answers.cases():
            began = clock()
            engine = self._engine(pipeline.policy, context.chat)
            rollout(engine, context.reward, prompts, sampling)
            seconds.append((clock() - began) * problems / drawn)
        return Span.over(seconds)

    def _source(self, stage: config.AnyStage) -> str | None:
        """Names the recipe's stage whose model the stage starts from, if there is one."""
        if isinstance(stage, config.Merge):
            return next((name for name in stage.models if name in self.answers), None)
        if isinstance(stage, config.Evaluate):
            return next(reversed(self.answers), None) if stage.start == "previous" else stage.start
        return starting_model(self.recipe, stage)

    def _answers_after(self, stage: config.AnyStage, before: AnswerRange | None) -> AnswerRange:
        """Returns what a model may write after the stage; `before`: what it writes as it begins."""
        task = stage_task(self.pipeline.context.task, stage)
        if isinstance(stage, config.SFT):
            pools = [self._corpus(task, stage.mix)] if "corpus" in stage.shares else []
            pools += [self.answers[name].likely for name in stage.shares if name in self.answers]
            answers = [answer for pool in pools for answer in pool]
            return AnswerRange(answers, answers, answers)
        if before is None:
            corpus = self._corpus(task, {})
            before = AnswerRange(corpus, corpus, self._longest(task, stage))
        return self._after_rl(task, stage, before) if isinstance(stage, config.RL) else before

    def _after_rl(self, task: Task, stage: config.RL, before: AnswerRange) -> AnswerRange:
        """Returns what a model may write after rl: as before, or in the task's longest mode.

        A task without modes says nothing: answers may become as long as they may be.
        """
        if any(part.name in SHORTENING for part in stage.reward or self.recipe.reward):
            return before._replace(likely=before.least)
        modes = [self._corpus(task, {mode: 1.0}) for mode in task.modes]
        if not modes:
            return before._replace(most=self._longest(task, stage))
        long = max([before.most, *modes], key=lambda pool: statistics.mean(n for n, _ in pool))
        return AnswerRange(before.least, long, long)

    def _corpus(self, task: Task, mix: Mapping[str, float]) -> Answers:
        """Returns responses of the task's corpus; the answer alone where it has no corpus."""
        try:
            pairs = task.corpus(mix or dict.fromkeys(task.modes, 1.0), CORPUS, 0)
        except WhetError:
            pairs = [(p, p.answer or "") for p in task.problems("train", 1, 0)]
        return [(len(self.pipeline.context.chat.response(text)), text) for _, text in pairs]

    def _longest(self, task: Task, stage: config.AnyStage) -> Answers:
        """Returns the corpus's responses, each as long as an answer may be."""
        most = getattr(stage, "max_tokens", self.recipe.evaluation.max_tokens)
        return [(most, text) for _, text in self._corpus(task, {})]
