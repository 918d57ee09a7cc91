//! A part of each day, for people.

use std::fmt;

use crate::v1;

impl v1::TimeWindow {
    /// The name of its time zone; without one it is of UTC.
    #[must_use]
    pub fn zone_name(&self) -> &str {
        match self.time_zone.as_str() {
            "" => "UTC",
            name => name,
        }
    }
}

impl fmt::Display for v1::TimeWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} {}", self.start, self.end, self.zone_name())
    }
}
