"""What the dashboard shows: titles, queries, units. `build.py` makes Grafana's JSON of it."""

from dataclasses import dataclass
from typing import Literal

RATE = "$__rate_interval"
"""Grafana's own variable: at least four scrapes."""
WORKER = 'worker=~"$worker"'


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression; `legend` in Grafana's form, with labels as `{{label}}`."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit` is one of Grafana's ids; `stat` panels show the last value only."""

    title: str
    text: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False
    empty: str | None = None
    """What the panel says where there is no data, in place of Grafana's own words."""


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
    _stat("Workers that take work", "", "short", 'max(imagegen_broker_workers{state="ready"})'),
    _stat("Requests that wait", "At brokers.", "short", 'sum(imagegen_broker_pending_requests{state="queued"})'),
    _stat(
        "Until all is done",
        "For the model that takes longest, with the workers there are.",
        "s",
        "max(model:imagegen_drain_seconds:ratio) or vector(0)",
    ),
    _stat("Images a second", "", "short", f"sum(rate(imagegen_worker_images_total[{RATE}]))"),
    _stat("Errors", "Of all answers of five minutes.", "percentunit", "imagegen:errors:ratio_rate5m"),
    _stat(
        "Alerts",
        "That fire now.",
        "short",
        'count(ALERTS{alertname=~"Imagegen.+",alertstate="firing"}) or vector(0)',
    ),
    Panel(
        "Answers",
        "Terminal answers a second, by outcome.",
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
        "Device time that unfinished requests will take, by model: what autoscaling goes by.",
        "s",
        (_by("model", "imagegen_broker_backlog_seconds"),),
        stacked=True,
    ),
    Panel(
        "From arrival to the answer",
        "",
        "s",
        _quantiles("imagegen_broker_request_duration_seconds"),
    ),
    Panel("From arrival to dispatch", "", "s", _quantiles("imagegen_broker_queue_wait_seconds")),
    Panel(
        "Models",
        "Workers that take work, and requests that wait, by model.",
        "short",
        (
            Query("max by (model) (imagegen_broker_model_workers)", "{{model}}: workers"),
            Query("max by (model) (imagegen_broker_model_idle_workers)", "{{model}}: idle"),
            Query("sum by (model) (imagegen_broker_model_waiting_requests)", "{{model}}: waiting"),
        ),
    ),
    Panel(
        "Workers",
        "As the broker sees them.",
        "short",
        (_by("state", "imagegen_broker_workers", "max"),),
        stacked=True,
    ),
    Panel(
        "Dispatches",
        "Requests given to workers a second, by strategy.",
        "reqps",
        (_by("strategy", f"rate(imagegen_broker_dispatches_total[{RATE}])"),),
    ),
    Panel(
        "Requeues and losses",
        "Requests that went back to the queue a second, by reason; workers lost.",
        "short",
        (
            _by("reason", f"rate(imagegen_broker_requeues_total[{RATE}])"),
            Query(f"sum(rate(imagegen_broker_workers_lost_total[{RATE}]))", "workers lost"),
            Query(f"sum(rate(imagegen_broker_workers_stuck_total[{RATE}]))", "workers stuck"),
        ),
    ),
    Panel(
        "Refused and given up",
        "Requests a second.",
        "reqps",
        (
            _by("reason", f"rate(imagegen_broker_rejected_requests_total[{RATE}])"),
            Query(f"sum(rate(imagegen_broker_abandoned_requests_total[{RATE}]))", "client left"),
        ),
    ),
    Panel(
        "Fairness",
        "Clients with requests, and how many the one with most has.",
        "short",
        (
            Query("sum(imagegen_broker_busy_clients)", "busy clients"),
            Query("max(imagegen_broker_largest_client_requests)", "requests of the largest"),
        ),
    ),
    Panel(
        "Full to",
        "Requests and bytes held, of what may be; inequality between clients (0: all have as many).",
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
        "GPUs busy",
        "Part of the time, by worker.",
        "percentunit",
        (_by("worker", f"rate(imagegen_worker_busy_seconds_total[{RATE}])"),),
    ),
    Panel(
        "Queue depth by worker",
        "Images of the requests that the worker lists, or that are on the way to it.",
        "short",
        (_by("worker", "imagegen_broker_worker_queue_depth", "max"),),
    ),
    Panel(
        "Messages",
        "A second: answers sent again, messages that did not decode or that a peer did not take.",
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
        "HTTP requests that ended a second, by class of status. Those whose caller hung up (499) are 4xx.",
        "reqps",
        Query(f"sum by (class) ({_REQUESTS})", "{{class}}xx"),
        stacked=True,
    ),
    _gateway(
        "From the request to its images",
        "Of calls that wait for them (/v1/images), refused ones among them.",
        "s",
        *_quantiles(_DURATION, '{path=~"/v1/images/.+"}'),
    ),
    _gateway(
        "All other calls",
        "Jobs taken in and looked at, files, models, the page. Without streams of events.",
        "s",
        *_quantiles(_DURATION, _OTHER_PATHS),
    ),
    _gateway(
        "In flight",
        "HTTP requests that have not ended, the one that asks for this among them.",
        "short",
        Query("sum(imagegen_gateway_requests_in_flight)", "requests"),
    ),
    _gateway(
        "Refused",
        "A second, by what the key is not allowed.",
        "reqps",
        _by("reason", f"rate(imagegen_gateway_refusals_total[{RATE}])"),
    ),
    _gateway("Jobs held", "That have not ended.", "short", Query("sum(imagegen_gateway_jobs)", "jobs")),
    _gateway(
        "Jobs that ended",
        "A second, by outcome.",
        "short",
        _by("outcome", f"rate(imagegen_gateway_jobs_ended_total[{RATE}])"),
        stacked=True,
    ),
    _gateway(
        "Webhooks",
        "Calls a second, by outcome; one that failed is called again.",
        "short",
        _by("outcome", f"rate(imagegen_gateway_webhook_attempts_total[{RATE}])"),
    ),
    _gateway(
        "Storage that failed",
        "Times a second that disk, database or bucket did not take or give something.",
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
        "By the worker's clock (the part beside: text encoders and decoders), and as the driver sees it.",
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
        "Loaded; loads a second because a model was asked for, by outcome.",
        "short",
        (Query(f"sum({_worker('warm_models')})", "loaded"), _by("outcome", _rate("model_loads_total"))),
    ),
    Panel(
        "Made",
        "A second.",
        "short",
        (
            Query(f"sum({_rate('images_total')})", "images"),
            Query(f"sum({_rate('image_steps_total')})", "steps of images"),
            Query(f"sum({_rate('pixels_total')}) / 1e6", "megapixels"),
        ),
    ),
    Panel(
        "Rows in a call",
        "Batch dimension of good calls.",
        "short",
        (
            Query(f"sum({_rate('rows_per_call_sum')}) / sum({_rate('rows_per_call_count')})", "mean"),
            *_quantiles("imagegen_worker_rows_per_call", f"{{{WORKER}}}")[1:2],
        ),
    ),
    Panel(
        "Where the time goes",
        "Medians: waiting for the batch, for the first step, generating, encoding.",
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
    Panel("One denoising step", "", "s", _quantiles("imagegen_worker_step_seconds", f"{{{WORKER}}}")),
    Panel("Calls", "A second, by outcome.", "short", (_by("outcome", _rate("calls_total")),)),
    Panel("Answers", "A second, by outcome.", "reqps", (_by("outcome", _rate("requests_total")),), stacked=True),
    Panel(
        "Fallbacks",
        "Calls that went alone a second, by reason.",
        "short",
        (_by("reason", _rate("fallbacks_total")),),
    ),
    Panel(
        "Answers kept",
        "Until clients have acknowledged them.",
        "bytes",
        (Query(f"sum({_worker('unreleased_bytes')})", "bytes"),),
    ),
    Panel(
        "Memory",
        "Of the card, in use by anybody.",
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
        "Held back",
        "1 where the clocks are held back for this.",
        "short",
        (_by("reason", _worker("gpu_throttled"), "max"),),
    ),
    Panel(
        "Age of the step",
        "Since the last step of the running batch; a hang shows here.",
        "s",
        (Query(f"max({_worker('step_age_seconds')})", "step"),),
    ),
)
"""The row that is repeated for each worker, which is to say for each GPU."""
