"""The forecast of a recipe's time: timed steps of the real size, as many as there will be."""

from collections import Counter
from itertools import count

import pytest
import torch

from whet.config.load import load_recipe
from whet.preflight import forecast
from whet.preflight.dry_run import CoinReward
from whet.preflight.forecast import Estimate, Span, total
from whet.preflight.scripted_engine import ScriptedEngine
from whet.types import Sampling, Score

from .helpers.tiny_world import world
from .test_check import TINY

SMALLER = (
    "evaluation.problems=20",
    "stage.rl.prompts=2",
    "stage.rl.samples=2",
    "stage.rl.algorithm=dr_grpo",
)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(
        TINY.replace("steps = 2\nmix", "steps = 40\nmix").replace(
            "steps = 2\nmax", "steps = 30\nmax"
        )
    )
    return lambda *overrides: load_recipe(path, [*SMALLER, *overrides])


def ticks():
    """A clock that goes on by a second each time it is looked at: every step takes one."""
    counted = count()
    return lambda: float(next(counted))


def test_time_grows_with_steps_and_with_nothing_else(recipe):
    base, rl = forecast.forecast(recipe(), ticks())
    assert (base.name, rl.name, base.gated) == ("base", "rl", False)
    more, same = forecast.forecast(recipe("stage.base.steps=400"), ticks())
    assert more.seconds.most - base.seconds.most == pytest.approx(360) and same == rl
    assert rl.step == Span(1, 1, 1) and rl.stage.most == pytest.approx(30 + rl.work.most)
    assert base.measured == Span(1, 1, 1)


def test_a_measurement_of_many_answers_is_timed_on_some(recipe):
    few, many = (
        forecast.forecast(recipe(f"evaluation.problems={n}"), ticks())[0] for n in (256, 768)
    )
    assert (few.measured.likely, many.measured.likely) == (1.0, 1.5)
    assert forecast.forecast(recipe("stage.base.evaluate=false"), ticks())[0].measured.most == 0


def test_a_gate_may_hold_at_any_look_and_looking_takes_time(recipe):
    gate = 'stage.base.gate={ mode = "direct", accuracy = 0.5, every = 10, samples = 8 }'
    (base, _), (plain, _) = (forecast.forecast(recipe(*x), ticks()) for x in ((gate,), ()))
    assert base.gated and base.steps == Span(10, 25, 40)
    assert base.step.likely == pytest.approx(plain.step.likely + 1 / 10)
    assert "its gate may hold after 10 to 40 steps" in base.text()


def test_answers_have_the_lengths_and_texts_that_were_asked_for(tmp_path):
    model, context = world(tmp_path)
    prompts = context.prompts(context.task.problems("train", 6, 0))
    drawn = ScriptedEngine(model, context.chat, [(3, "one"), (5, "another"), (99, "cut")]).generate(
        prompts, Sampling(4, 1.0, 8)
    )
    seen = Counter((s.length, s.text) for group in drawn for s in group)
    assert set(seen) == {(3, "one"), (5, "another"), (8, "cut")}


def test_groups_without_signal_are_paid_alike(tmp_path):
    _, context = world(tmp_path)
    problems = [p for p in context.task.problems("train", 60, 0) for _ in range(6)]
    for signal, least, most in ((0.0, 0, 0), (0.25, 5, 25), (1.0, 55, 60)):
        scores = CoinReward(context.reward, signal).score(problems, ["7"] * len(problems))
        values = [{s.value for s in scores[i : i + 6]} for i in range(0, len(scores), 6)]
        assert least <= sum(len(v) == 2 for v in values) <= most
    assert not any(s.usable for s in CoinReward(Late(), 1.0).score(problems[:6], [""] * 6))


class Late:
    """A reward that is never there in time."""

    def score(self, problems, texts, samples=None):
        return [Score(0.0, "timeout")] * len(texts)


def test_reinforcement_learning_may_lengthen_answers(recipe):
    """At first those that the corpus taught, later the task's longest."""
    _, rl = forecast.forecast(
        recipe("stage.base.mix={ direct = 1.0 }"), lambda: float(Lengths.drawn)
    )
    assert rl.step.least < rl.step.likely < rl.step.most


def test_a_reward_on_length_keeps_them_short(recipe):
    _, rl = forecast.forecast(
        recipe(
            "stage.base.mix={ direct = 1.0 }",
            'stage.rl.reward=[{ name = "task" }, { name = "length_kimi" }]',
        ),
        lambda: float(Lengths.drawn),
    )
    assert rl.step.least == rl.step.likely == rl.step.most


class Lengths:
    """A clock of the tokens that a pack has brought to the model."""

    drawn = 0


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    plain = ScriptedEngine.generate

    def generate(self, *args):
        drawn = plain(self, *args)
        Lengths.drawn += sum(s.length for group in drawn for s in group)
        return drawn

    monkeypatch.setattr(ScriptedEngine, "generate", generate)


def test_the_whole_is_the_sum_and_a_wide_span_is_written():
    one = Estimate("a", Span.of(10), Span(1, 2, 4), Span.of(3), Span(0, 1, 1))
    assert one.stage == (13, 23, 43) and one.seconds == (13, 24, 44)
    assert total([one.seconds, one.seconds]) == (26, 48, 88)
    assert one.seconds.text() == "24 s (13 to 44 s)"
    assert forecast.describe([one]) == "about 24 s (13 to 44 s): a 24 s (13 to 44 s)"


def test_the_model_that_is_timed_is_none_of_the_run(recipe, tmp_path):
    threads = torch.get_num_threads()
    forecast.forecast(recipe(), ticks())
    assert torch.get_num_threads() in (1, threads) and not (tmp_path / "runs").exists()
