"""Measurement of the seconds that forwards take on a CUDA device."""

import torch


class CudaTimer:
    """Implements `Timer` by events on the device's current stream, without synchronising."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)

    def start(self) -> list[torch.cuda.Event]:
        """Record the start of a forward; return its mark."""
        mark = [torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)]
        mark[0].record(self._stream)
        return mark

    def stop(self, mark: list[torch.cuda.Event]) -> None:
        """Record the end of a forward whose kernels were queued."""
        mark[1].record(self._stream)

    def seconds(self, mark: list[torch.cuda.Event], *, wait: bool) -> float | None:
        """Return the seconds of a forward; None if it has not ended, unless `wait`."""
        if wait:
            mark[1].synchronize()
        elif not mark[1].query():
            return None
        return float(mark[0].elapsed_time(mark[1])) / 1000
