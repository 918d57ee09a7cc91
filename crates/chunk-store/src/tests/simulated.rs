//! A disk in memory that keeps synced and unsynced state apart, crashes at a chosen step, and may
//! refuse operations.
//!
//! Stricter than real file systems: after a crash any subset of the unsynced page writes, punches,
//! length changes and names survives. A failed sync loses its pages, although reads still return
//! them, and later syncs do not report it, as on Linux.

use std::{
    collections::BTreeMap,
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use chunkcache_proto::ByteRange;
use parking_lot::Mutex;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::super::disk::{Disk, DiskFile, DiskSpace, Open};

const PAGE: usize = 4096;

#[derive(Clone, Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Punch(ByteRange),
}

#[derive(Clone)]
enum Name {
    File(usize),
    Directory,
}

#[derive(Clone)]
struct NameChange {
    /// Directories whose sync makes it durable.
    directories: Vec<PathBuf>,
    removed: Option<PathBuf>,
    added: Option<(PathBuf, Name)>,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, Name>,
    durable_names: BTreeMap<PathBuf, Name>,
    pending_names: Vec<NameChange>,
    steps: u64,
    crash_at: Option<u64>,
    /// Steps that fail once, without a crash.
    fail_at: Vec<u64>,
    crashed: bool,
    read_only: bool,
    full: bool,
}

#[derive(Clone, Default)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

impl SimulatedDisk {
    /// Crashes at the change `steps` changes from now: neither it nor any later change happens.
    pub fn crash_after(&self, steps: u64) {
        let mut state = self.0.lock();
        state.crash_at = Some(state.steps + steps);
    }

    /// Refuses the change `steps` steps from now, once.
    pub fn fail_after(&self, steps: u64) {
        let mut state = self.0.lock();
        let step = state.steps + steps;
        state.fail_at.push(step);
    }

    /// Behaves like a file system that became read-only after an error: reads still work.
    pub fn set_read_only(&self, read_only: bool) {
        self.0.lock().read_only = read_only;
    }

    /// Behaves like a file system without space: nothing can be written, all else works.
    pub fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    pub fn has_crashed(&self) -> bool {
        self.0.lock().crashed
    }

    /// The disk as the next boot finds it.
    pub fn after_crash(&self, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let state = self.0.lock();
        let mut names = state.durable_names.clone();
        for change in &state.pending_names {
            if random.random() {
                apply_name(&mut names, change);
            }
        }
        // Files in a lost directory are lost.
        let reachable = |path: &Path| {
            path.ancestors()
                .skip(1)
                .all(|dir| dir.as_os_str().is_empty() || names.contains_key(dir))
        };
        let names: BTreeMap<_, _> = names
            .iter()
            .filter(|(path, _)| reachable(path))
            .map(|(p, n)| (p.clone(), n.clone()))
            .collect();
        let inodes = state
            .inodes
            .iter()
            .map(|inode| survive(inode, &mut random))
            .collect();
        let next = State {
            inodes,
            durable_names: names.clone(),
            names,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(next)))
    }

    /// Pages of all named files below `directory` that hold anything, in bytes.
    pub fn data_bytes(&self, directory: &str) -> u64 {
        let state = self.0.lock();
        let files = state
            .names
            .iter()
            .filter(|(path, _)| path.starts_with(directory));
        let pages = files.map(|(_, name)| match name {
            Name::File(inode) => state.inodes[*inode]
                .current
                .chunks(PAGE)
                .filter(|p| p.iter().any(|b| *b != 0))
                .count(),
            Name::Directory => 0,
        });
        pages.sum::<usize>() as u64 * PAGE as u64
    }
}

fn survive(inode: &Inode, random: &mut impl Rng) -> Inode {
    let mut content = inode.durable.clone();
    for change in &inode.pending {
        match change {
            Change::Write(offset, bytes) => {
                for (at, page) in bytes.chunks(PAGE).enumerate() {
                    if random.random() {
                        apply(
                            &mut content,
                            &Change::Write(offset + (at * PAGE) as u64, page.to_vec()),
                        );
                    }
                }
            }
            other => {
                if random.random() {
                    apply(&mut content, other);
                }
            }
        }
    }
    Inode {
        durable: content.clone(),
        current: content,
        pending: Vec::new(),
    }
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, bytes) => {
            let (start, end) = (*offset as usize, *offset as usize + bytes.len());
            if content.len() < end {
                content.resize(end, 0);
            }
            content[start..end].copy_from_slice(bytes);
        }
        Change::SetLen(len) => content.resize(*len as usize, 0),
        Change::Punch(range) => {
            let len = content.len();
            content[(range.start as usize).min(len)..(range.end as usize).min(len)].fill(0);
        }
    }
}

fn apply_name(names: &mut BTreeMap<PathBuf, Name>, change: &NameChange) {
    if let Some(path) = &change.removed {
        names.remove(path);
    }
    if let Some((path, name)) = &change.added {
        names.insert(path.clone(), name.clone());
    }
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        if self.crash_at.is_some_and(|at| self.steps >= at) {
            self.crashed = true;
        }
        if self.crashed {
            return Err(io::Error::other("crashed"));
        }
        if self.fail_at.contains(&self.steps) {
            return Err(rustix::io::Errno::IO.into());
        }
        Ok(())
    }

    fn rename(&mut self, removed: Option<&Path>, added: Option<(&Path, Name)>) {
        let paths = removed
            .into_iter()
            .chain(added.as_ref().map(|(path, _)| *path));
        let change = NameChange {
            directories: paths.filter_map(Path::parent).map(Path::to_owned).collect(),
            removed: removed.map(Path::to_owned),
            added: added.map(|(path, name)| (path.to_owned(), name)),
        };
        apply_name(&mut self.names, &change);
        self.pending_names.push(change);
    }
}

impl Disk for SimulatedDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        for dir in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if !dir.as_os_str().is_empty() && !state.names.contains_key(dir) {
                state.step()?;
                state.rename(None, Some((dir, Name::Directory)));
            }
        }
        Ok(())
    }

    fn open(&self, path: &Path, open: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        if state.read_only && open != Open::Reading {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let inode = match state.names.get(path) {
            Some(Name::File(inode)) => *inode,
            Some(Name::Directory) => return Err(io::ErrorKind::IsADirectory.into()),
            None if matches!(open, Open::Existing | Open::Reading) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            None => {
                state.step()?;
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.rename(None, Some((path, Name::File(inode))));
                inode
            }
        };
        let file = SimulatedFile {
            disk: self.clone(),
            inode,
        };
        drop(state);
        if open == Open::Truncate {
            file.set_len(0)?;
        }
        Ok(Arc::new(file))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let inside = state
            .names
            .keys()
            .filter(|name| name.parent() == Some(path));
        Ok(inside
            .filter_map(|name| Some(name.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        let parent = to.parent().filter(|dir| !dir.as_os_str().is_empty());
        if parent.is_some_and(|dir| !state.names.contains_key(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = state
            .names
            .get(from)
            .cloned()
            .ok_or(io::ErrorKind::NotFound)?;
        state.rename(Some(from), Some((to, name)));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.rename(Some(path), None);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        let state = &mut *state;
        let durable = &mut state.durable_names;
        state.pending_names.retain(|change| {
            let is_here = change.directories.iter().any(|dir| dir == path);
            if is_here {
                apply_name(durable, change);
            }
            !is_here
        });
        Ok(())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        Ok(DiskSpace {
            total_bytes: 1 << 40,
            free_bytes: 1 << 40,
            free_inodes: None,
        })
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    inode: usize,
}

impl SimulatedFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let result = state.step();
        // A write cut by the crash may have reached the cache.
        if result.is_ok() || state.crashed {
            let inode = &mut state.inodes[self.inode];
            apply(&mut inode.current, &change);
            inode.pending.push(change);
        }
        result
    }
}

impl DiskFile for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().inodes[self.inode].current.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len))
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.disk.0.lock().full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.change(Change::Write(offset, bytes.to_vec()))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.0.lock();
        let rest = state.inodes[self.inode]
            .current
            .get(offset as usize..)
            .unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let result = state.step();
        let crashed = state.crashed;
        let inode = &mut state.inodes[self.inode];
        if crashed {
            return result;
        }
        let pending = std::mem::take(&mut inode.pending);
        if result.is_ok() {
            pending
                .iter()
                .for_each(|change| apply(&mut inode.durable, change));
        }
        result
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        self.change(Change::Punch(range))
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        let state = self.disk.0.lock();
        let pages = state.inodes[self.inode].current.chunks(PAGE);
        let taken = pages.filter(|page| page.iter().any(|byte| *byte != 0));
        Ok(taken.count() as u64 * PAGE as u64)
    }

    fn allocate(&self, _range: ByteRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
        let state = self.disk.0.lock();
        let content = &state.inodes[self.inode].current;
        let has_data = |page: &usize| {
            content[*page * PAGE..]
                .iter()
                .take(PAGE)
                .any(|byte| *byte != 0)
        };
        let pages = content.len().div_ceil(PAGE);
        if from as usize >= content.len() {
            return Ok(None);
        }
        let Some(first) = (from as usize / PAGE..pages).find(has_data) else {
            return Ok(None);
        };
        let end = (first..pages)
            .find(|page| !has_data(page))
            .map_or(content.len(), |page| page * PAGE);
        Ok(Some(ByteRange::new(
            from.max((first * PAGE) as u64),
            end as u64,
        )))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
