//! The dashboard in a real browser: drawn from data, live, usable, accessible, and smooth with much
//! to draw.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use chunkcache_tests::browser::{Browser, ENTER};
use chunkcache_tests::cluster::shared_directory;
use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, MIB, Object, eventually, heavy};

const NARROW: u32 = 360;

/// The source of axe-core, from npm. None, with the reason printed, if it is not available.
fn axe() -> Option<String> {
    let directory = shared_directory().join("axe");
    let source = directory.join("node_modules/axe-core/axe.min.js");
    if !source.exists() {
        std::fs::create_dir_all(&directory).unwrap();
        let mut npm = Command::new("timeout");
        npm.args([
            "90",
            "npm",
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--prefix",
        ]);
        let installed = npm.arg(&directory).arg("axe-core@4").status();
        if !installed.is_ok_and(|status| status.success()) {
            println!("accessibility check skipped: axe-core can not be installed here");
            return None;
        }
    }
    std::fs::read_to_string(source).ok()
}

/// Both colour schemes, wide and narrow: readable, nothing cut off, nothing on the console.
#[track_caller]
fn examine(browser: &Browser, axe: Option<&str>, page: &str) {
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        for (width, shape) in [(1280, "wide"), (NARROW, "narrow")] {
            browser.resize(width, 1000);
            browser.run("window.dispatchEvent(new Event('resize'))");
            browser.wait(
                "nothing wider than the page",
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth",
            );
            browser.screenshot(&format!("{page}-{scheme}-{shape}"));
            let Some(axe) = axe else { continue };
            browser.run(&format!("if (!window.axe) {{ {axe} }}"));
            let found = browser.run_async(
                "axe.run(document, { resultTypes: ['violations'] }).then(r => \
                 r.violations.filter(v => v.impact === 'serious' || v.impact === \
                 'critical').map(v => v.id + ': ' + v.nodes.map(n => n.html + ' ' + \
                 n.failureSummary).join(' | ')))",
            );
            assert_eq!(found, serde_json::json!([]), "{page}, {scheme}, {shape}");
        }
    }
    browser.prefer("light");
    browser.resize(1280, 1000);
    let errors: Vec<_> = browser.console();
    assert!(errors.is_empty(), "{page}: {errors:?}");
}

#[test]
fn renders_updates_and_acts() {
    let _turn = heavy();
    let mut cluster = Cluster::with_edges(2);
    let Some(browser) = Browser::start(cluster.directory.path()) else {
        return;
    };
    let axe = axe();
    let film = cluster.put("/film.mp4", Object::generated(171, 64 * MIB).paced(2 * MIB));
    cluster.put("/job.mp4", Object::generated(172, 1024 * MIB).paced(MIB));
    Call::get(&film)
        .range(9 * MIB, 9 * MIB + 1)
        .send(cluster.edge().http)
        .expect(206);
    let address = cluster.edge().http;
    let playing = Call::get(&film).open(address).unwrap();
    let job = cluster
        .coordinator
        .json(&["precache", "media/job.mp4", "--edge=edge-b"]);
    let job = job["id"].as_str().unwrap().to_owned();
    let page = format!("http://{}/", cluster.coordinator.http);

    browser.open(&page);
    for text in ["edge-a", "edge-b", "job.mp4", "2 of 2"] {
        browser.wait(text, &format!("document.body.innerText.includes('{text}')"));
    }
    browser.wait(
        "it is live",
        "document.querySelector('#live').textContent.startsWith('live')",
    );
    // Live: the same page, without a reload, follows the stored chunks.
    browser.run("window.before = document.querySelector('.cards').innerText");
    browser.wait(
        "the figures move",
        "document.querySelector('.cards').innerText !== window.before",
    );
    browser.wait(
        "the charts are drawn",
        "document.querySelectorAll('.plot svg .plot-line').length >= 2",
    );
    browser.wait(
        "what each source saves is drawn",
        "document.querySelector('[aria-label=\"Worth of each source\"] svg.spark[role=img]') \
         !== null",
    );
    browser.wait(
        "that all is well",
        "document.querySelector('.verdict.good')?.textContent.startsWith('All is well')",
    );
    browser.wait(
        "what is fetched, and why",
        "[...document.querySelectorAll('[aria-label=Fetches] tbody tr')].some(r => \
         r.innerText.includes('media/job.mp4') && r.innerText.includes('asked for by request'))",
    );
    examine(&browser, axe.as_deref(), "cluster");

    let edge_state = || {
        let edges = cluster.coordinator.json(&["edge", "list"]);
        let edges = edges.as_array().unwrap().clone();
        let edge = edges.iter().find(|it| it["name"] == "edge-b").unwrap();
        edge["state"].as_str().unwrap().to_owned()
    };
    for state in ["draining", "active"] {
        browser.click("[data-key='dedge-b']");
        eventually(state, Duration::from_secs(10), || {
            (edge_state() == state).then_some(())
        });
        let drawn = format!(
            "document.querySelector('.state-{state}') && \
             [...document.querySelectorAll('tr')].some(r => r.innerText.startsWith('edge-b') && \
             r.innerText.includes('{state}'))"
        );
        browser.wait("the page shows it", &drawn);
    }

    browser.click("nav a[href='#/jobs']");
    browser.wait("the jobs", "document.querySelector('progress')");
    examine(&browser, axe.as_deref(), "jobs");
    browser.click(&format!("[data-key='c{job}']"));
    browser.wait(
        "it is cancelled",
        "document.querySelector('.state-cancelled')",
    );
    let jobs = cluster.coordinator.json(&["precache", "list", "--all"]);
    assert_eq!(jobs[0]["state"], "cancelled");

    browser.click("nav a[href='#/entries']");
    browser.wait(
        "the entries",
        "document.body.innerText.includes('media/film.mp4')",
    );
    examine(&browser, axe.as_deref(), "entries");
    let link =
        "[...document.querySelectorAll('main a')].find(a => a.textContent === 'media/film.mp4')";
    // A change of the colour scheme redraws the view, from a list that is requested again. Done in
    // one script, because the view could be redrawn between a look-up and a click.
    browser.wait(
        "the link, followed",
        &format!(
            "(() => {{ const link = {link}; if (link) link.click(); return Boolean(link); }})()"
        ),
    );
    browser.wait(
        "the map",
        "document.querySelector('canvas').getAttribute('aria-label').includes('32 chunks on')",
    );
    let colours = "(() => \
     { const c = document.querySelector('canvas'), k = document.createElement('canvas'); \
                   k.width = c.width; k.height = c.height; \
                   const x = k.getContext('2d', { willReadFrequently: true }), s = new Set(); \
                   x.drawImage(c, 0, 0); const d = x.getImageData(0, 0, c.width, 14).data; \
                   for (let i = 0; i < d.length; i += 4) if (d[i + 3] === 255) s.add(d[i] + ',' + \
                   d[i + 1] + ',' + d[i + 2]); return s.size; })()";
    browser.wait(
        "what is held, what is not and what is under way are drawn apart",
        &format!("{colours} >= 3"),
    );
    examine(&browser, axe.as_deref(), "entry");
    browser.wait(
        "the map, drawn anew",
        "document.querySelector('canvas').getAttribute('aria-label').includes('32 chunks on')",
    );
    browser.click("canvas");
    browser.wait(
        "why",
        "!document.querySelector('main p[role=status]').textContent.startsWith('Choose')",
    );

    // A seek: the player drops its request and sends another, elsewhere.
    drop(playing);
    let playing = Call::get(&film)
        .range(40 * MIB, 64 * MIB)
        .open(address)
        .unwrap();
    browser.wait(
        "the seek is shown",
        "[...document.querySelectorAll('[aria-label=Seeks] tbody tr')].some(r => \
         r.innerText.includes('edge-a') && r.innerText.trim().endsWith('20'))",
    );

    browser.open(&format!("{page}#/edge/edge-a"));
    browser.wait(
        "the edge",
        "document.querySelector('main h2').textContent === 'Edge edge-a'",
    );
    browser.wait(
        "its last hour",
        "document.querySelectorAll('.plot svg .plot-line').length >= 2",
    );
    examine(&browser, axe.as_deref(), "edge");

    cluster.edges[1].kill();
    browser.open(&page);
    browser.wait(
        "what needs a look",
        "document.querySelector('.verdict.bad li a')?.textContent === 'edge-b'",
    );
    drop(playing);
}

/// Navigation, actions and explanations without a pointer; the live page takes no focus away.
#[test]
fn driven_by_keyboard_alone() {
    let _turn = heavy();
    let cluster = Cluster::with_edges(2);
    let Some(browser) = Browser::start(cluster.directory.path()) else {
        return;
    };
    let film = cluster.put("/film.mp4", Object::generated(173, 16 * MIB));
    let read = Call::get(&film).range(0, 1000);
    read.send(cluster.edge().http).expect(206);
    browser.open(&format!("http://{}/", cluster.coordinator.http));
    browser.wait("the edges", "document.body.innerText.includes('edge-b')");

    browser.tab_to("[data-key='dedge-b']");
    for state in ["draining", "active"] {
        browser.press(ENTER);
        let drawn = format!(
            "[...document.querySelectorAll('tr')].some(r => r.innerText.startsWith('edge-b') && \
             r.innerText.includes('{state}'))"
        );
        browser.wait(state, &drawn);
        browser.wait(
            "the button, drawn anew, still has the focus",
            "document.activeElement.matches('[data-key=\"dedge-b\"]:not([aria-disabled])')",
        );
    }

    browser.open(&format!("http://{}/", cluster.coordinator.http));
    browser.tab_to("nav a[href='#/entries']");
    browser.press(ENTER);
    browser.wait(
        "the entries",
        "location.hash === '#/entries' && document.querySelector('main a[href^=\"#/entry/\"]')",
    );
    browser.tab_to("main a[href^='#/entry/']");
    browser.press(ENTER);
    browser.wait("the entry", "document.querySelector('#chunk')");
    browser.tab_to("#chunk");
    browser.press("7");
    browser.press(ENTER);
    browser.wait(
        "why",
        "!document.querySelector('main p[role=status]').textContent.startsWith('Choose')",
    );
    let errors = browser.console();
    assert!(errors.is_empty(), "{errors:?}");
}

/// 51,200 chunks (100 GB), 200 edges with eight runs each.
#[test]
fn a_large_entry_is_drawn_smoothly() {
    let _turn = heavy();
    let cluster = Cluster::with_edges(1);
    let Some(browser) = Browser::start(cluster.directory.path()) else {
        return;
    };
    let id = "00000000-0000-8000-8000-000000000007";
    cluster.postgres.query(&format!(
        "INSERT INTO edges (name, url, store_id) SELECT 'big-' || n, 'http://127.0.0.1:9', \
         gen_random_uuid() FROM generate_series(1, 200) n;
         INSERT INTO cache_entries (id, source, path, validator, size, chunk_size)
         VALUES ('{id}', 'media', 'big.mkv', '\"v\"', 51200 * 2097152::bigint, 2097152);
         INSERT INTO cache_keys (hash, entry_id, validated_at, fresh_until)
         VALUES (gen_random_uuid(), '{id}', now(), now());
         INSERT INTO cache_chunks (entry_id, edge_id, start_byte, end_byte, checksum)
         SELECT '{id}', e.id, c * 2097152::bigint, (c + 1) * 2097152::bigint, c
         FROM edges e, generate_series(0, 7) run,
           LATERAL (SELECT run * 6400 + e.id * 17 % 3000 AS start) place,
           LATERAL generate_series(place.start, place.start + 300) c
         WHERE e.name LIKE 'big-%';
         ANALYZE cache_chunks"
    ));
    let page = format!("http://{}/#/entry/{id}", cluster.coordinator.http);
    browser.open(&page);
    browser.wait(
        "the map",
        "document.querySelector('canvas').getAttribute('aria-label') \
         .includes('51200 chunks on 200 edges')",
    );
    browser.screenshot("large");
    let json = Call::get(&format!("/api/v1/entries/{id}"))
        .send(cluster.coordinator.http)
        .expect(200);
    assert!(
        json.body.len() < 200_000,
        "{} bytes a picture",
        json.body.len()
    );
    let drawn = browser.run_async(&format!(
        "fetch('/api/v1/entries/{id}').then(r => r.json()).then(e => \
         {{ const c = document.querySelector('canvas'), t = []; \
         for (let i = 0; i < 30; i++) {{ const s = performance.now(); ChunkMap.draw(c, e); \
         t.push(performance.now() - s); }} \
         return t.sort((a, b) => a - b)[15]; }})"
    ));
    let drawn = drawn.as_f64().unwrap();
    println!(
        "a picture of 200 strips: {drawn:.1} ms, {} bytes",
        json.body.len()
    );
    assert!(drawn < 100.0, "{drawn} ms a picture");
}
