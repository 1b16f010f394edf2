"""Runs a recipe's stages into runs/NAME/, measures each model, and leaves a summary, a report and a
model behind.
"""

import hashlib
import platform
import shutil
import time
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, Self

import tomli_w
import torch

from whet import config
from whet.algorithms.table import cells
from whet.chat import Chat
from whet.config.thinking import measured
from whet.engines import engine_for
from whet.errors import RecipeError, Stopped
from whet.evaluation.measure import Measured, gain, measure
from whet.model import lora_files, pretrained
from whet.model.policy import Policy
from whet.pipeline.setup import fresh, keep, loaded, narrowed, place, rewarded, tokenizer
from whet.pipeline.validate import refuse
from whet.rewards import combined
from whet.rollout.context import Context
from whet.storage import provenance
from whet.storage.atomic import committed, make_directory, write_text
from whet.storage.checkpoint import Checkpoints
from whet.storage.run_log import Display, RunLog, write_json
from whet.tasks import load as load_task


def prepare(directory: Path, overwrite: bool) -> None:
    """Makes room for a run. Raises RecipeError where one stands there already and may not be
    replaced.
    """
    old = directory.with_name(
        f".{directory.name}.old"
    )  # whole or gone: half a run would be taken for somebody's files
    shutil.rmtree(old, ignore_errors=True)
    if not directory.exists():
        return
    if not overwrite:
        raise RecipeError(
            f"{directory} exists; give another name=..., or --overwrite to replace it"
        )
    begun = (
        directory / name for name in ("recipe.toml", provenance.FILE, f".{provenance.FILE}.partial")
    )
    if any(directory.iterdir()) and not any(path.exists() for path in begun):
        raise RecipeError(f"{directory} holds no run, so --overwrite will not remove it")
    directory.rename(old)
    shutil.rmtree(old)


def run(
    recipe: config.Recipe,
    directory: Path,
    display: Display | None = None,
    stop: Event | None = None,
) -> dict[str, Any]:
    """All stages of `recipe`, into `directory`. Returns the summary. Raises WhetError for what the
    user can mend, and Stopped, with all kept that going on needs, soon after `stop` is set."""
    pipeline = Pipeline.of(recipe, directory, display)
    pipeline.stop = stop or pipeline.stop
    return pipeline.run()


@dataclass
class Pipeline:
    recipe: config.Recipe
    directory: Path
    context: Context
    policy: Policy | None = None  # the newest model
    records: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    stop: Event = field(default_factory=Event)
    made_of: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, recipe: config.Recipe, directory: Path, display: Display | None) -> Self:
        task = load_task(recipe.task.name, **recipe.task.options)
        refuse(recipe, task)
        reward = rewarded(recipe, recipe.reward, task, directory)
        for stage in recipe.stage:
            if isinstance(stage, config.Draws) and stage.reward:
                rewarded(recipe, stage.reward, task, directory)
        chat, path = tokenizer(recipe, task)
        given = (
            None
            if path is None
            else pretrained.load(str(path), dtype=getattr(torch, recipe.model.dtype))
        )
        make_directory(directory)
        made_of = provenance.origin(recipe)
        write_json(directory / provenance.FILE, made_of)
        write_text(directory / "recipe.toml", tomli_w.dumps(recipe.model_dump(exclude_none=True)))
        log = RunLog(directory, display)
        for note in (chat.note, getattr(task, "note", "")):
            if note:
                log.warn("start", 0, note)
        context = Context(
            task,
            reward,
            chat,
            recipe.ask,
            log,
            recipe.seed,
            engine_for,
            partial(loaded, recipe, directory),
        )
        pipeline = cls(recipe, directory, context, made_of=made_of)
        if given is not None:
            pipeline.policy = pipeline.place(given)
        return pipeline

    def run(self) -> dict[str, Any]:
        if self.policy is not None and self.recipe.model.path is not None and not self.records:
            self.record("start", "model", 0.0, self.policy, measure_it=True)
        done = {record["name"] for record in self.records}
        for stage in self.recipe.stage:
            if stage.name not in done:
                self.stage(stage)
            self.saves(stage.name).clear()
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
        if not isinstance(stage, config.Trained):  # the others go on from where they were
            log.rewind(stage.name, 0)
        if isinstance(stage, config.Evaluate):
            self.record(stage.name, stage.kind, 0.0, policy, measure_it=True, spec=stage)
        else:
            told = import_module(f"whet.stages.{stage.kind}").run(policy, stage, self.handed(stage))
            seconds = time.perf_counter() - began
            if isinstance(stage, config.Makes):
                self.policy = policy
                keep(policy, self.context.chat, stage, self.recipe, self.directory)
            self.record(
                stage.name,
                stage.kind,
                seconds,
                policy,
                isinstance(stage, config.Makes) and stage.evaluate,
            )
            self.records[-1] |= told or {}
            if isinstance(stage, config.RL):
                row = {"name": stage.algorithm, **cells(stage.row)}
                self.records[-1]["algorithm"] = row
        log.display.end()
        self.summarize(None)
        if self.stop.is_set() and stage is not self.recipe.stage[-1]:
            raise Stopped(f"stopped after stage {stage.name}; --resume goes on from there")

    def saves(self, stage: str) -> Checkpoints:
        """A stage's checkpoints."""
        spec = self.recipe.save
        saves = Checkpoints(
            self.directory / stage / "checkpoints", spec.every, spec.last, self.stop
        )
        saves.origin, saves.before = self.made_of, self.context.log.sync
        return saves

    def handed(self, stage: config.AnyStage) -> Context:
        """The context as the stage sees it: a seed of its own, and its own reward where it has one."""
        context = replace(self.context, seed=stage_seed(self.recipe.seed, stage.name))
        context = replace(
            context, task=narrowed(context.task, stage), checkpoints=self.saves(stage.name)
        )
        if isinstance(stage, config.Draws) and stage.reward:
            reward = rewarded(self.recipe, stage.reward, self.context.task, self.directory)
            context = replace(context, reward=reward)
        return context

    def start(self, stage: config.AnyStage) -> Policy:
        """The model a stage begins with."""
        shape = stage.shape if isinstance(stage, config.SFT) else None
        new = shape is not None or stage.start == "new"
        if new or (
            not isinstance(stage, config.Merge)
            and stage.start == "previous"
            and self.policy is None
        ):
            if self.recipe.model.path is not None:
                raise RecipeError(
                    f"stage {stage.name}: a new model needs the task's own alphabet; drop model.path"
                )
            return self.place(
                fresh(shape or self.recipe.model.shape, self.context.chat, self.recipe.seed)
            )
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
            # What a stage has trained is not thrown away for a stop while it is measured; where
            # nothing was trained nothing is lost.
            ending = (
                None if kind not in ("model", "evaluate") else self.saves(name).raise_if_stopped
            )
            found = measure(policy, self.context, spec or self.recipe.evaluation, ending)
            self.measured[name] = found
            line |= found.figures
            shown = (
                found.groups[:200]
                if found.off is None
                else [*found.groups[:100], *found.off.groups[:100]]
            )
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
            "device": str(next(self.policy.parameters()).device)
            if self.policy is not None
            else None,
            "stages": self.records,
            "gain": self.gain(result),
        }
        self.context.log.summary(summary)
        return summary

    def gain(self, result: str | None) -> dict[str, Any] | None:
        """From the model the result's stage began with to the result."""
        order = self.recipe.trained
        known = {
            r["name"]
            for r in self.records
            if r["accuracy"] is not None and r["kind"] != "reward_model"
        }
        if result is None or result not in known:
            return None
        stage = next(s for s in self.recipe.stage if s.name == result)
        earlier = [n for n in ["start", *order[: order.index(result)]] if n in known]
        before = stage.start if stage.start in known else (earlier[-1] if earlier else None)
        if before is None:
            return None
        return gain(before, self.remeasured(before), result, self.remeasured(result))

    def remeasured(self, name: str) -> Measured:
        """As `measured`; where another process has measured it, once more, with the same random
        numbers.
        """
        if name not in self.measured:
            source = str(self.recipe.model.path) if name == "start" else name
            self.measured[name] = measure(
                self.context.policy(source), self.context, self.recipe.evaluation
            )
        return self.measured[name]


def stage_seed(seed: int, name: str) -> int:
    """Every stage draws from its own stream, so that a stage added before it does not change it."""
    return seed * 1_000_003 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")


def evaluate(
    model: str, spec: config.Task, ask: config.Ask, evaluation: config.Evaluation
) -> Measured:
    """One model on a task's test problems, outside any run."""
    path = pretrained.resolve(model)
    task = load_task(spec.name, **spec.options)
    chat = Chat.load(pretrained.tokenizer_directory(path))
    if len(measured(evaluation.thinking, ask.thinking)) > 1:
        chat.demand_switch()
    policy = place(pretrained.load(str(path)), config.Model())
    reward = combined([("task", 1.0, {})], task)
    with TemporaryDirectory() as scratch:
        log = RunLog(Path(scratch))
        context = Context(
            task, reward, chat, ask, log, evaluation.seed, engine_for, pretrained.load
        )
        return measure(policy, context, evaluation)
