//! Entries to be filled on an edge, a page at a time.

use super::*;

/// The page size of a session: `sessions/storage.rs`.
const PAGE: u32 = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_begun_is_found_page_by_page() {
    let (_server, url, one) = leader().await;
    one.source("films").await;
    let (a, b) = (one.edge("a", 1).await.edge, one.edge("b", 2).await.edge);
    // 2,500 entries of two chunks: every fifth is complete on the first edge, of the others it has
    // one chunk; the second edge has the other.
    client(&url)
        .await
        .batch_execute(&format!(
            "INSERT INTO cache_entries (id, source, path, validator, size, chunk_size)
             SELECT lpad(to_hex(n), 32, '0')::uuid, 'films', 'p' || n, 'v', 2 * 65536, 65536
             FROM generate_series(1, 2500) n;
             INSERT INTO cache_chunks (entry_id, edge_id, start_byte, end_byte, checksum)
             SELECT lpad(to_hex(n), 32, '0')::uuid, {}, 0, 65536, n FROM generate_series(1, 2500) n;
             INSERT INTO cache_chunks (entry_id, edge_id, start_byte, end_byte, checksum)
             SELECT lpad(to_hex(n), 32, '0')::uuid, CASE WHEN n % 5 = 0 THEN {} ELSE {} END, 65536,
                    131072, n FROM generate_series(1, 2500) n;",
            a.id, a.id, b.id
        ))
        .await
        .unwrap();
    let (mut found, mut after, mut pages) = (Vec::new(), EntryId::nil(), 0);
    loop {
        let page = one.database.incomplete_entries(a.id, after, PAGE);
        let page = page.await.unwrap();
        pages += 1;
        found.extend(page.iter().map(|it| (it.entry.as_u128(), it.held_bytes)));
        match page.last() {
            Some(last) if page.len() == PAGE as usize => after = last.entry,
            _ => break,
        }
    }
    let begun = (1..=2_500).filter(|n| n % 5 != 0).map(|n| (n, 65_536));
    assert_eq!(found, begun.collect::<Vec<(u128, u64)>>());
    assert_eq!(pages, 3, "two full ones, and one that says it is the last");
    let of_b = one.database.incomplete_entries(b.id, EntryId::nil(), PAGE);
    assert_eq!(of_b.await.unwrap().len(), PAGE as usize);
}
