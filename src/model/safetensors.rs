//! Safetensors files as named tensors: a single file, shards with an index, or bytes in memory.
//!
//! Whatever a header says is checked against the file before anything is allocated from it: its own length, every
//! tensor's offsets, dtype × shape, duplicate and overlapping tensors, the names of shards.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::checkpoint::{Checkpoint, Entry, MAPS, Shard, Stop};
use crate::error::{Context, Error, Result};
use crate::text;
use crate::{fsio, json};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Of a header, in bytes: those of the largest models have 200 thousand.
const MAX_HEADER: u64 = 16 << 20;
const MAX_INDEX: u64 = 16 << 20;
const MAX_TENSORS: usize = 1 << 16;
const MAX_SHARDS: usize = 1 << 10;
/// Longest name of a tensor or file, in bytes.
const MAX_NAME: usize = 255;
const MAX_RANK: usize = 8;

/// The constructors for this format.
impl Checkpoint {
    /// Opens the weights of a model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    /// Errors name the file, not the folder.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        if folder.join(SINGLE).exists() {
            Self::open_file(&folder.join(SINGLE))
        } else if folder.join(INDEX).exists() {
            Self::open_sharded(folder)
        } else {
            let pickled =
                ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists());
            Err(Error::failure(format!("neither {SINGLE} nor {INDEX} is there")).hint(match pickled {
                true => {
                    "pytorch_model.bin can run code when it is read, so finch does not: convert it to safetensors with \
                         transformers (save_pretrained)"
                }
                false => "finch reads Hugging Face folders with safetensors weights",
            }))
        }
    }

    /// Opens one safetensors file of any name.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let (shard, tensors) = Shard::open(path, |file, size| read_header(file, size, 0))?;
        Ok(joined(vec![shard], tensors))
    }

    /// Reads a safetensors file that is already in memory; `name` is what errors call it.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Checkpoint> {
        let bytes = bytes.into();
        let tensors = read_header(&mut &*bytes, bytes.len() as u64, 0).with_context(|| name.to_string())?;
        Ok(joined(vec![Shard::in_memory(name, bytes)], tensors))
    }

    fn open_sharded(folder: &Path) -> Result<Checkpoint> {
        let index = read_index(&folder.join(INDEX)).context(INDEX)?;
        let names: BTreeSet<&str> = index.values().map(String::as_str).collect();
        let mut shards = Vec::new();
        let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
        for (number, name) in names.into_iter().enumerate() {
            if !folder.join(name).exists() {
                return Err(Error::failure(format!("{name} is missing; {INDEX} names it"))
                    .hint("download the folder again, with all its files"));
            }
            let (shard, found) = Shard::open(&folder.join(name), |file, size| read_header(file, size, number))?;
            shards.push(shard);
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
            None => Ok(joined(shards, tensors)),
        }
    }
}

/// The names in these files are the ones that networks ask for.
fn joined(shards: Vec<Shard>, tensors: BTreeMap<String, Entry>) -> Checkpoint {
    let shards = Arc::new(shards);
    Checkpoint { shards, tensors, own_name: |name| Cow::Borrowed(name), plan: None, maps: MAPS, stop: Stop::default() }
}

/// Reads and checks the header of a file of `size` bytes; its tensors are said to lie in `shard`.
fn read_header(file: &mut impl Read, size: u64, shard: usize) -> Result<BTreeMap<String, Entry>> {
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
    let Header(infos) = json::read(&header).context("the header")?;

    let data = size - 8 - length;
    let mut entries = Vec::with_capacity(infos.len());
    for (name, info) in infos {
        let entry = check_tensor(info, data).with_context(|| format!("tensor {name}"))?;
        entries.push((name, entry));
    }
    entries.sort_by_key(|(_, entry)| (entry.start, entry.len));
    let (mut end, mut tensors) = (0, BTreeMap::new());
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
    Ok(tensors)
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
    if let Some(at) = shape.iter().position(|&n| n == 0) {
        return Err(Error::failure(format!("dimension {at} of {shape:?} is 0, not 1 or more")));
    }
    let bits = shape.iter().try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64));
    let len = end - start;
    if bits != len.checked_mul(8) {
        return Err(Error::failure(format!("{dtype} of shape {shape:?} does not take the {len} bytes it was given")));
    }
    Ok(Entry { shard: 0, storage: dtype.into(), shape, start, len })
}

/// What is wrong with a tensor's or file's name; errors quote it.
fn name_fault(name: &str) -> Option<String> {
    let shown = || text::one_line(name, 40);
    (name.len() > MAX_NAME).then(|| format!("the name {} has {} bytes, more than {MAX_NAME}", shown(), name.len()))
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
                    if let Some(fault) = name_fault(&name) {
                        return Err(serde::de::Error::custom(fault));
                    }
                    if tensors.len() == MAX_TENSORS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
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
    let Index { weight_map: WeightMap(map) } = json::read(&text)?;
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
    let shards = map.values().collect::<BTreeSet<_>>().len();
    if shards > MAX_SHARDS {
        return Err(Error::failure(format!("it names {shards} files, more than {MAX_SHARDS}")));
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
                    if let Some(fault) = name_fault(&tensor).or_else(|| name_fault(&shard)) {
                        return Err(serde::de::Error::custom(fault));
                    }
                    if names.len() == MAX_TENSORS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
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
