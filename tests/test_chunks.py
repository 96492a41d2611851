"""Moments of chunks, merged, against dense algebra and fits of all rows at once."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

import lme_jax as lme
from lme_jax.core import covariance, crossed, fit
from lme_jax.core.compression import group_moments, pool
from lme_jax.core.crossed_data import CrossedData, NestedData, pool_crossed
from lme_jax.core.crossed_moments import crossed_moments, merge_crossed
from lme_jax.core.moments import merge
from lme_jax.errors import DataError, DroppedRowsWarning, FormulaError, RankWarning, UnsupportedError
from tests.oracles import dense

# ---------------------------------------------------------------- the core against dense algebra

N = 70
KINDS = {"one": 1, "nested": 2, "chain": 3, "crossed": 2, "nested and crossed": 3}


def codes_of(kind, rng):
    """Codes per factor, and their numbers of levels."""
    inner = rng.integers(0, 12, N)
    parents = rng.integers(0, 5, 12)
    factors = {
        "one": [(inner, 12)],
        "nested": [(inner, 12), (parents[inner], 5)],
        "chain": [(parents[inner] % 2, 2), (inner, 12), (parents[inner], 5)],
        "crossed": [(rng.integers(0, 4, N), 4), (inner, 12)],
        "nested and crossed": [(inner, 12), (rng.integers(0, 6, N), 6), (parents[inner], 5)],
    }[kind]
    return [c for c, _ in factors], [m for _, m in factors]


class Rows:
    """Random rows with far-off offsets, and how any of them are summed, with codes of the chunk's own levels."""

    def __init__(self, kind, seed, sizes, structure, weighted):
        rng = np.random.default_rng(seed)
        self.codes, self.levels = codes_of(kind, rng)
        x, u = rng.normal(size=(2, N))
        self.X = np.column_stack([np.ones(N), x + 30.0, self.codes[0] == 1])
        self.Zs = [np.column_stack([np.ones(N), x, u])[:, :q] for q in sizes]
        self.y = 1e3 + x + rng.normal(size=12)[self.codes[-1] % 12] + rng.normal(size=N)
        self.weights = rng.uniform(0.5, 2.0, N) if weighted else None
        self.structure = structure
        self.templates = [covariance.make_template(structure, q) for q in sizes]
        self.theta = rng.normal(size=sum(map(covariance.n_theta, self.templates)))

    def model(self, reml):
        factors = zip(self.Zs, self.codes, self.levels, strict=True)
        return dense.Model(
            self.y, self.X, tuple(dense.Factor(Z, c, m, self.structure) for Z, c, m in factors), self.weights, reml=reml
        )

    def moments(self, rows):
        """Moments of a mask's rows, and where their levels stand among all."""
        weights = None if self.weights is None else self.weights[rows]
        own = [np.unique(c[rows], return_inverse=True) for c in self.codes]
        columns = [Z[rows] for Z in self.Zs], [c for _, c in own], [len(m) for m, _ in own]
        args = (self.y[rows], self.X[rows])
        if len(own) == 1:
            only = (part[0] for part in columns)
            found = group_moments(*args, *only, template=self.templates[0], weights=weights)
        else:
            found = crossed_moments(*args, *columns, self.templates, weights=weights)
        return found, [m for m, _ in own]

    def merged(self, pieces):
        parts, where = zip(*pieces, strict=True)
        if len(self.levels) == 1:
            return merge(*parts, positions=[own[0] for own in where], n_levels=self.levels[0])
        return merge_crossed(*parts, positions=where, n_levels=self.levels)

    def deviance(self, moments, reml):
        data = pool(moments) if len(self.levels) == 1 else pool_crossed(moments)
        return float(fit.deviance(self.theta, data, reml=reml)), data


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    kind=st.sampled_from(list(KINDS)),
    seed=st.integers(0, 2**20),
    cut=st.sampled_from(["rows", "levels", "tiny"]),
    structure=st.sampled_from(["unstructured", "diagonal", "compound_symmetry"]),
    weighted=st.booleans(),
    reml=st.booleans(),
    data=st.data(),
)
def test_any_split_is_all_rows(kind, seed, cut, structure, weighted, reml, data):
    """Merged in any order and any grouping; chunks lack levels and columns of X, share levels, or have one row."""
    sizes = [data.draw(st.integers(1, 2)) for _ in range(KINDS[kind])]
    rows = Rows(kind, seed, sizes, structure, weighted)
    rng = np.random.default_rng(seed + 1)
    part = {"rows": rng.integers(0, 3, N), "levels": rows.codes[0] % 3, "tiny": np.minimum(np.arange(N), 2)}[cut]
    pieces = [rows.moments(part == i) for i in np.unique(part)]
    every = [np.arange(m) for m in rows.levels]
    expected = dense.deviance(rows.theta, rows.model(reml))
    merged = rows.merged(pieces)
    for moments in (
        merged,
        rows.merged(pieces[::-1]),
        rows.merged([(rows.merged(pieces[:2]), every), *pieces[2:]]),
        rows.merged([pieces[0], (rows.merged(pieces[1:]), every)]),
    ):
        found, pooled = rows.deviance(moments, reml)
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-9)
    assert merged.n_rows == N
    if kind != "one":
        assert isinstance(pooled, NestedData if kind in ("nested", "chain") else CrossedData)


def test_nested_in_every_chunk_is_crossed_in_the_union():
    rows = Rows("crossed", 0, [1, 1], "unstructured", False)
    # Of each level of the first factor a chunk has the rows of one level of the second.
    parts = [rows.codes[1] == level for level in range(12)]
    pieces = [rows.moments(part) for part in parts if part.any()]
    assert all(isinstance(pool_crossed(m), NestedData) for m, _ in pieces)
    found, pooled = rows.deviance(rows.merged(pieces), True)
    assert isinstance(pooled, CrossedData)
    assert found == pytest.approx(dense.deviance(rows.theta, rows.model(True)), rel=1e-10)


def test_rows_of_several_levels_add(rng):
    members = scipy.sparse.random(N, 8, 0.4, random_state=rng, format="csr") + scipy.sparse.eye(N, 8, format="csr")
    slopes = scipy.sparse.csr_matrix(np.einsum("nm,nq->nmq", members.toarray(), rng.normal(size=(N, 2))).reshape(N, 16))
    codes, x, y = rng.integers(0, 20, N), rng.normal(size=(N, 1)), rng.normal(size=N)
    templates = [covariance.make_template("unstructured", q) for q in (1, 2, 1)]
    Zs = [np.ones((N, 1)), slopes, members]

    def moments(rows):
        own = [Z[rows] for Z in Zs], [codes[rows], None, None], [20, 8, 8]
        return crossed_moments(y[rows], x[rows], *own, templates)

    part, theta = rng.integers(0, 3, N), rng.normal(size=5)
    whole = crossed.compress_crossed(y, x, Zs, [codes, None, None], [20, 8, 8], templates)
    data = pool_crossed(merge_crossed(*(moments(part == i) for i in range(3))))
    assert fit.deviance(theta, data) == pytest.approx(float(fit.deviance(theta, whole)), rel=1e-11)


# ---------------------------------------------------------------- formulas


def table():
    """Rows with levels that sort oddly, missing values, a response far from zero."""
    rng = np.random.default_rng(3)
    n = 400
    pupil = rng.integers(0, 40, n)
    d = pd.DataFrame({"x": rng.normal(size=n), "f": rng.choice(list("uvw"), n), "pupil": pupil})
    d["school"] = np.array([" 1", "None", "k10", "k9", "1"])[pupil % 5]
    d["teacher"] = rng.integers(0, 6, n) / 2
    d["w"], d["o"] = rng.uniform(0.5, 2.0, n), rng.normal(size=n)
    effects = rng.normal(size=(40, 2))[pupil] + rng.normal(size=5)[pupil % 5, None]
    d["y"] = 1e6 + d.x + effects[:, 0] + effects[:, 1] * d.x + 2 * rng.normal(size=6)[(2 * d.teacher).astype(int)]
    d["y"] += d.o + rng.normal(size=n)
    d.loc[[3, 70], "x"] = np.nan
    d.loc[90, "teacher"] = np.nan
    return d


CASES = {
    "y ~ x + f + (x | pupil)": {},
    "y ~ x * f + (x || pupil)": dict(weights="w", offset="o"),
    "y ~ x + f + (1 | pupil) + (1 | school)": dict(weights="w"),
    "y ~ x + (1 | school / pupil) + (0 + f | teacher)": {},
    "y ~ x + f + cs(0 + f | pupil) + (1 | teacher)": dict(offset="o"),
    "y ~ 0 + f + (1 | pupil) + (0 + x | pupil) + (1 | school:teacher)": dict(contrasts={"f": "sum"}),
    "y ~ poly(x, 2) * f + I(exp(x) / max(x)) + (scale(x) | teacher)": dict(like=True),
    "y ~ x + (x | pupil) + (1 | teacher)": dict(structures={"pupil": "identity"}, subset="w > 0.6"),
}


def split(frame, how):
    part = {"rows": np.arange(len(frame)) * 7919 % 3, "levels": frame.pupil.to_numpy() % 4}[how]
    return [frame[part == i] for i in np.unique(part)]


@pytest.mark.filterwarnings("ignore::lme_jax.errors.DroppedRowsWarning", "ignore::lme_jax.errors.SingularFitWarning")
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("formula", CASES)
def test_a_fit_of_chunks_is_that_of_all_rows(formula, reml):
    frame, how = table(), dict(CASES[formula])
    # poly() and scale() learn from the frame that is given.
    like = frame if how.pop("like", False) else None
    whole = lme.lmer(formula, frame, reml=reml, **how)
    for cut in ("rows", "levels"):
        chunks = split(frame, cut)
        first = lme.moments(formula, chunks[0], like=like, levels={"f": list("uvw")}, **how)
        parts = [first, *(lme.moments(formula, chunk, like=first, **how) for chunk in chunks[1:])]
        found = lme.merge(parts).fit(reml=reml)
        assert found.deviance == pytest.approx(whole.deviance, rel=1e-10)
        assert sum(parts).fit(reml=reml).deviance == pytest.approx(whole.deviance, rel=1e-10)
        np.testing.assert_allclose(found.params, whole.params, atol=1e-9 * float(whole.bse.max()), rtol=1e-9)
        np.testing.assert_allclose(found.bse, whole.bse, rtol=1e-9)
        if not whole.singular:
            pd.testing.assert_frame_equal(found.coefficients(), whole.coefficients(), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found.theta, whole.theta, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(found.bse_re, whole.bse_re, rtol=1e-6)
        for name, effects in whole.ranef.items():
            pd.testing.assert_frame_equal(found.ranef[name], effects, rtol=1e-7, atol=1e-8)
            np.testing.assert_allclose(found.ranef_cov[name], whole.ranef_cov[name], rtol=1e-7, atol=1e-9)
        new, offset = frame.iloc[::9], 0.0 if "offset" in how else None
        pd.testing.assert_series_equal(found.predict(new, offset=offset), whole.predict(new, offset=offset))
        intervals = found.prediction(new, offset=offset)
        pd.testing.assert_frame_equal(intervals, whole.prediction(new, offset=offset), rtol=1e-7)
        assert found.nobs == whole.nobs
        assert str(found.summary()).splitlines()[-1] == str(whole.summary()).splitlines()[-1]
        assert found.bic == pytest.approx(whole.bic)


@pytest.mark.parametrize("formula", ["y ~ x + (1 | pupil)", "y ~ x + (1 | pupil) + (1 | teacher)"])
def test_moments_of_chunks_go_further_alone(formula):
    """Without like= where no column depends on the rows; pickled, read-only, left alone by what is made of them."""
    frame = table().dropna()
    parts = [pickle.loads(pickle.dumps(lme.moments(formula, chunk))) for chunk in split(frame, "rows")]
    before = [np.array(part.sums.WtW) for part in parts]
    total = parts[0] + parts[1] + parts[2]
    found = pickle.loads(pickle.dumps(total)).fit()
    whole = lme.lmer(formula, frame)
    assert found.deviance == pytest.approx(whole.deviance, rel=1e-11)
    assert total.n_rows == len(frame) == sum(part.n_rows for part in parts)
    assert list(total.levels["pupil"]) == list(range(40))
    for part, sums in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part.sums.WtW, sums)
    with pytest.raises(ValueError, match="read-only"):
        total.sums.WtW[0, 0] = 0.0
    point = found.theta.to_numpy() * 1.5
    expected = float(lme.deviance(point, lme.moments(formula, frame).statistics))
    assert lme.deviance(point, total.statistics) == pytest.approx(expected, rel=1e-11)
    np.testing.assert_allclose(found.profile_re(0, "re"), whole.profile_re(0, "re"), rtol=1e-8)
    pd.testing.assert_frame_equal(found.profile_ci(), whole.profile_ci(), rtol=1e-5)
    np.testing.assert_allclose(found.compare_lr_test(), whole.compare_lr_test(), rtol=1e-7)
    alone = found.without_random_effects()
    np.testing.assert_allclose(alone.beta, whole.without_random_effects().beta, rtol=1e-8)
    # y near 1e6 is rounded at 1e-10 of a residual, in either.
    assert alone.deviance == pytest.approx(whole.without_random_effects().deviance, rel=1e-10)
    smaller = "y ~ x + (1 | school)"
    if "teacher" in formula:
        ratio = found.compare_lr_test(lme.moments(smaller, frame).fit()).statistic
        assert ratio == pytest.approx(whole.compare_lr_test(lme.lmer(smaller, frame)).statistic, rel=1e-8)


def test_what_needs_rows_says_so():
    found = lme.moments("y ~ x + (1 | pupil)", table().dropna()).fit()
    y = table().dropna().y
    for ask in (
        lambda: found.resid,
        lambda: found.fittedvalues,
        found.predict,
        found.prediction,
        lambda: found.simulate(1, seed=1),
        lambda: found.refit(y),
        lambda: found.refit_many(y.to_frame()),
        lambda: found.bootstrap(5, seed=1),
    ):
        with pytest.raises(DataError, match="a fit of moments has no rows"):
            ask()
    with pytest.raises(UnsupportedError, match="lmer"):
        found.update(reml=False)


def test_columns_that_the_rows_do_not_tell_apart():
    frame = table().dropna()
    formula = "y ~ x + I(2 * x) + f + (1 | pupil)"
    with pytest.warns(RankWarning, match=r"I\(2"):
        whole = lme.lmer(formula, frame)
    parts = [lme.moments(formula, chunk, levels={"f": list("tuvw")[1:]}) for chunk in split(frame, "rows")]
    for part in parts:
        assert len(part.columns) == 5
    with pytest.warns(RankWarning, match=r"rank 4, not 5: dropped I\(2"):
        found = lme.merge(parts).fit()
    assert found.deviance == pytest.approx(whole.deviance, rel=1e-10)
    pd.testing.assert_series_equal(found.params, whole.params, rtol=1e-8)
    pd.testing.assert_series_equal(found.predict(frame[:5]), whole.predict(frame[:5]))
    for kind in (1, 2, 3):
        pd.testing.assert_frame_equal(found.anova(kind, test="chisq"), whole.anova(kind, test="chisq"), rtol=1e-7)
    frame = frame.assign(z=(frame.x > 0) * 2.0, s=frame.school.astype("category"))
    formula = "y ~ x * f + z + I(3 * z) + s + (1 | pupil)"
    parts = [lme.moments(formula, part, levels={"f": list("uvw")}) for part in split(frame, "levels")]
    with pytest.warns(RankWarning, match=r"I\(3"):
        whole = lme.lmer(formula, frame)
    with pytest.warns(RankWarning, match=r"I\(3"):
        found = lme.merge(parts).fit()
    for ask in (
        lambda fit: fit.emmeans("f"),
        lambda fit: fit.emmeans(["f", "z"], weights="proportional"),
        lambda fit: fit.emtrends("x", "f"),
    ):
        pd.testing.assert_frame_equal(ask(found).table, ask(whole).table, rtol=1e-6)
    # A declared level that no row has, and a chunk of one level alone.
    chunks = [frame[frame.f == level] for level in "vw"]
    with pytest.warns(RankWarning, match="dropped fu, fw"):
        found = lme.merge(
            [lme.moments("y ~ f + (1 | pupil)", chunk, levels={"f": list("tuvw")}) for chunk in chunks]
        ).fit()
    whole = lme.lmer("y ~ f + (1 | pupil)", frame[frame.f != "u"])
    assert found.deviance == pytest.approx(whole.deviance, rel=1e-10)


LABELS = {
    "text": lambda k: np.array([" 1", "1", "None", "a:b", "a", "é", ""], dtype=object)[k],
    "numbers": lambda k: k - 3,
    "floats": lambda k: k / 4,
    "truth": lambda k: k > 3,
    "dates": lambda k: pd.Timestamp("2020-02-27") + pd.to_timedelta(k, unit="D"),
    "Categorical": lambda k: pd.Categorical(k, categories=[6, 5, 0, 1, 2, 3, 4, 9]),
}


@pytest.mark.filterwarnings("ignore::lme_jax.errors.SingularFitWarning")
@pytest.mark.parametrize("kind", LABELS)
def test_levels_are_joined_by_label(kind):
    rng = np.random.default_rng(5)
    k, other = rng.integers(0, 7, 90), rng.choice(["b:c", "c", "b"], 90)
    frame = pd.DataFrame({"g": LABELS[kind](k), "h": other, "y": rng.normal(size=90) + k})
    for formula in ("y ~ 1 + (1 | g)", "y ~ 1 + (1 | g:h)", "y ~ 1 + (1 | g) + (1 | h)"):
        whole = lme.lmer(formula, frame)
        parts = [lme.moments(formula, frame[k % 4 == i]) for i in (2, 0, 1, 3)]
        found = lme.merge(parts).fit()
        assert found.deviance == pytest.approx(whole.deviance, rel=1e-11)
        for name, effects in whole.ranef.items():
            pd.testing.assert_frame_equal(found.ranef[name], effects, rtol=1e-6, atol=1e-8)


def test_whole_numbers_with_gaps_are_whole_numbers():
    frame = table().dropna()
    gap = frame[::2].assign(pupil=frame.pupil[::2].where(np.arange(len(frame[::2])) > 0))
    with pytest.warns(DroppedRowsWarning):
        parts = [lme.moments("y ~ x + (1 | pupil)", gap), lme.moments("y ~ x + (1 | pupil)", frame[1::2])]
    for total in (parts[0] + parts[1], parts[1] + parts[0]):
        assert total.levels["pupil"].dtype.kind == "i"
        assert total.n_dropped == 1


F = "y ~ x * f + (1 | pupil)"


def limited(frame, limit):
    return lme.moments("y ~ I(x > limit) + (1 | pupil)", frame)


REFUSED = {
    "levels of chunks": (
        lambda a, b: lme.moments(F, a) + lme.moments(F, b),
        r"f has the levels \['u', 'v'\] in one chunk and \['v', 'w'\].*levels={'f': \[all of them\]}",
    ),
    "unseen level": (lambda a, b: lme.moments(F, b, like=lme.moments(F, a)), r"f has the levels \['w'\].*levels={'f'"),
    "level not declared": (lambda a, b: lme.moments(F, b, levels={"f": ["u", "v"]}), r"'f' has the levels \['w'\]"),
    "level declared twice": (lambda a, b: lme.moments(F, a, levels={"f": ["u", "u"]}), "different levels"),
    "factor of a number": (
        lambda a, b: lme.moments("y ~ factor(x) + (1 | pupil)", a[:5]) + lme.moments("y ~ factor(x) + (1 | pupil)", b),
        r"factor\(x\) has the levels .*levels={'x'",
    ),
    "contrasts": (lambda a, b: lme.moments(F, a, contrasts={"f": "sum"}) + lme.moments(F, a), "f has other contrasts"),
    "contrasts like": (
        lambda a, b: lme.moments(F, a, contrasts={"f": "sum"}, like=lme.moments(F, a)),
        "f has other contrasts",
    ),
    "poly": (
        lambda a, b: lme.moments("y ~ poly(x, 2) + (1 | pupil)", a) + lme.moments("y ~ poly(x, 2) + (1 | pupil)", b),
        r"poly\(x, 2\) learnt other values.*like=",
    ),
    "mean": (
        lambda a, b: (
            lme.moments("y ~ I(x - mean(x)) + (1 | pupil)", a) + lme.moments("y ~ I(x - mean(x)) + (1 | pupil)", b)
        ),
        r"mean\(x\) learnt other values.*like=",
    ),
    "caller's number": (lambda a, b: limited(a, 0.0) + limited(b, 1.0), "limit was 0.0 for one chunk and 1.0"),
    "numbers and text": (
        lambda a, b: (
            lme.moments("y ~ x + (1 | pupil)", a) + lme.moments("y ~ x + (1 | pupil)", b.assign(pupil=b.school))
        ),
        "levels of pupil are numbers in one chunk.*and text in another",
    ),
    "tuples": (
        lambda a, b: lme.moments("y ~ x + (1 | pupil)", a.assign(pupil=[(k, 1) for k in a.pupil])),
        r"pupil has the level \(\d+, 1\)",
    ),
    "structures": (
        lambda a, b: (
            lme.moments("y ~ x + (x | pupil)", a)
            + lme.moments("y ~ x + (x | pupil)", b, structures={"pupil": "diagonal"})
        ),
        r"structures of \(\(Intercept\) \+ x \| pupil\) differ: unstructured in one",
    ),
    "formulas": (
        lambda a, b: lme.moments("y ~ x + (x | pupil)", a) + lme.moments("y ~ x + (1 | pupil)", b),
        "two formulas",
    ),
    "kinds": (lambda a, b: lme.merge(lme.moments(F, a), lme.moments(F, a).sums), "of one kind, not GroupMoments"),
    "nothing": (lambda a, b: lme.merge([]), "no moments to merge"),
    "one level": (lambda a, b: lme.moments("y ~ x + (1 | pupil)", a[a.pupil == 1]).fit(), "one level"),
    "constant": (lambda a, b: lme.moments("y ~ x + (1 | pupil)", a.assign(y=1.0)).fit(), "constant"),
    "weights": (lambda a, b: lme.moments("y ~ x + (1 | pupil)", a, weights=np.zeros(len(a))), "positive"),
    "effect of no row": (
        lambda a, b: lme.moments("y ~ x + (f | pupil)", a, levels={"f": list("uvw")}).fit(),
        "fw that varies by 'pupil' is zero",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    frame = table().dropna()
    ask, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        ask(frame[frame.f != "w"], frame[frame.f != "u"])


def test_refusals_of_other_kinds():
    frame = table().dropna()
    with pytest.raises(FormulaError, match="like= is of the formula"):
        lme.moments(F, frame, like=lme.moments("y ~ x + (1 | pupil)", frame))
    with pytest.raises(UnsupportedError, match="memberships"):
        lme.moments(F, frame, memberships={"pupil": np.ones((len(frame), 2))})
    with pytest.raises(lme.errors.ConvergenceError, match="leaves no residual variation"):
        lme.moments("y ~ x + (1 | pupil)", frame.assign(y=frame.x + frame.pupil)).fit()
    with pytest.raises(TypeError):
        lme.moments(F, frame) + 1


def test_the_order_of_levels_is_that_of_the_data():
    """Of Categoricals their own where chunks agree; sorted where they do not, however they are merged."""
    frame = table().dropna().assign(school=lambda d: pd.Categorical(d.school, ["k9", "k10", "1", " 1", "None"]))
    formula = "y ~ x + (1 | school)"
    parts = [lme.moments(formula, chunk) for chunk in split(frame, "levels")]
    assert list(lme.merge(parts).levels["school"]) == ["k9", "k10", "1", " 1", "None"]
    parts[0] = lme.moments(formula, split(frame.assign(school=frame.school.astype(str)), "levels")[0])
    for order in itertools.permutations(parts):
        assert list(lme.merge(*order).levels["school"]) == [" 1", "1", "None", "k10", "k9"]
        assert list(sum(order).levels["school"]) == [" 1", "1", "None", "k10", "k9"]


def test_jax_is_not_imported():
    code = (
        "import sys, lme_jax as lme; d = lme.datasets.load('Penicillin');"
        "f = 'diameter ~ 1 + (1 | plate) + (1 | sample)';"
        "(lme.moments(f, d[:70]) + lme.moments(f, d[70:])).fit().summary(); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
