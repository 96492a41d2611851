"""Hunt for wrong fits: random nasty designs of every kind, fitted by lme_jax and judged by the oracles.

    python -m tests.hunt --n 10000                        # all shapes in turn: some hours
    python -m tests.hunt --n 10000 --shard 3/40           # the fourth of forty parts of the same
    python -m tests.hunt --shapes several --n 300         # those of several factors; also: one, or names
    python -m tests.hunt --shapes us2,age --n 200 --lanes # also as lanes of a batch
    python -m tests.hunt --one us2:64                     # one trial again, in full
    python -m tests.hunt --n 300 --lme4                   # which of the missed ones does lme4 find?

A trial is (shape, seed) and can be made again; ``tests.judge`` has the words of its verdict. Designs of several factors
are fitted twice, by the engine of small designs and by that of large ones.
"""

import argparse
import itertools
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from .judge import (
    BAD,
    SHAPES,
    TOLERANCE,
    arguments,
    draw,
    fit,
    fit_lane,
    fit_large,
    formula,
    frame,
    is_bad,
    is_single,
    judge,
    kind_of,
    lines_of,
    model_of,
)
from .oracles import crossings, designs

__all__ = ["fit", "fit_lane", "fit_large", "judge", "lines_of", "main"]

R_SCRIPT = """
suppressMessages(library(lme4)); options(warn = -1)
cases <- read.csv("cases.csv", stringsAsFactors = FALSE)
for (i in seq_len(nrow(cases))) {
  d <- read.csv(cases$file[i]); w <- d$w; o <- d$o
  found <- tryCatch({
    m <- lmer(as.formula(cases$formula[i]), d, REML = as.logical(cases$reml[i]), weights = w, offset = o,
              control = lmerControl(calc.derivs = FALSE, check.nobs.vs.nRE = "ignore"))
    if (isREML(m)) REMLcrit(m) else -2 * as.numeric(logLik(m))
  }, error = function(e) NA)
  cat(format(found, digits = 15), "\\n")
}
"""


def report(trials, worst, title):
    """Counts, per-shape misses, the largest errors and the worst trials."""
    counts = Counter(t.verdict for t in trials)
    benign = [t for t in trials if t.drawn.benign]
    print(f"\n{title}: {len(trials)} trials, {sum(t.seconds for t in trials):.1f} s in lme_jax")
    for kind, n in counts.most_common():
        print(f"  {kind:14s} {n:6d}   benign {sum(t.verdict == kind for t in benign)} of {len(benign)}")
    for word in (*BAD[:-1], "not_converged"):
        names = [t.name for t in trials if t.verdict == word]
        if names:
            print(f"  {word}: {' '.join(names[:30])}{' …' * (len(names) > 30)}")
    kinds = [kind_of(t.drawn) for t in trials]
    for kind in sorted(set(kinds)):
        some = [t for t, k in zip(trials, kinds, strict=True) if k == kind]
        largest = {word: max((t.errors.get(word, 0.0) for t in some), default=0.0) for word in BAD[:-1]}
        bad = sum(map(is_bad, some))
        print(f"  {kind}: {bad} of {len(some)} bad; largest errors over tolerance:", rounded(largest))
    print("  refusals:", dict(Counter(t.message[:70] for t in trials if t.verdict in ("refused", "raised"))) or "none")
    bad = sorted((t for t in trials if t.verdict in BAD), key=lambda t: (-BAD.index(t.verdict), -abs(t.gap)))
    for trial in bad[:worst]:
        print("\n".join(lines_of(trial)))


def rounded(errors):
    """To two digits."""
    return {word: float(f"{error:.2g}") for word, error in errors.items()}


def lme4_fits(design):
    """Whether lme4 has what a design asks for: no structured bars, no shared and no related levels."""
    plain = all(f.members is None and f.related is None for f in model_of(design).factors)
    return plain and arguments(design)["structures"] is None


def ask_lme4(trials):
    """lme4's deviance of each missed design, through Rscript."""
    with tempfile.TemporaryDirectory() as folder:
        rows = ["file,formula,reml"]
        for number, trial in enumerate(trials):
            design = trial.drawn.design
            data = frame(design).assign(w=1.0 if design.weights is None else design.weights)
            data.assign(o=0.0 if design.offset is None else design.offset).to_csv(Path(folder, f"{number}.csv"))
            rows.append(f"{number}.csv,{formula(design)},{str(design.reml).upper()}")
        Path(folder, "cases.csv").write_text("\n".join(rows))
        Path(folder, "fit.R").write_text(R_SCRIPT)
        out = subprocess.run(["Rscript", "fit.R"], cwd=folder, capture_output=True, text=True, check=True)
    return [float(line) if line.strip() != "NA" else np.nan for line in out.stdout.splitlines()]


def report_lme4(trials):
    """Which of the missed designs lme4 finds."""
    missed = [t for t in trials if t.verdict == "missed" and lme4_fits(t.drawn.design)]
    if not missed:
        print("\nlme4: no missed design that it can fit")
        return
    gaps = [
        (value - t.best.deviance) / max(1.0, abs(t.best.deviance))
        for value, t in zip(ask_lme4(missed), missed, strict=True)
    ]
    print(f"\nlme4 finds {sum(g <= TOLERANCE for g in gaps)} of the {len(missed)} missed ones (gaps: lme_jax, lme4)")
    for trial, gap in zip(missed, gaps, strict=True):
        print(f"  {trial.name:12s} {trial.gap:9.2e} {gap:9.2e}")


def parsed(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.hunt", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=300, help="trials, shapes in turn")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--shard", default="0/1", metavar="I/K", help="every K-th of the trials, from the I-th on")
    parser.add_argument("--shapes", default="all", help=f"all, one, several, or some of {', '.join(SHAPES)}")
    parser.add_argument("--one", metavar="SHAPE:SEED", help="a trial again, in full")
    parser.add_argument("--lanes", action="store_true", help="also as a lane of a batch, compared with the single fit")
    parser.add_argument("--lme4", action="store_true", help="ask lme4 about the missed ones")
    parser.add_argument("--worst", type=int, default=10, help="trials to print")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a trial is bad (judge.is_bad)")
    return parser.parse_args(arguments)


def drawn_trials(options):
    """The designs that the command line asks for."""
    if options.one:
        shape, seed = options.one.split(":")
        return [draw(shape, int(seed))]
    groups = {"all": SHAPES, "one": designs.SHAPES, "several": crossings.SHAPES}
    shapes = list(groups.get(options.shapes, options.shapes.split(",")))
    first, step = map(int, options.shard.split("/"))
    return [draw(shapes[i % len(shapes)], options.seed + i // len(shapes)) for i in range(first, options.n, step)]


def judged(drawn_designs, lanes):
    """The trials by the way of fitting; every bad one is named at once."""
    kinds = {"lmer": [], "large engines": [], "lanes": []}
    for drawn in drawn_designs:
        fitters = {"lmer": fit} | ({} if is_single(drawn.design) else {"large engines": fit_large})
        for title, fitter in (fitters | ({"lanes": fit_lane} if lanes else {})).items():
            trial = judge(drawn, fitter)
            kinds[title].append(trial)
            if is_bad(trial):
                print(f"{title}: {trial.name} {trial.verdict}", flush=True)
    return kinds


def main(arguments=None):
    """Draw, fit, judge, print; the number of bad trials."""
    options = parsed(arguments)
    kinds = judged(drawn_trials(options), options.lanes)
    for title, trials in kinds.items():
        if trials:
            report(trials, options.worst, title)
    if options.one:
        print("\n".join(lines_of(kinds["lmer"][0])))
    if options.lanes:
        pairs = zip(kinds["lmer"], kinds["lanes"], strict=True)
        apart = [a.name for a, b in pairs if not same(a, b)]
        print(f"  lane and lmer differ in {len(apart)}: {' '.join(apart[:20])}")
    if options.lme4:
        report_lme4(kinds["lmer"])
    return sum(map(is_bad, itertools.chain(*kinds.values()))) if options.strict else 0


def same(a, b):
    """Whether two trials ended in the same deviance."""
    close = abs(a.deviance - b.deviance) <= TOLERANCE * max(1.0, abs(a.best.deviance))
    return close or not np.isfinite(a.deviance + b.deviance)


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
