"""A crash between any two file operations."""

import builtins
import contextlib
import os
import shutil
from pathlib import Path


class Crash(BaseException):
    """The process is gone: nothing after it runs."""


OPERATIONS = [
    (os, "mkdir"),
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
    (os, "rmdir"),
    (Path, "replace"),
    (Path, "write_text"),
    (shutil, "rmtree"),
    (os, "link"),
    (os, "open"),
    (builtins, "open"),
]


class Fuse:
    """Counts file operations, and crashes from the given one on."""

    def __init__(self, crash_at):
        self.crash_at, self.count = crash_at, 0

    def wrap(self, function):
        def counted(*args, **kwargs):
            self.count += 1
            if self.count >= self.crash_at:
                raise Crash
            return function(*args, **kwargs)

        return counted

    @contextlib.contextmanager
    def lit(self, monkeypatch):
        """In the block, file operations count."""
        with monkeypatch.context() as patch:
            for owner, name in OPERATIONS:
                patch.setattr(owner, name, self.wrap(getattr(owner, name)))
            yield
