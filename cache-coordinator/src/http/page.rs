//! A plain page that says how the cluster is.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    extract::State,
    http::header,
    response::{Html, IntoResponse},
};

use super::health;
use crate::service::{Cluster, edges, status};

/// Nothing is loaded from elsewhere and no script runs.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// Figures and edges.
pub async fn status(State(cluster): State<Arc<Cluster>>) -> impl IntoResponse {
    let readiness = health::readiness(&cluster).await.sentence();
    let mut body = format!("<p>{}</p>", escape(&readiness));
    if let Ok(figures) = status::status(&cluster).await {
        let _ = write!(
            body,
            "<p>{} entries, {} chunks, {} bytes cached; {} of {} edges active; {} readers; {} jobs running.</p>",
            figures.entries,
            figures.chunks,
            figures.bytes_cached,
            figures.edges_active,
            figures.edges_total,
            figures.readers,
            figures.jobs_running,
        );
    }
    if let Ok(listed) = edges::list(&cluster).await {
        body.push_str(
            "<table><tr><th>Edge<th>State<th>URL<th>Chunks<th>Bytes used<th>Readers</tr>",
        );
        for edge in listed.edges {
            let _ = write!(
                body,
                "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
                escape(&edge.name),
                edge.state()
                    .as_str_name()
                    .trim_start_matches("EDGE_STATE_")
                    .to_lowercase(),
                escape(&edge.url),
                edge.chunks,
                edge.bytes_used,
                edge.readers,
            );
        }
        body.push_str("</table>");
    }
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Chunk cache</title>\
         <style>body{{font:16px sans-serif;margin:2em}}td,th{{padding:.2em 1em;text-align:left}}</style>\
         <h1>Chunk cache</h1>{body}</html>"
    );
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_do_not_become_markup() {
        assert_eq!(
            super::escape("<a href=\"x\">&"),
            "&lt;a href=&quot;x&quot;&gt;&amp;"
        );
    }
}
