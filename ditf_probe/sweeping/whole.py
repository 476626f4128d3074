"""A sweep from its first run to its table."""

from collections.abc import Sequence

from ditf_probe.files import write_text
from ditf_probe.printing import console
from ditf_probe.sweeping.grid import Overrides, run_name
from ditf_probe.sweeping.hparams import FOLDER, write_hparams
from ditf_probe.sweeping.results import Score, over_seeds, scores_of, table, to_csv
from ditf_probe.sweeping.runs import Launch, Sweep, in_process_of_its_own, perform, state

RESULTS = "results.csv"


def run_sweep(sweep: Sweep, runs: Sequence[Overrides], launch: Launch = in_process_of_its_own) -> int:
    """Does what is missing of every run, one after the other; one that fails does not stop the others.

    After each run, `results.csv` in the folder of the sweep holds all runs that have ended, those of earlier calls
    among them, and `tensorboard/` a session for each.

    Args:
        sweep: What they share.
        runs: What sets each apart.
        launch: Runs a step; by default in a process of its own, `Forks()` starts it quicker.

    Returns:
        How many of the runs have failed.

    Raises:
        InputError: The folder is of another sweep or cannot be written to, or two runs have one name.
    """
    sweep.open()
    sweep.check(runs)
    names = [run_name(overrides) for overrides in runs]
    known: dict[str, list[Score]] = {}
    for number, (name, overrides) in enumerate(zip(names, runs, strict=True), 1):
        found = state(sweep, overrides)
        print(f"[{number}/{len(runs)}] {name}: {found}", flush=True)
        if found != "finished":
            known.pop(name, None)
            record = perform(sweep, overrides, launch)
            seconds = sum(step.seconds for step in record.steps)
            end = "finished" if record.failure is None else f"failed: {record.failure.error}"
            print(f"    {end} ({seconds:.0f} s)", flush=True)
        _write(sweep, known)
    records = sweep.records()
    shown_on = console()
    shown_on.print(table(sweep.folder.name, records, known))
    seeds = over_seeds(sweep.folder.name, records, known)
    if seeds is not None:
        shown_on.print(seeds)
    shown_on.print(f"results     {sweep.folder / RESULTS}", soft_wrap=True)
    shown_on.print(f"hparams     tensorboard --logdir {sweep.folder / FOLDER}", soft_wrap=True)
    return sum(record.failure is not None for record in records if record.name in names)


def _write(sweep: Sweep, known: dict[str, list[Score]]) -> None:
    """Writes the table and the session of every run that is not known yet."""
    records = sweep.records()
    for record in records:
        if record.name not in known:
            failed = record.failure is not None
            known[record.name] = [] if failed else scores_of(sweep.run_dir(record.name))
            write_hparams(sweep.folder, record, known[record.name])
    write_text(sweep.folder / RESULTS, to_csv(records, known))
