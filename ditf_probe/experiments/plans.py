"""The commands of each experiment, in order. Nothing runs here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import yaml

from ditf_probe.configs_folder import CONFIGS
from ditf_probe.errors import InputError

FOLDER = CONFIGS / "experiments"
Command = list[str]
"""Program and arguments: `["train.py", "fit", ...]`, `["eval.py", "test", ...]` or `["ditf-probe", VERB, ...]`."""

FRACTIONS = "0.01,0.05,0.25,1"
"""Of the training pairs, for learning curves."""

CURVES = "curves"
"""Name of the sweep of the learning curves."""

HEADS = ("blocks", "timesteps")
"""Trainings of the experiment with all heads, files in `configs/experiments/heads/`."""

WILLOW = ("car_duck", "motorbike_winebottle")
"""Sets of PF-WILLOW that heads are trained on; the others are the test."""

PLAIN, DISTILLED = "plain", "distilled"
"""Objectives of the experiment on generalisation, and folders of its trainings."""

FROZEN, ADAPTED = "frozen", "adapted"
"""Trainings of the experiment on adapters inside the backbone, and their folders."""

_FEW = 8  # pairs of each part of a smoke run
_SMOKE = ("--trainer.callbacks=[]", "--model.init_args.rows=[raw,adaln,same_position]", "--model.init_args.seeds=[0,1]")


@dataclass(frozen=True)
class Options:
    """Where an experiment reads and writes, and how large it is.

    Attributes:
        run_dir: Folder of all experiments.
        store: Folder of feature stores.
        root: Folder of PF-WILLOW; None leaves out what needs it.
        smoke: Shrink everything to a few pairs, one epoch and two seeds: whether it runs, not what comes of it.
    """

    run_dir: Path
    store: str
    root: str | None = None
    smoke: bool = False

    @property
    def folder(self) -> Path:
        """Where results go; those of a smoke run are kept apart from results."""
        return self.run_dir / "smoke" if self.smoke else self.run_dir


@dataclass(frozen=True)
class _Training:
    """Pairs, heads and objective that a configuration is put together from, files in `configs/experiments/`."""

    pairs: str
    heads: str
    losses: str | None = None

    @property
    def files(self) -> list[Path]:
        named = [("pairs", self.pairs), ("heads", self.heads)] + ([("losses", self.losses)] if self.losses else [])
        return [FOLDER / folder / f"{name}.yaml" for folder, name in named]

    def words(self, options: Options) -> list[str]:
        """What its trainings and tests share on the command line."""
        return [*(word for file in self.files for word in ("--config", str(file))), *self.settings(options)]

    def settings(self, options: Options) -> list[str]:
        """`--KEY=VALUE` beside the configuration files."""
        pairs, heads, *_ = map(_read, self.files)
        given = heads["model"]["init_args"]
        # What adapters change is in no store.
        stored = [] if "lora" in given else ["features", *(f"others.{name}" for name in given.get("others", ()))]
        words = [f"--model.init_args.{name}.store={options.store}" for name in stored]
        if options.root is not None:
            words += [f"--{place}={options.root}" for place in _places(pairs, "root")]
        if options.smoke:
            words += [f"--{place}={_FEW}" for place in _places(pairs, "num_pairs")]
            words += _SMOKE
        return words

    def fit(self, options: Options, run_dir: Path) -> Command:
        """Trains the heads."""
        words = [*self.words(options), "--run_dir", str(run_dir)]
        once = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
        words += [*_limits("train", "val"), *once] if options.smoke else []
        return ["train.py", "fit", *words]

    def test(self, options: Options, run_dir: Path, probes: list[str]) -> Command:
        """Compares trained heads with the zero-shot rows."""
        words = [*self.words(options), "--run_dir", str(run_dir)]
        words += _limits("test") if options.smoke else []
        return ["eval.py", "test", *words, "--probe", *probes]

    @property
    def probes(self) -> dict[str, Any]:
        """Name of each head to what it is."""
        found: dict[str, Any] = _read(self.files[1])["model"]["init_args"]["probes"]
        return found

    def folders(self, run_dir: Path) -> list[str]:
        """Folders of the heads that a training leaves."""
        return [str(run_dir / "probes" / name) for name in self.probes]


def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _places(tree: Any, key: str, above: str = "") -> Iterator[str]:
    """Dotted places of a key in a configuration."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield f"{above}{name}"
            yield from _places(value, key, f"{above}{name}.")


def _limits(*parts: str) -> list[str]:
    """One batch of each part, where no number of pairs can be given."""
    return [f"--trainer.limit_{part}_batches=1" for part in parts]


def heads(options: Options) -> Iterator[Command]:
    """Zero-shot rows and every head on drawn objects."""
    yield from _all_heads("synthetic", options, options.folder / "heads")


def transfer(options: Options) -> Iterator[Command]:
    """The same across categories of PF-WILLOW, in both directions.

    Raises:
        InputError: No folder of PF-WILLOW.
    """
    if options.root is None:
        raise InputError("--root", None, "give the folder of PF-WILLOW, which this experiment is about")
    for sets in WILLOW:
        yield from _all_heads(f"willow_{sets}", options, options.folder / "transfer" / sets)


def _all_heads(pairs: str, options: Options, run_dir: Path) -> Iterator[Command]:
    trainings = {name: _Training(pairs, name) for name in HEADS}
    probes: list[str] = []
    for name, training in trainings.items():
        yield training.fit(options, run_dir / name)
        probes += training.folders(run_dir / name)
    yield trainings["blocks"].test(options, run_dir, probes)


def curves(options: Options) -> Iterator[Command]:
    """Learning curves: one training for each fraction of the pairs."""
    training, fractions = _Training("fraction", "few"), FRACTIONS
    settings = training.settings(options)
    if options.smoke:
        fractions = "0.5,1"
        settings += ["--data.init_args.train.init_args.dataset.init_args.num_pairs=16"]  # one per category at 0.5
        settings += ["--trainer.max_steps=2", "--trainer.val_check_interval=1"]
    words = [word for file in training.files for word in ("--config", str(file))]
    words += [word for setting in settings for word in ("--set", setting.removeprefix("--"))]
    words += ["--over", f"data.init_args.train.init_args.fraction={fractions}"]
    forks = ["--fork"] if "fork" in get_all_start_methods() else []
    yield ["ditf-probe", "sweep", *words, "--name", CURVES, "--root", str(options.folder), *forks]


def generalisations(options: Options) -> dict[str, str]:
    """Name of each kind of generalisation to its pairs, whose test sets are `seen` and `unseen`."""
    kinds = {"categories": "unseen_categories", "keypoints": "unseen_keypoints"}
    if options.root is None:
        return kinds | {"warped_photos": "synthetic_to_photos"}
    return kinds | {"pf_willow": "synthetic_to_willow"}


def generalise(options: Options) -> Iterator[Command]:
    """Unseen categories, unseen keypoints and real photos, with and without self-distillation."""
    for name, pairs in generalisations(options).items():
        run_dir = options.folder / "generalise" / name
        trainings = {PLAIN: _Training(pairs, "few"), DISTILLED: _Training(pairs, "few", "distilled")}
        probes: list[str] = []
        for objective, training in trainings.items():
            yield training.fit(options, run_dir / objective)
            probes += training.folders(run_dir / objective)
        yield trainings[PLAIN].test(options, run_dir, probes)


def adapters(options: Options) -> Iterator[Command]:
    """Heads over the frozen backbone, and with adapters inside its last blocks."""
    training, run_dir, probes = _Training("synthetic", "lora"), options.folder / "adapters", list[str]()
    without = ["--model.init_args.lora=null", f"--model.init_args.features.store={options.store}"]
    for name, words in {FROZEN: without, ADAPTED: []}.items():
        yield [*training.fit(options, run_dir / name), *words]
        probes += training.folders(run_dir / name)
    yield training.test(options, run_dir, probes)


def ablation(options: Options) -> Iterator[Command]:
    """Every normalisation with every discard."""
    file = FOLDER / "ablation.yaml"
    words = ["--config", str(file), "--run_dir", str(options.folder / "ablation")]
    words += [f"--model.init_args.features.store={options.store}"]
    if options.smoke:
        words += [f"--{place}={_FEW}" for place in _places(_read(file), "num_pairs")]
        words += ["--model.init_args.ablation.counts=[1]"]
    yield ["eval.py", "test", *words]


def grid(options: Options) -> Iterator[Command]:
    """Every block at every timestep."""
    words = ["--store", options.store, "--run-dir", str(options.folder / "grid")]
    yield [
        "ditf-probe",
        "select",
        *words,
        *(["--num-pairs", "4", "--timesteps", "100", "200"] if options.smoke else []),
    ]


def layers(options: Options) -> Iterator[Command]:
    """None: the aggregations that `heads` has trained are read."""
    del options
    return iter(())


def aggregations(options: Options) -> dict[str, Path]:
    """Name of each aggregation over layers that `heads`, and with `root` `transfer`, train to its folder."""
    runs = [""] if options.root is None else ["", *WILLOW]
    found = {}
    for run, name in product(runs, HEADS):
        folder = options.folder / (Path("transfer", run) if run else "heads") / name / "probes"
        for head, how in _Training(f"willow_{run}" if run else "synthetic", name).probes.items():
            if how["class_path"].endswith(".LayerAggregation"):
                found[f"{run}/{head}" if run else head] = folder / head
    return found


PLANS: dict[str, Callable[[Options], Iterator[Command]]] = {
    plan.__name__: plan for plan in (heads, transfer, curves, generalise, ablation, grid, layers, adapters)
}
"""Name of each experiment to its commands."""
