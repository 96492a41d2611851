"""Run every notebook here in place: ``python notebooks/execute.py``, or ``make notebooks``."""

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
# What would tell whose machine it was: temporary cells, site-packages, home folders.
MACHINE_PATH = re.compile(r"(?:/tmp/|/home/|/Users/|/root/|site-packages|[A-Z]:\\\\)")

# tqdm warns, with its path, where ipywidgets is not installed; the notebooks show no bars.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(HERE))
    # Which Python ran it would only make the file differ.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    text = nbformat.writes(notebook)
    if found := MACHINE_PATH.search(text):
        sys.exit(f"{path.name}: an output contains a machine's path near {text[found.start() : found.start() + 60]!r}")
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    for each in sorted(HERE.glob("*.ipynb")):
        execute(each)
