"""Plants errors in a copy of whet, one at a time, and runs the maths suite on each: `make mutants`.

A mutant is (file, what stands there, what is put in its place), and may name the tests that should
notice. The last line reads `planted N, killed N`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITE = (
    "test_maths",
    "test_gradient",
    "test_token_advantages",
    "test_learner",
    "test_rollout",
    "test_stages",
    "test_thinking",
    "test_thinking_measured",
    "test_engine",
    "test_measure",
    "test_oracle",
)
OWN = {
    "model/huggingface": ("test_huggingface_model",),
    "engines/requests": ("test_engine_huggingface",),
    "model/flash_attention": ("test_flash_attention",),
    "engines/static_cache": ("test_cuda_graph",),
    "engines/cuda_graph": ("test_cuda_graph",),
    "model/lora": ("test_lora",),
    "model/lora_files": ("test_lora_files",),
    "model/pretrained": ("test_lora",),
    "data/preferences": ("test_rankings",),
    "stages/dpo": ("test_reward_model",),
    "stages/reward_model": ("test_reward_model",),
    "stages/merge": ("test_reward_model",),
    "rewards/custom/custom": ("test_custom_reward", "test_reward_robust"),
    "rewards/combine": ("test_rewards", "test_combine_verdicts", "test_only"),
    "rewards/length": ("test_length_rewards",),
    "pipeline/setup": ("test_mix",),
    "rewards/known_answers": ("test_known_answers",),
    "preflight/dry_run": ("test_dry_run",),
    "storage/checkpoint": ("test_resume",),
    "storage/run_log": ("test_resume",),
    "rollout/dataset": ("test_pipelines",),
    "pipeline/resume": ("test_pipelines", "test_resume"),
}  # whose own tests are not in it
SECONDS = 240  # for the suite on one mutant; one that hangs is killed, too

MUTANTS = [
    ("algorithms/kl", "return torch.expm1(d) - d", "return torch.expm1(d) + d"),
    ("algorithms/kl", "d = logp_ref - logp", "d = logp - logp_ref"),
    ("algorithms/kl", "(logp - logp_ref).square() / 2", "(logp - logp_ref).square()"),
    ("algorithms/kl", "return logp - logp_ref\n", "return logp_ref - logp\n"),
    ("algorithms/losses", "return -torch.minimum(", "return -torch.maximum("),
    ("algorithms/losses", "ratio.clamp(1 - low, 1 + high)", "ratio.clamp(1 - high, 1 + low)"),
    ("algorithms/losses", "return -advantage * logp", "return advantage * logp"),
    ("algorithms/losses", "(ratio > 1 + high) & (advantage > 0)", "(ratio > 1 + high) & (advantage < 0)"),
    ("algorithms/losses", "    return logp - logp_old\n\n\ndef sequence", "    return logp_old - logp\n\n\ndef sequence"),
    ("algorithms/advantages", "else r - r.mean() for r in groups", "else r for r in groups"),
    ("algorithms/advantages", "r.std(correction=0)", "r.std(correction=1)"),
    ("algorithms/advantages", "bool(rewards.max() == rewards.min())", "False"),
    ("algorithms/advantages", "(len(r) * r - r.sum()) / (len(r) - 1)", "(len(r) * r - r.sum()) / len(r)"),
    ("algorithms/advantages", "return [r - baseline for r in groups]", "return [r - r.mean() for r in groups]"),
    ("algorithms/objective", "1 / (count * max(n, 1))", "1 / max(n, 1)"),
    ("algorithms/objective", "[1 / max(total, 1)] * count", "[1 / (max(total, 1) * count)] * count"),
    ("algorithms/objective", "1 / (count * limit)", "1 / count"),
    ("algorithms/objective", "each = each + row.beta *", "each = each - row.beta *"),
    ("algorithms/objective", "each - row.entropy * entropy", "each + row.entropy * entropy"),
    ("algorithms/objective", "row.clip_low, row.clip_high)\n    if row.needs", "row.clip_low, row.clip_low)\n    if row.needs"),
    ("algorithms/algorithm", "not (self.needs_reference or self.entropy or self.clone or self.tau)", "True"),
    ("algorithms/batch", "chosen = mask.nonzero()[0]", "chosen = mask.nonzero()[0][:-1]"),
    ("algorithms/batch", "mask = np.concatenate([s.mask for s in samples])", "mask = np.concatenate([np.arange(len(s.mask)) > 0 for s in samples])"),
    ("algorithms/batch", "            **named,", "            **{**named, \"weight\": named[\"weight\"] / named[\"weight\"].sum()},"),
    ("algorithms/batch", "place[self.chosen[m]]", "self.chosen[m]"),
    ("algorithms/batch", "np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)", "np.arange(starts[-1])"),
    ("algorithms/batch", "getattr(self, f.name)[m] for f", "getattr(self, f.name)[: int(m.sum())] for f"),
    ("model/logprobs", "return states[chosen - 1]", "return states[chosen]"),
    ("model/logprobs", "logits.to(kind) / temperature", "logits.to(kind) * temperature"),
    ("model/logprobs", "return wide.masked_fill(excluded, -torch.inf).log_softmax(-1)", "return wide.log_softmax(-1).masked_fill(excluded, -torch.inf)"),
    ("model/logprobs", "probability.cumsum(-1) - probability >= top_p", "probability.cumsum(-1) >= top_p"),
    ("model/logprobs", "excluded.scatter_(1, keep[:, None], False)", "pass"),
    ("model/logprobs", "logp if entropy_grad else logp.detach()", "logp.detach()"),
    ("model/logprobs", "-(every.exp() * finite).sum(-1)", "(every.exp() * finite).sum(-1)"),
    ("algorithms/objective", "each = each * batch.weight", "pass"),
    ("training/learner", "group[\"lr\"] = rate * self.lr_scale", "group[\"lr\"] = rate"),
    ("training/learner", "        self._spread()\n        self.forget()\n        self.done", "        self._spread()\n        self.done"),
    ("training/learner", "if not (math.isfinite(norm) and math.isfinite(loss)):", "if False:"),
    ("training/learner", "self.settings.max_grad_norm)", "1e9)"),
    ("training/learner", "processed(logits, sampling.temperature,", "processed(logits, 1.0,"),
    ("stages/rl", "reference = frozen(reference)", "pass"),
    ("training/trainer", "(batch.advantage != 0) &", "(batch.advantage > 0) &"),
    ("training/trainer", "pack(samples, advantages.tolist()", "pack(samples, advantages.flip(0).tolist()"),
    ("stages/rl", "[g for g in fresh if g.usable.has_signal] if dynamic else fresh", "fresh"),
    ("stages/rl", "seed=context.seed * 1_000_003 + step", "seed=context.seed"),
    ("rollout/context", "np.zeros(len(prompt.tokens), bool)", "np.arange(len(prompt.tokens)) > 0"),
    ("rollout/context", "answer = self.chat.response(text)", "answer = self.chat.encode(text)"),
    ("rollout/context", "stands(self.ask.thinking, f\"{seed} {problem.id}\")", "stands(self.ask.thinking, f\"{seed}\")"),
    ("stages/sft", "[1 / tokens] * len(examples)", "[1.0] * len(examples)"),
    ("stages/reject", "if c.correct and s.finish == \"stop\"", "if c.correct"),
    ("model/attention", "is_causal=True", "is_causal=False"),
    ("rollout/rollout", "        for s in samples\n    ]\n    problems", "        for s in reversed(samples)\n    ]\n    problems"),
    ("rollout/rollout", "text=p.begun + s.text", "text=s.text"),
    ("rollout/rollout", "wrong = [s.length for s, c in rows if not c.correct]", "wrong = [s.length for s, c in rows]"),
    ("types", "return self.status not in (\"timeout\", \"error\")", "return True"),
    ("types", "max(self.rewards) > min(self.rewards)", "max(self.rewards) >= min(self.rewards)"),
    ("training/learner", "            optimizer.step()\n        self._spread()", "            optimizer.step()", "test_narrow"),
    ("training/learner", "p.grad.add_(weight.grad)", "p.grad", "test_narrow"),
    ("training/learner", "p.copy_(weight)\n        self._spread()", "p.copy_(weight)", "test_narrow"),
    ("model/flash_attention", "torch.sigmoid(size_2 - size)", "torch.sigmoid(size - size_2)"),
    ("model/flash_attention", "size.index_copy_(1, self.readers, size_both)", "pass"),
    ("model/flash_attention", "dk.index_add_(0, self.prefix, db)", "pass"),
    ("model/flash_attention", "dq.index_add_(0, self.readers, da)", "dq.index_copy_(0, self.readers, da)"),
    ("model/flash_attention", "Spans(bounds, bounds, (most, most), causal=True)", "Spans(bounds, bounds, (most, most))"),
    ("model/transformer", "self.recompute and torch.is_grad_enabled()", "False", "test_recompute"),
    ("engines/static_cache", "self.now - self.indices[0]", "self.column - self.indices[0]"),
    ("engines/static_cache", "size.index_select(1, back)", "size"),
    ("engines/static_cache", "used=self.indices[4]", "used=None"),
    ("engines/static_cache", "(self.slot + 1)", "self.slot"),
    ("engines/static_cache", "(size - own_size)", "(own_size - size)"),
    ("engines/static_cache", "self.shape, self.members = shape, members\n        self.views += 1", "self.shape, self.members = shape, members"),
    ("engines/cuda_graph", "        cache.now.fill_(cache.column)\n", ""),
    ("engines/sampling", "processed(logits, sampling.temperature,", "processed(logits, 1.0,"),
    ("evaluation/measure", "context.some(\"test\", spec.problems", "context.some(\"train\", spec.problems"),
    ("algorithms/advantages", "wrong = -right.sum() / max(len(r) - 1, 1)", "wrong = -right.sum() / len(r)"),
    ("algorithms/advantages", "(values.std(correction=0) + eps)", "(values.std() + eps)"),
    ("algorithms/losses", "return total / torch.bincount(sequence)[sequence]", "return total"),
    ("algorithms/losses", "index_add(0, sequence, x)[sequence]", "index_add(0, sequence, x)[sequence.flip(0)]"),
    ("algorithms/losses", ".clamp(1 - low, 1 + high).detach() * advantage", ".clamp(1 - low, 1 + high) * advantage"),
    ("algorithms/losses", "return sequence_sum(moved, sequence) * moved / 2", "return moved * moved / 2"),
    ("algorithms/objective", "each = each + row.tau *", "each = each - row.tau *"),
    ("algorithms/objective", "each - batch.clone * logp", "each + batch.clone * logp"),
    ("algorithms/objective", "row.clone / max(tokens, 1) if r", "row.clone if r"),
    ("algorithms/algorithm", "return self.has_kl and self.kl_in == \"loss\"", "return self.has_kl"),
    ("algorithms/algorithm", "return self.rewards_kl or self.trains_critic", "return self.trains_critic"),
    ("algorithms/objective", "if row.ratio == \"sequence\":", "if False:"),
    ("algorithms/critic", "ahead, advantage = after.to(values.dtype),", "ahead, advantage = 0 * after.to(values.dtype),"),
    ("algorithms/critic", "gamma * lam.to(values.dtype) * advantage", "gamma * advantage"),
    ("algorithms/critic", "r[:, k] + gamma * ahead", "r[:, k] + ahead"),
    ("algorithms/critic", "r[:, k] + gamma * ahead - v[:, k]", "r[:, k] + gamma * ahead"),
    ("algorithms/critic", "lengths[sequence] - 1 - at", "at"),
    ("algorithms/critic", "return torch.maximum(plain,", "return torch.minimum(plain,"),
    ("algorithms/critic", "bounded = old + (values - old).clamp(-clip, clip)", "bounded = values"),
    ("algorithms/critic", "torch.where(right > 0.5, lean, -lean)", "torch.where(right > 0.5, lean, lean)"),
    ("algorithms/critic", "1 / (alpha * lengths", "1 / (lengths"),
    ("algorithms/critic", "mean = total / torch.bincount(sequence, minlength=len(right)).clamp(min=1)", "mean = total"),
    ("training/token_advantages", "rewards = -row.beta * kl", "rewards = row.beta * kl"),
    ("training/token_advantages", "KL[self.row.kl](batch.logp_old, logp_ref)", "KL[self.row.kl](logp_ref, batch.logp_old)"),
    ("training/token_advantages", "batch.advantage.double() * last_tokens(batch)", "batch.advantage.double()"),
    ("training/token_advantages", "(batch.sequence[1:] != batch.sequence[:-1])", "(batch.sequence[1:] == batch.sequence[:-1])"),
    ("training/token_advantages", "cut_off if cells.bootstrap else torch.zeros_like(cut_off)", "cut_off"),
    ("training/token_advantages", "torch.where(cut_off, torch.cat(behind), 0.0)", "torch.cat(behind)"),
    ("training/token_advantages", "s.finish == \"length\" for s in samples", "s.finish == \"stop\" for s in samples"),
    ("training/token_advantages", "gamma, lam_critic)", "gamma, lam)"),
    ("training/token_advantages", "inner.append(before(states, micro.chosen))", "inner.append(states[micro.chosen])"),
    ("training/token_advantages", "values = before(states, micro.chosen)", "values = states[micro.chosen]"),
    ("training/token_advantages", "micro.value_old, cells.value_clip)", "micro.value_old, 0.0)"),
    ("training/token_advantages", "advantage = whitened(advantage)", "pass"),
    ("training/token_advantages", "advantage = advantage + returns_to_go(", "advantage = returns_to_go("),
    ("training/token_advantages", "advantage = batch.advantage.double() * token_weights(", "advantage = token_weights("),
    ("training/trainer", "if self.rollouts <= self.row.warmup:", "if False:"),
    ("training/trainer", "objective.advantages(row, [g.rewards for g in groups])", "objective.advantages(row, [[r for g in groups for r in g.rewards]])"),
    ("training/trainer", "batch.weight * factor", "batch.weight"),
    ("training/trainer", "replace(batch, logp_old=logp,", "replace(batch,"),
    ("training/trainer", "self.learner.fresh()", "pass"),
    ("algorithms/off_policy", "clamp(max=cap)", "clamp(min=cap)"),
    ("algorithms/off_policy", "mean.abs() <= torch", "mean <= torch"),
    ("model/value_head", "copy.deepcopy(policy).requires_grad_(True)", "policy"),
    ("model/huggingface", "super().train(False)", "super().train(mode)"),
    ("model/value_head", "if lora is None else adapters.copied(policy)", "if lora is None else policy"),
    ("model/lora", "return self.alpha / self.rank", "return self.alpha"),
    ("model/lora", "rows.addmm_(self.lora_b[name], self.lora_a[name], alpha=self.scale)", "pass"),
    ("model/lora", "self.lora_b[name].t(), alpha=self.scale)", "self.lora_b[name].t())"),
    ("model/lora", "weight = self.weight.clone()", "weight = self.weight.data"),
    ("model/lora", "plain.weight.new_zeros(rows, lora.rank)", "plain.weight.new_ones(rows, lora.rank)"),
    ("model/lora", "    model.requires_grad_(False)\n    generator", "    generator"),
    ("model/lora", "for p in model.parameters() if not p.requires_grad}", "for p in model.parameters()}"),
    ("model/lora", "            module.whole = None", "            pass"),
    ("model/lora_files", "lora_A.weight\"] = maps.lora_a[target]", "lora_A.weight\"] = maps.lora_a[target].flip(0)"),
    ("model/lora_files", "os.path.relpath(old / options[BASE], new)", "options[BASE]"),
    ("model/pretrained", "        lora.merge(model)\n", ""),
    ("rollout/curriculum", "1 - self.success[i]", "self.success[i]"),
    ("algorithms/losses", "(rank[:, None] < rank)", "(rank[:, None] > rank)", "test_reward_model"),
    ("algorithms/losses", "(group[:, None] == group) & (rank", "(rank", "test_reward_model"),
    ("algorithms/losses", "softplus(score[worse] - score[better]) / torch.bincount(group[better])[group[better]]", "softplus(score[worse] - score[better])", "test_reward_model"),
    ("stages/dpo", "return beta * batch.sums", "return batch.sums"),
    ("stages/dpo", "batch.sums(logp - batch.reference)", "batch.sums(logp)"),
    ("stages/reward_model", "    mask[:-1] = False\n", ""),
    ("stages/reward_model", "    centre(model, training, context)\n", ""),
    ("stages/reward_model", "0.5 if better == worse else", ""),
    ("stages/merge", "total += share * weights", "total += weights"),
    ("rewards/custom/custom", "result.status == \"timeout\" else \"error\"", "False else \"error\""),
    ("rewards/custom/custom", "\"text\": text,", "\"text\": sample.text,"),
    ("rewards/combine", "return Score(0.0, score.status, values, score.reason)", "continue"),
    ("rewards/combine", "part.options.gate is None or values[part.options.gate] > 0.5", "True"),
    ("rewards/known_answers", "if self.score.correct == self.case.right", "if self.score.correct or self.case.right"),
    ("preflight/dry_run", "table[\"override\"] = {**stage.override, \"warmup\": 0}", "pass"),
    ("pipeline/setup", "return task.part(stage.only)", "return task"),
    ("storage/checkpoint", "if hashlib.sha256(content).hexdigest() != sums[name]:", "if False:"),
    ("storage/checkpoint", "_json(manifest) != written\n        or manifest", "manifest"),
    ("storage/checkpoint", "if step > logged:", "if False:"),
    ("storage/checkpoint", "self.read = state.data", "pass"),
    ("training/learner", "        self.lost = 0\n        for optimizer", "        for optimizer", "test_lost_steps"),
    ("training/learner", "math.isfinite(norm) and math.isfinite(loss)", "math.isfinite(norm)", "test_lost_steps"),
    ("training/learner", "moments.setdefault(int(j), {})[name] = value", "pass", "test_resume"),
    ("training/learner", "self.done, self.lost = state.data[\"done\"], state.data[\"lost\"]", "pass", "test_resume"),
    ("rollout/curriculum", "self.random.bit_generator.state = state.data[\"random\"]", "pass", "test_resume"),
    ("training/trainer", "self.rollouts = state.data", "pass", "test_resume"),
    ("storage/run_log", "line[\"step\"] <= step)", "True)"),
    ("rollout/dataset", "return responses.read(path)", "return responses.read(path)[:1]"),
    ("rollout/rollout", "if math.isfinite(score.value) and not odd:", "if not odd:", "test_lost_steps"),
]  # fmt: skip


def pattern(before: str) -> re.Pattern[str]:
    """`before` wherever the formatter breaks its lines: words and signs in their order, with any
    white space between them and a comma before a closing bracket. A line that ends in `before`
    ends in the code too.

    >>> bool(pattern("f(a, b)\\n").search("x = f(\\n    a,\\n    b,\\n)\\n"))
    True
    """
    words = re.findall(r"\w+|[^\w\s]", before)
    joined = r"\s*".join((r",?\s*" if w in ")]}" else "") + re.escape(w) for w in words)
    start = r"\b" if words[0][0].isalnum() else ""
    end = r"(?=[ \t]*\n)" if before.endswith("\n") else ""
    return re.compile(start + joined + end)


def planted(text: str, mutant: tuple[str, ...]) -> str:
    """The code of a file with the error in it.

    Raises ValueError where the code to change does not stand in the file exactly once.
    """
    name, before, after = mutant[:3]
    count = len(pattern(before).findall(text))
    if count != 1:
        raise ValueError(f"{name}.py holds {before!r} {count} times; mend the mutant")
    return pattern(before).sub(lambda _: after.strip(" ").removesuffix("\n"), text)


def killed(mutant: tuple[str, ...]) -> bool:
    """Whether the suite notices. Raises ValueError where the mutant no longer fits the code."""
    name, _, _, *own = mutant
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(ROOT / "src", Path(place) / "src")
        path = Path(place) / "src/whet" / f"{name}.py"
        path.write_text(planted(path.read_text(encoding="utf-8"), mutant), encoding="utf-8")
        tests = [str(ROOT / "tests" / f"{t}.py") for t in own or OWN.get(name, SUITE)]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": f"{place}/src", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, capture_output=True, cwd=ROOT, env=environment, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return True
        return done.returncode != 0


def main() -> int:
    for mutant in MUTANTS:
        try:
            planted((ROOT / "src/whet" / f"{mutant[0]}.py").read_text(encoding="utf-8"), mutant)
        except ValueError as fault:
            print(fault)
            return 1
    whole = ("types", "max(self.rewards) > min", "max(self.rewards) > min")
    if killed(whole):
        print("the suite fails on the code as it is; nothing can be said of mutants")
        return 1
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(killed, MUTANTS))
    for (name, before, after, *_), dead in zip(MUTANTS, verdicts, strict=True):
        if not dead:
            print(f"survived  {name}: {' '.join(before.split())}  ->  {' '.join(after.split())}")
    print(f"planted {len(MUTANTS)}, killed {sum(verdicts)}")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
