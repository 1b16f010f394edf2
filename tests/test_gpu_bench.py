"""The short form of benchmarks/gpu.py: every part but TRL's runs on a CPU, errors stay in their
part, and the exit says what does not hold.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PARTS = ("same_as_cpu", "attention", "sharing", "replays", "sampling", "update")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("whet_bench_gpu", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("gpu_lines", "gpu_equal"):
        sys.modules.pop(name, None)


def test_every_part_runs_on_a_cpu(tmp_path):
    arguments = [
        "--device",
        "cpu",
        "--shape",
        "tiny",
        "--batch",
        "8",
        "--tokens",
        "8",
        "--json",
        str(tmp_path / "lines.json"),
    ]
    ran = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py"), *arguments, "--only", ",".join(PARTS)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    parts = json.loads((tmp_path / "lines.json").read_text(encoding="utf-8"))["parts"]
    assert tuple(parts) == PARTS
    lines = [line for part in parts.values() for line in part]
    assert (
        not [line for line in lines if "error" in line]
        and sum(line["equality"] for line in lines) > 15
    )
    assert all(line["holds"] for line in lines if line["equality"] and line["goal"])


def test_a_failing_part_is_named_and_the_rest_runs(gpu, monkeypatch, capsys):
    def attention(setup):
        yield gpu.Line("this holds", 1.0, "", ">= 1", True)
        raise ValueError("no such kernel")

    def sharing(setup):
        yield gpu.Line("this does not", 0.5, "", "<= 0.1", True)

    def sampling(setup):
        yield gpu.Line("this is slow", 0.4, "", ">= 0.5")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "PARTS", (attention, sharing, sampling))
    monkeypatch.setattr(
        sys,
        "argv",
        ["gpu.py", "--device", "cpu", "--shape", "tiny", "--only", "attention,sharing,sampling"],
    )
    with pytest.raises(SystemExit, match=r"does not hold: attention; this does not$"):
        gpu.main()
    printed = capsys.readouterr().out
    for words in (
        "ERROR ValueError: no such kernel",
        "FAIL",
        "pass",
        "this is slow",
        "ERROR RuntimeError: out of memory",
    ):
        assert words in printed


def test_nothing_that_is_not_a_number_passes(gpu):
    assert (
        not gpu.Line("x", float("nan"), "", "<= 1", True).holds
        and not gpu.Line("x", float("nan"), "", ">= 0", True).holds
    )
