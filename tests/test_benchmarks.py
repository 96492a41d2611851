"""The benchmark house: its referee, its void rule, its workers. No time is asserted."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import lme_jax
from benchmarks import config, engines, problems, ready, report, report_ready, worker
from benchmarks.adapters import adapter
from benchmarks.evaluate import VOID_ABOVE, deviance_at
from benchmarks.floor import Rates, floor
from benchmarks.measure import Plan, Row, _compare, measure
from benchmarks.problem import arrays, read_problem
from benchmarks.written import NUMBERS, read_exploration, shapes

# Polished in R (tests/reference), REML.
SLEEPSTUDY = 1743.6282719599653


@pytest.fixture(scope="module")
def sleepstudy():
    return problems.sleepstudy()


def test_a_worker_reads_what_was_written(tmp_path, sleepstudy):
    Y = np.stack([sleepstudy.y, sleepstudy.y + 1.0])
    for problem in (replace(sleepstudy, responses=Y), problems.nested(60, 12, 4)):
        problem.write(tmp_path)
        read = read_problem(tmp_path)
        assert read.formula == problem.formula
        assert (read.random, read.reml, read.nested) == (problem.random, problem.reml, problem.nested)
        assert all(np.array_equal(read.columns[name], problem.columns[name]) for name in problem.columns)
        assert (read.responses is None) == (problem.responses is None)


@pytest.mark.parametrize("engine", ["lme_jax_core", "lme_jax_formula", "statsmodels"])
def test_the_referee_finds_the_reference_at_every_engines_estimates(sleepstudy, engine):
    own = adapter(engine, sleepstudy)
    fitted = own.fit()
    referee = deviance_at(own.relative(fitted), arrays(sleepstudy).compress(), reml=True)
    assert referee == pytest.approx(SLEEPSTUDY, abs=1e-6)
    # statsmodels' criterion has the same constant, so that the referee agrees with the engine itself.
    assert own.deviance(fitted) == pytest.approx(SLEEPSTUDY, abs=1e-6)


@pytest.mark.parametrize(
    "problem", [problems.penicillin(), problems.nested(400, 40, 8)], ids=lambda problem: problem.name
)
def test_several_factors_reach_the_referee_in_the_problems_order(problem):
    core, formula, peer = (adapter(name, problem) for name in ("lme_jax_core", "lme_jax_formula", "statsmodels"))
    data = arrays(problem).compress()
    expected = core.deviance(core.fit())
    for engine, tolerance in ((core, 1e-9), (formula, 1e-7), (peer, 1e-5)):
        # statsmodels stops at a gradient norm: within 1e-5 of the optimum.
        assert deviance_at(engine.relative(engine.fit()), data, reml=True) == pytest.approx(expected, abs=tolerance)


def test_a_batch_hands_in_the_estimates_of_each_response(sleepstudy):
    problem = replace(sleepstudy, responses=problems.bootstrap(3).responses)
    engine = adapter("lme_jax_many", problem)
    fits = engine.fit_all(problem.responses)
    for number, y in enumerate(problem.responses):
        data = arrays(problem).with_response(y).compress()
        single = lme_jax.fit(data, reml=True)
        assert deviance_at(engine.relative_of(fits, number), data, reml=True) == pytest.approx(
            single.deviance, abs=1e-8
        )


def test_a_time_far_from_the_optimum_is_void():
    def row(*deviances):
        return Row("p", "glmm", first=[1.0], times=[0.5], deviances=list(deviances))

    best, close, far, lost = row(10.0), row(10.0 + 0.5 * VOID_ABOVE), row(10.0 + 2 * VOID_ABOVE), row(float("nan"))
    _compare([best, close, far, lost])
    assert [r.void for r in (best, close, far, lost)] == [False, False, True, True]
    assert [r.warm for r in (best, close, far, lost)] == [0.5, 0.5, None, None]
    # Of many responses most must be at the optimum.
    mostly, rarely = row(1.0, 1.0, 1.5), row(1.0, 1.5, 1.5)
    _compare([row(1.0, 1.0, 1.0), mostly, rarely])
    assert [mostly.void, rarely.void] == [False, True]


def test_a_slow_first_fit_is_not_repeated():
    assert len(worker.repeat(lambda: None, 3, 1.0)[0]) == 4
    assert len(worker.repeat(lambda: None, 3, 1.0, slow=0.0)[0]) == 1


def test_an_engine_that_cannot_fit_a_problem_is_skipped_with_the_reason(sleepstudy, monkeypatch):
    absent = replace(engines.ENGINES["glmm"], package="no_such_engine")
    assert engines.reason_to_skip(absent, sleepstudy) == "not installed"
    monkeypatch.setattr(engines.shutil, "which", lambda program: None)
    engines.missing.cache_clear()
    assert engines.reason_to_skip(engines.ENGINES["lme4"], sleepstudy) == "no Rscript"
    assert engines.reason_to_skip(engines.ENGINES["MixedModels"], sleepstudy) == "no julia"
    engines.missing.cache_clear()
    present = engines.ENGINES["statsmodels"]
    assert engines.reason_to_skip(present, problems.crossed(2_000, 100, 10)) == "would take minutes"
    no_reml = replace(present, reml=False)
    assert engines.reason_to_skip(no_reml, sleepstudy) == "ML only"


@pytest.mark.slow
def test_rounds_in_processes_of_their_own_become_a_report(tmp_path, sleepstudy):
    names = ["lme_jax_core", "statsmodels"]
    rows = measure(sleepstudy, names, Plan(rounds=2, repeats=2, seconds=5.0))
    for row in rows:
        assert row.skipped is None
        assert len(row.first) == 2
        assert len(row.times) == 4
        assert row.deviances == [pytest.approx(SLEEPSTUDY, abs=1e-6)]
        assert {"Python", "BLAS (NumPy)"} < set(row.versions)
    found = run_of(sleepstudy, [row.as_dict() for row in rows])
    text = report.markdown(json.loads(json.dumps(found)))
    assert text.count(sleepstudy.title) == 2
    assert "| statsmodels |" in text


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["sleepstudy", "responses"])
def test_r_hands_in_the_same_protocol(problem, sleepstudy):
    reason = engines.missing(engines.ENGINES["lme4"])
    if reason:
        pytest.skip(f"lme4: {reason}")
    if problem == "responses":
        sleepstudy = replace(sleepstudy, responses=problems.bootstrap(3).responses)
    (row,) = measure(sleepstudy, ["lme4"], Plan(1, 1, 1.0))
    assert row.skipped is None
    if problem == "sleepstudy":
        assert row.deviances == [pytest.approx(SLEEPSTUDY, abs=1e-6)]
    else:
        assert len(row.deviances) == 3
    assert row.versions["lme4"]


def test_a_worker_that_fails_is_skipped_with_its_last_words(sleepstudy):
    columns = {name: column for name, column in sleepstudy.columns.items() if name != "x"}
    (row,) = measure(replace(sleepstudy, columns=columns | {"x": columns["y"] * np.nan}), ["statsmodels"], Plan(1, 0))
    assert row.skipped.startswith("failed: ")
    assert row.warm is None


def test_a_void_time_is_not_printed_and_ratios_are_to_the_formula(sleepstudy):
    def row(engine, warm, behind):
        made = Row("sleepstudy", engine, first=[9.0], times=[warm], behind=[behind], extra_mb=1.0, input_mb=1.0)
        return made.as_dict()

    skipped = Row("sleepstudy", "lme4", skipped="no Rscript").as_dict()
    rows = [row("lme_jax_formula", 0.002, 0.0), row("glmm", 0.001, 2e-9), row("mixedlm", 0.004, 3e-4), skipped]
    text = report.markdown(run_of(sleepstudy, rows))
    assert "| lme_jax, formula | 9 s | 2 ms | 1 | 0e+00 |" in text
    assert "| glmm | 9 s | 1 ms | 0.5 | 2e-09 |" in text
    assert "| mixedlm |  | void |  | 3e-04 |" in text
    assert "lme4, no Rscript" in text
    assert report.seconds(0.0123) == "12.3 ms"


def test_floors_count_levels_of_equal_design_once(sleepstudy):
    rates = Rates(1e9, 1e9)
    balanced = floor(sleepstudy, rates)
    uneven = floor(replace(sleepstudy, columns=sleepstudy.columns | {"x": sleepstudy.y}), rates)
    assert balanced["mflop"] < uneven["mflop"]
    assert balanced["mb"] == uneven["mb"] == pytest.approx(180 * (8 + 16 + 16 + 4) / 1e6)
    nested = floor(problems.nested(2_000, 200, 10), rates)
    crossed = floor(problems.crossed(2_000, 200, 10), rates)
    assert nested["mflop"] < crossed["mflop"]


@pytest.mark.parametrize("name", config.CONFIGURATIONS)
def test_every_case_names_known_engines(name):
    for case in config.CONFIGURATIONS[name].cases:
        assert set(case.engines) <= set(engines.ENGINES)


# ---------------------------------------------------------------- ready at once


def test_sixty_shapes_of_model_in_one_process_leave_nothing_behind():
    """Fits and summaries of NumPy data run without JAX, whose programs each held hundreds of memory maps."""
    command = [sys.executable, "-m", "benchmarks.shapes", "60"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["fits"] == 60
    assert not found["jax"]
    half, end = found["maps"]
    assert end < 20_000
    # An arena of the allocator or two.
    assert end <= half + 20


def test_shapes_differ():
    every = shapes(600)
    assert len(set(every)) == 600
    assert shapes(60) == shapes(60)
    assert {formula.split(" + ")[0] for formula, _ in shapes(60)} <= {f"y ~ {part.split(' + ')[0]}" for part in NUMBERS}


def test_an_exploration_reads_what_was_written(tmp_path):
    exploration = problems.chickweight()
    exploration.write(tmp_path)
    read = read_exploration(tmp_path)
    assert [p.formula for p in read.problems()] == [p.formula for p in exploration.problems()]
    assert [p.random for p in read.problems()] == [p.random for p in exploration.problems()]
    assert list(read.data.Diet.cat.categories) == list(exploration.data.Diet.cat.categories)
    assert (tmp_path / "formulas.txt").read_text().count("\n") == 24


@pytest.mark.parametrize("number", [4, 7, 11, 14])  # slopes, correlated and not, and a square
def test_engines_agree_on_a_formula_as_a_person_writes_it(number):
    problem = problems.chickweight().problems()[number]
    ours, peer = (adapter(name, problem) for name in ("lme_jax_formula", "statsmodels"))
    fitted = ours.fit()
    data = ready.compressed(problem)
    expected = ours.deviance(fitted)
    assert deviance_at(ours.relative(fitted), data, reml=True) == pytest.approx(expected, abs=1e-8)
    assert deviance_at(peer.relative(peer.fit()), data, reml=True) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_an_exploration_becomes_a_table(monkeypatch):
    monkeypatch.setattr(ready, "EXPLORERS", ("lme_jax_formula", "statsmodels", "lme4"))
    found = json.loads(json.dumps(ready.explore(problems.one_formula(), 1, lambda _: None)))
    for row in found["rows"]:
        if row["skipped"] is None:
            assert row["behind"] == [pytest.approx(0.0, abs=1e-6)]
            assert row["import"] + row["read"] + sum(row["first_fit"] + row["first_summary"]) < row["total"]
            assert len(row["next_fit"]) == len(row["next_summary"]) == 1
    text = report_ready._exploration(found)
    assert "| statsmodels |" in text
    assert text.count("1 of 1") == sum(row["skipped"] is None for row in found["rows"])


def test_a_formula_that_an_engine_cannot_fit_is_named():
    able = {"fit": [0.1, 0.01], "summary": [0.2, 0.02], "behind": 2e-3}
    unable = {"fit": [], "summary": [], "failed": "ValueError: no such term"}
    run = {"boot": 0.1, "import": 0.5, "read": 0.1, "total": 1.0, "models": [able, unable]}
    row = {"engine": "glmm", "skipped": None} | ready._summary([run])
    absent = {"engine": "lme4", "skipped": "no Rscript"}
    text = report_ready._exploration({"title": "t", "models": 2, "rows": [row, absent]})
    assert (
        "| glmm | 1 s |  | 500 ms | 100 ms | 200 ms | 300 ms | 300 ms | 30 ms | 2e-03 (1 formulas) | 1 of 2 |" in text
    )
    assert "| lme4 | no Rscript |" in text
    assert "glmm, 1 formulas: ValueError: no such term" in text


def test_packages_are_counted_by_their_own_modules():
    found = ready.packages("import lme_jax")
    assert {"lme_jax", "numpy", "pandas"} <= set(found["seconds"])
    assert not {"jax", "jaxlib", "statsmodels", "formulaic", "matplotlib"} & set(found["seconds"])


def test_another_checkout_takes_turns(tmp_path, sleepstudy):
    (tmp_path / "lme_jax").mkdir()
    (tmp_path / "lme_jax" / "__init__.py").write_text("raise ImportError('the other one')")
    assert engines.from_checkout("glmm", str(tmp_path)) is None
    other = engines.from_checkout("lme_jax_core", str(tmp_path))
    try:
        (row,) = measure(sleepstudy, [other], Plan(1, 0))
        assert row.skipped == "failed: ImportError: the other one"
        assert engines.own_name(other) == "lme_jax_core"
    finally:
        del engines.ENGINES[other]


def test_ratios_to_another_checkout(sleepstudy, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "lme_jax_core@other", engines.ENGINES["lme_jax_core"])
    own, other = (
        Row("p", name, first=[1.0], times=times, extra_mb=1.0).as_dict()
        for name, times in (("lme_jax_core", [0.2, 0.3, 0.4]), ("lme_jax_core@other", [0.1, 0.2, 0.3]))
    )
    text = report._against(run_of(sleepstudy, [own, other]))
    assert "| lme_jax, arrays | 1 s | 1 s | 1.00 | 1.00 | 300 ms | 200 ms | 1.50 | 2.00 |" in text


def test_the_command_line_explains_itself():
    shown = subprocess.run([sys.executable, "-m", "benchmarks.run", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "--only" in shown.stdout


def run_of(problem, rows):
    machine = {"cpu": "c", "threads": 2, "memory_gb": 1.0, "load": 0.0, "bytes_per_s": 1e9, "flops_per_s": 1e9}
    entry = {"name": problem.name, "title": problem.title, "sweep": None, "size": 0.0, "responses": 0, "rows": rows}
    return {
        "configuration": "small",
        "date": "2000-01-01",
        "commit": "c",
        "machine": machine,
        "wall_s": 60.0,
        "ready": None,
        "derivatives": [],
        "problems": [entry | {"floor": floor(problem, Rates(1e9, 1e9))}],
    }
