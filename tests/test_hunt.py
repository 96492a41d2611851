"""A few hundred of the 10 000 random designs that ``python -m tests.hunt`` draws, with fixed seeds."""

import pytest

from tests import hunt, judge
from tests.oracles import crossings, designs

PARTS = [["--n", "60", "--shard", shard] for shard in ("0/1", "0/2", "1/2")]


def hunted(shape, seeds, *fitters):
    """Fail with every bad trial in full."""
    trials = [judge.judge(judge.draw(shape, seed), fitter) for seed in seeds for fitter in fitters]
    bad = list(filter(judge.is_bad, trials))
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


SPOILED = {
    "missed": lambda d, found: found._replace(theta=1.3 * found.theta),
    "digits": lambda d, found: found._replace(deviance=found.deviance * (1 + 1e-7)),
    "status": lambda d, found: found._replace(status="singular"),
    "not_converged": lambda d, found: found._replace(status="stalled"),
    "score": lambda d, found: found._replace(result=judge.fit(d._replace(y=d.y[::-1])).result),
    "estimates": lambda d, found: found._replace(result=judge.fit(d._replace(reml=not d.reml)).result),
}


@pytest.fixture(scope="module")
def regular():
    """A design with an ordinary optimum."""
    drawn = (crossings.draw("crossed_slopes", seed) for seed in range(99))
    tame = (d for d in drawn if d.benign and judge.kind_of(d) == "usual")
    return next(d for d in tame if judge.judge(d, search=False).message == "converged")


@pytest.mark.parametrize("word", SPOILED)
def test_the_judge_finds_what_is_wrong(word, regular):
    assert judge.judge(regular).verdict == "optimum"
    trial = judge.judge(regular, lambda design: SPOILED[word](design, judge.fit(design)))
    assert trial.verdict == word
