//! A proxy in front of PostgreSQL that loses COMMITs and their answers.

use std::{path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};

use super::postgres::Server;

/// What happens to the next COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitFault {
    /// It succeeds, its answer never comes.
    AnswerLost,
    /// It reaches the server so much later; its answer never comes.
    Late(Duration),
    /// It and all others break the connection.
    AllBroken,
}

pub struct Proxy {
    port: u16,
    fault: Arc<Mutex<Option<CommitFault>>>,
}

impl Proxy {
    pub async fn start(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault = Arc::new(Mutex::new(None));
        let (socket, faults) = (server.socket(), Arc::clone(&fault));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, socket.clone(), Arc::clone(&faults)));
            }
        });
        Self { port, fault }
    }

    /// The URL of the same database, through this proxy.
    pub fn url(&self, url: &str) -> String {
        let rest = url.split_once(' ').unwrap().1;
        format!("host=127.0.0.1 port={} sslmode=disable {rest}", self.port)
    }

    pub fn next_commit(&self, fault: CommitFault) {
        *self.fault.lock() = Some(fault);
    }

    pub fn is_used_up(&self) -> bool {
        self.fault.lock().is_none()
    }
}

async fn forward(client: TcpStream, socket: PathBuf, faults: Arc<Mutex<Option<CommitFault>>>) {
    let server = UnixStream::connect(socket).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    });
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match from_client.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        let bytes = &buffer[..read];
        let is_commit = bytes.windows(7).any(|window| window == b"COMMIT\0");
        let fault = if is_commit {
            let mut fault = faults.lock();
            match *fault {
                all @ Some(CommitFault::AllBroken) => all,
                _ => fault.take(),
            }
        } else {
            None
        };
        match fault {
            None => {}
            Some(CommitFault::AllBroken) => {
                back.abort();
                return;
            }
            Some(CommitFault::AnswerLost) => back.abort(),
            Some(CommitFault::Late(late)) => {
                back.abort();
                let bytes = bytes.to_vec();
                // The client may be gone by then: the server receives it all the same.
                tokio::time::sleep(late).await;
                let _ = to_server.write_all(&bytes).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
                return;
            }
        }
        if to_server.write_all(bytes).await.is_err() {
            break;
        }
    }
    back.abort();
}
