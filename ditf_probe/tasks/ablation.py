"""Every normalisation with every discard over the same pairs, from one pass of the backbone for each condition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ditf_probe.backbones.base import ModulationCondition
from ditf_probe.errors import InputError, check_choice
from ditf_probe.features.channels import ChannelKind, ChannelPick
from ditf_probe.features.settings import Discard, Modulate
from ditf_probe.matching import Rounding
from ditf_probe.metrics.intervals import Statistic
from ditf_probe.metrics.pck import ALPHAS
from ditf_probe.protocols import Protocol
from ditf_probe.tasks.correspondence import CorrespondenceTask
from ditf_probe.tasks.matchers import FeatureMatcher
from ditf_probe.tasks.rows import ROWS, Row, check_names
from ditf_probe.tasks.settings import BackboneFeatures

PREPARED_BYTES = 2**30
"""Most bytes of prepared maps that all rows together keep between pairs."""


@dataclass(frozen=True)
class Ablation:
    """What is combined: every modulation without discard, and with each discard, choice and number of channels.

    Attributes:
        modulations: As in `FeatureSettings`.
        discards: "pre_norm" (before the modulation) and "post_adaln" (after it).
        counts: Numbers of channels; without discard is 0, which is always there.
        choices: "massive" (the strongest) and "random" (a control).
        seeds: Of the random choices, a row for each.
        conditions: Where the shift and scale of AdaLN come from beside `modulation_condition` of the features: "t+c",
            "t" or "c", each with a pass of its own. The other modulations do without.
    """

    modulations: list[Modulate] = field(
        default_factory=lambda: ["none", "layer_norm", "rms_norm", "standardise", "whiten", "adaln"]
    )
    discards: list[Discard] = field(default_factory=lambda: ["pre_norm", "post_adaln"])
    counts: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    choices: list[ChannelKind] = field(default_factory=lambda: ["massive", "random"])
    seeds: list[int] = field(default_factory=lambda: [0])
    conditions: list[ModulationCondition] = field(default_factory=list)

    def rows(self, own: ModulationCondition = "t+c") -> list[Row]:
        """The rows, those without discard under the names that they have elsewhere.

        Args:
            own: The condition of the features.

        Raises:
            InputError: Nothing to combine, a value twice, or one that there is not.
        """
        self._check()
        found: list[Row] = []
        for modulation in self.modulations:
            found.extend(self._of(modulation, None))
            if modulation == "adaln":
                found.extend(row for other in self.conditions if other != own for row in self._of(modulation, other))
        return found

    def _of(self, modulation: Modulate, condition: ModulationCondition | None) -> Iterator[Row]:
        name = ("raw" if modulation == "none" else modulation) + (f"({condition})" if condition else "")
        yield Row(name, modulation=modulation, condition=condition)
        for discard in self.discards:
            for choice in self.choices:
                for seed in self.seeds if choice == "random" else [0]:
                    for count in (count for count in self.counts if count):
                        pick, place = ChannelPick(count, choice, seed), discard.partition("_")[0]
                        draw = f"top{count}" if choice == "massive" else f"random{count}.{seed}"
                        full = f"{name}+{place}_{draw}"
                        yield Row(full, modulation=modulation, discard=discard, pick=pick, condition=condition)

    def _check(self) -> None:
        for name, choices in (
            ("modulations", Modulate),
            ("discards", Discard),
            ("choices", ChannelKind),
            ("conditions", ModulationCondition),
        ):
            for value in getattr(self, name):
                check_choice(f"ablation.{name}", value, choices)
        for name in self.__dataclass_fields__:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(f"ablation.{name}", values, "name each once")
        if not self.modulations:
            raise InputError("ablation.modulations", [], "name at least one")
        if "none" in self.discards:
            raise InputError("ablation.discards", self.discards, "leave out none, which is always there")
        if "random" in self.choices and not self.seeds:
            raise InputError("ablation.seeds", [], "name at least one for the random channels")


class AblationTask(CorrespondenceTask):
    """A comparison whose rows are generated; differences are to `adaln` without discard.

    All rows of one condition share one pass and one calibration. Beside the files of a comparison it leaves
    `ablation.csv` and a picture for every data set.

    Args:
        features: The backbone and its one block. Modulation, discard and channels are those of the rows.
        ablation: What is combined.
        rows: Further rows, such as controls.
        probe_folders: As in `CorrespondenceTask`, like those that follow.
        alphas: PCK thresholds as fractions.
        strict: Compare distances with `<` instead of `<=`.
        statistics: Per data set, which average its intervals refer to.
        rounding: Where source descriptors are sampled.
        run_dir: Folder of everything that a run writes.
        backbone_files: Further backbones, one row each.
        protocol: As in `CorrespondenceTask`.

    Raises:
        InputError: As in `CorrespondenceTask`, or an ablation that cannot be.
    """

    def __init__(
        self,
        features: BackboneFeatures,
        ablation: Ablation | None = None,
        rows: Sequence[str] = ("same_position",),
        probe_folders: Sequence[str] = (),
        alphas: Sequence[float] = ALPHAS,
        strict: bool = False,
        statistics: dict[str, Statistic] | None = None,
        rounding: Rounding = "subpixel",
        run_dir: str = "runs/default",
        backbone_files: Sequence[str] = (),
        protocol: str | Protocol = "default",
    ) -> None:
        ablated = (Ablation() if ablation is None else ablation).rows(features.modulation_condition)
        names = [row.name for row in ablated]
        super().__init__(
            features,
            [row for row in rows if row not in names],
            probe_folders,
            alphas,
            strict,
            statistics,
            rounding,
            run_dir,
            backbone_files=backbone_files,
            protocol=protocol,
        )
        if features.massive_channels != "auto":
            raise InputError(
                "massive_channels", features.massive_channels, "use auto, an ablation counts the strongest"
            )
        check_names("ablation", set(names) - ROWS.keys(), [*self.others, *self.probe_folders])
        controls = [row for row in self.rows if row.kind == "control"]
        self.ablated = ablated
        self.rows = [*(row for row in self.rows if row.kind != "control"), *ablated, *controls]

    def on_test_start(self) -> None:
        """As in `CorrespondenceTask`; the many rows share the memory of prepared maps."""
        super().on_test_start()
        keeping = [matcher for matcher in self.matchers if isinstance(matcher, FeatureMatcher)]
        for matcher in keeping:
            matcher.limit(PREPARED_BYTES // len(keeping))

    def settings(self) -> dict[str, Any]:
        """Those of the comparison, and which of its rows are the ablation."""
        return super().settings() | {"ablation": [row.name for row in self.ablated]}
