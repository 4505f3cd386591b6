"""The stages, in their order, and their time limits: together under eight minutes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. `function`: `module:name` of a function that takes a `Bench`; `limit` in seconds."""

    name: str
    title: str
    function: str
    limit: float


STAGES = (
    Stage("equality", "tiny families on the device", "benchmarks.gpu.equality:equality", 65),
    Stage("memory", "out of memory", "benchmarks.gpu.memory:memory", 45),
    Stage("loras", "two LoRAs mixed", "benchmarks.gpu.equality:loras", 30),
    Stage("flux2", "FLUX.2-klein, portrait with landscape", "benchmarks.gpu.equality:flux2", 20),
    Stage("sdxl-mixed", "SDXL, mixed traffic", "benchmarks.gpu.traffic:mixed_sdxl", 65),
    Stage("flux-mixed", "FLUX.1, mixed traffic", "benchmarks.gpu.traffic:mixed_flux", 85),
    Stage("sdxl-uniform", "SDXL, uniform bursts", "benchmarks.gpu.traffic:uniform_sdxl", 35),
    Stage("flux-uniform", "FLUX.1, uniform bursts", "benchmarks.gpu.traffic:uniform_flux", 50),
    Stage("profile", "time on the device", "benchmarks.gpu.traffic:profile", 60),
)
BY_NAME = {stage.name: stage for stage in STAGES}
MINUTES = 8.0
