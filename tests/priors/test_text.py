"""Text-conditional pipelines beside diffusers' own runs of them, with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import SHAPES, write
from torch import Tensor

from invdiff.priors import LatentPrior

SIDE = 16  # of codes


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    pytest.importorskip("diffusers", reason="the extra invdiff[diffusers] is not installed")
    pytest.importorskip("transformers", reason="the extra invdiff[diffusers] is not installed")
    written: dict[str, Path] = {}

    def folder(shape: str) -> Path:
        if shape not in written:
            written[shape] = write(shape, tmp_path_factory.mktemp(shape) / "model")
        return written[shape]

    return folder


def calls_of(folder: Path, guidance: float, **texts: str) -> list[tuple[Tensor, float, Tensor]]:
    """Every call that the pipeline of diffusers makes in a run: noisy codes, time, and the guided output."""
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[tuple[Tensor, float, Tensor]] = []
    step = pipeline.scheduler.step

    def watched(out: Tensor, t: Any, x: Tensor, *args: Any, **named: Any) -> Any:
        seen.append((x.clone(), float(t), out.clone()))
        return step(out, t, x, *args, **named)

    pipeline.scheduler.step = watched
    pipeline(
        num_inference_steps=3,
        guidance_scale=guidance,
        height=2 * SIDE,
        width=2 * SIDE,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **texts,
    )
    return seen


def unpacked(tokens: Tensor) -> Tensor:
    """Codes of FLUX's tokens of 2x2 codes, as its pipeline unpacks them."""
    blocks = tokens.view(1, SIDE // 2, SIDE // 2, 4, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(1, 4, SIDE, SIDE)


def denoised(folder: Path, x: Tensor, t: float, out: Tensor) -> tuple[Tensor, float, Tensor]:
    """x0 + sigma n, sigma and the clean codes, by the scheduler's own conversion of an output."""
    import diffusers

    if (folder / "transformer").is_dir():
        s = t / 1000
        if x.dim() == 3:
            x, out = unpacked(x), unpacked(out)
        return x / (1 - s), s / (1 - s), x - s * out
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(1000)
    abar = scheduler.alphas_cumprod[int(t)]
    clean = scheduler.step(out, int(t), x).pred_original_sample
    return x / abar.sqrt(), float(((1 - abar) / abar).sqrt()), clean


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_denoises_as_the_pipeline_does(shape: str, guidance: float, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(shape)
    texts = {"prompt": "a cat"}
    if guidance != 1 and shape != "flux":
        texts["negative_prompt"] = "dog"
    prior = LatentPrior.load(folder, guidance=guidance, **texts)
    assert prior.network_calls == (2 if guidance != 1 and shape != "flux" else 1)
    assert (prior.note is not None) == (guidance != 1)
    compared = 0
    for x, t, out in calls_of(folder, guidance, **texts):
        if t >= 999:  # pure noise, an infinite level
            continue
        z, sigma, clean = denoised(folder, x, t, out)
        found = prior.diffusion.denoise(z, sigma)
        assert (found - clean).abs().max() < 1e-5 * max(1.0, float(clean.abs().max()))
        compared += 1
    assert compared > 1
    other = LatentPrior.load(folder, guidance=guidance, prompt="dog").diffusion.denoise(z, sigma)
    assert (other - found).abs().max() > 1e-7  # the text arrives
