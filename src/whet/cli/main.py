"""The command line. Mistakes that a user can mend are one line and exit code 2; `--debug` shows the
traceback.
"""

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from whet.errors import RecipeError, Stopped, WhetError, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = parsed(argv)
    try:
        return arguments.call(arguments) or 0
    except Stopped as told:
        print(f"whet: {told}", file=sys.stderr)
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
        cure = (
            "; make room, and go on with --resume"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ""
        )
        where = f"{error.filename}: " if error.filename else ""
        print(f"whet: {one_line(f'{where}{error.strerror or error}{cure}')}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if arguments.debug or not _out_of_memory(error):
            raise
        cure = "a smaller model, batch or micro_tokens, or fewer prompts and samples at once, need less"
        print(
            f"whet: {one_line(f'the memory does not hold this ({error}); {cure}')}", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("whet: interrupted", file=sys.stderr)
        return 130


def _out_of_memory(error: Exception) -> bool:
    """torch has no class of its own for a CPU's memory, and is not imported only to ask for the
    GPU's.
    """
    return (
        isinstance(error, MemoryError)
        or "allocate memory" in str(error)
        or type(error).__name__ == "OutOfMemoryError"
    )


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse, which gives up on key=value words that stand after an option, helped out."""
    root = parser()
    arguments, left = root.parse_known_args(argv)
    pairs = [word for word in left if "=" in word and not word.startswith("-")]
    if len(pairs) < len(left) or (pairs and not hasattr(arguments, "pairs")):
        root.error(
            f"unrecognized arguments: {' '.join(word for word in left if word not in pairs) or pairs[0]}"
        )
    if pairs:
        arguments.pairs = [*arguments.pairs, *pairs]
    return arguments


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="whet",
        description="Sharpens a language model's reasoning with reinforcement learning.",
    )
    root.add_argument("--version", action="version", version=f"whet {metadata.version('whet')}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, call: object, about: str, to: Any = commands) -> argparse.ArgumentParser:
        command = to.add_parser(name, help=about, description=about)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(call=call)
        return command

    run = add("run", run_command, "Run a recipe's stages into runs/NAME/.")
    run.add_argument("recipe", type=Path)
    run.add_argument(
        "pairs", nargs="*", metavar="key=value", help="stage.rl.steps=10; seed=1..5 runs five seeds"
    )
    run.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)"
    )
    run.add_argument(
        "--only", metavar="STAGE", help="run this stage of a finished run once more, alone"
    )
    run.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    run.add_argument("--overwrite", action="store_true", help="replace a run of the same name")

    evaluation_arguments(add("eval", eval_command, "Measure a model on a task's test problems."))

    show = add("show", show_command, "Print a recipe as it resolves, every key filled in.")
    show.add_argument("recipe", type=Path)
    show.add_argument("pairs", nargs="*", metavar="key=value")

    check = add("check", check_command, "Look for what would make a recipe fail, before it runs.")
    check.add_argument("recipe", type=Path)
    check.add_argument("pairs", nargs="*", metavar="key=value")
    check.add_argument(
        "--offline",
        action="store_true",
        help="with tiny stand-ins for the Hub's models and data sets",
    )

    reward = commands.add_parser(
        "reward", help="Try a reward, or list them.", description="Try a reward, or list them."
    )
    rewards = reward.add_subparsers(dest="action", required=True, metavar="test|list")
    test = add("test", reward_command, "Try a reward on answers whose verdict is known.", rewards)
    test.add_argument(
        "reward",
        help="a built-in, module:function, path/to/file.py:function, or RECIPE.toml for all of its parts",
    )
    test.add_argument(
        "file",
        type=Path,
        help="a row: question, answer, and right and wrong (lists), or response and correct",
    )
    test.add_argument(
        "pairs", nargs="*", metavar="key=value", help="options of the reward, or keys of the recipe"
    )
    test.add_argument("--json", action="store_true", help="print one JSON object")
    add("list", rewards_command, "List the built-in rewards.", rewards)

    report = add("report", report_command, "Write a run's report.html again.")
    report.add_argument("run", type=Path)
    bench_arguments(
        add(
            "bench",
            bench_command,
            "Time whet beside TRL and transformers on the same work, and beside the machine's limit.",
        )
    )
    add("tasks", tasks_command, "List the tasks.")
    add("algorithms", algorithms_command, "Print the table of algorithms.")
    return root


def evaluation_arguments(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("model", help="a Hugging Face directory or Hub id")
    evaluate.add_argument("--task", required=True, help="as `whet tasks` lists it")
    evaluate.add_argument("pairs", nargs="*", metavar="key=value", help="options of the task")
    evaluate.add_argument("--n", type=int, default=1, help="samples a problem (default 1)")
    evaluate.add_argument("--problems", type=int, default=1000)
    evaluate.add_argument("--temperature", type=float, default=1.0)
    evaluate.add_argument("--top-p", type=float, default=1.0)
    evaluate.add_argument("--top-k", type=int, default=0)
    evaluate.add_argument("--max-tokens", type=int, default=128)
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--system", help="a system message before each problem")
    evaluate.add_argument(
        "--thinking", choices=("on", "off", "both"), help="the chat template's switch"
    )
    evaluate.add_argument(
        "--against",
        metavar="MODEL2",
        help="measure a second model on the same problems, and test the difference",
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")


def bench_arguments(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "works",
        nargs="*",
        metavar="WORK",
        help="worst, typical, vocabulary, vocabulary-152k, ppo, sampling (default: all but 152k)",
    )
    bench.add_argument("--size", default="5M", help="of the model: 0.2M, 5M, 50M (default 5M)")
    bench.add_argument(
        "--rounds", type=int, default=2, help="processes of each side, in turn (default 2)"
    )
    bench.add_argument(
        "--steps", type=int, default=3, help="of each process; the first is left out (default 3)"
    )
    bench.add_argument("--threads", type=int, default=0, help="0: one for each core")
    bench.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: one GPU, bfloat16 (default cpu)",
    )
    bench.add_argument(
        "--vllm", metavar="PYTHON", help="the Python of an environment with vLLM; sampling only"
    )
    bench.add_argument("--json", action="store_true", help="print one JSON object")


def run_command(arguments: argparse.Namespace) -> int:
    from whet.cli.commands import Way, run

    return run(
        arguments.recipe,
        arguments.pairs,
        arguments.runs,
        Way(arguments.overwrite, arguments.resume, arguments.only),
    )


def eval_command(arguments: argparse.Namespace) -> int:
    from whet.cli.commands import evaluate

    return evaluate(arguments)


def show_command(arguments: argparse.Namespace) -> int:
    from whet.cli.commands import show

    return show(arguments.recipe, arguments.pairs)


def check_command(arguments: argparse.Namespace) -> int:
    from whet.cli.commands import check

    return check(arguments.recipe, arguments.pairs, arguments.offline)


def reward_command(arguments: argparse.Namespace) -> int:
    from whet.cli.reward import test

    return test(arguments.reward, arguments.file, arguments.pairs, arguments.json)


def rewards_command(arguments: argparse.Namespace) -> int:
    from whet.cli.reward import listing

    return listing()


def report_command(arguments: argparse.Namespace) -> int:
    from whet import report

    if not arguments.run.is_dir():
        raise RecipeError(f"no run at {arguments.run}")
    print(report.write(arguments.run))
    return 0


def bench_command(arguments: argparse.Namespace) -> int:
    from whet.cli.bench import bench

    return bench(arguments)


def tasks_command(arguments: argparse.Namespace) -> int:
    from whet.cli.commands import tasks

    return tasks()


def algorithms_command(arguments: argparse.Namespace) -> int:
    from whet.cli.commands import algorithms

    return algorithms()


if __name__ == "__main__":
    sys.exit(main())
