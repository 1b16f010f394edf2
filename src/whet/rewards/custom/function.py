"""Your own reward: `def reward(prompt, sample) -> float`, or a function written for TRL,
unmodified.

This is what a worker holds (`own` is the side that asks): the function is as trusted as the recipe
that names it, and not expected to end. Whatever goes wrong in it is said in one line that names the
function, the file and the line.
"""

import hashlib
import importlib
import importlib.util
import inspect
import math
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn, get_args

from whet.errors import RewardError, did_you_mean
from whet.rewards.registry import check_options
from whet.types import Finish, Problem, Sample, Score, Status

NAMED = "WHET_REWARD"  # the variable that tells a worker its function: [spec, options] as JSON
_CURE = "write def reward(prompt, sample) -> float, or TRL's def reward(completions, **columns) -> list[float]"
_PASSED = ("prompt", "sample", "prompts", "completions", "completion_ids", "self")


@dataclass(frozen=True, slots=True)
class BareText:
    """A sample of which only the text is known, as when a reward is tried on a file of answers."""

    text: str
    finish: Finish = "stop"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"sample.{name} is not known here: only the text was given")


class Failed(RewardError):
    """The function itself failed on an answer, which says nothing of any other answer."""


class CustomReward:
    """A user's function as a reward, called where it stands.

    `(prompt, sample)`: called for each response with the Problem (.messages .question .answer .meta
    .id) and the Sample (.text .tokens .length .finish); returns a number or a Score. With a
    parameter `completions`: called once a batch with keywords as TRL does (prompts, completions,
    completion_ids, answer, question and the problems' meta as columns); returns a number for each,
    None counting as 0. `completions = "text" | "messages"` says what it is given; left out,
    messages where it looks up "content". Other options are passed on as keywords.

    Raises RewardError where the function cannot be imported or called so, or takes no such option.
    """

    def __init__(self, spec: str, options: Mapping[str, Any]) -> None:
        self.spec = spec
        self.function = _function(spec)
        try:
            parameters = inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            raise RewardError(f"reward {spec}: its parameters cannot be read; {_CURE}") from None
        if inspect.iscoroutinefunction(self.function):
            raise RewardError(f"reward {spec}: is async; {_CURE}")
        self.batched = "completions" in parameters
        self.options = {
            key: value
            for key, value in options.items()
            if not (self.batched and key == "completions")
        }
        self.open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.names = [
            p.name
            for p in parameters.values()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        self.required = [
            name
            for name in self.names
            if parameters[name].default is inspect.Parameter.empty and name not in self.options
        ]
        if not self.open:
            taken = self.names if self.batched else self.names[2:]
            check_options(
                f"reward {spec}",
                self.options,
                {name: None for name in taken if name not in _PASSED},
            )
        if not self.batched:
            self._check_pair(parameters)
        form = options.get(
            "completions",
            "messages" if self.batched and _mentions(self.function, "content") else "text",
        )
        if self.batched and form not in ("text", "messages"):
            raise RewardError(f"reward {spec}: completions = {form!r} must be 'text' or 'messages'")
        self.messages = form == "messages"

    def _check_pair(self, parameters: Mapping[str, inspect.Parameter]) -> None:
        positional = [
            p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        needed = [p for p in positional[2:] if p.name in self.required]
        keywords = [
            p for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name in self.required
        ]
        if len(positional) < 2 or needed or keywords:
            raise RewardError(f"reward {self.spec}: takes ({', '.join(parameters)}); {_CURE}")

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N completion texts -> N scores. Raises Failed where the function fails or
        returns no number.
        """
        if self.batched:
            return self._score_batch(problems, texts, samples)
        given: Sequence[Sample | BareText] = (
            samples if samples is not None else [BareText(text) for text in texts]
        )
        scores = []
        for problem, sample in zip(problems, given, strict=True):
            where = f"problem {problem.id!r}"
            value = self._call(where, problem, sample, **self.options)
            scores.append(
                self._whole(value, where) if isinstance(value, Score) else self._score(value, where)
            )
        return scores

    def _whole(self, given: Score, where: str) -> Score:
        """A Score of the user's making, with nothing in it but what a Score may hold."""
        if given.status not in get_args(Status) or not isinstance(given.reason, str):
            raise Failed(
                f"reward {self.spec}: returned a Score of status {given.status!r:.40} for {where}"
            )
        if not isinstance(given.parts, Mapping) or not all(
            isinstance(name, str) for name in given.parts
        ):
            raise Failed(
                f"reward {self.spec}: returned a Score whose parts are {given.parts!r:.40} for {where}"
            )
        parts = {name: self._score(part, where).value for name, part in given.parts.items()}
        return Score(self._score(given.value, where).value, given.status, parts, given.reason)

    def _score_batch(
        self, problems: Sequence[Problem], texts: Sequence[str], samples: Sequence[Sample] | None
    ) -> list[Score]:
        columns = self._columns(problems, texts, samples)
        missing = [name for name in self.required if name not in columns]
        if missing:
            suffix = did_you_mean(missing[0], columns)
            raise RewardError(
                f"reward {self.spec}: wants a column {missing[0]!r}, which the problems lack{suffix}"
            )
        passed = {
            name: column for name, column in columns.items() if self.open or name in self.names
        }
        values = self._call("a batch", **{**passed, **self.options})
        if not isinstance(values, Sequence) and hasattr(values, "tolist"):
            values = values.tolist()
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(texts):
            got = (
                f"{len(values)} values"
                if isinstance(values, list | tuple)
                else type(values).__name__
            )
            raise Failed(
                f"reward {self.spec}: returned {got} for {len(texts)} responses; it must return a number for each"
            )
        return [
            self._score(0.0 if value is None else value, f"problem {problem.id!r}")
            for problem, value in zip(problems, values, strict=True)
        ]

    def _columns(
        self, problems: Sequence[Problem], texts: Sequence[str], samples: Sequence[Sample] | None
    ) -> dict[str, list[Any]]:
        """TRL's keywords: a list of N for each."""
        columns: dict[str, list[Any]] = {
            name: [p.meta.get(name) for p in problems] for p in problems for name in p.meta
        }
        columns |= {
            "answer": [p.answer for p in problems],
            "question": [p.question for p in problems],
        }
        if self.messages:
            columns["prompts"] = [[dict(m) for m in p.messages] for p in problems]
            columns["completions"] = [[{"role": "assistant", "content": text}] for text in texts]
        else:
            columns["prompts"] = [p.question for p in problems]
            columns["completions"] = list(texts)
        if samples is not None:
            columns["completion_ids"] = [s.tokens[s.mask].tolist() for s in samples]
        return columns

    def _call(self, where: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            return self.function(*arguments, **keywords)
        except MemoryError:  # the worker's to tell: it ends with this answer
            raise
        except (
            Exception,
            SystemExit,
        ) as error:  # the user's code: whatever it raises is the user's to read
            cure = ""
            if (
                self.batched
                and not self.messages
                and isinstance(error, TypeError | AttributeError | KeyError)
            ):
                cure = '; if it expects lists of messages, set completions = "messages"'
            raise Failed(
                f"reward {self.spec}: {_told(error, self.function)}, at {where}{cure}"
            ) from error

    def _score(self, value: Any, where: str) -> Score:
        if (
            not isinstance(value, Real)
            and getattr(value, "shape", None) == ()
            and hasattr(value, "item")
        ):
            value = value.item()  # a number of numpy's or torch's
        if not isinstance(value, Real):
            raise Failed(
                f"reward {self.spec}: returned {value!r:.60} for {where}; it must return a number"
            )
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = math.inf
        if not math.isfinite(number):
            raise Failed(
                f"reward {self.spec}: returned {value!r:.60} for {where}; it must return a finite number"
            )
        return Score(number)


def _function(spec: str) -> Callable[..., Any]:
    source, _, name = spec.rpartition(":")
    module = _from_file(spec, Path(source)) if source.endswith(".py") else _from_name(spec, source)
    function = getattr(module, name, None)
    if function is None:
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and not key.startswith("_")
        ]
        raise RewardError(
            f"reward {spec}: {source} has no function {name!r}{did_you_mean(name, known) if known else ''}"
        )
    if not callable(function):
        raise RewardError(
            f"reward {spec}: {name} is a {type(function).__name__}, not a function; {_CURE}"
        )
    return function


def _from_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        near = did_you_mean(
            path.name,
            [p.name for p in path.parent.glob("*.py")] or ["(no .py file in that folder)"],
        )
        raise RewardError(f"reward {spec}: there is no file {path}{near}")
    path = path.resolve()
    _reach(path.parent)
    name = f"whet_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = (
        module  # before it runs, as the import system does: dataclasses look themselves up
    )
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code
        del sys.modules[name]
        raise RewardError(
            f"reward {spec}: importing {path.name} failed: {_told(error, str(path))}"
        ) from error
    return module


def _from_name(spec: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise RewardError(
            f"reward {spec!r} is neither module:function nor path/to/file.py:function"
        )
    _reach(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise RewardError(
                f"reward {spec}: importing {name} failed: {_told(error, None)}"
            ) from error
        here = [m.name for m in pkgutil.iter_modules([str(Path.cwd())])]
        near = did_you_mean(error.name, here) if here else ""
        raise RewardError(
            f"reward {spec}: there is no module {error.name!r} here or installed{near}"
        ) from None
    except (Exception, SystemExit) as error:  # the user's code
        raise RewardError(
            f"reward {spec}: importing {name} failed: {_told(error, None)}"
        ) from error


def _reach(folder: Path) -> None:
    """Let imports find the folder, after everything else."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _told(error: BaseException, owner: Callable[..., Any] | str | None) -> str:
    """The error in one line, with the file and line of the user's code that it came from."""
    message = " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(":").rstrip()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{message.partition(' (')[0]} ({Path(error.filename).name}:{error.lineno})"
    own = (
        owner
        if isinstance(owner, str)
        else getattr(getattr(owner, "__code__", None), "co_filename", None)
    )
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith("<") and f.filename != __file__
    ]
    if not frames:
        return message
    frame = next((f for f in reversed(frames) if f.filename == own), frames[-1])
    return f"{message} ({Path(frame.filename).name}:{frame.lineno})"


def _mentions(function: Callable[..., Any], word: str) -> bool:
    """Whether a string constant in the function's own code is `word`."""
    codes = [
        getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    ]
    while codes:
        code = codes.pop()
        if code is not None:
            if word in code.co_consts:
                return True
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return False
