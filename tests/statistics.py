"""Statistics of a broker, from the fields that a test cares about."""

import msgspec

from imagegen_protocol.statistics import GpuStatistics, Statistics


def gpu_statistics(**fields):
    """Return the statistics of one worker; other fields have their defaults."""
    return msgspec.convert(fields, GpuStatistics)


def statistics_of(**fields):
    """Return a broker's statistics; workers may be structs or plain values."""
    return msgspec.convert(msgspec.to_builtins(fields), Statistics)
