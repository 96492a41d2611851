"""statsmodels' own tests of MixedLM, run on ours in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("statsmodels.regression.tests.test_lme")


@pytest.mark.slow
def test_statsmodels_suite():
    script = Path(__file__).with_name("run_statsmodels_tests.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:]
