"""Prometheus metrics of the GPU itself, read as they are scraped, on the HTTP's threads."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from imagegen_worker.config import WorkerConfig
from imagegen_worker.devices.nvml import Nvml
from imagegen_worker.devices.readings import Gauge

_PREFIX = "imagegen_worker_gpu_"


class GpuCollector(Collector):
    """What NVML tells of the worker's GPU; nothing where the worker has none. `nvml` is the module `pynvml`."""

    def __init__(self, config: WorkerConfig, nvml: Nvml | None = None) -> None:
        self._config = config
        self._identity = (config.worker_name, str(config.gpu))
        self._gauge = None if config.gpu_uuid is None else Gauge(config.gpu_uuid, nvml)

    def describe(self) -> Iterable[Metric]:
        """Yield nothing: what there is shows when it is scraped, and registering must not ask the driver."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield which GPU it is, and how it is."""
        if self._config.gpu_name is None:
            return
        info = GaugeMetricFamily(
            _PREFIX + "info", "Always 1; the labels say which GPU it is.", labels=["worker", "gpu", "uuid", "name"]
        )
        info.add_metric([*self._identity, self._config.gpu_uuid or "", self._config.gpu_name], 1)
        yield info
        if self._gauge is None:
            return
        now = self._gauge.readings()
        yield from self._one("memory_used_bytes", "Memory in use, by anybody.", now.memory_used)
        yield from self._one("memory_total_bytes", "Memory that there is.", now.memory_total)
        yield from self._one("utilization_ratio", "Part of the time in which a kernel ran.", now.utilization)
        yield from self._one("temperature_celsius", "Temperature of the chip.", now.temperature)
        yield from self._one("power_watts", "Power drawn by the card.", now.power)
        yield from self._each("clock_hertz", "Clock frequency.", "clock", now.clocks)
        yield from self._each("throttled", "1 where the clocks are held back for this.", "reason", now.throttled)

    def _one(self, name: str, text: str, value: float | None) -> Iterable[Metric]:
        if value is not None:
            family = GaugeMetricFamily(_PREFIX + name, text, labels=["worker", "gpu"])
            family.add_metric(self._identity, value)
            yield family

    def _each(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Iterable[Metric]:
        if values:
            family = GaugeMetricFamily(_PREFIX + name, text, labels=["worker", "gpu", label])
            for key, value in values.items():
                family.add_metric([*self._identity, key], value)
            yield family
