//! The files below a directory, and the paths of their objects.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::Context as _;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters of a path segment that need no encoding (RFC 3986, 2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A complete file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundFile {
    /// Relative to the directory.
    pub file: PathBuf,
    /// Relative to the source.
    pub path: String,
}

/// All regular files, by name. Links are not followed, because they may lead anywhere.
pub(super) fn below(root: &Path) -> anyhow::Result<Vec<FoundFile>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .with_context(|| format!("{} can not be read", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && let Ok(file) = entry.path().strip_prefix(root)
            {
                let path = object_path(file)
                    .with_context(|| format!("{} is no path of an object", file.display()))?;
                found.push(FoundFile {
                    file: file.to_owned(),
                    path,
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// The percent-encoded path, as in requests.
fn object_path(file: &Path) -> Option<String> {
    let segments = file.components().map(|component| match component {
        Component::Normal(name) => {
            let encoded = utf8_percent_encode(name.to_str()?, UNRESERVED);
            Some(encoded.to_string())
        }
        _ => None,
    });
    let segments: Option<Vec<String>> = segments.collect();
    Some(segments?.join("/"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded_and_links_left_out() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        };
        put("b/é ?.mp4");
        put("a.mp4");
        std::os::unix::fs::symlink("/etc", root.path().join("outside")).unwrap();
        let paths: Vec<_> = below(root.path())
            .unwrap()
            .into_iter()
            .map(|it| it.path)
            .collect();
        assert_eq!(paths, ["a.mp4", "b/%C3%A9%20%3F.mp4"]);
        assert!(below(&root.path().join("absent")).is_err());
    }
}
