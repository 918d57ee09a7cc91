//! Another service's use of the cache: open an entry, have a part of it fetched, wait for it, and
//! get the URL to play.
//!
//!     cargo run -p chunkcache-tests --example open_and_wait -- http://127.0.0.1:7400 films/a.mp4

use std::time::Duration;

use chunkcache_proto::v1::{
    ByteRange, EntryName, OpenEntryRequest, Priority, SourcePath, WaitForRangeRequest,
    cache_service_client::CacheServiceClient, entry_name,
};
use tonic::{Request, transport::Endpoint};
use tonic_types::StatusExt as _;

/// The bytes that a player reads first.
const FIRST_BYTES: u64 = 4 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, name] = arguments.as_slice() else {
        anyhow::bail!("usage: open_and_wait ENDPOINT SOURCE/PATH");
    };
    let Some((source, path)) = name.split_once('/') else {
        anyhow::bail!("{name}: expected SOURCE/PATH");
    };
    let source_path = SourcePath {
        source: source.to_owned(),
        path: path.to_owned(),
    };
    let entry = EntryName {
        name: Some(entry_name::Name::SourcePath(source_path)),
    };
    let channel = Endpoint::from_shared(endpoint.clone())?.connect().await?;
    let mut cache = CacheServiceClient::new(channel);

    let request = OpenEntryRequest {
        entry: Some(entry.clone()),
        position: 0,
    };
    let opened = match cache.open_entry(request).await {
        Ok(opened) => opened.into_inner(),
        Err(status) => {
            // The details tell programs what was wrong; the message is for people.
            for violation in status
                .get_details_bad_request()
                .into_iter()
                .flat_map(|it| it.field_violations)
            {
                eprintln!("{}: {}", violation.field, violation.description);
            }
            return Err(status.into());
        }
    };
    let size = opened.entry.map(|entry| entry.size).unwrap_or_default();

    let range = ByteRange {
        start: 0,
        end: size.min(FIRST_BYTES),
    };
    let mut request = Request::new(WaitForRangeRequest {
        entry: Some(entry),
        range: Some(range),
        edge: opened.edge.clone(),
        request_priority: Priority::Medium.into(),
    });
    request.set_timeout(Duration::from_secs(30));
    let recorded = cache.wait_for_range(request).await?.into_inner();
    println!(
        "{} bytes are on {} as of revision {}: {}",
        range.end, opened.edge, recorded.revision, opened.play_url
    );
    Ok(())
}
