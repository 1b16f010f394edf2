"""Checks in a minute what would fail or mislead in an hour: tokenizer, masks, sampler, memory, reward.

Each stage is run in small where the model is small; else each rl stage makes one step.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
import torch

from whet import config
from whet.algorithms.batch import pack
from whet.errors import WhetError
from whet.model.config import ModelConfig
from whet.model.policy import Policy
from whet.pipeline.pipeline import Pipeline
from whet.pipeline.setup import SMALL, new_policy, to_device
from whet.preflight import forecast, memory
from whet.preflight.dry_run import DryRun
from whet.preflight.fake_hub import real_shape, replace_hub
from whet.rewards.known_answers import Case, figures, try_cases
from whet.rollout.context import Context
from whet.rollout.rollout import mean
from whet.stages import rl
from whet.training.learner import policy_logprobs
from whet.types import Engine, Group, Problem, Prompt, Ranker, Sample, Sampling, Score

# Nats that sampler and trainer may differ by on a token, in float32 and in bfloat16.
GAP, BFLOAT16_GAP = 1e-3, 0.5
PROBLEMS = 16  # problems checked
RANKED = 5  # other answers that a ranker orders with the right one
Check = tuple[str, Callable[[], str]]  # the finding's name; returns its message or raises WhetError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: what was seen, or what is wrong and its cure."""

    name: str
    ok: bool
    message: str


@dataclass(frozen=True)
class Subject:
    """A recipe to be checked, with its model and a few of its problems."""

    recipe: config.Recipe
    context: Context
    policy: Policy
    problems: list[Problem]
    shape: ModelConfig  # of the recipe's model, which may be on the Hub
    fake: bool  # whether `policy` takes the place of that model

    @classmethod
    def of(cls, recipe: config.Recipe, folder: Path, offline: bool) -> Self:
        """Loads what the recipe names; `offline`: a fake of what is on the Hub."""
        path = recipe.model.path
        if offline:
            recipe = replace_hub(recipe, folder)
        pipeline = Pipeline.of(recipe, folder / "check")
        context, model = pipeline.context, recipe.model
        policy = pipeline.policy
        if policy is None:
            policy = to_device(new_policy(model.shape, context.chat, recipe.seed), model)
        fake = model.path != path
        shape = real_shape(str(path)) if fake else policy.config
        return cls(recipe, context, policy, some_problems(context), shape, fake)

    def describe(self) -> str:
        size = memory.parameters(self.shape)
        fake = f"; a tiny fake of its architecture ({self.shape.family}) takes its place"
        return (
            f"{len(self.recipe.stage)} stages; task {self.recipe.task.name}; "
            f"a model of {size:,} parameters{fake if self.fake else ''}"
        )


def findings(recipe: config.Recipe, offline: bool = False) -> Iterator[Finding]:
    """Yields each finding as it is made.

    Checks that build on a failed one are left out. `offline`: tiny fakes take the place of the
    Hub's models and data (`fake_hub`), and every stage is run in small.
    """
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            subject = Subject.of(recipe, folder, offline)
        except WhetError as fault:
            yield Finding("recipe", False, str(fault))
            return
        yield Finding("recipe", True, subject.describe())
        for name, check in checks(subject, folder / "rehearsal", offline):
            try:
                yield Finding(name, True, check())
            except WhetError as fault:
                yield Finding(name, False, str(fault))
                if name.startswith("stage "):
                    return


def checks(subject: Subject, folder: Path, offline: bool) -> list[Check]:
    """Lists the checks in the order of their findings; `folder` is for the dry run."""
    recipe, context, policy = subject.recipe, subject.context, subject.policy
    problems, shape = subject.problems, subject.shape
    fake_judge = offline and any(part.name in ("learned", "judge") for part in recipe.reward)

    def check_memory() -> str:
        load = workload(context, recipe, problems)
        return memory.check(recipe, shape, memory.parameters(shape), load, not subject.fake)

    always: list[Check] = [
        ("tokenizer", lambda: tokenizer(context, policy, problems)),
        ("masks", lambda: masks(context, problems)),
        ("sampler", lambda: sampler(context, policy, problems)),
        ("publication", lambda: publication(context, policy, problems)),
        ("memory", check_memory),
        ("reward", lambda: reward(context, problems, not fake_judge)),
    ]
    if sum(p.numel() for p in policy.parameters()) > SMALL:
        return always + [
            (f"dry step of {s.name}", partial(dry_step, context, policy, s, problems))
            for s in recipe.stage
            if isinstance(s, config.RL)
        ]
    dry_run = DryRun(recipe, folder)
    stages: list[Check] = [(f"stage {s.name}", partial(dry_run.run, s.name)) for s in recipe.stage]
    time: list[Check] = [] if offline else [("time", lambda: duration(recipe))]
    return always + stages + time


def workload(
    context: Context, recipe: config.Recipe, problems: Sequence[Problem]
) -> memory.Workload:
    """Returns the tokens of prompts and responses, averaged over some of the task's problems.

    Responses are as long as the longest mode of the task's corpus where the model is new; their
    length is not known of other models.
    """
    task, chat = context.task, context.chat
    prompts = mean([float(len(p.tokens)) for p in context.prompts(problems)])
    if recipe.model.path is not None or not task.modes:
        return memory.Workload(prompts, evaluation=recipe.evaluation)
    modes = [task.corpus({mode: 1.0}, PROBLEMS, context.seed) for mode in task.modes]
    lengths = [mean([float(len(chat.response(text))) for _, text in pairs]) for pairs in modes]
    return memory.Workload(prompts, max(lengths), recipe.evaluation)


def duration(recipe: config.Recipe) -> str:
    """Says how long the recipe takes here. A failed forecast is no fault of the recipe."""
    try:
        return forecast.describe(forecast.forecast(recipe))
    except WhetError as fault:
        return f"no forecast: {fault}"


def some_problems(context: Context) -> list[Problem]:
    size = context.task.size("train")
    n = PROBLEMS if size is None else min(PROBLEMS, size)
    return context.task.problems("train", n, context.seed)


def responses(context: Context, problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
    """Returns right responses from the task's corpus; without one, the problems' bare answers."""
    modes = context.task.modes
    try:
        return context.task.corpus(dict.fromkeys(modes, 1.0), PROBLEMS, context.seed)
    except WhetError:
        return [(p, p.answer) for p in problems if p.answer is not None]


def tokenizer(context: Context, policy: Policy, problems: Sequence[Problem]) -> str:
    """Text survives the tokenizer, its ids fit the model, prompts leave room. Raises WhetError."""
    chat, model = context.chat, policy.config
    if chat.vocab > model.vocab:
        raise WhetError(
            f"the tokenizer has ids up to {chat.vocab - 1}, the model {model.vocab} rows; "
            "they do not belong together: take the tokenizer that came with the model"
        )
    texts = [p.question for p in problems] + [text for _, text in responses(context, problems)]
    for text in texts:
        decoded = chat.decode(chat.encode(text))
        if decoded.strip() != text.strip():
            raise WhetError(
                f"{_short(text)} comes back from the tokenizer as {_short(decoded)}; "
                "take a model whose tokenizer knows the task's characters"
            )
    longest = max(len(p.tokens) for p in context.prompts(problems))
    if longest >= model.max_positions:
        raise WhetError(
            f"a prompt has {longest} tokens, the model {model.max_positions} positions; "
            "shorten the prompts, or take a model with more"
        )
    pad = "; pad ends a turn too, which is safe: padding is masked" if chat.pad in chat.eos else ""
    return (
        f"{len(texts)} texts come back as they were; prompts of up to {longest} tokens; "
        f"a turn ends with {sorted(chat.eos)}{pad}"
    )


def masks(context: Context, problems: Sequence[Problem]) -> str:
    """The mask keeps the response and its end of turn, nothing of the prompt. Raises WhetError."""
    chat = context.chat
    for problem, text in responses(context, problems):
        sample = context.example(problem, text)
        kept = sample.tokens[sample.mask].tolist()
        if (
            not text.endswith(sample.text)
            or chat.decode(kept).strip() != sample.text.strip()
            or kept[-1] not in chat.eos
        ):
            raise WhetError(
                f"of the response {_short(text)} the mask keeps {_short(chat.decode(kept))}; "
                "the chat template does not fit this tokenizer"
            )
        prompt = context.prompts([problem])[0].tokens
        n = len(prompt)
        if sample.mask[:n].any() or sample.tokens[:n].tolist() != list(prompt):
            raise WhetError(
                f"the training example of {problem.id} does not begin with its prompt, unmasked; "
                "the chat template does not fit this tokenizer"
            )
    return "the response and its end are trained, the prompt is not"


def draw(engine: Engine, prompts: Sequence[Prompt], max_tokens: int) -> list[Sample]:
    """Draws two samples for each prompt."""
    sampling = Sampling(n=2, temperature=1.0, max_tokens=max_tokens, seed=1)
    return [sample for group in engine.generate(prompts, sampling) for sample in group]


def _room(policy: Policy, prompts: Sequence[Prompt], most: int) -> int:
    """Returns the tokens that an answer may have: `most`, if the model has positions for them."""
    return max(1, min(most, policy.config.max_positions - max(len(p.tokens) for p in prompts)))


def largest_gap(policy: Policy, samples: Sequence[Sample]) -> float:
    """Returns the largest difference of the sampler's and the trainer's log-probabilities, in nats."""
    zeros = [0.0] * len(samples)
    batch = pack(samples, zeros, zeros).to(next(policy.parameters()).device)
    with torch.no_grad():
        logp, _ = policy_logprobs(policy, batch, Sampling(temperature=1.0))
    return float((logp - batch.logp_old).abs().max())


def allowed_gap(policy: Policy) -> float:
    return BFLOAT16_GAP if next(policy.parameters()).dtype == torch.bfloat16 else GAP


def sampler(context: Context, policy: Policy, problems: Sequence[Problem]) -> str:
    """Sampler and trainer compute the same log-probabilities. Raises WhetError."""
    prompts, engine = context.prompts(problems[:4]), context.engine(policy, context.chat)
    gap = largest_gap(policy, draw(engine, prompts, _room(policy, prompts, 32)))
    if not gap <= allowed_gap(policy):
        raise WhetError(
            f"sampler and trainer differ by {gap:.2g} nats on a token; "
            "set override = { correction = 'token' } or use model.dtype = 'float32'"
        )
    return f"sampler and trainer differ by at most {gap:.1e} nats on a token"


def publication(context: Context, policy: Policy, problems: Sequence[Problem]) -> str:
    """An engine made before the weights changed samples with the new ones. Raises WhetError."""
    changed = copy.deepcopy(policy)
    engine = context.engine(changed, context.chat)
    prompts = context.prompts(problems[:4])
    draw(engine, prompts, 8)
    with torch.no_grad():
        for p in changed.parameters():
            p.mul_(1.05)
    samples = draw(engine, prompts, 8)
    new, old = largest_gap(changed, samples), largest_gap(policy, samples)
    if not new <= allowed_gap(changed):
        raise WhetError(
            f"the sampler does not see new weights: it is {new:.2g} nats from them "
            f"and {old:.2g} from the old ones; this is a fault of the engine, please report it"
        )
    return (
        f"the sampler follows changed weights ({new:.1e} nats from the new, {old:.1e} from the old)"
    )


def known_answers(context: Context, problems: Sequence[Problem]) -> list[Case]:
    """Returns a right and a wrong answer for each response of the corpus.

    The wrong one is another problem's. Where the task ranks answers, the two are the best and the
    worst of several.
    """
    pairs = responses(context, problems)
    task = context.task
    cases: list[Case] = []
    for i, (problem, right) in enumerate(pairs):
        others = [(q, text) for q, text in pairs[i + 1 :] + pairs[:i] if text != right]
        wrong = next((text for q, text in others if q.answer != problem.answer), "")
        if isinstance(task, Ranker):
            texts = [right, *[text for q, text in others if q.task == problem.task][:RANKED]]
            order = task.rank(problem, texts, random.Random(f"check {problem.id}"))
            if order:
                right, wrong = texts[order[0]], texts[order[-1]]
        cases.append(Case(problem, right, True, _as_sample(right)))
        cases.append(Case(problem, wrong, False, _as_sample(wrong)))
    return cases


def reward(context: Context, problems: Sequence[Problem], ordered: bool = True) -> str:
    """The verifier fails on no known answer and, if `ordered`, pays right ones more than wrong ones.

    Raises WhetError.
    """
    results = try_cases(context.reward, known_answers(context, problems))
    if not results:
        return "no known answers to try it on"
    failed = [r.score for r in results if not r.score.usable]
    if failed:
        why = failed[0].reason or failed[0].status
        raise WhetError(
            f"the verifier failed on {len(failed)} of {len(results)} known answers ({why}); "
            "see `whet reward test`"
        )
    right, wrong = (
        mean([r.score.value for r in results if r.case.right is side]) for side in (True, False)
    )
    if ordered and not right > wrong:
        raise WhetError(
            f"right answers are paid {right:.2f} on average, wrong ones {wrong:.2f}: "
            "the reward would teach nothing; see `whet reward test`"
        )
    f = figures(results)
    return (
        f"right answers are paid {right:.2f}, wrong ones {wrong:.2f}; "
        f"{f['false_rejects']} of {f['right']} right ones refused, {f['false_accepts']} wrong ones accepted; "
        f"{1000 * f['median_seconds']:.1f} ms an answer, {1000 * f['worst_seconds']:.0f} at worst"
    )


def _as_sample(text: str) -> Sample:
    """Returns a sample with one token a character, which is enough for rewards on length."""
    n = len(text) + 1
    return Sample(
        np.zeros(n + 1, np.int64), np.arange(n + 1) > 0, np.zeros(n + 1, np.float32), text, "stop"
    )


def dry_step(
    context: Context, policy: Policy, stage: config.RL, problems: Sequence[Problem]
) -> str:
    """Makes one update of a copy of the policy, on four samples with made-up rewards.

    Raises WhetError.
    """
    policy = copy.deepcopy(policy)
    override = {**stage.override, "warmup": 0}
    keys = {"steps": 1, "prompts": 2, "samples": 2, "override": override}
    small = stage.model_copy(update=keys)
    trainer = rl.prepared(policy, small, replace(context, model=lambda name: policy))
    prompts = context.prompts(problems[:2])
    max_tokens = _room(policy, prompts, min(stage.max_tokens, 64))
    sampling = replace(trainer.sampling, n=2, max_tokens=max_tokens)
    drawn = context.engine(policy, context.chat).generate(prompts, sampling)
    groups = [
        Group(p, tuple(s), (Score(1.0), Score(0.0))) for p, s in zip(prompts, drawn, strict=True)
    ]
    values, _ = trainer.update(groups)
    models = 1 + (trainer.reference is not None) + (trainer.critic is not None)
    return (
        f"{stage.algorithm}: gradient norm {values['grad_norm']:.3g} "
        f"over {values['tokens']:.0f} tokens; {models} model{'s' * (models > 1)} in memory"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else line[:60] + " …")
