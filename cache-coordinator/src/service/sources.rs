//! Sources: register, change and remove; every connected edge knows the change before the caller
//! gets its answer.

use std::{sync::Arc, time::Duration};

use chunkcache_proto::v1;
use prost::Message as _;
use v1::session_response::Message;

use super::{
    Cluster,
    error::{Resource, ServiceError},
    source_check, source_rules, source_secrets, source_uses,
};
use crate::{
    db::writer::PutSource,
    sessions::{
        plan::Command,
        registry::{Confirmation, Publication},
        storage::take_up_fill,
    },
};

/// How long to wait for edges.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);
/// Limit of the size of all sources together. An edge gets all in one message, and takes one of
/// 4 MiB at most.
const MAX_BYTES: usize = 3 << 20;

/// Adds or changes a source.
pub async fn put(
    cluster: &Arc<Cluster>,
    request: v1::PutSourceRequest,
) -> Result<v1::PutSourceResponse, ServiceError> {
    cluster.require_leader()?;
    let given = request
        .source
        .ok_or_else(|| ServiceError::invalid("source", "expected a source"))?;
    let mut unchecked = String::new();
    if request.check {
        let (source, before) = read(cluster, given.clone())?;
        if source_check::is_due(&source, before.as_ref()) {
            unchecked = source_check::check(cluster, &source).await?;
        }
    }
    let alone = cluster.publishing.lock().await;
    let (source, before) = read(cluster, given)?;
    let is_same = |before: &v1::Source| {
        let revision = before.revision;
        *before
            == v1::Source {
                revision,
                ..source.clone()
            }
    };
    if let Some(before) = before.as_ref().filter(|before| is_same(before)) {
        return Ok(v1::PutSourceResponse {
            source: Some(source_secrets::redacted(before.clone())),
            unchanged: true,
            ..v1::PutSourceResponse::default()
        });
    }
    check_size(cluster, &source, before.as_ref())?;
    if request.validate_only {
        return Ok(v1::PutSourceResponse {
            source: Some(source_secrets::redacted(source)),
            unchecked,
            ..v1::PutSourceResponse::default()
        });
    }
    let put = cluster.writer.write(PutSource { source }).await?.value;
    let posted = publish(cluster).await?;
    cluster
        .plan
        .tell(Command::SourceSet(Box::new(put.clone())))
        .await?;
    drop(alone);
    let confirmed = posted.confirmed(CONFIRM_WITHIN).await;
    let fills = |source: &v1::Source| source.background_fill != Some(false);
    if fills(&put) && before.as_ref().is_some_and(|before| !fills(before)) {
        // Entries that edges hold in part, and that were idle for long, are not open.
        for live in cluster.registry.all() {
            let fill = take_up_fill(Arc::clone(cluster), live);
            cluster.tasks.spawn(fill);
        }
    }
    Ok(v1::PutSourceResponse {
        source: Some(source_secrets::redacted(put)),
        unconfirmed_edges: confirmed.unconfirmed,
        unchanged: false,
        unchecked,
    })
}

/// The source as it would be stored, and as it is registered now.
fn read(
    cluster: &Cluster,
    mut source: v1::Source,
) -> Result<(v1::Source, Option<v1::Source>), ServiceError> {
    let before = cluster.source(&source.name);
    source_secrets::restore(&mut source, before.as_ref());
    let unknown = source_secrets::unknown(&source);
    if !unknown.is_empty() {
        return Err(ServiceError::Invalid(unknown));
    }
    let source = source_rules::check(source).map_err(ServiceError::Invalid)?;
    Ok((source, before))
}

/// Checks that the sources still fit into one message. One that grows no further may be changed.
fn check_size(
    cluster: &Cluster,
    source: &v1::Source,
    before: Option<&v1::Source>,
) -> Result<(), ServiceError> {
    let all = cluster.sources.load();
    let others = all.iter().filter(|it| it.name != source.name);
    let bytes: usize = others
        .chain([source])
        .map(prost::Message::encoded_len)
        .sum();
    if bytes <= MAX_BYTES || before.is_some_and(|it| source.encoded_len() <= it.encoded_len()) {
        return Ok(());
    }
    Err(ServiceError::Exhausted(format!(
        "all sources together may take {MAX_BYTES} bytes, and with {} they would take {bytes}; \
         certificates take most of it",
        source.name
    )))
}

/// One source, without its secrets.
pub async fn get(cluster: &Cluster, name: &str) -> Result<v1::GetSourceResponse, ServiceError> {
    require_name(name)?;
    let source = cluster
        .database
        .source(name)
        .await?
        .ok_or_else(|| ServiceError::not_found(Resource::Source, name))?;
    Ok(v1::GetSourceResponse {
        source: Some(source_secrets::redacted(source)),
        uses: source_uses::of_source(cluster, name),
    })
}

/// All sources, without their secrets.
pub async fn list(cluster: &Cluster) -> Result<v1::ListSourcesResponse, ServiceError> {
    let sources = cluster.database.sources().await?;
    let mut uses = source_uses::of_cluster(cluster);
    Ok(v1::ListSourcesResponse {
        uses: sources
            .iter()
            .filter_map(|source| uses.remove(&source.name))
            .collect(),
        sources: sources.into_iter().map(source_secrets::redacted).collect(),
    })
}

/// Removes a source with its entries and rows.
pub async fn remove(
    cluster: &Cluster,
    name: &str,
) -> Result<v1::RemoveSourceResponse, ServiceError> {
    cluster.require_leader()?;
    require_name(name)?;
    if cluster.database.source(name).await?.is_none() {
        return Err(ServiceError::not_found(Resource::Source, name));
    }
    let alone = cluster.publishing.lock().await;
    // Stop its fetches first, then remove the rows.
    cluster
        .plan
        .tell(Command::SourceRemoved(name.to_owned()))
        .await?;
    cluster.writer.remove_source(name).await?;
    let posted = publish(cluster).await?;
    drop(alone);
    let confirmed = posted.confirmed(CONFIRM_WITHIN).await;
    Ok(v1::RemoveSourceResponse {
        unconfirmed_edges: confirmed.unconfirmed,
    })
}

/// Reads the table again and sends every connected edge the whole set: sources that are not in it
/// are not registered. One at a time, because an older set after a newer one would remove sources.
async fn publish(cluster: &Cluster) -> Result<Publication, ServiceError> {
    let sources = Arc::new(cluster.database.sources().await?);
    cluster.sources.store(Arc::clone(&sources));
    let message = |sequence| {
        Message::SourcesChanged(v1::SourcesChanged {
            sequence,
            sources: sources.as_ref().clone(),
        })
    };
    Ok(cluster.registry.post(Confirmation::Sources, message))
}

fn require_name(name: &str) -> Result<(), ServiceError> {
    if name.is_empty() {
        return Err(ServiceError::invalid(
            "name",
            "expected the name of a source",
        ));
    }
    Ok(())
}
