"""``Diagnostics``: what a result says about how far its fit, and its assumptions, can be trusted."""

from __future__ import annotations

from typing import Any

from .core.sandwich import Kind
from .inference.robust import RobustEstimates, robust
from .profiles import Profiles


class Diagnostics(Profiles):
    """Robust errors, residuals, influence and R² of a result; see ``MixedLMResults``."""

    def robust(self, cluster: Any = None, type: Kind = "CR2") -> RobustEstimates:
        """Fixed effects with a cluster-robust covariance, valid where the covariance of the model is wrong.

        Parameters
        ----------
        cluster : grouping factor by name, or labels of the fitted rows (n,)
            Rows of two clusters share no random effect; None is the factor whose levels contain those of all others.
        type : {"CR2", "CR0", "CR1", "CR1S", "CR3"}
            Bell & McCaffrey's, unbiased where the model is right; without correction; times m/(m − 1) of m clusters;
            as Stata; nearly the jackknife.

        Returns
        -------
        RobustEstimates
            ``cov``, ``coefficients`` (with Satterthwaite's degrees of freedom), ``table(R)``, ``test(R)`` (HTZ).

        Notes
        -----
        clubSandwich's figures. O(rows), and for CR2 a decomposition per cluster of order effects + p, or its rows if
        these are fewer or have prior weights.

        References
        ----------
        Bell & McCaffrey (2002), Survey Methodology 28; Pustejovsky & Tipton (2018), J. Bus. Econ. Stat. 36.
        """
        return robust(self._data, self.fit, cluster, type)
