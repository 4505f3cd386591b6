"""Tiny pipelines of newer families that generate images from text."""

import diffusers
import torch
import transformers

from tests import families, stateful_families
from tests.pipelines import parts


def ideogram4():
    """Ideogram 4: two denoisers; without a guidance scale, the guidance follows a schedule."""
    torch.manual_seed(0)
    layers = 36

    def transformer():
        return diffusers.Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=13 * 16,
            mrope_section=(4, 2, 2),
        ).eval()

    return diffusers.Ideogram4Pipeline(
        scheduler=parts.flow(),
        vae=parts.flux2_vae(),
        text_encoder=parts.qwen3_vl("Qwen3VLModel", layers),
        tokenizer=parts.vision_tokenizer(),
        transformer=transformer(),
        unconditional_transformer=transformer(),
    )


def kandinsky5(kind="Kandinsky5T2IPipeline"):
    """Kandinsky 5: the output has the field `image`, and sizes are those of a list."""
    torch.manual_seed(0)
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=32,
        time_dim=16,
        out_visual_dim=4,
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        visual_cond=kind.endswith("I2IPipeline"),
    ).eval()
    for name, weight in transformer.named_parameters():
        if "modulation.out_layer" in name:
            torch.nn.init.normal_(weight, std=0.3)  # they are zero, which would hide the text
    parts.fix(getattr(diffusers, kind), "resolutions", [(64, 64), (64, 128), (128, 64)])
    return getattr(diffusers, kind)(
        transformer=transformer,
        vae=families.autoencoder(),
        text_encoder=parts.qwen25_vl(),
        tokenizer=parts.qwen25_processor(),
        text_encoder_2=families.clip_text(),
        tokenizer_2=families.clip_tokenizer(),
        scheduler=parts.flow(),
    )


def krea2():
    """Krea 2: several layers of the text encoder."""
    torch.manual_seed(0)
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    return diffusers.Krea2Pipeline(
        scheduler=parts.flow(use_dynamic_shifting=True),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen3_vl("Qwen3VLModel"),
        tokenizer=parts.vision_tokenizer(),
        transformer=transformer,
        text_encoder_select_layers=(1, 2),
    )


def _mistral(kind):
    text = {
        "model_type": "mistral",
        "vocab_size": 320,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 31,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=259)
    return getattr(transformers, kind)(config).eval()


def ernie_image():
    """ERNIE-Image: prompts are padded to the longest of a call, with their lengths."""
    torch.manual_seed(0)
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    ).eval()
    return diffusers.ErnieImagePipeline(
        transformer=transformer,
        vae=parts.flux2_vae(),
        text_encoder=_mistral("Mistral3Model"),
        tokenizer=families.qwen_tokenizer(),
        scheduler=parts.flow(),
    )


def flux2():
    """FLUX.2: a text encoder of Mistral 3."""
    torch.manual_seed(0)
    tokenizer = parts.vision_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(), tokenizer=tokenizer, chat_template=parts.TEMPLATE
    )
    stock = families.flux2_klein().pipeline
    transformer = diffusers.Flux2Transformer2DModel(
        **{**stock.transformer.config, "joint_attention_dim": 48, "guidance_embeds": True}
    ).eval()
    return diffusers.Flux2Pipeline(
        scheduler=parts.flow(),
        vae=stock.vae,
        text_encoder=_mistral("Mistral3ForConditionalGeneration"),
        tokenizer=processor,
        transformer=transformer,
    )


def bria_fibo():
    """FIBO: the layers of the text encoder are an argument of the denoiser."""
    torch.manual_seed(0)
    config = transformers.SmolLM3Config(
        vocab_size=128_001,  # the pipeline has a token of its own for empty prompts
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=256,
        eos_token_id=256,
        bos_token_id=257,
    )
    transformer = diffusers.BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=16,
    ).eval()
    return diffusers.BriaFiboPipeline(
        transformer=transformer,
        scheduler=parts.flow(),
        vae=parts.wan_vae(),
        text_encoder=transformers.SmolLM3ForCausalLM(config).eval(),
        tokenizer=families.qwen_tokenizer(),
    )


def longcat_image():
    """LongCat-Image: the prompt is rewritten by the text encoder, here by one token."""
    torch.manual_seed(0)
    text_encoder = parts.qwen25_vl()
    text_encoder.generation_config.eos_token_id = list(range(320))
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 6, 6],
    ).eval()
    return diffusers.LongCatImagePipeline(
        scheduler=parts.flow(),
        vae=families.autoencoder(latent_channels=16, shift_factor=0.1),
        text_encoder=text_encoder,
        tokenizer=parts.vision_tokenizer(),
        text_processor=parts.qwen25_processor(),
        transformer=transformer,
    )


def ovis_image():
    """Ovis-Image."""
    torch.manual_seed(0)
    transformer = diffusers.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    return diffusers.OvisImagePipeline(
        scheduler=parts.flow(),
        vae=families.autoencoder(shift_factor=0.1),
        text_encoder=families.qwen_text(causal=False),
        tokenizer=families.qwen_tokenizer(),
        transformer=transformer,
    )


def lumina2():
    """Lumina Image 2."""
    torch.manual_seed(0)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(512, 64, 64),
        cap_feat_dim=32,
    ).eval()
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=parts.flow(),
        vae=families.autoencoder(shift_factor=0.1),
        text_encoder=parts.gemma2(),
        tokenizer=families.qwen_tokenizer(),
    )


def nucleus_moe():
    """NucleusMoE-Image: a mixture of experts, whose capacity depends on the rows."""
    torch.manual_seed(0)
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=[2.0] * 2,
        dense_moe_strategy="leave_first_block_dense",
    ).eval()
    return diffusers.NucleusMoEImagePipeline(
        transformer=transformer,
        scheduler=parts.flow(),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen3_vl(layers=9),  # the pipeline reads the eighth from the end
        processor=parts.qwen3_processor(),
    )


def prx():
    """PRX: a text encoder of T5Gemma."""
    torch.manual_seed(0)
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    module = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    config = transformers.T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False)
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=4,
        context_in_dim=32,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
    ).eval()
    encoder = T5GemmaEncoder(config.encoder).eval()
    tokenizer = families.qwen_tokenizer()
    tokenizer.model_max_length = 64
    for name, value in config.encoder.to_dict().items():
        if not hasattr(config, name):
            setattr(config, name, value)
    encoder.config = config  # repositories have the configuration of encoder and decoder
    return diffusers.PRXPipeline(
        transformer=transformer,
        scheduler=parts.flow(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        vae=families.autoencoder(shift_factor=0.1),
        default_sample_size=256,
    )


def sana(kind="SanaPipeline"):
    """Sana, at a size of which diffusers has a list of aspect ratios."""
    stock = stateful_families.sana_pag().pipeline
    transformer = diffusers.SanaTransformer2DModel(**{**stock.transformer.config, "sample_size": 16}).eval()
    known = {**stock.components, "transformer": transformer}
    return getattr(diffusers, kind)(**known)


def pixart(kind="PixArtSigmaPipeline"):
    """PixArt, at a size of which diffusers has a list of aspect ratios."""
    stock = families.pixart_sigma().pipeline
    transformer = diffusers.PixArtTransformer2DModel(**{**stock.transformer.config, "sample_size": 32}).eval()
    return getattr(diffusers, kind)(**{**stock.components, "transformer": transformer})


def hidream():
    """HiDream, with text encoders that take 128 tokens. The size of its images is not stored in the folder."""
    pipeline = stateful_families.hidream().pipeline
    parts.fix(type(pipeline), "default_sample_size", pipeline.default_sample_size)
    for name in ("text_encoder", "text_encoder_2"):
        config = getattr(pipeline, name).config
        config.max_position_embeddings = 128
        setattr(pipeline, name, transformers.CLIPTextModelWithProjection(config).eval())
    return pipeline
