//! The data directory itself: its lock, its format, its identity.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::{
    OpenError,
    disk::{DIRECTORY_MODE, Disk, FILE_MODE, Open},
};

/// Incremented when an older program could not read what this one writes.
const FORMAT: u32 = 2;
const LOCK_NAME: &str = "LOCK";
const STORE_NAME: &str = "STORE";
/// Sanity cap: far more than it ever has.
const STORE_MAX_BYTES: u64 = 4096;

/// Creates the directory if it is missing and locks it. The lock ends with the file handle, so a
/// killed process releases it too.
pub(super) fn lock(data_dir: &Path) -> Result<fs::File, OpenError> {
    let unusable = |source| OpenError::Unusable {
        path: data_dir.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(data_dir)
        .map_err(unusable)?;
    let private = fs::Permissions::from_mode(DIRECTORY_MODE);
    if let Err(error) = fs::set_permissions(data_dir, private) {
        // A mount with another owner: the operator who set it up decided on the access.
        tracing::warn!(%error, path = %data_dir.display(), "the data directory is open to others");
    }
    let path = data_dir.join(LOCK_NAME);
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(unusable)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked {
            path: data_dir.to_owned(),
        }),
        Err(error) => Err(unusable(error.into())),
    }
}

/// Reads the store's id (and upgrades an older format), or creates one in a new directory. `STORE`
/// is two lines: `format N` and `store UUID`.
pub(super) fn identify(disk: &dyn Disk, data_dir: &Path) -> Result<Uuid, OpenError> {
    let unusable = |source| OpenError::Unusable {
        path: data_dir.to_owned(),
        source,
    };
    match read_store(disk) {
        Ok(text) => {
            let (format, id) = parse_store(&text, data_dir)?;
            if format < FORMAT {
                // Before anything is written that an older program would mistake for damage.
                write_store(disk, id).map_err(unusable)?;
            }
            Ok(id)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::new_v4();
            write_store(disk, id).map_err(unusable)?;
            Ok(id)
        }
        Err(error) => Err(unusable(error)),
    }
}

fn parse_store(text: &str, data_dir: &Path) -> Result<(u32, Uuid), OpenError> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    };
    let format: Option<u32> = field("format").and_then(|value| value.trim().parse().ok());
    if let Some(found) = format
        && found > FORMAT
    {
        return Err(OpenError::NewerFormat {
            path: data_dir.to_owned(),
            found,
            known: FORMAT,
        });
    }
    match (
        format,
        field("store").and_then(|value| value.trim().parse().ok()),
    ) {
        (Some(format), Some(id)) => Ok((format, id)),
        _ => Err(OpenError::Unusable {
            path: data_dir.join(STORE_NAME),
            source: io::Error::new(io::ErrorKind::InvalidData, "not a store's description"),
        }),
    }
}

fn read_store(disk: &dyn Disk) -> io::Result<String> {
    let file = disk.open(Path::new(STORE_NAME), Open::Existing)?;
    let mut bytes = vec![0; file.len()?.min(STORE_MAX_BYTES) as usize];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

/// Writes atomically: to another name, synced, renamed.
fn write_store(disk: &dyn Disk, id: Uuid) -> io::Result<()> {
    let aside = PathBuf::from(STORE_NAME).with_extension("tmp");
    let file = disk.open(&aside, Open::Truncate)?;
    file.write_all_at(format!("format {FORMAT}\nstore {id}\n").as_bytes(), 0)?;
    file.sync_data()?;
    disk.rename(&aside, Path::new(STORE_NAME))?;
    disk.sync_dir(Path::new(""))
}
