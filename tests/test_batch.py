"""Many fits at once equal one fit at a time: responses, missing rows, data sets, chunks, failures."""

import warnings

import numpy as np
import pandas as pd
import pytest

import lme_jax
from lme_jax import Status, fit_many, lmer, lmer_many
from lme_jax.core import batch, grouped, lanes, programs
from lme_jax.core.compression import compress
from lme_jax.core.data_sets import DataSets
from lme_jax.core.fit import fit
from lme_jax.core.lane_data import SharedDesign
from lme_jax.errors import ConvergenceWarning, DataError, RankWarning, UnsupportedError

# Both engines run the same Newton search on the same deviance, so what they reach differs by rounding only.
TIGHT = 1e-8
COMPARED = ("theta", "relative_factor", "beta", "sigma", "unscaled_cov", "deviance", "hessian", "log_scale_slope")


def problem(seed=0, n_groups=24, size=(3, 9), q=2, p=2, R=7, balanced=False):
    rng = np.random.default_rng(seed)
    sizes = np.full(n_groups, size[1]) if balanced else rng.integers(*size, n_groups)
    groups = np.repeat(np.arange(n_groups), sizes)
    n = len(groups)
    x = np.tile(np.arange(size[1]) / 4.0, n_groups) if balanced else rng.normal(size=n)
    Z = np.column_stack([np.ones(n), x, rng.normal(size=n)])[:, :q]
    X = np.column_stack([np.ones(n), x, rng.normal(size=(n, 3))])[:, :p]
    b = rng.normal(size=(n_groups, q, R)) * np.array([1.5, 0.7, 0.5])[:q, None]
    Y = 100.0 + np.einsum("nq,nqr->nr", Z, b[groups]) + rng.normal(size=(n, R)) * rng.uniform(0.1, 10.0, R)
    return Y, X, Z, groups


def assert_same(many, number, single, tolerance=TIGHT):
    names = COMPARED
    if np.abs(single.theta).max() > 100:
        # A correlation that tends to ±1 has its parameter at infinity: where on that flat ray the search stops is
        # rounding. The factor L(θ) is compared all the same.
        names = [name for name in COMPARED if name != "theta"]
    for name in names:
        one, lane = np.asarray(getattr(single, name)), getattr(many, name)[number]
        np.testing.assert_allclose(lane, one, rtol=tolerance, atol=tolerance * (1 + np.abs(one).max(initial=0.0)))
    assert many.status[number] == single.status


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(
    ("q", "p", "structure", "balanced"),
    [(1, 1, "unstructured", True), (2, 2, "unstructured", True), (2, 3, "diagonal", False), (3, 2, "ar1", False)],
)
def test_many_responses_equal_single_fits(q, p, structure, balanced, reml):
    Y, X, Z, groups = problem(q=q, p=p, balanced=balanced)
    rng = np.random.default_rng(1)
    weights, offset = (None, None) if balanced else (rng.uniform(0.5, 2, len(X)), rng.normal(size=len(X)))
    kept = Y.copy()
    many = fit_many(Y, X, Z, groups, structure=structure, weights=weights, offset=offset, reml=reml)
    np.testing.assert_array_equal(Y, kept)
    for r in range(Y.shape[1]):
        data = compress(Y[:, r], X, Z, groups, structure=structure, weights=weights, offset=offset)
        assert_same(many.fit, r, fit(data, reml=reml))


def test_the_lanes_objective_is_the_grouped_one_with_its_derivatives():
    """Away from the optimum and at zero columns."""
    import jax
    import jax.numpy as jnp

    for template in ("unstructured", "compound_symmetry", "ar1", (("unstructured", 2), ("diagonal", 1))):
        Y, X, Z, groups = problem(q=3, R=4)
        n_levels = int(groups.max()) + 1
        for reml in (True, False):
            data = compress(Y[:, 0], X, Z, groups, structure=template)
            rows, sets = np.tile(np.arange(len(X)), 4), np.repeat(np.arange(4), len(X))
            sets_of_rows = DataSets(Y[rows, 0], X[rows], Z[rows], groups[rows], sets, 4, template=data.template)
            lane_data = sets_of_rows.compress(np.arange(4), n_levels)
            k = lanes.covariance.n_theta(data.template)
            theta = np.random.default_rng(2).normal(size=(k, 4))
            theta[:, 1] = 0.0
            with jax.enable_x64(True):
                found = lanes.objective(jnp.asarray(theta), jax.tree.map(jnp.asarray, lane_data), reml)
                for r in range(4):
                    one = grouped.objective(jnp.asarray(theta[:, r]), jax.tree.map(jnp.asarray, data), reml)
                    pairs = zip(jax.tree.leaves(one[:3]), jax.tree.leaves(found[:3]), strict=True)
                    for expected, lane in pairs:
                        size = 1e-11 * (1 + float(jnp.abs(expected).max()))
                        np.testing.assert_allclose(lane[..., r], expected, rtol=0, atol=size)


def test_missing_rows_equal_dropped_rows():
    Y, X, Z, groups = problem(R=9)
    rng = np.random.default_rng(3)
    Y[rng.random(Y.shape) < 0.2] = np.nan
    Y[:, 4] = problem(R=9)[0][:, 4]
    Y[groups == 5, 0] = np.nan
    mask = np.ones(Y.shape, bool)
    mask[:3, 6] = False
    many = fit_many(Y, X, Z, groups, mask=mask, weights=np.linspace(0.5, 2, len(X)))
    weights = np.linspace(0.5, 2, len(X))
    for r in range(Y.shape[1]):
        seen = np.isfinite(Y[:, r]) & mask[:, r]
        single = fit(compress(Y[seen, r], X[seen], Z[seen], groups[seen], weights=weights[seen]))
        assert_same(many.fit, r, single)
        assert many.n_obs[r] == seen.sum()
    one = many.one(0)
    assert one.nobs == many.n_obs[0]
    np.testing.assert_allclose(one.bse_fe, many.bse_fe.loc[0], rtol=1e-12)


def test_any_chunking_gives_the_same_numbers(monkeypatch):
    Y, X, Z, groups = problem(R=70, n_groups=12)
    whole = fit_many(Y, X, Z, groups).fit
    monkeypatch.setattr(batch, "CHEAP_ROUNDS", 3)
    programs.clear()
    monkeypatch.setattr(batch, "NARROW", 4)
    pieces = fit_many(Y, X, Z, groups, memory_limit=1).fit
    programs.clear()
    for name in (*COMPARED, "status"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
    # Lanes beside others are summed in another order: rounding may ask for one more evaluation.
    np.testing.assert_allclose(pieces.iterations, whole.iterations, rtol=0, atol=1)


def test_failing_and_singular_lanes_leave_the_others_alone():
    Y, X, Z, groups = problem(R=6, balanced=True)
    rng = np.random.default_rng(5)
    Y[:, 1] = 3.0
    Y[:, 2] = X @ [1.0, 2.0]
    Y[:, 3] = rng.normal(size=len(X))
    Y[2:, 4] = np.nan
    with pytest.warns(ConvergenceWarning, match="3 of 6 fits"):
        many = fit_many(Y, X, Z, groups)
    assert [Status(s).name for s in many.fit.status[[1, 2, 4]]] == ["NOT_FINITE", "NOT_FINITE", "NOT_IDENTIFIED"]
    for r in (0, 3, 5):
        assert_same(many.fit, r, fit(compress(Y[:, r], X, Z, groups)))
    assert many.fit.status[3] == Status.SINGULAR
    assert not np.isfinite(many.fit.deviance[[1, 2, 4]]).any()


def test_columns_lost_by_missing_rows_are_left_out():
    Y, X, Z, groups = problem(R=3, p=3)
    X[:, 2] = 0.0
    X[:4, 2] = 1.0
    Y[:4, 1] = np.nan
    with pytest.warns(RankWarning, match="1 of 3 fits leave out .* is 1, without x2"):
        many = fit_many(Y, X, Z, groups)
    seen = np.isfinite(Y[:, 1])
    single = fit(compress(Y[seen, 1], X[seen, :2], Z[seen], groups[seen]))
    np.testing.assert_allclose(many.fit.beta[1], [*single.beta, np.nan], rtol=1e-8)
    np.testing.assert_allclose(many.fit.unscaled_cov[1, :2, :2], single.unscaled_cov, rtol=1e-8)
    assert many.fit.deviance[1] == pytest.approx(float(single.deviance), abs=1e-8)
    assert many.n_params.tolist() == [7, 6, 7]
    assert list(many.one(1).fe_params.index) == ["const", "x1"]
    assert_same(many.fit, 0, fit(compress(Y[:, 0], X, Z, groups)))


def test_refit_many_of_a_formula_and_its_views():
    df = lme_jax.datasets.load("sleepstudy")
    result = lmer("Reaction ~ Days + (Days | Subject)", df)
    Y = result.simulate(5, seed=1)
    before = result.deviance
    many = result.refit_many(Y)
    for r in range(5):
        single = result.refit(Y[r])
        assert_same(many.fit, r, single.fit)
    np.testing.assert_allclose(many.bse_vcov.loc[2].iloc[:-1], result.refit(Y[2]).bse_re, rtol=1e-7)
    slope, cov = many.fit.log_scale_slope[2], 2.0 * np.linalg.inv(many.fit.hessian[2])
    relative = np.sqrt(2.0 / (180 - 2) + slope @ cov @ slope)
    assert many.bse_vcov.loc[2, "Residual Var"] == pytest.approx(many.fit.sigma[2] ** 2 * relative, rel=1e-9)
    assert result.deviance == before
    one = many.one(3)
    pd.testing.assert_frame_equal(one.ranef["Subject"], result.refit(Y[3]).ranef["Subject"], rtol=1e-7)
    tidy = many.frame()
    assert list(tidy.columns[:5]) == ["response", "effect", "term", "estimate", "std_error"]
    assert len(tidy) == 5 * (2 + 4)
    row = tidy[(tidy.response == 3) & (tidy.term == "Days")].iloc[0]
    assert row.estimate == pytest.approx(one.fe_params["Days"])
    assert row.p_value == pytest.approx(one.pvalues["Days"])


def test_several_factors_are_fitted_one_by_one():
    df = lme_jax.datasets.load("penicillin")
    result = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", df)
    Y = result.simulate(2, seed=3)
    many = result.refit_many(Y, progress=False)
    for r in range(2):
        assert many.fit.deviance[r] == pytest.approx(result.refit(Y[r]).deviance, abs=1e-8)
    Y.iloc[0, 0] = np.nan
    with pytest.raises(UnsupportedError, match="several grouping factors"):
        result.refit_many(Y)


def test_formulas_and_responses_of_one_data_frame():
    df = lme_jax.datasets.load("sleepstudy")
    rng = np.random.default_rng(0)
    genes = pd.DataFrame(df.Reaction.to_numpy()[:, None] + rng.normal(size=(180, 3)), columns=["a", "b", "c"])
    genes.loc[4, "b"] = np.nan
    data = df.assign(**genes)
    data.loc[9, "Days"] = np.nan
    kept = data.copy()
    formulas = {"slope": "~ Days + (Days | Subject)", "intercept": "~ Days + (1 | Subject)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = lmer_many(formulas, data, ["a", "b", "c"], reml=False)
        single = lmer("b ~ Days + (Days | Subject)", data, reml=False)
    pd.testing.assert_frame_equal(data, kept)
    many = models["slope"]
    assert many.n_obs.tolist() == [179, 178, 179]
    assert many.llf["b"] == pytest.approx(single.llf, abs=1e-9)
    np.testing.assert_allclose(many.one("b").bse_re, single.bse_re, rtol=1e-6)
    table = lme_jax.compare(models)
    assert len(table) == 6
    assert table.groupby("response").best_aic.sum().tolist() == [1, 1, 1]


def test_subsets_of_a_data_frame_are_separate_fits():
    rng = np.random.default_rng(11)
    frames = []
    for site in range(5):
        n_groups, size = 6 + 3 * site, 4
        g = np.repeat(np.arange(n_groups), size)
        x = rng.normal(size=len(g))
        y = site + x + rng.normal(size=n_groups)[g] + rng.normal(size=len(g))
        frames.append(pd.DataFrame({"site": f"s{site}", "g": g, "x": x, "y": y}))
    frames[3]["y"] = 1.0
    df = pd.concat(frames).sample(frac=1.0, random_state=1)
    with pytest.warns(ConvergenceWarning, match="1 of 5 fits"):
        many = lmer_many("y ~ x + (1 | g)", df, by="site")
    assert many.status["s3"] == "not_finite"
    for r, name in enumerate(many.names):
        if name != "s3":
            single = lmer("y ~ x + (1 | g)", df[df.site == name])
            assert_same(many.fit, r, single.fit)
            assert many.one(name).deviance == pytest.approx(single.deviance, abs=1e-9)


def test_subsets_that_are_awkward_alone():
    """Each beside its single fit: far from the origin, nearly and quite collinear, too few rows, an exact response."""
    rng = np.random.default_rng(13)

    def subset(name, n=48, *, center=0.0, spread=1.0):
        g = np.arange(n) % 8
        z = rng.normal(size=n)
        y = 3.0 * z + rng.normal(size=8)[g] + 0.5 * rng.normal(size=n)
        return pd.DataFrame(
            {
                "name": name,
                "g": g,
                "x": center + spread * z,
                "y": y,
                "w": rng.uniform(0.5, 2.0, n),
                "o": rng.normal(size=n),
            }
        )

    frames = [
        subset("plain"),
        subset("far", center=3e3),
        subset("nearly collinear", center=3e3, spread=1e-2),
        subset("constant x", spread=0.0).assign(y=rng.normal(size=48)),
        subset("few", n=2),
        subset("exact").assign(y=lambda d: 2.0 * d.x + d.o),
    ]
    df = pd.concat(frames).sample(frac=1.0, random_state=1)
    formula = "y ~ x + (1 | g)"
    with (
        pytest.warns(ConvergenceWarning, match="2 of 6 fits"),
        pytest.warns(RankWarning, match="'constant x', without x"),
    ):
        many = lmer_many(formula, df, by="name", weights="w", offset="o")
    for r, name in enumerate(many.names):
        if name == "constant x":
            with pytest.warns(RankWarning):
                single = lmer(formula, df[df.name == name], weights="w", offset="o")
            assert many.llf[name] == pytest.approx(single.llf, abs=1e-8)
            assert many.fits.aic[name] == pytest.approx(single.aic, abs=1e-8)
            np.testing.assert_allclose(many.fe_params.loc[name], [single.fe_params.iloc[0], np.nan], rtol=1e-8)
        elif name in ("few", "exact"):
            assert many.status[name] == ("not_finite" if name == "exact" else "not_identified")
            assert not np.isfinite(many.llf[name])
        else:
            assert_same(many.fit, r, lmer(formula, df[df.name == name], weights="w", offset="o").fit)
    # No fixed effects at all.
    many = lmer_many("y ~ 0 + (1 | g)", df[df.name != "few"], by="name")
    assert many.converged.all()
    assert_same(many.fit, 0, lmer("y ~ 0 + (1 | g)", df[df.name == many.names[0]]).fit)


def test_subsets_of_very_unlike_size_are_not_padded_alike():
    rng = np.random.default_rng(12)
    sizes = [*rng.integers(3, 6, 30), 200]
    site = np.repeat(np.arange(31), np.multiply(sizes, 6))
    g = np.repeat(np.arange(sum(sizes)), 6)
    x = rng.normal(size=len(g))
    y = x + rng.normal(size=sum(sizes))[g] + rng.normal(size=len(g))
    df = pd.DataFrame({"site": site, "g": g, "x": x, "y": y}).sample(frac=1.0, random_state=2)
    many = lmer_many("y ~ x + (1 | g)", df, by="site", reml=False)
    assert many.n_obs.tolist() == np.bincount(site).tolist()
    for number in (0, 13, 29, 30):
        single = lmer("y ~ x + (1 | g)", df[df.site == number], reml=False)
        assert_same(many.fit, number, single.fit)


def test_what_cannot_be_fitted_is_named():
    Y, X, Z, groups = problem(R=2)
    with pytest.raises(DataError, match="the design has"):
        fit_many(Y[:-1], X, Z, groups)
    with pytest.raises(DataError, match=r"response 1 is infinite in 1 rows"):
        fit_many(np.where(np.arange(2)[None] * (np.arange(len(Y)) == 3)[:, None], np.inf, Y), X, Z, groups)
    with pytest.raises(DataError, match="mask has shape"):
        fit_many(Y, X, Z, groups, mask=np.ones(3, bool))
    with pytest.raises(DataError, match="unknown"):
        fit_many(Y, X, Z, groups, structure="toplitz")
    df = lme_jax.datasets.load("sleepstudy")
    with pytest.raises(DataError, match="no left side"):
        lmer_many("Reaction ~ Days + (1 | Subject)", df, Y[:180])
    with pytest.raises(DataError, match="either responses= "):
        lmer_many("~ Days + (1 | Subject)", df)


def test_a_piece_of_one_lane_joins_the_others(monkeypatch):
    monkeypatch.setattr(batch, "ROUNDS", 2)  # so that every lane goes on after its piece
    Y, X, Z, groups = problem(R=9, n_groups=27)
    design = SharedDesign(X, Z, groups)
    joined = []
    concatenate = batch._concatenate
    monkeypatch.setattr(batch, "_concatenate", lambda parts: joined.append(len(parts)) or concatenate(parts))

    def work(*parts):
        for part in parts:
            yield batch.Lanes(part, design.compress(Y[:, part]))

    one, other = np.arange(8), np.array([8])
    expected = batch.fit_lanes([batch.Family(work(np.arange(9)), 9, 16)])
    for parts in ((one, other), (other, one)):
        found = batch.fit_lanes([batch.Family(work(*parts), 9, 8)])
        assert max(joined) > 1
        np.testing.assert_array_equal(found.status, expected.status)
        np.testing.assert_allclose(found.deviance, expected.deviance, atol=1e-8)


def test_an_interrupt_keeps_what_is_done(monkeypatch):
    """The call that is under way goes on to its end: what it finishes is kept, with its numbers."""
    # So many evaluations in a call that it finishes all of its lanes; a shape of its own, not compiled before.
    monkeypatch.setattr(batch, "CHEAP_ROUNDS", 200)
    Y, X, Z, groups = problem(R=10, n_groups=13, p=3)
    design = SharedDesign(X, Z, groups)

    def work(last):
        yield batch.Lanes(np.arange(8), design.compress(Y[:, :8]))
        if last is not None:
            raise last

    whole = batch.fit_lanes([batch.Family(work(None), 8, 8)])
    with pytest.warns(RuntimeWarning, match="8 of 10 fits are done"):
        found = batch.fit_lanes([batch.Family(work(KeyboardInterrupt), 10, 8)])
    np.testing.assert_array_equal(found.status, [*whole.status, Status.INTERRUPTED, Status.INTERRUPTED])
    assert np.isin(whole.status, [Status.CONVERGED, Status.SINGULAR]).all()
    for name in COMPARED:
        np.testing.assert_array_equal(getattr(found, name)[:8], getattr(whole, name))
        assert np.isnan(getattr(found, name)[8:]).all()
