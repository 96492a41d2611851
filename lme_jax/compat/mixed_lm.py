"""``MixedLM`` and ``mixedlm``: statsmodels' names and habits."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..core.optimize import NewtonOptions
from ..core.records import Fit
from ..data import ModelData
from ..errors import DataError, UnsupportedError
from ..fitting import read_options, read_reml, report
from ..formula import design_from_arrays, design_from_statsmodels
from ..formula.values import as_frame, column, factorize, in_order, namespace
from ..inference.lasso import lasso
from .array_results import ArrayFit
from .design import (
    design_with_components,
    group_codes_of,
    is_plain,
    own_array,
    with_diagonal,
    with_statsmodels_names,
    without_columns,
)
from .distribution import MixedLMDistribution
from .layout import PackedLayout
from .likelihood import Likelihood
from .optimisers import ascent_start, checked_methods, checked_options, default_start, em_start, judged_fit
from .params import MixedLMParams, VCSpec
from .results import StatsmodelsFit
from .searches import free_entries, means_independent, penalised_fit, searched, start_of

_ADVICE = "Try method='newton', another start, or a larger maxiter."


class MixedLM(Likelihood):
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
        return cls._from_formula(*arguments, depth=2, **kwargs)

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
            hint = "; residual structures are those of lmer(formula, data, residual=…)" if "residual" in unknown else ""
            raise DataError(f"mixedlm has no argument {', '.join(map(repr, unknown))}{hint}")
        if groups is None:
            raise DataError("'groups' is required: the name of a column, or one label per row")
        frame = as_frame(data)
        context = eval_env if isinstance(eval_env, Mapping) else namespace(depth + max(0, int(eval_env or 0)))
        numbered = frame.set_axis(pd.RangeIndex(len(frame)), axis=0)
        design = design_from_statsmodels(
            formula,
            numbered,
            groups,
            re_formula=re_formula,
            vc_formula=vc_formula,
            # Rows are numbered anew: what goes by their labels is put in order before.
            weights=in_order(weights, frame.index, "`weights`", numbered.index),
            offset=in_order(offset, frame.index, "`offset`", numbered.index),
            subset=in_order(subset, frame.index, "`subset`", numbered.index),
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

    # ------------------------------------------------------------ simulation

    def get_distribution(self, params: Any, scale: float, exog: Any = None) -> MixedLMDistribution:
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
        independent = free is not None and means_independent(self, free, start_params)
        data = with_diagonal(self._data, self._data.design.terms[0]) if independent else self._data
        mask = np.ones(len(data.theta_names), bool) if free is None or independent else free_entries(self, free)
        theta = start_of(self, start_params, start, data)
        hist: list[dict[str, Any]] = []
        layout = PackedLayout(data) if independent else self._layout
        if niter_em or niter_sa or not do_cg or not mask.all() or fe_pen is not None or cov_pen is not None:
            theta = default_start(data) if theta is None else theta
        if niter_em and theta is not None:
            theta, record = em_start(layout, reml, theta, int(niter_em))
            hist.append(record)
        if niter_sa and theta is not None:
            theta, record = ascent_start(data, reml, theta, mask, int(niter_sa))
            hist.append(record)
        if not do_cg:
            found = judged_fit(data, reml, np.asarray(theta), mask, 0, searched=False)
        elif fe_pen is not None or cov_pen is not None:
            if not mask.all():
                raise UnsupportedError("penalties with held covariance parameters are not supported: drop one")
            found = penalised_fit(layout, reml, np.asarray(theta), fe_pen, cov_pen, settings, methods[0])
            report(found, data, advice=_ADVICE)
        else:
            found = searched(layout, reml, theta, mask, methods, settings, options, hist)
            report(found, data, advice=_ADVICE)
        self.reml, self.fe_pen, self.cov_pen = reml, fe_pen, cov_pen
        return self._result(
            data,
            found,
            reml=reml,
            options=options,
            freepat=free,
            held=~mask,
            hist=hist if full_output else None,
            fe_pen=fe_pen,
            cov_pen=cov_pen,
            use_t=bool(fit_kwargs.get("use_t", False)),
        )

    def _result(self, data: ModelData, found: Fit, **how: Any) -> StatsmodelsFit:
        kind = ArrayFit if self._from_arrays else StatsmodelsFit
        return kind(data, found, model=self, **how)

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
        deviance = np.float64(-2.0 * result._layout.loglike(beta, result._omega, result.reml))
        shrunk = dataclasses.replace(result.fit, beta=beta, deviance=deviance)
        how: dict[str, Any] = dict(freepat=result.freepat, held=result._held, hist=result.hist, use_t=result.use_t)
        return self._result(result._data, shrunk, reml=result.reml, **how)


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
    return MixedLM._from_formula(*arguments, depth=2, **kwargs)
