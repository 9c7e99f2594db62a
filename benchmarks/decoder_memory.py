"""Memory of a 512x512 image and of gradients, for autoencoder and network of the size of Stable Diffusion 1.5.

    python benchmarks/decoder_memory.py

Counted with fake tensors, which have shapes and no memory: the largest sum of all tensors that are alive at once,
weights left out, while codes of one image are denoised and decoded and a gradient comes back; float32. What an
allocator adds is not in it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from invdiff.priors.codec import BlockCodec
from invdiff.priors.codecs.autoencoder import Autoencoder
from invdiff.priors.codecs.tiled import TiledCodec
from invdiff.priors.networks.network_time import VPTime
from invdiff.priors.networks.text import StableDiffusion, TextPrior

SIDE = 64  # of codes


class Peak(TorchDispatchMode):
    """Bytes of the tensors that operations make and that are still alive, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return made


def peak(call: Callable[[Tensor], Tensor], *, gradient: bool) -> float:
    """GB of a call on one code, with the product with its transposed Jacobian."""
    codes = torch.empty(1, 4, SIDE, SIDE, requires_grad=gradient)
    with torch.set_grad_enabled(gradient), Peak() as counted:
        images = call(codes)
        if gradient:
            torch.autograd.grad(images, codes, torch.empty_like(images))
    return counted.most / 2**30


def main() -> None:
    with FakeTensorMode():
        network = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=32,
        )
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=SIDE)
        tokens = torch.empty(1, 77, 768)
        prior = TextPrior(StableDiffusion(unet, 8), "epsilon", VPTime(), channels=4, tokens=tokens)
        report(prior, Autoencoder(network))


def report(prior: TextPrior, codec: Autoencoder) -> None:
    weights = sum(p.numel() * p.element_size() for part in (prior, codec) for p in part.parameters()) / 2**30
    print(f"Weights of network and autoencoder: {weights:.1f} GB.\n")
    print("| 512x512 | decode, GB | and its VJP, GB | denoise, decode and their VJP, GB |\n| --- | --- | --- | --- |")
    for checkpointed in (False, True):
        prior.checkpoint_gradients(checkpointed)
        codec.checkpoint_gradients = checkpointed
        for tiles in (None, 48, 32):
            made = codec if tiles is None else TiledCodec(codec, tiles)
            words = ["whole" if tiles is None else f"tiles={tiles}", *(["checkpoint=true"] if checkpointed else [])]
            alone = [peak(made.decode, gradient=gradient) for gradient in (False, True)]
            step = peak(partial(guided, prior, made), gradient=True)
            print(f"| {', '.join(words)} | {alone[0]:.2f} | {alone[1]:.2f} | {step:.2f} |")


def guided(prior: TextPrior, codec: BlockCodec, codes: Tensor) -> Tensor:
    return codec.decode(prior.denoise(codes, torch.full((1,), 2.0)))


if __name__ == "__main__":
    main()
