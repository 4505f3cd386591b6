"""Current readings of a GPU from NVML."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from imagegen_worker.devices.nvml import Nvml, nvml_module

CACHE_SECONDS = 1.0
"""Maximum age of cached readings."""
LOCK_TIMEOUT_SECONDS = 1.0
"""Maximum time that a thread waits for another thread's reading, because the driver may hang."""
THROTTLE_REASONS = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clock_setting": 0x100,
}
"""NVML's bits for the reasons why the clocks are reduced."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReadings:
    """Bytes, degrees Celsius, watts, hertz, and 0 to 1 for the utilisation; None or {} if not reported."""

    memory_used: int | None = None
    memory_total: int | None = None
    utilization: float | None = None
    temperature: int | None = None
    power: float | None = None
    clocks: Mapping[str, int] = field(default_factory=dict)
    throttled: Mapping[str, bool] = field(default_factory=dict)


def read_gpu(nvml: Nvml, uuid: str) -> GpuReadings:
    """Return the readings of a GPU or MIG instance. Raises `nvml.NVMLError` if it does not exist."""
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def query(call: Callable[[], T]) -> T | None:
        try:
            return call()
        except nvml.NVMLError:
            return None

    memory = query(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    utilization = query(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    power = query(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    reasons = query(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    clocks = {
        "sm": query(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "memory": query(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
    }
    return GpuReadings(
        memory_used=None if memory is None else memory.used,
        memory_total=None if memory is None else memory.total,
        utilization=None if utilization is None else utilization.gpu / 100,
        temperature=query(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power=None if power is None else power / 1000,
        clocks={name: megahertz * 1_000_000 for name, megahertz in clocks.items() if megahertz is not None},
        throttled={} if reasons is None else {name: bool(reasons & bit) for name, bit in THROTTLE_REASONS.items()},
    )


class GpuMonitor:
    """Cached readings of one GPU, for any number of threads."""

    def __init__(self, uuid: str, nvml: Nvml | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._uuid = uuid
        self._nvml = nvml_module() if nvml is None else nvml
        self._clock = clock
        self._lock = threading.Lock()
        self._last = GpuReadings()
        self._read_at: float | None = None
        self._opened = False

    def readings(self) -> GpuReadings:
        """Return recent readings; empty ones without NVML, without the GPU, or while the driver hangs."""
        if self._nvml is None or not self._lock.acquire(timeout=LOCK_TIMEOUT_SECONDS):
            return GpuReadings()
        try:
            now = self._clock()
            if self._read_at is None or now >= self._read_at + CACHE_SECONDS:
                self._last, self._read_at = self._read(), now
            return self._last
        finally:
            self._lock.release()

    def _read(self) -> GpuReadings:
        assert self._nvml is not None
        try:
            if not self._opened:
                self._nvml.nvmlInit()
                self._opened = True
            return read_gpu(self._nvml, self._uuid)
        except self._nvml.NVMLError:
            return GpuReadings()
