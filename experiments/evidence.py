"""Does KD-FixMatch beat FixMatch of equal compute? Runs what is missing, prints what there is.

    python experiments/evidence.py --data-root DIR     (make evidence; DIR: Fashion-MNIST's files)
    python experiments/evidence.py --table             (only prints)

The sweep ``evidence`` is run two seeds at a time, so that whatever ends it loses little: finished
cells are lines of ``experiments/results/evidence.jsonl``. All differences are of the same seed,
split and starting weights; intervals are Student's t over seeds, 95 %. Test accuracies choose
nothing: each network is tested once, when it is finished.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.sweeps import evidence
from kdfm_ray.api import sweep
from kdfm_ray.sweeps.ledger import Cells
from kdfm_ray.sweeps.results import Spread, spread
from kdfm_ray.sweeps.space import Grid, Sweep, Trial, grid, make_trials

LABELS, CLUSTERER, LOSS = "data.num_labels", "select.clusterer", "inner.loss"
METHODS = {
    "labeled-only": ("labeled_only_test_accuracy", {CLUSTERER: "dec", LOSS: "ce"}),
    "FixMatch, T updates": ("outer_test_accuracy", {CLUSTERER: "dec", LOSS: "ce"}),
    "FixMatch, 2 T updates": ("longer_test_accuracy", {CLUSTERER: "dec", LOSS: "ce"}),
    "KD-FixMatch, CE": ("test_accuracy", {CLUSTERER: "dec", LOSS: "ce"}),
    "KD-FixMatch, SCE": ("test_accuracy", {CLUSTERER: "dec", LOSS: "sce"}),
    "KD-FixMatch, CE, no clusters": ("test_accuracy", {CLUSTERER: "none", LOSS: "ce"}),
    "KD-FixMatch, SCE, no clusters": ("test_accuracy", {CLUSTERER: "none", LOSS: "sce"}),
}
TOGETHER = 2  # seeds, so that two cores have an outer network each
RIVAL = "FixMatch, 2 T updates"


def main() -> None:
    """Say what is missing, run it, print the table."""
    arguments = parse()
    whole = evidence()
    labels = arguments.labels or list(_values(whole))
    say_missing(whole, labels)
    if not arguments.table:
        for count in labels:
            for first in range(0, len(whole.seeds), TOGETHER):
                seeds = whole.seeds[first : first + TOGETHER]
                part = whole.changed(
                    space=whole.space | {LABELS: grid(count)}, seeds=seeds, results=whole.results
                )
                if any(missing(part)):
                    named = "-".join(map(str, seeds))
                    sweep(
                        part,
                        out=arguments.out / f"{count}-labels-seeds-{named}",
                        store=str(arguments.out / "store"),
                        settings={"data.root": str(arguments.data_root)},
                    )
        say_missing(whole, labels)
    for count in labels:
        print_table(whole, count)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--labels", type=int, nargs="+", help="numbers of labels; none: all")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    root = os.environ.get("KDFM_DATA_ROOT", "/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data-root", type=Path, default=Path(root))
    return parser.parse_args()


def missing(part: Sweep) -> Iterable[Trial]:
    """Trials that are not recorded."""
    cells = Cells(part.results, {})
    return (trial for trial in make_trials(part, part.settings()) if cells.find(trial) is None)


def say_missing(whole: Sweep, labels: Sequence[int]) -> None:
    """A line for each number of labels."""
    for count in labels:
        part = whole.changed(space=whole.space | {LABELS: grid(count)}, results=whole.results)
        trials = len(part.settings()) * len(part.seeds)
        left = list(missing(part))
        seeds = sorted({trial.seed for trial in left})
        which = f"; seeds {', '.join(map(str, seeds))} are missing or incomplete" if seeds else ""
        print(f"{count} labels: {trials - len(left)} of {trials} cells recorded{which}", flush=True)


def print_table(whole: Sweep, count: int) -> None:
    """Mean, deviation and number of seeds of each method, and its difference from the rival."""
    found = {name: _by_seed(whole, count, *where) for name, where in METHODS.items()}
    if not any(found.values()):
        return
    print(f"\n{count} labels, T = {whole.base.train.steps}: test accuracy in %, less {RIVAL}\n")
    print("| method | mean ± sd | seeds | difference (95 % interval) | better on |")
    print("|---|---|---|---|---|")
    for name, scores in found.items():
        if not scores:
            continue
        pairs = [scores[seed] - found[RIVAL][seed] for seed in scores if seed in found[RIVAL]]
        against = "" if name == RIVAL or not pairs else _interval(spread(pairs))
        wins = "" if not against else f"{sum(pair > 0 for pair in pairs)} of {len(pairs)}"
        mean = _mean(spread(list(scores.values())))
        print(f"| {name} | {mean} | {len(scores)} | {against} | {wins} |")


def _by_seed(whole: Sweep, count: int, figure: str, values: dict[str, Any]) -> dict[int, float]:
    part = whole.changed(
        space={name: grid(value) for name, value in (values | {LABELS: count}).items()},
        results=whole.results,
    )
    cells = Cells(part.results, {})
    found = {trial.seed: cells.find(trial) for trial in make_trials(part, part.settings())}
    return {seed: cell["row"][figure] for seed, cell in found.items() if cell is not None}


def _values(whole: Sweep) -> tuple[int, ...]:
    counts = whole.space[LABELS]
    assert isinstance(counts, Grid)
    return counts.values


def _mean(found: Spread) -> str:
    return f"{100 * found.mean:.2f}" + ("" if found.sd is None else f" ± {100 * found.sd:.2f}")


def _interval(found: Spread) -> str:
    mean = f"{100 * found.mean:+.2f}"
    if found.half is None:
        return mean
    low, high = found.mean - found.half, found.mean + found.half
    return f"{mean} ({100 * low:+.2f} to {100 * high:+.2f})"


if __name__ == "__main__":
    main()
