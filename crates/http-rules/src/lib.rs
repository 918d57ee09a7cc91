//! The HTTP rules that both services follow, one copy of each.
//!
//! **Problem.** A cache needs the same decisions in many places: what does an origin's answer mean,
//! and may it be stored? The edge decides this for every fetch, the coordinator when it names an
//! object. Two copies of a rule drift apart, and then one cache key names two objects.
//!
//! **Shape.** Pure functions over plain values: header maps and numbers in, a verdict out. No
//! runtime, no socket, no file, no clock: time is an argument. So each rule has its tests beside
//! it, and no input makes one panic.
//!
//! | module | rule | RFC |
//! |---|---|---|
//! | [`path`] | normal form of an object's name, within its source | 3986, 5.2.4 and 6.2.2 |
//! | [`range`], [`content_range`] | byte ranges of requests and answers | 9110, 14 |
//! | [`conditional`] | conditions of a request, in order | 9110, 13 |
//! | [`validator`] | distinguishing the versions of an object | 9110, 8.8 |
//! | [`freshness`] | storing, lifetimes, variants | 9111, 5861, 9213 |
//! | [`fields`] | fields that are stored with an object, or refreshed by a 304 | 9111, 3 |
//! | [`origin_answer`] | checking an origin's answer against the request | 9110, 15; 9112, 6 |
//! | [`retry_after`] | how long not to ask an origin | 9110, 10.2.3 |
//! | [`presigned`] | signatures of presigned URLs, and their expiry | |
//! | [`tags`], [`purge`] | tags of an answer, selecting objects to purge | 9875 |
//! | [`links`] | links of an answer to the next objects | 8288 |
//! | [`cmcd`] | players' reports of their buffers and next objects | CTA-5004 |
//! | [`cmsd`] | data about a response for players | CTA-5006 |
//! | [`credential`] | signatures outside the query | |
//! | [`steering`] | choosing the edge for a player | 8216bis, 7 |
//! | [`bucket_error`] | the words in which a bucket refuses | |
//! | [`cache_status`] | reporting how a request was answered | 9211 |
//!
//! **Deliberately absent.** Connections, callers and retries belong to the edge; whether a source
//! is registered, to the coordinator; limits of clients' requests, to the HTTP server.

pub mod bucket_error;
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
