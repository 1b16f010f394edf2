"""Writes the generated parts of the reference: `python docs/generate.py` (`--check` only compares).

A page marks such a part with `<!-- generated: NAME -->` and `<!-- end -->`. Its text comes from the
models, docstrings and tables of whet, so that code and reference cannot differ.
"""

import argparse
import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from whet import config, options, tasks
from whet.algorithms import algorithm
from whet.cli.main import COMMANDS, parser
from whet.rewards import registry
from whet.rewards.combine import PartOptions

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "whet"
MARK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: dict[str, type[BaseModel]] = {
    "Top level": config.Recipe,
    "[model]": config.Model,
    "[model.shape], and shape of an sft stage": config.Shape,
    "[task]": config.Task,
    "[ask]": config.Ask,
    "[[reward]] and [[stage.reward]]": config.Reward,
    "[evaluation]": config.Evaluation,
    "[save]": config.Save,
    "optimizer of a stage": config.Optimizer,
    "critic of an rl stage": config.Critic,
    "lora of a stage": config.Lora,
    "gate of an sft stage": config.Gate,
}
SHARED: dict[str, type[BaseModel]] = {
    "Every stage": config.Stage,
    "Stages that train": config.Trained,
    "Stages that leave a policy behind": config.Makes,
    "Stages that take problems": config.Asks,
    "Stages that sample": config.Draws,
}
PUBLIC = {  # the Python API: module -> names
    "whet.types": "Problem Prompt Sampling Sample Score Group Update Task",
    "whet.config.load": "load_recipe parse_recipe shipped_recipes",
    "whet.pipeline.pipeline": "run",
    "whet.tasks": "names load options",
    "whet.rewards": "load combined",
    "whet.algorithms.table": "algorithm cells",
    "whet.algorithms.algorithm": "Algorithm",
    "whet.algorithms.objective": "advantages weights loss",
    "whet.evaluation.measure": "measure",
    "whet.report": "write",
    "whet.errors": "WhetError RecipeError DataError RewardError Stopped",
}


def item(option: options.Option) -> str:
    """One key in a line: name, kind, default, meaning. A table's default stands with its keys."""
    facts = [option.kind.removesuffix(f", above {-(2**53)}")]
    if option.default is None:
        facts.append("required")
    elif part := re.match(r"\[\"Reward\(name='(\w+)'", option.default):
        facts.append(f'default `[{{ name = "{part[1]}" }}]`')
    elif option.default == "{}" or not option.default.startswith("{"):
        facts.append(f"default `{option.default}`")
    meaning = f": {plain(option.meaning.rstrip('.'))}" if option.meaning else ""
    return f"- `{option.name}` ({'; '.join(facts)}){meaning}."


def keys(model: type[BaseModel], without: Iterable[str] = ()) -> list[str]:
    """The keys of one table, without those of tables inside it, which have a list of their own."""
    own = options.options(model)
    return [item(o) for o in own if "." not in o.name and o.name not in without]


def summary(owner: object) -> str:
    """The first paragraph of a docstring, in one line."""
    own = vars(owner).get("__doc__") if isinstance(owner, type) else inspect.getdoc(owner)
    return " ".join(inspect.cleandoc(own or "").split("\n\n")[0].split())


def sentence(text: str) -> str:
    """One line of a table, with a capital and a full stop."""
    return plain(f"{text[:1].upper()}{text[1:].rstrip('.')}.")


def plain(text: str) -> str:
    return text.replace("<", "&lt;")  # a tag stays text


def recipe_tables() -> Iterator[str]:
    for title, model in TABLES.items():
        about = "" if model is config.Recipe else summary(model)
        inherited = config.Optimizer.model_fields if model is config.Critic else ()
        more = keys(PartOptions, model.model_fields) if model is config.Reward else ()
        yield "\n".join([f"## {title}\n", f"{about}\n", *keys(model, inherited), *more])


def stage_keys() -> Iterator[str]:
    """Shared keys once; then each kind with its own."""
    known: set[str] = set()
    for title, model in SHARED.items():
        yield "\n".join([f"## {title}\n", f"{summary(model)}\n", *keys(model, known)])
        known |= set(model.model_fields)
    for model in get_args(get_args(config.AnyStage)[0]):
        kind = get_args(model.model_fields["kind"].annotation)[0]
        bases = [b for b in SHARED.values() if b is not config.Stage and issubclass(model, b)]
        titles = [title.lower() for title, base in SHARED.items() if base in bases]
        shared = ["every stage", *(f"[{t}](#{t.replace(' ', '-')})" for t in titles)]
        own = keys(model, {"name", "kind", "start", *(k for b in bases for k in b.model_fields)})
        also = f"Shared keys: those of {', '.join(shared)}.\n"
        yield "\n".join([f"## {kind}\n", f"{summary(model)}\n", also, *own])


def task_options() -> Iterator[str]:
    """Every task with its own options; `budget`, which all take, comes last."""
    for name, about in tasks.names():
        own = [o for o in tasks.options(name) if o.name.split(".")[0] != "budget"]
        lines = ["The options of files, but for `path`."] if name.startswith("hf:") else []
        yield "\n".join([f"### {name}\n", f"{sentence(about)}\n", *(lines or map(item, own))])
    budget = (item(o) for o in tasks.options("chain") if o.name.startswith("budget."))
    yield "\n".join(["### budget\n\nEvery task takes this table: it asks for a length.\n", *budget])


def reward_options() -> Iterator[str]:
    """Every reward with its options."""
    own = "module:function", "a function of your own; every other option is a keyword of it"
    for name, about in [*registry.names().items(), own]:
        lines = list(map(item, registry.options(name))) or ["It takes no option."]
        yield "\n".join([f"### {name}\n", f"{sentence(about)}\n", *lines])


def algorithm_cells() -> Iterator[str]:
    own = options.options(algorithm.Algorithm)
    yield "\n".join(item(o) for o in own if o.name not in ("name", "source"))


def commands() -> Iterator[str]:
    """Every command with its arguments, off argparse's own parsers."""

    def inner(command: argparse.ArgumentParser) -> list[Any]:
        return [a for a in command._actions if isinstance(a, argparse._SubParsersAction)]

    def walk(command: argparse.ArgumentParser, name: str, about: str) -> Iterator[str]:
        for action in inner(command):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for word, sub in action.choices.items():
                yield from walk(sub, f"{name} {word}", helps.get(word) or "")
        if not inner(command):
            lines = (argument(a) for a in command._actions if a.dest not in ("help", "debug"))
            yield "\n".join([f"## {name}\n", f"{sentence(about)}\n", *lines])

    for name, about in COMMANDS.items():
        yield from walk(inner(parser(name))[0].choices[name], f"whet {name}", about)


def argument(action: argparse.Action) -> str:
    """One argument in a line: an option with what it takes, or a word."""
    word = str(action.metavar or action.dest)
    name, facts = f"{word} …" if action.nargs == "*" else word, ""
    if action.option_strings:
        takes = "|".join(map(str, action.choices or [])) or action.metavar or word.upper()
        name = " ".join([action.option_strings[0], *([] if action.nargs == 0 else [takes])])
        unset = any(action.default is none for none in (None, False, argparse.SUPPRESS))
        facts = (
            " (required)" if action.required else "" if unset else f" (default `{action.default}`)"
        )
    text = re.sub(r" ?\(default:? [^)]*\)", "", action.help or "")
    return f"- `{name}`{facts}{f': {text}' if text else ''}."


def public() -> Iterator[str]:
    """Signature and first paragraph of everything in PUBLIC."""
    for path, names in PUBLIC.items():
        module = importlib.import_module(path)
        parts = [f"## {path}\n\n{plain(summary(module))}"]
        for name in names.split():
            owner = getattr(module, name)
            head = signature(ast.parse(inspect.getsource(owner)).body[0])
            parts.append(f"### {name}\n\n```python\n{head}\n```\n\n{plain(summary(owner))}")
        yield "\n\n".join(parts)


def signature(node: Any) -> str:
    """A function's head, or a class's with its fields and the heads of its public methods."""
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"def {node.name}({ast.unparse(node.args)}){returns}"
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    lines = [f"class {node.name}{bases}"]
    for inner in node.body:
        if isinstance(inner, ast.AnnAssign) and not ast.unparse(inner.target).startswith("_"):
            lines.append(f"    {ast.unparse(inner.target)}: {ast.unparse(inner.annotation)}")
        elif isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
            field = any(ast.unparse(d) == "property" for d in inner.decorator_list)
            returns = ast.unparse(inner.returns) if inner.returns else ""
            lines.append(f"    {f'{inner.name}: {returns}' if field else signature(inner)}")
    return "\n".join(lines)


def floors() -> list[list[str]]:
    """FLOORS of tests/test_house.py, lowest first."""
    tree = ast.parse((ROOT / "tests" / "test_house.py").read_text(encoding="utf-8"))
    assigned = (node for node in tree.body if isinstance(node, ast.Assign))
    value = next(n.value for n in assigned if ast.unparse(n.targets[0]) == "FLOORS")
    return [row.split() for row in ast.literal_eval(value)]


def floor_list() -> Iterator[str]:
    """Every floor, highest first, with the purpose in each docstring."""
    for number, row in reversed(list(enumerate(floors(), 1))):
        for name in row:
            path = SOURCE / f"{name}.py"
            path = path if path.is_file() else SOURCE / name / "__init__.py"
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            text = " ".join(doc.split("\n\n")[0].split())
            yield f"- **{number}** `{name}`{f': {text}' if text else ''}"


def picture() -> str:
    """The floors as an SVG: a row a floor, the lowest at the bottom."""
    rows, width, high = floors(), 760, 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {len(rows) * high + 20}" '
        'font-family="sans-serif" font-size="14" role="img" '
        'aria-label="The floors of whet: a file imports only from lower floors">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number, row in enumerate(rows):
        y, room = 10 + (len(rows) - 1 - number) * high, (width - 60) / len(row)
        parts.append(f'<text x="20" y="{y + 24}" fill="#666">{number + 1}</text>')
        for place, name in enumerate(row):
            x = 50 + place * room
            parts.append(
                f'<rect x="{x:.0f}" y="{y + 3}" width="{room - 8:.0f}" height="{high - 6}" rx="6" '
                f'fill="#e8eefc" stroke="#5870b0"/><text x="{x + room / 2 - 4:.0f}" y="{y + 25}" '
                f'text-anchor="middle" fill="#1c2a52">{name}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "recipe": recipe_tables,
    "stages": stage_keys,
    "tasks": task_options,
    "rewards": reward_options,
    "cells": algorithm_cells,
    "commands": commands,
    "python": public,
    "floors": lambda: iter(["\n".join(floor_list())]),
}


def pages() -> dict[Path, str]:
    """Every page with a generated part, and the picture: path -> text as it should be."""

    def fresh(match: re.Match[str]) -> str:
        text = re.sub(r"\n{3,}", "\n\n", "\n\n".join(PARTS[match[2]]()))
        return f"{match[1]}\n{text}\n\n{match[3]}"

    generated = {DOCS / "images" / "floors.svg": picture()}
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if MARK.search(text):
            generated[path] = MARK.sub(fresh, text)
    return generated


def stale() -> list[Path]:
    """The generated files that are not what the code says now."""
    fresh = pages().items()
    return [p for p, text in fresh if not p.exists() or p.read_text(encoding="utf-8") != text]


def main() -> int:
    late = stale()
    for path in late:
        print(f"stale: {path.relative_to(ROOT)}")
    if "--check" in sys.argv:
        return 1 if late else 0
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
