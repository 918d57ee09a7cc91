//! W3C trace context (`traceparent`, `tracestate`) between spans and the headers of HTTP and gRPC.

use std::collections::HashMap;

use http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanContext, TraceContextExt as _};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::MetadataMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A span that declares this field adds its trace's id to the log lines within it.
const TRACE_ID: &str = "trace_id";

/// Makes the caller's span the parent of `span`. Must run before `span` is entered. Without a
/// usable `traceparent`, `span` begins a trace. Fills in an empty field `trace_id` of the span.
pub fn set_parent(span: &Span, headers: &HeaderMap) {
    adopt(span, headers);
}

/// Like [`set_parent`], for gRPC.
pub fn set_parent_from_metadata(span: &Span, metadata: &MetadataMap) {
    adopt(span, metadata.as_ref());
}

/// Puts `span` into the headers as the parent of the receiver's work.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&span.context(), &mut HeaderInjector(headers));
}

/// Like [`inject`], for gRPC.
pub fn inject_metadata(span: &Span, metadata: &mut MetadataMap) {
    inject(span, metadata.as_mut());
}

/// The trace of `span`, as 32 hexadecimal digits, for log lines and error answers.
pub fn trace_id(span: &Span) -> Option<String> {
    span_context(span).map(|context| context.trace_id().to_string())
}

/// The ids of `span`, unless it is disabled.
pub fn span_context(span: &Span) -> Option<SpanContext> {
    let context = span.context();
    let ids = context.span().span_context().clone();
    ids.is_valid().then_some(ids)
}

/// The ids in the value of a `traceparent` header.
pub fn parse_traceparent(text: &str) -> Option<SpanContext> {
    let carrier = HashMap::from([("traceparent".to_owned(), text.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    let ids = context.span().span_context().clone();
    ids.is_valid().then_some(ids)
}

fn adopt(span: &Span, headers: &HeaderMap) {
    let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    if context.span().span_context().is_valid() {
        // Fails only if no layer is installed, or the span has begun: then there is nothing to
        // join.
        let _ = span.set_parent(context);
    }
    if span.has_field(TRACE_ID)
        && let Some(id) = trace_id(span)
    {
        span.record(TRACE_ID, id);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use opentelemetry::trace::TracerProvider as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn with_layer(test: impl FnOnce()) {
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), test);
    }

    #[test]
    fn the_trace_goes_in_by_http_and_out_by_grpc_and_back() {
        with_layer(|| {
            let mut headers = HeaderMap::new();
            let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
            headers.insert("traceparent", parent.parse().unwrap());
            let span = tracing::info_span!("request");
            set_parent(&span, &headers);
            assert_eq!(trace_id(&span).as_deref(), Some(TRACE));

            let mut metadata = MetadataMap::new();
            inject_metadata(&span, &mut metadata);
            let sent = metadata.get("traceparent").unwrap().to_str().unwrap();
            assert!(sent.contains(TRACE) && sent != parent, "{sent}");

            let inner = tracing::info_span!("call");
            set_parent_from_metadata(&inner, &metadata);
            let mut out = HeaderMap::new();
            inject(&inner, &mut out);
            assert!(out["traceparent"].to_str().unwrap().contains(TRACE));
        });
    }

    #[test]
    fn the_ids_of_a_header() {
        let ids = parse_traceparent(&format!("00-{TRACE}-00f067aa0ba902b7-01")).unwrap();
        assert_eq!(ids.trace_id().to_string(), TRACE);
        assert_eq!(ids.span_id().to_string(), "00f067aa0ba902b7");
        assert!(ids.is_sampled());
        for wrong in [
            "",
            "00-zz-1",
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        ] {
            assert!(parse_traceparent(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn nonsense_begins_a_new_trace() {
        with_layer(|| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_static("00-zz-1"));
            let span = tracing::info_span!("request");
            set_parent(&span, &headers);
            assert!(trace_id(&span).is_some_and(|id| id != TRACE));
        });
    }
}
