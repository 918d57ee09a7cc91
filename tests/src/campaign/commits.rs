//! A proxy between the coordinator and PostgreSQL: at times it passes a COMMIT on and breaks the
//! connection before the answer, as a failing network does at the worst moment.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the server may take to commit before the connection breaks.
const COMMITTING: Duration = Duration::from_millis(50);

pub struct Proxy {
    address: SocketAddr,
    loses: Arc<AtomicBool>,
}

impl Proxy {
    /// In front of the server at this port of the loopback address.
    pub fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the loopback address");
        let address = listener.local_addr().expect("bound");
        let loses = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&loses);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let loses = Arc::clone(&flag);
                std::thread::spawn(move || forward(client, server, &loses));
            }
        });
        Proxy { address, loses }
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }

    /// The next COMMIT loses its answer; false if there is none within this time.
    pub fn lose_one(&self, within: Duration) -> bool {
        self.loses.store(true, Ordering::SeqCst);
        let until = Instant::now() + within;
        while self.loses.load(Ordering::SeqCst) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        !self.loses.swap(false, Ordering::SeqCst)
    }
}

fn forward(mut client: TcpStream, server: u16, loses: &AtomicBool) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)) else {
        return;
    };
    let (Ok(mut back_from), Ok(mut back_to)) = (server.try_clone(), client.try_clone()) else {
        return;
    };
    let back = std::thread::spawn(move || {
        let _ = std::io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        let is_commit = buffer[..count].windows(7).any(|it| it == b"COMMIT\0");
        let is_lost = is_commit && loses.swap(false, Ordering::SeqCst);
        if is_lost {
            // Nothing comes back any more.
            let _ = client.shutdown(Shutdown::Write);
        }
        if server.write_all(&buffer[..count]).is_err() {
            break;
        }
        if is_lost {
            std::thread::sleep(COMMITTING);
            break;
        }
    }
    let _ = (
        client.shutdown(Shutdown::Both),
        server.shutdown(Shutdown::Both),
    );
    let _ = back.join();
}
