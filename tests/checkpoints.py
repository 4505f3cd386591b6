"""Weights in the layouts of the models' authors: what diffusers' converters read, made from diffusers' own."""

import re

import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _renamed(name, table):
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def unet_weights(unet):
    """Return the weights of a UNet as Stable Diffusion has them."""
    width = unet.config.layers_per_block + 1
    found = {}
    for name, weight in unet.state_dict().items():
        block = re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
        )
        middle = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name)
        if block:
            side, at, kind, index, rest = block.groups()
            at, index = int(at), int(index)
            attends = hasattr(getattr(unet, f"{side}_blocks")[at], "attentions")
            if kind == "downsamplers":
                new = f"input_blocks.{(at + 1) * width}.0.{rest.replace('conv', 'op')}"
            elif kind == "upsamplers":
                new = f"output_blocks.{(at + 1) * width - 1}.{2 if attends else 1}.{rest}"
            else:
                first = at * width + index + (side == "down")
                rest = _renamed(rest, _RESNET) if kind == "resnets" else rest
                new = (
                    f"{'input' if side == 'down' else 'output'}_blocks.{first}.{int(kind == 'attentions')}.{rest}"
                )
        elif middle:
            kind, index, rest = middle.groups()
            place = 2 * int(index) if kind == "resnets" else 1
            new = f"middle_block.{place}.{_renamed(rest, _RESNET) if kind == 'resnets' else rest}"
        else:
            new = _renamed(name, _UNET)
        found[f"model.diffusion_model.{new}"] = weight
    return found


def vae_weights(vae):
    """Return the weights of an autoencoder as Stable Diffusion has them."""
    last = len(vae.config.block_out_channels) - 1
    found = {}
    for name, weight in vae.state_dict().items():
        new = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", name)
        new = (
            new.replace("down_blocks", "down").replace("samplers.0", "sample").replace("conv_norm_out", "norm_out")
        )
        new = re.sub(r"mid_block\.resnets\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}", new)
        new = new.replace(".resnets.", ".block.").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0" in new:
            new = _renamed(new.replace("mid_block.attentions.0", "mid.attn_1"), _ATTENTION)
            weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        found[f"first_stage_model.{new}"] = weight
    return found


def clip_weights(text_encoder):
    """Return the weights of a CLIP text encoder as Stable Diffusion has them."""
    found = {}
    for name, weight in text_encoder.state_dict().items():
        found[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    return found


def stable_diffusion(pipeline):
    """Return the weights of a whole pipeline in one table."""
    parts = unet_weights(pipeline.unet), vae_weights(pipeline.vae), clip_weights(pipeline.text_encoder)
    return {name: weight.contiguous().clone() for part in parts for name, weight in part.items()}


def z_image(transformer):
    """Return the weights of a Z-Image transformer in its authors' layout, attention in one piece."""
    weights = transformer.state_dict()
    found = {}
    for name, weight in weights.items():
        new = name.replace("all_final_layer.2-1.", "final_layer.").replace("all_x_embedder.2-1.", "x_embedder.")
        new = new.replace(".to_out.0.", ".out.").replace(".norm_k.", ".k_norm.").replace(".norm_q.", ".q_norm.")
        if new.endswith("attention.to_q.weight"):
            rows = [weights[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            found[new.replace("to_q", "qkv")] = torch.cat(rows)
        elif not new.endswith(("attention.to_k.weight", "attention.to_v.weight")):
            found[new] = weight.clone()
    return found
