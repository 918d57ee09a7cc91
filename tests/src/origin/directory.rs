//! The files below a directory as objects.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::object::Object;

#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    /// Its pace and latency hold for every file.
    template: Object,
}

impl Directory {
    pub(crate) fn new(root: &Path, template: Object) -> std::io::Result<Directory> {
        Ok(Directory {
            root: fs::canonicalize(root)?,
            template,
        })
    }

    /// The regular file at this path, if it lies below the root also after links were followed.
    pub(crate) fn object(&self, path: &str) -> Option<Object> {
        let relative = path.strip_prefix('/')?;
        let found = fs::canonicalize(self.root.join(relative)).ok()?;
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
        let mut object = Object::file(file)
            .ok()?
            .etag(Some(&etag))
            .last_modified(None)
            .content_type(content_type(&found))
            .latency(self.template.latency);
        object.bytes_per_second = self.template.bytes_per_second;
        Some(object)
    }
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|it| it.to_str()) {
        Some("mp4") => "video/mp4",
        Some("mkv") => "video/x-matroska",
        Some("webm") => "video/webm",
        Some("html") => "text/html",
        Some("txt") => "text/plain",
        _ => "application/octet-stream",
    }
}
