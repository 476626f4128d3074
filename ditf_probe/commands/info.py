"""`ditf-probe info`: what a backbone holds, and what it costs up to a block."""

import argparse
from typing import Any

from ditf_probe.errors import InputError


def add(verbs: Any) -> None:
    """Declares the verb."""
    parser = verbs.add_parser(
        "info", help="blocks, taps, parameters and bytes of a backbone, without loading its weights"
    )
    parser.add_argument("backbone", help="name, folder or hub id, as in load_backbone")
    parser.add_argument("--last-block", type=int, help="the last block that will be asked for; the last one by default")
    parser.add_argument("--last-tap", help="the only tap that will be asked of that block; any by default")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ditf_probe.backbones.description import describe_backbone
    from ditf_probe.backbones.description_table import print_description
    from ditf_probe.devices import DTYPES

    if options.dtype not in DTYPES:
        raise InputError("dtype", options.dtype, f"use one of {', '.join(DTYPES)}")
    described = describe_backbone(
        options.backbone, last_block=options.last_block, last_tap=options.last_tap, dtype=DTYPES[options.dtype]
    )
    print_description(described, options.dtype)
