"""Formulas as a person writes them, on a data frame with factors: to explore with, and by the hundred."""

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .problem import Problem, Terms

FILE = "written.json"
SHAPE_ROWS = 300


@dataclass(frozen=True)
class Written(Problem):
    """A problem whose formula is ``text``, on ``data``; ``fixed`` are the fixed terms in R's language."""

    text: str = ""
    data: pd.DataFrame | None = None

    @property
    def formula(self) -> str:
        return self.text

    def frame(self) -> pd.DataFrame:
        assert self.data is not None
        return self.data.copy(deep=False)


@dataclass(frozen=True)
class Exploration:
    """Formulas of one grouping factor for one data set, in the order in which they are tried; by REML.

    Attributes
    ----------
    models : (fixed part, random part) of each.
    factors : the columns that are to be factors; the first is the grouping factor.
    """

    name: str
    title: str
    response: str
    factors: tuple[str, ...]
    models: tuple[tuple[str, str], ...]
    data: pd.DataFrame

    def __post_init__(self) -> None:
        self.data[list(self.factors)] = self.data[list(self.factors)].astype("category")

    def problems(self) -> list[Written]:
        return [self._problem(fixed, bar) for fixed, bar in self.models]

    def _problem(self, fixed: str, bar: str) -> Written:
        text = f"{self.response} ~ {fixed} + {bar}"
        columns = {self.response: self.data[self.response].to_numpy(float)}
        rest = dict(text=text, data=self.data, response=self.response)
        return Written(self.name, self.title, columns, (fixed,), _terms(bar), True, **rest)  # type: ignore[arg-type]

    def write(self, folder: Path) -> None:
        """``written.json``, and its formulas and factors as lines for R, beside ``data.csv``."""
        self.data.to_csv(folder / "data.csv", index=False)
        spec = {name: getattr(self, name) for name in ("name", "title", "response", "factors", "models")}
        (folder / FILE).write_text(json.dumps(spec))
        (folder / "factors.txt").write_text("".join(f"{factor}\n" for factor in self.factors))
        (folder / "formulas.txt").write_text("".join(f"{problem.formula}\n" for problem in self.problems()))


def read_exploration(folder: Path) -> Exploration:
    """What ``Exploration.write`` wrote, read as a person reads it."""
    spec = json.loads((folder / FILE).read_text())
    models = tuple((fixed, bar) for fixed, bar in spec["models"])
    factors, data = tuple(spec["factors"]), pd.read_csv(folder / "data.csv")
    return Exploration(spec["name"], spec["title"], spec["response"], factors, models, data)


def _terms(bar: str) -> Terms:
    """(columns, factor) per term of ``(1 | g)``, ``(x | g)`` or ``(x || g)``."""
    effects, factor = (part.strip() for part in bar.strip("()").replace("||", "|").split("|"))
    if effects == "1":
        return ((("1",), factor),)
    if "||" in bar:
        return ((("1",), factor), ((effects,), factor))
    return ((("1", effects), factor),)


# ---------------------------------------------------------------- many shapes of model


def shape_frame() -> pd.DataFrame:
    """300 rows: numbers x and z, factors of 3 and 2 levels, groups g and h that cross, k within g."""
    rng = np.random.default_rng(6)
    g, h = (np.arange(SHAPE_ROWS) % n for n in (20, 12))
    k = 3 * g + rng.integers(0, 3, SHAPE_ROWS)
    x, z = rng.normal(size=(2, SHAPE_ROWS))
    f, c = rng.integers(0, 3, SHAPE_ROWS), rng.integers(0, 2, SHAPE_ROWS)
    effects = [scale * rng.normal(size=n)[code] for scale, n, code in ((1.0, 20, g), (0.7, 12, h), (0.8, 60, k))]
    y = 1.0 + 0.5 * x + 0.3 * f + sum(effects) + 0.4 * rng.normal(size=20)[g] * x + rng.normal(size=SHAPE_ROWS)
    labels = {
        name: pd.Categorical([f"{name}{code}" for code in codes])
        for name, codes in zip("fcghk", (f, c, g, h, k), strict=True)
    }
    return pd.DataFrame({"y": y, "x": x, "z": z} | labels)


NUMBERS = ("1", "x", "x + z", "x * z", "poly(x, 2)")
FACTORS = ("", " + f", " + c", " + f * c", " + f:x")
BARS = (
    "(1 | g)",
    "(x | g)",
    "(x || g)",
    "(0 + x | g)",
    "(x + z | g)",
    "(x + z || g)",
    "(1 | g) + (1 | h)",
    "(x | g) + (1 | h)",
    "(x || g) + (1 | h)",
    "(1 | g / k)",
    "(1 | g / k) + (1 | h)",
    "(x | g) + (1 | g:k)",
)


def shapes(n: int) -> list[tuple[str, bool]]:
    """(formula, REML or not): n of 25 fixed parts × 12 random parts × ML and REML, shuffled."""
    parts: Any = itertools.product(NUMBERS, FACTORS, BARS, (False, True))
    written = [(f"y ~ {numbers}{factors} + {bars}", reml) for numbers, factors, bars, reml in parts]
    return random.Random(1).sample(written, n)
