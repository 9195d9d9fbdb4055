"""The command line: ``kdfm train [PRESET] [--flags]``, ``kdfm presets``, ``kdfm bench PART``.

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

from kdfm_ray.config import Config, parse_config
from kdfm_ray.types import RunFailed, UserError

USAGE = """\
usage: kdfm COMMAND ...

  kdfm train [PRESET] [--flags]   train the outer network, find the trusted labels, train the
                                  inner network; `kdfm train --help` lists every flag
  kdfm presets                    presets by name, with their cost and result
  kdfm bench step|augment|label|select [--flags]
                                  how fast the parts are on this machine

A preset is a name or path/to/file.py:function. Own images: kdfm train --data.labeled DIR
--data.unlabeled DIR [--data.test DIR] --out RUN
"""
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 failed, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else BAD_INPUT
    command, rest = arguments[0], arguments[1:]
    commands = {"train": _train, "presets": _presets, "bench": _bench}
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
    from kdfm_ray.api import base_values, find_problems, preset_name, run_config

    verbose = "--verbose" in arguments
    arguments = [argument for argument in arguments if argument != "--verbose"]
    preset = None
    if arguments and not arguments[0].startswith("-"):
        preset, arguments = arguments[0], arguments[1:]
    values = base_values(preset, None)
    problems = parse_flags(arguments, values)
    config = parse_config(values, problems + find_problems(values))
    run_config(config, name=preset_name(preset) if preset else "run", verbose=verbose)


def _presets(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"kdfm presets takes no arguments, got {' '.join(arguments)}")
    from rich.console import Console
    from rich.table import Table

    from experiments import PRESETS, describe

    table = Table(box=None, pad_edge=False)
    for column in ("preset", "what", "cost", "result"):
        table.add_column(column, overflow="fold")
    for name in PRESETS:
        about = describe(name)
        table.add_row(name, about.what, about.cost, about.result)
    Console().print(table)


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
            fields.append((name, Annotated[str, note], dataclasses.field(default=_text(value))))
    return dataclasses.make_dataclass(model.__name__, fields, frozen=True)


def _overlay(values: dict[str, Any], model: type[BaseModel], parsed: Any) -> None:
    """Put those texts of ``parsed`` that are not the defaults into ``values``."""
    for name, field in model.model_fields.items():
        kind, given = field.annotation, getattr(parsed, name)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            _overlay(values[name], kind, given)
        elif given != _text(values[name]):
            values[name] = _value(given, kind)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return str(value)


def _value(text: str, kind: Any) -> Any:
    """The text as the config reads it; it converts numbers and complains itself."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if text == "none" and "none" not in choices:
        return None
    if typing.get_origin(kind) is tuple:
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


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
    known = list(_flag_names(Config))
    problems = []
    for flag in unknown:
        if not flag.startswith("--"):
            continue  # the value of an unknown flag
        name = flag.partition("=")[0]
        close = difflib.get_close_matches(name.replace("_", "-"), known, n=1)
        hint = f"did you mean {close[0]}?" if close else "`kdfm train --help` lists all"
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
