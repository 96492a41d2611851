"""Hunt for missed optima: random nasty one-factor designs, fitted by lme_jax and judged by the multistart oracle.

    python -m tests.hunt --n 3000 --seed 0                # all shapes in turn
    python -m tests.hunt --shapes us2,age --n 200 --lanes # also as lanes of a batch
    python -m tests.hunt --one us2:64                     # one trial again, in full
    python -m tests.hunt --n 300 --lme4                   # which of the missed ones does lme4 find?

A trial is (shape, seed) and can be made again. lme_jax's θ is judged by the oracle's own deviance there: ``missed``
is more than 1e-6·max(1, |deviance|) above the best known optimum although the status says optimum; ``digits`` means
that lme_jax's deviance differs by as much from the oracle's at the same θ; ``better`` that the oracle was beaten.
"""

import argparse
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lme_jax as lme
from lme_jax.errors import LmeJaxError

from .oracles import designs, multistart

TOLERANCE = 1e-6
DECOYS = 3
R_SCRIPT = """
suppressMessages(library(lme4)); options(warn = -1)
cases <- read.csv("cases.csv", stringsAsFactors = FALSE)
for (i in seq_len(nrow(cases))) {
  d <- read.csv(cases$file[i]); d$g <- factor(d$g); w <- d$w; o <- d$o
  found <- tryCatch({
    m <- lmer(as.formula(cases$formula[i]), d, REML = as.logical(cases$reml[i]), weights = w, offset = o,
              control = lmerControl(calc.derivs = FALSE, check.nobs.vs.nRE = "ignore"))
    if (isREML(m)) REMLcrit(m) else -2 * as.numeric(logLik(m))
  }, error = function(e) NA)
  cat(format(found, digits = 15), "\\n")
}
"""


class Trial(NamedTuple):
    """One fit and its verdict; ``gap`` is the deviance above the oracle's best, relative to max(1, |deviance|)."""

    drawn: designs.Drawn
    verdict: str
    gap: float
    deviance: float
    best: float
    digits: float
    theta: np.ndarray
    best_theta: np.ndarray
    seconds: float
    message: str

    @property
    def name(self):
        return f"{self.drawn.shape}:{self.drawn.seed}"


def fit(design):
    """lmer's result, its status in words, and θ; refusals raise."""
    formula, structures = designs.formula(design)
    result = lme.lmer(formula, designs.frame(design), reml=design.reml, structures=structures, **columns(design))
    return result.status.name.lower(), result.deviance, result.theta.to_numpy()


def columns(design):
    """The names of the columns of weights and offset, where there are any."""
    given = {"weights": (design.weights, "w"), "offset": (design.offset, "o")}
    return {key: name for key, (value, name) in given.items() if value is not None}


def fit_lane(design):
    """The same fit as one lane among other responses: status, deviance, θ."""
    rng = np.random.default_rng(0)
    decoys = [rng.permutation(design.y) for _ in range(DECOYS)]
    Y = np.column_stack([*decoys[:1], design.y, *decoys[1:]])
    formula, structures = designs.formula(design)
    many = lme.lmer_many(
        formula.removeprefix("y"),
        designs.frame(design),
        Y,
        reml=design.reml,
        structures=structures,
        progress=False,
        **columns(design),
    )
    lane = many.one(many.names[1])
    return lane.status.name.lower(), float(many.fit.deviance[1]), many.fit.theta[1]


def judge(drawn, fitter=fit):
    """The Trial of a drawn design."""
    problem = multistart.prepare(drawn.design)
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status, deviance, theta = fitter(drawn.design)
        except (LmeJaxError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            status, deviance, theta = "refused" if isinstance(error, LmeJaxError) else "raised", np.nan, None
            message = f"{type(error).__name__}: {error}"
        else:
            message = status
    seconds = time.perf_counter() - begun
    usable = theta is not None and np.isfinite(theta).all()
    found = multistart.solve(problem, extra=theta if usable else None)
    at = multistart.deviance(theta, problem) if usable else np.nan
    size = max(1.0, abs(found.deviance))
    gap, digits = (at - found.deviance) / size, (deviance - at) / size
    verdict = verdict_of(status, gap, digits)
    return Trial(drawn, verdict, gap, deviance, found.deviance, digits, theta, found.theta, seconds, message)


def verdict_of(status, gap, digits):
    """One word: optimum, missed, better, digits, not_converged, refused or raised."""
    if status in ("refused", "raised"):
        return status
    if status not in ("converged", "singular"):
        return "not_converged"
    if gap > TOLERANCE:
        return "missed"
    if gap < -TOLERANCE:
        return "better"
    return "optimum" if abs(digits) <= TOLERANCE else "digits"


def lines_of(trial):
    """A trial in full."""
    yield f"{trial.name}  {trial.verdict}: {trial.message}, benign: {trial.drawn.benign}"
    yield f"  {designs.formula(trial.drawn.design)}  {trial.drawn.traits}"
    yield f"  lme_jax {trial.deviance:.10g} at {trial.theta}"
    yield f"  oracle  {trial.best:.10g} at {trial.best_theta}; gap {trial.gap:.2e}, digits {trial.digits:.2e}"


def report(trials, worst, title):
    """Counts, per-shape misses and the worst trials."""
    counts = Counter(t.verdict for t in trials)
    benign = [t for t in trials if t.drawn.benign]
    print(f"\n{title}: {len(trials)} trials, {sum(t.seconds for t in trials):.1f} s in lme_jax")
    for kind, n in counts.most_common():
        print(f"  {kind:14s} {n:6d}   benign {sum(t.verdict == kind for t in benign)} of {len(benign)}")
    per_shape = Counter(t.drawn.shape for t in trials if t.verdict == "missed")
    print("  missed by shape:", dict(per_shape) or "none")
    print("  refusals:", dict(Counter(t.message[:70] for t in trials if t.verdict in ("refused", "raised"))) or "none")
    order = {"raised": 0, "better": 1, "missed": 2, "digits": 3}
    bad = sorted((t for t in trials if t.verdict in order), key=lambda t: (order[t.verdict], -abs(t.gap)))
    for trial in bad[:worst]:
        print("\n".join(lines_of(trial)))


def ask_lme4(trials):
    """lme4's deviance of each missed design, through Rscript."""
    with tempfile.TemporaryDirectory() as folder:
        rows = ["file,formula,reml"]
        for number, trial in enumerate(trials):
            design = trial.drawn.design
            data = designs.frame(design).assign(w=1.0 if design.weights is None else design.weights)
            data.assign(o=0.0 if design.offset is None else design.offset).to_csv(Path(folder, f"{number}.csv"))
            rows.append(f"{number}.csv,{designs.formula(design)[0]},{str(design.reml).upper()}")
        Path(folder, "cases.csv").write_text("\n".join(rows))
        Path(folder, "fit.R").write_text(R_SCRIPT)
        out = subprocess.run(["Rscript", "fit.R"], cwd=folder, capture_output=True, text=True, check=True)
    return [float(line) if line.strip() != "NA" else np.nan for line in out.stdout.splitlines()]


def report_lme4(trials):
    """Which of the missed designs lme4 finds; lme4 has no identity, compound-symmetric or AR(1) bars."""
    missed = [t for t in trials if t.verdict == "missed" and designs.formula(t.drawn.design)[1] is None]
    if not missed:
        print("\nlme4: no missed design that it can fit")
        return
    gaps = [(value - t.best) / max(1.0, abs(t.best)) for value, t in zip(ask_lme4(missed), missed, strict=True)]
    print(f"\nlme4 finds {sum(g <= TOLERANCE for g in gaps)} of the {len(missed)} missed ones (gaps: lme_jax, lme4)")
    for trial, gap in zip(missed, gaps, strict=True):
        print(f"  {trial.name:12s} {trial.gap:9.2e} {gap:9.2e}")


def parsed(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.hunt", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=300, help="trials, shapes in turn")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--shapes", default="all", help=f"comma-separated, of {', '.join(designs.SHAPES)}")
    parser.add_argument("--one", metavar="SHAPE:SEED", help="a trial again, in full")
    parser.add_argument("--lanes", action="store_true", help="also as a lane of a batch, compared with the single fit")
    parser.add_argument("--lme4", action="store_true", help="ask lme4 about the missed ones")
    parser.add_argument("--worst", type=int, default=10, help="trials to print")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a trial missed, raised or lost digits")
    return parser.parse_args(arguments)


def drawn_trials(options):
    """The designs that the command line asks for."""
    if options.one:
        shape, seed = options.one.split(":")
        return [designs.draw(shape, int(seed))]
    shapes = list(designs.SHAPES) if options.shapes == "all" else options.shapes.split(",")
    return [designs.draw(shapes[i % len(shapes)], options.seed + i // len(shapes)) for i in range(options.n)]


def main(arguments=None):
    """Draw, fit, judge, print; the number of bad trials."""
    options = parsed(arguments)
    drawn = drawn_trials(options)
    trials = [judge(d) for d in drawn]
    report(trials, options.worst, "lmer")
    everything = list(trials)
    if options.one:
        print("\n".join(lines_of(trials[0])))
    if options.lanes:
        lanes = [judge(d, fit_lane) for d in drawn]
        report(lanes, options.worst, "lanes")
        apart = [a.name for a, b in zip(trials, lanes, strict=True) if not same(a, b)]
        print(f"  lane and lmer differ in {len(apart)}: {' '.join(apart[:20])}")
        everything += lanes
    if options.lme4:
        report_lme4(trials)
    return sum(t.verdict in ("missed", "raised", "digits") for t in everything) if options.strict else 0


def same(a, b):
    """Whether two trials ended in the same verdict and deviance."""
    close = abs(a.deviance - b.deviance) <= TOLERANCE * max(1.0, abs(a.best))
    return a.verdict == b.verdict and (close or not np.isfinite(a.deviance + b.deviance))


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
