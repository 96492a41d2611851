"""Linear hypotheses Rb = c: parsing, t and Wald tests."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy  # scipy.stats loads at its first use: it would be a quarter of the import of this package

from ..errors import DataError


@dataclass(frozen=True)
class TTest:
    """One test per row of R.

    Attributes
    ----------
    effect, sd, tvalue, pvalue : (m,); df_denom : residual degrees of freedom, infinite for the normal.
    """

    effect: np.ndarray
    sd: np.ndarray
    tvalue: np.ndarray
    pvalue: np.ndarray
    df_denom: float
    names: tuple[str, ...]

    @property
    def statistic(self) -> np.ndarray:
        return self.tvalue

    def conf_int(self, alpha: float = 0.05) -> np.ndarray:
        """(m, 2) limits of the effects."""
        half = self.sd * reference_distribution(self.df_denom).ppf(1.0 - alpha / 2.0)
        return np.column_stack([self.effect - half, self.effect + half])

    def summary_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        limits = self.conf_int(alpha)
        letter = "t" if np.isfinite(self.df_denom) else "z"
        columns = {
            "coef": self.effect,
            "std err": self.sd,
            letter: self.tvalue,
            f"P>|{letter}|": self.pvalue,
            "Conf. Int. Low": limits[:, 0],
            "Conf. Int. Upp.": limits[:, 1],
        }
        return pd.DataFrame(columns, index=list(self.names))

    def __repr__(self) -> str:
        return self.summary_frame().to_string()


@dataclass(frozen=True)
class WaldTest:
    """χ² or F test of all the rows of R together. statistic, pvalue : floats; df_denom infinite for χ²."""

    statistic: float
    pvalue: float
    df_num: int
    df_denom: float

    @property
    def distribution(self) -> str:
        return "F" if np.isfinite(self.df_denom) else "chi2"

    @property
    def fvalue(self) -> float:
        return self.statistic

    def __repr__(self) -> str:
        dof = f"{self.df_num}, {self.df_denom:g}" if self.distribution == "F" else str(self.df_num)
        return f"<Wald test: {self.distribution}({dof}) = {self.statistic:.6g}, p = {self.pvalue:.4g}>"


def reference_distribution(df: float) -> Any:
    """Student's t with ``df`` degrees of freedom, the normal where they are infinite."""
    return scipy.stats.t(df) if np.isfinite(df) else scipy.stats.norm()


def t_test(
    r_matrix: np.ndarray, c: np.ndarray, estimate: np.ndarray, cov: np.ndarray, df: float, names: Any = None
) -> TTest:
    """Tests of each row of R (m, K) against c (m,)."""
    effect, sd = r_matrix @ estimate, np.sqrt(np.einsum("mi,ij,mj->m", r_matrix, cov, r_matrix))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (effect - c) / sd
    labels = tuple(names) if names is not None else tuple(f"c{i}" for i in range(len(r_matrix)))
    return TTest(effect, sd, t, 2.0 * reference_distribution(df).sf(np.abs(t)), df, labels)


def wald_test(r_matrix: np.ndarray, c: np.ndarray, estimate: np.ndarray, cov: np.ndarray, df: float) -> WaldTest:
    """Joint test; F with ``df`` denominator degrees of freedom if finite, else χ²."""
    gap, middle = r_matrix @ estimate - c, r_matrix @ cov @ r_matrix.T
    rank = int(np.linalg.matrix_rank(middle))
    if rank < len(r_matrix):
        raise DataError(f"the {len(r_matrix)} hypotheses have rank {rank}: leave out those that follow from the others")
    value = float(gap @ np.linalg.solve(middle, gap))
    if np.isfinite(df):
        return WaldTest(value / rank, float(scipy.stats.f.sf(value / rank, rank, df)), rank, df)
    return WaldTest(value, float(scipy.stats.chi2.sf(value, rank)), rank, df)


def hypotheses(given: Any, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(R, c) from an array, a pair (R, c), or text such as ``"x1 = 0, x2 - x3"`` over ``names``."""
    if isinstance(given, str):
        return _from_text(given.split(","), names)
    if isinstance(given, (list, tuple)) and given and all(isinstance(g, str) for g in given):
        return _from_text(list(given), names)
    if isinstance(given, tuple):
        r_matrix = np.atleast_2d(np.asarray(given[0], float))
        return r_matrix, np.broadcast_to(np.asarray(given[1], float), (len(r_matrix),))
    r_matrix = np.atleast_2d(np.asarray(given, float))
    return r_matrix, np.zeros(len(r_matrix))


def _from_text(parts: list[str], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    rows, constants, pending = [], [], ""
    for part in parts:
        # A comma inside brackets belongs to a name, such as C(a, Sum)[S.1].
        pending = f"{pending},{part}" if pending else part
        if pending.count("(") > pending.count(")") or pending.count("[") > pending.count("]"):
            continue
        row, constant = _equation(pending, names)
        rows.append(row)
        constants.append(constant)
        pending = ""
    if pending:
        raise DataError(f"cannot read the hypothesis {pending!r}: its brackets do not close")
    return np.array(rows), np.array(constants)


def _equation(text: str, names: Sequence[str]) -> tuple[np.ndarray, float]:
    coded, places = text, {}
    for j in sorted(range(len(names)), key=lambda i: -len(names[i])):
        mark = f"_v{j}_"
        places[mark] = j
        coded = _replace_name(coded, names[j], f" {mark} ")
    left, *right = coded.replace("==", "=").split("=")
    if len(right) > 1:
        raise DataError(f"the hypothesis {text!r} has {len(right)} equals signs; separate hypotheses by commas")
    try:
        value = _linear(left, places, len(names))
        if right:
            value = value - _linear(right[0], places, len(names))
    except (SyntaxError, KeyError, TypeError, ValueError) as error:
        known = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        raise DataError(
            f"cannot read the hypothesis {text.strip()!r} as a linear one in the parameters {known}"
        ) from error
    return value[:-1], -value[-1]


def _replace_name(text: str, name: str, mark: str) -> str:
    """Replace whole occurrences of a name; quotes as in Q('a b') are not needed."""
    out, at = "", 0
    while (hit := text.find(name, at)) >= 0:
        end = hit + len(name)
        before, after = text[hit - 1 : hit], text[end : end + 1]
        whole = not (_wordlike(before) and _wordlike(name[0])) and not (_wordlike(after) and _wordlike(name[-1]))
        out += text[at:hit] + (mark if whole else name)
        at = end
    return out + text[at:]


def _wordlike(character: str) -> bool:
    return character.isalnum() or character == "_"


def _linear(expression: str, places: dict[str, int], k: int) -> np.ndarray:
    """Coefficients and constant (k + 1,) of a linear expression."""
    return _value(ast.parse(expression.strip(), mode="eval").body, places, k)


def _value(node: ast.expr, places: dict[str, int], k: int) -> np.ndarray:
    if isinstance(node, ast.Name):
        return np.eye(k + 1)[places[node.id]]
    if isinstance(node, ast.Constant):
        return float(node.value) * np.eye(k + 1)[k]  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand, places, k)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        a, b = _value(node.left, places, k), _value(node.right, places, k)
        if isinstance(node.op, (ast.Add, ast.Sub)):
            return a + b if isinstance(node.op, ast.Add) else a - b
        if isinstance(node.op, ast.Mult) and not (a[:-1].any() and b[:-1].any()):
            return a * b[-1] if a[:-1].any() else b * a[-1]
        if isinstance(node.op, ast.Div) and not b[:-1].any():
            return a / b[-1]
    raise ValueError("not linear")
