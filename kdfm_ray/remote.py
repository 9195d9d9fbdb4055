"""Files behind URIs: their listings are always fresh, and their errors are plain ``OSError``s.

Libraries of object stores raise exceptions of their own. Some are no ``OSError``, and their texts
may repeat an endpoint's password. Here alone they become a ``StoreError`` with words of ours.
"""

from __future__ import annotations

import errno
import functools
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

if TYPE_CHECKING:
    import pyarrow.fs

OBJECT_STORES = ("s3", "s3a", "gs", "gcs")  # no folders; makedirs would make a missing bucket


class StoreError(OSError):
    """A store behind a URI did not do what it was asked; its text says why and what to do."""


def open_files(url: str, what: str = "the store") -> tuple[Any, str]:
    """The file system of a URI (or folder), and the path in it.

    Listings are not cached: other processes write there too.

    Args:
        url: what to open.
        what: lies there, for messages.
    """
    files, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return (files if isinstance(files, LocalFileSystem) else _Remote(files, url, what)), path


def create(files: Any, path: str, data: bytes) -> bool:
    """Write a file where there is none; whether there was none.

    Of two processes at once S3 lets one alone do so; elsewhere both may believe that they did.
    """
    if files.exists(path):
        return False
    if getattr(files, "exclusive", False):
        try:
            files.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            return False
        except StoreError as error:
            if error.errno != errno.ENOSYS:  # else: an S3 without conditional writes
                raise
    files.pipe_file(path, data)
    return True


def arrow_place(url: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """A URI (or folder) for a library that writes by pyarrow: the path, and its file system.

    pyarrow knows few kinds of URIs itself, and asks for credentials and endpoints in ways of its
    own. So it goes through fsspec, as everything else of ours. ``None``: this machine's files.
    """
    import pyarrow.fs

    files, path = fsspec.url_to_fs(url, use_listings_cache=False)
    if isinstance(files, LocalFileSystem):
        return path, None
    return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files))


class _Remote:
    """A file system whose methods raise ``FileNotFoundError`` and other ``OSError``s only."""

    def __init__(self, files: Any, url: str, what: str) -> None:
        self._files, self._what = files, what
        protocol, _, rest = url.partition("://")
        self._bucket = f"{protocol}://{rest.partition('/')[0]}"
        self.exclusive = protocol in ("s3", "s3a")  # can create where there is nothing, in one step

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder, where there are folders."""
        if not self._bucket.startswith(tuple(f"{name}://" for name in OBJECT_STORES)):
            self._files.makedirs(path, exist_ok=exist_ok)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._files, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return found(*args, **kwargs)
            except FileExistsError:
                raise
            except Exception as error:
                if isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket":
                    raise
                failure = _explained(self._what, self._bucket, error)
            raise failure  # outside: without the library's text, even in a traceback

        return call


def _code(error: BaseException) -> str:
    """The server's own name for an error, or the exception's."""
    for found in (error, error.__cause__):
        response = getattr(found, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return type(error).__name__


def _explained(what: str, bucket: str, error: Exception) -> StoreError:
    code = _code(error)
    if code == "NoSuchBucket":
        place = "--store or KDFM_STORE" if what == "the store" else "its name"
        why = f"there is no such bucket: make it, or correct {place}"
    elif "Credential" in code:
        why = (
            "no usable credentials were found: give them as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"
        )
    elif isinstance(error, PermissionError):
        why = (
            "access is refused: check the credentials, and that they may read, list and (for a "
            "store) write and delete there"
        )
    elif "Connect" in code or "Timeout" in code or code == "HTTPClientError":
        why = "it does not answer: check the network, AWS_ENDPOINT_URL and the region"
    else:
        why = "the request failed, repeated or not: try again later, or look at the server"
    failure = StoreError(f"{what} {bucket}: {why} ({code})")
    failure.errno = error.errno if isinstance(error, OSError) else None
    return failure
