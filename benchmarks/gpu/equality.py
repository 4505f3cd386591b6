"""Stages with tiny models in float32: images of the device, alone and in batches, and those of the CPU."""

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.gpu.bench import Bench, release_memory
from benchmarks.gpu.serving import alone, together, worker_images
from imagegen_protocol.request import Lora
from tests import families
from tests.families import FAMILIES, Family

LIMIT = 1e-3
"""Largest difference of two images that counts as rounding; 0 to 1 are black to white."""
PIXEL_LIMIT = 2
"""The same for images of 8 bits, of 255."""
PROMPTS = ("a red cat", "a long dog in the rain, at night", "two trees", "a house by the sea")
LORA_LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def equality(bench: Bench) -> None:
    """Compare each family's images: the CPU's, the device's alone, and the device's with shared forwards."""
    for name in ("sd", "flux") if bench.small else FAMILIES:
        _family(bench, name, FAMILIES[name]())
    for name in ("sd",) if bench.small else ("sd", "sdxl", "sd3", "flux", "z-image"):
        _worker(bench, name, FAMILIES[name])


def _family(bench: Bench, name: str, family: Family) -> None:
    calls = list(_calls(family))
    on_cpu = [alone(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    family.pipeline.to(bench.device)
    on_device = [alone(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    in_batches = together(family.pipeline, calls, (0, 0, 1, 2))
    _compare(bench, name, on_cpu, on_device, in_batches)


def _calls(family: Family) -> Iterator[dict[str, Any]]:
    """Yield the arguments of four calls that differ in prompt, steps, guidance and negative prompt."""
    for index, prompt in enumerate(PROMPTS):
        arguments = dict(family.arguments, prompt=prompt, num_inference_steps=(4, 6, 5, 3)[index])
        if family.guidances:
            arguments["guidance_scale"] = family.guidances[index % len(family.guidances)]
        if family.negative_prompt and index % 2:
            arguments["negative_prompt"] = "blurry"
        yield arguments


def _compare(
    bench: Bench, name: str, on_cpu: Sequence[Any], on_device: Sequence[Any], in_batches: Sequence[Any]
) -> None:
    device, batches = _difference(on_device, on_cpu), _difference(in_batches, on_device)
    bench.row(
        "Tiny families in float32: largest difference of two images (0 to 1)",
        family=name,
        **{"device and CPU": device, "batches and alone": batches},
    )
    bench.check(f"{name}: same images on the device and on the CPU", device <= LIMIT, f"{device:.2g}")
    bench.check(f"{name}: same images in batches and alone", batches <= LIMIT, f"{batches:.2g}")


def _difference(some: Sequence[Any], others: Sequence[Any]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


def _worker(bench: Bench, name: str, make: Callable[[], Family]) -> None:
    """Compare a worker on the device with one on the CPU, and check that it releases all memory."""
    requests = [{"prompt": prompt, "seed": seed, "num_inference_steps": 2} for seed, prompt in enumerate(PROMPTS)]
    with TemporaryDirectory() as path:
        folder = _saved(make(), Path(path))
        _clear_workspaces(bench)
        before = torch.cuda.memory_allocated()
        on_device = worker_images(folder, requests, device="cuda", dtype="float32")
        _clear_workspaces(bench)
        held = torch.cuda.memory_allocated() - before
        on_cpu = worker_images(folder, requests, device="cpu")
    pixels = max(map(pixel_difference, on_device, on_cpu))
    bench.row("A worker on the device and one on the CPU", family=name, pixels=pixels, **{"bytes held": held})
    bench.check(f"{name}: the worker's images", pixels <= PIXEL_LIMIT, f"pixels differ by {pixels} of 255")
    bench.check(f"{name}: a closed worker holds no memory", held == 0, f"{held} bytes")


def _clear_workspaces(bench: Bench) -> None:
    """Release what is not the models': cuBLAS keeps its workspaces in torch's allocator."""
    if not bench.small:
        torch._C._cuda_clearCublasWorkspaces()
    release_memory()


def _saved(family: Family, folder: Path) -> Path:
    family.pipeline.save_pretrained(folder)
    (folder / "imagegen.json").write_text(json.dumps({"width": families.SIDE, "height": families.SIDE}))
    return folder


def pixel_difference(one: Any, other: Any) -> int:
    """Return the largest difference of two images' pixels, of 255."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def loras(bench: Bench) -> None:
    """Serve requests with either of two LoRAs, with both and with none at once, and compare with each alone."""
    with TemporaryDirectory() as path:
        folder = _saved(families.sdxl(), Path(path, "sdxl"))
        adapters = Path(path, "loras")
        adapters.mkdir()
        for seed, name in enumerate(("a", "b")):
            _write_lora(adapters / f"{name}.safetensors", families.sdxl().pipeline, seed)
        settings: dict[str, Any] = {"device": "cuda", "dtype": "float32", "lora_folder": adapters}
        wanted: list[dict[str, float]] = [{"a": 1.0}, {}, {"b": 0.7}, {"a": 0.5, "b": -1.0}]
        requests = [_with_loras(number, each) for number, each in enumerate(wanted)]
        plain = [_with_loras(number, {}) for number, each in enumerate(wanted) if each]
        mixed = worker_images(folder, requests, **settings)
        apart = worker_images(folder, [*requests, *plain], max_batch_size=1, **settings)
    single, unchanged = apart[: len(wanted)], apart[len(wanted) :]
    pixels = max(map(pixel_difference, mixed, single))
    changed = [image for image, each in zip(single, wanted, strict=True) if each]
    effect = min(map(pixel_difference, changed, unchanged))
    bench.row("Two LoRAs mixed", requests=len(wanted), pixels=pixels, **{"least effect of a LoRA": effect})
    bench.check("the same images as alone", pixels <= PIXEL_LIMIT, f"pixels differ by {pixels} of 255")
    bench.check("each LoRA changes the image", effect > PIXEL_LIMIT, f"by {effect} of 255")


def _with_loras(number: int, wanted: Mapping[str, float]) -> dict[str, Any]:
    named = [Lora(name=name, scale=scale) for name, scale in wanted.items()]
    return {"prompt": PROMPTS[number % 4], "seed": number, "num_inference_steps": 3, "loras": named}


def _write_lora(path: Path, pipeline: Any, seed: int) -> None:
    """Write a LoRA of rank 2 for one layer."""
    generator = torch.Generator().manual_seed(seed)
    component, _, layer = LORA_LAYER.partition(".")
    linear = getattr(pipeline, component).get_submodule(layer)
    save_file(
        {
            f"{LORA_LAYER}.lora_A.weight": torch.randn(2, linear.in_features, generator=generator),
            f"{LORA_LAYER}.lora_B.weight": torch.randn(linear.out_features, 2, generator=generator),
        },
        path,
    )


def flux2(bench: Bench) -> None:
    """Generate portrait, landscape and square images of as many tokens together with tiny FLUX.2-klein."""
    family = families.flux2_klein()
    sizes = ((32, 128), (128, 32), (64, 64), (128, 32))
    calls = [
        dict(family.arguments, prompt=prompt, width=width, height=height, num_inference_steps=4)
        for prompt, (width, height) in zip(PROMPTS, sizes, strict=True)
    ]
    on_cpu = [alone(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    family.pipeline.to(bench.device)
    on_device = [alone(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    for arrivals, name in (((0, 0, 0, 0), "at once"), ((0, 0, 1, 2), "joining")):
        _compare(bench, f"flux2-klein, {name}", on_cpu, on_device, together(family.pipeline, calls, arrivals))
    gc.collect()
