"""The documentation holds: generated parts are fresh, every page is in the navigation, examples and
files that pages name exist, the quickstart's commands and the notebook run.
"""

import doctest
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *ROOT.glob("*.md")]
NOTEBOOK = ROOT / "examples" / "first_run.ipynb"
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


generate = module(DOCS / "generate.py")


def test_generated_parts_say_what_the_code_says():
    stale = [path.relative_to(ROOT).as_posix() for path in generate.stale()]
    assert not stale, f"run python docs/generate.py: {', '.join(stale)}"


def test_every_generated_part_is_on_one_page():
    marked = [m[2] for page in PAGES for m in generate.MARK.finditer(page.read_text("utf-8"))]
    assert sorted(marked) == sorted(generate.PARTS)


def test_a_key_without_a_meaning_is_noticed():
    """A generated key of a recipe ends in its meaning: `- name (kind; default): meaning.`"""
    bare = [
        f"{page.relative_to(ROOT)}: {line}"
        for page in PAGES
        for part in generate.MARK.finditer(page.read_text("utf-8"))
        for line in part[0].splitlines()
        if re.fullmatch(r"- `[^`-][^`]*` \([^)]*\)\.", line)
    ]
    assert not bare, "\n".join(bare)


def test_the_picture_shows_every_floor():
    floors = [name for row in generate.floors() for name in row]
    shown = re.findall(r'text-anchor="middle"[^>]*>([a-z_]+)</text>', generate.picture())
    assert shown == floors and len(floors) == len(set(floors))


def in_navigation(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    return [page for one in inner for page in in_navigation(one)]


def test_every_page_is_in_the_navigation_once():
    site = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    assert sorted(in_navigation(site["nav"])) == [p.relative_to(DOCS).as_posix() for p in PAGES]


@pages
def test_links_stay_on_the_site(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        if not target.startswith(("http://", "https://")):
            assert DOCS in (page.parent / target).resolve().parents, f"{target} is not in docs/"


@pytest.mark.parametrize(
    "page", [p for p in PAGES if ">>>" in p.read_text("utf-8")], ids=lambda p: p.stem
)
def test_examples_of_a_page(page: Path):
    """All of a page's examples share their names, in order."""
    blocks = re.findall(r"```python[^\n]*\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    name = page.relative_to(ROOT).as_posix()
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, name, 0)
    report: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(examples, out=report.append).failed
    assert failed == 0, "".join(report)


@pytest.mark.parametrize("text", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(text: Path):
    named = re.findall(r"`([a-z_]+/[\w/]+\.(?:py|c|toml|ipynb))`", text.read_text("utf-8"))
    roots = (ROOT, ROOT / "src", ROOT / "src" / "whet")
    missing = {n for n in named if not any((root / n).exists() for root in roots)}
    assert not {n for n in missing if not n.startswith(("mine/", "rewards/mine"))}


@pages
def test_a_line_is_a_sentence_or_little_more(page: Path):
    lines = enumerate(page.read_text("utf-8").splitlines(), 1)
    long = [i for i, line in lines if len(line) > 300 and not line.startswith(("|", "    "))]
    assert "results" in page.parts or not long, f"lines of over 300 characters: {long}"


def quickstart(folder: Path) -> list[str]:
    """Writes the files of the quickstart into a folder; returns its commands, in order."""
    text = (DOCS / "quickstart.md").read_text("utf-8")
    commands: list[str] = []
    for head, body in re.findall(r"```([^\n]*)\n(.*?)```", text, re.DOTALL):
        if title := re.search(r'title="([^"]+)"', head):
            path = folder / title[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(body, encoding="utf-8")
        elif head == "sh":
            commands += body.strip().splitlines()
    return commands


@pytest.mark.timeout(900)
def test_the_quickstart_runs(tmp_path: Path):
    """Every command but those that set up, with fewer steps."""
    commands = [c for c in quickstart(tmp_path) if c.split()[0] not in ("make", "source", "mkdir")]
    assert [c.split()[1] for c in commands if c.startswith("whet ")] == [
        "recipes", "reward", "check", "run", "eval", "run", "run"
    ]  # fmt: skip
    for recipe in tmp_path.glob("mine/*.toml"):
        shorter = re.sub(r"^steps = \d+", "steps = 8", recipe.read_text("utf-8"), flags=re.M)
        recipe.write_text(shorter, encoding="utf-8")
    whet = [sys.executable, "-m", "whet.cli.main"]
    for command in commands:
        program, *words = shlex.split(command)
        done = subprocess.run(
            [*({"whet": whet, "python": [sys.executable]}[program]), *words],
            cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        # 8 steps leave a model too poor for a check's liking; what fails is then in its lines
        allowed = (0, 1) if command.startswith("whet check") else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
    assert (tmp_path / "runs" / "mine-again" / "model" / "config.json").is_file()


@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path):
    """All code cells, in order, in one plain Python process (no Jupyter), without magics."""
    copy = tmp_path / NOTEBOOK.name
    shutil.copy(NOTEBOOK, copy)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "execute.py"), str(copy)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fresh, kept = (json.loads(path.read_text("utf-8")) for path in (copy, NOTEBOOK))
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in code), "make notebook writes the outputs"
    assert [c["source"] for c in fresh["cells"]] == [c["source"] for c in kept["cells"]]
