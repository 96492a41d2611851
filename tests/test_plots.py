"""Pictures hold what they say: the data of the artists, limits, bands, names; words where nothing can be drawn."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

import lme_jax as lme
from lme_jax import plots
from lme_jax.errors import DataError


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fit():
    d = lme.datasets.load("sleepstudy")
    return lme.lmer("Reaction ~ Days + (Days | Subject)", d, weights=np.linspace(0.5, 2.0, len(d)))


def test_means_and_power(fit):
    slopes = fit.emtrends("Days").contrast([[2.0]])
    ax = plots.means(slopes)
    np.testing.assert_allclose(points(ax)[:, 0], slopes.estimate)
    means = fit.emmeans("Days", at={"Days": [0, 5]})
    ax = plots.means(means)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "5"]
    limits = [segment[:, 0] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(limits, means.table[["lower", "upper"]])
    ax = plots.means(means, x="Days")
    np.testing.assert_allclose(points(ax), means.table[["Days", "estimate"]])
    with pytest.raises(DataError, match="x='day' is not among the variables of these estimates: Days"):
        plots.means(means, x="day")
    curve = lme.power(fit, "Days", 20, sizes=[5, 8], seed=1, type1=True, progress=False)
    ax = plots.power(curve)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["power", "without the effect"]
    assert "Satterthwaite" in plots.alt_text(ax)


def test_means_side_by_side():
    oats = lme.lmer("yield ~ Variety * factor(nitro) + (1 | Block/Variety)", lme.datasets.load("Oats"))
    for means in (oats.emmeans(["nitro", "Variety"]), oats.emmeans("nitro", by="Variety")):
        ax = plots.means(means, x="nitro")
        _, names = ax.get_legend_handles_labels()
        assert names == ["Golden Rain", "Marvellous", "Victory"]
        for bars, name in zip(ax.containers, names, strict=True):
            line, table = bars.lines[0].get_xydata(), means.table[means.table.Variety == name]
            # Lines stand side by side, a hundredth of the axis (0 to 0.6) apart.
            np.testing.assert_allclose(line[:, 0], table.nitro, atol=0.0061)
            np.testing.assert_allclose(line[:, 1], table.estimate)
            (limits,) = [segments.get_segments() for segments in bars.lines[2]]
            np.testing.assert_allclose([s[:, 1] for s in limits], table[["lower", "upper"]])
    ax = plots.means(oats.emmeans(["nitro", "Variety"]), x="Variety")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["Golden Rain", "Marvellous", "Victory"]


def points(ax):
    return next(line.get_xydata() for line in ax.lines if line.get_marker() == "o")


def test_residuals_are_pearson_residuals_against_fitted_values(fit):
    xy = points(plots.residuals(fit))
    np.testing.assert_allclose(xy[:, 0], fit.fittedvalues)
    np.testing.assert_allclose(xy[:, 1], fit.resid * np.sqrt(np.linspace(0.5, 2.0, 180)) / fit.sigma)
    np.testing.assert_allclose(points(plots.scale_location(fit))[:, 1], np.sqrt(np.abs(xy[:, 1])))


def test_quantiles_and_their_band(fit):
    ax = plots.qq(fit, level=0.9)
    xy, band = points(ax), ax.collections[0].get_paths()[0].vertices
    assert (np.diff(xy[:, 1]) >= 0).all()
    np.testing.assert_allclose(xy[:, 0], stats.norm.ppf((np.arange(1, 181) - 0.375) / 180.25))
    # The band of the smallest of 180: the 5 and 95 % quantiles of the minimum.
    at = band[np.isclose(band[:, 0], xy[0, 0])][:, 1]
    expected = stats.norm.ppf(1.0 - (1.0 - np.array([0.05, 0.95])) ** (1 / 180))
    np.testing.assert_allclose([at.min(), at.max()], expected, rtol=1e-9)


def test_quantiles_of_effects_are_those_of_the_blups(fit):
    xy = points(plots.ranef_qq(fit, effect="Days"))
    b = np.sort(fit.ranef["Subject"]["Days"])
    np.testing.assert_allclose(xy[:, 1], (b - b.mean()) / b.std(ddof=1))


def test_caterpillars_are_in_order_and_as_wide_as_they_should_be(fit):
    ax = plots.caterpillar(fit, effect="Days", level=0.9)
    b = fit.ranef["Subject"]["Days"]
    order = np.argsort(b.to_numpy())
    np.testing.assert_allclose(points(ax)[:, 0], b.to_numpy()[order])
    assert [t.get_text() for t in ax.get_yticklabels()] == [str(v) for v in b.index[order]]
    width = np.array([segment[1, 0] - segment[0, 0] for segment in ax.collections[0].get_segments()])
    np.testing.assert_allclose(width, 2 * 1.6448536269514722 * np.sqrt(fit.ranef_cov["Subject"][order, 1, 1]))


def test_groups_have_a_panel_with_their_own_rows(fit):
    figure = plots.groups(fit, "Days", levels=["330", "308"])
    rows = fit._data.factors[0].codes == list(fit._data.factors[0].levels).index("330")
    np.testing.assert_allclose(points(figure.axes[0])[:, 1], fit._data.y[rows])
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), fit.fittedvalues[rows])


def test_forests_hold_every_model_and_its_limits(fit):
    other = lme.lmer("Reaction ~ Days + I(Days^2) + (1 | Subject)", lme.datasets.load("sleepstudy"))
    ax = plots.forest({"line": fit, "curve": other})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Days", "I(Days^2)"]
    np.testing.assert_allclose(ax.lines[1].get_xdata(), other.fe_params.iloc[1:])
    segment = ax.collections[0].get_segments()[0][:, 0]
    np.testing.assert_allclose(segment, fit.conf_int().loc["Days"])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["line", "curve"]


def test_the_overview_has_four_panels_and_every_picture_says_what_it_is(fit):
    figure = fit.plot()
    assert len(figure.axes) == 4
    for ax in figure.axes:
        assert len(plots.alt_text(ax)) > 40 and ax.get_title() and ax.get_xlabel() and ax.get_ylabel()


def test_nothing_to_draw_is_said_in_words(fit):
    with pytest.raises(DataError, match="none of the grouping factors"):
        plots.caterpillar(fit, factor="Item")
    with pytest.raises(DataError, match="none of the effects"):
        plots.ranef_qq(fit, effect="days")
    with pytest.raises(DataError, match="no column of the fixed effects"):
        plots.groups(fit, "days")
    with pytest.warns(lme.errors.SingularFitWarning):
        flat = lme.lmer("Yield ~ 1 + (1 | Batch)", lme.datasets.load("Dyestuff2"))
    with pytest.raises(DataError, match="variance of zero"):
        plots.ranef_qq(flat)
    assert len(plots.overview(flat).axes) == 4
    with pytest.raises(DataError, match="intercepts only"):
        plots.forest(flat)
