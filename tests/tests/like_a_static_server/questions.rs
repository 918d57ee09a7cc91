//! Requests to both servers: every odd one three times, and random ones up to a few thousand.

use rand::{RngExt as _, rngs::StdRng};

use super::SIZE;

const QUESTIONS: usize = 3000;
const OLD: &str = "Sat, 01 Jan 2000 00:00:00 GMT";

type Headers = Vec<(&'static str, String)>;

/// A request, and its name if it is one of the odd ones.
pub struct Question {
    pub name: String,
    pub method: &'static str,
    pub headers: Headers,
}

/// `Range` values that a parser may stumble over.
fn odd_ranges() -> Vec<String> {
    let size = SIZE;
    let mut all: Vec<String> = [
        "bytes=0-0",
        "bytes=-0",
        "bytes=-1",
        "bytes=5-1",
        "bytes=",
        "bytes=-",
        "bytes=--5",
        "bytes=a-b",
        "bytes=1-b",
        "bytes=+1-5",
        "bytes=0x1-5",
        "bytes=1.5-9",
        "bytes",
        "bytes 0-9",
        "bytes=0-9;",
        "bytes=0-9 5",
        "bytes= 0-9",
        "bytes=0 -9",
        "bytes=0- 9",
        "bytes =0-9",
        "Bytes=0-9",
        "BYTES=0-9",
        "items=0-9",
        "none",
        "",
        "bytes=0-9,",
        "bytes=,0-9",
        "bytes=0-9,,20-29",
        "bytes=0-9 , 20-29",
        "bytes=0-9,20-29",
        "bytes=20-29,0-9",
        "bytes=0-0,-1",
        "bytes=0-9,10-19",
        "bytes=0-99,50-149",
        "bytes=0-9,5-1",
        "bytes=0-9,x",
        "bytes=0-18446744073709551614",
        "bytes=0-18446744073709551615",
        "bytes=0-99999999999999999999999",
        "bytes=18446744073709551615-",
        "bytes=99999999999999999999999-",
        "bytes=-18446744073709551615",
        "bytes=-99999999999999999999999",
        "bytes=0000000000000000000000000-9",
    ]
    .map(str::to_owned)
    .into();
    all.push(format!("bytes={size}-"));
    all.push(format!("bytes={}-", size - 1));
    all.push(format!("bytes={size}-{size}"));
    all.push(format!("bytes=-{size}"));
    all.push(format!("bytes=-{}", size + 1));
    all.push(format!("bytes=0-9,{size}-"));
    all.push(format!("bytes={size}-,{}-", size + 5));
    all.push(format!("bytes=0-,0-{}", size / 2));
    all.push(format!("bytes={}", ["0-9"; 17].join(",")));
    all.push(format!(
        "bytes={}",
        (0..17)
            .map(|n| format!("{}-{}", n * 100, n * 100 + 9))
            .collect::<Vec<_>>()
            .join(",")
    ));
    all
}

fn odd_conditions(etag: &str, date: &str) -> Vec<Headers> {
    let weak = format!("W/{etag}");
    let bare = etag.trim_matches('"').to_owned();
    let one = |name, value: &str| vec![(name, value.to_owned())];
    let mut all = Vec::new();
    for value in [
        etag,
        &weak,
        &bare,
        "*",
        "\"other\"",
        &format!("\"other\", {weak}, \"more\""),
        "",
        "\"",
        "\"a, b\"",
    ] {
        all.push(one("If-None-Match", value));
        all.push(one("If-Match", value));
    }
    for value in [
        date,
        OLD,
        "Fri, 31 Dec 2100 00:00:00 GMT",
        "yesterday",
        "",
        "Sunday, 13-Sep-20 12:26:40 GMT",
        "Sun Sep 13 12:26:40 2020",
    ] {
        all.push(one("If-Modified-Since", value));
        all.push(one("If-Unmodified-Since", value));
    }
    for value in [
        etag,
        &weak,
        "\"other\"",
        date,
        OLD,
        "Fri, 31 Dec 2100 00:00:00 GMT",
        "nonsense",
        "",
    ] {
        all.push(vec![
            ("Range", "bytes=5-9".to_owned()),
            ("If-Range", value.to_owned()),
        ]);
        all.push(one("If-Range", value));
    }
    for (first, second) in [
        (("If-None-Match", "\"other\""), ("If-Modified-Since", date)),
        (("If-None-Match", etag), ("If-Modified-Since", OLD)),
        (("If-Match", etag), ("If-Unmodified-Since", OLD)),
        (("If-Match", etag), ("If-None-Match", etag)),
        (("If-Match", "\"other\""), ("If-None-Match", etag)),
        (("If-Unmodified-Since", OLD), ("If-None-Match", etag)),
        (("If-None-Match", etag), ("Range", "bytes=0-9")),
        (("If-Match", "\"other\""), ("Range", "bytes=0-9")),
        (("If-Match", "\"other\""), ("Range", "bytes=99999999-")),
        (("Range", "bytes=0-9"), ("Range", "bytes=20-29")),
    ] {
        all.push(vec![
            (first.0, first.1.to_owned()),
            (second.0, second.1.to_owned()),
        ]);
    }
    all
}

fn random_range(random: &mut StdRng) -> String {
    let near_end = random.random_bool(0.2);
    let first = if near_end {
        SIZE - random.random_range(1..100)
    } else {
        random.random_range(0..SIZE + 100)
    };
    let length = 1 << random.random_range(0..19);
    match random.random_range(0..6) {
        0 => format!("bytes={first}-"),
        1 => format!("bytes=-{}", random.random_range(1..SIZE * 2)),
        _ => format!("bytes={first}-{}", first + random.random_range(0..length)),
    }
}

/// All requests, the odd ones first.
pub fn questions(random: &mut StdRng, etag: &str, date: &str) -> Vec<Question> {
    let mut all = Vec::new();
    for method in ["GET", "HEAD"] {
        for range in odd_ranges() {
            let name = format!("Range: {}", range.chars().take(60).collect::<String>());
            all.push(Question {
                name,
                method,
                headers: vec![("Range", range)],
            });
        }
        for headers in odd_conditions(etag, date) {
            let told: Vec<String> = headers
                .iter()
                .map(|(name, value)| {
                    format!(
                        "{name}: {}",
                        value
                            .replace(etag.trim_matches('"'), "ETAG")
                            .replace(date, "DATE")
                    )
                })
                .collect();
            all.push(Question {
                name: told.join("; "),
                method,
                headers,
            });
        }
    }
    // Each odd request is sent three times, so that it meets a cold, a half warm and a warm object.
    let odd: Vec<Question> = (0..3)
        .flat_map(|_| &all)
        .map(|q| Question {
            name: q.name.clone(),
            method: q.method,
            headers: q.headers.clone(),
        })
        .collect();
    let mut all = odd;
    let conditions = odd_conditions(etag, date);
    while all.len() < QUESTIONS {
        let mut headers = Vec::new();
        if random.random_bool(0.9) {
            headers.push(("Range", random_range(random)));
        }
        if random.random_bool(0.3) {
            let condition = &conditions[random.random_range(0..conditions.len())];
            // Only conditions that both sides read alike; the others are among the odd ones.
            if condition.len() == 1
                && [etag, date, OLD, "\"other\""].contains(&condition[0].1.as_str())
            {
                headers.extend(condition.iter().cloned());
            }
        }
        let method = if random.random_bool(0.1) {
            "HEAD"
        } else {
            "GET"
        };
        all.push(Question {
            name: String::new(),
            method,
            headers,
        });
    }
    all
}
