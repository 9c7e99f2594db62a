"""Checkpoints of others at the command line: each format is read, each kind of bad file is one line and code 2."""

import hashlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from invdiff.priors import ADMPrior, EDMPrior, NCSNppPrior, NVLabsEDMPrior
from invdiff.priors.networks.adm import ADMNetwork, ADMSpec
from invdiff.priors.networks.ncsnpp import example_network
from invdiff.priors.networks.unet import UNet, UNetSpec

Run = Callable[..., Any]
Weights = dict[str, Tensor]
SMALL: dict[str, Any] = {"model_channels": 32, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}


def deepinv_network(name: str, **options: Any) -> nn.Module:
    from deepinv import models

    torch.manual_seed(0)
    return getattr(models, name)(**options, pretrained=None)


# Of each adapter: a network with random weights, and how the command is told of its file.
ADAPTERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "adm": (
        lambda: ADMPrior.example().network,
        ["prior.image_size=8", "prior.head_channels=32", "prior.class_label=1"],
    ),
    "edm": (lambda: NVLabsEDMPrior.example().network, ["prior.class_label=1", "prior.preconditioning=edm"]),
    "ncsnpp": (lambda: NCSNppPrior.example().network, ["prior.image_size=8"]),
    "flow": (lambda: example_network(exploding=False), ["prior.image_size=8"]),
    "deepinv_drunet": (
        lambda: deepinv_network("DRUNet", in_channels=1, out_channels=1, nc=(2, 2, 2, 2), nb=1),
        [
            "prior.options.in_channels=1",
            "prior.options.out_channels=1",
            "+prior.options.nc=[2,2,2,2]",
            "+prior.options.nb=1",
        ],
    ),
    "deepinv_ncsnpp": (
        lambda: deepinv_network("NCSNpp", img_resolution=8, in_channels=1, out_channels=1, **SMALL),
        [
            "~prior.options",
            "+prior.options={img_resolution:8,in_channels:1,out_channels:1,model_channels:32,channel_mult:[1],"
            "num_blocks:1,attn_resolutions:[]}",
            "prior.shape=[1,8,8]",
        ],
    ),
}
TRUSTING = ("adm", "edm", "ncsnpp", "flow")  # those that know trust_pickle


class Evil:
    """A pickle of this writes a file when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "run")


@pytest.fixture
def check(invdiff: Run, tmp_path: Path) -> Run:
    """`check("adm", ...)` checks what lies in `weights.pt` on a small grey image, without samples and pictures."""
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(tmp_path / "grey.png")
    common = ["input=grey.png", "size=8", "contract=false", "grid=0", "levels=[0.2]", "output=out"]
    return lambda name, *words: invdiff(
        "check-prior", f"prior={name}", *ADAPTERS[name][1], "prior.weights=weights.pt", *common, *words
    )


@pytest.fixture
def without_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No check.png: drawing it takes most of the time."""
    for name in ("picture", "save_figure"):
        monkeypatch.setattr(f"invdiff.cli.check_prior_command.{name}", lambda *_: None)


def refused(done: Any) -> str:
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("invdiff: error: ")
    assert done.err.count("\n") == 1
    return done.err


def weights_of(name: str) -> Weights:
    return {k: w.clone() for k, w in ADAPTERS[name][0]().state_dict().items()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_good_file_is_read(name: str, check: Run, tmp_path: Path, without_picture: None) -> None:
    """Also with its hash; an untrained network need not denoise, which is code 1."""
    torch.save(weights_of(name), tmp_path / "weights.pt")
    found = hashlib.sha256((tmp_path / "weights.pt").read_bytes()).hexdigest()
    assert check(name, f"prior.sha256={found}").code in (0, 1)
    assert (tmp_path / "out" / "check.json").is_file()
    assert "SHA-256" in refused(check(name, f"prior.sha256={'0' * 64}"))


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_malicious_pickle(name: str, trust: bool, check: Run, tmp_path: Path) -> None:
    """Nothing of it runs, whether pickles are trusted or not."""
    if trust and name not in TRUSTING:
        assert "trust_pickle" in refused(check(name, "prior.trust_pickle=true"))  # an unknown option
        return
    mark = tmp_path / "mark"
    torch.save({**weights_of(name), "more": Evil(mark)}, tmp_path / "weights.pt")
    error = refused(check(name, *(["prior.trust_pickle=true"] if trust else [])))
    assert "weights.pt" in error
    assert trust or "more than tensors" in error
    assert not mark.exists()


def truncated(weights: Weights) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()[: buffer.tell() // 2]


def not_a_number(weights: Weights) -> Weights:
    name = next(k for k, w in weights.items() if w.dim() == 4)
    return {**weights, name: torch.full_like(weights[name], torch.nan)}


def one_channel_more(weights: Weights) -> Weights:
    """Of the images that the network takes, not of those that it gives."""
    name = next(k for k, w in weights.items() if w.dim() == 4 and w.shape[2:] == (3, 3))
    return {**weights, name: torch.cat([weights[name], weights[name][:, :1]], 1)}


def one_less(weights: Weights) -> Weights:
    return dict(list(weights.items())[:-1])


SPOILS: list[tuple[Callable[[Weights], Any], str]] = [
    (truncated, "may be incomplete"),
    (not_a_number, "holds NaN or infinity in"),
    (lambda _: dict(nn.Linear(3, 2).state_dict()), r"must hold .* it has no|holds no weights of deepinv"),
    (lambda _: {}, "holds no weights by name"),
    (lambda _: [1], "holds no weights by name, it is a list"),
    (one_less, r"it lacks|Missing key"),
    (one_channel_more, r"out_channels must be|prior and image do not match|instead of|size mismatch"),
]
# Every fault of one format, and another fault of each of the others.
FAULTS = [(name, fault) for i, name in enumerate(ADAPTERS) for fault in (range(7) if i == 0 else (i % 7,))]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_file_that_cannot_be_used(name: str, fault: int, check: Run, tmp_path: Path) -> None:
    spoil, said = SPOILS[fault]
    spoilt = spoil(weights_of(name))
    if isinstance(spoilt, bytes):
        (tmp_path / "weights.pt").write_bytes(spoilt)
    else:
        torch.save(spoilt, tmp_path / "weights.pt")
    assert re.search(said, refused(check(name)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adm_ffhq", "1jElnRoFv7b31fG0v6pTSQkelbSX3xGZh"),
        ("adm_imagenet256", "github.com/openai/guided-diffusion"),
        ("edm_ffhq64", "nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-ffhq-64x64-uncond-vp.pkl"),
        ("ncsnpp_celebahq256", "score_sde_pytorch"),
        ("ncsnpp_ffhq1024", "score_sde_pytorch"),
    ],
)
def test_a_well_known_file_that_is_missing(name: str, said: str, invdiff: Run) -> None:
    """The place to get it, and its licence."""
    error = refused(invdiff("check-prior", f"prior={name}"))
    assert said in error
    assert "(licence: " in error


def test_the_hash_of_a_well_known_file(invdiff: Run, tmp_path: Path) -> None:
    """Another file of the same name is refused before it is read, and read where that is asked for."""
    torch.save({}, tmp_path / "256x256_diffusion_uncond.pt")
    assert "sha256=null" in refused(invdiff("check-prior", "prior=adm_imagenet256"))
    assert "holds no weights" in refused(invdiff("check-prior", "prior=adm_imagenet256", "prior.sha256=null"))


# -- the published experiments on a network of the DPS paper's kind ----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ("dps", ["sampler.schedule.steps=2"]),
        ("mcg", ["sampler.schedule.steps=2"]),
        ("daps", ["sampler.schedule.steps=2", "sampler.ode_steps=1"]),
        ("reddiff", ["sampler.schedule.steps=2"]),
        ("enkg", ["sampler.schedule.steps=2", "sampler.ensemble=2"]),
    ],
)
def test_a_published_experiment_starts(
    sampler: str, words: list[str], reconstruct: Run, tmp_path: Path, metrics: Run, without_comparison: None
) -> None:
    """With random weights in the file's format: colour, a learned variance, attention heads of 64 channels."""
    missing = reconstruct(f"experiment=paper/{sampler}_inpainting", f"sampler={sampler}", "prior=adm_ffhq", *words)
    assert "1jElnRoFv7b31fG0v6pTSQkelbSX3xGZh" in refused(missing)
    torch.manual_seed(0)
    network = ADMNetwork(ADMSpec(3, 6, 64, (1, 1), 1, (1,), None, True, True))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    torch.save(network.state_dict(), tmp_path / "ffhq_10m.pt")
    small = ["prior.image_size=16", "size=16", "num_samples=1"]
    done = reconstruct(f"experiment=paper/{sampler}_inpainting", f"sampler={sampler}", "prior=adm_ffhq", *small, *words)
    assert (
        done.code == 0 or "every sample diverged" in done.err
    )  # an untrained network need not keep its images together
    assert metrics("out")["cost"]["forwards"] > 0


# -- the formats that are no file with a state dict --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pickle", "truncated", "nan", "architecture"])
def test_weights_of_our_own_format(kind: str, invdiff: Run, tmp_path: Path) -> None:
    path, mark = tmp_path / "own.safetensors", tmp_path / "mark"
    torch.manual_seed(0)
    EDMPrior(UNet(UNetSpec(channels=1, patch=2, widths=(8, 16), blocks=(1, 1)))).save(path)
    if kind == "pickle":
        torch.save({"more": Evil(mark)}, path)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "architecture":
        save_file({"weight": torch.ones(2)}, path)
    else:
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            header = file.metadata()
        save_file(not_a_number(load_file(path)), path, metadata=header)
    assert "own.safetensors" in refused(invdiff("check-prior", "prior=digits", "prior.weights=own.safetensors"))
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["pickle", "truncated", "nan", "missing", "left over", "channels"])
def test_a_folder_of_diffusers(kind: str, invdiff: Run, tmp_path: Path) -> None:
    """Weights that are missing are not made up, and what diffusers itself says of them stays off the terminal."""
    diffusers = pytest.importorskip("diffusers", reason="the extra invdiff[diffusers] is not installed")
    folder, mark = tmp_path / "model", tmp_path / "mark"
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    unet.save_pretrained(folder)
    diffusers.DDPMScheduler().save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if kind == "pickle":
        path.unlink()
        torch.save({**weights, "more": Evil(mark)}, folder / "diffusion_pytorch_model.bin")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    else:
        spoilt = {
            "nan": not_a_number,
            "missing": one_less,
            "left over": lambda w: {**w, "more": torch.ones(1)},
            "channels": one_channel_more,
        }[kind](weights)
        save_file(spoilt, path, metadata={"format": "pt"})
    said = {"nan": "NaN or infinity", "missing": "is missing", "left over": "which has no more"}.get(
        kind, "cannot read"
    )
    assert said in refused(invdiff("check-prior", "prior=diffusers", "prior.path=model"))
    assert not mark.exists()


@pytest.mark.slow
def test_a_repository_without_a_network(tmp_path: Path) -> None:
    """In a process of its own, where nothing else has loaded the parts of the Hub's library."""
    pytest.importorskip("diffusers", reason="the extra invdiff[diffusers] is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "invdiff", "check-prior", "prior=diffusers", "prior.path=hf://google/ddpm"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE is set; path= also takes a folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_path_in_the_place_of_a_name(invdiff: Run, tmp_path: Path) -> None:
    mine = tmp_path / "it's mine.safetensors"
    EDMPrior.example().save(mine)
    words = ("operator=denoising", "data=generated", "sampler=daps", "sampler.schedule.steps=3", "output=out")
    done = invdiff("reconstruct", f"prior={mine}", *words)
    assert done.code == 0, done.err
    done = invdiff("reconstruct", "prior=missing/thing.pt", *words)
    assert done.code == 2
    assert "missing/thing.pt" in done.err
    save_file(dict(NCSNppPrior.example().network.state_dict()), "sde.safetensors")
    done = invdiff("reconstruct", "prior=sde.safetensors", *words)
    assert done.code == 2
    assert "prior.format=" in done.err
    done = invdiff(
        "reconstruct", "prior=sde.safetensors", "prior.format=ve", "prior.settings.image_size=8", *words[:-1],
        "output=two",
    )  # fmt: skip
    assert done.code == 0, done.err
