"""Downloads data sets of the Hugging Face Hub: `hf:owner/name` or `hf:owner/name/folder`."""

from collections.abc import Sequence
from pathlib import Path

from whet.errors import DataError

SUFFIXES = (".parquet", ".jsonl")


def download(spec: str) -> tuple[list[Path], list[Path]]:
    """(train files, test files) of a data set: Parquet or JSONL, and no other file is fetched.

    Nothing is executed. Raises DataError where the Hub cannot be reached, the data set does not
    exist or is not open to you, and where it is not clear which files are meant.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    owner, _, rest = spec.removeprefix("hf:").partition("/")
    name, _, folder = rest.partition("/")
    if not owner or not name:
        raise DataError(f"{spec!r} names no data set; write hf:owner/name, or hf:owner/name/folder")
    repo = f"{owner}/{name}"
    try:
        train, test = choose(_listed(repo), folder, spec)
        paths = {
            file: Path(huggingface_hub.hf_hub_download(repo, file, repo_type="dataset"))
            for file in (*train, *test)
        }
        return [paths[file] for file in train], [paths[file] for file in test]
    except GatedRepoError:
        raise DataError(
            f"{spec}: the data set is gated; accept its terms on the Hub and run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise DataError(
            f"{spec}: the Hub has no such data set, or it is private (`hf auth login`)"
        ) from None
    except (*_network_errors(), EntryNotFoundError, ValueError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(
            f"{spec}: cannot reach the Hub ({reason}); run `hf download {repo} --repo-type dataset` "
            "where there is a network, or give the path of a .jsonl or .parquet file"
        ) from None


def _listed(repo: str) -> list[str]:
    """The data set's files: on the Hub, or in the local cache where the Hub cannot be reached."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        info = huggingface_hub.HfApi().dataset_info(repo, timeout=20)
        return [sibling.rfilename for sibling in info.siblings or []]
    except HfHubHTTPError:
        raise
    except _network_errors() as error:
        try:
            root = Path(
                huggingface_hub.snapshot_download(repo, repo_type="dataset", local_files_only=True)
            )
        except LocalEntryNotFoundError:
            raise error from None
        return [
            str(path.relative_to(root).as_posix()) for path in root.rglob("*") if path.is_file()
        ]


def _network_errors() -> tuple[type[Exception], ...]:
    """The bases of the Hub's errors: those of its HTTP library, and OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))


def choose(files: Sequence[str], folder: str, spec: str) -> tuple[list[str], list[str]]:
    """(train, test) among a repository's files, by name; test is empty where no name says test.

    >>> choose(["README.md", "main/train-0.parquet", "main/test-0.parquet"], "", "hf:a/b")
    (['main/train-0.parquet'], ['main/test-0.parquet'])
    """
    inside = [
        f
        for f in sorted(files)
        if f.endswith(SUFFIXES) and (not folder or f == folder or f.startswith(f"{folder}/"))
    ]
    if not inside:
        where = f"in {folder!r}" if folder else "there"
        raise DataError(f"{spec}: no .parquet or .jsonl file {where}")
    if any(f.endswith(".parquet") for f in inside):
        inside = [f for f in inside if f.endswith(".parquet")]
    repo = "/".join(spec.split("/")[:2])
    folders = sorted({f.rpartition("/")[0] for f in inside})
    if len(folders) > 1:
        raise DataError(
            f"{spec}: several configurations ({', '.join(folders[:8])}); write {repo}/{folders[-1]}"
        )
    test = [f for f in inside if "test" in f.rpartition("/")[2].lower()]
    train = [f for f in inside if "train" in f.rpartition("/")[2].lower()]
    if train:
        return train, test
    if test or len(inside) > 1:
        raise DataError(f"{spec}: which file is for training? Name it, such as {repo}/{inside[0]}")
    return inside, []
