"""Seeks behind origins of several kinds: the chunk cache beside peers, one after the other."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import peers

#: Name, what it is, milliseconds before each answer; bytes a second of all together, and of each
#: connection; milliseconds of queue.
ORIGINS = [
    ("shared", "5 MB/s in all, 20 ms away", 20, 5_000_000, 0, 0),
    ("each", "2.5 MB/s for each connection, 40 ms away", 40, 0, 2_500_000, 0),
    (
        "queue",
        "5 MB/s in all behind a queue of 200 ms, first in first out, 20 ms away",
        *(20, 5_000_000, 0, 200),
    ),
    ("far", "10 MB/s in all, 80 ms away", 80, 10_000_000, 0, 0),
]
CONTESTANTS = [peers.ChunkCache, peers.NginxSlice, peers.Rclone]
SEED = 7
CHUNK = 2 << 20
#: Seeks of each contestant at each origin, and how many of them go on to 9 MiB. They bound the time
#: of the whole: some 20 s each.
SEEKS, LONG = 30, 4


class Origin(peers.Server):
    """One of ORIGINS, with one generated object."""

    def __init__(self, folder, kind):
        self.name, self.what, self.latency, self.link, self.each, self.queue = kind
        super().__init__(folder, 0, folder)

    def start(self):
        size = (SEEKS + 2) * 16 * CHUNK
        files = self.folder / "files"
        files.mkdir()
        # rclone finds the object by a listing.
        (files / "index.html").write_text('<a href="film.mp4">film.mp4</a>\n')
        options = ["--root", files, "--listen", f"127.0.0.1:{self.port}"]
        options += ["--latency-ms", self.latency, "--max-age", 86400]
        options += ["--generate", f"film.mp4:{SEED}:{size}"]
        if self.link:
            options += ["--link-bytes-per-second", self.link, "--link-queue-ms", self.queue]
        if self.each:
            options += ["--bytes-per-second", self.each]
        program = peers.ChunkCache.binaries / "chunkcache-origin"
        process = self.launch(program, *options)
        peers.wait_for_port(self.port, process)
        return self

    def possible_ms(self, size):
        """The least time in which so many bytes can be here."""
        return self.latency + size * 1000 / (self.link or self.each)


def measure(work=None):
    """A list of results, each a dict: origin, contestant, first_ms, mib2_ms, mib9_ms (p50 and p99),
    possible.
    """
    work = Path(tempfile.mkdtemp(prefix="chunkcache-seeks-", dir=work))
    work.chmod(0o755)
    results = []
    try:
        for kind in ORIGINS:
            for contestant in CONTESTANTS:
                results.append(one(work, kind, contestant))
                print(json.dumps(results[-1]), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return results


def one(work, kind, contestant):
    # An origin of its own: nobody pays for what another one's fetches still send.
    origin = Origin(work, kind)
    server = None
    result = {"origin": origin.what, "contestant": contestant.name}
    try:
        origin.start()
        server = contestant(work, origin.port, work)
        server.start()
        program = peers.ChunkCache.binaries / "chunkcache-seek"
        where = ["--at", f"127.0.0.1:{server.port}", f"{server.prefix}/film.mp4", SEED, SEEKS, LONG]
        done = subprocess.run(
            [str(part) for part in (program, *where)],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        result |= json.loads(done.stdout.strip().splitlines()[-1])
        result["possible_ms"] = {mib: origin.possible_ms(mib << 20) for mib in (2, 9)}
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).splitlines()
        # Not the trace that follows it.
        panic = next((number for number, line in enumerate(said) if "panicked" in line), 0)
        result["left_out"] = " ".join(said[panic : panic + 2])
    finally:
        for running in (server, origin):
            if running:
                running.stop()
    return result


def table(results):
    """In Markdown. The share of what is possible: that of 9 MiB, at its median."""
    lines = [
        "| origin | | first byte p50 | p99 | 2 MiB p50 | 9 MiB p50 | slowest | possible |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before = None
    for it in results:
        origin = it["origin"] if it["origin"] != before else ""
        before = it["origin"]
        if "left_out" in it:
            why = it["left_out"]
            lines.append(f"| {origin} | {it['contestant']} | left out: {why} | | | | | |")
            continue
        first, two, nine = it["first_ms"], it["mib2_ms"], it["mib9_ms"]
        lines.append(
            f"| {origin} | {it['contestant']} | {first['p50']:.1f} | {first['p99']:.1f} "
            f"| {two['p50']:.0f} | {nine['p50']:.0f} | {nine['p99']:.0f} "
            f"| {it['possible_ms'][9]:.0f} |"
        )
    return "\n".join(lines)
