//! Live titles: what is not there yet.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use chunkcache_tests::http::Call;
use chunkcache_tests::origin::Times;
use chunkcache_tests::{Cluster, Fault, Object};

#[test]
fn a_playlist_that_waits_is_asked_for_once() {
    let cluster = Cluster::with_edges(1);
    let waiting = |part: u32| {
        let object = Object::text(&format!("#EXTM3U\n#EXTINF:1,\n{part}.ts\n")).unwrap();
        let object = object.header("Cache-Control", "max-age=6");
        // Longer than a usual question waits alone.
        object.latency(Duration::from_secs(5))
    };
    let at = |kind: &str, part: u32| format!("/{kind}/index.m3u8?_HLS_msn=3&_HLS_part={part}");
    for part in 0..2 {
        cluster.put(&at("stored", part), waiting(part));
        // As live servers do: without a validator, a length or ranges.
        let faults = [Fault::Chunked, Fault::IgnoreRange].into_iter();
        let whole = waiting(part).etag(None);
        let whole = faults.fold(whole, |it, fault| it.fault(fault, Times::Always));
        cluster.put(&at("whole", part), whole);
    }
    let mut viewers = Vec::new();
    for kind in ["stored", "whole"] {
        for viewer in 0..30 {
            let (part, edge) = (viewer % 2, cluster.edge().http);
            let target = format!("/media{}", at(kind, part));
            let asked = move || (part, Call::get(&target).send(edge).expect(200).text());
            viewers.push(std::thread::spawn(asked));
        }
    }
    for viewer in viewers {
        let (part, text) = viewer.join().unwrap();
        assert!(text.contains(&format!("{part}.ts")), "{part}: {text}");
    }
    for kind in ["stored", "whole"] {
        let hits = cluster.origin.hits(&format!("/{kind}/index.m3u8"));
        let targets: BTreeSet<&str> = hits.iter().map(|hit| hit.target.as_str()).collect();
        assert_eq!((hits.len(), targets.len()), (2, 2), "{kind}: {hits:?}");
    }
}
