"""What formulas may hold beyond columns: summaries, the caller's functions, dates, texts; and what they refuse."""

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lme_jax as lme
from lme_jax.errors import DataError, DroppedRowsWarning, FormulaError, LmeJaxWarning
from lme_jax.formula import design_from_formula, design_from_statsmodels, design_new_data
from lme_jax.formula.terms import update_formula


@pytest.fixture
def data():
    n = 24
    i = np.arange(n)
    rng = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "y": rng.normal(size=n),
            "x": rng.normal(size=n) + 3,
            "z": rng.uniform(1, 5, n),
            "f": np.array(list("abc"))[i % 3],
            "g": np.array(["u", "v"])[i // 3 % 2],
            "k": i % 4 + 1,
            "b": i % 5 < 2,
            "s": np.array(list("pqrs"))[i // 6],
            "when": pd.Timestamp("2020-03-01") + pd.to_timedelta(i, "D"),
        }
    )


def design(side, data, **kwargs):
    return design_from_formula(f"y ~ {side} + (1 | s)", data, **kwargs)


# --- summaries and other memory --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("I(x - mean(x))", lambda d: d.x - d.x.mean()),
        ("I((x - mean(x)) / sd(x))", lambda d: (d.x - d.x.mean()) / d.x.std()),
        ("I(x / max(x) + min(z))", lambda d: d.x / d.x.max() + d.z.min()),
        ("I(x * var(z) / length(z))", lambda d: d.x * d.z.var() / len(d)),
        ("I(x - median(x) + sum(z) - max(x, z))", lambda d: d.x - d.x.median() + d.z.sum() - max(d.x.max(), d.z.max())),
        ("I(x > quantile(x, 0.25))", lambda d: d.x > d.x.quantile(0.25)),
        ("I(x - mean(x, na.rm = TRUE))", lambda d: d.x - d.x.mean()),
    ],
)
def test_summaries_keep_the_value_of_the_fit(data, side, expected):
    built = pickle.loads(pickle.dumps(design(side, data)))
    np.testing.assert_allclose(built.X[:, 1], expected(data), rtol=1e-13)
    np.testing.assert_array_equal(design_new_data(built, data.iloc[[5]]).X, built.X[[5]])


def test_summaries_leave_missing_values_out(data):
    data.loc[3, "x"] = np.nan
    with pytest.warns(DroppedRowsWarning, match=r"Left out 1 of 24 rows: missing values in I\(x - mean\(x\)\)"):
        built = design("I(x - mean(x))", data)
    np.testing.assert_allclose(built.X[:, 1], (data.x - data.x.mean()).dropna())


@pytest.mark.parametrize(
    "side", ["relevel(f, 'b')", "factor(k, labels = c('p', 'q', 'r', 's'))", "as.numeric(c3)", "cut(x, 3)"]
)
def test_what_depends_on_levels_or_a_range_is_kept_for_one_new_row(data, side):
    data["c3"] = pd.Categorical(data.f, list("cab"))
    built = design(side, data)
    for row in range(8):
        new = data.iloc[[row]].assign(c3=lambda d: pd.Categorical(d.f))
        np.testing.assert_array_equal(design_new_data(built, new).X, built.X[[row]])


def test_splines_go_on_beyond_the_boundary_with_a_warning(data):
    built = design("bs(x, df = 4)", data)
    with pytest.warns(LmeJaxWarning, match=r"bs\(x, df = 4\): 1 values lie beyond the boundary knots"):
        design_new_data(built, data.assign(x=np.where(data.index == 0, 99.0, data.x)))
    natural = design("ns(x, df = 3)", data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        far = design_new_data(natural, pd.DataFrame({"x": [50.0, 60, 70], "s": "p"})).X
    np.testing.assert_allclose(np.diff(far, 2, axis=0), 0, atol=1e-9)
    listed = design("bs(x, knots = [2, 4])", data)
    assert listed.exog_names[1] == "bs(x, knots = c(2, 4))1"
    for wrong in ("bs(x, knots = 99)", "ns(x, df = 3, foo = 1)", "bs(x, extrapolation = 'clip')"):
        with pytest.raises(FormulaError, match="Cannot compute"):
            design(wrong, data)


# --- names beyond the columns ----------------------------------------------------------------------------


def cut(values):
    """A function of the caller's own, named as one of the list."""
    return 100.0 * values


def test_the_callers_own_functions_come_before_the_listed_ones(data):
    built = design("cut(x)", data, context=1)
    np.testing.assert_allclose(built.X[:, 1], 100 * data.x)
    np.testing.assert_allclose(design_new_data(pickle.loads(pickle.dumps(built)), data).X, built.X)
    from statistics import mean  # imported, not the caller's own: the listed one remembers

    imported = {**globals(), "mean": mean}
    built = design("I(x - mean(x))", data, context=imported)
    np.testing.assert_array_equal(design_new_data(built, data.iloc[[5]]).X, built.X[[5]])


def test_the_callers_functions_may_return_series_texts_and_categoricals(data):
    def half(v):
        return pd.Series(v, index=range(100, 100 + len(v))) / 2

    def letter(v):
        return np.where(v > 3, "high", "low")

    def fail(v):
        raise KeyError("inside")

    names = {**globals(), "half": half, "letter": letter, "fail": fail, "limit": 3.5}
    built = design("half(x) + letter(x) + I(x > limit) + np.log(z)", data, context=names)
    assert built.exog_names[1:] == ("half(x)", "letter(x)low", "I(x > limit)TRUE", "np.log(z)")
    np.testing.assert_allclose(built.X[:, 1], data.x / 2)
    np.testing.assert_allclose(design_new_data(built, data.iloc[2:5]).X, built.X[2:5])
    with pytest.raises(FormulaError, match=r"Cannot compute fail\(x\): 'inside'"):
        design("fail(x)", data, context=names)


def test_weights_and_offset_may_be_expressions(data):
    built = design("x", data, weights="1 + k", offset="log(z) - mean(z)", subset="k > 1")
    kept = data[data.k > 1]
    np.testing.assert_array_equal(built.weights, 1 + kept.k)
    np.testing.assert_allclose(built.offset, np.log(kept.z) - kept.z.mean())
    np.testing.assert_allclose(design_new_data(built, data.iloc[[5]]).offset, np.log(data.z[5]) - kept.z.mean())
    odd = data.rename(columns={"z": "my weight"})
    np.testing.assert_array_equal(design("x", odd, weights="my weight").weights, data.z)
    with pytest.raises(DataError, match="no column 'kk'; did you mean 'k'"):
        design("x", data, weights="kk")
    with pytest.raises(DataError, match=r"The weights 'paste\(f, g\)' must give one number per row"):
        design("x", data, weights="paste(f, g)")


def test_comments_semicolons_q_and_lists(data):
    odd = data.rename(columns={"x": "odd name", "s": "the group"})
    built = design_from_formula('y ~ Q("odd name") + # a comment\n z + (1 | Q("the group")); # end', odd)
    assert built.exog_names == ("(Intercept)", "`odd name`", "z")
    assert built.terms[0].factor == "the group"


def test_dates(data):
    for side, first in {"as.numeric(when)": 18322.0, "I(when - min(when))": 0.0}.items():
        built = design(side, data)
        np.testing.assert_array_equal(built.X[:, 1], first + np.arange(24))
        np.testing.assert_array_equal(design_new_data(built, data.iloc[[7]]).X, built.X[[7]])
    message = r"'when' has type datetime64.*Write as.numeric\(when\) for days since 1970-01-01, I\(when - min\(when\)\)"
    with pytest.raises(DataError, match=message):
        design("when", data)
    for other in (data.when.dt.date, data.when.dt.tz_localize("UTC"), data.when - data.when.min()):
        with pytest.raises(DataError, match="Write as"):
            design("when", data.assign(when=other))
        assert np.ptp(design("as.numeric(when)", data.assign(when=other)).X[:, 1]) == 23
    data["day"] = data.when.dt.floor("6D")
    assert len(design_from_formula("y ~ x + (1 | day)", data).terms[0].levels) == 5
    assert design("factor(day)", data).exog_names[1] == "factor(day)2020-03-03"


def test_missing_values_in_conditions_stay_missing(data):
    data.loc[0, "x"] = np.nan
    for side in (
        "I(x > 3 & z > 0)",
        "I(!(x > 3))",
        "ifelse(x > 3, 'a', 'b')",
        "cut(x, c(-9, 3, 9))",
        "paste(x > 3, g)",
    ):
        with pytest.warns(DroppedRowsWarning, match="Left out 1 of 24"):
            design(side, data)
    known = design("I(x > 3 & z < 0 | z > 3)", data)  # FALSE & NA is FALSE
    assert known.n_dropped == 0


# --- structure of formulas -------------------------------------------------------------------------------


def test_long_sums_and_deep_nesting(data):
    many = pd.DataFrame({f"v{j}": np.random.default_rng(j).normal(size=24) for j in range(3)})
    wide = " + ".join(["v0", "v1", "v2"] * 1000)
    assert design(wide, data.join(many)).exog_names == ("(Intercept)", "v0", "v1", "v2")
    assert design(f"I({wide})", data.join(many)).X.shape == (24, 2)
    for deep in ("(" * 5000 + "x" + ")" * 5000, "-" * 5000 + "x", "log(" * 500 + "x" + ")" * 500, "x^" * 500 + "2"):
        with pytest.raises(FormulaError, match="levels deep"):
            design(deep, data)


def test_powers(data):
    assert design("(x + z)^1e18", data).exog_names == ("(Intercept)", "x", "z", "x:z")
    for side, message in {"x^1e400": "positive integer", "x^2.5": "positive integer"}.items():
        with pytest.raises(FormulaError, match=message):
            design(side, data)
    with pytest.raises(FormulaError, match="more than 20000 terms"):
        design("(" + "+".join(f"v{j}" for j in range(40)) + ")^9", data)


def test_grouping_labels_have_no_outer_parentheses(data):
    assert design_from_formula("y ~ x + (1 | (g:k))", data).terms[0].factor == "g:k"


def test_update_honours_parentheses(data):
    text = update_formula("y ~ x + (z - x) + (1 | s)", ". ~ . + k")
    assert design_from_formula(text, data).exog_names == ("(Intercept)", "x", "z", "k")
    assert update_formula("y ~ x + ((1 | s) + z)", ". ~ . - (1 | s)") == "y ~ x + z"


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ x:offset(z) + (1 | s)", r"offset\(z\) cannot be part of an interaction"),
        ("y ~ x - offset(z) + (1 | s)", r"Cannot subtract offset\(z\)"),
        ("y ~ x + (offset(z) | s)", "no meaning in the random-effects term"),
        ("y ~ f %in% c('a', 'b') + (1 | s)", r"to test membership write I\(f %in% c\(\"a\", \"b\"\)\)"),
        ("y ~ x:-z + (1 | s)", r"-z cannot be part of an interaction; for its negative write I\(-z\)"),
        ("y ~ (x == z > 0) + (1 | s)", "Comparisons cannot be chained"),
        ("y ~ data$x + (1 | s)", "Name the column alone"),
        ("y ~ I(x + c(1, 2)) + (1 | s)", r"got 2 values: c\(…\)"),
        ("y ~ ifelse(x > 3, 'a', o) + (1 | s)", r"wrap them in as.character\(\)"),
        ("y ~ I(o > 'zz') + (1 | s)", "is not one of the levels"),
        ("y ~ I(h > 'a') + (1 | s)", "no meaning for a factor without an order"),
        ("y ~ cut(x) + (1 | s)", "cut.. needs breaks"),
        ("y ~ meen(x) + (1 | s)", "Unknown function 'meen' in the formula; did you mean mean, .* or .*[?] help"),
        ("y ~ as.numeric(f) + (1 | s)", "could not convert string to float: 'a'"),
    ],
)
def test_refusals(data, formula, message):
    data["o"] = pd.Categorical(data.f, ordered=True)
    data["h"] = pd.Categorical(data.f)
    with pytest.raises(FormulaError, match=message):
        design_from_formula(formula, data)


# --- data that are not what they seem --------------------------------------------------------------------


def test_odd_values_are_named(data):
    numbers = [f"{v:.3f}" for v in data.x]
    numbers[17] = "abc"
    with pytest.raises(DataError, match=r"'x' is text because of the value 'abc' in row 17 .*pandas.to_numeric"):
        design("x", data.assign(x=numbers))
    shifted = pd.concat([data.assign(x="1"), data.assign(x=numbers)])
    with pytest.raises(DataError, match="'abc' in row 41"):
        design("x", shifted, subset=np.arange(48) >= 24)
    with pytest.raises(DataError, match="text although its values are numbers"):
        design("x", data.assign(x=[f"{v:.3f}" for v in data.x]))
    with pytest.raises(DataError, match=r"log\(x\) needs numbers but got text: 'abc' in row 17"):
        design("log(x)", data.assign(x=numbers))
    with pytest.raises(DataError, match="'y' is text because of the value 'abc' in row 17"):
        design("z", data.assign(y=numbers))
    mixed = data.x.astype(object)
    for value in (True, "abc"):
        mixed[5] = value
        with pytest.raises(DataError, match=f"'x' is not numeric because of the value {value!r} in row 5"):
            design("x", data.assign(x=mixed))
    mixed[5] = pd.NaT
    with pytest.warns(DroppedRowsWarning, match=r"missing values in x \(1\)"):
        assert design("x", data.assign(x=mixed)).exog_names == ("(Intercept)", "x")
    # Text that is meant as levels stays a factor, codes of whole numbers too.
    assert len(design("t", data.assign(t=(data.index // 2 * 3).astype(str))).exog_names) == 12
    assert len(design("t", data.assign(t=(data.k * 10).astype(str))).exog_names) == 4


def test_cells_that_hold_lists_are_named(data):
    held = data.assign(x=[[1, 2]] * 24, s=[{"a": 1}] * 24)
    with pytest.raises(DataError, match="Column 'x' holds a list in row 0"):
        design_from_formula("y ~ x + (1 | g)", held)
    with pytest.raises(DataError, match="Column 's' holds a dict in row 0"):
        design_from_formula("y ~ z + (1 | s)", held)


def test_infinite_groups_are_left_out_by_name(data):
    data["h"] = np.where(data.index == 2, np.inf, data.k)
    with pytest.warns(DroppedRowsWarning, match=r"infinite values in h \(1\)"):
        assert list(design_from_formula("y ~ x + (1 | h)", data).terms[0].levels) == [1, 2, 3, 4]


def test_messages_hold_plain_numbers(data):
    built = design("factor(k)", data)
    with pytest.raises(DataError, match=r"levels \[9\] in the new data, .* known: \[1, 2, 3, 4\]"):
        design_new_data(built, data.assign(k=9))
    with pytest.raises(DataError, match=r"rows used, from 0: \[0, 1, 2, 3, 4, …\]"):
        design("x", data, weights=-data.z)


def test_a_factor_of_very_many_levels_is_refused_before_memory_is_taken():
    n = 40_000
    big = pd.DataFrame({"y": np.arange(n) % 7.0, "i": [f"u{j}" for j in range(n // 2)] * 2, "s": np.arange(n) % 9})
    for formula in ("y ~ i + (1 | s)", "y ~ 1 + (i | s)", "y ~ 0 + i + (1 | s)"):
        with pytest.raises(DataError, match=r"i has 20000 levels.* 5\.96 GiB\. If it names groups write \(1 \| i\)"):
            design_from_formula(formula, big)
    crossed = big.assign(a=np.arange(n) % 500, c=np.arange(n) % 499)
    with pytest.raises(DataError, match=r"interaction factor\(a\):factor\(c\) takes .* GiB"):
        design_from_formula("y ~ factor(a):factor(c) + (1 | s)", crossed)


def test_frames_that_are_none(data):
    with pytest.raises(DataError, match="read the file first"):
        design("x", "data.csv")
    with pytest.raises(DataError, match=r"rename first: data.rename\(columns=str\)"):
        design("`1`", data.rename(columns={"x": 1}))


def test_the_design_does_not_share_the_callers_memory(data):
    y = data.y.to_numpy().copy()
    weights = np.ones(24)
    built = design("x", {**data, "y": y}, weights=weights)
    before = built.y.copy()
    y[:] = 0
    weights[:] = 0
    np.testing.assert_array_equal(built.y, before)
    assert (built.weights == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memberships": "s"}, "`memberships` must map factors, .* got str"),
        ({"relatedness": "s"}, "`relatedness` must map factors"),
        ({"structures": "ar1"}, "`structures` must map factors"),
        ({"structures": {3: "ar1"}}, r"`structures` names \[3\]"),
        ({"memberships": {"s": np.zeros((24, 3))}}, "holds no weights"),
        ({"memberships": {"s": [["a"]] * 24}}, "must be an array of numbers"),
        ({"relatedness": {"s": np.full((4, 4), "k")}}, "must hold numbers"),
        ({"subset": "x"}, "one True or False per row: 24 rows, got float64"),
    ],
)
def test_arguments_of_the_wrong_kind(data, arguments, message):
    with pytest.raises((FormulaError, DataError), match=message):
        design("x", data, **arguments)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("bs(x, df = 1e9)", "asks for 999999997 knots within 24 values"),
        ("cut(x, 1e9)", "number of intervals"),
        ("poly(x, 1e9, raw = TRUE)", "not absurd"),
        ("I(x + seq(1, 1e9))", "too many"),
        ("mean()", r"mean\(\) needs a column"),
        ("I(x:z)", "belongs outside I"),
        ("I(when > '2020-99')", "Cannot read '2020-99' as a date"),
    ],
)
def test_absurd_calls(data, side, message):
    with pytest.raises(FormulaError, match=message):
        design(side, data)


def test_dates_are_compared_with_text_and_factors_of_dates_meet_new_ones(data):
    np.testing.assert_array_equal(design("I(when > '2020-03-05')", data).X[:, 1], data.index > 4)
    np.testing.assert_array_equal(design("I('2020-03-05' == when)", data).X[:, 1], data.index == 4)
    data["day"] = data.when.dt.floor("6D")
    built = design_from_formula("y ~ x + (1 | factor(day))", data)
    later = data.assign(day=data.day.where(data.index < 20, data.day + pd.Timedelta("99D")))
    codes = design_new_data(built, later).terms[0][1]
    np.testing.assert_array_equal(codes, np.where(data.index < 20, built.terms[0].codes, -1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"re_formula": "~ I(x +* 2)"}, "invalid syntax"),
        ({"vc_formula": {"a": "0 + C(q)"}}, "no column 'q'"),
        ({"vc_formula": "0 + C(f)"}, "`vc_formula` must map names"),
        ({"formula": "y ~ I(3)"}, "Cannot build the formula"),
    ],
)
def test_statsmodels_formulas_that_cannot_be_built(data, arguments, message):
    with pytest.raises((FormulaError, DataError), match=message):
        design_from_statsmodels(**{"formula": "y ~ x", "data": data, "groups": "s", **arguments})


# --- formulas from elsewhere -----------------------------------------------------------------------------

INJECTIONS = [
    "os.system('touch {path}')",
    "os.system('touch {path}') + x",
    '__builtins__.exec(\'open("{path}", "w")\')',
    "__builtins__",
    "__import__('os')",
    'exec(\'open("{path}", "w")\')',
    "eval('1')",
    "open('{path}', 'w')",
    "np.savetxt('{path}', x)",
    "np.save('{path}', x)",
    "numpy.savetxt('{path}', x)",
    "np.lib.format.open_memmap('{path}')",
    "np.log.__class__(x)",
    "np.add.outer(x, x)",
    "x.tofile('{path}')",
    "arr.tofile('{path}')",
    "arr.__class__",
    "frame.to_csv('{path}')",
    "I(np.savetxt('{path}', x))",
    "poly(x, os.system('touch {path}'))",
    "bs(x, df = os.system('touch {path}'))",
    "write(x)",
    "helper._private(x)",
    "@np.savetxt('{path}', x)",
    "@pd.io.common.os.system('touch {path}') == 0",
    "x @ np.savetxt('{path}', x)",
]


def write(values):
    raise AssertionError("a restricted formula called the caller's function")


@pytest.mark.parametrize("code", INJECTIONS)
def test_without_a_context_no_foreign_code_runs(data, code, tmp_path):
    import os  # noqa: F401

    path = tmp_path / "pwned"
    code = code.format(path=path)
    formulas = [f"{code} ~ x + (1 | s)", f"y ~ {code} + (1 | s)", f"y ~ x + ({code} | s)", f"y ~ x + (1 | {code})"]
    formulas.append(f"y ~ offset({code}) + x + (1 | s)")
    for formula in formulas:
        with pytest.raises((FormulaError, DataError)):
            design_from_formula(formula, data)
    for argument in ("weights", "offset", "subset"):
        with pytest.raises((FormulaError, DataError)):
            design("x", data, **{argument: code})
    for formula in (f"y ~ {code}", f"y ~ I({code})", f"y ~ {{{code}}}"):
        with pytest.raises((FormulaError, DataError)):
            design_from_statsmodels(formula, data, "s")
    with pytest.raises((FormulaError, DataError)):
        design_from_statsmodels("y ~ x", data, "s", vc_formula={"a": f"0 + {code}"})
    assert not path.exists()


INTERNALS = [c for c in INJECTIONS if "__" in c or "_private" in c or "arr." in c]


@pytest.mark.parametrize("code", INTERNALS)
def test_internals_are_closed_to_the_callers_formulas_too(data, code, tmp_path):
    arr = np.arange(24.0)
    path = tmp_path / "pwned"
    code = code.format(path=path)
    context = {**globals(), "arr": arr, "helper": subprocess}
    for formula in (f"{code} ~ x + (1 | s)", f"y ~ {code} + (1 | s)", f"y ~ x + (1 | {code})"):
        with pytest.raises((FormulaError, DataError)):
            design_from_formula(formula, data, context=context)
    for argument in ("weights", "offset", "subset"):
        with pytest.raises((FormulaError, DataError)):
            design("x", data, context=context, **{argument: code})
    assert not path.exists()


def test_subset_texts_have_no_variables(data):
    for text in ("@np.savetxt('never', x) == 1", "@pd.io.common.os.getcwd() == 'a'"):
        with pytest.raises(DataError, match="Cannot evaluate the subset"):
            design("x", data, subset=text, context=globals())
    with pytest.raises(DataError, match="one True or False per row: 24 rows, got False"):
        design("x", data, subset="x.size == 3", context=globals())
    assert len(design("x", data, subset="f.str.startswith('a') | k == 1", context=globals()).y) == 12


def test_update_cannot_reach_internals(data):
    fit = lme.lmer("y ~ x + (1 | s)", data)
    with pytest.raises(FormulaError, match="closed to it"):
        fit.update(". ~ . + __builtins__.print(x)")


def test_restricted_formulas_may_use_what_is_listed(data):
    built = design("np.log(z) + ns(x, 2) + ifelse(f == 'a', 1, 0) + I(k - mean(k))", data, weights="sqrt(z)")
    assert built.X.shape == (24, 6)
    built = design_from_statsmodels(
        "y ~ np.log(z) + C(f, Treatment('b')) + I(x**2)", data, "s", subset="x > 0 and k < 4"
    )
    assert built.X.shape == (18, 5)


def test_importing_brings_no_formulaic():
    code = "import sys, lme_jax; print({'formulaic', 'scipy.stats', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_formulas_alone_bring_no_jax():
    """The package's own ``__init__`` aside, nothing that formulas need imports JAX or formulaic."""
    package = Path(lme.__file__).parent
    code = (
        "import sys, types; package = types.ModuleType('lme_jax'); "
        f"package.__path__ = [{str(package)!r}]; sys.modules['lme_jax'] = package; "
        "import lme_jax.formula; print({'jax', 'formulaic', 'scipy.stats'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
