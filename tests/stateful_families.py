"""Tiny pipelines, made as in `tests.families`, with state between forwards or unusual batch dimensions."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers

from tests import families
from tests.families import SIDE, Family
from tests.padding_families import _family, _sized


def hunyuan_image() -> Family:
    """HunyuanImage 2.1: the components `guider` and `ocr_guider` count the forwards of a call."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=False,
        text_embed_dim=32,
        text_embed_2_dim=32,
        rope_axes_dim=(4, 4),
    ).eval()
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        scaling_factor=0.476986,
        spatial_compression_ratio=8,
        sample_size=SIDE,
    ).eval()
    text = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [2, 2, 4]},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    t5 = transformers.T5Config(
        vocab_size=384, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
    )
    guidance = diffusers.AdaptiveProjectedMixGuidance
    pipeline = diffusers.HunyuanImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=vae,
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=families.qwen_tokenizer(),
        text_encoder_2=transformers.T5EncoderModel(t5).eval(),
        tokenizer_2=transformers.ByT5Tokenizer(),
        transformer=transformer,
        guider=guidance(adaptive_projected_guidance_start_step=2),
        ocr_guider=guidance(adaptive_projected_guidance_start_step=3),
    )
    return _family(pipeline, arguments=_sized(), guidances=())


def _prior() -> dict[str, Any]:
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1
    )
    prior.clip_std = torch.nn.Parameter(torch.ones(prior.clip_std.shape))  # zero would hide the latents
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        image_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        patch_size=16,
    )
    size = {"height": 32, "width": 32}
    return {
        "prior_prior": prior.eval(),
        "prior_image_encoder": transformers.CLIPVisionModelWithProjection(vision).eval(),
        "prior_text_encoder": families.clip_text(projection=True),
        "prior_tokenizer": families.clip_tokenizer(),
        "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        "prior_image_processor": transformers.CLIPImageProcessor(size=size, crop_size=size),
    }


def kandinsky_combined() -> Family:
    """Kandinsky 2.2: the call delegates to the pipelines `prior_pipe` and `decoder_pipe`."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    ).eval()
    movq = diffusers.VQModel(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    ).eval()
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    pipeline = diffusers.KandinskyV22CombinedPipeline(unet=unet, scheduler=scheduler, movq=movq, **_prior())
    return _family(pipeline, arguments=_sized(prior_num_inference_steps=3))


def sdxl_pag() -> Family:
    """SDXL with perturbed attention: each call replaces attention processors of the shared denoiser."""
    return _family(diffusers.StableDiffusionXLPAGPipeline.from_pipe(families.sdxl().pipeline), arguments=_sized())


def sana_pag() -> Family:
    """Sana with perturbed attention."""
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=32,
        sample_size=SIDE // 8,
    ).eval()
    config = transformers.Gemma2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
    )
    pipeline = diffusers.SanaPAGPipeline(
        tokenizer=families.qwen_tokenizer(),
        text_encoder=transformers.Gemma2Model(config).eval(),
        vae=_deep_autoencoder(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        pag_applied_layers=["blocks.1"],
    )
    arguments = _sized(
        use_resolution_binning=False, max_sequence_length=32, complex_human_instruction=None, clean_caption=False
    )
    return _family(pipeline, arguments=arguments)


def _deep_autoencoder() -> Any:
    return diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock", "EfficientViTBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock", "EfficientViTBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(8, 8, 16, 16),
        encoder_qkv_multiscales=((), (), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (5,), (5,)),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
        attention_head_dim=8,
    ).eval()


def hidream() -> Family:
    """HiDream: the embeddings of one text encoder have the shape (layers, rows, tokens, channels)."""
    torch.manual_seed(0)
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 32],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    ).eval()
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=256,
    )
    pipeline = diffusers.HiDreamImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=families.autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=families.clip_text(projection=True),
        tokenizer=families.clip_tokenizer(),
        text_encoder_2=families.clip_text(projection=True),
        tokenizer_2=families.clip_tokenizer(),
        text_encoder_3=families.t5_text(),
        tokenizer_3=families.t5_tokenizer(),
        text_encoder_4=transformers.LlamaForCausalLM(config).eval(),
        tokenizer_4=families.qwen_tokenizer(),
        transformer=transformer,
    )
    pipeline.default_sample_size = SIDE // 8
    return _family(pipeline, arguments=_sized(max_sequence_length=32))


def hunyuan_dit() -> Family:
    """HunyuanDiT: the rotary embedding is a pair of tensors, as many as the rows of a guided call."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=SIDE // 8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=24,
        activation_fn="gelu-approximate",
    ).eval()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127))]
    words += [f"##{chr(code)}" for code in range(33, 127)]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    pipeline = diffusers.HunyuanDiTPipeline(
        vae=families.autoencoder(),
        text_encoder=transformers.BertModel(config).eval(),
        tokenizer=transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)}),
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=families.t5_text(),
        tokenizer_2=families.t5_tokenizer(),
    )
    return _family(pipeline, arguments=_sized(use_resolution_binning=False))


STATEFUL_FAMILIES: dict[str, Callable[[], Family]] = {
    "hunyuan-image": hunyuan_image,
    "kandinsky-combined": kandinsky_combined,
    "sdxl-pag": sdxl_pag,
    "sana-pag": sana_pag,
    "hidream": hidream,
    "hunyuan-dit": hunyuan_dit,
}
