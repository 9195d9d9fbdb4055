"""Who may import whom: Ray stays in its wing, and arrows between modules only point down."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "kdfm_ray"

# From the top of the house to the bottom; a module imports only from its own layer or below.
LAYERS = [
    ["__main__"],
    ["cli"],
    ["__init__"],
    ["api", "bench", "doctor"],
    ["sweeps"],
    ["predictions", "export"],
    ["report"],
    ["pipeline"],
    ["jobs", "keys", "checks"],
    ["training"],
    ["method", "trust", "augment"],
    ["models", "data"],
    ["checkpoints", "leases"],
    ["store"],
    ["resolve"],
    ["config", "remote"],
    ["types"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
RAY_WING = ("jobs", "sweeps", "doctor")


def modules():
    return sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.py"))


def imports(module):
    """Names imported anywhere in a module, but for those under TYPE_CHECKING."""
    tree = ast.parse((ROOT / f"{module}.py").read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module):
    return module.split("/")[0]


@pytest.mark.parametrize("module", modules())
def test_every_module_has_a_layer(module):
    assert part(module) in LEVEL


@pytest.mark.parametrize("module", modules())
def test_ray_is_imported_only_in_its_wing(module):
    if part(module) not in RAY_WING:
        assert not [name for name in imports(module) if name.split(".")[0] == "ray"]


@pytest.mark.parametrize("module", modules())
def test_arrows_point_down(module):
    for name in imports(module):
        pieces = name.split(".")
        if pieces[0] == "kdfm_ray" and len(pieces) > 1 and pieces[1] in LEVEL:
            assert LEVEL[pieces[1]] >= LEVEL[part(module)], f"{module} imports {name}"


def test_importing_the_package_is_cheap():
    """No torch and no Ray until something runs: `kdfm --help` answers at once."""
    import subprocess
    import sys

    code = "import sys, kdfm_ray, kdfm_ray.cli; print(*{'torch', 'ray', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
