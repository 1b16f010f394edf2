"""Reward models and what learns from rankings: training, scores, their files, DPO, merging."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from whet import config
from whet.algorithms.losses import bradley_terry
from whet.errors import DataError, ModelError, RecipeError, RewardError
from whet.model import pretrained, value_head
from whet.rewards import load
from whet.stages import dpo, merge, rank, reward_model
from whet.types import Group, Problem, Ranking, Score

from .helpers.tiny_world import keep_rankings, lines, sample, world


def asked(i):
    return Problem(f"p{i}", ({"role": "user", "content": f"{i % 10}+{i % 7}="},), "1")


def taught(n=60):
    """Who says 1 more often is better; texts of unequal length, rankings of two and of three."""
    rng = np.random.default_rng(4)
    rankings = []
    for i in range(n):
        texts = {
            "".join(rng.choice(list("0123"), size=int(rng.integers(1, 6))))
            for _ in range(2 + i % 2)
        }
        ordered = sorted(texts, key=lambda t: (-t.count("1"), t))
        if len({t.count("1") for t in ordered}) == len(ordered) > 1:
            rankings.append(Ranking(asked(i), tuple(ordered)))
    return rankings


def stage(**keys):
    defaults = {"steps": 60, "batch": 8, "data": "seen", "optimizer": config.Optimizer(lr=3e-3)}
    return config.RewardModel(name="rm", kind="reward_model", **{**defaults, **keys})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    policy, context = world(folder)
    before = [p.clone() for p in policy.parameters()]
    keep_rankings(context, taught(300))
    record = reward_model.run(policy, stage(held_out=0.3), context)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    return folder / "rm" / "model", context, record


def test_it_learns_what_is_better_and_says_how_sure_it_is(trained):
    _, context, record = trained
    pairs = record["pairs"]
    assert (
        pairs["accuracy"] > 0.9
        and pairs["low"] < pairs["accuracy"] <= pairs["high"] <= 1
        and pairs["n"] > 17
    )
    steps = lines(context.log.directory)
    assert (
        len(steps) == 60
        and steps[0]["kind"] == "reward_model"
        and steps[0]["values"]["loss"] == pytest.approx(0.693, abs=1e-3)
    )
    assert steps[-1]["values"]["loss"] < 0.4 < 0.8 < steps[-1]["values"]["pairs_right"]


def test_a_tie_is_half_right(trained, monkeypatch):
    testing = taught(12)
    scores = [[2.0, 1.0, *[0.0] * (len(r.texts) - 2)] for r in testing]
    scores[0] = [1.0] * len(testing[0].texts)
    monkeypatch.setattr(reward_model, "scores", lambda *_: scores)
    pairs = reward_model.accuracy(None, testing, trained[1])["pairs"]
    assert pairs["accuracy"] == pytest.approx((len(testing) - 0.5) / len(testing))


def test_the_mean_training_score_is_zero(trained):
    path, context, _ = trained
    model = value_head.load(path)
    training, _ = reward_model.preferences.split(taught(300), 0.3, context.seed)
    scores = [s for row in reward_model.scores(model, training, context) for s in row]
    assert abs(np.mean(scores)) < 1e-4 < 0.5 < np.std(scores)


def test_a_score_does_not_depend_on_what_else_is_scored(trained, monkeypatch):
    path = trained[0]
    reward = load("learned", model=str(path))
    texts = ["1", "11", "0", "3210", "111", "2"]
    problems = [asked(i) for i in range(6)]
    together = [s.value for s in reward.score(problems, texts)]
    alone = [reward.score([p], [t])[0].value for p, t in zip(problems, texts, strict=True)]
    reverse = [s.value for s in reward.score(problems[::-1], texts[::-1])][::-1]
    monkeypatch.setattr(value_head, "TOKENS", 9)
    few = [s.value for s in reward.score(problems, texts)]
    for other in (alone, reverse, few):
        assert together == pytest.approx(other, abs=1e-5)
    assert together[4] > together[0] > together[2] and len(set(together)) == 6


def test_an_answer_that_was_cut_off_is_scored_without_an_end(trained):
    path, context, _ = trained
    reward = load("learned", model=str(path))
    problem, (prompt,) = asked(1), context.prompts([asked(1)])
    ids = [*prompt.tokens, *context.chat.encode("11")]
    cut = sample(
        ids,
        [0] * len(prompt.tokens) + [1] * (len(ids) - len(prompt.tokens)),
        finish="length",
        text="11",
    )
    ended = reward.score([problem], ["11"], [replace(cut, finish="stop")])[0].value
    expected = value_head.score(value_head.load(path), [ids])[0]
    assert (
        reward.score([problem], ["11"], [cut])[0].value
        == pytest.approx(expected, abs=1e-6)
        != ended
    )
    assert reward.score([problem], ["hello"])[0].status == "error"


def test_transformers_reads_the_same_score(trained):
    """The head is Hugging Face's `score`; the constant that makes the mean 0 has no place there."""
    transformers = pytest.importorskip("transformers")
    path, context, _ = trained
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    ours = value_head.load(path)
    ids = [
        context.example(asked(i), text).tokens.tolist()
        for i, text in enumerate(["1", "0123", "11"])
    ]
    with torch.no_grad():
        read = [theirs(torch.tensor([row])).logits.item() for row in ids]
    assert (
        theirs.config.num_labels == 1 and type(theirs).__name__ == "Qwen3ForSequenceClassification"
    )
    bias = ours.value_head.bias.item()
    assert [x + bias for x in read] == pytest.approx(value_head.score(ours, ids), abs=1e-5) and abs(
        bias
    ) > 1e-3


def test_a_reward_model_is_no_policy_and_a_policy_no_reward_model(trained, tmp_path):
    path, context, _ = trained
    with pytest.raises(ModelError, match="cannot write any"):
        replace(context, model=lambda name: pretrained.load(str(path))).policy("rm")
    pretrained.save(world(tmp_path)[0], tmp_path / "policy")
    with pytest.raises(ModelError, match="holds a policy, not a reward model"):
        value_head.load(tmp_path / "policy")
    with pytest.raises(RewardError, match="learned: there is no directory 'nowhere'"):
        load("learned", model="nowhere").score([asked(1)], ["1"])
    config_json = json.loads((path / "config.json").read_text())
    for key, value, says in (
        ("score_bias", "x", "finite number"),
        ("id2label", {"0": "a", "1": "b"}, "2 labels"),
    ):
        (tmp_path / "policy" / "config.json").write_text(json.dumps({**config_json, key: value}))
        (tmp_path / "policy" / "model.safetensors").write_bytes(
            (path / "model.safetensors").read_bytes()
        )
        with pytest.raises(ModelError, match=says):
            value_head.load(tmp_path / "policy")


def test_a_critic_may_start_from_it(trained):
    path, _, _ = trained
    loaded = pretrained.load(str(path))
    assert torch.equal(value_head.ScalarModel(loaded).value_head.weight, loaded.head.weight)
    assert value_head.ScalarModel(loaded).value_head.bias.item() != 0


def test_too_little_to_learn_from_is_said(tmp_path):
    policy, context = world(tmp_path)
    keep_rankings(context, [])
    with pytest.raises(DataError, match="'seen' found nothing to rank"):
        reward_model.run(policy, stage(), context)
    assert not (tmp_path / "rm").exists()


# Ranking


def group(*rows):
    """rows: (text, length, right or None where the verifier failed, value, finish)"""
    samples = tuple(
        sample([1] * (n + 1), [0] + [1] * n, finish=f, text=t) for t, n, _, _, f in rows
    )
    scores = tuple(
        Score(v, "timeout") if r is None else Score(v, parts={"accuracy": float(r)})
        for _, _, r, v, _ in rows
    )
    return Group(world_prompt(), samples, scores)


def world_prompt():
    from whet.types import Prompt

    return Prompt(asked(1), (0,))


ROWS = [
    ("a", 4, True, 1.0, "stop"),
    ("bb", 5, True, 0.5, "stop"),
    ("ccc", 6, True, 0.9, "stop"),
    ("dddd", 5, False, 0.1, "stop"),
    ("e", 3, False, 0.2, "stop"),
    ("cut", 9, True, 2.0, "length"),
    ("late", 9, None, 9.0, "stop"),
    ("a", 4, True, 1.0, "stop"),
]


def test_shortest_right_before_what_is_longer(tmp_path):
    """Wrong and longer, or right and 1.5 times as long: not a slightly longer right one, nor a
    shorter wrong one, nor a cut one.
    """
    stage = config.Rank(name="r", kind="rank", problems=1, by="length")
    rankings = rank.ranked(group(*ROWS), stage, world(tmp_path)[1].task, np.random.default_rng(0))
    assert [r.texts for r in rankings] == [("a", "ccc"), ("a", "dddd")]
    assert (
        rank.ranked(group(*ROWS[3:5]), stage, world(tmp_path)[1].task, np.random.default_rng(0))
        == []
    )


def test_by_reward_equals_say_nothing(tmp_path):
    import random

    stage = config.Rank(name="r", kind="rank", problems=1, by="reward")
    rows = [*ROWS[:5], ("f", 4, True, 0.5, "stop")]
    [ranking] = rank.ranked(group(*rows), stage, world(tmp_path)[1].task, random.Random(1))
    assert ranking.texts in {("a", "ccc", x, "e", "dddd") for x in ("bb", "f")}
    with pytest.raises(RecipeError, match="task chain ranks nothing"):
        rank.run(
            world(tmp_path)[0], config.Rank(name="r", kind="rank", problems=1), world(tmp_path)[1]
        )


# Direct preference optimization


def test_dpo_prefers_the_better_and_starts_at_log_two(tmp_path):
    policy, context = world(tmp_path)
    keep_rankings(context, taught(200))
    dpo.run(
        policy,
        config.DPO(
            name="dpo", kind="dpo", data="seen", steps=40, optimizer=config.Optimizer(lr=3e-3)
        ),
        context,
    )
    first, last = lines(tmp_path)[0]["values"], lines(tmp_path)[-1]["values"]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6) and last["loss"] < 0.45
    assert last["pairs_right"] > 0.85 and last["reward_better"] - last["reward_worse"] > 0.5


@pytest.mark.parametrize("micro", [1, 40, 10_000])
def test_dpo_is_the_papers_loss(tmp_path, micro):
    """-log sigmoid(beta (log ratio of the better - of the worse)), mean over pairs, whatever the
    micro-batch.
    """
    policy, context = world(tmp_path)
    reference = world(tmp_path, seed=9)[0]
    rankings = [r for r in taught(40) if len(r.texts) == 2][:6]
    batch = dpo.preferences.ranked_batch(
        [[context.example(r.problem, t) for t in r.texts] for r in rankings]
    )
    logp_ref = dpo.fixed_logprobs(reference, batch, dpo.PLAIN, micro)
    batch = dpo.replace(batch, reference=logp_ref)

    def logp(model, problem, text):
        ids = torch.as_tensor(context.example(problem, text).tokens)
        n = len(context.chat.response(text))
        hidden = model.packed(ids, torch.arange(len(ids)), torch.tensor([0, len(ids)]))
        return model.logits(hidden).log_softmax(-1)[:-1].gather(1, ids[1:, None])[-n:].sum()

    margins = []
    for r in rankings:
        better, worse = (
            logp(policy, r.problem, t) - logp(reference, r.problem, t) for t in r.texts
        )
        margins.append(0.3 * (better - worse))
    expected = -torch.stack(margins).sigmoid().log().mean()
    wanted = torch.autograd.grad(expected, list(policy.parameters()))
    total = 0.0
    for part in batch.split(micro):
        earned = dpo.implicit(dpo.policy_logprobs(policy, part, dpo.PLAIN)[0], part, 0.3)
        loss = bradley_terry(earned, part.of_sequence(part.group), part.of_sequence(part.rank))
        whole = (loss[part.sequence] * part.weight).sum()
        whole.backward()
        total += whole.item()
    assert total == pytest.approx(expected.item(), rel=1e-5)
    for p, g in zip(policy.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=2e-3, atol=2e-6)


# Merging


def test_merging_averages_every_weight(tmp_path):
    models = {name: world(tmp_path, seed=seed)[0] for name, seed in (("long", 1), ("short", 2))}
    _, context = world(tmp_path)
    context = replace(context, model=models.__getitem__)
    target = world(tmp_path, seed=5)[0]
    merge.run(
        target, config.Merge(name="m", kind="merge", models={"long": 0.3, "short": 0.7}), context
    )
    for merged, a, b in zip(
        target.parameters(), models["long"].parameters(), models["short"].parameters(), strict=True
    ):
        torch.testing.assert_close(merged, 0.3 * a + 0.7 * b)
    assert target.head.weight is target.embed.weight
    from whet.model.transformer import Transformer

    models["short"] = Transformer(replace(target.config, hidden=16)).initialize(torch.Generator())
    with pytest.raises(ModelError, match="different shapes"):
        merge.run(
            target,
            config.Merge(name="m", kind="merge", models={"long": 0.3, "short": 0.7}),
            context,
        )
