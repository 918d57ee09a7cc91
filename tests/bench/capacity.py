#!/usr/bin/env python3
"""Writes docs/capacity.md: what a size needs, from what was measured (docs/bench/results.json, docs/bench/coordinator.json).

tests/bench/capacity.py
"""

import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 2 << 20

EDGES, VIEWERS, BITS = 10_000, 1_000_000, 10e12
#: DEMAND_GATHERING in cache-edge/src/control/session.rs: an edge tells of its readers at most
#: so often.
BATCHES_PER_SECOND = 20
#: A seek, RFC 0002: the demand of the new place, the end of the old reader; a CRITICAL and two HIGH
#: assignments, a cancel.
SEEK_UP, SEEK_DOWN = 2, 4
SEEKS_PER_VIEWER_HOUR = 6


def main():
    results = json.loads((ROOT / "docs/bench/results.json").read_text())
    told = json.loads((ROOT / "docs/bench/coordinator.json").read_text())
    (ROOT / "docs/capacity.md").write_text(text(constants(results, told), told))
    return 0


def constants(results, told):
    hits = results["hits"]

    def of(case, key):
        return statistics.median(
            run[key]
            for run in hits[case]["chunk cache" if "TLS" not in case else "chunk cache, TLS"]
        )

    idle = results["idle"]["chunk cache"]["resident_bytes"]
    return {
        "plain": of("2 MiB unaligned, 64 connections", "server_cpu_seconds_per_gigabyte"),
        "tls": of("TLS, 2 MiB aligned, 16 connections", "server_cpu_seconds_per_gigabyte"),
        "idle_kib": (idle["idle"] - idle["at_first"])
        / results["idle"]["chunk cache"]["idle"]["held"]
        / 1024,
        "reader_kib": max(
            0,
            max(
                r["resident_bytes"]["most"] - r["resident_bytes"]["at_first"]
                for r in results["huge"]["chunk cache"]
            ),
        )
        / 1000
        / 1024,
        **told["constants"],
    }


def text(c, told):
    f = told["figures"]
    bytes_per_second = BITS / 8
    gigabytes = bytes_per_second / 1e9
    per_viewer = bytes_per_second / VIEWERS
    chunks = bytes_per_second / CHUNK
    # The mean is what fills a core; the median hides the dear ones.
    apply_each = c["apply_mean_us"] / 1e6
    events = chunks + VIEWERS * SEEKS_PER_VIEWER_HOUR / 3600 * (SEEK_UP + SEEK_DOWN)
    scheduler_cores = events * apply_each
    edge_share = 1 / EDGES
    lines = [
        "# Capacity: what a size needs",
        "",
        "Made by `tests/bench/capacity.py` from what `tests/bench/run` and the coordinator's load tests measured "
        f"([report](bench/report.md), [coordinator](bench/coordinator.md); {told['where']}). A model: it multiplies constants, so it finds the first wall and its order of size, "
        "not the last percent.",
        "",
        "## The constants",
        "| | measured |",
        "|---|---|",
        f"| edge CPU a GB of hits, plain HTTP/1.1, 2 MiB | {c['plain']:.2f} s |",
        f"| the same over TLS | {c['tls']:.2f} s |",
        f"| edge memory an idle connection | {c['idle_kib']:.0f} KiB |",
        f"| edge memory a reader of a cached 100 GiB file, beyond an idle process | {c['reader_kib']:.0f} KiB |",
        f"| PostgreSQL bytes a chunk, row and indexes | {c['row_bytes']} |",
        f"| chunk completions a second, one coordinator and PostgreSQL | {c['completions_per_second']:,.0f}, for {f['completions_span_seconds']:.0f} s, into {f['rows'] / 1e6:,.0f} million rows |",
        f"| coordinator memory a session that has joined | {c['session_kib']} KiB |",
        f"| `HasByteRange` at that size, one edge, 33 chunks, p50 | {f['has_range_one_edge_33_p50_ms']:.2f} ms |",
        f"| reconciliation by digests of an edge with 1,000,000 chunks in it | {f['reconciliation_first_ms'] / 1000:.2f} s |",
        f"| one event of the scheduler at {told['apply_at']}, mean / median | {c['apply_mean_us']:.1f} / {c['apply_us']:.1f} µs |",
        f"| memory of the scheduler there | {told['scheduler'][-1]['resident'] / 1024:.1f} GiB |",
        f"| messages of a seek | {SEEK_UP} up, {SEEK_DOWN} down |",
        f"| messages of an edge's readers | at most {BATCHES_PER_SECOND} a second, whatever their number |",
        "",
        f"## {EDGES:,} edges, {VIEWERS:,} viewers, 10 Tb/s",
        f"A viewer takes {per_viewer * 8 / 1e6:.0f} Mb/s, so one chunk each {CHUNK / per_viewer:.1f} s; all of them {chunks:,.0f} chunks a second.",
        "",
        "| of | needed |",
        "|---|---|",
        f"| an edge: throughput | {gigabytes * edge_share * 8:.1f} Gb/s, {VIEWERS * edge_share:.0f} viewers |",
        f"| an edge: CPU for hits | {gigabytes * edge_share * c['plain']:.3f} cores plain, {gigabytes * edge_share * c['tls']:.3f} with TLS |",
        f"| an edge: memory for connections | {VIEWERS * edge_share * (c['reader_kib'] + c['idle_kib']) / 1024:.0f} MiB |",
        f"| all edges: CPU for hits | {gigabytes * c['plain']:,.0f} cores plain, {gigabytes * c['tls']:,.0f} with TLS |",
        f"| coordinator: sessions | {EDGES * c['session_kib'] / 1024 / 1024:.1f} GiB |",
        f"| coordinator: demand messages | at most {EDGES * BATCHES_PER_SECOND:,} a second; {VIEWERS * SEEKS_PER_VIEWER_HOUR / 3600 * (SEEK_UP + SEEK_DOWN):,.0f} a second for seeks ({SEEKS_PER_VIEWER_HOUR} an hour each) |",
        f"| coordinator: the scheduler, one event a chunk read and a message of a seek | {events:,.0f} events a second: {scheduler_cores:.1f} cores |",
        *(
            f"| PostgreSQL at {hit:.0%} hits: completions | {chunks * (1 - hit):,.0f} a second: {chunks * (1 - hit) / c['completions_per_second']:.1f} of what one bears |"
            for hit in (0.99, 0.95, 0.90)
        ),
        *(
            f"| PostgreSQL: rows at {tb} TB an edge | {EDGES * tb * 1e12 / CHUNK:,.0f}: {EDGES * tb * 1e12 / CHUNK * c['row_bytes'] / 1e12:.2f} TB |"
            for tb in (1, 10)
        ),
        "",
        "## Where the walls stand",
        f"1. *The scheduler*: one actor, so one core: {1 / apply_each:,.0f} events a second, which is {VIEWERS / scheduler_cores:,.0f} viewers at this bit rate. "
        "Readers whose bytes are all there and whose range is short are not told, and one that moves is told in the edge's batch; still it is the first wall.",
        f"2. *The writer*: {c['completions_per_second']:,.0f} completions a second are {c['completions_per_second'] * CHUNK * 8 / 1e9:,.0f} Gb/s of misses, "
        f"{c['completions_per_second'] * CHUNK * 8 / BITS:.1%} of 10 Tb/s.",
        f"3. *The table*: {1e9 * c['row_bytes'] / 1e9:.0f} GB a 10^9 rows. `HasByteRange` names the entry and reads a few pages whatever the size; vacuum, backup and reconciliation grow with it.",
        "4. *An edge*: nothing here; its CPU and memory are far from their ends at 1 Gb/s.",
        "",
        "## What the design does there",
        f"- *Sharding by entry.* Every row, want, reader and fetch belongs to one entry, and no decision joins two entries but for the budgets of sources and edges. So a hash of the "
        "entry's key, which is known before the entry is, names a shard: a coordinator pair with its own PostgreSQL. (For the table alone, Citus distributed by `entry_id`, with which "
        "its primary key begins.) What names an entry by its id alone asks all shards, and remembers. "
        f"{max(2, round(scheduler_cores / 0.5))} shards carry the size above with each scheduler half busy. A source's budget is divided among the shards and lent between them, as it is "
        "between edges today. An edge then keeps one session a shard.",
        "- *Hierarchical edges.* An edge takes another as its origin (`source add NAME https://parent/NAME`): 10,000 leaves below 100 parents are 100 sessions at the top, and "
        "the leaves' coordinators are regional. Misses at the top are then those of the parents alone.",
        "- What is not done: neither is in the code. Both keep `cache_chunks` the one truth of a shard or region, and neither changes the wire contract of an edge's session.",
        "",
        "## Checked against the scheduler",
        "`cargo bench -p cache-coordinator --bench scheduler -- --at EDGES READERS CHUNKS` drives the scheduler alone with readers that move and seek, fetches that progress and end, and edges that obey:",
        "",
        "| edges / readers / outstanding chunks | an event: mean | p50 | p99, µs | resident, MiB |",
        "|---|---|---|---|---|",
        *(
            f"| {row['at']} | {row['mean']} | {row['p50']} | {row['p99']} | {row['resident']:,.0f} |"
            for row in told["scheduler"]
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
