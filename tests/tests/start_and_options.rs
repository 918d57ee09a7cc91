//! Starting: options, their precedence, and reasons for a failed start.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use chunkcache_tests::cluster::directory;
use chunkcache_tests::http::Call;
use chunkcache_tests::services::program;
use chunkcache_tests::{Cluster, ClusterOptions, Edge, MIB, Object, content, eventually, ports};
use rustix::process::Signal;

fn run(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    // A start that should have failed must not hang the test.
    Command::new("timeout")
        .arg("20")
        .arg(program(name))
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn all_wrong_options_are_reported_together() {
    let output = run(
        "cache-edge",
        &[
            "serve",
            "--data-dir=/tmp/x",
            "--max-size=lots",
            "--max-downloads=0",
            "--min-free=120%",
            "--chunk-wait-timeout=soon",
        ],
        &[],
    );
    let text = text(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for option in [
        "name",
        "max-size",
        "max-downloads",
        "min-free",
        "chunk-wait-timeout",
    ] {
        assert!(text.contains(option), "{option} is not named in {text}");
    }
    let output = run(
        "cache-coordinator",
        &["serve", "--listen=nowhere", "--chunk-size=3"],
        &[],
    );
    let text = self::text(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for option in ["database-url", "listen", "chunk-size"] {
        assert!(text.contains(option), "{option} is not named in {text}");
    }
}

#[test]
fn unknown_keys_of_a_file_and_environment_values_are_checked() {
    let directory = directory();
    let file = directory.path().join("edge.toml");
    fs::write(
        &file,
        "name = \"a\"\ndata-dir = \"/tmp/x\"\nmax-sise = \"10GiB\"\n",
    )
    .unwrap();
    let config = format!("--config={}", file.display());
    let output = run(
        "cache-edge",
        &["serve", &config],
        &[("CACHE_EDGE_MAX_DOWNLOADS", "many")],
    );
    let text = text(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("max-sise")
            && text
                .to_lowercase()
                .replace('_', "-")
                .contains("max-downloads"),
        "{text}"
    );
}

#[test]
fn a_listener_for_everyone_needs_tls_or_consent() {
    let arguments = [
        "serve",
        "--name=a",
        "--data-dir=/tmp/x",
        "--listen=0.0.0.0:7500",
    ];
    let output = run("cache-edge", &arguments, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output).contains("insecure-listen"),
        "{}",
        text(&output)
    );
    // Each listener has its own certificate: the players' does not cover the other.
    let output = run(
        "cache-edge",
        &[
            "serve",
            "--name=a",
            "--data-dir=/tmp/x",
            "--listen=0.0.0.0:7500",
            "--tls-cert=a.pem",
            "--tls-key=a.key",
            "--admin-listen=0.0.0.0:7501",
        ],
        &[],
    );
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output);
    assert!(said.contains("give --admin-tls-cert"), "{said}");
    assert!(!said.contains("0.0.0.0:7500"), "{said}");
}

#[test]
fn help_names_units_and_defaults() {
    for (name, words) in [
        (
            "cache-edge",
            ["--max-size", "127.0.0.1:7500", "30s", "--drain-grace"],
        ),
        (
            "cache-coordinator",
            ["--chunk-size", "127.0.0.1:7400", "2MiB", "--database-url"],
        ),
    ] {
        let output = run(name, &["serve", "--help"], &[]);
        assert_eq!(output.status.code(), Some(0));
        for word in words {
            assert!(
                text(&output).contains(word),
                "{word} is not in the help of {name}"
            );
        }
    }
}

/// A socket unit holds the listener over a restart: clients that connect meanwhile wait and are
/// answered.
#[test]
fn systemd_gives_listeners_and_is_told_of_the_start_and_the_end() {
    use std::os::unix::net::UnixDatagram;
    let directory = directory();
    let notices = directory.path().join("notify");
    let notified = UnixDatagram::bind(&notices).unwrap();
    notified
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let notice = || {
        let mut buffer = [0; 512];
        let length = notified.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = listener.local_addr().unwrap();
    let waiting = std::thread::spawn(move || Call::get("/livez").send(admin).status);
    let mut edge = Command::new("sh")
        .arg("-c")
        // systemd's sockets begin at the third descriptor, for the process in LISTEN_PID.
        .arg("exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"")
        .arg("sh")
        .arg(program("cache-edge"))
        .arg("serve")
        .arg("--name=given")
        .arg(format!(
            "--data-dir={}",
            directory.path().join("data").display()
        ))
        .arg(format!("--listen={}", ports::reserve()))
        .arg(format!("--admin-listen={admin}"))
        .arg("--coordinator=http://127.0.0.1:9")
        .env("NOTIFY_SOCKET", &notices)
        .stdin(std::os::fd::OwnedFd::from(listener))
        .spawn()
        .unwrap();
    assert!(notice().contains("READY=1"));
    assert_eq!(waiting.join().unwrap(), 200);
    let pid = edge.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    assert!(notice().contains("STOPPING=1"));
    assert_eq!(edge.wait().unwrap().code(), Some(0));
}

/// Flags win over the environment, the environment over the file.
#[test]
fn precedence_of_options() {
    let directory = directory();
    let [flag, environment, file_port] = [ports::reserve(), ports::reserve(), ports::reserve()];
    let file = directory.path().join("edge.toml");
    let data = directory.path().join("data");
    let lines = format!(
        "name = \"of-the-file\"\nlisten = \"{file_port}\"\nadmin-listen = \"{file_port}\"\n\
         data-dir = \"{}\"\n",
        data.display()
    );
    fs::write(&file, lines).unwrap();
    let mut command = Command::new(program("cache-edge"));
    command
        .arg("serve")
        .arg(format!("--config={}", file.display()))
        .arg(format!("--listen={flag}"))
        .arg("--coordinator=http://127.0.0.1:9")
        .env("CACHE_EDGE_LISTEN", file_port.to_string())
        .env("CACHE_EDGE_ADMIN_LISTEN", environment.to_string());
    let log = directory.path().join("log");
    let _process = chunkcache_tests::process::Process::spawn("cache-edge", &command, &log);
    for address in [flag, environment] {
        let what = format!("something answers at {address}");
        eventually(&what, Duration::from_secs(20), || {
            Call::get("/livez").open(address).ok()
        });
    }
    assert!(Call::get("/livez").open(file_port).is_err());
    assert!(data.exists());
}

#[test]
fn a_data_directory_has_one_owner_and_must_be_usable() {
    let mut cluster = Cluster::start();
    let data = cluster.edge().data.display().to_string();
    let data_dir = format!("--data-dir={data}");
    let listen = [ports::reserve(), ports::reserve()];
    let (listen, admin) = (
        format!("--listen={}", listen[0]),
        format!("--admin-listen={}", listen[1]),
    );
    let began = Instant::now();
    let second = run(
        "cache-edge",
        &["serve", "--name=second", &data_dir, &listen, &admin],
        &[],
    );
    assert!(began.elapsed() < Duration::from_secs(15));
    assert!(
        second
            .status
            .code()
            .is_some_and(|code| code != 0 && code != 124),
        "{second:?}"
    );
    assert!(text(&second).contains(&data), "{}", text(&second));
    assert!(cluster.edge_mut().process().is_running());

    // Root can write anywhere, but not below a file.
    let file = cluster.directory.path().join("a-file");
    fs::write(&file, "").unwrap();
    let below = format!("{}/data", file.display());
    let unusable = run(
        "cache-edge",
        &[
            "serve",
            "--name=b",
            &format!("--data-dir={below}"),
            &listen,
            &admin,
        ],
        &[],
    );
    assert!(
        unusable
            .status
            .code()
            .is_some_and(|code| code != 0 && code != 124),
        "{unusable:?}"
    );
    assert!(text(&unusable).contains(&below), "{}", text(&unusable));
}

#[test]
fn a_database_of_a_newer_schema_ends_the_start() {
    let mut cluster = Cluster::start();
    assert_eq!(cluster.coordinator.terminate().code(), Some(0));
    let table = cluster.postgres.query(
        "SELECT table_name, column_name FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name LIKE '%migration%'
           AND data_type IN ('integer', 'bigint')",
    );
    let (table, column) = (&table[0][0], &table[0][1]);
    // A copy of the newest row with a version that no release has yet.
    let others = cluster.postgres.query(&format!(
        "SELECT column_name FROM information_schema.columns
         WHERE table_name = '{table}' AND column_name <> '{column}'"
    ));
    let others: String = others.iter().map(|row| format!(", {}", row[0])).collect();
    cluster.postgres.query(&format!(
        "INSERT INTO {table} ({column}{others}) SELECT 9999{others} FROM {table} ORDER BY \
         {column} DESC LIMIT 1"
    ));
    cluster.coordinator.spawn();
    let status = cluster
        .coordinator
        .process()
        .wait_for_exit(Duration::from_secs(20));
    assert!(status.code().is_some_and(|code| code != 0), "{status:?}");
    let log = cluster.coordinator.process().output();
    assert!(log.contains("9999"), "{log}");
}

/// The output of a coordinator that ends because of its database.
fn start_that_fails_on(database: &str) -> String {
    let listen = format!("--listen={}", ports::reserve());
    let http = format!("--http-listen={}", ports::reserve());
    let arguments = ["serve", "--database-url", database, &listen, &http];
    let output = run("cache-coordinator", &arguments, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    text(&output)
}

#[test]
fn a_database_of_another_encoding_ends_the_start() {
    let cluster = Cluster::start();
    cluster
        .postgres
        .query("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let database = format!(
        "postgres://postgres@127.0.0.1:{}/latin",
        cluster.postgres.port()
    );
    let said = start_that_fails_on(&database);
    assert!(said.contains("LATIN1") && said.contains("UTF8"), "{said}");
}

/// PostgreSQL 15 lets nobody but the owner of a database create tables in it.
#[test]
fn missing_rights_end_the_start_and_are_named_last() {
    let cluster = Cluster::start();
    let postgres = &cluster.postgres;
    postgres.query("CREATE ROLE guest LOGIN");
    postgres.query("CREATE DATABASE other");
    let database = format!("postgres://guest@127.0.0.1:{}/other", postgres.port());
    let said = start_that_fails_on(&database);
    let last = said.trim_end().lines().last().unwrap_or_default();
    let reason = "the database can not be used: permission denied for schema public";
    assert!(last.ends_with(reason), "{said}");
    assert_eq!(last.matches(reason).count(), 1, "{said}");
}

#[test]
fn a_wrong_connection_string_is_a_wrong_option() {
    for (database, expected) in [
        ("postgres://app:s3c/ret@127.0.0.1/db", "percent-encoded"),
        ("postgres://app:s3c?ret@127.0.0.1/db", "percent-encoded"),
        ("host=h user=u port=s3cret", "not a port"),
        ("host=h user=u sslmode=always", "sslmode"),
    ] {
        let output = run(
            "cache-coordinator",
            &["serve", "--database-url", database],
            &[],
        );
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{database}: {said}");
        assert!(
            said.contains("database-url") && said.contains(expected),
            "{said}"
        );
        assert!(!said.contains("ret@") && !said.contains("s3c"), "{said}");
    }
}

#[test]
fn settings_of_the_role_change_nothing() {
    let mut cluster = Cluster::prepare(ClusterOptions::default());
    cluster.postgres.start_again();
    cluster.postgres.query(
        "ALTER ROLE postgres SET standard_conforming_strings = off;
         ALTER ROLE postgres SET default_transaction_isolation = 'serializable';
         ALTER ROLE postgres SET idle_session_timeout = '1s';
         ALTER ROLE postgres SET lock_timeout = '10ms'",
    );
    cluster.coordinator.start();
    assert_eq!(cluster.coordinator.terminate().code(), Some(0));
}

/// As in a container without ca-certificates.
#[test]
fn without_authorities_other_origins_are_served() {
    let mut cluster = Cluster::start();
    let target = cluster.put("/a.mp4", Object::generated(1, 1_000));
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));
    let (file, folder) = (
        cluster.directory.path().join("no-authorities"),
        cluster.directory.path().join("none"),
    );
    fs::write(&file, "").unwrap();
    fs::create_dir(&folder).unwrap();
    let edge = cluster.edge_mut();
    for (name, path) in [("SSL_CERT_FILE", file), ("SSL_CERT_DIR", folder)] {
        let variable = (name.to_owned(), path.display().to_string());
        edge.environment.push(variable);
    }
    edge.start();
    cluster.edge().get(&target).expect(200);
}

/// Log rotation and reloads send it.
#[test]
fn a_hangup_ends_no_process() {
    let mut cluster = Cluster::start();
    let target = cluster.put("/a.mp4", Object::generated(1, 1_000));
    cluster.coordinator.process().signal(Signal::HUP);
    cluster.edge_mut().process().signal(Signal::HUP);
    cluster.edge().get(&target).expect(200);
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));
    assert_eq!(cluster.coordinator.terminate().code(), Some(0));
}

#[test]
fn a_database_that_is_not_there_yet_delays_readiness_only() {
    let mut cluster = Cluster::prepare(ClusterOptions::default());
    cluster.coordinator.spawn();
    let address = cluster.coordinator.http;
    eventually("it is live", Duration::from_secs(20), || {
        let live = Call::get("/livez").open(address).ok()?;
        (live.status == 200).then_some(())
    });
    let ready = cluster.coordinator.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(
        ready.text().to_lowercase().contains("database"),
        "{}",
        ready.text()
    );
    cluster.postgres.start_again();
    cluster.coordinator.wait_ready();
    assert_eq!(cluster.coordinator.terminate().code(), Some(0));
}

#[test]
fn an_edge_starts_without_a_coordinator_and_serves_what_it_was_told() {
    let mut cluster = Cluster::start();
    let size = 5 * MIB;
    let target = cluster.put(
        "/kept.mp4",
        Object::generated(91, size).header("Cache-Control", "max-age=3600"),
    );
    cluster.edge().get(&target).expect(200);
    cluster.wait_recorded("/kept.mp4", &[(0, size)]);
    assert_eq!(cluster.edge_mut().terminate().code(), Some(0));
    assert_eq!(cluster.coordinator.terminate().code(), Some(0));

    cluster.edge_mut().spawn();
    cluster.edge_mut().wait_live();
    let address = cluster.edge().http;
    let answer = eventually(
        "a hit without a coordinator",
        Duration::from_secs(2),
        || {
            let reply = Call::get(&target).open(address).ok()?;
            (reply.status == 200).then(|| reply.finish())
        },
    );
    assert_eq!(content::sha256_of(&answer.body), content::sha256(91, size));
    assert_eq!(cluster.origin.body_bytes("/kept.mp4"), size);
    assert_eq!(Call::get("/readyz").send(cluster.edge().admin).status, 503);

    // A miss goes to the origin directly, and is recorded when the coordinator is back.
    let cold = cluster.put("/direct.mp4", Object::generated(92, size));
    let direct = cluster.edge().get(&cold).expect(200);
    assert_eq!(content::sha256_of(&direct.body), content::sha256(92, size));
    cluster.coordinator.start();
    cluster.wait_recorded("/direct.mp4", &[(0, size)]);
    cluster.edge_mut().wait_ready();
}

#[test]
fn the_first_edge_may_come_before_its_coordinator() {
    let directory = directory();
    let mut edge = Edge::prepare("early", directory.path(), "http://127.0.0.1:9", &[]);
    edge.spawn();
    edge.wait_live();
    assert_eq!(Call::get("/readyz").send(edge.admin).status, 503);
    assert_eq!(edge.get("/media/x").status / 100, 4);
    assert_eq!(edge.terminate().code(), Some(0));
}
