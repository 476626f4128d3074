"""Steps as forks of a process that has everything imported already."""

import contextlib
import multiprocessing
import os
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

from ditf_probe.errors import InputError

_MODULE = "ditf_probe.cli"


class Forks:
    """Runs each step in a fork of this process, so that it starts at once; as apart as processes of their own.

    This process computes nothing meanwhile: it neither starts a pool of threads nor touches a GPU, which a fork could
    not use.

    Raises:
        InputError: This system cannot fork.
    """

    def __init__(self) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise InputError("--fork", True, "this system cannot fork processes, leave it out")
        import torch

        import ditf_probe.backbones.loading
        import ditf_probe.cli
        import ditf_probe.tasks.probe  # noqa: F401  # what nearly every step imports

        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __call__(self, words: list[str], log: Path) -> int:
        """Runs `train.py` or `eval.py` and waits; what it prints goes to the log."""
        sys.stdout.flush()
        sys.stderr.flush()
        process = multiprocessing.get_context("fork").Process(target=_step, args=(words, log, self._threads))
        process.start()
        try:
            process.join()
        except KeyboardInterrupt:
            process.terminate()
            process.join()
            raise
        return process.exitcode or 0


def _step(words: list[str], log: Path, threads: int) -> None:
    import torch

    from ditf_probe.cli import evaluate, train

    # What starts further ranks repeats the command line of the main module.
    sys.modules["__main__"].__spec__, sys.argv = find_spec(_MODULE), [_MODULE, *words]
    torch.set_num_threads(threads)
    with (
        log.open("w", encoding="utf-8", buffering=1) as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        try:
            (train if words[0] == "fit" else evaluate)(words)
        except Exception as error:  # of any kind: the process ends here, and says why
            traceback.print_exc()
            raise SystemExit(1) from error
