//! The resource use and traffic of a source, in words and in JSON.

use chunkcache_proto::v1::{OriginHealth, SourceUse};
use serde_json::{Value, json};
use service_kit::config::{human_bytes, human_duration};

use super::output::Rows;

/// Without an edge's name: the sum of all connected edges.
pub(super) fn json(of: &SourceUse) -> Value {
    let mut object = json!({
        "uptime_ms": of.uptime_ms,
        "bytes_used": of.bytes_used,
        "quota_bytes": of.quota_bytes,
        "bytes_sent": of.bytes_sent_total,
        "bytes_hit": of.bytes_hit_total,
        "bytes_origin": of.bytes_origin_total,
        "origin_errors": of.origin_errors_total,
        "origins_down": of.origins_down,
    });
    if !of.edge.is_empty() {
        object["name"] = json!(of.edge);
        object["origins"] = of.origins.iter().map(origin_json).collect();
    }
    object
}

fn origin_json(origin: &OriginHealth) -> Value {
    let failed = !origin.last_error.is_empty();
    json!({
        "name": origin.origin,
        "down_ms": origin.down_ms,
        "first_byte_ms": origin.first_byte_us.map(|us| f64::from(us) / 1_000.0),
        "last_error": origin.last_error,
        "last_error_ms": failed.then_some(origin.last_error_ms),
    })
}

/// A row of each edge, and of each of its origins.
pub(super) fn add_rows(rows: &mut Rows, uses: &[SourceUse]) {
    for of in uses {
        let sent = format!(
            "{} sent in {}, {} of it from the cache; {} from origins, {} errors; {} on disk{}",
            human_bytes(of.bytes_sent_total),
            duration(of.uptime_ms),
            hit_share(of),
            human_bytes(of.bytes_origin_total),
            of.origin_errors_total,
            human_bytes(of.bytes_used),
            quota(of.quota_bytes),
        );
        rows.field(&format!("on {}", of.edge), sent);
        for origin in &of.origins {
            rows.field(&format!("  {}", origin.origin), health(origin));
        }
    }
}

fn health(origin: &OriginHealth) -> String {
    let state = match origin.down_ms {
        Some(ms) => format!("down for {}", duration(ms)),
        None => "up".to_owned(),
    };
    let state = match origin.first_byte_us {
        Some(us) => format!("{state}, first byte {:.1} ms", f64::from(us) / 1_000.0),
        None => state,
    };
    if origin.last_error.is_empty() {
        return state;
    }
    let ago = duration(origin.last_error_ms);
    format!("{state}; {ago} ago: {}", origin.last_error)
}

fn quota(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(" of {}", human_bytes(bytes)),
    }
}

/// The cells of a list: sent, hit share, used, origins.
pub(super) fn cells(of: Option<&SourceUse>) -> [String; 4] {
    let Some(of) = of else {
        return ["-"; 4].map(str::to_owned);
    };
    let origins = match of.origins_down {
        0 => "up".to_owned(),
        down => format!("{down} down"),
    };
    let used = human_bytes(of.bytes_used) + &quota(of.quota_bytes);
    [
        human_bytes(of.bytes_sent_total),
        hit_share(of),
        used,
        origins,
    ]
}

fn hit_share(of: &SourceUse) -> String {
    match of.bytes_sent_total {
        0 => "-".to_owned(),
        sent => format!("{:.1} %", of.bytes_hit_total as f64 / sent as f64 * 100.0),
    }
}

fn duration(ms: u64) -> String {
    human_duration(ms / 1_000)
}
