//! What each call needs, and what each role may.

use std::fmt;

/// What a token makes of its bearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sees everything but secrets, changes nothing.
    Viewer,
    /// Another service: opens, asks for and invalidates entries.
    Service,
    /// Everything people do.
    Operator,
    /// A session and what it needs, under one name.
    Edge,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Service, Self::Operator, Self::Edge];

    /// As written in the file of tokens.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Service => "service",
            Self::Operator => "operator",
            Self::Edge => "edge",
        }
    }

    /// By its name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether a bearer of this role may do what needs `need`.
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

/// What a call asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To look.
    See,
    /// To have entries fetched, kept or forgotten.
    Use,
    /// To change the cluster.
    Operate,
    /// To be an edge.
    BeEdge,
}

impl Need {
    /// Of a gRPC method by its path, `/package.Service/Method`. What is not known here is for
    /// operators.
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
            "OpenEntry" | "RequestRange" | "WaitForRange" | "Precache" | "CancelJob"
            | "PinEntry" | "InvalidateEntry" | "PurgeEntries" => Self::Use,
            _ => Self::Operate,
        }
    }

    /// The roles that would do, in words.
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
