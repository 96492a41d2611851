"""Marginal means, slopes and contrasts against emmeans; simultaneous tests against other computations."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import lme_jax
from lme_jax import datasets
from lme_jax.errors import DataError, UnsupportedError
from lme_jax.inference import simultaneous
from lme_jax.inference.contrasts import family, letters
from lme_jax.inference.linear_tests import t_quantile
from lme_jax.inference.reference_grid import columns_of

REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "reference" / "marginal_means.json").read_text())


@cache
def fitted(key: str) -> Any:
    entry = REFERENCE[key]
    frame = datasets.load(entry["dataset"])
    if entry["dataset"] == "Oats":
        frame["nitro_f"] = pd.Categorical(frame.nitro.map(lambda v: f"{v:g}"))
    frame = frame.drop(index=[row - 1 for row in entry["dropped_rows"] or []])
    return lme_jax.lmer(entry["formula"], frame)


def asked(key: str, part: str, spec: str, ddf: str, name: str) -> Any:
    """What corresponds to one table of R."""
    weights: Any = "proportional" if name.endswith("_proportional") else "equal"
    if part == "emtrends":
        means = fitted(key).emtrends(*spec.split(" by "), ddf=ddf)
    else:
        means = fitted(key).emmeans(spec, weights=weights, ddf=ddf)
    base = name.removesuffix("_proportional")
    if base in ("means", "trends"):
        return means
    if base.startswith("pairs"):
        return means.contrast(by=base.split("_by_")[1] if "_by_" in base else None)
    return means.contrast(interaction="pairwise") if base == "interaction_pairwise" else means.contrast(base)


CASES = [
    (key, part, spec, ddf, name)
    for key, entry in REFERENCE.items()
    for part in ("emmeans", "emtrends")
    for spec, methods in entry[part].items()
    for ddf, tables in methods.items()
    for name in tables
]


@pytest.mark.parametrize(
    ("key", "part"), [(key, "emmeans") for key in REFERENCE] + [("orthodont_slope_reml", "emtrends")]
)
def test_as_emmeans(key: str, part: str) -> None:
    """SE and df to 1e-8 of R's analytic ones; p and limits, whose df R differentiates numerically, to 1e-6."""
    for case in (c for c in CASES if c[:2] == (key, part)):
        table = REFERENCE[key][part][case[2]][case[3]][case[4]]
        wanted, means = pd.DataFrame(table["values"], columns=table["cols"]), asked(*case)
        title = next(c for c in wanted if c in ("estimate", "emmean") or c.endswith(".trend"))
        scale = float(means.se.max())
        np.testing.assert_allclose(
            means.estimate, wanted[title].astype(float), rtol=1e-9, atol=1e-9 * scale, err_msg=f"{case}"
        )
        exact = "SE_exact" in wanted
        np.testing.assert_allclose(
            means.se, wanted["SE_exact" if exact else "SE"].astype(float), rtol=1e-8, err_msg=f"{case}"
        )
        df = wanted["df_exact" if exact else "df"].astype(float)
        np.testing.assert_allclose(means.df, df, rtol=1e-8 if exact else 1e-6, err_msg=f"{case}")
        for column in wanted:
            kind, _, adjust = column.partition("_")
            if kind == "p" and adjust != "dunnettx":
                found = means.test(adjust=adjust)["p"]
            elif kind == "lower" or column == "lower.CL":
                found = means.conf_int(adjust=adjust or "none")["lower"] / scale
                wanted[column] = wanted[column].astype(float) / scale
            else:
                continue
            np.testing.assert_allclose(
                found, wanted[column].astype(float), rtol=0, atol=1e-6, err_msg=f"{case} {column}"
            )


def test_labels_are_in_emmeans_order() -> None:
    means = fitted("oats_unbalanced_reml").emmeans("Variety * nitro_f")
    table = REFERENCE["oats_unbalanced_reml"]["emmeans"]["Variety:nitro_f"]["satterthwaite"]["means"]
    assert means.table[["Variety", "nitro_f"]].to_numpy().tolist() == [row[:2] for row in table["values"]]
    crossed = means.contrast(interaction={"Variety": "pairwise", "nitro_f": "poly"})
    assert list(crossed.keys) == ["Variety_pairwise", "nitro_f_poly"] and len(crossed) == 9
    assert crossed.keys.iloc[4].tolist() == ["Golden Rain - Victory", "quadratic"]


# ---------------------------------------------------------------- the grid, by hand


def mixed_frame(seed: int = 3, n: int = 240) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "g": np.repeat(np.arange(24), n // 24),
            "x": rng.gamma(2.0, 2.0, n) + 0.1,
            "z": rng.normal(size=n),
            "b": rng.integers(0, 2, n),
            "t": rng.random(n) < 0.4,
            "k": rng.integers(1, 4, n),
            "word": rng.choice(list("pqr"), n, p=[0.2, 0.3, 0.5]),
            "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 50, n), unit="D"),
        }
    )
    return frame.assign(y=frame.x + frame.b + rng.normal(size=n) + np.repeat(rng.normal(size=24), n // 24))


@pytest.mark.parametrize("front", ["lmer", "mixedlm"])
def test_means_are_averages_of_predictions(front: str) -> None:
    """Over a grid that is written out here: transforms at the mean of their variable, both values of a 0/1 column."""
    frame = mixed_frame()
    if front == "lmer":
        fit = lme_jax.lmer("y ~ log(x) * word + poly(z, 2) + b + t + factor(k) + (1 | g)", frame)
    else:
        fit = lme_jax.mixedlm("y ~ np.log(x) * word + poly(z, 2) + b + t + C(k)", frame, groups="g").fit()
    grid = pd.MultiIndex.from_product(
        [["p", "q", "r"], [0, 1], [False, True], [1, 2, 3]], names=["word", "b", "t", "k"]
    )
    rows = grid.to_frame(index=False).assign(x=frame.x.mean(), z=frame.z.mean())
    predicted = fit.predict(rows, random_effects=False) if front == "lmer" else fit.predict(rows)
    rows["predicted"] = np.asarray(predicted)
    np.testing.assert_allclose(fit.emmeans("word").estimate, rows.groupby("word").predicted.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        fit.emmeans("k | word").estimate, rows.groupby(["word", "k"]).predicted.mean(), rtol=1e-12
    )
    counts = frame.groupby(["b", "t", "k"]).size()
    weights = counts.loc[list(rows[["b", "t", "k"]].itertuples(index=False))].to_numpy()
    own = (rows.predicted * weights).groupby(rows.word).sum() / len(frame)
    np.testing.assert_allclose(fit.emmeans("word", weights="proportional").estimate, own, rtol=1e-12)
    shares = {name: frame[name].value_counts(normalize=True) for name in ("b", "t", "k")}
    weights = np.prod([rows[name].map(share).to_numpy(float) for name, share in shares.items()], axis=0)
    own = (rows.predicted * weights).groupby(rows.word).sum()
    np.testing.assert_allclose(fit.emmeans("word", weights="outer").estimate, own, rtol=1e-12)
    counts = frame.groupby(["word", "b", "t", "k"]).size()
    weights = counts.reindex(list(rows[["word", "b", "t", "k"]].itertuples(index=False)), fill_value=0).to_numpy()
    own = (rows.predicted * weights).groupby(rows.word).sum() / frame.word.value_counts().sort_index()
    np.testing.assert_allclose(fit.emmeans("word", weights="cells").estimate, own, rtol=1e-12)
    # Slopes: 1/x̄ times the coefficients of log(x).
    beta = fit.fe_params
    log = next(name for name in beta.index if "log(x)" in name and ":" not in name)
    cross = [beta[name] for name in beta.index if "log(x)" in name and ":" in name]
    slopes = (beta[log] + np.array([0.0, *cross])) / frame.x.mean()
    np.testing.assert_allclose(fit.emtrends("x", "word").estimate, slopes, rtol=1e-10)


def test_values_that_the_person_chooses() -> None:
    frame = mixed_frame()
    fit = lme_jax.lmer("y ~ offset(0.1 * x) + as.numeric(day) + z * word + (1 | g)", frame)
    at = {"day": ["2020-02-01"], "z": [-1.0, 2.0], "word": ["q"]}
    means = fit.emmeans(["z", "day", "word"], at=at)
    rows = means.keys.assign(x=frame.x.mean())
    np.testing.assert_allclose(means.estimate, fit.predict(rows, random_effects=False), rtol=1e-12)
    np.testing.assert_allclose(fit.emmeans([], at=at).estimate, means.estimate.mean(), rtol=1e-12)
    assert "At the mean of x." in means.notes
    skew = frame.assign(x=np.where(frame.index == 3, 1e5, frame.x))
    slope = lme_jax.lmer("y ~ log(x) + (1 | g)", skew)
    at_two = slope.emtrends("x", "x", at={"x": [0.01, 2.0]})
    np.testing.assert_allclose(at_two.estimate, slope.fe_params["log(x)"] / np.array([0.01, 2.0]), rtol=1e-10)
    log = lme_jax.lmer("log(y + 20) ~ word + (1 | g)", frame).emmeans("word")
    assert "On the scale of the response, log(y + 20)." in log.notes


def test_what_the_data_do_not_determine_is_nan() -> None:
    """An empty cell: its mean and averages over it are NaN and said to be; the others are those of the cells model."""
    frame = mixed_frame().query("not (word == 'p' and k == 2)")
    with pytest.warns(lme_jax.errors.RankWarning):
        fit = lme_jax.lmer("y ~ word * factor(k) + (1 | g)", frame)
    cells = lme_jax.lmer("y ~ 0 + paste0(word, k) + (1 | g)", frame)
    means = fit.emmeans("word * k").table
    empty = (means.word == "p") & (means.k == 2)
    assert means[empty][["estimate", "se", "df", "lower", "upper"]].isna().all(axis=None)
    own = cells.fe_params[
        ["paste0(word, k)" + f"{w}{k:g}" for w, k in zip(means.word, means.k, strict=True) if (w, k) != ("p", 2)]
    ]
    np.testing.assert_allclose(means.estimate[~empty], own, rtol=1e-9)
    over = fit.emmeans("k")
    assert np.isnan(over.estimate).tolist() == [False, True, False] and any("1 of 3 are NaN" in n for n in over.notes)
    pairs = over.contrast()
    assert np.isnan(pairs.test()["p"]).tolist() == [True, False, True]
    assert np.isfinite(fit.emmeans("k", weights="cells").estimate).all()
    within = fit.emmeans("k | word").contrast()
    assert np.isnan(within.estimate).tolist() == [True, False, True, *[False] * 6]
    # A contrast that is estimable although its parts are not: the difference of z, the same in every cell.
    with pytest.warns(lme_jax.errors.RankWarning):
        other = lme_jax.lmer("y ~ word * factor(k) + b + (1 | g)", frame).emmeans("b")
    assert np.isnan(other.estimate).all() and np.isfinite(other.contrast().estimate).all()


def test_mistakes_are_explained() -> None:
    frame = mixed_frame()
    fit = lme_jax.lmer("y ~ x + word + factor(k) + (1 | g)", frame)
    mistakes = [
        (lambda: fit.emmeans("nothing"), "no variable of the fixed effects"),
        (lambda: fit.emmeans("k", at={"k": [9]}), "no level"),
        (lambda: fit.emmeans("k", at={"x": ["a"]}), "is a number"),
        (lambda: fit.emmeans("k", weights="w"), "weights='w' is unknown"),
        (lambda: fit.emmeans("k", level=95), "between 0 and 1"),
        (lambda: fit.emtrends("word", "k"), "a factor"),
        (lambda: fit.emtrends("g"), "no variable"),
        (lambda: fit.emmeans("k").contrast("helmert"), "unknown"),
        (lambda: fit.emmeans("k").contrast([[1, 2]]), "give 3 coefficients"),
        (lambda: fit.emmeans("k").contrast("consec", adjust="tukey"), "pairwise"),
        (lambda: fit.emmeans("k").contrast("pairwise", ref="1"), "ref= belongs"),
        (lambda: fit.emmeans("k").contrast("trt.vs.ctrl", ref="7"), "none of 1, 2, 3"),
        (lambda: fit.emmeans("k").contrast(by="word"), "no column"),
        (lambda: fit.emmeans("k", ddf="welch"), "unknown"),
        (lambda: fit.emmeans([]).contrast(), "two means or more"),
        (lambda: fit.emmeans("k", "word").contrast(by=["k", "word"]), "nothing is left"),
    ]
    for call, message in mistakes:
        with pytest.raises(DataError, match=message):
            call()
    arrays = lme_jax.MixedLM(frame.y, np.column_stack([np.ones(len(frame)), frame.x]), frame.g).fit()
    with pytest.raises(UnsupportedError, match="formula"):
        arrays.emmeans("x")


def test_many_results_are_results_too() -> None:
    """A single result of a batch has the means that a fit of its own has."""
    frame = mixed_frame()
    Y = pd.DataFrame({"a": frame.y, "b": frame.y[::-1].to_numpy()})
    many = lme_jax.lmer_many("~ x * word + (1 | g)", frame, Y)
    alone = lme_jax.lmer("y ~ x * word + (1 | g)", frame).emmeans("word", ddf="kr").table
    pd.testing.assert_frame_equal(many.one("a").emmeans("word", ddf="kr").table, alone, rtol=1e-5)
    assert columns_of(many.one("a")._data.design).counted == ["word"]


# ---------------------------------------------------------------- contrasts


def test_families_of_contrasts() -> None:
    labels = ["a", "b", "c", "d"]
    assert family("poly", labels).K.tolist() == [[-3, -1, 1, 3], [1, -1, -1, 1], [-1, 3, -3, 1]]
    assert family("poly", list("abcdef")).K[3].tolist() == [1, -3, 2, 2, -3, 1]
    assert family("trt.vs.ctrl", labels, -1).names == ["a - d", "b - d", "c - d"]
    assert family("trt.vs.ctrl", labels, "b").K[0].tolist() == [1, -1, 0, 0]
    assert family("revpairwise", labels).names[:2] == ["b - a", "c - a"]
    assert family({"first": [1, 0, 0, -1]}, labels).names == ["first"]
    means = fitted("machines_nested_reml").emmeans("Machine")
    pairs = means.contrast("revpairwise")
    np.testing.assert_allclose(pairs.estimate, -means.contrast().estimate)
    joint = pairs.test(joint=True)
    F = means.contrast("consec").test(joint=True)
    np.testing.assert_allclose(joint["F"], F["F"], rtol=1e-9)
    assert joint["df1"].tolist() == [2]
    double = pairs.contrast([[1, -1, 0]], adjust="none")
    np.testing.assert_allclose(double.estimate, means.estimate[1] - means.estimate[2])


def test_letters() -> None:
    """Piepho's rule: two means share a letter if and only if they do not differ, on random patterns."""
    rng = np.random.default_rng(5)
    for k in (2, 3, 5, 8):
        for share in (0.2, 0.6):
            differ = np.triu(rng.random((k, k)) < share, 1)
            differ = differ | differ.T
            order = rng.permutation(k).tolist()
            shown = dict(zip(order, letters(order, differ), strict=True))
            shared = np.array([[bool(set(shown[i]) & set(shown[j])) for j in range(k)] for i in range(k)])
            np.testing.assert_array_equal(shared, ~differ)
    table = fitted("oats_unbalanced_reml").emmeans("nitro_f").letters()
    assert table["group"].tolist() == ["a", "b", "c", "c"] and table["estimate"].is_monotonic_increasing


# ---------------------------------------------------------------- simultaneous tests

UNEQUAL = np.sqrt(np.array([5.0, 8.0, 12.0, 20.0]) / (np.array([5.0, 8.0, 12.0, 20.0]) + 3.0))
DUNNETT = np.outer(UNEQUAL, UNEQUAL) + np.diag(1.0 - UNEQUAL**2)
K4 = family("pairwise", list("abcd")).K
TUKEY4 = K4 @ K4.T / 2.0
K3 = family("pairwise", list("abc")).K


@pytest.mark.parametrize("df", [2.0, 7.5, 30.0, np.inf])
def test_the_greatest_t(df: float) -> None:
    """Against scipy's studentized range; a double integral of Dunnett's; and each way against another."""
    c = np.array([1.0, 2.2, 3.5, 6.0])
    D = np.full(4, df)
    own = simultaneous.range_tail(c * np.sqrt(2.0), 4, D)
    np.testing.assert_allclose(own, scipy.stats.studentized_range.sf(c * np.sqrt(2.0), 4, df), rtol=0, atol=1e-10)
    circle = simultaneous.max_t(K3 @ K3.T / 2.0)
    assert "circle" in circle.method
    np.testing.assert_allclose(
        circle.tail(c, D), simultaneous.range_tail(c * np.sqrt(2.0), 3, D), rtol=1e-9, atol=1e-13
    )
    sphere = simultaneous.max_t(TUKEY4)
    assert 0 < sphere.relative_error < 1e-3
    # Six standard errors of the worst of these; the tail's relative error grows with c.
    np.testing.assert_allclose(sphere.tail(c, D), own, rtol=30 * sphere.relative_error, atol=1e-13)
    factor = simultaneous.max_t(DUNNETT)
    assert "common factor" in factor.method
    np.testing.assert_allclose(factor.tail(c[:2], D[:2]), [_dunnett(limit, df) for limit in c[:2]], rtol=1e-11)


def _dunnett(c: float, df: float) -> float:
    """P(max |T| > c) as a sum over a fine grid of the common factor and of s, the trapezium rule."""
    z = np.arange(-9.0, 9.0, 0.02)
    s = np.ones(1) if np.isinf(df) else np.arange(0.004, np.sqrt(scipy.stats.chi2.isf(1e-14, df) / df), 0.008)
    inside = np.ones((len(s), len(z)))
    for share in UNEQUAL:
        own, center, limit = np.sqrt(1.0 - share**2), share * z, c * s[:, None]
        inside *= scipy.stats.norm.cdf((limit - center) / own) - scipy.stats.norm.cdf((-limit - center) / own)
    given = inside @ scipy.stats.norm.pdf(z) * 0.02
    if np.isinf(df):
        return 1.0 - float(given[0])
    return 1.0 - float(given @ scipy.stats.chi(df, scale=1.0 / np.sqrt(df)).pdf(s)) * 0.008


def test_simultaneous_intervals_leave_out_what_they_say() -> None:
    """Critical values are roots of the tail, between one t and Bonferroni's."""
    df = np.array([4.0, 12.0, np.inf])
    for found in (simultaneous.max_t(DUNNETT), simultaneous.max_t(TUKEY4)):
        ends = t_quantile(0.975, df), t_quantile(1.0 - 0.025 / 6, df)
        c = simultaneous.quantile(found.tail, 0.95, df, ends)
        np.testing.assert_allclose(found.tail(c, df), 0.05, rtol=1e-9)
        assert (ends[0] < c).all() and (c < ends[1]).all()
    # R: mvtnorm::qmvt(.95, df = 20, corr = matrix(.5, 3, 3) + .5 * diag(3), tail = "both.tails"), good to 2e-4.
    equal = np.full((3, 3), 0.5) + 0.5 * np.eye(3)
    c = simultaneous.quantile(simultaneous.max_t(equal).tail, 0.95, np.array([20.0]), (2.0, 3.0))
    np.testing.assert_allclose(c, 2.540485, atol=2e-4)


def test_import_stays_light() -> None:
    code = "import sys, lme_jax; sys.exit('scipy.stats' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- tidy frames


def test_tidy_frames() -> None:
    frame = datasets.load("sleepstudy")
    fit = lme_jax.lmer("Reaction ~ Days + (Days | Subject)", frame)
    table = fit.tidy()
    assert table["term"].tolist() == [
        *("(Intercept)", "Days", "sd__(Intercept)", "sd__Days", "cor__(Intercept).Days", "sd__Observation")
    ]
    assert table["group"].tolist()[2:] == ["Subject", "Subject", "Subject", "Residual"]
    np.testing.assert_allclose(table["estimate"][2:], fit.varcorr.sdcor)
    # lmerTest's summary: 17 degrees of freedom, exactly so in a balanced design.
    np.testing.assert_allclose(table["df"][:2], 17.0, rtol=1e-7)
    np.testing.assert_allclose(table["p.value"][1], 2.0 * scipy.stats.t.sf(fit.tvalues["Days"], 17), rtol=1e-7)
    np.testing.assert_allclose(
        fit.tidy("fixed", p_adjust="bonferroni")["p.value"][1], 2.0 * table["p.value"][1], rtol=1e-12
    )
    values = fit.tidy("ran_vals")
    assert len(values) == 36 and values["level"].iloc[2] == frame.Subject.cat.categories[1]
    np.testing.assert_allclose(values["estimate"], fit.ranef["Subject"].to_numpy().ravel())
    assert list(fit.glance()) == ["nobs", "sigma", "logLik", "AIC", "BIC", "REMLcrit", "df.residual"]
    rows = fit.augment(frame)
    assert list(rows)[:3] == list(frame)[:3]
    np.testing.assert_allclose(rows[".fitted"] + rows[".resid"], frame["Reaction"])
    np.testing.assert_allclose(rows[".fixed"], fit.predict(frame, random_effects=False))


def test_columns_with_gaps_and_columns_of_two_uses() -> None:
    """Rows whose own value is missing are used by is.na() and ifelse(); a number may be a factor beside."""
    frame = mixed_frame()
    x = frame.x.where(frame.index % 7 > 0)
    word = frame.word.where(frame.index % 5 > 0)
    frame = frame.assign(x=x, word=word, month=pd.PeriodIndex(frame.day.dt.to_period("M")))
    fit = lme_jax.lmer("y ~ ifelse(is.na(x), 0, x) + is.na(word) + k + factor(k):b + factor(month) + (1 | g)", frame)
    columns = columns_of(fit._data.design)
    assert columns.variables["x"].mean == pytest.approx(float(x.mean()), rel=1e-14)
    assert columns.variables["word"].levels.tolist() == ["p", "q", "r"]
    assert columns.counts.sum() == word.notna().sum()
    means = fit.emmeans("k", at={"b": 1, "month": "2020-01"})
    rows = pd.DataFrame({"k": [1, 2, 3], "b": 1, "x": x.mean(), "word": "p", "month": pd.Period("2020-01", "M")})
    np.testing.assert_allclose(means.estimate, fit.predict(rows, random_effects=False), rtol=1e-12)


def test_equal_means_are_type_3_hypotheses() -> None:
    """Joint tests of all differences of equally weighted means are the F of ``anova(3)``, in unbalanced data too."""
    fit = fitted("oats_unbalanced_reml")
    table = fit.anova(3, ddf="kr")
    for term in ("Variety", "nitro_f"):
        joint = fit.emmeans(term, ddf="kr").contrast().test(joint=True).iloc[0]
        np.testing.assert_allclose(
            joint[["F", "df1", "df2", "p"]], table.loc[term, ["F", "num_df", "den_df", "p"]], rtol=1e-8
        )
    crossed = fit.emmeans("Variety * nitro_f", ddf="kr").contrast(interaction="pairwise").test(joint=True).iloc[0]
    wanted = table.loc["Variety:nitro_f", ["F", "num_df", "den_df", "p"]]
    np.testing.assert_allclose(crossed[["F", "df1", "df2", "p"]], wanted, rtol=1e-8)


@pytest.mark.filterwarnings("ignore::lme_jax.errors.LmeJaxWarning")
@pytest.mark.parametrize("formula", ["a * b", "a + b + a:c", "a / b + c"])
def test_estimable_is_in_the_row_space(formula: str) -> None:
    """Against the rank of overparametrised indicator columns, random cells missing."""
    terms = {"a * b": ["a", "b", "ab"], "a + b + a:c": ["a", "b", "ac"], "a / b + c": ["a", "ab", "c"]}[formula]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cells = pd.MultiIndex.from_product([range(3), range(3), range(2)], names=list("abc")).to_frame(index=False)
        kept = cells.sample(frac=0.55, random_state=seed)
        frame = pd.concat([kept] * 6, ignore_index=True).assign(g=lambda d: np.arange(len(d)) % 9)
        frame = frame.assign(y=rng.normal(size=len(frame))).astype({n: "category" for n in "abc"})
        if frame[list("abc")].nunique().min() < 2:
            continue
        fit = lme_jax.lmer(f"y ~ {formula} + (1 | g)", frame)
        seen = cells[np.all([cells[n].isin(frame[n].unique()) for n in "abc"], axis=0)]

        def indicators(rows: pd.DataFrame, seen: pd.DataFrame = seen) -> np.ndarray:
            codes = [rows[list(term)].astype(str).agg("".join, axis=1) for term in terms]
            known = [seen[list(term)].astype(str).agg("".join, axis=1).unique() for term in terms]
            parts = [
                np.equal.outer(own.to_numpy(object), np.asarray(levels, object))
                for own, levels in zip(codes, known, strict=True)
            ]
            return np.concatenate([np.ones((len(rows), 1)), *parts], axis=1).astype(float)

        X = indicators(kept)
        rank = np.linalg.matrix_rank(X)
        for name in sorted(set("".join(terms))):
            means = fit.emmeans(name)
            for level, known in zip(means.keys[name], means.functions.estimable, strict=True):
                row = indicators(seen[seen[name] == level]).mean(0)
                assert known == (np.linalg.matrix_rank(np.vstack([X, row])) == rank), (seed, name, level)
