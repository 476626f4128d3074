"""`ditf-probe store`: what feature stores hold, whether they are whole, and what can go."""

import argparse
from pathlib import Path
from typing import Any

from ditf_probe.errors import InputError


def add(verbs: Any) -> None:
    """Declares the verb and its own verbs."""
    parser = verbs.add_parser("store", help="list, verify or clean up feature stores")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("ls", help="a table of the stores in a folder")
    listing.set_defaults(run=_list)
    checking = actions.add_parser("verify", help="read every byte; names each broken file and ends with code 2")
    checking.set_defaults(run=_verify)
    cleaning = actions.add_parser(
        "gc", help="show what serves nobody: damaged shards, and what killed writers left; remove it with --yes"
    )
    cleaning.add_argument("--yes", action="store_true", help="remove it; without, nothing is touched")
    cleaning.add_argument("--deep", action="store_true", help="read every byte, to find shards that are damaged inside")
    cleaning.add_argument("--grace", type=float, default=60.0, metavar="MINUTES", help="age of unfinished files (60)")
    cleaning.add_argument("--remove", nargs="+", default=[], metavar="NAME", help="also whole stores of these names")
    cleaning.add_argument(
        "--older-than", type=float, metavar="DAYS", help="also whole stores not written to for so long"
    )
    cleaning.set_defaults(run=_clean)
    for action in (listing, checking, cleaning):
        action.add_argument("folder", type=Path, help="folder of stores, or of one store")


def _list(options: argparse.Namespace) -> None:
    from ditf_probe.commands._stores import table
    from ditf_probe.features.store.care import describe
    from ditf_probe.features.store.manifest import store_folders
    from ditf_probe.printing import console

    console().print(table([describe(folder) for folder in store_folders(options.folder)]))


def _verify(options: argparse.Namespace) -> None:
    from ditf_probe.features.store.care import verify
    from ditf_probe.features.store.manifest import store_folders

    folders = store_folders(options.folder)
    if not folders:
        raise InputError("folder", str(options.folder), "holds no store, name a folder of stores")
    whole = broken = 0
    for folder in folders:
        for path, problem in verify(folder):
            if problem is None:
                whole += 1
            else:
                broken += 1
                print(f"{path}: {problem}")
    print(f"{whole} files are whole, {broken} are broken")
    if broken:
        remedy = "remove them with ditf-probe store gc --deep --yes, their images are then computed again"
        raise InputError("folder", str(options.folder), f"{broken} of its files are broken: {remedy}")


def _clean(options: argparse.Namespace) -> None:
    from ditf_probe.features.store.care import expired, remove_store, rubbish, size_of
    from ditf_probe.features.store.manifest import store_folders

    if options.grace < 0 or (options.older_than or 0) < 0:
        raise InputError("--grace or --older-than", min(options.grace, options.older_than or 0), "use 0 or more")
    folders = {folder.name: folder for folder in store_folders(options.folder)}
    for name in options.remove:
        if name not in folders:
            raise InputError("--remove", name, f"is no store in {options.folder}, see ditf-probe store ls")
    old = [] if options.older_than is None else expired(list(folders.values()), options.older_than)
    whole = dict.fromkeys([*(folders[name] for name in options.remove), *old])
    freed = 0
    for folder in folders.values():
        if folder in whole:
            freed += size_of(folder)
            print(f"{folder}: the whole store")
            if options.yes:
                remove_store(folder)
            continue
        for path, reason in rubbish(folder, grace_minutes=options.grace, deep=options.deep):
            freed += path.stat().st_size
            print(f"{path}: {reason}")
            if options.yes:
                path.unlink(missing_ok=True)
    verb = "were freed" if options.yes else "would be freed, repeat the command with --yes"
    print(f"{freed / 2**20:.1f} MiB {verb}")
