"""A checkpoint that is not, to the bit, what was written is noticed; and a run whose files have
changed does not go on.
"""

import json
import random
import shutil
from pathlib import Path

import pytest

import whet
from whet import config
from whet.config.load import load_recipe
from whet.errors import RecipeError, Stopped
from whet.pipeline import pipeline, resume
from whet.storage import provenance
from whet.storage.checkpoint import DATA, MANIFEST, TENSORS, Checkpoints, Counted, read
from whet.training.learner import Learner

from .helpers.tiny_world import world
from .test_resume import Until

NAMES = (TENSORS, DATA, MANIFEST)
KINDS = ("flip", "cut", "grow", "empty", "missing", "swapped", "other step", "edited")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints of two steps of one stage."""
    folder = tmp_path_factory.mktemp("two")
    saves = Checkpoints(folder / "checkpoints")
    model, _ = world(folder)
    learner, pairs = Learner(model, config.Optimizer(), 3), Counted(iter(range(9)))
    for step in (7, 8):
        next(pairs)
        model.embed.weight.data.add_(0.1)
        saves.write(step, {"policy": learner, "pairs": pairs})
    return [
        {name: (saves.folder / f"{step:08d}" / name).read_bytes() for name in NAMES}
        for step in (7, 8)
    ]


def broken(kind, files, other, rng):
    """The files of a checkpoint after one thing has happened to one of them, or to two."""
    made, name = dict(files), rng.choice(NAMES)
    whole = files[name]
    at = rng.randrange(len(whole))
    if kind == "flip":
        made[name] = whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
    elif kind == "cut":
        made[name] = whole[:at]
    elif kind == "grow":
        made[name] = whole[:at] + rng.randbytes(rng.randrange(1, 9)) + whole[at:]
    elif kind == "empty":
        made[name] = b""
    elif kind == "missing":
        del made[name]
    elif kind == "swapped":
        second = rng.choice([n for n in NAMES if n != name])
        made[name], made[second] = files[second], whole
    elif kind == "other step":
        made[name] = other[name]
    else:
        manifest = json.loads(files[MANIFEST])
        manifest[rng.choice(["step", "sha256", "more"])] = rng.choice(
            [8, {}, None, [1], {TENSORS: "0" * 64, DATA: "0" * 64}]
        )
        made[MANIFEST] = json.dumps(manifest, sort_keys=True).encode()
    return made


def test_a_thousand_corruptions_are_noticed(two, tmp_path):
    rng, tried = random.Random(11), dict.fromkeys(KINDS, 0)
    place = tmp_path / "00000007"
    for i in range(1000):
        kind = KINDS[i % len(KINDS)]
        made = broken(kind, two[0], two[1], rng)
        assert made != two[0]
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, data in made.items():
            (place / name).write_bytes(data)
        with pytest.raises((ValueError, OSError)):
            read(place, 7)
        tried[kind] += 1
    assert min(tried.values()) == 125
    for name, data in two[0].items():
        (place / name).write_bytes(data)
    assert read(place, 7)[1]["pairs"] == 1
    place.rename(tmp_path / "00000008")
    with pytest.raises(ValueError, match="not as it was written"):
        read(tmp_path / "00000008", 8)


RECIPE = """
name = "filed"
save = { every = 2, last = 2 }
evaluation = { problems = 4, max_tokens = 8 }
task = { name = "files", path = "PATH", response = "response", test_share = 0.25 }
[model.shape]
hidden = 16
layers = 1
heads = 2
kv_heads = 2
ffn = 32
[[stage]]
name = "base"
kind = "sft"
steps = 6
batch = 4
"""


@pytest.fixture
def filed(tmp_path):
    rows = [
        {"question": f"{i}+{i}=", "answer": str(2 * i), "response": f"<think></think>{2 * i}"}
        for i in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("PATH", str(path)))
    return path, load_recipe(tmp_path / "recipe.toml")


def stopped(recipe, folder):
    until = Until(pipeline.Event(), "base", 3)
    with pytest.raises(Stopped):
        pipeline.run(recipe, folder, until, until.stop)


def test_data_that_has_changed_is_named_and_the_run_does_not_go_on(filed, tmp_path):
    path, recipe = filed
    folder = tmp_path / "run"
    stopped(recipe, folder)
    rows = path.read_text()
    path.write_text(rows.replace("39+39=", "39 + 39="))
    for _ in range(2):  # being refused changes nothing
        with pytest.raises(RecipeError, match=r"rows\.jsonl changed since it began"):
            resume.resume(recipe, folder)
    path.write_text(rows)
    resume.resume(recipe, folder)
    assert json.loads((folder / "summary.json").read_text())["stages"]


def test_code_that_has_changed_is_told(filed, tmp_path):
    folder = tmp_path / "run"
    stopped(filed[1], folder)
    origin = json.loads((folder / provenance.FILE).read_text())
    checkpoint = json.loads((folder / "base" / "checkpoints" / "00000003" / DATA).read_text())
    assert (
        checkpoint["origin"] == origin
        and set(origin) == {"recipe", "code", "files"}
        and len(origin["files"]) == 1
    )
    (folder / provenance.FILE).write_text(json.dumps({**origin, "code": "0" * 64}))
    resume.resume(filed[1], folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert any("whet's code has changed" in w["text"] for w in summary["warnings"])


def test_a_run_that_does_not_say_what_it_was_made_of_is_refused(filed, tmp_path):
    folder = tmp_path / "run"
    stopped(filed[1], folder)
    (folder / provenance.FILE).write_text("{")
    with pytest.raises(RecipeError, match="missing or damaged"):
        resume.resume(filed[1], folder)


def test_the_file_of_a_reward_of_one_s_own_counts(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("def score(completions): return [0.0] * len(completions)\n")
    recipe = load_recipe(write(tmp_path, f'reward = [{{ name = "{own}:score" }}]\n'))
    before = provenance.origin(recipe)
    assert list(before["files"]) == [str(own)]
    own.write_text("def score(completions): return [1.0] * len(completions)\n")
    assert provenance.changed(before, provenance.origin(recipe)) == [str(own)]
    own.unlink()
    assert provenance.changed(before, provenance.origin(recipe)) == [str(own)]


def test_every_file_of_the_code_counts(tmp_path):
    """The hash covers the whole package, from the errors to the kernels in C."""
    assert Path(whet.__file__).parent == provenance.PACKAGE
    package = tmp_path / "whet"
    shutil.copytree(provenance.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    whole = provenance.code(package)
    assert whole == provenance.origin(load_recipe(write(tmp_path, "")))["code"]
    paths = [p for p in package.rglob("*") if p.suffix in (".py", ".c", ".h")]
    assert {package / "errors.py", *package.glob("kernels/*.c")} < set(paths)
    for path in {(p.parent, p.suffix): p for p in paths}.values():  # one of each folder
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert provenance.code(package) != whole, path
        path.write_bytes(content)


def write(folder, line):
    path = folder / "own.toml"
    path.write_text(
        line
        + RECIPE.replace(
            'task = { name = "files", path = "PATH", response = "response", test_share = 0.25 }',
            'task = { name = "chain" }',
        )
    )
    return path
