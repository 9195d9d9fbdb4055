"""Folders of real colour pictures, to try `kdfm train` on images of one's own.

    apt-get install oxygen-icon-theme
    python experiments/icons.py FOLDER

makes FOLDER/labeled and FOLDER/test (a subfolder for each category, with symbolic links to icons of
32, 48 and 64 pixels) and FOLDER/unlabeled (links too, without categories). An icon is in one of the
three in all its sizes and under all its names, so nothing that is tested was seen in training.
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
TEST_SHARE = 0.25


def main() -> None:
    """Make the folders, and say how many pictures they hold."""
    arguments = parse()
    if not arguments.theme.is_dir():
        raise SystemExit(f"no icons at {arguments.theme}: apt-get install oxygen-icon-theme")
    counts: Counter[str] = Counter()
    for category in CATEGORIES:
        groups = icons(arguments.theme, category)
        order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
        tested = round(TEST_SHARE * len(order))
        for number, name in enumerate(order):
            if number < tested:
                folder = arguments.folder / "test" / category
            elif number < tested + arguments.labels:
                folder = arguments.folder / "labeled" / category
            else:
                folder = arguments.folder / "unlabeled"
            folder.mkdir(parents=True, exist_ok=True)
            for path in groups[name]:
                link = folder / f"{category}-{path.parent.parent.name}-{path.name}"
                if folder.name == "unlabeled":  # its name should not say what it is
                    token = hashlib.sha256(str(path).encode()).hexdigest()[:12]
                    link = folder / f"{token}{path.suffix}"
                link.unlink(missing_ok=True)
                os.symlink(path, link)
                counts[folder.relative_to(arguments.folder).parts[0]] += 1
    print(", ".join(f"{number} {part}" for part, number in sorted(counts.items())))


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--labels", type=int, default=10, help="icons of each category with a label"
    )
    parser.add_argument("--theme", type=Path, default=THEME)
    return parser.parse_args()


def icons(theme: Path, category: str) -> dict[str, list[Path]]:
    """Files of a category, links too, by the name of what they show."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for size in SIZES:
        for path in sorted((theme / size / category).glob("*.png")):
            target = path.resolve()
            if target.is_file() and target.parent.name == category:
                groups[target.stem].append(path)
    return groups


if __name__ == "__main__":
    main()
