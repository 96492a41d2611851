"""Result tables rendered as text, HTML and LaTeX."""

from dataclasses import dataclass

import pandas as pd

DIGITS = 4


def cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        small = value != 0 and abs(value) < 10.0**-DIGITS
        return f"{value:.2e}" if small or abs(value) >= 1e8 else f"{value:.{DIGITS}f}"
    return str(value)


def _as_strings(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(cell)


@dataclass(frozen=True)
class Summary:
    """A titled list of tables with notes; prints as text, shows as HTML in notebooks.

    Attributes
    ----------
    tables : list of DataFrame: model facts, parameter estimates, variance components.
    """

    title: str
    tables: list[pd.DataFrame]
    captions: tuple[str, ...]
    notes: tuple[str, ...]

    def as_text(self) -> str:
        blocks = []
        for caption, table in zip(self.captions, self.tables, strict=True):
            text = _as_strings(table).to_string(header=bool(caption), index=bool(caption))
            blocks.append(f"{caption}\n{text}" if caption else text)
        width = max(len(line) for block in blocks for line in block.splitlines())
        rule = "=" * width
        parts = [self.title.center(width).rstrip(), rule, f"\n{'-' * width}\n".join(blocks), rule, *self.notes]
        return "\n".join(parts)

    def as_html(self) -> str:
        parts = [f"<h4>{self.title}</h4>"]
        for caption, table in zip(self.captions, self.tables, strict=True):
            parts += [f"<p><b>{caption}</b></p>"] if caption else []
            parts.append(_as_strings(table).to_html(header=bool(caption), index=bool(caption)))
        return "\n".join(parts + [f"<p>{note}</p>" for note in self.notes])

    def as_latex(self) -> str:
        parts = ["\\begin{table}", f"\\caption{{{_escape(self.title)}}}"]
        parts += [_tabular(table, bool(caption)) for caption, table in zip(self.captions, self.tables, strict=True)]
        parts += [f"\\par {_escape(note)}" for note in self.notes]
        return "\n".join([*parts, "\\end{table}"])

    def __str__(self) -> str:
        return self.as_text()

    def __repr__(self) -> str:
        return self.as_text()

    def _repr_html_(self) -> str:
        return self.as_html()

    def _repr_latex_(self) -> str:
        return self.as_latex()


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "−": "$-$",
    "²": "$^2$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def _tabular(table: pd.DataFrame, labelled: bool) -> str:
    cells = _as_strings(table)
    rows = [list(row) for row in cells.itertuples(index=False)]
    if labelled:
        rows = [[str(i), *row] for i, row in zip(cells.index, rows, strict=True)]
    lines = [" & ".join(_escape(str(c)) for c in row) + " \\\\" for row in rows]
    if labelled:
        header = " & ".join(["", *(_escape(str(c)) for c in cells.columns)]) + " \\\\"
        lines = [header, "\\hline", *lines]
    columns = "l" + "r" * (len(rows[0]) - 1)
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", "\\hline", *lines, "\\hline", "\\end{tabular}"])
