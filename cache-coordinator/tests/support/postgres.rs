//! A private PostgreSQL: with its own directory and socket, no TCP port; removed with the last test
//! that uses it.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A running server.
pub struct Server {
    directory: PathBuf,
    /// Its content is kept for the next process.
    is_kept: bool,
}

impl Server {
    /// The server of this test process; started if no test uses it now.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let server = match std::env::var_os("LOAD_DIRECTORY") {
                Some(directory) => Self::kept(directory.into()),
                None => Self::prepare(),
            };
            let server = Arc::new(server);
            server.start();
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// A new cluster, not started yet.
    pub fn prepare() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short: a socket's path has at most 107 bytes.
        let directory = PathBuf::from(format!("/tmp/ccpg-{}-{number}", std::process::id()));
        initialise(&directory);
        Self {
            directory,
            is_kept: false,
        }
    }

    /// Uses a directory that is kept: filling a large table takes longer than all else.
    fn kept(directory: PathBuf) -> Self {
        if !directory.join("PG_VERSION").exists() {
            initialise(&directory);
        }
        Self {
            directory,
            is_kept: true,
        }
    }

    pub fn start(&self) {
        self.start_with("-c listen_addresses=''");
    }

    /// Starts it with further settings.
    pub fn start_with(&self, settings: &str) {
        // Tests need no protection from a crash of the machine; a load figure counts only with it.
        let safety = match std::env::var_os("LOAD_FSYNC") {
            Some(_) => "-c fsync=on -c max_wal_size=8GB -c shared_buffers=3GB",
            None => "-c fsync=off -c full_page_writes=off",
        };
        let options = format!(
            "{settings} -c unix_socket_directories={} {safety} -c max_connections=200",
            self.directory.display()
        );
        run(as_postgres("pg_ctl")
            .args(["start", "-w", "-t", "60", "-o", &options, "-D"])
            .arg(&self.directory)
            .arg("-l")
            .arg(self.directory.join("log")));
    }

    /// Stops it as a crash does.
    pub fn crash(&self) {
        run(as_postgres("pg_ctl")
            .args(["stop", "-m", "immediate", "-D"])
            .arg(&self.directory));
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a file that belongs to the server's user.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::write(&path, text).unwrap();
        let owner = std::fs::metadata(&self.directory).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        path
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join(".s.PGSQL.5432")
    }

    pub fn url(&self, database: &str) -> String {
        format!(
            "host={} user=postgres dbname={database}",
            self.directory.display()
        )
    }

    /// Creates a new, empty database; returns its URL.
    pub async fn create_database(&self) -> String {
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        client(&self.url("postgres"))
            .await
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .await
            .unwrap();
        self.url(&name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A kept server is stopped cleanly, so that the next start needs no recovery.
        let how = if self.is_kept { "fast" } else { "immediate" };
        let _ = as_postgres("pg_ctl")
            .args(["stop", "-t", "120", "-m", how, "-D"])
            .arg(&self.directory)
            .output();
        if !self.is_kept {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// A plain client, for looking at tables behind the database code's back.
pub async fn client(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

fn initialise(directory: &Path) {
    run(as_postgres("initdb")
        .args([
            "--no-sync",
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "-D",
        ])
        .arg(directory));
}

pub fn as_postgres(program: &str) -> Command {
    let program = binary(program);
    let mut command = if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        // PostgreSQL refuses to run as root.
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// The newest installed version's, otherwise the one on the path.
fn binary(program: &str) -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    versions.sort();
    versions
        .pop()
        .unwrap_or_else(|| Path::new(program).to_owned())
}

fn run(command: &mut Command) {
    let status = command.stderr(Stdio::inherit()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
