"""Sampling that runs a step ahead of the updates: what is drawn when, with which weights, and that
nothing in flight is lost.
"""

import json
import threading
from dataclasses import replace

import pytest

from whet.errors import RecipeError, RewardError
from whet.rollout.one_step_ahead import OneStepAhead
from whet.rollout.rollout import describe
from whet.stages import rl
from whet.storage.checkpoint import State
from whet.types import Score

from .helpers.tiny_world import lines, rl_stage, world


def ahead(**keys):
    return rl_stage(**{"ahead": 1, "steps": 4, "override": {"correction": "token"}, **keys})


def alternating(problems, texts):
    return [Score(float(i % 2)) for i in range(len(texts))]


def test_every_step_but_the_first_learns_from_samples_of_the_weights_before_the_last_update(
    tmp_path,
):
    model, context = world(tmp_path, alternating)
    rl.run(model, ahead(), context)
    figures = [line["values"] for line in lines(tmp_path)]
    assert [v["lag"] for v in figures] == [0.0, 1.0, 1.0, 1.0]
    assert figures[0]["sampler_gap"] < 1e-4 < min(v["sampler_gap"] for v in figures[1:])


def test_the_next_answers_are_drawn_while_the_last_are_scored(tmp_path):
    drawn, asked = threading.Semaphore(0), []

    def judge(problems, texts):
        if len(asked) < 3:  # after the fourth step nothing is drawn any more
            assert drawn.acquire(timeout=30), "nothing was drawn while the scores were computed"
        asked.append(len(texts))
        return alternating(problems, texts)

    model, context = world(tmp_path, judge)
    engine = context.engine(model, context.chat)
    plain, calls = engine.generate, []

    def generate(*arguments):
        samples = plain(*arguments)
        calls.append(1)
        if len(calls) > 1:  # the first step has nothing to wait for
            drawn.release()
        return samples

    engine.generate = generate
    rl.run(model, ahead(), replace(context, engine=lambda policy, chat: engine))
    assert asked == [32] * 4 and len(calls) == 4


def test_what_is_in_flight_is_kept_to_the_bit(tmp_path):
    model, context = world(tmp_path)
    engine = context.engine(model, context.chat)
    draw = rl.drawing(
        engine, rl.InOrder(context.stream("train")), rl.Sampling(4, 0.8, 8), ahead(), context
    )
    flight, again = OneStepAhead(context.reward), OneStepAhead(context.reward)
    flight.take(1, 9, draw)
    state = flight.state()
    again.restore(
        State({k: v.clone() for k, v in state.tensors.items()}, json.loads(json.dumps(state.data)))
    )
    for ours, theirs in zip(flight.waiting[1], again.waiting[1], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (
                (a.tokens == b.tokens).all()
                and (a.mask == b.mask).all()
                and (a.logp == b.logp).all()
            )
            assert (a.text, a.finish, a.version) == (b.text, b.finish, b.version)
    assert [p.tokens for p in flight.waiting[0]] == [p.tokens for p in again.waiting[0]]
    assert describe(flight.take(9, 9, draw), context.task) == describe(
        again.take(9, 9, draw), context.task
    )
    empty = OneStepAhead(context.reward)
    again.restore(empty.state())
    assert again.waiting is None


@pytest.mark.parametrize(
    ("keys", "cure"),
    [
        ({"override": {}}, 'give override = { correction = "token" }'),
        ({"algorithm": "dapo"}, "drop ahead"),
    ],
)
def test_what_cannot_run_ahead_is_refused(tmp_path, keys, cure):
    model, context = world(tmp_path)
    with pytest.raises(RecipeError, match=cure):
        rl.run(model, ahead(**keys), context)


def test_a_verifier_that_fails_stops_the_run(tmp_path):
    model, context = world(tmp_path, lambda problems, texts: [Score(0.0, "timeout")] * len(texts))
    with pytest.raises(RewardError, match="100%"):
        rl.run(model, ahead(), context)
