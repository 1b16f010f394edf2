"""What would fail in an hour, found in a minute: a recipe's tokenizer, masks, sampler, memory,
reward and one dry step of each kind.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from whet import config
from whet.algorithms.batch import pack
from whet.errors import WhetError
from whet.model.policy import Policy
from whet.pipeline.pipeline import Pipeline
from whet.pipeline.setup import SMALL, fresh
from whet.preflight import dry_run, forecast, memory
from whet.preflight.fake_hub import shape_of
from whet.rewards.known_answers import Case, figures, trial
from whet.rollout.context import Context
from whet.rollout.rollout import mean
from whet.stages import rl
from whet.training.learner import policy_logprobs
from whet.types import Group, Problem, Prompt, Ranker, Sample, Sampling, Score

GAP, ROUGH = (
    1e-3,
    0.5,
)  # nats that sampler and trainer may differ by on a token, in float32 and in bfloat16
SOME = 16  # problems looked at
SEVERAL = 5  # other answers that a taste chooses among


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `told` says what was seen; where it is not ok, what to do about
    it.
    """

    name: str
    ok: bool
    told: str


def findings(recipe: config.Recipe, offline: bool = False) -> Iterator[Finding]:
    """Each as it is found. What cannot be looked at because an earlier thing failed is left out.

    Stages are rehearsed where the model is small. `offline`: with a stand-in for all that only the
    Hub has (`standin`), so it always is.
    """
    with TemporaryDirectory() as scratch:
        real = recipe
        try:
            if offline:
                recipe = dry_run.offline(recipe, Path(scratch))
            pipeline = Pipeline.of(recipe, Path(scratch) / "check", None)
            policy = pipeline.policy or pipeline.place(
                fresh(recipe.model.shape, pipeline.context.chat, recipe.seed)
            )
            problems = looked_at(pipeline.context)
            tiny = recipe.model.path != real.model.path
            shape = shape_of(str(real.model.path)) if tiny else policy.config
        except WhetError as failure:
            yield Finding("recipe", False, str(failure))
            return
        size = memory.parameters(shape)
        stands = (
            f", for which a tiny one of its architecture ({shape.family}) stands in" if tiny else ""
        )
        yield Finding(
            "recipe",
            True,
            f"{len(recipe.stage)} stages; task {recipe.task.name}; a model of {size:,} parameters{stands}",
        )
        context = pipeline.context
        judged = not (offline and any(part.name in ("learned", "judge") for part in recipe.reward))
        looks: list[tuple[str, Callable[[], str]]] = [
            ("tokenizer", lambda: tokenizer(context, policy, problems)),
            ("masks", lambda: masks(context, problems)),
            ("sampler", lambda: sampler(context, policy, problems)),
            ("publication", lambda: publication(context, policy, problems)),
            (
                "memory",
                lambda: memory.memory(
                    recipe, shape, size, load(context, recipe, problems), not tiny
                ),
            ),
            ("reward", lambda: reward(context, problems, judged)),
        ]
        if sum(p.numel() for p in policy.parameters()) <= SMALL:
            looks += rehearsal(recipe, Path(scratch) / "rehearsal")
            looks += [] if offline else [("time", lambda: duration(recipe))]
        else:
            looks += [
                (
                    f"dry step of {s.name}",
                    lambda s=s: dry_step(context, copy.deepcopy(policy), s, problems),
                )
                for s in recipe.stage
                if isinstance(s, config.RL)
            ]
        for name, look in looks:
            try:
                yield Finding(name, True, look())
            except WhetError as failure:
                yield Finding(name, False, str(failure))
                if name.startswith("stage "):
                    return


def rehearsal(recipe: config.Recipe, folder: Path) -> list[tuple[str, Callable[[], str]]]:
    """Each stage in small, in order; a look at one needs those before it."""
    held: list[dry_run.Rehearsal] = []

    def look(stage: config.AnyStage) -> str:
        if not held:
            held.append(dry_run.Rehearsal.of(dry_run.small(recipe), folder, None))
        held[0].stage(next(s for s in held[0].recipe.stage if s.name == stage.name))
        return held[0].told(stage)

    return [(f"stage {stage.name}", lambda stage=stage: look(stage)) for stage in recipe.stage]


def load(context: Context, recipe: config.Recipe, problems: Sequence[Problem]) -> memory.Load:
    """Prompts as long as some of the task's. Responses as in the longest mode of its corpus, where
    the model is made from nothing; else not known.
    """
    prompts = mean([float(len(p.tokens)) for p in context.prompts(problems)])
    longest = math.inf
    if recipe.model.path is None and context.task.modes:
        pairs = [
            context.task.corpus({mode: 1.0}, SOME, context.seed) for mode in context.task.modes
        ]
        longest = max(
            mean([float(len(context.chat.response(text))) for _, text in some]) for some in pairs
        )
    return memory.Load(prompts, longest, recipe.evaluation)


def duration(recipe: config.Recipe) -> str:
    """How long the recipe takes here. What cannot be foretold is no fault of the recipe, which has
    been rehearsed.
    """
    try:
        return forecast.told(forecast.forecast(recipe))
    except WhetError as failure:
        return f"not foretold: {failure}"


def looked_at(context: Context) -> list[Problem]:
    size = context.task.size("train")
    return context.task.problems("train", SOME if size is None else min(SOME, size), context.seed)


def responses(context: Context, problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
    """Right answers to training problems, as the task's corpus writes them, or bare where it has
    none.
    """
    modes = context.task.modes
    try:
        return context.task.corpus(dict.fromkeys(modes, 1.0), SOME, context.seed)
    except WhetError:
        return [(p, p.answer) for p in problems if p.answer is not None]


def tokenizer(context: Context, policy: Policy, problems: Sequence[Problem]) -> str:
    """Text survives the tokenizer; ids fit the model; an answer can end. Raises WhetError."""
    chat = context.chat
    if chat.vocab > policy.config.vocab:
        raise WhetError(
            f"the tokenizer has ids up to {chat.vocab - 1}, the model {policy.config.vocab} rows; they do not belong together"
        )
    texts = [p.question for p in problems] + [text for _, text in responses(context, problems)]
    lost = next((t for t in texts if chat.decode(chat.encode(t)).strip() != t.strip()), None)
    if lost is not None:
        raise WhetError(
            f"{_short(lost)} comes back from the tokenizer as {_short(chat.decode(chat.encode(lost)))}"
        )
    prompts = context.prompts(problems)
    longest = max(len(p.tokens) for p in prompts)
    if longest >= policy.config.max_positions:
        raise WhetError(
            f"a prompt has {longest} tokens, the model {policy.config.max_positions} positions"
        )
    shared = (
        "; pad is an end of turn too, which is safe: masks say what was chosen"
        if chat.pad in chat.eos
        else ""
    )
    return f"{len(texts)} texts come back as they were; prompts of up to {longest} tokens; a turn ends with {sorted(chat.eos)}{shared}"


def masks(context: Context, problems: Sequence[Problem]) -> str:
    """What is trained on is the response and its end, and nothing of the prompt. Raises WhetError."""
    chat = context.chat
    for problem, text in responses(context, problems):
        made = context.example(problem, text)
        chosen = made.tokens[made.mask].tolist()
        if (
            not text.endswith(made.text)
            or chat.decode(chosen).strip() != made.text.strip()
            or chosen[-1] not in chat.eos
        ):
            raise WhetError(
                f"of the response {_short(text)} the mask keeps {_short(chat.decode(chosen))}; the template does not fit this tokenizer"
            )
        prompt = context.prompts([problem])[0].tokens
        if made.mask[: len(prompt)].any() or made.tokens[: len(prompt)].tolist() != list(prompt):
            raise WhetError(f"the prompt of {problem.id} is not what stands before its response")
    return "the response and its end are trained, the prompt is not"


def draw(context: Context, policy: Policy, prompts: Sequence[Prompt], seed: int) -> list[Sample]:
    room = policy.config.max_positions - max(len(p.tokens) for p in prompts)
    sampling = Sampling(n=2, temperature=1.0, max_tokens=max(1, min(32, room)), seed=seed)
    return [
        s
        for group in context.engine(policy, context.chat).generate(prompts, sampling)
        for s in group
    ]


def gap(policy: Policy, samples: Sequence[Sample]) -> float:
    """The largest difference between the sampler's log-probabilities and the trainer's."""
    batch = pack(samples, [0.0] * len(samples), [0.0] * len(samples)).to(
        next(policy.parameters()).device
    )
    with torch.no_grad():
        logp, _ = policy_logprobs(policy, batch, Sampling(temperature=1.0))
    return float((logp - batch.logp_old).abs().max())


def allowed(policy: Policy) -> float:
    return ROUGH if next(policy.parameters()).dtype == torch.bfloat16 else GAP


def sampler(context: Context, policy: Policy, problems: Sequence[Problem]) -> str:
    """Sampler and trainer mean the same distribution. Raises WhetError."""
    found = gap(policy, draw(context, policy, context.prompts(problems[:4]), 1))
    if not found <= allowed(policy):
        raise WhetError(
            f"sampler and trainer differ by {found:.2g} nats on a token; set override = {{ correction = 'token' }} or use model.dtype = 'float32'"
        )
    return f"sampler and trainer differ by at most {found:.1e} nats on a token"


def publication(context: Context, policy: Policy, problems: Sequence[Problem]) -> str:
    """An engine made before the weights changed samples from the changed ones. Raises WhetError."""
    moved = copy.deepcopy(policy)
    engine = context.engine(moved, context.chat)
    prompts = context.prompts(problems[:4])
    sampling = Sampling(n=2, temperature=1.0, max_tokens=8, seed=1)
    engine.generate(prompts, sampling)
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1.05)
    samples = [s for group in engine.generate(prompts, sampling) for s in group]
    now, stale = gap(moved, samples), gap(policy, samples)
    if not now <= allowed(moved):
        raise WhetError(
            f"the sampler does not see new weights: it is {now:.2g} nats from them and {stale:.2g} from the old ones"
        )
    return f"the sampler follows changed weights ({now:.1e} nats from the new, {stale:.1e} from the old)"


def known(context: Context, problems: Sequence[Problem]) -> list[Case]:
    """Answers whose worth is known: the corpus's, each beside another problem's; of a task with a
    taste the best and worst of several.
    """
    pairs = responses(context, problems)
    task = context.task
    cases: list[Case] = []
    for i, (p, text) in enumerate(pairs):
        others = [(q, t) for q, t in pairs[i + 1 :] + pairs[:i] if t != text]
        wrong = next((t for q, t in others if q.answer != p.answer), "")
        if isinstance(task, Ranker):
            texts = [text, *[t for q, t in others if q.task == p.task][:SEVERAL]]
            order = task.rank(p, texts, random.Random(f"check {p.id}"))
            text, wrong = (texts[order[0]], texts[order[-1]]) if order else (text, wrong)
        cases += [Case(p, text, True, _as_sample(text)), Case(p, wrong, False, _as_sample(wrong))]
    return cases


def reward(context: Context, problems: Sequence[Problem], judged: bool = True) -> str:
    """The verifier fails on no known answer and, where it is `judged`, pays right ones more than
    wrong ones. Raises WhetError.
    """
    tried = trial(context.reward, known(context, problems))
    if not tried:
        return "no known answers to try it on"
    failed = [t.score for t in tried if not t.score.usable]
    if failed:
        why = failed[0].reason or failed[0].status
        raise WhetError(
            f"the verifier failed on {len(failed)} of {len(tried)} known answers ({why}); see `whet reward test`"
        )
    paid, lost = (
        mean([t.score.value for t in tried if t.case.right is side]) for side in (True, False)
    )
    if judged and not paid > lost:
        raise WhetError(
            f"right answers are paid {paid:.2f} on average, wrong ones {lost:.2f}: the reward would teach nothing; see `whet reward test`"
        )
    told = figures(tried)
    return (
        f"right answers are paid {paid:.2f}, wrong ones {lost:.2f}; {told['false_rejects']} of {told['right']} right ones refused, "
        f"{told['false_accepts']} wrong ones accepted; {1000 * told['median_seconds']:.1f} ms an answer, {1000 * told['worst_seconds']:.0f} at worst"
    )


def _as_sample(text: str) -> Sample:
    """A text whose characters stand for its tokens: enough for rewards that look at lengths."""
    n = len(text) + 1
    return Sample(
        np.zeros(n + 1, np.int64), np.arange(n + 1) > 0, np.zeros(n + 1, np.float32), text, "stop"
    )


def dry_step(
    context: Context, policy: Policy, stage: config.RL, problems: Sequence[Problem]
) -> str:
    """One update of a copy, on a handful of samples with made-up rewards. Raises WhetError."""
    override = {**stage.override, "warmup": 0}
    keys = {"steps": 1, "prompts": 2, "samples": 2, "override": override}
    small = stage.model_copy(update=keys)
    trainer = rl.prepared(policy, small, replace(context, model=lambda name: policy))
    prompts = context.prompts(problems[:2])
    room = policy.config.max_positions - max(len(p.tokens) for p in prompts)
    sampling = replace(trainer.sampling, n=2, max_tokens=max(1, min(stage.max_tokens, room, 64)))
    drawn = context.engine(policy, context.chat).generate(prompts, sampling)
    groups = [
        Group(p, tuple(s), (Score(1.0), Score(0.0))) for p, s in zip(prompts, drawn, strict=True)
    ]
    told, _ = trainer.update(groups)
    held = 1 + (trainer.reference is not None) + (trainer.critic is not None)
    return f"{stage.algorithm}: gradient norm {told['grad_norm']:.3g} over {told['tokens']:.0f} tokens; {held} model{'s' * (held > 1)} held"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else line[:60] + " …")
