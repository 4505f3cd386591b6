"""Defaults of a pipeline: those of its call, and for distilled models those that its configuration implies."""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

_DEFAULT_STEPS = 50
_DEFAULT_SIDE = 512
_FEW_STEPS = 4
_NO_GUIDANCE = 1.0
_CONSISTENCY_SCHEDULERS = ("LCMScheduler", "TCDScheduler")


@dataclass(frozen=True, slots=True)
class CallDefaults:
    """Defaults of a call. `guidance_scale` None: the call chooses, or has none."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float | None


def read_defaults(pipeline: Any) -> CallDefaults:
    """Return the defaults of a pipeline."""
    parameters = inspect.signature(pipeline.__call__).parameters
    steps = int(_number(parameters, "num_inference_steps") or _DEFAULT_STEPS)
    guidance = _number(parameters, "guidance_scale")
    if _is_distilled(pipeline):
        steps = min(steps, _FEW_STEPS)
        guidance = None if guidance is None else _NO_GUIDANCE
    width, height = (_side(pipeline, parameters, name) for name in ("width", "height"))
    return CallDefaults(width, height, steps, None if guidance is None else float(guidance))


def _number(parameters: Any, name: str) -> float | None:
    default = parameters[name].default if name in parameters else None
    return default if isinstance(default, int | float) else None


def _is_distilled(pipeline: Any) -> bool:
    """Return whether the configuration shows that a model was distilled to few steps without guidance.

    Its own flag; a consistency scheduler; FLUX.1 without guidance embeddings (schnell); a UNet that was trained
    to predict noise, with timesteps from the end (turbo, lightning).
    """
    if getattr(pipeline.config, "is_distilled", False):
        return True
    scheduler = getattr(pipeline, "scheduler", None)
    config = getattr(scheduler, "config", {})
    if type(scheduler).__name__ in _CONSISTENCY_SCHEDULERS:
        return not type(pipeline).__name__.startswith("LatentConsistency")  # its call has its own defaults
    transformer: Any = getattr(pipeline, "transformer", None)
    if type(transformer).__name__ == "FluxTransformer2DModel":
        return not transformer.config.guidance_embeds
    return (
        getattr(pipeline, "unet", None) is not None
        and config.get("timestep_spacing") == "trailing"
        and config.get("prediction_type", "epsilon") == "epsilon"
        and not config.get("rescale_betas_zero_snr", False)
    )


def _side(pipeline: Any, parameters: Any, name: str) -> int:
    """Return the default width or height: of the signature, else of the call's first lines, else of the model."""
    default = _number(parameters, name)
    if default is None:
        default = _assigned_default(pipeline, parameters, name)
    if default is None and hasattr(pipeline, "get_default_resolution"):
        default = pipeline.get_default_resolution()
    return _native_side(pipeline) if default is None else int(default)


def _assigned_default(pipeline: Any, parameters: Any, name: str) -> float | None:
    """Return the number in `height = height or NUMBER` in the source of a call; None without such a line.

    In place of the number, the line may have a parameter of the call whose default is one.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(type(pipeline).__call__))))
    except (OSError, SyntaxError, TypeError):
        return None
    for node in ast.walk(tree):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=target)],
                value=ast.BoolOp(op=ast.Or(), values=[ast.Name(id=given), ast.Constant(value=int(number))]),
            ) if target == given == name:
                return number
            case ast.Assign(
                targets=[ast.Name(id=target)],
                value=ast.BoolOp(op=ast.Or(), values=[ast.Name(id=given), ast.Name(id=other)]),
            ) if target == given == name:
                return _number(parameters, other)
    return None


def _native_side(pipeline: Any) -> int:
    latent_side = getattr(pipeline, "default_sample_size", None)
    if latent_side is None:
        denoiser = getattr(pipeline, "unet", None)
        if denoiser is None:
            denoiser = getattr(pipeline, "transformer", None)
        latent_side = getattr(getattr(denoiser, "config", None), "sample_size", None)
    if not isinstance(latent_side, int):
        return _DEFAULT_SIDE
    return latent_side * int(getattr(pipeline, "vae_scale_factor", 8))
