"""The guest: reads one order inside the isolation, runs the program on its inputs, replies with plain
data.

`exchange.source` joins the guest's files for a bare interpreter, so they import the standard library
only. The program shares this process and may break anything in it. It can forge its own output and
nothing else, because no expected value, test or verdict is inside the isolation.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator

from whet.sandbox.guest_child import Child, Order, write
from whet.sandbox.guest_tests import call_reply, check, described, find_entry, record, run
from whet.sandbox.plain_data import decode


def limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bound, bound))


def finish() -> None:
    """Ends as an interpreter does: waits for threads, runs the functions of `atexit`, flushes."""
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    import atexit

    atexit._run_exitfuncs()
    sys.stdout.flush()


def as_script(text: str, target: int) -> int:
    """Runs a program that reads standard input and writes to `target`. Returns its exit code."""
    os.dup2(target, 1)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout
    main = type(sys)("__main__")
    sys.modules["__main__"], sys.argv = main, ["program.py"]
    code = 0
    try:
        run(text, main.__dict__)
    except SystemExit as error:
        code = 0 if error.code in (None, 0) else 1
    except BaseException:
        code = 1
    finish()
    return code


def stdio(order: Order) -> Iterator[object]:
    """Runs the program once on each input. Yields one reply an input: {"output", "ended"}."""
    until = time.monotonic() + order["total"]
    try:
        compile(order["program"], "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        yield {"load": described(error)}
        return
    for text in order["inputs"]:
        child = Child(
            lambda target: as_script(order["program"], target),
            order,
            text.encode("utf-8", "replace"),
        )
        output, ended = child.read(until, renew=False)
        yield {
            "output": output.decode("utf-8", "replace") if ended == "exit 0" else "",
            "ended": ended,
        }
        if order["stop"] and ended != "exit 0":
            return


def answer(order: Order, first: int, target: int) -> int:
    """Loads the program and writes one reply a call, a line each, from call `first` on."""
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    main.__dict__["__name__"] = "program"
    try:
        run(order["program"], main.__dict__)
    except BaseException as error:
        write(target, json.dumps({"load": described(error)}).encode() + b"\n")
        return 1
    for args, kwargs in order["calls"][first:]:
        try:
            positional = decode(args)
            named = {name: decode(value) for name, value in kwargs.items()}
            value = find_entry(main.__dict__, order["entry"])(*positional, **named)
            line = json.dumps(call_reply(value, positional, args)).encode()
        except BaseException as error:
            line = json.dumps(described(error)).encode()
        write(target, line + b"\n")
    return 0


def calls(order: Order) -> Iterator[object]:
    """Yields one reply a call: {"value"}, {"raised"} or {"ended"}.

    A program that dies is loaded again for the next call.
    """
    until, first = time.monotonic() + order["total"], 0
    while first < len(order["calls"]) and time.monotonic() < until:
        child = Child(lambda target, start=first: answer(order, start, target), order)
        data, ended = child.read(until, renew=True)
        for line in data.split(b"\n")[:-1][: len(order["calls"]) - first]:
            try:
                reply = json.loads(line)
            except (ValueError, RecursionError):
                reply = {"ended": "no plain data"}
            yield reply
            if isinstance(reply, dict) and "load" in reply:
                return
            first += 1
        if first < len(order["calls"]):
            yield {"ended": ended}
            first += 1
            if order["stop"]:
                return


def main() -> None:
    order = json.loads(sys.stdin.buffer.read())
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    limit(order["limits"])
    write(replies, b'{"began": true}\n')
    modes = {"stdio": stdio, "calls": calls, "record": record, "check": check}
    for reply in modes[order["mode"]](order):
        write(replies, json.dumps(reply).encode() + b"\n")
    write(replies, b'{"done": true}\n')


if __name__ == "__main__":
    main()
