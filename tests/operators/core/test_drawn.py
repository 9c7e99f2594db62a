"""Which parameters of an operator were drawn at random or simulated, and which option gives or repeats them."""

import torch

from invdiff.operators import (
    MRI,
    Blur,
    CodedDiffraction,
    CompressedSensing,
    HadamardSensing,
    Inpainting,
    MotionBlur,
    MulticoilMRI,
    NonlinearBlur,
    Operator,
    RadialMRI,
    RandomProjection,
    compose,
    stack,
)

MASK = torch.tensor([1, 0, 1, 1], dtype=torch.bool)
MAPS = torch.ones(2, 4, 4, dtype=torch.complex64)
DRAWN = {
    "default": (Inpainting(), {"mask": "seed"}),
    "keep": (Inpainting(keep=0.5), {"mask": "seed"}),
    "lines at random": (Inpainting(lines=0.5), {"mask": "seed"}),
    "box at random": (Inpainting(box=2, margin=1), {"mask": "seed"}),
    "box": (Inpainting(box=2), {}),
    "every other line": (Inpainting(lines=2), {}),
    "text": (Inpainting(text="abc"), {}),
    "mask": (Inpainting(mask=torch.eye(4)), {}),
    "mri": (MRI(), {"mask": "seed"}),
    "mri, mask": (MRI(mask=MASK), {}),
    "coils": (MulticoilMRI(), {"mask": "seed", "maps": "coils"}),
    "coils, mask": (MulticoilMRI(mask=MASK), {"maps": "coils"}),
    "coils, maps": (MulticoilMRI(maps=MAPS), {"mask": "seed"}),
    "coils, both": (MulticoilMRI(maps=MAPS, mask=MASK), {}),
    "radial": (RadialMRI(), {}),
    "radial, coils": (RadialMRI(coils=4), {"maps": "coils"}),
    "camera shake": (MotionBlur(kernel_size=5), {"kernel": "seed"}),
    "nonlinear blur": (NonlinearBlur(kernel_size=5), {"kernel": "seed"}),
    "a kernel": (Blur(torch.ones(3, 3)), {}),
    "compressed sensing": (CompressedSensing(image_shape=(1, 4, 4)), {"matrix": "seed"}),
    "projection": (RandomProjection(image_shape=(1, 1, 8)), {"matrix": "seed"}),
    "hadamard": (HadamardSensing(), {}),
    "hadamard at random": (HadamardSensing(order="random"), {"order": "seed"}),
    "diffraction": (CodedDiffraction(), {"masks": "seed"}),
    "diffraction, masks": (CodedDiffraction(masks=MAPS), {}),
    "composed": (compose([MotionBlur(kernel_size=5), Inpainting(box=2)]), {"kernel": "seed"}),
    "stacked": (stack([MRI(mask=MASK), MRI()], image_shape=(1, 4, 4)), {"mask": "seed"}),
}


def test_drawn() -> None:
    for case, (operator, wanted) in DRAWN.items():
        assert isinstance(operator, Operator)
        assert {name: how.by for name, how in operator.drawn.items()} == wanted, case
