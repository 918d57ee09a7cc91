//! The files below a directory as objects.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::object::Object;

#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    /// Its headers apply to every file, its pace and latency to those without a template of their
    /// own.
    template: Object,
    /// By the first part of the path.
    templates: Vec<(String, Object)>,
}

impl Directory {
    pub(crate) fn new(
        root: &Path,
        template: Object,
        templates: Vec<(String, Object)>,
    ) -> std::io::Result<Directory> {
        Ok(Directory {
            root: fs::canonicalize(root)?,
            template,
            templates,
        })
    }

    /// The regular file at this path (for a directory: its index.html), if it is below the root
    /// even after links were followed.
    pub(crate) fn object(&self, path: &str) -> Option<Object> {
        let mut relative = path.strip_prefix('/')?.to_owned();
        if relative.is_empty() || relative.ends_with('/') {
            relative.push_str("index.html");
        }
        let found = fs::canonicalize(self.root.join(&relative)).ok()?;
        if !found.starts_with(&self.root) {
            return None;
        }
        let file = File::open(&found).ok()?;
        let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
        let etag = format!(
            "\"{:x}-{:x}-{:x}\"",
            metadata.ino(),
            metadata.len(),
            metadata.mtime_nsec() + metadata.mtime() * 1_000_000_000
        );
        let template = self
            .templates
            .iter()
            .find(|(folder, _)| relative.split('/').next() == Some(folder.as_str()))
            .map_or(&self.template, |(_, template)| template);
        let mut object = Object::file(file)
            .ok()?
            .etag(Some(&etag))
            .last_modified(None)
            .content_type(content_type(&found))
            .latency(template.latency);
        object.headers.clone_from(&self.template.headers);
        object.bytes_per_second = template.bytes_per_second;
        Some(object)
    }
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|it| it.to_str()) {
        Some("mp4") => "video/mp4",
        Some("mkv") => "video/x-matroska",
        Some("webm") => "video/webm",
        Some("m4s") => "video/iso.segment",
        Some("m3u8") => "application/vnd.apple.mpegurl",
        Some("mpd") => "application/dash+xml",
        Some("html") => "text/html",
        Some("txt") => "text/plain",
        _ => "application/octet-stream",
    }
}
