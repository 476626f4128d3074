"""The pixel convention, and nothing else knows it.

Points are `(x, y)`, x before y; (0, 0) is the centre of the top-left pixel, so an image of width w spans -0.5 to
w - 0.5. A resize maps `x' = (x + 0.5) * w' / w - 0.5`, and a feature grid is one more resize of the image that it
covers: cell i of a grid with stride s has its centre at `(i + 0.5) * s - 0.5`. Sizes are (height, width).

Padding: a grid computed from a padded canvas also has cells of the padding. `fit` therefore puts the image on whole
multiples of `multiple`, and `crop_features` cuts the cells of the image out. What is left covers the original image
from edge to edge, as in the other modes, so matching knows nothing of canvases: no prediction can land in the padding.
The letterbox modes are the exception, for protocols that search the whole canvas.
"""

from ditf_probe.geometry.canvases import (
    WHOLE_CANVAS,
    Filter,
    Mode,
    Transform,
    crop_features,
    fit,
    prepare_image,
)
from ditf_probe.geometry.points import (
    Landing,
    Sampling,
    Size,
    axis_coordinates,
    cell_centres,
    check_size,
    grid_coordinates,
    grid_points,
    mirror_points,
    resize_points,
)

__all__ = [
    "WHOLE_CANVAS",
    "Filter",
    "Landing",
    "Mode",
    "Sampling",
    "Size",
    "Transform",
    "axis_coordinates",
    "cell_centres",
    "check_size",
    "crop_features",
    "fit",
    "grid_coordinates",
    "grid_points",
    "mirror_points",
    "prepare_image",
    "resize_points",
]
