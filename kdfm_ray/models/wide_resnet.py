"""The small-image Wide ResNets of the FixMatch literature, registered with timm.

Legend: n images, c channels, h x w pixels, d features (64 * widen factor), k classes.

Pre-activation residual blocks with leaky ReLU 0.1, widths 16, 16w, 32w, 64w, strides 1, 1, 2, 2
(Zagoruyko & Komodakis, arXiv 1605.07146; leaky ReLU as in Oliver et al., arXiv 1804.09170, whose
network FixMatch took over). Depth counts the convolutions: 6 * blocks + 4. Any image size works.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

LEAKY_SLOPE = 0.1
NORM_GROUPS = 8  # divides every width: all are multiples of 16

Norm = Literal["batch", "group"]


class Block(nn.Module):
    """Two 3x3 convolutions, each after norm and activation, added to a shortcut.

    With ``activate_shortcut`` the shortcut starts after the first activation: FixMatch's network
    does so in its very first block, so that the stem's output is normalized on both ways.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        *,
        stride: int,
        activate_shortcut: bool,
        make_norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.activate_shortcut = activate_shortcut
        self.norm1 = make_norm(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = make_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if in_width != width or stride != 1:
            self.shortcut = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)
        self.act = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.norm1(x))
        residual: Tensor = self.conv2(self.act(self.norm2(self.conv1(activated))))
        # In place: no layer keeps the convolution's output, and a sum of its own is slower.
        return residual.add_(self.shortcut(activated if self.activate_shortcut else x))


class WideResNet(nn.Module):
    """A Wide ResNet with timm's interface.

    Args:
        depth: 6 * blocks + 4.
        widen: the factor w.
        norm: ``group`` puts group norm (8 groups) in place of batch norm: no running statistics
            and no dependence between the images of a batch, which exact tests need.
        bn_momentum: share of a new batch in the running statistics. FixMatch's code uses 0.001,
            which needs some 10,000 steps to forget the start; 0.1 is right for shorter runs too.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        norm: Norm = "batch",
        bn_momentum: float = 0.1,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        assert (depth - 4) % 6 == 0, depth
        assert norm in ("batch", "group"), norm
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = 64 * widen

        def make_norm(width: int) -> nn.Module:
            if norm == "group":
                return nn.GroupNorm(NORM_GROUPS, width)
            return nn.BatchNorm2d(width, momentum=bn_momentum)

        self.conv_stem = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        in_width = 16
        for stage, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2))):
            blocks = []
            for i in range((depth - 4) // 6):
                block = Block(
                    in_width,
                    width * widen,
                    stride=stride if i == 0 else 1,
                    activate_shortcut=stage == 0 and i == 0,
                    make_norm=make_norm,
                )
                blocks.append(block)
                in_width = width * widen
            stages[str(stage)] = nn.Sequential(*blocks)
        self.stages = nn.Sequential(stages)
        self.norm = make_norm(in_width)
        self.act = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
        self.head_drop = nn.Dropout(drop_rate)
        self.fc: nn.Module
        self.reset_classifier(num_classes, global_pool)
        self.apply(_init_weights)

    def forward_features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        return self.act(self.norm(self.stages(self.conv_stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool == "avg":
            x = x.mean(dim=(2, 3))
        x = self.head_drop(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            assert global_pool in ("avg", ""), global_pool
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        _init_weights(self.fc)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Which layer a parameter belongs to, for layer-wise learning rates."""
        block = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^conv_stem", "blocks": block, "norm": r"^norm"}


def _init_weights(module: nn.Module) -> None:
    """FixMatch's start: normal with variance 2 / (k^2 * width_out), Glorot for the classifier."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
    elif isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)


def _cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "conv_stem",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in ("wrn_10_2", "wrn_16_2", "wrn_28_2", "wrn_28_8")}
)


def _create(variant: str, depth: int, widen: int, pretrained: bool, **kwargs: Any) -> WideResNet:
    return build_model_with_cfg(WideResNet, variant, pretrained, depth=depth, widen=widen, **kwargs)


@register_model
def wrn_10_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """0.3 million parameters: for one processor."""
    return _create("wrn_10_2", 10, 2, pretrained, **kwargs)


@register_model
def wrn_16_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """0.7 million parameters."""
    return _create("wrn_16_2", 16, 2, pretrained, **kwargs)


@register_model
def wrn_28_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """1.5 million parameters: FixMatch's network for CIFAR10 and SVHN."""
    return _create("wrn_28_2", 28, 2, pretrained, **kwargs)


@register_model
def wrn_28_8(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """23.4 million parameters: FixMatch's network for CIFAR100."""
    return _create("wrn_28_8", 28, 8, pretrained, **kwargs)
