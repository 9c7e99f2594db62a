"""Text-conditional pipelines with random weights, as small as their classes allow, saved by diffusers itself."""

import json
from pathlib import Path
from typing import Any

import torch

LETTERS = [chr(c) for c in range(97, 123)]
# Prediction of the scheduler of each.
SHAPES = {"sd15": "epsilon", "sd21": "v_prediction", "sdxl": "epsilon", "sd3": "flow", "flux": "flow"}


def write(shape: str, folder: Path) -> Path:
    """The folder of a pipeline whose images are twice as wide as its codes of four channels."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    clip, projected, t5 = _texts(transformers)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.7,
        shift_factor=0.1 if shape in ("sd3", "flux") else None,
    )
    chain = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=SHAPES[shape] if shape != "sd3" and shape != "flux" else "epsilon",
        rescale_betas_zero_snr=shape == "sd21",
    )
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    tokenizer, long = _clip_tokenizer(transformers, folder), _t5_tokenizer(transformers)
    parts: dict[str, Any] = {"vae": vae, "text_encoder": clip, "tokenizer": tokenizer}
    if shape in ("sd15", "sd21"):
        parts |= {"unet": _unet(diffusers), "scheduler": chain, "safety_checker": None, "feature_extractor": None}
        made = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    elif shape == "sdxl":
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
            "use_linear_projection": True,
        }
        parts |= {"unet": _unet(diffusers, cross_attention_dim=64, **added), "scheduler": chain}
        made = diffusers.StableDiffusionXLPipeline(
            **parts, text_encoder_2=projected, tokenizer_2=tokenizer, add_watermarker=False
        )
    elif shape == "sd3":
        network = diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
        )
        made = diffusers.StableDiffusion3Pipeline(
            **parts | {"text_encoder": projected},
            scheduler=flow,
            transformer=network,
            text_encoder_2=projected,
            tokenizer_2=tokenizer,
            text_encoder_3=t5,
            tokenizer_3=long,
        )
    else:
        network = diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        )
        made = diffusers.FluxPipeline(**parts, scheduler=flow, transformer=network, text_encoder_2=t5, tokenizer_2=long)
    made.save_pretrained(folder)
    return folder


def _unet(diffusers: Any, **settings: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (4, 8),
            "layers_per_block": 1,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 2,
            "norm_num_groups": 2,
        }
        | settings
    )


def _texts(transformers: Any) -> tuple[Any, Any, Any]:
    config = transformers.CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=1,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        pad_token_id=1,
        vocab_size=60,
        max_position_embeddings=16,
        projection_dim=32,
    )
    long = transformers.T5Config(vocab_size=40, d_model=64, d_kv=8, d_ff=37, num_layers=1, num_heads=2)
    return (
        transformers.CLIPTextModel(config).eval(),
        transformers.CLIPTextModelWithProjection(config).eval(),
        transformers.T5EncoderModel(long).eval(),
    )


def _clip_tokenizer(transformers: Any, folder: Path) -> Any:
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    folder.mkdir(exist_ok=True)
    vocabulary, merges = folder / "words.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=16)


def _t5_tokenizer(transformers: Any) -> Any:
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return transformers.T5Tokenizer(vocab=words, extra_ids=0)
