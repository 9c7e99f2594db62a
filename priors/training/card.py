"""Model cards: data, training and denoising of a prior."""

import shlex
from pathlib import Path

from .codec_training import CodecTrainer, LatentRecipe
from .mixture_fit import MixtureFit
from .training import Recipe, Trainer


def write_card(
    path: Path, *, name: str, recipe: Recipe, trainer: Trainer, images: int, psnr: dict[float, float]
) -> None:
    """A Markdown card with the measured facts; its author adds data, licence and purpose."""
    parameters = sum(p.numel() for p in trainer.prior.parameters())
    size = "any size" if recipe.shape is None else "x".join(map(str, recipe.shape[1:]))
    command = f"invdiff train recipe={name} data=IMAGES recipe.minutes={recipe.minutes:g}"
    path.write_text(f"""# Prior `{name}`

![unconditional samples](grid.png)

| | |
| --- | --- |
| images | {recipe.unet.channels} channel(s), {size} |
| network | U-Net, {parameters / 1e6:.2f} M parameters, widths {recipe.unet.widths}, blocks {recipe.unet.blocks} |
| trained on | {images} images, crops of {recipe.crop}, batch {recipe.batch} |
| trained for | {trainer.step} steps, {trainer.seconds / 60:.0f} minutes |
| noise levels | {recipe.sigma_range[0]} to {recipe.sigma_range[1]}, image units |

Command: `{shlex.join(shlex.split(command))}`

Denoising of {len(trainer.validation)} held-out images (centre crops of {recipe.crop}), one network call, average PSNR:

{_levels(psnr)}
""")


def write_latent_card(
    path: Path, *, name: str, recipe: LatentRecipe, codec: CodecTrainer, codes: Trainer, images: int
) -> None:
    """The card of a latent prior, as `write_card`."""
    spec, unet = recipe.codec.codec, recipe.codes.unet
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (codec.codec, codes.prior)]
    side, ceiling, held_out = 2 ** len(spec.widths), codec.psnr(), len(codec.validation)
    trained = [f"{part.step} steps, {part.seconds / 60:.0f} minutes" for part in (codec, codes)]
    path.write_text(f"""# Prior `{name}`

![unconditional samples](grid.png)

| | |
| --- | --- |
| images | {spec.channels} channel(s) |
| codec | {sizes[0]:.2f} M parameters, {spec.code_channels} channels for {side}x{side} pixels |
| encoded and decoded | {ceiling:.2f} dB, {held_out} held-out images: no reconstruction is better |
| network on codes | U-Net, {sizes[1]:.2f} M parameters, widths {unet.widths}, blocks {unet.blocks} |
| trained on | {images} images |
| trained for | codec {trained[0]}; codes {trained[1]} |

Command: `invdiff train recipe={name} data=IMAGES`
""")


def write_mixture_card(path: Path, *, name: str, fit: MixtureFit, command: str, psnr: dict[float, float]) -> None:
    """The card of a fitted mixture, as `write_card`.

    command  the command that fitted it
    """
    recipe, (channels, height, width) = fit.recipe, fit.shape
    path.write_text(f"""# Prior `{name}`

![samples](grid.png)

| | |
| --- | --- |
| images | {channels} channel(s), {height}x{width} |
| mixture | {recipe.components} Gaussians of rank {recipe.rank}, each with a noise level of its own |
| fitted to | {len(fit.images)} images |
| fitted for | {fit.iteration} iterations of EM, {fit.seconds / 60:.1f} minutes |
| held-out log-likelihood | {fit.best:.1f} nats per image, {fit.best / fit.images.shape[1]:.3f} per value |
| noise levels | all: denoiser, samples and linear-Gaussian posteriors are exact |

Command: `{command}`

Denoising of {len(fit.held_out)} held-out images, one denoiser call, average PSNR:

{_levels(psnr)}
""")


def write_learned_card(
    path: Path,
    *,
    name: str,
    prior: str,
    measurements: int,
    measured_by: str,
    rounds: int,
    minutes: float,
    score: str,
    command: str,
    psnr: dict[float, float] | None,
) -> None:
    """The card of a prior that was learned from measurements, as `write_card`.

    psnr  where the true images are known
    """
    denoising = ""
    if psnr is not None:
        denoising = f"""
Denoising of the true images of the held-out measurements, one call, average PSNR:

{_levels(psnr)}
"""
    path.write_text(f"""# Prior `{name}`

![samples](grid.png)

| | |
| --- | --- |
| prior | {prior} |
| learned from | {measurements} measurements by {measured_by}, no clean image |
| learned for | {rounds} rounds of expectation-maximisation, {minutes:.1f} minutes |
| kept | {score} |

Command: `{command}`
{denoising}""")


def _levels(psnr: dict[float, float]) -> str:
    rows = "\n".join(f"| {sigma:.3f} | {value:.2f} |" for sigma, value in psnr.items())
    return f"| sigma | PSNR, dB |\n| --- | --- |\n{rows}"
