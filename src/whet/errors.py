"""Errors that a user can mend. The command line prints them as one line and exits non-zero."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 2000  # characters of a message


class WhetError(Exception):
    """A mistake that a user can mend; the message names it and the cure, in one line."""


class RecipeError(WhetError):
    """A recipe, or an override of one, is not valid."""


class DataError(WhetError):
    """A data set is missing, empty, broken or lacks what the task needs."""


class ModelError(WhetError):
    """A model is missing, half-written, of an unknown kind, or disagrees with its tokenizer."""


class RewardError(WhetError):
    """A reward cannot be loaded, or failed so often that its scores would mislead."""


class GateError(WhetError):
    """A stage ended without reaching its gate."""


class Stopped(WhetError):
    """The run was asked to stop, and has kept what it needs to go on."""


def one_line(error: BaseException | str) -> str:
    """An error's message as one line of bounded length that a terminal can show.

    Characters that cannot be printed are escaped.

    >>> one_line("a\\n\\x1b[31mb")
    'a \\\\x1b[31mb'
    """
    words = " ".join(str(error).split())
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in words
    )
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suffix that names the nearest known word, or lists all of them.

    >>> did_you_mean("cliphigh", ["clip_low", "clip_high"])
    "; did you mean 'clip_high'?"
    >>> did_you_mean("zzz", ["a", "b"])
    '; known: a, b'
    """
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
