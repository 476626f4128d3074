"""What a probe is trained for: terms and their weights."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ditf_probe.data.pairs import Pair
from ditf_probe.errors import InputError
from ditf_probe.losses.terms import NEEDS, NO_EXTRAS, Extras, Need, Term


class Objective(nn.Module):
    """A weighted sum of terms.

    Args:
        terms: Name to term: a `Term`, or a module that is called alike and has an attribute `needs` as it does.
        weights: Name to weight, 0 or more; 1 where a name is missing. A term of weight 0 is computed and told, but does
            not train.
        shared_temperature: Whether terms that learn their temperature learn one together; they must start alike.

    Raises:
        InputError: No term or none with weight, a name or weight that cannot be, a term that does not say what it
            needs, or temperatures to be shared that differ.
    """

    def __init__(
        self,
        terms: Mapping[str, nn.Module],
        weights: Mapping[str, float] | None = None,
        shared_temperature: bool = False,
    ) -> None:
        super().__init__()
        _check_terms(terms)
        self.weights = dict.fromkeys(terms, 1.0) | _checked_weights(weights or {}, terms)
        if not any(self.weights.values()):
            raise InputError("weights", self.weights, "give at least one term a weight above 0")
        self.terms = nn.ModuleDict(dict(terms))
        if shared_temperature:
            _share([term for term in terms.values() if isinstance(term, Term) and term.learn_temperature])
        self.shared_temperature = shared_temperature

    @property
    def needs(self) -> frozenset[Need]:
        """What its terms need together."""
        return frozenset().union(*(needs_of(term) for term in self.terms.values()))

    def forward(
        self,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        pairs: Sequence[Pair],
        extras: Extras = NO_EXTRAS,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of a batch of pairs; arguments as those of `Term.forward`.

        Returns:
            total: Scalar, what is to be minimised.
            values: Name to the value of each term, before its weight and without a graph.

        Raises:
            InputError: A term is NaN or infinite, or refuses its input.
        """
        found = {name: term(sources, targets, pairs, extras) for name, term in self.terms.items()}
        if not torch.stack(list(found.values())).isfinite().all():
            name, value = next((name, value.item()) for name, value in found.items() if not value.isfinite())
            raise InputError(f"terms.{name}", value, "lower the learning rate or check the features")
        total = torch.stack([self.weights[name] * value for name, value in found.items()]).sum()
        return total, {name: value.detach() for name, value in found.items()}

    def temperatures(self) -> dict[str, Tensor]:
        """Name to temperature, of the terms that learn theirs."""
        return {
            name: term.temperature.detach()
            for name, term in self.terms.items()
            if isinstance(term, Term) and term.learn_temperature
        }

    def settings(self) -> dict[str, dict[str, Any]]:
        """Name to class, arguments and weight of each term, as plain values; temperatures as learnt so far."""
        return {
            name: {"class_path": f"{type(term).__module__}.{type(term).__qualname__}"}
            | {"init_args": _arguments(term), "weight": self.weights[name]}
            for name, term in self.terms.items()
        }


def needs_of(term: nn.Module) -> frozenset[Need]:
    """What a term says that it needs.

    Raises:
        InputError: It does not say, or says what is unknown.
    """
    needs = getattr(term, "needs", None)
    if not isinstance(needs, frozenset | set) or not needs <= NEEDS:
        kind = f"{type(term).__module__}.{type(term).__qualname__}"
        raise InputError("terms", kind, f"give its class a set `needs` out of {', '.join(sorted(NEEDS))}")
    return frozenset(needs)


def _check_terms(terms: Mapping[str, nn.Module]) -> None:
    if not terms:
        raise InputError("terms", {}, "name at least one term")
    for name, term in terms.items():
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise InputError("terms", name, "choose another name, of letters and digits")
        needs_of(term)


def _checked_weights(weights: Mapping[str, float], terms: Mapping[str, nn.Module]) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in terms:
            raise InputError("weights", name, f"use the name of a term, {', '.join(terms)}")
        if not 0 <= weight < math.inf:
            raise InputError("weights", weight, f"give {name} a number, 0 or more")
    return dict(weights)


def _share(terms: Sequence[Term]) -> None:
    """Makes the temperature of the first term that of all."""
    for term in terms:
        if not torch.equal(term.log_temperature, terms[0].log_temperature):
            values = [round(float(one.temperature.detach()), 6) for one in terms]
            raise InputError("shared_temperature", values, "let all terms that learn a temperature start from one")
        term.log_temperature = terms[0].log_temperature


def _arguments(term: nn.Module) -> dict[str, Any]:
    """The arguments of a term that it keeps as attributes of the same names."""
    names = [name for name in inspect.signature(type(term)).parameters if hasattr(term, name)]
    values = {name: getattr(term, name) for name in names}
    # A temperature comes by way of its logarithm in float32, which leaves no more digits than these.
    return {name: round(value.item(), 6) if isinstance(value, Tensor) else value for name, value in values.items()}
