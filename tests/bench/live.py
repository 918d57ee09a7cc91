"""A live ladder of six renditions: 1,000 viewers like hls.js, at each contestant in turn.

The origin makes the ladder by the clock, without validators or lengths, and counts its requests
(`tests/src/live`): those for what became available while viewers watched, without the first and the
last two seconds.
"""

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import peers

VIEWERS = 1000
#: The same viewers at the origin itself, without a cache: what they, the machine and the load tool
#: take. And one viewer of each rendition, for whom the machine is idle.
FEW = 6
KINDS = {"ll": "parts of 500 ms", "plain": "segments of 2 s"}
#: The aims of the page.
MOST_REQUESTS, MOST_LATENCY_MS = 1.005, 10.0


class LiveOrigin(peers.Server):
    name = "the origin itself"

    def start(self):
        command = [peers.ChunkCache.binaries / "chunkcache-live", f"--listen=127.0.0.1:{self.port}"]
        peers.wait_for_port(self.port, self.launch(*command))
        return self


class NginxLive(peers.NginxProxyCache):
    name = "nginx proxy_cache"
    what = (
        "proxy_cache, cache lock on (time-outs 15 s), use_stale updating, lifetimes of the origin"
    )

    def server_block(self):
        return """
location / {
  proxy_cache bench; proxy_cache_key $uri$is_args$args;
  proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_cache_lock on; proxy_cache_lock_timeout 15s; proxy_cache_lock_age 15s;
  proxy_cache_use_stale updating; proxy_pass http://origin;
}"""


class VarnishLive(peers.Varnish):
    name = "varnish"
    what = "malloc storage, lifetimes of the origin"
    vcl_lines = ""


class ChunkCachePair(peers.ChunkCache):
    """Two edges; the viewers go to them in turn, six by six."""

    name = "chunk cache, two edges"
    what = "two cache-edge, cache-coordinator and PostgreSQL with their defaults"

    def start(self):
        super().start()
        self.second = peers.free_port()
        second = self.launch(
            self.binaries / "cache-edge",
            "serve",
            "--name",
            "second",
            "--coordinator",
            self.endpoint,
            "--data-dir",
            self.folder / "data-2",
            "--listen",
            f"127.0.0.1:{self.second}",
            "--admin-listen",
            f"127.0.0.1:{peers.free_port()}",
        )
        peers.wait_for_port(self.second, second)
        # Both know the source, and are in session.
        deadline = time.monotonic() + 30
        while True:
            listed = self.cli("edge", "list", "--output", "json")
            edges = json.loads(listed.stdout) if listed.returncode == 0 else []
            if len([it for it in edges if it.get("state") == "active"]) >= 2:
                return self
            if time.monotonic() > deadline:
                raise RuntimeError(f"the edges are not in session: {listed.stdout}")
            time.sleep(0.2)

    def ports(self):
        return [self.port, self.second]

    def pids(self):
        return [pid for process in self.processes for pid in peers.children(process.pid)]


CONTESTANTS = [ChunkCachePair, NginxLive, VarnishLive]


def measure(options, machine, versions, docs):
    work = Path(tempfile.mkdtemp(prefix="chunkcache-live-", dir=options.work))
    work.chmod(0o755)
    content = work / "none"
    content.write_bytes(b"")
    servers, results, loads = [], {}, []
    try:
        origin = LiveOrigin(work, 0, content)
        servers.append(origin)
        origin.start()
        for kind in CONTESTANTS:
            if options.only and kind.name not in options.only:
                continue
            server = kind(work, origin.port, content)
            servers.append(server)
            server.start()
        for kind in KINDS:
            print(f"live, {KINDS[kind]}:", flush=True)
            order = servers[1:]
            random.Random(len(kind)).shuffle(order)
            for server, viewers in [(origin, FEW), *((it, VIEWERS) for it in [origin, *order])]:
                loads.append(os.getloadavg()[0])
                before = cpu_seconds(server.pids())
                result = watch(server, origin, kind, viewers, options.live_seconds)
                result["cpu_seconds"] = cpu_seconds(server.pids()) - before
                name = server.name if viewers == VIEWERS else f"{server.name}, {FEW} viewers"
                results.setdefault(kind, {})[name] = result
                print(f"  {name:28} {line(result)}", flush=True)
                time.sleep(1)
    finally:
        for server in reversed(servers):
            server.stop()
        if options.keep:
            print(f"kept {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    text = page(results, machine, versions, servers, options, loads)
    if not (options.only or options.dry):
        docs.mkdir(parents=True, exist_ok=True)
        (docs / "live.md").write_text(text)
    else:
        print(text)


def watch(server, origin, kind, viewers, seconds):
    ports = getattr(server, "ports", lambda: [server.port])()
    command = [
        str(peers.ChunkCache.binaries / "chunkcache-live"),
        f"--addresses={','.join(f'127.0.0.1:{port}' for port in ports)}",
        f"--origin=127.0.0.1:{origin.port}",
        f"--kind={kind}",
        f"--prefix={server.prefix}",
        f"--viewers={viewers}",
        f"--seconds={seconds}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 + seconds)
    if done.returncode != 0:
        raise RuntimeError(f"{server.name}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def cpu_seconds(pids):
    total = 0
    for pid in set(pids):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total / os.sysconf("SC_CLK_TCK")


def line(result):
    origin = result["origin"]
    return (
        f"{ratio(origin['per_media_object'])} requests each, "
        f"{ratio(origin['per_playlist'])} a playlist, "
        f"p50 {result['media_ms']['p50']:.1f} ms, p99 {result['media_ms']['p99']:.1f} ms, "
        f"{result['errors']} errors {result['first_error'] or ''}"
    )


def ratio(value):
    return "–" if value is None else f"{value:.3f}"


def page(results, machine, versions, servers, options, loads):
    own = LiveOrigin.name
    lines = [
        "# Measured: a live ladder",
        "",
        f"{machine['when']}: {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} "
        f"GiB, kernel {machine['kernel']}; load average of a minute before each measurement "
        f"{min(loads):.1f} to {max(loads):.1f} (what runs beside the bench counts into it). Made "
        "by `tests/bench/run --cases live` (`tests/bench/live.py`, `tests/src/live`)."
        + (f" Beside it: {options.beside}." if options.beside else ""),
        "",
        f"{VIEWERS:,} viewers of a ladder of six renditions, {options.live_seconds} s at each "
        "contestant, one after the other. Origin, viewers and servers share the machine. The "
        "origin sends neither validators nor lengths. With LL-HLS each viewer repeats the blocking "
        "reload of its playlist and requests each part of 500 ms once it is listed; otherwise it "
        "requests the playlist every 2 s and each new segment. Bodies are checked.",
        "",
        "- *Requests*: those that the origin received for each part or segment, and for each "
        "version of a playlist (without LL-HLS: for each rendition and second, the lifetime of a "
        "playlist).",
        "- *Latency*: of a part from the moment at which it is complete at the origin to its last "
        "byte at the viewer, blocking reload included; of a segment from its request to its last "
        "byte. All renditions change at the same time, so that all viewers ask at once: what they "
        "wait for without any cache is in the row of the origin itself, with which the others are "
        f"compared. {FEW} viewers there show what an idle machine takes.",
        "",
    ]
    for kind, title in KINDS.items():
        runs = results.get(kind, {})
        if not runs:
            continue
        base = runs[own]["media_ms"]["p99"]
        lines += [
            f"## {title[0].upper()}{title[1:]}",
            "",
            "| | requests for each | for each playlist | p50, ms | p99, ms "
            "| p99 over the origin's | processor, s | errors |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name, run in runs.items():
            media, origin = run["media_ms"], run["origin"]
            is_own = name.startswith(own)
            requests = ("–", "–") if is_own else (
                ratio(origin["per_media_object"]),
                ratio(origin["per_playlist"]),
            )
            over = "–" if is_own else f"{media['p99'] - base:.1f}"
            lines.append(
                f"| {name} | {requests[0]} | {requests[1]} | {media['p50']:.1f} "
                f"| {media['p99']:.1f} | {over} | {run['cpu_seconds']:.1f} | {run['errors']} |"
            )
        lines.append("")
    lines += aims(results)
    lines += ["", "## Contestants", ""]
    for server in servers[1:]:
        lines.append(f"- {server.name}: {server.what}")
    shown = [name for name in versions if name in {"nginx", "varnish", "chunk cache"}]
    names = ", ".join(f"{name} {versions[name]}" for name in shown)
    return "\n".join([*lines, "", f"Versions: {names}.", ""])


def aims(results):
    """Of ours: reached, yes or no."""
    lines = ["## Aims", "", "| aim | measured | reached |", "|---|--:|---|"]
    for kind, title in KINDS.items():
        run = results.get(kind, {}).get(ChunkCachePair.name)
        if not run:
            continue
        over = run["media_ms"]["p99"] - results[kind][LiveOrigin.name]["media_ms"]["p99"]
        media = run["origin"]["per_media_object"] or 0
        playlist = run["origin"]["per_playlist"] or 0
        for aim, value, most, digits in (
            ("origin requests for each object 1.00", media, MOST_REQUESTS, 3),
            ("origin requests for each playlist 1.00", playlist, MOST_REQUESTS, 3),
            ("p99 over the origin's at most 10 ms", over, MOST_LATENCY_MS, 1),
        ):
            reached = "yes" if value <= most else "no"
            lines.append(f"| {title}: {aim} | {value:.{digits}f} | {reached} |")
    return lines
