"""Prints the mean and the spread over seeds of every stage of a recipe's runs, as a table.

    whet run recipes/r1-mini.toml seed=1..5
    python benchmarks/pipelines.py runs/r1-mini-seed*

Takes a second; the runs take the recipe's time.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any


def spread(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    if not values:
        return "–"
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def sides(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A stage's figures by what they are of: all, and each way of thinking or task where it has
    them.
    """
    name = stage["name"]
    if "thinking" in stage:
        return {
            f"{name}, thinking {switch}": figures for switch, figures in stage["thinking"].items()
        }
    if "pairs" in stage:
        return {f"{name} (held-out pairs)": {**stage["pairs"], "seconds": stage["seconds"]}}
    rows = {name: stage}
    if len(stage.get("by_task", {})) > 1:
        rows |= {f"{name}, {task}": figures for task, figures in stage["by_task"].items()}
    return rows


def main(folders: list[str]) -> None:
    runs = [json.loads((Path(folder) / "summary.json").read_text()) for folder in folders]
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for stage in run["stages"]:
            for name, figures in sides(stage).items():
                rows.setdefault(name, []).append(figures)
    parts = sorted(
        {
            p
            for stages in rows.values()
            for t in stages
            for p in t.get("parts", {})
            if p not in ("accuracy", "task")
        }
    )
    print("| stage | accuracy % | length |" + "".join(f" {p} |" for p in parts) + " seconds |")
    print("|---|---|---|" + "---|" * len(parts) + "---|")
    for name, stages in rows.items():
        columns = [spread([t["accuracy"] for t in stages if t.get("accuracy") is not None], 100)]
        columns.append(spread([t["length"] for t in stages if t.get("length") is not None]))
        columns += [
            spread([t["parts"][p] for t in stages if p in t.get("parts", {})], digits=3)
            for p in parts
        ]
        seconds = [t["seconds"] for t in stages if t.get("seconds") is not None]
        columns.append(f"{statistics.median(seconds):.0f}" if seconds else "")
        print(f"| {name} | " + " | ".join(columns) + " |")
    total = [run["seconds"] for run in runs]
    print(
        f"\n{len(runs)} runs; a whole run: median {statistics.median(total):.0f} s, "
        f"{min(total):.0f} to {max(total):.0f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
