"""Which paths leave their folder."""

from pathlib import Path

import pytest

from kdfm_ray.data.paths import leaves


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.png", False),
        ("a/../b.png", False),
        ("..hidden/b.png", False),
        ("/data/root/a.png", False),
        ("/data/root", False),
        ("../b.png", True),
        ("a/../../b.png", True),
        ("/etc/passwd", True),
        ("/data/root2/a.png", True),
    ],
)
def test_paths_that_leave_the_root(path, expected):
    assert leaves(Path("/data/root"), Path(path)) is expected
