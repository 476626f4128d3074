"""Procedural drawings: sketches of objects, posed into scenes, rasterised."""

from ditf_probe.data.drawing.categories import OBJECTS, Category
from ditf_probe.data.drawing.dice import Dice
from ditf_probe.data.drawing.raster import rasterise, rasterise_mask
from ditf_probe.data.drawing.scene import Scene, compose

__all__ = ["OBJECTS", "Category", "Dice", "Scene", "compose", "rasterise", "rasterise_mask"]
