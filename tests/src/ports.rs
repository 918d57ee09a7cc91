//! Ports of 127.0.0.1 that stay reserved for the life of the test process.
//!
//! Binding port 0 and releasing it is a race: another test, or any outgoing connection, may get the
//! same port before the service binds it, and again at each restart of the service. So ports come
//! from below the ephemeral range, and a locked file per port keeps other test processes away.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;

use rand::RngExt as _;
use rustix::fs::{FlockOperation, flock};

use crate::cluster;

const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;
const ATTEMPTS: u32 = 1_000;

static RESERVED: Mutex<Vec<File>> = Mutex::new(Vec::new());

pub fn reserve() -> SocketAddr {
    let directory = cluster::shared_directory().join("ports");
    fs::create_dir_all(&directory).expect("directory of reserved ports");
    for _ in 0..ATTEMPTS {
        let port = rand::rng().random_range(FIRST..=LAST);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(port.to_string()))
            .expect("file of a reserved port");
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // Not tested by binding it: a process that is being started has a copy of all sockets until
        // it runs its own program, and the port would be in use until then.
        let answer = TcpStream::connect(address);
        if answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            RESERVED.lock().unwrap().push(file);
            return address;
        }
    }
    panic!("no free port between {FIRST} and {LAST} in {ATTEMPTS} attempts");
}
