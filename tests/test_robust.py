"""Cluster-robust covariances beside clubSandwich's, and beside their definition in dense algebra."""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reference_data import load_frame

import lme_jax as lme
from lme_jax import datasets
from lme_jax.core import clusters, sandwich
from lme_jax.errors import DataError, SingularFitWarning, UnsupportedError

REFERENCE = json.loads((Path(__file__).parent / "reference" / "robust.json").read_text(encoding="utf-8"))
KINDS = ["CR0", "CR1", "CR1S", "CR2", "CR3"]


@pytest.mark.parametrize("name", [name for name, entry in REFERENCE.items() if entry["robust"]])
def test_reference(name):
    entry = REFERENCE[name]
    frame = load_frame(entry["dataset"])
    frame = frame.drop(index=[i - 1 for i in entry["dropped_rows"] or []])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        fit = lme.lmer(entry["formula"], frame)
    expected = entry["robust"]
    for kind in KINDS:
        found, wanted = fit.robust(type=kind), expected[kind]
        assert found.clusters == expected["cluster"]
        size = np.abs(wanted["vcov"]).max()
        np.testing.assert_allclose(found.cov, wanted["vcov"], rtol=1e-8, atol=1e-8 * size)
        np.testing.assert_allclose(found.coefficients["df"], wanted["df"], rtol=1e-7)
        test, htz = found.test(expected["L"]), wanted["HTZ"]
        assert test.statistic == pytest.approx(htz["Fstat"], rel=1e-8)
        assert test.df_denom == pytest.approx(htz["df_denom"], rel=1e-7)
        # R's p-values keep no digits where they are tiny.
        assert test.pvalue == pytest.approx(htz["p_val"], rel=1e-6, abs=1e-12)


# ---------------------------------------------------------------- the definition


def frame_of(seed=4):
    """School a > class b, weights, a column that is the same in a whole school."""
    rng = np.random.default_rng(seed)
    a = np.repeat(np.arange(7), [6, 9, 14, 3, 20, 11, 8])
    frame = pd.DataFrame({"a": a, "b": rng.integers(0, 3, len(a)), "x": rng.normal(size=len(a))})
    frame["z"] = rng.normal(size=7)[a]
    frame["w"] = rng.uniform(0.5, 2.0, len(a))
    frame["y"] = frame.x + 2 * rng.normal(size=7)[a] + rng.normal(size=21)[3 * a + frame.b] + rng.normal(size=len(a))
    return frame


def dense(fit, codes, kind):
    """Cov, and Satterthwaite's df of every coefficient, from V, A and I − H written out."""
    data = fit._data
    n, p = data.X.shape
    V = np.diag(np.ones(n) if data.design.weights is None else 1.0 / data.design.weights)
    L = np.asarray(fit.fit.relative_factor)
    for factor, span in zip(data.factors, data.factor_slices, strict=True):
        same = np.equal.outer(factor.codes, factor.codes)
        V += same * (factor.Z @ L[span, span] @ L[span, span].T @ factor.Z.T)
    W, X = np.linalg.inv(V), data.X
    M = np.linalg.inv(X.T @ W @ X)
    H = X @ M @ X.T @ W
    e = (np.eye(n) - H) @ data.y
    m = codes.max() + 1
    meat, U = np.zeros((p, p)), np.zeros((n, p, m))
    for c in range(m):
        own = np.flatnonzero(codes == c)
        Vc, Xc, block = V[np.ix_(own, own)], X[own], np.ix_(own, own)
        A = np.eye(len(own))
        if kind == "CR2":
            D = np.linalg.cholesky(Vc).T
            values, vectors = np.linalg.eigh(D @ (Vc - Xc @ M @ Xc.T) @ D.T)
            root = np.where(values > 1e-9 * values.max(), np.abs(values) ** -0.5, 0.0)
            A = D.T @ (vectors * root) @ vectors.T @ D
        elif kind == "CR3":
            A = np.linalg.inv(np.eye(len(own)) - H[block])
        s = Xc.T @ W[block] @ A @ e[own]
        meat += np.outer(s, s)
        U[own, :, c] = A.T @ W[block] @ Xc @ M
    factor = {"CR1": m / (m - 1), "CR1S": m * (n - 1) / ((m - 1) * (n - p))}.get(kind, 1.0)
    left = V - X @ M @ X.T
    df = []
    for j in range(p):
        P = U[:, j].T @ left @ U[:, j]
        df.append(np.trace(P) ** 2 / (P**2).sum())
    return factor * M @ meat @ M, np.array(df)


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("kind", KINDS)
def test_definition(kind, weights):
    frame = frame_of()
    fit = lme.lmer("y ~ x + (1 | a/b)", frame, weights=weights)
    cov, df = dense(fit, frame.a.to_numpy(), kind)
    found = fit.robust(type=kind)
    np.testing.assert_allclose(found.cov, cov, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.coefficients["df"], df, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_any_blocks(kind):
    """V, X and e of the blocks of another model give what the fit of a mixed model gives; units of V cancel."""
    frame = frame_of()
    fit = lme.lmer("y ~ x + z + (x | a)", frame)
    data, L = fit._data, np.asarray(fit.fit.relative_factor)
    e, blocks = data.y - data.X @ np.asarray(fit.fe_params), []
    for a in range(7):
        own = frame.a.to_numpy() == a
        Z = data.factors[0].Z[own]
        blocks.append((3.0 * (np.eye(own.sum()) + Z @ L @ L.T @ Z.T), data.X[own], e[own]))
    found = sandwich.scores(sandwich.by_size(blocks), 3.0 * fit.fit.unscaled_cov, 7, fit.nobs, kind)
    np.testing.assert_allclose(sandwich.covariance(found), fit.robust(type=kind).cov, rtol=1e-9, atol=1e-12)
    df = fit.robust(type=kind).coefficients["df"]
    np.testing.assert_allclose(sandwich.satterthwaite(found, np.eye(3)), df, rtol=1e-9)


def test_clusters_above_the_groups_and_rows_in_any_order():
    frame = frame_of().sample(frac=1.0, random_state=0)
    frame["class"] = 3 * frame.a + frame.b
    fit = lme.lmer("y ~ x + z + (x || class)", frame)
    for cluster in (frame.a.sample(frac=1.0, random_state=1), frame.a.to_numpy()):
        found = fit.robust(cluster)
        cov, df = dense(fit, frame.a.to_numpy(), "CR2")
        np.testing.assert_allclose(found.cov, cov, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(found.coefficients["df"], df, rtol=1e-8)


def test_hotelling_is_satterthwaite_of_one_row_and_does_not_depend_on_the_basis():
    fit = lme.lmer("y ~ x + z + (1 | a)", frame_of())
    found = fit.robust()
    one = found.test("x = 0.5")
    row = found.table(([[0.0, 1.0, 0.0]], [0.5])).iloc[0]
    assert one.statistic == pytest.approx(row["statistic"] ** 2) and one.df_denom == pytest.approx(row["df"])
    assert one.pvalue == pytest.approx(row["p"])
    both = found.test([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    turned = found.test([[0.0, 1.0, 3.0], [0.0, 2.0, -1.0]])
    assert turned.statistic == pytest.approx(both.statistic) and turned.eta == pytest.approx(both.eta)
    again = pickle.loads(pickle.dumps(found))
    pd.testing.assert_frame_equal(again.cov, found.cov)
    assert "CR2" in repr(found) and "HTZ" in repr(both)


def test_coverage_where_the_model_is_wrong():
    """Errors whose spread follows x: CR2 limits hold their level, those of the model do not. 12 clusters, 200 draws."""
    rng = np.random.default_rng(11)
    g = np.repeat(np.arange(12), 8)
    x = rng.normal(size=96) + rng.normal(size=12)[g]
    shared = rng.normal(size=(12, 200))[g]
    Y = 1.0 + shared * (1.0 + 1.5 * np.abs(x))[:, None] + rng.normal(size=(96, 200))
    frame = pd.DataFrame({"g": g, "x": x, "y": Y[:, 0]})
    fit = lme.lmer("y ~ x + (1 | g)", frame)
    inside = {"model": 0, "CR2": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        for y in Y.T:
            drawn = fit.refit(y)
            row = drawn.robust().table("x").iloc[0]
            inside["CR2"] += row["lower"] <= 0.0 <= row["upper"]
            inside["model"] += abs(drawn.tvalues["x"]) < 1.96
    # Binomial with 200 draws: 95 % ± 4.6 % at three standard errors.
    assert abs(inside["CR2"] / 200 - 0.95) < 0.046
    assert inside["model"] / 200 < 0.85


def test_refusals():
    frame = frame_of()
    crossed = lme.lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", datasets.load("penicillin"))
    with pytest.raises(DataError, match=r"no grouping factor contains .*plate, sample"):
        crossed.robust()
    with pytest.raises(DataError, match="in several clusters"):
        crossed.robust("plate")
    fit = lme.lmer("y ~ x + (1 | a)", frame)
    with pytest.raises(DataError, match="'CR9' is unknown"):
        fit.robust(type="CR9")
    with pytest.raises(DataError, match="no grouping factor"):
        fit.robust("b")
    with pytest.raises(DataError, match="one label for each of the 71 rows"):
        fit.robust(frame.a.to_numpy()[:-1])
    with pytest.raises(DataError, match="two clusters"):
        fit.robust(np.zeros(len(frame)))
    # A column of one cluster alone: CR2 takes the generalised inverse, CR3 does not exist.
    alone = lme.lmer("y ~ I((a == 2) * 1.0) + (1 | b)", frame.assign(b=3 * frame.a + frame.b))
    assert np.isfinite(alone.robust(frame.a).cov.to_numpy()).all()
    with pytest.raises(DataError, match="determines a fixed effect by itself"):
        alone.robust(frame.a, "CR3")
    with pytest.raises(DataError, match="not independent"):
        fit.robust().test([[0.0, 1.0], [0.0, 2.0]])


def test_clusters_too_large_for_a_decomposition(monkeypatch):
    monkeypatch.setattr(clusters, "LARGEST", 3)
    fit = lme.lmer("y ~ x + (1 | a/b)", frame_of())
    with pytest.raises(UnsupportedError, match="type='CR3'"):
        fit.robust()
    assert np.isfinite(fit.robust(type="CR3").cov.to_numpy()).all()
