"""Latent models of diffusers, built here with random weights and saved as diffusers itself saves them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.priors import DiffusersPrior, LatentPrior, read_prior
from invdiff.priors.codecs.tiled import TiledCodec

Normal = Callable[..., Tensor]
LEVELS = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="the extra invdiff[diffusers] is not installed")


def make_unet(diffusers: Any, channels: int = 2) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **LEVELS,
    ).eval()


def make_autoencoder(diffusers: Any, kind: str) -> Any:
    torch.manual_seed(1)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "latent_channels": 2,
    }
    if kind == "vae":
        return diffusers.AutoencoderKL(**blocks, **LEVELS, scaling_factor=0.7, shift_factor=0.1).eval()
    return diffusers.VQModel(**blocks, **LEVELS, scaling_factor=0.7, num_vq_embeddings=16).eval()


def save(diffusers: Any, folder: Path, kind: str, *, channels: int = 2) -> tuple[Any, Any, Any]:
    """A pipeline, as diffusers lays it down; returns its parts."""
    parts = (
        make_unet(diffusers, channels),
        diffusers.DDPMScheduler(clip_sample=False),
        make_autoencoder(diffusers, kind),
    )
    for part, name in zip(parts, ("unet", "scheduler", kind), strict=True):
        part.save_pretrained(folder / name)
    index = {"_class_name": "LDMPipeline", "unet": [], "scheduler": [], kind: []}
    (folder / "model_index.json").write_text(json.dumps(index))
    return parts


@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_it_denoises_codes_as_diffusers_does(kind: str, diffusers: Any, tmp_path: Path, normal: Normal) -> None:
    """x0 of the scheduler's own step at ten levels, to 1e-4; codes are not rescaled."""
    unet, scheduler, _ = save(diffusers, tmp_path, kind)
    prior = LatentPrior.load(tmp_path)
    steps = [0, 3, 20, 77, 150, 300, 500, 700, 900, 999]
    abar = scheduler.alphas_cumprod[steps]
    sigma = ((1 - abar) / abar).sqrt()
    z = normal(10, 2, 8, 8, dtype=torch.float32)
    z = z + sigma.reshape(-1, 1, 1, 1) * normal(*z.shape, seed=1, dtype=torch.float32)
    found = prior.diffusion.denoise(z, sigma)
    for i, k in enumerate(steps):
        x_t = abar[i].sqrt() * z[i : i + 1]
        with torch.no_grad():
            out = unet(x_t, torch.tensor(k)).sample
        wanted = scheduler.step(out, k, x_t).pred_original_sample
        assert (found[i] - wanted[0]).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max()))
    assert (prior.shape, prior.value_range) == ((3, 16, 16), (0.0, 1.0))
    assert (prior.diffusion.shape, prior.diffusion.value_range) == ((2, 8, 8), (-5.0, 5.0))


@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_codes_and_images(kind: str, diffusers: Any, tmp_path: Path, normal: Normal) -> None:
    """As the pipelines of diffusers make them; another range is the same images; gradients reach the codes."""
    _, _, autoencoder = save(diffusers, tmp_path, kind)
    prior, symmetric = (LatentPrior.load(tmp_path, image_range=ends).codec for ends in ((0, 1), (-1, 1)))
    codes, images = normal(2, 2, 8, 8, dtype=torch.float32), normal(2, 3, 16, 16, dtype=torch.float32)
    shift = 0.1 if kind == "vae" else 0.0
    with torch.no_grad():
        wanted = autoencoder.decode(codes / 0.7 + shift).sample
        coded = autoencoder.encode(images)
        coded = coded.latent_dist.mode() if kind == "vae" else coded.latents
    assert torch.allclose(prior.decode(codes), wanted / 2 + 0.5, atol=1e-6)
    assert torch.allclose(symmetric.decode(codes), wanted, atol=1e-6)
    assert torch.allclose(symmetric.encode(images), (coded - shift) * 0.7, atol=1e-6)
    assert torch.allclose(prior.encode(images / 2 + 0.5), symmetric.encode(images), atol=1e-5)
    leaf = codes[:1].requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior.decode(leaf).sum(), leaf)
    assert gradient.abs().max() > 0


@pytest.mark.slow
def test_the_autoencoder_keeps_its_precision_under_autocast(diffusers: Any, tmp_path: Path, normal: Normal) -> None:
    save(diffusers, tmp_path, "vae")
    codec, codes = LatentPrior.load(tmp_path).codec, normal(1, 2, 8, 8, dtype=torch.float32)
    images = codec.decode(codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.decode(codes), images)
        assert codec.encode(images).dtype == torch.float32


@pytest.mark.slow
def test_scale_and_shift_of_each_channel(diffusers: Any, tmp_path: Path, normal: Normal) -> None:
    """As pipelines of diffusers apply latents_mean and latents_std."""
    _, _, autoencoder = save(diffusers, tmp_path, "vae")
    edit(tmp_path / "vae" / "config.json", latents_mean=[0.3, -0.2], latents_std=[2.0, 0.5])
    codec, codes = LatentPrior.load(tmp_path).codec, normal(1, 2, 8, 8, dtype=torch.float32)
    mean, std = torch.tensor([0.3, -0.2]).reshape(-1, 1, 1), torch.tensor([2.0, 0.5]).reshape(-1, 1, 1)
    wanted = autoencoder.decode(codes * std / 0.7 + mean).sample
    assert torch.allclose(codec.decode(codes), wanted / 2 + 0.5, atol=1e-5)
    coded = (autoencoder.encode(wanted).latent_dist.mode() - mean) * 0.7 / std
    assert torch.allclose(codec.encode(wanted / 2 + 0.5), coded, atol=1e-5)


@pytest.mark.slow
def test_tiles_and_checkpointing(diffusers: Any, tmp_path: Path, normal: Normal) -> None:
    """Gradients are those of the same codec without checkpointing; the prior of the caller is not changed."""
    save(diffusers, tmp_path, "vae")
    prior, tiled = LatentPrior.load(tmp_path), LatentPrior.load(tmp_path, tiles=4)
    assert isinstance(tiled.codec, TiledCodec)
    codes, gradients = normal(1, 2, 8, 8, dtype=torch.float32), []
    for on in (False, True):
        prior.checkpoint_gradients(on)
        assert prior.codec.checkpoint_gradients is on
        leaf = codes.clone().requires_grad_(True)
        gradients += torch.autograd.grad(prior.codec.decode(leaf).sum(), leaf)
    assert torch.allclose(*gradients, atol=1e-6)
    assert tiled.codec.decode(codes).shape == prior.codec.decode(codes).shape


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: edit(f / "model_index.json", text_encoder=[]), "works on text"),
        (lambda f: (f / "model_index.json").unlink(), "holds no autoencoder; DiffusersPrior.load reads"),
        (lambda f: edit(f / "vae" / "config.json", _class_name="AutoencoderTiny"), "got AutoencoderTiny"),
        (lambda f: edit(f / "vae" / "config.json", latent_channels=3), "cannot read the AutoencoderKL"),
        (
            lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="ScoreSdeVeScheduler"),
            "variance-preserving chain",
        ),
    ],
)
def test_folders_that_cannot_be_used(spoil: Callable[[Path], Any], said: str, diffusers: Any, tmp_path: Path) -> None:
    save(diffusers, tmp_path, "vae")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        LatentPrior.load(tmp_path)
    assert "\n" not in str(error.value)


def test_parts_that_do_not_fit(diffusers: Any, tmp_path: Path) -> None:
    save(diffusers, tmp_path, "vae", channels=3)
    with pytest.raises(ValueError, match="expects images of shape"):
        LatentPrior.load(tmp_path)
    with pytest.raises(ValueError, match=r"code_range must be \(low, high\)"):
        LatentPrior.load(tmp_path, code_range=(1.0, float("nan")))


def test_it_is_no_prior_of_images(diffusers: Any, tmp_path: Path) -> None:
    """Refused as one, with the name of what reads it."""
    save(diffusers, tmp_path, "vqvae")
    with pytest.raises(ValueError, match=r"works on the codes of a vqvae.*LatentPrior.load"):
        DiffusersPrior.load(tmp_path)


def test_a_repository(diffusers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both networks are asked for, and nothing but the configurations where it is of another kind."""
    import huggingface_hub

    save(diffusers, tmp_path, "vqvae")
    asked: list[list[str]] = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda _, **options: asked.append(options["allow_patterns"]) or str(tmp_path),
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    assert LatentPrior.load("hf://owner/repo").shape == (3, 16, 16)
    wanted = {pattern for patterns in asked for pattern in patterns}
    assert {f"{part}/diffusion_pytorch_model*.safetensors*" for part in ("unet", "vqvae")} <= wanted
    asked.clear()
    with pytest.raises(ValueError, match="LatentPrior"):
        DiffusersPrior.load("hf://owner/repo")
    assert len(asked) == 1


def test_recognised_by_its_folder(diffusers: Any, tmp_path: Path) -> None:
    save(diffusers, tmp_path, "vae")
    assert isinstance(read_prior(tmp_path), LatentPrior)
    (tmp_path / "model_index.json").unlink()
    assert isinstance(read_prior(tmp_path), DiffusersPrior)
