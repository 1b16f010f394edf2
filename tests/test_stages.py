"""The stages, on models small enough to train inside a test."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from whet import config
from whet.algorithms.table import TABLE, algorithm
from whet.errors import DataError, GateError, RewardError
from whet.rollout import dataset
from whet.rollout.rollout import rollout
from whet.stages import reject, rl, sft
from whet.types import Group, Problem, Prompt, Sampling, Score

from .helpers.tiny_world import lines, rl_stage, sample, sft_stage, world


def test_sft_learns_and_trains_the_response_only(tmp_path):
    model, context = world(tmp_path)
    made = context.example(
        Problem("p", ({"role": "user", "content": "1+1="},), "2"), "<think></think>2"
    )
    prompt = context.prompts([Problem("p", ({"role": "user", "content": "1+1="},), "2")])[0].tokens
    assert (
        made.mask.tolist() == [False] * len(prompt) + [True] * 4
        and made.tokens[-1] == context.chat.turn_end
    )
    sft.run(model, sft_stage(), context)
    losses = [line["values"]["loss"] for line in lines(tmp_path)]
    assert len(losses) == 60 and np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_a_gate_ends_the_stage_when_it_holds_and_fails_it_when_it_never_does(tmp_path):
    model, context = world(tmp_path)
    easy = config.Gate(mode="direct", accuracy=0.01, every=20, samples=64, max_tokens=8)
    sft.run(model, sft_stage(steps=200, gate=easy), context)
    assert 0 < len(lines(tmp_path)) < 200 and len(lines(tmp_path)) % 20 == 0
    with pytest.raises(GateError, match=r"accuracy given careful is 0\.00 of 0 answers"):
        sft.run(
            model,
            sft_stage(
                steps=5,
                gate=config.Gate(mode="careful", accuracy=0.5, every=5, samples=32, max_tokens=8),
            ),
            context,
        )


def test_rl_raises_the_reward(tmp_path):
    """A reward for short answers: easy enough that a minute model must find it."""

    def judge(problems, texts):
        return [Score(float(t.startswith("<think>"))) for t in texts]

    model, context = world(tmp_path, judge)
    rl.run(
        model,
        rl_stage(steps=40, prompts=16, samples=8, optimizer=config.Optimizer(lr=1e-2)),
        context,
    )
    rewards = [line["values"]["reward"] for line in lines(tmp_path)]
    assert np.mean(rewards[:3]) < 0.3 < 0.8 < np.mean(rewards[-5:])
    assert all(line["values"].get("gap", 0) < 1e-4 for line in lines(tmp_path))


@pytest.mark.parametrize("name", TABLE)
def test_every_row_trains_and_stays_near_its_sampler(tmp_path, name):
    model, context = world(tmp_path)
    row = algorithm(name)
    teacher = copy.deepcopy(model)
    context = dataclasses.replace(context, model=lambda name: teacher)
    sft.run(model, sft_stage(steps=20), context)
    before = copy.deepcopy(model.state_dict())
    cells = {"updates": 2} | ({"warmup": 1} if row.warmup else {})
    stage = rl_stage(
        algorithm=name, override=cells, reference="teacher" if row.advantage == "none" else "start"
    )
    rl.run(model, stage, context)
    assert any((before[k] != v).any() for k, v in model.state_dict().items())
    figures = [line["values"] for line in lines(tmp_path) if line["stage"] == "rl"]
    assert len(figures) == 3 and max(v.get("gap", 0.0) for v in figures) < 1e-4
    assert ("kl" in figures[-1]) == row.has_kl and ("explained" in figures[-1]) == (
        row.critic is not None
    )


def test_the_same_seed_gives_the_same_run(tmp_path):
    weights = []
    for place in ("a", "b"):
        model, context = world(tmp_path / place)
        sft.run(model, sft_stage(steps=10), context)
        rl.run(model, rl_stage(), context)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    first, second = ([{**x, "seconds": 0} for x in lines(tmp_path / place)] for place in ("a", "b"))
    assert first == second


def test_what_the_verifier_failed_on_never_reaches_the_update(tmp_path):
    """Timeouts score 0 but are no wrong answers: with them left out, equal rewards leave nothing to
    learn.
    """

    def judge(problems, texts):
        return [Score(0.0, "timeout") if i % 4 == 0 else Score(1.0) for i in range(len(texts))]

    model, context = world(tmp_path, judge)
    before = copy.deepcopy(model.state_dict())
    rl.run(model, rl_stage(max_errors=0.5), context)
    assert all((before[k] == v).all() for k, v in model.state_dict().items())
    assert [line["values"]["errors"] for line in lines(tmp_path)] == [0.25] * 3
    assert context.log.warnings
    with pytest.raises(RewardError, match="failed on 25%"):
        rl.run(model, rl_stage(max_errors=0.2), context)


def test_dynamic_sampling_draws_again_until_groups_have_signal(tmp_path):
    calls = []

    def judge(problems, texts):
        calls.append(len(texts))
        signal = len(calls) % 3 == 0
        return [Score(float(signal and i % 2)) for i in range(len(texts))]

    model, context = world(tmp_path, judge)
    rl.run(model, rl_stage(steps=2, algorithm="dapo", draws=3), context)
    figures = [line["values"] for line in lines(tmp_path)]
    assert (
        len(calls) == 6
        and [v["samples"] for v in figures] == [96, 96]
        and all(v["tokens"] > 0 for v in figures)
    )
    calls.clear()
    rl.run(model, rl_stage(steps=2, algorithm="dapo", draws=2), context)
    assert len(calls) == 3  # two for the first step, which ends without signal; one for the second


def test_samples_are_kept_with_what_is_needed_to_look_at_them(tmp_path):
    model, context = world(
        tmp_path, judge=lambda p, t: [Score(float(i % 2)) for i in range(len(t))]
    )
    rl.run(model, rl_stage(), context)
    kept = [json.loads(x) for x in (tmp_path / "samples/rl/000002.jsonl").read_text().splitlines()]
    assert len(kept) == 8 and all(len(g["samples"]) == 4 for g in kept)
    one = kept[0]["samples"][0]
    assert (
        len(one["ids"]) == len(one["pieces"]) == len(one["mask"]) == len(one["logp"])
        and one["version"] == 1
    )
    assert kept[0]["prompt"]["answer"] and "".join(kept[0]["prompt_tokens"]).endswith("=")


def test_the_same_problems_are_probed_as_the_policy_changes(tmp_path):
    model, context = world(
        tmp_path, judge=lambda p, t: [Score(float(i % 2)) for i in range(len(t))]
    )
    rl.run(model, rl_stage(steps=5, probe=3, probe_every=2), context)
    files = sorted((tmp_path / "samples/rl-probe").iterdir())
    assert [f.stem for f in files] == ["000000", "000002", "000004", "000005"]
    probes = [[json.loads(x) for x in f.read_text().splitlines()] for f in files]
    assert (
        len({tuple(g["prompt"]["id"] for g in groups) for groups in probes}) == 1
        and len(probes[0]) == 3
    )
    assert [groups[0]["samples"][0]["version"] for groups in probes] == [0, 2, 4, 5]
    train = {p.id for p in context.task.problems("train", context.task.size("train"), 0)}
    assert not train & {g["prompt"]["id"] for g in probes[0]}
    rl.run(model, rl_stage(steps=1).model_copy(update={"probe": 0, "name": "bare"}), context)
    assert not (tmp_path / "samples/bare-probe").exists()


def test_reject_keeps_verified_finished_different_answers(tmp_path):
    problem = Problem("p", ({"role": "user", "content": "1+1="},), "2")
    texts = [
        "<think>1+1=2</think>2",
        "<think></think>2",
        "<think></think>2",
        "<think></think>3",
        "<think>0</think>2",
    ]
    finish = ["stop", "stop", "stop", "stop", "length"]
    samples = tuple(
        sample([0] * (len(t) + 1), [False] + [True] * len(t), finish=f, text=t)
        for t, f in zip(texts, finish, strict=True)
    )
    group = Group(
        Prompt(problem, (0,)), samples, tuple(Score(float(t.endswith("2"))) for t in texts)
    )
    stage = config.Reject(name="r", kind="reject", problems=1, per_prompt=4)
    assert reject.accepted(group, stage) == texts[:2]
    assert (
        reject.accepted(group, stage.model_copy(update={"choose": "shortest", "per_prompt": 1}))
        == texts[1:2]
    )


def test_reject_hands_its_data_to_sft(tmp_path):
    model, context = world(tmp_path, judge=lambda p, t: [Score(1.0) for _ in t])
    sft.run(model, sft_stage(steps=60), context)
    reject.run(model, config.Reject(name="kept", kind="reject", problems=16, max_tokens=8), context)
    assert len(dataset.verified("kept", context)) == 16
    sft.run(model, sft_stage(data="kept", mix={}, steps=2), context)
    (tmp_path / "kept/data.jsonl").write_text("")
    with pytest.raises(DataError, match="kept no sample"):
        sft.run(model, sft_stage(data="kept", mix={}, steps=2), context)


def test_a_reward_of_the_wrong_length_is_refused(tmp_path):
    model, context = world(tmp_path, judge=lambda p, t: [Score(1.0)] * (len(t) + 1))
    prompts = context.prompts(context.task.problems("train", 2, 0))
    with pytest.raises(ValueError, match="more scores"):
        rollout(
            context.engine(model, context.chat),
            context.reward,
            prompts,
            Sampling(n=2, max_tokens=4),
        )


def test_the_algorithm_of_a_stage_may_be_overridden(tmp_path):
    model, context = world(tmp_path)
    rl.run(
        model,
        rl_stage(algorithm="grpo", override={"beta": 0.0, "clip_high": 0.28}, steps=1),
        context,
    )
    assert "kl" not in lines(tmp_path)[0]["values"]
    assert algorithm("grpo", {"beta": 0.0}).needs_reference is False
