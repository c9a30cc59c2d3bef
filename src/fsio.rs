//! The one door to the disk: atomic replacement, private permissions, bounded reads, locks.
//!
//! A file or folder is complete under its final name or absent, whenever the process is killed. Work in progress lies
//! beside it under a name that starts with [`TEMP_PREFIX`], and its writer holds an OS lock: left-overs of a dead writer
//! are told from live ones by that lock, not by process ids, which are reused and differ between containers.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::paths::Paths;

/// What unfinished files and folders are called.
const TEMP_PREFIX: &str = ".finch-tmp-";

fn failed(doing: &str, path: &Path, e: io::Error) -> Error {
    Error::failure(format!("cannot {doing} {}: {e}", Paths::display(path)))
}

/// Makes a folder of finch's own, and its parents, for the user alone (0700); one that exists is made private.
pub fn create_private_dir(path: &Path) -> Result<()> {
    create_parents(path)?;
    match restrict(path, 0o700) {
        // Some file systems know no permissions, and another user's folder cannot be changed: using it may still work.
        Err(e) if !matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
            Err(failed("make private", path, e))
        }
        _ => Ok(()),
    }
}

/// Makes the missing folders of `path` private and leaves the existing ones as they are.
fn create_parents(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|e| failed("create the folder", path, e))
}

/// Takes away what `mode` does not grant; only Unix has such modes.
fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let now = fs::metadata(path)?.permissions().mode() & 0o7777;
        if now & !mode != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(now & mode))?;
        }
    }
    #[cfg(not(unix))]
    let _ = (path, mode);
    Ok(())
}

/// Options that make a new file readable for the user alone.
fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true);
    options
}

/// Makes sure that a private file (0600) is there, for libraries that open it themselves; the content stays.
pub fn create_private_file(path: &Path) -> Result<()> {
    let opened = private_options().create(true).append(true).open(path);
    opened.map_err(|e| {
        failed("open", path, e).hint("check that it can be written; FINCH_HOME names another data folder")
    })?;
    restrict(path, 0o600).map_err(|e| failed("make private", path, e))
}

/// A file or folder in the making: its place, and the lock that says that the maker lives. Removed unless it moved away.
struct Temporary {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Temporary {
    /// Reserves a fresh name in `dir`; nothing but the lock file exists yet.
    fn reserve(dir: &Path) -> Result<Temporary> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.subsec_nanos());
            let id = format!("{TEMP_PREFIX}{}-{now:x}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let (path, lock_path) = (dir.join(&id), dir.join(format!("{id}.lock")));
            let lock = match private_options().create_new(true).open(&lock_path) {
                Ok(lock) => lock,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(failed("write in", dir, e)),
            };
            // Without locks on this file system a sweep finds none to take either, and leaves the file alone.
            let _ = lock.lock();
            if lock_path.exists() {
                return Ok(Temporary { path, lock_path, _lock: lock });
            } // else a sweep came between creation and lock: try again
        }
    }

    /// Gives the finished thing its final name.
    fn rename(&self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // The lock file goes last: while something lies under `path`, its lock is there. Best effort: a sweep follows.
        let _ = remove_any(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

fn remove_any(path: &Path) -> io::Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match gone {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Replaces `path` by `bytes`: after a crash at any moment it holds the old content or the new, for the user alone (0600).
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes).map_err(|e| failed("write", path, e)))
}

/// As [`write_atomic`], for what is too large for memory: `fill` writes it. An error of `fill`'s leaves the old content.
pub fn write_atomic_with(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    // A link (a configuration kept elsewhere, say) stays a link: what it points to is replaced.
    let linked = fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    let target =
        if linked { fs::canonicalize(path).map_err(|e| failed("follow", path, e))? } else { path.to_path_buf() };
    let dir = parent(&target);
    let temp = Temporary::reserve(dir)?;
    let failed = |e| failed("write", path, e);
    let mut file = private_options().create_new(true).open(&temp.path).map_err(failed)?;
    fill(&mut file)?;
    file.sync_all().map_err(failed)?;
    drop(file);
    temp.rename(&target).map_err(failed)?;
    sync_dir(dir).map_err(failed)
}

/// Makes the folder `dst` (new, or empty until now) out of what `fill` writes into the folder that it is given.
///
/// Under its final name the folder is complete and on disk, or absent; files get 0600, folders 0700. Errors when `dst`
/// exists and is not empty, or when `fill` fails.
pub fn write_dir_atomic(dst: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    refuse_occupied(dst)?;
    let dir = parent(dst);
    create_parents(dir)?;
    let temp = Temporary::reserve(dir)?;
    create_parents(&temp.path)?;
    fill(&temp.path)?;
    settle(&temp.path).map_err(|e| failed("write", dst, e))?;
    // Unix replaces an empty folder in the same step; elsewhere it has to go first.
    #[cfg(not(unix))]
    let _ = fs::remove_dir(dst);
    temp.rename(dst).map_err(|e| refuse_occupied(dst).err().unwrap_or_else(|| failed("create", dst, e)))?;
    sync_dir(dir).map_err(|e| failed("write", dst, e))
}

/// Errors when something is there already that is no empty folder: what [`write_dir_atomic`] would say at the end of the
/// work, said before it.
pub fn refuse_occupied(dst: &Path) -> Result<()> {
    let occupied = match fs::read_dir(dst) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => fs::symlink_metadata(dst).is_ok(),
    };
    if occupied {
        return Err(Error::failure(format!("{} already exists", Paths::display(dst)))
            .hint("name a folder that is new or empty, or remove this one"));
    }
    Ok(())
}

/// Removes a folder so that it is never seen half gone under its name.
pub fn remove_dir_atomic(path: &Path) -> Result<()> {
    let dir = parent(path);
    let temp = Temporary::reserve(dir)?;
    fs::rename(path, &temp.path).map_err(|e| failed("remove", path, e))?;
    drop(temp); // removes what now has the temporary name
    sync_dir(dir).map_err(|e| failed("remove", path, e))
}

/// Makes everything under `dir` private and puts it on disk.
fn settle(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let (path, kind) = entry.and_then(|e| Ok((e.path(), e.file_type()?)))?;
        if kind.is_dir() {
            settle(&path)?;
        } else if kind.is_file() {
            restrict(&path, 0o600)?;
            OpenOptions::new().write(true).open(&path)?.sync_all()?; // Windows syncs writable handles only
        }
    }
    restrict(dir, 0o700)?;
    sync_dir(dir)
}

/// Puts the names in a folder on disk; Windows has no such call and keeps them in its journal.
fn sync_dir(dir: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

/// The folder that holds `path`; the current one for a bare name.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what dead writers left unfinished in `dir`; returns how many left-overs went. A missing folder holds none.
pub fn sweep_temporaries(dir: &Path) -> Result<usize> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(failed("read the folder", dir, e)),
    };
    let mut swept = 0;
    for entry in entries {
        let path = entry.map_err(|e| failed("read the folder", dir, e))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| n.starts_with(TEMP_PREFIX)) else {
            continue;
        };
        let (content, lock_path) = match name.strip_suffix(".lock") {
            Some(id) => (dir.join(id), path),
            None => (path.clone(), dir.join(format!("{name}.lock"))),
        };
        // A lock that can be taken, or that is gone though its content is there, has no living owner.
        let lock = match OpenOptions::new().write(true).open(&lock_path) {
            Ok(lock) if lock.try_lock().is_ok() => Some(lock),
            Ok(_) => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(_) => continue,
        };
        if fs::symlink_metadata(&content).is_ok() {
            remove_any(&content).map_err(|e| failed("remove", &content, e))?;
            swept += 1;
        }
        let _ = fs::remove_file(&lock_path);
        drop(lock);
    }
    Ok(swept)
}

/// The bytes of a regular file of at most `max_bytes`; nothing is allocated beyond that.
pub fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    // Before opening: opening a pipe would wait for its other end.
    let meta = fs::metadata(path).map_err(|e| failed("read", path, e))?;
    if !meta.is_file() {
        return Err(Error::failure(format!("{} is not a regular file", Paths::display(path))));
    }
    let too_big = |bytes: String| {
        Error::failure(format!("{} has {bytes} bytes; at most {max_bytes} are read", Paths::display(path)))
    };
    if meta.len() > max_bytes {
        return Err(too_big(meta.len().to_string()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    let file = File::open(path).map_err(|e| failed("read", path, e))?;
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| failed("read", path, e))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_big(format!("more than {max_bytes}"))); // grew, or reported no length (/proc)
    }
    Ok(bytes)
}

/// As [`read_limited`], for UTF-8 text; a byte-order mark at its start is dropped.
pub fn read_text_limited(path: &Path, max_bytes: u64) -> Result<String> {
    let text = String::from_utf8(read_limited(path, max_bytes)?).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|b| **b == b'\n').count() + 1;
        Error::failure(format!("{} is not UTF-8 text: bad byte in line {line}", Paths::display(path)))
    })?;
    Ok(match text.strip_prefix('\u{FEFF}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

/// A lock between processes, held until dropped; the system frees it when the process dies.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Who holds a lock, as far as its file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: Option<u32>,
    pub purpose: Option<String>,
}

/// What came of asking for a lock.
#[derive(Debug)]
pub enum Attempt {
    Acquired(Lock),
    Held(Holder),
}

impl Lock {
    /// Takes the lock of the file at `path` (made when missing) for `purpose`, such as "training", or says who has it.
    pub fn attempt(path: &Path, purpose: &str) -> Result<Attempt> {
        let mut file = Self::open(path)?;
        match file.try_lock() {
            Ok(()) => Self::sign(file, path, purpose).map(Attempt::Acquired),
            Err(TryLockError::WouldBlock) => Ok(Attempt::Held(Holder::read(&mut file))),
            Err(TryLockError::Error(e)) => Err(failed("lock", path, e)),
        }
    }

    /// Who holds the lock of the file at `path`; `None`: nobody does.
    pub fn holder(path: &Path) -> Result<Option<Holder>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("lock", path, e)),
        };
        // A shared lock goes with every other look; closing the file gives it back.
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(Holder::read(&mut file))),
            Err(TryLockError::Error(e)) => Err(failed("lock", path, e)),
        }
    }

    /// Waits for its turn: for changes that take moments only.
    pub fn wait(path: &Path, purpose: &str) -> Result<Lock> {
        let file = Self::open(path)?;
        file.lock().map_err(|e| failed("lock", path, e))?;
        Self::sign(file, path, purpose)
    }

    fn open(path: &Path) -> Result<File> {
        let opened = private_options().read(true).create(true).truncate(false).open(path);
        opened.map_err(|e| failed("lock", path, e))
    }

    /// Writes down who holds the lock.
    fn sign(mut file: File, path: &Path, purpose: &str) -> Result<Lock> {
        let text = format!("{} {purpose}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
        written.map_err(|e| failed("lock", path, e))?;
        Ok(Lock { file })
    }

    /// As [`Lock::attempt`]; a held lock is an error that names the process.
    pub fn try_acquire(path: &Path, purpose: &str) -> Result<Lock> {
        match Self::attempt(path, purpose)? {
            Attempt::Acquired(lock) => Ok(lock),
            Attempt::Held(holder) => Err(holder.into()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.file.set_len(0); // so that nobody reads a stale name; closing unlocks
        let _ = self.file.unlock();
    }
}

impl Holder {
    /// Empty where the holder has not written yet, or where a locked file cannot be read (Windows).
    fn read(file: &mut File) -> Holder {
        let mut text = String::new();
        let _ = file.take(256).read_to_string(&mut text);
        let (pid, purpose) = text.trim_end().split_once(' ').unwrap_or((text.trim_end(), ""));
        Holder { pid: pid.parse().ok(), purpose: Some(purpose.to_string()).filter(|p| !p.is_empty()) }
    }
}

impl From<Holder> for Error {
    fn from(holder: Holder) -> Error {
        let purpose = holder.purpose.map_or("the lock is held".to_string(), |p| format!("{p} is already running"));
        let who = holder.pid.map_or("another process".to_string(), |pid| format!("process {pid}"));
        Error::failure(format!("{purpose} in {who}")).hint("wait until it has ended, or end that process")
    }
}

#[cfg(test)]
#[path = "fsio_tests.rs"]
mod tests;
