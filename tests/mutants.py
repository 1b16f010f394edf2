"""Plants errors in a copy of whet, one at a time, and runs the maths suite on each: `make mutants`.

A mutant is (file, what stands there, what is put in its place). The last line reads `planted N, killed N`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITE = ("test_maths", "test_gradient", "test_learner", "test_rollout", "test_stages", "test_engine", "test_measure")
SECONDS = 240  # for the suite on one mutant; one that hangs is killed, too

MUTANTS = [
    ("kl", "return torch.expm1(d) - d", "return torch.expm1(d) + d"),
    ("kl", "d = logp_ref - logp", "d = logp - logp_ref"),
    ("kl", "(logp - logp_ref).square() / 2", "(logp - logp_ref).square()"),
    ("kl", "return logp - logp_ref\n", "return logp_ref - logp\n"),
    ("losses", "return -torch.minimum(", "return -torch.maximum("),
    ("losses", "ratio.clamp(1 - low, 1 + high)", "ratio.clamp(1 - high, 1 + low)"),
    ("losses", "return -advantage * logp", "return advantage * logp"),
    ("losses", "(ratio > 1 + high) & (advantage > 0)", "(ratio > 1 + high) & (advantage < 0)"),
    ("losses", "    ratio = torch.exp(logp - logp_old)\n    return -", "    ratio = torch.exp(logp_old - logp)\n    return -"),
    ("advantages", "else r - r.mean() for r in groups", "else r for r in groups"),
    ("advantages", "r.std(correction=0)", "r.std(correction=1)"),
    ("advantages", "bool(rewards.max() == rewards.min())", "False"),
    ("advantages", "(len(r) * r - r.sum()) / (len(r) - 1)", "(len(r) * r - r.sum()) / len(r)"),
    ("advantages", "return [r - baseline for r in groups]", "return [r - r.mean() for r in groups]"),
    ("algorithms", "1 / (count * max(n, 1))", "1 / max(n, 1)"),
    ("algorithms", "[1 / max(total, 1)] * count", "[1 / (max(total, 1) * count)] * count"),
    ("algorithms", "1 / (count * limit)", "1 / count"),
    ("algorithms", "loss = loss + self.beta *", "loss = loss - self.beta *"),
    ("algorithms", "loss - self.entropy * entropy", "loss + self.entropy * entropy"),
    ("algorithms", "self.clip_low, self.clip_high)\n        if self.needs", "self.clip_low, self.clip_low)\n        if self.needs"),
    ("algorithms", "not self.needs_reference and self.entropy == 0", "True"),
    ("batch", "chosen = mask.nonzero()[0]", "chosen = mask.nonzero()[0][:-1]"),
    ("batch", "mask = np.concatenate([s.mask for s in samples])", "mask = np.concatenate([np.arange(len(s.mask)) > 0 for s in samples])"),
    ("batch", "weight=self.weight[m],", "weight=self.weight[m] / self.weight[m].sum(),"),
    ("batch", "starts=self.starts[first : last + 1] - a", "starts=self.starts[first : last + 1]"),
    ("batch", "np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)", "np.arange(starts[-1])"),
    ("batch", "logp_old=self.logp_old[m]", "logp_old=self.logp_old[: int(m.sum())]"),
    ("logprobs", "rows, targets = hidden[chosen - 1]", "rows, targets = hidden[chosen]"),
    ("logprobs", "wide = wide / temperature", "wide = wide * temperature"),
    ("logprobs", "return wide.masked_fill(excluded, -torch.inf).log_softmax(-1)", "return wide.log_softmax(-1).masked_fill(excluded, -torch.inf)"),
    ("logprobs", "probability.cumsum(-1) - probability >= top_p", "probability.cumsum(-1) >= top_p"),
    ("logprobs", "excluded.scatter_(1, keep[:, None], False)", "pass"),
    ("logprobs", "logp if entropy_grad else logp.detach()", "logp.detach()"),
    ("logprobs", "-(spread.exp() * finite).sum(-1)", "(spread.exp() * finite).sum(-1)"),
    ("learner", "(loss_of(micro) * micro.weight).sum()", "loss_of(micro).sum()"),
    ("learner", "group[\"lr\"] = rate * self.lr_scale", "group[\"lr\"] = rate"),
    ("learner", "            optimizer.step()\n        self.forget()", "            optimizer.step()"),
    ("learner", "if not torch.isfinite(norm):", "if False:"),
    ("learner", "self.settings.max_grad_norm)", "1e9)"),
    ("learner", "processed(logits, sampling.temperature,", "processed(logits, 1.0,"),
    ("stages/rl", "copy.deepcopy(policy).eval()", "policy.eval()"),
    ("stages/rl", "a != 0 or not self.row.only_advantage", "a > 0 or not self.row.only_advantage"),
    ("stages/rl", "given = [a for values in advantages", "given = [a for values in reversed(advantages)"),
    ("stages/rl", "[g for g in fresh if g.usable.has_signal] if dynamic else fresh", "fresh"),
    ("stages/rl", "seed=context.seed * 1_000_003 + step", "seed=context.seed"),
    ("stages/sft", "np.zeros(len(prompt), bool)", "np.arange(len(prompt)) > 0"),
    ("stages/sft", "answer = context.chat.response(response)", "answer = context.chat.encode(response)"),
    ("stages/sft", "[1 / tokens] * len(examples)", "[1.0] * len(examples)"),
    ("stages/reject", "if c.correct and s.finish == \"stop\"", "if c.correct"),
    ("model/attention", "is_causal=True", "is_causal=False"),
    ("rollout", "for s in samples]\n    scores = iter(", "for s in reversed(samples)]\n    scores = iter("),
    ("rollout", "wrong = [s.length for _, s, c in rows if not c.correct]", "wrong = [s.length for _, s, c in rows]"),
    ("types", "return self.status not in (\"timeout\", \"error\")", "return True"),
    ("types", "max(self.rewards) > min(self.rewards)", "max(self.rewards) >= min(self.rewards)"),
    ("engines/random", "processed(logits, sampling.temperature,", "processed(logits, 1.0,"),
    ("measure", "context.some(\"test\", spec.problems", "context.some(\"train\", spec.problems"),
]  # fmt: skip


def killed(mutant: tuple[str, str, str]) -> bool:
    """Whether the suite notices. Raises ValueError where the mutant no longer fits the code."""
    name, before, after = mutant
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(ROOT / "src", Path(place) / "src")
        path = Path(place) / "src/whet" / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        if text.count(before) != 1:
            raise ValueError(f"{name}.py holds {before!r} {text.count(before)} times; mend the mutant")
        path.write_text(text.replace(before, after), encoding="utf-8")
        tests = [str(ROOT / "tests" / f"{t}.py") for t in SUITE]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": f"{place}/src", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return True
        return done.returncode != 0


def main() -> int:
    whole = ("types", "max(self.rewards) > min", "max(self.rewards) > min")
    if killed(whole):
        print("the suite fails on the code as it is; nothing can be said of mutants")
        return 1
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(killed, MUTANTS))
    for (name, before, after), dead in zip(MUTANTS, verdicts, strict=True):
        if not dead:
            print(f"survived  {name}: {' '.join(before.split())}  ->  {' '.join(after.split())}")
    print(f"planted {len(MUTANTS)}, killed {sum(verdicts)}")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
