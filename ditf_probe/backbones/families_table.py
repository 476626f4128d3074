"""The table of all entries in docs/backbones.md, made from the entries themselves."""

from pathlib import Path

from ditf_probe.backbones.block_taps import group_taps, modulation_conditions
from ditf_probe.backbones.families import FAMILIES, BlockGroup, Family, SubLayer
from ditf_probe.errors import InputError
from ditf_probe.files import write_text

BEGIN, END = "<!-- table of entries -->", "<!-- end of the table -->"
COLUMNS = (
    "class",
    "blocks",
    "taps",
    "modulation",
    "image tokens",
    "time of t = 250",
    "noise",
    "condition",
    "autoencoder",
)


def families_table() -> str:
    """One line of Markdown per entry and kind of blocks, classes in alphabetical order."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name, family in sorted(FAMILIES.items()):
        for number, group in enumerate(family.groups):
            shown = _class_cells(name, family) if number == 0 else ("", "", "", "", "")
            cells = (shown[0], f"`{group.container}`", _taps(group), _modulation(group), _order(group), *shown[1:])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(path: Path) -> None:
    """Puts the table between the marks of a Markdown file.

    Raises:
        InputError: The file cannot be read, or has no marks.
    """
    try:
        text = path.read_text()
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
    except (OSError, ValueError, IndexError) as error:
        raise InputError("--write", str(path), f"give a text file with the lines {BEGIN} and {END}") from error
    write_text(path, f"{before}{BEGIN}\n{families_table()}\n{END}{after}")


def _class_cells(name: str, family: Family) -> tuple[str, str, str, str, str]:
    noise = "rectified flow" if family.noising == "flow" else "DDPM schedule"
    condition = "class" if family.text is None else "prompt"
    apart = modulation_conditions(family)
    if len(apart) > 1:
        condition += f" ({', '.join(apart)})"
    return f"`{name}`", f"{family.time(250):g}", noise, condition, f"`{family.vae}`"


def _taps(group: BlockGroup) -> str:
    return ", ".join([*group_taps(group)[:-3], "q/k/v"])


def _modulation(group: BlockGroup) -> str:
    layers = [layer for layer in (group.attention, group.mlp) if layer is not None]
    kinds = list(dict.fromkeys(_kind(layer) for layer in layers))
    shared = " (one for all blocks)" if group.modulation.shared else ""
    return " / ".join(kinds) + shared


def _kind(layer: SubLayer) -> str:
    parts = [name for name, chunk in (("shift", layer.shift), ("scale", layer.scale)) if chunk is not None]
    return ", ".join(parts) or "none"


def _order(group: BlockGroup) -> str:
    return {"image_only": "alone", "text_first": "after text", "image_first": "before text"}.get(
        group.order, "directly after the text of each row"
    )
