"""New rows given the rows of their blocks: E[y_new | y] and what is left of the variance, at a fit."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg

from .data import BlockData
from .distances import between
from .fit import ResidualFit
from .model import Model, pattern
from .stacks import Rows, Stack
from .stacks import _pairs as pairs

# Words whose matrices are of any number of visits.
_ANY_LENGTH = ("ar1", "arma", "ident")


class Conditional(NamedTuple):
    """Of m new rows, β and the covariance parameters held.

    Attributes
    ----------
    effect : (m,) E[y_new | y] − Xβ̂, response units.
    variance : (m,) Var(y_new | y), response units².
    shift : (m, p) Cov(y_new, y)V⁻¹X of the rows observed: x − shift is what multiplies β̂ in the prediction.
    """

    effect: np.ndarray
    variance: np.ndarray
    shift: np.ndarray


def conditional(fit: ResidualFit, data: BlockData, new: Rows) -> Conditional:
    """``Conditional`` of new rows, in the codes of the data; −1 is a subject or level that the data do not have."""
    m, p = len(new.subject), data.X.shape[1]
    out = Conditional(np.zeros(m), np.empty(m), np.zeros((m, p)))
    r = data.y - data.X @ fit.beta
    for old, here in _joined(data, new):
        n, ones = len(old), np.ones(len(here))
        if not n:
            alone = new.map(here)
            out.variance[here] = _covariance(fit, data, alone, ones, np.arange(len(here))[:, None])[:, 0, 0]
            continue
        root = np.ones(n) if data.weights is None else np.sqrt(data.weights[old])
        together = _together(data.rows, old, new, here)
        V = _covariance(fit, data, together, np.append(root, ones), np.arange(n + len(here))[None])[0]
        own = np.diagonal(V)[n:]
        factor = scipy.linalg.cho_factor(V[:n, :n], lower=True)
        back = scipy.linalg.cho_solve(factor, V[:n, n:])
        out.effect[here], out.shift[here] = back.T @ r[old], back.T @ data.X[old]
        out.variance[here] = np.maximum(own - (back * V[:n, n:]).sum(0), 0.0)
    return out._replace(variance=fit.sigma**2 * out.variance)


def _joined(data: BlockData, new: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows observed and new rows that depend on each other, set by set."""
    blocks: list[tuple[int, ...]] = []
    kinds = [(data.rows.subject, new.subject), *zip(data.rows.codes, new.codes, strict=True)]
    homes = [_home(data.block, old) for old, _ in kinds]
    for i in range(len(new.subject)):
        codes = [int(codes[i]) for _, codes in kinds]
        found = {int(home[c]) for home, c in zip(homes, codes, strict=True) if c >= 0}
        blocks.append(tuple(sorted(found)))
    order = np.argsort(data.block, kind="stable")
    starts = np.searchsorted(data.block[order], np.arange(int(data.block.max()) + 2))
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, key in enumerate(blocks):
        groups.setdefault(key, []).append(i)
    for key, members in groups.items():
        parts = [order[starts[b] : starts[b + 1]] for b in key]
        yield np.concatenate([np.empty(0, int), *parts]), np.array(members)


def _home(block: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The block of every code."""
    out = np.zeros(int(codes.max()) + 1, int)
    out[codes] = block
    return out


def _together(rows: Rows, old: np.ndarray, new: Rows, here: np.ndarray) -> Rows:
    """The rows observed, then the new ones; every unknown code is one of its own."""
    first, then = rows.map(old), new.map(here)
    alone = -1 - np.arange(len(here))

    def codes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.append(a, np.where(b < 0, alone, b))

    return Rows(
        subject=codes(first.subject, then.subject),
        clock=np.concatenate([first.clock, then.clock]),
        group=np.append(first.group, then.group),
        strata=tuple(map(np.append, first.strata, then.strata)),
        covariates=tuple(map(np.append, first.covariates, then.covariates)),
        Z=tuple(np.concatenate(pair) for pair in zip(first.Z, then.Z, strict=True)),
        codes=tuple(map(codes, first.codes, then.codes)),
    )


def _covariance(fit: ResidualFit, data: BlockData, rows: Rows, root: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """V (P, n, n) of sets (P, n) of rows, σ = 1; root of the rows' weights."""
    model, x = _long_enough(data.model, rows), fit.params * data.unit
    # θ of Z in the user's units; everything else is searched as it is.
    x[: model.n_theta] = fit.params[: model.n_theta]
    clock = rows.clock - rows.clock.min() if model.n_visits != data.model.n_visits else rows.clock
    rows = rows._replace(Z=tuple(Z * root[:, None] for Z in rows.Z), clock=clock)
    own = root[sets]
    return pattern(model, x, _stack(rows, sets, model), derivatives=False).V / (own[:, :, None] * own[:, None, :])


def _long_enough(model: Model, rows: Rows) -> Model:
    """The model with visits enough for rows before the first or after the last one."""
    if model.family.distance or model.word not in _ANY_LENGTH:
        return model
    low, high = int(rows.clock.min()), int(rows.clock.max())
    return model if low >= 0 and high < model.n_visits else model._replace(n_visits=max(high - low + 1, 2))


def _stack(rows: Rows, sets: np.ndarray, model: Model) -> Stack:
    """Sets (P, n) of rows as the patterns of a stack without [X y]."""
    P, n = sets.shape
    at, present = rows.map(sets), np.ones((P, n), bool)
    metric = str(model.settings.get("metric", "euclidean"))
    return Stack(
        copies=np.ones(P),
        present=present,
        at=at,
        owner=np.arange(P),
        first=np.arange(P),
        C=np.empty((P, n, 0)),
        rows=sets,
        member=np.arange(P),
        together=pairs(at.subject, present),
        levels=tuple(pairs(c, present) for c in at.codes),
        distance=between(at.clock, metric) if model.family.distance else None,
    )
