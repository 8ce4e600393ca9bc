"""
The directive ``chart``: bars of figures that the benchmarks and the fault table keep.

``.. chart:: TITLE`` has one bar per line, ``SOURCE: FIGURE -> LABEL``. SOURCE is the name of a benchmark
(``performance-figures.json``) or the number of a row of the fault table (``reliability-figures.json``). A line without
an arrow is a heading. A figure that does not exist is an error.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_DOCS = Path(__file__).parent
_WIDTH = 640
_BARS_FROM, _BARS_TO = 250, 530
_ROW, _BAR = 24, 14


def figuresOf(source: str) -> dict[str, tuple[float, str]]:
    """The figures of a benchmark or of a row of the fault table, by name, with their units."""
    if source.isdigit():
        kept: Any = json.loads((_DOCS / "reliability-figures.json").read_text())
        return {name: (value, "s") for name, value in kept[source]["figures"].items()}
    kept = json.loads((_DOCS / "performance-figures.json").read_text())
    return {figure["name"]: (figure["value"], figure["unit"]) for figure in kept[source]["figures"]}


def written(value: float, unit: str) -> str:
    """A value with its unit, and as many digits as a reader needs."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()


class Chart(SphinxDirective):
    """See the module."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """See docutils."""
        rows: list[tuple[str, float | None, str]] = []
        for line in filter(None, self.content):
            named, arrow, label = line.partition(" -> ")
            if not arrow:
                rows.append((line, None, ""))
                continue
            source, _, name = named.partition(": ")
            try:
                value, unit = figuresOf(source)[name]
            except KeyError:
                raise self.error(f"no such figure: {named!r}")
            rows.append((label, value, written(value, unit)))
        for kept in ("performance", "reliability"):
            self.env.note_dependency(str(_DOCS / f"{kept}-figures.json"))
        return [nodes.raw("", drawn(self.arguments[0], rows), format="html")]


def drawn(title: str, rows: list[tuple[str, float | None, str]]) -> str:
    """The chart as HTML, with its numbers as text for readers who do not see it."""
    longest = max(value for _, value, _ in rows if value is not None)
    told = "; ".join(f"{label}: {text}" if text else label for label, _, text in rows)
    pieces = [
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_ROW * len(rows) + 4}" role="img" aria-label="{escape(told)}">'
    ]
    for number, (label, value, text) in enumerate(rows):
        middle = _ROW * number + _ROW // 2
        if value is None:
            pieces.append(f'<text class="heading" x="0" y="{middle + 4}">{escape(label)}</text>')
            continue
        length = max(1.0, (_BARS_TO - _BARS_FROM) * value / longest)
        pieces.append(
            f'<text x="{_BARS_FROM - 8}" y="{middle + 4}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{_BARS_FROM}" y="{middle - _BAR // 2}" width="{length:.1f}" height="{_BAR}" rx="2"/>'
            f'<text x="{_BARS_FROM + length + 6:.1f}" y="{middle + 4}">{escape(text)}</text>'
        )
    return "".join([*pieces, "</svg></figure>"])


def setup(app: Sphinx) -> dict[str, bool]:
    """See Sphinx."""
    app.add_directive("chart", Chart)
    return {"parallel_read_safe": True}
