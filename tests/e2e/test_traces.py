"""Traces across client, broker and worker, as a collector receives them."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from imagegen_client import Client
from tests.e2e.conftest import PATIENT, SIMULATED, command


class Collector:
    """Receives spans over OTLP/HTTP and stores them by service."""

    def __init__(self):
        self.spans = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in request.resource_spans:
                    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
                    received = [span for scope in resource.scope_spans for span in scope.spans]
                    collector.spans.setdefault(attributes["service.name"], []).extend(received)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


def test_a_trace_from_end_to_end(fleet, collector):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    fleet.start_broker(*PATIENT, "--otlp-endpoint", collector.url)
    with Client(fleet.frontend, tracer_provider=provider) as client, Client(fleet.frontend) as untraced:
        fleet.start_worker("a", "--gpu", "0", *SIMULATED, "--otlp-endpoint", collector.url)
        fleet.wait_for_workers(client, 1)
        client.generate("a red circle", seed=1)
        untraced.generate("a red circle", seed=2)
    provider.shutdown()
    assert fleet.terminate("a") == 0
    assert fleet.terminate("broker") == 0
    (root,) = exporter.get_finished_spans()
    names = {service: [span.name for span in spans] for service, spans in collector.spans.items()}
    assert names["imagegen-broker"] == ["queue", "dispatch"]
    assert names["imagegen-worker"] == ["wait", "forward_group", "forwards", "decode", "encode", "delivery"] or (
        names["imagegen-worker"] == ["wait", "forwards", "decode", "encode", "forward_group", "delivery"]
    )
    for span in (span for spans in collector.spans.values() for span in spans):
        assert span.trace_id == root.context.trace_id.to_bytes(16, "big")
        assert span.parent_span_id == root.context.span_id.to_bytes(8, "big")
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        # Wall-clock times: they differ from the client's by less than the duration of the test.
        assert abs(span.start_time_unix_nano - root.start_time) < 180e9
    (forwards,) = [span for span in collector.spans["imagegen-worker"] if span.name == "forwards"]
    attributes = {each.key: each.value for each in forwards.attributes}
    assert attributes["imagegen.steps"].int_value > 0
    assert attributes["imagegen.batch_size"].int_value == 1


def test_the_command_line_exports_its_spans(fleet, collector, tmp_path):
    fleet.start_broker(*PATIENT, "--otlp-endpoint", collector.url)
    with Client(fleet.frontend) as client:
        fleet.start_worker("a", "--gpu", "0", *SIMULATED)
        fleet.wait_for_workers(client, 1)
    words = ("imagegen", "generate", "a red circle", "--broker", fleet.frontend, "--otlp-endpoint")
    command(*words, collector.url, cwd=tmp_path)
    assert fleet.terminate("broker") == 0
    (root,) = collector.spans["imagegen-client"]
    assert root.name == "request"
    assert {span.parent_span_id for span in collector.spans["imagegen-broker"]} == {root.span_id}
    rejected = command(*words, "nowhere:4318", cwd=tmp_path, check=False)
    assert (rejected.returncode, "must look like http" in rejected.stderr) == (2, True)


def test_an_unreachable_collector_delays_no_request(fleet):
    provider = TracerProvider()
    nowhere = ("--otlp-endpoint", "http://127.0.0.1:9")
    fleet.start_broker(*PATIENT, *nowhere)
    with Client(fleet.frontend, tracer_provider=provider) as client:
        fleet.start_worker("a", "--gpu", "0", *SIMULATED, *nowhere)
        fleet.wait_for_workers(client, 1)
        assert client.generate("a red circle", seed=1).worker == "a"
    provider.shutdown()
    assert fleet.terminate("a") == 0
    assert fleet.terminate("broker") == 0
