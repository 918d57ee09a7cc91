//! The rules of HTTP that both services follow, one copy of each.
//!
//! **Problem.** A cache needs the same decisions in many places: what does an origin's answer mean,
//! and may it be stored? The edge decides this for every fetch, the coordinator when it names an
//! object. Two copies of a rule drift apart, and then one cache key is two objects.
//!
//! **Shape.** Pure functions over plain values: header maps and numbers in, a verdict out. No
//! runtime, no socket, no file, no clock: time is an argument. So each rule has its tests beside
//! it, and no input makes one panic.
//!
//! | module | rule | RFC |
//! |---|---|---|
//! | [`path`] | normal form of an object's name, within its source | 3986, 5.2.4 and 6.2.2 |
//! | [`range`], [`content_range`] | byte ranges of requests and answers | 9110, 14 |
//! | [`conditional`] | conditions of a request, in their order | 9110, 13 |
//! | [`validator`] | what tells one version of an object from another | 9110, 8.8 |
//! | [`freshness`] | storability, lifetime, variants | 9111, 5861, 9213 |
//! | [`fields`] | fields that are stored with an object, or refreshed | 9111, 3.1 and 3.2 |
//! | [`origin_answer`] | checks an origin's answer against the request | 9110, 15; 9112, 6 |
//! | [`retry_after`] | the back-off that an origin asks for | 9110, 10.2.3 |
//! | [`cmcd`] | a player's report of its buffer and its next requests | CTA-5004 |
//! | [`cache_status`] | the response header about all that | 9211 |
//! **Deliberately absent.** Connections and retries: they are the edge's. Whether a source is
//! registered: the coordinator's. Limits on clients' requests: the HTTP server's.

pub mod cache_status;
pub mod cmcd;
pub mod conditional;
pub mod content_range;
pub mod fields;
pub mod freshness;
pub mod origin_answer;
pub mod path;
pub mod pattern;
pub mod query_rules;
pub mod range;
pub mod retry_after;
pub mod ttl_rules;
pub mod validator;
