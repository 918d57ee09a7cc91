use proptest::prelude::*;

use super::*;

fn number(number: i64) -> Value {
    Value::Integer(number.into())
}

fn map(entries: &[(i64, Value)]) -> Value {
    let entries = entries.iter();
    Value::Map(
        entries
            .map(|(key, value)| (number(*key), value.clone()))
            .collect(),
    )
}

fn claims(entries: &[(i64, Value)]) -> Option<Claims> {
    match map(entries) {
        Value::Map(entries) => Claims::read(&entries),
        _ => None,
    }
}

fn path(matches: &[(i64, Value)]) -> Value {
    map(&[(3, map(matches))])
}

const EXPIRES_AT: i64 = 2_000_000_000;

/// With a further claim.
fn with(key: i64, value: Value) -> Option<Claims> {
    let films = path(&[(1, "/films/".into())]);
    claims(&[(4, number(EXPIRES_AT)), (312, films), (key, value)])
}

#[test]
fn a_path_is_compared_as_the_token_says() {
    let covered = |matches: &[(i64, Value)], asked: &str| {
        let claims = claims(&[(4, number(EXPIRES_AT)), (312, path(matches))]);
        claims.unwrap().covers(asked)
    };
    let exact = [(0, Value::from("/films/a b.mp4"))];
    assert!(covered(&exact, "/films/a%20b.mp4"));
    assert!(!covered(&exact, "/films/a%20b.mp4x"));
    let both = [(1, "/films/".into()), (2, ".m4s".into())];
    assert!(covered(&both, "/films/a/1.m4s"));
    assert!(!covered(&both, "/films/a/1.mp4") && !covered(&both, "/other/1.m4s"));
    assert!(covered(&[(3, "/a/".into())], "/films/a/1"));
    assert!(!covered(&[(3, "/a/".into())], "/films/b/1"));
}

#[test]
fn what_may_narrow_a_token_and_is_not_read_refuses_it() {
    let harmless = [
        (1, Value::from("issuer")),
        (2, "subject".into()),
        (5, number(1_000)),
        (6, number(1_000)),
        (7, Value::Bytes(vec![1])),
        (308, number(0)),
        (310, number(1)),
        (313, Value::Array(vec!["HEAD".into(), "GET".into()])),
        (323, map(&[(0, number(0))])),
    ];
    for (key, value) in harmless {
        assert!(with(key, value).is_some(), "{key}");
    }
    assert_eq!(with(5, number(1_000)).unwrap().not_before, 1_000);
    let narrow = [
        (3, Value::from("somebody")),
        (308, number(1)),
        (309, number(50)),
        (310, number(2)),
        (311, Value::Array(vec![])),
        (313, Value::Array(vec!["HEAD".into()])),
        (314, Value::Array(vec!["h2".into()])),
        (315, map(&[(0, "x".into())])),
        (316, Value::Array(vec!["FR".into()])),
        (-70_000, number(1)),
        (4, number(EXPIRES_AT)),
        (5, "soon".into()),
    ];
    for (key, value) in narrow {
        assert_eq!(with(key, value), None, "{key}");
    }
    let expires = (4, number(EXPIRES_AT));
    let films = || (312, path(&[(1, "/films/".into())]));
    assert!(claims(&[expires.clone(), films()]).is_some());
    assert_eq!(
        claims(std::slice::from_ref(&expires)),
        None,
        "of everything"
    );
    assert_eq!(claims(&[films()]), None, "for ever");
    for uri in [
        map(&[]),
        path(&[]),
        path(&[(4, Value::Array(vec![".*".into()]))]),
        map(&[(1, map(&[(0, "edge".into())]))]),
        map(&[
            (3, map(&[(1, "/films/".into())])),
            (0, map(&[(0, "https".into())])),
        ]),
    ] {
        assert_eq!(claims(&[expires.clone(), (312, uri)]), None);
    }
}

#[test]
fn a_pattern_becomes_what_a_token_can_say() {
    let grant = |pattern| Grant {
        key_id: "k",
        expires_unix_seconds: 5,
        pattern,
        client: None,
    };
    for (pattern, inside, outside) in [
        (None, "/films/a", "/films/ab"),
        (Some("/films/*"), "/films/a/b", "/film"),
        (Some("/films/*.m4s"), "/films/a/b.m4s", "/films/a/b.mp4"),
        (Some("*.m4s"), "/x/b.m4s", "/x/b.mp4"),
    ] {
        let claims = Claims::of("/films/a", &grant(pattern)).unwrap();
        assert!(
            claims.covers(inside) && !claims.covers(outside),
            "{pattern:?}"
        );
        let Ok(Value::Map(entries)) = Value::from_slice(&claims.encoded().unwrap()) else {
            panic!("no map");
        };
        assert_eq!(Claims::read(&entries), Some(claims));
    }
    assert_eq!(Claims::of("/", &grant(Some("/*/b/*"))), None);
    let of_client = Grant {
        client: Some("192.0.2.1"),
        ..grant(None)
    };
    assert_eq!(Claims::of("/films/a", &of_client), None);
}

/// `sign` of a token that signs nothing, to be taken apart.
fn token(algorithm: Algorithm) -> Value {
    let films = with(310, number(1)).unwrap();
    let bytes = sign(algorithm, "k", &films, |_| Some(vec![7; 32])).unwrap();
    Value::from_slice(&bytes).unwrap()
}

#[test]
fn a_token_may_be_tagged_but_not_as_another_message() {
    let (mac, signed) = (token(Algorithm::HS256), token(Algorithm::ES256));
    let inner = |value: &Value| match value {
        Value::Tag(_, inner) => (**inner).clone(),
        _ => panic!("no tag"),
    };
    let tagged = |tag, value: &Value| Value::Tag(tag, Box::new(value.clone()));
    let parse = |value: &Value| Signed::parse(&value.clone().to_vec().unwrap());
    for value in [
        &mac,
        &tagged(61, &mac),
        &inner(&mac),
        &tagged(61, &inner(&mac)),
    ] {
        let token = parse(value).unwrap();
        assert_eq!(token.algorithm, Algorithm::HS256);
        assert_eq!(token.key_id.as_deref(), Some("k"));
        assert!(token.claims().unwrap().covers("/films/a"));
    }
    assert_eq!(parse(&signed).unwrap().algorithm, Algorithm::ES256);
    for value in [
        tagged(18, &inner(&mac)),
        tagged(17, &inner(&signed)),
        tagged(61, &tagged(61, &mac)),
        number(1),
    ] {
        assert_eq!(parse(&value).unwrap_err(), SignatureError::Malformed);
    }
}

proptest! {
    #[test]
    fn nothing_panics(token in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(signed) = Signed::parse(&token) {
            let _ = signed.claims();
        }
    }

    #[test]
    fn nothing_panics_near_a_token(at in 0usize..80, byte: u8) {
        let mut token = token(Algorithm::HS256).to_vec().unwrap();
        if let Some(place) = token.get_mut(at) {
            *place = byte;
        }
        if let Ok(signed) = Signed::parse(&token) {
            let _ = signed.claims().map(|claims| claims.covers("/films/a"));
        }
    }
}
