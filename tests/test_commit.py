"""A directory is there whole or not at all, and what stood there before is replaced whole or kept."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from whet.errors import ModelError
from whet.model import pretrained
from whet.model.config import ModelConfig
from whet.model.transformer import Transformer
from whet.storage.atomic import committed


def tiny() -> Transformer:
    config = ModelConfig("qwen3", 37, 16, 2, 4, 2, 6, 24, qk_norm=True, max_positions=64, eos=(1,))
    return Transformer(config).initialize(torch.Generator().manual_seed(0))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pretrained.save(tiny(), tmp_path / "model")
    return tmp_path / "model"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as failure:
        call()
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), committed(tmp_path / "a/b") as folder:
        (folder / "config.json").touch()
        raise KeyError
    assert list((tmp_path / "a").iterdir()) == []


def test_what_stood_there_is_replaced_whole_or_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "tokenizer.json").touch()
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    with pytest.raises(KeyError), committed(model) as folder:
        (folder / "config.json").write_text("new")
        raise KeyError
    rename = Path.rename

    def breaks(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", breaks)
    assert "disk on fire" in refusal(lambda: pretrained.save(tiny(), model))
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before
    pretrained.save(tiny(), model)
    assert sorted(p.name for p in model.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds other files and no config.json" in refusal(
        lambda: pretrained.save(tiny(), tmp_path)
    )
    assert "is a file" in refusal(lambda: pretrained.save(tiny(), tmp_path / "thesis.tex"))
    assert "cannot be written" in refusal(
        lambda: pretrained.save(tiny(), tmp_path / "thesis.tex" / "model")
    )
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    pretrained.save(tiny(), tmp_path / "empty")
    pretrained.load(str(tmp_path / "empty"))


def test_killed_in_the_middle_nothing_is_there(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from whet.storage.atomic import committed\n"
        "with committed(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'config.json').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path / "model")], check=False)
    assert result.returncode == -9 and not (tmp_path / "model").exists()
