"""Folders of real color pictures, to try `kdfm train` on images of one's own.

    apt-get install oxygen-icon-theme
    python experiments/icons.py FOLDER [--labels 15]

makes FOLDER/labeled (a subfolder for each category, with symbolic links to icons of 64 pixels, each
icon once), FOLDER/test (the same, but all names of an icon, in 32, 48 and 64 pixels) and
FOLDER/unlabeled (all names and sizes too, without categories). An icon is in one of the three with
all that belongs to it, so nothing that is tested was seen in training, and no labeled icon that
validates has a copy that trains.

experiments/icons.sh goes on from there: train, report, predict, export.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter, defaultdict
from pathlib import Path

THEME = Path("/usr/share/icons/oxygen/base")
SIZES = ("32x32", "48x48", "64x64")
CATEGORIES = ("actions", "apps", "devices", "mimetypes", "places", "status")
LABELS = 15
TEST_SHARE = 0.25


def main() -> None:
    """Make the folders, and say how many pictures they hold."""
    arguments = parse()
    try:
        counts = make(arguments.folder, labels=arguments.labels, theme=arguments.theme)
    except FileNotFoundError as error:
        raise SystemExit(f"{error}") from error
    print(", ".join(f"{number} {part}" for part, number in sorted(counts.items())))


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--labels", type=int, default=LABELS, help="icons of each category with a label"
    )
    parser.add_argument("--theme", type=Path, default=THEME)
    return parser.parse_args()


def make(folder: Path, *, labels: int = LABELS, theme: Path = THEME) -> Counter[str]:
    """Link the icons into the three parts of ``folder``; how many each part has.

    Raises:
        FileNotFoundError: the theme is not there: says how to install it.
    """
    if not theme.is_dir():
        raise FileNotFoundError(f"no icons at {theme}: apt-get install oxygen-icon-theme")
    counts: Counter[str] = Counter()
    for category in CATEGORIES:
        groups = icons(theme, category)
        order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
        tested = round(TEST_SHARE * len(order))
        for number, name in enumerate(order):
            paths = groups[name]
            if number < tested:
                part = "test"
            elif number < tested + labels:
                part, paths = "labeled", paths[-1:]
            else:
                part = "unlabeled"
            for path in paths:
                _link(path, folder, part, category)
            counts[part] += len(paths)
    return counts


def _link(path: Path, folder: Path, part: str, category: str) -> None:
    if part == "unlabeled":  # its name should not say what it is
        token = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        link = folder / part / f"{token}{path.suffix}"
    else:
        link = folder / part / category / f"{path.parent.parent.name}-{path.name}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    os.symlink(path, link)


def icons(theme: Path, category: str) -> dict[str, list[Path]]:
    """Files of a category, links too, by the name of what they show; the largest are the last."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for size in SIZES:
        for path in sorted((theme / size / category).glob("*.png")):
            target = path.resolve()
            if target.is_file() and target.parent.name == category:
                groups[target.stem].append(path)
    return groups


if __name__ == "__main__":
    main()
