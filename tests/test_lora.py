"""Low-rank adapters: what they compute, what learns, what is shared, and what the sampler sees."""

import copy
import math

import pytest
import torch

from whet import config
from whet.algorithms.batch import pack
from whet.algorithms.losses import policy_gradient
from whet.errors import ModelError
from whet.model import lora, pretrained, value_head
from whet.model.config import ModelConfig
from whet.model.lora import frozen
from whet.model.transformer import Transformer
from whet.model.value_head import ScalarModel
from whet.stages import dpo, merge, reward_model, rl
from whet.training.learner import Learner, policy_logprobs
from whet.types import Sampling, Score

from .helpers.tiny_world import keep_rankings, rl_stage, sample, take_step, world
from .test_reward_model import stage as rewarding
from .test_reward_model import taught

SHAPE = ModelConfig(
    "qwen2", 37, 16, 2, 4, 2, 6, 20, qkv_bias=True, max_positions=64
)  # q 24, k and v 12 rows
SOME = config.Lora(rank=3, alpha=7, targets=["v_proj", "q_proj", "up_proj", "down_proj"])
SAMPLES = [sample(range(2, 2 + n), [i > k for i in range(n)]) for n, k in ((7, 2), (3, 0), (12, 5))]


def tiny(seed=0, **more):
    model = (
        Transformer(ModelConfig(**{**SHAPE.__dict__, **more}))
        .initialize(torch.Generator().manual_seed(seed))
        .double()
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(7))
    return model


def stirred(model, seed=1, by=0.3):
    """The same model, its adapters as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in lora.adapted(model).values():
            for b in adapter.lora_b.values():
                b.copy_(torch.randn(b.shape, generator=generator) * by)
    return model


def grown(seed=0, table=SOME, by=0.3, **more):
    model = tiny(seed, **more)
    lora.adapt(model, table, 5)
    return stirred(model, by=by)


def batch():
    return pack(SAMPLES, [0.5, -1.0, 2.0], [0.2, 0.7, 0.1])


def logps(model):
    return policy_logprobs(model, batch(), Sampling(n=1, temperature=0.7))[0]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def alike(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_new_adapters_change_nothing_and_start_as_the_paper_has_it():
    plain, model = tiny(), tiny()
    lora.adapt(model, SOME, 5)
    assert torch.equal(logps(model), logps(plain))
    adapters = lora.adapted(model)
    assert set(adapters) == {f"layers.{i}.{x}" for i in (0, 1) for x in ("qkv", "gate_up", "down")}
    qkv = adapters["layers.1.qkv"]
    assert {n: a.shape for n, a in qkv.lora_a.items()} == {"q_proj": (3, 16), "v_proj": (3, 16)}
    assert {n: b.shape for n, b in qkv.lora_b.items()} == {"q_proj": (24, 3), "v_proj": (12, 3)}
    a = torch.cat(
        [
            x.detach().flatten()
            for h in adapters.values()
            for x in h.lora_a.values()
            if x.shape[1] == 16
        ]
    )
    assert 0.9 / math.sqrt(16) < a.abs().max() <= 1 / math.sqrt(16) and abs(a.mean()) < 0.02
    assert a.std() == pytest.approx(1 / math.sqrt(3 * 16), rel=0.1)
    trains = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trains and all(".lora_a." in n or ".lora_b." in n for n in trains)
    assert sum(p.numel() for n, p in model.named_parameters() if n in trains) == lora.size(
        SHAPE, SOME
    )
    again, other = tiny(), tiny()
    lora.adapt(again, SOME, 5)
    lora.adapt(other, SOME, 6)
    assert alike(weights(again), weights(model)) and not alike(weights(other), weights(model))


def test_the_gradient_is_the_chain_rules_through_the_full_weights():
    """dA = s B' G and dB = s G A', G the gradient of the full weight (rows of a stack apart), in
    float64.
    """
    model = grown()
    plain = copy.deepcopy(model)
    lora.adapt(plain, None)
    assert not lora.adapted(plain) and all(p.requires_grad for p in plain.parameters())
    assert torch.allclose(logps(model), logps(plain), atol=1e-13)
    for one in (model, plain):
        (policy_gradient(logps(one), batch().advantage) * batch().weight).sum().backward()
    full = dict(plain.named_parameters())
    seen = 0
    for name, adapter in lora.adapted(model).items():
        at = 0
        for target, rows in adapter.stack:
            g = full[f"{name}.weight"].grad[at : at + rows]
            at += rows
            if target in adapter.lora_a:
                a, b = adapter.lora_a[target], adapter.lora_b[target]
                assert (
                    torch.allclose(a.grad, 7 / 3 * b.T @ g, atol=1e-12)
                    and a.grad.abs().max() > 1e-6
                )
                assert (
                    torch.allclose(b.grad, 7 / 3 * g @ a.T, atol=1e-12)
                    and b.grad.abs().max() > 1e-6
                )
                seen += 1
    assert seen == 8
    assert all(p.grad is None for n, p in model.named_parameters() if "lora" not in n)


def lossed(model):
    return lambda m: policy_gradient(policy_logprobs(model, m, Sampling(n=1))[0], m.advantage)


def test_micro_batches_do_not_change_the_gradient():
    norms = []
    for micro in (4096, 12):
        learner = Learner(grown(), config.Optimizer(lr=1e-3), 3)
        norms.append(take_step(learner, batch(), micro, lossed(learner.model)))
    assert norms[0].grad_norm == pytest.approx(norms[1].grad_norm, rel=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_adapters_move(kind):
    model = grown()
    before = weights(model)
    learner = Learner(model, config.Optimizer(kind=kind, lr=1e-2), 3)
    assert len(learner.optimizers) == 1  # all of them are matrices: Muon leaves nothing to AdamW
    for _ in range(3):
        take_step(learner, batch(), 4096, lossed(model))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".lora_" in n}


def test_folded_weights_are_those_of_the_moment_and_gone_afterwards():
    model = grown().float()
    before, expected = weights(model), logps(model)
    with torch.no_grad(), lora.folded(model):
        assert all(
            h.whole is not None and h.whole.shape == h.weight.shape
            for h in lora.adapted(model).values()
        )
        assert torch.allclose(logps(model), expected, atol=1e-5) and not torch.equal(
            logps(model), expected
        )
    assert alike(before, weights(model)) and all(
        h.whole is None for h in lora.adapted(model).values()
    )
    with pytest.raises(KeyError), lora.folded(model):
        raise KeyError
    assert torch.equal(logps(model), expected)


def test_the_sampler_sees_the_adapters_as_they_are(tmp_path):
    policy, context = world(tmp_path)
    engine = context.engine(policy, context.chat)
    lora.adapt(policy, config.Lora(rank=4, alpha=8), 1)
    prompts, sampling = (
        context.some("train", 4, 1),
        Sampling(n=3, temperature=0.9, max_tokens=12, seed=1),
    )
    engine.generate(prompts, sampling)
    stirred(policy, by=0.2)
    base = copy.deepcopy(policy)
    stirred(base, by=0.0)
    drawn = [s for group in engine.generate(prompts, sampling) for s in group]
    made = pack(drawn, [0.0] * len(drawn), [0.0] * len(drawn))
    now, without = (
        (policy_logprobs(p, made, sampling)[0] - made.logp_old).abs().max() for p in (policy, base)
    )
    assert now < 1e-5 and without > 0.1


def test_a_reference_shares_what_is_frozen_and_stays_behind():
    model, plain = tiny(), tiny()
    lora.adapt(model, SOME, 5)
    reference = frozen(model)
    stirred(model)
    assert torch.equal(logps(reference), logps(plain)) and not torch.equal(
        logps(model), logps(plain)
    )
    theirs = dict(reference.named_parameters())
    own = {n for n, p in model.named_parameters() if theirs[n].data_ptr() != p.data_ptr()}
    assert own == {n for n in theirs if ".lora_" in n} and not any(
        p.requires_grad for p in theirs.values()
    )
    assert all(p.requires_grad for n, p in model.named_parameters() if n in own)
    plain_reference = frozen(plain)
    assert {p.data_ptr() for p in plain_reference.parameters()}.isdisjoint(
        p.data_ptr() for p in plain.parameters()
    )


def test_a_critic_trains_adapters_of_its_own_over_shared_weights():
    model = grown()
    judge = ScalarModel(model, SOME)
    trains = {n for n, p in judge.named_parameters() if p.requires_grad}
    assert trains == {
        n for n, _ in judge.named_parameters() if ".lora_" in n or n.startswith("value_head")
    }
    ours = {p.data_ptr(): n for n, p in model.named_parameters()}
    shared = {n for n, p in judge.named_parameters() if p.data_ptr() in ours}
    assert shared == {n for n, _ in judge.named_parameters() if n not in trains}
    whole = ScalarModel(model)
    assert not lora.adapted(whole) and all(p.requires_grad for p in whole.parameters())
    assert {p.data_ptr() for p in whole.parameters()}.isdisjoint(ours)


def test_a_merge_leaves_the_weights_that_others_read_alone():
    model = grown(tied=False)
    reference, before = (
        frozen(model),
        {n: p.clone() for n, p in model.named_parameters() if ".lora_" not in n},
    )
    expected = logps(reference)
    lora.merge(model)
    assert not lora.adapted(model) and set(weights(model)) == set(before)
    assert torch.equal(logps(reference), expected)


@pytest.mark.parametrize("row", ["grpo", "ppo"])
def test_a_stage_of_rl_trains_adapters_against_the_base(tmp_path, row):
    policy, context = world(
        tmp_path, judge=lambda problems, texts: [Score(len(t) % 3 / 2) for t in texts]
    )
    old = weights(policy)
    stage = rl_stage(algorithm=row, lora=config.Lora(rank=4), override={"beta": 0.1})
    trainer = rl.prepared(policy, stage, context)
    models = (policy, trainer.reference, *([trainer.critic.model] if trainer.critic else []))
    bases = [
        {p.data_ptr() for n, p in m.named_parameters() if "lora" not in n and "head" not in n}
        for m in models
    ]
    assert len(models) == (3 if row == "ppo" else 2) and all(b == bases[0] for b in bases)
    rl.run(policy, stage, context)
    assert all(torch.equal(p, old[n]) for n, p in policy.named_parameters() if ".lora_" not in n)
    assert any(b.abs().max() > 0 for h in lora.adapted(policy).values() for b in h.lora_b.values())


def test_dpo_starts_at_the_base(tmp_path):
    policy, context = world(tmp_path)
    keep_rankings(context, taught())
    dpo.run(
        policy,
        config.DPO(name="dpo", kind="dpo", data="seen", steps=2, batch=4, lora=config.Lora(rank=2)),
        context,
    )
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert '"loss": 0.693' in first and lora.adapted(policy)


def test_a_reward_model_with_adapters_leaves_its_policy_alone_and_is_kept_whole(tmp_path):
    policy, context = world(tmp_path)
    before = weights(policy)
    keep_rankings(context, taught())
    reward_model.run(
        policy, rewarding(steps=30, lora=config.Lora(rank=4, alpha=8), held_out=0.3), context
    )
    assert alike(before, weights(policy)) and all(p.requires_grad for p in policy.parameters())
    model = value_head.load(tmp_path / "rm" / "model")
    assert not lora.adapted(model)
    changed = {n for n, p in model.body.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"layers.0.{x}.weight" for x in ("qkv", "out", "gate_up", "down")}


def test_an_average_is_of_weights_not_of_adapters(tmp_path):
    policy, context = world(tmp_path)
    other = copy.deepcopy(policy)
    lora.adapt(other, config.Lora(rank=2), 1)
    stirred(other)
    whole = copy.deepcopy(other)
    lora.merge(whole)
    expected = {
        n: (p + dict(whole.named_parameters())[n]) / 2 for n, p in policy.named_parameters()
    }
    context = context.__class__(**{**context.__dict__, "model": {"a": policy, "b": other}.get})
    merge.run(policy, config.Merge(name="m", kind="merge", models={"a": 0.5, "b": 0.5}), context)
    assert all(torch.allclose(p, expected[n]) for n, p in policy.named_parameters())


def test_others_adapters_are_refused_and_adapted_models_written_whole(tmp_path):
    model = grown()
    lora.adapt(
        model, config.Lora(rank=3, alpha=7.0, targets=list(reversed(SOME.targets))), 99
    )  # the same: it trains on
    with pytest.raises(
        ModelError, match="rank 3 and alpha 7 on q_proj, v_proj, up_proj, down_proj"
    ):
        lora.adapt(model, config.Lora(rank=4, alpha=7, targets=SOME.targets))
    with pytest.raises(ModelError, match="own decoder only"):
        lora.adapt(torch.nn.Linear(2, 2), SOME)
    model = model.float()
    pretrained.save(model, tmp_path / "whole")
    assert lora.adapted(model) and torch.allclose(
        logps(pretrained.load(tmp_path / "whole")), logps(model), atol=1e-5
    )
