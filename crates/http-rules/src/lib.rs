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
//! | [`freshness`] | what may be stored, how long it answers, what a variant is | 9111, 5861, 9213 |
//! | [`fields`] | which fields of an answer are kept with its object, what a 304 refreshes | 9111, 3.1 and 3.2 |
//! | [`origin_answer`] | an origin's answer against what was asked | 9110, 15; 9112, 6 |
//! | [`retry_after`] | how long to leave an origin alone | 9110, 10.2.3 |
//! | [`presigned`] | signatures of presigned URLs, and when they expire | |
//! | [`tags`], [`purge`] | tags of an answer, which objects a purge is of | 9875 |
//! | [`links`] | what an origin says is asked for next | 8288 |
//! | [`cmcd`] | what a player says of its buffer and of what it asks for next | CTA-5004 |
//! | [`cmsd`] | what a player is told of a response | CTA-5006 |
//! | [`credential`] | where a request carries its signature, beside its query | |
//! | [`steering`] | which edge a player is told to go to | 8216bis, 7 |
//! | [`cache_status`] | what is said about all that | 9211 |
//!
//! **Deliberately absent.** Who asks, over which connection, how often again: that is the edge's.
//! Whether a source is registered: the coordinator's. What a client may send: the HTTP server's.

pub mod cache_status;
pub mod cmcd;
pub mod cmsd;
pub mod conditional;
pub mod content_range;
pub mod credential;
pub mod fields;
pub mod freshness;
pub mod links;
pub mod origin_answer;
pub mod path;
pub mod pattern;
pub mod presigned;
pub mod purge;
pub mod query_rules;
pub mod range;
pub mod retry_after;
pub mod steering;
pub mod tags;
pub mod ttl_rules;
pub mod validator;
