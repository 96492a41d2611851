"""The Python engines behind one face: fit, refit, relative covariances, the criterion as the engine reports it."""

import importlib
import itertools
import os
import warnings
from typing import Any

import numpy as np

from .problem import Problem, arrays


class Adapter:
    """One engine on one problem; what the constructor does, the import too, is not timed.

    ``packages`` are imported, ``parts`` are not; the versions of both matter.
    """

    packages: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def __init__(self, problem: Problem) -> None:
        for package in self.packages:
            importlib.import_module(package)
        self.problem = problem
        self.frame = problem.frame()

    def fit(self) -> Any:
        raise NotImplementedError

    def refit(self, y: np.ndarray) -> Any:
        """A fit of another response, as quickly as the engine's interface allows."""
        self.frame["y"] = y
        return self.fit()

    def relative(self, fitted: Any) -> list[np.ndarray]:
        """Ψ/σ² of each random term."""
        raise NotImplementedError

    def deviance(self, fitted: Any) -> float:
        raise NotImplementedError

    def summary(self, fitted: Any) -> Any:
        """What a person prints."""
        return fitted.summary()


# ---------------------------------------------------------------- lme_jax


def term_blocks(problem: Problem, relative_factor: Any) -> list[np.ndarray]:
    """Ψ/σ² of each term from the factor L of all the effects."""
    L = np.asarray(relative_factor)
    ends = np.cumsum([0, *(len(columns) for columns, _ in problem.random)])
    return [(L @ L.T)[lo:hi, lo:hi] for lo, hi in itertools.pairwise(ends)]


class LmeJaxCore(Adapter):
    packages, parts = ("lme_jax",), ("jax", "numpy", "scipy")

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.arrays = arrays(problem)

    def fit(self) -> Any:
        import lme_jax

        return lme_jax.fit(self.arrays.compress(), reml=self.problem.reml)

    def relative(self, fitted: Any) -> list[np.ndarray]:
        return term_blocks(self.problem, fitted.relative_factor)

    def deviance(self, fitted: Any) -> float:
        return float(fitted.deviance)


class LmeJaxCompress(LmeJaxCore):
    """The fit for the referee is not timed."""

    def fit(self) -> Any:
        return self.arrays.compress()

    def relative(self, fitted: Any) -> list[np.ndarray]:
        import lme_jax

        return super().relative(lme_jax.fit(fitted, reml=self.problem.reml))


class LmeJaxFit(LmeJaxCore):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.data = self.arrays.compress()

    def fit(self) -> Any:
        import lme_jax

        return lme_jax.fit(self.data, reml=self.problem.reml)


class LmeJaxFormula(Adapter):
    packages, parts = LmeJaxCore.packages, LmeJaxCore.parts

    def fit(self) -> Any:
        import lme_jax

        return lme_jax.lmer(self.problem.formula, self.frame, reml=self.problem.reml)

    def relative(self, fitted: Any) -> list[np.ndarray]:
        return term_blocks(self.problem, fitted.fit.relative_factor)

    def deviance(self, fitted: Any) -> float:
        return fitted.deviance


class _Batches:
    """Batches run in NumPy until compiling would have paid."""

    @property
    def _programs(self) -> Any:
        try:
            return importlib.import_module("lme_jax.core.programs")
        except ImportError:  # an older checkout, which compiles always
            return None

    def is_compiled(self) -> bool:
        return self._programs is None or self._programs.n_programs() > 0

    def compile_from_now_on(self) -> None:
        """As after many calls."""
        self._programs.COMPILE_SECONDS = 0.0


class LmeJaxMany(_Batches, LmeJaxCore):
    """All responses in one call."""

    def fit_all(self, Y: np.ndarray) -> Any:
        import lme_jax

        a = self.arrays
        return lme_jax.fit_many(Y.T, a.X, a.Z[0], a.codes[0], reml=self.problem.reml, progress=False)

    def relative_of(self, fits: Any, number: int) -> list[np.ndarray]:
        return term_blocks(self.problem, fits.fit.relative_factor[number])


class LmeJaxBootstrap(_Batches, LmeJaxFormula):
    """Samples of its own, as many as the problem has responses."""

    def fit_all(self, Y: np.ndarray) -> Any:
        return self.fit().bootstrap(len(Y), seed=1, progress=False)


class LmeJaxBootstrapCached(LmeJaxBootstrap):
    def __init__(self, problem: Problem) -> None:
        import lme_jax

        super().__init__(problem)
        lme_jax.enable_compilation_cache(os.environ["BENCHMARK_CACHE"])


# ---------------------------------------------------------------- the others


class Glmm(Adapter):
    packages = ("glmm",)

    def fit(self) -> Any:
        import glmm

        return glmm.fit(self.frame, self.problem.formula, reml=self.problem.reml, satterthwaite=False)

    def relative(self, fitted: Any) -> list[np.ndarray]:
        groups = [(name, terms) for name, terms in fitted.re_groups]
        out = []
        for columns, factor in self.problem.random:
            packed = fitted.varcorr[groups.index((factor, _intercept_first(columns)))]
            lower = np.zeros((len(columns),) * 2)
            lower.T[np.triu_indices(len(columns))] = packed
            out.append((lower + np.tril(lower, -1).T) / fitted.dispersion)
        return out

    def deviance(self, fitted: Any) -> float:
        return -2.0 * fitted.loglik


class Mixedlm(Adapter):
    packages = ("mixedlm",)

    def fit(self) -> Any:
        import mixedlm

        return mixedlm.lmer(self.problem.formula, self.frame, REML=self.problem.reml)

    def refit(self, y: np.ndarray) -> Any:
        if not hasattr(self, "first"):
            self.first = self.fit()
        return self.first.refit(y)

    def relative(self, fitted: Any) -> list[np.ndarray]:
        groups = list(fitted.VarCorr().groups.values())
        return [self._block(groups, _intercept_first(c), factor) / fitted.sigma**2 for c, factor in self.problem.random]

    @staticmethod
    def _block(groups: list[Any], effects: list[str], factor: str) -> np.ndarray:
        """It prints a factor's uncorrelated terms as one."""
        own = next(g for g in groups if g.grouping_factor == factor and set(effects) <= set(g.term_names))
        places = [own.term_names.index(effect) for effect in effects]
        return np.asarray(own.cov)[np.ix_(places, places)]

    def deviance(self, fitted: Any) -> float:
        return fitted.deviance


class Statsmodels(Adapter):
    """``smf.mixedlm``: the outermost factor as groups, with its first term by ``re_formula``, or one group of all rows
    where factors cross; other terms by ``vc_formula``."""

    packages = ("statsmodels",)

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.whole = len(problem.factors) == 1 or problem.nested
        self.groups = problem.factors[-1] if self.whole else np.zeros(len(problem.y), int)
        self.own = next(term for term in problem.random if term[1] == problem.factors[-1]) if self.whole else None
        self.components: dict[str, str] = {}
        for columns, factor in problem.random:
            if (columns, factor) != self.own:
                within = f"0 + C({factor})" if columns == ("1",) else f"0 + {columns[0]}"
                self.components[self._name(columns, factor)] = within

    @staticmethod
    def _name(columns: tuple[str, ...], factor: str) -> str:
        return factor if columns == ("1",) else f"{factor}_{columns[0]}"

    @staticmethod
    def _patsy(term: str) -> str:
        return term.replace("^", "**").replace("log(", "np.log(")

    def fit(self) -> Any:
        import statsmodels.formula.api as smf

        fixed = f"{self.problem.response} ~ {' + '.join(('1', *map(self._patsy, self.problem.fixed)))}"
        arguments: dict[str, Any] = {"groups": self.groups}
        if self.components:
            arguments["vc_formula"] = self.components
        if self.own:
            arguments["re_formula"] = "~" + "+".join(self.own[0])
        return smf.mixedlm(fixed, self.frame, **arguments).fit(reml=self.problem.reml)

    def relative(self, fitted: Any) -> list[np.ndarray]:
        names = fitted.model.exog_vc.names
        parts = dict(zip(names, np.atleast_1d(fitted.vcomp) / fitted.scale, strict=True)) if self.components else {}
        own = np.asarray(fitted.cov_re_unscaled)
        terms = ((self._name(*term), term) for term in self.problem.random)
        return [own if term == self.own else np.atleast_2d(parts[name]) for name, term in terms]

    def deviance(self, fitted: Any) -> float:
        return -2.0 * fitted.llf


class GPBoost(Adapter):
    """Grouped random effects; the default method is iterative where factors cross."""

    packages = ("gpboost",)
    method = "default"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.arrays = arrays(problem)
        c = problem.columns
        slopes = [(name, problem.factors.index(f) + 1) for names, f in problem.random for name in names if name != "1"]
        self.model = {
            "group_data": np.column_stack([c[f] for f in problem.factors]).astype(int),
            "group_rand_coef_data": np.column_stack([c[name] for name, _ in slopes]) if slopes else None,
            "ind_effect_group_rand_coef": [number for _, number in slopes] or None,
            "likelihood": "gaussian",
            "matrix_inversion_method": self.method,
        }

    def fit(self) -> Any:
        import gpboost

        model = gpboost.GPModel(**self.model)
        model.fit(y=self.arrays.y, X=self.arrays.X)
        return model

    def relative(self, fitted: Any) -> list[np.ndarray]:
        variances = np.asarray(fitted.get_cov_pars(), float).ravel()
        intercepts = [t for t in self.problem.random if t[0] == ("1",)]
        order = intercepts + [t for t in self.problem.random if t[0] != ("1",)]
        return [np.atleast_2d(variances[1 + order.index(t)] / variances[0]) for t in self.problem.random]

    def deviance(self, fitted: Any) -> float:
        return 2.0 * fitted.get_current_neg_log_likelihood()


class GPBoostCholesky(GPBoost):
    method = "cholesky"


def _intercept_first(columns: tuple[str, ...]) -> list[str]:
    return ["(Intercept)" if c == "1" else c for c in columns]


ADAPTERS: dict[str, type[Adapter]] = {
    "lme_jax_core": LmeJaxCore,
    "lme_jax_compress": LmeJaxCompress,
    "lme_jax_fit": LmeJaxFit,
    "lme_jax_formula": LmeJaxFormula,
    "lme_jax_many": LmeJaxMany,
    "lme_jax_bootstrap": LmeJaxBootstrap,
    "lme_jax_bootstrap_cached": LmeJaxBootstrapCached,
    "glmm": Glmm,
    "mixedlm": Mixedlm,
    "statsmodels": Statsmodels,
    "gpboost": GPBoost,
    "gpboost_cholesky": GPBoostCholesky,
}


def adapter(engine: str, problem: Problem) -> Adapter:
    warnings.simplefilter("ignore")
    return ADAPTERS[engine](problem)
