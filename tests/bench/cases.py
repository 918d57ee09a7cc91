"""The cases of tests/bench/run: each loads one contestant at a time, in changing order."""

import json
import os
import random
import re
import statistics
import subprocess
import time
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: `range_bytes` 0: the whole file. `many`: over many small files. `cold`: the servers' files leave
#: the page cache first. `times` as long as other cases.
Hit = namedtuple(
    "Hit",
    "name range_bytes aligned connections pinned many cold times",
    defaults=(True, False, False, 1),
)

HITS = [
    Hit("2 MiB aligned, 16 connections", 2 << 20, True, 16),
    Hit("2 MiB unaligned, 64 connections", 2 << 20, False, 64),
    Hit("2 MiB unaligned, 1,000 connections", 2 << 20, False, 1000, times=2),
    Hit("16 KiB, 16 connections", 16 << 10, False, 16),
    Hit("16 KiB, 64 connections", 16 << 10, False, 64),
    Hit("whole file, 4 connections", 0, True, 4),
    Hit("256 KiB of 100 files, 16 connections", 256 << 10, False, 16, many=True),
    Hit("2 MiB aligned, 16 connections, unpinned", 2 << 20, True, 16, pinned=False),
    Hit("16 KiB, 64 connections, unpinned", 16 << 10, False, 64, pinned=False),
    Hit("2 MiB unaligned, 16 connections, not in the page cache", 2 << 20, False, 16, cold=True),
]
TLS_HITS = [Hit("TLS, 2 MiB aligned, 16 connections", 2 << 20, True, 16)]

#: Every object repeats its first bytes. They stay in the CPU's cache, so that the comparison uses
#: none of the memory bandwidth that is measured. The period is prime, so a server that confuses two
#: offsets sends different bytes.
PERIOD = 262139

#: For hits, one connection in so many compares every byte. The others compare the first bytes of
#: each answer and let the kernel discard the rest, as a network card takes bytes without the CPU;
#: otherwise the core of the load generator would be the limit. Whole files are compared in full.
COMPARE_ONE_IN = 8

MANY_FILES, MANY_BYTES = 100, 4 << 20
COLD_BYTES = 64 << 20
EXTENT_FILES = 4

#: Objects of a segment's size, each requested once: this many per round.
SMALL_BYTES, SMALL_OBJECTS = 64 << 10, 4000
SMALL_CONNECTIONS = 16
#: The second pass requests this many of them at random; a file server has as many.
SMALL_WARM = 2000

#: Name, folder, offset in the object.
First = namedtuple("First", "name folder offset seen_before", defaults=(False,))
FIRST_BYTES = [
    First("cold object, at a chunk's start", "cold", 24 << 20),
    First("cold object, amid a chunk", "cold", (25 << 20) + 12345),
    First("cold object, 60 MiB in", "cold", (60 << 20) + 12345),
    First("known object, a place nobody was at", "cold", (41 << 20) + 12345, True),
    First("cold object, amid a chunk, origin 20 ms away", "after-20ms", (25 << 20) + 12345),
    First("cold object, amid a chunk, origin 80 ms away", "after-80ms", (25 << 20) + 12345),
]


class Bench:
    def __init__(self, options, files):
        self.options, self.files = options, Path(files)
        self.results = {
            "hits": {},
            "first_bytes": {},
            "follower": {},
            "crowd": {},
            "extents": {},
            "idle": {},
            "huge": {},
            "small_cold": {},
            "small_warm": {},
            "left_out": {},
        }
        self.asked = {}

    # Files

    def make_files(self):
        mib, rng = self.options.mib, random.Random(7)
        print(f"making {mib} MiB of content", flush=True)
        self.content = self.files / "file.bin"
        period, size = rng.randbytes(PERIOD), mib << 20
        with open(self.content, "wb") as out:
            for start in range(0, size, PERIOD):
                out.write(period[: size - start])
        data = self.content.read_bytes()
        (self.files / "cold.bin").write_bytes(data[:COLD_BYTES])
        (self.files / "many.bin").write_bytes(data[:MANY_BYTES])
        for number in range(10):
            with open(self.files / f"huge-{number}.bin", "wb") as out:
                out.truncate(100 << 30)
        (self.files / "small.bin").write_bytes(data[:SMALL_BYTES])
        self.links("many", "many.bin", MANY_FILES)
        self.links("small", "small.bin", SMALL_OBJECTS * self.options.rounds)
        for folder in ("cold", "after-20ms", "after-80ms", "paced", "crowd", "extents"):
            self.links(folder, "cold.bin", 200)
        # rclone reads the server's listing.
        for folder in (self.files, *(path for path in self.files.iterdir() if path.is_dir())):
            names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
            (folder / "index.html").write_text(
                "<html><body>"
                + "".join(f'<a href="{name}">{name}</a><br>' for name in names)
                + "</body></html>"
            )

    def links(self, folder, of, count):
        """Creates many objects in the space of one: the cache cannot see that they are the same."""
        (self.files / folder).mkdir(mode=0o755)
        for number in range(count):
            os.link(self.files / of, self.files / folder / f"{number}.bin")

    # Load

    def tool(self, program, cores, **settings):
        command = [
            str(ROOT / "target/release" / program),
            *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items()),
        ]
        if cores:
            command = ["taskset", "-c", cores, *command]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300 + settings.get("seconds", 0)
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def load(self, server, cores, targets=("/file.bin",), content=None, pids=None, **settings):
        return self.tool(
            "chunkcache-load",
            cores,
            address=f"127.0.0.1:{server.port}",
            targets=",".join(server.prefix + t for t in targets),
            content=content or repeating(self.content),
            pids=",".join(map(str, pids or server.pids())),
            tls=str(server.tls).lower(),
            **settings,
        )

    def first_bytes(self, server, targets, offset, content, **settings):
        return self.tool(
            "chunkcache-first-byte",
            None,
            address=f"127.0.0.1:{server.port}",
            targets=",".join(server.prefix + t for t in targets),
            offsets=offset,
            content=content,
            tls=str(server.tls).lower(),
            **settings,
        )

    def fetch(self, server, target, first=None, last=None):
        scheme = "https" if server.tls else "http"
        part = [] if first is None else ["-r", f"{first}-{last}"]
        url = f"{scheme}://127.0.0.1:{server.port}{server.prefix}{target}"
        subprocess.run(["curl", "-skf", "-o", "/dev/null", *part, url], check=False, timeout=120)

    def warm(self, server):
        """Reads every byte once, in order, so that later requests are hits; then checks bytes."""
        print(f"warming {server.name}", flush=True)
        size, step = self.content.stat().st_size, 8 << 20
        for start in range(0, size, step):
            self.fetch(server, "/file.bin", start, min(size, start + step) - 1)
        if server.is_cache and not server.tls:
            for number in range(MANY_FILES):
                self.fetch(server, f"/many/{number}.bin", 0, MANY_BYTES - 1)
        self.check(
            self.load(server, None, connections=2, seconds=0.3, range=2 << 20, aligned="false"),
            server,
        )

    def check(self, result, server):
        if result["wrong_bytes"] or result["errors"]:
            print(
                f"  {server.name}: {result['errors']} errors, {result['wrong_bytes']} wrong "
                f"bytes, {result['first_error'].splitlines()[0] if result['first_error'] else ''}",
                flush=True,
            )
        return result

    def pin(self, server, cores):
        for pid in server.pids():
            subprocess.run(["taskset", "-a", "-p", "-c", cores, str(pid)], capture_output=True)

    def rounds(self, contestants):
        """(round, server), each round in another order."""
        order = list(contestants)
        for number in range(self.options.rounds):
            random.Random(number).shuffle(order)
            for server in order:
                yield number, server

    # Cases

    def hits(self, case, contestants):
        print(f"{case.name}:", flush=True)
        runs = self.results["hits"].setdefault(case.name, {s.name: [] for s in contestants})
        server_cores, load_cores = ("0", "1") if case.pinned else ("0-1", "0-1")
        for server in contestants:
            self.pin(server, server_cores)
        shape = {
            "range": case.range_bytes,
            "aligned": str(case.aligned).lower(),
            "compare_one_in": COMPARE_ONE_IN if case.range_bytes else 1,
        }
        if case.many:
            shape |= {
                "targets": [f"/many/{n}.bin" for n in range(MANY_FILES)],
                "content": repeating(self.files / "many.bin"),
            }
        for number, server in self.rounds(contestants):
            if case.cold:
                evict(server)
            else:
                # The kernel may have evicted pages of an idle file; every contestant starts warm.
                self.load(server, load_cores, connections=4, seconds=0.2, seed=99, **shape)
            run = lambda: self.load(
                server,
                load_cores,
                connections=case.connections,
                seconds=self.options.seconds * case.times,
                seed=number + 1,
                **shape,
            )  # noqa: E731
            profiled = (
                self.options.profile and number == 0 and server.name.startswith("chunk cache")
            )
            result = profile(server, case.name, run) if profiled else run()
            runs[server.name].append(self.check(result, server))
        for server in contestants:
            median = lambda key: statistics.median(r[key] for r in runs[server.name])  # noqa: E731
            print(
                f"  {server.name:20} {median('gigabytes_per_second'):6.2f} GB/s "
                f"{median('requests_per_second'):9.0f}/s "
                f"{median('server_cpu_seconds_per_gigabyte'):6.3f} CPU s/GB",
                flush=True,
            )

    def unpin(self, contestants):
        for server in contestants:
            self.pin(server, "0-1")

    def fresh(self, folder, count):
        """Objects of a folder that have not been requested yet."""
        start = self.asked.get(folder, 0)
        self.asked[folder] = start + count
        return [f"/{folder}/{number}.bin" for number in range(start, start + count)]

    def first_byte(self, case, contestants, origin):
        print(f"first byte, {case.name}:", flush=True)
        runs = self.results["first_bytes"].setdefault(
            case.name, {s.name: [] for s in [origin, *contestants]}
        )
        targets = {}
        for number, server in self.rounds([origin, *contestants]):
            if number not in targets:
                targets[number] = self.fresh(case.folder, 4)
            if case.seen_before:
                for target in targets[number]:
                    self.fetch(server, target, 0, 65535)
                time.sleep(0.2)
            result = self.first_bytes(server, targets[number], case.offset, self.files / "cold.bin")
            runs[server.name].append(self.check(result, server))
        for server in [origin, *contestants]:
            print(
                f"  {server.name:20} "
                f"{statistics.median(r['first_byte_ms']['p50'] for r in runs[server.name]):8.2f}"
                " ms",
                flush=True,
            )

    def follower(self, contestants):
        """A reader 150 ms behind the first one, of an object that arrives at 4 MiB/s.

        Its bytes have already arrived.
        """
        print("follower on a paced origin:", flush=True)
        targets = self.fresh("paced", 5)
        for server in contestants:
            result = self.first_bytes(
                server, targets, 0, self.files / "cold.bin", follow_ms=150, pause_ms=50
            )
            self.results["follower"][server.name] = self.check(result, server)
            print(f"  {server.name:20} {result['first_byte_ms']['p50']:8.2f} ms", flush=True)

    def crowd(self, contestants, origin):
        """50 readers at once of a cold object of 64 MiB."""
        print("50 readers of one cold file:", flush=True)
        runs = self.results["crowd"]
        for number, server in self.rounds(contestants):
            target = f"/crowd/{number}.bin"
            before = sent(origin, target)
            result = self.check(
                self.load(
                    server,
                    None,
                    [target],
                    repeating(self.files / "cold.bin"),
                    connections=50,
                    requests=1,
                    range=0,
                ),
                server,
            )
            result["origin_copies"] = (sent(origin, target) - before) / COLD_BYTES
            runs.setdefault(server.name, []).append(result)
        for name, results in runs.items():
            middle = lambda key: statistics.median(key(r) for r in results)  # noqa: E731
            print(
                f"  {name:20} {middle(lambda r: r['first_byte_ms']['p50']):8.1f} ms, all after "
                f"{middle(lambda r: r['seconds']):5.2f} s, "
                f"{middle(lambda r: r['origin_copies']):5.2f} copies from the origin",
                flush=True,
            )

    def extents(self, contestants):
        """Extents of files that 16 readers filled at random positions, four files at a time."""
        print("extents after random fills:", flush=True)
        for server in contestants:
            targets, content = self.fresh("extents", EXTENT_FILES), repeating(
                self.files / "cold.bin"
            )
            before = set(sparse_files(server, COLD_BYTES))
            # At random positions first, until little is missing; then the missing bytes.
            self.check(
                self.load(
                    server,
                    None,
                    targets,
                    content,
                    connections=16,
                    range=64 << 10,
                    aligned="false",
                    seconds=3,
                ),
                server,
            )
            for target in targets:
                self.check(
                    self.load(server, None, [target], content, connections=1, requests=1, range=0),
                    server,
                )
            os.sync()
            counts = [
                extents_of(path) for path in sorted(set(sparse_files(server, COLD_BYTES)) - before)
            ]
            if counts:
                self.results["extents"][server.name] = counts
                print(
                    f"  {server.name:20} {', '.join(map(str, counts))} extents in files of "
                    f"{COLD_BYTES >> 20} MiB",
                    flush=True,
                )

    def small(self, contestants, files):
        """Distinct objects of 64 KiB, each once, then at random. CPU time is of all processes."""
        shape = {
            "content": repeating(self.files / "small.bin"),
            "connections": SMALL_CONNECTIONS,
            "range": 0,
        }
        for number, server in self.rounds(contestants):
            first = number * SMALL_OBJECTS
            numbers = f"{first}..{first + SMALL_OBJECTS}"
            pids = server.all_pids()
            result = self.load(
                server, None, ["/small/{}.bin"], pids=pids, numbers=numbers, **shape
            )
            runs = self.results["small_cold"].setdefault(server.name, [])
            runs.append(self.check(result, server))
        targets = [f"/small/{number}.bin" for number in range(SMALL_WARM)]
        for number, server in self.rounds([*contestants, *files]):
            pids, seconds = server.all_pids(), self.options.seconds
            result = self.load(server, None, targets, pids=pids, seconds=seconds, **shape)
            runs = self.results["small_warm"].setdefault(server.name, [])
            runs.append(self.check(result, server))
        for kind in ("small_cold", "small_warm"):
            print(f"distinct objects of 64 KiB, {kind.removeprefix('small_')}:", flush=True)
            for name, rounds in self.results[kind].items():
                print(f"  {name:20} " + small_line(rounds), flush=True)

    def idle(self, contestants):
        """10,000 connections after one request each, and 16 busy ones. The median round counts."""
        print("10,000 idle connections:", flush=True)
        runs = {}
        for _, server in self.rounds(contestants):
            runs.setdefault(server.name, []).append(
                self.load(
                    server,
                    None,
                    connections=16,
                    idle=10000,
                    seconds=1,
                    range=16 << 10,
                    aligned="false",
                )
            )
        for name, results in runs.items():
            result = sorted(results, key=lambda r: r["requests_per_second"])[len(results) // 2]
            # Only the first round shows the memory of the connections: later ones reuse what the
            # first freed.
            result["resident_bytes"] = results[0]["resident_bytes"]
            self.results["idle"][name] = result
            kib = (
                (result["resident_bytes"]["idle"] - result["resident_bytes"]["at_first"])
                / 10000
                / 1024
            )
            print(
                f"  {name:20} {result['idle']['held']} held, {kib:6.2f} KiB each, "
                f"{result['requests_per_second']:8.0f}/s beside, "
                f"p99 {result['first_byte_ms']['p99']:.1f} ms",
                flush=True,
            )

    def huge(self, server):
        """1,000 readers of ten files of 100 GiB, whose first 32 MiB each are cached."""
        print("memory at 1,000 readers of 100 GiB files:", flush=True)
        targets = [f"/huge-{number}.bin" for number in range(10)]
        for target in targets:
            for start in range(0, 32 << 20, 8 << 20):
                self.fetch(server, target, start, start + (8 << 20) - 1)
        runs = []
        for number in range(self.options.rounds):
            runs.append(
                self.check(
                    self.load(
                        server,
                        None,
                        targets,
                        f"zeros:{100 << 30}",
                        connections=1000,
                        range=2 << 20,
                        aligned="false",
                        within=32 << 20,
                        seconds=self.options.seconds * 2,
                        seed=number,
                    ),
                    server,
                )
            )
        self.results["huge"][server.name] = runs
        print(
            "  " + ", ".join(f"{r['resident_bytes']['most'] / (1 << 20):.1f} MiB" for r in runs),
            flush=True,
        )


def small_line(rounds):
    middle = lambda key: statistics.median(key(run) for run in rounds)  # noqa: E731
    return (
        f"{middle(lambda r: r['requests_per_second']):8.0f}/s "
        f"{middle(cpu_ms_each):6.3f} ms of processor each, "
        f"p99 {middle(lambda r: r['whole_ms']['p99']):6.1f} ms"
    )


def cpu_ms_each(run):
    return run["server_cpu_seconds"] * 1e3 / max(1, run["requests"])


def repeating(path):
    """The content argument of the load generator for a file of repeated bytes."""
    return f"repeating:{PERIOD}:{path}"


def sparse_files(server, size):
    """The server's files that hold a whole object each."""
    return [
        path for path in server.folder.rglob("*") if path.is_file() and path.stat().st_size == size
    ]


def extents_of(path):
    done = subprocess.run(["filefrag", str(path)], capture_output=True, text=True, check=True)
    return int(re.search(r"(\d+) extents? found", done.stdout).group(1))


def sent(origin, target):
    """Body bytes of an object that the origin sent."""
    done = subprocess.run(
        ["curl", "-sf", f"http://127.0.0.1:{origin.port}/.requests"],
        capture_output=True,
        text=True,
        check=True,
    )
    return sum(
        int(line.split()[-1]) for line in done.stdout.splitlines() if line.split()[1] == target
    )


def evict(server):
    """Drops the pages of all the server's files from the page cache."""
    os.sync()
    for folder in (server.folder, server.content.parent):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                except OSError:
                    continue
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def profile(server, name, run):
    """Folded stacks of the loaded server, for any flame graph tool, and the hottest functions."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder = ROOT / "target" / "bench-profiles"
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{slug}.data"
    pids = ",".join(map(str, server.pids()))
    recorder = subprocess.Popen(
        [
            "perf",
            "record",
            "-q",
            "-e",
            "cpu-clock",
            "-F",
            "999",
            "--call-graph",
            "dwarf,16384",
            "-p",
            pids,
            "-o",
            str(data),
        ]
    )
    try:
        result = run()
    finally:
        recorder.send_signal(2)
        recorder.wait(120)
    script = subprocess.run(
        ["perf", "script", "-i", str(data), "-F", "comm,ip,sym"], capture_output=True, text=True
    ).stdout
    (folder / f"{slug}.folded").write_text(fold(script))
    print(f"  stacks in {folder / slug}.folded", flush=True)
    return result


def fold(script):
    """One line per stack, outermost first, with its number of samples."""
    seen = {}
    for block in script.strip().split("\n\n"):
        lines = block.splitlines()
        frames = [
            line.split(None, 1)[1].split("+0x")[0]
            for line in lines[1:]
            if len(line.split(None, 1)) == 2
        ]
        if frames:
            stack = ";".join([lines[0].split()[0], *reversed(frames)])
            seen[stack] = seen.get(stack, 0) + 1
    return "".join(f"{stack} {count}\n" for stack, count in sorted(seen.items()))
