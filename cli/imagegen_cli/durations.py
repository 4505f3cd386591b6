"""Durations as text."""


def format_duration(seconds: float) -> str:
    """Return a duration such as `0:03`, `1:01:01` or `2d 3:04:05`."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_estimate(seconds: float) -> str:
    """Return a rounded duration, such as `0.4 s`, `8 s`, `3 min` or `2 h`."""
    if seconds < 1:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.0f} h"
