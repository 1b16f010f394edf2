"""Runs a recipe's stages into runs/NAME/, measures each model, and leaves a summary, a report and a model behind."""

import hashlib
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import tomli_w
import torch

from whet import config
from whet.algorithms import algorithm, cells
from whet.chat import Chat
from whet.checkpoint import committed
from whet.context import Context
from whet.engines import engine_for
from whet.errors import RecipeError, did_you_mean
from whet.measure import Measured, gain, measure
from whet.model import hub, lora_files
from whet.model.policy import Policy
from whet.provision import fresh, keep, loaded, narrowed, place, refuse_lora, rewarded, tokenizer
from whet.rewards import combined
from whet.runlog import Display, RunLog
from whet.stages import rank, rl
from whet.tasks import load as load_task
from whet.thinking import measured
from whet.types import Task


def prepare(directory: Path, overwrite: bool) -> None:
    """Makes room for a run. Raises RecipeError where one stands there already and may not be replaced."""
    if not directory.exists():
        return
    if not overwrite:
        raise RecipeError(f"{directory} exists; give another name=..., or --overwrite to replace it")
    if any(directory.iterdir()) and not (directory / "recipe.toml").exists():
        raise RecipeError(f"{directory} holds no run, so --overwrite will not remove it")
    shutil.rmtree(directory)


def run(recipe: config.Recipe, directory: Path, display: Display | None = None) -> dict[str, Any]:
    """All stages of `recipe`, into `directory`. Returns the summary. Raises WhetError for what the user can mend."""
    return Pipeline.of(recipe, directory, display).run()


@dataclass
class Pipeline:
    recipe: config.Recipe
    directory: Path
    context: Context
    policy: Policy | None = None  # the newest model
    records: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, recipe: config.Recipe, directory: Path, display: Display | None) -> Self:
        task = load_task(recipe.task.name, **recipe.task.options)
        refuse(recipe, task)
        reward = rewarded(recipe, recipe.reward, task, directory)
        for stage in recipe.stage:
            if isinstance(stage, config.Draws) and stage.reward:
                rewarded(recipe, stage.reward, task, directory)
        chat, path = tokenizer(recipe, task)
        given = None if path is None else hub.load(str(path), dtype=getattr(torch, recipe.model.dtype))
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "recipe.toml").write_text(tomli_w.dumps(recipe.model_dump(exclude_none=True)), encoding="utf-8")
        log = RunLog(directory, display)
        for note in (chat.note, getattr(task, "note", "")):
            if note:
                log.warn("start", 0, note)
        context = Context(
            task, reward, chat, recipe.ask, log, recipe.seed, engine_for, partial(loaded, recipe, directory)
        )
        pipeline = cls(recipe, directory, context)
        if given is not None:
            pipeline.policy = pipeline.place(given)
        return pipeline

    def run(self) -> dict[str, Any]:
        if self.policy is not None and self.recipe.model.path is not None:
            self.record("start", "model", 0.0, self.policy, measure_it=True)
        for stage in self.recipe.stage:
            self.stage(stage)
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """The result's model in model/, and the summary."""
        result = self.recipe.result or next(reversed(self.recipe.trained), None)
        if result is not None:
            made, final = self.directory / result / "model", self.directory / "model"
            with committed(final) as folder:
                shutil.copytree(made, folder, dirs_exist_ok=True)
                lora_files.rebase(folder, made, final)
        return self.summarize(result)

    def stage(self, stage: config.AnyStage) -> None:
        """One stage: its start, its work, its model on disk, its measurement."""
        policy = self.start(stage)
        began = time.perf_counter()
        log = self.context.log
        log.display.begin(stage.name, stage.kind, getattr(stage, "steps", 0))
        if isinstance(stage, config.Evaluate):
            self.record(stage.name, stage.kind, 0.0, policy, measure_it=True, spec=stage)
        else:
            told = import_module(f"whet.stages.{stage.kind}").run(policy, stage, self.handed(stage))
            seconds = time.perf_counter() - began
            if isinstance(stage, config.Makes):
                self.policy = policy
                keep(policy, self.context.chat, stage, self.recipe, self.directory)
            self.record(stage.name, stage.kind, seconds, policy, isinstance(stage, config.Makes) and stage.evaluate)
            self.records[-1] |= told or {}
            if isinstance(stage, config.RL):
                row = {"name": stage.algorithm, **cells(algorithm(stage.algorithm, stage.override))}
                self.records[-1]["algorithm"] = row
        log.display.end()
        self.summarize(None)

    def handed(self, stage: config.AnyStage) -> Context:
        """The context as the stage sees it: a seed of its own, and its own reward where it has one."""
        context = replace(self.context, seed=stage_seed(self.recipe.seed, stage.name))
        context = replace(context, task=narrowed(context.task, stage))
        if isinstance(stage, config.Draws) and stage.reward:
            reward = rewarded(self.recipe, stage.reward, self.context.task, self.directory)
            context = replace(context, reward=reward)
        return context

    def start(self, stage: config.AnyStage) -> Policy:
        """The model a stage begins with."""
        shape = stage.shape if isinstance(stage, config.SFT) else None
        new = shape is not None or stage.start == "new"
        if new or (not isinstance(stage, config.Merge) and stage.start == "previous" and self.policy is None):
            if self.recipe.model.path is not None:
                raise RecipeError(f"stage {stage.name}: a new model needs the task's own alphabet; drop model.path")
            return self.place(fresh(shape or self.recipe.model.shape, self.context.chat, self.recipe.seed))
        if isinstance(stage, config.Merge):
            return self.context.policy(next(iter(stage.models)))
        if stage.start == "previous" and self.policy is not None:
            return self.policy
        return self.context.policy(stage.start)

    def place(self, policy: Policy) -> Policy:
        return place(policy, self.recipe.model)

    def record(
        self,
        name: str,
        kind: str,
        seconds: float,
        policy: Policy,
        measure_it: bool,
        spec: config.Evaluation | None = None,
    ) -> None:
        """A stage's line in the summary."""
        line: dict[str, Any] = {"name": name, "kind": kind, "seconds": round(seconds, 3)}
        line |= {"accuracy": None, "low": None, "high": None, "n": None}
        line["parameters"] = sum(p.numel() for p in policy.parameters())
        if measure_it:
            found = measure(policy, self.context, spec or self.recipe.evaluation)
            self.measured[name] = found
            line |= found.figures
            shown = found.groups[:200] if found.off is None else [*found.groups[:100], *found.off.groups[:100]]
            self.context.log.samples(f"{name}-test", 0, shown, self.context.chat, self.context.task)
        self.records.append(line)

    def summarize(self, result: str | None) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "name": self.recipe.name,
            "task": self.recipe.task.name,
            "seed": self.recipe.seed,
            "result": result,
            "seconds": round(time.perf_counter() - self.began, 2),
            "versions": {
                "whet": metadata.version("whet"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "device": str(next(self.policy.parameters()).device) if self.policy is not None else None,
            "stages": self.records,
            "gain": self.gain(result),
        }
        self.context.log.summary(summary)
        return summary

    def gain(self, result: str | None) -> dict[str, Any] | None:
        """From the model the result's stage began with to the result."""
        order = self.recipe.trained
        if result is None or result not in self.measured:
            return None
        stage = next(s for s in self.recipe.stage if s.name == result)
        earlier = [n for n in ["start", *order[: order.index(result)]] if n in self.measured]
        before = stage.start if stage.start in self.measured else (earlier[-1] if earlier else None)
        return None if before is None else gain(before, self.measured[before], result, self.measured[result])


def refuse(recipe: config.Recipe, whole: Task) -> None:
    """Whatever would stop a later stage stops the run before its first. Raises WhetError."""
    earlier: dict[str, str] = {"previous": "", "new": ""}

    def known(*names: str) -> None:
        for name in names:
            if name not in earlier:
                hub.resolve(name)

    for part in recipe.reward:
        if part.name == "learned" and part.options.get("model") in {s.name for s in recipe.stage}:
            raise RecipeError(
                f"reward learned: stage {part.options['model']} makes its model only later, and every stage is measured by the recipe's "
                "reward; name it in the [[stage.reward]] of the rl stage"
            )
    for stage in recipe.stage:
        known(stage.start)
        if isinstance(stage, config.Trained):
            refuse_lora(recipe, stage)
        task = narrowed(whole, stage)
        if isinstance(stage, config.RL):
            row = algorithm(stage.algorithm, stage.override)
            rl.refuse(stage, row)
            known(*([] if stage.reference == "start" else [stage.reference]))
            known(*([stage.critic.start] if stage.critic is not None and stage.critic.start is not None else []))
        if isinstance(stage, config.Merge):
            known(*stage.models)
        if isinstance(stage, config.Prefer):
            known(*([] if stage.reference == "start" else [stage.reference]))
        if isinstance(stage, config.Rank):
            rank.refuse(stage, task)
        if isinstance(stage, config.Prefer | config.RewardModel):
            refuse_data(stage, earlier)
        if isinstance(stage, config.Draws):
            for part in stage.reward:
                if part.name == "learned" and isinstance(part.options.get("model"), str):
                    known(part.options["model"])
        if isinstance(stage, config.SFT):
            gate = stage.gate
            for mode in [*stage.mix, *([gate.mode, gate.above] if gate else [])]:
                if mode is not None and mode not in task.modes:
                    suffix = did_you_mean(mode, task.modes) if task.modes else "; this task tells none apart"
                    raise RecipeError(f"stage {stage.name}: task {task.name} has no mode {mode!r}{suffix}")
        earlier[stage.name] = stage.kind


def refuse_data(stage: config.Prefer | config.RewardModel, earlier: Mapping[str, str]) -> None:
    """Raises RecipeError where a stage's ranked responses come from nowhere."""
    if earlier.get(stage.data) == "rank" or stage.data.startswith("hf:") or Path(stage.data).expanduser().is_file():
        return
    ranks = [name for name, kind in earlier.items() if kind == "rank"]
    cure = did_you_mean(stage.data, ranks) if ranks else "; put a rank stage before it, or name a file or hf:OWNER/NAME"
    raise RecipeError(
        f"stage {stage.name}: data = {stage.data!r} is no earlier rank stage, no file and no data set of the Hub{cure}"
    )


def stage_seed(seed: int, name: str) -> int:
    """Every stage draws from its own stream, so that a stage added before it does not change it."""
    return seed * 1_000_003 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")


def evaluate(model: str, spec: config.Task, ask: config.Ask, evaluation: config.Evaluation) -> Measured:
    """One model on a task's test problems, outside any run."""
    path = hub.resolve(model)
    task = load_task(spec.name, **spec.options)
    chat = Chat.load(hub.tokenizer(path))
    if len(measured(evaluation.thinking, ask.thinking)) > 1:
        chat.demand_switch()
    policy = place(hub.load(str(path)), config.Model())
    reward = combined([("task", 1.0, {})], task)
    with TemporaryDirectory() as scratch:
        log = RunLog(Path(scratch))
        context = Context(task, reward, chat, ask, log, evaluation.seed, engine_for, hub.load)
        return measure(policy, context, evaluation)
