"""The memory forecast of `whet check`: counted term by term, and near what a process takes."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from whet import config
from whet.bench import whet_side
from whet.bench.workload import WORKLOADS, prepare
from whet.config.load import load_recipe
from whet.engines.cache import LEAST
from whet.model.config import ModelConfig
from whet.pipeline.pipeline import Pipeline
from whet.preflight import check, memory

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SHAPE = ModelConfig("qwen3", 16, 32, 1, 2, 2, 16, 48)

RUN = """
import json, sys
from pathlib import Path
import torch
from whet.bench import whet_side
from whet.bench.side import memory as process_bytes
from whet.bench.workload import Workload
torch.set_num_threads(1)
plain, tokens = whet_side.stage, int(sys.argv[3])
whet_side.stage = lambda work, steps: plain(work, steps).model_copy(update={"micro_tokens": tokens})
before = process_bytes()
whet_side.run(Workload(**json.loads(sys.argv[1])), Path(sys.argv[2]), 1)
print(process_bytes("VmHWM") - before)
"""


@pytest.mark.parametrize(("size", "tokens"), [("0.2M", 4096), ("5M", 1024)])
def test_it_is_within_a_fifth_of_what_a_process_takes(tmp_path, size, tokens):
    work = replace(WORKLOADS["worst"], prompts=3)
    prepare(work, size, tmp_path / "model")
    command = [
        sys.executable,
        "-c",
        RUN,
        json.dumps(asdict(work)),
        str(tmp_path / "model"),
        str(tokens),
    ]
    took = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    stage = whet_side.stage(work, 1).model_copy(update={"micro_tokens": tokens})
    shape = work.shape(size)
    numbers = memory.peak_elements(
        stage, shape, memory.parameters(shape), memory.Workload(work.prompt, work.length)
    )
    assert (memory.PROCESS + 4 * numbers) / 2**20 == pytest.approx(took, rel=0.2)


def test_models_are_counted():
    keys = {"name": "rl", "kind": "rl", "steps": 1}
    stages = [config.RL(**keys, algorithm=a) for a in ("dr_grpo", "grpo", "ppo_orz", "ppo")]
    assert [memory.model_copies(s, SHAPE, 10**8) for s in stages] == [4, 5, 8, 9]
    lean = stages[3].model_copy(update={"lora": config.Lora(rank=4)})
    assert 2 < memory.model_copies(lean, SHAPE, 10**8) < 2.01  # weights twice, and adapters
    sft = config.SFT(name="sft", kind="sft", steps=1)
    assert (
        memory.peak_elements(sft, SHAPE, 2 * 10**8) - memory.peak_elements(sft, SHAPE, 10**8) == 4e8
    )


def test_a_pass_holds_what_is_packed_and_no_more():
    stage = config.RL(
        name="rl", kind="rl", steps=1, algorithm="dr_grpo", prompts=4, samples=8, max_tokens=100
    )
    load = memory.Workload(prompt=28)
    assert memory.pass_tokens(stage, load) == (3200, 112)  # all of it: every prompt is read once
    tight = stage.model_copy(update={"micro_tokens": 1024})
    assert memory.pass_tokens(tight, load) == (800, 28)
    assert memory.pass_tokens(stage, replace(load, response=50)) == (1600, 112)
    halves = stage.model_copy(update={"override": {"updates": 2, "ratio": "token"}})
    assert memory.pass_tokens(halves, load) == (1600, 56)
    sft = config.SFT(name="sft", kind="sft", steps=1, batch=10)
    assert memory.pass_tokens(sft, replace(load, response=50)) == (500, 280)


def test_the_sampler_of_what_follows_a_stage_counts_too():
    sft = config.SFT(name="sft", kind="sft", steps=1)
    measured = memory.Workload(10, 30, config.Evaluation(problems=100, max_tokens=64))
    a_token, a_pass = 2 * 2 * 16, 2 * 6 * 16 + 3 * 48 + 3 * 32
    hundred = 100 * ((LEAST - 1 + 30 + 10) * a_token + 10 * a_pass)
    assert memory.sampling(sft, SHAPE, memory.Workload(10, 30)) == 0
    assert memory.sampling(sft, SHAPE, measured) == hundred
    assert memory.sampling(sft.model_copy(update={"evaluate": False}), SHAPE, measured) == 0
    more = replace(measured, evaluation=config.Evaluation(problems=9999))
    assert memory.sampling(sft, SHAPE, more) == pytest.approx(memory.ROWS / 100 * hundred)
    gate = config.Gate(mode="direct", accuracy=0.5, samples=100, max_tokens=40)
    gated = sft.model_copy(update={"gate": gate})
    assert memory.sampling(gated, SHAPE, measured) == hundred + 100 * 10 * a_token


def test_lengths_are_the_corpus_where_the_model_is_new_and_unknown_where_it_is_not(tmp_path):
    recipe = load_recipe(RECIPES / "r1-zero-mini.toml")
    context = Pipeline.of(recipe, tmp_path, None).context
    problems = check.some_problems(context)
    load = check.workload(context, recipe, problems)
    assert (load.prompt, load.response) == (15, 39)
    known = recipe.model_copy(update={"model": config.Model(path="somewhere")})
    assert check.workload(context, known, problems).response == float("inf")
