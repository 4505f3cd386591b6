"""Reports of denoising steps: by the callback of a pipeline's call, or by its scheduler if the call has none."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from imagegen_worker.backends import OnStep, Sketch

MakePreviews = Callable[[Any], Sequence[Sketch | None]]
"""Returns a preview or None for each image of a call, given the latents of all."""


def report_steps(
    pipeline: Any,
    arguments: dict[str, Any],
    parameters: Mapping[str, Any],
    on_step: OnStep,
    previews: MakePreviews | None = None,
) -> None:
    """Let a pipeline's call report its steps to `on_step`.

    `arguments` are those of the call, and get the callback; `parameters` those of its signature. A pipeline
    without the callback has the `step` of its scheduler wrapped.
    """

    def report(step: int, steps: int, latents: Any) -> None:
        on_step(step, steps, *(() if previews is None else (previews(latents),)))

    if "callback_on_step_end" in parameters:
        requested = arguments.get("num_inference_steps", 0)

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            steps = getattr(pipe, "num_timesteps", None) or max(requested, step + 1)
            report(step + 1, steps, tensors.get("latents"))
            return tensors

        arguments["callback_on_step_end"] = after_step
        return
    scheduler: Any = getattr(pipeline, "scheduler", None)
    if not hasattr(scheduler, "step"):
        return
    steps_done = 0
    stock_step = scheduler.step

    @functools.wraps(stock_step)
    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps_done
        output = stock_step(*args, **kwargs)
        steps_done += 1
        report(steps_done, max(len(scheduler.timesteps), steps_done), None if previews is None else output[0])
        return output

    scheduler.step = step
