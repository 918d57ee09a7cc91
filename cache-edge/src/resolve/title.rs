//! Lists the objects of a title for the coordinator, from its manifests.

use std::{collections::HashMap, time::Duration};

use chunkcache_proto::v1;
use http::StatusCode;
use http_rules::{
    cmcd::OpenRange,
    path::{self, Target},
};

use super::{
    objects::EdgeObjects,
    ports::{FirstBytes, ObjectName, ObjectRequest, Objects as _, Resolution},
    read_all::{is_plain, read_all, read_passed},
};
use crate::core::manifest::{MAX_TEXT_BYTES, Manifest, hls, selection::Selection};

/// Limits of one title, over all selected renditions.
const MAX_OBJECTS: usize = 20_000;
const MAX_NAME_BYTES: usize = 4 << 20;
/// Limit of byte ranges of objects that are read in parts.
const MAX_RANGES: usize = 100_000;
/// Limit of the reason for a title that cannot be listed, which may quote a manifest.
const MAX_REASON_BYTES: usize = 1 << 10;
/// Time for the manifests of a title.
const READ_WITHIN: Duration = Duration::from_secs(60);

impl EdgeObjects {
    /// The objects of a title, or the reason why there are none. Manifests are requested like a
    /// player would, but without request headers.
    pub async fn list_title(
        &self,
        manifest: v1::Key,
        rendition: &str,
        first: Option<Duration>,
    ) -> Result<Vec<v1::TitleObject>, String> {
        let selection = Selection::parse(rendition);
        let listed = self.list(manifest, &selection, first);
        let listed = tokio::time::timeout(READ_WITHIN, listed).await;
        let listed = listed.unwrap_or_else(|_| Err("its manifests took too long".to_owned()));
        listed.map_err(shortened)
    }

    async fn list(
        &self,
        key: v1::Key,
        selection: &Selection,
        first: Option<Duration>,
    ) -> Result<Vec<v1::TitleObject>, String> {
        let asked_for = format!("/{}/{}", key.source, key.path);
        let mut listing = Listing::default();
        let text = self.read_manifest(&key, &mut listing).await?;
        match hls::select(&text, selection) {
            None => listing.add_all(&text, &asked_for, selection, first)?,
            Some(playlists) => {
                for uri in playlists? {
                    let Some(Target::Key {
                        source,
                        path,
                        query,
                    }) = path::resolve_reference(&asked_for, &uri)
                    else {
                        return Err(format!("{uri} is not in the source"));
                    };
                    if source != key.source {
                        return Err(format!("{uri} is not in the source"));
                    }
                    let asked_for = format!("/{source}/{path}");
                    let key = v1::Key {
                        source,
                        path,
                        query,
                        variant: String::new(),
                    };
                    let text = self.read_manifest(&key, &mut listing).await?;
                    listing.add_all(&text, &asked_for, &Selection::All, first)?;
                }
            }
        }
        Ok(listing.finish())
    }

    /// The text of a manifest. A manifest that is stored in chunks is listed as an object of the
    /// title.
    async fn read_manifest(&self, key: &v1::Key, listing: &mut Listing) -> Result<String, String> {
        let (path, query) = (key.path.clone(), key.query.clone());
        let named = format!("{}/{path}", key.source);
        let request = ObjectRequest {
            name: ObjectName::Key {
                source: key.source.clone(),
                path: path.clone(),
                query: query.clone(),
            },
            first_bytes: FirstBytes::From {
                start: 0,
                end: None,
            },
            only_if_cached: false,
            headers: http::HeaderMap::new(),
            head_only: false,
            past_the_cache: false,
            asker: None,
            ahead: None,
        };
        let resolved = self.resolve(&request).await;
        let text = match resolved.map_err(|error| format!("{named}: {error}"))? {
            Resolution::Object(object) => {
                let size = object.entry.geometry().size();
                if size > MAX_TEXT_BYTES as u64 {
                    return Err(format!("{named} is too long for a manifest"));
                }
                listing.add(path, query, None)?;
                read_all(&object.readers, size).await
            }
            Resolution::PassThrough(pass) if pass.status != StatusCode::OK => {
                return Err(format!("{named}: it answered {}", pass.status.as_u16()));
            }
            Resolution::PassThrough(pass) if is_plain(&pass.headers) => {
                let text = read_passed(pass.body, MAX_TEXT_BYTES).await;
                text.map(|text| text.to_vec())
            }
            Resolution::PassThrough(_) => None,
            Resolution::Negative { status, .. } => {
                return Err(format!("{named}: it answered {}", status.as_u16()));
            }
        };
        let text = text.and_then(|text| String::from_utf8(text).ok());
        text.ok_or_else(|| format!("{named} can not be read as a manifest"))
    }
}

/// The distinct objects so far, in order.
#[derive(Default)]
struct Listing {
    objects: Vec<(String, Option<Vec<v1::ByteRange>>)>,
    by_name: HashMap<String, usize>,
    bytes: usize,
    ranges: usize,
}

impl Listing {
    fn add_all(
        &mut self,
        text: &str,
        asked_for: &str,
        selection: &Selection,
        first: Option<Duration>,
    ) -> Result<(), String> {
        let manifest = Manifest::parse(text, asked_for)
            .ok_or_else(|| format!("{asked_for} names no segment in its source"))?;
        for (path, query, range) in manifest.select(selection, first, MAX_OBJECTS)? {
            self.add(path, query, range)?;
        }
        Ok(())
    }

    fn add(&mut self, path: String, query: String, range: Option<OpenRange>) -> Result<(), String> {
        let name = if query.is_empty() {
            path
        } else {
            format!("{path}?{query}")
        };
        let range = range.map(|(start, last)| v1::ByteRange {
            start,
            end: last.map_or(u64::MAX, |last| last.saturating_add(1)),
        });
        if let Some(object) = self
            .by_name
            .get(&name)
            .and_then(|it| self.objects.get_mut(*it))
        {
            object.1 = match (object.1.take(), range) {
                (Some(mut ranges), Some(range)) => {
                    self.ranges += usize::from(extend(&mut ranges, range));
                    Some(ranges)
                }
                _ => None,
            };
            if self.ranges > MAX_RANGES {
                return Err(format!("it names more than {MAX_RANGES} parts of objects"));
            }
            return Ok(());
        }
        self.bytes += name.len();
        if self.objects.len() >= MAX_OBJECTS || self.bytes > MAX_NAME_BYTES {
            return Err(format!("it names more than {MAX_OBJECTS} objects"));
        }
        self.by_name.insert(name.clone(), self.objects.len());
        self.objects.push((name, range.map(|range| vec![range])));
        Ok(())
    }

    fn finish(self) -> Vec<v1::TitleObject> {
        let objects = self.objects.into_iter();
        let objects = objects.map(|(path, ranges)| v1::TitleObject {
            path,
            ranges: ranges.unwrap_or_default(),
        });
        objects.collect()
    }
}

/// Merges the range into the last one if they meet, which is usual. True: they do not.
fn extend(ranges: &mut Vec<v1::ByteRange>, range: v1::ByteRange) -> bool {
    match ranges.last_mut() {
        Some(last) if range.start >= last.start && range.start <= last.end => {
            last.end = last.end.max(range.end);
            false
        }
        _ => {
            ranges.push(range);
            true
        }
    }
}

fn shortened(mut reason: String) -> String {
    if reason.len() > MAX_REASON_BYTES {
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        reason.push('…');
    }
    reason
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_object_are_one() {
        let mut listing = Listing::default();
        let mut add = |path: &str, range: Option<OpenRange>| {
            listing.add(path.to_owned(), String::new(), range).unwrap();
        };
        add("a", Some((0, Some(99))));
        add("b", None);
        add("a", Some((100, Some(199))));
        add("a", Some((500, None)));
        add("c", Some((0, Some(9))));
        add("c", None);
        let objects = listing.finish();
        let named: Vec<String> = objects
            .iter()
            .map(|it| {
                let ranges = it
                    .ranges
                    .iter()
                    .map(|it| format!(" {}-{}", it.start, it.end));
                format!("{}{}", it.path, ranges.collect::<String>())
            })
            .collect();
        let a = format!("a 0-200 500-{}", u64::MAX);
        assert_eq!(named, [a.as_str(), "b", "c"]);
    }

    #[test]
    fn parts_of_one_object_are_bounded() {
        let mut listing = Listing::default();
        let mut add = |number: u64| {
            let range = Some((2 * number, Some(2 * number)));
            listing.add("a".to_owned(), String::new(), range)
        };
        let most = MAX_RANGES as u64;
        assert!((0..=most).all(|number| add(number).is_ok()));
        assert!(add(most + 1).is_err());
    }

    #[test]
    fn what_a_manifest_says_makes_no_long_reason() {
        let reason = shortened(format!("x{}", "é".repeat(MAX_REASON_BYTES)));
        assert_eq!(reason.len(), MAX_REASON_BYTES - 1 + "…".len());
        assert_eq!(shortened("short".to_owned()), "short");
    }

    #[test]
    fn a_title_is_bounded() {
        let mut listing = Listing::default();
        for number in 0..MAX_OBJECTS {
            listing
                .add(number.to_string(), String::new(), None)
                .unwrap();
        }
        assert!(listing.add("0".to_owned(), String::new(), None).is_ok());
        assert!(
            listing
                .add("one more".to_owned(), String::new(), None)
                .is_err()
        );
    }
}
