"""``MixedLM`` and ``mixedlm``: statsmodels' names and habits."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from ..core.components import root_map
from ..core.fit import fit as core_fit
from ..core.optimize import NewtonOptions
from ..core.records import Fit
from ..core.types import Status
from ..data import ModelData
from ..errors import DataError, UnsupportedError
from ..fitting import read_options, read_reml, read_start, report
from ..formula import Design, RandomTerm, design_from_arrays, design_from_statsmodels
from ..formula.values import as_frame, column, factorize
from ..model import callers_names
from .design import (
    design_with_components,
    group_codes_of,
    group_matrix,
    is_plain,
    own_array,
    with_component_names,
    with_diagonal,
    with_statsmodels_names,
    without_columns,
)
from .inherited import without_rows
from .layout import Layout
from .optimisers import (
    ascent_start,
    checked_methods,
    checked_options,
    default_start,
    em_start,
    fit_at,
    lasso,
    newton_held,
    penalised,
    search,
)
from .params import MixedLMParams, VCSpec
from .results import StatsmodelsFit

_ADVICE = "Try method='newton', another start, or a larger maxiter."


class MixedLM:
    """Linear mixed model: a drop-in for statsmodels' ``MixedLM``.

    Parameters
    ----------
    endog : (n,) response.
    exog : (n, p) fixed-effects design.
    groups : (n,) labels of the groups.
    exog_re : (n, q), optional
        Random-effects design; a random intercept if None and there is no ``exog_vc``.
    exog_vc : VCSpec or mapping, optional
        Independent variance components within groups, as matrices.
    use_sqrt : bool
        Whether packed covariance parameters of ``loglike``, ``score`` and start values are roots (L, √v)
        rather than (co)variances; all are relative to σ².
    missing : {"none", "drop", "raise"}
        "none" and "raise" refuse missing values, "drop" leaves their rows out.
    weights : (n,), optional
        Prior weights w > 0: Var(ε_i) = σ²/w_i.

    Attributes
    ----------
    reml : criterion of the latest fit (True before); ``loglike``, ``score`` and ``hessian`` use it. Results
        keep their own.
    """

    def __init__(
        self,
        endog: Any,
        exog: Any,
        groups: Any,
        exog_re: Any = None,
        exog_vc: VCSpec | Mapping[str, Any] | None = None,
        use_sqrt: bool = True,
        missing: str = "none",
        *,
        weights: Any = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise DataError(f"MixedLM has no argument {', '.join(map(repr, kwargs))}")
        for name, given in (("endog", endog), ("exog", exog), ("exog_re", exog_re), ("weights", weights)):
            if np.iscomplexobj(given):
                raise DataError(f"{name} is complex: give real numbers")
        endog, exog, exog_re, weights = (own_array(a) for a in (endog, exog, exog_re, weights))
        if exog_vc is None:
            design = design_from_arrays(endog, exog, groups, exog_re, weights=weights, missing=missing)
            design = with_statsmodels_names(design, exog_re)
            labels = factorize(groups, "groups")
            codes = group_codes_of(design, labels.codes, len(labels.codes))
            self._set_up(design, labels.levels, codes, "Group", [None], use_sqrt, from_arrays=is_plain(endog, exog))
            return
        design, levels, codes, names = design_with_components(endog, exog, groups, exog_re, exog_vc, weights, missing)
        self._set_up(design, levels, codes, "Group", names, use_sqrt, from_arrays=is_plain(endog, exog))

    def _set_up(
        self,
        design: Design,
        levels: np.ndarray,
        codes: np.ndarray,
        group_factor: str,
        components: Sequence[str | None],
        use_sqrt: bool,
        *,
        from_arrays: bool,
    ) -> None:
        used, self._group_codes = np.unique(codes, return_inverse=True)
        self.group_labels = list(np.asarray(levels)[used])
        self._group_factor, self._components, self._from_arrays = group_factor, tuple(components), from_arrays
        self.use_sqrt, self.reml = use_sqrt, True
        self.fe_pen: Any = None
        self.cov_pen: Any = None
        data = ModelData.from_design(design, factor_in_names=False)
        self._data = with_component_names(data, self._named_of(data.design))

    def _named_of(self, design: Design) -> list[tuple[str | None, RandomTerm]]:
        return list(zip(self._components, design.terms, strict=True))

    # ------------------------------------------------------------ from formulas

    @classmethod
    def from_formula(
        cls,
        formula: str,
        data: Any,
        re_formula: str | None = None,
        vc_formula: Mapping[str, str] | None = None,
        subset: Any = None,
        use_sparse: bool = False,
        missing: str = "none",
        *args: Any,
        **kwargs: Any,
    ) -> "MixedLM":
        """A model from a statsmodels formula; see ``mixedlm``."""
        arguments = (formula, data, re_formula, vc_formula, subset, use_sparse, missing, *args)
        return cls._from_formula(*arguments, depth=3, **kwargs)

    @classmethod
    def _from_formula(
        cls,
        formula: str,
        data: Any,
        re_formula: str | None,
        vc_formula: Mapping[str, str] | None,
        subset: Any,
        use_sparse: bool,
        missing: str,
        *,
        depth: int,
        groups: Any = None,
        eval_env: Any = 0,
        drop_cols: Sequence[str] | None = None,
        use_sqrt: bool = True,
        weights: Any = None,
        offset: Any = None,
        **unknown: Any,
    ) -> "MixedLM":
        if unknown:
            raise DataError(f"mixedlm has no argument {', '.join(map(repr, unknown))}")
        if groups is None:
            raise DataError("'groups' is required: the name of a column, or one label per row")
        frame = as_frame(data)
        context = eval_env if isinstance(eval_env, Mapping) else callers_names(depth + max(0, int(eval_env or 0)))
        numbered = frame.set_axis(pd.RangeIndex(len(frame)), axis=0)
        design = design_from_statsmodels(
            formula,
            numbered,
            groups,
            re_formula=re_formula,
            vc_formula=vc_formula,
            weights=weights,
            offset=offset,
            subset=subset,
            missing=missing,
            context=context,
        )
        rows = design.index.to_numpy()
        design = dataclasses.replace(without_columns(design, drop_cols), index=frame.index[rows])
        named = isinstance(groups, str)
        labels = factorize(column(frame, groups) if named else np.asarray(groups).ravel(), "groups")
        model = cls.__new__(cls)
        model.formula = formula
        has_re = len(design.terms) > len(vc_formula or {})
        components: list[str | None] = [None] if has_re else []
        components += sorted(vc_formula or {})
        label = groups if named else "Group"
        model._set_up(design, labels.levels, labels.codes[rows], label, components, use_sqrt, from_arrays=False)
        return model

    formula: str | None = None

    # ------------------------------------------------------------ data and sizes

    @cached_property
    def _layout(self) -> Layout:
        return Layout(self._data)

    @property
    def _named_terms(self) -> list[tuple[str | None, RandomTerm]]:
        return self._named_of(self._data.design)

    @property
    def endog(self) -> np.ndarray:
        """(n,) the response that is fitted."""
        return self._data.y

    @property
    def exog(self) -> np.ndarray:
        """(n, p) the fixed-effects design that is fitted."""
        return self._data.X

    @property
    def exog_re(self) -> np.ndarray | None:
        """(n, q) the design of the correlated random effects."""
        return self._data.design.terms[0].Z if self.k_re else None

    @property
    def endog_names(self) -> str:
        return self._data.endog_name

    @property
    def exog_names(self) -> list[str]:
        return list(self._data.exog_names)

    @property
    def n_groups(self) -> int:
        return len(self.group_labels)

    @property
    def nobs(self) -> int:
        return self._data.n_rows

    n_totobs = nobs

    @property
    def k_fe(self) -> int:
        return len(self._data.exog_names)

    @property
    def k_re(self) -> int:
        return len(self._data.design.terms[0].columns) if self._components[0] is None else 0

    @property
    def k_re2(self) -> int:
        return self.k_re * (self.k_re + 1) // 2

    @property
    def k_vc(self) -> int:
        return sum(component is not None for component in self._components)

    @property
    def k_params(self) -> int:
        """Fixed effects and all covariance parameters (statsmodels leaves the components out)."""
        return self.k_fe + self.k_re2 + self.k_vc

    @property
    def df_resid(self) -> int:
        return self.nobs - self.k_fe

    @cached_property
    def row_indices(self) -> dict[Any, np.ndarray]:
        """Group → its rows."""
        order = np.argsort(self._group_codes, kind="stable")
        cuts = np.cumsum(np.bincount(self._group_codes, minlength=self.n_groups))[:-1]
        return dict(zip(self.group_labels, np.split(order, cuts), strict=True))

    def group_list(self, array: Any) -> list[np.ndarray] | None:
        """Rows of an array, a list entry per group."""
        if array is None:
            return None
        values = np.asarray(array)
        return [values[rows] for rows in self.row_indices.values()]

    @property
    def endog_li(self) -> Any:
        return self.group_list(self.endog)

    @property
    def exog_li(self) -> Any:
        return self.group_list(self.exog)

    @property
    def exog_re_li(self) -> Any:
        return self.group_list(self.exog_re)

    @cached_property
    def exog_vc(self) -> VCSpec:
        """The components as matrices per group (built when asked for; the fit needs none of them)."""
        names, colnames, mats = [], [], []
        for component, term in self._named_terms:
            if component is None:
                continue
            names.append(component)
            per_group = [group_matrix(term, rows) for rows in self.row_indices.values()]
            colnames.append([names_ for names_, _ in per_group])
            mats.append([matrix for _, matrix in per_group])
        return VCSpec(names, colnames, mats)

    @property
    def data(self) -> SimpleNamespace:
        """Names, as statsmodels keeps them."""
        k_re2 = self.k_re2
        names = [str(n) for n in self._layout.names]
        re_names = list(self._data.design.terms[0].columns) if self.k_re else []
        return SimpleNamespace(
            xnames=self.exog_names,
            ynames=self.endog_names,
            param_names=[*self.exog_names, *names],
            exog_re_names=re_names,
            exog_re_names_full=names[:k_re2],
            vcomp_names=[c for c in self._components if c is not None],
            endog=self.endog,
            exog=self.exog,
            frame=None,
        )

    # ------------------------------------------------------------ likelihood at given parameters

    def _unpack(self, params: Any) -> MixedLMParams:
        if isinstance(params, MixedLMParams):
            return params
        packed = np.asarray(params, float)
        k = self.k_re2 + self.k_vc
        if packed.ndim != 1 or len(packed) not in (k, self.k_fe + k):
            raise DataError(f"params of shape {packed.shape}: give {k} covariance parameters, with or without β")
        return MixedLMParams.from_packed(packed, self.k_fe, self.k_re, self.use_sqrt, has_fe=len(packed) > k)

    def _point(self, params: Any, profile_fe: bool) -> tuple[np.ndarray, np.ndarray]:
        """(β, packed ω), β by GLS where it is profiled out."""
        given = self._unpack(params)
        omega = given.get_packed(use_sqrt=False)
        return (self._layout.components.gls(omega) if profile_fe else np.asarray(given.fe_params, float)), omega

    def loglike(self, params: Any, profile_fe: bool = True) -> float:
        """ℓ, ML or restricted as ``self.reml``, with σ² profiled out, and β too unless told otherwise.

        Parameters
        ----------
        params : MixedLMParams with Cov(b)/σ² and components/σ², or packed as ``use_sqrt`` says.

        Notes
        -----
        Penalties of the latest fit are subtracted, that on β only where β is given.
        """
        beta, omega = self._point(params, profile_fe)
        value = self._layout.components.loglike(beta, omega, self.reml)
        if self.fe_pen is not None and not profile_fe:
            value -= float(self.fe_pen.func(beta))
        if self.cov_pen is not None and self.k_re:
            relative = self._unpack(params).cov_re
            value -= float(self.cov_pen.func(relative, np.linalg.inv(relative)))
        return value

    def score(self, params: Any, profile_fe: bool = True) -> np.ndarray:
        """Gradient of ``loglike`` in the packed parameters, in their ``use_sqrt`` form."""
        calc = self.score_sqrt if self.use_sqrt else self.score_full
        return np.concatenate(calc(self._profiled(params, profile_fe), calc_fe=not profile_fe))

    def _profiled(self, params: Any, profile_fe: bool) -> MixedLMParams:
        given = self._unpack(params).copy()
        given.fe_params = self._point(params, profile_fe)[0]
        return given

    def score_full(self, params: Any, calc_fe: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """∂ℓ in β (empty without ``calc_fe``), Cov(b)/σ² and components/σ², at the given β; less the penalties'."""
        beta, omega = self._point(params, False)
        score = self._layout.components.score_and_hessian(beta, omega, self.reml)[0]
        p, k = self.k_fe, self.k_re2
        fe, re, vc = score[:p] if calc_fe else np.zeros(0), score[p : p + k], score[p + k :]
        if self.fe_pen is not None and calc_fe:
            fe = fe - self.fe_pen.deriv(beta)
        if self.cov_pen is not None and self.k_re:
            relative = self._unpack(params).cov_re
            re = re - self.cov_pen.deriv(relative, np.linalg.inv(relative))
        return fe, re, vc

    def score_sqrt(self, params: Any, calc_fe: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """∂ℓ in β, the rows of L with LLᵀ = Cov(b)/σ², and the roots of components/σ²."""
        fe, re, vc = self.score_full(params, calc_fe)
        theta = self._unpack(params).get_packed(use_sqrt=True)
        jacobian = root_map(theta, self._layout.template)[1]
        score = jacobian.T @ np.concatenate([re, vc])
        return fe, score[: self.k_re2], score[self.k_re2 :]

    def hessian(self, params: Any) -> tuple[np.ndarray, bool]:
        """Exact joint Hessian of ℓ in (β, Cov(b)/σ², components/σ²), and whether it is singular.

        Away from the GLS β it includes terms in XᵀV⁻¹r that statsmodels leaves out.
        """
        beta, omega = self._point(params, False)
        hessian = self._layout.components.score_and_hessian(beta, omega, self.reml)[1]
        unit = np.sqrt(np.maximum(np.abs(np.diag(hessian)), np.finfo(float).tiny))
        smallest = np.linalg.svd(hessian / np.outer(unit, unit), compute_uv=False)[-1]
        return hessian, bool(smallest < 1e-12)

    def get_fe_params(self, cov_re: Any, vcomp: Any, tol: float = 1e-10) -> tuple[np.ndarray, bool]:
        """GLS β at Cov(b)/σ² and components/σ², right at zero variances too; and whether those are singular."""
        given = MixedLMParams.from_components(None, cov_re, None, vcomp)
        eigenvalues = np.linalg.eigvalsh(given.cov_re) if given.k_re else np.ones(1)
        singular = bool(min(eigenvalues.min(), np.min(given.vcomp, initial=np.inf)) < tol)
        return self._layout.components.gls(given.get_packed(use_sqrt=False)), singular

    def get_scale(self, fe_params: Any, cov_re: Any, vcomp: Any) -> float:
        """σ̂² at β, Cov(b)/σ², components/σ²."""
        omega = MixedLMParams.from_components(fe_params, cov_re, None, vcomp).get_packed(use_sqrt=False)
        return self._layout.components.scale(np.asarray(fe_params, float), omega, self.reml)

    def predict(self, params: Any, exog: Any = None) -> np.ndarray:
        """Xβ for MixedLMParams, a packed vector or β alone."""
        beta = params.fe_params if isinstance(params, MixedLMParams) else np.asarray(params, float)[: self.k_fe]
        return (self.exog if exog is None else np.asarray(exog, float)) @ np.asarray(beta)

    def get_distribution(self, params: Any, scale: float, exog: Any = None) -> "MixedLMDistribution":
        """The marginal distribution of y at packed profile-scale ``params`` and σ²; ``.rvs(n, rng)`` draws it."""
        return MixedLMDistribution(self, params, scale, exog)

    # ------------------------------------------------------------ fits

    def fit(
        self,
        start_params: Any = None,
        reml: bool = True,
        niter_sa: int = 0,
        do_cg: bool = True,
        fe_pen: Any = None,
        cov_pen: Any = None,
        free: MixedLMParams | None = None,
        full_output: bool = False,
        method: str | Sequence[str] | None = None,
        *,
        niter_em: int = 0,
        start: Any = None,
        options: NewtonOptions = NewtonOptions(),
        **fit_kwargs: Any,
    ) -> StatsmodelsFit:
        """Fit by REML (default) or ML; earlier results stay as they are.

        Parameters
        ----------
        start_params : MixedLMParams or packed vector, optional
            Relative to σ², in the form that ``use_sqrt`` says; β in it is not used.
        reml : bool
        niter_sa, niter_em : int
            Steepest-ascent and EM steps before the search.
        do_cg : bool
            False skips the search and returns the start as it is.
        fe_pen, cov_pen : penalties with ``func`` and ``deriv``, optional
            Subtracted from ℓ; β and Cov(b)/σ² then maximise the difference.
        free : MixedLMParams, optional
            Ones where a covariance parameter is estimated, zeros where it stays at its start. ``cov_re`` the
            identity means independent random effects. Holds with every method.
        full_output : bool
            Keep the searches' histories in ``.hist``.
        method : str or list, optional
            "newton" (default), "lbfgs", "bfgs", "cg", "nm", "powell"; a list is tried until one converges.
        start : (k,), optional
            θ of our own order and scale, instead of ``start_params``.
        options : NewtonOptions
            Of the default method.
        **fit_kwargs
            gtol, ftol, xtol, maxiter, maxcor; ``use_t=True`` for t instead of z.
        """
        settings, reml, options = checked_options(fit_kwargs), read_reml(reml), read_options(options)
        if "maxiter" in settings and options == NewtonOptions():
            options = NewtonOptions(max_iter=max(int(settings["maxiter"]), 1))
        methods = checked_methods(method)
        if free is not None and not hasattr(free, "get_packed"):
            raise DataError(f"free={free!r} must be a MixedLMParams of ones and zeros")
        independent = free is not None and self._means_independent(free, start_params)
        data = with_diagonal(self._data, self._data.design.terms[0]) if independent else self._data
        mask = np.ones(len(default_start(data)), bool) if free is None or independent else self._mask(free)
        theta = self._start(start_params, start, data)
        hist: list[dict[str, Any]] = []
        layout = Layout(data) if independent else self._layout
        if niter_em or niter_sa or not do_cg or not mask.all() or fe_pen is not None or cov_pen is not None:
            theta = default_start(data) if theta is None else theta
        if niter_em and theta is not None:
            theta, record = em_start(layout, reml, theta, int(niter_em))
            hist.append(record)
        if niter_sa and theta is not None:
            theta, record = ascent_start(data, reml, theta, mask, int(niter_sa))
            hist.append(record)
        if not do_cg:
            found = fit_at(data, reml, np.asarray(theta), mask, 0, searched=False)
        elif fe_pen is not None or cov_pen is not None:
            if not mask.all():
                raise UnsupportedError("penalties with held covariance parameters are not supported: drop one")
            found = self._penalised(layout, reml, np.asarray(theta), fe_pen, cov_pen, settings, methods[0])
            report(found, data, advice=_ADVICE)
        else:
            found = self._search(layout, reml, theta, mask, methods, settings, options, hist)
            report(found, data, advice=_ADVICE)
        self.reml, self.fe_pen, self.cov_pen = reml, fe_pen, cov_pen
        result = StatsmodelsFit(data, found, reml=reml, options=options)
        result.model, result._from_arrays = self, self._from_arrays  # type: ignore[attr-defined]
        result.freepat, result.hist = free, hist if full_output else None
        result.fe_pen, result.cov_pen = fe_pen, cov_pen
        result.use_t = bool(fit_kwargs.get("use_t", False))
        return result

    def _search(
        self,
        layout: Layout,
        reml: bool,
        theta: np.ndarray | None,
        mask: np.ndarray,
        methods: Sequence[str],
        settings: Mapping[str, Any],
        options: NewtonOptions,
        hist: list[dict[str, Any]],
    ) -> Fit:
        data = layout.data
        for method in methods:
            if method == "newton" and mask.all():
                found = core_fit(data.compressed, reml=reml, start=theta, options=options)
                record: dict[str, Any] = {"method": "newton", "evaluations": int(found.iterations)}
            elif method == "newton":
                theta = newton_held(layout, reml, np.asarray(theta), mask, float(settings.get("gtol", 1e-7)))
                found = fit_at(data, reml, theta, mask, 0)
                record = {"method": "newton", "evaluations": 0}
            else:
                theta = default_start(data) if theta is None else theta
                theta, record = search(data, reml, theta, mask, method, settings)
                found = fit_at(data, reml, theta, mask, record["evaluations"])
            status = Status(int(found.status))
            record |= {
                "converged": status.is_optimum,
                "fopt": float(found.deviance),
                "gopt": np.asarray(found.gradient),
                "params": np.asarray(found.theta),
            }
            hist.append(record)
            if status.is_optimum:
                break
        return found

    def _penalised(
        self,
        layout: Layout,
        reml: bool,
        theta: np.ndarray,
        fe_pen: Any,
        cov_pen: Any,
        settings: Mapping[str, Any],
        method: str,
    ) -> Fit:
        start = core_fit(layout.data.compressed, reml=reml)
        if Status(int(start.status)) is Status.CONVERGED:
            theta = np.asarray(start.theta)
        beta, theta = penalised(layout, reml, theta, fe_pen, cov_pen, settings, method)
        found = fit_at(layout.data, reml, theta, np.zeros(len(theta), bool), 0)
        curvature = fit_at(layout.data, reml, theta, np.ones(len(theta), bool), 0).hessian
        found = dataclasses.replace(found, hessian=curvature)
        return self._with_beta(found, beta, reml, layout)

    @staticmethod
    def _with_beta(found: Fit, beta: np.ndarray, reml: bool, layout: Layout) -> Fit:
        """The same covariance with another β: σ² and ℓ are those of that β."""
        L = np.asarray(found.relative_factor)
        model, omega = layout.components, layout.omega(L @ L.T)
        sigma = np.sqrt(model.scale(beta, omega, reml))
        return dataclasses.replace(
            found, beta=beta, sigma=np.float64(sigma), deviance=np.float64(-2.0 * model.loglike(beta, omega, reml))
        )

    def fit_regularized(
        self,
        start_params: Any = None,
        method: Any = "l1",
        alpha: Any = 0.0,
        ceps: float = 1e-4,
        ptol: float = 1e-6,
        maxit: int = 200,
        **fit_kwargs: Any,
    ) -> StatsmodelsFit:
        """Fit with a penalty on β.

        Parameters
        ----------
        start_params : (p,), optional
            β to start the L1 search from.
        method : "l1", or a smooth penalty with ``func`` and ``deriv``
            "l1" minimises (y − Xβ)ᵀ(σ²V)⁻¹(y − Xβ) + Σ α_j|β_j| with the covariance of the unpenalised fit. A
            smooth penalty is subtracted from ℓ, and β and the covariance maximise the difference.
        alpha : scalar or (p,)
        ceps : unused; coefficients become exactly zero by soft thresholds, and may come back.
        ptol, maxit : largest change of β at which the L1 search ends, in units of its standard errors; sweeps.
        **fit_kwargs : of ``fit``.
        """
        if isinstance(method, str) and method.lower() != "l1":
            raise DataError(f"method={method!r} is unknown: use 'l1' or a penalty object")
        if not isinstance(method, str):
            method.alpha = alpha
            return self.fit(fe_pen=method, **fit_kwargs)
        result = self.fit(**fit_kwargs)
        alphas = np.broadcast_to(np.asarray(alpha, float), (self.k_fe,))
        if not alphas.any():
            return result
        beta = lasso(np.asarray(result.cov_fe), np.asarray(result.fit.beta), alphas, start_params, ptol, maxit)
        model, omega = result._layout.components, result._omega
        deviance = np.float64(-2.0 * model.loglike(beta, omega, result.reml))
        penalised_fit = dataclasses.replace(result.fit, beta=beta, deviance=deviance)
        out = StatsmodelsFit(result._data, penalised_fit, reml=result.reml)
        out.model, out._from_arrays = self, self._from_arrays  # type: ignore[attr-defined]
        out.freepat, out.hist, out.use_t = result.freepat, result.hist, result.use_t
        return out

    # ------------------------------------------------------------ starts and masks

    def _start(self, start_params: Any, theta: Any, data: ModelData) -> np.ndarray | None:
        """θ in the order of ``data`` (some terms of which may be diagonal)."""
        if theta is not None:
            return read_start(theta, data.theta_names)
        if start_params is None:
            return None
        packed = self._unpack(start_params).get_packed(use_sqrt=True)
        if data is self._data:
            return self._layout.unpack_theta(packed)
        rows, columns = np.tril_indices(self.k_re)
        on_diagonal = np.concatenate([rows == columns, np.ones(self.k_vc, bool)])
        return Layout(data).unpack_theta(packed[on_diagonal])

    def _mask(self, free: MixedLMParams) -> np.ndarray:
        """Which θ (the data's order) are free."""
        packed = self._check_mask(free)
        return self._layout.unpack_theta(packed).astype(bool)

    def _check_mask(self, free: MixedLMParams) -> np.ndarray:
        packed = free.get_packed(use_sqrt=False)
        if len(packed) != self.k_re2 + self.k_vc:
            raise DataError(f"free has {len(packed)} covariance parameters; the model has {self.k_re2 + self.k_vc}")
        if not np.isin(packed, (0, 1)).all():
            raise DataError("free must hold ones (estimated) and zeros (held) only")
        if len(free.fe_params) and not np.all(free.fe_params == 1):
            raise UnsupportedError("fixed effects cannot be held by free=: subtract X_j·β_j from endog instead")
        return packed

    def _means_independent(self, free: MixedLMParams, start_params: Any) -> bool:
        """Whether the mask leaves out all covariances and nothing else."""
        packed = self._check_mask(free)
        if not self.k_re or not np.array_equal(free.cov_re, np.eye(self.k_re)) or not packed[self.k_re2 :].all():
            return False
        start = None if start_params is None else self._unpack(start_params).cov_re
        return start is None or not (start - np.diag(np.diag(start))).any()

    def _without_rows(self) -> "MixedLM":
        """A copy that keeps names and sizes only."""
        thin = type(self).__new__(type(self))
        thin.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("row_indices", "exog_vc", "_layout")})
        thin._data = without_rows(self._data)
        thin._group_codes = np.zeros(0, int)
        return thin


def mixedlm(
    formula: str,
    data: Any,
    re_formula: str | None = None,
    vc_formula: Mapping[str, str] | None = None,
    subset: Any = None,
    use_sparse: bool = False,
    missing: str = "none",
    *args: Any,
    **kwargs: Any,
) -> MixedLM:
    """A mixed model from a statsmodels formula: a drop-in for ``smf.mixedlm``; call ``.fit()`` on it.

    Parameters
    ----------
    formula : str
        Fixed effects, ``"Weight ~ Time"``.
    data : DataFrame
        Never changed.
    re_formula : str, optional
        Random effects within groups, ``"~Time"``; a random intercept if None and there is no ``vc_formula``.
    vc_formula : mapping, optional
        Name → formula of independent variance components: ``"0 + C(a)"`` (cells in a group), ``"0 + x"``.
    subset : mask or query string, optional
        Rows to use (statsmodels ignores this argument).
    use_sparse : bool
        Has no effect: nothing dense is built for components.
    missing : {"none", "drop", "raise"}
    groups : column name or (n,) labels, required
    eval_env : mapping, or number of frames above the caller, whose variables the formulas may use
    drop_cols : names of fixed-effects columns to leave out
    use_sqrt : see ``MixedLM``
    weights, offset : column name or (n,), optional

    Returns
    -------
    MixedLM
    """
    arguments = (formula, data, re_formula, vc_formula, subset, use_sparse, missing, *args)
    return MixedLM._from_formula(*arguments, depth=3, **kwargs)


class MixedLMDistribution:
    """Draws responses marginally: new random effects and errors each time."""

    def __init__(self, model: MixedLM, params: Any, scale: float, exog: Any = None) -> None:
        self.model, self.scale = model, float(scale)
        self.exog = model.exog if exog is None else np.asarray(exog, float)
        self.params = MixedLMParams.from_packed(params, model.k_fe, model.k_re, use_sqrt=False, has_fe=True)

    def rvs(self, n: int = 1, rng: Any = None) -> np.ndarray:
        """One response (rows,) for n ≤ 1, as statsmodels; (n, rows) for more.

        Parameters
        ----------
        rng : numpy Generator or RandomState, or a seed
        """
        rng = np.random.default_rng(rng) if not hasattr(rng, "normal") else rng
        return self._draw(rng) if n <= 1 else np.array([self._draw(rng) for _ in range(n)])

    def _draw(self, rng: Any) -> np.ndarray:
        data = self.model._data
        theta = self.params.get_packed(use_sqrt=True)
        y = self.exog @ self.params.fe_params
        at = 0
        for term, block in zip(data.design.terms, self.model._layout.template, strict=True):
            u = rng.normal(size=(len(term.levels), block.size))
            root = theta[at : at + block.n_theta]
            at += block.n_theta
            if block.structure == "unstructured":
                L = np.zeros((block.size,) * 2)
                L[np.tril_indices(block.size)] = root
                u = u @ L.T
            else:
                u = u * root
            y = y + np.sqrt(self.scale) * np.einsum("nq,nq->n", term.Z, u[term.codes])
        weights = 1.0 if data.design.weights is None else data.design.weights
        return y + np.sqrt(self.scale / weights) * rng.normal(size=len(y))
