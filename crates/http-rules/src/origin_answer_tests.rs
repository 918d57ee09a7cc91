use super::*;

fn entry() -> v1::Entry {
    v1::Entry {
        size: 100,
        etag: "\"1\"".into(),
        validator: "\"1\"".into(),
        ..v1::Entry::default()
    }
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        map.append(
            *name,
            HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static("")),
        );
    }
    map
}

fn outcome(status: u16, lines: &[(&'static str, &str)]) -> Result<Part, AnswerError> {
    let status = StatusCode::from_u16(status).unwrap_or_default();
    check(status, &headers(lines), ByteRange::new(10, 20), &entry(), 0)
}

#[test]
fn only_what_was_asked_of_this_version_is_taken() {
    let good = [
        ("etag", "\"1\""),
        ("content-range", "bytes 10-19/100"),
        ("content-length", "10"),
    ];
    assert_eq!(outcome(206, &good), Ok(Part::Range(ByteRange::new(10, 20))));
    assert_eq!(
        outcome(206, &[good[0], ("content-range", "bytes 10-19/101")]),
        Err(AnswerError::Changed)
    );
    assert_eq!(
        outcome(206, &[("etag", "\"2\""), good[1]]),
        Err(AnswerError::Changed)
    );
    assert_eq!(outcome(206, &[good[1]]), Err(AnswerError::Changed));
    for wrong in [
        "bytes 0-9/100",
        "bytes 10-18/100",
        "bytes 10-20/100",
        "nonsense",
    ] {
        assert!(
            matches!(
                outcome(206, &[good[0], ("content-range", wrong)]),
                Err(AnswerError::Protocol(_))
            ),
            "{wrong}"
        );
    }
    let encoded = [good[0], good[1], ("content-encoding", "gzip")];
    assert!(matches!(
        outcome(206, &encoded),
        Err(AnswerError::Protocol(_))
    ));
    assert!(matches!(
        outcome(206, &[good[0], good[1], ("content-length", "11")]),
        Err(AnswerError::Protocol(_))
    ));
}

#[test]
fn a_200_is_the_whole_object_or_another() {
    assert_eq!(
        outcome(200, &[("etag", "\"1\""), ("content-length", "100")]),
        Ok(Part::Whole)
    );
    assert_eq!(
        outcome(200, &[("etag", "\"1\""), ("content-length", "99")]),
        Err(AnswerError::Changed)
    );
    assert_eq!(
        outcome(200, &[("etag", "\"2\""), ("content-length", "100")]),
        Err(AnswerError::Changed)
    );
    assert!(matches!(
        outcome(200, &[("etag", "\"1\"")]),
        Err(AnswerError::Protocol(_))
    ));
    assert_eq!(outcome(412, &[]), Err(AnswerError::Changed));
    assert_eq!(
        outcome(416, &[("content-range", "bytes */5")]),
        Err(AnswerError::Changed)
    );
}

#[test]
fn other_statuses_say_whether_to_ask_again() {
    let retry = |status, lines: &[(&'static str, &str)]| match outcome(status, lines) {
        Err(AnswerError::Busy { retry_after }) => Some(retry_after),
        Err(AnswerError::Unavailable { retry_after, .. }) => retry_after,
        _ => None,
    };
    assert_eq!(
        retry(429, &[("retry-after", "7")]),
        Some(Duration::from_secs(7))
    );
    assert_eq!(retry(429, &[]), Some(DEFAULT_RETRY_AFTER));
    assert_eq!(
        retry(503, &[("retry-after", "99999999")]),
        Some(crate::retry_after::LONGEST_RETRY_AFTER)
    );
    assert!(matches!(
        outcome(503, &[]),
        Err(AnswerError::Unavailable { status: 503, .. })
    ));
    assert_eq!(outcome(404, &[]), Err(AnswerError::Refused { status: 404 }));
}

#[test]
fn conditions_bind_a_request_to_one_version() {
    let strong = range_headers(ByteRange::new(0, 5), Some(&entry()));
    assert_eq!(text(&strong, header::RANGE), Some("bytes=0-4"));
    assert_eq!(text(&strong, header::IF_MATCH), Some("\"1\""));
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let dated = v1::Entry {
        etag: "W/\"1\"".into(),
        last_modified: date.into(),
        ..entry()
    };
    assert_eq!(
        text(
            &range_headers(ByteRange::new(0, 5), Some(&dated)),
            header::IF_UNMODIFIED_SINCE
        ),
        Some(date)
    );
}

#[test]
fn an_object_is_described_by_its_first_answer() {
    let map = headers(&[
        ("content-range", "bytes 0-4/9"),
        ("etag", "W/\"1\""),
        ("last-modified", "yesterday"),
    ]);
    let described = describe(StatusCode::PARTIAL_CONTENT, &map, 0);
    assert_eq!((described.size, described.validator), (Some(9), None));
}

#[test]
fn a_field_of_one_value_has_none_if_lines_differ() {
    let is_satisfied = |ranges: [&'static str; 2]| {
        let mut map = HeaderMap::new();
        for range in ranges {
            map.append(header::CONTENT_RANGE, HeaderValue::from_static(range));
        }
        satisfied(&map).is_ok()
    };
    assert!(is_satisfied(["bytes 0-4/9", "bytes 0-4/9"]));
    assert!(!is_satisfied(["bytes 0-4/9", "bytes 4-8/9"]));
}

#[test]
fn a_304_may_name_the_version_asked_about_and_no_other() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let weak = v1::Entry {
        etag: "W/\"1\"".into(),
        last_modified: date.into(),
        ..entry()
    };
    let dated = v1::Entry {
        etag: String::new(),
        ..weak.clone()
    };
    let another =
        |entry: &v1::Entry, lines: &[(&'static str, &str)]| names_another(&headers(lines), entry);
    assert!(!another(&entry(), &[]));
    assert!(!another(&entry(), &[("etag", "\"1\"")]));
    assert!(!another(&entry(), &[("etag", "W/\"1\"")]));
    assert!(!another(&entry(), &[("last-modified", "another")]));
    assert!(another(&entry(), &[("etag", "\"2\"")]));
    assert!(!another(&weak, &[("etag", "W/\"1\"")]));
    assert!(another(&weak, &[("etag", "W/\"2\"")]));
    assert!(!another(&dated, &[("last-modified", date)]));
    assert!(another(&dated, &[("last-modified", "another")]));
}

#[test]
fn a_length_beside_a_transfer_coding_is_none() {
    let map = headers(&[("content-length", "5"), ("transfer-encoding", "chunked")]);
    assert_eq!(content_length(&map), None);
}

#[test]
fn a_part_may_be_shorter_but_not_tiny() {
    let asked = ByteRange::new(10, 1 << 20);
    let entry = v1::Entry {
        size: 1 << 21,
        ..entry()
    };
    let part = |end: u64| {
        let range = format!("bytes 10-{}/{}", end - 1, entry.size);
        let lines = [("etag", "\"1\""), ("content-range", range.as_str())];
        check(
            StatusCode::PARTIAL_CONTENT,
            &headers(&lines),
            asked,
            &entry,
            0,
        )
    };
    assert_eq!(part(1 << 19), Ok(Part::Range(ByteRange::new(10, 1 << 19))));
    assert!(matches!(part(1_000), Err(AnswerError::Protocol(_))));
    assert!(matches!(part((1 << 20) + 1), Err(AnswerError::Protocol(_))));
}

#[test]
fn stale_is_for_errors_and_silence_only() {
    let judged = |status| judge_revalidation(StatusCode::from_u16(status).unwrap_or_default());
    for (status, expected) in [
        (304, Revalidation::Confirmed),
        (206, Revalidation::Object),
        (404, Revalidation::Gone),
        (410, Revalidation::Gone),
        (451, Revalidation::Gone),
        (416, Revalidation::Unsatisfied),
        (401, Revalidation::Refused),
        (403, Revalidation::Refused),
        (405, Revalidation::Refused),
        (429, Revalidation::Failed),
        (408, Revalidation::Failed),
        (500, Revalidation::Failed),
        (503, Revalidation::Failed),
        (302, Revalidation::Failed),
    ] {
        assert_eq!(judged(status), expected, "{status}");
    }
}

#[test]
fn a_date_of_this_second_is_no_validator_yet() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let described = |lines: &[(&'static str, &str)], now_ms| {
        let length = [("content-length", "9"), ("last-modified", date)];
        let map = headers(&[&length, lines].concat());
        let described = describe(StatusCode::OK, &map, now_ms);
        (described.validator.is_some(), described.is_young)
    };
    let now = 784_111_777_000;
    let later = "Sun, 06 Nov 1994 08:49:38 GMT";
    let before = "Sun, 06 Nov 1994 08:00:00 GMT";
    assert_eq!(described(&[("date", date)], now), (false, true));
    assert_eq!(described(&[("date", later)], now), (true, false));
    assert_eq!(described(&[("date", before)], now), (false, true));
    assert_eq!(described(&[], now + 500), (false, true), "no date: now");
    assert_eq!(described(&[], now + 1_000), (true, false));
    assert_eq!(
        described(&[("date", date), ("etag", "\"1\"")], now),
        (true, false),
        "a strong tag needs no date"
    );
}

#[test]
fn codings_that_are_none() {
    for plain in ["", "identity", "aws-chunked", "Identity, aws-chunked"] {
        assert!(
            !is_encoded(&headers(&[("content-encoding", plain)])),
            "{plain}"
        );
    }
    for coded in ["gzip", "aws-chunked, gzip"] {
        assert!(
            is_encoded(&headers(&[("content-encoding", coded)])),
            "{coded}"
        );
    }
}

#[test]
fn ages_beyond_32_bits_are_very_old() {
    let age = |text: &str| {
        let map = headers(&[("age", text)]);
        facts(&map, &describe(StatusCode::OK, &map, 0)).age_seconds
    };
    assert_eq!(age("7"), 7);
    assert_eq!(age("99999999999999999999"), 1 << 31);
    assert_eq!(age("4294967296"), 1 << 31);
    assert_eq!(age("soon"), 0);
}

fn bytes(name: &'static str, value: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(name, value);
    }
    headers
}

#[test]
fn bytes_beyond_ascii_hide_nothing() {
    let date = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
    let described = |etag: &[u8]| {
        let mut headers = bytes("etag", etag);
        headers.insert(header::LAST_MODIFIED, date.clone());
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("5"));
        describe(StatusCode::OK, &headers, 0)
    };
    assert_eq!(
        described("\"é\"".as_bytes()).validator.as_deref(),
        Some("\"é\"")
    );
    assert_eq!(
        described(b"\"\xe9\"").validator,
        None,
        "no date in its place"
    );
    assert!(names_another(&bytes("etag", b"\"\xe9\""), &entry()));
    let facts_of = |headers: &HeaderMap| facts(headers, &describe(StatusCode::OK, headers, 0));
    let control = facts_of(&bytes("cache-control", b"no-store, x=\"\xe9\""));
    assert_eq!(freshness::storable(&control), Err("no-store"));
    assert!(facts_of(&bytes("content-encoding", b"gzip, \xe9")).encoded);
    assert!(
        facts_of(&bytes("vary", b"*, \xe9"))
            .vary
            .contains(&"*".to_owned())
    );
}

#[test]
fn of_several_ages_the_first_counts() {
    let age = |lines: &[(&'static str, &str)]| {
        let headers = headers(lines);
        facts(&headers, &describe(StatusCode::OK, &headers, 0)).age_seconds
    };
    assert_eq!(age(&[("age", "50, 60")]), 50);
    assert_eq!(age(&[("age", "50"), ("age", "0")]), 50);
    assert_eq!(age(&[("age", "-5")]), 0);
}

#[test]
fn a_200_that_claims_to_be_a_part_is_one() {
    let is_part = |status, lines: &[(&'static str, &str)]| {
        let headers = headers(lines);
        facts(&headers, &describe(status, &headers, 0)).is_part
    };
    let range = ("content-range", "bytes 0-9/100");
    assert!(is_part(StatusCode::OK, &[range, ("content-length", "10")]));
    assert!(!is_part(
        StatusCode::OK,
        &[range, ("content-length", "100")]
    ));
    assert!(!is_part(StatusCode::PARTIAL_CONTENT, &[range]));
    let unknown = ("content-range", "bytes 0-9/*");
    assert!(is_part(
        StatusCode::OK,
        &[unknown, ("content-length", "10")]
    ));
    assert!(!is_part(StatusCode::PARTIAL_CONTENT, &[unknown]));
}

#[test]
fn only_chunked_is_a_transfer_coding_that_is_removed() {
    let is_coded = |lines: &[&str]| {
        let lines: Vec<_> = lines.iter().map(|it| ("transfer-encoding", *it)).collect();
        is_coded_for_transfer(&headers(&lines))
    };
    for plain in [
        &[][..],
        &["chunked"],
        &["Chunked"],
        &["identity"],
        &["identity, chunked"],
    ] {
        assert!(!is_coded(plain), "{plain:?}");
    }
    for coded in [
        &["gzip"][..],
        &["gzip, chunked"],
        &["gzip", "chunked"],
        &["chunked, identity"],
    ] {
        assert!(is_coded(coded), "{coded:?}");
    }
}

#[test]
fn a_412_to_a_revalidation_is_no_refusal_of_a_client() {
    let status = StatusCode::PRECONDITION_FAILED;
    assert_eq!(judge_revalidation(status), Revalidation::Unmet);
}
