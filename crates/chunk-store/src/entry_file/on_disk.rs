//! An entry's sparse file: its name, opening and removing it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use chunkcache_proto::EntryId;

use super::EntryFile;
use crate::{
    CHUNKS_SUFFIX, ENTRIES_DIR,
    disk::{DiskFile, Open},
    journal_record::{EntryNumber, FileNaming},
    open_files::OpenFile,
    removal::is_absent,
};

impl EntryFile {
    pub(crate) fn naming(&self) -> FileNaming {
        self.naming
    }

    pub(crate) fn path(&self) -> PathBuf {
        file_path(&self.id, self.number, self.naming)
    }

    /// Removes the file, which is empty. Requires `emptying` to be locked, so that it stays empty.
    pub(crate) fn remove_file(&self) -> io::Result<()> {
        let _not_opened_meanwhile = self.opening.lock();
        self.open.store(None);
        self.linked.store(false, Ordering::Release);
        match self.shared.disk.remove_file(&self.path()) {
            Err(error) if !is_absent(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the open file; opens it, and creates it if necessary. Reading works even where the
    /// file system refuses writes; a writer reopens it as soon as that succeeds.
    pub(crate) fn open_file(&self, open: Open) -> io::Result<Arc<OpenFile>> {
        let at_hand = || {
            let file = self.open.load_full();
            file.filter(|file| file.is_writable || open == Open::Reading)
        };
        if let Some(file) = at_hand() {
            file.touch();
            return Ok(file);
        }
        let opening = self.opening.lock();
        if let Some(file) = at_hand() {
            return Ok(file);
        }
        let path = self.path();
        let disk = &self.shared.disk;
        let first = match open {
            Open::Reading | Open::CreateOrExisting => Open::Existing,
            other => other,
        };
        let (file, is_writable) = match (disk.open(&path, first), open) {
            (Err(error), Open::Reading) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                (disk.open(&path, Open::Reading)?, false)
            }
            (Err(error), Open::CreateOrExisting) if error.kind() == io::ErrorKind::NotFound => {
                (self.make_file(&path)?, true)
            }
            (opened, _) => (opened?, true),
        };
        // Never truncate it: a reader may be sending from it. Only writers extend it, because an
        // object may claim a length that no file can have, and its written bytes must still be
        // freed.
        if open == Open::CreateOrExisting && file.len()? < self.geometry.size() {
            file.set_len(self.geometry.size())?;
        }
        let file = Arc::new(OpenFile::new(file, is_writable));
        let was_open = self.open.swap(Some(file.clone())).is_some();
        drop(opening);
        if !was_open {
            self.shared.files.admit(self.me.clone());
        }
        Ok(file)
    }

    fn make_file(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let disk = &*self.shared.disk;
        if let Some(file) = self.shared.spares.take(disk, path) {
            return Ok(file);
        }
        if let Some(parent) = path.parent() {
            disk.create_dir(parent)?;
        }
        disk.open(path, Open::CreateOrExisting)
    }

    /// Directories whose sync makes the file's name durable, the innermost first.
    pub(crate) fn parents(&self) -> Vec<PathBuf> {
        self.path().ancestors().skip(1).map(PathBuf::from).collect()
    }
}

/// Two levels, because directories of 10^5 names are slow to list on some file systems.
fn file_path(id: &EntryId, number: EntryNumber, naming: FileNaming) -> PathBuf {
    let name = id.to_string();
    let number = match naming {
        FileNaming::Id => String::new(),
        FileNaming::IdAndNumber => format!(".{number}"),
    };
    PathBuf::from(format!(
        "{}/{}/{name}{number}.{}",
        ENTRIES_DIR,
        &name[..2],
        CHUNKS_SUFFIX
    ))
}
