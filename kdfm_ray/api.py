"""What ``import kdfm_ray`` offers: train, sweep, load, and a finished run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdfm_ray.checks import find_problems
from kdfm_ray.config import Config, absolute_paths, default_values, parse_config, set_recipe
from kdfm_ray.types import Event, UserError

if TYPE_CHECKING:
    import numpy as np

    from kdfm_ray.export.command import Exported
    from kdfm_ray.models.backbone import Network
    from kdfm_ray.predictions.command import Predictions
    from kdfm_ray.sweeps.run import SweepResult
    from kdfm_ray.sweeps.space import Sweep


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run folder; of one behind a URI the copy on this machine.
        report: the content of its ``report.json``.
    """

    path: Path
    report: dict[str, Any]

    def network(self) -> Network:
        """The inner EMA network, in eval mode, on the CPU."""
        from kdfm_ray.models.backbone import load_network

        return load_network(self.path)

    @property
    def classes(self) -> list[str]:
        """Class names; position = class number."""
        return self.report["data"]["classes"]

    def predict_probs(self, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
        """Class probabilities, float32 ``[n, K]``, of images uint8 ``[n, H, W, C]``.

        Raises:
            ValueError: the images have another size or number of channels than in training.
        """
        import numpy as np
        import torch

        from kdfm_ray.models.numerics import Numerics
        from kdfm_ray.training.batches import ImageSource
        from kdfm_ray.training.evaluate import predict

        expected = tuple(self.report["data"]["image_shape"])
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise ValueError(
                f"predict takes uint8 images [n, {', '.join(map(str, expected))}], got "
                f"{images.dtype} {list(images.shape)}: resize them as in training"
            )
        source = ImageSource(images, torch.device("cpu"))
        index = np.arange(len(images))
        numerics = Numerics()  # float32: a handful of images needs no speed
        network = numerics.place(self.network(), source.device)
        probs, _ = predict(network, source, index, batch_size=batch_size, numerics=numerics)
        return probs.numpy()

    def predict(
        self,
        images: str | Path | Sequence[str | Path],
        out: str | Path | None = None,
        *,
        review: int = 0,
        workers: int | None = None,
        use_gpu: Literal["auto", "yes", "no"] = "auto",
        batch_size: int = 128,
        progress: bool = False,
        verbose: bool = False,
    ) -> Predictions:
        """Label images: classes, calibrated confidence, the next two classes, and the margin.

        Logits are divided by the temperature that fits the validation images best; it is kept in
        ``calibration.json`` of the run folder. Images are read as in training.

        Args:
            images: a folder (any depth), an image, a pattern, a ``.csv`` or ``.parquet`` file with
                a column ``path`` (relative to its folder), a URI of one of these, or a list.
            out: ``.parquet``, ``.csv`` or ``.jsonl`` file (or URI) to write; then memory does not
                grow with the images, and ``NAME.skipped.csv`` names those that cannot be read.
            review: so many images most worth labeling next, in ``NAME.review.csv``: least certain,
                each of another cluster of embeddings.
            workers: actors of a Ray Data job; 0: in this process; ``None``: 0 up to 1,000 images
                where no cluster is joined, else 1.
            use_gpu: whether to compute on GPUs.
            batch_size: images of a forward pass.
            progress: show a progress bar.
            verbose: let Ray's own logs through.

        Returns:
            Counts, skipped images with reasons, and, without ``out``, one row an image.

        Raises:
            UserError: no images, none that can be read, or an unknown ending of ``out``.
            RunFailed: a file cannot be written, or actors died again and again.
        """
        from rich.console import Console

        from kdfm_ray.jobs.finished import FinishedRun
        from kdfm_ray.predictions.command import predict_run
        from kdfm_ray.report.live import LiveView

        with LiveView(Console(highlight=False, quiet=not progress)) as view:
            return predict_run(
                FinishedRun.read(self.path, self.report),
                images,
                None if out is None else str(out),
                view,
                review=review,
                workers=workers,
                use_gpu=use_gpu,
                batch_size=batch_size,
                verbose=verbose,
            )

    def export(
        self,
        format: str = "onnx",
        out: str | Path | None = None,
        *,
        images: str | Path | Sequence[str | Path] | None = None,
        progress: bool = False,
    ) -> Exported:
        """Write the network as a file for other programs, and a model card beside it.

        In: uint8 ``[n, H, W, C]``, already resized; out: calibrated probabilities. Names of
        classes, the recipe for resizing and the temperature are in the file's metadata. The file is
        run (by ONNX Runtime, or read again by torch) and compared with the float32 network.

        Args:
            format: ``onnx``: the whole graph with normalization, temperature and softmax; needs the
                extra ``onnx``. ``torch``: the same graph for ``torch.export.load``, which unpickles
                parts of the file. ``safetensors``: weights alone (timm's names), without pickle;
                ``kdfm_ray.export.formats.read_safetensors`` makes a module of them.
            out: the file; ``None``: ``export/model.*`` in the run folder.
            images: to check with, as for ``predict``; ``None``: those of the run.
            progress: show what is done.

        Returns:
            The two files, and how far the file's probabilities are from the network's.

        Raises:
            UserError: unknown format or ending, missing packages, no images to check with.
            RunFailed: the file differs by more than 1e-4 and was not kept, or cannot be written, or
                the network cannot be made a graph.
        """
        from rich.console import Console

        from kdfm_ray.export.command import export_run
        from kdfm_ray.export.formats import as_format
        from kdfm_ray.jobs.finished import FinishedRun
        from kdfm_ray.report.live import LiveView

        with LiveView(Console(highlight=False, quiet=not progress)) as view:
            return export_run(
                FinishedRun.read(self.path, self.report),
                as_format(format),
                None if out is None else Path(out),
                view,
                images,
            )


def train(
    preset: str | None = None,
    *,
    labeled: str | Path | None = None,
    unlabeled: str | Path | None = None,
    test: str | Path | None = None,
    model: str | None = None,
    out: str | Path | None = None,
    store: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    config: Config | None = None,
    progress: bool = True,
    verbose: bool = False,
) -> Run:
    """Train the outer network, find the trusted labels, train the inner network.

    Args:
        preset: a name of ``kdfm presets``, or ``path/to/file.py:function``.
        labeled: folder with one subfolder of images per class, instead of a preset's data.
        unlabeled: folder of images without labels, any depth.
        test: folder like ``labeled``; without it the verdict is on validation.
        model: timm backbone or ``wrn_*``.
        out: run folder, or a URI.
        store: folder or URI of artifacts.
        seed: of everything random.
        settings: any other config field by its dotted name, as ``{"train.steps": 500}``.
        config: a whole config, instead of a preset; the arguments above still override it.
        progress: show the live view and the table at the end.
        verbose: let Ray's own logs through.

    Raises:
        UserError: a mistake in the config or the data; the text says what to do.
        FloatingPointError: a loss became NaN or infinite.
        RunFailed: the run cannot go on, and no setting is to blame.
        Stopped: it was stopped by Ctrl-C; a ``KeyboardInterrupt``.

    Whatever is raised, the same call goes on from what was finished or saved.
    """
    values = base_values(preset, config)
    given: dict[str, Any] = dict(settings or {})
    named = {
        "data.labeled": labeled,
        "data.unlabeled": unlabeled,
        "data.test": test,
        "model.name": model,
        "out": out,
        "store": store,
        "seed": seed,
    }
    given |= {name: value for name, value in named.items() if value is not None}
    if labeled is not None:
        given.setdefault("data.name", None)
    if "recipe" in given:
        set_recipe(values, given["recipe"])
    for name, value in given.items():
        _set(values, name, value)
    name = preset_name(preset) if preset else "run"
    checked = parse_config(values, find_problems(values))
    return run_config(checked, name=name, progress=progress, verbose=verbose)


def run_config(config: Config, *, name: str, progress: bool = True, verbose: bool = False) -> Run:
    """Run a config and leave a run folder; ``name`` is for the folder where none is given."""
    from rich.console import Console

    from kdfm_ray.pipeline import Left, run
    from kdfm_ray.report.data import SHOWN, make_report
    from kdfm_ray.report.live import LiveView
    from kdfm_ray.report.page import PAGE, write_report_page
    from kdfm_ray.report.place import default_place, folder_at
    from kdfm_ray.report.run_folder import REPORT, RunFolder
    from kdfm_ray.report.table import print_report
    from kdfm_ray.report.trackers import open_tracker

    config = absolute_paths(config)
    place = config.out or default_place("runs", f"{name}-{config.hash()[:8]}", config.store)
    console = Console(highlight=False, quiet=not progress)
    with (
        LiveView(console) as view,
        folder_at(place, view) as path,
        open_tracker(config, name, view) as tracker,
        contextlib.closing(RunFolder(path, config)) as folder,
    ):

        def emit(event: Event) -> None:
            if event.get("stage") == "data" and event.get("state") == "done":
                folder.open(event["begun"])  # the data are good: from now on there is what to keep
            trouble = folder.log(event)
            if trouble is not None:
                view({"note": f"warning: {trouble}"})
            tracker.log(event)
            view(event)

        def write_page(found: Left, report: dict[str, Any]) -> None:
            trouble = write_report_page(path, report, found.artifacts.get("pictures"))
            if trouble is not None:
                view({"note": f"warning: {trouble}"})

        def complete(found: Left) -> None:
            for role in SHOWN:
                if role in found.artifacts:
                    folder.complete(found.artifacts[role])

        def left(found: Left, error: BaseException) -> None:
            early = isinstance(error, UserError | KeyboardInterrupt) and not found.facts
            if early or not folder.may_be_left:  # early: no image was read, so there is no evidence
                return
            report = make_report(found, str(error) or "it was interrupted")
            folder.leave(report)
            complete(found)
            write_page(found, report)
            view({"note": f"what there is: {place}/{PAGE} and {REPORT}"})

        if folder.note:
            view({"note": folder.note})
        finished = run(
            config,
            emit,
            verbose=verbose,
            begun_with=folder.begun_with,
            found=folder.found,
            pictures=True,
            left=left,
        )
        complete(finished)
        report = make_report(finished)
        write_page(finished, report)
        folder.finish(finished.artifacts, report)
        tracker.finish(report)
    print_report(report, console, place)
    return Run(path, report)


def sweep(
    preset: str | Sweep,
    *,
    out: str | Path | None = None,
    store: str | None = None,
    seeds: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    verbose: bool = False,
) -> SweepResult:
    """Run many pipelines that differ in a few settings, with Ray Tune.

    Trials that agree on all that makes an outer network share it, its labels and its trusted
    subset. The same call goes on where an earlier one was cut short.

    Args:
        preset: a sweep's name in ``kdfm presets``, ``path/to/file.py:function``, or a ``Sweep``.
        out: its folder, for tables and the page.
        store: folder or URI of artifacts.
        seeds: instead of the sweep's own.
        settings: config fields of its base by dotted name, as ``{"train.steps": 500}``.
        progress: show what happens.
        verbose: let Ray's own logs through.

    Returns:
        Its folder, a row for each trial, settings best first, and what was saved.

    Raises:
        UserError: a mistake in the sweep, or a trial that cannot fit on the cluster.
        RunFailed: every trial failed.
        Stopped: it was stopped by Ctrl-C; a ``KeyboardInterrupt``.
    """
    from rich.console import Console

    from kdfm_ray.sweeps.run import run_sweep
    from kdfm_ray.sweeps.space import Sweep

    if isinstance(preset, str):
        from experiments import load_sweep

        found = load_sweep(preset)
        if not isinstance(found, Sweep):
            raise UserError(f"{preset} is a single run: give a sweep, or make one with kdfm.Sweep")
    else:
        found = preset
    values = found.base.model_dump(mode="json")
    own = {"seed": "seeds=", "out": "out=", "store": "store="}
    if "recipe" in (settings or {}):
        set_recipe(values, (settings or {})["recipe"])
    for name, value in (settings or {}).items():
        if name in own:
            raise UserError(f"settings: {name} is the sweep's own: give {own[name]}")
        _set(values, name, value)
    if store is not None:
        values["store"] = store
    base = parse_config(values, find_problems(values))
    checked = found.changed(base=base, **({} if seeds is None else {"seeds": tuple(seeds)}))
    console = Console(highlight=False, quiet=not progress)
    return run_sweep(checked, None if out is None else str(out), console, verbose=verbose)


def load(path: str | Path) -> Run:
    """Open the folder of a finished run; of a URI a copy is made here.

    Raises:
        UserError: there is no finished run in it.
    """
    from kdfm_ray.report.place import read_folder
    from kdfm_ray.report.run_folder import read_report

    folder = read_folder(path)
    report = read_report(folder)
    if report is None:
        raise UserError(f"no finished run in {path}: report.json is missing; give a run folder")
    if not report.get("finished", True):
        raise UserError(
            f"the run in {path} ended early ({report.get('failed')}): the same kdfm train command "
            "goes on from there; or give the folder of a finished run"
        )
    return Run(folder, report)


def base_values(preset: str | None, config: Config | None) -> dict[str, Any]:
    """The nested values that flags and arguments then override."""
    if preset is not None and config is not None:
        raise UserError("give a preset or a config, not both")
    if preset is not None:
        from experiments import load_preset

        config = load_preset(preset)
    return default_values() if config is None else config.model_dump(mode="json")


def preset_name(preset: str) -> str:
    """A name for folders: the preset's, or its function's."""
    return preset.rpartition(":")[2]


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, field = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"{name}: no such config field; {section} has no parts")
    values[field] = str(value) if isinstance(value, Path) else value
