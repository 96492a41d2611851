"""Residual structures that look back by one row, as chains: against blocks, dense V and the recursion itself."""

import dataclasses

import numpy as np
import pytest
from oracles import residuals as oracle

from lme_jax.core.blocks import Block
from lme_jax.core.residual import data as residual_data
from lme_jax.core.residual import fit as residual_fit
from lme_jax.core.residual import inference, long, objective, record
from lme_jax.core.residual.identification import IdentificationError
from lme_jax.core.residual.terms import Correlation, RandomTerm, Variance
from lme_jax.core.types import Status
from lme_jax.errors import DataError

BY_VISIT = ("ident", "ar1", "ar1h")
T = 7


def everything(reml):
    return record.Wanted(reml, slopes=True, second=True)


def _design(word, bars, variances, arms, weighted, seed=0):
    """Arguments of ``compress``: 6 schools of 3 pupils, 7 visits with gaps, rows shuffled."""
    rng = np.random.default_rng(seed)
    keep = rng.permutation(np.flatnonzero(rng.random(6 * 3 * T) > 0.2))
    school, pupil, visit = (np.arange(6 * 3 * T) // (3 * T))[keep], (np.arange(6 * 3 * T) // T)[keep], keep % T
    n = len(keep)
    t = visit + rng.uniform(0, 0.5, n)
    X = np.column_stack([np.ones(n), t, rng.normal(size=n)])
    y = X @ [1.0, 0.3, 0.5] + rng.normal(size=6)[school] + 0.5 * rng.normal(size=18)[pupil] + rng.normal(size=n)
    Z = np.column_stack([np.ones(n), t])
    terms = {
        "none": [],
        "school": [RandomTerm(Z[:, :1], school, Block("unstructured", 1))],
        "slopes": [RandomTerm(Z, school, Block("unstructured", 2))],
        "pupil": [RandomTerm(Z, pupil, Block("unstructured", 2))],
        "two": [RandomTerm(Z[:, [j]], school, Block("unstructured", 1)) for j in (0, 1)],
    }[bars]
    known = {
        "i": Variance("ident", strata=visit % 3),
        "p": Variance("power", covariate=1 + t),
        "c": Variance("constpower", covariate=1 + t, strata=visit % 2),
    }
    clock, n_visits = (visit, T) if word in BY_VISIT else (t, 0)
    correlation = None if word == "ident" else Correlation(word, pupil, clock, n_visits, pupil % 2 if arms else None)
    weights = rng.uniform(0.5, 2.0, n) if weighted else None
    return y, X, terms, correlation, [known[v] for v in variances], weights


def _spec(design, model):
    y, _, _, c, variances, weights = design
    n = len(y)
    sizes = [s.stop - s.start for s in model.delta]
    return {
        "word": "ident" if c is None else c.word,
        "subject": np.arange(n) if c is None else c.subject,
        "clock": np.zeros(n, int) if c is None else c.clock,
        "T": model.n_visits,
        "group": None if c is None else c.group,
        "options": {},
        "variances": [(v.word, v.strata, v.covariate) for v in variances],
        "weights": weights,
        "bars": [],
        "n_rho": model.correlation.stop - model.correlation.start,
        "n_delta": sizes,
    }


def _with_bars(V, terms, model, params):
    for term, here in zip(terms, model.theta, strict=True):
        q, L = term.Z.shape[1], np.zeros((term.Z.shape[1],) * 2)
        L[np.tril_indices(q)] = params[here]
        V = V + (term.Z @ L @ L.T @ term.Z.T) * (term.codes[:, None] == term.codes[None])
    return V


def _dense(design, model, params, reml):
    y, X, terms = design[:3]
    spec = _spec(design, model)
    deltas = [params[s] for s in model.delta]
    V = _with_bars(oracle.residual_covariance(spec, params[model.correlation], deltas), terms, model, params)
    n, p = X.shape
    N = n - p if reml else n
    half = np.linalg.solve(V, np.column_stack([X, y]))
    M = X.T @ half[:, :p]
    r = y - X @ np.linalg.solve(M, X.T @ half[:, p])
    Q = r @ np.linalg.solve(V, r)
    value = np.linalg.slogdet(V)[1] + N * (1.0 + np.log(2.0 * np.pi * Q / N))
    return value + (np.linalg.slogdet(M)[1] if reml else 0.0)


CASES = [
    ("ident", "school", "i", False, False),
    ("ident", "none", "p", False, True),
    ("ar1", "none", "", False, False),
    ("ar1", "school", "", False, True),
    ("ar1", "slopes", "i", True, False),
    ("ar1", "pupil", "p", False, False),
    ("ar1h", "school", "", True, False),
    ("ar1h", "two", "c", False, True),
    ("car1", "none", "c", True, False),
    ("car1", "school", "", False, False),
    ("car1", "pupil", "ip", True, True),
]


@pytest.mark.parametrize("case", CASES, ids="-".join(map(str, range(len(CASES)))).split("-"))
def test_a_chain_is_the_blocks_and_dense_v(case):
    design = _design(*case)
    blocks = residual_data.compress(*design[:5], weights=design[5], engine="blocks")
    chain = residual_data.compress(*design[:5], weights=design[5], engine="series")
    rows = dataclasses.replace(chain, series=chain.series._replace(sets=None))
    x = np.random.default_rng(5).normal(size=blocks.model.size) * 0.3
    # Searched units: θ of the bars by powers of two, δ by their spreads.
    for reml in (True, False):
        dense = _dense(design, blocks.model, x / blocks.unit, reml)
        _, gradient, hessian, kept = objective.evaluate(x, blocks, reml)
        wanted = objective.moved(objective.point(x, blocks, reml), blocks, everything(reml))
        for data in (chain, rows):
            mine = objective.evaluate(x, data, reml)
            assert abs(mine[0] - dense) < 1e-9 * (1 + abs(dense))
            np.testing.assert_allclose(mine[1], gradient, rtol=1e-9, atol=1e-9 * np.abs(gradient).max())
            np.testing.assert_allclose(mine[2], hessian, rtol=1e-8, atol=1e-8 * np.abs(hessian).max())
            np.testing.assert_allclose(mine[3].log_scale_slope, kept.log_scale_slope, rtol=1e-9, atol=1e-10)
            m = objective.moved(objective.point(x, data, reml), data, everything(reml))
            for have, want in (
                (_moved_twice(m, data), _moved_twice(wanted, blocks)),
                (m.record.trace, wanted.record.trace),
            ):
                np.testing.assert_allclose(have, want, rtol=1e-8, atol=1e-8 * np.abs(want).max())


def _moved_twice(m, data):
    """XᵀV⁻¹X moved twice, in the user's columns: the whitened ones differ by their basis."""
    inner = m.F.swapaxes(1, 2) + m.F.transpose(2, 0, 3, 1) - m.bent
    return np.trace(inner, axis1=2, axis2=3)


def _series(subjects, visits, missing, irregular, seed=3):
    """y, X, subjects, visits and times of AR(1) with a random intercept."""
    rng = np.random.default_rng(seed)
    steps = rng.exponential(size=(subjects, visits)) if irregular else np.ones((subjects, visits))
    t, e = np.cumsum(steps, 1), rng.normal(size=(subjects, visits))
    for j in range(1, visits):
        phi = np.exp(-0.5 * steps[:, j])
        e[:, j] = phi * e[:, j - 1] + np.sqrt(1 - phi**2) * e[:, j]
    subject, visit = np.divmod(np.arange(subjects * visits), visits)
    x = rng.normal(size=len(subject))
    y = 1 + 0.1 * visit + 0.3 * x + 0.7 * rng.normal(size=subjects)[subject] + e.ravel()
    X = np.column_stack([np.ones(len(y)), visit, subject % 2, x])
    keep = rng.random(len(y)) >= missing
    return y[keep], X[keep], subject[keep], visit[keep], t.ravel()[keep]


@pytest.mark.parametrize("irregular", [False, True])
def test_fits_are_those_of_the_blocks(irregular, monkeypatch):
    y, X, subject, visit, t = _series(300, 8, 0.15, irregular)
    term = RandomTerm(np.ones((len(y), 1)), subject, Block("unstructured", 1))
    correlation = Correlation("car1", subject, t) if irregular else Correlation("ar1", subject, visit, 8)
    found = {}
    for engine in ("blocks", "series"):
        data = residual_data.compress(y, X, [term], correlation, engine=engine)
        found[engine] = (data, residual_fit.fit(data))
    (blocks, a), (chain, b) = found["blocks"], found["series"]
    assert a.status == b.status == Status.CONVERGED
    assert abs(a.deviance - b.deviance) < 1e-8
    for name in ("params", "beta", "unscaled_cov", "sigma", "hessian"):
        np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-6, atol=1e-9, err_msg=name)
    # Sums of a chain alone, as where the blocks are too large.
    monkeypatch.setattr(long, "affordable", lambda block: False)
    have, want = (inference.jets(f, d, natural=True) for d, f in ((chain, b), (blocks, a)))
    for name in ("cov", "slope", "curve", "information"):
        size = np.abs(getattr(want, name)).max()
        np.testing.assert_allclose(getattr(have, name), getattr(want, name), rtol=1e-5, atol=1e-6 * size, err_msg=name)
    assert np.isnan(have.expected).all() and np.isnan(have.bend).all()
    monkeypatch.undo()
    have = inference.jets(b, chain, natural=True)
    np.testing.assert_allclose(have.expected, want.expected, rtol=1e-5)
    np.testing.assert_allclose(have.bend, want.bend, rtol=1e-5, atol=1e-6 * np.abs(want.bend).max())
    # What is asked of single blocks makes them then.
    assert sum(s.copies.sum() for s in chain.stacks) == len(np.unique(subject))


def test_levels_alike_are_pooled_and_a_sample_is_where_searches_begin():
    y, X, subject, visit, _ = _series(9_000, 5, 0.02, False)
    # In the sampled levels a rare column need not vary at all.
    X = np.column_stack([X, subject == 7])
    term = RandomTerm(np.ones((len(y), 1)), subject, Block("unstructured", 1))
    chain = residual_data.compress(y, X, [term], Correlation("ar1", subject, visit, 5), engine="series")
    blocks = residual_data.compress(y, X, [term], Correlation("ar1", subject, visit, 5), engine="blocks")
    assert chain.series.counts.sum() == 9_000 and len(chain.series.counts) < 2_000
    assert chain.sample.n_fixed == 4 and chain.sample.n_rows < 22_000
    a, b = residual_fit.fit(blocks), residual_fit.fit(chain)
    assert b.n_iter <= 6 and a.status == b.status == Status.CONVERGED
    assert abs(a.deviance - b.deviance) < 1e-12 * abs(a.deviance) * 1e3
    np.testing.assert_allclose(b.params, a.params, rtol=1e-7)
    np.testing.assert_allclose(b.beta, a.beta, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("irregular", [False, True])
def test_one_long_series(irregular):
    y, X, subject, visit, t = _series(1, 9_000, 0.3, irregular)
    X = X[:, [0, 1, 3]]
    correlation = Correlation("car1", subject, t) if irregular else Correlation("ar1", subject, visit, 9_000)
    data = residual_data.compress(y, X, [], correlation)
    found = residual_fit.fit(data)
    phi = np.exp(-np.diff(t) / np.exp(found.params[0])) if irregular else np.sin(found.params[0]) ** np.diff(visit)
    W = np.column_stack([X, y])
    W[1:] = (W[1:] - phi[:, None] * W[:-1]) / np.sqrt(1 - phi**2)[:, None]
    beta, rss = np.linalg.lstsq(W[:, :3], W[:, 3], rcond=None)[:2]
    N = len(y) - 3
    wanted = np.log(1 - phi**2).sum() + np.linalg.slogdet(W[:, :3].T @ W[:, :3])[1]
    wanted += N * (1 + np.log(2 * np.pi * rss[0] / N))
    assert found.status == Status.CONVERGED and abs(found.deviance - wanted) < 1e-8
    np.testing.assert_allclose(found.beta, beta, rtol=1e-9)
    assert abs(found.gradient).max() < 1e-4


def test_what_is_no_chain_is_refused():
    y, X, subject, visit, _ = _series(20, 6, 0.1, False)
    other = RandomTerm(np.ones((len(y), 1)), visit, Block("unstructured", 1))
    with pytest.raises(DataError, match="not a chain"):
        residual_data.compress(y, X, [other], Correlation("ar1", subject, visit, 6), engine="series")
    with pytest.raises(DataError, match="not a chain"):
        residual_data.compress(y, X, [], Correlation("us", subject, visit, 6), engine="series")
    with pytest.raises(IdentificationError, match="no subject has two rows"):
        residual_data.compress(y, X, [], Correlation("ar1", np.arange(len(y)), visit, 6), engine="series")
