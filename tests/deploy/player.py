"""Reads random ranges of one file from several edges, as players do, until SIGTERM.

If an edge refuses or cuts a request, the next edge continues it from the byte it had reached. It
fails only if no edge sends the rest. Every byte is compared with the file. Bounds: about twenty
requests per second in total, one round of the edges per request, ten seconds per request.

    player.py FILE PHASE_FILE URL=NAME...      ($CA_FILE: the authority of https URLs)

PHASE_FILE names the instance that is being rolled. Results are grouped by it, and trouble at an
edge that is not being rolled is counted separately. Prints one JSON object per phase.
"""

import collections
import http.client
import json
import os
import random
import signal
import ssl
import sys
import threading
import time
import urllib.parse

PLAYERS = 4
PAUSE_S = 0.2
TIMEOUT_S = 10
LARGEST = 4 << 20

path, phase_path = sys.argv[1:3]
edges = [tuple(argument.rsplit("=", 1)) for argument in sys.argv[3:]]
content = open(path, "rb").read()
trust = ssl.create_default_context(cafile=os.environ.get("CA_FILE"))
stop = threading.Event()
lock = threading.Lock()
phases = collections.OrderedDict()


def count(phase, what, by=1):
    with lock:
        phases.setdefault(phase, collections.Counter())[what] += by


def phase_now():
    with open(phase_path) as file:
        return file.read().strip()


def read(url, first, last):
    """The bytes that arrived, and the error if some are missing."""
    place = urllib.parse.urlsplit(url)
    if place.scheme == "https":
        connection = http.client.HTTPSConnection(
            place.hostname, place.port, timeout=TIMEOUT_S, context=trust
        )
    else:
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=TIMEOUT_S)
    body = b""
    try:
        connection.request("GET", place.path, headers={"Range": f"bytes={first}-{last}"})
        response = connection.getresponse()
        if response.status != 206:
            return b"", f"status {response.status}"
        while piece := response.read(256 << 10):
            body += piece
    except (OSError, http.client.HTTPException) as error:
        # The bytes of an IncompleteRead are dropped and requested again.
        return body, type(error).__name__
    finally:
        connection.close()
    return body, None if len(body) == last - first + 1 else "short body"


def request(random_source):
    first = random_source.randrange(len(content) - 1)
    last = min(len(content) - 1, first + random_source.randrange(1, LARGEST))
    order = random_source.sample(edges, len(edges))
    phase = phase_now()
    at = first
    began = time.monotonic()
    for url, name in order:
        body, problem = read(url, at, last)
        if body != content[at : at + len(body)]:
            count(phase, "wrong_bytes")
            return
        at += len(body)
        count(phase, "bytes", len(body))
        if problem is None:
            count(phase, "requests")
            slowest = round(1000 * (time.monotonic() - began))
            with lock:
                phases[phase]["slowest_ms"] = max(phases[phase]["slowest_ms"], slowest)
            return
        count(phase, "resumed")
        # The phase may have changed during the request, so either name is expected.
        if name not in (phase, phase_now()):
            count(phase, "trouble_elsewhere")
            print(
                f"{name} while {phase} was rolled: {problem} at {at}, wanted {last}",
                file=sys.stderr,
            )
    count(phase, "failed")


def player(seed):
    random_source = random.Random(seed)
    while not stop.is_set():
        request(random_source)
        stop.wait(PAUSE_S)


signal.signal(signal.SIGTERM, lambda *_: stop.set())
threads = [threading.Thread(target=player, args=(seed,)) for seed in range(PLAYERS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
keys = ("requests", "resumed", "trouble_elsewhere", "failed", "wrong_bytes", "bytes", "slowest_ms")
for phase, counts in phases.items():
    print(json.dumps({"phase": phase, **{key: counts[key] for key in keys}}))
