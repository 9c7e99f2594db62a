"""The contact sheet of `invdiff restore blur=sheet`."""

import numpy as np
import pytest
import torch

from invdiff.report.sheet import sheet


@pytest.mark.parametrize("channels", [1, 3])
def test_each_picture_stands_under_its_label(channels: int) -> None:
    """In units of the value range, clipped to it; places without a picture stay empty."""
    pictures = {f"std {k}": torch.full((channels, 4, 6), float(k)) for k in range(4)}
    figure = sheet(pictures, (-1.0, 2.0))
    assert [axis.get_title() for axis in figure.axes] == ["std 0", "std 1", "std 2", "std 3", "", ""]
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert [float(np.mean(image)) for image in shown] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert shown[0].shape == ((4, 6, 3) if channels == 3 else (4, 6))
