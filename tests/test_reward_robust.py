"""The short form of benchmarks/rewards.py: fuzzed answers, and a running recipe whose reward hangs,
dies and eats memory.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "rewards.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("whet_bench_rewards", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fuzzed_answers_take_under_two_seconds_and_are_never_evaluated(bench: Any):
    figures = bench.fuzz(400, seed=7)
    assert (
        figures["over_2_s"] == 0
        and not figures["evaluated"]
        and sum(figures["statuses"].values()) == 400
    )
    assert not {"timeout", "error"} & set(figures["statuses"])
    assert len(figures["paid"]) <= 8  # a fuzzed answer is right now and then


def test_broken_rewards_cost_a_running_recipe_only_their_own_answers(bench: Any):
    figures = bench.broken(20, limit=0.4)
    assert figures["exit"] == 0, figures["error"]
    assert figures["broken"] >= 20 and set(figures["statuses"]) == {"timeout", "error"}
    assert figures["trained_on_broken"] == 0 and figures["errors_logged"] == figures["broken"]
    assert figures["sound"] > 0 and figures["sound_lost"] == 0
    assert 0 < figures["longest_s"] <= figures["limit_s"] + 2 and figures["left_processes"] == []
