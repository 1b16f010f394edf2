"""report.html: one offline file in which a person sees what a run did, curve by curve and sample by
sample.

Nothing in it is loaded from anywhere. All that a model or a data set wrote is data to the page:
escaped JSON that scripts insert as text, under a content security policy that lets nothing run but
the page's own script.
"""

from pathlib import Path

from whet.errors import DataError
from whet.report.page import page
from whet.report.read import read
from whet.report.samples import BUDGET, Samples


def write(run_directory: Path, budget: int = BUDGET) -> Path:
    """Writes `run_directory`/report.html from the run's files, whole or not at all, and returns its
    path.

    `budget` is the most bytes of JSON, before compression, that samples may take. Where they take
    more, each stage keeps its first, its last and every k-th step, and the page says so. Raises DataError where the directory
    holds no run or a broken summary, or cannot be written.
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
            f"{path} cannot be written ({error.strerror}); free the place or its disk, then `whet report` again"
        ) from None
    return path
