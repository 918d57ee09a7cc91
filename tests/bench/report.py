"""Turns the results of tests/bench/run into docs/bench/report.md, results.json and SVG plots."""

import json
import statistics

BASELINES = ["nginx static", "nginx static tuned", "nginx slice", "nginx slice tuned", "varnish", "ATS slice", "rclone serve"]
OURS = "chunk cache"


def write_seek(table, machine, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seek.md").write_text(f"""# Measured: seek to first byte

{machine['when']}: {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, kernel {machine['kernel']}. Made by
`tests/bench/run --cases seek` (`tests/src/bin/chunkcache-seek.rs`).

One edge and a coordinator with PostgreSQL, as processes; an origin that answers after 40 ms, behind one link of 10 MB/s that all its
connections share. Each seek is a new connection with an open-ended range, at a place nobody was at; the one before is cut, as
players do. Idle: nothing else runs. Saturated: background fill completes other files and a precache job runs. Every byte read is
compared.

{table}
""")


def write(results, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    lines = ["# Measured: the edge and its peers", ""]
    machine = results["machine"]
    lines += [
        f"{machine['when']}: {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, kernel {machine['kernel']}. Made by `tests/bench/run`; "
        "medians of interleaved rounds, smallest and largest in brackets; every byte compared while measuring.", "",
    ]
    for case, runs in results["hits"].items():
        lines += [f"## {case}", "", "| server | GB/s | requests/s | server CPU s/GB | first byte p50 / p99 ms | errors | wrong bytes | GB/s, ours over it |", "|---|---|---|---|---|---|---|---|"]
        for name, rounds in runs.items():
            lines.append(row(name, rounds, runs.get(OURS)))
        lines += ["", f"![{case}]({slug(case)}.svg)", ""]
        (folder / f"{slug(case)}.svg").write_text(bars(case, runs))
    if results.get("memory"):
        lines += ["## Resident memory after the runs", "", "| server | MiB |", "|---|---|"]
        lines += [f"| {name} | {value / (1 << 20):.0f} |" for name, value in results["memory"].items()]
        lines.append("")
    for title, rows in results.get("tables", {}).items():
        lines += [f"## {title}", "", *rows, ""]
    lines += ["## Versions and configurations", "", "| server | version | configuration |", "|---|---|---|"]
    for name, what in results["what"].items():
        version = next((v for k, v in results["versions"].items() if name.startswith(k) or k.startswith(name)), "")
        lines.append(f"| {name} | {version} | {what} |")
    for name, why in results.get("left_out", {}).items():
        lines.append(f"| {name} | left out | {why} |")
    lines += ["", "Other versions: " + "; ".join(f"{k}: {v}" for k, v in results["versions"].items()) + ".", ""]
    (folder / "report.md").write_text("\n".join(lines))


def row(name, rounds, ours):
    if not rounds:
        return f"| {name} | – | – | – | – | – | – | – |"
    median = lambda key: statistics.median(r[key] for r in rounds)  # noqa: E731
    spread = lambda key, digits: f"{median(key):.{digits}f} ({min(r[key] for r in rounds):.{digits}f}–{max(r[key] for r in rounds):.{digits}f})"  # noqa: E731
    first = statistics.median(r["first_byte_ms"]["p50"] for r in rounds), statistics.median(r["first_byte_ms"]["p99"] for r in rounds)
    ratio = "–"
    if ours and name != OURS and len(ours) == len(rounds):
        pairs = [a["gigabytes_per_second"] / b["gigabytes_per_second"] for a, b in zip(ours, rounds) if b["gigabytes_per_second"]]
        ratio = f"{statistics.median(pairs):.2f} ({min(pairs):.2f}–{max(pairs):.2f})" if pairs else "–"
    return (
        f"| {name} | {spread('gigabytes_per_second', 2)} | {spread('requests_per_second', 0)} | {spread('server_cpu_seconds_per_gigabyte', 3)} | "
        f"{first[0]:.2f} / {first[1]:.2f} | {sum(r['errors'] for r in rounds)} | {sum(r['wrong_bytes'] for r in rounds)} | {ratio} |"
    )


def slug(text):
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-").replace("--", "-")


def bars(title, runs):
    values = {name: statistics.median(r["gigabytes_per_second"] for r in rounds) for name, rounds in runs.items() if rounds}
    top = max(values.values(), default=1) or 1
    height = 30 * len(values) + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="{title}">']
    parts.append(f'<rect width="720" height="{height}" fill="#fff"/><text x="10" y="20" font-weight="600">{title}: GB/s, median</text>')
    for index, (name, value) in enumerate(sorted(values.items(), key=lambda item: -item[1])):
        y = 34 + 30 * index
        colour = "#0b6a5d" if name == OURS else "#9aa7b4"
        parts.append(f'<text x="150" y="{y + 15}" text-anchor="end">{name}</text><rect x="160" y="{y}" width="{480 * value / top:.1f}" height="20" fill="{colour}"/>')
        parts.append(f'<text x="{166 + 480 * value / top:.1f}" y="{y + 15}">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>", ""])
