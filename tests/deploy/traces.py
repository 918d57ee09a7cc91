"""An independent OTLP receiver: OpenTelemetry's published messages, Google's protobuf and gRPC.

    traces.py ADDRESS TRACE CALLER

Receives spans until TRACE is complete, or for a minute, and checks that they form one tree below
CALLER: from the player's request at an edge, through its requests to the origin and the
coordinator, to the coordinator's statements.
"""

import concurrent.futures
import sys
import threading
import time

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

address, trace, caller = sys.argv[1:4]
spans, lock, problems = {}, threading.Lock(), []
WANTED = {
    ("cache-edge", "request"),
    ("cache-edge", "ask"),
    ("cache-coordinator", "grpc"),
    ("cache-coordinator", "database"),
}


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        with lock:
            for of in request.resource_spans:
                named = {it.key: it.value.string_value for it in of.resource.attributes}
                for scope in of.scope_spans:
                    for span in scope.spans:
                        spans[span.span_id.hex()] = (named, span)
        return trace_service_pb2.ExportTraceServiceResponse()


def of_trace():
    with lock:
        return {id: found for id, found in spans.items() if found[1].trace_id.hex() == trace}


server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Receiver(), server)
assert server.add_insecure_port(address), f"{address} can not be listened on"
server.start()
print("listening", flush=True)
until = time.monotonic() + 60
while time.monotonic() < until:
    found = of_trace()
    if WANTED <= {(named.get("service.name"), span.name) for named, span in found.values()}:
        break
    time.sleep(0.05)
found = of_trace()
server.stop(None)


def wrong(id, what):
    named, span = found[id]
    problems.append(f"{named.get('service.name')} {span.name} {id}: {what}")


for id, (named, span) in found.items():
    parent = span.parent_span_id.hex()
    if len(span.trace_id) != 16 or len(span.span_id) != 8 or not any(span.span_id):
        wrong(id, "an id is none")
    if not 0 < span.start_time_unix_nano <= span.end_time_unix_nano:
        wrong(id, "ends before it began")
    if abs(span.start_time_unix_nano / 1e9 - time.time()) > 600:
        wrong(id, "is not of now")
    if not named.get("service.name") or not named.get("service.version"):
        wrong(id, f"its resource is {named}")
    if parent not in found and parent != caller:
        # Spans of one process arrive together; those of another process may arrive later.
        wrong(id, f"has no parent: {parent or 'none'}")


def chain(id):
    """The spans from this one up to the caller."""
    names = []
    while id in found:
        named, span = found[id]
        names.append(f"{named['service.name']} {span.name}")
        id = span.parent_span_id.hex()
    return names if id == caller else None


chains = {tuple(chain(id) or ()) for id in found}
for wanted in (
    ("cache-edge ask", "cache-edge request"),
    ("cache-coordinator database", "cache-coordinator grpc", "cache-edge request"),
):
    if wanted not in chains:
        problems.append(f"no {' < '.join(wanted)} below the caller")
print("\n".join(problems) or f"{len(found)} spans of one trace, of {len(spans)} received")
sys.exit(bool(problems))
