"""``kdfm export``: its flags, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from kdfm_ray.export.command import Exported
from kdfm_ray.types import UserError


@dataclass(frozen=True)
class ExportFlags:
    """Write a run's network as a file for other programs, and a model card beside it."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="run folder, or its URI")]
    format: Annotated[
        str,
        tyro.conf.arg(
            metavar="onnx|torch|safetensors",
            help="onnx: the whole graph (needs the extra onnx); torch: the whole graph for "
            "torch.export.load; safetensors: weights alone, without pickle",
        ),
    ] = "onnx"
    out: Annotated[str | None, tyro.conf.arg(help="file to write; none: RUN/export/model.*")] = None
    images: Annotated[
        str | None,
        tyro.conf.arg(
            help="images to check the file with, as for kdfm predict; none: those of the run"
        ),
    ] = None


def parse(arguments: list[str]) -> ExportFlags:
    """The flags of a command line.

    Raises:
        UserError: one is unknown.
    """
    flags, unknown = tyro.cli(
        ExportFlags, args=arguments, prog="kdfm export", return_unknown_args=True
    )
    if unknown:
        raise UserError(f"kdfm export does not take {' '.join(unknown)}: see --help")
    return flags


def show(done: Exported, console: Console) -> None:
    """What a person wants to know when it is done."""
    for text in (
        f"checked on {done.checked:,} images: greatest difference of a probability from the "
        f"float32 network {done.difference:.1e}",
        f"{done.calibration}",
        f"written: {done.file} ({done.file.stat().st_size / 1e6:.1f} MB), {done.card}",
    ):
        console.print(text, soft_wrap=True, markup=False)
