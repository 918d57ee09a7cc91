"""The contestants: each starts over the same origin and answers GET of its files with ranges.

Every server listens on 127.0.0.1 on a port of its own and keeps its files in its own folder. The
texts of `tuned` variants name their settings; the others run with their packages' defaults.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with status {process.returncode}")
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port} after {seconds} s")


def children(pid):
    """The process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                found += children(int(child))
        except OSError:
            pass
    return found


def self_signed(folder):
    """A certificate for the run, ECDSA P-256 as is usual."""
    certificate, key = Path(folder) / "certificate.pem", Path(folder) / "key.pem"
    if not certificate.exists():
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "7",
                "-subj",
                "/CN=localhost",
                "-keyout",
                str(key),
                "-out",
                str(certificate),
            ],
            check=True,
            capture_output=True,
        )
    return certificate, key


class Server:
    """One running contestant."""

    name = "?"
    what = ""
    tls = False
    #: Its answers come from the files themselves: it has no misses.
    is_cache = True

    def __init__(self, folder, origin_port, content):
        self.folder = Path(folder) / self.name.replace(" ", "-")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o777)
        self.origin_port = origin_port
        self.content = Path(content)
        self.port = free_port()
        #: Before the path of a file of the origin.
        self.prefix = ""
        self.processes = []

    def launch(self, *command, **options):
        log = open(self.folder / "log.txt", "ab")
        process = subprocess.Popen(
            [str(c) for c in command], stdout=log, stderr=log, start_new_session=True, **options
        )
        self.processes.append(process)
        return process

    def pids(self):
        return [pid for process in self.processes for pid in children(process.pid)]

    def all_pids(self):
        """With those of its control plane and database."""
        return self.pids()

    def resident_bytes(self):
        total = 0
        for pid in self.pids():
            try:
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1]) * 1024
            except OSError:
                pass
        return total

    def stop(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.processes = []


class Nginx(Server):
    workers = 2
    sendfile_lines = "sendfile on; tcp_nopush on;"
    listen_options = ""

    def server_block(self):
        raise NotImplementedError

    def http_lines(self):
        return ""

    def listen(self):
        return f"listen 127.0.0.1:{self.port} backlog=4096 {self.listen_options};"

    def start(self):
        config = self.folder / "nginx.conf"
        config.write_text(f"""
worker_processes {self.workers};
daemon off;
user root;
pid {self.folder}/nginx.pid;
error_log {self.folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  {self.sendfile_lines}
  keepalive_requests 1000000;
  client_body_temp_path {self.folder}/t1; proxy_temp_path {self.folder}/t2;
  fastcgi_temp_path {self.folder}/t3;
  uwsgi_temp_path {self.folder}/t4; scgi_temp_path {self.folder}/t5;
  {self.http_lines()}
  server {{ {self.listen()} {self.server_block()} }}
}}
""")
        process = self.launch("nginx", "-c", config, "-p", self.folder)
        wait_for_port(self.port, process)
        return self


class NginxStatic(Nginx):
    is_cache = False
    #: Files of the small objects.
    small = 2000
    name = "nginx static"
    what = "sendfile on, tcp_nopush on"

    def start(self):
        # Like every contestant, it has its own copy: the load generator compares with the pages of
        # the original, which would otherwise still be in the CPU's caches after sending.
        many = sorted((self.content.parent / "many").iterdir())
        small = [self.content.parent / "small" / f"{n}.bin" for n in range(self.small)]
        for path in (self.content, *many, *small):
            target = self.folder / "files" / path.relative_to(self.content.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return super().start()

    def server_block(self):
        return f"root {self.folder}/files;"


class NginxStaticTuned(NginxStatic):
    name = "nginx static tuned"
    what = "sendfile, sndbuf=256k, tcp_nopush off, sendfile_max_chunk 256k"
    sendfile_lines = "sendfile on; tcp_nopush off; sendfile_max_chunk 256k;"
    listen_options = "sndbuf=256k"


class NginxStaticTls(NginxStatic):
    name = "nginx static, TLS"
    what = "sendfile on, tcp_nopush on, ssl with OpenSSL's defaults (TLS 1.3)"
    tls = True

    def listen(self):
        certificate, key = self_signed(self.folder)
        return (
            f"listen 127.0.0.1:{self.port} ssl backlog=4096; "
            f"ssl_protocols TLSv1.3; ssl_certificate {certificate}; ssl_certificate_key {key};"
        )


class NginxSlice(Nginx):
    name = "nginx slice"
    what = "proxy_cache + slice 2m, cache lock on, sendfile on"

    def http_lines(self):
        return (
            f"proxy_cache_path {self.folder}/cache levels=1:2 keys_zone=bench:32m max_size=20g "
            "inactive=1d use_temp_path=off;"
        )

    def server_block(self):
        return f"""
location / {{
  slice 2m; proxy_cache bench; proxy_cache_key $uri$is_args$args$slice_range;
  proxy_set_header Range $slice_range;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_cache_valid 200 206 1d;
  proxy_cache_lock on; proxy_pass http://127.0.0.1:{self.origin_port};
}}"""


class NginxProxyCache(NginxSlice):
    """For objects that are no larger than a slice."""

    name = "nginx proxy_cache"
    what = "proxy_cache, cache lock on, sendfile on, tcp_nopush off"
    # With tcp_nopush, an answer on loopback waits 40 ms for a delayed acknowledgement.
    sendfile_lines = "sendfile on; tcp_nopush off;"

    def server_block(self):
        return f"""
location / {{
  proxy_cache bench; proxy_cache_key $uri$is_args$args;
  proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_cache_valid 200 206 1d; proxy_cache_lock on; proxy_pass http://origin;
}}"""

    def http_lines(self):
        return (
            super().http_lines()
            + f" upstream origin {{ server 127.0.0.1:{self.origin_port}; keepalive 64; }}"
        )


class NginxSliceTuned(NginxSlice):
    name = "nginx slice tuned"
    what = NginxSlice.what + ", sndbuf=256k, tcp_nopush off, sendfile_max_chunk 256k"
    sendfile_lines = "sendfile on; tcp_nopush off; sendfile_max_chunk 256k;"
    listen_options = "sndbuf=256k"


class Varnish(Server):
    name = "varnish"
    what = "malloc storage, http_range_support on (default)"
    vcl_lines = "sub vcl_backend_response { set beresp.ttl = 1d; }"

    def start(self):
        vcl = self.folder / "bench.vcl"
        vcl.write_text(f"""vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{self.origin_port}"; }}
{self.vcl_lines}
""")
        size = max(2 << 30, self.content.stat().st_size + (512 << 20))
        process = self.launch(
            "varnishd",
            "-F",
            "-f",
            vcl,
            "-a",
            f"127.0.0.1:{self.port}",
            "-n",
            self.folder / "work",
            "-s",
            f"malloc,{size}",
            "-j",
            "none",
        )
        wait_for_port(self.port, process)
        return self


class TrafficServer(Server):
    name = "ATS slice"
    what = (
        "slice.so --blockbytes=2m + cache_range_requests.so, read-while-writer on, "
        "2 GiB of RAM cache"
    )

    def start(self):
        root = self.folder
        config = root / "etc"
        shutil.copytree("/etc/trafficserver", config)
        for sub in ("cache", "log", "run"):
            (root / sub).mkdir()
        slicing = "@plugin=slice.so @pparam=--blockbytes=2m @plugin=cache_range_requests.so"
        (config / "remap.config").write_text(
            f"map / http://127.0.0.1:{self.origin_port}/ {slicing}\n"
        )
        (config / "storage.config").write_text(f"{root}/cache 4G\n")
        (config / "records.config").write_text(
            f"""CONFIG proxy.config.http.server_ports STRING {self.port}:ip-in=127.0.0.1
CONFIG proxy.config.http.cache.required_headers INT 0
CONFIG proxy.config.cache.ram_cache.size INT 2147483648
CONFIG proxy.config.url_remap.remap_required INT 1
CONFIG proxy.config.http.insert_response_via_str INT 0
CONFIG proxy.config.cache.enable_read_while_writer INT 1
CONFIG proxy.config.http.background_fill_active_timeout INT 0
CONFIG proxy.config.http.background_fill_completed_threshold FLOAT 0.0
CONFIG proxy.config.diags.logfile.filename STRING stderr
CONFIG proxy.config.log.logging_enabled INT 0
"""
        )
        layout = root / "runroot.yaml"
        layout.write_text(f"""prefix: /usr
exec_prefix: /usr
bindir: /usr/bin
sbindir: /usr/sbin
sysconfdir: {config}
datadir: /usr/share/trafficserver
includedir: /usr/include
libdir: /usr/lib/trafficserver
libexecdir: /usr/lib/trafficserver/modules
localstatedir: {root}/run
runtimedir: {root}/run
logdir: {root}/log
cachedir: {root}/cache
""")
        # It refuses to run as root.
        account = []
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", "trafficserver:", root], check=True)
            account = ["runuser", "-u", "trafficserver", "--"]
        process = self.launch(
            *account,
            "traffic_server",
            f"--run-root={layout}",
            env={**os.environ, "TS_RUNROOT": str(layout)},
            cwd="/",
        )
        wait_for_port(self.port, process)
        # It listens before its cache is ready, and passes requests through until then.
        time.sleep(1)
        return self


class Origin(Server):
    """The origin that all of them cache. Folders below its root answer late or slowly."""

    name = "origin"
    what = "the bench's own origin (tests/src/bin/chunkcache-origin.rs)"
    #: Name, milliseconds before each answer, bytes a second of each body (0: no limit).
    folders = [("after-20ms", 20, 0), ("after-80ms", 80, 0), ("paced", 0, 4 << 20)]

    def start(self):
        options = [
            part for folder in self.folders for part in ("--folder", ":".join(map(str, folder)))
        ]
        process = self.launch(
            ChunkCache.binaries / "chunkcache-origin",
            "--root",
            self.content.parent,
            "--listen",
            f"127.0.0.1:{self.port}",
            "--max-age",
            86400,
            *options,
        )
        wait_for_port(self.port, process)
        return self


class Rclone(Server):
    name = "rclone serve"
    what = "serve http over the http backend, --vfs-cache-mode full"

    def start(self):
        process = self.launch(
            "rclone",
            "serve",
            "http",
            ":http:",
            "--http-url",
            f"http://127.0.0.1:{self.origin_port}/",
            "--addr",
            f"127.0.0.1:{self.port}",
            "--vfs-cache-mode",
            "full",
            "--cache-dir",
            self.folder / "cache",
            "--config",
            "/dev/null",
        )
        wait_for_port(self.port, process)
        return self


class ChunkCache(Server):
    name = "chunk cache"
    what = (
        "cache-edge, cache-coordinator and PostgreSQL with their defaults; background fill off "
        "while misses are measured, as no peer has it"
    )

    #: Where the release binaries are.
    binaries = Path("target/release")
    tls = False
    #: A command that runs the edge, and further options of the edge.
    runner = []
    edge_options = []

    def start(self):
        self.prefix = "/bench"
        database = Postgres(self.folder / "postgres")
        self.processes.append(database.start())
        self.database = database
        grpc, http, self.admin = free_port(), free_port(), free_port()
        coordinator = self.launch(
            self.binaries / "cache-coordinator",
            "serve",
            "--database-url",
            database.url(),
            "--listen",
            f"127.0.0.1:{grpc}",
            "--http-listen",
            f"127.0.0.1:{http}",
        )
        wait_for_port(grpc, coordinator)
        options = []
        if self.tls:
            certificate, key = self_signed(self.folder)
            options = ["--tls-cert", certificate, "--tls-key", key]
        edge = self.launch(
            *self.runner,
            self.binaries / "cache-edge",
            "serve",
            "--name",
            "bench",
            "--coordinator",
            f"http://127.0.0.1:{grpc}",
            "--data-dir",
            self.folder / "data",
            "--listen",
            f"127.0.0.1:{self.port}",
            "--admin-listen",
            f"127.0.0.1:{self.admin}",
            *options,
            *self.edge_options,
        )
        wait_for_port(self.port, edge)
        self.edge = edge
        self.endpoint = f"http://127.0.0.1:{grpc}"
        self.set_fill(False)
        return self

    def set_fill(self, on):
        deadline = time.monotonic() + 30
        while True:
            added = self.cli(
                "source",
                "add",
                "bench",
                f"http://127.0.0.1:{self.origin_port}",
                f"--background-fill={str(on).lower()}",
            )
            if added.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(added.stderr)
            time.sleep(0.2)

    def cli(self, *arguments):
        command = [self.binaries / "cache-coordinator", "--endpoint", self.endpoint, *arguments]
        return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)

    def pids(self):
        # Only the edge is on the hit path; the control plane is measured separately.
        return children(self.edge.pid)


    def all_pids(self):
        return super().pids()


class ChunkCacheTls(ChunkCache):
    name = "chunk cache, TLS"
    what = "as above with --tls-cert (rustls with ring, TLS 1.3)"
    tls = True


class Postgres:
    """A private cluster; PostgreSQL refuses to run as root, so root starts it as `postgres`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.port = free_port()
        self.bin = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        self.prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []

    def url(self):
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.prefix:
            shutil.chown(self.folder, "postgres", "postgres")
        data = self.folder / "data"
        subprocess.run(
            [
                *self.prefix,
                str(self.bin / "initdb"),
                "-D",
                str(data),
                "-A",
                "trust",
                "-U",
                "postgres",
            ],
            check=True,
            capture_output=True,
            cwd="/",
        )
        log = open(self.folder.parent / "postgres.log", "ab")
        process = subprocess.Popen(
            [
                *self.prefix,
                str(self.bin / "postgres"),
                "-D",
                str(data),
                "-c",
                "listen_addresses=127.0.0.1",
                "-p",
                str(self.port),
                "-k",
                "",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
        wait_for_port(self.port, process)
        return process


PLAIN = [
    ChunkCache,
    NginxStatic,
    NginxStaticTuned,
    NginxSlice,
    NginxSliceTuned,
    Varnish,
    TrafficServer,
    Rclone,
]
TLS = [ChunkCacheTls, NginxStaticTls]
