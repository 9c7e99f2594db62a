"""All rules on a measurement, by name."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from invdiff.checks.callables import of_the_user
from invdiff.checks.evidence import Check, Evidence
from invdiff.checks.fourier import check_coils, check_fourier_centre
from invdiff.checks.kernels import check_kernel
from invdiff.checks.level import check_level
from invdiff.checks.scale import check_scale, check_sign
from invdiff.checks.sinograms import check_sinogram
from invdiff.checks.typical import rough_image, typical_images
from invdiff.checks.zeros import check_mask, check_soft_mask
from invdiff.contracts.compare import NotApplicable
from invdiff.contracts.verdict import Verdict
from invdiff.findings import Finding
from invdiff.operators import Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem

CHECKS: dict[str, Check] = {
    "scale of y": check_scale,
    "sign and range of y": check_sign,
    "mask and zeros of y": check_mask,
    "values of the mask": check_soft_mask,
    "centre of k-space": check_fourier_centre,
    "coil sensitivities": check_coils,
    "kernel": check_kernel,
    "sinogram": check_sinogram,
    "noise of y": check_level,
}
# Kinds of findings with which no image of the prior can explain y.
IMPOSSIBLE = frozenset({"units", "fourier", "kernel units", "mask inverted", "sinogram counts", "sinogram transposed"})
# Kinds that are mere consequences of another one.
_SCALES = frozenset({"scale", "units", "sigma", "range"})
CONSEQUENCES: dict[str, frozenset[str]] = {
    "units": frozenset({"sigma", "range"}),
    "scale": frozenset({"sigma", "range"}),
    "sigma": frozenset({"range"}),
    **dict.fromkeys(("kernel units", "kernel sum", "coil scale", "sinogram counts", "mask inverted"), _SCALES),
}
FEW = 4  # images of a batch that are looked at in the short form


def check_measurement(problem: InverseProblem, prior: Prior, *, images: int = FEW) -> list[Finding]:
    """What looks wrong with a measurement, one finding of a kind; an empty list where nothing does.

    images  how many of the batch are looked at, the first ones

    y is compared with A of typical images of the prior. Image and measurement are on the CPU.
    """
    found: dict[str, tuple[Finding, list[int]]] = {}
    for i, evidence in enumerate(_evidence(problem, prior, images)):
        for finding in causes([f for check in CHECKS.values() for f in _findings(check, evidence)]):
            found.setdefault(finding.kind, (finding, []))[1].append(i)
    several = min(images, problem.images) > 1
    return [_of_images(finding, where) if several else finding for finding, where in found.values()]


def measurement_checks(problem: InverseProblem, prior: Prior, *, images: int = FEW) -> Iterator[Verdict]:
    """The outcome of every rule: passed, a warning, failed where the result is likely wrong, or n/a with the reason."""
    void: dict[str, str] = {}
    found: dict[str, dict[str, Finding]] = {name: {} for name in CHECKS}
    for evidence in _evidence(problem, prior, images):
        by_rule: dict[str, list[Finding]] = {}
        for name, check in CHECKS.items():
            try:
                by_rule[name] = list(check(evidence))
            except NotApplicable as reason:
                void[name] = str(reason)
        kept = causes([finding for findings in by_rule.values() for finding in findings])
        for name, findings in by_rule.items():
            found[name].update({finding.kind: finding for finding in findings if finding in kept})
    for name, by_kind in found.items():
        if by_kind:
            severe = any(finding.severe for finding in by_kind.values())
            words = "; ".join(finding.words for finding in by_kind.values())
            yield Verdict(name, "failed" if severe else "warning", words)
        elif name in void:
            yield Verdict(name, "n/a", void[name])
        else:
            yield Verdict(name, "passed")


def causes(findings: list[Finding]) -> list[Finding]:
    """Findings without those that follow from another, severe one."""
    explained = [CONSEQUENCES.get(finding.kind, frozenset()) for finding in findings if finding.severe]
    return [finding for finding in findings if not any(finding.kind in kinds for kinds in explained)]


def _findings(check: Check, evidence: Evidence) -> list[Finding]:
    try:
        return list(check(evidence))
    except NotApplicable:
        return []


def _of_images(finding: Finding, where: list[int]) -> Finding:
    return replace(finding, words=f"image {', '.join(map(str, where))}: {finding.words}")


@torch.no_grad()
def _evidence(problem: InverseProblem, prior: Prior, count: int) -> Iterator[Evidence]:
    """The evidence on the first images; A is computed once where all images share its parameters."""
    images = typical_images(prior, problem.image_shape)
    dear = of_the_user(problem.operator)
    images = images[:2] if dear else images
    low, high = prior.value_range
    flat = [torch.full(problem.image_shape, value) for value in (low, high)]
    ends = torch.stack([*flat, rough_image(prior, problem.image_shape)])
    measured: tuple[Tensor, Tensor | None] | None = None
    for i in range(min(count, problem.images)):
        one = problem.select(torch.tensor([i]))
        if measured is None or problem.operator.images > 1:
            measured = _measured(one.operator, images), None if dear else _measured(one.operator, ends)
        yield Evidence(one, prior, images, *measured)


def _measured(operator: Operator, images: Tensor) -> Tensor:
    return torch.cat([operator(image[None].clone()) for image in images])
