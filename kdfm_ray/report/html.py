"""What the pages of runs and sweeps have in common: style, escaping, tables; one file each."""

from __future__ import annotations

import html
from collections.abc import Sequence

# Colors for any eye (Okabe & Ito, 2008), dark enough for lines and text on white.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#B8500B", "#00805E", "#6b6b6b"
PALETTE = (BLUE, ORANGE, GREEN, "#B04A86", "#9A6700", "#000000", "#2E8BC0", "#7A7A7A")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; text-align: left; border-bottom: 1px solid #ddd; }
td.n, th.n { text-align: right; } td { white-space: nowrap; }
.scroll { overflow-x: auto; background: linear-gradient(to right, #fff 40%, #fff0) 0 0 / 40px 100%,
  linear-gradient(to left, #fff 40%, #fff0) 100% 0 / 40px 100%,
  linear-gradient(to right, #0004, #0000) 0 0 / 12px 100%,
  linear-gradient(to left, #0004, #0000) 100% 0 / 12px 100%, #fff;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll, scroll; }
@media print { .scroll { background: none; } }
.dim { color: #666; } svg { max-width: 100%; height: auto; }
"""


def text(value: object) -> str:
    """Any value as text that is no markup."""
    return html.escape(str(value))


def page(title: str, parts: Sequence[str], *, head: str = "", style: str = "") -> str:
    """A whole document; ``parts`` and ``head`` are markup."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
        head: markup of each column's title.
        rows: markup of each cell.
        numbers: columns that are set to the right.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag} class=n>{cell}</{tag}>" if column in numbers else f"<{tag}>{cell}</{tag}>"
            for column, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f"<div class=scroll><table><thead><tr>{cells('th', head)}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
