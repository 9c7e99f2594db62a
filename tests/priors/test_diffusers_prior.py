"""Models of diffusers as priors, built here with random weights and saved as diffusers itself saves them."""

import json
import shutil
import socket
import sys
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.priors import DiffusersPrior
from invdiff.priors.networks.diffusers_schedulers import network_time
from invdiff.priors.networks.network_time import DiscreteTime

Normal = Callable[..., Tensor]


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="the extra invdiff[diffusers] is not installed")


@pytest.fixture
def unet(diffusers: Any) -> Any:
    return make_unet(diffusers)


@pytest.fixture(scope="module")
def shared_unet(diffusers: Any) -> Any:
    return make_unet(diffusers)


def make_unet(diffusers: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 2,
        "layers_per_block": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return diffusers.UNet2DModel(**{**config, **options}).eval()


@pytest.fixture
def pipeline(diffusers: Any, unet: Any, tmp_path: Path) -> Path:
    """A folder with a DDPM pipeline."""
    folder = tmp_path / "pipeline"
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


# -- what it says ------------------------------------------------------------------------------------------------------

STEPS = (0, 3, 20, 77, 150, 300, 500, 700, 900, 999)


@pytest.mark.parametrize(
    ("betas", "said"),
    [
        ("linear", "epsilon"),
        ("scaled_linear", "v_prediction"),
        ("sigmoid", "sample"),
        ("squaredcos_cap_v2", "epsilon"),
        ("squaredcos_cap_v2", "v_prediction"),
    ],
)
def test_it_denoises_as_diffusers_does(betas: str, said: str, diffusers: Any, shared_unet: Any, normal: Normal) -> None:
    """x0 of the scheduler's own step, at ten levels in one batch, to 1e-4 of the range."""
    scheduler = diffusers.DDPMScheduler(beta_schedule=betas, prediction_type=said, clip_sample=False)
    prior, steps = DiffusersPrior(shared_unet, scheduler.config), list(STEPS)
    abar = scheduler.alphas_cumprod[steps]
    sigma = 0.5 * ((1 - abar) / abar).sqrt()  # in units of images in [0, 1]
    x = 0.5 + 0.2 * normal(len(steps), 2, 8, 8, dtype=torch.float32)
    x = x + sigma.reshape(-1, 1, 1, 1) * normal(*x.shape, seed=1, dtype=torch.float32)
    found = prior.denoise(x, sigma)
    for i, k in enumerate(steps):
        x_t = abar[i].sqrt() * (2 * x[i : i + 1] - 1)
        with torch.no_grad():
            out = shared_unet(x_t, torch.tensor(k)).sample
        wanted = (scheduler.step(out, k, x_t).pred_original_sample + 1) / 2
        size = max(1.0, float(wanted.abs().max()))  # at the end of a cosine chain x0 is thousands
        assert (found[i] - wanted[0]).abs().max() < 1e-4 * size


def test_a_variance_exploding_model(diffusers: Any, tmp_path: Path, normal: Normal) -> None:
    """Its network says the score of images in [0, 1] and is told sigma."""
    unet = make_unet(diffusers, time_embedding_type="fourier", freq_shift=None, flip_sin_to_cos=None)
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=50.0)
    unet.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    prior = DiffusersPrior.load(tmp_path)
    assert prior.sigma_range == (0.02, 50.0)
    x, sigma = normal(2, 2, 8, 8, dtype=torch.float32), torch.tensor([0.1, 4.0])
    with torch.no_grad():
        score = unet(x, sigma).sample
    assert torch.allclose(prior.denoise(x, sigma), x + sigma.reshape(-1, 1, 1, 1) ** 2 * score, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "linear", "num_train_timesteps": 50, "beta_start": 1e-3, "beta_end": 0.1},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.1, 0.2, 0.3]},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    ],
)
def test_the_chain_is_that_of_the_scheduler(config: dict[str, Any], diffusers: Any) -> None:
    for name in ("DDPMScheduler", "DDIMScheduler"):
        if name == "DDIMScheduler" and config.get("beta_schedule") == "sigmoid":
            continue  # it has none
        scheduler = getattr(diffusers, name)(**config)
        chain = network_time(scheduler.config)
        assert isinstance(chain, DiscreteTime)
        found = torch.tensor(chain.alphas_cumprod)
        # diffusers multiplies a thousand float32 numbers
        assert torch.allclose(found, scheduler.alphas_cumprod, rtol=2e-3, atol=1e-6)
        assert len(found) - len(chain.levels) == (1 if "rescale_betas_zero_snr" in config else 0)


@pytest.mark.slow
def test_a_consistency_model(diffusers: Any, shared_unet: Any, tmp_path: Path, normal: Normal) -> None:
    """As diffusers' own scheduler denoises in one step from its highest level."""
    scheduler = diffusers.CMStochasticIterativeScheduler(clip_denoised=False)
    shared_unet.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    prior = DiffusersPrior.load(tmp_path)
    assert prior.shape is not None
    z = normal(2, *prior.shape, dtype=torch.float32)
    scheduler.set_timesteps(timesteps=[0])
    sigma = float(scheduler.sigmas[0])
    with torch.no_grad():
        t = scheduler.timesteps[0]
        out = shared_unet(scheduler.scale_model_input(sigma * z, t), t).sample
        wanted = scheduler.step(out, t, sigma * z).prev_sample
    ours = 2 * prior.denoise((sigma * z + 1) / 2, sigma / 2) - 1
    assert (ours - wanted).abs().max() < 1e-5 * sigma


def test_another_range(pipeline: Path, normal: Normal) -> None:
    x = normal(1, 2, 8, 8, dtype=torch.float32)
    there, here = DiffusersPrior.load(pipeline, value_range=(-1.0, 1.0)), DiffusersPrior.load(pipeline)
    assert torch.allclose(there.denoise(2 * x - 1, 0.6), 2 * here.denoise(x, 0.3) - 1, atol=1e-5)


def test_learned_variance_and_classes(diffusers: Any, tmp_path: Path, normal: Normal) -> None:
    unet = make_unet(diffusers, out_channels=4, num_class_embeds=5)
    unet.save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    x = normal(1, 2, 8, 8, dtype=torch.float32)
    found = [DiffusersPrior.load(tmp_path, class_label=label).denoise(x, 0.5) for label in (1, 4)]
    assert found[0].shape == x.shape
    assert not torch.allclose(*found)
    with pytest.raises(ValueError, match="class_label must be given"):
        DiffusersPrior.load(tmp_path)
    with pytest.raises(ValueError, match="must be 2 or 4, got 3"):
        DiffusersPrior(make_unet(diffusers, out_channels=3), {"_class_name": "DDPMScheduler"})
    with pytest.raises(ValueError, match="without classes, got 1"):
        DiffusersPrior(make_unet(diffusers), {"_class_name": "DDPMScheduler"}, class_label=1)


# -- files -------------------------------------------------------------------------------------------------------------


def test_shape_of_its_images(pipeline: Path, diffusers: Any) -> None:
    prior = DiffusersPrior.load(pipeline)
    assert (prior.shape, prior.channels, prior.value_range) == ((2, 8, 8), 2, (0.0, 1.0))
    assert not prior.training
    assert not any(p.requires_grad for p in prior.parameters())
    wide = DiffusersPrior(make_unet(diffusers, sample_size=(8, 16)), {"_class_name": "DDPMScheduler"})
    assert wide.shape == (2, 8, 16)
    free = DiffusersPrior(make_unet(diffusers, sample_size=None), {"_class_name": "DDPMScheduler"})
    assert (free.shape, free.channels) == (None, 2)


@pytest.mark.parametrize("layout", ["flat", "unet", "half", "bin"])
def test_layouts(layout: str, pipeline: Path, diffusers: Any, normal: Normal) -> None:
    """Flat as published pipelines of 2022 are, the folder of the network alone, weights in float16, a .bin."""
    x, path = normal(1, 2, 8, 8, dtype=torch.float32), pipeline
    wanted = DiffusersPrior.load(pipeline).denoise(x, 0.3)
    if layout == "flat":
        for file in [*pipeline.glob("unet/*"), *pipeline.glob("scheduler/*")]:
            shutil.move(file, pipeline / file.name)
        (pipeline / "unet").rmdir()
    elif layout == "unet":
        path = pipeline / "unet"
    else:
        unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
        (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        half = layout == "half"
        (unet.half() if half else unet).save_pretrained(
            pipeline / "unet", safe_serialization=half, variant="fp16" if half else None
        )
    prior = DiffusersPrior.load(path)
    assert next(prior.parameters()).dtype == torch.float32
    assert torch.allclose(prior.denoise(x, 0.3), wanted, atol=5e-3 if layout == "half" else 1e-6)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: shutil.rmtree(f / "scheduler"), "no scheduler_config.json, which holds the noise levels"),
        (lambda f: (f / "unet" / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "unet" / "config.json").write_text("[]"), "not a configuration of diffusers"),
        (lambda f: edit(f / "model_index.json", vqvae=["diffusers", "VQModel"]), "works on the codes of a vqvae"),
        (lambda f: edit(f / "unet" / "config.json", _class_name="UNet2DConditionModel"), "UNet2DConditionModel"),
        (lambda f: edit(f / "unet" / "config.json", block_out_channels=[4, 4]), "cannot read the UNet2DModel"),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_text("no"),
            "cannot read the UNet2DModel",
        ),
        (
            lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="flow"),
            "prediction_type of the scheduler must be",
        ),
        (lambda f: edit(f / "scheduler" / "scheduler_config.json", beta_schedule="mine"), "unknown beta_schedule"),
        (
            lambda f: edit(f / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True),
            "its last steps are pure noise",
        ),
        (
            lambda f: edit(f / "scheduler" / "scheduler_config.json", timestep_type="continuous"),
            "timestep_type of the scheduler must be discrete",
        ),
        (
            lambda f: (f / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "KarrasVeScheduler"}'),
            "must be a chain of betas, got KarrasVeScheduler",
        ),
    ],
)
def test_folders_that_cannot_be_used(spoil: Callable[[Path], Any], said: str, pipeline: Path) -> None:
    spoil(pipeline)
    with pytest.raises(ValueError, match=said) as error:
        DiffusersPrior.load(pipeline)
    assert "\n" not in str(error.value)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install; the configuration is read without it."""
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    for module in ("diffusers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"this prior needs diffusers: pip install 'invdiff\[diffusers\]'"):
        DiffusersPrior.load(tmp_path)
    with pytest.raises(ValueError, match=r"this prior needs huggingface_hub: pip install 'invdiff\[diffusers\]'"):
        DiffusersPrior.load("hf://owner/repo")


# -- the Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(diffusers: Any, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A Hub whose only repository is the pipeline; gives the requests that it gets."""
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        return str(pipeline)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    return asked


def test_a_repository(hub: list[dict[str, Any]]) -> None:
    assert DiffusersPrior.load("hf://google/ddpm@v2").shape == (2, 8, 8)
    assert [request["repository"] for request in hub] == ["google/ddpm", "google/ddpm"]
    assert {request["revision"] for request in hub} == {"c0ffee"}  # one commit for all files
    assert all(request["etag_timeout"] <= 10 and not request["local_files_only"] for request in hub)
    configs, weights = (request["allow_patterns"] for request in hub)
    assert not any("safetensors" in pattern or "bin" in pattern for pattern in configs)
    assert "unet/diffusion_pytorch_model*.safetensors*" in weights


def test_a_repository_with_another_model_is_refused_before_its_weights(
    hub: list[dict[str, Any]], pipeline: Path
) -> None:
    edit(pipeline / "unet" / "config.json", _class_name="UNet2DConditionModel")
    with pytest.raises(ValueError, match="UNet2DConditionModel"):
        DiffusersPrior.load("hf://google/ddpm")
    assert len(hub) == 1


@pytest.mark.parametrize(("offline", "said"), [(True, "HF_HUB_OFFLINE is set"), (False, "the Hub cannot be reached")])
def test_without_a_network(
    offline: bool, said: str, diffusers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, at once: told to stay offline, and where the connection is refused."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"cannot get hf://google/ddpm: .*{said}; path= also takes a folder") as error:
        DiffusersPrior.load("hf://google/ddpm")
    assert time.monotonic() - began < 10
    assert "\n" not in str(error.value)


def test_a_hub_that_says_nothing(hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, diffusers: Any) -> None:
    """It takes the connection and gives no answer: what was downloaded before is read."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        import huggingface_hub

        monkeypatch.undo()  # the real question, to that server
        monkeypatch.setattr("invdiff.priors.networks.diffusers_files.HUB_SECONDS", 0.2)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        ask = partialmethod(huggingface_hub.HfApi.__init__, endpoint=f"http://127.0.0.1:{mute.getsockname()[1]}")
        monkeypatch.setattr(huggingface_hub.HfApi, "__init__", ask)
        began = time.monotonic()
        with pytest.raises(ValueError, match="the Hub cannot be reached"):
            DiffusersPrior.load("hf://nobody/nothing")
        assert time.monotonic() - began < 10


def test_a_repository_that_is_none(hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class NotFound(huggingface_hub.errors.RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "Repository Not Found\nfor url")

    def refuse(*_: Any, **__: Any) -> None:
        raise NotFound

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ValueError, match="cannot get hf://google/ddpm: Repository Not Found for url"):
        DiffusersPrior.load("hf://google/ddpm")
    assert not hub


def test_an_address_that_is_none(diffusers: Any) -> None:
    for address in ["hf://ddpm", "hf://a/b/c", "hf:///b", "hf://"]:
        with pytest.raises(ValueError, match="written hf://owner/repo"):
            DiffusersPrior.load(address)
