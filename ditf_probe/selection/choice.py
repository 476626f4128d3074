"""From a backbone to the best cell of its grid, with the table, the CSV file and the picture of the search."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from ditf_probe.backbones.base import Backbone, Tap
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.settings import FITTED, Modulate
from ditf_probe.files import ensure_writable, write_text
from ditf_probe.pictures import Picture, grid_picture, save_picture
from ditf_probe.printing import console
from ditf_probe.selection.scores import Grid, Selection, score_grid


def select(
    name_or_path: str,
    *,
    timesteps: Sequence[int],
    tap: Tap = "mlp",
    modulation: Modulate = "adaln",
    num_pairs: int = 200,
    image_size: int = 64,
    ensemble: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    store: str | Path | None = None,
    run_dir: str | Path | None = None,
) -> Selection:
    """Scores every block that has the tap at every timestep, prints the grid and returns its best cell.

    Args:
        name_or_path: As in `load_backbone`.
        timesteps: Noise levels to try, each in one pass.
        tap: Where to read the residual stream.
        modulation: As in `FeatureExtractor`, but none that is fitted to calibration images.
        num_pairs: Pairs of SyntheticPairs val.
        image_size: Side of the images given to the backbone, in pixels.
        ensemble: Noise draws per image.
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.
        store: Folder of feature stores to read streams from, and to keep them in; None keeps nothing.
        run_dir: Folder for `grid.csv`, `grid.png` and TensorBoard; None writes nothing.

    Returns:
        The best cell; the first one of equals, in order of timesteps, then blocks.

    Raises:
        InputError: No block has the tap, a timestep twice or out of range, or a folder that cannot be written to.
    """
    if not timesteps or len(set(timesteps)) < len(timesteps):
        raise InputError("timesteps", list(timesteps), "name at least one, each once")
    folder = None if run_dir is None else ensure_writable(run_dir, "run_dir")
    backbone = load_backbone(name_or_path, device=device, dtype=dtype)
    extractors = list(_extractors(backbone, timesteps, tap, modulation, ensemble, image_size))
    grid = score_grid(extractors, SyntheticPairs("val", num_pairs=num_pairs, image_size=image_size), store)
    title = f"{name_or_path}, tap {tap}, {modulation}: PCK@0.10 per point, SyntheticPairs val, {grid.pairs} pairs"
    console().print(grid_table(grid, title))
    best = grid.best
    console().print(f"best: block {best.block}, timestep {best.timestep}: {best.pck:.1f}")
    if best.ci95 is not None:
        alike = sum(not cell.clearly_below for cell in grid.cells if cell is not best)
        console().print(f"{alike} of {len(grid.cells) - 1} other cells are not clearly below it (paired 95% interval)")
    if folder is not None:
        write_grid(folder, grid, title)
    return Selection(best.block, best.timestep, tap, best.pck)


def _extractors(
    backbone: Backbone, timesteps: Sequence[int], tap: Tap, modulation: Modulate, ensemble: int, image_size: int
) -> Iterator[FeatureExtractor]:
    blocks = [block for block in range(backbone.num_blocks) if tap in backbone.taps(block)]
    if not blocks:
        raise InputError("tap", tap, f"no block of {backbone.name} has it, choose the other one")
    if modulation in FITTED:
        raise InputError("modulation", modulation, "is fitted to calibration images, search with another one")
    if modulation == "adaln" and not backbone.has_adaln:
        raise InputError("modulation", modulation, f"{backbone.name} has no AdaLN, use none, layer_norm or rms_norm")
    for timestep in timesteps:
        yield FeatureExtractor(
            backbone,
            blocks=blocks,
            timestep=timestep,
            tap=tap,
            modulation=modulation,
            ensemble=ensemble,
            image_size=image_size,
        )


def grid_table(grid: Grid, title: str) -> Table:
    """Timesteps down, blocks across; the best cell is marked, and what is not clearly below it is bright."""
    rows = _rows(grid)
    table = Table("timestep", *(f"block {block}" for block in next(iter(rows.values()))), title=title)
    for timestep, row in rows.items():
        table.add_row(str(timestep), *(_styled(row[block], block, timestep, grid) for block in row))
    return table


def _styled(pck: float, block: int, timestep: int, grid: Grid) -> str:
    cell = next(cell for cell in grid.cells if (cell.block, cell.timestep) == (block, timestep))
    if pck == grid.best.pck:
        return f"[bold green]{pck:.1f}[/]"
    return f"[dim]{pck:.1f}[/]" if cell.clearly_below else f"{pck:.1f}"


def grid_csv(grid: Grid) -> str:
    """One line per cell: score, interval, and the paired difference to the best cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("timestep", "block", "pck_0.10", "ci95_low", "ci95_high", "delta_to_best", "delta_low", "delta_high")
    )
    for cell in grid.cells:
        spans = (*(cell.ci95 or ("", "")), cell.delta, *(cell.delta_ci95 or ("", "")))
        numbers = (round(x, 4) if isinstance(x, float) else x for x in (cell.pck, *spans))
        writer.writerow((cell.timestep, cell.block, *numbers))
    return text.getvalue()


def write_grid(folder: Path, grid: Grid, title: str) -> None:
    """Writes `grid.csv` and `grid.png`, and shows the picture to TensorBoard."""
    write_text(folder / "grid.csv", grid_csv(grid))
    picture = grid_picture(_rows(grid), title=title, row_label="timestep", column_label="block")
    save_picture(folder / "grid.png", picture)
    _to_tensorboard(folder / "tensorboard", picture)
    console().print(f"grid {folder / 'grid.csv'}, {folder / 'grid.png'}", soft_wrap=True)


def _to_tensorboard(folder: Path, picture: Picture) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    writer.add_image("grid", picture, dataformats="HWC")
    writer.close()


def _rows(grid: Grid) -> dict[int, dict[int, float]]:
    """Timestep to block to score."""
    rows: dict[int, dict[int, float]] = {}
    for cell in grid.cells:
        rows.setdefault(cell.timestep, {})[cell.block] = cell.pck
    return rows
