"""Magnitudes of channels, the few massive ones named (Darcet et al. and Sun et al. call them massive activations)."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ditf_probe.pictures.canvas import INK, Picture, new_figure, pixels_of

_MASSIVE = "#c4432b"
_USUAL = "#7f9cc4"


def magnitude_plot(
    magnitudes: Tensor, massive_channels: Sequence[int], *, ratio: float = 100.0, title: str = ""
) -> Picture:
    """Mean magnitude of every channel on a logarithmic scale, massive channels named.

    Args:
        magnitudes: `(C,)`: mean |x| over tokens and images, not negative.
        massive_channels: Channels to mark.
        ratio: Multiple of the median from which a channel counts as massive; drawn as a line.
        title: Stands above, in front of the number of massive channels.

    Returns:
        The picture, `(360, 900, 3)` uint8.
    """
    values = magnitudes.detach().double().cpu().numpy()
    median = float(np.median(values))
    positive = values[values > 0]
    floor = float(positive.min()) / 2 if len(positive) else 1e-6
    figure = new_figure(900, 360)
    axes = figure.add_axes((0.085, 0.15, 0.895, 0.72))
    axes.vlines(
        np.arange(len(values)), floor, np.maximum(values, floor), color=_USUAL, linewidth=max(0.6, 500 / len(values))
    )
    axes.axhline(median, color=INK, linewidth=1.2, linestyle=":", label=f"median {median:.3g}")
    axes.axhline(ratio * median, color=_MASSIVE, linewidth=1.2, linestyle="--", label=f"{ratio:g} x median")
    for channel in massive_channels:
        axes.vlines([channel], floor, values[channel], color=_MASSIVE, linewidth=1.6)
        axes.plot([channel], [values[channel]], "o", color=_MASSIVE, markersize=6)
        axes.annotate(
            str(channel), (channel, values[channel]), (6, 4), textcoords="offset points", fontsize=10, color=_MASSIVE
        )
    axes.set_yscale("log")
    top = 6 * max(float(values.max()), ratio * median, floor)
    axes.set(xlim=(-1, len(values)), ylim=(floor, top), xlabel="channel", ylabel="mean |x|")
    found = f"{len(massive_channels)} massive channel{'' if len(massive_channels) == 1 else 's'}"
    axes.set_title(f"{title}   {found}" if title else found, loc="left", fontsize=11, color=INK)
    axes.legend(loc="upper right", frameon=False, fontsize=9, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return pixels_of(figure)
