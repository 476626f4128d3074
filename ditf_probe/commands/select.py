"""`ditf-probe select`: block and timestep of a backbone."""

import argparse
from pathlib import Path
from typing import Any

TIMESTEPS = [20, 60, 100, 140, 180, 220, 260, 340, 420, 500]


def add(verbs: Any) -> None:
    """Declares the verb."""
    parser = verbs.add_parser("select", help="choose block and timestep of a backbone on SyntheticPairs val")
    parser.add_argument("--backbone", default="ditf-tiny", help="name or path, as in load_backbone")
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS, help="noise levels to try")
    parser.add_argument("--tap", choices=["attention", "mlp"], default="mlp", help="before which AdaLN")
    parser.add_argument(
        "--modulation", choices=["none", "layer_norm", "rms_norm", "adaln"], default="adaln", help="of the features"
    )
    parser.add_argument("--num-pairs", type=int, default=200, help="pairs to score")
    parser.add_argument("--image-size", type=int, default=64, help="side of the prepared images in pixels")
    parser.add_argument("--ensemble", type=int, default=1, help="noise draws per image")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--store", help="folder of feature stores to read streams from, and to keep them in")
    parser.add_argument("--run-dir", default="runs/select", help="folder for grid.csv, grid.png and TensorBoard")
    parser.add_argument("--write", type=Path, help="preset file whose block, timestep and tap are replaced")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ditf_probe.selection import preset_lines, select, write_preset

    if options.write is not None:
        preset_lines(options.write)  # a bad file must not come to light after the search
    best = select(
        options.backbone,
        timesteps=options.timesteps,
        tap=options.tap,
        modulation=options.modulation,
        num_pairs=options.num_pairs,
        image_size=options.image_size,
        ensemble=options.ensemble,
        device=options.device,
        dtype=options.dtype,
        store=options.store,
        run_dir=options.run_dir,
    )
    if options.write is not None:
        write_preset(options.write, best)
