"""Random designs of every kind, nasty on purpose: crossed, nested, shared and related levels, several terms a factor.

Every one is (shape, seed), so that it can be made again; ``designs`` has those of one factor by codes.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from .dense import Factor, Model
from .designs import BENIGN_WEIGHTS, one_of

ONE = (("unstructured", 1),)
SLOPES = (("unstructured", 2),)
TERMS = (
    (("unstructured", 1), ("unstructured", 1)),
    (("diagonal", 2),),
    (("unstructured", 2), ("unstructured", 1)),
    (("identity", 2),),
    (("unstructured", 1), ("compound_symmetry", 3)),
)
PLAIN = ("diagonal", "identity", "compound_symmetry", "ar1")
STRUCTURED = (SLOPES, *(((structure, q),) for structure in PLAIN for q in (2, 3)))


REGISTERED = tuple(
    ((structure, q),)
    for structure, q in (
        ("het_compound_symmetry", 2),
        ("het_ar1", 3),
        ("toeplitz", 3),
        ("het_toeplitz", 3),
        (("exponential", (0.0, 1.0, 2.5)), 3),
        (("reduced_rank", 1), 3),
        (("fixed", ((2.0, -0.8), (-0.8, 1.0))), 2),
    )
)


class Shape(NamedTuple):
    """Which factors, by letters, and the templates to draw from for each.

    Capital letters are factors of their own, crossed with all others; a small one lies inside the letter before it.
    """

    factors: str
    choices: tuple = (ONE,)
    extra: str | None = None


SHAPES = {
    "crossed2": Shape("AB"),
    "crossed3": Shape("ABC"),
    "crossed_slopes": Shape("AB", (ONE, SLOPES)),
    "crossed_terms": Shape("AB", (ONE, *TERMS)),
    "crossed_structures": Shape("AB", (ONE, *STRUCTURED)),
    "nested2": Shape("Ab"),
    "nested3": Shape("Abc"),
    "nested_slopes": Shape("Ab", (ONE, SLOPES)),
    "nested_terms": Shape("Ab", (ONE, *TERMS)),
    "nested_structures": Shape("Ab", (ONE, *STRUCTURED)),
    "crossed_registered": Shape("AB", (ONE, *REGISTERED)),
    "nested_registered": Shape("Ab", (ONE, *REGISTERED)),
    "mixed": Shape("AbC"),
    "mixed_slopes": Shape("AbC", (ONE, ONE, SLOPES)),
    "mixed_two_chains": Shape("AbCd"),
    "members": Shape("A", extra="members"),
    "members_crossed": Shape("AB", extra="members"),
    "members_nested": Shape("Ab", extra="members"),
    "members_slopes": Shape("AB", (ONE, SLOPES), extra="members"),
    "related": Shape("A", extra="related"),
    "related_crossed": Shape("AB", extra="related"),
    "related_nested": Shape("Ab", extra="related"),
    "related_slopes": Shape("AB", (ONE, SLOPES), extra="related"),
    "related_members": Shape("AB", (ONE,), extra="both"),
}


class Drawn(NamedTuple):
    """A Model and what was drawn for it."""

    design: Model
    shape: str
    seed: int
    traits: dict

    @property
    def benign(self):
        """No weights beyond mild, no near-collinear columns, no ratio of 1e3 between the effects, no AR(1)."""
        t = self.traits
        tame = t["w"] in BENIGN_WEIGHTS and t["var"] != "mixed" and "near" not in (t["X"], t["Z"])
        return tame and not any(s == "ar1" for f in self.design.factors for s, _ in f.blocks)


def draw(shape, seed):
    """The design of a shape's name and a seed."""
    rng = np.random.default_rng([seed, *shape.encode()])
    kind = SHAPES[shape]
    t = {
        "rows": one_of(rng, ["balanced", "random", "random", "tiny", "few"]),
        "Z": one_of(rng, ["x", "x", "own", "zeros", "integer", "scaled", "near", "deficient"]),
        "X": one_of(rng, ["plain", "plain", "near", "scaled", "group", "none"]),
        "var": one_of(rng, ["small", "one", "one", "large", "mixed", "zero", "some_zero"]),
        "w": one_of(rng, ["none", "none", "mild", "mild", "wide", "extreme"]),
        "y": one_of(rng, ["one", "one", "offset4", "offset8", "large", "tiny"]),
        "off": bool(rng.random() < 0.2),
        "reml": bool(rng.random() < 0.5),
    }
    codes = codes_of(kind.factors, t["rows"], rng)
    factors = tuple(_factor(f"f{j}", code, kind, t, rng) for j, code in enumerate(codes))
    factors = with_extra(factors, kind.extra, rng)
    return Drawn(_response(factors, t, rng), shape, seed, t)


def codes_of(letters, rows, rng):
    """Codes (n,) per letter; all of them occur."""
    low, high = {"few": (3, 5), "tiny": (6, 11)}.get(rows, (4, 9))
    sizes = rng.integers(low, high, len(letters))
    if rows == "balanced":
        return _balanced(letters, np.minimum(sizes, 4 if len(letters) > 2 else 6), rng)
    n = int(rng.integers(28, 46)) if rows == "tiny" else int(rng.integers(50, 90))
    codes = []
    for j, letter in enumerate(letters):
        if letter.isupper():
            codes.append(_covering(sizes[j], n, rng))
        else:
            m = int(codes[-1].max()) + 1
            inner = codes[-1] * 3 + rng.integers(0, 3, n) if m > 3 else codes[-1] * 5 + rng.integers(0, 5, n)
            codes.append(np.unique(inner, return_inverse=True)[1])
    return codes


def _covering(m, n, rng):
    """Codes of m levels in n rows: even, or one large level, or many small ones."""
    first = np.arange(m)
    kind = rng.integers(0, 3)
    if kind == 0:
        rest = rng.integers(0, m, n - m)
    elif kind == 1:
        rest = np.where(rng.random(n - m) < 0.6, 0, rng.integers(0, m, n - m))
    else:
        rest = rng.integers(0, (m + 1) // 2, n - m)
    return rng.permutation(np.concatenate([first, rest]))


def _balanced(letters, sizes, rng):
    """Every combination equally often."""
    sizes = [min(int(m), 3) if letter.islower() else int(m) for m, letter in zip(sizes, letters, strict=True)]
    # Cells of crossed factors may hold one row each, levels may not.
    alone = any(letter.islower() for letter in letters) or len(letters) == 1
    repeats = max(2 if alone else 1, 24 // int(np.prod(sizes)) + 1)
    grid = np.indices((*sizes, repeats)).reshape(len(sizes) + 1, -1)
    codes = []
    for j, letter in enumerate(letters):
        codes.append(grid[j] if letter.isupper() else codes[-1] * sizes[j] + grid[j])
    order = rng.permutation(grid.shape[1])
    return [c[order] for c in codes]


def _factor(name, codes, kind, t, rng):
    template = kind.choices[rng.integers(len(kind.choices))]
    q = sum(size for _, size in template)
    return Factor(_columns(t["Z"], codes, q, rng), codes, int(codes.max()) + 1, template, name=name)


def _columns(kind, codes, q, rng):
    n = len(codes)
    Z = np.column_stack([np.ones(n), rng.normal(size=(n, q - 1))])
    if kind == "own":
        Z = rng.normal(size=(n, q))
    elif kind == "zeros":
        Z = Z * (rng.random((n, q)) < 0.7)
    elif kind == "integer":
        Z[:, 1:] = rng.integers(0, 6, (n, q - 1))
    elif kind == "scaled":
        Z = Z * 10.0 ** rng.uniform(-6, 6, q)
    elif kind == "near" and q > 1:
        Z[:, -1] = 1.0 + 1e-3 * Z[:, -1]
    elif kind == "deficient" and q > 1:
        # Within half of the levels all columns are multiples of one.
        flat = np.isin(codes, np.arange(0, codes.max() + 1, 2))
        Z[flat, 1:] = (1.0 + codes[flat, None]) * Z[flat, :1]
    return Z


def with_extra(factors, extra, rng):
    """One more factor of shared levels, or one whose levels are related."""
    if extra in ("members", "both"):
        n, m = len(factors[0].Z), int(rng.integers(4, 8))
        shares = rng.dirichlet(np.ones(m), n) * (rng.random((n, m)) < 0.6)
        factors = (*factors, Factor(np.ones((n, 1)), None, m, ONE, members=shares, name="shared"))
    if extra in ("related", "both"):
        first = factors[0]
        root = np.tril(rng.normal(size=(first.m, first.m))) * (rng.random((first.m, first.m)) < 0.4) + np.eye(first.m)
        factors = (first._replace(related=root @ root.T), *factors[1:])
    return factors


def _response(factors, t, rng):
    n = len(factors[0].Z)
    X = _fixed_effects(t["X"], factors, rng)
    w = _weights(t["w"], n, rng)
    y = X @ rng.normal(size=X.shape[1]) + rng.normal(size=n) / np.sqrt(1.0 if w is None else w)
    for j, f in enumerate(factors):
        y = y + f.columns @ _effects(t["var"], f, j, rng)
    shift, unit = {"offset4": (1e4, 1.0), "offset8": (1e8, 1.0), "large": (0, 1e6), "tiny": (0, 1e-6)}.get(
        t["y"], (0, 1.0)
    )
    if t["X"] == "none":
        shift = 0.0
    offset = 3.0 * rng.normal(size=n) * unit if t["off"] else None
    return Model(y * unit + shift + (0 if offset is None else offset), X, factors, w, offset, t["reml"])


def _fixed_effects(kind, factors, rng):
    n, p = len(factors[0].Z), int(rng.integers(1, 4))
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))])
    if kind == "none":
        return X[:, 1:2] if p > 1 else X
    if kind == "near" and p > 1:
        X[:, 1] = 1.0 + 1e-4 * X[:, 1]
    elif kind == "scaled" and p > 1:
        X[:, 1:] *= 10.0 ** rng.uniform(-6, 6, p - 1)
    elif kind == "group" and p > 1:
        X[:, 1] = rng.normal(size=factors[0].m)[factors[0].codes]
    return X


def _weights(kind, n, rng):
    if kind == "none":
        return None
    return rng.uniform(0.5, 2.0, n) if kind == "mild" else 10.0 ** rng.uniform(*{"wide": (-2, 2)}.get(kind, (-6, 6)), n)


def _effects(kind, factor, number, rng):
    """Effects (mq,) of all levels, of sizes in units of the columns."""
    m, q = factor.m, factor.Z.shape[1]
    unit = np.sqrt((factor.Z**2).mean(0))
    sd = {"small": 0.1, "large": 30.0, "zero": 0.0, "mixed": 10.0 ** rng.uniform(-1.5, 1.5)}.get(kind, 1.0)
    if kind == "some_zero":
        sd = float(number % 2)
    root = np.tril(rng.normal(size=(q, q))) * sd
    b = rng.normal(size=(m, q)) @ root.T
    if factor.related is not None:
        b = np.linalg.cholesky(factor.related + 1e-12 * np.eye(m)) @ b
    return (b / np.where(unit > 0, unit, 1.0)).ravel()


# ---------------------------------------------------------------- as a person would write it


def labels(factor):
    """Names of the levels, which sort as the codes do."""
    return np.array([f"{factor.name}_{k:03d}" for k in range(factor.m)])


def frame(model):
    """A DataFrame: y, x0 …, per factor its labels and columns z0_0 …, and w and o where there are any."""
    columns = {"y": model.y} | {f"x{i}": x for i, x in enumerate(model.X.T)}
    for j, factor in enumerate(model.factors):
        columns |= {f"z{j}_{i}": z for i, z in enumerate(factor.Z.T)}
        if factor.members is None:
            columns[factor.name] = labels(factor)[factor.codes]
    given = {"w": model.weights, "o": model.offset}
    return pd.DataFrame(columns | {name: column for name, column in given.items() if column is not None})


def formula(model):
    """The lmer formula, and its ``structures``."""
    bars, structures = [], {}
    for j, factor in enumerate(model.factors):
        at = 0
        for structure, size in factor.blocks:
            names = " + ".join(f"z{j}_{i}" for i in range(at, at + size))
            at += size
            bar = f"0 + {names} | {factor.name}"
            bars.append(f"({bar})")
            if structure != "unstructured":
                structures[bar] = structure
    fixed = "".join(f" + x{i}" for i in range(model.X.shape[1]))
    return f"y ~ 0{fixed} + {' + '.join(bars)}", structures or None


def arguments(model):
    """What ``lmer`` needs beside formula and data."""
    _, structures = formula(model)
    named = {"weights": ("w", model.weights), "offset": ("o", model.offset)}
    out = {"reml": model.reml, "structures": structures}
    out |= {key: name for key, (name, value) in named.items() if value is not None}
    shared = {f.name: f.members for f in model.factors if f.members is not None}
    related = {f.name: pd.DataFrame(f.related, labels(f), labels(f)) for f in model.factors if f.related is not None}
    return out | ({"memberships": shared} if shared else {}) | ({"relatedness": related} if related else {})
