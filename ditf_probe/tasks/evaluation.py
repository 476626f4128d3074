"""How a task evaluates: by its protocol, and by its own arguments where the protocol leaves a knob to them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ditf_probe.matching import MatchingRule, Rounding
from ditf_probe.metrics.intervals import Statistic
from ditf_probe.protocols import RULE_KNOBS, Protocol, changed_knobs, find_protocol
from ditf_probe.tasks.settings import BackboneFeatures


@dataclass
class Evaluation:
    """A protocol with the arguments of a task where it has None.

    A value of the protocol always stands in place of that of the task, and what it replaced is remembered: nothing of
    a configuration is dropped without a trace.

    Attributes:
        protocol: The protocol, completed.
        rule: Its matching rule.
        alphas: PCK thresholds as fractions.
        strict: As in `PercentageCorrectKeypoints`.
        statistics: The averages that the task names, by data set.
        changed: Knobs in which the protocol differs from the preset that it is called by.
        replaced: Values of the task that those of the protocol stand in place of, by argument.
    """

    protocol: Protocol
    rule: MatchingRule
    alphas: tuple[float, ...]
    strict: bool
    statistics: dict[str, Statistic]
    changed: list[str] = field(default_factory=list)
    replaced: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        protocol: str | Protocol,
        alphas: Sequence[float],
        strict: bool,
        statistics: Mapping[str, Statistic],
        rounding: Rounding,
    ) -> "Evaluation":
        """What the arguments of a task ask for.

        Raises:
            InputError: An unknown protocol, or a value that a knob cannot have.
        """
        found = find_protocol(protocol)
        own: dict[str, Any] = {"rounding": rounding, "strict": strict, "alphas": list(alphas)}
        replaced = {name: value for name, value in own.items() if getattr(found, name) not in (None, value)}
        if found.statistic is not None:
            differing = {name: value for name, value in statistics.items() if value != found.statistic}
            replaced |= {"statistics": differing} if differing else {}
        full = replace(found, **{name: value for name, value in own.items() if getattr(found, name) is None})
        assert full.alphas is not None
        assert full.strict is not None
        changed = changed_knobs(found)
        return cls(full, full.rule(), tuple(full.alphas), full.strict, dict(statistics), changed, replaced)

    @property
    def threshold(self) -> str | None:
        """What thresholds are relative to; None is the choice of each data set."""
        return None if self.protocol.threshold == "dataset" else self.protocol.threshold

    def statistic(self, dataset: str) -> Statistic:
        """The average that intervals of a data set refer to."""
        return self.protocol.statistic or self.statistics.get(dataset, "per_point")

    def features(self, name: str, features: BackboneFeatures) -> BackboneFeatures:
        """Features with the sizes of the protocol.

        Args:
            name: What the features are called among the arguments of the task.
            features: As the task has them.
        """
        changes = self.protocol.feature_settings()
        for knob, value in changes.items():
            before = getattr(features, knob)
            if before is not None and before != value:
                self.replaced[f"{name}.{knob}"] = before
        return replace(features, **changes)

    def settings(self) -> dict[str, Any]:
        """The whole protocol as plain JSON values, with what it changes of its preset and what it replaced.

        Sizes that it leaves to the features are None here; they stand with the models.
        """
        rule = asdict(self.rule)
        own = asdict(self.protocol) | {knob: rule[name] for knob, name in RULE_KNOBS.items()}
        own |= {"threshold": self.protocol.threshold or "dataset"}
        own |= {"pairs_per_category": self.protocol.pairs_per_category or 0}
        return own | {"changed": self.changed, "replaced": self.replaced}
