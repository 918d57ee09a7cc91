//! Steering players to an edge: by redirect, and by manifests of Content Steering (RFC 8216bis, 7;
//! ETSI TS 103 998).

use serde_json::{Value, json};
use url::Url;

use crate::{
    credential,
    path::{self, Target, TargetError},
};

const REDIRECTS: &str = "/steer";
const MANIFEST: &str = "/steer.json";
/// How long a player uses a manifest: shorter than its buffer, so that a draining edge loses its
/// players before they stall.
const TTL_SECONDS: u32 = 15;
/// The pathway of a playlist that names none (RFC 8216bis, 4.4.6.2).
const DEFAULT_PATHWAY: &str = ".";
/// A player gets at most this many of the cluster's edges, the best ones.
const MAX_PATHWAYS: usize = 16;

/// An edge that takes players.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub name: String,
    pub url: String,
}

/// The object whose holders are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeredObject {
    pub source: String,
    pub path: String,
    pub query: String,
}

/// A player's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    Redirect {
        object: SteeredObject,
        /// Path and query as they arrived, including the signature.
        target: String,
    },
    Manifest {
        object: Option<SteeredObject>,
        /// The pathway that the others clone.
        base: String,
    },
}

/// The answer to a player.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The value of `Location`.
    Location(String),
    /// JSON.
    Manifest(String),
}

impl Question {
    /// `None`: the target is not a steering request.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Option<Self>, TargetError> {
        if path == MANIFEST {
            return Self::manifest(query.unwrap_or("")).map(Some);
        }
        let Some(rest) = path
            .strip_prefix(REDIRECTS)
            .filter(|it| it.starts_with('/'))
        else {
            return Ok(None);
        };
        let object = object(rest, query.unwrap_or(""))?;
        let target = match query {
            Some(query) => format!("{rest}?{query}"),
            None => rest.to_owned(),
        };
        Ok(Some(Self::Redirect { object, target }))
    }

    fn manifest(query: &str) -> Result<Self, TargetError> {
        let (mut key, mut base) = (None, DEFAULT_PATHWAY.to_owned());
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "key" => key = Some(value.into_owned()),
                "base" => base = value.into_owned(),
                _ => {}
            }
        }
        let object = key.map(|key| {
            let (path, query) = key.split_once('?').unwrap_or((&key, ""));
            object(&format!("/{path}"), query)
        });
        Ok(Self::Manifest {
            object: object.transpose()?,
            base,
        })
    }

    #[must_use]
    pub fn object(&self) -> Option<&SteeredObject> {
        match self {
            Self::Redirect { object, .. } => Some(object),
            Self::Manifest { object, .. } => object.as_ref(),
        }
    }

    /// `candidates` lists the best one first; `None`: there is none.
    #[must_use]
    pub fn answer(&self, candidates: &[Candidate]) -> Option<Direction> {
        let best = candidates.first()?;
        Some(match self {
            // The address of the object itself and never of a steering request, so that there are
            // no loops.
            Self::Redirect { target, .. } => {
                let base = best.url.trim_end_matches('/');
                Direction::Location(format!("{base}{target}"))
            }
            Self::Manifest { base, .. } => Direction::Manifest(manifest(base, candidates)),
        })
    }
}

fn object(path: &str, query: &str) -> Result<SteeredObject, TargetError> {
    let (path, _) = credential::split_path(path);
    // The object's name excludes parameters of the signature and the player.
    let own = |pair: &&str| !pair.starts_with("cc-") && !pair.starts_with("CMCD=");
    let query: Vec<&str> = query.split('&').filter(own).collect();
    match path::parse(path, Some(&query.join("&")))? {
        Target::Key {
            source,
            path,
            query,
        } => Ok(SteeredObject {
            source,
            path,
            query,
        }),
        Target::Entry { .. } | Target::Peer => Err(TargetError::NotFound(
            "objects are steered by /{source}/{path}",
        )),
    }
}

/// Pathways are the edges, each a clone of the playlist's own pathway at another host.
fn manifest(base: &str, candidates: &[Candidate]) -> String {
    let candidates = &candidates[..candidates.len().min(MAX_PATHWAYS)];
    let names: Vec<&str> = candidates.iter().map(|it| it.name.as_str()).collect();
    let clones: Vec<Value> = candidates
        .iter()
        .filter(|candidate| candidate.name != base)
        .filter_map(|candidate| {
            let url = Url::parse(&candidate.url).ok()?;
            let host = match url.port() {
                Some(port) => format!("{}:{port}", url.host_str()?),
                None => url.host_str()?.to_owned(),
            };
            Some(json!({ "BASE-ID": base, "ID": candidate.name,
                "URI-REPLACEMENT": { "HOST": host } }))
        })
        .collect();
    let mut manifest = json!({ "VERSION": 1, "TTL": TTL_SECONDS, "PATHWAY-PRIORITY": names });
    if !clones.is_empty() {
        manifest["PATHWAY-CLONES"] = clones.into();
    }
    manifest.to_string()
}

/// An edge's holdings and load, by which candidates are ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub candidate: Candidate,
    pub bytes_held: u64,
    pub requests_active: u32,
}

/// The best first: those that hold at least half as much as the best holder, then the others; among
/// equals the least busy.
#[must_use]
pub fn rank(mut standings: Vec<Standing>) -> Vec<Candidate> {
    let most = standings.iter().map(|it| it.bytes_held).max().unwrap_or(0);
    standings.sort_by_cached_key(|it| {
        let is_holder = most > 0 && it.bytes_held >= most.div_ceil(2);
        (!is_holder, it.requests_active, it.candidate.name.clone())
    });
    standings.into_iter().map(|it| it.candidate).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edge(name: &str) -> Candidate {
        Candidate {
            name: name.to_owned(),
            url: format!("http://{name}.example:7500"),
        }
    }

    #[test]
    fn a_redirect_keeps_query_and_signature() {
        let path = "/steer/cc~abc/films/a%2Db.mp4";
        let query = "x=1&cc-key=k&cc-signature=s&CMCD=su";
        let question = Question::parse(path, Some(query)).unwrap().unwrap();
        let object = question.object().unwrap();
        assert_eq!(
            (&*object.source, &*object.path, &*object.query),
            ("films", "a-b.mp4", "x=1")
        );
        let to = format!("http://a.example:7500/cc~abc/films/a%2Db.mp4?{query}");
        assert_eq!(
            question.answer(&[edge("a"), edge("b")]),
            Some(Direction::Location(to))
        );
        assert_eq!(question.answer(&[]), None);
        for none in ["/films/a", "/steerer/a", "/", "/steer"] {
            assert_eq!(Question::parse(none, None), Ok(None), "{none}");
        }
        for circle in [
            "/steer/steer/films/a",
            "/steer//x/a",
            "/steer/..",
            "/steer/_peer/x",
        ] {
            assert!(Question::parse(circle, None).is_err(), "{circle}");
        }
    }

    #[test]
    fn a_manifest_names_the_edges_as_pathways() {
        let query = "key=films%2Fa.m3u8&base=edge&_HLS_pathway=x";
        let question = Question::parse("/steer.json", Some(query))
            .unwrap()
            .unwrap();
        assert_eq!(question.object().unwrap().path, "a.m3u8");
        let edges = [edge("b"), edge("edge")];
        let Some(Direction::Manifest(text)) = question.answer(&edges) else {
            panic!("no manifest")
        };
        let manifest: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(manifest["VERSION"], 1);
        assert_eq!(manifest["PATHWAY-PRIORITY"], json!(["b", "edge"]));
        let clones = json!(
            [{ "BASE-ID": "edge", "ID": "b", "URI-REPLACEMENT": { "HOST": "b.example:7500" } }]
        );
        assert_eq!(manifest["PATHWAY-CLONES"], clones);
        assert!(Question::parse("/steer.json", None).unwrap().is_some());
    }

    #[test]
    fn holders_come_first_and_the_least_busy_of_them() {
        let standing = |name: &str, bytes_held, requests_active| Standing {
            candidate: edge(name),
            bytes_held,
            requests_active,
        };
        let names = |standings: Vec<Standing>| {
            let names = rank(standings).into_iter().map(|it| it.name);
            names.collect::<Vec<_>>().join(" ")
        };
        let (half, all, none) = (
            standing("half", 50, 1),
            standing("all", 100, 9),
            standing("none", 0, 0),
        );
        assert_eq!(names(vec![none.clone(), all, half]), "half all none");
        assert_eq!(names(vec![standing("b", 0, 1), none]), "none b");
    }

    proptest! {
        #[test]
        fn no_target_panics_or_goes_in_circles(rest in "[ -~]{0,60}") {
            for path in [format!("/steer/{rest}"), format!("/steer/steer/{rest}")] {
                let (path, query) = path.split_once('?')
                    .map_or((&*path, None), |(a, b)| (a, Some(b)));
                if let Ok(Some(question)) = Question::parse(path, query)
                    && let Some(Direction::Location(to)) = question.answer(&[edge("a")])
                {
                    prop_assert!(!to.starts_with("http://a.example:7500/steer"), "{to}");
                }
            }
        }
    }
}
