//! A large `cache_chunks`, as a thousand edges that fill at the same time leave it.
//!
//! Rows are in the order of their arrival: eight of an entry on an edge, then eight of the next, as
//! the writer's batches bring them from a thousand edges. So a query finds its rows on many pages,
//! and not, as it would if each entry were inserted at once, on few.
//!
//! Filling is a list of steps kept in the database: with `LOAD_DIRECTORY` a run continues where the
//! one before ended.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cache_coordinator::db::EdgeId;
use chunkcache_proto::EntryId;
use tokio_postgres::Client;

use super::size;
use crate::{
    api_support::fake_edge::store_id,
    support::{
        migrated,
        postgres::{Server, client},
    },
};

pub const EDGES: u32 = 1_000;
/// Chunks of an entry; each is 64 KiB.
pub const ENTRY_CHUNKS: u32 = 50_000;
/// Copies of each entry, on two of the edges.
const COPIES: u32 = 2;
/// Rows of an entry on an edge that came in one batch.
const TOGETHER: u32 = 8;
/// Number of statements that insert the rows.
const PIECES: u32 = 100;
/// Also holds [`WIDE_CHUNKS`] chunks: the edge that is reconciled.
pub const WIDE: &str = "wide";

pub struct Large {
    _server: Arc<Server>,
    pub url: String,
    pub entries: u32,
    pub rows: u64,
}

impl Large {
    /// The entry with a number from 1.
    pub fn entry(number: u32) -> EntryId {
        EntryId::from_u128(u128::from(number))
    }

    /// One of the edges that hold all of it.
    pub fn holder(number: u32) -> EdgeId {
        EdgeId::try_from((number * 7 + 501) % EDGES + 1).unwrap()
    }
}

/// Number of entries that the wide edge holds completely.
pub fn wide_entries(entries: u32) -> u32 {
    (size("LOAD_SESSION_CHUNKS", ENTRY_CHUNKS) / ENTRY_CHUNKS).clamp(1, entries)
}

/// The checksum of a chunk, as in its row.
pub fn checksum(index: u32) -> u64 {
    u64::from(index) * 1_099_511_628_211
}

/// Fills the table, or continues filling it: none if the time was over before that.
pub async fn fill(patience: Option<Duration>) -> Option<Large> {
    let server = Server::shared();
    let is_kept = std::env::var_os("LOAD_DIRECTORY").is_some();
    let url = if is_kept {
        server.url("load")
    } else {
        server.create_database().await
    };
    if is_kept {
        let postgres = client(&server.url("postgres")).await;
        let known = postgres
            .query("SELECT 1 FROM pg_database WHERE datname = 'load'", &[])
            .await;
        if known.unwrap().is_empty() {
            postgres
                .batch_execute("CREATE DATABASE load")
                .await
                .unwrap();
        }
    }
    migrated(&url).await;
    let entries = (size("LOAD_ROWS", 100_000) / ENTRY_CHUNKS / COPIES).max(1);
    let first = client(&url).await;
    let begun = first.query("SELECT to_regclass('load_steps')::text", &[]);
    let begun: Option<String> = begun.await.unwrap()[0].get(0);
    if begun.is_none() {
        plan(&first, entries).await;
    }
    let began = Instant::now();
    let second = client(&url).await;
    let is_over = || patience.is_some_and(|patience| began.elapsed() > patience);
    // Rows on both processors; later steps one by one.
    let (one, two) = tokio::join!(
        run_steps(&first, "rows", &is_over),
        run_steps(&second, "rows", &is_over)
    );
    if !(one && two && run_steps(&first, "rest", &is_over).await) {
        return None;
    }
    let rows = u64::from(entries * COPIES + wide_entries(entries)) * u64::from(ENTRY_CHUNKS);
    Some(Large {
        _server: server,
        url,
        entries,
        rows,
    })
}

/// The filled table; a run that finds it half filled was started too early.
pub async fn large() -> Large {
    let large = fill(None).await.unwrap();
    println!("{} rows", large.rows);
    large
}

/// Creates the small tables, records the steps, and drops the indexes and constraints until the
/// rows are there.
async fn plan(client: &Client, entries: u32) {
    let store = store_id(WIDE);
    let wide = wide_entries(entries);
    let blocks = ENTRY_CHUNKS / TOGETHER;
    let of_piece = blocks.div_ceil(PIECES);
    let mut steps: Vec<(&str, String)> = Vec::new();
    for piece in 0..PIECES {
        let (from, to) = (piece * of_piece, ((piece + 1) * of_piece).min(blocks));
        // LATERAL keeps the order: block by block, in each all entries on all their edges.
        let rows = |numbers: &str, edge: &str| {
            format!(
                "INSERT INTO cache_chunks (entry_id, edge_id, start_byte, end_byte, checksum)
                 SELECT n.id, {edge}, c * 65536::bigint, (c + 1) * 65536::bigint, c * 1099511628211
                 FROM generate_series({from}, {to} - 1) b
                 CROSS JOIN LATERAL (SELECT b AS of, m, copy, lpad(to_hex(m), 32, '0')::uuid AS id
                     FROM {numbers}) n
                 CROSS JOIN LATERAL generate_series(n.of * {TOGETHER},
                     n.of * {TOGETHER} + {TOGETHER} - 1) c"
            )
        };
        let copies = rows(
            &format!("generate_series(1, {entries}) m, generate_series(1, {COPIES}) copy"),
            &format!("(n.m * 7 + n.copy * 501) % {EDGES} + 1"),
        );
        let of_wide = rows(
            &format!("generate_series(1, {wide}) m, (SELECT 1 AS copy) one"),
            &format!("(SELECT id FROM edges WHERE name = '{WIDE}')"),
        );
        steps.push(("rows", format!("{copies}; {of_wide}")));
    }
    // As the migrations define them.
    let definitions = client
        .query(
            "SELECT 0 AS rank, conname::text AS name, true AS is_constraint,
                    format('ALTER TABLE cache_chunks ADD CONSTRAINT %I %s', conname,
                        pg_get_constraintdef(oid)) AS definition
             FROM pg_constraint WHERE conrelid = 'cache_chunks'::regclass AND contype IN ('p', 'u')
             UNION ALL
             SELECT 1, i.indexrelid::regclass::text, false, pg_get_indexdef(i.indexrelid)
             FROM pg_index i WHERE i.indrelid = 'cache_chunks'::regclass
               AND NOT EXISTS (SELECT 1 FROM pg_constraint c
                   WHERE c.conindid = i.indexrelid AND c.conrelid = i.indrelid)
             UNION ALL
             SELECT 2, conname, true,
                    format('ALTER TABLE cache_chunks ADD CONSTRAINT %I %s NOT VALID', conname,
                        pg_get_constraintdef(oid))
             FROM pg_constraint WHERE conrelid = 'cache_chunks'::regclass AND contype = 'f'
             ORDER BY 1 DESC",
            &[],
        )
        .await
        .unwrap();
    let mut away = String::new();
    for row in &definitions {
        let name: &str = row.get("name");
        away += &if row.get("is_constraint") {
            format!("ALTER TABLE cache_chunks DROP CONSTRAINT {name};")
        } else {
            format!("DROP INDEX {name};")
        };
    }
    for row in definitions.iter().rev() {
        let definition: &str = row.get("definition");
        steps.push(("rest", definition.to_owned()));
    }
    steps.push(("rest", "VACUUM (ANALYZE, FREEZE) cache_chunks".to_owned()));
    steps.push(("rest", "CHECKPOINT".to_owned()));
    client
        .batch_execute(&format!(
            "BEGIN;
             INSERT INTO sources (name, base_url, revision)
             VALUES ('films', 'http://origin.test', 1) ON CONFLICT DO NOTHING;
             INSERT INTO edges (name, url, store_id, state)
             SELECT 'e' || n, 'http://e', gen_random_uuid(), 'lost'
             FROM generate_series(1, {EDGES}) n;
             INSERT INTO edges (name, url, store_id, state)
             VALUES ('{WIDE}', 'http://{WIDE}', '{store}', 'lost');
             INSERT INTO cache_entries (id, source, path, validator, size, chunk_size)
             SELECT lpad(to_hex(n), 32, '0')::uuid, 'films', 'p' || n, 'v',
                    {ENTRY_CHUNKS} * 65536::bigint, 65536 FROM generate_series(1, {entries}) n;
             {away}
             CREATE TABLE load_steps (number integer PRIMARY KEY, part text NOT NULL,
                 sql text NOT NULL, is_done boolean NOT NULL DEFAULT false);"
        ))
        .await
        .unwrap();
    for (number, (part, sql)) in (0_i32..).zip(&steps) {
        client
            .execute(
                "INSERT INTO load_steps (number, part, sql) VALUES ($1, $2, $3)",
                &[&number, part, sql],
            )
            .await
            .unwrap();
    }
    client.batch_execute("COMMIT").await.unwrap();
}

/// True: nothing of the part is left. A step that was interrupted is rolled back, and repeated by
/// the next run.
async fn run_steps(client: &Client, part: &str, is_over: &impl Fn() -> bool) -> bool {
    client
        .batch_execute("SET maintenance_work_mem = '1GB'; SET synchronous_commit = off")
        .await
        .unwrap();
    loop {
        if is_over() {
            return false;
        }
        let began = Instant::now();
        if part == "rows" {
            client.batch_execute("BEGIN").await.unwrap();
        }
        let step = client
            .query_opt(
                "SELECT number, sql FROM load_steps WHERE part = $1 AND NOT is_done ORDER BY \
                 number LIMIT 1 FOR UPDATE SKIP LOCKED",
                &[&part],
            )
            .await
            .unwrap();
        let Some(step) = step else {
            client.batch_execute("COMMIT").await.unwrap();
            return true;
        };
        let (number, sql): (i32, &str) = (step.get("number"), step.get("sql"));
        client.batch_execute(sql).await.unwrap();
        client
            .execute(
                "UPDATE load_steps SET is_done = true WHERE number = $1",
                &[&number],
            )
            .await
            .unwrap();
        if part == "rows" {
            client.batch_execute("COMMIT").await.unwrap();
        }
        if began.elapsed() > Duration::from_secs(1) {
            println!("step {number}: {:?}", began.elapsed());
        }
    }
}
