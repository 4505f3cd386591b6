"""What the fleet serves, as a broker's statistics tell it."""

from collections.abc import Mapping
from typing import Any


def served(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models of a broker's statistics, the default first: `model`, `default`, `workers` and `takes`.

    `takes` has what a model takes, as the protocol's capabilities have it; None where no worker has told yet.
    """
    default = statistics.get("default_model")
    gpus = statistics.get("per_gpu_stats", [])
    capabilities = statistics.get("model_traits", {})
    # The default may have no worker for now; it is waited for.
    names = {*statistics.get("models", []), *([default] if default else [])}
    return [
        {
            "model": name,
            "default": name == default,
            "workers": [_worker(gpu, name) for gpu in gpus if name in gpu.get("models", [])],
            "takes": capabilities.get(name),
        }
        for name in sorted(names, key=lambda name: (name != default, name))
    ]


def _worker(gpu: Mapping[str, Any], model: str) -> dict[str, Any]:
    return {
        **{name: gpu.get(name) for name in ("worker", "host", "gpu_id", "state")},
        "warm": model in gpu.get("warm_models", []),
    }
