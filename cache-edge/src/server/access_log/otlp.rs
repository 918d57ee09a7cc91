//! Lines as log records for an OpenTelemetry collector.

use std::{io, time::Duration};

use service_kit::telemetry::{LogRecord, LogSender};

use super::target::{Batch, Loss, Target};

/// Each batch is a call, so lines are gathered.
const LINGER: Duration = Duration::from_secs(1);

pub(super) struct OtlpTarget {
    sender: LogSender,
}

impl OtlpTarget {
    pub(super) fn new(sender: LogSender) -> Self {
        Self { sender }
    }
}

impl Target for OtlpTarget {
    fn send(&mut self, batch: &Batch) -> Result<(), Loss> {
        let records = batch.lines().map(|(record, line)| LogRecord {
            time: record.at(),
            body: line.to_owned(),
            attributes: record.attributes(),
            trace: record.trace(),
        });
        self.sender.send(records).map_err(|error| Loss {
            lines: batch.len(),
            error: io::Error::other(error),
        })
    }

    fn linger(&self) -> Duration {
        LINGER
    }
}
