//! Translation, without a service behind it.
#![allow(clippy::unwrap_used)]

use super::*;

fn method(name: &str) -> MethodDescriptor {
    let mut methods = service().unwrap().methods().collect::<Vec<_>>().into_iter();
    methods.find(|method| method.name() == name).unwrap()
}

#[test]
fn what_is_not_the_message_is_named() {
    let input = method("HasByteRange").input();
    for (body, named) in [
        ("{", "EOF"),
        ("[]", "invalid type"),
        (r#"{"entri": {}}"#, "entri"),
        (r#"{"range": {"start": "-1"}}"#, "digit"),
        (r#"{"edge": 1}"#, "invalid type"),
        ("{} {}", "trailing"),
    ] {
        let status = read(input.clone(), body.as_bytes()).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let message = status.message();
        assert!(
            message.contains("HasByteRangeRequest") && message.contains(named),
            "{body}: {message}"
        );
    }
}

#[test]
fn names_of_fields_and_integers_have_two_forms() {
    let input = method("RequestRange").input();
    let one = br#"{"range": {"start": "9007199254740993", "end": "18446744073709551615"}}"#;
    let one = read(input.clone(), one).unwrap();
    let text = String::from_utf8(write(&one).unwrap()).unwrap();
    assert!(text.contains(r#""start":"9007199254740993""#), "{text}");
    let other = br#"{"range": {"start": 9007199254740993, "end": 18446744073709551615}}"#;
    assert_eq!(read(input.clone(), other).unwrap(), one);
    let empty = DynamicMessage::new(input.clone());
    assert_eq!(read(input, b" \n").unwrap(), empty);
}

#[test]
fn depth_is_bounded() {
    let input = method("PutSource").input();
    let deep = "{\"source\":".repeat(10_000);
    assert!(read(input, deep.as_bytes()).is_err());
}

#[test]
fn every_reference_of_the_document_leads_somewhere() {
    let document = openapi::document(&service().unwrap());
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut places = vec![&document];
    let mut references = 0;
    while let Some(place) = places.pop() {
        match place {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get("$ref") {
                    let name = to.strip_prefix("#/components/schemas/").unwrap();
                    assert!(schemas.contains_key(name), "{to}");
                    references += 1;
                }
                places.extend(fields.values());
            }
            Value::Array(items) => places.extend(items),
            _ => {}
        }
    }
    assert!(references > 50, "{references}");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.contains_key("/chunkcache.v1.CacheService/PutSource"));
    assert!(!paths.contains_key("/chunkcache.v1.CacheService/WatchEntry"));
}

/// A body that never arrives does not occupy a connection.
#[tokio::test(start_paused = true)]
async fn a_body_has_to_come_in_time() {
    let pieces = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let request = Request::new(axum::body::Body::from_stream(pieces));
    let Err(CallFailure::Http(status, _)) = body_of(request).await else {
        panic!("it was read");
    };
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
}
