"""Which block and which timestep: a grid of zero-shot scores on SyntheticPairs val, one pass per timestep."""

from ditf_probe.selection.choice import select
from ditf_probe.selection.presets import preset_lines, write_preset
from ditf_probe.selection.scores import Grid, Selection, score_blocks, score_grid

__all__ = ["Grid", "Selection", "preset_lines", "score_blocks", "score_grid", "select", "write_preset"]
