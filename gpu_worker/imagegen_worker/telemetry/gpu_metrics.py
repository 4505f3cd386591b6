"""Prometheus metrics of the GPU, read on the HTTP threads when they are scraped."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from imagegen_worker.config import WorkerConfig
from imagegen_worker.devices.nvml import Nvml
from imagegen_worker.devices.readings import GpuMonitor

_PREFIX = "imagegen_worker_gpu_"


class GpuCollector(Collector):
    """Metrics of the worker's GPU; none for a worker without a GPU. `nvml` is the module `pynvml`."""

    def __init__(self, config: WorkerConfig, nvml: Nvml | None = None) -> None:
        self._config = config
        self._identity = (config.worker_name, str(config.gpu))
        self._monitor = None if config.gpu_uuid is None else GpuMonitor(config.gpu_uuid, nvml)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registration does not query the driver."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield the identity of the GPU and its readings."""
        if self._config.gpu_name is None:
            return
        info = GaugeMetricFamily(
            _PREFIX + "info", "Always 1; the labels identify the GPU.", labels=["worker", "gpu", "uuid", "name"]
        )
        info.add_metric([*self._identity, self._config.gpu_uuid or "", self._config.gpu_name], 1)
        yield info
        if self._monitor is None:
            return
        readings = self._monitor.readings()
        yield from self._one("memory_used_bytes", "Memory in use by all processes.", readings.memory_used)
        yield from self._one("memory_total_bytes", "Memory of the GPU.", readings.memory_total)
        yield from self._one("utilization_ratio", "Share of the time in which a kernel ran.", readings.utilization)
        yield from self._one("temperature_celsius", "Temperature of the GPU.", readings.temperature)
        yield from self._one("power_watts", "Power drawn by the card.", readings.power)
        yield from self._each("clock_hertz", "Clock frequency.", "clock", readings.clocks)
        yield from self._each(
            "throttled", "1 while the clocks are reduced for this reason.", "reason", readings.throttled
        )

    def _one(self, name: str, help: str, value: float | None) -> Iterable[Metric]:
        if value is not None:
            family = GaugeMetricFamily(_PREFIX + name, help, labels=["worker", "gpu"])
            family.add_metric(self._identity, value)
            yield family

    def _each(self, name: str, help: str, label: str, values: Mapping[str, float]) -> Iterable[Metric]:
        if values:
            family = GaugeMetricFamily(_PREFIX + name, help, labels=["worker", "gpu", label])
            for key, value in values.items():
                family.add_metric([*self._identity, key], value)
            yield family
