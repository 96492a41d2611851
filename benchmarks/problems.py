"""The data sets: packaged and reference ones, and synthetic ones of any size."""

import gzip
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lme_jax

from .problem import Problem, Terms, spaced
from .written import Exploration

REFERENCE = Path(__file__).parents[1] / "tests" / "reference" / "data"
MINUTES = ("statsmodels",)


def _codes(values: Any) -> np.ndarray:
    return pd.factorize(values)[0].astype(float)


def sleepstudy() -> Problem:
    d = lme_jax.datasets.load("sleepstudy")
    columns = {"y": d.Reaction.to_numpy(float), "x": d.Days.to_numpy(float), "g": _codes(d.Subject)}
    title = "sleepstudy: 180 rows, 18 groups, slopes, REML"
    return Problem("sleepstudy", title, columns, ("x",), ((("1", "x"), "g"),), True)


def pastes() -> Problem:
    d = lme_jax.datasets.load("Pastes")
    columns = {"y": d.strength.to_numpy(float), "a": _codes(d["sample"]), "b": _codes(d.batch)}
    random = ((("1",), "a"), (("1",), "b"))
    return Problem("pastes", "Pastes: 60 rows, 30 casks in 10 batches, REML", columns, (), random, True, nested=True)


def penicillin() -> Problem:
    d = lme_jax.datasets.load("Penicillin")
    columns = {"y": d.diameter.to_numpy(float), "a": _codes(d.plate), "b": _codes(d["sample"])}
    random = ((("1",), "a"), (("1",), "b"))
    return Problem("penicillin", "Penicillin: 144 rows, 24 × 6 crossed, REML", columns, (), random, True)


def insteval(n_theta: int) -> Problem:
    """Students and lecturers; from 3 θ departments too; at 4 θ ``service`` varies between departments."""
    with gzip.open(REFERENCE / "InstEval.csv.gz") as stream:
        d = pd.read_csv(io.BytesIO(stream.read()))
    random: Terms = ((("1",), "s"), (("1",), "d"), (("1",), "dept"), (("x",), "dept"))[:n_theta]
    columns = {"y": d.y.to_numpy(float), "x": d.service.to_numpy(float)}
    columns |= {factor: _codes(d[factor]) for _, factor in random}
    name, title = f"insteval_{n_theta}", f"InstEval, 73 421 rows, 2 972 × 1 128 crossed, {n_theta} θ, ML"
    return Problem(name, title, columns, ("x",), random, False, slow=MINUTES)


# ---------------------------------------------------------------- formulas to explore

CHICK_FIXED = (
    "1",
    "Time",
    "Diet",
    "Time + Diet",
    "Time * Diet",
    "Time + I(Time^2)",
    "(Time + I(Time^2)) * Diet",
    "log(Time + 1) + Diet",
)
CHICK_RANDOM = ("(1 | Chick)", "(Time | Chick)", "(Time || Chick)")


def chickweight() -> Exploration:
    with gzip.open(REFERENCE / "ChickWeight.csv.gz") as stream:
        data = pd.read_csv(io.BytesIO(stream.read()))
    models = tuple(itertools.product(CHICK_FIXED, CHICK_RANDOM))
    title = "ChickWeight: 578 rows, 50 chicks; 24 formulas, REML"
    return Exploration("chickweight", title, "weight", ("Chick", "Diet"), models, data)


def one_formula() -> Exploration:
    models = (("Days", "(Days | Subject)"),)
    title = "sleepstudy: one formula, REML"
    return Exploration("one_formula", title, "Reaction", ("Subject",), models, lme_jax.datasets.load("sleepstudy"))


# ---------------------------------------------------------------- synthetic data


def slopes(n: int, groups: int, q: int = 2) -> Problem:
    """q effects per group, an intercept and slopes; their columns are fixed effects too."""
    rng = np.random.default_rng(1)
    g = np.sort(rng.integers(0, groups, n))
    g[:groups] = np.arange(groups)
    names = tuple(f"x{i}" for i in range(1, q))
    Z = np.column_stack([np.ones(n), rng.normal(size=(n, q - 1))])
    root = np.tril(np.full((q, q), 0.2), -1) + np.diag(np.linspace(1.0, 0.5, q))
    y = Z @ np.linspace(1.0, 2.0, q) + (Z * (rng.normal(size=(groups, q)) @ root.T)[g]).sum(1) + rng.normal(size=n)
    columns = {"y": y, "g": g.astype(float)} | dict(zip(names, Z.T[1:], strict=True))
    title = f"{spaced(n)} rows, {spaced(groups)} groups, {q} effects each, REML"
    slow = MINUTES if n > 20_000 else ()
    return Problem(f"slopes_{n}_{groups}_{q}", title, columns, names, ((("1", *names), "g"),), True, slow=slow)


def crossed(n: int, m1: int, m2: int) -> Problem:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, m1, n), rng.integers(0, m2, n)
    a[:m1], b[:m2] = np.arange(m1), np.arange(m2)
    y = 3.0 + 0.5 * rng.normal(size=m1)[a] + 0.4 * rng.normal(size=m2)[b] + rng.normal(size=n)
    columns = {"y": y, "a": a.astype(float), "b": b.astype(float)}
    title = f"{spaced(n)} rows, {spaced(m1)} × {spaced(m2)} crossed, ML"
    random = ((("1",), "a"), (("1",), "b"))
    return Problem(f"crossed_{n}_{m1}_{m2}", title, columns, (), random, False, slow=MINUTES)


def regions(n: int, m: int) -> Problem:
    """Pupils and classes that only meet within one of m regions, 20 × 10 in each: the crossing is sparse."""
    rng = np.random.default_rng(6)
    region = rng.integers(0, m, n)
    a, b = region * 20 + rng.integers(0, 20, n), region * 10 + rng.integers(0, 10, n)
    y = rng.normal(size=20 * m)[a] + 0.5 * rng.normal(size=10 * m)[b] + rng.normal(size=n)
    columns = {"y": y, "a": _codes(a), "b": _codes(b)}
    title = f"{spaced(n)} rows, crossed within {spaced(m)} regions, ML"
    return Problem(f"regions_{n}_{m}", title, columns, (), ((("1",), "a"), (("1",), "b")), False, slow=MINUTES)


def nested(n: int, inner: int, outer: int) -> Problem:
    rng = np.random.default_rng(3)
    child = rng.integers(0, inner, n)
    child[:inner] = np.arange(inner)
    parent = rng.integers(0, outer, inner)
    parent[:outer] = np.arange(outer)
    x = rng.normal(size=n)
    y = x + rng.normal(size=inner)[child] + 0.7 * rng.normal(size=outer)[parent[child]] + rng.normal(size=n)
    columns = {"y": y, "x": x, "a": child.astype(float), "b": parent[child].astype(float)}
    random = ((("1",), "a"), (("1",), "b"))
    title = f"{spaced(n)} rows, {spaced(inner)} units in {spaced(outer)} groups, REML"
    return Problem(f"nested_{n}_{inner}_{outer}", title, columns, ("x",), random, True, nested=True, slow=MINUTES)


# ---------------------------------------------------------------- many responses of one design


def many(kind: str, n_responses: int) -> Problem:
    """2 000 rows in 200 groups: a random intercept, or a slope of times that groups share or do not."""
    n, groups, q = 2_000, 200, 1 if kind == "intercept" else 2
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(groups), n // groups)
    x = rng.normal(size=n) if kind == "slope_irregular" else np.tile(np.linspace(-1.0, 1.0, n // groups), groups)
    Z = np.column_stack([np.ones(n), x])[:, :q]
    Y = rng.normal(size=(n_responses, n))
    root = np.array([[0.8, 0.0], [0.2, 0.5]])[:q, :q]
    for row in Y:
        row += 1.0 + 0.5 * x + (Z * (rng.normal(size=(groups, q)) @ root.T)[g]).sum(1)
    columns = {"y": Y[0].copy(), "x": x, "g": g.astype(float)}
    random = ((("1", "x")[:q], "g"),)
    title = f"{spaced(n_responses)} responses × 2 000 rows, 200 groups, {kind.replace('_', ' ')}, REML"
    return Problem(f"many_{kind}_{n_responses}", title, columns, ("x",), random, True, responses=Y)


def bootstrap(n_samples: int, base: Callable[[], Problem] = sleepstudy) -> Problem:
    """Parametric bootstrap samples of a fit; simulated once, so that all engines fit the same."""
    problem = base()
    fitted = lme_jax.lmer(problem.formula, problem.frame(), reml=problem.reml)
    Y = np.ascontiguousarray(fitted.simulate(n_samples, seed=5).to_numpy().T)
    title = f"{spaced(n_samples)} parametric bootstrap samples of {problem.title}"
    return replace(problem, name=f"bootstrap_{problem.name}_{n_samples}", title=title, responses=Y)
