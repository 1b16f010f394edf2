"""How a run's samples are packed into the page: nothing changed, nothing lost unsaid, never too
much.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from whet import report
from whet.report.samples import BUDGET, Samples

from .helpers import report_run
from .helpers.report_run import data_of, unpack


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_run.make(tmp_path_factory.mktemp("run") / "mini", steps=12, prompts=4, samples=4)


@pytest.fixture(scope="module")
def packed(run: Path) -> dict[str, Any]:
    return data_of(report.write(run).read_text(encoding="utf-8"))["samples"]


def rl_of(packed: dict[str, Any]) -> dict[str, Any]:
    return next(s for s in packed["stages"] if s["name"] == "rl")


def test_samples_come_back_as_they_were(run: Path, packed: dict[str, Any]):
    rl = rl_of(packed)
    assert [s["name"] for s in packed["stages"]] == ["base-test", "rl", "rl-test", "student-test"]
    assert (
        [step for step, _ in rl["steps"]] == list(range(1, 13)) and rl["whole"] and rl["every"] == 1
    )
    for step, groups in rl["steps"]:
        lines = (run / "samples" / "rl" / f"{step:06d}.jsonl").read_text().splitlines()
        assert len(groups) == len(lines)
        for group, line in zip(groups, map(json.loads, lines), strict=True):
            prompt = group["prompt"]
            assert [prompt["id"], prompt["answer"]] == [
                line["prompt"]["id"],
                line["prompt"]["answer"],
            ]
            assert [packed["tokens"][n] for n in prompt["tokens"]] == [
                [None, piece] for piece in line["prompt_tokens"]
            ]
            for row, sample in zip(group["samples"], line["samples"], strict=True):
                tokens = [list(t) for t in zip(sample["ids"], sample["pieces"], strict=True)]
                assert [packed["tokens"][n] for n in row["tokens"]] == tokens
                assert [n / 100 for n in row["logp"]] == pytest.approx(sample["logp"], abs=0.005001)
                assert row["reward"] == sample["reward"] and row["right"] == sample["correct"]
                assert row["advantage"] == pytest.approx(sample["advantage"], abs=1e-4)
                assert row["mode"] == sample["mode"]


def test_tokens_not_chosen_are_kept_apart(packed: dict[str, Any]):
    attacked = rl_of(packed)["steps"][0][1][0]
    assert attacked["samples"][0]["mask"] == [1, 0, 1, 1, 1]
    assert "mask" not in attacked["samples"][1]  # all chosen: nothing is written


BROKEN = [
    {"logp": [0.0]},
    {"ids": None},
    {"pieces": [1, 2]},
    {"ids": ["a"], "pieces": ["a"], "mask": [1], "logp": [0.0]},
]


@pytest.mark.parametrize("change", BROKEN)
def test_broken_groups_are_left_out_and_counted(tmp_path: Path, change: dict[str, Any]):
    made = report_run.make(tmp_path / "run", steps=2, prompts=2, samples=2)
    path = made / "samples" / "rl" / "000002.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    first["samples"][1] |= change
    path.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n" + json.dumps(second)[:-40])
    page = report.write(made).read_text()
    assert len(rl_of(data_of(page)["samples"])["steps"][1][1]) == 1
    assert "samples: 2 groups cannot be read and are left out" in page


def test_a_log_probability_that_is_no_number_is_not_known(tmp_path: Path):
    (tmp_path / "rl").mkdir()
    logp = [float("nan"), None, "x", float("-inf"), 0, -1, 0.25]
    one = {"ids": [5] * 7, "pieces": ["a"] * 7, "mask": [1] * 7, "logp": logp}
    line = {"prompt": {"id": "p"}, "prompt_tokens": [], "samples": [one]}
    (tmp_path / "rl" / "000001.jsonl").write_text(json.dumps(line) + "\n")
    packed = unpack(Samples(tmp_path).encode())
    (((_, (group,)),),) = (stage["steps"] for stage in packed["stages"])
    assert group["samples"][0]["logp"] == [None, None, None, None, 0, -100, 0]


def many(directory: Path, steps: int) -> Path:
    (directory / "rl").mkdir(parents=True)
    sample = {"ids": list(range(40)), "pieces": ["x"] * 40, "mask": [1] * 40, "logp": [-1.0] * 40}
    line = (
        json.dumps(
            {"prompt": {"id": "p", "messages": []}, "prompt_tokens": [], "samples": [sample]}
        )
        + "\n"
    )
    for step in range(1, steps + 1):
        (directory / "rl" / f"{step:06d}.jsonl").write_text(line * 10)
    return directory


@pytest.mark.parametrize("budget,every", [(1_000_000, 1), (200_000, 2), (100_000, 4)])
def test_steps_are_thinned_to_the_budget(tmp_path: Path, budget: int, every: int):
    samples = Samples(many(tmp_path / "samples", 50), budget=budget)
    (stage,) = samples.stages
    assert stage.every == every and sorted(stage.steps) == sorted({*range(1, 51, every), 50})
    assert len(json.dumps(unpack(samples.encode()), separators=(",", ":"))) <= budget
    assert all(s.whole for s in stage.steps.values())


def test_groups_are_cut_where_few_steps_do_not_fit(tmp_path: Path):
    samples = Samples(many(tmp_path / "samples", 50), budget=12_000)
    (stage,) = samples.stages
    assert stage.every == 4 and sorted(stage.steps)[-1] == 50
    assert all(s.groups and not s.whole for s in stage.steps.values())
    packed = unpack(samples.encode())
    assert packed["stages"][0]["whole"] is False
    assert len(json.dumps(packed, separators=(",", ":"))) < 13_000


def test_a_run_of_the_demo_s_size_stays_below_8_mb(tmp_path: Path):
    """A tenth of 70 steps × 256 samples × 40 tokens, with a byte-pair vocabulary; ten times it must
    fit.
    """
    tokens = [(i, f" w{i}") for i in range(3000)]
    score = {
        "reward": 1.0,
        "advantage": 0.123456,
        "status": "scored",
        "finish": "stop",
        "parts": {"accuracy": 1.0},
    }
    for step in range(1, 8):
        groups = []
        for g in range(32):
            drawn = [tokens[(step * 977 + g * 131 + t * t) % 3000] for t in range(40)]
            ids, pieces = zip(*drawn, strict=True)
            logp = [-(t % 7) / 3 for t in range(40)]
            one = {
                "ids": ids,
                "pieces": pieces,
                "mask": [1] * 40,
                "logp": logp,
                "version": step,
                **score,
            }
            prompt = {"id": f"{step}-{g}", "messages": [], "answer": "1"}
            groups.append({"prompt": prompt, "prompt_tokens": ["q"] * 30, "samples": [one] * 8})
        report_run.write_samples(tmp_path, "rl", step, groups)
    samples = Samples(tmp_path / "samples")
    assert 10 * sum(step.size for step in samples.stages[0].steps.values()) < BUDGET
    assert 10 * len(samples.encode()) < 7_500_000
