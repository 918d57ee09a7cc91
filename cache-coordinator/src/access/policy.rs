//! The needs of each call, and the permissions of each role.

use std::fmt;

/// The role of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sees everything except secrets, changes nothing.
    Viewer,
    /// Another service: opens, requests and invalidates entries.
    Service,
    /// May do everything that operators do.
    Operator,
    /// Opens a session and makes its calls, under one name.
    Edge,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Service, Self::Operator, Self::Edge];

    /// The name in the file of tokens.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Service => "service",
            Self::Operator => "operator",
            Self::Edge => "edge",
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether this role may make a call that needs `need`.
    #[must_use]
    pub fn may(self, need: Need) -> bool {
        match need {
            Need::See => matches!(self, Self::Viewer | Self::Service | Self::Operator),
            Need::Use => matches!(self, Self::Service | Self::Operator),
            Need::Operate => self == Self::Operator,
            Need::BeEdge => self == Self::Edge,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The permission that a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Reading.
    See,
    /// Having entries fetched, kept or forgotten.
    Use,
    /// Changing the cluster.
    Operate,
    /// Being an edge.
    BeEdge,
}

impl Need {
    /// The need of a gRPC method, by its path `/package.Service/Method`. Unlisted methods require
    /// an operator.
    #[must_use]
    pub fn of_method(path: &str) -> Self {
        let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else {
            return Self::Operate;
        };
        if service == "chunkcache.v1.EdgeService" {
            return Self::BeEdge;
        }
        match method {
            "GetSource" | "ListSources" | "GetEntry" | "ListEntries" | "HasByteRange"
            | "GetAvailability" | "ListJobs" | "WatchJob" | "WatchEntry" | "WatchCluster"
            | "ListEdges" | "GetStatus" | "ExplainChunk" => Self::See,
            "OpenEntry" | "RequestRange" | "WaitForRange" | "ListTitle" | "Precache"
            | "CancelJob" | "PinEntry" | "InvalidateEntry" | "PurgeEntries" => Self::Use,
            _ => Self::Operate,
        }
    }

    /// The allowed roles, in words.
    #[must_use]
    pub fn roles(self) -> &'static str {
        match self {
            Self::See => "viewer, service or operator",
            Self::Use => "service or operator",
            Self::Operate => "operator",
            Self::BeEdge => "edge",
        }
    }
}
