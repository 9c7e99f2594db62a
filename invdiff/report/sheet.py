"""A contact sheet: one picture for each choice, with its label."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3


def sheet(pictures: Mapping[str, Tensor], value_range: tuple[float, float]) -> "Figure":
    """Images (C, H, W), of one or three channels, under their labels."""
    from matplotlib.figure import Figure

    low, high = value_range
    rows = -(-len(pictures) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 4.3 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (label, image) in zip(axes, pictures.items(), strict=False):
        shown = ((image - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).numpy()
        axis.imshow(shown if shown.shape[-1] == 3 else shown.mean(-1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(label)
    return figure
