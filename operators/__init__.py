"""Forward models and measurement noise."""

from .blur.blur import Blur, CircularBlur
from .blur.gaussian_blur import GaussianBlur
from .blur.motion_blur import MotionBlur
from .blur.nonlinear_blur import NonlinearBlur
from .blur.space_varying_blur import SpaceVaryingBlur
from .camera.hdr import HDR
from .camera.jpeg import JPEG
from .camera.quantisation import Quantisation
from .combine.composition import Composition, LinearComposition, compose
from .combine.stacking import LinearStacking, StackedNoise, Stacking, stack
from .core.base import LinearOperator, Operator, SpectralOperator
from .core.separable import SeparableOperator
from .mri.mri import MRI
from .mri.multicoil_mri import MulticoilMRI
from .mri.radial_mri import RadialMRI
from .noise.base import GaussianNoise, Noise, NoNoise, PoissonNoise
from .noise.impulse import ImpulseNoise
from .noise.laplace import LaplaceNoise
from .noise.poisson_gaussian import PoissonGaussianNoise
from .noise.quantisation import QuantisationNoise
from .noise.speckle import SpeckleNoise
from .phase.coded_diffraction import CodedDiffraction
from .phase.phase_retrieval import PhaseRetrieval
from .pixels.colorization import Colorization
from .pixels.demosaicing import Demosaicing
from .pixels.denoising import Denoising
from .pixels.inpainting import Inpainting
from .pixels.super_resolution import SuperResolution
from .projections.compressed_sensing import CompressedSensing
from .projections.hadamard import HadamardSensing
from .projections.random_projection import RandomProjection
from .tomography.ct import CT
from .tomography.ct_transmission import CTTransmission
from .yours.as_operator import CallableOperator, LinearCallableOperator, as_operator
from .yours.black_box import BlackBox, LinearBlackBox
from .yours.from_file import from_file
from .yours.matrix import MatrixOperator

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
