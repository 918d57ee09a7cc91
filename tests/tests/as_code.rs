//! Settings kept in files: apply, diff, export; and precache jobs from a list.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use chunkcache_tests::http::Call;
use chunkcache_tests::{Cluster, ClusterOptions, Coordinator, MIB, Object};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn changes(coordinator: &Coordinator, arguments: &[&str]) -> Vec<(String, String)> {
    let answer = coordinator.json(arguments);
    let items = answer.as_array().unwrap().iter();
    let field = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
    items
        .map(|item| (field(item, "name"), field(item, "change")))
        .collect()
}

fn change(name: &str, change: &str) -> (String, String) {
    (name.to_owned(), change.to_owned())
}

#[test]
fn a_source_from_a_file_is_served_and_applying_it_again_changes_nothing() {
    let cluster = Cluster::start();
    let coordinator = &cluster.coordinator;
    let directory = cluster.directory.path().join("settings");
    fs::create_dir(&directory).unwrap();
    let url = cluster.origin.url();
    let file = directory.join("sources.yaml");
    let settings = |quota: &str| {
        format!(
            "kind: Source\nname: films\nbase_url: {url}\nmax-connections: 4\nquota: {quota}\n\
             header:\n- 'X-Secret: abc'\nignore-query: [utm_*]\n---\nkind: Pin\n\
             entry: films/a.mp4\n"
        )
    };
    fs::write(&file, settings("1GiB")).unwrap();
    cluster.put("/a.mp4", Object::generated(1, MIB));
    let path = text(&directory);
    let both = |source: &str, pin: &str| {
        vec![
            change("Source films", source),
            change("Pin films/a.mp4", pin),
        ]
    };
    let dry = changes(coordinator, &["apply", "-f", path, "--dry-run"]);
    assert_eq!(dry, both("created", "created"));
    assert!(
        !coordinator
            .cli(&["source", "show", "films"])
            .status
            .success()
    );
    let apply = ["apply", "-f", path];
    assert_eq!(changes(coordinator, &apply), both("created", "created"));
    Call::get("/films/a.mp4?utm_x=1")
        .send(cluster.edge().http)
        .expect(200);
    let shown = coordinator.json(&["source", "show", "films"]);
    assert_eq!(shown["max_connections"], 4);
    assert_eq!(shown["quota_bytes"], 1 << 30);
    assert_eq!(changes(coordinator, &apply), both("unchanged", "unchanged"));
    let again = coordinator.json(&["source", "show", "films"]);
    assert_eq!(again["revision"], shown["revision"]);
    // The export contains what was applied.
    let exported = coordinator.cli(&["export"]).stdout;
    let export = cluster.directory.path().join("export.yaml");
    fs::write(&export, &exported).unwrap();
    let of_export = changes(coordinator, &["apply", "-f", text(&export)]);
    assert!(
        of_export.iter().all(|(_, change)| change == "unchanged"),
        "{of_export:?}"
    );
    assert!(!String::from_utf8_lossy(&exported).contains("abc"));
    // A difference is shown by field.
    fs::write(&file, settings("2GiB")).unwrap();
    let diff = coordinator.cli(&["diff", "-f", path]);
    let diff = String::from_utf8(diff.stdout).unwrap();
    assert_eq!(
        diff,
        "Source films: changed\n- quota: 1073741824\n+ quota: 2147483648\n"
    );
    assert_eq!(changes(coordinator, &apply), both("changed", "unchanged"));
}

#[test]
fn nothing_is_stored_where_a_document_is_wrong() {
    let cluster = Cluster::start();
    let file = cluster.directory.path().join("wrong.yaml");
    let good = "kind: Source\nname: good\nbase-url: http://127.0.0.1:9\n---\n";
    for (bad, status, expected) in [
        (
            "kind: Source\nname: bad\n",
            2,
            "document 2: base-url: is missing",
        ),
        (
            "kind: Source\nname: bad\nbase-url: http://o\nmax-connection: 1\n",
            2,
            "document 2: max-connection: there is no such field",
        ),
        // Values that only the coordinator knows.
        (
            "kind: Source\nname: bad\nbase-url: http://o\nallow-redirect-to: 'no host'\n",
            1,
            "document 2",
        ),
    ] {
        fs::write(&file, format!("{good}{bad}")).unwrap();
        let output = cluster.coordinator.cli(&["apply", "-f", text(&file)]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{error}");
        assert!(
            error.contains(expected) && error.contains("wrong.yaml"),
            "{error}"
        );
        assert!(
            !cluster
                .coordinator
                .cli(&["source", "show", "good"])
                .status
                .success()
        );
    }
}

#[test]
fn results_are_written_as_yaml_too() {
    let cluster = Cluster::start();
    let output = cluster.coordinator.cli(&["source", "list", "-o", "yaml"]);
    let yaml = String::from_utf8(output.stdout).unwrap();
    assert!(
        yaml.contains("- ") && yaml.contains("name: media"),
        "{yaml}"
    );
    let schema = cluster.coordinator.json(&["schema"]);
    assert!(schema["oneOf"][0]["properties"]["quota"].is_object());
}

#[test]
fn a_list_of_paths_becomes_jobs_and_bad_lines_are_told() {
    let cluster = Cluster::start();
    for (number, path) in ["/1.mp4", "/2.mp4", "/3.mp4"].into_iter().enumerate() {
        cluster.put(path, Object::generated(number as u64, 3 * MIB));
    }
    let file = cluster.directory.path().join("list");
    fs::write(
        &file,
        "# a list\nmedia/1.mp4\n\nmedia/2.mp4\nmedia/absent.mp4\nnonsense\nmedia/3.mp4\n",
    )
    .unwrap();
    let output = cluster.coordinator.cli(&[
        "precache",
        "-f",
        text(&file),
        "--follow",
        "--output",
        "json",
    ]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("list:5: media/absent.mp4"), "{error}");
    assert!(error.contains("list:6: "), "{error}");
    let jobs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let jobs = jobs.as_array().unwrap();
    assert_eq!(jobs.len(), 3);
    assert!(jobs.iter().all(|job| job["state"] == "done"), "{jobs:?}");
    for path in ["/1.mp4", "/2.mp4", "/3.mp4"] {
        let name = &cluster.edge().name;
        assert_eq!(cluster.recorded_bytes(path, name), 3 * MIB);
    }
}

#[test]
fn a_job_from_a_file_is_made_once_however_it_is_written() {
    let cluster = Cluster::start_with(ClusterOptions {
        edges: 2,
        ..ClusterOptions::default()
    });
    cluster.put("/a%20film.mp4", Object::generated(1, 3 * MIB));
    cluster.put("/b.mp4", Object::generated(2, 3 * MIB));
    let file = cluster.directory.path().join("jobs.yaml");
    // With a byte order mark, as some editors write it.
    fs::write(
        &file,
        "\u{feff}kind: Precache\nentry: /media/a film.mp4\nedge: [edge-b, edge-a, edge-b]\n---\n\
         kind: Precache\nentry: media/b.mp4?x=1\nrange: [1024-2047, 0-1023]\n",
    )
    .unwrap();
    let apply = ["apply", "-f", text(&file)];
    let names = ["Precache /media/a film.mp4", "Precache media/b.mp4?x=1"];
    let all = |what: &str| names.map(|name| change(name, what)).to_vec();
    assert_eq!(changes(&cluster.coordinator, &apply), all("created"));
    assert_eq!(changes(&cluster.coordinator, &apply), all("unchanged"));
    let jobs = cluster.coordinator.json(&["precache", "list", "--all"]);
    assert_eq!(jobs.as_array().unwrap().len(), 2);
}

#[test]
fn a_hidden_value_is_taken_nowhere_but_where_it_is_kept() {
    let cluster = Cluster::start();
    let url = cluster.origin.url();
    let with = ["--header", "X-Key: one", "--header", "X-Key: two"];
    let add = [&["source", "add", "films", &url][..], &with].concat();
    assert!(cluster.coordinator.cli(&add).status.success());
    let export = cluster.coordinator.cli(&["export"]).stdout;
    let export = String::from_utf8(export).unwrap();
    assert_eq!(export.matches("X-Key: ***").count(), 2, "{export}");
    let file = cluster.directory.path().join("export.yaml");
    let apply = ["apply", "-f", text(&file)];
    // Each header keeps its own value.
    fs::write(
        &file,
        export.replace("name: films", "name: films\nquota: 1GiB"),
    )
    .unwrap();
    assert!(cluster.coordinator.cli(&apply).status.success());
    cluster.put("/a", Object::generated(1, 100));
    Call::get("/films/a").send(cluster.edge().http).expect(200);
    let asked = cluster.origin.all_hits();
    let sent = asked.iter().rev().find(|hit| hit.target == "/a").unwrap();
    let keys: Vec<&str> = sent
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-key"))
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(keys, ["one", "two"]);
    // As in another cluster.
    fs::write(&file, export.replace("name: films", "name: others")).unwrap();
    let output = cluster.coordinator.cli(&apply);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("source.headers[0].value"), "{error}");
}
