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
    assert_eq!(
        storable(&facts("private=\"set-cookie, x\"")),
        Err("private")
    );
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
    assert_eq!(
        storable(&AnswerFacts {
            with_authorization: true,
            ..facts("max-age=9")
        }),
        Err("authorization")
    );
    assert_eq!(
        storable(&AnswerFacts {
            with_authorization: true,
            ..facts("public")
        }),
        Ok(())
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
    let value = |_: &str| Some("de");
    assert_eq!(variant(&vary, &[], value), "");
    assert_eq!(
        variant(&vary, &["Accept-Language".to_owned()], value),
        "accept-language=de"
    );
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
    fn a_variant_tells_the_headers_that_select_it(values in prop::collection::vec("[ -~]{1,12}", 3)) {
        let names = ["accept-language", "x-b", "x-c"].map(str::to_owned);
        let value_of = |name: &str| {
            let at = names.iter().position(|known| known == name)?;
            values.get(at).map(String::as_str)
        };
        let told: Vec<_> = variant_headers(&variant(&names, &names, value_of)).collect();
        let wanted: Vec<_> = names
            .iter()
            .zip(&values)
            .map(|(name, value)| (name.clone(), value.trim().to_owned()))
            .collect();
        prop_assert_eq!(told, wanted);
    }

    #[test]
    fn any_text_is_taken_as_a_variant(text in any::<String>()) {
        prop_assert!(variant_headers(&text).count() <= text.len() + 1);
    }
}
