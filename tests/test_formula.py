"""Formulas to designs: coding and names as in R and statsmodels, rows, groups, new data, refusals."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest

from lme_jax.errors import (
    DataError,
    DroppedRowsWarning,
    FormulaError,
    RankWarning,
    UnsupportedError,
)
from lme_jax.formula import (
    design_from_formula,
    design_from_statsmodels,
    design_new_data,
    drop_dependent_columns,
)


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
            "o": pd.Categorical(np.array(["lo", "mid", "hi", "top"])[i % 4], ["lo", "mid", "hi", "top"], ordered=True),
            "s": np.array(list("pqrs"))[i // 6],
        },
        index=np.zeros(n, dtype=int),
    )


def names(rhs, data, **kwargs):
    return list(design_from_formula(f"y ~ {rhs} + (1 | s)", data, **kwargs).exog_names)


# Right-hand side -> colnames(model.matrix(~ rhs)) of R 4.2.2.
R_NAMES = {
    "x + f": "(Intercept) x fb fc",
    "0 + f": "fa fb fc",
    "0 + f + g": "fa fb fc gv",
    "f*g": "(Intercept) fb fc gv fb:gv fc:gv",
    "f/g": "(Intercept) fb fc fa:gv fb:gv fc:gv",
    "g*f - f": "(Intercept) gv gu:fb gv:fb gu:fc gv:fc",
    "x:f": "(Intercept) x:fa x:fb x:fc",
    "0 + x:f": "x:fa x:fb x:fc",
    "f + x:f - 1": "fa fb fc fa:x fb:x fc:x",
    "x + x:f": "(Intercept) x x:fb x:fc",
    "(f+g+x)^2": "(Intercept) fb fc gv x fb:gv fc:gv fb:x fc:x gv:x",
    "x*z - x": "(Intercept) z x:z",
    "b*x": "(Intercept) bTRUE x bTRUE:x",
    "o": "(Intercept) o.L o.Q o.C",
    "factor(k)": "(Intercept) factor(k)2 factor(k)3 factor(k)4",
    "as.factor(k):x": "(Intercept) as.factor(k)1:x as.factor(k)2:x as.factor(k)3:x as.factor(k)4:x",
    "I(!b)": "(Intercept) I(!b)TRUE",
    "g %in% f": "(Intercept) gu:fa gv:fa gu:fb gv:fb gu:fc gv:fc",
    "1": "(Intercept)",
    "-1 + x": "x",
}


@pytest.mark.filterwarnings("ignore::lme_jax.errors.RankWarning")
@pytest.mark.parametrize("rhs", R_NAMES)
def test_column_names_are_those_of_r(data, rhs):
    design = design_from_formula(f"y ~ {rhs} + (1 | s)", data)
    expected = R_NAMES[rhs].split(" ")
    assert [n for n in expected if n not in design.dropped_columns] == list(design.exog_names)
    assert set(design.dropped_columns) <= set(expected)


def test_names_of_calls_are_deparsed_as_in_r(data):
    found = names("I(z^2)+log(z)+I( x*z )+poly(x,2)+exp(z/10)", data)
    assert found[1:] == ["I(z^2)", "log(z)", "I(x * z)", "poly(x, 2)1", "poly(x, 2)2", "exp(z/10)"]


def test_values_of_transforms(data):
    design = design_from_formula("log(z) ~ I(x^2) + scale(z) + x**2 + (1 | s)", data)
    x, z = data.x.to_numpy(), data.z.to_numpy()
    assert design.endog_name == "log(z)"
    np.testing.assert_allclose(design.y, np.log(z))
    assert design.exog_names == ("(Intercept)", "I(x^2)", "scale(z)", "x")
    np.testing.assert_allclose(design.X, np.column_stack([x**0, x**2, (z - z.mean()) / z.std(ddof=1), x]))


def test_poly_is_orthonormal_with_positive_leading_coefficients(data):
    X = design_from_formula("y ~ poly(x, 3) + (1 | s)", data).X
    np.testing.assert_allclose(X[:, 1:].T @ X, np.eye(4)[1:], atol=1e-12)
    lead = np.linalg.lstsq(np.vander(data.x, 4), X[:, 1:], rcond=None)[0]
    assert lead[2, 0] > 0 and lead[1, 1] > 0 and lead[0, 2] > 0


def test_contrasts(data):
    assert names("f", data, contrasts={"f": "sum"}) == ["(Intercept)", "f1", "f2"]
    sums = design_from_formula("y ~ f + (1|s)", data, contrasts={"f": "sum"}).X[:3, 1:]
    np.testing.assert_array_equal(sums, [[1, 0], [0, 1], [-1, -1]])
    helmert = design_from_formula("y ~ f + (1|s)", data, contrasts={"f": "helmert"}).X[:3, 1:]
    np.testing.assert_array_equal(helmert, [[-1, -1], [1, -1], [0, 2]])
    # contr.poly(4) of R
    poly = design_from_formula("y ~ o + (1|s)", data).X[:4, 1:]
    expected = np.array([[-3, 1, -1], [-1, -1, 3], [1, -1, -3], [3, 1, 1]]) / np.sqrt([20, 4, 20])
    np.testing.assert_allclose(poly, expected, atol=1e-14)
    assert names("o", data, contrasts={"o": "treatment"}) == ["(Intercept)", "omid", "ohi", "otop"]
    own = pd.DataFrame({"ab": [-1.0, 1, 0], "c": [-0.5, -0.5, 1]}, index=list("bac"))
    design = design_from_formula("y ~ f + (1|s)", data, contrasts={"f": own})
    assert design.exog_names == ("(Intercept)", "fab", "fc")
    np.testing.assert_array_equal(design.X[:3, 1:], own.loc[list("abc")])
    array = design_from_formula("y ~ C(f, contr.sum) + (1|s)", data)
    assert array.exog_names[1:] == ("C(f, contr.sum)1", "C(f, contr.sum)2")


def test_relevel_and_dot(data):
    assert names('relevel(f, ref = "c")', data)[1:] == ['relevel(f, ref = "c")a', 'relevel(f, ref = "c")b']
    small = data[["y", "x", "f", "s"]]
    assert names(".", small) == ["(Intercept)", "x", "fb", "fc"]
    assert names(". - x", small) == ["(Intercept)", "fb", "fc"]


def test_backticks_and_odd_names(data):
    odd = data.rename(columns={"x": "my x", "s": "the group"})
    design = design_from_formula("y ~ `my x` + (`my x` | `the group`)", odd)
    assert design.exog_names == ("(Intercept)", "`my x`")
    assert design.terms[0].factor == "the group"


def test_context_gives_functions_arrays_and_the_callers_names(data):
    weights = np.arange(24.0)

    def double(v):
        return 2 * v

    design = design_from_formula("y ~ double(x) + np.sqrt(z) + weights + (1 | s)", data, context=1)
    np.testing.assert_allclose(design.X[:, 1], 2 * data.x)
    np.testing.assert_allclose(design.X[:, 2], np.sqrt(data.z))
    half = design_from_formula(
        "y ~ double(x) + w + (1|s)",
        data,
        context={"double": double, "w": weights},
        subset=data.f != "a",
    )
    np.testing.assert_allclose(half.X[:, 2], weights[data.f.to_numpy() != "a"])


# --- random terms ----------------------------------------------------------------------------------------


def terms(bars, data, **kwargs):
    return design_from_formula(f"y ~ 1 + {bars}", data, **kwargs).terms


@pytest.mark.parametrize(
    ("bar", "columns", "structure"),
    [
        ("(1 | s)", ("(Intercept)",), "unstructured"),
        ("(x | s)", ("(Intercept)", "x"), "unstructured"),
        ("(0 + x | s)", ("x",), "unstructured"),
        ("(x - 1 | s)", ("x",), "unstructured"),
        ("(x || s)", ("(Intercept)", "x"), "diagonal"),
        ("(f || s)", ("(Intercept)", "fb", "fc"), "diagonal"),
        ("(0 + f | s)", ("fa", "fb", "fc"), "unstructured"),
        ("(log(z) + I(x^2) | s)", ("(Intercept)", "log(z)", "I(x^2)"), "unstructured"),
        ("(poly(x, 2) | s)", ("(Intercept)", "poly(x, 2)1", "poly(x, 2)2"), "unstructured"),
        ("us(x | s)", ("(Intercept)", "x"), "unstructured"),
        ("diag(x | s)", ("(Intercept)", "x"), "diagonal"),
        ("ident(0 + f | s)", ("fa", "fb", "fc"), "identity"),
        ("cs(0 + f | s)", ("fa", "fb", "fc"), "het_compound_symmetry"),
        ("homcs(0 + f | s)", ("fa", "fb", "fc"), "compound_symmetry"),
        ("cs(0 + f | s, hom = TRUE)", ("fa", "fb", "fc"), "compound_symmetry"),
        ("diag(0 + f | s, hom = TRUE)", ("fa", "fb", "fc"), "identity"),
        ("ar1(0 + factor(k) | s)", tuple(f"factor(k){j}" for j in range(1, 5)), "ar1"),
    ],
)
def test_bars(data, bar, columns, structure):
    (term,) = terms(bar, data)
    assert (term.columns, term.structure, term.factor) == (columns, structure, "s")
    assert term.Z.shape == (24, len(columns)) and term.codes.dtype == np.int32
    np.testing.assert_array_equal(term.levels[term.codes], data.s)


def test_several_bars_and_parentheses(data):
    found = terms("((1 | s) + (0 + x | s)) + (1 | g)", data)
    assert [(t.factor, t.columns) for t in found] == [
        ("s", ("(Intercept)",)),
        ("s", ("x",)),
        ("g", ("(Intercept)",)),
    ]


@pytest.mark.parametrize(
    ("group", "labels"),
    [
        ("g/f", ["f:g", "g"]),
        ("g:f", ["g:f"]),
        ("g/f/b", ["b:(f:g)", "f:g", "g"]),
        ("g*f", ["g", "f", "g:f"]),
        ("factor(k)", ["factor(k)"]),
        ("g:factor(k)", ["g:factor(k)"]),
    ],
)
def test_grouping_labels_are_those_of_lme4(data, group, labels):
    assert [t.factor for t in terms(f"(1 | {group})", data)] == labels


def test_only_cells_that_occur_are_levels(data):
    kept = data[~((data.g == "u") & (data.f == "b"))]
    nested, outer = terms("(1 | g/f)", kept)
    assert list(nested.levels) == ["a:u", "a:v", "b:v", "c:u", "c:v"]
    assert list(outer.levels) == ["u", "v"]
    expected = kept.f + ":" + kept.g
    np.testing.assert_array_equal(nested.levels[nested.codes], expected)


def test_level_order_and_types(data):
    data["c"] = pd.Categorical(data.s, ["s", "r", "q", "p", "unused"])
    assert list(terms("(1 | c)", data)[0].levels) == ["s", "r", "q", "p"]
    whole = terms("(1 | k)", data)[0].levels
    assert whole.dtype.kind == "i" and list(whole) == [1, 2, 3, 4]
    assert list(terms("(1 | b)", data)[0].levels) == [False, True]
    data["mixed"] = pd.Series(["a", 1, 2.5] * 8, dtype=object, index=data.index)
    with pytest.raises(DataError, match=r"'mixed' mixes the types float, int, str"):
        terms("(1 | mixed)", data)


def test_structures_argument(data):
    by_label = terms("(x | s) + (1 | g)", data, structures={"s": "diagonal"})
    assert [t.structure for t in by_label] == ["diagonal", "unstructured"]
    by_text = terms("(1 | s) + (0+f | s)", data, structures={"0 + f|s": "compound_symmetry"})
    assert [t.structure for t in by_text] == ["unstructured", "compound_symmetry"]
    with pytest.raises(FormulaError, match=r"names \['t'\]; the terms are"):
        terms("(x | s)", data, structures={"t": "diagonal"})
    with pytest.raises(FormulaError, match="unknown covariance structure 'toplitz': did you mean 'toeplitz'"):
        terms("(x | s)", data, structures={"s": "toplitz"})


# --- rows ------------------------------------------------------------------------------------------------


def test_missing_rows_are_dropped_and_counted(data):
    data = data.reset_index(drop=True)
    data["f"] = data.f.astype(object)
    data.loc[0, "y"] = np.nan
    data.loc[1, "f"] = None
    data.loc[2, "s"] = None
    data.loc[3, "x"] = np.inf
    weights = np.ones(24)
    weights[4] = np.nan
    with pytest.warns(DroppedRowsWarning, match=r"Left out 5 of 24 rows: missing values in y \(1\)"):
        design = design_from_formula("y ~ x + f + (1 | s)", data, weights=weights)
    assert design.n_dropped == 5 and list(design.index) == list(range(5, 24))
    assert design.weights.shape == design.y.shape == (19,)
    with pytest.raises(DataError, match=r"row numbers from 0: 0, 1, 2, 3, 4\).*infinite values in x \(1\)"):
        design_from_formula("y ~ x + f + (1 | s)", data, weights=weights, missing="raise")


def test_nothing_is_learned_from_levels_that_were_dropped(data):
    data["y"] = np.where(data.f == "b", np.nan, data.y)
    with pytest.warns(DroppedRowsWarning):
        assert names("f", data) == ["(Intercept)", "fc"]


def test_the_users_data_are_left_alone(data):
    before = data.copy(deep=True)
    design_from_formula("y ~ x + f + o + b + (x | s)", data, subset=data.x > 2)
    pd.testing.assert_frame_equal(data, before)


def test_subset(data):
    mask = data.f.isin(["a", "b"])
    by_mask = design_from_formula("y ~ x + (1 | s)", data, subset=mask, weights="z")
    by_query = design_from_formula("y ~ x + (1 | s)", data, subset="f != 'c'", weights=data.z.to_numpy())
    np.testing.assert_array_equal(by_mask.y, data.y[mask.to_numpy()])
    np.testing.assert_array_equal(by_mask.weights, by_query.weights)
    assert by_mask.n_dropped == 0
    for wrong in ([True, False], np.arange(24), "f === 2"):
        with pytest.raises(DataError, match="subset"):
            design_from_formula("y ~ x + (1 | s)", data, subset=wrong)


def test_offsets_add_up(data):
    design = design_from_formula("y ~ x + offset(log(z)) + (1 | s)", data, offset="k")
    np.testing.assert_allclose(design.offset, np.log(data.z) + data.k)
    new = design_new_data(design, data.iloc[3:5])
    np.testing.assert_allclose(new.offset, design.offset[3:5])


def test_dict_nullable_and_object_columns(data):
    table = {k: list(data[k]) for k in "yxs"}
    table["x"] = pd.array([None, *table["x"][1:]], dtype="Float64")
    table["b"] = pd.array([True, None, *data.b[2:]], dtype="boolean")
    table["h"] = np.array([1, 2.5, *range(22)], dtype=object)
    with pytest.warns(DroppedRowsWarning, match="Left out 2"):
        design = design_from_formula("y ~ x + b + h + (1 | s)", table)
    assert design.exog_names == ("(Intercept)", "x", "bTRUE", "h")


# --- new data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ poly(x, 2) * f + scale(z) + o + b + (poly(x, 2) || s) + (1 | g/f)",
        "y ~ C(f, sum) + bs(z, df = 4) + factor(k) + (f | s)",
    ],
)
def test_new_data_repeat_the_training_design(data, formula):
    design = pickle.loads(pickle.dumps(design_from_formula(formula, data)))
    rows = np.array([5, 2, 17])
    new = design_new_data(design, data.iloc[rows].drop(columns="y"))
    np.testing.assert_allclose(new.X, design.X[rows], atol=1e-12)
    for (Z, codes), term in zip(new.terms, design.terms, strict=True):
        np.testing.assert_allclose(Z, term.Z[rows], atol=1e-12)
        np.testing.assert_array_equal(codes, term.codes[rows])
    assert design_new_data(design, data[["x", "z", "f", "o", "b", "k"]], random=False).terms == ()


def test_new_levels(data):
    design = design_from_formula("y ~ x + f + (1 | s) + (1 | g:f)", data)
    new = pd.DataFrame({"x": [1.0, np.nan, 2], "f": ["c", "a", None], "s": ["q", "zz", None], "g": ["v", "w", "u"]})
    built = design_new_data(design, new)
    assert [list(codes) for _, codes in built.terms] == [[1, -1, -1], [5, -1, -1]]
    np.testing.assert_array_equal(np.isnan(built.X).any(axis=1), [False, True, True])
    with pytest.raises(DataError, match=r"f has the levels \['d'\] in the new data"):
        design_new_data(design, new.assign(f="d"))
    with pytest.raises(DataError, match="no column 'g'"):
        design_new_data(design, new.drop(columns="g"))
    with pytest.raises(DataError, match="x is a factor in the new data but was numeric"):
        design_new_data(design, new.assign(x="a"))


# --- rank ------------------------------------------------------------------------------------------------


def test_dependent_columns_are_dropped_in_order():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    X = np.column_stack([np.ones(50), a, 2 * a + 3, b, a - b, np.zeros(50)])
    for scale in (np.ones(6), np.array([1, 1e8, 1e-8, 1e-8, 1e8, 1]), np.full(6, 1e-200)):
        with pytest.warns(RankWarning, match=r"rank 3, not 6: dropped c2, c4, c5"):
            keep = drop_dependent_columns(X * scale, [f"c{j}" for j in range(6)])
        assert list(keep) == [0, 1, 3]


def test_near_collinear_columns_are_kept():
    x = np.random.default_rng(0).normal(size=1000)
    X = np.column_stack([np.ones(1000), 2000 + x, x + 1e-5 * x**2, x * 1e-8])[:, :3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(drop_dependent_columns(X, "abc")) == [0, 1, 2]
        assert list(drop_dependent_columns(np.column_stack([x**0, x * 1e-8, x**2 * 1e8]), "abc")) == [0, 1, 2]


def test_rank_deficient_design_says_what_went(data):
    data["twice"] = 2 * data.x
    with pytest.warns(RankWarning, match="dropped twice"):
        design = design_from_formula("y ~ x + twice + z + (1 | s)", data)
    assert design.exog_names == ("(Intercept)", "x", "z") and design.dropped_columns == ("twice",)
    np.testing.assert_allclose(design_new_data(design, data).X, design.X)


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ x", "no random-effects term"),
        ("~ x + (1 | s)", "no response"),
        ("x + (1 | s)", "no response"),
        ("y ~ x*(1 | s)", "can only be added"),
        ("y ~ x:(1 | s)", "can only be added"),
        ("y ~ log((1 | s))", "can only be added"),
        ("y ~ x - (1 | s)", "Cannot subtract"),
        ("y ~ (1 | )", "no grouping factor after"),
        ("y ~ ( | s)", "no effects before"),
        ("y ~ 1 | s", "needs parentheses"),
        ("y ~ x + 1 | s", "needs parentheses"),
        ("y ~ (1 | s | g)", "more than one"),
        ("y ~ (1 | 1)", "no grouping factor"),
        ("y ~ (1 | g + f)", r"cannot be added: \(g \+ f\). Write a term for each, \(… \| g\) \+ \(… \| f\)"),
        ("y ~ (1 | s) + (1 | s)", "is there twice"),
        ('y ~ relevel(f, ref = "q") + (1 | s)', "must be one of the levels"),
        ("y ~ (0 | s)", "has no columns"),
        ("y | s ~ x", "response"),
        ("y ~ x + (1 | s", "ends too early"),
        ("y ~ x + + (1 | s) )", "Unexpected"),
        ("y ~ x ? z", "Cannot read '\\?'"),
        ("y ~ 2 + (1 | s)", "number 2 has no meaning"),
        ("y ~ 1:x + (1 | s)", "cannot be part of an interaction"),
        ("y ~ x^z + (1 | s)", "positive integer"),
        ("y ~ lgo(x) + (1 | s)", "Unknown function 'lgo'.*did you mean log"),
        ("y ~ poly(x, -1) + (1 | s)", "Cannot compute poly"),
        ("y ~ C(f, wave) + (1 | s)", "Unknown contrasts 'wave'"),
        (5, "must be text"),
    ],
)
def test_formula_errors(data, formula, message):
    with pytest.raises(FormulaError, match=message):
        design_from_formula(formula, data)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ Days + (1 | s)", "no column 'Days'"),
        ("yy ~ x + (1 | s)", "no column 'yy'; did you mean 'y'"),
        ("y ~ x + (1 | ss)", "no column 'ss'; did you mean 's'"),
        ("f ~ x + (1 | s)", "response 'f' is not numeric"),
        ("y ~ log(f) + (1 | s)", "needs numbers but got a factor"),
        ("poly(y, 2) ~ x + (1 | s)", "has 2 columns"),
        ("y ~ only + (1 | s)", "one level only"),
        ("y ~ when + (1 | s)", "has type datetime64"),
        ("y ~ x + (1 | only)", "has one level in the rows used"),
        ("y ~ x + (1 | row)", "24 levels for 24 rows"),
        ("y ~ x + (f + k + x | g:f)", "6 [*] 5 = 30 random effects for 24 rows"),
        ("flat ~ x + (1 | s)", "constant"),
    ],
)
@pytest.mark.filterwarnings("ignore::lme_jax.errors.RankWarning")
def test_data_errors(data, formula, message):
    data = data.assign(only="a", row=np.arange(24), flat=2.0, when=pd.Timestamp("2020-01-01"))
    with pytest.raises(DataError, match=message):
        design_from_formula(formula, data)


def test_other_data_errors(data):
    formula = "y ~ x + (1 | s)"
    with pytest.raises(DataError, match="Weights must be positive; 1 are not"):
        design_from_formula(formula, data, weights=np.r_[0.0, np.ones(23)])
    with pytest.raises(DataError, match=r"weights must hold one number per row: 24 rows, got shape \(3,\)"):
        design_from_formula(formula, data, weights=np.ones(3))
    with pytest.raises(DataError, match="weights \\(column 'f'\\) must be numbers"):
        design_from_formula(formula, data, weights="f")
    with pytest.raises(DataError, match="no rows"):
        design_from_formula(formula, data.iloc[:0])
    with pytest.raises(DataError, match="No row is left"):
        design_from_formula(formula, data.assign(x=np.nan))
    with pytest.raises(DataError, match="must be a DataFrame"):
        design_from_formula(formula, {"y": [1, 2], "x": [1]})
    with pytest.raises(DataError, match="2 columns named 'x'"):
        design_from_formula(formula, pd.concat([data, data[["x"]]], axis=1))
    with pytest.raises(DataError, match="missing='maybe'"):
        design_from_formula(formula, data, missing="maybe")
    with pytest.raises(DataError, match="leave nothing to estimate"):
        design_from_formula("y ~ factor(row) + (1 | s)", data.assign(row=np.arange(24)))
    with pytest.raises(FormulaError, match="`contrasts` names"):
        design_from_formula(formula, data, contrasts={"f": "sum"})
    with pytest.raises(DataError, match="it needs 3 finite rows"):
        design_from_formula("y ~ f + (1|s)", data, contrasts={"f": np.eye(3)})


# --- statsmodels -----------------------------------------------------------------------------------------

# Right-hand side -> column names of patsy 1.0.3, the engine of statsmodels 0.15.
STATSMODELS_NAMES = {
    "x + C(f)": "Intercept C(f)[T.b] C(f)[T.c] x",
    "0 + x + f": "f[a] f[b] f[c] x",
    "f:g": "Intercept g[T.v] f[T.b]:g[u] f[T.c]:g[u] f[T.b]:g[v] f[T.c]:g[v]",
    "b + x": "Intercept b[T.True] x",
    "I(x**2) + z + x:f": "Intercept I(x**2) z x:f[a] x:f[b] x:f[c]",
    "np.log(z) + twice(x)": "Intercept np.log(z) twice(x)",
}


@pytest.mark.parametrize("rhs", STATSMODELS_NAMES)
def test_statsmodels_names(data, rhs):
    design = design_from_statsmodels(f"y ~ {rhs}", data, "s", context={"twice": lambda v: 2 * v})
    assert [n.replace(" ", "") for n in design.exog_names] == STATSMODELS_NAMES[rhs].split(" ")
    np.testing.assert_allclose(design_new_data(design, data.iloc[4:9]).X, design.X[4:9])


def test_statsmodels_random_effects(data):
    (default,) = design_from_statsmodels("y ~ x", data, "s").terms
    assert (default.factor, default.columns) == ("s", ("s",))
    (by_array,) = design_from_statsmodels("y ~ x", data, data.s.to_numpy(), re_formula="~z").terms
    assert by_array.columns == ("Group", "z")
    np.testing.assert_array_equal(by_array.Z, np.column_stack([np.ones(24), data.z]))
    np.testing.assert_array_equal(by_array.levels[by_array.codes], data.s)


def test_variance_components(data):
    vc = {"slope": "0 + x", "cell": "0 + C(f)", "cell_slope": "0 + C(f):z"}
    design = design_from_statsmodels("y ~ x", data, "g", re_formula="1", vc_formula=vc)
    _, cell, cell_slope, slope = design.terms
    assert [t.structure for t in design.terms] == ["unstructured"] + 3 * ["identity"]
    assert (cell.factor, cell.columns) == ("g:cell", ("cell",))
    np.testing.assert_array_equal(cell.levels[cell.codes], data.g + ":" + data.f)
    np.testing.assert_array_equal(cell.Z, np.ones((24, 1)))
    np.testing.assert_array_equal(cell_slope.Z[:, 0], data.z)
    assert (slope.factor, slope.columns, list(slope.levels)) == ("g", ("x",), ["u", "v"])
    rebuilt = design_new_data(design, data.iloc[3:7])
    for (Z, codes), term in zip(rebuilt.terms, design.terms, strict=True):
        np.testing.assert_array_equal(codes, term.codes[3:7])
        np.testing.assert_array_equal(Z, term.Z[3:7])
    assert len(design_from_statsmodels("y ~ x", data, "g", vc_formula={"cell": "0 + f"}).terms) == 1
    with pytest.raises(UnsupportedError, match="Write '0 \\+ C\\(a\\)'"):
        design_from_statsmodels("y ~ x", data, "g", vc_formula={"a": "C(f) + x"})


def test_statsmodels_rows(data):
    data = data.reset_index(drop=True)
    data.loc[2, "x"] = np.nan
    data.loc[4, "f"] = None
    data.loc[6, "z"] = -1
    arguments = ("y ~ x + f + np.log(z)", data, "s")
    with pytest.raises(DataError, match="row numbers from 0: 2, 4, 6"):
        design_from_statsmodels(*arguments)
    with pytest.warns(DroppedRowsWarning, match="Left out 3 of 24"):
        design = design_from_statsmodels(*arguments, missing="drop")
    assert list(design.index) == [i for i in range(24) if i not in (2, 4, 6)]
    new = design_new_data(design, data.iloc[1:5])
    np.testing.assert_array_equal(np.isnan(new.X).any(axis=1), [False, True, False, True])
    with pytest.raises(DataError, match=r"f has the levels \['d'\]"):
        design_new_data(design, data.iloc[:2].assign(f="d"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"formula": "y ~ xx"}, DataError, "no column 'xx'; did you mean 'x'"),
        ({"formula": "y ~ lgo(x)"}, FormulaError, "lgo"),
        ({"formula": "y ~ x + (1 | s)"}, FormulaError, "use an lme4 formula"),
        ({"formula": "~ x"}, FormulaError, "no response"),
        ({"formula": "f ~ x"}, DataError, "one numeric column"),
        ({"groups": "nope"}, DataError, "no column 'nope'"),
        ({"groups": np.arange(3)}, DataError, "24 rows, got 3"),
        ({"re_formula": "y ~ x"}, FormulaError, "must have no response"),
        ({"vc_formula": {}}, FormulaError, "no random effects"),
    ],
)
def test_statsmodels_errors(data, arguments, error, message):
    with pytest.raises(error, match=message):
        design_from_statsmodels(**{"formula": "y ~ x", "data": data, "groups": "s", **arguments})


def test_groups_given_as_an_array_cannot_be_found_in_new_data(data):
    design = design_from_statsmodels("y ~ x", data, data.s.to_numpy())
    assert design_new_data(design, data, random=False).X.shape == (24, 2)
    with pytest.raises(DataError, match="`groups` was an array"):
        design_new_data(design, data)
