"""Random one-factor designs, nasty on purpose: every one is (shape, seed), so that it can be made again."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from . import templates
from .multistart import Design

HARD = Path(__file__).parents[1] / "reference" / "hard"
BENIGN_WEIGHTS = ("none", "mild")


class Shape(NamedTuple):
    """Which designs: ``structure`` and q, where the groups come from, or a growth curve's recipe."""

    structure: str | tuple
    q: int
    groups: str | None = None
    recipe: str = "random"


TEMPLATES = {
    "two2": (("unstructured", 1), ("unstructured", 1)),
    "two3": (("unstructured", 1), ("unstructured", 2)),
    "two4": (("unstructured", 2), ("unstructured", 2)),
}
SHAPES = {
    **{f"us{q}": Shape("unstructured", q) for q in (1, 2, 3, 4)},
    **{f"us{q}few": Shape("unstructured", q, "few") for q in (1, 2)},
    **{f"us{q}single": Shape("unstructured", q, "singletons") for q in (1, 2, 3)},
    **{f"diag{q}": Shape("diagonal", q) for q in (2, 3, 4)},
    **{f"ident{q}": Shape("identity", q) for q in (2, 3)},
    **{f"cs{q}": Shape("compound_symmetry", q) for q in (2, 3, 4)},
    **{f"ar{q}": Shape("ar1", q) for q in (2, 3, 4)},
    **{f"hetcs{q}": Shape("het_compound_symmetry", q) for q in (2, 3)},
    **{f"hetar{q}": Shape("het_ar1", q) for q in (2, 3)},
    **{f"toep{q}": Shape("toeplitz", q) for q in (3, 4)},
    **{f"hettoep{q}": Shape("het_toeplitz", q) for q in (3,)},
    **{f"ou{q}": Shape(("exponential", (0.0, 1.0, 2.5, 3.5)[:q]), q) for q in (2, 3, 4)},
    **{f"rr{d}{q}": Shape(("reduced_rank", d), q) for d, q in ((1, 2), (1, 3), (2, 3), (2, 4))},
    "fixed2": Shape(("fixed", ((2.0, -0.8), (-0.8, 1.0))), 2),
    **{name: Shape(t, sum(s for _, s in t)) for name, t in TEMPLATES.items()},
    "centred": Shape("diagonal", 2, recipe="centred"),
    "age": Shape("diagonal", 2, recipe="age"),
    "age_us": Shape("unstructured", 2, recipe="age"),
    "curve": Shape("any", 2, recipe="curve"),
}


class Drawn(NamedTuple):
    """A design and what was drawn for it."""

    design: Design
    shape: str
    seed: int
    traits: dict

    @property
    def benign(self):
        """No weights beyond mild, no ratio of 1e3 between the effects, no near-collinear columns, no order."""
        t = self.traits
        tame = t["w"] in BENIGN_WEIGHTS and t["var"] not in ("mixed", "antisingular")
        return tame and t["X"] != "near" and t["Z"] != "near" and not _is_scaled(self.design.structure)


def _is_scaled(structure):
    return structure == "ar1" or templates.name_of(structure) in templates.SCALED


def draw(shape, seed):
    """The design of a shape's name and a seed."""
    rng = np.random.default_rng([seed, *shape.encode()])
    kind = SHAPES[shape]
    if kind.recipe == "centred":
        return _centred(shape, seed, rng)
    if kind.recipe in ("age", "curve"):
        return _curve(shape, seed, rng, kind)
    return _random(shape, seed, rng, kind)


def _random(shape, seed, rng, kind):
    q = kind.q
    t = {
        "groups": kind.groups or one_of(rng, ["random", "onebig", "singletons", "balanced"]),
        "Z": one_of(rng, ["x", "x", "own", "zeros", "integer", "scaled", "near"] if q > 1 else ["x", "own", "zeros"]),
        "X": one_of(rng, ["plain", "plain", "near", "scaled", "group", "z"]),
        "var": one_of(rng, ["small", "one", "large", "mixed", "antisingular", "zero"]),
        "w": one_of(rng, ["none", "none", "mild", "wide", "extreme"]),
        "y": one_of(rng, ["one", "one", "offset4", "offset8", "large", "tiny"]),
        "off": bool(rng.random() < 0.2),
        "reml": bool(rng.random() < 0.5),
    }
    codes = _groups(t["groups"], q, rng)
    n, m = len(codes), codes.max() + 1
    Z = _random_effects(t["Z"], codes, q, rng)
    X = _fixed_effects(t["X"], Z, codes, int(rng.integers(1, 4)), rng)
    w = _weights(t["w"], n, rng)
    b = rng.normal(size=(m, q)) @ _root(t["var"], q, rng).T
    y = (Z * b[codes]).sum(1) + rng.normal(size=n) / np.sqrt(1.0 if w is None else w)
    y = y + X @ rng.normal(size=X.shape[1])
    shift, unit = {"offset4": (1e4, 1.0), "offset8": (1e8, 1.0), "large": (0, 1e10), "tiny": (0, 1e-8)}.get(
        t["y"], (0, 1.0)
    )
    offset = 3.0 * rng.normal(size=n) * unit if t["off"] else None
    y = y * unit + shift + (0 if offset is None else offset)
    return Drawn(Design(y, X, Z, codes, w, offset, kind.structure, t["reml"]), shape, seed, t)


def one_of(rng, options):
    """One of the options, as Python's own type."""
    return rng.choice(options).item()


def _groups(kind, q, rng):
    if kind == "few":
        m, n = 3, 20 + 6 * (q - 1)
        codes = np.concatenate([np.arange(m), rng.integers(0, m, n - m)])
    elif kind == "balanced":
        m = int(rng.integers(6, 12))
        codes = np.repeat(np.arange(m), q + int(rng.integers(1, 5)))
    elif kind == "onebig":
        m = int(rng.integers(5, 9))
        codes = np.concatenate([np.zeros(q * m, int), np.arange(m), rng.integers(0, m, 10)])
    elif kind == "singletons":
        m = 12
        codes = np.concatenate([np.arange(m), rng.integers(0, m // 2, 12 * q + 8)])
    else:
        m = int(rng.integers(6, 12))
        codes = np.concatenate([np.arange(m), rng.integers(0, m, 32 + 10 * (q - 1))])
    return rng.permutation(codes)


def _random_effects(kind, codes, q, rng):
    n = len(codes)
    Z = np.column_stack([np.ones(n), rng.normal(size=(n, q - 1))])
    if kind == "own":
        Z = rng.normal(size=(n, q))
    elif kind == "zeros":
        Z = Z * (rng.random((n, q)) < 0.5)
    elif kind == "integer":
        Z[:, 1:] = rng.integers(0, 6, (n, q - 1))
    elif kind == "scaled":
        Z = Z * 10.0 ** rng.uniform(-4, 4, q)
    elif kind == "near":
        Z[:, -1] = 1.0 + 1e-3 * Z[:, -1]
    return Z


def _fixed_effects(kind, Z, codes, p, rng):
    n = len(Z)
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))])
    if kind == "near" and p > 1:
        X[:, 1] = 1.0 + 1e-4 * X[:, 1]
    elif kind == "scaled" and p > 1:
        X[:, 1:] *= 10.0 ** rng.uniform(-6, 6, p - 1)
    elif kind == "group" and p > 1:
        X[:, 1] = rng.normal(size=codes.max() + 1)[codes]
    elif kind == "z":
        X = Z[:, :p].copy()
    return X


def _weights(kind, n, rng):
    if kind == "none":
        return None
    return rng.uniform(0.5, 2.0, n) if kind == "mild" else 10.0 ** rng.uniform(*{"wide": (-3, 3)}.get(kind, (-6, 6)), n)


def _root(kind, q, rng):
    L = np.tril(rng.normal(size=(q, q)))
    if kind == "zero":
        return 0.0 * L
    if kind == "mixed":
        return np.diag(10.0 ** rng.permutation(np.linspace(-1.5, 1.5, q))) @ L
    if kind == "antisingular":
        return 3.0 * np.outer(np.where(np.arange(q) % 2, -1.0, 1.0), np.eye(q)[0]) + 1e-3 * L
    return {"small": 0.1, "one": 1.0, "large": 30.0}[kind] * L


def centred(seed, groups=9, times=6, slope=2.0):
    """Growth curves from which each group's mean has been taken out: y ~ 1 + (1 + t || g)."""
    rng = np.random.default_rng(seed)
    g, t = np.repeat(np.arange(groups), times), np.tile(np.arange(times, dtype=float), groups)
    y = slope * rng.normal(size=groups)[g] * t + rng.normal(size=groups * times)
    y -= (np.bincount(g, y) / times)[g]
    Z = np.column_stack([np.ones(len(y)), t])
    return Design(y, Z[:, :1], Z, g, None, None, "diagonal", True)


def _centred(shape, seed, rng):
    groups, slope = one_of(rng, [9, 30, 100]), one_of(rng, [1.0, 2.0, 3.0, 5.0])
    design = centred(seed, groups, 6, slope)
    if rng.random() < 0.5:
        design = design._replace(X=design.Z)
    structure = one_of(rng, ["diagonal", "diagonal", "identity", "compound_symmetry", "unstructured"])
    t = {"groups": groups, "Z": "t", "X": "t" * design.X.shape[1], "var": f"slope{slope}", "w": "none", "y": "centred"}
    return Drawn(design._replace(structure=structure), shape, seed, {**t, "off": False, "reml": True})


def _curve(shape, seed, rng, kind):
    """Uncentred ages 8, 10, 12, 14, or times 0 … 5, with strong slopes."""
    m = one_of(rng, [9, 15, 27])
    times = np.array([8.0, 10, 12, 14]) if kind.recipe == "age" else np.arange(6.0)
    g, t = np.repeat(np.arange(m), len(times)), np.tile(times, m)
    sd = 10.0 ** rng.uniform(-1, 1, 2)
    r = rng.uniform(-0.95, 0.95)
    b = (rng.normal(size=(m, 2)) @ np.linalg.cholesky([[1, r], [r, 1]]).T) * sd
    y = 20 + 0.7 * t + b[g, 0] + b[g, 1] * t + rng.normal(size=len(t))
    Z = np.column_stack([np.ones(len(y)), t])
    structure = kind.structure
    if structure == "any":
        structure = one_of(rng, ["unstructured", "diagonal", "identity", "compound_symmetry", "ar1"])
    X = Z if rng.random() < 0.7 else Z[:, :1]
    reml = bool(rng.random() < 0.5)
    t = {"groups": m, "Z": kind.recipe, "X": "t" * X.shape[1], "var": "growth", "w": "none", "y": "one", "off": False}
    return Drawn(Design(y, X, Z, g, None, None, structure, reml), shape, seed, {**t, "reml": reml})


def hard_cases():
    """The designs of tests/reference/hard by name: formula, REML, best known −2 log L, what others found."""
    return json.loads((HARD / "cases.json").read_text())


def hard_frame(name):
    """The data of a hard case."""
    return pd.read_csv(HARD / f"{name}.csv")


def hard_design(name):
    """A hard case as a Design."""
    data, case = hard_frame(name), hard_cases()[name]
    centred_times = "||" in case["formula"]
    if centred_times:
        Z = np.column_stack([np.ones(len(data)), data["t"]])
        X = Z if "~ t" in case["formula"] else Z[:, :1]
    else:
        X, Z = (data.filter(regex=f"^{letter}").to_numpy() for letter in "xz")
    structure = "diagonal" if centred_times else "unstructured"
    return Design(data["y"].to_numpy(), X, Z, data["g"].to_numpy(), data["w"].to_numpy(), None, structure, case["reml"])


def frame(design):
    """A DataFrame of a design: y, g, x0 …, z0 …, and w and o where there are weights and an offset."""
    data = pd.DataFrame({"y": design.y, "g": design.codes})
    for name, M in (("x", design.X), ("z", design.Z)):
        data[[f"{name}{j}" for j in range(M.shape[1])]] = M
    for name, column in (("w", design.weights), ("o", design.offset)):
        if column is not None:
            data[name] = column
    return data


def formula(design):
    """The lmer formula of a design and its ``structures`` argument (None where the bars say it)."""
    columns = [f"z{j}" for j in range(design.Z.shape[1])]
    structures = None
    if isinstance(design.structure, str) or isinstance(design.structure[0], str):
        bar = "||" if design.structure == "diagonal" else "|"
        bars = [f"(0 + {' + '.join(columns)} {bar} g)"]
        structures = None if design.structure in ("unstructured", "diagonal") else {"g": design.structure}
    else:
        ends = np.cumsum([size for _, size in design.structure])
        parts = [columns[end - size : end] for end, (_, size) in zip(ends, design.structure, strict=True)]
        bars = [f"(0 + {' + '.join(part)} | g)" for part in parts]
    fixed = " + ".join(f"x{j}" for j in range(design.X.shape[1]))
    return f"y ~ 0 + {fixed} + {' + '.join(bars)}", structures
