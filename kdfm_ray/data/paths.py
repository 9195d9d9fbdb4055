"""Paths that a file names stay below the folder they are meant for."""

from __future__ import annotations

import os
from pathlib import Path


def leaves(root: Path, path: Path) -> bool:
    """Whether ``path`` (absolute, or relative to ``root``) points outside ``root``.

    By its text alone: a symbolic link below ``root`` may lead where its owner wants.
    """
    base = os.path.abspath(root)
    target = os.path.abspath(os.path.join(base, path))
    return os.path.commonpath([base, target]) != base
