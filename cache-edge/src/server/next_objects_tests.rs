use super::*;

fn next(path: &str) -> NextObject {
    NextObject {
        name: ObjectName::Key {
            source: "media".to_owned(),
            path: path.to_owned(),
            query: String::new(),
        },
        range: None,
        due: Duration::ZERO,
    }
}

#[test]
fn what_is_expected_again_within_seconds_is_one() {
    let (recent, start) = (Recent::default(), Instant::now());
    let id = recent.id(&next("a.ts"));
    let later = NextObject {
        due: Duration::from_secs(9),
        ..next("a.ts")
    };
    assert_eq!(recent.id(&later), id, "whenever it is due");
    assert!(recent.begin(id, start));
    assert!(
        !recent.begin(id, start + Duration::from_secs(20)),
        "under way"
    );
    recent.end(id, start + Duration::from_secs(21));
    assert!(!recent.begin(id, start + Duration::from_secs(25)));
    assert!(recent.begin(id, start + Duration::from_secs(26)));
    let ranged = NextObject {
        range: Some((0, Some(9))),
        ..next("a.ts")
    };
    assert!(recent.begin(recent.id(&ranged), start));
}

#[test]
fn a_flood_of_names_is_forgotten() {
    let (recent, start) = (Recent::default(), Instant::now());
    for number in 0..2 * MAX_RECENT {
        assert!(recent.begin(recent.id(&next(&number.to_string())), start));
    }
    assert!(recent.until.lock().len() <= MAX_RECENT);
}
