//! Selects renditions of a title, and their objects.

use std::{collections::BTreeSet, time::Duration};

use http_rules::{cmcd::OpenRange, pattern};

use super::{Manifest, Rendition, Segment, Track};

/// Limit of names in an error.
const MAX_NAMED: usize = 12;

/// Selects renditions of each set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    All,
    Highest,
    Lowest,
    /// Video renditions with a matching name.
    Named(String),
}

impl Selection {
    /// `all`, `highest`, `lowest`, or a pattern of names. Empty: all.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "" | "all" => Self::All,
            "highest" => Self::Highest,
            "lowest" => Self::Lowest,
            name => Self::Named(name.to_owned()),
        }
    }

    /// The positions of the selected renditions. An error names the available ones.
    pub fn choose(&self, renditions: &[&Rendition]) -> Result<Vec<usize>, String> {
        let has_video = renditions.iter().any(|it| it.is_video);
        let best = |rendition: &Rendition, is_better: fn(u64, u64) -> bool| {
            let mut others = renditions.iter().filter(|it| it.set == rendition.set);
            !others.any(|it| is_better(it.bits_per_second, rendition.bits_per_second))
        };
        let is_meant = |rendition: &Rendition| match self {
            Self::All => true,
            Self::Highest => best(rendition, |it, this| it > this),
            Self::Lowest => best(rendition, |it, this| it < this),
            Self::Named(_) if has_video && !rendition.is_video => true,
            Self::Named(name) => {
                let mut names = rendition.names.iter();
                names.any(|it| pattern::matches(name, it))
            }
        };
        let mut is_found = false;
        let mut chosen = Vec::new();
        for (position, rendition) in renditions.iter().enumerate() {
            if is_meant(rendition) {
                is_found |= rendition.is_video || !has_video;
                chosen.push(position);
            }
        }
        if is_found {
            return Ok(chosen);
        }
        let names: BTreeSet<&str> = renditions
            .iter()
            .filter(|it| it.is_video || !has_video)
            .flat_map(|it| it.names.iter().map(String::as_str))
            .collect();
        let names: Vec<&str> = names.into_iter().take(MAX_NAMED).collect();
        Err(format!(
            "no rendition has that name; there are {}",
            names.join(", ")
        ))
    }
}

/// Path, query and range of an object of a title. `None`: the whole object.
pub type TitleObject = (String, String, Option<OpenRange>);

impl Manifest {
    /// The selected objects, in the order of play within each track. `first`: only those that play
    /// within that time. Fails if there are more than `limit`.
    pub fn select(
        &self,
        selection: &Selection,
        first: Option<Duration>,
        limit: usize,
    ) -> Result<Vec<TitleObject>, String> {
        let renditions: Vec<&Rendition> = self.tracks.iter().map(|(it, _)| it).collect();
        let mut objects = Vec::new();
        for position in selection.choose(&renditions)? {
            let Some((rendition, track)) = self.tracks.get(position) else {
                continue;
            };
            let mut at = rendition.start;
            let is_over = |at: Duration| first.is_some_and(|first| at >= first);
            let mut take = |segment: &Segment, range| {
                objects.push((segment.path.clone(), segment.query.clone(), range));
                objects.len() <= limit
            };
            let mut is_all = true;
            match track {
                Track::Listed(segments) => {
                    let mut segments = segments.iter();
                    while is_all
                        && !is_over(at)
                        && let Some(segment) = segments.next()
                    {
                        is_all = take(segment, segment.range);
                        at += segment.duration;
                    }
                }
                Track::Numbered(numbering) => {
                    let init = numbering.init().filter(|_| !is_over(at));
                    is_all = init.is_none_or(|init| take(init, init.range));
                    let mut segments = (0..).map_while(|it| numbering.segment(it));
                    while is_all
                        && !is_over(at)
                        && let Some(segment) = segments.next()
                    {
                        is_all = take(&segment, segment.range);
                        at += segment.duration;
                    }
                }
                Track::Whole(segment) => {
                    if !is_over(at) {
                        is_all = take(segment, start_of(segment, rendition, first));
                    }
                }
            }
            if !is_all {
                return Err(format!("it names more than {limit} objects"));
            }
        }
        Ok(objects)
    }
}

/// The start of an object that plays longer than `first`, by its bit rate.
fn start_of(
    segment: &Segment,
    rendition: &Rendition,
    first: Option<Duration>,
) -> Option<OpenRange> {
    let first = first.filter(|first| *first < segment.duration)?;
    let bytes_per_second = rendition.bits_per_second / 8;
    let last = first
        .as_secs()
        .saturating_add(1)
        .checked_mul(bytes_per_second)?;
    (last > 0).then_some((0, Some(last)))
}
