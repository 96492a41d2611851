"""A few hundred of the 10 000 random designs that ``python -m tests.hunt`` draws, with fixed seeds."""

import pytest

from tests import hunt, judge
from tests.oracles import crossings, designs

# Where double precision is at its end, only what is wrong by any measure.
ALWAYS = ("missed", "better", "status", "raised")
PARTS = [["--n", "60", "--shard", shard] for shard in ("0/1", "0/2", "1/2")]


def is_bad(trial):
    words = hunt.BAD if judge.kind_of(trial.drawn) == "usual" else ALWAYS
    refused = trial.verdict == "refused" and not judge.must_be_refused(trial.drawn.design)
    return trial.verdict in words or refused


def hunted(shape, seeds, *fitters):
    """Fail with every bad trial in full."""
    trials = [judge.judge(judge.draw(shape, seed), fitter) for seed in seeds for fitter in fitters]
    bad = list(filter(is_bad, trials))
    assert not bad, "\n".join(line for t in bad for line in judge.lines_of(t))


@pytest.mark.slow
@pytest.mark.parametrize("shape", crossings.SHAPES)
def test_several_factors(shape):
    hunted(shape, range(4), judge.fit, judge.fit_large)


@pytest.mark.slow
@pytest.mark.parametrize("shape", designs.SHAPES)
def test_one_factor(shape):
    hunted(shape, range(2), judge.fit)


def test_shards_are_the_whole(capsys):
    names = [[f"{d.shape}:{d.seed}" for d in hunt.drawn_trials(hunt.parsed(a))] for a in PARTS]
    assert sorted(names[0]) == sorted(names[1] + names[2])
    assert hunt.main(["--shapes", "crossed2,us1", "--n", "4", "--strict"]) == 0
    assert "lmer: 4 trials" in capsys.readouterr().out
