"""Feature stores as a table."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.table import Table

from ditf_probe.features.store.care import StoreFacts

_COLUMNS = (
    "store",
    "backbone",
    "features",
    "blocks",
    "conditions",
    "dtype",
    "images",
    "MiB",
    "damaged",
    "last written",
)


def table(stores: Sequence[StoreFacts]) -> Table:
    """One row per store: what features, how many images and bytes, since when."""
    found = Table()
    for column in _COLUMNS:
        right = column in ("images", "MiB", "damaged")
        found.add_column(column, justify="right" if right else "left", overflow="fold")
    for store in stores:
        written = datetime.fromtimestamp(store.written).isoformat(" ", "minutes")
        numbers = f"{store.entries:,}", f"{store.bytes / 2**20:,.1f}", str(store.damaged)
        blocks = ", ".join(map(str, store.blocks))
        conditions, dtype = store.definition.get("conditions", "null"), store.definition.get("dtype", "")
        named = _conditions(conditions)
        found.add_row(
            store.folder.name, store.label, _features(store.definition), blocks, named, dtype, *numbers, written
        )
    return found


def _features(definition: dict[str, Any]) -> str:
    """Timestep, tap, size and what else is not the usual."""
    size = definition.get("image_size")
    words = [
        f"t = {definition.get('timestep')}",
        str(definition.get("tap", "")),
        "own size" if size is None else f"{size} px",
        str(definition.get("resize", "")),
    ]
    if definition.get("ensemble", 1) != 1:
        words.append(f"{definition['ensemble']} draws")
    if definition.get("seed", 0) != 0:
        words.append(f"seed {definition['seed']}")
    if definition.get("modulation_condition", "t+c") != "t+c":
        words.append(f"modulation of {definition['modulation_condition']}")
    if "basis" in definition:
        words.append(f"{definition['basis']['components']} components")
    return ", ".join(word for word in words if word)


def _conditions(conditions: Any) -> str:
    return repr(conditions["prompt"]) if isinstance(conditions, dict) else str(conditions)
