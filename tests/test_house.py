"""The rules of the house, read off the source with ast: floors, sizes, what may not be written,
what importing costs.
"""

import ast
import os
import re
import resource
import statistics
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "whet"

# Lowest first. A module, or a package with all that is in it, imports only from floors below its
# own.
FLOORS = (
    "errors",
    "types options format",
    "kernels algorithms",
    "config",
    "chat sandbox",
    "storage data",
    "model",
    "engines rewards training",
    "tasks rollout",
    "evaluation",
    "stages",
    "pipeline report bench",
    "preflight",
    "cli",
)
FLOOR = {name: i for i, row in enumerate(FLOORS) for name in row.split()}
STRANGERS = {"stages"}  # packages whose files may not even import one another

# Handlers that catch everything, each around code that is not ours: {file: how many}.
FOREIGN = {
    "sandbox/worker_main.py": 2,  # a worker runs what it was sent; the item fails, not the worker
    "sandbox/guest_main.py": 3,  # inside the sandbox: whatever the candidate raises is one more outcome
    "sandbox/guest_tests.py": 2,  # the same
    # the user's reward function: whatever it raises is the user's to read
    "rewards/custom/function.py": 3,
    "chat/tokenizer.py": 2,  # tokenizers raises bare Exception: a file it cannot read, text it revises
}
UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
}
HEAVY = {
    "torch",
    "transformers",
    "reasoning_gym",
    "math_verify",
    "sympy",
    "pyarrow",
    "huggingface_hub",
}
MAX_LINES, MAX_FUNCTION, MAX_ARGUMENTS, MAX_SECONDS = 400, 60, 6, 0.5
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(path: Path) -> ast.Module:
    with tokenize.open(path) as file:
        return ast.parse(file.read(), str(path))


def files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def breaches(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def imports(tree: ast.Module, source: Path = SOURCE) -> Iterator[tuple[int, str]]:
    """(line, "a.b") for every `whet.a.b` that is imported, at whatever depth, or named in a string
    to be imported.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: import whet.… by its full name"
            module = node.module or ""
            if module == "whet":
                yield from ((node.lineno, a.name) for a in node.names)
            elif module.startswith("whet."):
                yield from ((node.lineno, f"{module[5:]}.{a.name}") for a in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name[5:]) for a in node.names if a.name.startswith("whet."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"whet\.([a-z_]+(?:\.[a-z_]+)*)\.?(?::\w+)?", node.value)
            if named and (
                (source / named[1].split(".")[0]).is_dir() or (source / f"{named[1]}.py").is_file()
            ):
                yield node.lineno, named[1]


def misplaced(source: Path) -> list[str]:
    """What breaks the floors of a source tree, one line each."""
    found: list[str] = []
    for path in files(source):
        parts = path.relative_to(source).with_suffix("").parts
        own = parts[0]
        if own == "__init__":
            floor = FLOOR["types"] + 1  # `import whet` offers the words and nothing else
        elif own in FLOOR:
            floor = FLOOR[own]
        else:
            found.append(
                f"{path.relative_to(source)}: not placed yet; give {own!r} its floor in tests/test_house.py"
            )
            continue
        for line, target in imports(parsed(path), source):
            head = target.split(".")[0]
            same = head == own and (
                own not in STRANGERS or target.split(".")[1:2] == list(parts[1:2])
            )
            if head not in FLOOR:
                found.append(
                    f"{path.relative_to(source)}:{line}: imports whet.{head}, which has no floor"
                )
            elif not same and FLOOR[head] >= floor:
                found.append(
                    f"{path.relative_to(source)}:{line}: imports whet.{target}, which is not on a lower floor"
                )
    return found


def test_a_file_imports_only_from_lower_floors():
    breaches(misplaced(SOURCE))


def test_every_floor_is_lived_on():
    there = {p.stem if p.is_file() else p.name for p in SOURCE.iterdir()}
    breaches([f"{name} has a floor but no file" for name in FLOOR if name not in there])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("types.py", "from whet import errors\nfrom whet.errors import WhetError", ""),
        ("types.py", "from whet.config import Recipe", "not on a lower floor"),
        ("config/load.py", "from whet import chat", "not on a lower floor"),
        ("rewards/math.py", "def late():\n    import whet.tasks.chain", "not on a lower floor"),
        ("rewards/math.py", "from whet.rewards.math.numbers import Number\nfrom whet.sandbox.pool import Pool", ""),
        ("stages/rl.py", "from whet.stages.sft import run", "not on a lower floor"),
        ("stages/rl.py", "from whet.stages import sft", "not on a lower floor"),
        ("rewards/registry.py", "ENTRY = 'whet.tasks.chain:Chain'", "not on a lower floor"),
        ("model/pretrained.py", "import_module(f'whet.stages.{kind}')", "not on a lower floor"),
        ("novel.py", "", "not placed yet"),
        ("types.py", "from whet.novel import x", "has no floor"),
        ("__init__.py", "from whet.config import Recipe", "not on a lower floor"),
    ],
)  # fmt: skip
def test_the_floors_test_can_fail(tmp_path: Path, name: str, text: str, says: str):
    for folder in ("rewards", "stages", "tasks", "model", "config"):
        (tmp_path / folder).mkdir()
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = misplaced(tmp_path)
    assert (len(found), says in "".join(found)) == (1 if says else 0, True)


def test_files_are_short():
    sizes = {
        p: len(p.read_text(encoding="utf-8").splitlines())
        for p in files(ROOT / "src", ROOT / "tests")
    }
    breaches(
        [
            f"{p.relative_to(ROOT)}: {n} lines, at most {MAX_LINES}"
            for p, n in sizes.items()
            if n > MAX_LINES
        ]
    )


def functions(path: Path) -> Iterator[tuple[str, Function, bool]]:
    """(where, node, whether it is a method that is handed self or cls) for every function of a
    file.
    """
    tree = parsed(path)
    methods = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for child in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, Function):
            static = any(
                isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
            )
            yield (
                f"{path.relative_to(ROOT)}:{node.lineno} {node.name}",
                node,
                id(node) in methods and not static,
            )


def test_functions_are_short():
    found: list[str] = []
    for path in files(ROOT / "src", ROOT / "tests"):
        for where, node, _ in functions(path):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(f"{where}: {length} lines, at most {MAX_FUNCTION}")
    breaches(found)


def test_functions_take_few_arguments():
    found: list[str] = []
    for path in files(SOURCE):
        for where, node, method in functions(path):
            a = node.args
            count = len([*a.posonlyargs, *a.args, *a.kwonlyargs]) - method
            if count > MAX_ARGUMENTS:
                found.append(f"{where}: {count} arguments, at most {MAX_ARGUMENTS}")
    breaches(found)


def catches_all(node: ast.ExceptHandler) -> bool:
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(
        k is None or (isinstance(k, ast.Name) and k.id in ("Exception", "BaseException"))
        for k in kinds
    )


def test_nothing_catches_everything_around_our_own_code():
    found = Counter(
        p.relative_to(SOURCE).as_posix()
        for p in files(SOURCE)
        for node in ast.walk(parsed(p))
        if isinstance(node, ast.ExceptHandler) and catches_all(node)
    )
    assert dict(found) == FOREIGN


def unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) for pickle, torch.load, eval, exec and remote code, however they are spelt."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, a.name) for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES
            )
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{a.name}" for a in node.names}
            yield from (
                (node.lineno, n)
                for n in names
                if n.split(".")[0] in UNSAFE_MODULES or n == "torch.load"
            )
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "torch.load",
            "builtins.eval",
            "builtins.exec",
        ):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec", "NotImplementedError"):
            yield node.lineno, node.id
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield node.value.lineno, f"{node.arg} that is not False"
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                named = isinstance(key, ast.Constant) and key.value in (
                    "trust_remote_code",
                    "allow_pickle",
                )
                if named and not (isinstance(value, ast.Constant) and value.value is False):
                    yield value.lineno, f"{ast.unparse(key)} that is not False"


def test_nothing_evaluates_text_or_loads_pickles():
    guest = SOURCE / "sandbox/guest_tests.py"  # runs the candidate's program, inside the isolation
    found = [(p, line, what) for p in files(SOURCE) for line, what in unsafe(parsed(p))]
    breaches(
        [
            f"{p.relative_to(ROOT)}:{line}: {what}"
            for p, line, what in found
            if (p, what) != (guest, "exec")
        ]
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("import pickle", 1), ("from joblib import load", 1), ("import torch\ntorch.load('x')", 1),
        ("from torch import load", 1), ("eval('1')", 1), ("run = exec", 1), ("f(trust_remote_code=True)", 1),
        ("f(trust_remote_code=flag)", 1), ("f(**{'trust_remote_code': True})", 1), ("np.load(p, allow_pickle=True)", 1),
        ("raise NotImplementedError", 1), ("model.eval()", 0), ("f(trust_remote_code=False)", 0), ("json.load(f)", 0),
    ],
)  # fmt: skip
def test_the_safety_test_can_fail(text: str, count: int):
    assert len(list(unsafe(ast.parse(text)))) == count


def test_nothing_is_left_for_later():
    words = re.compile(r"\b(TODO|FIXME|XXX)\b|doctest: *\+SKIP")
    lines = (
        (p, i, line)
        for p in files(SOURCE)
        for i, line in enumerate(p.read_text("utf-8").splitlines(), 1)
    )
    breaches(
        [f"{p.relative_to(ROOT)}:{i}: {line.strip()}" for p, i, line in lines if words.search(line)]
    )


HELP = "import contextlib, io\nfrom whet.cli.main import main\nwith contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:\n    main(['--help'])\nassert 'run' in out.getvalue()"


@pytest.mark.parametrize(
    "code",
    ["import whet", HELP, "import whet.config.load"],
    ids=["import whet", "whet --help", "import whet.config"],
)
def test_starting_is_cheap(code: str):
    """No heavy package, and under half a second: the median of three of the processor time, which
    busy neighbours leave alone.
    """
    report = (
        f"{code}\nimport sys\nprint(*[name for name in {sorted(HEAVY)!r} if name in sys.modules])"
    )
    seconds: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        told = subprocess.run(
            [sys.executable, "-c", report],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (told.returncode, told.stdout.split(), told.stderr) == (0, [], "")
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(seconds) < MAX_SECONDS


def test_every_slow_test_is_there():
    """tests/conftest.py names them; a name that moved would make `make test-fast` slow."""
    from .conftest import SLOW

    names = {f"{p.stem}::{node.name}" for p in files(ROOT / "tests") for _, node, _ in functions(p)}
    breaches(sorted(SLOW - names - {name.partition("::")[0] for name in names}))
