"""`whet`: parses a command line and runs its command.

A mistake that a user can mend is one line and exit code 2; `--debug` shows the traceback.
"""

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

from whet.errors import Stopped, WhetError, one_line

COMMANDS = {  # each in the file of its name, which has `add_arguments` and `call`
    "run": "Run a recipe's stages into runs/NAME/.",
    "eval": "Measure a model on a task's test problems.",
    "show": "Print a recipe as it resolves, every key filled in.",
    "check": "Look for what would make a recipe fail, before it runs.",
    "recipes": "List the recipes that whet brings.",
    "tasks": "List the tasks, or the options of one.",
    "reward": "Try a reward, or list them.",
    "algorithms": "Print the table of algorithms.",
    "schema": "Print the JSON schema of recipes, for editors.",
    "report": "Write a run's report.html again.",
    "bench": "Time whet beside TRL, transformers and the machine's limit, on the same work.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = parsed(argv)
    try:
        return arguments.call(arguments) or 0
    except Stopped as message:
        print(f"whet: {message}", file=sys.stderr)
        return 130
    except WhetError as error:
        if arguments.debug:
            raise
        print(f"whet: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except OSError as error:
        if arguments.debug:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "; make room, and go on with --resume" if full else ""
        where = f"{error.filename}: " if error.filename else ""
        print(f"whet: {one_line(f'{where}{error.strerror or error}{cure}')}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if arguments.debug or not _out_of_memory(error):
            raise
        cure = "use a smaller model, batch or micro_tokens, or fewer prompts and samples at once"
        print(f"whet: {one_line(f'out of memory ({error}); {cure}')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("whet: interrupted", file=sys.stderr)
        return 130


def _out_of_memory(error: Exception) -> bool:
    """Told by name and text: torch has no class for a CPU's memory, and importing it takes long."""
    return (
        isinstance(error, MemoryError)
        or "allocate memory" in str(error)
        or type(error).__name__ == "OutOfMemoryError"
    )


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; argparse gives up on key=value words after an option, so they are added."""
    words = list(sys.argv[1:] if argv is None else argv)
    root = parser(words[0] if words else "")
    arguments, left = root.parse_known_args(words)
    pairs = [word for word in left if "=" in word and not word.startswith("-")]
    unknown = [word for word in left if word not in pairs]
    if unknown or (pairs and not hasattr(arguments, "pairs")):
        root.error(f"unrecognized arguments: {' '.join(unknown) or pairs[0]}")
    if pairs:
        arguments.pairs = [*arguments.pairs, *pairs]
    return arguments


def parser(command: str) -> argparse.ArgumentParser:
    """The parser of all commands, which knows the arguments of one: only its file is imported."""
    root = argparse.ArgumentParser(
        prog="whet",
        description="Sharpens a language model's reasoning with reinforcement learning.",
    )
    root.add_argument("--version", action="version", version=f"whet {metadata.version('whet')}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in COMMANDS.items():
        added = commands.add_parser(name, help=about, description=about)
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == command:
            module = import_module(f"whet.cli.{name}")
            module.add_arguments(added)
            added.set_defaults(call=module.call)
    return root


if __name__ == "__main__":
    sys.exit(main())
