"""Forward models and measurement noise: what was measured."""

from .base import LinearOperator, Operator, SpectralOperator
from .black_box import BlackBox, LinearBlackBox
from .blur import Blur, CircularBlur
from .coded_diffraction import CodedDiffraction
from .colorization import Colorization
from .composition import Composition, LinearComposition, compose
from .compressed_sensing import CompressedSensing
from .ct import CT
from .ct_transmission import CTTransmission
from .demosaicing import Demosaicing
from .denoising import Denoising
from .foreign import CallableOperator, LinearCallableOperator, as_operator
from .gaussian_blur import GaussianBlur
from .hadamard import HadamardSensing
from .hdr import HDR
from .impulse_noise import ImpulseNoise
from .inpainting import Inpainting
from .jpeg import JPEG
from .laplace_noise import LaplaceNoise
from .matrix import MatrixOperator
from .motion_blur import MotionBlur
from .mri import MRI
from .multicoil_mri import MulticoilMRI
from .noise import GaussianNoise, Noise, NoNoise, PoissonNoise
from .nonlinear_blur import NonlinearBlur
from .phase_retrieval import PhaseRetrieval
from .poisson_gaussian_noise import PoissonGaussianNoise
from .quantisation import Quantisation
from .quantisation_noise import QuantisationNoise
from .radial_mri import RadialMRI
from .random_projection import RandomProjection
from .separable import SeparableOperator
from .space_varying_blur import SpaceVaryingBlur
from .speckle_noise import SpeckleNoise
from .stacking import LinearStacking, StackedNoise, Stacking, stack
from .super_resolution import SuperResolution
from .user_file import from_file

__all__ = [
    "CT",
    "HDR",
    "JPEG",
    "MRI",
    "BlackBox",
    "Blur",
    "CTTransmission",
    "CallableOperator",
    "CircularBlur",
    "CodedDiffraction",
    "Colorization",
    "Composition",
    "CompressedSensing",
    "Demosaicing",
    "Denoising",
    "GaussianBlur",
    "GaussianNoise",
    "HadamardSensing",
    "ImpulseNoise",
    "Inpainting",
    "LaplaceNoise",
    "LinearBlackBox",
    "LinearCallableOperator",
    "LinearComposition",
    "LinearOperator",
    "LinearStacking",
    "MatrixOperator",
    "MotionBlur",
    "MulticoilMRI",
    "NoNoise",
    "Noise",
    "NonlinearBlur",
    "Operator",
    "PhaseRetrieval",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "Quantisation",
    "QuantisationNoise",
    "RadialMRI",
    "RandomProjection",
    "SeparableOperator",
    "SpaceVaryingBlur",
    "SpeckleNoise",
    "SpectralOperator",
    "StackedNoise",
    "Stacking",
    "SuperResolution",
    "as_operator",
    "compose",
    "from_file",
    "stack",
]
