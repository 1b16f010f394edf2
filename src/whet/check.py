"""What would fail in an hour, found in a minute: a recipe's tokenizer, masks, sampler, memory, reward and one dry step of each kind."""

import copy
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from whet import config
from whet.algorithms import algorithm
from whet.batch import pack
from whet.context import Context
from whet.errors import WhetError
from whet.learner import policy_logprobs
from whet.logprobs import MAX_LOGITS
from whet.model import lora
from whet.model.config import ModelConfig
from whet.model.policy import Policy
from whet.pipeline import Pipeline
from whet.provision import fresh
from whet.rollout import mean
from whet.row import Algorithm
from whet.stages import rl
from whet.trial import Case, figures, trial
from whet.types import Group, Problem, Prompt, Ranker, Sample, Sampling, Score

GAP = 1e-3  # nats that sampler and trainer may differ by on a token, in float32
SOME = 16  # problems looked at
SEVERAL = 5  # other answers that a taste chooses among


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `told` says what was seen; where it is not ok, what to do about it."""

    name: str
    ok: bool
    told: str


def findings(recipe: config.Recipe) -> Iterator[Finding]:
    """Each as it is found. What cannot be looked at because an earlier thing failed is left out."""
    with TemporaryDirectory() as scratch:
        try:
            pipeline = Pipeline.of(recipe, Path(scratch) / "check", None)
            policy = pipeline.policy or pipeline.place(fresh(recipe.model.shape, pipeline.context.chat, recipe.seed))
            problems = _problems(pipeline.context)
        except WhetError as failure:
            yield Finding("recipe", False, str(failure))
            return
        size = sum(p.numel() for p in policy.parameters())
        yield Finding(
            "recipe", True, f"{len(recipe.stage)} stages; task {recipe.task.name}; a model of {size:,} parameters"
        )
        context = pipeline.context
        looks: list[tuple[str, Callable[[], str]]] = [
            ("tokenizer", lambda: tokenizer(context, policy, problems)),
            ("masks", lambda: masks(context, problems)),
            ("sampler", lambda: sampler(context, policy, problems)),
            ("publication", lambda: publication(context, policy, problems)),
            ("memory", lambda: memory(recipe, policy.config, size)),
            ("reward", lambda: reward(context, problems)),
        ]
        looks += [
            (f"dry step of {s.name}", lambda s=s: dry_step(context, copy.deepcopy(policy), s, problems))
            for s in recipe.stage
            if isinstance(s, config.RL)
        ]
        for name, look in looks:
            try:
                yield Finding(name, True, look())
            except WhetError as failure:
                yield Finding(name, False, str(failure))


def _problems(context: Context) -> list[Problem]:
    size = context.task.size("train")
    return context.task.problems("train", SOME if size is None else min(SOME, size), context.seed)


def responses(context: Context, problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
    """Right answers to training problems, as the task's corpus writes them, or bare where it has none."""
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
        raise WhetError(f"{_short(lost)} comes back from the tokenizer as {_short(chat.decode(chat.encode(lost)))}")
    prompts = context.prompts(problems)
    longest = max(len(p.tokens) for p in prompts)
    if longest >= policy.config.max_positions:
        raise WhetError(f"a prompt has {longest} tokens, the model {policy.config.max_positions} positions")
    shared = "; pad is an end of turn too, which is safe: masks say what was chosen" if chat.pad in chat.eos else ""
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
    return [s for group in context.engine(policy, context.chat).generate(prompts, sampling) for s in group]


def gap(policy: Policy, samples: Sequence[Sample]) -> float:
    """The largest difference between the sampler's log-probabilities and the trainer's."""
    batch = pack(samples, [0.0] * len(samples), [0.0] * len(samples)).to(next(policy.parameters()).device)
    with torch.no_grad():
        logp, _ = policy_logprobs(policy, batch, Sampling(temperature=1.0))
    return float((logp - batch.logp_old).abs().max())


def sampler(context: Context, policy: Policy, problems: Sequence[Problem]) -> str:
    """Sampler and trainer mean the same distribution. Raises WhetError."""
    found = gap(policy, draw(context, policy, context.prompts(problems[:4]), 1))
    if not found <= GAP:
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
    if not now <= GAP:
        raise WhetError(
            f"the sampler does not see new weights: it is {now:.2g} nats from them and {stale:.2g} from the old ones"
        )
    return f"the sampler follows changed weights ({now:.1e} nats from the new, {stale:.1e} from the old)"


def available(device: torch.device) -> float:
    """Bytes that can still be had on the device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if os.path.exists("/proc/meminfo") else []
    told = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return float("inf") if told is None else float(told.split()[1]) * 1024


def needed(stage: config.SFT | config.RL, row: Algorithm | None, shape: ModelConfig, size: int) -> float:
    """Bytes at most, roughly: weights, gradients and two moments of what is trained; what is frozen; activations; logits; the sampler's cache."""
    critic = row is not None and (row.critic is not None or row.token_reward)
    models = 4.0 + (row is not None and row.has_kl) + 4 * critic
    if (
        stage.lora is not None
    ):  # the weights, once more where another model stands beside them, and merged while sampling
        own = isinstance(stage, config.RL) and (
            stage.critic is not None and stage.critic.start,
            stage.reference != "start",
        )
        models = 2.0 + sum(map(bool, own or ())) + 4 * (1 + critic) * lora.size(shape, stage.lora) / size
    activations = stage.micro_tokens * shape.layers * (12 * shape.hidden + 3 * shape.ffn)
    logits = 4 * min(MAX_LOGITS, stage.micro_tokens * shape.vocab)
    cache = 0
    if isinstance(stage, config.RL):
        rows = min(256, stage.prompts * stage.samples)
        cache = rows * (stage.max_tokens + 64) * 2 * shape.layers * shape.kv_heads * shape.head_dim
    return 4.0 * (models * size + activations + logits + cache)


def memory(recipe: config.Recipe, shape: ModelConfig, size: int) -> str:
    """The hungriest stage fits. Raises WhetError."""
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.model.device != "cpu" else "cpu")
    stages = [s for s in recipe.stage if isinstance(s, (config.SFT, config.RL))]
    wanted = {
        s.name: needed(s, algorithm(s.algorithm, s.override) if isinstance(s, config.RL) else None, shape, size)
        for s in stages
    }
    if not wanted:
        return "nothing is trained"
    name, most = max(wanted.items(), key=lambda item: item[1])
    free = available(device)
    if most > free:
        raise WhetError(
            f"stage {name} may take {most / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on {device.type}; lower its micro_tokens, or prompts x samples"
        )
    return f"stage {name} may take {most / 2**30:.2f} GiB; {free / 2**30:.1f} GiB are free on {device.type}"


def known(context: Context, problems: Sequence[Problem]) -> list[Case]:
    """Answers whose worth is known: the corpus's, each beside another problem's; of a task with a taste the best and worst of several."""
    pairs = responses(context, problems)
    task = context.task
    cases: list[Case] = []
    for i, (p, text) in enumerate(pairs):
        others = [(q, t) for q, t in pairs[i + 1 :] + pairs[:i] if t != text]
        wrong = next((t for q, t in others if q.answer != p.answer), "")
        if isinstance(task, Ranker):
            texts = [text, *(t for _, t in others[:SEVERAL])]
            order = task.rank(p, texts, random.Random(f"check {p.id}"))
            text, wrong = texts[order[0]], texts[order[-1]]
        cases += [Case(p, text, True, _as_sample(text)), Case(p, wrong, False, _as_sample(wrong))]
    return cases


def reward(context: Context, problems: Sequence[Problem]) -> str:
    """Right answers are paid more than wrong ones, and the verifier fails on none. Raises WhetError."""
    tried = trial(context.reward, known(context, problems))
    if not tried:
        return "no known answers to try it on"
    failed = [t.score for t in tried if not t.score.usable]
    if failed:
        why = failed[0].reason or failed[0].status
        raise WhetError(
            f"the verifier failed on {len(failed)} of {len(tried)} known answers ({why}); see `whet reward test`"
        )
    paid, lost = (mean([t.score.value for t in tried if t.case.right is side]) for side in (True, False))
    if not paid > lost:
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
    return Sample(np.zeros(n + 1, np.int64), np.arange(n + 1) > 0, np.zeros(n + 1, np.float32), text, "stop")


def dry_step(context: Context, policy: Policy, stage: config.RL, problems: Sequence[Problem]) -> str:
    """One update of a copy, on a handful of samples with made-up rewards. Raises WhetError."""
    row = algorithm(stage.algorithm, {**stage.override, "warmup": 0})
    small = stage.model_copy(update={"steps": 1, "prompts": 2, "samples": 2})
    trainer = rl.prepared(policy, small, row, replace(context, model=lambda name: policy))
    prompts = context.prompts(problems[:2])
    room = policy.config.max_positions - max(len(p.tokens) for p in prompts)
    sampling = replace(trainer.sampling, n=2, max_tokens=max(1, min(stage.max_tokens, room, 64)))
    drawn = context.engine(policy, context.chat).generate(prompts, sampling)
    groups = [Group(p, tuple(s), (Score(1.0), Score(0.0))) for p, s in zip(prompts, drawn, strict=True)]
    told, _ = trainer.update(groups)
    held = 1 + (trainer.reference is not None) + (trainer.judge is not None)
    return f"{row.name}: gradient norm {told['grad_norm']:.3g} over {told['tokens']:.0f} tokens; {held} model{'s' * (held > 1)} held"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else line[:60] + " …")
