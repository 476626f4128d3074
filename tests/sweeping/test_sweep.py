"""Sweeps: what is run, resumed and left alone, and the one table."""

import contextlib
import csv
import json
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ditf_probe.backbones.spec import tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.cli import evaluate, train
from ditf_probe.commands import main
from ditf_probe.errors import InputError
from ditf_probe.probes import LinearProbe, describe_probe, save_probe
from ditf_probe.sweeping.forks import Forks
from ditf_probe.sweeping.grid import grid
from ditf_probe.sweeping.hparams import plain
from ditf_probe.sweeping.results import COLUMNS, scores_of
from ditf_probe.sweeping.runs import Sweep, in_process_of_its_own, reason, state
from ditf_probe.sweeping.whole import run_sweep

RATE = "model.init_args.learning_rate"
CONFIG = """
trainer: {{max_epochs: 1, accelerator: cpu, callbacks: [], enable_progress_bar: false}}
model:
  class_path: ditf_probe.tasks.ProbeTask
  init_args:
    features: backbone.yaml
    rows: [raw, adaln, same_position]
    probes: {{linear: {{class_path: ditf_probe.probes.LinearProbe, init_args: {{width: 8}}}}}}
data:
  class_path: ditf_probe.data.PairDataModule
  init_args:
    batch_size: 2
    train: {{class_path: ditf_probe.data.SyntheticPairs, init_args: {{split: train, num_pairs: 4, image_size: 32}}}}
    val: {{class_path: ditf_probe.data.SyntheticPairs, init_args: {{split: val, num_pairs: 3, image_size: 32}}}}
    test:
      drawn: {{class_path: ditf_probe.data.SyntheticPairs, init_args: {{split: test, num_pairs: 4, image_size: 32}}}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of a few pairs and a backbone of a few thousand weights, in a part of its own."""
    weights, folder = tmp_path / "small.safetensors", tmp_path / "configs"
    spec = tiny_spec("flux", ["a"], width=16, head_dim=8, blocks=2, double_blocks=1, image_size=32)
    TinyDenoiser.untrained(spec, seed=1).save(weights)
    folder.mkdir()
    (folder / "backbone.yaml").write_text(f"{{backbone: {weights}, blocks: [0], timestep: 200, image_size: 32}}")
    (folder / "run.yaml").write_text(CONFIG.format())
    return folder / "run.yaml"


def here(words: list[str], log: Path) -> int:
    """Runs a step in this process: a fork could not train where another test has."""
    with log.open("w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            (train if words[0] == "fit" else evaluate)(words)
        except SystemExit as end:
            return int(str(end.code))
    return 0


class Pretended:
    """Writes what steps would leave behind, and remembers them.

    Args:
        fails: From the words of a step to how it ends instead: an exit code, or an exception in this process.
        probes: Names of the probes that a training keeps.
    """

    def __init__(
        self,
        fails: Callable[[list[str]], int | BaseException] = lambda words: 0,
        probes: Sequence[str] = ("linear",),
    ) -> None:
        self.fails, self.probes = fails, probes
        self.steps: list[list[str]] = []

    def __call__(self, words: list[str], log: Path) -> int:
        self.steps.append(words)
        run_dir = Path(words[words.index("--run_dir") + 1])
        if words[0] == "fit":
            (run_dir / "checkpoints").mkdir(exist_ok=True)
            torch.save({"step": 1}, run_dir / "checkpoints" / "last.ckpt")
        end = self.fails(words)
        if isinstance(end, BaseException):
            raise end
        log.write_text("Epoch 0\nerror: `width` is 0: use more\nbye\n" if end else "done\n")
        if end:
            return end
        if words[0] == "fit":
            probe = LinearProbe(4, [0], width=2)
            told = {"val_pck_0.10_per_point": 12.5}
            facts = describe_probe(probe, features={"blocks": [0]}, backbone={}, training=told)
            for name in self.probes:
                save_probe(run_dir / "probes" / name, probe.state_dict(), facts)
        else:
            (run_dir / "comparison.json").write_text(json.dumps(COMPARISON))
        return 0

    def verbs(self) -> list[str]:
        return [words[0] for words in self.steps]


def row_of(name: str, kind: str, score: float, gain: dict[str, Any] | None = None) -> dict[str, Any]:
    pck = {"per_point": {"0.05": score / 2, "0.10": score}, "per_image": {"0.05": 1.0, "0.10": 2.0}}
    delta = {"reference": "adaln", "value": score - 20, "ci95": [-1.0, 3.0]}
    facts = {"ci95": [score - 1, score + 1], "delta": delta, "delta_best_zero_shot": gain, "parameters": 96}
    return {"name": name, "kind": kind, "pck": pck, **facts}


GAIN = {"reference": "adaln", "value": 2.5, "ci95": [0.5, 4.5]}
ROWS = [row_of("adaln", "zero-shot", 20.0), row_of("linear", "probe", 22.5, GAIN), row_of("rgb", "control", 5.0)]
COMPARISON = {
    "datasets": {"drawn": {"statistic": "per_point", "rows": ROWS}},
    "settings": {"scoring": {"alpha": 0.1}},
}


def lines_of(sweep: Sweep) -> list[dict[str, str]]:
    with (sweep.folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def hparams_of(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Hyperparameters of the session in a folder, and its scalars."""
    events = EventAccumulator(str(folder))
    events.Reload()
    contents = events.PluginTagToContent("hparams")
    started = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in started.hparams.items()}
    return values, {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def test_runs_become_one_table_and_one_dashboard(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(tmp_path / "sweep", (str(config),), ("trainer.log_every_n_steps=1",))
    runs = grid([f"{RATE}=3e-3,-1", "seed_everything=4"])
    assert run_sweep(sweep, runs, here) == 1
    lines = lines_of(sweep)
    finished = [line for line in lines if line["state"] == "finished"]
    (run,) = {line["run"] for line in finished}
    comparison = json.loads((sweep.run_dir(run) / "comparison.json").read_text())
    assert comparison["settings"]["probes"]["linear"]["training"]["learning_rate"] == 3e-3
    rows = {row["name"]: row for row in comparison["datasets"]["drawn"]["rows"]}
    assert list(rows) == ["raw", "adaln", "linear", "same_position"]
    for name, row in rows.items():
        found = [line for line in finished if line["run"] == run and line["row"] == name]
        scores = {line["metric"].removeprefix("pck_"): float(line["score"]) for line in found}
        assert scores == row["pck"]["per_point"]
        (main_line,) = [line for line in found if line["primary"] == "1"]
        assert [float(main_line["ci95_low"]), float(main_line["ci95_high"])] == row["ci95"]
        assert int(main_line["parameters"]) == row["parameters"] == (8 * 16 + 8 if name == "linear" else 0)
    hparams, scalars = hparams_of(sweep.folder / "tensorboard" / run)
    assert hparams == {RATE: 3e-3, "seed_everything": 4.0}
    tags = {f"hparams/drawn/pck_0.10/{name}": row["pck"]["per_point"]["0.10"] for name, row in rows.items()}
    assert scalars == pytest.approx(tags, abs=1e-4)
    (failed,) = [line for line in lines if line["state"] == "failed"]
    assert (failed[RATE], failed["exit_code"], failed["row"]) == ("-1", "2", "")
    assert "`learning_rate` is -1" in failed["error"]
    assert list(dict.fromkeys(line[RATE] for line in lines)) == ["-1", "3e-3"]
    assert len(list((sweep.folder / "tensorboard").iterdir())) == 2
    printed = capsys.readouterr().out
    assert "fit failed: `learning_rate`" in printed
    assert "136" in printed
    again = Pretended()
    before = (sweep.folder / "results.csv").read_bytes()
    assert run_sweep(sweep, [run for run in runs if run[RATE] != "-1"], again) == 0
    assert not again.steps
    assert (sweep.folder / "results.csv").read_bytes() == before


def test_only_what_is_missing_is_done(config: Path, tmp_path: Path) -> None:
    sweep, runs = Sweep(tmp_path / "sweep", (str(config),)), grid(["a=1,2", "seed_everything=0,1"])
    killed = Pretended(lambda words: KeyboardInterrupt() if "--a=2" in words and words[0] == "fit" else 0)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, runs, killed)
    assert killed.verbs() == ["fit", "test", "fit", "test", "fit"]
    assert state(sweep, runs[2]) == "fit and test from last.ckpt"
    assert state(sweep, runs[3]) == "fit and test"
    assert {line["run"] for line in lines_of(sweep)} == {"a=1,seed_everything=0", "a=1,seed_everything=1"}
    failing = Pretended(lambda words: 2 if "--a=2" in words and words[0] == "test" else 0)
    assert run_sweep(sweep, runs, failing) == 2
    assert failing.verbs() == ["fit", "test", "fit", "test"]
    assert failing.steps[0][-2:] == ["--ckpt_path", "last"]
    assert "--ckpt_path" not in failing.steps[2]
    assert failing.steps[1][-2:] == ["--probe", str(sweep.run_dir("a=2,seed_everything=0") / "probes" / "linear")]
    assert state(sweep, runs[2]) == "test (failed before: `width` is 0: use more)"
    well = Pretended()
    assert run_sweep(sweep, runs, well) == 0
    assert well.verbs() == ["test", "test"]
    assert [state(sweep, run) for run in runs] == ["finished"] * 4
    (sweep.run_dir("a=1,seed_everything=0") / "comparison.json").write_text('{"datasets":')
    assert state(sweep, runs[0]) == "test"


def without(name: str, run_dir: Path) -> None:
    """Makes a record one that does not tell what was kept and compared."""
    found = json.loads((run_dir / "run.json").read_text())
    for step in found["steps"]:
        del step[name]
    (run_dir / "run.json").write_text(json.dumps(found))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("whole", [0, -20])
def test_a_training_is_done_while_what_it_kept_is_whole(config: Path, tmp_path: Path, whole: int, told: bool) -> None:
    sweep, (run,) = Sweep(tmp_path / "sweep", (str(config),)), grid(["a=1"])
    run_sweep(sweep, [run], Pretended(probes=["linear", "mix"]))
    run_dir = sweep.run_dir("a=1")
    if not told:
        without("weights", run_dir)
    assert state(sweep, run) == "finished"
    for file in run_dir.glob("probes/*/probe.safetensors"):
        file.write_bytes(file.read_bytes()[:whole])
        if not whole:
            file.unlink()
        if told:
            break  # one of them is enough
    assert state(sweep, run) == "fit and test", "not from the last checkpoint, which has nothing left to train"
    again = Pretended()
    assert run_sweep(sweep, [run], again) == 0
    assert [words[0] for words in again.steps] == ["fit", "test"]
    assert "--ckpt_path" not in again.steps[0]
    assert again.steps[1][-2:] == ["--probe", str(run_dir / "probes" / "linear")]
    assert not (run_dir / "probes" / "mix").exists()
    assert state(sweep, run) == "finished"


def test_a_comparison_outlives_its_probes(config: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep", (str(config),))
    run_sweep(sweep, grid(["a=1"]), Pretended())
    shutil.rmtree(sweep.run_dir("a=1") / "probes")
    run_sweep(sweep, grid(["a=2"]), Pretended())
    assert {line["a"] for line in lines_of(sweep) if line["row"] == "linear"} == {"1", "2"}
    alone = Sweep(tmp_path / "sweep", (str(config),), verbs=("test",))
    assert state(alone, {"a": "1"}) == "finished"


def test_a_training_that_keeps_nothing_fails(config: Path, tmp_path: Path) -> None:
    sweep, runs = Sweep(tmp_path / "sweep", (str(config),)), grid(["a=1"])
    for _ in range(2):
        nothing = Pretended(probes=())
        assert run_sweep(sweep, runs, nothing) == 1
        assert nothing.verbs() == ["fit"]
        assert "--ckpt_path" not in nothing.steps[0]
        (line,) = lines_of(sweep)
        assert (line["state"], line["exit_code"]) == ("failed", "2")
        assert "kept no weights in its folder: let validation run" in line["error"]
    assert state(sweep, runs[0]).startswith("fit and test (failed before: training kept no weights")


def test_a_training_without_validation_fails(config: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep", (str(config),), ("trainer.check_val_every_n_epoch=2",))
    assert run_sweep(sweep, grid(["seed_everything=1"]), here) == 1
    (line,) = lines_of(sweep)
    assert "trainer.check_val_every_n_epoch" in line["error"]
    assert "kept no weights" in line["error"]


def test_heads_and_denoisers_are_kept_too(config: Path, tmp_path: Path) -> None:
    for place in ("heads/adaln/probe.safetensors", "ditf_tiny.safetensors"):

        def trained(words: list[str], place: str = place) -> int:
            if words[0] == "fit":
                file = Path(words[words.index("--run_dir") + 1]) / place
                file.parent.mkdir(parents=True, exist_ok=True)
                save_file({"x": torch.zeros(1)}, file)
            return 0

        sweep, runs = Sweep(tmp_path / place / "sweep", (str(config),)), grid(["a=1"])
        pretended = Pretended(trained, probes=())
        assert run_sweep(sweep, runs, pretended) == 0
        assert pretended.verbs() == ["fit", "test"]
        assert "--probe" not in pretended.steps[1]
        assert state(sweep, runs[0]) == "finished"


@pytest.mark.parametrize("told", [True, False])
def test_a_comparison_of_before_the_training_is_made_again(config: Path, tmp_path: Path, told: bool) -> None:
    both, (run,) = Sweep(tmp_path / "sweep", (str(config),)), grid(["a=1"])
    first = Pretended()
    run_sweep(Sweep(tmp_path / "sweep", (str(config),), verbs=("test",)), [run], first)
    assert "--probe" not in first.steps[0]
    assert lines_of(both)
    before = json.loads((both.run_dir("a=1") / "run.json").read_text())["steps"]
    with pytest.raises(KeyboardInterrupt):
        run_sweep(both, [run], Pretended(lambda words: KeyboardInterrupt() if words[0] == "test" else 0))
    assert state(both, run) == "test"
    record = both.run_dir("a=1") / "run.json"
    known = json.loads(record.read_text())
    record.write_text(json.dumps(known | {"steps": [*before, *known["steps"]]}))
    if not told:
        without("weights", both.run_dir("a=1"))
    assert state(both, run) == "test", "it was made before there were probes"
    again = Pretended()
    run_sweep(both, [run], again)
    assert again.verbs() == ["test"]
    assert again.steps[0][-2:] == ["--probe", str(both.run_dir("a=1") / "probes" / "linear")]
    assert state(both, run) == "finished"


def test_steps_of_several_calls_are_those_of_one(config: Path, tmp_path: Path) -> None:
    run, pretended = {"a": "1"}, Pretended()
    for verbs in (("fit",), ("test",), ("fit", "test"), ("test",)):
        run_sweep(Sweep(tmp_path / "sweep", (str(config),), verbs=verbs), [run], pretended)
    assert pretended.verbs() == ["fit", "test"]
    assert pretended.steps[1][-2] == "--probe"


def test_copies_are_compared_by_seed(config: Path, tmp_path: Path) -> None:
    sweep, copies = Sweep(tmp_path / "sweep", (str(config),)), ["a/seed2", "a/seed10", "b2", "b10"]
    run_sweep(sweep, grid(["x=1"]), pretended := Pretended(probes=sorted(copies)))
    words = pretended.steps[1]
    assert words[words.index("--probe") + 1 :] == [str(sweep.run_dir("x=1") / "probes" / copy) for copy in copies]


def test_more_values_are_appended(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(tmp_path / "sweep", (str(config),))
    run_sweep(sweep, grid(["seed_everything=0,1"]), Pretended())
    more = Pretended()
    run_sweep(sweep, grid(["seed_everything=2"]), more)
    assert more.verbs() == ["fit", "test"]
    lines = [line for line in lines_of(sweep) if line["row"] == "linear" and line["primary"] == "1"]
    assert [line["seed_everything"] for line in lines] == ["0", "1", "2"]
    numbers = ("score", "ci95_low", "ci95_high", "delta", "delta_low", "delta_high", "gain", "gain_low", "gain_high")
    assert [float(lines[0][name]) for name in numbers] == [22.5, 21.5, 23.5, 2.5, -1.0, 3.0, 2.5, 0.5, 4.5]
    sessions = [hparams_of(folder) for folder in sorted((sweep.folder / "tensorboard").iterdir())]
    assert [hparams for hparams, _ in sessions] == [{"seed_everything": float(seed)} for seed in range(3)]
    assert all(scalars["hparams/drawn/pck_0.10/linear"] == 22.5 for _, scalars in sessions)
    printed = capsys.readouterr().out
    assert "sweep, over seeds" in printed
    assert "rgb" not in printed
    run_sweep(sweep, grid(["seed_everything=3", "model.x=1"]), Pretended())
    heads = list(lines_of(sweep)[0])
    assert {*heads[1:3]} == {"seed_everything", "model.x"}
    assert heads[3] == "state"


def test_scores_other_than_pck(tmp_path: Path) -> None:
    scores = {"mIoU": {"value": 40.0, "ci95": [38.0, 42.0], "delta": {"value": 1.5, "ci95": None}}}
    scores |= {"accuracy": {"value": None, "ci95": None, "delta": None}}
    rows = [{"name": "linear", "kind": "probe", "scores": scores, "parameters": 7, "notes": []}]
    comparison = {"datasets": {"ade": {"primary": "mIoU", "rows": rows}}, "settings": {}}
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    primary, other = scores_of(tmp_path)
    cells = ["ade", "linear", "probe", "mIoU", 1, 40.0, 38.0, 42.0, 1.5, "", "", "", "", "", 7]
    assert primary.cells() == cells
    assert dict(zip(COLUMNS, other.cells(), strict=True))["score"] == ""
    assert not other.primary


def test_a_training_alone_tells_its_validation(config: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep", (str(config),), verbs=("fit",))
    run_sweep(sweep, grid(["a=1"]), Pretended())
    (line,) = lines_of(sweep)
    assert (line["dataset"], line["row"], line["score"], line["parameters"]) == ("val", "linear", "12.5", "10")
    both = Pretended()
    run_sweep(Sweep(tmp_path / "sweep", (str(config),)), grid(["a=1"]), both)
    assert both.verbs() == ["test"]


def test_another_definition_is_refused(config: Path, tmp_path: Path) -> None:
    run_sweep(Sweep(tmp_path / "sweep", (str(config),)), grid(["a=1"]), Pretended())
    with pytest.raises(InputError, match=r"--name.*other settings, choose another name"):
        run_sweep(Sweep(tmp_path / "sweep", (str(config),), ("b=1",)), grid(["a=1"]), Pretended())
    part = config.parent / "backbone.yaml"
    part.write_text(part.read_text().replace("200", "300"))
    with pytest.raises(InputError, match=r"--name.*other files"):
        run_sweep(Sweep(tmp_path / "sweep", (str(config),)), grid(["a=1"]), Pretended())


def test_two_runs_of_one_name_are_refused(config: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep", (str(config),))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, grid(["a.rate=1"]), Pretended(lambda words: KeyboardInterrupt()))
    with pytest.raises(InputError, match=r"--over.*b\.rate.*over a\.rate has its name"):
        run_sweep(sweep, grid(["b.rate=1"]), Pretended())


def test_why_a_process_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback\n  File x\nKeyError: 'width'\n\n")
    assert reason(log, 1) == "KeyError: 'width'"
    assert reason(log, -9) == "killed by SIGKILL"
    assert reason(log, -40) == "killed by signal 40"  # between those of real time that have names
    log.write_text("")
    assert reason(log, 3) == "it said nothing"


def test_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text('#!/bin/sh\necho "$@"\necho "error: bad" >&2\nexit 3\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert in_process_of_its_own(["fit", "--config", "a b.yaml"], log) == 3
    assert log.read_text() == "-m ditf_probe.cli fit --config a b.yaml\nerror: bad\n"
    assert reason(log, 3) == "bad"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_the_module_that_it_runs(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cli", verb, "--config", "/no/such.yaml"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("ditf_probe.cli", run_name="__main__")
    assert end.value.code == 2
    assert "error:" in (said := capsys.readouterr().err)
    assert "/no/such.yaml" in said


def test_values_of_hyperparameters() -> None:
    assert [plain(text) for text in ("1e-3", "3", "true", "False", "[1, 2]", "adaln")] == [
        *(1e-3, 3.0, True, False, "[1, 2]", "adaln")
    ]


def test_a_dry_run_writes_nothing(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--config", str(config), "--over", f"{RATE}=1e-3,3e-3", "--over", "seed_everything=0,1"]
    words += ["--root", str(tmp_path / "sweeps"), "--name", "rates"]
    main([*words, "--dry-run"])
    printed = capsys.readouterr().out
    assert printed.count("fit and test") == 4
    assert f"$ python train.py fit --config {config} --{RATE}=3e-3 --seed_everything=1 --run_dir" in printed
    assert not (tmp_path / "sweeps").exists()
    main([*words, "--zip", "--verb", "test", "--set", "x=1", "--dry-run"])
    printed = capsys.readouterr().out
    assert printed.count("[") == 2
    assert f"$ python eval.py test --config {config} --x=1 --{RATE}=1e-3 --seed_everything=0" in printed
    wrongs = [["--verb", "test,fit"], ["--verb", "predict"], ["--config", "/no/such.yaml"]]
    for wrong in (*wrongs, ["--set", "x"], ["--set", "run_dir=runs"]):
        with pytest.raises(SystemExit) as end:
            main([*words, *wrong, "--dry-run"])
        assert end.value.code == 2
        assert f"`{wrong[0]}` is" in capsys.readouterr().err


def test_the_command_tells_failures(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ditf_probe.sweeping.whole.run_sweep", lambda sweep, runs, launch: 1 if launch is in_process_of_its_own else 2
    )
    with pytest.raises(SystemExit) as end:
        main(["sweep", "--config", str(config), "--over", "a=1,2", "--name", "x", "--root", str(tmp_path)])
    assert end.value.code == 1
    assert "1 of 2 runs failed" in capsys.readouterr().err


def test_a_fork_that_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> None:
        print("started", sys.argv, sys.modules["__main__"].__spec__.name)  # type: ignore[union-attr]
        if words[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError(words[1])

    monkeypatch.setattr("ditf_probe.cli.train", broken)
    monkeypatch.setattr("ditf_probe.cli.evaluate", lambda words: None)
    launch, log = Forks(), tmp_path / "log"
    assert launch(["fit", "x"], log) == 1
    assert log.read_text().startswith("started ['ditf_probe.cli', 'fit', 'x'] ditf_probe.cli\n")
    assert reason(log, 1) == "KeyError: 'x'"
    assert launch(["fit", "kill"], log) == -signal.SIGKILL
    assert launch(["test"], log) == 0
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(InputError, match="--fork"):
        Forks()
