"""Terms with weights: sums, refusals, shared temperatures, configuration."""

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from ditf_probe import losses
from ditf_probe.data.pairs import Pair
from ditf_probe.errors import InputError
from ditf_probe.losses import (
    DenseContrast,
    Extras,
    GaussianCrossEntropy,
    KeypointContrast,
    Objective,
    SelfDistillation,
    SoftArgmaxRegression,
    Term,
)

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"
Draw = Callable[..., tuple[list[Tensor], list[Tensor], list[Pair]]]


class Constant(nn.Module):
    """A term of somebody else's."""

    needs = frozenset({"source_maps"})

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, sources: Any, targets: Any, pairs: Any, extras: Any) -> Tensor:
        return self.value


def test_the_total_is_the_weighted_sum(draw: Draw) -> None:
    batch = draw(0)
    terms = {"contrast": KeypointContrast(), "place": SoftArgmaxRegression(), "other": Constant(5.0)}
    objective = Objective(terms, {"place": 0.25, "other": 0.0})
    total, values = objective(*batch)
    assert list(values) == list(terms)
    expected = terms["contrast"](*batch) + 0.25 * terms["place"](*batch)
    torch.testing.assert_close(total, expected)
    assert float(values["other"]) == 5
    assert not any(value.requires_grad for value in values.values())
    total.backward()
    assert terms["other"].value.grad == 0
    assert terms["contrast"].log_temperature.grad != 0


def test_one_term_alone_is_itself(draw: Draw) -> None:
    batch = draw(1, dtype=torch.float32)
    contrast = KeypointContrast()
    assert torch.equal(Objective({"contrast": contrast})(*batch)[0], contrast(*batch))


def test_needs_are_those_of_the_terms(draw: Draw) -> None:
    maps, points = {"source_maps", "target_maps"}, {"source_points", "target_points"}
    assert Objective({"a": DenseContrast()}).needs == maps | points
    assert Objective({"a": SelfDistillation()}).needs == maps | {"zero_shot"}
    assert Objective({"a": DenseContrast(), "b": SelfDistillation()}).needs == maps | points | {"zero_shot"}
    assert Objective({"a": Constant(1.0)}).needs == {"source_maps"}
    assert Objective({"a": KeypointContrast()}).needs == maps | points
    assert Objective({"a": DenseContrast(symmetric=False)}).needs == points | {"target_maps"}
    both = Objective({"a": DenseContrast(symmetric=False), "b": SelfDistillation()})
    assert both.needs == maps | points | {"zero_shot"}
    a, b, pairs = draw(2)
    total, values = Objective({"a": DenseContrast(), "b": SelfDistillation()})(a, b, pairs, Extras(b, a))
    assert total == values["a"] + values["b"]
    assert values["b"] > 0


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ({}, {}, "`terms` is {}"),
        ({"a": DenseContrast()}, {"b": 1.0}, "`weights` is 'b': use the name of a term, a"),
        ({"a": DenseContrast()}, {"a": math.nan}, "`weights` is nan: give a a number"),
        ({"a": DenseContrast()}, {"a": math.inf}, "`weights` is inf"),
        ({"a": DenseContrast()}, {"a": -1.0}, "`weights` is -1.0"),
        ({"a": DenseContrast()}, {"a": 0.0}, "give at least one term a weight above 0"),
        ({"keys": DenseContrast()}, {}, "`terms` is 'keys': choose another name"),
        ({"training": DenseContrast()}, {}, "`terms` is 'training': choose another name"),
        ({"a.b": DenseContrast()}, {}, "`terms` is 'a.b': choose another name"),
        ({"a": nn.Identity()}, {}, "`terms` is 'torch.nn.modules.linear.Identity': give its class a set `needs`"),
    ],
)
def test_bad_terms_and_weights_are_named(terms: dict[str, nn.Module], weights: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as error:
        Objective(terms, weights)
    assert str(error.value).startswith(message) or message in str(error.value)


def test_a_term_that_is_not_a_number_is_named(draw: Draw) -> None:
    objective = Objective({"good": Constant(1.0), "bad": Constant(math.nan)}, {"bad": 0.0})
    with pytest.raises(InputError, match=r"`terms.bad` is nan: lower the learning rate"):
        objective(*draw(3))


def test_a_shared_temperature_is_learnt_by_all(draw: Draw) -> None:
    terms = {"a": DenseContrast(), "b": GaussianCrossEntropy(), "c": SoftArgmaxRegression()}
    single = [DenseContrast(), GaussianCrossEntropy()]
    objective = Objective(terms, {"b": 0.5}, shared_temperature=True)
    assert sum(p.requires_grad for p in objective.parameters()) == 1
    batch = draw(4)
    objective(*batch)[0].backward()
    (single[0](*batch) + 0.5 * single[1](*batch)).backward()
    grad = terms["a"].log_temperature.grad
    assert grad is not None
    torch.testing.assert_close(grad, sum(term.log_temperature.grad for term in single))
    with torch.no_grad():
        terms["a"].log_temperature.fill_(math.log(0.5))
    assert {name: round(float(t), 6) for name, t in objective.temperatures().items()} == {"a": 0.5, "b": 0.5}
    fresh = Objective({"a": DenseContrast(), "b": GaussianCrossEntropy(), "c": SoftArgmaxRegression()}, None, True)
    fresh.load_state_dict(objective.state_dict())
    assert fresh.temperatures() == objective.temperatures()


def test_temperatures_are_apart_unless_shared(draw: Draw) -> None:
    objective = Objective({"a": DenseContrast(0.1), "b": GaussianCrossEntropy(temperature=0.2)})
    assert {name: round(float(t), 6) for name, t in objective.temperatures().items()} == {"a": 0.1, "b": 0.2}
    with pytest.raises(InputError, match=r"`shared_temperature` is \[0.1, 0.2\]"):
        Objective({"a": DenseContrast(0.1), "b": GaussianCrossEntropy(temperature=0.2)}, None, True)


def test_settings_build_the_objective_again() -> None:
    objective = Objective({"a": SoftArgmaxRegression(window=5), "b": KeypointContrast(0.1, True, 2.0)}, {"a": 0.5})
    settings = yaml.safe_load(yaml.safe_dump(objective.settings()))
    assert settings["a"]["weight"] == 0.5
    assert settings["a"]["init_args"]["window"] == 5
    assert settings["b"]["class_path"] == "ditf_probe.losses.keypoint_contrast.KeypointContrast"
    assert settings["b"]["init_args"] == {"temperature": 0.1, "learn_temperature": True, "margin": 2.0}
    again = SoftArgmaxRegression(**settings["a"]["init_args"])
    assert Objective({"a": again}).settings()["a"]["init_args"] == settings["a"]["init_args"]


def test_a_configuration_names_classes(tmp_path: Path, draw: Draw) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "losses.yaml").write_text(example)
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--losses", type=dict[str, Callable[[], nn.Module]])
    parser.add_argument("--loss_weights", type=dict[str, float])
    found = parser.instantiate(parser.parse_args([f"--config={tmp_path / 'losses.yaml'}"]))
    first, second = (Objective({name: make() for name, make in found.losses.items()}) for _ in range(2))
    assert isinstance(first.terms["place"], SoftArgmaxRegression)
    assert first.terms["place"].window == 5
    assert first.terms["place"] is not second.terms["place"]
    a, b, pairs = draw(5)
    weighted = Objective(dict(first.terms.items()), found.loss_weights)
    total, values = weighted(a, b, pairs, Extras(a, b))
    torch.testing.assert_close(total.detach(), values["contrast"] + 0.5 * values["place"] + 0.1 * values["keep"])


def test_the_examples_of_the_documentation_run(draw: Draw) -> None:
    use, own = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    sources, targets, pairs = draw(6)
    names: dict[str, Any] = {"sources": sources, "targets": targets, "pairs": pairs, "Tensor": Tensor}
    names |= {"source_features": [2 * m for m in sources], "target_features": targets}
    exec(compile(use, PAGE.name, "exec"), names)
    assert names["total"] == names["values"]["contrast"] + 0.1 * names["values"]["keep"]
    exec(compile(own, PAGE.name, "exec"), names)
    assert float(names["term"](sources, [2 * m for m in targets], pairs)) > 0


def test_the_documentation_names_every_term() -> None:
    terms = {
        name
        for name, kind in vars(losses).items()
        if isinstance(kind, type) and issubclass(kind, Term) and not inspect.isabstract(kind)
    }
    assert set(re.findall(r"^\| `(\w+)`", PAGE.read_text(), flags=re.MULTILINE)) == terms


def test_a_learnt_temperature_stays_between_its_bounds() -> None:
    term = losses.KeypointContrast()
    for logarithm, expected in ((-9.0, 0.01), (math.log(0.3), 0.3), (2.0, 1.0)):
        term.log_temperature.data.fill_(logarithm)
        assert float(term.temperature.detach()) == pytest.approx(expected)
