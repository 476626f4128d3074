"""`ditf-probe pf-willow`: every row on PF-WILLOW."""

import argparse
from pathlib import Path
from typing import Any

from ditf_probe.commands._runs import probe_folders, run_script, train_and_compare


def add(verbs: Any) -> None:
    """Declares the verb."""
    parser = verbs.add_parser("pf-willow", help="every row on PF-WILLOW, with probes trained on drawings and on photos")
    parser.add_argument("--root", required=True, help="folder of PF-WILLOW")
    parser.add_argument("--run-dir", default="runs/pf_willow", help="folder of everything the run writes")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ditf_probe.data.willow import PFWillow

    PFWillow(options.root)  # a bad folder must not come to light after the first training
    run_dir = Path(options.run_dir)
    drawings = run_dir / "drawings"
    run_script("train.py fit", "quickstart", drawings)
    test_root = f"--data.init_args.test.pf_willow.init_args.root={options.root}"
    run_script("eval.py test", "pf_willow", run_dir, test_root, "--probe", *probe_folders(drawings))
    roots = [f"--data.init_args.{part}.init_args.root={options.root}" for part in ("train", "val", "test.pf_willow")]
    for sets in ("car_duck", "motorbike_winebottle"):
        train_and_compare(f"pf_willow_{sets}", run_dir / sets, *roots)
