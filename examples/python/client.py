#!/usr/bin/env python3
"""How another service uses the cache: checks health, opens an object, prefetches it, watches until
it is cached, and reads errors.

examples/python/run ENDPOINT SOURCE/PATH     (ENDPOINT as host:port)
"""

import sys

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from chunkcache.v1 import cache_service_pb2 as api
from chunkcache.v1 import cache_service_pb2_grpc, types_pb2

DEADLINE_S = 30


def bad_fields(error):
    """The fields a request was refused for."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            yield from (violation.field for violation in bad.field_violations)


def main(endpoint, name):
    source, _, path = name.partition("/")
    entry = api.EntryName(source_path=api.SourcePath(source=source, path=path))
    with grpc.insecure_channel(endpoint) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=DEADLINE_S
        )
        print("health", health_pb2.HealthCheckResponse.ServingStatus.Name(health.status))
        print("services", *sorted(ProtoReflectionDescriptorDatabase(channel).get_services()))

        cache = cache_service_pb2_grpc.CacheServiceStub(channel)
        opened = cache.OpenEntry(api.OpenEntryRequest(entry=entry), timeout=DEADLINE_S)
        print("play", opened.play_url)

        # The watch starts before the request, so that nothing in between is missed.
        watch = cache.WatchEntry(api.WatchEntryRequest(entry=entry), timeout=DEADLINE_S)
        snapshot = next(watch).snapshot
        stored = sum(held.bytes for held in snapshot.edges)
        cache.RequestRange(
            api.RequestRangeRequest(entry=entry, priority=types_pb2.PRIORITY_MEDIUM),
            timeout=DEADLINE_S,
        )
        while stored < opened.entry.size:
            event = next(watch)
            if event.WhichOneof("event") == "stored":
                stored += sum(part.end - part.start for part in event.stored.ranges)
        watch.cancel()
        whole = types_pb2.ByteRange(start=0, end=opened.entry.size)
        here = cache.HasByteRange(
            api.HasByteRangeRequest(entry=entry, range=whole), timeout=DEADLINE_S
        )
        print("present", here.present, opened.entry.size, "bytes")

        try:
            cache.OpenEntry(api.OpenEntryRequest(), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            print("refused", error.code().name, *bad_fields(error))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
