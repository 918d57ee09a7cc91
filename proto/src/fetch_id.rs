//! The names of fetches.

use std::fmt;

/// On the wire, the highest bit marks a local fetch.
const LOCAL_BIT: u64 = 1 << 63;

/// Names a fetch on its edge. Two edges may use the same local number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FetchId {
    /// The coordinator assigned it.
    Coordinated(u64),
    /// The edge began it on its own.
    Local(u64),
}

impl FetchId {
    /// Numbers of both kinds are at most this.
    pub const MAX_NUMBER: u64 = LOCAL_BIT - 1;

    #[must_use]
    pub fn is_local(self) -> bool {
        matches!(self, Self::Local(_))
    }

    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Self::Coordinated(number) | Self::Local(number) => number & Self::MAX_NUMBER,
        }
    }
}

/// From the wire.
impl From<u64> for FetchId {
    fn from(wire: u64) -> Self {
        match wire & LOCAL_BIT {
            0 => Self::Coordinated(wire),
            _ => Self::Local(wire & Self::MAX_NUMBER),
        }
    }
}

/// To the wire.
impl From<FetchId> for u64 {
    fn from(id: FetchId) -> Self {
        match id {
            FetchId::Coordinated(_) => id.number(),
            FetchId::Local(_) => LOCAL_BIT | id.number(),
        }
    }
}

/// For logs.
impl fmt::Display for FetchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_the_wire() {
        for wire in [
            0,
            7,
            FetchId::MAX_NUMBER,
            LOCAL_BIT,
            LOCAL_BIT | 7,
            u64::MAX,
        ] {
            let id = FetchId::from(wire);
            assert_eq!(id.is_local(), wire >= LOCAL_BIT);
            assert_eq!(u64::from(id), wire);
        }
        assert!(FetchId::Coordinated(FetchId::MAX_NUMBER) < FetchId::Local(0));
    }
}
