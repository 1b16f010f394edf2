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
    told = bench.fuzz(400, seed=7)
    assert told["over_2_s"] == 0 and not told["evaluated"] and sum(told["statuses"].values()) == 400
    assert not {"timeout", "error"} & set(told["statuses"])
    assert len(told["paid"]) <= 8  # a fuzzed answer is right now and then


def test_broken_rewards_cost_a_running_recipe_only_their_own_answers(bench: Any):
    told = bench.broken(20, limit=0.4)
    assert told["exit"] == 0, told["error"]
    assert told["broken"] >= 20 and set(told["statuses"]) == {"timeout", "error"}
    assert told["trained_on_broken"] == 0 and told["errors_logged"] == told["broken"]
    assert told["sound"] > 0 and told["sound_lost"] == 0
    assert 0 < told["longest_s"] <= told["limit_s"] + 2 and told["left_processes"] == []
