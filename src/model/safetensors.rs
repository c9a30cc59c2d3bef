//! Safetensors files as named tensors: a single file, shards with an index, or bytes in memory.
//!
//! Whatever a header says is checked against the file before anything is allocated from it: its own length, every
//! tensor's offsets, dtype × shape, duplicate and overlapping tensors, the names of shards. Data is read a tensor at a
//! time and handed out as f32.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};
use crate::fsio;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The format's own limit on a header's length, in bytes.
const MAX_HEADER: u64 = 100_000_000;
const MAX_INDEX: u64 = 64 << 20;
const MAX_RANK: usize = 8;
/// Read this much at a time (bytes; a multiple of every element size).
const CHUNK: usize = 1 << 20;

/// An opened and checked set of safetensors files.
pub struct Checkpoint {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

struct Shard {
    /// What errors call it: the file's name.
    name: String,
    path: Option<PathBuf>,
    data: Data,
}

enum Data {
    File(Mutex<File>),
    Memory(Cow<'static, [u8]>),
}

/// A tensor whose place was checked to lie inside its shard.
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// From the start of the file, in bytes.
    start: u64,
    len: u64,
}

impl Checkpoint {
    /// Opens the weights of a model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    /// Errors name the file, not the folder.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        if folder.join(SINGLE).exists() {
            Self::open_file(&folder.join(SINGLE))
        } else if folder.join(INDEX).exists() {
            Self::open_sharded(folder)
        } else {
            Err(Error::failure(format!("neither {SINGLE} nor {INDEX} is there"))
                .hint("finch reads Hugging Face folders with safetensors weights"))
        }
    }

    /// Opens one safetensors file of any name.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let mut tensors = BTreeMap::new();
        let shard = Shard::open(path, 0, &mut tensors)?;
        Ok(Checkpoint { shards: vec![shard], tensors })
    }

    /// Reads a safetensors file that is already in memory; `name` is what errors call it.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Checkpoint> {
        let bytes = bytes.into();
        let mut tensors = BTreeMap::new();
        read_header(&mut &*bytes, bytes.len() as u64, 0, &mut tensors).with_context(|| name.to_string())?;
        let shard = Shard { name: name.to_string(), path: None, data: Data::Memory(bytes) };
        Ok(Checkpoint { shards: vec![shard], tensors })
    }

    fn open_sharded(folder: &Path) -> Result<Checkpoint> {
        let index = read_index(&folder.join(INDEX)).context(INDEX)?;
        let names: BTreeSet<&str> = index.values().map(String::as_str).collect();
        let mut shards = Vec::new();
        let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
        for (number, name) in names.into_iter().enumerate() {
            let mut found = BTreeMap::new();
            shards.push(Shard::open(&folder.join(name), number, &mut found)?);
            for (tensor, entry) in found {
                if tensors.contains_key(&tensor) {
                    return Err(Error::failure(format!("{name}: tensor {tensor} stands in another shard too")));
                }
                match index.get(&tensor) {
                    Some(listed) if listed != name => {
                        return Err(Error::failure(format!(
                            "{name}: tensor {tensor} is listed in {INDEX} as {listed}"
                        )));
                    }
                    _ => tensors.insert(tensor, entry),
                };
            }
        }
        match index.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
            Some((tensor, shard)) => Err(Error::failure(format!("{shard}: tensor {tensor} of {INDEX} is missing"))),
            None => Ok(Checkpoint { shards, tensors }),
        }
    }

    /// Tensor names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// The files behind it; empty when it lives in memory.
    pub fn files(&self) -> Vec<&Path> {
        self.shards.iter().filter_map(|shard| shard.path.as_deref()).collect()
    }

    /// Reads a tensor, row-major, as f32.
    ///
    /// Errors name the tensor: missing, another shape, a dtype other than F32, F16 or BF16, a value that is not finite.
    pub fn tensor(&self, name: &str, expected_shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        if entry.shape != expected_shape {
            let (is, should) = (&entry.shape, expected_shape);
            return Err(self.fault(entry, format!("tensor {name} has shape {is:?}, the configuration says {should:?}")));
        }
        let convert: fn(&[u8], &mut Vec<f32>) = match entry.dtype {
            Dtype::F32 => |bytes, out| out.extend(elements(bytes).map(f32::from_le_bytes)),
            Dtype::F16 => |bytes, out| out.extend(elements(bytes).map(|e| f16::from_le_bytes(e).to_f32())),
            Dtype::BF16 => |bytes, out| out.extend(elements(bytes).map(|e| bf16::from_le_bytes(e).to_f32())),
            other => {
                return Err(self
                    .fault(entry, format!("tensor {name} is stored as {other}"))
                    .hint("finch reads F32, F16 and BF16 weights"));
            }
        };
        // The product fits: it was checked against the length of the file.
        let mut values = Vec::with_capacity(entry.shape.iter().product());
        self.read(entry, |bytes| convert(bytes, &mut values)).with_context(|| format!("tensor {name}"))?;
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(self.fault(entry, format!("tensor {name} holds {value}, which is not a finite number"))),
            None => Ok(values),
        }
    }

    /// SHA-256 in hex over name, dtype, shape and stored bytes of all tensors in the order of their names: the same for
    /// the same weights, however they are cut into files.
    pub fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let field = |hash: &mut Sha256, bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (name, entry) in &self.tensors {
            field(&mut hash, name.as_bytes());
            field(&mut hash, entry.dtype.to_string().as_bytes());
            let shape: Vec<u8> = entry.shape.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
            field(&mut hash, &shape);
            hash.update(entry.len.to_le_bytes());
            self.read(entry, |bytes| hash.update(bytes)).with_context(|| format!("tensor {name}"))?;
        }
        Ok(hex(&hash.finalize()))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| match self.shards.as_slice() {
            [only] => Error::failure(format!("{}: tensor {name} is missing", only.name)),
            _ => Error::failure(format!("{INDEX}: tensor {name} is missing")),
        })
    }

    fn fault(&self, entry: &Entry, message: String) -> Error {
        Error::failure(message).context(&self.shards[entry.shard].name)
    }

    /// Hands the tensor's bytes to `take`, a whole number of elements at a time.
    fn read(&self, entry: &Entry, mut take: impl FnMut(&[u8])) -> Result<()> {
        let shard = &self.shards[entry.shard];
        match &shard.data {
            // In range: `read_header` checked every entry against the length of `bytes`.
            Data::Memory(bytes) => take(&bytes[entry.start as usize..(entry.start + entry.len) as usize]),
            Data::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(entry.start)).with_context(|| &shard.name)?;
                let mut buffer = vec![0; CHUNK.min(entry.len as usize)];
                let mut left = entry.len;
                while left > 0 {
                    let part = &mut buffer[..CHUNK.min(left as usize)];
                    file.read_exact(part).with_context(|| &shard.name)?;
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
    fn open(path: &Path, number: usize, tensors: &mut BTreeMap<String, Entry>) -> Result<Shard> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let (mut file, size) = open_regular(path).with_context(|| &name)?;
        read_header(&mut file, size, number, tensors).with_context(|| &name)?;
        Ok(Shard { name, path: Some(path.to_path_buf()), data: Data::File(Mutex::new(file)) })
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

fn elements<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads and checks the header of a file of `size` bytes; its tensors join `tensors`.
fn read_header(file: &mut impl Read, size: u64, shard: usize, tensors: &mut BTreeMap<String, Entry>) -> Result<()> {
    let mut length = [0; 8];
    if size < 8 {
        return Err(Error::failure(format!("{size} bytes are too few for a safetensors file")));
    }
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > size - 8 {
        return Err(Error::failure(format!("the header should have {length} bytes, the file has {size}"))
            .hint("the file is cut short or no safetensors file: download it again"));
    }
    if length > MAX_HEADER {
        return Err(Error::failure(format!("the header has {length} bytes, more than {MAX_HEADER}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    let Header(infos) = serde_json::from_slice(&header).context("the header")?;

    let data = size - 8 - length;
    let mut entries = Vec::with_capacity(infos.len());
    for (name, info) in infos {
        let entry = check_tensor(info, data).with_context(|| format!("tensor {name}"))?;
        entries.push((name, entry));
    }
    entries.sort_by_key(|(_, entry)| (entry.start, entry.len));
    let mut end = 0;
    for (name, mut entry) in entries {
        if entry.start != end {
            let what = if entry.start < end { "overlaps the one before it" } else { "leaves a gap before it" };
            return Err(Error::failure(format!("tensor {name} {what}")));
        }
        end = entry.start + entry.len;
        entry.start += 8 + length;
        entry.shard = shard;
        tensors.insert(name, entry);
    }
    if end != data {
        return Err(Error::failure(format!("{} bytes at the end belong to no tensor", data - end)));
    }
    Ok(())
}

/// A header entry as a place within `data` bytes of tensor data.
fn check_tensor(info: TensorInfo, data: u64) -> Result<Entry> {
    let TensorInfo { dtype, shape, data_offsets: (start, end) } = info;
    let (start, end) = (start as u64, end as u64);
    if start > end || end > data {
        return Err(Error::failure(format!("offsets {start}..{end} lie outside the file's {data} bytes of data"))
            .hint("the file is cut short or damaged: download it again"));
    }
    if shape.len() > MAX_RANK {
        return Err(Error::failure(format!("{} dimensions are more than {MAX_RANK}", shape.len())));
    }
    let bits = shape.iter().try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64));
    let len = end - start;
    if bits != len.checked_mul(8) {
        return Err(Error::failure(format!("{dtype} of shape {shape:?} does not take the {len} bytes it was given")));
    }
    Ok(Entry { shard: 0, dtype, shape, start, len })
}

/// The header's tensors in file order, each name once.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Header, M::Error> {
                let mut seen = BTreeSet::new();
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("{name} appears twice")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// Tensor name → shard file name, each name once, no shard outside the folder.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: WeightMap,
    }
    let text = fsio::read_limited(path, MAX_INDEX)?;
    let Index { weight_map: WeightMap(map) } = serde_json::from_slice(&text)?;
    for (tensor, shard) in &map {
        let plain = shard.ends_with(".safetensors") && !shard.contains(['/', '\\', ':', '\0']);
        if !plain {
            return Err(Error::failure(format!(
                "tensor {tensor}: {shard:?} is no name of a safetensors file beside it"
            )));
        }
    }
    if map.is_empty() {
        return Err(Error::failure("it names no tensor"));
    }
    Ok(map)
}

struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensor names and file names")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<WeightMap, M::Error> {
                let mut names = BTreeMap::new();
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    if names.contains_key(&tensor) {
                        return Err(serde::de::Error::custom(format!("{tensor} appears twice")));
                    }
                    names.insert(tensor, shard);
                }
                Ok(WeightMap(names))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
