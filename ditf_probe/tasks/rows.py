"""The rows of a comparison: what each one matches with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ditf_probe.errors import InputError
from ditf_probe.features.settings import Discard, Modulate, PositionDebias
from ditf_probe.tasks.records import Kind

Source = Literal["backbone", "untrained", "rgb", "position"]


@dataclass(frozen=True)
class Row:
    """How one row of a comparison finds its matches.

    Attributes:
        name: Name in tables and files.
        kind: Training-free features, a trained probe, or a control.
        source: Whose features are matched; "position" matches none, but keeps the relative position.
        modulation: As in `FeatureExtractor`.
        discard: As in `FeatureExtractor`.
        position_debias: As in `FeatureExtractor`.
    """

    name: str
    kind: Kind = "zero-shot"
    source: Source = "backbone"
    modulation: Modulate = "adaln"
    discard: Discard = "none"
    position_debias: PositionDebias = "none"

    @property
    def needs_calibration(self) -> bool:
        """Whether its features need what only calibration images can tell."""
        return self.discard != "none" or self.position_debias == "mean"


REFERENCE = "adaln"
ROWS = {
    row.name: row
    for row in (
        Row("raw", modulation="none"),
        Row("layer_norm", modulation="layer_norm"),
        Row(REFERENCE),
        Row("adaln+discard_pre", discard="pre_norm"),
        Row("adaln+discard_post", discard="post_adaln"),
        Row("adaln+debias", position_debias="mean"),
        Row("same_position", "control", "position"),
        Row("rgb", "control", "rgb", modulation="none"),
        Row("untrained", "control", "untrained"),
    )
}
ROW_NAMES = tuple(ROWS)


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """The rows of some names, in the given order.

    Raises:
        InputError: An unknown name, or one named twice.
    """
    for name in names:
        if name not in ROWS:
            raise InputError("rows", name, f"use some of {', '.join(ROWS)}")
    if len(set(names)) < len(names):
        raise InputError("rows", list(names), "name each row once")
    return [ROWS[name] for name in names]


def probe_names(folders: Sequence[str]) -> dict[str, Path]:
    """Row names of probe folders: the name of the folder, with that of its run before it where names meet.

    Args:
        folders: Probe folders, as `runs/RUN/probes/NAME`.

    Returns:
        Row name to folder, in the given order.

    Raises:
        InputError: Two folders cannot be told apart, or one has the name of another row.
    """
    paths = [Path(folder) for folder in folders]
    short = [path.resolve().name for path in paths]
    names: dict[str, Path] = {}
    for path, name in zip(paths, short, strict=True):
        unique = name if short.count(name) == 1 else f"{path.resolve().parents[1].name}/{name}"
        if unique in names or unique in ROWS:
            raise InputError("probe_folders", str(path), f"another row is called {unique!r}, rename the folder")
        names[unique] = path
    return names
