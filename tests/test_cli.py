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

RUNS = sorted(path for path in CONFIGS.rglob("*.yaml") if {"model:", "data:"} <= set(path.read_text().splitlines()))
TINY = [
    "--config", str(CONFIGS / "quickstart.yaml"),
    "--data.init_args.train.init_args.num_pairs", "8",
    "--data.init_args.val.init_args.num_pairs", "4",
    "--data.init_args.calibration.init_args.num_pairs", "4",
    "--data.init_args.test.synthetic.init_args.num_pairs", "8",
    "--data.init_args.test.warped.init_args.num_pairs", "5",
    "--data.init_args.test.stereo.init_args.num_pairs", "2",
    "--trainer.callbacks", "[{class_path: ditf_probe.callbacks.MatchPictures, init_args: {num_pairs: 1}}]",
]  # fmt: skip


@pytest.mark.usefixtures("parsers_once")
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
    printed = capsys.readouterr().out
    for probe in probes:
        assert f"probe       {probe}, validation PCK@0.10 " in printed
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


def test_a_protocol_is_written_whole(tmp_path: Path) -> None:
    changed = ["--protocol.name", "geoaware", "--protocol.cells", "16", "--model.init_args.rows", "[adaln]"]
    evaluate(["test", *TINY, "--run_dir", str(tmp_path), *changed, "--trainer.callbacks=[]"])
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    schema = json.loads((Path(ditf_probe.__file__).parent / "comparison.schema.json").read_text())
    jsonschema.validate(comparison, schema)
    protocol = comparison["settings"]["protocol"]
    assert (protocol["name"], protocol["changed"], protocol["matching"]) == ("geoaware", ["cells"], "window_softargmax")
    assert comparison["settings"]["scoring"]["strict"]
    assert comparison["datasets"]["synthetic"]["statistic"] == "per_image"


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
        (["--protocol", "nope"], ("protocol", "nope", "geoaware")),
        (["--protocol.name", "dift", "--protocol.window", "4"], ("window", "4")),
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


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (["--model.init_args.learning_rat", "1"], "learning_rat' is not accepted: correct its name or leave it out"),
        (["--model.init_args.features.tap", "mpl"], "Got value: mpl"),
        (["--trainer.max_epochs", "abc"], "Given value: abc"),
        (
            ["--model.init_args.probes", "{own: {class_path: no_such_file.Head}}"],
            "No module named 'no_such_file': put its file beside train.py, or its folder into PYTHONPATH",
        ),
        (
            ["--model.init_args.probes", "{own: {class_path: ditf_probe.probes.LinearProbe, init_args: {widht: 9}}}"],
            "Option 'widht' is not accepted: correct its name or leave it out",
        ),
    ],
)
def test_a_refused_configuration_is_told_without_all_of_it(
    words: list[str], ends: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(train, ["fit", *TINY, "--run_dir", str(tmp_path / "run"), *words], capsys)
    assert line.endswith(ends)
    assert len(line) < 250
    assert not (tmp_path / "run").exists()


def test_a_text_file_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "last.ckpt"
    file.write_text("hello")  # torch takes its first letter for an instruction
    line = refused(train, ["fit", *TINY, "--run_dir", str(tmp_path / "run"), "--ckpt_path", str(file)], capsys)
    assert "ckpt_path" in line
    assert "not a whole checkpoint" in line


def test_unwritable_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "run_dir" in refused(train, ["fit", *TINY, "--run_dir", str(file / "run")], capsys)


def test_predictions_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--from-predictions" in refused(evaluate, ["--from-predictions", str(tmp_path)], capsys)


def test_commands_refuse_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/no/such/model" in refused(main, ["select", "--backbone", "/no/such/model"], capsys)


@pytest.mark.parametrize("ckpt_path", ["last", "no/such.ckpt"])
def test_a_checkpoint_that_is_not_there(ckpt_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(train, ["fit", *TINY, "--run_dir", str(tmp_path), "--ckpt_path", ckpt_path], capsys)
    assert "ckpt_path" in line
    assert ckpt_path in line
    assert not (tmp_path / "probes").exists()


def test_a_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(b"no checkpoint")
    line = refused(train, ["fit", *TINY, "--run_dir", str(tmp_path), "--ckpt_path", str(damaged)], capsys)
    assert str(damaged) in line


def test_a_checkpoint_of_other_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["fit", *TINY, "--run_dir", str(tmp_path), "--trainer.max_epochs"]
    train([*run, "1"])
    narrower = "--model.init_args.probes.linear.init_args.width=8"
    line = refused(train, [*run, "2", "--ckpt_path", "last", narrower], capsys)
    assert "ckpt_path" in line
    train([*run, "2", "--ckpt_path", "last"])


def test_pf_willow_looks_for_the_photos_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pf-willow", "--root", "/no/such/folder", "--run-dir", str(tmp_path / "run")]
    assert "/no/such/folder" in refused(main, words, capsys)
    assert not (tmp_path / "run").exists()
