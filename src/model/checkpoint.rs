//! Weights as named tensors in files, whatever the format: `safetensors` and `gguf` read the files' heads and check every
//! tensor's place, this reads the tensors.
//!
//! A tensor is handed out as f32, or as it is stored, a piece at a time ([`Checkpoint::stored`]). Of a checkpoint that
//! [`quantized`](super::quantize::quantized) returned, "as it is stored" means as it is quantised on the way.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::mapped::{Bytes, FileMap};
use super::quantize::{self, Quantization};
use super::storage::{Decode, Storage};
use crate::error::{Context, Error, Result};

/// Read about this much at a time, in bytes.
const CHUNK: usize = 1 << 20;
/// Smaller tensors, in bytes, are not worth a map.
pub(super) const MAPS: u64 = 1 << 20;

/// An opened and checked set of tensors in one or more files, which its clones share.
#[derive(Clone)]
pub struct Checkpoint {
    pub(super) shards: Arc<Vec<Shard>>,
    /// By the files' own names.
    pub(super) tensors: BTreeMap<String, Entry>,
    /// From the name that a network asks for to the files' own.
    pub(super) own_name: fn(&str) -> Cow<'_, str>,
    /// What tensors become while they are read.
    pub(super) plan: Option<Plan>,
    /// Tensors of fewer bytes are not mapped.
    pub(super) maps: u64,
    /// Reading ends with an error once this is set.
    pub(super) stop: Stop,
}

/// Set by one who has no more use for what others read.
pub(super) type Stop = Arc<AtomicBool>;

/// A quantisation, and what it makes of the tensors, by the files' own names.
#[derive(Clone)]
pub(super) struct Plan {
    to: Quantization,
    types: BTreeMap<String, Storage>,
}

pub(super) struct Shard {
    /// What errors call it: the file's name.
    pub name: String,
    path: Option<PathBuf>,
    data: Data,
}

enum Data {
    /// With the file as memory, once it was asked for: none where it cannot be had.
    File(File, OnceLock<Option<Arc<FileMap>>>),
    Memory(Cow<'static, [u8]>),
}

/// A tensor whose place was checked to lie inside its shard, and to hold exactly its numbers.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub shard: usize,
    pub storage: Storage,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// From the start of the file, in bytes.
    pub start: u64,
    pub len: u64,
}

impl Checkpoint {
    /// Names of the tensors, as in the files, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|entry| entry.shape.as_slice())
    }

    pub fn storage(&self, name: &str) -> Option<Storage> {
        let own = (self.own_name)(name);
        self.tensors.get(&*own).map(|entry| self.type_of(&own, entry))
    }

    /// Bytes that the tensor takes as it is stored.
    pub fn size(&self, name: &str) -> Option<u64> {
        let (entry, (numbers, bytes)) = (self.find(name)?, self.storage(name)?.block());
        match self.plan {
            None => Some(entry.len),
            // The product fits: it was checked against the length of the file.
            Some(_) => Some((entry.shape.iter().product::<usize>() / numbers) as u64 * bytes as u64),
        }
    }

    /// What the weights are quantised to while they are read.
    pub fn quantization(&self) -> Option<Quantization> {
        self.plan.as_ref().map(|plan| plan.to)
    }

    /// The same tensors, of the given types (by the names that a network asks for) from now on.
    pub(super) fn planned(self, to: Quantization, types: BTreeMap<String, Storage>) -> Checkpoint {
        let types = types.into_iter().map(|(name, storage)| ((self.own_name)(&name).into_owned(), storage)).collect();
        Checkpoint { plan: Some(Plan { to, types }), ..self }
    }

    /// The same tensors, read until `stop` is set: an interrupted error from then on.
    pub(super) fn until(self, stop: &Stop) -> Checkpoint {
        Checkpoint { stop: Arc::clone(stop), ..self }
    }

    /// The same tensors, none of them mapped.
    pub(super) fn unmapped(&self) -> Checkpoint {
        Checkpoint { maps: u64::MAX, ..self.clone() }
    }

    /// The files behind it; empty when it lives in memory.
    pub fn files(&self) -> Vec<&Path> {
        self.shards.iter().filter_map(|shard| shard.path.as_deref()).collect()
    }

    /// Reads a tensor, row-major, as f32.
    ///
    /// Errors name the tensor: missing, another shape, of a type that finch does not read, a value that is not finite.
    pub fn tensor(&self, name: &str, expected_shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.entry(name, expected_shape)?;
        let own = (self.own_name)(name);
        let decode = self.decode(&own, self.type_of(&own, entry), entry)?;
        // The product fits: it was checked against the length of the file.
        let mut values = Vec::with_capacity(entry.shape.iter().product());
        self.stored(name, expected_shape, |bytes| decode(bytes, &mut values))?;
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(self.fault(entry, format!("tensor {own} holds {value}, which is not a finite number"))),
            None => Ok(values),
        }
    }

    /// Hands out a tensor as it is stored, row-major, a whole number of blocks at a time; says how it is stored. For
    /// networks that compute on the blocks themselves. Errors as those of [`Checkpoint::tensor`], but looks at no value.
    pub fn stored(&self, name: &str, expected_shape: &[usize], mut take: impl FnMut(&[u8])) -> Result<Storage> {
        let entry = self.entry(name, expected_shape)?;
        let own = (self.own_name)(name);
        let storage = self.type_of(&own, entry);
        if storage == entry.storage {
            self.read(entry, take).with_context(|| format!("tensor {own}"))?;
            return Ok(storage);
        }
        let decode = self.decode(&own, entry.storage, entry)?;
        let (mut numbers, mut fault) = (Vec::new(), None);
        let read = self.read(entry, |bytes| {
            numbers.clear();
            decode(bytes, &mut numbers);
            match quantize::encode(storage, &numbers) {
                Ok(blocks) if fault.is_none() => take(&blocks),
                Ok(_) => {}
                Err(error) => fault = fault.take().or(Some(error)),
            }
        });
        match read.and(fault.map_or(Ok(()), Err)) {
            Ok(()) => Ok(storage),
            Err(error) => Err(error.context(format!("tensor {own}"))),
        }
    }

    /// SHA-256 in hex over name, type, shape and stored bytes of all tensors in the order of their names: the same for
    /// the same weights, however they are cut into files.
    pub fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let field = |hash: &mut Sha256, bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (name, entry) in &self.tensors {
            field(&mut hash, name.as_bytes());
            field(&mut hash, entry.storage.to_string().as_bytes());
            let shape: Vec<u8> = entry.shape.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
            field(&mut hash, &shape);
            hash.update(entry.len.to_le_bytes());
            self.read(entry, |bytes| hash.update(bytes)).with_context(|| format!("tensor {name}"))?;
        }
        Ok(hex(&hash.finalize()))
    }

    /// The bytes of a tensor in its file, which becomes memory: None where it is in memory, small, quantised on the way, or
    /// cannot be mapped. [`Checkpoint::stored`] says what is wrong with one that is not there.
    pub fn mapped(&self, name: &str, expected_shape: &[usize]) -> Option<Bytes> {
        let entry = self.entry(name, expected_shape).ok()?;
        let shard = &self.shards[entry.shard];
        let Data::File(file, map) = &shard.data else { return None };
        if entry.len < self.maps || self.type_of(&(self.own_name)(name), entry) != entry.storage {
            return None;
        }
        let map = map.get_or_init(|| FileMap::new(&shard.name, file).ok().map(Arc::new)).as_ref()?;
        map.bytes(usize::try_from(entry.start).ok()?..usize::try_from(entry.start + entry.len).ok()?)
    }

    /// Bytes of the first file, as they stand there.
    pub(super) fn bytes(&self, place: Range<u64>) -> Result<Vec<u8>> {
        let Range { start, end } = place;
        let entry = Entry { shard: 0, storage: Storage::Other(Dtype::U8), shape: Vec::new(), start, len: end - start };
        let mut bytes = Vec::new();
        self.read(&entry, |part| bytes.extend_from_slice(part))?;
        Ok(bytes)
    }

    /// As it is stored, or will have been when it is quantised.
    fn type_of(&self, own: &str, entry: &Entry) -> Storage {
        let planned = self.plan.as_ref().and_then(|plan| plan.types.get(own));
        planned.copied().unwrap_or(entry.storage)
    }

    /// What reads `storage`'s blocks; an error about `own` where finch reads none of them.
    fn decode(&self, own: &str, storage: Storage, entry: &Entry) -> Result<Decode> {
        storage.decode().ok_or_else(|| {
            self.fault(entry, format!("tensor {own} is stored as {storage}"))
                .hint("finch reads F32, F16 and BF16 weights")
        })
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(&*(self.own_name)(name))
    }

    fn entry(&self, name: &str, expected_shape: &[usize]) -> Result<&Entry> {
        let own = (self.own_name)(name);
        let entry = self.tensors.get(&*own).ok_or_else(|| match self.shards.as_slice() {
            [only] => Error::failure(format!("{}: tensor {own} is missing", only.name)),
            shards => Error::failure(format!("tensor {own} is missing in all {} files", shards.len())),
        })?;
        if entry.shape != expected_shape {
            let (is, should) = (&entry.shape, expected_shape);
            return Err(self.fault(entry, format!("tensor {own} has shape {is:?}, the configuration says {should:?}")));
        }
        Ok(entry)
    }

    fn fault(&self, entry: &Entry, message: String) -> Error {
        Error::failure(message).context(&self.shards[entry.shard].name)
    }

    /// Hands the tensor's bytes to `take`, a whole number of blocks at a time. Several threads may read at once.
    fn read(&self, entry: &Entry, mut take: impl FnMut(&[u8])) -> Result<()> {
        let shard = &self.shards[entry.shard];
        let wanted = || if self.stop.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) };
        wanted()?;
        match &shard.data {
            // In range: every entry was checked against the length of `bytes`.
            Data::Memory(bytes) => take(&bytes[entry.start as usize..(entry.start + entry.len) as usize]),
            Data::File(file, _) => {
                // As many bytes as whole blocks of every type.
                let (numbers, bytes) = entry.storage.block();
                let unit = 256 / numbers * bytes;
                let chunk = CHUNK / unit * unit;
                let mut buffer = vec![0; chunk.min(entry.len as usize)];
                let mut left = entry.len;
                while left > 0 {
                    wanted()?;
                    let part = &mut buffer[..chunk.min(left as usize)];
                    read_at(file, part, entry.start + entry.len - left).with_context(|| &shard.name)?;
                    take(part);
                    left -= part.len() as u64;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({} tensors in {} files)", self.tensors.len(), self.shards.len())
    }
}

impl Shard {
    /// Opens a file; `read_head` gets it and its length in bytes. Errors name the file.
    pub fn open<T>(path: &Path, read_head: impl FnOnce(&mut File, u64) -> Result<T>) -> Result<(Shard, T)> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let (mut file, size) = open_regular(path).with_context(|| &name)?;
        let head = read_head(&mut file, size).with_context(|| &name)?;
        Ok((Shard { name, path: Some(path.to_path_buf()), data: Data::File(file, OnceLock::new()) }, head))
    }

    pub fn in_memory(name: &str, bytes: Cow<'static, [u8]>) -> Shard {
        Shard { name: name.to_string(), path: None, data: Data::Memory(bytes) }
    }
}

/// Opens a regular file (behind links or not: hub caches are made of links) and says how long it is.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::failure("not a regular file"));
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// Fills `bytes` from `at` on, wherever others read the file.
#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, bytes, at)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        (bytes, at) = (&mut bytes[read..], at + read as u64);
    }
    Ok(())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
