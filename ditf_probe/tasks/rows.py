"""The rows of a comparison: what each one matches with."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ditf_probe.backbones.base import ModulationCondition
from ditf_probe.errors import InputError
from ditf_probe.features.channels import ChannelPick
from ditf_probe.features.fusion import Grid, check_grid, check_weights
from ditf_probe.features.settings import Discard, Modulate, PositionDebias, needs_calibration
from ditf_probe.probes.folder import WEIGHTS
from ditf_probe.tasks.records import Kind
from ditf_probe.tasks.settings import BackboneFeatures

Source = Literal["backbone", "untrained", "rgb", "position", "fusion"]
SEED = "seed"
"""A copy of a head that was trained from seed 3 stands in the folder `seed3` of its head."""

_SEED_FOLDER = re.compile(rf"{SEED}\d+")


@dataclass(frozen=True)
class Row:
    """How one row of a comparison finds its matches.

    Attributes:
        name: Name in tables and files.
        kind: Training-free features, a trained probe, or a control.
        source: Whose features are matched; "position" matches none, but keeps the relative position;
            "fusion" those of other rows together.
        modulation: As in `FeatureExtractor`.
        discard: As in `FeatureExtractor`.
        position_debias: As in `FeatureExtractor`.
        pick: Which channels are discarded; None is the choice of the features.
        condition: As `modulation_condition` of the features; None is theirs.
    """

    name: str
    kind: Kind = "zero-shot"
    source: Source = "backbone"
    modulation: Modulate = "adaln"
    discard: Discard = "none"
    position_debias: PositionDebias = "none"
    pick: ChannelPick | None = None
    condition: ModulationCondition | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether its features need what only calibration images can tell."""
        return needs_calibration(self.modulation, self.discard, self.position_debias)

    def asked_of(self, features: BackboneFeatures) -> BackboneFeatures:
        """The features whose pass serves this row: those of the comparison, with its own condition."""
        return features if self.condition is None else replace(features, modulation_condition=self.condition)

    @classmethod
    def of(cls, name: str, kind: Kind, features: BackboneFeatures) -> "Row":
        """The row of features as their settings make them."""
        return cls(
            name,
            kind,
            modulation=features.modulation,
            discard=features.discard,
            position_debias=features.position_debias,
            pick=features.pick,
        )


@dataclass(frozen=True)
class Fusion:
    """How the features of several rows are put together; see `features.fusion`.

    Attributes:
        parts: Names of rows with features, two or more.
        weights: Length of each part at every position; None is 1 for all.
        joint_pca: Channels that each part is reduced to for each pair, None for a part that is kept; None keeps all.
        grid: "finest", "coarsest", or (height, width) in cells.
    """

    parts: list[str]
    weights: list[float] | None = None
    joint_pca: list[int | None] | None = None
    grid: Grid | list[int] = "finest"

    @property
    def channels(self) -> list[int | None]:
        """Channels of the joint PCA, one entry per part."""
        return [None] * len(self.parts) if self.joint_pca is None else self.joint_pca


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
        Row("rms_norm", modulation="rms_norm"),
        Row("standardise", modulation="standardise"),
        Row("whiten", modulation="whiten"),
    )
}
ROW_NAMES = tuple(name for name in ROWS if name not in ("rms_norm", "standardise", "whiten"))
"""The rows of a comparison that names none."""


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


def is_copy(name: str) -> bool:
    """Whether a folder of this name holds the copy of a head from one of several seeds."""
    return _SEED_FOLDER.fullmatch(name) is not None


def head_of(row: str) -> str:
    """The name of the head that a row is a copy of, which the mean over its copies bears; any other name as it is."""
    head, _, last = row.rpartition("/")
    return head if head and is_copy(last) else row


def probe_names(folders: Sequence[str]) -> dict[str, Path]:
    """Row names of probe folders: the name of the folder, with that of its run before it where heads are called alike.

    A copy from one of several seeds is called like the folder of its head and its own, `linear/seed0`.

    Args:
        folders: Probe folders, as `runs/RUN/probes/NAME`; one that holds copies `seed0`, `seed1`, ... stands for them.

    Returns:
        Row name to folder, in the given order.

    Raises:
        InputError: Two folders cannot be told apart, one has the name of another row, or one holds a probe and copies.
    """
    paths = [path for folder in folders for path in _copies(Path(folder))]
    heads = [own.parent if is_copy(own.name) else own for own in (path.resolve() for path in paths)]
    names: dict[str, Path] = {}
    owners: dict[str, Path] = {}
    for path, head in zip(paths, heads, strict=True):
        short = path.resolve().relative_to(head.parent).as_posix()
        alone = len({other for other in heads if other.name == head.name}) == 1
        unique = short if alone else f"{head.parent.parent.name}/{short}"
        if unique in names or head_of(unique) in ROWS or owners.setdefault(head_of(unique), head) != head:
            raise InputError("probe_folders", str(path), f"another row is called {unique!r}, rename the folder")
        names[unique] = path
    return names


def _copies(folder: Path) -> list[Path]:
    """The copies of a head, ordered by seed; the folder itself where it holds none.

    Raises:
        InputError: It holds both, one of which is left from another training.
    """
    found = [path for path in folder.glob(f"{SEED}*") if is_copy(path.name)]
    if found and (folder / WEIGHTS).is_file():
        raise InputError("probe_folders", str(folder), f"holds a probe and {found[0].name}, remove what is not current")
    return sorted(found, key=lambda path: int(path.name.removeprefix(SEED))) or [folder]


def check_names(argument: str, names: Collection[str], taken: Collection[str]) -> None:
    """Refuses names of further rows that another row, or the mean over copies of a head, has, asked for or not.

    Raises:
        InputError: There is one.
    """
    for name in names:
        if name in {*taken, *map(head_of, taken)} or name in ROWS or not name:
            raise InputError(argument, name, "choose a name that no other row has")


def check_fusions(fusions: Mapping[str, Fusion], rows: Collection[str]) -> None:
    """Refuses what cannot be fused.

    Args:
        fusions: By name of the fused row.
        rows: Names of the other rows of the comparison.

    Raises:
        InputError: Fewer than two parts, one that is no row with features, or settings that do not fit the parts.
    """
    known = [name for name in rows if name not in ROWS or ROWS[name].source != "position"]
    for name, fusion in fusions.items():
        if len(fusion.parts) < 2:
            raise InputError(f"fusions.{name}.parts", fusion.parts, "name at least two rows")
        for part in fusion.parts:
            if part not in known:
                raise InputError(f"fusions.{name}.parts", part, f"name rows with features, {', '.join(known)}")
        check_weights(f"fusions.{name}.weights", fusion.weights, len(fusion.parts))
        check_grid(f"fusions.{name}.grid", fusion.grid)
        whole = [count for count in fusion.channels if count is not None]
        if len(fusion.channels) != len(fusion.parts) or any(count < 1 for count in whole):
            remedy = f"give {len(fusion.parts)} numbers of channels, null for a part that is kept"
            raise InputError(f"fusions.{name}.joint_pca", fusion.joint_pca, remedy)
