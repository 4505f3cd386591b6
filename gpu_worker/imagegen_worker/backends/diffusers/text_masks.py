"""Attention that excludes masked text tokens, for models that only lower the weight of these.

CogView4 adds its mask to the attention scores as 0 or 1, so that padding still counts, and its pipeline passes no
mask. Calls whose prompts differ in length can therefore share a forward only with attention that excludes the
padding. Calls without a mask use the model's own attention.
"""

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_cogview4 import CogView4AttnProcessor
from torch.nn.functional import scaled_dot_product_attention


class MaskedTextAttention(CogView4AttnProcessor):  # type: ignore[misc]
    """CogView4's attention; a mask of shape (rows, tokens of the text) excludes the tokens where it is 0."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the new image states and text states, of the shapes of the given ones."""
        if attention_mask is None:
            unmasked: tuple[torch.Tensor, torch.Tensor] = super().__call__(
                attn, hidden_states, encoder_hidden_states, None, image_rotary_emb
            )
            return unmasked
        length = encoder_hidden_states.shape[1]
        states = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query).to(states.dtype)
        if attn.norm_k is not None:
            key = attn.norm_k(key).to(states.dtype)
        if image_rotary_emb is not None:
            query, key = (_with_positions(part, length, image_rotary_emb) for part in (query, key))
        counts = attention_mask.new_ones(states.shape[:2], dtype=torch.bool)
        counts[:, :length] = attention_mask > 0
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=counts[:, None, None, :])
        mixed = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2, 3)))
        return mixed[:, length:], mixed[:, :length]


def _with_positions(
    states: torch.Tensor, length: int, positions: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Return query or key states with rotary embeddings for the image, which follows a text of this length."""
    image = apply_rotary_emb(states[:, :, length:], positions, use_real_unbind_dim=-2)
    return torch.cat([states[:, :, :length], image], dim=2)


def exclude_masked_text(model: torch.nn.Module) -> str | None:
    """Replace the attention of a model whose own does not exclude masked text.

    Return the name of its argument for the mask, which the pipeline does not pass; None for any other model.
    """
    kinds = (CogView4AttnProcessor, MaskedTextAttention)
    parts: list[Any] = [part for part in model.modules() if type(getattr(part, "processor", None)) in kinds]
    for part in parts:
        part.set_processor(MaskedTextAttention())
    return "attention_mask" if parts else None
