"""Which blocks and timesteps trained aggregations weigh."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.table import Table
from torch import nn

from ditf_probe.errors import InputError
from ditf_probe.files import write_text
from ditf_probe.pictures import Picture, bar_panels, save_picture
from ditf_probe.probes import LayerAggregation, load_probe
from ditf_probe.sweeping.records import probe_folders


@dataclass(frozen=True)
class Weight:
    """What one copy of a head gives to a block, over all timesteps, or to a timestep, over all blocks.

    Attributes:
        head: Name of its folder, with the run where there are several.
        seed: Its seed; None without.
        axis: "block" or "timestep".
        value: Which.
        weight: In the mixture; those of an axis sum to 1.
        norm: Frobenius norm of the linear projection of a block: for uncorrelated channels about the length of what the
            weight multiplies. None for timesteps.
        share: Weight times norm; those of all blocks sum to 1. A large weight of a small projection is little. None for
            timesteps.
    """

    head: str
    seed: int | None
    axis: str
    value: int
    weight: float
    norm: float | None = None
    share: float | None = None


def weights_of(folders: Mapping[str, Path]) -> list[Weight]:
    """The weights of every `LayerAggregation` among trained probes.

    Args:
        folders: Name of each head to its folder, `probes/NAME` of a run, which holds a probe or copies of it.

    Raises:
        InputError: A folder holds none.
    """
    found: list[Weight] = []
    for head, folder in folders.items():
        probes = probe_folders(folder)
        if not probes:
            remedy = "holds no probe, run `ditf-probe experiment heads` first, and with --root also `transfer`"
            raise InputError("--run-dir", str(folder), remedy)
        for path in probes:
            found += _weights(head, path)
    return found


def _weights(head: str, folder: Path) -> Iterator[Weight]:
    probe, facts = load_probe(folder)
    if not isinstance(probe, LayerAggregation):
        return
    seed = facts.training.get("seed")
    weights, norms = probe.layer_weights(), {block: _norm(probe.projections[str(block)]) for block in probe.blocks}
    total = sum(weights[block] * norm for block, norm in norms.items())
    for block, norm in norms.items():
        yield Weight(head, seed, "block", block, weights[block], norm, weights[block] * norm / total)
    steps = facts.features["timestep"]
    if probe.num_timesteps is not None:
        for step, weight in zip([steps] if isinstance(steps, int) else steps, probe.timestep_weights(), strict=True):
            yield Weight(head, seed, "timestep", step, weight)


def _norm(layer: nn.Module) -> float:
    assert isinstance(layer, nn.Conv2d)
    return float(layer.weight.detach().norm())


def layers_csv(weights: Sequence[Weight]) -> str:
    """One line per copy, and block or timestep."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("head", "seed", "axis", "value", "weight", "norm", "share"))
    for found in weights:
        numbers = ("" if x is None else round(x, 6) for x in (found.weight, found.norm, found.share))
        writer.writerow((found.head, "" if found.seed is None else found.seed, found.axis, found.value, *numbers))
    return text.getvalue()


def layers_table(weights: Sequence[Weight]) -> Table:
    """Mean and standard deviation over seeds."""
    table = Table(title="Weights in the mixture, mean ± standard deviation over seeds", title_justify="left")
    for column in ("head", "block or timestep", "weight", "share, with its projection"):
        table.add_column(column, justify="left" if column == "head" else "right", no_wrap=True)
    for (head, axis), values in _by_panel(weights).items():
        for value, copies in values.items():
            shares = [x.share for x in copies if x.share is not None]
            table.add_row(head, f"{axis} {value}", _spread([x.weight for x in copies]), _spread(shares))
    return table


def layers_picture(weights: Sequence[Weight]) -> Picture:
    """A panel per head and axis, a bar per block or timestep."""
    panels = {
        f"{head}, by {axis}": {str(value): [x.weight for x in copies] for value, copies in values.items()}
        for (head, axis), values in _by_panel(weights).items()
    }
    return bar_panels(panels, title="Weights of the aggregation; dots are seeds", y_label="weight")


def write_layers(folder: Path, weights: Sequence[Weight]) -> list[Path]:
    """Writes `layers.csv` and `layers.png`, and returns both."""
    files = [folder / "layers.csv", folder / "layers.png"]
    write_text(files[0], layers_csv(weights))
    save_picture(files[1], layers_picture(weights))
    return files


def _by_panel(weights: Sequence[Weight]) -> dict[tuple[str, str], dict[int, list[Weight]]]:
    found: dict[tuple[str, str], dict[int, list[Weight]]] = {}
    for x in weights:
        found.setdefault((x.head, x.axis), {}).setdefault(x.value, []).append(x)
    return found


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
