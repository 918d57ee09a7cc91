use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_700_000_000_000;

fn facts(cache_control: &str) -> AnswerFacts {
    AnswerFacts {
        cache_control: cache_control.to_owned(),
        has_validator: true,
        size: Some(1),
        date_ms: Some(NOW),
        ..AnswerFacts::default()
    }
}

fn fresh_seconds(facts: &AnswerFacts, policy: &v1::FreshnessPolicy) -> i64 {
    (freshness(facts, policy, NOW).fresh_until_ms - NOW) / 1000
}

#[test]
fn what_must_not_be_stored() {
    assert_eq!(storable(&facts("")), Ok(()));
    assert_eq!(storable(&facts("max-age=5, No-Store")), Err("no-store"));
    assert_eq!(storable(&facts("max-age=5, Private")), Err("private"));
    // RFC 9111, 5.2.2.7: with an argument, only the named fields must not be stored.
    assert_eq!(storable(&facts("private=\"set-cookie, x\"")), Ok(()));
    assert_eq!(
        storable(&AnswerFacts {
            vary: vec!["*".into()],
            ..facts("")
        }),
        Err("vary-any")
    );
    assert_eq!(
        storable(&AnswerFacts {
            size: None,
            ..facts("")
        }),
        Err("unknown-length")
    );
    assert_eq!(
        storable(&AnswerFacts {
            has_validator: false,
            ..facts("")
        }),
        Err("no-validator")
    );
    assert_eq!(
        storable(&AnswerFacts {
            encoded: true,
            ..facts("")
        }),
        Err("content-encoding")
    );
}

#[test]
fn lifetimes_in_their_order() {
    let none = v1::FreshnessPolicy::default();
    assert_eq!(fresh_seconds(&facts("max-age=10, s-maxage=20"), &none), 20);
    assert_eq!(fresh_seconds(&facts("max-age=10"), &none), 10);
    assert_eq!(fresh_seconds(&facts("max-age=10, max-age=5"), &none), 5);
    assert_eq!(fresh_seconds(&facts("max-age=ten"), &none), 0);
    assert_eq!(fresh_seconds(&facts("max-age=100, no-cache"), &none), 0);
    assert_eq!(fresh_seconds(&facts(""), &none), 60);
    let expires = AnswerFacts {
        expires_ms: Some(NOW + 7_000),
        ..facts("")
    };
    assert_eq!(fresh_seconds(&expires, &none), 7);
    assert_eq!(
        fresh_seconds(
            &AnswerFacts {
                expires_invalid: true,
                ..facts("")
            },
            &none
        ),
        0
    );
    let aged = AnswerFacts {
        age_seconds: 4,
        ..facts("max-age=10")
    };
    assert_eq!(fresh_seconds(&aged, &none), 6);
    let late = AnswerFacts {
        date_ms: Some(NOW - 8_000),
        ..facts("max-age=10")
    };
    assert_eq!(fresh_seconds(&late, &none), 2);
    let policy = v1::FreshnessPolicy {
        override_ttl_seconds: Some(300),
        ..none
    };
    assert_eq!(fresh_seconds(&facts("no-cache, max-age=1"), &policy), 300);
}

#[test]
fn stale_service() {
    let none = v1::FreshnessPolicy::default();
    let at = |control: &str| freshness(&facts(control), &none, NOW);
    assert_eq!(judge(&at("max-age=10"), NOW + 9_999), Verdict::Fresh);
    assert_eq!(judge(&at("max-age=10"), NOW + 10_000), Verdict::Stale);
    let revalidating = at("max-age=10, stale-while-revalidate=5");
    assert_eq!(
        judge(&revalidating, NOW + 14_999),
        Verdict::StaleWhileRevalidate
    );
    assert_eq!(judge(&revalidating, NOW + 15_000), Verdict::Stale);

    assert!(usable_on_error(&at("max-age=0"), &none, NOW + 3_600_000));
    assert!(!usable_on_error(
        &at("max-age=0, must-revalidate"),
        &none,
        NOW + 1
    ));
    assert!(!usable_on_error(
        &at("max-age=0, stale-if-error=5"),
        &none,
        NOW + 5_000
    ));
    let explicit = v1::FreshnessPolicy {
        stale_if_error_seconds: Some(60),
        ..none
    };
    assert!(usable_on_error(
        &at("max-age=0, must-revalidate"),
        &explicit,
        NOW + 59_000
    ));
}

#[test]
fn only_forwarded_headers_select_a_variant() {
    let vary = vec!["accept-encoding".to_owned(), "accept-language".to_owned()];
    let request = request(&[("accept-language", b"de")]);
    assert_eq!(variant(&vary, &[], &request), "");
    assert_eq!(
        variant(&vary, &["Accept-Language".to_owned()], &request),
        "accept-language=de"
    );
}

fn request(lines: &[(&'static str, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, http::HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

#[test]
fn all_lines_and_bytes_that_an_origin_gets_select() {
    let names = ["x-a".to_owned()];
    let of = |lines: &[(&'static str, &[u8])]| variant(&names, &names, &request(lines));
    let requests: [&[(&str, &[u8])]; 6] = [
        &[],
        &[("x-a", b"de")],
        &[("x-a", b"de"), ("x-a", b"fr")],
        &[("x-a", "é".as_bytes())],
        &[("x-a", b"\xe9")],
        &[("x-a", b"%E9")],
    ];
    let variants: std::collections::BTreeSet<String> = requests.map(of).into();
    assert_eq!(variants.len(), requests.len(), "{variants:?}");
    let mut told = variant_headers("x-a=%C3%A9");
    assert_eq!(told.next(), Some(("x-a", "é".as_bytes().to_vec())));
    assert_eq!(of(requests[2]), "x-a=de, fr");
}

proptest! {
    #[test]
    fn any_cache_control_is_taken(text in ".{0,120}") {
        let parsed = CacheControl::parse(&text);
        prop_assert!(parsed.max_age.unwrap_or(0) <= LARGEST_DELTA_SECONDS);
        let binding = freshness(&facts(&text), &v1::FreshnessPolicy::default(), NOW);
        prop_assert!(binding.fresh_until_ms >= NOW);
        let _ = judge(&binding, NOW);
    }
}

proptest! {
    #[test]
    fn a_variant_tells_the_headers_that_select_it(
        values in prop::collection::vec(prop::collection::vec(0x20_u8..=0x7e, 1..12), 3),
    ) {
        let names = ["accept-language", "x-b", "x-c"];
        let lines: Vec<_> = names.into_iter().zip(values.iter().map(Vec::as_slice)).collect();
        let request = request(&lines);
        let names = names.map(str::to_owned);
        let text = variant(&names, &names, &request);
        let told: Vec<_> = variant_headers(&text).collect();
        let wanted: Vec<_> = names
            .iter()
            .zip(&values)
            .map(|(name, value)| (name.as_str(), value.trim_ascii().to_vec()))
            .collect();
        prop_assert_eq!(told, wanted);
    }

    #[test]
    fn any_text_is_taken_as_a_variant(text in any::<String>()) {
        prop_assert!(variant_headers(&text).count() <= text.len() + 1);
    }
}

#[test]
fn a_clock_that_is_wrong_harms_nobody() {
    let minute = 60_000;
    let here = v1::Freshness {
        validated_at_ms: 1_000_000,
        fresh_until_ms: 1_000_000 + minute,
        ..v1::Freshness::default()
    };
    let sent = stamp(here.clone(), 1_010_000);
    // The receiver's clock is an hour behind.
    let behind = 1_010_000 - 60 * minute;
    let there = receive(sent.clone(), behind, None);
    assert_eq!(behind - there.validated_at_ms, 10_000, "as old as it was");
    assert_eq!(there.fresh_until_ms - behind, 50_000, "as fresh as it was");
    assert_eq!(there.sent_at_ms, 0);
    assert_eq!(receive(here.clone(), behind, None), here, "no stamp");
    let future = v1::Freshness {
        validated_at_ms: 1_020_000,
        ..sent
    };
    assert_eq!(receive(future, behind, None).validated_at_ms, behind);
}

#[test]
fn a_late_message_makes_nothing_fresher() {
    let sent = stamp(
        v1::Freshness {
            validated_at_ms: 1_000,
            fresh_until_ms: 3_000,
            ..v1::Freshness::default()
        },
        2_000,
    );
    // The clocks are the same, and the message took two seconds.
    let there = receive(sent.clone(), 4_000, Some(5));
    assert_eq!(
        (there.validated_at_ms, there.fresh_until_ms),
        (1_005, 3_005)
    );
    // The receiver's clock was set back since the difference was seen.
    assert_eq!(receive(sent, 1_500, Some(5)).fresh_until_ms, 2_500);
}

#[test]
fn an_answer_may_be_as_old_as_its_request() {
    let facts = AnswerFacts {
        response_delay_ms: 1_500,
        ..facts("max-age=2")
    };
    let fresh = freshness(&facts, &v1::FreshnessPolicy::default(), NOW);
    assert_eq!(fresh.fresh_until_ms, NOW + 500);
    assert_eq!(age_seconds(&fresh, NOW + 500), 2);
}

#[test]
fn an_hour_of_skew_is_no_age() {
    let hour = 3_600_000;
    let facts = AnswerFacts {
        cache_control: "max-age=60".into(),
        date_ms: Some(0),
        ..AnswerFacts::default()
    };
    let policy = v1::FreshnessPolicy::default();
    let wrong = freshness(&facts, &policy, hour);
    assert_eq!(judge(&wrong, hour), Verdict::Stale);
    let right = freshness(&facts.on_clock_ahead(hour), &policy, hour);
    assert_eq!(judge(&right, hour), Verdict::Fresh);
    assert_eq!(right.initial_age_seconds, 0);
}

#[test]
fn named_fields_concern_those_fields_alone() {
    let control = CacheControl::parse("no-cache=\"a, b\", private=c, max-age=5");
    assert!(!control.no_cache && !control.private);
    assert_eq!(control.max_age, Some(5));
    let named: Vec<String> = named_fields("no-cache=\"A, b\", private=c, max-age=5").collect();
    assert_eq!(named, ["a", "b", "c"]);
    assert!(CacheControl::parse("no-cache=\"a\", no-cache").no_cache);
}

#[test]
fn the_word_to_shared_caches_goes_before_the_others() {
    let policy = v1::FreshnessPolicy::default();
    let of = |cache_control: &str, targeted: &str| {
        let facts = AnswerFacts {
            cache_control: cache_control.into(),
            targeted: targeted.into(),
            expires_ms: Some(0),
            date_ms: Some(0),
            has_validator: true,
            size: Some(1),
            ..AnswerFacts::default()
        };
        let left = freshness(&facts, &policy, 0).fresh_until_ms / 1_000;
        (storable(&facts).is_ok(), left)
    };
    assert_eq!(of("no-store", "max-age=100"), (true, 100));
    assert_eq!(of("max-age=5", "no-store"), (false, 60));
    assert_eq!(of("max-age=5", ""), (true, 5));
    let binding = v1::Freshness {
        cache_control: "must-revalidate".into(),
        fields: vec![v1::Header {
            name: TARGETED.into(),
            value: "max-age=1, stale-while-revalidate=10".into(),
        }],
        ..v1::Freshness::default()
    };
    assert_eq!(judge(&binding, 5_000), Verdict::StaleWhileRevalidate);
}

#[test]
fn what_says_for_how_long_may_be_kept_as_a_whole() {
    let facts = |cache_control: &str| AnswerFacts {
        cache_control: cache_control.into(),
        ..AnswerFacts::default()
    };
    let none = v1::FreshnessPolicy::default();
    let kept = |status, control: &str, policy: &v1::FreshnessPolicy| {
        freshness_of_whole(status, &facts(control), policy, 0).map(|it| it.fresh_until_ms)
    };
    for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
        assert_eq!(kept(status, "max-age=5", &none), Some(5_000), "{status}");
        assert_eq!(kept(status, "", &none), None, "{status}");
    }
    for status in [206, 302, 307, 403, 500, 503] {
        assert_eq!(kept(status, "max-age=5", &none), None, "{status}");
    }
    for control in [
        "no-store",
        "private",
        "no-cache",
        "max-age=0",
        "max-age=0, s-maxage=0",
    ] {
        let control = format!("{control}, max-age=5");
        if !control.starts_with("max-age") {
            assert_eq!(kept(200, &control, &none), None, "{control}");
        }
    }
    assert_eq!(kept(200, "max-age=0", &none), None);
    let policy = v1::FreshnessPolicy {
        default_ttl_seconds: Some(7),
        ..none
    };
    assert_eq!(kept(200, "", &policy), Some(7_000), "the source says so");
    assert_eq!(kept(404, "", &policy), None);
}

#[test]
fn an_absence_is_remembered_as_it_says() {
    let of = |control: &str, policy: &v1::FreshnessPolicy| {
        let facts = AnswerFacts {
            cache_control: control.into(),
            ..AnswerFacts::default()
        };
        negative_lifetime_ms(&facts, policy, 0)
    };
    let policy = v1::FreshnessPolicy::default();
    assert_eq!(of("", &policy), 5_000);
    assert_eq!(of("max-age=60", &policy), 60_000);
    assert_eq!(of("max-age=1", &policy), 1_000);
    assert_eq!(of("no-store", &policy), 0);
    let operator = v1::FreshnessPolicy {
        negative_ttl_seconds: Some(2),
        ..policy
    };
    assert_eq!(of("max-age=60", &operator), 2_000);
}

#[test]
fn no_odd_quote_hides_a_restriction() {
    for text in [
        "max-age=\"600, no-store",
        "foo=\"bar, no-store",
        "ext=\"\\\"\", no-store, ext2=\"x\"",
        "foo=\"bar, no-store, x=\"y\"",
        "no-store, x=\"\u{fffd}\"",
    ] {
        assert!(CacheControl::parse(text).no_store, "{text}");
    }
    let quoted = CacheControl::parse("x=\"a, no-store, b\" , max-age=\"7\"");
    assert!(!quoted.no_store);
    assert_eq!(quoted.max_age, Some(7));
}

#[test]
fn a_lifetime_for_shared_caches_ends_with_a_confirmation() {
    let at = |text: &str| freshness(&facts(text), &v1::FreshnessPolicy::default(), NOW);
    let policy = v1::FreshnessPolicy::default();
    let later = NOW + 10_000;
    assert!(!usable_on_error(&at("s-maxage=5"), &policy, later));
    assert!(!usable_on_error(
        &at("max-age=9, s-maxage=5"),
        &policy,
        later
    ));
    assert!(usable_on_error(
        &at("s-maxage=5, stale-if-error=60"),
        &policy,
        later
    ));
    assert!(usable_on_error(&at("max-age=5"), &policy, later));
    let operators = v1::FreshnessPolicy {
        stale_if_error_seconds: Some(60),
        ..policy
    };
    assert!(usable_on_error(&at("s-maxage=5"), &operators, later));
}

#[test]
fn expires_without_a_date_counts_from_the_arrival() {
    let answer = AnswerFacts {
        date_ms: None,
        expires_ms: Some(NOW + 90_000),
        ..facts("")
    };
    assert_eq!(fresh_seconds(&answer, &v1::FreshnessPolicy::default()), 90);
}

#[test]
fn a_part_and_what_varies_on_anything_are_kept_for_nobody() {
    let part = AnswerFacts {
        is_part: true,
        ..facts("max-age=60")
    };
    let policy = v1::FreshnessPolicy::default();
    assert_eq!(storable(&part), Err("content-range"));
    assert!(freshness_of_whole(200, &part, &policy, NOW).is_none());
    assert_eq!(stays(&part), Ok(()));
    let any = AnswerFacts {
        vary: vec!["*".into()],
        ..facts("max-age=60")
    };
    assert_eq!(stays(&any), Err("vary-any"));
    assert_eq!(negative_lifetime_ms(&any, &policy, NOW), 0);
}

#[test]
fn a_date_and_an_age_are_one() {
    assert_eq!(
        date(37, 784_111_777_000 + 37_900),
        "Sun, 06 Nov 1994 08:49:37 GMT"
    );
    assert_eq!(date(u64::MAX, 5), "Thu, 01 Jan 1970 00:00:00 GMT");
}
