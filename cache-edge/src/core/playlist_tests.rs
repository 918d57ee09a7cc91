use proptest::prelude::*;

use super::*;

fn parse(lines: &str) -> Option<Playlist> {
    Playlist::parse(&format!("#EXTM3U\n{lines}"), "/media/film/720/index.m3u8")
}

/// `path@first-last+ms` of what follows.
fn next(playlist: &Playlist, position: usize) -> Vec<String> {
    let next = playlist.next(position);
    let text = next.map(|(segment, due)| {
        let range = match segment.range {
            Some((first, Some(last))) => format!("@{first}-{last}"),
            _ => String::new(),
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
    assert_eq!(playlist.segments.len(), 7);
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
    assert_eq!(playlist.segments[4].query, "x=1");
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
        assert_eq!(playlist.position(0, start), position, "{start}");
    }
}

#[test]
fn what_leads_elsewhere_is_left_out() {
    let playlist = parse(
        "#EXTINF:4,\nhttp://evil.example/1.ts\n#EXTINF:4,\n//evil.example/2.ts\n\
         #EXTINF:4,\n/other/3.ts\n\
         #EXTINF:4,\n../../../other/4.ts\n#EXTINF:nan,\n5.ts\n",
    );
    let segments = playlist.unwrap().segments;
    assert_eq!(segments.len(), 1);
    assert_eq!(
        (segments[0].path.as_str(), segments[0].duration.as_secs()),
        ("film/720/5.ts", 1)
    );
    assert_eq!(
        parse("#EXT-X-STREAM-INF:BANDWIDTH=1\nlow/index.m3u8\n"),
        None
    );
    assert_eq!(Playlist::parse("<html>", "/media/a.m3u8"), None);
}

#[test]
fn a_hostile_playlist_is_read_no_further_than_its_bounds() {
    let playlist = parse(&"#EXTINF:1,\na\n".repeat(70_000)).unwrap();
    assert!(playlist.segments.len() <= MAX_SEGMENTS);
    let folder = format!("/media/{}/i.m3u8", "x".repeat(8_000));
    let text = format!("#EXTM3U\n{}", "#EXTINF:1,\n/o\n".repeat(60_000));
    assert_eq!(Playlist::parse(&text, &folder), None);
    assert_eq!(parse(&"#\n".repeat(MAX_TEXT_BYTES)), None);
}

proptest! {
    #[test]
    fn nothing_panics(
        text in "(#EXTINF:[0-9.,-]{0,6}|#EXT-X-MAP:URI=\"[a-z./]{0,6}\"\
                 |#EXT-X-BYTERANGE:[0-9@]{0,24}|[a-z/.?#%]{0,8}|\n){0,40}",
        at in 0_usize..50,
    ) {
        if let Some(playlist) = parse(&text) {
            prop_assert!(playlist.next(at).count() <= playlist.segments.len());
            prop_assert!(playlist.position(at, 7) <= at + playlist.segments.len());
        }
    }
}
