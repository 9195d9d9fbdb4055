"""What a config leaves open for images of one's own, filled once the images have been read.

Pure: what was found and a config in, a config without open fields out. The data stage finds, all
later stages see the filled config, and so do the keys of networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdfm_ray.config import NAMED, Config, is_open, parse_config

PASSES = 20  # over the larger of the two sets; ours, as are all numbers here
STEPS = (500, 20_000)  # at least, at most
# (optimizer, from pretrained weights) -> peak. 0.03: FixMatch's; 0.01: as our presets of pretrained
# networks have it.
LEARNING_RATES = {
    ("sgd", False): 0.03,
    ("sgd", True): 0.01,
    ("adamw", False): 1e-3,
    ("adamw", True): 3e-4,
}
FAR_FROM_EQUAL = 3  # times as many labeled images in the largest class as in the smallest
MOST_CLASSES = 12  # that a line names one by one


@dataclass(frozen=True)
class Found:
    """What the data stage found where a config leaves things open; fit for JSON.

    Attributes:
        pretrained: ``no``, ``yes`` or a file.
        pretrained_why: where it came from; empty where the config says it.
        image_size: pixels a side.
        image_size_why: the same.
        labeled: training images with a label.
        unlabeled: images without, those with one included.
        warning: what a person should mend; empty where there is nothing.
    """

    pretrained: str
    pretrained_why: str
    image_size: int
    image_size_why: str
    labeled: int
    unlabeled: int
    warning: str = ""


@dataclass(frozen=True)
class Choice:
    """A field that was open, what it was filled with, and why; the reason ends a sentence, and is
    empty where nobody needs to be told."""

    field: str
    value: Any
    why: str

    def __str__(self) -> str:
        shown = f"{self.value:,}" if isinstance(self.value, int) else f"{self.value}"
        return f"{self.field} = {shown}: {self.why}"


def open_fields(config: Config) -> list[str]:
    """Dotted names of the fields that are still open."""
    names = [f"{section}.{name}" for section in NAMED for name in NAMED[section]]
    if config.data.name is None:  # else the data set has a size of its own
        names.append("data.image_size")
    return [name for name in names if _is_open(config, name)]


def _is_open(config: Config, name: str) -> bool:
    section, _, field = name.partition(".")
    return is_open(getattr(config, section), field)


def fill(config: Config, found: Found) -> tuple[Config, tuple[Choice, ...]]:
    """The config without open fields, and what they were filled with.

    Raises:
        UserError: fields that are set do not go with those that were filled.
    """
    left = open_fields(config)
    if not left:
        return config, ()
    steps = config.train.steps
    why_steps = "as set"
    if _is_open(config, "train.steps"):
        steps, why_steps = _steps(config, found)
    choices = {
        "model.pretrained": (found.pretrained, found.pretrained_why),
        "data.image_size": (found.image_size, found.image_size_why),
        "train.steps": (steps, why_steps),
        "train.learning_rate": _learning_rate(config, found),
        "train.eval_every": (_within(steps // 10, 10, 2000), "a tenth of the steps"),
        "train.log_every": (_within(steps // 100, 10, 100), "a hundredth of the steps"),
        "select.align_strength": _align_strength(config),
    }
    made = tuple(Choice(name, *values) for name, values in choices.items() if name in left)
    values = config.model_dump(mode="json")
    for choice in made:
        section, _, field = choice.field.partition(".")
        values[section][field] = choice.value
    return parse_config(values), made


def _steps(config: Config, found: Found) -> tuple[int, str]:
    """So many updates as the larger set needs for its passes, to two digits."""
    batch = config.train.batch_size
    streams = {
        "unlabeled": (found.unlabeled, batch * config.fixmatch.mu),
        "labeled": (found.labeled, batch),
    }
    name, (images, each) = max(streams.items(), key=lambda item: item[1][0] / item[1][1])
    wanted = PASSES * images / each
    steps = _within(_rounded(wanted), *STEPS)
    why = f"{PASSES} passes over {images:,} {name} images, {each:,} an update"
    if steps == STEPS[0] > wanted:
        return steps, f"the least; {why}, would be {round(wanted):,}"
    if steps == STEPS[1] < wanted:
        return steps, f"the most; {why}, would be {round(wanted):,}"
    return steps, why


def _learning_rate(config: Config, found: Found) -> tuple[float, str]:
    optimizer, fine = config.train.optimizer, found.pretrained != "no"
    start = "pretrained weights" if fine else "random weights"
    return LEARNING_RATES[optimizer, fine], f"{optimizer} from {start}"


def _align_strength(config: Config) -> tuple[float, str]:
    if config.select.align != "labeled":
        return 1.0, ""
    why = "how often classes come among the unlabeled images is not known; 1 where as often as "
    return 0.5, f"{why}among the labeled ones"


def _within(value: int, least: int, most: int) -> int:
    return min(most, max(least, value))


def _rounded(value: float) -> int:
    """To two digits."""
    unit = 10 ** max(0, len(str(int(value))) - 2)
    return int(unit * round(value / unit))


ASSUMED = {"labeled": "in these proportions, too", "uniform": "equally many"}


def describe_classes(
    classes: list[str], labeled: list[int], val: list[int], *, aligned: bool, assumed: str = "none"
) -> list[str]:
    """What a terminal says of how many labeled images the classes have.

    Args:
        classes: names.
        labeled, val: images of each class that train, and that validate.
        aligned: whether pseudo labels are aligned already while networks train.
        assumed: ``select.align``: the proportions that classes are taken to have.
    """

    def one(k: int) -> str:
        return f"{classes[k]} {labeled[k]:,}" + (f" + {val[k]:,}" if any(val) else "")

    order = sorted(range(len(classes)), key=lambda k: (labeled[k], classes[k]))
    if len(classes) <= MOST_CLASSES:
        shown = ", ".join(one(k) for k in range(len(classes)))
    else:
        shown = f"{len(classes)} classes, from {one(order[0])} to {one(order[-1])}"
    kinds = "training + validation" if any(val) else "training"
    lines = [f"labeled images ({kinds}): {shown}"]
    fewest, most = labeled[order[0]], labeled[order[-1]]
    if most > FAR_FROM_EQUAL * fewest:
        text = f"classes are far from equal ({classes[order[-1]]} has {most:,} labeled images, "
        text += f"{classes[order[0]]} {fewest:,}): small ones may lose"
        flags = [] if aligned else ["--fixmatch.align labeled"]
        lines.append(f"{text}; see {' and '.join([*flags, '--select.max-per-class N'])}")
    if assumed != "none":
        lines.append(
            f"assumed: among the unlabeled images classes are {ASSUMED[assumed]}; if they are far "
            "from that, give --select.align none"
        )
    return lines


def read_found(values: Mapping[str, Any] | None) -> Found | None:
    """What an earlier try noted; nothing where there was none, or where it is damaged."""
    try:
        return Found(**values) if values else None
    except TypeError:
        return None
