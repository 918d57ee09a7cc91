//! The HTTP server that players use: hyper over sockets that send file bytes with `sendfile`, TLS,
//! limits, and errors as problem+json; and the listener for operators.
//!
//! Why a separate module: client input ends here. It uses only the ports in `resolve::ports`, and
//! must not know the coordinator, the origin, or how chunks arrive.

pub mod access_log;
pub mod admin;
pub mod body;
mod buffers;
mod cmsd;
pub mod connection;
mod connection_cache;
pub mod cors;
mod edge_body;
mod file_slices;
pub mod handler;
mod host;
pub mod limits;
mod manifests;
pub mod metrics;
mod multipart;
mod next_objects;
mod pace;
mod paced_io;
mod players;
pub mod problem;
pub mod proxies;
mod response;
mod sendfile_io;
pub mod sent_bytes;
#[allow(clippy::module_inception)] // the listener itself, among what it is made of
pub mod server;
pub mod signing_keys;
mod socket;
pub mod steering;

pub use self::{
    access_log::{AccessLog, AccessLogOptions, Destination},
    body::{BodyData, BodyPlan, Delivery, ObjectBody, Part},
    connection::{Client, Timeouts},
    cors::{AllowedOrigins, Cors},
    edge_body::EdgeBody,
    handler::PeerHandler,
    limits::Limits,
    metrics::Metrics,
    proxies::Proxies,
    server::{Server, Settings, TlsConfig},
    signing_keys::{KeyFiles, SigningKeys},
    steering::Steering,
};
