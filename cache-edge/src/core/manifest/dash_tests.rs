use proptest::prelude::*;

use super::*;
use crate::core::manifest::{MAX_BYTES, selection::Selection};

fn parse(mpd: &str) -> Option<Manifest> {
    Manifest::parse(mpd, "/media/film/index.mpd")
}

/// `path?query@first-last+ms` of what follows.
fn next(manifest: &Manifest, track: usize, position: u64) -> Vec<String> {
    let next = manifest.next(track, position).into_iter();
    next.map(|(it, due)| {
        format!(
            "{}+{}",
            named(&it.path, &it.query, it.range),
            due.as_millis()
        )
    })
    .collect()
}

fn named(path: &str, query: &str, range: Option<OpenRange>) -> String {
    let query = match query {
        "" => String::new(),
        query => format!("?{query}"),
    };
    let range = match range {
        Some((first, Some(last))) => format!("@{first}-{last}"),
        _ => String::new(),
    };
    format!("{path}{query}{range}")
}

fn objects(manifest: &Manifest, selection: &str, first: Option<u64>) -> Vec<String> {
    let first = first.map(Duration::from_secs);
    let objects = manifest.select(&Selection::parse(selection), first, 1_000);
    let objects = objects.unwrap().into_iter();
    objects
        .map(|(path, query, range)| named(&path, &query, range))
        .collect()
}

#[test]
fn templates_with_numbers() {
    let manifest = parse(
        r#"<?xml version="1.0"?>
        <MPD xmlns="urn:mpeg:dash:schema:mpd:2011" mediaPresentationDuration="PT10S">
         <BaseURL>media/</BaseURL><Period><!-- one -->
          <AdaptationSet contentType="video" lang="en">
           <SegmentTemplate timescale="1000" duration="4000" startNumber="5"
             initialization="$RepresentationID$/i.mp4"
             media="$RepresentationID$/$Bandwidth%05d$-$Number%03d$.m4s?a=1&amp;b=$$"/>
           <Representation id="low" bandwidth="800" width="640" height="360"/>
           <Representation id="high" bandwidth="2400"><BaseURL>x/</BaseURL></Representation>
          </AdaptationSet></Period></MPD>"#,
    )
    .unwrap();
    assert_eq!(
        next(&manifest, 0, 0),
        [
            "film/media/low/00800-006.m4s?a=1&b=$+4000",
            "film/media/low/00800-007.m4s?a=1&b=$+8000",
        ]
    );
    assert!(next(&manifest, 0, 2).is_empty(), "the last of three");
    let high = [
        "film/media/x/high/i.mp4",
        "film/media/x/high/02400-005.m4s?a=1&b=$",
    ];
    assert_eq!(objects(&manifest, "highest", Some(4)), high);
    assert_eq!(objects(&manifest, "lowest", None).len(), 4);
    assert_eq!(objects(&manifest, "640x*", None).len(), 4);
    assert_eq!(objects(&manifest, "all", None).len(), 8);
    let error = manifest.select(&Selection::parse("8k"), None, 1_000);
    assert_eq!(
        error.unwrap_err(),
        "no rendition has that name; there are 640x360, en, high, low"
    );
}

#[test]
fn timelines() {
    let mpd = |timeline: &str, media: &str| {
        let text = format!(
            r#"<MPD><Period duration="PT20S"><AdaptationSet>
            <SegmentTemplate timescale="10" media="{media}"><SegmentTimeline>{timeline}
            </SegmentTimeline></SegmentTemplate><Representation id="v"/>
            </AdaptationSet></Period></MPD>"#
        );
        parse(&text).unwrap()
    };
    let timeline = r#"<S t="100" d="20" r="1"/><S d="30"/><S t="180" d="10" r="-1"/>"#;
    let by_time = mpd(timeline, "v/$Time$.m4s");
    let listed = objects(&by_time, "all", None);
    let expected = ["100", "120", "140", "180", "190"].map(|it| format!("film/v/{it}.m4s"));
    assert_eq!(listed, expected);
    assert_eq!(
        next(&by_time, 0, 1),
        [
            "film/v/140.m4s+2000",
            "film/v/180.m4s+5000",
            "film/v/190.m4s+6000"
        ]
    );
    let Track::Numbered(numbering) = &by_time.tracks[0].1 else {
        panic!("{by_time:?}");
    };
    for (time, position) in [(100, Some(0)), (120, Some(1)), (190, Some(4))] {
        assert_eq!(numbering.position_of(time), position, "{time}");
    }
    for never in [0, 99, 110, 170, 200, u64::MAX] {
        assert_eq!(numbering.position_of(never), None, "{never}");
    }
    let by_number = mpd(timeline, "v/$Number$.m4s");
    assert_eq!(objects(&by_number, "all", Some(5)).len(), 3);
    // A repetition up to the next entry; one without an end ends with the period.
    let open = mpd(r#"<S t="0" d="50" r="-1"/><S t="100" d="50"/>"#, "$Time$");
    assert_eq!(
        objects(&open, "all", None),
        ["film/0", "film/50", "film/100"]
    );
    let backwards = mpd(
        r#"<S t="100" d="10"/><S t="50" d="10"/><S d="0"/>"#,
        "$Time$",
    );
    assert_eq!(objects(&backwards, "all", None), ["film/100"]);
}

#[test]
fn live_without_a_timeline_has_no_end() {
    let live = parse(
        r#"<MPD type="dynamic"><Period start="PT0S"><AdaptationSet>
        <SegmentTemplate duration="2" startNumber="0" media="s$Number$x.m4s"/>
        <Representation id="v"/></AdaptationSet></Period></MPD>"#,
    )
    .unwrap();
    assert_eq!(next(&live, 0, 800_000_000)[0], "film/s800000001x.m4s+2000");
    assert!(live.select(&Selection::All, None, 100).is_err());
    let first = live.select(&Selection::All, Some(Duration::from_secs(6)), 100);
    assert_eq!(first.unwrap().len(), 3);
}

#[test]
fn lists_and_whole_objects() {
    let manifest = parse(
        r#"<MPD mediaPresentationDuration="PT1H"><Period>
        <AdaptationSet mimeType="video/mp4"><Representation id="l" bandwidth="8000">
         <SegmentList timescale="1" duration="5"><Initialization sourceURL="i.mp4"/>
          <SegmentURL media="1.m4s"/><SegmentURL media="2.m4s" mediaRange="10-19"/></SegmentList>
        </Representation></AdaptationSet>
        <AdaptationSet mimeType="audio/mp4"><Representation id="w" bandwidth="8000">
         <BaseURL> a&amp;b.mp4 </BaseURL><SegmentBase indexRange="700-899">
         <Initialization range="0-699"/></SegmentBase></Representation></AdaptationSet>
        <AdaptationSet mimeType="text/vtt"><Representation id="n"/></AdaptationSet>
        </Period></MPD>"#,
    )
    .unwrap();
    assert_eq!(manifest.tracks.len(), 2);
    assert_eq!(
        next(&manifest, 0, 0),
        ["film/1.m4s+0", "film/2.m4s@10-19+5000"]
    );
    let all = [
        "film/i.mp4",
        "film/1.m4s",
        "film/2.m4s@10-19",
        "film/a&b.mp4",
    ];
    assert_eq!(objects(&manifest, "all", None), all);
    // The start of a single object, by its bit rate.
    let first = ["film/i.mp4", "film/1.m4s", "film/a&b.mp4@0-4000"];
    assert_eq!(objects(&manifest, "all", Some(3)), first);
}

#[test]
fn periods_follow_each_other() {
    let period = |id: &str, length: &str| {
        format!(
            r#"<Period {length}><AdaptationSet><SegmentTemplate duration="2" media="{id}-$Number$"/>
            <Representation id="v"/></AdaptationSet></Period>"#
        )
    };
    let (one, two) = (period("a", "duration=\"PT4S\""), period("b", ""));
    let mpd = format!(r#"<MPD mediaPresentationDuration="PT0M10S">{one}{two}</MPD>"#);
    let manifest = parse(&mpd).unwrap();
    assert_eq!(objects(&manifest, "all", None).len(), 2 + 3);
    assert_eq!(objects(&manifest, "all", Some(4)).len(), 2);
    let first = ["film/a-1", "film/a-2", "film/b-1"];
    assert_eq!(objects(&manifest, "all", Some(5)), first);
}

#[test]
fn a_period_ends_where_the_next_one_begins() {
    let period = |id: &str, start: u64| {
        format!(
            r#"<Period start="PT{start}S"><AdaptationSet><SegmentTemplate duration="2"
            media="{id}-$Number$"/><Representation id="v"/></AdaptationSet></Period>"#
        )
    };
    let (one, two) = (period("a", 0), period("b", 4));
    let mpd = format!(r#"<MPD mediaPresentationDuration="PT10S">{one}{two}</MPD>"#);
    let named = objects(&parse(&mpd).unwrap(), "all", None);
    let expected = ["a-1", "a-2", "b-1", "b-2", "b-3"].map(|it| format!("film/{it}"));
    assert_eq!(named, expected);
    let live = parse(&format!(r#"<MPD type="dynamic">{one}{two}</MPD>"#)).unwrap();
    assert_eq!((next(&live, 0, 0).len(), next(&live, 0, 1).len()), (1, 0));
    assert_eq!(next(&live, 1, 100).len(), 3);
}

#[test]
fn a_template_may_name_its_last_number() {
    let mpd = |numbers: &str, length: &str| {
        let manifest = parse(&format!(
            r#"<MPD {length}><Period><AdaptationSet><SegmentTemplate duration="2" {numbers}
            media="$Number$"/><Representation id="v"/></AdaptationSet></Period></MPD>"#
        ));
        objects(&manifest.unwrap(), "all", None)
    };
    let length = r#"mediaPresentationDuration="PT100S""#;
    let (one, two) = (r#"endNumber="2""#, r#"startNumber="0" endNumber="1""#);
    assert_eq!(mpd(one, length), ["film/1", "film/2"]);
    assert_eq!(mpd(two, ""), ["film/0", "film/1"]);
}

#[test]
fn a_base_may_have_any_kind_of_text() {
    for base in [
        "a&amp;b/",
        "a&#38;b/",
        "a&#x26;b/",
        "<![CDATA[a&b/]]>",
        "a<![CDATA[&]]>b/",
    ] {
        let mpd = format!(
            r#"<MPD mediaPresentationDuration="PT2S"><BaseURL>{base}</BaseURL><Period>
            <AdaptationSet><SegmentTemplate duration="2" media="$Number$"/>
            <Representation id="v"/></AdaptationSet></Period></MPD>"#
        );
        let named = objects(&parse(&mpd).unwrap(), "all", None);
        assert_eq!(named, ["film/a&b/1"], "{base}");
    }
}

#[test]
fn what_leads_elsewhere_is_left_out() {
    let with = |base: &str, media: &str| {
        parse(&format!(
            r#"<MPD><BaseURL>{base}</BaseURL><Period><AdaptationSet>
            <SegmentTemplate duration="2" media="{media}"/><Representation id="v"/>
            </AdaptationSet></Period></MPD>"#
        ))
    };
    assert!(with("a/", "$Number$").is_some());
    assert!(with("/media/b/", "$Number$").is_some());
    for base in [
        "http://evil.example/",
        "//evil.example/",
        "/other/",
        "../../other/",
    ] {
        assert_eq!(with(base, "$Number$"), None, "{base}");
    }
    for media in [
        "http://evil.example/$Number$",
        "/other/$Number$",
        "$Number",
        "$Other$",
        "$Number%0x$",
        "$Number$$Number$",
    ] {
        assert_eq!(with("a/", media), None, "{media}");
    }
    for text in ["<html/>", "<MPD", "", "<Period/>", "<MPD><Period/></MPD>"] {
        assert_eq!(parse(text), None, "{text}");
    }
}

#[test]
fn a_hostile_mpd_is_read_no_further_than_its_bounds() {
    let representations = r#"<Representation id="v"/>"#.repeat(30_000);
    let head = r#"<MPD><Period><AdaptationSet><SegmentTemplate duration="2" media="$Number$">"#;
    let many = parse(&format!("{head}</SegmentTemplate>{representations}")).unwrap();
    assert!(many.tracks.len() <= MAX_TRACKS);
    let entries = r#"<S d="1"/>"#.repeat(60_000);
    assert_eq!(parse(&format!("{head}<SegmentTimeline>{entries}")), None);
    let deep = "<MPD><Period>".to_owned() + &"<AdaptationSet>".repeat(60_000);
    assert_eq!(parse(&deep), None);
    let entities = r#"<!DOCTYPE MPD [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>
        <MPD><BaseURL>&b;/</BaseURL><Period><AdaptationSet>
        <SegmentTemplate duration="2" media="$Number$"/><Representation id="v"/>
        </AdaptationSet></Period></MPD>"#;
    let named = parse(entities).map(|it| objects(&it, "all", Some(1)));
    assert!(
        named.is_none_or(|it| it == ["1"]),
        "entities are not expanded"
    );
}

/// The names that a manifest keeps.
fn kept(manifest: &Manifest) -> usize {
    let tracks = manifest.tracks.iter().map(|(rendition, track)| {
        let segments: &[Segment] = match track {
            Track::Listed(segments) => segments,
            Track::Numbered(numbering) => numbering.init().map_or(&[], std::slice::from_ref),
            Track::Whole(segment) => std::slice::from_ref(segment),
        };
        let names = segments.iter().map(|it| it.path.len() + it.query.len());
        rendition.names.iter().map(String::len).sum::<usize>() + names.sum::<usize>()
    });
    tracks.sum()
}

#[test]
fn what_grows_as_it_is_read_counts_as_it_is_kept() {
    let long = "x".repeat(2_000);
    let base = format!("<BaseURL>{long}/</BaseURL>");
    let set = format!(r#"<AdaptationSet lang="{long}">"#);
    let many = r#"<Representation id="v"/>"#.repeat(2_000);
    let template = r#"<SegmentTemplate duration="2" media="$Number$"/>"#;
    let mut more = Vec::new();
    for (what, mpd) in [
        ("languages", format!("<MPD><Period>{set}{template}{many}")),
        (
            "sets in sets",
            format!("<MPD><Period>{}{template}{many}", set.repeat(25)),
        ),
        (
            "references of a list",
            format!(
                "<MPD>{base}<Period><AdaptationSet><Representation><SegmentList>{}</SegmentList>\
                 </Representation>",
                r#"<SegmentURL media="a"/>"#.repeat(4_000)
            ),
        ),
        (
            "initialization sections",
            format!(
                r#"<MPD>{base}<Period><AdaptationSet><SegmentTemplate duration="2"
                 media="/media/$Number$" initialization="{long}"/>{many}"#
            ),
        ),
        (
            "whole objects",
            format!(r#"<MPD>{base}<Period><AdaptationSet><SegmentTemplate media="{long}"/>{many}"#),
        ),
    ] {
        let manifest = parse(&mpd);
        let (kept, counted) = manifest.map_or((0, 0), |it| (kept(&it), it.bytes));
        if kept > MAX_BYTES || kept > counted {
            more.push((what, kept, counted));
        }
    }
    assert_eq!(more, [], "what, kept, counted");
}

#[test]
fn an_identifier_that_is_repeated_makes_no_long_name() {
    let level = Level {
        id: "x".repeat(MAX_VALUE_BYTES),
        ..Level::default()
    };
    assert!(expand("$RepresentationID$/$Number$", &level).is_some());
    assert_eq!(expand(&"$RepresentationID$".repeat(100), &level), None);
}

#[test]
fn durations() {
    for (text, seconds) in [
        ("PT10S", 10.0),
        ("PT1H2M3.5S", 3723.5),
        ("P1DT1S", 86_401.0),
        ("PT0H0M0.000S", 0.0),
    ] {
        assert_eq!(
            time_of(text),
            Some(Duration::from_secs_f64(seconds)),
            "{text}"
        );
    }
    for text in [
        "", "10", "P1Y", "PT1X", "PT-1S", "PTNaNS", "PTinfS", "PT1e300S", "PT1S2H",
    ] {
        assert_eq!(time_of(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(
        text in "(<MPD( mediaPresentationDuration=\"PT[0-9]{1,3}S\")?>|<Period>|<AdaptationSet>\
                 |<SegmentTemplate( timescale=\"[0-9]{1,20}\")?( duration=\"[0-9]{1,20}\")?\
                 ( startNumber=\"[0-9]{1,20}\")?( presentationTimeOffset=\"[0-9]{1,20}\")? \
                 media=\"[a$]{0,2}[$](Number|Time)[$]\"/?>|<SegmentTimeline>\
                 |<S( t=\"[0-9]{1,20}\")? d=\"[0-9]{1,20}\"( r=\"-?[0-9]{1,20}\")?/>\
                 |<Representation id=\"[a-z]{0,2}\"/>\
                 |</[A-Za-z]{0,15}>|&[a-z]{0,3};|[<>\"a]){0,30}",
        at in any::<u64>(),
    ) {
        let in_order = format!("<MPD><Period><AdaptationSet>{text}<Representation id=\"v\"/>");
        for text in [&text, &in_order] {
            if let Some(manifest) = parse(text) {
                for track in 0..manifest.tracks.len() {
                    let _ = (manifest.next(track, at), manifest.next(track, 0));
                    if let Track::Numbered(numbering) = &manifest.tracks[track].1 {
                        let _ = numbering.position_of(at);
                    }
                }
                let _ = manifest.select(&Selection::All, Some(Duration::from_secs(9)), 50);
            }
        }
    }
}
