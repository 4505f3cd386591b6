"""The gateway's metrics before the first request."""

from imagegen_gateway.metrics import Metrics


def test_labelled_counters_start_at_0():
    """Prometheus' rate() ignores the first value of a counter."""
    registry = Metrics().registry
    for name, label, values in (
        ("refusals", "reason", ("key", "limit", "in_flight", "rate", "streams")),
        ("jobs_ended", "outcome", ("succeeded", "failed", "cancelled")),
        ("webhook_attempts", "outcome", ("delivered", "failed")),
    ):
        for value in values:
            assert registry.get_sample_value(f"imagegen_gateway_{name}_total", {label: value}) == 0, (name, value)
    assert registry.get_sample_value("imagegen_gateway_storage_failures_total") == 0
