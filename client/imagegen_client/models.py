"""List of the models that the fleet serves, from a broker's statistics."""

from typing import Any

import msgspec

from imagegen_protocol.statistics import GpuStatistics, Statistics


def served(statistics: Statistics) -> list[dict[str, Any]]:
    """Return the models of a broker, the default first, as `model`, `default`, `workers` and `takes`.

    `takes` has the capabilities of the model; None until a worker has reported them.
    """
    default = statistics.default_model
    # The default may have no worker for now; requests wait for one.
    names = {*statistics.models, *([default] if default else [])}
    return [
        {
            "model": name,
            "default": name == default,
            "workers": [_worker(gpu, name) for gpu in statistics.per_gpu_stats if name in gpu.models],
            "takes": msgspec.to_builtins(statistics.model_traits.get(name)),
        }
        for name in sorted(names, key=lambda name: (name != default, name))
    ]


def _worker(gpu: GpuStatistics, model: str) -> dict[str, Any]:
    return {
        "worker": gpu.worker,
        "host": gpu.host,
        "gpu_id": gpu.gpu_id,
        "state": gpu.state,
        "warm": model in gpu.warm_models,
    }
