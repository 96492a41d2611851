"""What the rows cannot tell, found before a search."""

import numpy as np

from ...errors import DataError
from .model import Model, gathered
from .stacks import Rows, Stack, in_order


class IdentificationError(DataError):
    """The rows do not determine the parameters of the covariance, whatever the search."""


def check_rows(model: Model, rows: Rows) -> None:
    """Two rows of one subject at one visit or place; an arm within a subject."""
    clock = rows.clock if rows.clock.ndim == 2 else rows.clock[:, None]
    if model.word == "ident" and model.n_groups == 1:
        return
    keys = [rows.subject, *clock.T]
    order = np.arange(len(clock)) if in_order(keys) else np.lexsort(keys[::-1])
    same = (rows.subject[order][1:] == rows.subject[order][:-1]) & (clock[order][1:] == clock[order][:-1]).all(1)
    nugget = bool(model.settings.get("nugget"))
    if same.any() and not nugget:
        first, second = sorted(order[int(np.argmax(same)) + np.array([0, 1])].tolist())
        what = "place" if model.family.distance else "visit"
        raise DataError(
            f"rows {first} and {second} (from 0) are of one subject at one {what} ({int(same.sum())} such pairs): "
            f"{model.word} needs one row each; take their mean, or add a level for what tells them apart"
        )
    apart = np.flatnonzero((rows.subject[order][1:] == rows.subject[order][:-1]) & (np.diff(rows.group[order]) != 0))
    if len(apart):
        row = int(order[apart[0] + 1])
        raise DataError(f"the subject of row {row} (from 0) is in two groups: a group is a property of the subject")


def pairs_seen(model: Model, stacks: list[Stack]) -> np.ndarray:
    """(A, T, T) in how many subjects two visits meet, per arm; of a structure by visit."""
    total = np.zeros((model.n_groups, model.n_visits, model.n_visits))
    for s in stacks:
        both = s.present[:, :, None] & s.present[:, None, :]
        both = both if s.together is None else both & s.together
        total += gathered(model, s, both * s.copies[:, None, None])
    return total


def check_chain(model: Model, rows: Rows, joined: np.ndarray) -> None:
    """``check_patterns`` of rows (n,) each with the one before where they are ``joined``."""
    if not model.family.pairs:
        return
    for a in range(model.n_groups):
        where = f" of group {a}" if model.n_groups > 1 else ""
        inside = rows.group == a
        if not (joined & inside).any():
            raise IdentificationError(
                f"no subject{where} has two rows, so nothing tells the correlations of {model.word}"
            )
        if model.family.heterogeneous:
            _check_variances(np.bincount(rows.clock[inside], minlength=model.n_visits), where)


def _check_variances(seen: np.ndarray, where: str) -> None:
    empty = np.flatnonzero(seen == 0)
    if len(empty):
        raise IdentificationError(
            f"visit {empty[0]} (from 0){where} has no row, so nothing tells its variance: leave that visit out of the "
            "levels, or use a structure with equal variances"
        )


def check_patterns(model: Model, stacks: list[Stack]) -> None:
    """Visits, and pairs of them, whose parameters no subject tells."""
    if not model.family.pairs:
        return
    if model.family.distance:
        if all(s.present.shape[1] == 1 or not _has_pairs(s) for s in stacks):
            raise IdentificationError(f"no subject has two rows, so nothing tells the correlations of {model.word}")
        return
    for a, seen in enumerate(pairs_seen(model, stacks)):
        _check_pairs(model, a, seen)


def _has_pairs(s: Stack) -> bool:
    both = s.present[:, :, None] & s.present[:, None, :]
    both = both if s.together is None else both & s.together
    return bool((both.sum((1, 2)) > s.present.sum(1)).any())


def _check_pairs(model: Model, a: int, seen: np.ndarray) -> None:
    where = f" of group {a}" if model.n_groups > 1 else ""
    T, entry, word = model.n_visits, model.family, model.word
    if entry.heterogeneous:
        _check_variances(np.diagonal(seen), where)
    off = seen - np.diag(np.diagonal(seen))
    if not off.any():
        raise IdentificationError(f"no subject{where} has two rows, so nothing tells the correlations of {word}")
    if entry.each:
        most = int(np.diagonal(seen).max())
        if most < T:
            raise IdentificationError(
                f"no visit{where} has more than {most} subjects, too few for the {T * (T + 1) // 2} parameters of "
                f"{word} over {T} visits: use csh, ar1h, toeph or adh; or are visit and subject the wrong way round? "
                f"It is {word}(visit | subject)"
            )
        _missing(np.argwhere(np.tril(off == 0, -1)), where, word, "csh, ar1h, toeph or adh")
    if entry.adjacent:
        _missing(np.array([[t + 1, t] for t in range(T - 1) if seen[t + 1, t] == 0]), where, word, "ar1 or cs")
    if word in ("toep", "toeph"):
        lag = [k for k in range(1, T) if not np.diagonal(seen, k).any()]
        if lag:
            raise IdentificationError(
                f"no subject{where} has two visits {lag[0]} apart, so nothing tells that correlation of {word}: "
                "use ar1 or cs"
            )


def _missing(pairs: np.ndarray, where: str, word: str, instead: str) -> None:
    if len(pairs):
        i, j = sorted(int(v) for v in pairs[0])
        many = f" ({len(pairs)} such pairs)" if len(pairs) > 1 else ""
        raise IdentificationError(
            f"visits {i} and {j} (from 0) are never seen in one subject{where}{many}, so nothing tells their "
            f"covariance: {word} needs every such pair; use {instead}"
        )
