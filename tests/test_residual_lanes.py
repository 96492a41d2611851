"""Many responses of one trial: every lane is the fit of its own, its contrasts those of its own jets."""

import numpy as np
import pytest

from lme_jax.core.blocks import Block
from lme_jax.core.residual import fit as residual_fit
from lme_jax.core.residual import grid_lanes, inference, lane_contrasts, lanes, objective
from lme_jax.core.residual.data import compress, responding
from lme_jax.core.residual.terms import Correlation, RandomTerm
from lme_jax.core.types import Status
from lme_jax.errors import DataError
from lme_jax.inference import degrees

T = 4


def _trial(n=90, n_lanes=4, seed=0):
    """Y (rows, lanes), X, patients and visits of a trial with missing visits."""
    rng = np.random.default_rng(seed)
    patient, visit = np.divmod(np.arange(n * T), T)
    baseline = rng.normal(size=n)[patient]
    cells = np.eye(T)[visit]
    X = np.column_stack([cells, cells * (patient % 2)[:, None], baseline])
    sd = 1.0 + 0.2 * np.arange(T)
    L = np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(np.arange(T), np.arange(T))) * np.outer(sd, sd))
    Y = np.stack([(rng.normal(size=(n, T)) @ L.T).ravel() + 0.3 * baseline for _ in range(n_lanes)], 1)
    keep = (rng.random(n * T) > 0.1) & (visit < np.where(rng.random(n) < 0.2, 2, T)[patient])
    return Y[keep], X[keep], patient[keep], visit[keep]


@pytest.mark.parametrize(
    ("word", "arms", "weighted", "reml"),
    [
        ("us", False, False, True),
        ("us", True, True, False),
        ("ar1h", False, True, True),
        ("toep", True, False, True),
        ("cs", False, False, False),
    ],
)
def test_lanes_are_fits_of_their_own(word, arms, weighted, reml):
    Y, X, patient, visit = _trial()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(Y)) if weighted else None
    data = compress(
        Y[:, 0], X, [], Correlation(word, patient, visit, T, patient % 2 if arms else None), weights=weights
    )
    many = lanes.fit_lanes(data, Y, reml=reml)
    rows = np.random.default_rng(2).normal(size=(2, X.shape[1]))
    tests = {m: lane_contrasts.contrasts(many, data, rows, method=m, reml=reml) for m in lane_contrasts.METHODS}
    off = np.random.default_rng(3).normal(size=(data.model.size, Y.shape[1])) * 0.1 + (many.params * data.unit).T
    value, gradient, hessian, _ = grid_lanes.evaluate(off, grid_lanes.lanes(grid_lanes.shared(data), Y), reml)
    for i, y in enumerate(Y.T):
        own = responding(data, y)
        alone = objective.evaluate(off[:, i], own, reml)
        assert abs(value[i] - alone[0]) < 1e-9
        np.testing.assert_allclose(gradient[:, i], alone[1], rtol=1e-9, atol=1e-9 * np.abs(alone[1]).max())
        np.testing.assert_allclose(hessian[:, :, i], alone[2], rtol=1e-9, atol=1e-9 * np.abs(alone[2]).max())
        found = residual_fit.fit(own, reml=reml)
        assert many.status[i] == found.status == Status.CONVERGED
        assert abs(many.deviance[i] - found.deviance) < 1e-9
        for name in ("params", "beta", "unscaled_cov", "sigma", "hessian", "log_scale_slope"):
            have, want = getattr(many, name)[i], getattr(found, name)
            np.testing.assert_allclose(have, want, rtol=1e-7, atol=1e-8, err_msg=name)
        jets = inference.jets(found, own, reml=reml)
        for method, reference in zip(
            lane_contrasts.METHODS, (degrees.satterthwaite, degrees.kenward_roger), strict=True
        ):
            wanted = reference(jets)
            se = np.sqrt(np.einsum("mi,ij,mj->m", rows, wanted.cov, rows))
            np.testing.assert_allclose(tests[method].estimate[i], rows @ found.beta, atol=1e-8)
            np.testing.assert_allclose(tests[method].se[i], se, rtol=1e-8)
            np.testing.assert_allclose(tests[method].df[i], wanted.single(rows), rtol=1e-7)


def test_a_lane_that_fails_leaves_the_others_alone():
    Y, X, patient, visit = _trial(n_lanes=5)
    Y[3, 1] = np.nan
    Y[:, 2] = X @ np.arange(X.shape[1])
    # Next to no variation between visits: the optimum is singular, and searched for by itself.
    Y[:, 3] = Y[:, 3] * 1e-12 + np.random.default_rng(1).normal(size=90)[patient]
    data = compress(Y[:, 0], X, [], Correlation("us", patient, visit, T))
    ended = []
    found = lanes.fit_lanes(data, Y, progress=ended.append)
    assert sum(ended) == 5
    assert found.status[0] == found.status[4] == Status.CONVERGED
    assert found.status[1] == found.status[2] == Status.NOT_FINITE
    assert found.status[3] != Status.CONVERGED
    tests = lane_contrasts.contrasts(found, data, np.eye(X.shape[1])[:1])
    assert np.isfinite(tests.df[[0, 4]]).all() and np.isnan(tests.df[[1, 2]]).all()
    again = lanes.fit_lanes(data, Y[:, [4, 0]], start=found.params[0])
    np.testing.assert_allclose(again.beta[0], found.beta[4], rtol=1e-6)
    assert again.n_iter[1] <= 2


@pytest.mark.parametrize("how", ["bar", "series", "too much"])
def test_other_structures_go_one_by_one(how, monkeypatch):
    Y, X, patient, visit = _trial(n=40, n_lanes=2)
    bars = [RandomTerm(np.ones((len(Y), 1)), patient, Block("unstructured", 1))] if how == "bar" else []
    engine = "series" if how == "series" else None
    data = compress(Y[:, 0], X, bars, Correlation("ar1", patient, visit, T), engine=engine)
    if how == "too much":
        monkeypatch.setattr(lanes, "WORK", 0)
    found = lanes.fit_lanes(data, Y)
    own = residual_fit.fit(compress(Y[:, 1], X, bars, Correlation("ar1", patient, visit, T)))
    np.testing.assert_allclose(found.beta[1], own.beta, rtol=1e-7, atol=1e-9)
    assert abs(found.deviance[1] - own.deviance) < 1e-9
    if how == "bar":
        with pytest.raises(DataError, match="one covariance by visit"):
            lane_contrasts.contrasts(found, data, np.eye(X.shape[1])[:1])


def test_wrong_shapes_are_refused():
    Y, X, patient, visit = _trial(n=30, n_lanes=1)
    data = compress(Y[:, 0], X, [], Correlation("cs", patient, visit, T))
    with pytest.raises(DataError, match="a column per response"):
        lanes.fit_lanes(data, Y[:, 0])
    assert lanes.fit_lanes(data, Y[:, :0]).beta.shape == (0, X.shape[1])
    with pytest.raises(DataError, match="a column per fixed effect"):
        lane_contrasts.contrasts(lanes.fit_lanes(data, Y), data, np.ones((1, 2)))
