"""Writes the results of tests/bench/run to docs/bench/ (report.md, results.json, SVG plots) and to
the README's table.
"""

import json
import statistics

import cases

OURS = "chunk cache"
README_BEGIN, README_END = "<!-- bench: from here -->", "<!-- bench: to here -->"

ALIGNED, UNALIGNED, THOUSAND = (
    "2 MiB aligned, 16 connections",
    "2 MiB unaligned, 64 connections",
    "2 MiB unaligned, 1,000 connections",
)
SMALL_16, SMALL_64 = "16 KiB, 16 connections", "16 KiB, 64 connections"
UNPINNED = ALIGNED + ", unpinned"
TLS = "TLS, 2 MiB aligned, 16 connections"

#: Case, peer, minimum ratio of GB/s, maximum ratio of CPU seconds per GB.
RATIOS = [
    (ALIGNED, "nginx slice", 2.0, 0.65),
    (UNALIGNED, "nginx slice", 2.0, 0.65),
    (UNPINNED, "nginx slice", 2.0, 0.65),
    (ALIGNED, "nginx slice tuned", 1.15, None),
    (UNALIGNED, "nginx slice tuned", 1.15, None),
    (UNPINNED, "nginx slice tuned", 1.0, None),
    (ALIGNED, "nginx static tuned", 1.0, None),
    (UNALIGNED, "nginx static tuned", 1.0, None),
    (SMALL_16, "nginx static", 1.2, None),
    (SMALL_64, "nginx static", 1.0, None),
    *(
        (case, peer, least, None)
        for peer, least in (("varnish", 1.5), ("ATS slice", 3.0))
        for case in (ALIGNED, UNALIGNED, THOUSAND, SMALL_16, SMALL_64)
    ),
    (TLS, "nginx static, TLS", 1.0, None),
]


def write_seek(table, origins, machine, folder):
    folder.mkdir(parents=True, exist_ok=True)
    where = (
        f"{machine['when']}: {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_gib']} GiB, kernel {machine['kernel']}"
    )
    (folder / "seek.md").write_text(f"""# Measured: seek to first byte

{where}. Measured by
`tests/bench/run --cases seek` (`tests/src/bin/chunkcache-seek.rs`).

One edge and a coordinator with PostgreSQL, as processes; an origin that answers after 40 ms, behind
one link of 10 MB/s for all its connections. Each seek is a new connection with an open-ended range,
at a position that no reader has reached; the previous connection is cut, as players do. Idle:
nothing else runs. Saturated: background fill completes other files and a precache job runs. A node
down: a cluster of three edges, one of which alone holds every second chunk of the seeks, and is
killed (SIGKILL) while it fetches the first; the seeks are those after that, alternately at the
other two, without a pause. Every byte read is compared.

{table}

## Behind other origins, beside peers
`tests/bench/seeks.py`: one viewer, and nothing else. 30 seeks to places that no reader has reached,
each a new connection with an open-ended range; the one before is cut at that moment, with its
lookahead under way. Every seventh reads on to 9 MiB. Each contestant has an origin of its own, of
the same kind; the times are milliseconds from the request, and possible is what the origin's
latency and link take for 9 MiB at least (of one connection, where each has its own rate). Every
byte is compared. p99 of 30 is the slowest, and of the four to 9 MiB the slowest is shown.

{origins}
""")


def write(results, folder, whole=True):
    """`whole`: every case was measured. Otherwise the others keep their earlier results."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    if not whole and path.exists():
        before = json.loads(path.read_text())
        for key, value in results.items():
            if isinstance(value, dict) and isinstance(before.get(key), dict):
                before[key] |= value
            else:
                before[key] = value
        results = before
    path.write_text(json.dumps(results, indent=1) + "\n")
    (folder / "report.md").write_text(
        "\n".join(
            [
                *head(results),
                *targets(results),
                *hits(results, folder),
                *misses(results),
                *small(results),
                *memory(results),
                *ends(results),
            ]
        )
        + "\n"
    )
    readme = folder.parents[1] / "README.md"
    text = readme.read_text()
    if README_BEGIN in text and README_END in text:
        before, rest = text.split(README_BEGIN)
        readme.write_text(
            before
            + README_BEGIN
            + "\n"
            + "\n".join(summary(results))
            + "\n"
            + README_END
            + rest.split(README_END)[1]
        )


def head(results):
    machine = results["machine"]
    return [
        "# Measured: the edge and its peers",
        "",
        f"{machine['when']}: {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} "
        f"GiB, kernel {machine['kernel']}, load average "
        f"{machine.get('load_average', '?')} (what runs beside the bench counts into it). Made by "
        f"`tests/bench/run`: {results['form']}; "
        "rounds are interleaved in changing order; medians, smallest and largest in brackets; "
        "ratios are of the same round. Bytes are compared while "
        "measuring: every one, but for hits of ranges those of one connection in eight and the "
        "first ones of each other answer, as taking and comparing all "
        "costs the load more than sending costs a server. Servers are pinned to one core and the "
        "load to the other, but where it says unpinned.",
        "",
        *was_busy(results),
    ]


def was_busy(results):
    """The benchmark itself causes a load of up to 4.5: 4.3 where nothing else ran."""
    if float(results["machine"].get("load_average", 0)) <= 5:
        return []
    return [
        "The machine was busy with other work during this run: times are too long, and ratios say "
        "little. Run it again on a quiet one.",
        "",
    ]


def wrong_bytes(results):
    runs = [
        run
        for kind in ("hits", "first_bytes")
        for case in results[kind].values()
        for rounds in case.values()
        for run in rounds
    ]
    runs += [
        run for rounds in [*results["crowd"].values(), *results["huge"].values()] for run in rounds
    ]
    for kind in ("small_cold", "small_warm"):
        runs += [run for rounds in results.get(kind, {}).values() for run in rounds]
    runs += [*results["follower"].values(), *results["idle"].values()]
    return sum(run["wrong_bytes"] for run in runs)


def ratios(ours, theirs, key):
    return [a[key] / b[key] for a, b in zip(ours, theirs) if b[key]]


def ours_of(case):
    return next((rounds for name, rounds in case.items() if name.startswith(OURS)), [])


def verdict(text, value, bound, least, digits=2):
    ok = value >= bound if least else value <= bound
    bound = f"{'≥' if least else '≤'} {bound:g}"
    return f"| {text} | {bound} | {value:.{digits}f} | {'yes' if ok else '**no**'} |"


def targets(results):
    """Compares the promised bounds with the measurements."""
    rows = []
    for case, peer, least, most_cpu in RATIOS:
        rounds = results["hits"].get(case, {})
        ours, theirs = ours_of(rounds), rounds.get(peer)
        if not ours or not theirs:
            continue
        for key, bound, is_least, what in (
            ("gigabytes_per_second", least, True, "throughput"),
            ("server_cpu_seconds_per_gigabyte", most_cpu, False, "CPU per GB"),
        ):
            values = ratios(ours, theirs, key)
            if bound and values:
                rows.append(
                    verdict(
                        f"{case}: {what} over {peer}", statistics.median(values), bound, is_least
                    )
                )
    for case, runs in results["first_bytes"].items():
        origin, ours = runs.get("origin"), runs.get(OURS)
        if origin and ours:
            over = statistics.median(
                a["first_byte_ms"]["p50"] - b["first_byte_ms"]["p50"] for a, b in zip(ours, origin)
            )
            rows.append(verdict(f"first byte, {case}: over the origin alone, ms", over, 1.0, False))
            peers = [
                statistics.median(r["first_byte_ms"]["p50"] for r in rounds)
                for name, rounds in runs.items()
                if name not in (OURS, "origin") and all(r["samples"] for r in rounds)
            ]
            if peers:
                mine = statistics.median(r["first_byte_ms"]["p50"] for r in ours)
                rows.append(
                    verdict(
                        f"first byte, {case}: over the fastest peer", mine / min(peers), 1.0, False
                    )
                )
    if OURS in results["follower"]:
        rows.append(
            verdict(
                "follower on a paced origin, ms",
                results["follower"][OURS]["first_byte_ms"]["p50"],
                5,
                False,
            )
        )
    for rounds in results["huge"].values():
        most = max(r["resident_bytes"]["most"] for r in rounds) / (1 << 20)
        rows.append(verdict("MiB resident at 1,000 readers of 100 GiB files", most, 64, False, 0))
    rows += small_targets(results)
    if not rows:
        return []
    return [
        "## Aims",
        "",
        "| | aim | measured | reached |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def small_targets(results):
    """The aims for distinct small objects."""
    cold, warm = results.get("small_cold", {}), results.get("small_warm", {})
    if OURS not in cold or OURS not in warm:
        return []
    rate = statistics.median(run["requests_per_second"] for run in cold[OURS])
    each = statistics.median(cases.cpu_ms_each(run) for run in cold[OURS])
    rows = [
        verdict("64 KiB objects, cold: requests a second", rate, 3000, True, 0),
        verdict("64 KiB objects, cold: processor ms each", each, 0.4, False),
    ]
    for what, runs, peer in (
        ("cold", cold, "nginx proxy_cache"),
        ("warm", warm, "nginx static"),
    ):
        if runs.get(peer):
            ratio = statistics.median(ratios(runs[OURS], runs[peer], "requests_per_second"))
            label = f"64 KiB objects, {what}: throughput over {peer}"
            rows.append(verdict(label, ratio, 1.0, True))
    return rows


def hits(results, folder):
    lines = []
    for case, runs in results["hits"].items():
        lines += [
            f"## {case}",
            "",
            "| server | GB/s | requests/s | server CPU s/GB | first byte p50 / p99 ms | MiB "
            "resident | errors | GB/s, ours over it |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, rounds in runs.items():
            lines.append(row(name, rounds, ours_of(runs)))
        lines += ["", f"![{case}]({slug(case)}.svg)", ""]
        (folder / f"{slug(case)}.svg").write_text(
            bars(f"{case}: GB/s, median", runs, "gigabytes_per_second")
        )
    return lines


def row(name, rounds, ours):
    median = lambda key: statistics.median(r[key] for r in rounds)  # noqa: E731
    spread = (
        lambda key, digits: f"{median(key):.{digits}f} "
            f"({min(r[key] for r in rounds):.{digits}f}–{max(r[key] for r in rounds):.{digits}f})"
    )  # noqa: E731
    first = [statistics.median(r["first_byte_ms"][part] for r in rounds) for part in ("p50", "p99")]
    resident = max(r["resident_bytes"]["most"] for r in rounds) / (1 << 20)
    ratio = "–"
    values = ratios(ours, rounds, "gigabytes_per_second")
    if values and not name.startswith(OURS):
        ratio = f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
    return (
        f"| {name} | {spread('gigabytes_per_second', 2)} | {spread('requests_per_second', 0)} | "
        f"{spread('server_cpu_seconds_per_gigabyte', 3)} | "
        f"{first[0]:.2f} / {first[1]:.2f} | {resident:.0f} | {sum(r['errors'] for r in rounds)} | "
        f"{ratio} |"
    )


def misses(results):
    lines = []
    if results["first_bytes"]:
        names = list(next(iter(results["first_bytes"].values())))
        lines += [
            "## First byte where bytes are missing, ms",
            "",
            "| | " + " | ".join(names) + " |",
            "|---" * (len(names) + 1) + "|",
        ]
        for case, runs in results["first_bytes"].items():
            cells = [
                f"{statistics.median(r['first_byte_ms']['p50'] for r in runs[name]):.2f}"
                for name in names
                if name in runs
            ]
            lines.append(f"| {case} | " + " | ".join(cells) + " |")
        lines += [
            "",
            "Medians; 64 KiB are asked for on an open connection, of another object each time, "
            "one after the other.",
            "",
        ]
    if results["follower"]:
        lines += [
            "## Follower",
            "",
            "| server | first byte p50 / p90 ms | errors |",
            "|---|---|---|",
        ]
        lines += [
            f"| {n} | {r['first_byte_ms']['p50']:.2f} / {r['first_byte_ms']['p90']:.2f} | "
            f"{r['errors']} |"
            for n, r in results["follower"].items()
        ]
        lines += [
            "",
            "An object that arrives at 4 MiB/s; 150 ms after the first reader a second asks for "
            "its first 64 KiB, which are there.",
            "",
        ]
    if results["crowd"]:
        lines += [
            "## 50 readers of one cold file of 64 MiB",
            "",
            "| server | first byte p50 / p99 ms | all have all after, s | copies sent by the "
            "origin | errors |",
            "|---|---|---|---|---|",
        ]
        for name, rounds in results["crowd"].items():
            m = lambda key: statistics.median(key(r) for r in rounds)  # noqa: E731
            lines.append(
                f"| {name} | {m(lambda r: r['first_byte_ms']['p50']):.1f} / "
                f"{m(lambda r: r['first_byte_ms']['p99']):.1f} | {m(lambda r: r['seconds']):.2f} | "
                f"{m(lambda r: r['origin_copies']):.2f} | {sum(r['errors'] for r in rounds)} |"
            )
        lines.append("")
    if results.get("extents"):
        lines += [
            "## Extents after random fills",
            "",
            "| server | extents of each file of 64 MiB |",
            "|---|---|",
        ]
        lines += [
            f"| {name} | {', '.join(map(str, counts))} |"
            for name, counts in results["extents"].items()
        ]
        lines += [
            "",
            "By `filefrag`: 16 readers ask for 64 KiB at random places of four objects for 3 s, "
            "then each is read whole. Only servers with one file an object.",
            "",
        ]
    return lines


def small(results):
    if not results.get("small_cold"):
        return []
    lines = [
        f"## Distinct objects of {cases.SMALL_BYTES >> 10} KiB",
        "",
        "| server | cold requests/s | processor ms each | p50 / p99 ms "
        "| warm requests/s | processor ms each | p99 ms |",
        "|---" * 7 + "|",
    ]
    names = dict.fromkeys([*results["small_cold"], *results["small_warm"]])
    for name in names:
        cells = []
        for kind in ("small_cold", "small_warm"):
            rounds = results[kind].get(name)
            if not rounds:
                cells += ["–"] * 3
                continue
            middle = lambda key: statistics.median(key(run) for run in rounds)  # noqa: E731
            p50 = middle(lambda r: r["whole_ms"]["p50"])
            p99 = middle(lambda r: r["whole_ms"]["p99"])
            cells += [
                f"{middle(lambda r: r['requests_per_second']):.0f}",
                f"{middle(cases.cpu_ms_each):.3f}",
                f"{p50:.1f} / {p99:.1f}" if kind == "small_cold" else f"{p99:.1f}",
            ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        f"{cases.SMALL_CONNECTIONS} connections, nothing pinned; each of {cases.SMALL_OBJECTS} "
        f"objects once a round, then {cases.SMALL_WARM} of them at random. Processor time is that "
        "of all processes: with coordinator and PostgreSQL.",
        "",
    ]


def memory(results):
    lines = []
    if results["idle"]:
        lines += [
            "## 10,000 idle connections",
            "",
            "| server | held | KiB each | 16 KiB requests/s on 16 others | their first byte p99 "
            "ms |",
            "|---|---|---|---|---|",
        ]
        for name, r in results["idle"].items():
            each = (
                (r["resident_bytes"]["idle"] - r["resident_bytes"]["at_first"])
                / 1024
                / max(1, r["idle"]["held"])
            )
            lines.append(
                f"| {name} | {r['idle']['held']} | {each:.2f} | {r['requests_per_second']:.0f} | "
                f"{r['first_byte_ms']['p99']:.2f} |"
            )
        lines.append("")
    for name, rounds in results["huge"].items():
        values = ", ".join(f"{r['resident_bytes']['most'] / (1 << 20):.1f}" for r in rounds)
        lines += [
            "## Memory at 1,000 readers of ten files of 100 GiB",
            "",
            f"{name}: {values} MiB resident at most, in rounds one after the other.",
            "",
        ]
    return lines


def ends(results):
    lines = [
        "## Versions and configurations",
        "",
        "| server | version | configuration |",
        "|---|---|---|",
    ]
    for name, what in results["what"].items():
        version = next((v for k, v in results["versions"].items() if name.startswith(k)), "")
        lines.append(f"| {name} | {version} | {what} |")
    for name, why in results.get("left_out", {}).items():
        lines.append(f"| {name} | left out | {why} |")
    return [
        *lines,
        "",
        "Other versions: " + "; ".join(f"{k}: {v}" for k, v in results["versions"].items()) + ".",
        "",
    ]


def summary(results):
    """The README's table."""
    columns = [
        (ALIGNED, "2 MiB, 16 conn., GB/s (CPU s/GB)"),
        (UNALIGNED, "2 MiB, 64 conn."),
        (SMALL_16, "16 KiB requests/s, 16 conn."),
        (SMALL_64, "64 conn."),
    ]
    names = list(results["hits"].get(ALIGNED, {}))
    names += [name for name in results.get("small_cold", {}) if name not in names]
    cold = results["first_bytes"].get("cold object, amid a chunk", {})
    lines = [
        "| | "
        + " | ".join(title for _, title in columns)
        + " | cold first byte, ms | follower, ms | 64 KiB objects/s, cold (CPU ms each) | warm |",
        "|---" * (len(columns) + 5) + "|",
    ]
    for name in names:
        cells = []
        for case, title in columns:
            rounds = results["hits"].get(case, {}).get(name, [])
            m = lambda key: statistics.median(r[key] for r in rounds)  # noqa: E731
            if not rounds:
                cells.append("–")
            elif "KiB" in case:
                cells.append(f"{m('requests_per_second') / 1000:.1f}k")
            else:
                cells.append(
                    f"{m('gigabytes_per_second'):.2f} ({m('server_cpu_seconds_per_gigabyte'):.2f})"
                )
        cells.append(
            f"{statistics.median(r['first_byte_ms']['p50'] for r in cold[name]):.2f}"
            if cold.get(name)
            else "–"
        )
        follower = results["follower"].get(name)
        cells.append(f"{follower['first_byte_ms']['p50']:.1f}" if follower else "–")
        cells += [small_cell(results, kind, name) for kind in ("small_cold", "small_warm")]
        lines.append(
            f"| {'**' + name + '**' if name == OURS else name} | " + " | ".join(cells) + " |"
        )
    machine = results["machine"]
    origin = (
        f"; the origin alone: "
        f"{statistics.median(r['first_byte_ms']['p50'] for r in cold['origin']):.2f} ms"
        if cold.get("origin")
        else ""
    )
    return [
        *lines,
        "",
        f"{machine['when']}, {machine['cores']} cores ({machine['cpu']}), server on one and load "
        f"on the other, {results['form']}, load average "
        f"{machine.get('load_average', '?')}{origin}.",
        *was_busy(results)[:1],
    ]


def small_cell(results, kind, name):
    rounds = results.get(kind, {}).get(name)
    if not rounds:
        return "–"
    rate = statistics.median(run["requests_per_second"] for run in rounds) / 1000
    each = statistics.median(cases.cpu_ms_each(run) for run in rounds)
    return f"{rate:.1f}k ({each:.2f})"


def slug(text):
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def bars(title, runs, key):
    values = {
        name: statistics.median(r[key] for r in rounds) for name, rounds in runs.items() if rounds
    }
    top = max(values.values(), default=1) or 1
    height = 30 * len(values) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="{title}">'
    ]
    parts.append(
        f'<rect width="720" height="{height}" fill="#fff"/><text x="10" y="20" '
        f'font-weight="600">{title}</text>'
    )
    for index, (name, value) in enumerate(sorted(values.items(), key=lambda item: -item[1])):
        y = 34 + 30 * index
        colour = "#0b6a5d" if name.startswith(OURS) else "#9aa7b4"
        parts.append(
            f'<text x="150" y="{y + 15}" text-anchor="end">{name}</text><rect x="160" y="{y}" '
            f'width="{480 * value / top:.1f}" height="20" fill="{colour}"/>'
        )
        parts.append(f'<text x="{166 + 480 * value / top:.1f}" y="{y + 15}">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>", ""])
