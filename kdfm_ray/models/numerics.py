"""How a network computes: precision, memory layout, and whether torch.compile makes its kernels.

The same on all workers of a run. Results differ by rounding between the choices (and compiled
dropout draws other masks), so the choice is part of a network's key.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar, cast

from kdfm_ray.config import Config, MemoryFormat, Precision, TrainConfig

if TYPE_CHECKING:  # the driver handles choices and computes nothing: it needs no torch
    import torch
    from torch import nn

MANY_SHAPES = 64  # of networks and batches that one process may train with
N = TypeVar("N")  # a network; bound to no class of torch, see above


@dataclass(frozen=True)
class Numerics:
    """One choice of how to compute.

    Attributes:
        precision: ``fp32`` (never TensorFloat-32), or ``bf16`` where torch's autocast holds
            bfloat16 safe. Weights, gradients and optimizer state stay float32 either way.
        memory_format: layout of weights and images, ``channels_last`` or ``contiguous``.
        compile: whether passes run through ``torch.compile``.
    """

    precision: Precision = "fp32"
    memory_format: MemoryFormat = "channels_last"
    compile: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """A context for forward passes; the backward pass belongs outside."""
        if self.precision == "fp32":
            return nullcontext()
        import torch

        return torch.autocast(device.type, torch.bfloat16)

    def place(self, network: N, device: torch.device) -> N:
        """The network on its device and in its layout (in place)."""
        import torch

        formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
        module = cast("nn.Module", network)
        module.to(device).to(memory_format=formats[self.memory_format])
        if device.type == "cuda":
            _compute_in_float32()
        return network

    def compiled(
        self, module: nn.Module, *, same_shapes: bool = True, optional: bool = False
    ) -> nn.Module:
        """The module to call in training: itself, or its compiled form with the same weights.

        Args:
            module: what is called.
            same_shapes: its batches have a few sizes, again and again: each has kernels of its
                own, which are faster than those for any size.
            optional: what cannot be compiled here runs as it is, with a warning.
        """
        if not self.compile:
            return module
        import torch

        dynamo = torch._dynamo.config
        dynamo.suppress_errors = optional
        # Of all networks of a process together; beyond it torch stops compiling, silently.
        dynamo.recompile_limit = max(dynamo.recompile_limit, MANY_SHAPES)
        # On machines without a GPU it says so, once for each process.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        return cast("nn.Module", torch.compile(module, dynamic=False if same_shapes else None))

    def __str__(self) -> str:
        return f"{self.precision} {self.memory_format}" + (" compiled" if self.compile else "")


def _compute_in_float32() -> None:
    """Have this process round float32 nowhere to TensorFloat-32, as cuDNN's convolutions would."""
    import torch

    cudnn: Any = torch.backends.cudnn  # whose types lack its parts
    for part in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn):
        part.fp32_precision = "ieee"


def allowed_numerics(train: TrainConfig) -> list[Numerics]:
    """All that the config leaves open, likely winners first; float16 is never among them.

    Not among them either is what ``compile = auto`` may add, see ``compile_is_open``.
    """
    precisions: list[Precision] = ["bf16", "fp32"]
    if train.precision != "auto":
        precisions = [train.precision]
    formats: list[MemoryFormat] = ["channels_last", "contiguous"]
    if train.memory_format != "auto":
        formats = [train.memory_format]
    return [
        Numerics(precision, memory_format, train.compile == "on")
        for memory_format, precision in product(formats, precisions)
    ]


def compile_is_open(config: Config) -> bool:
    """Whether a long run may find out if compiled passes are faster.

    Where precision and layout are pinned, so is this: such runs are compared with each other. And
    not with norms over all workers, which torch cannot compile in one piece.
    """
    return (
        config.train.compile == "auto"
        and len(allowed_numerics(config.train)) > 1
        and config.train.norm_sync == "local"
    )


def possible_numerics(config: Config) -> list[Numerics]:
    """All that a run of this config may have been begun with."""
    plain = allowed_numerics(config.train)
    if not compile_is_open(config):
        return plain
    return plain + [replace(choice, compile=True) for choice in plain]
