"""The README's examples run, in the order they are printed."""

import re
import warnings
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 5
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # singular bootstrap samples are expected and said
        for block in blocks:
            exec(compile(block, str(README), "exec"), names)
    assert abs(names["fit"].deviance - 1743.6282719599653) < 1e-6
    assert len(names["many"].fits) == 1000
    assert names["many"].converged.all()
