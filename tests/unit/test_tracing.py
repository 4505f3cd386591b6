"""Spans: what client, broker and worker make of a traced request."""

import subprocess
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider

import imagegen_broker.cli
import imagegen_client.tracing
import imagegen_worker.cli
from imagegen_broker.core.records import State
from imagegen_broker.tracing import Traces as BrokerTraces
from imagegen_common.tracing import Tracer, TracingError, check_otlp_endpoint, open_tracer
from imagegen_protocol import OutOfMemoryError, ProtocolError, decode_from_client, encode
from imagegen_protocol.messages import Goodbye, Release, Submit, Work
from imagegen_worker.core.events import CallDone, Failed, Finished, Started, Stepped
from imagegen_worker.telemetry.tracing import RequestTraces as WorkerTraces
from tests.unit.broker.bench import Bench, rid

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
ID = b"i" * 16


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


def spans(exporter):
    """Names, seconds and attributes of the spans in order; all must be children of the client's."""
    told = []
    for span in exporter.get_finished_spans():
        assert f"{span.context.trace_id:032x}" == TRACE
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == PARENT[36:52]
        attributes = {name.removeprefix("imagegen."): value for name, value in span.attributes.items()}
        told.append((span.name, round((span.end_time - span.start_time) / 1e9, 3), attributes))
    exporter.clear()
    return told


# ---- the wire ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", "00", PARENT.upper(), f"{PARENT}\n", PARENT.replace("00-", "01-", 1)])
def test_a_wrong_traceparent_is_refused(wrong):
    with pytest.raises(ProtocolError, match="traceparent"):
        decode_from_client(encode(Submit(request_id=ID, traceparent=wrong)))


# ---- broker -----------------------------------------------------------------------------------------------


def follow(bench, traces):
    for change in bench.state_changes:
        traces.state_changed(change, bench.now)
    bench.state_changes.clear()


def test_the_broker_tells_queue_and_dispatch_of_each_attempt(exporter, provider):
    bench, traces = Bench(traces=True), BrokerTraces(Tracer(provider))
    bench.submit(1, traceparent=PARENT)
    bench.settle()
    follow(bench, traces)
    bench.advance(3.0)
    bench.ready("a")
    bench.settle()
    follow(bench, traces)
    (work,) = [message for *_, message, _ in bench.sent if isinstance(message, Work)]
    assert work.traceparent == PARENT
    ((name, seconds, about),) = spans(exporter)
    assert (name, about) == ("queue", {"request_id": rid(1).hex(), "attempt": 1, "then": "dispatched"})
    assert seconds == pytest.approx(3.0)
    bench.worker("a", Goodbye())
    follow(bench, traces)
    bench.ready("b")
    follow(bench, traces)
    bench.result("b", rid(1))
    follow(bench, traces)
    told = [(name, about["attempt"], about.get("worker"), about["then"]) for name, _, about in spans(exporter)]
    assert told == [
        ("dispatch", 1, "a", "queued"),
        ("queue", 2, None, "dispatched"),
        ("dispatch", 2, "b", "delivered"),
    ]


def test_the_core_tells_nothing_unasked():
    for settings, traceparent in (({}, PARENT), ({"traces": True}, None)):
        bench = Bench(**settings)
        bench.submit(1, traceparent=traceparent)
        bench.settle()
        assert bench.state_changes == []


def test_what_the_broker_keeps_goes_with_the_request(provider):
    bench, traces = Bench(traces=True), BrokerTraces(Tracer(provider))
    bench.submit(1, traceparent=PARENT)
    bench.settle()
    follow(bench, traces)
    assert traces.followed == 1
    bench.advance(60.0)  # the client is silent, and dies
    assert bench.state_changes[-1].new is State.GONE
    follow(bench, traces)
    assert traces.followed == 0


# ---- worker -----------------------------------------------------------------------------------------------


def work(traces, now, **fields):
    traces.on_message(Work(request_id=ID, traceparent=PARENT, **fields), now)


def call(rows, *numbers):
    return CallDone(
        requests=1, images=0, steps=1, seconds=0.5, seconds_per_image=None, rows=rows, numbers=numbers or (1,)
    )


def finished():
    return Finished(
        number=1, images=(b"xxx",), infos=(), batch_size=1, queue_seconds=0.0, generation_seconds=4.0,
        encode_seconds=0.5,
    )  # fmt: skip


@pytest.fixture
def traces(provider):
    return WorkerTraces(Tracer(provider))


def find(number):
    return {1: ID}.get(number)


def test_the_worker_tells_each_stage(traces, exporter):
    work(traces, 10.0, attempt=2)
    for event, now in (
        (call(9, 7), 11.0),  # of others, before it began
        (Started((1, 7)), 12.0),
        (call(2), 13.0), (Stepped((1,), 1, 2), 13.0),
        (call(4), 15.0), (Stepped((1,), 2, 2), 15.0),
        (finished(), 18.0),
    ):  # fmt: skip
        traces.on_event(event, find, now)
    traces.on_message(Release(request_ids=[b"o" * 16, ID]), 19.0)
    told = spans(exporter)
    assert [(name, seconds) for name, seconds, _ in told] == [
        ("wait", 2.0), ("forward_group", 0.5), ("forwards", 3.0), ("decode", 1.0), ("encode", 0.5),
        ("forward_group", 0.5), ("delivery", 1.0),
    ]  # fmt: skip
    about = {name: attributes for name, _, attributes in told}
    key = {"request_id": ID.hex(), "attempt": 2}
    assert about["forwards"] == {**key, "steps": 2, "batch_size": 1, "rows": 3.0, "most_rows": 4}
    assert about["encode"] == {**key, "bytes": 3}


def test_each_group_of_forwards_has_the_rows_that_it_had(traces, exporter):
    work(traces, 10.0)
    for event, now in (
        (Started((1,)), 10.0),
        (call(2, 1), 11.0), (call(2, 1), 12.0),
        (call(8, 5), 12.5),  # of another model: not this one's
        (call(4, 1, 5), 13.0), (call(4, 5, 1), 14.0), (call(4, 1, 5), 15.0),
        (finished(), 15.5),
        (call(2, 1), 16.0),  # on the device it was over before
        (call(6, 5), 17.0),
    ):  # fmt: skip
        traces.on_event(event, find, now)
    traces.on_message(Release(request_ids=[ID]), 19.0)
    told = [(seconds, about) for name, seconds, about in spans(exporter) if name == "forward_group"]
    assert [(seconds, about["rows"], about["forwards"]) for seconds, about in told] == [
        (1.5, 2, 2), (2.5, 4, 3), (0.5, 2, 1),
    ]  # fmt: skip
    traces.on_event(call(2, 1), find, 20.0)
    assert spans(exporter) == []


def test_an_error_ends_what_was_going_on(traces, exporter):
    work(traces, 10.0)
    traces.on_event(Started((1,)), find, 11.0)
    traces.on_event(Failed(1, "out_of_memory", "too large"), find, 12.0)
    assert [(name, about.get("error")) for name, _, about in spans(exporter)] == [
        ("wait", None), ("forwards", "out_of_memory"),
    ]  # fmt: skip


def test_rows_are_not_told_where_none_are_known(traces, exporter):
    work(traces, 10.0)
    for event in (Started((1,)), Stepped((1,), 1, 1), finished()):
        traces.on_event(event, find, 11.0)
    (about,) = [about for name, _, about in spans(exporter) if name == "forwards"]
    assert about == {"request_id": ID.hex(), "attempt": 1, "steps": 1, "batch_size": 1}


def test_a_release_ends_what_was_going_on(traces, exporter):
    work(traces, 10.0)
    traces.on_message(Release(request_ids=[ID]), 12.0)
    ((name, seconds, about),) = spans(exporter)
    assert (name, seconds, about["released"]) == ("wait", 2.0, True)


def test_untraced_requests_are_not_followed(traces, exporter):
    traces.on_message(Work(request_id=ID), 1.0)
    traces.on_event(Started((1,)), find, 2.0)
    assert spans(exporter) == []


def test_what_the_worker_keeps_is_bounded(traces, monkeypatch):
    monkeypatch.setattr("imagegen_worker.telemetry.tracing._MAX_REQUESTS", 3)
    for number in range(9):
        traces.on_message(Work(request_id=rid(number), traceparent=PARENT), 1.0)
    assert traces.active == 3


# ---- client -----------------------------------------------------------------------------------------------


def test_the_client_tells_the_whole_request(exporter, provider):
    tracer = imagegen_client.tracing.RequestTracer(provider)
    future = Future()
    submit, span = tracer.start(Submit(request_id=ID))
    imagegen_client.tracing.end_with(future, span)
    decode_from_client(encode(submit))
    assert exporter.get_finished_spans() == ()
    future.set_result(SimpleNamespace(worker="a"))
    (told,) = exporter.get_finished_spans()
    assert (
        submit.traceparent
        == f"00-{told.context.trace_id:032x}-{told.context.span_id:016x}-{told.context.trace_flags:02x}"
    )
    assert told.attributes["imagegen.worker"] == "a"


def test_the_clients_span_has_the_error(exporter, provider):
    future = Future()
    _, span = imagegen_client.tracing.RequestTracer(provider).start(Submit(request_id=ID))
    imagegen_client.tracing.end_with(future, span)
    future.set_exception(OutOfMemoryError("too large"))
    (told,) = exporter.get_finished_spans()
    assert told.attributes["imagegen.error"] == "out_of_memory"
    assert [event.name for event in told.events] == ["exception"]


def test_a_provider_that_records_nothing_sends_nothing():
    submit, _ = imagegen_client.tracing.RequestTracer(NoOpTracerProvider()).start(Submit(request_id=ID))
    assert submit.traceparent is None


# ---- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://a:4318", "http://a:4318/", "http://a:4318/v1/traces"])
def test_where_spans_are_posted(url):
    assert check_otlp_endpoint(url) == "http://a:4318/v1/traces"


@pytest.mark.parametrize("url", ["", "a:4318", "grpc://a:4317", "http://", "http://a:x"])
def test_a_wrong_endpoint_is_refused(url):
    with pytest.raises(TracingError, match="must look like http"):
        check_otlp_endpoint(url)
    for main in (imagegen_broker.cli.main, imagegen_worker.cli.main):
        done = CliRunner().invoke(main, ["--otlp-endpoint", url, "--check-config"])
        assert done.exit_code == 2
        assert "--otlp-endpoint must look like" in done.output


def test_without_the_libraries_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingError, match=r"install imagegen-fleet\[otel\]"):
        open_tracer("http://127.0.0.1:4318", "imagegen-broker")


def test_nothing_is_imported_where_nothing_is_traced():
    modules = "imagegen_client, imagegen_broker.cli, imagegen_worker.cli, imagegen_worker.daemon"
    code = f"import sys, {modules}; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
