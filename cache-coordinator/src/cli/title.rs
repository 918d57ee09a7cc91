//! `precache MANIFEST --manifest`: a job for each object of a title.

use chunkcache_proto::v1::ListTitleRequest;
use clap::{Arg, ArgMatches};

use super::batch::Targets;
use super::connection::Client;
use super::failure::CliError;
use super::names::{Beginning, entry_name};
use super::precache::Wanted;
use super::{switch, text};

pub(super) fn arguments() -> Vec<Arg> {
    vec![
        switch(
            "manifest",
            "TARGET is an HLS playlist or a DASH MPD: bring the objects it names, a job each",
        )
        .requires("TARGET")
        .conflicts_with("range"),
        Arg::new("rendition")
            .long("rendition")
            .value_name("NAME")
            .requires("manifest")
            .default_value("all")
            .hide_default_value(true)
            .help(
                "highest, lowest, or the name of a video rendition, with * for any text: 1280x720, \
                 an id, the URI of a playlist; includes its audio and subtitles [default: all]",
            ),
    ]
}

/// The objects of the title that the arguments name.
pub(super) async fn list(arguments: &ArgMatches, client: &mut Client) -> Result<Targets, CliError> {
    let manifest = text(arguments, "TARGET")?;
    let first_ms = match arguments.get_one("first") {
        Some(Beginning::Time(first)) => u64::try_from(first.as_millis()).unwrap_or(u64::MAX),
        Some(Beginning::Bytes(_)) => {
            let expected = "--first: expected a time with --manifest, for example 30s";
            return Err(CliError::Usage(expected.to_owned()));
        }
        None => 0,
    };
    let request = ListTitleRequest {
        manifest: Some(entry_name(manifest)?),
        rendition: text(arguments, "rendition")?.to_owned(),
        first_ms,
    };
    let title = client
        .call(request, async |mut s, r| s.list_title(r).await)
        .await?;
    let wanted = title.objects.into_iter().map(|object| {
        let ranges = object.ranges.into_iter().map(Into::into).collect();
        Wanted::of_part(
            &format!("{}/{}", title.source, object.path),
            ranges,
            arguments,
        )
    });
    Targets::of_title(manifest, wanted.collect::<Result<_, _>>()?)
}
