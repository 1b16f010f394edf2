"""Reinforcement learning: sample groups, score, turn rewards into advantages, step."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from whet import config
from whet.errors import ModelError, RecipeError, RewardError
from whet.model.lora import adapt, frozen
from whet.model.policy import Policy
from whet.model.value_head import ScalarModel
from whet.rollout.context import Context
from whet.rollout.curriculum import Curriculum, InOrder, Prioritised
from whet.rollout.health import concerns
from whet.rollout.one_step_ahead import Drawn, OneStepAhead
from whet.rollout.rollout import describe, mean, rollout, score_groups
from whet.storage.checkpoint import History
from whet.training.learner import Learner
from whet.training.loop import steps
from whet.training.trainer import Trainer
from whet.types import Engine, Group, Sampling

POOL = 4096  # most prompts that priorities are kept for


def run(policy: Policy, stage: config.RL, context: Context) -> None:
    """Trains `policy` in place for `stage.steps` steps."""
    trainer = prepared(policy, stage, context)
    learner, log = trainer.learner, context.log
    engine = context.engine(policy, context.chat)
    problems = curriculum(stage, context)
    history, ahead = History(), OneStepAhead(context.reward)
    parts = {**trainer.parts, "problems": problems, "history": history, "flight": ahead}
    draw = drawing(engine, problems, trainer.sampling, stage, context)
    for step in steps(stage, parts, log, context.checkpoints):
        engine.version = learner.done
        if (step.number - 1) % stage.probe_every == 0:
            probe(engine, trainer.sampling, stage, context, step.number - 1)
            step.begin()
        if stage.ahead:
            groups = trained = ahead.take(step.number, stage.steps, draw)
            refuse_errors(groups, stage.max_errors)
        else:
            groups, trained = collect(draw, step.number, stage, context)
        step.end("sample")
        problems.learn(groups)
        updated, advantages = trainer.update(trained)
        values = describe(groups, context.task) | updated
        if stage.ahead:
            values["lag"] = engine.version - mean([s.version for g in groups for s in g.samples])
        step.end("update")
        history.lines.append(values)
        log.samples(stage.name, step.number, trained, context.chat, context.task, advantages)
        step.write(values, [s.text for g in trained for s in g.samples])
        for text in concerns(history.lines):
            log.warn(stage.name, step.number, text)
    engine.version = learner.done
    probe(engine, trainer.sampling, stage, context, stage.steps)


def prepared(policy: Policy, stage: config.RL, context: Context) -> Trainer:
    """The trainer of a stage: the models that the row needs beside the policy, and the optimizers.

    Raises WhetError where the row would not read a key.
    """
    refuse(stage)
    adapt(policy, stage.lora, context.seed)
    row, reference, critic = stage.row, None, None
    if row.has_kl:
        reference = policy if stage.reference == "start" else context.policy(stage.reference)
        if reference.config.vocab != policy.config.vocab:
            raise ModelError(
                f"stage {stage.name}: reference {stage.reference} has a vocabulary of "
                f"{reference.config.vocab}, the policy one of "
                f"{policy.config.vocab}; a KL needs the same tokens"
            )
        reference = frozen(reference)
    if row.trains_critic:
        each = row.critic.updates if row.critic is not None else 1
        start = stage.critic.start if stage.critic is not None else None
        critic = Learner(
            ScalarModel(policy if start is None else context.model(start), stage.lora),
            stage.critic or stage.optimizer,
            stage.steps * each,
        )
    sampling = Sampling(
        stage.samples, stage.temperature, stage.max_tokens, stage.top_p, stage.top_k
    )
    learner = Learner(policy, stage.optimizer, stage.steps * row.updates)
    return Trainer(learner, row, sampling, stage.micro_tokens, reference, critic)


def refuse(stage: config.RL) -> None:
    """Raises RecipeError for a key that the row would not read, or one that it needs."""
    row = stage.row
    subject = f"stage {stage.name}: algorithm {row.name}"
    if stage.critic is not None and not row.trains_critic:
        raise RecipeError(f"{subject} trains no critic; drop the stage's critic table")
    if stage.reference != "start" and not row.has_kl:
        raise RecipeError(
            f"{subject} has no KL, so reference = {stage.reference!r} would not be read; drop it"
        )
    if stage.reference == "start" and row.advantage == "none":
        raise RecipeError(
            f"{subject} learns from a teacher only; name it: reference = a stage, a directory or a Hub id"
        )
    if stage.ahead and row.correction == "none":
        raise RecipeError(
            f"{subject}: samples a step old need its correction; give override = "
            f'{{ correction = "token" }}, or drop ahead'
        )
    if stage.ahead and row.sampling == "dynamic":
        raise RecipeError(
            f"{subject} draws again as the scores come in, so it cannot draw ahead of them; drop ahead"
        )
    if stage.pool is not None and row.sampling != "prioritised":
        raise RecipeError(f"{subject} takes prompts in order, so pool would not be read; drop it")
    if stage.draws != default(stage, "draws") and row.sampling != "dynamic":
        raise RecipeError(
            f"{subject} draws once a step, so draws = {stage.draws} would not be read; drop it"
        )
    if stage.probe_every != default(stage, "probe_every") and not stage.probe:
        raise RecipeError(
            f"{subject}: probe = 0 asks nothing, so probe_every = {stage.probe_every} would not "
            "be read; drop it"
        )


def default(stage: config.RL, key: str) -> object:
    """The value of a key of the stage where the recipe has none."""
    return type(stage).model_fields[key].default


def curriculum(stage: config.RL, context: Context) -> Curriculum:
    """The order of the training problems, as the row asks for it."""
    stream = context.stream("train")
    if stage.row.sampling != "prioritised":
        return InOrder(stream)
    size = context.task.size("train")
    return Prioritised(stream, min(stage.pool or POOL, size or POOL), context.seed)


def probe(
    engine: Engine, sampling: Sampling, stage: config.RL, context: Context, step: int
) -> None:
    """Answers the same few test problems after `step` steps, always with the same random numbers.

    Only the policy changes between two probes. Nothing is trained on them.
    """
    prompts = context.some("test", stage.probe, context.seed) if stage.probe else []
    if prompts:
        four = replace(sampling, n=4, seed=context.seed)
        groups = rollout(engine, context.reward, prompts, four)
        context.log.samples(f"{stage.name}-probe", step, groups, context.chat, context.task)


def drawing(
    engine: Engine, problems: Curriculum, sampling: Sampling, stage: config.RL, context: Context
) -> Callable[[int], Drawn]:
    """A function that draws the prompts of a step, and their samples."""

    def draw(step: int) -> Drawn:
        fresh = replace(sampling, seed=context.seed * 1_000_003 + step)
        prompts = context.prompts(problems.draw(stage.prompts), fresh.seed)
        return prompts, engine.generate(prompts, fresh)

    return draw


def collect(
    draw: Callable[[int], Drawn], step: int, stage: config.RL, context: Context
) -> tuple[list[Group], list[Group]]:
    """All groups drawn for one step, and those to train on.

    Dynamic sampling (DAPO, arXiv:2503.14476, sec. 3.2) draws again until `stage.prompts` groups
    have signal, at most `stage.draws` times; groups without signal are left out.
    """
    dynamic = stage.row.sampling == "dynamic"
    groups: list[Group] = []
    trained: list[Group] = []
    for _ in range(stage.draws if dynamic else 1):
        fresh = score_groups(context.reward, *draw(step))
        refuse_errors(fresh, stage.max_errors)
        groups += fresh
        trained += [g for g in fresh if g.usable.has_signal] if dynamic else fresh
        if len(trained) >= stage.prompts:
            break
    return groups, trained[: stage.prompts]


def refuse_errors(groups: Sequence[Group], most: float) -> None:
    """Raises RewardError where the verifier failed on more than a share `most` of the answers."""
    failed = [c for g in groups for c in g.scores if not c.usable]
    share = len(failed) / sum(len(g.scores) for g in groups)
    if share > most:
        why = next((f"{c.status}: {c.reason}" for c in failed if c.reason), failed[0].status)
        raise RewardError(
            f"the verifier failed on {share:.0%} of a step's answers, more than max_errors = "
            f"{most:.0%} would let pass ({why})"
        )
