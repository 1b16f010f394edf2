"""Where a files task's rows come from: Parquet, and data sets on the Hub."""

import json
import sys
from pathlib import Path

import pytest

from whet.data.hub import choose
from whet.errors import DataError
from whet.tasks import load
from whet.tasks.files import Files


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sums(start: int, stop: int) -> list[dict]:
    return [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(start, stop)]


# ---- parquet


def test_parquet_reads_as_jsonl_does(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [
        {**row, "talk": [{"role": "user", "content": row["question"]}], "image": b"\x00"}
        for row in sums(0, 50)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = Files(path=write(tmp_path / "a.jsonl", sums(0, 50)))
    table = Files(path=str(tmp_path / "a.parquet"))
    assert table.problems("train", 30, 1) == lines.problems("train", 30, 1)
    talk = Files(path=str(tmp_path / "a.parquet"), messages="talk")
    assert talk.problems("train", 30, 1) == lines.problems("train", 30, 1)
    with pytest.raises(DataError, match="no column 'anser'; did you mean 'answer'"):
        Files(path=str(tmp_path / "a.parquet"), answer="anser")


def test_broken_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.Table.from_pylist(sums(0, 50)), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], whole[:100] + whole[150:], b"{}" * 500):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(DataError, match="no readable Parquet file") as caught:
            Files(path=str(tmp_path / "a.parquet"))
        assert "\n" not in str(caught.value)
    parquet.write_table(
        pyarrow.Table.from_pylist(sums(0, 50)).slice(0, 0), tmp_path / "none.parquet"
    )
    with pytest.raises(DataError, match="it is empty"):
        Files(path=str(tmp_path / "none.parquet"))


def test_without_pyarrow_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'whet\[data\]'"):
        Files(path=str(tmp_path / "a.parquet"))


# ---- the Hub


class Sibling:
    def __init__(self, rfilename: str) -> None:
        self.rfilename = rfilename


class Hub:
    """Stands in for huggingface_hub's two calls, over a local directory."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        self.root, self.fetched = root, []
        self.siblings = [Sibling(str(p.relative_to(root))) for p in root.rglob("*") if p.is_file()]
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.fetch)

    def dataset_info(self, repo: str, timeout: float) -> "Hub":
        return self

    def fetch(self, repo: str, file: str, repo_type: str) -> str:
        self.fetched.append(file)
        return str(self.root / file)


def test_a_hub_data_set_brings_its_own_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "main").mkdir()
    write(tmp_path / "main" / "train-0.jsonl", sums(0, 20))
    write(tmp_path / "main" / "train-1.jsonl", sums(20, 30))
    write(tmp_path / "main" / "test.jsonl", sums(30, 35))
    (tmp_path / "load.py").write_text("raise SystemExit('remote code ran')")
    hub = Hub(tmp_path, monkeypatch)
    task = load("hf:some/sums")
    assert (task.size("train"), task.size("test")) == (30, 5)
    assert sorted(hub.fetched) == ["main/test.jsonl", "main/train-0.jsonl", "main/train-1.jsonl"]
    assert Files(path="hf:some/sums/main").problems("test", 5, 0) == task.problems("test", 5, 0)


@pytest.mark.parametrize(
    ("files", "folder", "message"),
    [
        (["README.md", "a.py"], "", "no .parquet or .jsonl file there"),
        (
            ["a/train.parquet", "b/train.parquet"],
            "",
            r"several configurations \(a, b\); write hf:o/n/b",
        ),
        (["a/train.parquet"], "c", "no .parquet or .jsonl file in 'c'"),
        (["one.parquet", "two.parquet"], "", "which file is for training"),
        (["d/test.parquet"], "d", "which file is for training.*hf:o/n/d/test.parquet"),
    ],
)
def test_hub_files_that_do_not_say_what_they_are(files: list[str], folder: str, message: str):
    with pytest.raises(DataError, match=message):
        choose(files, folder, "hf:o/n")


def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    transport = next(base for base in HfHubHTTPError.__bases__ if base is not OSError)

    def fail(*_: object, **__: object) -> None:
        raise transport("no route\nto host")

    def not_cached(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    with pytest.raises(
        DataError, match=r"cannot reach the Hub .*hf download some/sums --repo-type dataset"
    ) as caught:
        load("hf:some/sums")
    assert "\n" not in str(caught.value)
    write(tmp_path / "train.jsonl", sums(0, 30))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path)
    )  # in the cache
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, file, repo_type: str(tmp_path / file)
    )
    assert sum(load("hf:some/sums").size(s) or 0 for s in ("train", "test")) == 30
    with pytest.raises(DataError, match="write hf:owner/name"):
        Files(path="hf:name")
