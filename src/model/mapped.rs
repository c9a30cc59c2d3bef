//! Tensors that stay where their file has them: the file as memory, which the system reads when it is looked at, shares
//! between processes and takes back when memory is short.
//!
//! Only the numbers of tensors are looked at in this way, after the header was read and checked; whatever bytes are there,
//! they are numbers. What a map cannot bear is a file that is cut short: so a file that another program writes to while it
//! is in use is refused from then on ([`Bytes::unchanged`], asked before each piece of work). One that is replaced by
//! renaming, as downloads are, stays what it was.

use std::fs::File;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::SystemTime;

use memmap2::Mmap;

use crate::error::{Context, Error, Result};

/// A file as memory.
pub struct FileMap {
    name: String,
    file: File,
    map: Mmap,
    /// Its length and time of change when it was mapped.
    stamp: (u64, SystemTime),
}

/// Some bytes of such a file.
#[derive(Clone)]
pub struct Bytes {
    file: Arc<FileMap>,
    range: Range<usize>,
}

impl FileMap {
    /// `name` is what errors call the file.
    pub fn new(name: &str, file: &File) -> Result<FileMap> {
        let file = file.try_clone()?;
        let stamp = stamp(&file)?;
        // SAFETY: the map is read only, and only as numbers of which every bit pattern is one. A file that shrinks would end
        // the process when its lost end is read; `unchanged` keeps work from beginning on a file that was written to, and
        // nothing of finch writes to model files in place. As long as the bytes are borrowed, finch alone reads them.
        let map = unsafe { Mmap::map(&file)? };
        Ok(FileMap { name: name.to_string(), file, map, stamp })
    }

    /// None where the file has no such bytes.
    pub fn bytes(self: &Arc<FileMap>, range: Range<usize>) -> Option<Bytes> {
        self.map.get(range.clone())?;
        Some(Bytes { file: Arc::clone(self), range })
    }
}

impl Bytes {
    /// An error once another program has written to the file.
    pub fn unchanged(&self) -> Result<()> {
        let FileMap { name, file, stamp: was, .. } = &*self.file;
        match stamp(file).with_context(|| name)? == *was {
            true => Ok(()),
            false => Err(Error::failure(format!("{name} was changed by another program while it was in use"))
                .hint("start finch again to read it anew")),
        }
    }

    /// Whether both lie in one file.
    pub fn beside(&self, other: &Bytes) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // In range: `FileMap::bytes` has looked.
        &self.file.map[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {}", self.range.len(), self.file.name)
    }
}

fn stamp(file: &File) -> Result<(u64, SystemTime)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn mapped(path: &std::path::Path) -> Arc<FileMap> {
        Arc::new(FileMap::new("weights", &File::open(path).unwrap()).unwrap())
    }

    #[test]
    fn bytes_are_those_of_the_file_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let content: Vec<u8> = (0..=255).cycle().take(9_999).collect();
        fs::write(&path, &content).unwrap();
        let map = mapped(&path);
        for range in [0..9_999, 0..1, 17..5_000, 9_998..9_999, 9_999..9_999] {
            assert_eq!(*map.bytes(range.clone()).unwrap(), content[range]);
        }
        assert!(map.bytes(9_000..10_000).is_none() && map.bytes(usize::MAX - 1..usize::MAX).is_none());
        fs::write(&path, b"").unwrap();
        assert!(mapped(&path).bytes(0..1).is_none());
    }

    #[test]
    fn a_file_that_was_written_to_is_refused_and_one_that_was_replaced_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, [7; 100]).unwrap();
        let bytes = mapped(&path).bytes(10..20).unwrap();
        bytes.unchanged().unwrap();
        let other = folder.path().join("other");
        fs::write(&other, [8; 50]).unwrap();
        fs::rename(&other, &path).unwrap();
        bytes.unchanged().unwrap();
        assert_eq!(*bytes, [7; 10]);
        let replaced = mapped(&path).bytes(0..50).unwrap();
        assert!(replaced.beside(&replaced.clone()) && !replaced.beside(&bytes));
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&[9]).unwrap();
        let error = replaced.unchanged().unwrap_err();
        assert!(error.to_string().starts_with("weights was changed by another program"), "{error}");
        bytes.unchanged().unwrap();
    }
}
