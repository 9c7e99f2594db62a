"""Rules of priors: a pure function of each image and its noise level, with the right gradient."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial

import torch
from torch import Tensor

from invdiff.contracts.compare import (
    NotApplicable,
    close,
    dot,
    global_randomness_untouched,
    in_double,
    norm,
    normal,
    require,
    rms,
)
from invdiff.priors import Codec, Prior
from invdiff.shapes import row_vjp, sigma_per_row


def check_prior(prior: Prior) -> None:
    """A prior is a pure function of each image and its noise level; AssertionError names the first broken rule.

    It is tried on images of its own shape, or of two sizes where it takes any.
    """
    for _, check in prior_checks(prior):
        with suppress(NotApplicable):
            check()


def prior_checks(prior: Prior) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and check of every rule; a check raises AssertionError where it is broken, `NotApplicable` where it is void.

    Of a latent prior they are those of its codes, after a check of the codec. Call the checks in this order. Any other
    error of the prior is passed on.
    """
    if prior.codec is not None:
        yield "codec", partial(check_codec, prior.codec, prior.diffusion.shape)
    trial = _Trial(prior.diffusion)
    for name, check in _PRIOR_RULES.items():
        yield name, partial(check, trial)


def check_codec(codec: Codec, code_shape: tuple[int, ...] | None = None) -> None:
    """A codec maps codes to images that do not mix, with the right gradient, and images to codes of the same shape."""
    name, shape = type(codec).__name__, code_shape or codec.code_shape((codec.channels, 16, 16))
    codes = normal(0, 3, *shape)
    with torch.no_grad(), global_randomness_untouched(name, "a codec draws no random numbers"):
        images, alone = codec.decode(codes), codec.decode(codes[1:2])
        again = codec.encode(images)
    require(
        tuple(images.shape[1:]) == tuple(codec.image_shape(shape)),
        f"{name}.decode gives {tuple(images.shape[1:])}, image_shape {codec.image_shape(shape)}",
    )
    require(
        tuple(again.shape) == tuple(codes.shape) and tuple(codec.code_shape(tuple(images.shape[1:]))) == tuple(shape),
        f"{name}.encode gives codes {tuple(again.shape[1:])} of images of codes {tuple(shape)}",
    )
    require(bool(images.isfinite().all() and again.isfinite().all()), f"{name} gives NaN or infinity for normal codes")
    close(images[1:2], alone, f"{name}.decode mixes images: one alone is another than in a batch")
    direction, weights, step = normal(1, *codes.shape), normal(2, *images.shape), 1e-2
    _, product = row_vjp(codec.decode, codes)
    with torch.no_grad():
        change = (codec.decode(codes + step * direction) - codec.decode(codes - step * direction)) / (2 * step)
    found, wanted = dot(product(weights), direction), dot(weights, change)
    tolerance = 0.02 * norm(weights) * norm(change)
    require(abs(found - wanted) < tolerance, f"{name}.decode has another gradient than its differences")


class _Trial:
    """A prior with the images it is tried on: three of each size, each with its own noise level."""

    def __init__(self, prior: Prior) -> None:
        self.prior, self.name = prior, type(prior).__name__
        self.low, self.high = prior.value_range
        self.width = min(self.high - self.low, 1e3)
        self.sigmas = torch.tensor([0.05, 0.4, 2.0]) * self.width
        free = [(prior.channels or 1, *size) for size in ((16, 16), (13, 21))]
        self.sizes = [tuple(prior.shape)] if prior.shape is not None else free

    def images(self, size: tuple[int, ...], seed: int = 0, spread: float = 0.5) -> Tensor:
        return (self.low + self.high) / 2 + spread * self.width * normal(seed, 3, *size)

    @cached_property
    def answers(self) -> list[tuple[Tensor, Tensor]]:
        """Images of each size and their estimates."""
        with torch.no_grad():
            images = [self.images(size) for size in self.sizes]
            return [(x, self.prior.denoise(x.clone(), self.sigmas)) for x in images]


def _check_ranges(t: _Trial) -> None:
    low, high = t.prior.sigma_range
    require(t.low < t.high, f"{t.name}.value_range must rise, got {t.prior.value_range}")
    require(0 <= low < high, f"{t.name}.sigma_range must rise from a level >= 0, got {t.prior.sigma_range}")


def _check_accepts(t: _Trial) -> None:
    for size in t.sizes:
        reason = t.prior.mismatch(size)
        require(reason is None, f"{t.name}.mismatch refuses images of its own shape {size}: {reason}")


def _check_refuses(t: _Trial) -> None:
    if t.prior.shape is None and t.prior.channels is None:
        raise NotApplicable("it takes images of any shape")
    other = (t.sizes[0][0] + 1, *t.sizes[0][1:])
    require(
        t.prior.mismatch(other) is not None,
        f"{t.name} accepts images of shape {other}, although it is for {t.sizes[0]}; mismatch must return a reason",
    )


def _check_shape(t: _Trial) -> None:
    for x, x0 in t.answers:
        require(x0.shape == x.shape, f"{t.name} gives {tuple(x0.shape)} for images {tuple(x.shape)}")
        require(x0.dtype == x.dtype, f"{t.name} gives {x0.dtype} for {x.dtype}")


def _check_finite(t: _Trial) -> None:
    for _, x0 in t.answers:
        require(bool(x0.isfinite().all()), f"{t.name} gives NaN or infinity for an ordinary image")


def _check_repeats(t: _Trial) -> None:
    for x, x0 in t.answers:
        with torch.no_grad():
            again = t.prior.denoise(x.clone(), t.sigmas)
        require(torch.equal(x0, again), f"{t.name} gives another estimate of the same images at the second call")


def _check_random_state(t: _Trial) -> None:
    with torch.no_grad(), global_randomness_untouched(t.name, "a denoiser draws no random numbers"):
        t.prior.denoise(t.images(t.sizes[0]), t.sigmas)


def _check_input_kept(t: _Trial) -> None:
    for x, _ in t.answers:
        given = x.clone()
        with torch.no_grad():
            t.prior.denoise(given, t.sigmas)
        require(torch.equal(given, x), f"{t.name} changes its input images; replace in-place operations (x += 1)")


def _check_sigma(t: _Trial) -> None:
    """One noise level as a float, as a scalar tensor, and one per row mean the same."""
    for x, x0 in t.answers:
        for i, sigma in enumerate(t.sigmas):
            one, wanted = x[i : i + 1], x0[i : i + 1]
            with torch.no_grad():
                for kind, level in (("a float sigma", float(sigma)), ("a scalar tensor sigma", sigma)):
                    close(t.prior.denoise(one, level), wanted, f"{t.name}: {kind} and one per row differ", 1e-4)


def _check_rows(t: _Trial) -> None:
    for x, x0 in t.answers:
        for i, sigma in enumerate(t.sigmas):
            with torch.no_grad():
                alone = t.prior.denoise(x, float(sigma))[i : i + 1]
            close(alone, x0[i : i + 1], f"{t.name}: image {i} alone differs from the same image in a batch", 1e-4)


def _check_call(t: _Trial) -> None:
    for x, x0 in t.answers:
        with torch.no_grad():
            require(torch.equal(t.prior(x, t.sigmas), x0), f"{t.name}(x, sigma) is not {t.name}.denoise(x, sigma)")


def _check_score(t: _Trial) -> None:
    for x, x0 in t.answers:
        with torch.no_grad():
            found = t.prior.score(x, t.sigmas)
        close(found, (x0 - x) / sigma_per_row(t.sigmas, x) ** 2, f"{t.name}.score is not (D(x, sigma) - x) / sigma^2")


def _check_copies(t: _Trial) -> None:
    _require_equal(t, copy.deepcopy(t.prior), f"a deep copy of {t.name} gives other estimates")


def _check_pickle(t: _Trial) -> None:
    _require_equal(t, pickle.loads(pickle.dumps(t.prior)), f"{t.name} gives other estimates after pickling")


def _require_equal(t: _Trial, copied: Prior, message: str) -> None:
    for x, x0 in t.answers:
        with torch.no_grad():
            require(torch.equal(copied.denoise(x, t.sigmas), x0), message)


def _check_depends(t: _Trial) -> None:
    """With hardly any noise, different images have different estimates."""
    for x, _ in t.answers:
        with torch.no_grad():
            sharp = t.prior.denoise(x, 1e-3 * t.width)
        require(
            norm(sharp[0] - sharp[1]) > 0.01 * norm(x[0] - x[1]),
            f"{t.name} gives almost the same estimate for different images with hardly any noise",
        )


def _check_small_noise(t: _Trial) -> None:
    """A likely image with hardly any noise is hardly changed."""
    faint = 1e-3 * t.width
    for size, (x, _) in zip(t.sizes, t.answers, strict=True):
        with torch.no_grad():
            likely = t.prior.denoise(x[1:2], float(t.sigmas[1]))
            moved = t.prior.denoise(likely + faint * normal(1, 1, *size), faint) - likely
        ratio = rms(moved) / faint
        require(ratio < 10, f"{t.name} moves an image with noise {faint:.1e} by {ratio:.1f} times that noise")


def _check_gradient(t: _Trial) -> None:
    """<v, J d> = <J^T v, d>, with J d by finite differences: independent of autograd."""
    if not t.prior.differentiable:
        raise NotApplicable("it is not differentiable")
    sigma = 0.4 * t.width
    x = t.images(t.sizes[0], seed=2, spread=0.4)
    double, x, step, tolerance = in_double(t.prior, lambda prior, x: prior.denoise(x, sigma), x)
    d, v = normal(3, *x.shape).to(x), normal(4, *x.shape).to(x)
    with torch.no_grad():
        jd = (double.denoise(x + step * d, sigma) - double.denoise(x - step * d, sigma)) / (2 * step)
    with torch.enable_grad():
        x = x.clone().requires_grad_(True)
        (product,) = torch.autograd.grad((double.denoise(x, sigma) * (v + jd)).sum(), x)
    scale = norm(v + jd) * norm(jd)
    error = abs(dot(v + jd, jd) - dot(product, d))
    require(error <= tolerance * scale, f"{t.name}: autograd differs from finite differences by {error / scale:.1e}")


_PRIOR_RULES: dict[str, Callable[[_Trial], None]] = {
    "ranges": _check_ranges,
    "takes its own shape": _check_accepts,
    "refuses another shape": _check_refuses,
    "shape and precision": _check_shape,
    "estimates are finite": _check_finite,
    "same image, same estimate": _check_repeats,
    "no global randomness": _check_random_state,
    "leaves the image as it is": _check_input_kept,
    "one sigma or one per row": _check_sigma,
    "images do not mix": _check_rows,
    "call": _check_call,
    "score": _check_score,
    "deep copy": _check_copies,
    "pickle": _check_pickle,
    "depends on the image": _check_depends,
    "little noise, little change": _check_small_noise,
    "gradient": _check_gradient,
}
