"""What a file is, by its name or its first bytes."""

from pathlib import Path

DICOM = (".dcm", ".dicom", ".ima")
NIFTI = (".nii", ".nii.gz")


def is_dicom(path: Path) -> bool:
    """By suffix, or by what stands behind the preamble: scanners often give no suffix."""
    if path.name.lower().endswith(DICOM):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI)


def stem(path: Path) -> str:
    """The name without its suffix, both parts of `.nii.gz`."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem
