"""What a model takes, and what is made in the end once its defaults are filled in."""

from collections.abc import Hashable
from dataclasses import dataclass

from imagegen_protocol import GenerationRequest, InvalidRequestError
from imagegen_protocol.limits import MAX_SIDE_PIXELS
from imagegen_protocol.messages import Parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """A request with nothing left open. One image for each seed; sizes in pixels.

    `guidance_scale` is None for a model that has none, `negative_prompt` is None if none was given.
    """

    model: str
    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float | None
    width: int
    height: int
    loras: tuple[tuple[str, float], ...] = ()
    """Name and scale of each, in the order of the names."""

    @property
    def batch_key(self) -> Hashable:
        """Requests with equal keys can share one pipeline call."""
        return (
            self.model,
            self.width,
            self.height,
            self.num_inference_steps,
            self.guidance_scale,
            # A pipeline may treat "no negative prompt" otherwise than an empty one (SDXL does).
            self.negative_prompt is None,
            self.loras,
        )

    def parameters(self) -> dict[str, Parameter]:
        """Return what a RESULT tells; without the prompts, which could outgrow a header frame."""
        told: dict[str, Parameter] = {"loras": [{"name": name, "scale": scale} for name, scale in self.loras]}
        return {
            **(told if self.loras else {}),
            "seed": self.seeds[0],
            "num_images": len(self.seeds),
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "width": self.width,
            "height": self.height,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's name, defaults and limits. Sizes in pixels; `guidance_scale` None: the model has none."""

    name: str
    num_inference_steps: int
    guidance_scale: float | None
    width: int
    height: int
    size_multiple: int = 1
    max_side: int = MAX_SIDE_PIXELS
    takes_negative_prompt: bool = True
    takes_loras: bool = False

    def resolve(self, request: GenerationRequest) -> ResolvedRequest:
        """Fill in the defaults. Raises `InvalidRequestError` for what this model can't make."""
        width = self._check_side("width", request.width, self.width)
        height = self._check_side("height", request.height, self.height)
        if request.negative_prompt and not self.takes_negative_prompt:
            raise InvalidRequestError(f"negative_prompt: the model {self.name} takes none")
        if request.guidance_scale is not None and self.guidance_scale is None:
            raise InvalidRequestError(f"guidance_scale: the model {self.name} takes none")
        if request.loras and not self.takes_loras:
            raise InvalidRequestError(f"loras: the worker has none for the model {self.name}")
        return ResolvedRequest(
            model=self.name,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt if self.takes_negative_prompt else None,
            seeds=tuple(request.seeds()),
            num_inference_steps=request.num_inference_steps or self.num_inference_steps,
            guidance_scale=self.guidance_scale if request.guidance_scale is None else request.guidance_scale,
            width=width,
            height=height,
            loras=tuple(sorted((lora.name, lora.scale) for lora in request.loras or ())),
        )

    def _check_side(self, field: str, asked: int | None, default: int) -> int:
        if asked is None:
            return default
        if asked > self.max_side:
            raise InvalidRequestError(
                f"{field}: the model {self.name} makes at most {self.max_side} pixels, got {asked}"
            )
        over = asked % self.size_multiple
        if over:
            around = [asked - over, asked - over + self.size_multiple]
            right = " or ".join(str(side) for side in around if 8 <= side <= self.max_side)
            raise InvalidRequestError(
                f"{field}: the model {self.name} makes multiples of {self.size_multiple} pixels,"
                f" got {asked}; {right} would be right"
            )
        return asked
