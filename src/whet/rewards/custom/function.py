"""Your own reward: `def reward(prompt, sample) -> float`, or a function written for TRL,
unmodified.

This is the worker's side (`custom` is the side that asks). The function is as trusted as the recipe
that names it, and may never end. Whatever goes wrong in it is reported in one line that names the
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
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn, get_args

from whet.errors import RewardError, did_you_mean
from whet.types import Finish, Problem, Sample, Score, Status

SPEC_VARIABLE = "WHET_REWARD"  # holds a worker's function and its options: [spec, options] as JSON
_CURE = (
    "write def reward(prompt, sample) -> float, "
    "or TRL's def reward(completions, **columns) -> list[float]"
)
_PASSED = ("prompt", "sample", "prompts", "completions", "completion_ids", "self")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class BareText:
    """A sample of which only the text is known, as when a reward is tried on a file of answers."""

    text: str
    finish: Finish = "stop"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"sample.{name} is not known here: there is only the text")


class Failed(RewardError):
    """The function itself failed on an answer, which says nothing of any other answer."""


class UserFunction:
    """A user's function as a reward, called in this process.

    `(prompt, sample)`: called for each response with the Problem (.messages .question .answer .meta
    .id) and the Sample (.text .tokens .length .finish); returns a number or a Score. With a
    parameter `completions`: called once a batch with keywords as TRL does (prompts, completions,
    completion_ids, answer, question and the problems' meta as columns); returns a number for each,
    None counting as 0. `completions = "text" | "messages"` is their form; default: messages where
    the function's code holds the constant "content". Other options are passed on as keywords.

    Raises RewardError where the function cannot be imported or called so, or takes no such option.
    """

    def __init__(self, spec: str, options: Mapping[str, Any]) -> None:
        self.spec, self.options = spec, dict(options)
        self.function = _function(spec)
        try:
            parameters = inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            raise RewardError(f"reward {spec}: its parameters cannot be read; {_CURE}") from None
        if inspect.iscoroutinefunction(self.function):
            raise RewardError(f"reward {spec}: is async; {_CURE}")
        self.batched = "completions" in parameters
        self.messages = self.batched and self._form() == "messages"
        self.open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.names = [p.name for p in parameters.values() if p.kind in _NAMED]
        self.required = [
            name
            for name in self.names
            if parameters[name].default is inspect.Parameter.empty and name not in self.options
        ]
        if not self.open:
            taken = set(self.names if self.batched else self.names[2:]).difference(_PASSED)
            for option in self.options:
                if option not in taken:
                    hint = did_you_mean(option, taken) if taken else "; it takes none"
                    raise RewardError(f"reward {spec}: unknown option {option!r}{hint}")
        if not self.batched:
            self._check_pair(parameters)

    def _form(self) -> str:
        """The form of the completions, which is no option of the function's own."""
        default = "messages" if _mentions(self.function, "content") else "text"
        form = self.options.pop("completions", default)
        if form not in ("text", "messages"):
            raise RewardError(
                f"reward {self.spec}: completions = {form!r} must be 'text' or 'messages'"
            )
        return form

    def _check_pair(self, parameters: Mapping[str, inspect.Parameter]) -> None:
        """Raises RewardError where the function cannot be called with (prompt, sample)."""
        positional = [
            p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        unfilled = [
            p
            for p in parameters.values()
            if p.name in self.required and (p.kind is p.KEYWORD_ONLY or p in positional[2:])
        ]
        if len(positional) < 2 or unfilled:
            raise RewardError(f"reward {self.spec}: takes ({', '.join(parameters)}); {_CURE}")

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N responses -> N scores. Raises Failed where the function fails or returns
        no number.
        """
        if self.batched:
            return self._score_batch(problems, texts, samples)
        scores = []
        for problem, sample in zip(problems, samples or map(BareText, texts), strict=True):
            where = f"problem {problem.id!r}"
            value = self._call(where, problem, sample, **self.options)
            check = self._checked if isinstance(value, Score) else self._number
            scores.append(check(value, where))
        return scores

    def _checked(self, score: Score, where: str) -> Score:
        """A Score of the user's making, with nothing in it but what a Score may hold."""
        fault = ""
        if score.status not in get_args(Status) or not isinstance(score.reason, str):
            fault = f"of status {score.status!r:.40}"
        elif not isinstance(score.parts, Mapping) or not all(
            isinstance(name, str) for name in score.parts
        ):
            fault = f"whose parts are {score.parts!r:.40}"
        if fault:
            raise Failed(f"reward {self.spec}: returned a Score {fault} for {where}")
        parts = {name: self._number(part, where).value for name, part in score.parts.items()}
        return Score(self._number(score.value, where).value, score.status, parts, score.reason)

    def _score_batch(
        self, problems: Sequence[Problem], texts: Sequence[str], samples: Sequence[Sample] | None
    ) -> list[Score]:
        columns = self._columns(problems, texts, samples)
        missing = next((name for name in self.required if name not in columns), None)
        if missing is not None:
            raise RewardError(
                f"reward {self.spec}: wants a column {missing!r}, which the problems lack"
                f"{did_you_mean(missing, columns)}"
            )
        passed = {
            name: column for name, column in columns.items() if self.open or name in self.names
        }
        values = self._call("a batch", **{**passed, **self.options})
        if not isinstance(values, Sequence) and hasattr(values, "tolist"):
            values = values.tolist()
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(texts):
            listed = isinstance(values, list | tuple)
            got = f"{len(values)} values" if listed else type(values).__name__
            raise Failed(
                f"reward {self.spec}: returned {got} for {len(texts)} responses; "
                "it must return a number for each"
            )
        return [
            self._number(0.0 if value is None else value, f"problem {problem.id!r}")
            for problem, value in zip(problems, values, strict=True)
        ]

    def _columns(
        self, problems: Sequence[Problem], texts: Sequence[str], samples: Sequence[Sample] | None
    ) -> dict[str, list[Any]]:
        """TRL's keywords, each with a list of N values."""
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
        except MemoryError:  # the worker answers with it, and ends
            raise
        except (Exception, SystemExit) as error:  # the user's code: any error is the user's to read
            cure = ""
            misread = isinstance(error, TypeError | AttributeError | KeyError)
            if misread and self.batched and not self.messages:
                cure = '; if it expects lists of messages, set completions = "messages"'
            raise Failed(
                f"reward {self.spec}: {_one_line(error, self.function)}, at {where}{cure}"
            ) from error

    def _number(self, value: Any, where: str) -> Score:
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()  # a number of numpy's or torch's
        number, kind = math.nan, "number"
        if isinstance(value, Real):
            kind = "finite number"
            with suppress(OverflowError, ValueError):
                number = float(value)
        if not math.isfinite(number):
            raise Failed(
                f"reward {self.spec}: returned {value!r:.60} for {where}; it must return a {kind}"
            )
        return Score(number)


def _function(spec: str) -> Callable[..., Any]:
    source, _, name = spec.rpartition(":")
    module = _from_file(spec, Path(source)) if source.endswith(".py") else _from_name(spec, source)
    function = getattr(module, name, None)
    if function is None:
        known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        hint = did_you_mean(name, known) if known else ""
        raise RewardError(f"reward {spec}: {source} has no function {name!r}{hint}")
    if not callable(function):
        raise RewardError(
            f"reward {spec}: {name} is a {type(function).__name__}, not a function; {_CURE}"
        )
    return function


def _from_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        files = [p.name for p in path.parent.glob("*.py")] or ["(no .py file in that folder)"]
        raise RewardError(f"reward {spec}: there is no file {path}{did_you_mean(path.name, files)}")
    path = path.resolve()
    _reach(path.parent)
    name = f"whet_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    source = importlib.util.spec_from_file_location(name, path)
    assert source is not None and source.loader is not None
    module = importlib.util.module_from_spec(source)
    # before it runs, as the import system does: dataclasses look themselves up
    sys.modules[name] = module
    try:
        source.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code
        del sys.modules[name]
        fault = _one_line(error, str(path))
        raise RewardError(f"reward {spec}: importing {path.name} failed: {fault}") from error
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
            fault = _one_line(error, None)
            raise RewardError(f"reward {spec}: importing {name} failed: {fault}") from error
        here = [m.name for m in pkgutil.iter_modules([str(Path.cwd())])]
        near = did_you_mean(error.name, here) if here else ""
        raise RewardError(
            f"reward {spec}: there is no module {error.name!r} here or installed{near}"
        ) from None
    except (Exception, SystemExit) as error:  # the user's code
        fault = _one_line(error, None)
        raise RewardError(f"reward {spec}: importing {name} failed: {fault}") from error


def _reach(folder: Path) -> None:
    """Let imports search the folder, after everything else."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _one_line(error: BaseException, owner: Callable[..., Any] | str | None) -> str:
    """The error in one line, with the file and line of the user's code that raised it.

    `owner` is the user's function, or the path of the user's file.
    """
    message = " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(":").rstrip()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{message.partition(' (')[0]} ({Path(error.filename).name}:{error.lineno})"
    code = getattr(owner, "__code__", None)
    own = owner if isinstance(owner, str) else getattr(code, "co_filename", None)
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
    call = getattr(type(function).__call__, "__code__", None)
    codes = [code for code in (getattr(function, "__code__", call),) if code is not None]
    while codes:
        constants = codes.pop().co_consts
        if word in constants:
            return True
        codes += [constant for constant in constants if isinstance(constant, CodeType)]
    return False
