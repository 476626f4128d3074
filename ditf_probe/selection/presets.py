"""Block, timestep and tap in a preset file, such as those in `configs/backbone/`."""

from pathlib import Path

from ditf_probe.errors import InputError
from ditf_probe.files import write_text
from ditf_probe.selection.scores import Selection


def preset_lines(path: Path) -> dict[str, int]:
    """Where a preset file holds its block, timestep and tap.

    Args:
        path: YAML file.

    Returns:
        Key to line number from 0.

    Raises:
        InputError: The file is missing, or does not have exactly one line for each.
    """
    if not path.is_file():
        raise InputError("--write", str(path), "no such preset file, name one of configs/backbone/")
    lines = path.read_text().splitlines()
    found = {}
    for key in ("blocks", "timestep", "tap"):
        rows = [number for number, line in enumerate(lines) if line.startswith(f"{key}:")]
        if len(rows) != 1:
            raise InputError("--write", str(path), f"needs exactly one line that starts with `{key}:`")
        found[key] = rows[0]
    return found


def write_preset(path: Path, best: Selection) -> None:
    """Replaces block, timestep and tap in a preset file, keeping its comments.

    Args:
        path: YAML file with `blocks:`, `timestep:` and `tap:` lines.
        best: What to write.

    Raises:
        InputError: The file is missing or lacks one of the lines.
    """
    numbers, lines = preset_lines(path), path.read_text().splitlines()
    for key, value in {"blocks": f"[{best.block}]", "timestep": best.timestep, "tap": best.tap}.items():
        lines[numbers[key]] = f"{key}: {value}"
    write_text(path, "\n".join(lines) + "\n")
