"""Writes report.html: one offline file with a run's figures, curves and samples.

Holds the readers of a run's files, the page and its scripts; nothing here measures or trains. The
page loads nothing. The text of models and data sets is data to it: scripts insert it as text, under
a content security policy that lets only the page's own script run.
"""

from pathlib import Path

from whet.errors import DataError
from whet.report.page import page
from whet.report.read import read
from whet.report.samples import BUDGET, Samples


def write(run_directory: Path, budget: int = BUDGET) -> Path:
    """Writes `run_directory`/report.html, whole or not at all, and returns its path.

    `budget` is the most bytes of JSON, before compression, that samples may take. Where they take
    more, each stage keeps its first, its last and every k-th step, and the page says so.

    Raises DataError where the directory holds no run or a broken summary, or cannot be written.
    """
    run = read(Path(run_directory))
    names = [*(str(s.get("name")) for s in run.stages), *(c.stage for c in run.curves)]
    samples = Samples(run.directory / "samples", list(dict.fromkeys(names)), budget)
    if samples.broken:
        run.notices.append(f"samples: {samples.broken} groups cannot be read and are left out.")
    path = run.directory / "report.html"
    temporary = path.with_name(".report.html.partial")
    document = page(run, samples.encode())
    try:
        temporary.write_text(document, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written ({error.strerror}); free the place or its disk, then `whet "
            f"report` again"
        ) from None
    return path
