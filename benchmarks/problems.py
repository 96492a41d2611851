"""What is fitted: each problem is a set of float64 columns, a formula that every engine reads, and a criterion."""

import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lme_jax import datasets

REFERENCE = Path(__file__).parents[1] / "tests" / "reference" / "data"


@dataclass(frozen=True)
class Problem:
    """Columns (all float64; the grouping factors as codes), a formula, and which engines can be asked.

    Attributes
    ----------
    factors : names of the columns that are grouping factors.
    fixed : columns of X beside the intercept; random : (columns of Z, factor) per random term, "1" = intercept.
    """

    name: str
    columns: dict[str, np.ndarray]
    response: str
    fixed: tuple[str, ...]
    random: tuple[tuple[tuple[str, ...], str], ...]
    reml: bool
    slow: tuple[str, ...] = ()

    @property
    def formula(self) -> str:
        bars = [f"({' + '.join(columns)} | {factor})" for columns, factor in self.random]
        return f"{self.response} ~ {' + '.join(('1', *self.fixed, *bars))}"

    @property
    def factors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(factor for _, factor in self.random))


def _codes(values) -> np.ndarray:
    return pd.factorize(values)[0].astype(float)


def sleepstudy() -> Problem:
    d = datasets.load("sleepstudy")
    columns = {"y": d.Reaction.to_numpy(), "x": d.Days.to_numpy(float), "g": _codes(d.Subject)}
    return Problem("sleepstudy", columns, "y", ("x",), ((("1", "x"), "g"),), True)


def penicillin() -> Problem:
    d = datasets.load("Penicillin")
    columns = {"y": d.diameter.to_numpy(float), "a": _codes(d.plate), "b": _codes(d["sample"])}
    return Problem("penicillin", columns, "y", (), ((("1",), "a"), (("1",), "b")), True)


def insteval(n_factors: int) -> Problem:
    with gzip.open(REFERENCE / "InstEval.csv.gz") as stream:
        d = pd.read_csv(io.BytesIO(stream.read()))
    columns = {"y": d.y.to_numpy(float), "x": d.service.to_numpy(float)}
    columns |= {name: _codes(d[name]) for name in ("s", "d", "dept")[:n_factors]}
    random = tuple(((("1",), name)) for name in ("s", "d", "dept")[:n_factors])
    return Problem(f"insteval_{n_factors}", columns, "y", ("x",), random, False, slow=("statsmodels",))


def slopes(n: int, groups: int) -> Problem:
    rng = np.random.default_rng(1)
    g = np.sort(rng.integers(0, groups, n))
    x = rng.normal(size=n)
    b = rng.normal(size=(groups, 2)) @ np.array([[1.0, 0.3], [0.0, 0.5]])
    y = 1.0 + 2.0 * x + b[g, 0] + b[g, 1] * x + rng.normal(size=n)
    columns = {"y": y, "x": x, "g": g.astype(float)}
    name = f"slopes_{n}_{groups}"
    return Problem(name, columns, "y", ("x",), ((("1", "x"), "g"),), True, slow=("statsmodels",))


def crossed(n: int, m1: int, m2: int) -> Problem:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, m1, n), rng.integers(0, m2, n)
    y = 3.0 + 0.5 * rng.normal(size=m1)[a] + 0.4 * rng.normal(size=m2)[b] + rng.normal(size=n)
    columns = {"y": y, "a": a.astype(float), "b": b.astype(float)}
    return Problem(
        f"crossed_{n}_{m1}_{m2}", columns, "y", (), ((("1",), "a"), (("1",), "b")), False, slow=("statsmodels",)
    )


def nested(n: int, inner: int, outer: int) -> Problem:
    rng = np.random.default_rng(3)
    child = rng.integers(0, inner, n)
    parent = rng.integers(0, outer, inner)[child]
    x = rng.normal(size=n)
    y = x + rng.normal(size=inner)[child] + 0.7 * rng.normal(size=outer)[parent] + rng.normal(size=n)
    columns = {"y": y, "x": x, "a": child.astype(float), "b": parent.astype(float)}
    random = ((("1",), "a"), (("1",), "b"))
    return Problem(f"nested_{n}_{inner}_{outer}", columns, "y", ("x",), random, True, slow=("statsmodels",))


SMALL = {
    "sleepstudy": sleepstudy,
    "penicillin": penicillin,
    "insteval_2": lambda: insteval(2),
    "insteval_3": lambda: insteval(3),
    "slopes_1m": lambda: slopes(1_000_000, 50_000),
    "nested_200k": lambda: nested(200_000, 20_000, 2_000),
}
FULL = SMALL | {"crossed_883k": lambda: crossed(883_000, 20_000, 4_000)}
