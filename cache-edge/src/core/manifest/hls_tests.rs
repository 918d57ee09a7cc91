use proptest::prelude::*;

use super::*;
use crate::core::manifest::{MAX_TEXT_BYTES, position_in};

fn parse(lines: &str) -> Option<Manifest> {
    Manifest::parse(&format!("#EXTM3U\n{lines}"), "/media/film/720/index.m3u8")
}

fn segments(playlist: &Manifest) -> &[Segment] {
    match &playlist.tracks[0].1 {
        Track::Listed(segments) => segments,
        other => panic!("{other:?}"),
    }
}

fn next(playlist: &Manifest, position: u64) -> Vec<String> {
    next_in(playlist, 0, position)
}

/// `path@first-last+ms` of what follows.
fn next_in(playlist: &Manifest, track: usize, position: u64) -> Vec<String> {
    let next = playlist.next(track, position).into_iter();
    let text = next.map(|(segment, due)| {
        let range = match segment.range {
            Some((first, Some(last))) => format!("@{first}-{last}"),
            Some((first, None)) => format!("@{first}-"),
            None => String::new(),
        };
        format!("{}{range}+{}", segment.path, due.as_millis())
    });
    text.collect()
}

#[test]
fn the_next_three_segments_and_when_they_are_due() {
    let lines = "#EXT-X-TARGETDURATION:4\n#EXT-X-MAP:URI=\"i.mp4\"\n#EXTINF:4,\n1.m4s\n\
                 #EXTINF:2.5,\n2.m4s\n#EXT-X-DISCONTINUITY\n#EXT-X-MAP:URI=\"j.mp4\"\n\
                 #EXTINF:4,\n../ad/3.m4s?x=1\n\
                 #EXTINF:4,\n/media/film/4.m4s\n#EXTINF:4,\n5.m4s\n";
    let playlist = parse(lines).unwrap();
    assert_eq!(segments(&playlist).len(), 7);
    let after_the_map = [
        "film/720/1.m4s+0",
        "film/720/2.m4s+4000",
        "film/720/j.mp4+6500",
    ];
    let after = next(&playlist, 0);
    assert_eq!(after[..3], after_the_map);
    assert_eq!(after[3], "film/ad/3.m4s+6500");
    assert_eq!(after.len(), 4);
    assert_eq!(
        next(&playlist, 1),
        [
            "film/720/2.m4s+4000",
            "film/720/j.mp4+6500",
            "film/ad/3.m4s+6500",
            "film/4.m4s+10500"
        ]
    );
    assert_eq!(segments(&playlist)[4].query, "x=1");
    assert!(next(&playlist, 6).is_empty(), "the last one");
    assert!(next(&playlist, 60).is_empty());
}

#[test]
fn byte_ranges_of_one_object() {
    let lines = "#EXT-X-MAP:URI=\"a.mp4\",BYTERANGE=\"100@0\"\n\
                 #EXTINF:4,\n#EXT-X-BYTERANGE:50@100\na.mp4\n\
                 #EXTINF:4,\n#EXT-X-BYTERANGE:70\na.mp4\n#EXTINF:4,\n#EXT-X-BYTERANGE:1\na.mp4\n";
    let playlist = parse(lines).unwrap();
    assert_eq!(
        next(&playlist, 0),
        [
            "film/720/a.mp4@100-149+0",
            "film/720/a.mp4@150-219+4000",
            "film/720/a.mp4@220-220+8000"
        ]
    );
    for (start, position) in [(0, 0), (99, 0), (100, 1), (149, 1), (150, 2), (500, 3)] {
        assert_eq!(
            position_in(segments(&playlist), 0, start),
            position,
            "{start}"
        );
    }
}

#[test]
fn spaces_that_players_ignore_are_ignored() {
    let lines = "#EXTINF: 4.0,\r\n1.ts \r\n\r\n#EXTINF:\t4\r\n 2.ts\r\n#EXTINF:4,\r\n3.ts\t\r\n";
    let playlist = parse(lines).unwrap();
    assert_eq!(segments(&playlist)[0].path, "film/720/1.ts");
    assert_eq!(
        next(&playlist, 0),
        ["film/720/2.ts+4000", "film/720/3.ts+8000"]
    );
    let master = "#EXTM3U\n #EXT-X-STREAM-INF:BANDWIDTH=1\n low.m3u8 \n";
    let chosen = select(master, &Selection::All).unwrap();
    assert_eq!(chosen, Ok(vec!["low.m3u8".to_owned()]));
}

#[test]
fn a_gap_is_not_fetched_and_delays_what_follows() {
    let lines = "#EXTINF:4,\n1.ts\n#EXT-X-GAP\n#EXTINF:4,\n2.ts\n#EXTINF:4,\n3.ts\n";
    let playlist = parse(lines).unwrap();
    assert_eq!(segments(&playlist).len(), 2);
    assert_eq!(next(&playlist, 0), ["film/720/3.ts+8000"]);
    // Its bytes count, and so do tags in the other order.
    let lines = "#EXTINF:4,\n#EXT-X-BYTERANGE:50@0\na.ts\n\
                 #EXTINF:4,\n#EXT-X-GAP\n#EXT-X-BYTERANGE:30\na.ts\n\
                 #EXTINF:4,\n#EXT-X-BYTERANGE:20\na.ts\n";
    let playlist = parse(lines).unwrap();
    assert_eq!(next(&playlist, 0), ["film/720/a.ts@80-99+8000"]);
    let parts = "#EXTINF:4,\n1.mp4\n#EXT-X-PART:DURATION=1,URI=\"2.0.mp4\"\n\
                 #EXT-X-PART:DURATION=1,URI=\"2.1.mp4\",GAP=YES\n\
                 #EXT-X-PART:DURATION=1,URI=\"2.2.mp4\"\n";
    let playlist = parse(parts).unwrap();
    let after = next(&playlist, 0);
    assert_eq!(after, ["film/720/2.0.mp4+4000", "film/720/2.2.mp4+6000"]);
}

#[test]
fn what_leads_elsewhere_is_left_out() {
    let playlist = parse(
        "#EXTINF:4,\nhttp://evil.example/1.ts\n#EXTINF:4,\n//evil.example/2.ts\n\
         #EXTINF:4,\n/other/3.ts\n\
         #EXTINF:4,\n../../../other/4.ts\n#EXTINF:nan,\n5.ts\n",
    );
    let playlist = playlist.unwrap();
    let segments = segments(&playlist);
    assert_eq!(segments.len(), 1);
    assert_eq!(
        (segments[0].path.as_str(), segments[0].duration.as_secs()),
        ("film/720/5.ts", 1)
    );
    assert_eq!(
        parse("#EXT-X-STREAM-INF:BANDWIDTH=1\nlow/index.m3u8\n"),
        None
    );
    assert_eq!(Manifest::parse("<html>", "/media/a.m3u8"), None);
}

#[test]
fn a_hostile_playlist_is_read_no_further_than_its_bounds() {
    let playlist = parse(&"#EXTINF:1,\na\n".repeat(70_000)).unwrap();
    assert!(segments(&playlist).len() <= MAX_SEGMENTS);
    let folder = format!("/media/{}/i.m3u8", "x".repeat(8_000));
    let text = format!("#EXTM3U\n{}", "#EXTINF:1,\n/o\n".repeat(60_000));
    assert_eq!(Manifest::parse(&text, &folder), None);
    assert_eq!(parse(&"#\n".repeat(MAX_TEXT_BYTES)), None);
}

#[test]
fn a_name_counts_as_it_is_kept() {
    let escaped = format!("#EXTINF:1,\n{}\n", "é".repeat(100));
    let playlist = parse(&escaped.repeat(3_000)).unwrap();
    let kept = segments(&playlist).iter().map(|it| it.path.len());
    assert!(kept.sum::<usize>() <= playlist.bytes);
}

#[test]
fn parts_and_the_one_that_is_hinted_at() {
    let lines = "#EXT-X-PART-INF:PART-TARGET=1\n#EXT-X-MAP:URI=\"i.mp4\"\n\
                 #EXTINF:4,\n7.mp4\n\
                 #EXT-X-PART:DURATION=1,URI=\"8.0.mp4\",INDEPENDENT=YES\n\
                 #EXT-X-PART:DURATION=0.9,URI=\"8.1.mp4\"\n#EXTINF:1.9,\n8.mp4\n\
                 #EXT-X-PART:DURATION=1,URI=\"9.0.mp4\"\n\
                 #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"9.1.mp4\"\n";
    let playlist = parse(lines).unwrap();
    // A player of segments comes to the parts at the end.
    let after_7 = [
        "film/720/8.mp4+4000",
        "film/720/9.0.mp4+5900",
        "film/720/9.1.mp4+6900",
    ];
    assert_eq!(next(&playlist, 1), after_7);
    let parts = [
        "film/720/8.1.mp4+1000",
        "film/720/9.0.mp4+1900",
        "film/720/9.1.mp4+2900",
    ];
    assert_eq!(next_in(&playlist, 1, 0), parts);
    assert!(next_in(&playlist, 1, 3).is_empty());
    // Parts of one object, and the rest of it.
    let lines = "#EXT-X-PART:DURATION=1,URI=\"8.mp4\",BYTERANGE=\"100@0\"\n\
                 #EXT-X-PART:DURATION=1,URI=\"8.mp4\",BYTERANGE=\"50\"\n\
                 #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"8.mp4\",BYTERANGE-START=150\n";
    let playlist = parse(lines).unwrap();
    assert_eq!(playlist.tracks.len(), 1);
    assert_eq!(
        next(&playlist, 0),
        ["film/720/8.mp4@100-149+1000", "film/720/8.mp4@150-+2000"]
    );
}

#[test]
fn playlists_of_a_selection() {
    let text = "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"en\",URI=\"en.m3u8\"\n\
                #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"b\",NAME=\"en\",URI=\"hi.m3u8\"\n\
                #EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"s\",NAME=\"en\",URI=\"sub.m3u8\"\n\
                #EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID=\"c\",NAME=\"c\",INSTREAM-ID=\"CC1\"\n\
                #EXT-X-STREAM-INF:BANDWIDTH=100,RESOLUTION=640x360,AUDIO=\"a\"\nlow.m3u8\n\
                #EXT-X-STREAM-INF:BANDWIDTH=300,RESOLUTION=1280x720,AUDIO=\"b\",SUBTITLES=\"s\"\n\
                hd/1.m3u8\n\
                #EXT-X-STREAM-INF:BANDWIDTH=200,RESOLUTION=960x540,AUDIO=\"a\"\nmid.m3u8\n";
    let of = |selection: &str| select(text, &Selection::parse(selection)).unwrap();
    let highest = ["hd/1.m3u8", "hi.m3u8", "sub.m3u8"];
    assert_eq!(of("highest").unwrap(), highest);
    assert_eq!(of("1280x*").unwrap(), highest);
    assert_eq!(of("hd/*").unwrap(), highest);
    assert_eq!(of("lowest").unwrap(), ["low.m3u8", "en.m3u8"]);
    assert_eq!(of("").unwrap().len(), 6);
    let error = of("8k").unwrap_err();
    assert!(error.contains("1280x720, 640x360"), "{error}");
    let media = "#EXTM3U\n#EXTINF:1,\na.ts\n";
    assert!(select(media, &Selection::All).is_none());
    assert!(select("<MPD/>", &Selection::All).is_none());
}

#[test]
fn the_objects_of_the_first_seconds() {
    let lines =
        "#EXT-X-MAP:URI=\"i.mp4\"\n#EXTINF:4,\n1.m4s\n#EXTINF:4,\n2.m4s\n#EXTINF:4,\n3.m4s\n";
    let playlist = parse(lines).unwrap();
    let of = |first: Option<u64>, limit| {
        let objects = playlist.select(&Selection::Highest, first.map(Duration::from_secs), limit);
        objects.map(|it| it.into_iter().map(|it| it.0).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(of(Some(4), 9).unwrap(), "film/720/i.mp4 film/720/1.m4s");
    assert_eq!(
        of(Some(5), 9).unwrap(),
        "film/720/i.mp4 film/720/1.m4s film/720/2.m4s"
    );
    assert_eq!(of(None, 4).unwrap().split(' ').count(), 4);
    assert!(of(None, 3).is_err());
}

proptest! {
    #[test]
    fn nothing_panics(
        text in "(#EXTINF:[0-9.,-]{0,6}|#EXT-X-MAP:URI=\"[a-z./]{0,6}\"\
                 |#EXT-X-PART:DURATION=[0-9.]{1,3},URI=\"[a-z./]{0,6}\"(,BYTERANGE=[0-9@]{1,9})?\
                 |#EXT-X-PRELOAD-HINT:TYPE=(PART|MAP),URI=\"[a-z]{0,3}\"\
                 |#EXT-X-STREAM-INF:BANDWIDTH=[0-9]{1,3}\
                 |#EXT-X-BYTERANGE:[0-9@]{0,24}|[a-z/.?#%]{0,8}|\n){0,40}",
        at in 0_usize..50,
    ) {
        let _ = select(&format!("#EXTM3U\n{text}"), &Selection::Highest);
        if let Some(playlist) = parse(&text) {
            let segments = segments(&playlist);
            prop_assert!(playlist.next(0, at as u64).len() <= segments.len());
            prop_assert!(position_in(segments, at, 7) <= at + segments.len());
            let _ = playlist.select(&Selection::All, Some(Duration::from_secs(3)), 9);
        }
    }
}
