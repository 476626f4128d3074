import contextlib
import io
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

ROOT = Path(__file__).parents[2]
TINY_MODEL = ["--blocks", "4", "--width", "32", "--head-dim", "16", "--vae-channels", "8", "8", "--threads", "1"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports one benchmark of this checkout."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: import_module(f"benchmarks.{name}")


@pytest.fixture
def tiny_model() -> list[str]:
    """Sizes of a model that costs nothing: 4 blocks, 4 pixels per side of a token."""
    return list(TINY_MODEL)


@pytest.fixture
def parts_here(benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], None]:
    """Parts of a benchmark run in this process: libraries take seconds to load in another."""

    def measure_apart(argument: str, value: str, arguments: Sequence[str]) -> Any:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            benchmark(arguments[0]).main(list(arguments[1:]))
        return benchmark("measuring").json.loads(output.getvalue())

    return lambda module: monkeypatch.setattr(module, "measure_apart", measure_apart)


@pytest.fixture
def runs_here(benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """`eval.py` runs in this process, on one rank whatever it is asked for; the list holds what it was called with."""
    runs, called = benchmark("runs"), []

    def run_apart(argument: str, value: str, words: list[str], threads: int) -> Any:
        from ditf_probe.cli import evaluate

        called.append(words)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            evaluate(words[1:])
        return benchmark("measuring").Finished(output.getvalue(), 2.0, 3.0)

    original = runs.evaluate

    def evaluate_here(
        folder: Path, words: Sequence[str], more: Any, ranks: int = 1, threads: int = 1, **others: Any
    ) -> Any:
        return original(folder, words, more, 1, threads, **others)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runs, "run_apart", run_apart)
    monkeypatch.setattr(runs, "evaluate", evaluate_here)
    return called


@pytest.fixture
def willow(tmp_path: Path) -> Path:
    """Two sets of two photos."""
    root = tmp_path / "PF-dataset-WILLOW"
    for seed in range(4):
        folder = root / ("car(G)" if seed < 2 else "duck(S)")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
        savemat(folder / f"{seed}.mat", {"pts_coord": np.array([[3.0, 10.5, 20.0], [4.0, 2.0, 15.25]])})
    return root
