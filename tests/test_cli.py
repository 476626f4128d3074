"""The command line as a user meets it: every configuration parses, a small run goes through, bad input is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

import ditf_probe
from ditf_probe.cli import evaluate, train
from ditf_probe.commands import main
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.selection import Selection, write_preset

RUNS = sorted(path for path in CONFIGS.rglob("*.yaml") if "data:" in path.read_text())
TINY = [
    "--config", str(CONFIGS / "quickstart.yaml"),
    "--data.init_args.train.init_args.num_pairs", "8",
    "--data.init_args.val.init_args.num_pairs", "4",
    "--data.init_args.calibration.init_args.num_pairs", "4",
    "--data.init_args.test.synthetic.init_args.num_pairs", "8",
    "--data.init_args.test.warped.init_args.num_pairs", "5",
    "--data.init_args.test.stereo.init_args.num_pairs", "2",
]  # fmt: skip


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trains = "ProbeTask" in path.read_text() or "PretrainTask" in path.read_text()
    command, verb = (train, "fit") if trains else (evaluate, "test")
    with pytest.raises(SystemExit) as end:
        command([verb, "--config", str(path), "--print_config"])
    assert end.value.code == 0
    assert "class_path" in capsys.readouterr().out


def test_train_then_compare_then_recompute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--run_dir", str(tmp_path)]
    train(["fit", *TINY, *run, "--trainer.max_epochs", "1"])
    probes = [str(tmp_path / "probes" / name) for name in ("linear", "aggregation")]
    evaluate(["test", *TINY, *run, "--probe", *probes])
    text = (tmp_path / "comparison.json").read_text()
    comparison = json.loads(text)
    schema = json.loads((Path(ditf_probe.__file__).parent / "comparison.schema.json").read_text())
    jsonschema.validate(comparison, schema)
    names = [row["name"] for row in comparison["datasets"]["synthetic"]["rows"]]
    assert names == [
        "raw", "layer_norm", "adaln", "adaln+discard_pre", "adaln+discard_post", "adaln+debias",
        "linear", "aggregation", "same_position", "rgb", "untrained",
    ]  # fmt: skip
    assert list((tmp_path / "pictures").glob("warped-*.png"))
    assert "no interval" in capsys.readouterr().out
    table = (tmp_path / "comparison.csv").read_bytes()
    (tmp_path / "comparison.json").unlink()
    evaluate(["--from-predictions", str(tmp_path)])
    assert json.loads((tmp_path / "comparison.json").read_text()) == comparison
    assert (tmp_path / "comparison.csv").read_bytes() == table


def refused(command: Callable[[list[str]], None], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command(words)
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--model.init_args.rows", "[nope]"], ("rows", "nope", "adaln")),
        (["--model.init_args.features.blocks", "[99]"], ("block", "99")),
        (["--model.init_args.features.modulation", "magic"], ("modulation", "magic")),
        (["--model.init_args.features.backbone", "/no/such/model"], ("backbone", "/no/such/model")),
        (["--model.init_args.no_such_option", "1"], ("no_such_option",)),
        (["--probe", "/no/such/probe"], ("probe", "/no/such/probe", "train.py")),
        (["--data.init_args.test.synthetic.init_args.num_pairs", "0"], ("num_pairs", "0")),
        (["--data.init_args.test.warped.init_args.root", "/no/such/folder"], ("root", "/no/such/folder")),
        (["--config", "/no/such/config.yaml"], ("/no/such/config.yaml",)),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(evaluate, ["test", *TINY, "--run_dir", str(tmp_path / "run"), *words], capsys)
    for name in names:
        assert name in line
    assert not (tmp_path / "run" / "comparison.json").exists()


def test_unwritable_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "run_dir" in refused(train, ["fit", *TINY, "--run_dir", str(file / "run")], capsys)


def test_predictions_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--from-predictions" in refused(evaluate, ["--from-predictions", str(tmp_path)], capsys)


def test_commands_refuse_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/no/such/model" in refused(main, ["select", "--backbone", "/no/such/model"], capsys)


def test_a_preset_keeps_its_comments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("# why\nbackbone: ditf-tiny\nblocks: [1]\ntimestep: 5\ntap: mlp\n")
    write_preset(preset, Selection(block=3, timestep=120, tap="attention", pck=10.0))
    assert preset.read_text() == "# why\nbackbone: ditf-tiny\nblocks: [3]\ntimestep: 120\ntap: attention\n"
    line = refused(lambda _: main(["select", "--backbone", "/no/such/model", "--write", str(preset)]), [], capsys)
    assert "/no/such/model" in line
