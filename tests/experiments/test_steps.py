"""What is done of an experiment is left alone, what was killed goes on, and what others left is not taken for it."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from ditf_probe.backbones.loading import PACKAGED
from ditf_probe.experiments.plans import Command
from ditf_probe.experiments.steps import perform
from ditf_probe.probes import LinearProbe, describe_probe, save_probe

Ran = list[Command]


class Programs:
    """Stand in place of `train.py` and `eval.py`: leave what these leave, and can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran, self.killed = folder, Ran(), False
        self.config = folder / "one.yaml"
        self.config.write_text("a: 1\n")

    @property
    def fit(self) -> Command:
        return ["train.py", "fit", "--config", str(self.config), "--run_dir", str(self.folder / "fit")]

    @property
    def test(self) -> Command:
        words = ["--config", str(self.config), "--run_dir", str(self.folder / "all")]
        return ["eval.py", "test", *words, "--probe", str(self.folder / "fit" / "probes" / "linear")]

    def __call__(self, command: Command) -> None:
        self.ran.append(command)
        if command[1] == "fit":
            (self.folder / "fit" / "checkpoints").mkdir(parents=True, exist_ok=True)
            torch.save({"global_step": 3}, self.folder / "fit" / "checkpoints" / "last.ckpt")
            save(self.folder / "fit" / "probes" / "linear", LinearProbe(4, [1], width=2))
            if self.killed:
                raise KeyboardInterrupt
        else:
            (self.folder / "all" / "comparison.json").write_text('{"datasets": {}}')

    def again(self) -> Ran:
        """What runs when the experiment is asked for once more."""
        self.ran = Ran()
        for command in (self.fit, self.test):
            perform(command, self)
        return self.ran


def save(folder: Path, probe: nn.Module) -> None:
    save_probe(folder, probe.state_dict(), describe_probe(probe, features={}, backbone={}, training={}))


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_each_step_is_done_once(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    assert programs.again() == [programs.fit, programs.test]
    assert programs.again() == []
    assert capsys.readouterr().out.count("done before") == 2


def test_a_killed_training_goes_on(programs: Programs) -> None:
    programs.killed = True
    with pytest.raises(KeyboardInterrupt):
        programs.again()
    programs.killed = False
    assert programs.again() == [[*programs.fit, "--ckpt_path", "last"], programs.test]
    assert programs.again() == []


def test_without_a_whole_checkpoint_it_starts_anew(programs: Programs) -> None:
    programs.killed = True
    with pytest.raises(KeyboardInterrupt):
        programs.again()
    programs.killed = False
    last = programs.folder / "fit" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    assert programs.again() == [programs.fit, programs.test]


def test_another_configuration_starts_anew(programs: Programs) -> None:
    programs.again()
    save(programs.folder / "fit" / "probes" / "outdated", LinearProbe(4, [1], width=2))
    programs.config.write_text("a: 2\n")
    assert programs.again() == [programs.fit, programs.test]
    assert not (programs.folder / "fit" / "probes" / "outdated").exists()


def test_other_weights_of_the_backbone_start_anew(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.again()
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    monkeypatch.setitem(PACKAGED, "ditf-tiny", other)
    assert programs.again() == [programs.fit, programs.test]


def test_what_is_missing_is_done_and_what_rests_on_it(programs: Programs) -> None:
    programs.again()
    (programs.folder / "all" / "comparison.json").unlink()
    assert programs.again() == [programs.test]
    shutil.rmtree(programs.folder / "fit")
    assert programs.again() == [programs.fit, programs.test], "heads differ, so that their test is no longer theirs"


def test_heads_that_a_training_has_lost_are_trained_anew(programs: Programs) -> None:
    """Not gone on with: a training that has ended has nothing left to train."""
    programs.again()
    shutil.rmtree(programs.folder / "fit" / "probes" / "linear")
    assert programs.again() == [programs.fit, programs.test]
    assert programs.again() == []


def test_other_programs_always_run(programs: Programs) -> None:
    for _ in range(2):
        perform(["ditf-probe", "select", "--run-dir", "grid"], programs.ran.append)
    assert len(programs.ran) == 2
