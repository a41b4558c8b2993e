"""Write the numbers of README.md and evidence.md from the results in docs/evidence.

    python docs/make_evidence.py
    python docs/make_evidence.py --quickstart runs/quickstart --trainings runs/evidence

The second command first takes the results of runs: the quickstart, and benchmarks/evidence.py.
A test compares both pages with the output of this script, so they cannot say something else.
"""

import argparse
import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marks import replace_between

from echostill.eval.names import CONSTANT, GRID, KNN, LINEAR
from echostill.eval.reporting.results import METRICS, Results

FOLDER = Path(__file__).parent
HELD = FOLDER / "evidence"
QUICKSTART, TRAININGS = HELD / "quickstart.json", HELD / "trainings.json"
README, PAGE = FOLDER.parent / "README.md", FOLDER / "evidence.md"
DIGITS = 3


def read(path: Path) -> dict[str, Any]:
    """Read results."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def quickstart_lines() -> list[str]:
    """The table of the quickstart and what its report concludes."""
    held = read(QUICKSTART)
    results = Results(held)
    names = [name for name in results.candidates if name != CONSTANT] + [CONSTANT]
    lines = [_row(["", *names]), _row(["---"] * (len(names) + 1))]
    for task in held["tasks"]:
        metric = METRICS[task["kind"]][0]
        for method in (LINEAR, GRID, KNN):
            cells = [_estimate(held, task["name"], name, method) for name in names]
            if any(cells):
                lines.append(_row([f"{task['name']}, {method}, {metric.in_text}", *cells]))
    return [*lines, "", *_wrapped(results.headline())]


def arms_lines(name: str) -> list[str]:
    """The arms of an experiment: balanced accuracy by task, and what was recorded besides."""
    found = read(TRAININGS)["experiments"].get(name)
    if found is None:
        return ["Not run yet."]
    arms = found["arms"]
    tasks = list(found["chance"])
    facts = sorted({fact for arm in arms.values() for fact in arm["facts"]})
    lines = [
        _row(["Arm", "Trainings", *tasks, *(fact.replace("_", " ") for fact in facts)]),
        _row(["---"] * (2 + len(tasks) + len(facts))),
        _row(["chance", "", *(f"{found['chance'][task]:.{DIGITS}f}" for task in tasks)])
        + " |" * len(facts),
    ]
    for arm, values in arms.items():
        cells = [_interval(values[task]) for task in tasks]
        told = [f"{values['facts'][fact]:.3g}" if fact in values["facts"] else "" for fact in facts]
        lines.append(_row([arm, str(values["seeds"]), *cells, *told]))
    return lines


def primary_lines(name: str, added: str | None = None) -> list[str]:
    """The comparisons of the plan, or a family that was added to it, in points."""
    found = read(TRAININGS)["experiments"].get(name)
    if found is None:
        return ["Not run yet."]
    lines = [
        "| Comparison | Of | Points | 95% interval | Interval of the family | |",
        "|---|---|---|---|---|---|",
    ]
    for entry in found["primary"] if added is None else found["added"][added]:
        pair = f"{entry['first']} - {entry['second']}"
        if "missing" in entry:
            lines.append(_row([pair, entry["of"], "not run", "", "", ""]))
            continue
        alone, family = (
            f"[{100 * entry[low]:+.1f}, {100 * entry[high]:+.1f}]"
            for low, high in (("low", "high"), ("corrected_low", "corrected_high"))
        )
        points = f"{100 * entry['value']:+.1f}"
        lines.append(_row([pair, entry["of"], points, alone, family, entry["word"]]))
    return lines


def _estimate(held: dict[str, Any], task: str, candidate: str, method: str) -> str:
    for row in held["estimates"]:
        if (row["task"], row["candidate"], row["method"]) == (task, candidate, method):
            return _interval(row)
        if candidate == CONSTANT and (row["task"], row["candidate"]) == (task, CONSTANT):
            return f"{row['value']:.{DIGITS}f}" if method == LINEAR else ""
    return ""


def _interval(row: dict[str, float]) -> str:
    ends = ", ".join(f"{row[end]:.{DIGITS}f}" for end in ("low", "high"))
    return f"{row['value']:.{DIGITS}f} [{ends}]"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _wrapped(text: str, width: int = 112) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


BLOCKS: dict[Path, dict[str, Callable[[], list[str]]]] = {
    README: {"quickstart": quickstart_lines},
    PAGE: {
        "distillation arms": lambda: arms_lines("distillation"),
        "distillation": lambda: primary_lines("distillation"),
        "whole image": lambda: primary_lines("distillation", "whole image"),
        "twice as long": lambda: primary_lines("distillation", "twice as long"),
        "whole image, usfm": lambda: primary_lines("distillation", "whole image, usfm"),
        "pooled": lambda: primary_lines("distillation", "pooled"),
        "light masks": lambda: primary_lines("distillation", "light masks"),
        "light masks, views": lambda: primary_lines("distillation", "light masks, views"),
        "coreset arms": lambda: arms_lines("coreset"),
        "coreset": lambda: primary_lines("coreset"),
        "coreset with junk arms": lambda: arms_lines("coreset with junk"),
        "coreset with junk": lambda: primary_lines("coreset with junk"),
    },
}


def render(page: Path) -> str:
    """Return a page with what is between its marks written anew."""
    text = page.read_text(encoding="utf-8")
    for mark, made in BLOCKS[page].items():
        text = replace_between(text, mark, made())
    return text


def take(quickstart: Path | None, trainings: Path | None) -> None:
    """Copy the results of runs into docs/evidence."""
    HELD.mkdir(exist_ok=True)
    if quickstart is not None:
        held = read(quickstart / "reports" / "default" / "evaluation.json")
        QUICKSTART.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    if trainings is not None:
        shutil.copyfile(trainings / "evidence.json", TRAININGS)
        for path in sorted([*trainings.glob("*.png"), *trainings.glob("*.parquet")]):
            shutil.copyfile(path, HELD / path.name)


def main() -> None:
    """Take the results that are named, and write both pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=Path, help="store of a finished quickstart")
    parser.add_argument("--trainings", type=Path, help="--out of benchmarks/evidence.py")
    options = parser.parse_args()
    take(options.quickstart, options.trainings)
    for page in BLOCKS:
        page.write_text(render(page), encoding="utf-8")
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
