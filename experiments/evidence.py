"""Does KD-FixMatch beat FixMatch of equal compute? Runs what is missing, prints what there is.

    python experiments/evidence.py --data-root DIR     (make evidence; DIR: Fashion-MNIST's files)
    python experiments/evidence.py --processes 8       (without Ray; on one GPU, which they share)
    python experiments/evidence.py --sweep evidence_pretrained       (from ImageNet's weights)
    python experiments/evidence.py --sweep evidence_adaptive         (FreeMatch's thresholds)
    python experiments/evidence.py --table             (only prints)

The sweep is run two seeds at a time, so that whatever ends it loses little: finished cells are
lines of ``experiments/results/evidence.jsonl``, or of the file with the other sweep's name. All
differences are of the same seed, split and starting weights; intervals are Student's t over seeds,
95 %. Test accuracies choose nothing: each network is tested once, when it is finished.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from experiments.sweeps import ADAPTIVE, EVIDENCE, PRETRAINED, SWEEPS
from kdfm_ray.api import sweep
from kdfm_ray.config import Config
from kdfm_ray.pipeline import run
from kdfm_ray.report.facts import versions
from kdfm_ray.sweeps.ledger import Cells, Record
from kdfm_ray.sweeps.results import Spread, spread
from kdfm_ray.sweeps.space import Grid, Sweep, Trial, grid, make_trials
from kdfm_ray.sweeps.trial import row_of
from kdfm_ray.types import Event

Values = dict[str, Any]  # of config fields

LABELS = "data.num_labels"
CASES = {
    "evidence": EVIDENCE,
    "evidence_pretrained": PRETRAINED,
    "evidence_adaptive": ADAPTIVE,
}
PAPER = "KD-FixMatch, CE"
RIVAL = "FixMatch, 2 T updates"
COMPARED = {
    "labeled-only": "labeled_only_test_accuracy",
    "FixMatch, T updates": "outer_test_accuracy",
    RIVAL: "longer_test_accuracy",
}
TOGETHER = 2  # seeds, so that two cores have an outer network each


def main() -> None:
    """Say what is missing, run it, print the table."""
    arguments = parse()
    whole = written = SWEEPS[arguments.sweep]()
    known = CASES[arguments.sweep]
    if arguments.cases:
        if unknown := [name for name in arguments.cases if name not in known]:
            raise SystemExit(f"--cases {', '.join(unknown)}: not in {list(known)}")
        cases = tuple(known[name] for name in arguments.cases)
        whole = whole.changed(cases=cases, results=whole.results)
    labels = arguments.labels or list(values_of(whole))
    say_missing(whole, labels)
    if arguments.processes and not arguments.table:
        train_here(whole, labels, arguments)
    elif not arguments.table:
        for count in labels:
            for first in range(0, len(whole.seeds), TOGETHER):
                seeds = whole.seeds[first : first + TOGETHER]
                part = part_of(whole, count, seeds)
                if any(missing(part)):
                    named = "-".join(map(str, seeds))
                    sweep(
                        part,
                        out=arguments.out / f"{count}-labels-seeds-{named}",
                        store=str(arguments.out / "store"),
                        settings={"data.root": str(arguments.data_root)},
                    )
    if not arguments.table:
        say_missing(whole, labels)
    for count in labels:
        print_table(written, known, count)


def part_of(whole: Sweep, count: int, seeds: Sequence[int]) -> Sweep:
    """The trials of one number of labels and some seeds, which are recorded as those of all."""
    space = whole.space | {LABELS: grid(count)}
    return whole.changed(space=space, seeds=tuple(seeds), results=whole.results)


def train_here(whole: Sweep, labels: Sequence[int], arguments: argparse.Namespace) -> None:
    """Train what is missing in processes without Ray, each with one seed and number of labels."""
    parts = [part_of(whole, count, [seed]) for seed in whole.seeds for count in labels]
    parts = [part for part in parts if any(missing(part))]
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # see jobs/session.py
    spawn = get_context("spawn")
    with ProcessPoolExecutor(
        arguments.processes, spawn, initializer=_end_with, initargs=(os.getpid(),)
    ) as pool:
        for done in [pool.submit(_train_part, part, arguments) for part in parts]:
            done.result()


def _end_with(parent: int) -> None:
    """A process of the pool would go on alone when its parent is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # what the store has is whole; a training under way is gone

    threading.Thread(target=watch, daemon=True).start()


def _train_part(part: Sweep, arguments: argparse.Namespace) -> None:
    """Run the trials of a part that are missing, and record each one when it is finished."""
    cells = Cells(part.results, versions())
    for trial in make_trials(part, part.settings()):
        if cells.find(trial) is not None:
            continue
        curve: dict[int, float] = {}

        def note(event: Event, curve: dict[int, float] = curve) -> None:
            if event.get("stage") == "inner" and event.get("val_accuracy") is not None:
                curve[event["step"]] = event["val_accuracy"]

        finished = run(_here(trial.config, arguments), note)
        record = Record(
            status="finished",
            curve=curve,
            seconds=finished.seconds,
            row=row_of(finished),
            networks={str(role): key for role, key in finished.plan.before_labels.items()},
            made=cells.made(trial),
        )
        cells.add(trial, record)
        accuracy = 100 * record.row["val_accuracy"]
        values = ", ".join(f"{name} = {value}" for name, value in trial.values.items())
        print(
            f"seed {trial.seed}, {values}: {accuracy:.2f} % validation, {finished.seconds:.0f} s",
            flush=True,
        )


def _here(config: Config, arguments: argparse.Namespace) -> Config:
    """The same run in this process, with the files where they are."""
    data = config.data.model_copy(update={"root": arguments.data_root})
    scale = config.scale.model_copy(update={"num_workers": 0, "cpus_per_worker": 1})
    store = str(arguments.out / "store")
    return config.model_copy(update={"data": data, "scale": scale, "store": store})


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sweep", choices=list(CASES), default="evidence")
    parser.add_argument("--labels", type=int, nargs="+", help="numbers of labels; none: all")
    parser.add_argument("--cases", nargs="+", help="names of recipes; none: all")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument(
        "--processes",
        type=int,
        default=0,
        help="train without Ray in so many processes, which share the GPU where there is one",
    )
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
        part = part_of(whole, count, whole.seeds)
        trials = len(part.settings()) * len(part.seeds)
        left = list(missing(part))
        seeds = sorted({trial.seed for trial in left})
        which = f"; seeds {', '.join(map(str, seeds))} are missing or incomplete" if seeds else ""
        print(f"{count} labels: {trials - len(left)} of {trials} cells recorded{which}", flush=True)


def print_table(whole: Sweep, cases: Mapping[str, Values], count: int) -> None:
    """Mean, deviation and number of seeds of each method, and its difference from the rival."""
    # Without the paper's recipe no outer network has T updates.
    compared = COMPARED if PAPER in cases else {RIVAL: COMPARED[RIVAL]}
    trained = next(iter(cases.values()))  # whose trials have these networks
    methods = {name: (figure, trained) for name, figure in compared.items()}
    methods |= {name: ("test_accuracy", case) for name, case in cases.items()}
    found = {name: _by_seed(whole, count, *where) for name, where in methods.items()}
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


def _by_seed(whole: Sweep, count: int, figure: str, values: Values) -> dict[int, float]:
    part = part_of(whole, count, whole.seeds).changed(cases=(values,), results=whole.results)
    cells = Cells(part.results, {})
    found = {trial.seed: cells.find(trial) for trial in make_trials(part, part.settings())}
    return {seed: cell["row"][figure] for seed, cell in found.items() if cell is not None}


def values_of(whole: Sweep) -> tuple[int, ...]:
    """Numbers of labels."""
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
