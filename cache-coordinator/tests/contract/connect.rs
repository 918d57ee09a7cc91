//! Real-world connections: sslmode, poolers, permanent errors.

use std::process::{Child, Command, Stdio};

use super::*;
use support::postgres::as_postgres;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Like `openssl req -x509`: it is its own authority.
fn self_signed(server: &Server, name: &str) {
    let (cert, key) = (
        server.write(&format!("{name}.crt"), ""),
        server.write(&format!("{name}.key"), ""),
    );
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split(' '),
        )
        .args([
            "-subj",
            "/CN=postgres",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(key, mode).unwrap();
}

/// Whether the connection is encrypted, or why there is none.
async fn connects(url: &str) -> Result<bool, String> {
    let database = Database::new(&DatabaseConfig::new(url), Arc::new(NoObserver))
        .map_err(|error| error.to_string())?;
    let never = CancellationToken::new();
    let ready = database.wait_ready(MigrateMode::Apply, &never);
    match tokio::time::timeout(Duration::from_secs(4), ready).await {
        Err(_) => Err("retried".into()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(_)) => Ok(database.is_encrypted().await.unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sslmode_is_honoured_and_a_self_signed_certificate_is_its_own_authority() {
    let server = Server::prepare();
    let port = free_port();
    self_signed(&server, "server");
    self_signed(&server, "other");
    server.start_with(&format!(
        "-c listen_addresses=127.0.0.1 -c port={port} -c ssl=on -c ssl_cert_file=server.crt -c \
         ssl_key_file=server.key"
    ));
    let folder = server.directory().display().to_string();
    let base = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    for (more, expected) in [
        ("sslmode=disable", Ok(false)),
        ("sslmode=allow", Ok(false)),
        ("", Ok(true)),
        ("sslmode=prefer", Ok(true)),
        ("sslmode=require", Ok(true)),
        ("sslmode=require sslrootcert=DIR/server.crt", Ok(true)),
        ("sslmode=verify-ca sslrootcert=DIR/server.crt", Ok(true)),
        ("sslmode=verify-full sslrootcert=DIR/server.crt", Ok(true)),
        (
            "sslmode=verify-ca sslrootcert=DIR/other.crt",
            Err("retried"),
        ),
        ("sslmode=verify-full", Err("give sslrootcert=FILE")),
        ("sslmode=verify-ca sslrootcert=/nowhere", Err("/nowhere")),
    ] {
        let url = format!("{base} {}", more.replace("DIR", &folder));
        let found = connects(&url).await;
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{more}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{more}: {found}"),
            _ => panic!("{more}: {found:?}"),
        }
    }
    // The server accepts only connections with TLS, then only those without.
    for (hba, url, expected) in [
        ("hostssl", base.clone(), Ok(true)),
        ("hostssl", format!("{base} sslmode=allow"), Ok(true)),
        (
            "hostssl",
            format!("{base} sslmode=disable"),
            Err("no pg_hba.conf entry"),
        ),
        ("hostnossl", base.clone(), Ok(false)),
        (
            "hostnossl",
            format!("{base} sslmode=require"),
            Err("no pg_hba.conf entry"),
        ),
    ] {
        server.write(
            "pg_hba.conf",
            &format!("local all all trust\n{hba} all all 127.0.0.1/32 trust\n"),
        );
        let local = client(&format!(
            "host={folder} port={port} user=postgres dbname=postgres"
        ))
        .await;
        local
            .batch_execute("SELECT pg_reload_conf()")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let found = connects(&url).await;
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{hba} {url}"),
            (Err(found), Err(expected)) => {
                assert!(found.contains(expected), "{hba} {url}: {found}")
            }
            _ => panic!("{hba} {url}: {found:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_waiting_does_not_mend_ends_the_start() {
    let server = Server::prepare();
    server.write(
        "pg_hba.conf",
        "local all postgres trust\nlocal all nobody reject\nlocal all all scram-sha-256\n",
    );
    server.start();
    let folder = server.directory().display().to_string();
    client(&server.url("postgres"))
        .await
        .batch_execute("CREATE ROLE films LOGIN PASSWORD 'right'")
        .await
        .unwrap();
    for (who, expected) in [
        (
            "user=films password=wrong",
            "password authentication failed",
        ),
        ("user=nobody", "pg_hba.conf rejects"),
        // In PostgreSQL 15 and later such a role may create no tables in public.
        ("user=films password=right", "permission denied"),
    ] {
        let url = format!("host={folder} dbname=postgres {who}");
        let reason = connects(&url).await.unwrap_err();
        assert!(reason.contains(expected), "{who}: {reason}");
    }
    // A database that does not exist yet is waited for.
    let url = format!("host={folder} dbname=later user=postgres");
    assert_eq!(connects(&url).await.unwrap_err(), "retried");
}

struct PgBouncer {
    process: Child,
    pid_file: std::path::PathBuf,
    port: u16,
}

impl PgBouncer {
    fn start(server: &Server, name: &str, settings: &str) -> Self {
        let port = free_port();
        let folder = server.directory().display().to_string();
        let pid_file = server.directory().join(format!("{name}.pid"));
        let config = server.write(
            &format!("{name}.ini"),
            &format!(
                "[databases]\n* = host={folder} user=postgres\n[pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = any\nadmin_users = postgres\npidfile = {}\n\
                 {settings}\n",
                pid_file.display()
            ),
        );
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists())
            .expect("pgbouncer is installed");
        let process = as_postgres(program)
            .arg(config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            pid_file,
            port,
        }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // It may be the child of a process that changed the user.
        if let Ok(pid) = std::fs::read_to_string(&self.pid_file) {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_keeps_sessions_or_is_refused_at_once() {
    let server = Server::shared();
    let url = server.create_database().await;
    let database = url.rsplit('=').next().unwrap();
    let through = |pooler: &PgBouncer, more: &str| {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={database} {more}",
            pooler.port
        )
    };
    let sessions = PgBouncer::start(&server, "sessions", "pool_mode = session");
    let one = coordinator(
        &through(&sessions, ""),
        "http://one",
        WriterConfig::default(),
    )
    .await;
    one.leads().await;
    one.source("films").await;
    one.entry(1, "a.mp4", 1).await;
    // Its time-outs apply.
    assert_eq!(
        one.database.setting("statement_timeout").await.unwrap(),
        "10s"
    );
    let idle = "idle_in_transaction_session_timeout";
    assert_eq!(one.database.setting(idle).await.unwrap(), "1500ms");
    let options = through(&sessions, "options='-c work_mem=1MB'");
    let reason = connects(&options).await.unwrap_err();
    assert!(reason.contains("ignore_startup_parameters"), "{reason}");
    for mode in ["transaction", "statement"] {
        let pooler = PgBouncer::start(&server, mode, &format!("pool_mode = {mode}"));
        let reason = connects(&through(&pooler, "")).await.unwrap_err();
        assert!(reason.contains("pool_mode=session"), "{mode}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_no_fault_of_ours() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(b"N").await.unwrap();
        }
    });
    let url = format!("host=127.0.0.1 port={port} user=postgres sslmode=require");
    let database = Database::new(&DatabaseConfig::new(&url), Arc::new(NoObserver)).unwrap();
    let refused = database.is_encrypted().await.unwrap_err().to_string();
    assert!(refused.contains("does not support TLS"), "{refused}");
    assert!(!refused.contains("internal"), "{refused}");
}
