//! The query plans of the hot statements.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn hot_statements_use_the_primary_key() {
    let (_server, url, one) = leader().await;
    one.source("films").await;
    let client = client(&url).await;
    // 4 edges, 50 entries, 1,000 chunks each: 200,000 rows.
    client
        .batch_execute(
            "INSERT INTO edges (name, url, store_id) SELECT 'e' || n, 'http://e', \
             gen_random_uuid() FROM generate_series(1, 4) n;
             INSERT INTO cache_entries (id, source, path, validator, size, chunk_size)
             SELECT lpad(to_hex(n), 32, '0')::uuid, 'films', 'p' || n, 'v', 1000 * 65536, 65536
             FROM generate_series(1, 50) n;
             INSERT INTO cache_chunks (entry_id, edge_id, start_byte, end_byte, checksum)
             SELECT e.id, d.id, c * 65536::bigint, (c + 1) * 65536::bigint, c
             FROM edges d, cache_entries e, generate_series(0, 999) c;
             INSERT INTO cache_entries (id, source, path, validator, size, chunk_size)
             SELECT gen_random_uuid(), 'films', 'more' || n, 'v', 65536, 65536
             FROM generate_series(1, 5000) n;
             INSERT INTO cache_keys (hash, entry_id, validated_at, fresh_until)
             SELECT gen_random_uuid(), id, now(), now() FROM cache_entries",
        )
        .await
        .unwrap();
    client.batch_execute("VACUUM ANALYZE").await.unwrap();
    let id = "'00000000-0000-0000-0000-000000000007'::uuid";
    let edge = "(SELECT id FROM edges WHERE name = 'e2')";
    let cases = [
        (
            statements::CHUNK_MISSING,
            vec![
                id,
                "655360",
                "1310720",
                "65536",
                "ARRAY(SELECT id FROM edges)",
                "1000",
            ],
            // On a table far larger than memory, a query would otherwise wait for one of its pages
            // for each few rows.
            "Index Only Scan using cache_chunks_pkey",
        ),
        (
            statements::CHUNK_MISSING_ANYWHERE,
            vec![id, "655360", "1310720", "65536", "1000"],
            "Index Only Scan using cache_chunks_pkey",
        ),
        (
            statements::CHUNK_HOLDINGS,
            vec!["ARRAY['00000000-0000-0000-0000-000000000007'::uuid]"],
            "cache_chunks_pkey",
        ),
        // Either index has both columns first.
        (statements::CHUNK_DIGEST, vec![id, edge], "cache_chunks_"),
        (statements::CHUNK_LIST, vec![id, edge], "cache_chunks_"),
        (
            statements::CHUNK_HOLDERS,
            vec![id, "655360", "1310720", "65536"],
            "cache_chunks_pkey",
        ),
        (
            statements::CHUNK_CONFLICTS,
            vec![
                "ARRAY['00000000-0000-0000-0000-000000000007'::uuid]",
                "ARRAY[655360::bigint]",
                "ARRAY[1::bigint]",
            ],
            "cache_chunks_pkey",
        ),
        (
            statements::BINDING_GET,
            vec!["ARRAY['00000000-0000-0000-0000-000000000007'::uuid]"],
            "cache_keys_pkey",
        ),
        (
            statements::BINDING_OF_PATH,
            vec!["'films'", "'p7'", "''"],
            "cache_entries_by_path",
        ),
        (
            statements::ENTRY_UNUSED,
            vec!["600", "false", "100"],
            "cache_entries_chunkless",
        ),
        (
            statements::ENTRY_PAGE_OF_SOURCE,
            vec!["'films'", "'p7'", "''", id, "10"],
            "cache_entries_by_path",
        ),
    ];
    // On a tiny entry table the planner rightly reads everything; the question is which index would
    // be used.
    client
        .batch_execute("SET enable_seqscan = off")
        .await
        .unwrap();
    for (statement, arguments, index) in cases {
        let types: String = client
            .prepare(statement.sql)
            .await
            .unwrap()
            .params()
            .iter()
            .map(|kind| kind.to_string())
            .collect::<Vec<_>>()
            .join(", ");
        let arguments: Vec<String> = arguments
            .iter()
            .map(|argument| format!("({argument})"))
            .collect();
        client
            .batch_execute(&format!(
                "SET plan_cache_mode = force_generic_plan; PREPARE hot ({types}) AS {}",
                statement.sql
            ))
            .await
            .unwrap_or_else(|error| panic!("{}: {error:?}", statement.name));
        let plan: String = explain(&client, &arguments, types.split(", ").collect()).await;
        assert!(plan.contains(index), "{}:\n{plan}", statement.name);
        assert!(
            !plan.contains("Seq Scan on cache_chunks"),
            "{}:\n{plan}",
            statement.name
        );
        client.batch_execute("DEALLOCATE hot").await.unwrap();
    }
    let began = Instant::now();
    let digests = one
        .database
        .digests(
            client
                .query_one("SELECT id FROM edges WHERE name = 'e2'", &[])
                .await
                .unwrap()
                .get(0),
        )
        .await
        .unwrap();
    assert_eq!(digests.len(), 50);
    assert!(began.elapsed() < Duration::from_secs(2));
}

async fn explain(
    client: &tokio_postgres::Client,
    arguments: &[String],
    types: Vec<&str>,
) -> String {
    // EXECUTE takes no subquery: values are evaluated first.
    let mut values = Vec::new();
    for (argument, kind) in arguments.iter().zip(types) {
        let kind = match kind.strip_prefix('_') {
            Some(element) => format!("{element}[]"),
            None => kind.to_owned(),
        };
        let row = client
            .query_one(&format!("SELECT ({argument})::{kind}::text"), &[])
            .await
            .unwrap();
        values.push(format!("'{}'::{kind}", row.get::<_, String>(0)));
    }
    let messages = client
        .simple_query(&format!("EXPLAIN EXECUTE hot ({})", values.join(", ")))
        .await
        .unwrap();
    messages
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect::<Vec<_>>()
        .join("\n")
}
