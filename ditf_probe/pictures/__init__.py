"""Pictures of results as `(H, W, 3)` uint8 arrays; matplotlib loads when the first one is drawn."""

from ditf_probe.pictures.bars import bar_panels
from ditf_probe.pictures.canvas import Picture, save_picture
from ditf_probe.pictures.channels import magnitude_plot
from ditf_probe.pictures.curves import Curve, curve_panels
from ditf_probe.pictures.flow import dense_picture
from ditf_probe.pictures.grids import grid_picture
from ditf_probe.pictures.maps import pca_colours, pca_map, similarity_heat_map
from ditf_probe.pictures.masks import mask_overlay, mask_picture
from ditf_probe.pictures.matches import match_picture

__all__ = [
    "Curve",
    "Picture",
    "bar_panels",
    "curve_panels",
    "dense_picture",
    "grid_picture",
    "magnitude_plot",
    "mask_overlay",
    "mask_picture",
    "match_picture",
    "pca_colours",
    "pca_map",
    "save_picture",
    "similarity_heat_map",
]
