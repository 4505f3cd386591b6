"""The gateway's metrics before anything has happened."""

from imagegen_gateway.metrics import Metrics


def test_what_is_counted_by_outcome_is_told_from_the_start_as_0():
    """Prometheus sees no rise of a counter that begins with 1."""
    registry = Metrics().registry
    for name, label, values in (
        ("refusals", "reason", ("key", "limit", "in_flight", "rate", "streams")),
        ("jobs_ended", "outcome", ("succeeded", "failed", "cancelled")),
        ("webhook_attempts", "outcome", ("delivered", "failed")),
    ):
        for value in values:
            assert registry.get_sample_value(f"imagegen_gateway_{name}_total", {label: value}) == 0, (name, value)
    assert registry.get_sample_value("imagegen_gateway_storage_failures_total") == 0
