"""One case for whet and TRL alike: answers whose tokens have ids of their own, and TRL's trainers
stood up without a model.

Of TRL only the surroundings are replaced: who writes the answers, who rewards them (TRL's own
rewards are float32) and the model, a table with one log-probability for each token id. Advantages,
masks, padding, shuffling, micro-batches and losses are its own code.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from whet.types import Sample

# TRL keeps G / (G - 1) in float32: 5 / 4 is exact there, so that its deviation is float64 for what
# matters.
PROMPTS, GROUP, LIMIT = 4, 5, 17
COUNT = PROMPTS * GROUP
TOKENS = 1_000


@dataclass
class World:
    """S answers to P prompts, G each; the id of a token says which one it is, so a table over ids
    is a model.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    chosen: list[list[int]]  # 0 on what a tool wrote
    rewards: list[list[float]]
    now: Tensor
    old: Tensor
    ref: Tensor
    entropy: Tensor

    @property
    def flat(self):
        return [r for group in self.rewards for r in group]

    @property
    def samples(self):
        samples = []
        for prompt, answer, chosen in zip(self.prompts, self.answers, self.chosen, strict=True):
            tokens = np.array([*prompt, *answer])
            mask = np.array([0] * len(prompt) + chosen, bool)
            logp = np.where(mask, self.old[tokens].numpy(), 0).astype(np.float32)
            samples.append(Sample(tokens, mask, logp, "", "stop"))
        return samples


def world(seed=0, tools=True):
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    ids = iter(range(1, TOKENS))
    shared = [[next(ids) for _ in range(rng.randrange(1, 6))] for _ in range(PROMPTS)]
    answers = [[next(ids) for _ in range(rng.randrange(1, 12))] for _ in range(COUNT)]
    chosen = [[1] * len(a) for a in answers]
    for i in (1, 11) if tools else ():
        answers[i] += [next(ids) for _ in range(5)]
        chosen[i] += [0, 0, 0, 1, 1]
    if tools:
        chosen[12] = [0] * len(answers[12])  # nothing of it is the policy's
    rewards = [[rng.choice([0.0, 1.0, 0.3, -0.7]) for _ in range(GROUP)] for _ in range(PROMPTS)]
    rewards[0][:2] = [1.0, 0.3]
    rewards[1] = [0.1] * GROUP  # no signal
    rewards[2][:2] = [0.0, 0.7]

    def table(scale):
        return torch.randn(TOKENS, generator=noise, dtype=torch.float64) * scale

    old = (-table(1.0).abs() - 0.1).float().double()  # as a Sample keeps it
    now = (old + table(0.3)).clamp(max=-0.01)
    every = [shared[i // GROUP] for i in range(COUNT)]
    return World(every, answers, chosen, rewards, now, old, now + table(0.5), table(1.0))


class Table(nn.Module):
    is_gradient_checkpointing = False

    def __init__(self, logp, entropy):
        super().__init__()
        self.logp, self.entropy = nn.Parameter(logp.clone()), nn.Parameter(entropy.clone())

    def forward(self, input_ids, attention_mask, labels, fused_lm_head):
        return SimpleNamespace(
            log_probs=self.logp[input_ids[:, 1:]], entropy=self.entropy[input_ids[:, 1:]]
        )


def trainer(trl, kind, w, steps, cells):
    """A trainer without its constructor, which would load a model and a data set."""
    from accelerate import Accelerator

    made = object.__new__(getattr(trl, kind))
    args = {"steps_per_generation": steps, "gradient_accumulation_steps": steps, "report_to": []}
    args |= {"per_device_train_batch_size": COUNT // steps, "gradient_checkpointing_kwargs": None}
    args |= {"use_bias_correction_kl": False, "delta": None}
    state = {
        "accelerator": Accelerator(cpu=True), "state": SimpleNamespace(global_step=0),
        "model": Table(w.old, w.entropy), "ref_model": Table(w.ref, w.entropy),
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "environment_factories": None, "environments": None, "tools": None, "pad_to_multiple_of": None,
        "mask_truncated_completions": False, "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "num_iterations": 2, "num_generations": GROUP, "max_completion_length": LIMIT,
        "log_multimodal": False,
        "multi_objective_aggregation": "sum_then_normalize", "scale_rewards": "group",
        "normalize_advantages": False,
        "reward_weights": torch.ones(1, dtype=torch.float64), "reward_clip_range": None,
        "reward_funcs": [lambda **_: w.flat], "reward_processing_classes": [None], "reward_func_names": ["r"],
        "_metrics": defaultdict(lambda: defaultdict(list)), "_pending_extra_logs": {}, "_pending_metrics": {},
        "_logs": defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        "_step": 0, "_buffered_inputs": None, "current_gradient_accumulation_steps": steps,
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "importance_sampling_level": "token",
        "loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.0,
        "entropy_coef": 0.0, "use_adaptive_entropy": False,
    }  # fmt: skip
    made.__dict__.update(state | {k: v for k, v in cells.items() if k not in args})
    made.args = SimpleNamespace(**args | {k: v for k, v in cells.items() if k in args})
    made._entropy_bonus_enabled = made.entropy_coef != 0
    made._generate = lambda prompts: written(kind, w)
    made._calculate_rewards = lambda *_: torch.tensor(w.flat, dtype=torch.float64)[:, None]
    return made


def written(kind, w):
    texts = [""] * COUNT
    if kind == "RLOOTrainer":
        return w.prompts, w.answers, texts
    return w.prompts, w.answers, w.chosen, texts, None, {}, None, None


def theirs(trl, w, kind="GRPOTrainer", steps=1, **cells):
    """Loss, gradient by the table and by the entropies, and advantages in the order of the answers,
    over `steps` micro-batches.
    """
    made, now = trainer(trl, kind, w, steps, cells), Table(w.now, w.entropy)
    torch.manual_seed(0)
    total, advantages = 0.0, torch.zeros(COUNT, dtype=torch.float64)
    first = {answer[0]: i for i, answer in enumerate(w.answers)}
    for step in range(made.args.gradient_accumulation_steps):
        made._step = step
        inputs = made._prepare_inputs([{"prompt": ""}] * COUNT)
        loss = made.compute_loss(now, inputs)
        if kind == "RLOOTrainer":
            loss = loss / steps  # by transformers' Trainer
        loss.backward()
        total += loss.item()
        for token, advantage in zip(
            inputs["completion_ids"][:, 0].tolist(), inputs["advantages"], strict=True
        ):
            advantages[first[token]] = advantage
    zero = torch.zeros_like(w.now)
    return total, now.logp.grad, zero if now.entropy.grad is None else now.entropy.grad, advantages
