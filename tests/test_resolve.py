"""Names of models: directories, Hub ids, and a Hub that does not answer. No network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whet.errors import ModelError
from whet.model import pretrained


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as failure:
        call()
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_names_that_resolve_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pretrained.resolve(str(tmp_path)) == tmp_path and pretrained.resolve(".") == Path()
    (tmp_path / "file").touch()
    assert "is a file" in refusal(lambda: pretrained.resolve(str(tmp_path / "file")))
    for name in (str(tmp_path / "none"), "./a/b", "a/b/c", "", "gone", "../gone"):
        assert "there is no directory" in refusal(lambda name=name: pretrained.resolve(name))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("LocalEntryNotFoundError", "run `hf download owner/name --local-dir DIR`"),
        ("OfflineModeIsEnabled", "run `hf download owner/name --local-dir DIR`"),
        ("HfHubHTTPError", "run `hf download owner/name --local-dir DIR`"),
        ("RepositoryNotFoundError", "no public model of this name"),
        ("GatedRepoError", "accept its terms"),
    ],
)
def test_a_hub_that_does_not_answer(kind: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    class Failure(getattr(errors, kind)):
        def __init__(self) -> None:
            Exception.__init__(self, "why\nand more")

    def fail(*_: Any, **__: Any) -> str:
        raise Failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    text = refusal(lambda: pretrained.load("owner/name"))
    assert words in text and text.startswith("owner/name is no directory here, and ")


def test_only_plain_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    there = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "merges.txt",
        "chat_template.jinja",
    ]
    unwanted = [
        "pytorch_model.bin",
        "modeling.py",
        "original/params.json",
        "onnx/model.json",
        "consolidated.safetensors",
    ]
    asked: dict[str, Any] = {}

    def snapshot(name: str, **patterns: Any) -> str:
        asked.update(patterns, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert pretrained.resolve("owner/na-me.2") == tmp_path and asked.pop("name") == "owner/na-me.2"
    assert list(filter_repo_objects(there + unwanted, **asked)) == there
