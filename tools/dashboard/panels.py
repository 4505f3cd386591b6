"""Panels of the dashboard: titles, queries and units. `build.py` converts them to Grafana's JSON."""

from dataclasses import dataclass
from typing import Literal

RATE = "$__rate_interval"
"""Variable of Grafana: at least four scrape intervals."""
WORKER = 'worker=~"$worker"'


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression. `legend` is in Grafana's format, with labels as `{{label}}`."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit` is an id of Grafana; `stat` panels show only the last value."""

    title: str
    text: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False
    empty: str | None = None
    """Text of a panel without data; None for Grafana's own."""


def _stat(title: str, text: str, unit: str, expr: str) -> Panel:
    return Panel(title, text, unit, (Query(expr, ""),), "stat")


def _by(label: str, metric: str, aggregate: str = "sum") -> Query:
    return Query(f"{aggregate} by ({label}) ({metric})", f"{{{{{label}}}}}")


def _quantiles(metric: str, selector: str = "", name: str = "") -> tuple[Query, ...]:
    return tuple(
        Query(
            f"histogram_quantile({quantile}, sum by (le) (rate({metric}_bucket{selector}[{RATE}])))",
            f"{name} {word}".strip(),
        )
        for quantile, word in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
    )


FLEET = (
    _stat("Workers accepting work", "", "short", 'max(imagegen_broker_workers{state="ready"})'),
    _stat("Queued requests", "At brokers.", "short", 'sum(imagegen_broker_pending_requests{state="queued"})'),
    _stat(
        "Time to drain",
        "Seconds to finish the backlog with the present workers, for the slowest model.",
        "s",
        "max(model:imagegen_drain_seconds:ratio) or vector(0)",
    ),
    _stat("Images per second", "", "short", f"sum(rate(imagegen_worker_images_total[{RATE}]))"),
    _stat(
        "Errors", "Share of all answers of the last five minutes.", "percentunit", "imagegen:errors:ratio_rate5m"
    ),
    _stat(
        "Alerts",
        "Alerts that fire now.",
        "short",
        'count(ALERTS{alertname=~"Imagegen.+",alertstate="firing"}) or vector(0)',
    ),
    Panel(
        "Answers",
        "Terminal answers per second, by outcome.",
        "reqps",
        (_by("outcome", f"rate(imagegen_broker_answers_total[{RATE}])"),),
        stacked=True,
    ),
    Panel(
        "Requests held",
        "Queued at a broker, dispatched to a worker, or delivered and not acknowledged.",
        "short",
        (_by("state", "imagegen_broker_pending_requests"),),
        stacked=True,
    ),
    Panel(
        "Backlog",
        "Device time of the unfinished requests, by model; the input of autoscaling.",
        "s",
        (_by("model", "imagegen_broker_backlog_seconds"),),
        stacked=True,
    ),
    Panel(
        "Total latency",
        "",
        "s",
        _quantiles("imagegen_broker_request_duration_seconds"),
    ),
    Panel("From arrival to dispatch", "", "s", _quantiles("imagegen_broker_queue_wait_seconds")),
    Panel(
        "Models",
        "Workers accepting work, and queued requests, by model.",
        "short",
        (
            Query("max by (model) (imagegen_broker_model_workers)", "{{model}}: workers"),
            Query("max by (model) (imagegen_broker_model_idle_workers)", "{{model}}: idle"),
            Query("sum by (model) (imagegen_broker_model_waiting_requests)", "{{model}}: waiting"),
        ),
    ),
    Panel(
        "Workers",
        "Workers by state, as seen by the broker.",
        "short",
        (_by("state", "imagegen_broker_workers", "max"),),
        stacked=True,
    ),
    Panel(
        "Dispatches",
        "Requests dispatched to workers per second, by strategy.",
        "reqps",
        (_by("strategy", f"rate(imagegen_broker_dispatches_total[{RATE}])"),),
    ),
    Panel(
        "Requeues and losses",
        "Requeued requests per second, by reason; lost workers.",
        "short",
        (
            _by("reason", f"rate(imagegen_broker_requeues_total[{RATE}])"),
            Query(f"sum(rate(imagegen_broker_workers_lost_total[{RATE}]))", "workers lost"),
            Query(f"sum(rate(imagegen_broker_workers_stuck_total[{RATE}]))", "workers stuck"),
        ),
    ),
    Panel(
        "Rejected and abandoned",
        "Requests per second.",
        "reqps",
        (
            _by("reason", f"rate(imagegen_broker_rejected_requests_total[{RATE}])"),
            Query(f"sum(rate(imagegen_broker_abandoned_requests_total[{RATE}]))", "client left"),
        ),
    ),
    Panel(
        "Fairness",
        "Clients with requests, and the maximum per client.",
        "short",
        (
            Query("sum(imagegen_broker_busy_clients)", "busy clients"),
            Query("max(imagegen_broker_largest_client_requests)", "requests of the largest"),
        ),
    ),
    Panel(
        "Limits",
        "Requests and bytes held, as shares of their limits; inequality between clients (0: none).",
        "percentunit",
        (
            Query(
                "max(sum without (state) (imagegen_broker_pending_requests) / imagegen_broker_max_requests)",
                "requests",
            ),
            Query("max(imagegen_broker_held_bytes / imagegen_broker_max_held_bytes)", "bytes"),
            Query("max(imagegen_broker_client_inequality_ratio)", "inequality"),
        ),
    ),
    Panel(
        "GPU utilization",
        "Share of the time with a running batch, by worker.",
        "percentunit",
        (_by("worker", f"rate(imagegen_worker_busy_seconds_total[{RATE}])"),),
    ),
    Panel(
        "Queue depth by worker",
        "Images of the requests at a worker, or on the way to it.",
        "short",
        (_by("worker", "imagegen_broker_worker_queue_depth", "max"),),
    ),
    Panel(
        "Messages",
        "Per second: repeated answers, unreadable messages, and messages that a peer did not accept.",
        "short",
        (
            Query(f"sum(rate(imagegen_broker_resent_answers_total[{RATE}]))", "sent again"),
            Query(f"sum(rate(imagegen_broker_malformed_messages_total[{RATE}]))", "malformed"),
            Query(f"sum(rate(imagegen_broker_dropped_messages_total[{RATE}]))", "not taken"),
        ),
    ),
)
"""The first row."""


def _gateway(title: str, text: str, unit: str, *queries: Query, stacked: bool = False) -> Panel:
    return Panel(title, text, unit, queries, stacked=stacked, empty="No gateway, or nothing was asked of it")


_REQUESTS = f'label_replace(rate(imagegen_gateway_requests_total[{RATE}]), "class", "$1", "status", "(.).*")'
_DURATION = "imagegen_gateway_request_duration_seconds"
# A stream of events lasts as long as its job.
_OTHER_PATHS = '{path!~"/v1/images/.+|.+/events"}'

GATEWAY = (
    _gateway(
        "Requests",
        "Finished HTTP requests per second, by class of status. 4xx includes disconnected callers (499).",
        "reqps",
        Query(f"sum by (class) ({_REQUESTS})", "{{class}}xx"),
        stacked=True,
    ),
    _gateway(
        "Latency of generation",
        "Calls that wait for images (/v1/images), rejected ones included.",
        "s",
        *_quantiles(_DURATION, '{path=~"/v1/images/.+"}'),
    ),
    _gateway(
        "Latency of other calls",
        "Calls for jobs, files, models and the web page, without event streams.",
        "s",
        *_quantiles(_DURATION, _OTHER_PATHS),
    ),
    _gateway(
        "In flight",
        "Unfinished HTTP requests, the scrape included.",
        "short",
        Query("sum(imagegen_gateway_requests_in_flight)", "requests"),
    ),
    _gateway(
        "Rejected",
        "Rejected requests per second, by the limit of the key.",
        "reqps",
        _by("reason", f"rate(imagegen_gateway_refusals_total[{RATE}])"),
    ),
    _gateway("Jobs held", "That have not ended.", "short", Query("sum(imagegen_gateway_jobs)", "jobs")),
    _gateway(
        "Finished jobs",
        "Finished jobs per second, by outcome.",
        "short",
        _by("outcome", f"rate(imagegen_gateway_jobs_ended_total[{RATE}])"),
        stacked=True,
    ),
    _gateway(
        "Webhooks",
        "Calls per second, by outcome; a failed call is repeated.",
        "short",
        _by("outcome", f"rate(imagegen_gateway_webhook_attempts_total[{RATE}])"),
    ),
    _gateway(
        "Storage failures",
        "Failed operations of disk, database or bucket per second.",
        "short",
        Query(f"sum(rate(imagegen_gateway_storage_failures_total[{RATE}]))", "failures"),
    ),
)
"""The row of the HTTP gateway, which not every fleet has."""


def _worker(metric: str, more: str = "") -> str:
    return f"imagegen_worker_{metric}{{{WORKER}{more}}}"


def _rate(metric: str, more: str = "") -> str:
    return f"rate({_worker(metric, more)}[{RATE}])"


GPU = (
    Panel(
        "Busy",
        "Utilization measured by the worker (text encoders and decoders separately), and by the driver.",
        "percentunit",
        (
            Query(f"sum({_rate('busy_seconds_total')})", "busy"),
            Query(f"sum({_rate('beside_seconds_total')})", "beside"),
            Query(f"max({_worker('gpu_utilization_ratio')})", "utilisation"),
        ),
    ),
    Panel("Queue depth", "Images, by state.", "short", (_by("state", _worker("queue_depth")),), stacked=True),
    Panel(
        "Models",
        "Loaded models, and loads on request per second, by outcome.",
        "short",
        (Query(f"sum({_worker('warm_models')})", "loaded"), _by("outcome", _rate("model_loads_total"))),
    ),
    Panel(
        "Generated",
        "Images, steps of images and megapixels per second.",
        "short",
        (
            Query(f"sum({_rate('images_total')})", "images"),
            Query(f"sum({_rate('image_steps_total')})", "steps of images"),
            Query(f"sum({_rate('pixels_total')}) / 1e6", "megapixels"),
        ),
    ),
    Panel(
        "Rows per call",
        "Batch dimension of successful calls.",
        "short",
        (
            Query(f"sum({_rate('rows_per_call_sum')}) / sum({_rate('rows_per_call_count')})", "mean"),
            *_quantiles("imagegen_worker_rows_per_call", f"{{{WORKER}}}")[1:2],
        ),
    ),
    Panel(
        "Time by phase",
        "Medians of queueing, time to the first step, generation and encoding.",
        "s",
        tuple(
            _quantiles(f"imagegen_worker_{metric}", f"{{{WORKER}}}", name)[0]
            for metric, name in (
                ("queue_wait_seconds", "queue"),
                ("first_step_wait_seconds", "first step"),
                ("generation_seconds", "generation"),
                ("encode_seconds", "encoding"),
            )
        ),
    ),
    Panel(
        "Cost predictions",
        "Mean relative error of predicted device time, by model.",
        "percentunit",
        (_by("model", _worker("prediction_error_ratio")),),
    ),
    Panel("One denoising step", "", "s", _quantiles("imagegen_worker_step_seconds", f"{{{WORKER}}}")),
    Panel("Calls", "Finished jobs per second, by outcome.", "short", (_by("outcome", _rate("calls_total")),)),
    Panel(
        "Answers",
        "Finished jobs per second, by outcome.",
        "reqps",
        (_by("outcome", _rate("requests_total")),),
        stacked=True,
    ),
    Panel(
        "Fallbacks",
        "Calls without a batch per second, by reason.",
        "short",
        (_by("reason", _rate("fallbacks_total")),),
    ),
    Panel(
        "Unacknowledged answers",
        "Size of the answers that wait for acknowledgement.",
        "bytes",
        (Query(f"sum({_worker('unreleased_bytes')})", "bytes"),),
    ),
    Panel(
        "Memory",
        "Memory of the GPU in use by all processes.",
        "bytes",
        (
            Query(f"max({_worker('gpu_memory_used_bytes')})", "used"),
            Query(f"max({_worker('gpu_memory_total_bytes')})", "there is"),
        ),
    ),
    Panel("Temperature", "", "celsius", (Query(f"max({_worker('gpu_temperature_celsius')})", "chip"),)),
    Panel("Power", "", "watt", (Query(f"max({_worker('gpu_power_watts')})", "card"),)),
    Panel("Clocks", "", "hertz", (_by("clock", _worker("gpu_clock_hertz"), "max"),)),
    Panel(
        "Throttling",
        "1 if the clocks are throttled for this reason.",
        "short",
        (_by("reason", _worker("gpu_throttled"), "max"),),
    ),
    Panel(
        "Step age",
        "Seconds since the last step of the running batch; it grows when the device hangs.",
        "s",
        (Query(f"max({_worker('step_age_seconds')})", "step"),),
    ),
)
"""The row that is repeated for each worker, which is to say for each GPU."""
