"""Every command of every experiment is one that the programs take, and what is held out is held out."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ditf_probe.cli import evaluate, train
from ditf_probe.commands import main
from ditf_probe.commands.main import _parser
from ditf_probe.data.subsets import HeldOut
from ditf_probe.data.synthetic import CATEGORIES, SyntheticPairs
from ditf_probe.experiments.plans import FOLDER, PLANS, Command, Options, aggregations, generalise
from ditf_probe.sweeping.grid import grid
from ditf_probe.sweeping.runs import Sweep

FULL = Options(Path("runs"), "store", "willow")


def every(**changes: Any) -> list[Command]:
    options = Options(**{"run_dir": Path("runs"), "store": "store", "root": "willow"} | changes)
    return [command for plan in PLANS.values() for command in plan(options)] + list(
        generalise(Options(options.run_dir, options.store, None, options.smoke))
    )


def steps(command: Command) -> list[Command]:
    """The command itself, or the trainings of a sweep."""
    if command[:2] != ["ditf-probe", "sweep"]:
        return [command]
    asked = _parser().parse_args(command[1:])
    sweep = Sweep(Path(asked.root) / asked.name, tuple(asked.config), tuple(asked.set))
    return [["train.py", *sweep.words("fit", overrides)] for overrides in grid(asked.over)]


def configuration(command: Command) -> tuple[str, ...]:
    """What decides whether it parses: its program, files, and the keys of its overrides."""
    names = (word.partition("=")[0] if word.startswith("--") else word for word in command)
    return tuple(name for name in names if name.startswith("--") or name.endswith((".yaml", ".py")))


COMMANDS = {configuration(step): step for command in every(smoke=True) for step in steps(command)}


@pytest.mark.usefixtures("parsers_once")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: " ".join(command[:2]))
def test_every_command_parses(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = command
    if program == "ditf-probe":
        _parser().parse_args(words)
        return
    with pytest.raises(SystemExit) as end:
        (train if program == "train.py" else evaluate)([*words, "--print_config"])
    assert end.value.code == 0
    stored = any(word.endswith(".store=store") for word in words)
    assert ("store: store" in capsys.readouterr().out) == stored


def test_every_file_of_the_folder_is_part_of_an_experiment() -> None:
    named = {word for command in every() for word in command if word.endswith(".yaml")}
    assert named == {str(path) for path in FOLDER.rglob("*.yaml")}


def test_a_smoke_run_alone_is_small_and_stands_apart() -> None:
    full, smoke = every(), every(smoke=True)
    assert len(full) == len(smoke) == 9 + 1 + 9 + 1 + 1 + 3 + 9
    changed = [word for command in full for word in command if "num_pairs" in word or "limit" in word or "rows" in word]
    assert not changed
    for command in smoke:
        places = [word for word in command if word.startswith("runs")]
        assert places
        assert all(word == "runs/smoke" or word.startswith("runs/smoke/") for word in places)


def test_trained_heads_are_those_that_are_compared() -> None:
    *fits, test = list(PLANS["heads"](Options(Path("runs"), "store")))
    probes = test[test.index("--probe") + 1 :]
    folders = [command[command.index("--run_dir") + 1] for command in fits]
    assert [any(probe.startswith(f"{folder}/probes/") for folder in folders) for probe in probes] == [True] * 12
    assert set(map(str, aggregations(Options(Path("runs"), "store")).values())) <= set(probes)


def test_no_store_is_asked_for_what_adapters_change() -> None:
    frozen, adapted, test = PLANS["adapters"](FULL)
    asked = "--model.init_args.features.store=store"
    assert (asked in frozen, asked in adapted, asked in test) == (True, False, False)
    assert ("--model.init_args.lora=null" in frozen, "--model.init_args.lora=null" in adapted) == (True, False)


def part(name: str, place: str) -> HeldOut:
    tree = yaml.safe_load((FOLDER / "pairs" / f"{name}.yaml").read_text())["data"]["init_args"]
    given = tree["test"][place] if place in ("seen", "unseen") else tree[place]
    settings = dict(given["init_args"])
    whole = settings.pop("dataset")["init_args"]
    return HeldOut(SyntheticPairs(whole["split"], 24), **settings)


def shown(dataset: HeldOut) -> set[tuple[str, int]]:
    """Category and row of every keypoint that a part shows."""
    pairs = (dataset[index] for index in range(len(dataset)))
    return {(pair.category, int(row)) for pair in pairs for row in torch.nonzero(pair.visible)}


@pytest.mark.parametrize("name", ["unseen_categories", "unseen_keypoints"])
def test_unseen_is_unseen(name: str) -> None:
    train, val, seen, unseen = (shown(part(name, place)) for place in ("train", "val", "seen", "unseen"))
    assert not unseen & (train | val | seen)
    assert seen <= train | val
    categories = {category for category, _ in unseen}
    assert categories == ({"bird", "chair", "flower"} if name == "unseen_categories" else set(CATEGORIES))


def test_help_and_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["experiment", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PLANS)
    for words in (["layers"], ["transfer"], ["transfer", "--root", "/no/such/folder"]):
        with pytest.raises(SystemExit) as end:
            main(["experiment", *words, "--run-dir", str(tmp_path / "run")])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("error: ") == 1
    assert not list(tmp_path.rglob("probes"))
