"""statsmodels' own tests of MixedLM, run on ours in a process of their own."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = "statsmodels.regression.tests.test_lme"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(SUITE) is None, reason="this statsmodels comes without its tests")
def test_statsmodels_suite():
    script = Path(__file__).with_name("run_statsmodels_tests.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:]
