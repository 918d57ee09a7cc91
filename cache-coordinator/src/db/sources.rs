//! Sources: a name, a base URL, and the rest of the settings as one document.

use chunkcache_proto::v1;
use serde::{Deserialize, Serialize};
use tokio_postgres::{Row, types::Json};

use super::{Database, DatabaseError, may_exist, statements};

impl Database {
    /// All sources, by name.
    pub async fn sources(&self) -> Result<Vec<v1::Source>, DatabaseError> {
        self.query(statements::SOURCE_LIST, &[])
            .await?
            .iter()
            .map(from_row)
            .collect()
    }

    /// One source. Its headers are in clear: callers redact them before they answer clients.
    pub async fn source(&self, name: &str) -> Result<Option<v1::Source>, DatabaseError> {
        if !may_exist(&[name]) {
            return Ok(None);
        }
        self.query_opt(statements::SOURCE_GET, &[&name])
            .await?
            .as_ref()
            .map(from_row)
            .transpose()
    }
}

/// The document in `sources.settings`. An older release wrote it without fields that it did not
/// know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Settings {
    headers: Vec<(String, String)>,
    max_connections: u32,
    max_rate_bytes_per_second: u64,
    background_fill: Option<bool>,
    mode: String,
    freshness: Option<v1::FreshnessPolicy>,
    forward_credentials: bool,
    forward_headers: Vec<String>,
    further_base_urls: Vec<String>,
    failover_on_not_found: bool,
    connection: Option<v1::OriginConnection>,
    redirect_hosts: Vec<String>,
    key_rules: Option<v1::KeyRules>,
    ttl_rules: Vec<v1::TtlRule>,
    quota_bytes: u64,
    s3: Option<v1::S3Settings>,
}

impl Settings {
    pub(super) fn of(source: &v1::Source) -> Self {
        Self {
            headers: source
                .headers
                .iter()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
            max_connections: source.max_connections,
            max_rate_bytes_per_second: source.max_rate_bytes_per_second,
            background_fill: source.background_fill,
            mode: source.mode().as_str_name().into(),
            freshness: source.freshness,
            forward_credentials: source.forward_credentials,
            forward_headers: source.forward_headers.clone(),
            further_base_urls: source.further_base_urls.clone(),
            failover_on_not_found: source.failover_on_not_found,
            connection: source.connection.clone(),
            redirect_hosts: source.redirect_hosts.clone(),
            key_rules: source.key_rules.clone(),
            ttl_rules: source.ttl_rules.clone(),
            quota_bytes: source.quota_bytes,
            s3: source.s3.clone(),
        }
    }

    fn into_source(self, name: String, base_url: String, revision: u64) -> v1::Source {
        v1::Source {
            name,
            base_url,
            headers: self
                .headers
                .into_iter()
                .map(|(name, value)| v1::Header { name, value })
                .collect(),
            max_connections: self.max_connections,
            max_rate_bytes_per_second: self.max_rate_bytes_per_second,
            background_fill: self.background_fill,
            mode: v1::SourceMode::from_str_name(&self.mode)
                .unwrap_or_default()
                .into(),
            freshness: self.freshness,
            forward_credentials: self.forward_credentials,
            forward_headers: self.forward_headers,
            revision,
            further_base_urls: self.further_base_urls,
            failover_on_not_found: self.failover_on_not_found,
            connection: self.connection,
            redirect_hosts: self.redirect_hosts,
            key_rules: self.key_rules,
            ttl_rules: self.ttl_rules,
            quota_bytes: self.quota_bytes,
            s3: self.s3,
        }
    }
}

pub(super) fn from_row(row: &Row) -> Result<v1::Source, DatabaseError> {
    let Json(settings): Json<Settings> = row
        .try_get("settings")
        .map_err(|error| DatabaseError::Internal(format!("settings of a source: {error}")))?;
    let revision: i64 = row.get("revision");
    Ok(settings.into_source(
        row.get("name"),
        row.get("base_url"),
        revision.unsigned_abs(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_as_they_were() {
        let source = v1::Source {
            name: "films".into(),
            base_url: "http://origin".into(),
            headers: vec![v1::Header {
                name: "X-Key".into(),
                value: "1".into(),
            }],
            max_connections: 4,
            max_rate_bytes_per_second: 5,
            background_fill: Some(false),
            mode: v1::SourceMode::Record.into(),
            freshness: Some(v1::FreshnessPolicy {
                default_ttl_seconds: Some(1),
                ..Default::default()
            }),
            forward_credentials: true,
            forward_headers: vec!["X-A".into()],
            revision: 9,
            further_base_urls: vec!["http://mirror".into()],
            failover_on_not_found: true,
            connection: Some(v1::OriginConnection {
                host: "films.example".into(),
                first_byte_timeout_ms: Some(90_000),
                ..Default::default()
            }),
            redirect_hosts: vec!["cdn.example".into()],
            key_rules: Some(v1::KeyRules {
                ignore_query: vec!["utm_*".into()],
                ..Default::default()
            }),
            ttl_rules: vec![v1::TtlRule {
                pattern: "*.m3u8".into(),
                seconds: 2,
            }],
            quota_bytes: 7,
            s3: Some(v1::S3Settings {
                region: "eu-central-1".into(),
                ..Default::default()
            }),
        };
        let back = Settings::of(&source).into_source("films".into(), "http://origin".into(), 9);
        assert_eq!(back, source);
    }
}
