"""The same recipe and seed are the same run, bit for bit; how many workers judge, or rows are drawn
side by side, is nobody's business but the clock's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from whet.config.load import load_recipe
from whet.engines import engine_for
from whet.pipeline import pipeline

RECIPE = """
name = "same"
seed = 4
evaluation = { problems = 12, max_tokens = 8 }
task = { name = "chain", operations = 1 }
reward = [{ name = "OWN:score", limit = { seconds = 20, processes = WORKERS } }]
[model.shape]
hidden = 32
layers = 1
heads = 2
kv_heads = 2
ffn = 64
[[stage]]
name = "base"
kind = "sft"
mix = { direct = 0.5, careful = 0.5 }
steps = 10
optimizer = { kind = "muon", lr = 0.02, lr_rest = 0.01 }
[[stage]]
name = "rl"
kind = "rl"
steps = 4
prompts = 6
samples = 4
max_tokens = 8
optimizer = { lr = 1e-2 }
"""


@pytest.fixture
def written(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "def score(prompt, sample):\n    return float(sum(sample.tokens.tolist()) % 7) / 7\n"
    )

    def write(workers=1):
        path = tmp_path / f"{workers}.toml"
        path.write_text(RECIPE.replace("OWN", str(own)).replace("WORKERS", str(workers)))
        return path

    return write


def told(folder: Path):
    """What a run leaves that is no time: weights, samples, the figures of every step."""
    files = {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.suffix in (".safetensors", ".jsonl")
    }
    lines = files.pop("metrics.jsonl").decode().splitlines()
    assert len(lines) == 14 and any(name.endswith(".safetensors") for name in files)
    return files | {"metrics": [json.loads(x)["values"] for x in lines]}


def test_two_processes_leave_the_same_bits(written, tmp_path):
    found = []
    for place in ("a", "b"):
        command = [
            sys.executable,
            "-m",
            "whet.cli.main",
            "run",
            str(written()),
            "--runs",
            str(tmp_path / place),
        ]
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": str(len(found))},
        )
        found.append(told(tmp_path / place / "same"))
    assert found[0] == found[1]


def test_the_number_of_reward_workers_changes_nothing(written, tmp_path):
    found = []
    for workers in (1, 3):
        pipeline.run(load_recipe(written(workers)), tmp_path / str(workers))
        found.append(told(tmp_path / str(workers)))
    assert found[0] == found[1]


def test_the_number_of_rows_drawn_side_by_side_changes_no_token(written, tmp_path, monkeypatch):
    found = []
    for rows in (256, 5):
        monkeypatch.setattr(
            pipeline, "engine_for", lambda model, chat, rows=rows: engine_for(model, chat, rows)
        )
        recipe = load_recipe(written())
        only = recipe.model_copy(
            update={"stage": [recipe.stage[0], recipe.stage[1].model_copy(update={"steps": 1})]}
        )
        pipeline.run(only, tmp_path / str(rows))
        drawn = (tmp_path / str(rows) / "samples" / "rl" / "000001.jsonl").read_text().splitlines()
        found.append([[s["ids"] for s in json.loads(x)["samples"]] for x in drawn])
    assert found[0] == found[1]
