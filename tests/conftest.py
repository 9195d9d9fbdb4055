"""Shapes and dtypes written in annotations are checked while the tests run; Ray stays on loopback.

Ray reads its setting when it is imported, which some test may do before a session is opened.
"""

import os

from jaxtyping import install_import_hook

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

CHECKED = [
    "kdfm_ray.data",
    "kdfm_ray.method",
    "kdfm_ray.trust",
    "kdfm_ray.augment",
    "kdfm_ray.models",
]
install_import_hook(CHECKED, "beartype.beartype")
