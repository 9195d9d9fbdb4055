"""``kdfm predict``: its flags, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console

from kdfm_ray.predictions.command import Predictions, beside, named
from kdfm_ray.types import UserError

MOST_CLASSES = 12  # that are printed


@dataclass(frozen=True)
class PredictFlags:
    """Label images with a run's network."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="run folder, or its URI")]
    images: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            help="folder (any depth), image, pattern in quotes, .csv or .parquet file with a "
            "column path, or a URI of one of these"
        ),
    ]
    out: Annotated[
        str,
        tyro.conf.arg(
            help="table to write: .parquet, .csv or .jsonl. Images that cannot be read go to "
            "NAME.skipped.csv beside it"
        ),
    ] = ""
    review: Annotated[
        int,
        tyro.conf.arg(help="also write the N images most worth labeling next, NAME.review.csv"),
    ] = 0
    workers: Annotated[
        int | None,
        tyro.conf.arg(
            aliases=["--scale.num-workers"],
            help="actors of a Ray Data job; 0: in this process; none: 0 up to 1,000 images where "
            "no cluster is joined, else 1",
        ),
    ] = None
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    batch_size: Annotated[int, tyro.conf.arg(help="images of a forward pass")] = 128
    verbose: Annotated[bool, tyro.conf.arg(help="let Ray's own logs through")] = False


def parse(arguments: list[str]) -> PredictFlags:
    """The flags of a command line.

    Raises:
        UserError: one is unknown, or the table is not named.
    """
    flags, unknown = tyro.cli(
        PredictFlags, args=arguments, prog="kdfm predict", return_unknown_args=True
    )
    if unknown:
        raise UserError(f"kdfm predict does not take {' '.join(unknown)}: see --help")
    if not flags.out:
        raise UserError("kdfm predict: give --out FILE, which ends in .parquet, .csv or .jsonl")
    return flags


def show(found: Predictions, console: Console) -> None:
    """What a person wants to know when it is done."""

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    each = [f"{label} {count:,}" for label, count in found.labels.items()]
    more = len(each) - MOST_CLASSES
    labels = ", ".join(each[:MOST_CLASSES]) + (f" and {more} classes more" if more > 0 else "")
    rate = found.count / found.seconds
    line(f"{found.count:,} images in {found.seconds:.1f} s ({rate:,.0f} a second): {labels}")
    line(f"mean confidence {found.confidence:.1%}; {found.calibration}")
    if found.skipped:
        line(f"{len(found.skipped):,} files cannot be read: {named(found.skipped)}")
    assert found.out is not None
    files = [found.out]
    if found.skipped:
        files.append(beside(found.out, "skipped"))
    if found.review:
        files.append(beside(found.out, "review"))
    line(f"written: {', '.join(files)}")
