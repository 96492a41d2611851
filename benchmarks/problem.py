"""One data set and one model, and how a worker receives them. Light: the other engines' processes load no JAX."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Terms = tuple[tuple[tuple[str, ...], str], ...]


@dataclass(frozen=True)
class Problem:
    """One data set and one model.

    Attributes
    ----------
    columns : float64 columns; those of grouping factors hold codes.
    response : the column that is explained.
    fixed : columns of X beside the intercept.
    random : (columns of Z, factor) per term, "1" the intercept; terms of one factor side by side, and where the
        factors are ``nested`` the inner ones first.
    slow : engines that would take minutes.
    responses : (R, n), further responses of the same design, for ``refits``.
    """

    name: str
    title: str
    columns: dict[str, np.ndarray]
    fixed: tuple[str, ...]
    random: Terms
    reml: bool
    nested: bool = False
    slow: tuple[str, ...] = ()
    responses: np.ndarray | None = field(default=None, repr=False)
    response: str = "y"

    @property
    def formula(self) -> str:
        bars = [f"({' + '.join(c if c[0] == '1' else ('0', *c))} | {factor})" for c, factor in self.random]
        return f"y ~ {' + '.join(('1', *self.fixed, *bars))}"

    @property
    def factors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(factor for _, factor in self.random))

    @property
    def y(self) -> np.ndarray:
        return self.columns[self.response]

    def with_response(self, y: np.ndarray) -> "Problem":
        return replace(self, columns=self.columns | {"y": np.asarray(y)}, responses=None)

    def frame(self) -> pd.DataFrame:
        frame = pd.DataFrame(self.columns)
        for factor in self.factors:
            frame[factor] = frame[factor].astype(int).astype("category")
        return frame

    def write(self, folder: Path) -> None:
        """``problem.json`` beside a raw float64 file per column."""
        spec: dict[str, Any] = {
            name: getattr(self, name) for name in ("name", "title", "formula", "fixed", "factors", "reml", "nested")
        }
        spec["columns"] = list(self.columns)
        spec["random"] = [{"columns": columns, "factor": factor} for columns, factor in self.random]
        spec["responses"] = 0 if self.responses is None else len(self.responses)
        (folder / "problem.json").write_text(json.dumps(spec))
        for name, column in self.columns.items():
            np.asarray(column, float).tofile(folder / f"{name}.f64")
        if self.responses is not None:
            self.responses.tofile(folder / "responses.f64")


def spaced(n: float) -> str:
    """10 000."""
    return f"{n:,.0f}".replace(",", " ")


def read_problem(folder: Path) -> Problem:
    """What ``Problem.write`` wrote."""
    spec = json.loads((folder / "problem.json").read_text())
    columns = {name: np.fromfile(folder / f"{name}.f64") for name in spec["columns"]}
    random = tuple((tuple(term["columns"]), term["factor"]) for term in spec["random"])
    responses = None
    if spec["responses"]:
        responses = np.fromfile(folder / "responses.f64").reshape(spec["responses"], -1)
    return Problem(
        spec["name"],
        spec["title"],
        columns,
        tuple(spec["fixed"]),
        random,
        spec["reml"],
        spec["nested"],
        responses=responses,
    )


@dataclass(frozen=True)
class Arrays:
    """A problem as lme_jax's core takes it; Z, codes, levels and templates are per factor."""

    y: np.ndarray
    X: np.ndarray
    Z: tuple[np.ndarray, ...]
    codes: tuple[np.ndarray, ...]
    levels: tuple[int, ...]
    templates: tuple[Any, ...]

    @property
    def n_bytes(self) -> int:
        return sum(a.nbytes for a in (self.y, self.X, *self.Z, *self.codes))

    def with_response(self, y: np.ndarray) -> "Arrays":
        return replace(self, y=y)

    def compress(self) -> Any:
        import lme_jax
        from lme_jax.core.crossed_data import compress_crossed

        if len(self.Z) == 1:
            (Z,), (codes,), (levels,), (template,) = self.Z, self.codes, self.levels, self.templates
            return lme_jax.compress(self.y, self.X, Z, codes, n_groups=levels, structure=template)
        return compress_crossed(self.y, self.X, list(self.Z), list(self.codes), list(self.levels), self.templates)


def arrays(problem: Problem) -> Arrays:
    one = np.ones(len(problem.y))
    columns = problem.columns | {"1": one}
    terms = {f: [names for names, factor in problem.random if factor == f] for f in problem.factors}
    codes = tuple(columns[factor].astype(np.int32) for factor in terms)
    return Arrays(
        problem.y,
        np.column_stack([one, *(columns[name] for name in problem.fixed)]),
        tuple(np.column_stack([columns[c] for names in own for c in names]) for own in terms.values()),
        codes,
        tuple(int(c.max()) + 1 for c in codes),
        tuple(tuple(("unstructured", len(names)) for names in own) for own in terms.values()),
    )
