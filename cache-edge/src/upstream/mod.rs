//! HTTP to origins and peers: requests, checks of their answers, and quotas.
//!
//! Only registered sources are ever asked, and only below their base URL. An origin can be slow,
//! wrong or hostile: every answer is checked against the entry before a byte of it is written
//! (`answer`), every wait has an end, and every retry a budget. Must not know players, the session
//! with the coordinator, or how entries are found.

mod bucket_check;
pub mod client;
pub mod connections;
pub mod counters;
pub mod error;
pub mod give_way;
pub mod health;
pub mod hedging;
pub mod link;
pub mod loops;
mod marked_stream;
mod names;
mod origin;
pub mod peer;
pub mod peer_blocks;
pub mod quota;
mod redirect;
pub mod reloading;
mod response;
mod s3;
pub mod signatures;
pub mod source;
mod transport;

pub use client::Client;
pub use error::OriginError;
pub use http_rules::origin_answer as answer;
pub use quota::RequestClass;
pub use response::Response;
pub use source::{Catalogue, Source};
