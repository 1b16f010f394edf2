"""The pages say what the code does: cells of each algorithm's row, the worked table, links that lead somewhere."""

import re
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from whet.algorithms import TABLE, Algorithm

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "algorithms"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_every_row_has_a_page_and_every_page_a_row():
    assert {p.stem for p in PAGES.glob("*.md")} == {*TABLE, "index"}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_a_page_shows_the_cells_of_its_row(row: Algorithm):
    text = (PAGES / f"{row.name}.md").read_text(encoding="utf-8")
    cells = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)]
    assert cells == [{k: v for k, v in asdict(row).items() if k not in ("name", "source")}]
    assert row.source.removesuffix(" 1992") in text
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_the_index_compares_the_row_as_it_is(row: Algorithm):
    lines = [
        line
        for line in (PAGES / "index.md").read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| {row.name} |")
    ]
    rewards, lengths = [[1.0, 0.0, 0.0, 0.0], [1.0] * 4], [2, 4, 4, 6, 3, 3, 3, 3]
    if row.sampling == "dynamic":
        rewards, lengths = rewards[:1], lengths[:4]
    given = [a for group in row.advantages(rewards) for a in group.tolist()]
    push = [a * w for a, w in zip(given, row.weights(lengths, limit=8), strict=True)]
    shown = [f"{x:.4f}".replace("-", "−") if x else "0" for x in (push[0], push[1], push[3], push[-1])]
    if row.sampling == "dynamic":
        shown[3] = "left out"
    assert lines == [f"| {row.name} | " + " | ".join(shown) + " |"]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            path, _, heading = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{target}: no such file"
            if heading:
                headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in [h.lower().replace(" ", "-") for h in headings], f"{target}: no such heading"
