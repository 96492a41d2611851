"""Kenward and Roger's correction as SAS and mmrm make it: observed information, with and without ∂²V."""

from typing import Any

import numpy as np

from ..core.fixed_effects import Jets
from ..errors import UnsupportedError
from ..inference.degrees import Reference, kenward_roger, read_method

LINEAR = "kenward-roger-linear"
KENWARD_ROGER = ("kenward-roger", LINEAR)


def read_ddf(given: Any) -> str:
    """The method's own name."""
    name = str(given).lower().replace("_", "-").replace(" ", "-")
    return LINEAR if name in (LINEAR, "kr-linear", "kr(linear)") else read_method(given)


def kenward_roger_observed(jets: Jets, method: str) -> Reference:
    """Kenward & Roger's (1997) of jets in natural parameters, with the observed information in place of the expected.

    Where V is linear in its parameters, as unstructured ones, both methods are one; elsewhere the linear one leaves out
    the second derivatives of V, which depend on the parameters that are taken.
    """
    needed = [part for part in (jets.curve, jets.bend) if part is not None]
    if not all(np.isfinite(part).all() for part in needed):
        raise UnsupportedError(
            f"ddf={method!r} needs second derivatives that are not there for series this long, whose covariance is too "
            "large to form: use ddf='satterthwaite', 'between-within' or 'normal'"
        )
    jets = jets._replace(expected=jets.information)
    return kenward_roger(linear(jets) if method == LINEAR else jets)._replace(method=method)


def linear(jets: Jets) -> Jets:
    """The jets as if V were linear in their parameters."""
    if jets.curve is None or jets.bend is None:
        return jets
    return jets._replace(curve=jets.curve - jets.bend, bend=None)
