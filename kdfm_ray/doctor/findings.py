"""What an examination found, and how it is told."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


class State(enum.StrEnum):
    """How bad it is: a warning costs speed or safety, an error the run; unknown is untold."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing, one or two words.
        state: how bad it is.
        text: what was seen.
        mend: what to do about it; empty where all is well.
    """

    name: str
    state: State
    text: str
    mend: str = ""


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name, State.OK, text)


def unknown(name: str, text: str, mend: str) -> Finding:
    """It could not be looked at; ``mend`` says how it can be."""
    return Finding(name, State.UNKNOWN, text, mend)


def warning(name: str, text: str, mend: str) -> Finding:
    """It works, but slowly, or not safely."""
    return Finding(name, State.WARNING, text, mend)


def error(name: str, text: str, mend: str) -> Finding:
    """A run would fail."""
    return Finding(name, State.ERROR, text, mend)


def failed(findings: Iterable[Finding]) -> bool:
    """Whether a run would fail."""
    return any(finding.state is State.ERROR for finding in findings)


def as_json(findings: Iterable[Finding]) -> str:
    """``{"healthy": bool, "findings": [{"name", "state", "text", "mend"}, ...]}``."""
    found = list(findings)
    return json.dumps(
        {"healthy": not failed(found), "findings": [asdict(each) for each in found]}, indent=2
    )


def as_lines(findings: Iterable[Finding]) -> list[str]:
    """One line for each, and a second one that says what to do."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.name:<18} {finding.text}")
        if finding.mend:
            lines.append(f"{'':8} {'':18} -> {finding.mend}")
    return lines
