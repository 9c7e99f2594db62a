"""Network priors: the preconditioning formula, files, sizes and precision."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from invdiff import Compute, InverseProblem
from invdiff.io.examples import drawn_from_prior
from invdiff.operators import Denoising, GaussianNoise
from invdiff.priors import EDMPrior, GaussianPrior
from invdiff.priors.networks.unet import UNet, UNetSpec
from invdiff.priors.precision import autocast
from invdiff.priors.training.training import denoising_psnr
from invdiff.samplers import DPS
from invdiff.shapes import shallow_copy

SPEC = UNetSpec(channels=1, patch=2, widths=(8, 16), blocks=(1, 1))


@pytest.fixture(scope="module")
def prior() -> EDMPrior:
    return EDMPrior.example()


# -- the formula -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-3.0, 5.0)])
def test_preconditioning(digits: EDMPrior, normal: Callable, value_range: tuple[float, float]) -> None:
    """Karras et al. 2022, Table 1, about the centre of the value range; a trained network, which hears c_noise."""
    for sigma in [0.002, 0.1, 1.0, 80.0]:
        data = 0.25
        shifted = EDMPrior(digits.network, shape=(1, 32, 32), sigma_data=data, value_range=value_range)
        x = normal(3, 1, 32, 32, dtype=torch.float32) * (1 + sigma)
        centre = (value_range[0] + value_range[1]) / 2
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / (sigma**2 + data**2) ** 0.5
        c_in = 1 / (sigma**2 + data**2) ** 0.5
        c_noise = torch.full((3,), sigma / (value_range[1] - value_range[0])).log() / 4
        network = digits.network(c_in * (x - centre), c_noise)
        wanted = centre + c_skip * (x - centre) + c_out * network
        assert torch.allclose(shifted.denoise(x, sigma), wanted, rtol=1e-4, atol=1e-5)
        assert network.std() > 0.01, "the network must say something, else the test is blind to c_in and c_noise"


def test_without_noise_nothing_changes(prior: EDMPrior, normal: Callable) -> None:
    x = normal(3, 1, 16, 16, dtype=torch.float32)
    for sigma in (0.0, torch.zeros(3)):
        assert torch.allclose(prior.denoise(x, sigma), x, rtol=0, atol=1e-6)


def test_outside_its_range_the_network_is_told_the_nearest_level(prior: EDMPrior, normal: Callable) -> None:
    """The preconditioning keeps the true level all the same."""
    coordinates = prior.noise_coordinate(torch.tensor([1e-6, 0.002, 80.0, 1e4]).reshape(-1, 1, 1, 1), 4)
    assert torch.equal(coordinates[0], coordinates[1])
    assert torch.equal(coordinates[2], coordinates[3])
    x = 1e4 * normal(1, 1, 16, 16, dtype=torch.float32)
    assert (prior.denoise(x, 1e4) - 0.5).abs().max() < 10


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_any_size(prior: EDMPrior, normal: Callable) -> None:
    for size in [(16, 16), (17, 16), (13, 21), (1, 1), (3, 64)]:
        free = EDMPrior(prior.network, shape=None)
        assert free.mismatch((1, *size)) is None
        x = normal(2, 1, *size, dtype=torch.float32)
        assert free.denoise(x, 0.3).shape == x.shape
        assert free.denoise(x, 0.3).isfinite().all()


def test_padding_does_not_reach_the_image(prior: EDMPrior, normal: Callable) -> None:
    """A network padded at the bottom and right says about the far corner what it says without padding."""
    free = EDMPrior(prior.network, shape=None)
    x = normal(1, 1, 64, 64, dtype=torch.float32)
    cut = free.denoise(x[..., :61, :63], 0.3)
    assert torch.allclose(cut[..., :24, :24], free.denoise(x, 0.3)[..., :24, :24], atol=1e-5)


# -- files -------------------------------------------------------------------------------------------------------------


def test_float16_round_trip(prior: EDMPrior, tmp_path: Path, normal: Callable) -> None:
    """What is loaded is what half precision keeps, to the bit, and saving it again changes nothing."""
    prior.save(tmp_path / "a.safetensors")
    loaded = EDMPrior.load(tmp_path / "a.safetensors")
    for name, tensor in prior.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor.half().float()), name
    loaded.save(tmp_path / "b.safetensors")
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) and a[k].dtype == torch.float16 for k in a)
    x = normal(2, 1, 16, 16, dtype=torch.float32)
    again = EDMPrior.load(tmp_path / "b.safetensors")
    assert torch.equal(again.denoise(x, 0.3), loaded.denoise(x, 0.3))
    assert (loaded.denoise(x, 0.3) - prior.denoise(x, 0.3)).abs().max() < 1e-2


def test_everything_else_survives(tmp_path: Path) -> None:
    original = EDMPrior(UNet(SPEC), shape=None, sigma_data=0.4, sigma_range=(0.01, 20.0), value_range=(-1.0, 2.0))
    original.save(tmp_path / "w.safetensors", dtype=torch.float32)
    loaded = EDMPrior.load(tmp_path / "w.safetensors")
    for name in ("shape", "channels", "sigma_data", "sigma_range", "value_range"):
        assert getattr(loaded, name) == getattr(original, name)
    assert loaded.network.spec == SPEC
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), original.parameters(), strict=True))


def header(path: Path) -> dict:
    with safe_open(str(path), framework="pt") as file:
        return json.loads(file.metadata()["invdiff"])


@pytest.fixture
def weights(prior: EDMPrior, tmp_path: Path) -> Path:
    prior.save(tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def rewrite(path: Path, change: Callable[[dict, dict], None]) -> None:
    tensors, head = load_file(path), header(path)
    change(tensors, head)
    save_file(tensors, str(path), metadata={"invdiff": json.dumps(head)})


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=r"prior weights") as caught:
        EDMPrior.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    assert "not found" in refused(tmp_path / "nothing.safetensors")
    assert "not found" in refused(tmp_path)


def test_truncated_file(weights: Path) -> None:
    for keep in [0, 5, 200, -100]:
        weights.write_bytes(weights.read_bytes()[:keep])
        assert "cannot be read" in refused(weights)


def test_text_file(weights: Path) -> None:
    weights.write_text("<html>404: not found</html>" * 100)
    assert "cannot be read" in refused(weights)


def test_a_pickle_is_not_opened(weights: Path) -> None:
    torch.save({"a": torch.zeros(3)}, weights)
    assert "cannot be read" in refused(weights)


def test_tensors_of_somebody_else(weights: Path) -> None:
    save_file({"a": torch.zeros(3)}, str(weights))
    assert "no invdiff header" in refused(weights)


def test_nan_in_the_weights(weights: Path) -> None:
    rewrite(weights, lambda tensors, _: tensors["head.weight"].view(-1)[3].fill_(torch.nan))
    assert "NaN or infinity in head.weight" in refused(weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, _: tensors.pop("tail.bias"),
        lambda tensors, _: tensors.update(extra=torch.zeros(2)),
        lambda _, head: head["unet"].update(widths=[8, 24]),
    ],
    ids=["missing", "extra", "shapes"],
)
def test_weights_that_do_not_fit_their_header(weights: Path, change: Callable) -> None:
    rewrite(weights, change)
    assert "do not fit their header" in refused(weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda _, head: head.pop("shape"),
        lambda _, head: head.pop("unet"),
        lambda _, head: head.pop("sigma_range"),
        lambda _, head: head["unet"].update(attention=True),
        lambda _, head: head["unet"].pop("channels"),
        lambda _, head: head["unet"].update(blocks=[1]),
    ],
    ids=["no shape", "no unet", "no range", "unknown option", "no channels", "one block"],
)
def test_a_header_that_lacks_or_adds_something(weights: Path, change: Callable) -> None:
    rewrite(weights, change)
    refused(weights)


# -- precision ---------------------------------------------------------------------------------------------------------


def test_bf16_costs_less_than_a_twentieth_of_a_decibel(digits: EDMPrior) -> None:
    """On images drawn from the prior itself, at the noise levels that decide how a reconstruction looks."""
    _, images = drawn_from_prior(4, steps=8, prior=digits, seed=0)
    clean = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])
    sigmas = (0.05, 0.2, 1.0)
    exact = denoising_psnr(digits, clean, sigmas, precision="float32")
    fast = denoising_psnr(digits, clean, sigmas, precision="bfloat16")
    for sigma in sigmas:
        assert abs(exact[sigma] - fast[sigma]) < 0.05
    x = clean + 0.2
    with autocast("bfloat16", "cpu"):
        found = digits.denoise(x, 0.2)
    assert found.dtype == torch.float32
    assert not torch.equal(found, digits.denoise(x, 0.2)), "bf16 was not even used"


# -- gradient checkpointing --------------------------------------------------------------------------------------------


def vjp_and_kept(prior: EDMPrior) -> tuple[torch.Tensor, int]:
    """A VJP, and how many numbers autograd kept for it beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in prior.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x0 = prior.denoise(x, torch.tensor([0.3, 2.0]))
        before_backward = sum(kept.values())
    (gradient,) = torch.autograd.grad(x0.square().sum(), x)
    return gradient, before_backward


def test_checkpointing_gives_the_same_gradient_and_keeps_less() -> None:
    prior = EDMPrior.example()
    plain, kept = vjp_and_kept(prior)
    prior.checkpoint_gradients(True)
    saving, kept_less = vjp_and_kept(prior)
    assert torch.allclose(plain, saving, rtol=1e-6, atol=1e-7)
    assert kept_less < 0.8 * kept
    prior.checkpoint_gradients(False)
    assert vjp_and_kept(prior)[1] == kept


def test_a_run_leaves_the_prior_of_the_caller_as_it_is() -> None:
    """Neither its flags nor its parameters: `to` would replace the data of parameters in place."""
    prior = EDMPrior.example()
    before = {name: (p.data_ptr(), p.dtype) for name, p in prior.named_parameters()}
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), torch.zeros(1, 1, 16, 16))
    seen = []
    with torch.inference_mode():
        DPS.example().sample(
            problem,
            prior,
            compute=Compute(device="cpu", progress=False, checkpoint=True),
            callback=lambda event: seen.append(any(m.checkpoint_gradients for m in prior.network.down)),
        )
    assert seen
    assert not any(seen)
    twin = shallow_copy(prior)
    assert next(twin.parameters()).data_ptr() == next(prior.parameters()).data_ptr()
    assert next(twin.double().parameters()).dtype == torch.float64
    assert {name: (p.data_ptr(), p.dtype) for name, p in prior.named_parameters()} == before


def test_checkpointing_of_what_has_no_parts_is_refused() -> None:
    prior = GaussianPrior.example()
    prior.checkpoint_gradients(False)
    with pytest.raises(ValueError, match="GaussianPrior does not support checkpoint=true"):
        prior.checkpoint_gradients(True)
