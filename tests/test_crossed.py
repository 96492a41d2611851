"""Several grouping factors against dense algebra on V, on random small designs of many shapes."""

import dataclasses
import itertools
import pathlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

from lme_jax.core import covariance, criterion, crossed, crossed_start, programs
from lme_jax.core.dense import Dense
from lme_jax.core.effects import random_effects
from lme_jax.core.nested import Nested
from lme_jax.core.pytrees import leaves
from lme_jax.core.small import Small
from lme_jax.core.types import Status
from lme_jax.errors import DataError


class Case:
    """A random design; codes per factor, Z per factor, and the dense matrices they stand for."""

    def __init__(self, codes, levels, sizes, *, p=2, weighted=False, structures=None, seed=0, spread=0.7):
        rng = np.random.default_rng(seed)
        n = len(codes[0])
        self.n, self.levels, self.sizes, self.codes = n, levels, sizes, codes
        self.X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1)) * 3 + 1]) if p else np.zeros((n, 0))
        self.Zs = [np.column_stack([np.ones(n), rng.normal(size=(n, q - 1)) * 2])[:, :q] for q in sizes]
        self.templates = tuple(
            covariance.make_template(s, q)
            for s, q in zip(structures or ["unstructured"] * len(sizes), sizes, strict=True)
        )
        self.weights = rng.uniform(0.5, 2.0, n) if weighted else None
        self.offset = rng.normal(size=n) if weighted else None
        self.theta = rng.normal(size=sum(map(covariance.n_theta, self.templates))) * spread
        y = self.X.sum(1) + rng.normal(size=n)
        for code, Z, m in zip(codes, self.Zs, levels, strict=True):
            y = y + (Z * rng.normal(size=(m, Z.shape[1]))[code]).sum(1) * spread
        self.y = y

    def data(self, **kwargs):
        return crossed.compress_crossed(
            self.y,
            self.X,
            self.Zs,
            self.codes,
            self.levels,
            self.templates,
            weights=self.weights,
            offset=self.offset,
            **kwargs,
        )

    def dense_z(self, j):
        out = np.zeros((self.n, self.levels[j] * self.sizes[j]))
        for r in range(self.sizes[j]):
            out[np.arange(self.n), self.codes[j] * self.sizes[j] + r] = self.Zs[j][:, r]
        return out

    def roots(self, theta):
        at, out = 0, []
        for t in self.templates:
            k = covariance.n_theta(t)
            out.append(covariance.factor(theta[at : at + k], t))
            at += k
        return out

    def dense_v(self, theta):
        """V/σ² (n, n), Z (n, K) and ∂V/∂θ of every parameter."""
        w = np.ones(self.n) if self.weights is None else self.weights
        Z = np.concatenate([self.dense_z(j) for j in range(len(self.sizes))], axis=1)

        def prior(t):
            return scipy.linalg.block_diag(
                *[np.kron(np.eye(m), L @ L.T) for L, m in zip(self.roots(t), self.levels, strict=True)]
            )

        # Ψ is quadratic in θ: differences are exact.
        moves = [Z @ (prior(theta + e) - prior(theta - e)) @ Z.T / 2 for e in np.eye(len(theta))]
        return np.diag(1.0 / w) + Z @ prior(theta) @ Z.T, Z, moves

    def oracle(self, theta, reml):
        w = np.ones(self.n) if self.weights is None else self.weights
        y = self.y if self.offset is None else self.y - self.offset
        n, p = self.X.shape
        Z = np.concatenate([self.dense_z(j) for j in range(len(self.sizes))], axis=1)
        Psi = scipy.sparse.block_diag(
            [np.kron(np.eye(m), L @ L.T) for L, m in zip(self.roots(theta), self.levels, strict=True)]
        ).toarray()
        V = np.diag(1.0 / w) + Z @ Psi @ Z.T
        Vi = np.linalg.inv(V)
        M = self.X.T @ Vi @ self.X
        beta = np.linalg.solve(M, self.X.T @ Vi @ y) if p else np.zeros(0)
        r = y - self.X @ beta
        dof = n - p if reml else n
        rss = r @ Vi @ r
        value = np.linalg.slogdet(V)[1] + dof * (1 + np.log(2 * np.pi * rss / dof))
        value += np.linalg.slogdet(M)[1] if reml and p else 0.0
        sigma2 = rss / dof
        b = Psi @ Z.T @ Vi @ r
        conditional = sigma2 * (Psi - Psi @ Z.T @ Vi @ Z @ Psi)
        reach = Psi @ Z.T @ Vi @ self.X
        prediction = conditional + sigma2 * reach @ np.linalg.solve(M, reach.T) if p else conditional
        return dict(value=value, beta=beta, sigma=np.sqrt(sigma2), b=b, cond=conditional, pred=prediction)


def crossed_codes(n, levels, seed=1):
    rng = np.random.default_rng(seed)
    return [np.concatenate([np.arange(m), rng.integers(0, m, n - m)]).astype(np.int32) for m in levels]


def nested_codes(levels, repeats, seed=2):
    """levels given innermost first; every inner level is put in a random outer one."""
    rng = np.random.default_rng(seed)
    codes = [np.repeat(np.arange(levels[0]), repeats)]
    for inner, outer in itertools.pairwise(levels):
        parent = np.concatenate([np.arange(outer), rng.integers(0, outer, inner - outer)])
        codes.append(rng.permutation(parent)[codes[-1]])
    shuffle = rng.permutation(len(codes[0]))
    return [c[shuffle].astype(np.int32) for c in codes]


def balanced():
    a, b = np.divmod(np.arange(12 * 5 * 2), 10)
    return [a.astype(np.int32), (b // 2).astype(np.int32)]


CASES = {
    "crossed": lambda: Case(crossed_codes(60, [9, 5]), [9, 5], [1, 1]),
    "crossed_small_first": lambda: Case(crossed_codes(60, [4, 11]), [4, 11], [1, 1], p=3),
    "balanced": lambda: Case(balanced(), [12, 5], [1, 1]),
    "balanced_slopes": lambda: Case(balanced(), [12, 5], [2, 2], weighted=True),
    "three": lambda: Case(crossed_codes(80, [12, 6, 4]), [12, 6, 4], [1, 1, 1], weighted=True),
    "slope_first": lambda: Case(crossed_codes(70, [9, 5]), [9, 5], [2, 1]),
    "slope_second": lambda: Case(crossed_codes(70, [15, 5]), [15, 5], [1, 2], weighted=True),
    "slopes_both": lambda: Case(crossed_codes(90, [9, 5, 3]), [9, 5, 3], [2, 2, 1], p=1),
    "structures": lambda: Case(crossed_codes(90, [8, 5]), [8, 5], [3, 3], structures=["compound_symmetry", "ar1"]),
    "diagonal": lambda: Case(crossed_codes(60, [9, 5]), [9, 5], [2, 2], structures=["diagonal", "identity"]),
    "no_fixed": lambda: Case(crossed_codes(60, [9, 5]), [9, 5], [1, 2], p=0),
    "one_slope_only": lambda: Case(crossed_codes(60, [30, 5]), [31, 5], [1, 1], seed=4),
    "nested_and_crossed": lambda: Case([*nested_codes([12, 4], 5), crossed_codes(60, [5])[0]], [12, 4, 5], [1, 1, 1]),
    "nested": lambda: Case(nested_codes([12, 4], 5), [12, 4], [1, 1]),
    "nested_outer_first": lambda: Case(nested_codes([12, 4], 5)[::-1], [4, 12], [1, 1], weighted=True),
    "nested_three": lambda: Case(nested_codes([20, 8, 3], 4), [20, 8, 3], [1, 2, 1], weighted=True),
    "nested_slopes": lambda: Case(nested_codes([15, 5], 6), [15, 5], [2, 2], p=3),
    "nested_no_fixed": lambda: Case(nested_codes([15, 5], 4), [16, 5], [1, 1], p=0),
}


# The compiled program is checked on one design of every kind; compiling it is what takes time.
COMPILED = ("balanced", "three", "slopes_both", "structures", "nested_outer_first", "nested_three", "nested_slopes")


def close(a, b, tol):
    scale = max(1.0, float(np.abs(b).max(initial=0.0)))
    np.testing.assert_allclose(a, b, atol=tol * scale, rtol=tol)


def differences(f, x, h=1e-5):
    return np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))])


def engines(data):
    """The general engine of these data, and the one for small designs."""
    return [(Nested if isinstance(data, crossed.NestedData) else Dense)(data), Small(data)]


def theta_scale(data):
    return covariance.theta_scale(data.template, data.basis.z_scale)


def expand(engine, theta, data, reml, exact=True):
    """Deviance, gradient, Hessian or average information, and what is kept, at scaled θ."""
    return criterion.objective(engine, data, reml, exact)(theta)


def compiled_derivatives(theta, data, reml):
    return programs.run(crossed.derivatives, theta, data, reml=reml, backend="jax")[:3]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name, reml):
    case = CASES[name]()
    data = case.data()
    assert isinstance(data, crossed.NestedData) == (name.startswith("nested") and name != "nested_and_crossed")
    scale = theta_scale(data)
    x = case.theta * scale
    slope = differences(lambda t: case.oracle(t, reml)["value"], case.theta)
    general, small = engines(data)
    for engine in (general, small):
        value, gradient, hessian, _ = expand(engine, x, data, reml)
        assert value == pytest.approx(case.oracle(case.theta, reml)["value"], rel=1e-11, abs=1e-9)
        close(gradient * scale, slope, 1e-6)
        close(hessian, differences(lambda t, e=engine: expand(e, t, data, reml)[1], x), 1e-6)
    for ours, theirs in zip(expand(general, x, data, reml, False), expand(small, x, data, reml, False), strict=True):
        for a, b in zip(leaves(ours), leaves(theirs), strict=True):
            close(a, b, 1e-11)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", ["balanced_slopes", "three", "nested_three", "nested_slopes"])
def test_average_information_and_verbs(name, reml):
    """The verbs against U = ZᵀV⁻¹Z itself; the average information as Gilmour et al. write it."""
    case = CASES[name]()
    data = case.data()
    theta, dof = case.theta, case.n - (case.X.shape[1] if reml else 0)
    V, Z, moves = case.dense_v(theta)
    Vi = np.linalg.inv(V)
    y = case.y if case.offset is None else case.y - case.offset
    P = Vi - Vi @ case.X @ np.linalg.solve(case.X.T @ Vi @ case.X, case.X.T @ Vi)
    Q, Py = y @ P @ y, P @ y
    q = np.array([[Py @ a @ P @ b @ Py for b in moves] for a in moves])
    slopes = np.array([Py @ a @ Py for a in moves])
    exact = np.array([[np.trace(Vi @ a @ Vi @ b) for b in moves] for a in moves])
    U = Z.T @ Vi @ Z
    scale = theta_scale(data)
    for engine in engines(data):
        point = criterion.evaluate(engine, theta * scale, data, reml)
        unit = point.Q / Q
        close(point.q * np.outer(scale, scale) / unit, q, 1e-9)
        close(point.slopes * scale / unit, slopes, 1e-9)
        found = criterion.average_information(point) - point.bend
        close(found * np.outer(scale, scale), dof / Q * (q - np.outer(slopes, slopes) / Q), 1e-9)
        products = engine.trace_products(point.solved, point.owner, point.moves)
        close(products * np.outer(scale, scale), exact, 1e-9)
        at = 0
        for j, (trace, m, q_j) in enumerate(zip(engine.traces(point.solved), case.levels, case.sizes, strict=True)):
            blocks = U[at : at + m * q_j, at : at + m * q_j].reshape(m, q_j, m, q_j)
            z = data.basis.z_scale[data.layout.columns(j)]
            close(trace * np.outer(z, z), np.einsum("minj,mn->ij", blocks, np.eye(m)), 1e-9)
            at += m * q_j


@pytest.mark.parametrize(("name", "reml"), [(n, i % 2 == 0) for i, n in enumerate(COMPILED)])
def test_compiled_program_agrees(name, reml):
    case = CASES[name]()
    data = case.data()
    theta = case.theta * theta_scale(data)
    value, gradient, hessian = compiled_derivatives(theta, data, reml)
    for engine in engines(data):
        ours = expand(engine, theta, data, reml)
        assert ours[0] == pytest.approx(float(value), rel=1e-11, abs=1e-9)
        close(ours[1], gradient, 1e-8)
        close(ours[2], hessian, 1e-7)
    # A zero column: the gradient is zero there, and both curvatures are exact.
    theta[covariance.n_theta(case.templates[0]) :] = 0.0
    value, gradient, hessian = compiled_derivatives(theta, data, reml)
    for engine in engines(data):
        ours = expand(engine, theta, data, reml, exact=isinstance(engine, Small))
        assert ours[0] == pytest.approx(float(value), rel=1e-11, abs=1e-9)
        close(ours[1], gradient, 1e-8)
        zero = theta == 0.0
        close(ours[2][zero], hessian[zero], 1e-7)


@pytest.mark.parametrize(
    "name",
    ["crossed", "three", "slopes_both", "no_fixed", "nested", "nested_three", "nested_slopes", "nested_no_fixed"],
)
def test_start_from_moments(name):
    """The moment equations solved from dense columns, a kind of column per effect."""
    case = CASES[name]()
    root = np.sqrt(np.ones(case.n) if case.weights is None else case.weights)
    X = case.X * root[:, None]
    M = np.eye(case.n) - X @ np.linalg.pinv(X)
    r = M @ ((case.y if case.offset is None else case.y - case.offset) * root)
    kinds = [case.dense_z(j)[:, a::q] * root[:, None] for j, q in enumerate(case.sizes) for a in range(q)]
    kinds.append(np.eye(case.n))
    A = np.array([[np.sum((left.T @ M @ right) ** 2) for right in kinds] for left in kinds])
    b = np.array([np.sum((left.T @ r) ** 2) for left in kinds])
    unit = np.sqrt(np.diag(A))
    # The ridge is on the scaled equations, so that the units of Z do not matter.
    found = np.linalg.solve(A / np.outer(unit, unit) + crossed_start.RIDGE * np.eye(len(b)), b / unit) / unit
    share = np.array([np.sum(Z**2) for Z in kinds[:-1]]) / case.n
    ratio = found[:-1] / max(found[-1], crossed_start.NOISE * b[-1] / (case.n - X.shape[1])) * share
    expected = np.sqrt(np.clip(ratio, crossed_start.SMALLEST, crossed_start.LARGEST) / share)
    data = case.data()
    diagonal = np.concatenate([np.diag(L) for L in case.roots(crossed_start.moment_start(data))])
    close(diagonal, expected, 1e-8)
    with jax.enable_x64(True):
        traced = jax.jit(crossed_start.moment_start)(jax.tree.map(jax.numpy.asarray, data))
        np.testing.assert_allclose(traced, crossed_start.moment_start(data), rtol=1e-10)


def check_fit(case, data, fit, reml):
    """Deviance, β, σ, BLUPs and their covariances against dense algebra at the fit's own θ."""
    assert Status(int(fit.status)).is_optimum
    assert float(fit.decrease) < 1e-8
    want = case.oracle(fit.theta, reml)
    assert float(fit.deviance) == pytest.approx(want["value"], abs=1e-8)
    close(fit.beta, want["beta"], 1e-8)
    assert float(fit.sigma) == pytest.approx(want["sigma"], rel=1e-8)
    at = 0
    for j, effects in enumerate(random_effects(fit, data)):
        m, q = case.levels[j], case.sizes[j]
        rows = slice(at, at + m * q)
        at += m * q
        close(effects.b, want["b"][rows].reshape(m, q), 1e-7)
        levels = np.arange(m)
        for mine, theirs in ((effects.conditional_cov, want["cond"]), (effects.prediction_cov, want["pred"])):
            close(mine, theirs[rows, rows].reshape(m, q, m, q)[levels, :, levels, :], 1e-7)


@pytest.mark.parametrize(("name", "reml"), [(n, i % 2 == 0) for i, n in enumerate(CASES)])
@pytest.mark.parametrize("small", [0, 64])
def test_fit_and_random_effects(name, reml, small, monkeypatch):
    monkeypatch.setattr(crossed, "SMALL", small)
    case = CASES[name]()
    data = case.data()
    fit = crossed.fit_crossed(data, reml=reml)
    check_fit(case, data, fit, reml)
    close(fit.hessian, crossed.hessian(fit.theta, data, reml=reml), 1e-5)


@pytest.mark.parametrize(("name", "reml"), [("balanced", False), ("nested_three", True)])
def test_compiled_fit_and_random_effects(name, reml):
    case = CASES[name]()
    data = case.data()
    fit = crossed.fit_crossed(data, reml=reml, backend="jax")
    check_fit(case, data, fit, reml)
    found = crossed.fit_crossed(data, reml=reml)
    for field in ("theta", "beta", "sigma", "deviance", "hessian", "unscaled_cov", "log_scale_slope"):
        close(getattr(found, field), getattr(fit, field), 1e-6)


@pytest.mark.parametrize(("small", "backend"), [(0, None), (64, None), (0, "jax")])
def test_singular_factor(small, backend, monkeypatch):
    monkeypatch.setattr(crossed, "SMALL", small)
    codes = crossed_codes(80, [10, 6], seed=7)
    case = Case(codes, [10, 6], [1, 1], seed=8)
    rng = np.random.default_rng(3)
    # Residuals whose means over the second factor vary less than chance.
    noise = rng.normal(size=80)
    noise -= (np.bincount(codes[1], noise) / np.bincount(codes[1]))[codes[1]]
    case.y = case.X.sum(1) + noise + rng.normal(size=10)[codes[0]]
    fit = crossed.fit_crossed(case.data(), backend=backend)
    assert int(fit.status) == Status.SINGULAR
    assert abs(float(fit.theta[1])) < 1e-4
    at = np.array([float(fit.theta[0]), 0.0])
    h = np.asarray(crossed.hessian(at, case.data()))
    close(h, differences(lambda t: differences(lambda u: case.oracle(u, True)["value"], t, 1e-4), at, 1e-4), 1e-3)


@pytest.mark.parametrize("name", ["slopes_both", "nested_three", "structures"])
@pytest.mark.parametrize("small", [0, 64])
def test_a_start_at_zero_is_left(name, small, monkeypatch):
    """θ = 0 is a stationary point of every model; its curvature is exact also in the average information."""
    monkeypatch.setattr(crossed, "SMALL", small)
    data = CASES[name]().data()
    expected = crossed.fit_crossed(data)
    fit = crossed.fit_crossed(data, start=np.zeros(covariance.n_theta(data.template)))
    assert Status(int(fit.status)).is_optimum
    assert float(fit.deviance) == pytest.approx(float(expected.deviance), abs=1e-7)


def test_sparse_design_of_a_factor():
    case = CASES["crossed"]()
    given = case.data()
    sparse = crossed.compress_crossed(
        case.y,
        case.X,
        [case.Zs[0], scipy.sparse.csr_matrix(case.dense_z(1))],
        [case.codes[0], None],
        case.levels,
        case.templates,
    )
    assert float(crossed.deviance(case.theta, sparse)) == pytest.approx(
        float(crossed.deviance(case.theta, given)), abs=1e-9
    )
    # Multi-membership: every row belongs half to two levels.
    rng = np.random.default_rng(0)
    members = case.dense_z(1)
    members = 0.5 * (members + members[rng.permutation(case.n)])
    data = crossed.compress_crossed(
        case.y,
        case.X,
        [case.Zs[0], scipy.sparse.csr_matrix(members)],
        [case.codes[0], None],
        case.levels,
        case.templates,
    )
    case.dense_z = lambda j, f=case.dense_z: members if j == 1 else f(j)
    assert float(crossed.deviance(case.theta, data)) == pytest.approx(case.oracle(case.theta, True)["value"], abs=1e-9)


NO_JAX = """
import sys
import numpy as np
import lme_jax as lme
from lme_jax.core import crossed, fit, henderson
from lme_jax.core.effects import random_effects
rng = np.random.default_rng(0)
n = 900
inner = rng.integers(0, 90, n)
for codes, levels in (([inner, inner // 9], [90, 10]), ([inner, rng.integers(0, 8, n)], [90, 8]),
                      ([inner // 9, rng.integers(0, 8, n)], [10, 8])):
    y = sum(rng.normal(size=m)[c] for c, m in zip(codes, levels)) + rng.normal(size=n)
    one = np.ones((n, 1))
    data = crossed.compress_crossed(y, one, [one, one], codes, levels, ("unstructured", "unstructured"))
    found = fit.fit(data)
    assert int(found.status) == 0, found
    assert np.isfinite(found.hessian).all()
    random_effects(found, data)
    fit.deviance(found.theta, data)
    fit.fit_at(found.theta, data)
formulas = {"Penicillin": "diameter ~ 1 + (1 | plate) + (1 | sample)", "Pastes": "strength ~ 1 + (1 | batch/cask)"}
for name, formula in formulas.items():
    result = lme.lmer(formula, lme.datasets.load(name))
    str(result.summary()), result.ranef, result.bse_re
assert "jax" not in sys.modules
"""


def test_numpy_data_import_no_jax():
    home = pathlib.Path(crossed.__file__).parents[2]
    subprocess.run([sys.executable, "-c", NO_JAX], check=True, timeout=120, cwd=home)


def test_the_hessian_is_computed_when_read(monkeypatch):
    monkeypatch.setattr(crossed, "SMALL", 0)
    data = CASES["three"]().data()
    calls = []
    monkeypatch.setattr(Dense, "trace_products", lambda *args: calls.append(args) or np.zeros((3, 3)))
    fit = crossed.fit_crossed(data)
    random_effects(fit, data)
    assert not calls
    again = pickle.loads(pickle.dumps(fit))
    assert len(calls) == 1
    np.testing.assert_array_equal(again.hessian, fit.hessian)
    moved = dataclasses.replace(fit, hessian=np.eye(3))
    np.testing.assert_array_equal(moved.hessian, np.eye(3))
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["slope_first", "nested_slopes"])
def test_traced(name):
    """jit, vmap and grad of the deviance, vmap of a fit."""
    data = CASES[name]().data()
    with jax.enable_x64(True):
        traced = jax.tree.map(jax.numpy.asarray, data)
        thetas = np.random.default_rng(0).normal(size=(3, covariance.n_theta(data.template)))
        found = jax.jit(jax.vmap(lambda t: crossed.deviance(t, traced)))(jax.numpy.asarray(thetas))
        close(np.asarray(found), np.array([crossed.deviance(t, data) for t in thetas]), 1e-11)
        slopes = jax.vmap(jax.grad(lambda t: crossed.deviance(t, traced)))(jax.numpy.asarray(thetas))
        scale = theta_scale(data)
        ours = [expand(crossed.engine_of(data), t * scale, data, True)[1] * scale for t in thetas]
        close(np.asarray(slopes), np.array(ours), 1e-8)
        fit = crossed.fit_crossed(data)
        effects = random_effects(jax.tree.map(jax.numpy.asarray, fit), traced)
        for a, b in zip(leaves(effects), leaves(random_effects(fit, data)), strict=True):
            close(np.asarray(a), b, 1e-9)


def test_offsets_lose_no_digits():
    case = CASES["three"]()
    fit = crossed.fit_crossed(case.data())
    case.y = case.y + 1e7
    moved = crossed.fit_crossed(case.data())
    np.testing.assert_allclose(moved.theta, fit.theta, rtol=1e-5)


def test_messages():
    case = CASES["crossed"]()
    with pytest.raises(DataError, match="GiB"):
        case.data(memory_limit=100)
    case.codes[1] = case.codes[1] + 5
    with pytest.raises(DataError, match="codes"):
        case.data()
