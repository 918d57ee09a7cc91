//! Lines as syslog messages (RFC 5424): a datagram each (RFC 5426), or framed by their length on a
//! TCP connection (RFC 6587).

use std::{
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket},
    os::unix::net::UnixDatagram,
    time::{Duration, SystemTime},
};

use super::options::SyslogAddress;
use super::target::{Batch, Loss, Target};

/// Facility `local0`, severity `info`.
const PRIORITY: u8 = 16 * 8 + 6;
const PROGRAM: &str = "cache-edge";
/// The type of the messages.
const MESSAGE_ID: &str = "access";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A receiver that takes nothing for this long is given up, with the batch.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

enum Connection {
    Udp(UdpSocket),
    Unix(UnixDatagram),
    Tcp(TcpStream),
}

/// A syslog receiver. It is connected to when there is a line for it, and again after an error.
pub(super) struct SyslogTarget {
    address: SyslogAddress,
    /// Between the time and the line.
    origin: String,
    connection: Option<Connection>,
    messages: Vec<u8>,
}

impl SyslogTarget {
    pub(super) fn new(address: SyslogAddress) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let process = std::process::id();
        Self {
            address,
            origin: format!("{} {PROGRAM} {process} {MESSAGE_ID} -", word(&host)),
            connection: None,
            messages: Vec::new(),
        }
    }

    fn message(&self, at: SystemTime, line: &str) -> String {
        let time = humantime::format_rfc3339_millis(at);
        format!("<{PRIORITY}>1 {time} {} {line}", self.origin)
    }

    fn send_stream(&mut self, mut stream: TcpStream, batch: &Batch) -> io::Result<Connection> {
        self.messages.clear();
        for (record, line) in batch.lines() {
            let message = self.message(record.at(), line);
            // Writing to memory cannot fail.
            let _ = write!(self.messages, "{} {message}", message.len());
        }
        stream.write_all(&self.messages)?;
        Ok(Connection::Tcp(stream))
    }
}

impl Target for SyslogTarget {
    fn send(&mut self, batch: &Batch) -> Result<(), Loss> {
        let all = |error| Loss {
            lines: batch.len(),
            error,
        };
        let connection = match self.connection.take().filter(Connection::is_open) {
            Some(connection) => connection,
            None => Connection::open(&self.address).map_err(all)?,
        };
        // After an error the connection is not kept.
        let send: &dyn Fn(&[u8]) -> io::Result<usize> = match connection {
            Connection::Tcp(stream) => {
                self.connection = Some(self.send_stream(stream, batch).map_err(all)?);
                return Ok(());
            }
            Connection::Udp(ref socket) => &|message| socket.send(message),
            Connection::Unix(ref socket) => &|message| socket.send(message),
        };
        let mut loss: Option<Loss> = None;
        for (record, line) in batch.lines() {
            let message = self.message(record.at(), line);
            if let Err(error) = send(message.as_bytes()) {
                let lines = loss.map_or(0, |loss| loss.lines) + 1;
                loss = Some(Loss { lines, error });
            }
        }
        match loss {
            Some(loss) => Err(loss),
            None => {
                self.connection = Some(connection);
                Ok(())
            }
        }
    }
}

impl Connection {
    fn open(address: &SyslogAddress) -> io::Result<Self> {
        match address {
            SyslogAddress::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_write_timeout(Some(SEND_TIMEOUT))?;
                socket.connect(path)?;
                Ok(Self::Unix(socket))
            }
            SyslogAddress::Udp(host, port) => {
                let address = resolve(host, *port)?;
                let any: SocketAddr = match address {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(any)?;
                socket.set_write_timeout(Some(SEND_TIMEOUT))?;
                socket.connect(address)?;
                Ok(Self::Udp(socket))
            }
            SyslogAddress::Tcp(host, port) => {
                let stream = TcpStream::connect_timeout(&resolve(host, *port)?, CONNECT_TIMEOUT)?;
                stream.set_write_timeout(Some(SEND_TIMEOUT))?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Receivers of syslog send nothing, so there is something to read only at the end: whatever
    /// were sent then would be lost without an error.
    fn is_open(&self) -> bool {
        let Self::Tcp(stream) = self else {
            return true;
        };
        let peek = || {
            stream.set_nonblocking(true)?;
            let peeked = stream.peek(&mut [0]);
            stream.set_nonblocking(false)?;
            peeked
        };
        match peek() {
            Ok(count) => count > 0,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    (host, port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

/// A field of the header: printable, without spaces, or the sign of no value.
fn word(text: &str) -> String {
    let kept: String = text
        .chars()
        .filter(char::is_ascii_graphic)
        .take(255)
        .collect();
    if kept.is_empty() {
        "-".to_owned()
    } else {
        kept
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Format, Record};
    use super::*;

    #[test]
    fn a_message_has_the_fields_of_its_header() {
        let mut target = SyslogTarget::new(SyslogAddress::Udp("x".to_owned(), 1));
        target.origin = format!("{} cache-edge 7 access -", word("edge 1\n"));
        let message = target.message(Record::sample().at(), "line");
        assert_eq!(
            message,
            "<134>1 1994-11-06T08:49:37.123Z edge1 cache-edge 7 access - line"
        );
        assert_eq!(word("\n"), "-");
    }

    #[test]
    fn a_receiver_that_closed_is_connected_to_again() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = SyslogAddress::Tcp("127.0.0.1".to_owned(), port);
        let mut target = SyslogTarget::new(address);
        let mut batch = Batch::default();
        batch.push(Record::sample(), Format::Combined);
        for _ in 0..2 {
            target.send(&batch).unwrap();
            let (receiver, _) = listener.accept().unwrap();
            let mut bytes = [0; 16];
            let mut receiver = receiver;
            io::Read::read_exact(&mut receiver, &mut bytes).unwrap();
            assert!(std::str::from_utf8(&bytes).unwrap().contains(" <134>1 "));
        }
    }

    #[test]
    fn a_line_too_long_for_a_datagram_is_the_only_one_lost() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = receiver.local_addr().unwrap().port();
        let mut target = SyslogTarget::new(SyslogAddress::Udp("127.0.0.1".to_owned(), port));
        let mut batch = Batch::default();
        let mut long = Record::sample();
        long.lengthen(70_000);
        batch.push(long, Format::Combined);
        batch.push(Record::sample(), Format::Combined);
        assert_eq!(target.send(&batch).unwrap_err().lines, 1);
        let mut bytes = [0; 2048];
        let count = receiver.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..count]).unwrap();
        assert!(
            text.starts_with("<134>1 1994-11-06T08:49:37.123Z "),
            "{text}"
        );
    }
}
