"""Moments of the residuals of least squares → where searches begin."""

from typing import NamedTuple

import numpy as np

from .. import covariance
from . import chain_moments
from .data import BlockData
from .families import Moments
from .identification import pairs_seen
from .model import gathered
from .record import by_pattern
from .registry import VARIANCES
from .stacks import Stack
from .visits import shrunk

# Quantiles of the distances of two rows of a subject, at which ranges begin; and a share of the least one, which leaves
# no correlation to speak of: where two rows happen to be near each other a barrier may lie between.
QUANTILES, NONE = (0.1, 0.5, 0.9), 0.3
# Standard deviations of effects, relative to the residual's, and shares of the correlations that a bar leaves.
SPREADS, SHARES = (1.0, 0.3, 3.0), (1.0, 0.4, 0.1)
# Steps of EM, and complete patients per visit from which they help.
EM_STEPS, COMPLETE = 3, 2
# Pairs of rows whose distances are looked at.
PAIRS = 200_000


class ArmMoments(NamedTuple):
    """``Moments`` of an arm and its overall standard deviation."""

    moments: Moments
    size: float


def moments(data: BlockData) -> list[ArmMoments]:
    """Of every arm; the residuals of least squares are the last column of C."""
    model = data.model
    if data.series is not None:
        return [ArmMoments(*chain_moments.of_arm(model, data.series.chain, a)) for a in range(model.n_groups)]
    gaps = _distances(data) if model.family.distance else np.zeros(0)
    A, T = model.n_groups, max(model.n_visits, 1)
    S, N = np.zeros((A, T, T)), np.zeros((A, T, T))
    squares, rows = np.zeros(A), np.zeros(A)
    for s in data.stacks:
        products = by_pattern(s.C[:, :, -1:], s)
        if not model.family.distance:
            S += gathered(model, s, products * _together(s))
        own = np.diagonal(products, axis1=1, axis2=2)
        squares += np.bincount(s.at.group.ravel(), own.ravel(), A)
        rows += np.bincount(s.at.group.ravel(), (s.present * s.copies[:, None]).ravel(), A)
    size = np.sqrt(np.maximum(squares / np.maximum(rows, 1.0), np.finfo(float).tiny))
    if not model.family.distance:
        N = pairs_seen(model, list(data.stacks))
    found = [ArmMoments(of_arm(S[a], N[a], size[a], gaps), float(size[a])) for a in range(A)]
    return [_improved(arm, a, data) for a, arm in enumerate(found)] if model.family.each else found


def _together(s: Stack) -> np.ndarray | float:
    return 1.0 if s.together is None else s.together.astype(float)


def of_arm(S: np.ndarray, N: np.ndarray, size: float, gaps: np.ndarray) -> Moments:
    """From sums of squares S and pairs N (T, T) of an arm."""
    own = np.diagonal(N)
    variance = np.where(own > 0, np.diagonal(S) / np.maximum(own, 1.0), size**2)
    sd = np.sqrt(np.maximum(variance, (1e-3 * size) ** 2))
    R = np.where(N > 0, S / np.maximum(N, 1e-300) / np.outer(sd, sd), 0.0)
    np.fill_diagonal(R, 1.0)
    return Moments(sd, R, N, gaps)


def _improved(arm: ArmMoments, a: int, data: BlockData) -> ArmMoments:
    """The moments of an unstructured Σ after a few EM steps over the patterns of an arm.

    Moments of pairs do not fit together where correlations are high and visits missing. Not where few patients are
    complete: EM would follow an unbounded likelihood into its corner.
    """
    model, stack = data.model, data.stacks[0]
    T = model.n_visits
    if model.bars or len(data.stacks) > 1 or stack.present.shape[1] != T:
        return arm
    mine = (stack.at.group[np.arange(len(stack.copies)), stack.present.argmax(1)] == a) & stack.present.any(1)
    complete, present, copies = stack.present.all(1) & mine, stack.present[mine], stack.copies[mine]
    if stack.copies[complete].sum() < COMPLETE * T or complete.sum() == mine.sum():
        return arm
    squares = by_pattern(stack.C[:, :, -1:], stack)[mine]
    Sigma = np.outer(arm.moments.sd, arm.moments.sd) * shrunk(arm.moments.R)
    both = present[:, :, None] & present[:, None, :]
    for _ in range(EM_STEPS):
        V = np.where(both, Sigma, np.eye(T) * ~present[:, :, None])
        gain = Sigma @ (np.linalg.inv(V) * both)
        known = gain @ squares @ gain.swapaxes(1, 2)
        missing = Sigma - gain @ Sigma
        Sigma = (known + copies[:, None, None] * missing).sum(0) / copies.sum()
        Sigma = 0.5 * (Sigma + Sigma.T)
    sd = np.sqrt(np.diagonal(Sigma))
    return arm._replace(moments=arm.moments._replace(sd=sd, R=Sigma / np.outer(sd, sd)))


def _distances(data: BlockData) -> np.ndarray:
    found = []
    for s in data.stacks:
        d = s.distance
        assert d is not None
        both = (s.present[:, :, None] & s.present[:, None, :] & (d > 0)) if s.together is None else s.together & (d > 0)
        both = both & s.present[:, :, None] & s.present[:, None, :]
        found.append(d[both][: PAIRS // len(data.stacks) + 1])
    d = np.concatenate(found)
    return np.append(np.quantile(d, QUANTILES), NONE * d.min())


def starts(data: BlockData) -> list[np.ndarray]:
    """x in the search's units, of all combinations; the first is the likeliest where there is no bar."""
    model, arms = data.model, moments(data)
    out = []
    for share in SHARES if model.bars else (1.0,):
        for rho in combined(data, arms, share):
            for spread in SPREADS if model.bars else (1.0,):
                for delta in _variance_starts(data):
                    x = np.zeros(model.size)
                    for here, block in zip(model.theta, model.bars, strict=True):
                        x[here] = covariance.start((block,), np.full(block.size, spread))
                    x[model.correlation] = rho
                    x[model.correlation.stop :] = delta
                    out.append(x)
    return out


def combined(data: BlockData, arms: list[ArmMoments], share: float) -> list[np.ndarray]:
    """Starts of all arms' parameters; the i-th of every arm together."""
    model = data.model
    each = []
    for arm in arms:
        m = arm.moments
        shrunk = m._replace(R=np.eye(len(m.R)) + share * (m.R - np.eye(len(m.R))))
        each.append(model.family.starts(shrunk, model.n_visits, model.settings))
    first = arms[0]
    out = []
    for i in range(min(len(s) for s in each)):
        parts = [each[0][i]]
        for arm, own in zip(arms[1:], each[1:], strict=True):
            het = model.family.heterogeneous
            ratio = arm.moments.sd[0] / first.moments.sd[0] if het else arm.size / first.size
            parts.append(np.concatenate([[np.log(ratio)], own[i]]))
        out.append(np.concatenate(parts))
    return out


def _variance_starts(data: BlockData) -> list[np.ndarray]:
    out = [np.zeros(0)]
    for (word, S), here in zip(data.model.variances, data.model.delta, strict=True):
        own = [d * data.unit[here] for d in VARIANCES[word].starts(S)]
        out = [np.concatenate([a, b]) for a in out for b in own]
    return out
