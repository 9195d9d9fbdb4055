"""The command line: ``kdfm train``, ``sweep``, ``submit``, ``predict``, ``export`` and others.

Flags are built by tyro from the config's own types, one for every field. Their values stay text
until all of them are read, so that every mistake is reported at once, by the config itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel

from kdfm_ray.config import Config, flag_text, parse_config, set_recipe
from kdfm_ray.types import RunFailed, UserError

USAGE = """\
usage: kdfm COMMAND ...

  kdfm train [PRESET] [--flags]   train the outer network, find the trusted labels, train the
                                  inner network; `kdfm train --help` lists every flag
  kdfm sweep NAME [--flags]       many runs that differ in a few settings; NAME is a sweep, or a
                                  preset with --grid FIELD=VALUE,...; `kdfm sweep --help`
  kdfm sweep --status FOLDER      where a sweep is
  kdfm submit [train|sweep] ...   the same as a job of a cluster; `kdfm submit --help`
  kdfm predict RUN IMAGES --out FILE
                                  classes and confidence of new images; `kdfm predict --help`
  kdfm export RUN --format onnx|torch|safetensors
                                  the network as a file for other programs; `kdfm export --help`
  kdfm presets                    presets and sweeps by name, with their cost and result
  kdfm bench step|augment|label|select [--flags]
                                  how fast the parts are on this machine
  kdfm doctor [--store STORE]     whether this machine (and the cluster of RAY_ADDRESS) is fit for
                                  a run, and how to mend what is not

A preset is a name or path/to/file.py:function. Own images: kdfm train --data.labeled DIR
--data.unlabeled DIR [--data.test DIR] --out RUN
"""
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
SWEEP_FLAGS = ("--grid", "--seeds", "--samples", "--asha", "--max-concurrent", "--results")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 failed, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else BAD_INPUT
    command, rest = arguments[0], arguments[1:]
    commands = {
        "train": _train,
        "sweep": _sweep,
        "submit": _submit,
        "predict": _predict,
        "export": _export,
        "presets": _presets,
        "bench": _bench,
        "doctor": _doctor,
    }
    try:
        if command not in commands:
            raise UserError(f"no command {command!r}; commands: {', '.join(commands)}")
        commands[command](rest)
    except UserError as error:
        print(f"kdfm: {error}", file=sys.stderr)
        return BAD_INPUT
    except (FloatingPointError, RunFailed) as error:
        print(f"kdfm: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, most likely
        kept = "what is finished or saved is kept, and the same command goes on"
        print(f"kdfm: {error}; {kept}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as error:
        text = str(error) or "interrupted; finished stages are kept, the same command goes on"
        print(f"kdfm: {text}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _train(arguments: list[str]) -> None:
    from kdfm_ray.api import base_values, preset_name, run_config
    from kdfm_ray.checks import find_problems

    verbose = "--verbose" in arguments
    arguments = [argument for argument in arguments if argument != "--verbose"]
    preset = None
    if arguments and not arguments[0].startswith("-"):
        preset, arguments = arguments[0], arguments[1:]
    values = base_values(preset, None)
    problems = parse_flags(arguments, values)
    config = parse_config(values, problems + find_problems(values))
    run_config(config, name=preset_name(preset) if preset else "run", verbose=verbose)


def _sweep(arguments: list[str]) -> None:
    from pathlib import Path

    from rich.console import Console

    from kdfm_ray.report.place import is_uri
    from kdfm_ray.sweeps.command import build, parse
    from kdfm_ray.sweeps.run import default_folder, run_sweep
    from kdfm_ray.sweeps.status import print_end, print_status

    verbose = "--verbose" in arguments
    arguments = [argument for argument in arguments if argument != "--verbose"]
    named = bool(arguments) and not arguments[0].startswith("-")
    name, arguments = (arguments[0], arguments[1:]) if named else ("", arguments)
    flags, rest = parse(arguments)
    console = Console(highlight=False)
    if flags.status and not name:  # --status FOLDER
        if len(rest) != 1:
            raise UserError(
                "kdfm sweep --status takes the folder of a sweep, or its name before it"
            )
        print_status(rest[0], console)
        return
    if flags.status and (Path(name).is_dir() or is_uri(name)):
        print_status(name, console)
        return
    if not name and not rest:
        raise UserError("name a sweep: `kdfm presets` lists them, `kdfm sweep --help` the flags")
    from experiments import load_sweep

    found = load_sweep(name) if name else None  # by flags alone: own folders of images
    sweep, out = build(found, name, flags, rest, parse_flags, _value_of)
    if flags.status:
        print_status(out or default_folder(sweep), console)
        return
    print_end(run_sweep(sweep, out, console, verbose=verbose), sweep.fields, console)


def _submit(arguments: list[str]) -> None:
    import tyro

    from kdfm_ray.api import base_values
    from kdfm_ray.jobs.submit import DEFAULT_ADDRESS, Submission, check_places, job_files, submit

    def note(text: str, metavar: str = "") -> Any:
        return tyro.conf.arg(help=text, metavar=metavar) if metavar else tyro.conf.arg(help=text)

    kinds: list[Any] = [
        ("address", Annotated[str, note("of the cluster's dashboard", "URL")], ""),
        ("wait", Annotated[bool, note("show the job's output until it ends")], True),
    ]
    flags: Any = dataclasses.make_dataclass("Flags", kinds, frozen=True)
    parsed, command = tyro.cli(
        flags,
        args=arguments,
        prog="kdfm submit [train|sweep] NAME|PRESET",
        description="Run kdfm train (or sweep) as a job of a Ray cluster; all other flags are "
        "theirs. A job that was stopped, or whose cluster was lost, goes on when the same command "
        "is submitted again; one that still runs is only watched, if its code is the same.",
        return_unknown_args=True,
    )
    if not command or command[0] not in ("train", "sweep"):
        command = ["train", *command]
    rest = [argument for argument in command[1:] if argument != "--verbose"]
    preset = rest.pop(0) if rest and not rest[0].startswith("-") else ""
    files = job_files(preset)
    values, problems = _submitted_values(command[0], preset, rest, base_values)
    problems += check_places(values, values["store"] or os.environ.get("KDFM_STORE"))
    parse_config(values, problems)
    if values["store"] is None:
        command += ["--store", os.environ["KDFM_STORE"]]
    given = os.environ.get("RAY_API_SERVER_ADDRESS")
    address = parsed.address or given or DEFAULT_ADDRESS
    submit(Submission(command, files, address, parsed.wait), print)


def _submitted_values(
    kind: str, preset: str, arguments: list[str], base_values: Any
) -> tuple[dict[str, Any], list[str]]:
    """The nested config that a submitted command has, and mistakes in it."""
    if kind == "train":
        values = base_values(preset or None, None)
        return values, parse_flags(arguments, values)
    from experiments import load_sweep
    from kdfm_ray.jobs.submit import check_results
    from kdfm_ray.sweeps.command import parse
    from kdfm_ray.sweeps.space import Sweep

    found = load_sweep(preset) if preset else None
    config = found.base if isinstance(found, Sweep) else found
    values = base_values(None, config)
    flags, rest = parse(arguments)
    return values, parse_flags(rest, values) + check_results(flags.results)


def _predict(arguments: list[str]) -> None:
    from rich.console import Console

    from kdfm_ray.api import load
    from kdfm_ray.predictions.shell import parse, show

    flags = parse(arguments)
    try:
        found = load(flags.run).predict(
            flags.images,
            flags.out,
            review=flags.review,
            workers=flags.workers,
            use_gpu=flags.use_gpu,
            batch_size=flags.batch_size,
            progress=True,
            verbose=flags.verbose,
        )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("interrupted; nothing was written") from error
    show(found, Console(highlight=False))


def _export(arguments: list[str]) -> None:
    from rich.console import Console

    from kdfm_ray.api import load
    from kdfm_ray.export.shell import parse, show

    flags = parse(arguments)
    done = load(flags.run).export(flags.format, flags.out, images=flags.images, progress=True)
    show(done, Console(highlight=False))


def _presets(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"kdfm presets takes no arguments, got {' '.join(arguments)}")
    from rich.console import Console
    from rich.table import Table

    from experiments import PRESETS, SWEEPS, describe

    for kind, names in (("preset", PRESETS), ("sweep", SWEEPS)):
        table = Table(box=None, pad_edge=False)
        for column in (kind, "what", "cost", "result"):
            table.add_column(column, overflow="fold")
        for name in names:
            about = describe(name)
            table.add_row(name, about.what, about.cost, about.result)
        Console().print(table)
        if kind == "preset":
            Console().print()


def _bench(arguments: list[str]) -> None:
    """Run a benchmark, and print what it found as a table or as one JSON object."""
    from kdfm_ray.bench import BENCHMARKS, load

    if not arguments or arguments[0] not in BENCHMARKS:
        given = repr(arguments[0]) if arguments else "nothing"
        raise UserError(f"kdfm bench takes one of {', '.join(BENCHMARKS)}; got {given}")
    import tyro

    name, rest = arguments[0], arguments[1:]
    kind = load(name)
    bench, unknown = tyro.cli(kind, args=rest, prog=f"kdfm bench {name}", return_unknown_args=True)
    if unknown:
        raise UserError(f"kdfm bench {name} does not take {' '.join(unknown)}: see --help")
    found = bench.run()
    print(json.dumps(found) if bench.json else _as_lines(found))


def _doctor(arguments: list[str]) -> None:
    """Print what was found as it is found; an error ends with exit status 1."""
    import tyro

    from kdfm_ray.doctor import as_json, as_lines, examine, failed
    from kdfm_ray.store import default_root

    def note(text: str) -> Any:
        return tyro.conf.arg(help=text)

    kinds: list[Any] = [
        ("store", Annotated[str, note("folder or URI of the artifacts")], default_root()),
        ("json", Annotated[bool, note("print one JSON object")], False),
    ]
    flags: Any = dataclasses.make_dataclass("Flags", kinds, frozen=True)
    parsed, unknown = tyro.cli(
        flags,
        args=arguments,
        prog="kdfm doctor",
        description="Look at this machine, at the cluster of RAY_ADDRESS if there is one, and at "
        "the store. Exit status 1 where a run would fail.",
        return_unknown_args=True,
    )
    if unknown:
        raise UserError(f"kdfm doctor does not take {' '.join(unknown)}: see --help")
    found = []
    for finding in examine(parsed.store):
        found.append(finding)
        if not parsed.json:
            print("\n".join(as_lines([finding])), flush=True)
    if parsed.json:
        print(as_json(found))
    if failed(found):
        names = ", ".join(each.name for each in found if each.state == "error")
        raise RunFailed(f"a run would fail here: {names}")


def _as_lines(values: dict[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", _as_lines(value, indent + "  ")]
        else:
            shown = f"{value:,.4g}" if isinstance(value, float) else value
            lines.append(f"{indent}{name}: {shown}")
    return "\n".join(lines)


def parse_flags(arguments: list[str], values: dict[str, Any]) -> list[str]:
    """Overlay flags on nested ``values``, in place; returns the mistakes found on the way.

    ``--help`` prints every flag with its description and exits.
    """
    import tyro

    recipe = _recipe(arguments)
    if recipe is not None:
        set_recipe(values, recipe)
    flags = _flags_type(Config, values)
    parsed, unknown = tyro.cli(
        flags,
        args=arguments,
        prog="kdfm train [PRESET]",
        description="Train the outer network, find the trusted labels, train the inner network. "
        "--verbose lets Ray's own logs through.",
        return_unknown_args=True,
    )
    _overlay(values, Config, parsed)
    return _unknown_flags(unknown)


def _recipe(arguments: list[str]) -> str | None:
    """The recipe that is asked for: it changes what other flags are by default."""
    for place, argument in enumerate(arguments):
        if argument.startswith("--recipe="):
            return argument.partition("=")[2]
        if argument == "--recipe" and place + 1 < len(arguments):
            return arguments[place + 1]
    return None


def _flags_type(model: type[BaseModel], values: dict[str, Any]) -> Any:
    """A dataclass like ``model`` whose leaves are text, with ``values`` as defaults."""
    import tyro

    fields: list[Any] = []
    for name, field in model.model_fields.items():
        kind, value = field.annotation, values[name]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            section = _flags_type(kind, value)
            fields.append((name, section, dataclasses.field(default_factory=section)))
        else:
            help_text = field.description or ""
            note = tyro.conf.arg(help=help_text, metavar=_metavar(kind))
            fields.append((name, Annotated[str, note], dataclasses.field(default=flag_text(value))))
    return dataclasses.make_dataclass(model.__name__, fields, frozen=True)


def _overlay(values: dict[str, Any], model: type[BaseModel], parsed: Any) -> None:
    """Put those texts of ``parsed`` that are not the defaults into ``values``."""
    for name, field in model.model_fields.items():
        kind, given = field.annotation, getattr(parsed, name)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            _overlay(values[name], kind, given)
        elif given != flag_text(values[name]):
            values[name] = _value(given, kind)


def _value(text: str, kind: Any) -> Any:
    """The text as the config reads it; it converts numbers and complains itself."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if text == "none" and "none" not in choices:
        return None
    if typing.get_origin(kind) is tuple:
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _value_of(name: str, text: str) -> Any:
    """The text of a field's value as the config reads it; of an unknown field, as it is."""
    model: Any = Config
    for part in name.split("."):
        known = getattr(model, "model_fields", {}).get(part)
        if known is None:
            return text
        model = known.annotation
    return _value(text, model)


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(kind))
    if isinstance(kind, types.UnionType):
        return "|".join(_metavar(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "INT,INT,..."
    names = {bool: "yes|no", type(None): "none", int: "INT", float: "FLOAT", str: "TEXT"}
    return names.get(kind, "PATH")


def _unknown_flags(unknown: list[str]) -> list[str]:
    known = [*_flag_names(Config), *SWEEP_FLAGS]
    problems = []
    for flag in unknown:
        if not flag.startswith("--"):
            continue  # the value of an unknown flag
        name = flag.partition("=")[0]
        close = difflib.get_close_matches(name.replace("_", "-"), known, n=1)
        hint = (
            f"did you mean {close[0]}?"
            if close
            else "`kdfm train --help` lists those of a run, `kdfm sweep --help` those of a sweep"
        )
        problems.append(f"unknown flag {name}; {hint}")
    if unknown and not problems:
        problems.append(
            f"unexpected {' '.join(unknown)}; a preset comes first, flags start with --"
        )
    return problems


def _flag_names(model: type[BaseModel], prefix: str = "--") -> typing.Iterator[str]:
    for name, field in model.model_fields.items():
        flag = prefix + name.replace("_", "-")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _flag_names(field.annotation, f"{flag}.")
        else:
            yield flag
