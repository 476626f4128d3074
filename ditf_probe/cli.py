"""`train.py` and `eval.py`: LightningCLI over the tasks, and errors on one line with exit code 2."""

import argparse
import gc
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from ditf_probe.callbacks.pictures import log_picture
from ditf_probe.comparison import ablation_pictures, report, report_from_predictions, report_measured
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable, is_checkpoint
from ditf_probe.protocols import Protocol
from ditf_probe.tasks import CorrespondenceTask, ExtractionTask
from ditf_probe.tasks.image_task import ImageTask


class DiTFProbeCLI(LightningCLI):
    """LightningCLI with one run folder for everything that a run writes.

    `run_dir` holds `checkpoints/` (fixed, so that `--ckpt_path last` finds them again), `tensorboard/`, `probes/`,
    `pictures/` and the comparison. `--probe FOLDER ...` adds trained probes to a comparison, `--backbone FILE ...`
    other backbones. `--protocol NAME` evaluates as published code does; `--protocol.name NAME --protocol.KNOB VALUE`
    changes it.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run folder, the probes and backbones to compare, checkpointing and early stopping."""
        parser.add_argument("--run_dir", type=str, default="runs/default", help="Folder of everything this run writes.")
        parser.add_argument("--probe", type=str, nargs="+", default=[], help="Folders of trained probes to compare.")
        parser.add_argument("--backbone", type=str, nargs="+", default=[], help="YAML files of backbones to compare.")
        parser.add_argument("--protocol", type=str | Protocol, default="default", help="Evaluation protocol.")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.link_arguments("run_dir", "checkpoint.dirpath", compute_fn=_checkpoints)
        parser.link_arguments("run_dir", "model.init_args.run_dir")
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments("run_dir", "trainer.logger.init_args.save_dir")
        parser.link_arguments("probe", "model.init_args.probe_folders")
        parser.link_arguments("backbone", "model.init_args.backbone_files")
        parser.link_arguments("protocol", "model.init_args.protocol")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, then refuses a folder or a checkpoint that cannot be used, before anything is built."""
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        ensure_writable(config.run_dir, "run_dir")
        _check_checkpoint(config.get("ckpt_path"), Path(_checkpoints(config.run_dir)) / "last.ckpt")


class TrainCLI(DiTFProbeCLI):
    """Training: `fit` only."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs of `train.py`."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def after_fit(self) -> None:
        """Says where the trained probes are, on one rank."""
        from ditf_probe.tasks import ProbeTask  # nothing that --help has to wait for

        if isinstance(self.model, ProbeTask) and self.trainer.is_global_zero:
            for name, score in self.model.best.items():
                print(f"probe       {self.model.run_dir / 'probes' / name}, validation PCK@0.10 {score:.1f}")


class EvaluateCLI(DiTFProbeCLI):
    """Evaluation: `validate`, `test`, `predict`. After a test the comparison is written and printed."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs of `eval.py`."""
        return {verb: names for verb, names in LightningCLI.subcommands().items() if verb != "fit"}

    def after_test(self) -> None:
        """Turns the records of the task into tables and files, on one rank."""
        run_dir = Path(self.config[self.subcommand].run_dir)
        if isinstance(self.model, CorrespondenceTask):
            result = self.model.result()
            if self.trainer.is_global_zero:
                for name, picture in ablation_pictures(report(result, run_dir)).items():
                    log_picture(self.trainer, f"{name}/ablation", picture)
        elif isinstance(self.model, ImageTask):
            measured = self.model.result()
            if self.trainer.is_global_zero:
                report_measured(measured, run_dir)

    def after_predict(self) -> None:
        """Says what an extraction did, on one rank."""
        if isinstance(self.model, ExtractionTask) and self.trainer.is_global_zero:
            for found in self.model.result():
                print(found.line())


def _checkpoints(run_dir: str) -> str:
    return str(Path(run_dir) / "checkpoints")


def _check_checkpoint(ckpt_path: str | None, last: Path) -> None:
    """Refuses a checkpoint that is not there or damaged; Lightning would start anew without the last one.

    Raises:
        InputError: There is no such file, or it is no checkpoint.
    """
    if ckpt_path is None:
        return
    path = last if ckpt_path == "last" else Path(ckpt_path)
    if not path.is_file():
        raise InputError("ckpt_path", ckpt_path, f"there is no {path}, name a checkpoint or leave it out to start anew")
    if not is_checkpoint(path):
        raise InputError("ckpt_path", str(path), "is not a whole checkpoint, name another one")


def _with_named_verb(cli: type[DiTFProbeCLI], args: ArgsType) -> type[DiTFProbeCLI]:
    """A command line with the one verb that its first word names: making the parsers of the others takes as long."""
    words, verbs = sys.argv[1:] if args is None else args, cli.subcommands()
    if not isinstance(words, list) or words[:1] not in [[verb] for verb in verbs]:
        return cli
    named = {words[0]: verbs[words[0]]}
    return type(cli.__name__, (cli,), {"subcommands": staticmethod(lambda: named)})


def _run(command: type[DiTFProbeCLI], args: ArgsType, **options: Any) -> None:
    cli = _with_named_verb(command, args)
    defaults = {"default_config_files": [str(CONFIGS / "defaults.yaml")]}
    cli(
        model_class=LightningModule,
        datamodule_class=LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # no task records its arguments, and writing them down takes a while
        parser_kwargs={"exit_on_error": False, **dict.fromkeys(cli.subcommands(), defaults)},
        args=args,
        **options,
    )


@contextmanager
def _imports_set_aside() -> Iterator[None]:
    """Garbage collection leaves alone what is here by now, mostly libraries, instead of going through it many times."""
    mine = not gc.get_freeze_count()
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


def _one_line(command: Callable[[], None]) -> None:
    """Runs a command; bad input becomes one line on standard error and exit code 2."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings(
        "ignore", message=".*predict returned None.*"
    )  # an extraction writes, and may find all done
    warnings.filterwarnings("ignore", message=".*across ranks is zero.*")
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        with _imports_set_aside():
            command()
    except (ValueError, argparse.ArgumentError, MisconfigurationException) as error:
        # jsonargparse wraps what a class refuses while it is being built.
        cause = error if isinstance(error, argparse.ArgumentError | MisconfigurationException) else _refusal(error)
        if cause is None:
            raise
        said = " ".join(str(cause).split()) if isinstance(cause, InputError) else _in_one_line(str(cause))
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(2) from None


_OF_TYPES = ("Subtypes:", "Errors:", "Given value type:", "Given value: {", "Given value: [", "Given value: Nested")
_OF_CALLABLES = re.compile(r"Type \S+\[.*\] expects a function or a callable class: |\.? Got value: Namespace\(.*\)$")
_REMEDIES = {
    "not accept": "correct its name or leave it out",
    "are required": "give them, or a run file with --config",
    "No module named": "put its file beside train.py, or its folder into PYTHONPATH",
}


def _in_one_line(message: str) -> str:
    """What is wrong, without the types that jsonargparse has tried and the whole values that it was given."""
    found: list[str] = []
    for line in (line.strip() for line in message.splitlines()):
        if line.startswith(_OF_TYPES) or line == "- Expected a <class 'NoneType'>":
            continue
        line = line.removeprefix("- ").removesuffix("Does not validate against any of the Union subtypes")
        found.append(_OF_CALLABLES.sub("", line))
    remedies = [f": {remedy}" for sign, remedy in _REMEDIES.items() if found and sign in found[-1]]
    return " ".join(" ".join(found).split()) + "".join(remedies)


def _refusal(error: BaseException | None) -> InputError | None:
    """The InputError that an exception is or comes from."""
    if error is None or isinstance(error, InputError):
        return error
    return _refusal(error.__cause__) or _refusal(error.__context__)


def train(args: ArgsType = None) -> None:
    """Trains what a configuration names.

    Args:
        args: Command line after the program's name; None reads `sys.argv`.
    """
    record = {"overwrite": True}
    _one_line(lambda: _run(TrainCLI, args, save_config_kwargs=record))


def evaluate(args: ArgsType = None) -> None:
    """Compares rows over the same pairs, or recomputes a comparison from its predictions.

    Args:
        args: Command line after the program's name; None reads `sys.argv`.
    """
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list) and "--from-predictions" in words:
        _one_line(lambda: _from_predictions(words))
        return
    record = {"config_filename": "eval_config.yaml", "overwrite": True}
    _one_line(lambda: _run(EvaluateCLI, args, save_config_kwargs=record))


def _from_predictions(words: list[str]) -> None:
    parser = argparse.ArgumentParser("eval.py", description="Recompute the comparison of a finished run.")
    parser.add_argument("--from-predictions", metavar="RUN_DIR", required=True, type=Path)
    report_from_predictions(parser.parse_args(words).from_predictions)


if __name__ == "__main__":  # `python -m ditf_probe.cli VERB ...`, where the scripts are not at hand
    (train if sys.argv[1:2] == ["fit"] else evaluate)()
