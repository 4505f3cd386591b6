"""Trains the built-in text-to-image model from nothing and saves it as a diffusers folder.

    python -m tools.shapes.train --out DIR --minutes 50

First the autoencoder (images to latents of 8 channels, one eighth of the side), then the text encoder and the UNet
together on precomputed latents. A CPU suffices.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.shapes import drawing

LATENT_CHANNELS = 8
LATENT_SIDE = 8
TEXT_WIDTH = 96
TEXT_TOKENS = 24
START, END = "<|startoftext|>", "<|endoftext|>"

Model = Any
"""A diffusers model or scheduler, whose annotations are incomplete."""


class Clock:
    """Elapsed wall time as a fraction of a number of minutes."""

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60.0
        self.begun = time.monotonic()

    def share(self) -> float:
        """Return the elapsed fraction: 0 at the start, at least 1 after the end."""
        return (time.monotonic() - self.begun) / self.seconds


def log(text: str) -> None:
    """Print a line with the time of day, unbuffered."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def make_pictures(count: int, rng: random.Random) -> tuple[list[drawing.Spec], Tensor]:
    """Return random training images: their specs and (count, 3, 64, 64) uint8 values."""
    specs = [drawing.random_spec(rng) for _ in range(count)]
    stacked = np.stack([drawing.draw_array(spec) for spec in specs])
    return specs, torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def to_unit(pictures: Tensor) -> Tensor:
    """Return uint8 values of 0 to 255 as floats of -1 to 1."""
    return pictures.float() / 127.5 - 1.0


def make_tokenizer() -> Model:
    """Return a byte-level BPE tokenizer trained on captions; it encodes any text."""
    rng = random.Random(1)
    texts = [drawing.caption(drawing.random_spec(rng, training=False), rng) for _ in range(4000)]
    texts = [text for text in texts if text.isascii() and not any(c.isdigit() for c in text)]
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=1000, min_frequency=20, show_progress=False, end_of_word_suffix="</w>"),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    tokens += [left + right for left, right in merges if left + right not in tokens]
    tokens = [*dict.fromkeys(tokens), START, END]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=TEXT_TOKENS,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )


def make_vae() -> Model:
    """Return the untrained autoencoder, with about 0.6 million parameters."""
    widths = (16, 32, 48, 48)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=drawing.SIZE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def make_text_encoder(tokenizer: Model) -> Model:
    """Return the untrained text encoder, with about 0.3 million parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> Model:
    """Return the untrained denoiser, with about 2 million parameters."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 80),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler() -> Model:
    """Return the default scheduler, whose settings other schedulers inherit."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences between neighbouring pixels, horizontally and vertically."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the absolute error, with weight five near edges, plus the error of the gradients."""
    across, down = gradients(wanted)
    edges = nnf.pad(across.abs().amax(1), (0, 1)) + nnf.pad(down.abs().amax(1), (0, 0, 0, 1))
    near = nnf.max_pool2d(edges.clamp(0, 1).unsqueeze(1), 3, 1, 1)
    flat = ((made - wanted).abs() * (1 + 4 * near)).mean()
    steps = sum((a - b).abs().mean() for a, b in zip(gradients(made), gradients(wanted), strict=True))
    return flat + steps


def set_rate(optimizer: torch.optim.Optimizer, peak: float, share: float, hold: float) -> None:
    """Set the learning rate: a short warm-up, `peak` until the fraction `hold`, then a half cosine to 0."""
    rise = min(1.0, share / 0.01 + 0.02)
    fall = 0.0 if share < hold else min(1.0, (share - hold) / (1 - hold))
    for group in optimizer.param_groups:
        group["lr"] = peak * rise * (0.5 + 0.5 * math.cos(math.pi * fall))


def train_vae(pictures: Tensor, minutes: float) -> Model:
    """Return an autoencoder trained on 32-pixel crops for half of the time (faster), then on whole images."""
    vae = make_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-3)
    clock, turn, average = Clock(minutes), 0, 0.0
    while (share := clock.share()) < 1:
        crops = share < 0.5
        batch = to_unit(pictures[torch.randint(len(pictures), (40 if crops else 16,))])
        if crops:
            top, left = random.randint(0, 32), random.randint(0, 32)
            batch = batch[:, :, top : top + 32, left : left + 32]
        set_rate(optimizer, 2e-3, share, 0.4)
        posterior = vae.encode(batch).latent_dist
        latents = posterior.sample()
        spread = posterior.kl().mean() / latents[0].numel()
        loss: Any = picture_loss(vae.decode(latents).sample, batch) + 3e-4 * spread
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        turn += 1
        average += (loss.item() - average) * max(0.02, 1 / turn)
        if turn % 100 == 0:
            log(f"vae {turn} turns, {share:.0%} of the time, loss {average:.4f}")
    return vae.eval().requires_grad_(False)


def encode_all(vae: Model, pictures: Tensor) -> Tensor:
    """Return the mean latents of all images, (count, 8, 8, 8)."""
    with torch.no_grad():
        return torch.cat([vae.encode(to_unit(part)).latent_dist.mean for part in pictures.split(64)])


def normalise_latents(vae: Model, pictures: Tensor) -> None:
    """Normalise each latent channel to mean 0 and deviation 1, within the 1 x 1 convolutions."""
    latents = encode_all(vae, pictures)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    log(f"latent deviations {[round(d, 2) for d in deviation.tolist()]}")
    enter, leave = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        enter.weight[:LATENT_CHANNELS] /= deviation[:, None, None, None]
        enter.bias[:LATENT_CHANNELS] = (enter.bias[:LATENT_CHANNELS] - mean) / deviation
        enter.bias[LATENT_CHANNELS:] -= 2 * deviation.log()
        leave.bias += leave.weight[:, :, 0, 0] @ mean
        leave.weight *= deviation[None, :, None, None]


class Average:
    """Moving average of the weights of text encoder and UNet, which is saved."""

    def __init__(self, text: Model, unet: Model, decay: float = 0.999) -> None:
        self.text, self.unet = (copy.deepcopy(m).eval().requires_grad_(False) for m in (text, unet))
        self.pairs = [(self.text, text), (self.unet, unet)]
        self.decay = decay
        self.turns = 0

    def update(self) -> None:
        """Update the average with the current weights."""
        self.turns += 1
        decay = min(self.decay, (1 + self.turns) / (10 + self.turns))
        for kept, trained in self.pairs:
            for a, b in zip(kept.parameters(), trained.parameters(), strict=True):
                a.lerp_(b.detach(), 1 - decay)


def save(
    out: Path,
    vae: Model,
    tokenizer: Model,
    text: Model,
    unet: Model,
    guidance: float,
) -> None:
    """Write the pipeline folder, with fp16 safetensors and `imagegen.json`."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=copy.deepcopy(text).half(),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet).half(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    # Declared as float32, so that loading without a dtype gives float32.
    config_path = out / "text_encoder" / "config.json"
    config = json.loads(config_path.read_text())
    config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2) + "\n")
    defaults = {
        "num_inference_steps": 20,
        "guidance_scale": guidance,
        "width": drawing.SIZE,
        "height": drawing.SIZE,
        "max_side": 4 * drawing.SIZE,
    }
    (out / "imagegen.json").write_text(json.dumps(defaults, indent=2) + "\n")


def train_denoiser(args: argparse.Namespace, vae: Model, specs: list[drawing.Spec], latents: Tensor) -> None:
    """Train text encoder and UNet to predict v from noisy latents; save periodically and at the end."""
    rng = random.Random(args.seed + 1)
    tokenizer = make_tokenizer()
    text, unet = make_text_encoder(tokenizer), make_unet()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (vae, text, unet)]
    log(f"parameters of vae, text encoder, unet: {sizes}; {len(tokenizer)} tokens")
    scheduler = make_scheduler()
    average = Average(text, unet)
    weights = [*text.parameters(), *unet.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=args.rate, weight_decay=1e-2, betas=(0.9, 0.99))
    clock, turn, mean_loss, saved = Clock(args.minutes), 0, 0.0, time.monotonic()
    while (share := clock.share()) < 1:
        rows = torch.randint(len(specs), (args.batch,))
        captions = ["" if rng.random() < 0.1 else drawing.caption(specs[row], rng) for row in rows.tolist()]
        ids = tokenizer(
            captions, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
        ).input_ids
        clean = latents[rows]
        noise = torch.randn_like(clean)
        steps = torch.randint(1000, (args.batch,))
        noisy = scheduler.add_noise(clean, noise, steps)
        wanted = scheduler.get_velocity(clean, noise, steps)
        set_rate(optimizer, args.rate, share, 0.3)
        loss: Any = nnf.mse_loss(unet(noisy, steps, text(ids)[0]).sample, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        average.update()
        turn += 1
        mean_loss += (loss.item() - mean_loss) * max(0.01, 1 / turn)
        if turn % 100 == 0:
            log(f"denoiser {turn} turns, {share:.0%} of the time, loss {mean_loss:.4f}")
        if time.monotonic() - saved > args.save_minutes * 60:
            save(args.out, vae, tokenizer, average.text, average.unet, args.guidance)
            saved = time.monotonic()
    save(args.out, vae, tokenizer, average.text, average.unet, args.guidance)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description="Train the built-in shapes model.")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    parser.add_argument("--minutes", type=float, default=45, help="minutes for text encoder and UNet")
    parser.add_argument("--vae-minutes", type=float, default=9, help="minutes for the autoencoder")
    parser.add_argument("--vae", type=Path, help="pipeline folder with the autoencoder to use instead")
    parser.add_argument("--pictures", type=int, default=24000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.2e-3, help="maximum learning rate")
    parser.add_argument("--guidance", type=float, default=2.0, help="default guidance scale in imagegen.json")
    parser.add_argument("--save-minutes", type=float, default=8, help="minutes between saves")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    specs, pictures = make_pictures(args.pictures, random.Random(args.seed))
    log(f"drew {len(specs)} pictures")
    if args.vae is None:
        vae = train_vae(pictures, args.vae_minutes)
        normalise_latents(vae, pictures[:4096])
        vae.save_pretrained(args.out / "vae")
    else:
        vae = AutoencoderKL.from_pretrained(args.vae / "vae", dtype=torch.float32)
        vae.eval().requires_grad_(False)
    latents = encode_all(vae, pictures)
    log(f"encoded all pictures: mean {latents.mean():.3f}, deviation {latents.std():.3f}")
    train_denoiser(args, vae, specs, latents)
    log(f"saved {args.out.name}")


if __name__ == "__main__":
    main()
