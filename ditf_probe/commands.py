"""The `ditf-probe` command. Heavy modules load inside the verbs, so that `--help` is instant."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ditf_probe.configs_folder import CONFIGS
from ditf_probe.errors import InputError


def main(args: Sequence[str] | None = None) -> None:
    """Runs one verb; bad input ends in one line on standard error and exit code 2.

    Args:
        args: Command line after the program's name; None reads `sys.argv`.
    """
    options = _parser().parse_args(args)
    try:
        options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ditf-probe",
        description="Dense correspondence with frozen diffusion transformers. See also ditf-train, ditf-eval.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    quickstart = verbs.add_parser("quickstart", help="train two probes on drawn objects and compare every row")
    quickstart.add_argument("--run-dir", default="runs/quickstart", help="folder of everything the run writes")
    quickstart.set_defaults(run=_quickstart)
    willow = verbs.add_parser("pf-willow", help="every row on PF-WILLOW, with probes trained on drawings and on photos")
    willow.add_argument("--root", required=True, help="folder of PF-WILLOW")
    willow.add_argument("--run-dir", default="runs/pf_willow", help="folder of everything the run writes")
    willow.set_defaults(run=_pf_willow)
    select = verbs.add_parser("select", help="choose block and timestep of a backbone on SyntheticPairs val")
    select.add_argument("--backbone", default="ditf-tiny", help="name or path, as in load_backbone")
    timesteps = [20, 60, 100, 140, 180, 220, 260, 340, 420, 500]
    select.add_argument("--timesteps", type=int, nargs="+", default=timesteps, help="noise levels to try")
    select.add_argument("--tap", choices=["attention", "mlp"], default="mlp", help="before which AdaLN")
    select.add_argument("--num-pairs", type=int, default=200, help="pairs to score")
    select.add_argument("--image-size", type=int, default=64, help="side of the prepared images in pixels")
    select.add_argument("--ensemble", type=int, default=1, help="noise draws per image")
    select.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    select.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    select.add_argument("--write", type=Path, help="preset file whose block, timestep and tap are replaced")
    select.set_defaults(run=_select)
    families = verbs.add_parser("families", help="every transformer class that can be a backbone, as a table")
    families.add_argument("--write", type=Path, help="Markdown file whose table is replaced, docs/backbones.md")
    families.set_defaults(run=_families)
    info = verbs.add_parser(
        "info", help="blocks, taps, parameters and bytes of a backbone, without loading its weights"
    )
    info.add_argument("backbone", help="name, folder or hub id, as in load_backbone")
    info.add_argument("--last-block", type=int, help="the last block that will be asked for; the last one by default")
    info.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16")
    info.set_defaults(run=_info)
    return parser


def _quickstart(options: argparse.Namespace) -> None:
    _train_and_compare("quickstart", Path(options.run_dir))


def _pf_willow(options: argparse.Namespace) -> None:
    from ditf_probe.data.willow import PFWillow

    PFWillow(options.root)  # a bad folder must not come to light after the first training
    run_dir = Path(options.run_dir)
    drawings = run_dir / "drawings"
    _run("train.py fit", "quickstart", drawings)
    test_root = f"--data.init_args.test.pf_willow.init_args.root={options.root}"
    _run("eval.py test", "pf_willow", run_dir, test_root, "--probe", *_probes(drawings))
    roots = [f"--data.init_args.{part}.init_args.root={options.root}" for part in ("train", "val", "test.pf_willow")]
    for sets in ("car_duck", "motorbike_winebottle"):
        _train_and_compare(f"pf_willow_{sets}", run_dir / sets, *roots)


def _train_and_compare(config: str, run_dir: Path, *words: str) -> None:
    """Trains the probes of a configuration, then compares them with its other rows."""
    _run("train.py fit", config, run_dir, *words)
    _run("eval.py test", config, run_dir, *words, "--probe", *_probes(run_dir))


def _probes(run_dir: Path) -> list[str]:
    return [str(run_dir / "probes" / name) for name in ("linear", "aggregation")]


def _run(script: str, config: str, run_dir: Path, *words: str) -> None:
    """Runs `train.py` or `eval.py` in this process, after saying so."""
    from ditf_probe.cli import evaluate, train

    program, verb = script.split()
    args = [verb, "--config", str(CONFIGS / f"{config}.yaml"), "--run_dir", str(run_dir), *words]
    print(f"$ python {program} {' '.join(args)}", flush=True)
    (train if program == "train.py" else evaluate)(args)


def _select(options: argparse.Namespace) -> None:
    from ditf_probe.selection import preset_lines, select, write_preset

    if options.write is not None:
        preset_lines(options.write)  # a bad file must not come to light after the search
    best = select(
        options.backbone,
        timesteps=options.timesteps,
        tap=options.tap,
        num_pairs=options.num_pairs,
        image_size=options.image_size,
        ensemble=options.ensemble,
        device=options.device,
        dtype=options.dtype,
    )
    if options.write is not None:
        write_preset(options.write, best)


def _families(options: argparse.Namespace) -> None:
    from ditf_probe.backbones.families_table import families_table, write_table

    if options.write is None:
        print(families_table())
    else:
        write_table(options.write)


def _info(options: argparse.Namespace) -> None:
    from ditf_probe.backbones.description import describe_backbone
    from ditf_probe.backbones.description_table import print_description
    from ditf_probe.devices import DTYPES

    if options.dtype not in DTYPES:
        raise InputError("dtype", options.dtype, f"use one of {', '.join(DTYPES)}")
    described = describe_backbone(options.backbone, last_block=options.last_block, dtype=DTYPES[options.dtype])
    print_description(described, options.dtype)
