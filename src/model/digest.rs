//! The base digest: the name of a set of weights, and a small cache so that gigabytes are not hashed at every start.
//!
//! The cache believes path, size and time of change; it is only a shortcut, so a damaged or unwritable one is ignored.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::checkpoint::{Checkpoint, hex};
use crate::error::Result;
use crate::fsio;
use crate::paths::Paths;

/// Models remembered; the ones used longest ago go first.
const MAX_ENTRIES: usize = 64;
const MAX_BYTES: u64 = 4 << 20;

/// Digests of model files seen before.
#[derive(Debug, Clone, Default)]
pub struct DigestCache {
    file: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    /// Latest last.
    bases: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    files: Vec<Stamp>,
    digest: String,
}

/// What a file looked like when it was hashed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    path: PathBuf,
    size: u64,
    /// Nanoseconds since 1970.
    changed: u64,
}

impl DigestCache {
    /// The cache of a data folder.
    pub fn of(paths: &Paths) -> DigestCache {
        DigestCache { file: Some(paths.root().join("digests.json")) }
    }

    /// Remembers nothing.
    pub fn none() -> DigestCache {
        DigestCache::default()
    }

    /// The digest of the checkpoint's tensors, in hex; hashed only when its files changed since the last time. Weights that
    /// are quantised while they are read have one of their own: that of the files, and the type.
    pub fn digest(&self, checkpoint: &Checkpoint) -> Result<String> {
        let files = self.of_files(checkpoint)?;
        Ok(match checkpoint.quantization() {
            None => files,
            Some(to) => hex(&Sha256::digest(format!("{files} {to}"))),
        })
    }

    fn of_files(&self, checkpoint: &Checkpoint) -> Result<String> {
        let stamps: Option<Vec<Stamp>> = checkpoint.files().into_iter().map(stamp).collect();
        let (Some(file), Some(stamps)) = (&self.file, stamps.filter(|stamps| !stamps.is_empty())) else {
            return checkpoint.digest();
        };
        let mut known = read(file);
        if let Some(entry) = known.bases.iter().find(|entry| entry.files == stamps) {
            return Ok(entry.digest.clone());
        }
        let digest = checkpoint.digest()?;
        let same_place = |entry: &Entry| entry.files.first().map(|s| &s.path) == stamps.first().map(|s| &s.path);
        known.bases.retain(|entry| !same_place(entry));
        known.bases.push(Entry { files: stamps, digest: digest.clone() });
        let surplus = known.bases.len().saturating_sub(MAX_ENTRIES);
        known.bases.drain(..surplus);
        if let Err(e) = write(file, &known) {
            tracing::debug!("the digest cache was not written: {e}");
        }
        Ok(digest)
    }
}

fn read(file: &Path) -> Known {
    let bytes = fsio::read_limited(file, MAX_BYTES).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn write(file: &Path, known: &Known) -> Result<()> {
    if let Some(folder) = file.parent() {
        fsio::create_private_dir(folder)?;
    }
    fsio::write_atomic(file, &serde_json::to_vec_pretty(known)?)
}

/// None where the file system tells no time of change: such a file is hashed every time.
fn stamp(path: &Path) -> Option<Stamp> {
    // Hub caches are made of links: what they point to counts.
    let path = fs::canonicalize(path).ok()?;
    let meta = fs::metadata(&path).ok()?;
    let changed = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    Some(Stamp { path, size: meta.len(), changed: u64::try_from(changed).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn weights(folder: &Path, value: f32, changed: u64) -> Checkpoint {
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend(value.to_le_bytes());
        let path = folder.join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        Checkpoint::open(folder).unwrap()
    }

    #[test]
    fn hashes_again_only_when_a_file_changed() {
        let folder = tempfile::tempdir().unwrap();
        let home = tempfile::tempdir().unwrap();
        let cache = DigestCache::of(&Paths::at(home.path().join("finch")));
        let first = cache.digest(&weights(folder.path(), 1.0, 1000)).unwrap();
        // Same size, same time: believed without a look inside.
        assert_eq!(cache.digest(&weights(folder.path(), 2.0, 1000)).unwrap(), first);
        let second = cache.digest(&weights(folder.path(), 2.0, 2000)).unwrap();
        assert_ne!(second, first);
        assert_eq!(cache.digest(&weights(folder.path(), 1.0, 3000)).unwrap(), first);
        let known = read(cache.file.as_ref().unwrap());
        assert_eq!(known.bases.len(), 1, "one entry a place");
        assert_eq!(DigestCache::none().digest(&weights(folder.path(), 1.0, 1)).unwrap(), first);
    }

    #[test]
    fn a_damaged_or_unwritable_cache_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = weights(folder.path(), 1.0, 1000);
        let expected = checkpoint.digest().unwrap();
        fs::write(folder.path().join("digests.json"), b"{\"bases\": 7").unwrap();
        assert_eq!(DigestCache::of(&Paths::at(folder.path())).digest(&checkpoint).unwrap(), expected);
        let blocked = folder.path().join("model.safetensors");
        assert_eq!(DigestCache::of(&Paths::at(blocked)).digest(&checkpoint).unwrap(), expected);
    }
}
