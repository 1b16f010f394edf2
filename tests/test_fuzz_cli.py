"""The command line as a user meets it, given what it cannot use: one line on stderr, exit code 2,
and never a traceback.
"""

import os
import subprocess
import sys

import pytest

from whet.cli import main

HEAD = 'name = "x"\ntask = { name = "chain", operations = 1 }\n'
STAGE = '[[stage]]\nname = "base"\nkind = "sft"\nmix = { direct = 1.0 }\nsteps = 1\n'
GOOD = HEAD + STAGE
FILES = 'name = "x"\ntask = { name = "files", path = "rows.jsonl" }\n' + STAGE
CASES = {
    "bytes": (b"\xff\xfe\x00", "show r.toml", "codec"),
    "nothing": (b"", "show r.toml", "the key 'name' is missing"),
    "deep": (b"x = " + b"[" * 9999, "show r.toml", "recursion"),
    "a long number": (b"seed = " + b"9" * 5000, "show r.toml", "4300 digits"),
    "no number": (GOOD.replace("steps = 1", "steps = nan"), "show r.toml", "nan and inf"),
    "misspelt": (GOOD.replace("steps", "stpes"), "show r.toml", "did you mean 'steps'"),
    "a date": (f"seed = 2026-01-01\n{GOOD}", "show r.toml", "date"),
    "a huge seed": (GOOD, "show r.toml seed=99999999999999999999", "it must be below"),
    "an override of many lines": (GOOD, "show r.toml stage.base.kind=a\n\nb", "is not known"),
    "an override of nothing": (GOOD, "show r.toml =3", "write key=value"),
    "a directory": (GOOD, "show .", "directory"),
    "a name that is too long": (GOOD, f"show {'x' * 300}.toml", "too long"),
    "an unknown algorithm": (
        HEAD + '[[stage]]\nname = "rl"\nkind = "rl"\nsteps = 1\nalgorithm = "grpoo"', "show r.toml", "grpo"),
    "a task's option": (GOOD, "run r.toml task.operations=9999999999999999999999", "between 1 and 30"),
    "no data": (FILES, "run r.toml", "rows.jsonl"),
    "a reward without its model": (GOOD + '[[reward]]\nname = "learned"', "run r.toml", "'model' is missing"),
    "a device that is not there": (GOOD, "run r.toml model.device=cuda", "no GPU"),
    "a row that is none": (GOOD, "reward test math r.toml", "r.toml"),
    "no such model": (GOOD, "eval nowhere --task chain --temperature -1", "temperature"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_used_is_told_in_one_line_with_exit_code_2(tmp_path, case):
    text, words, says = CASES[case]
    if case == "a device that is not there":
        pytest.importorskip("torch").cuda.is_available() and pytest.skip("there is a GPU here")
    (tmp_path / "r.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    done = subprocess.run(
        [sys.executable, "-m", "whet.cli.main", *words.split(" ")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-2000:]
    assert done.stderr.startswith("whet: ") and "Traceback" not in done.stderr + done.stdout
    assert says in done.stderr and len(done.stderr) < 6000, done.stderr


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail]\nDefaultCPUAllocator: can't allocate memory"),
    type("OutOfMemoryError", (RuntimeError,), {})()],
)  # fmt: skip
def test_a_memory_that_does_not_hold_it_is_one_line(monkeypatch, capsys, error):
    def fails(arguments):
        raise error

    monkeypatch.setattr("whet.cli.tasks.call", fails)
    assert main.main(["tasks"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "out of memory" in message and "micro_tokens" in message


def test_another_fault_of_ours_is_not_called_one_of_memory(monkeypatch):
    def fails(arguments):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("whet.cli.tasks.call", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        main.main(["tasks"])
