"""``kdfm sweep``: a sweep by name, or one made of a preset and ``--grid`` flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from kdfm_ray.config import Config, default_values, parse_config
from kdfm_ray.sweeps.space import Asha, Grid, Sweep, make_sweep
from kdfm_ray.types import UserError


@dataclass(frozen=True)
class Flags:
    """Flags of a sweep itself; all others are those of `kdfm train`, for its base config."""

    grid: list[str]
    seeds: str
    samples: str
    asha: str
    max_concurrent: str
    gpus_per_trial: str
    results: str
    status: bool


def parse(arguments: list[str]) -> tuple[Flags, list[str]]:
    """The sweep's own flags, and the arguments that are left."""
    import tyro

    def text(help_text: str, metavar: str) -> Any:
        hint = tyro.conf.arg(help=help_text, metavar=metavar, help_behavior_hint="")
        return Annotated[str, hint]

    grids = tyro.conf.arg(help="FIELD=VALUE,VALUE,...: vary a config field; may be repeated")
    kinds: list[Any] = [
        (
            "grid",
            tyro.conf.UseAppendAction[Annotated[list[str], grids]],
            dataclasses.field(default_factory=list),
        ),
        ("seeds", text("instead of the sweep's own", "INT,INT,..."), ""),
        ("samples", text("draws of the fields that are no grid", "INT"), ""),
        ("asha", text("stop trials that are behind; off: run all in full", "on|off"), ""),
        ("max_concurrent", text("trials at once, at most", "INT"), ""),
        ("gpus_per_trial", text("below 1, trials share a GPU", "FLOAT"), ""),
        ("results", text("file of finished cells", "FILE|none"), ""),
        ("status", Annotated[bool, tyro.conf.arg(help="say where it is, and run nothing")], False),
    ]
    arguments = [each.replace("--tune.", "--") for each in arguments]
    flags: Any = dataclasses.make_dataclass("Flags", kinds, frozen=True)
    parsed, rest = tyro.cli(
        flags,
        args=arguments,
        prog="kdfm sweep NAME|PRESET",
        description="Run many pipelines that differ in a few settings. Every flag of `kdfm train` "
        "changes the base config (`kdfm train --help`): --out is the folder of the sweep, --store "
        "that of artifacts. --verbose lets Ray's own logs through.",
        return_unknown_args=True,
    )
    return Flags(
        **{field.name: getattr(parsed, field.name) for field in dataclasses.fields(Flags)}
    ), rest


def build(
    found: Sweep | Config | None,
    name: str,
    flags: Flags,
    arguments: list[str],
    parse_flags: Callable[[list[str], dict[str, Any]], list[str]],
    value_of: Callable[[str, str], Any],
) -> tuple[Sweep, str | None]:
    """The sweep that flags make of a named one, or of a preset; and its folder, if it is given.

    Args:
        found: the named sweep, or a preset's config; none: flags say it all.
        name: for a sweep that is made of a preset.
        flags: the sweep's own.
        arguments: flags of the base config.
        parse_flags: overlays those on nested values, and returns mistakes.
        value_of: (field, text) -> the value as the config reads it.

    Raises:
        UserError: lists what is wrong.
    """
    from kdfm_ray.checks import find_problems

    config = found.base if isinstance(found, Sweep) else found
    values = default_values() if config is None else config.model_dump(mode="json")
    before = values["seed"]
    problems = parse_flags(arguments, values)
    config = parse_config(values, problems + find_problems(values))
    if config.seed != before:
        raise UserError(f"a sweep has several seeds: use --seeds {config.seed}, not --seed")
    out, config = config.out, config.model_copy(update={"out": None})
    changes: dict[str, Any] = {"base": config}
    named = [_grid(text, value_of) for text in flags.grid]
    grids = dict(named)
    if len(grids) < len(named):
        raise UserError("--grid names a field twice: give all its values in one --grid")
    if grids:
        _check_beside_cases(grids, found)
        changes["space"] = (found.space if isinstance(found, Sweep) else {}) | grids
    try:
        if flags.seeds:
            changes["seeds"] = tuple(int(each) for each in flags.seeds.split(","))
        for field in ("samples", "max_concurrent"):
            if text := getattr(flags, field):
                changes[field] = int(text)
        if flags.gpus_per_trial:
            changes["gpus_per_trial"] = float(flags.gpus_per_trial)
    except ValueError as error:
        raise UserError(
            f"--seeds, --samples, --max-concurrent and --gpus-per-trial take numbers: {error}"
        ) from error
    if flags.asha not in ("", "on", "off"):
        raise UserError(f"--asha {flags.asha}: on or off")
    if flags.asha:
        changes["asha"] = None
    if flags.asha == "on":
        before = found.asha if isinstance(found, Sweep) else None
        changes["asha"] = before or Asha()
    if flags.results:
        path = Path(flags.results).expanduser().resolve()
        changes["results"] = None if flags.results == "none" else path
    if isinstance(found, Sweep):
        if grids and "results" not in changes:
            changes["results"] = None
        return found.changed(**changes), out
    if not grids:
        raise UserError(
            f"{name or 'this'} is a single run: say what to vary, as "
            "--grid select.tau_select=0.7,0.8,0.9"
        )
    return make_sweep(name=name.rpartition(":")[2] or "run", **changes), out


def _check_beside_cases(grids: dict[str, Grid], found: Sweep | Config | None) -> None:
    cases = found.cases if isinstance(found, Sweep) else ()
    both = [name for name in grids if any(name in case for case in cases)]
    if both:
        raise UserError(
            f"--grid {both[0]}: the cases of this sweep vary it already, and every case meets "
            "every value of a grid: vary another field, or write a sweep of your own"
        )


def _grid(text: str, value_of: Callable[[str, str], Any]) -> tuple[str, Grid]:
    name, equals, values = text.partition("=")
    name = name.replace("-", "_")
    if not equals or not values:
        raise UserError(f"--grid {text}: give FIELD=VALUE,VALUE,... as select.tau_select=0.7,0.8")
    read = [value_of(name, each.strip()) for each in values.split(",")]
    if any(isinstance(value, list | tuple) for value in read):
        raise UserError(
            f"--grid {name}: its values are lists, which a comma cannot part: write the sweep in "
            "Python, as kdfm_ray.Sweep(space={...: grid((256, 128), (512,))})"
        )
    return name, Grid(values=tuple(read))
