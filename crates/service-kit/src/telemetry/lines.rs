//! The log lines of the process on their way to standard error, written by a thread of their own.
//!
//! Standard error is often a pipe. If whoever reads it stops (a stuck log collector, a full disk
//! behind it), a write to it never returns, and a thread that logs would stop with it. So the lines
//! wait in a queue, which is bounded; beyond its bound they are lost and counted.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

/// Lines that wait for the writer, and their bytes.
const QUEUE: usize = 8192;
const QUEUE_BYTES: usize = 4 << 20;
/// How long the end of the process waits for the last lines.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

enum Message {
    Line(Vec<u8>),
    /// Ends the writer after the lines before, and answers.
    Close(SyncSender<()>),
}

/// The producers' end of the queue.
#[derive(Clone)]
pub(super) struct LogLines {
    queue: SyncSender<Message>,
    queued_bytes: Arc<AtomicUsize>,
    lost: Counter,
}

impl LogLines {
    /// Starts the writer. `lost` counts the lines that are not written.
    pub(super) fn start(out: impl Write + Send + 'static, lost: Counter) -> io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE);
        let lines = Self {
            queue,
            queued_bytes: Arc::default(),
            lost,
        };
        let queued = Arc::clone(&lines.queued_bytes);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(messages, out, &queued))?;
        Ok(lines)
    }

    /// Writes what is queued, within some seconds. Blocks.
    pub(super) fn close(&self) {
        let (done, closed) = sync_channel(1);
        if self.queue.try_send(Message::Close(done)).is_ok() {
            let _: Result<(), RecvTimeoutError> = closed.recv_timeout(CLOSE_TIMEOUT);
        }
    }
}

/// One call for each line.
impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let queued = self.queued_bytes.fetch_add(line.len(), Ordering::Relaxed);
        let has_space = queued + line.len() <= QUEUE_BYTES;
        if !has_space || self.queue.try_send(Message::Line(line.to_vec())).is_err() {
            self.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            self.lost.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(messages: Receiver<Message>, mut out: impl Write, queued: &AtomicUsize) {
    while let Ok(message) = messages.recv() {
        match message {
            Message::Line(line) => {
                // Nobody is left to tell.
                let _ = out.write_all(&line);
                queued.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Message::Close(done) => {
                let _ = out.flush();
                // Lines after the last are lost, and counted.
                drop(messages);
                let _ = done.send(());
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A pipe that nobody reads until `gate` is open.
    struct Stuck {
        gate: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An error: the gate is open for good.
            let _ = self.gate.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_stops_nobody() {
        let (open, gate) = sync_channel(0);
        let written = Arc::new(Mutex::default());
        let out = Stuck {
            gate,
            written: Arc::clone(&written),
        };
        let lost = Counter::default();
        let mut lines = LogLines::start(out, lost.clone()).unwrap();
        let line = [&[b'a'; (64 << 10) - 1][..], b"\n"].concat();
        let fits = QUEUE_BYTES / line.len();
        for _ in 0..fits + 5 {
            lines.write_all(&line).unwrap();
        }
        assert_eq!(lost.get(), 5);
        drop(open);
        lines.close();
        assert_eq!(written.lock().unwrap().len(), fits * line.len());
        assert_eq!(lines.queued_bytes.load(Ordering::Relaxed), 0);
        // Afterwards there is no writer, and still nobody waits.
        lines.write_all(b"late\n").unwrap();
        assert_eq!(lost.get(), 6);
    }

    #[test]
    fn the_queue_is_bounded_in_lines() {
        let (_open, gate) = sync_channel(0);
        let out = Stuck {
            gate,
            written: Arc::default(),
        };
        let lost = Counter::default();
        let mut lines = LogLines::start(out, lost.clone()).unwrap();
        for _ in 0..QUEUE + 10 {
            lines.write_all(b"a\n").unwrap();
        }
        // The writer has taken one at most.
        assert!((9..=10).contains(&lost.get()), "{}", lost.get());
    }
}
