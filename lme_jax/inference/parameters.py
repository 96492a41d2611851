"""Which parameters an interval is asked of: groups, names and functions → targets."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..core import targets
from ..core.covariance import Template
from ..core.structures import Block, entry
from ..core.targets import Target
from ..data import ModelData
from ..errors import DataError

Parts = list[tuple[str, Template, slice]]
GROUPS = ("fixed", "random", "covariance", "theta", "all")


def blocks_of(data: ModelData) -> list[tuple[str, Any, Block, slice]]:
    """(label, term, block, place in θ) of every random term."""
    out, at = [], 0
    for label, term in zip(data.term_labels, data.terms, strict=True):
        mine = slice(at, at + term.block.n_theta)
        out.append((label, term, term.block, mine))
        at = mine.stop
    return out


def place_of(data: ModelData, effect: int) -> tuple[Block, slice, int]:
    """The block, its place in θ and the effect's number in it, of an effect's place among all effects."""
    spans = zip(blocks_of(data), data.term_slices, strict=True)
    return next((b, mine, effect - at.start) for (_, _, b, mine), at in spans if at.start <= effect < at.stop)


def fixed(data: ModelData, k: int) -> list[Target]:
    """Every fixed effect."""
    rows = np.eye(len(data.exog_names))
    return [targets.coordinate(name, k, direction=row) for name, row in zip(data.exog_names, rows, strict=True)]


def random(data: ModelData) -> list[Target]:
    """What people read of every term: standard deviations, correlations, ranges, loadings; and the residual SD."""
    out = []
    for label, term, block, mine in blocks_of(data):
        read = entry(block).quantities(block, term.columns)
        out += [targets.quantity(f"{label} {what.label}", what, block, mine) for what in read]
    return [*out, targets.residual_deviation("Residual SD")]


def covariances(data: ModelData) -> list[Target]:
    """Every free (co)variance, and σ²."""
    out, names = [], iter(data.covariance_names)
    for _, _, block, mine in blocks_of(data):
        for i, j in entry(block).pairs(block):
            name = next(names)
            if i == j:
                out.append(targets.squared(targets.deviation(name, block, mine, i), name))
            else:
                out.append(targets.covariance_entry(name, block, mine, i, j))
    return [*out, targets.squared(targets.residual_deviation("Residual Var"), "Residual Var")]


def thetas(data: ModelData) -> list[Target]:
    """Every relative covariance parameter."""
    out, names = [], iter(data.theta_names)
    for _, _, block, mine in blocks_of(data):
        for a in range(block.n_theta):
            name = f"theta {next(names)}"
            out.append(targets.coordinate(name, mine.start + a, from_zero=targets.even(block, a)))
    return out


def chosen(data: ModelData, which: Any, reml: bool, default: tuple[str, ...], unit: np.ndarray) -> list[Target]:
    """The targets that ``which`` names; see ``Profiles.profile_ci``."""
    k = len(data.theta_names)
    groups: dict[str, Callable[[], list[Target]]] = {
        "fixed": lambda: fixed(data, k),
        "random": lambda: random(data),
        "covariance": lambda: covariances(data),
        "theta": lambda: thetas(data),
    }
    if which is None:
        found = [target for group in default for target in groups[group]()]
    elif isinstance(which, Mapping):
        found = [_given(name, what, data, unit) for name, what in which.items()]
    else:
        asked = [which] if isinstance(which, str) else list(which)
        found = [target for name in asked for target in _named(name, groups, reml)]
    if reml and any(target.direction is not None for target in found):
        raise DataError(
            "the REML criterion is no likelihood of the fixed effects, so they have no profile by it: ask an ML fit, "
            "fit.update(reml=False), or leave them out (which='random')"
        )
    return found


def _named(name: Any, groups: Mapping[str, Callable[[], list[Target]]], reml: bool) -> list[Target]:
    if name == "all":
        kinds = [kind for kind in groups if kind != "fixed" or not reml]
        return [target for kind in kinds for target in groups[kind]()]
    if name in groups:
        return groups[name]()
    known = {target.name: target for make in groups.values() for target in make()}
    if name not in known:
        raise DataError(f"which={name!r} is neither one of {', '.join(GROUPS)} nor a parameter: {', '.join(known)}")
    return [known[name]]


def _given(name: str, what: Any, data: ModelData, unit: np.ndarray) -> Target:
    """A function of (Ψ by factor, σ²), with or without bounds, or a combination (p,) of the fixed effects."""
    if not callable(what) and not (isinstance(what, tuple) and len(what) == 3 and callable(what[0])):
        weights = np.asarray(what, float)
        if weights.shape != (len(data.exog_names),) or not weights.any():
            raise DataError(
                f"which[{name!r}]: give a function of (Ψ by factor, σ²), (function, low, high), or "
                f"{len(data.exog_names)} weights of the fixed effects"
            )
        return targets.coordinate(name, len(data.theta_names), direction=weights)
    of, low, high = what if isinstance(what, tuple) else (what, -np.inf, np.inf)
    return targets.function(name, of, parts_of(data), float(low), float(high), unit)


def parts_of(data: ModelData) -> Parts:
    """(name, template, place in θ) of every factor."""
    out, at = [], 0
    for factor in data.factors:
        n = sum(block.n_theta for block in factor.template)
        out.append((factor.name, factor.template, slice(at, at + n)))
        at += n
    return out
