"""The part of the report that shows images: where they lie, and what became of some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdfm_ray.report.charts import SHAPES, Dots, dot_map, figure, mark
from kdfm_ray.report.html import BLUE, GRAY, ORANGE, PALETTE, text

# fate -> its words, color and shape on the map; drawn in this order.
FATES = {
    "unsure": ("not confident enough", GRAY, "ring"),
    "confident": ("confident", BLUE, "dot"),
    "trusted": ("trusted", BLUE, "dot"),
    "disagreeing": ("confident, but its cluster is of another class", ORANGE, "cross"),
    "labeled": ("labeled", "#000000", "triangle"),
}
TITLES = {
    "trusted": "Trusted",
    "confident": "Confident",
    "unsure": "Rejected: not confident enough",
    "disagreeing": "Rejected: its cluster is of another class",
    "overridden": "Overridden: trusted, but the second network is sure of another class",
}
MOST_NAMED = 24  # classes whose names are written on the map


def map_section(pictures: Mapping[str, Any] | None, classes: Sequence[str]) -> str:
    """Two maps of the same points: by class, and by what became of them."""
    if not pictures or not pictures.get("map"):
        return ""
    found = pictures["map"]
    points = list(zip(found["x"], found["y"], strict=True))
    by_class = [
        Dots(
            name,
            [point for point, k in zip(points, found["predicted"], strict=True) if k == number],
            PALETTE[number % len(PALETTE)],  # 8 colors and 5 shapes: 40 classes look different
            SHAPES[number % len(SHAPES)],
            label=len(classes) <= MOST_NAMED,
        )
        for number, name in enumerate(classes)
    ]
    by_fate = [
        Dots(
            words,
            [point for point, fate in zip(points, found["fate"], strict=True) if fate == name],
            color,
            shape,
        )
        for name, (words, color, shape) in FATES.items()
    ]
    few = len(classes) <= MOST_NAMED
    of_classes = _legend(by_class) if few else "Point at a mark for the name of its class."
    return (
        "<h2>Map of the images</h2><p class=dim>Embeddings of the FixMatch network, "
        f"{len(points):,} of {found['of']:,} images, by {text(found['method'])}. Near ones are "
        "alike to the network; distances between groups, and their sizes, mean little.</p>"
        "<div class=charts>"
        + figure(
            "By predicted class",
            dot_map(by_class, label="Map of embeddings by predicted class"),
            of_classes,
        )
        + figure(
            "By what became of them",
            dot_map(by_fate, label="Map of embeddings by trust"),
            _legend(by_fate),
        )
        + "</div>"
    )


def _legend(groups: Sequence[Dots]) -> str:
    """The mark, name and number of points of each group that has some."""
    shown = "".join(
        f"<span>{mark(dots.shape, dots.color)} {text(dots.name)} ({len(dots.points):,})</span>"
        for dots in groups
        if dots.points
    )
    return f"<span class=legend>{shown}</span>"


def examples_section(pictures: Mapping[str, Any] | None, classes: Sequence[str]) -> str:
    """Images of each fate with their labels, drawn at random."""
    if not pictures:
        return ""
    parts = []
    for name, title in TITLES.items():
        group = pictures["examples"].get(name)
        if group is None or (not group["images"] and name in ("confident", "disagreeing")):
            continue
        parts.append(f"<h3>{title}: {_how_many(name, group, pictures)}</h3>")
        images = "".join(_example(each, classes) for each in group["images"])
        parts.append(f"<div class=examples>{images}</div>" if images else "")
    return (
        "<h2>Examples</h2><p class=dim>Drawn at random. The label is the FixMatch network's, with "
        "its confidence; ✗ marks one that is known to be wrong, with the true class.</p>"
        + "".join(parts)
    )


def _how_many(name: str, group: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    if name == "overridden" and pictures.get("overridden"):
        return f"{group['count']:,} of {pictures['overridden']['looked_at']:,} that were looked at"
    return f"{group['count']:,} images" if group["count"] != 1 else "1 image"


def _example(found: Mapping[str, Any], classes: Sequence[str]) -> str:
    label = classes[found["predicted"]]
    said = f"{text(label)} ({100 * found['confidence']:.0f} %)"
    if "own" in found:
        own = f"{text(classes[found['own']])} ({100 * found['own_confidence']:.0f} %)"
        said = f"{said}<br>second: {own}"
    true = found["truth"]
    alternative = label
    if true >= 0 and true != found["predicted"]:
        said += f"<br>✗ is {text(classes[true])}"
        alternative = f"{label}, truly {classes[true]}"
    return (
        f'<figure><img alt="{text(alternative)}" src="data:image/png;base64,{found["png"]}">'
        f"<figcaption>{said}</figcaption></figure>"
    )
