"""Requests distinct keys of every kind from one client at full speed.

Measures the memory and the rows that they leave, and the latency of other clients. The store is
small, so that it evicts. The load and the origin have the lowest priority, because in a deployment
they have processors of their own; the other client, whose requests are measured, has a high one.
"""

import asyncio
import multiprocessing
import os
import random
import socket
import subprocess
import threading
import time
from pathlib import Path

import peers

#: Kinds of answers. The origin chooses by the first letter after the slash.
KINDS = ["missing", "head", "small", "no-store", "vary", "long", "hostile"]
PROCESSES = 2
#: Connections of each process, and for hostile answers, because the edge asks again before it
#: believes those.
CONNECTIONS = 4
HOSTILE_CONNECTIONS = 64
#: The space of the store: some 32,000 small objects.
STORE = "128MiB"
SMALL_BYTES = 4096
#: Requests per second of another client for one cached object.
PROBES = 50
IDLE_SECONDS = 10
MEMORY_LIMIT_MIB = 128
#: Entries without chunks that the database keeps, and keys.
ROWS_LIMIT = 200_000
LATENCY_LIMIT = 2.0

LAST_WEEK = "Last-Modified: Mon, 02 Nov 2026 00:00:00 GMT\r\n"
CACHED = 'ETag: "one"\r\nCache-Control: max-age=3600\r\n' + LAST_WEEK


def answer_of(kind, method):
    """Head and body of the origin's answer."""
    body = b"x" * SMALL_BYTES
    status, fields, length = "200 OK", CACHED, str(SMALL_BYTES)
    if kind == "m":
        status, fields = "404 Not Found", ""
    elif kind == "n":
        fields = "Cache-Control: no-store\r\n"
    elif kind == "v":
        fields = CACHED + "Vary: Accept-Language\r\n"
    elif kind == "l":
        length, body = "8000000000000000", b""
    elif kind == "x":
        length, body = random.choice(["-1", "18446744073709551616", "100, 7", "1e3"]), b""
    head = f"HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body), kind in "lx"


async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            method, target = head.split(b" ", 2)[:2]
            kind = target.rsplit(b"/", 1)[1][:1].decode()
            data, ends = answer_of(kind, method.decode())
            writer.write(data)
            await writer.drain()
            if ends and method != b"HEAD" or kind == "x":
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


def run_origin(port):
    os.setpriority(os.PRIO_PROCESS, 0, 19)

    async def listen():
        server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    asyncio.run(listen())


class Client:
    """A keep-alive connection from an address of its own."""

    def __init__(self, own, port):
        self.own, self.port, self.socket = own, port, None

    def ask(self, method, target):
        """The status; 0: the connection was closed."""
        try:
            if self.socket is None:
                self.socket = socket.create_connection(("127.0.0.1", self.port), 30, (self.own, 0))
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.sendall(f"{method} {target} HTTP/1.1\r\nHost: edge\r\n\r\n".encode())
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = self.socket.recv(16384)
                if not more:
                    raise ConnectionError
                answer += more
            head, body = answer.split(b"\r\n\r\n", 1)
            fields = dict(
                line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line
            )
            left = 0 if method == "HEAD" else int(fields.get(b"content-length", b"0")) - len(body)
            while left > 0:
                more = self.socket.recv(16384)
                if not more:
                    raise ConnectionError
                left -= len(more)
            return int(head.split(b" ", 2)[1])
        except OSError:
            if self.socket:
                self.socket.close()
            self.socket = None
            return 0


def attack(port, share, until, asked, answered):
    """One process of the client; `share`: the numbers of its keys."""

    def run(numbers):
        client = Client("127.0.0.2", port)
        for number in numbers:
            if time.monotonic() > until:
                return
            kind = KINDS[number % len(KINDS)]
            letter = "x" if kind == "hostile" else kind[0]
            method = "HEAD" if kind in ("head", "long") else "GET"
            query = "?" + "q" * (number % 1500) if number % 5 == 0 else ""
            status = client.ask(method, f"/bench/{letter}{number}{query}")
            with asked.get_lock():
                asked.value += 1
            if status:
                with answered.get_lock():
                    answered.value += 1

    os.setpriority(os.PRIO_PROCESS, 0, 19)
    hostile = [number for number in share if KINDS[number % len(KINDS)] == "hostile"]
    others = [number for number in share if KINDS[number % len(KINDS)] != "hostile"]
    threads = [
        threading.Thread(target=run, args=(numbers[nth::count],))
        for numbers, count in ((hostile, HOSTILE_CONNECTIONS), (others, CONNECTIONS))
        for nth in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def probe(port, seconds):
    """Latency of each request of another client, in milliseconds."""
    client, times, until = Client("127.0.0.3", port), [], time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.monotonic()
        status = client.ask("GET", "/bench/s-probe")
        times.append((time.monotonic() - begun) * 1000)
        if status != 200:
            raise RuntimeError(f"another client was answered {status}")
        time.sleep(1 / PROBES)
    return sorted(times)


def p(times, share):
    return times[min(len(times) - 1, int(len(times) * share))]


def resident_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def rows_of(database):
    """Rows of each table that could grow with the number of keys."""
    tables = ["cache_keys", "cache_entries", "cache_chunks", "cache_changes"]
    query = ";".join(f"SELECT '{table}', count(*) FROM {table}" for table in tables)
    command = [database.bin / "psql", "-XAtF", " ", database.url(), "-c", query]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode:
        raise RuntimeError(output.stderr)
    return {name: int(count) for name, count in map(str.split, output.stdout.splitlines())}


def soak(keys, seconds, work, servers, binaries):
    """The figures as lines of a table, and those that exceed their limits."""
    origin_port = peers.free_port()
    origin = multiprocessing.Process(target=run_origin, args=(origin_port,), daemon=True)
    origin.start()
    edge = peers.ChunkCache(work, origin_port, work)
    edge.binaries = binaries
    edge.edge_options = ["--max-size", STORE]
    servers.append(edge)
    edge.start()
    time.sleep(3)
    if os.geteuid() == 0:
        # The children lower theirs.
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    probe(edge.port, 1)
    idle = probe(edge.port, IDLE_SECONDS)
    # Postgres first, then the coordinator, then the edge.
    coordinator = edge.processes[1].pid
    asked, answered = multiprocessing.Value("q"), multiprocessing.Value("q")
    begun = time.monotonic()
    until = begun + seconds
    clients = [
        multiprocessing.Process(
            target=attack,
            args=(edge.port, range(nth, keys, PROCESSES), until, asked, answered),
        )
        for nth in range(PROCESSES)
    ]
    for client in clients:
        client.start()
    busy, most = [], [0, 0]
    print("second  keys asked  MiB edge  coordinator", flush=True)
    while any(client.is_alive() for client in clients):
        busy += probe(edge.port, 10)
        now = [resident_mib(edge.edge.pid), resident_mib(coordinator)]
        most = [max(pair) for pair in zip(most, now)]
        print(
            f"{time.monotonic() - begun:6.0f} {asked.value:11} {now[0]:9.1f} {now[1]:12.1f}",
            flush=True,
        )
    took = time.monotonic() - begun
    busy.sort()
    rows = rows_of(edge.database)
    origin.terminate()
    ratio = p(busy, 0.99) / p(idle, 0.99)
    lines = [
        ("seconds", f"{took:.0f}"),
        ("distinct keys asked", f"{asked.value} of {keys}"),
        ("of these answered", f"{answered.value}"),
        ("MiB resident, most, edge / coordinator", f"{most[0]:.1f} / {most[1]:.1f}"),
        *((f"rows of {table}", f"{count}") for table, count in rows.items()),
        ("another client's hits, idle, ms, p50 / p99", f"{p(idle, 0.5):.2f} / {p(idle, 0.99):.2f}"),
        ("the same meanwhile", f"{p(busy, 0.5):.2f} / {p(busy, 0.99):.2f}"),
    ]
    limits = [
        ("MiB of the edge", most[0], MEMORY_LIMIT_MIB),
        ("MiB of the coordinator", most[1], MEMORY_LIMIT_MIB),
        ("times the idle p99", ratio, LATENCY_LIMIT),
        *((f"rows of {table}", count, ROWS_LIMIT) for table, count in rows.items()),
    ]
    broken = [
        f"{value:.1f} {name}, at most {limit} is promised"
        for name, value, limit in limits
        if value > limit
    ]
    return lines, broken
