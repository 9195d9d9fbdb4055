"""Shapes and dtypes written in annotations are checked while the tests run."""

from jaxtyping import install_import_hook

CHECKED = [
    "kdfm_ray.data",
    "kdfm_ray.method",
    "kdfm_ray.trust",
    "kdfm_ray.augment",
    "kdfm_ray.models",
]
install_import_hook(CHECKED, "beartype.beartype")
