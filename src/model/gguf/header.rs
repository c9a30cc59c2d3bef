//! The head of a GGUF file (versions 2 and 3): metadata, and where the tensors lie.
//!
//! Nothing is believed: every length and count is held against what is left of the file before anything is allocated,
//! all sums and products are checked, tensors must lie inside the file, aligned, and apart.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::ops::Range;

use super::metadata::{Metadata, Texts, Value};
use crate::error::{Context, Error, Result};
use crate::model::checkpoint::Entry;
use crate::model::storage::Storage;

const MAGIC: [u8; 4] = *b"GGUF";
/// Far beyond any real head, in bytes: vocabulary and merges of Qwen take 6 MB.
const MAX_HEAD: u64 = 128 << 20;
/// Keys, and tensors, of a file.
const MAX_ENTRIES: u64 = 1 << 16;
/// Items of all lists together: Qwen's vocabulary, types and merges are half a million.
const MAX_ITEMS: u64 = 1 << 21;
/// Longest name of a key or tensor, in bytes.
const MAX_NAME: u64 = 255;
/// ggml's own limit.
const MAX_RANK: u32 = 4;
/// The number of the type of texts.
const TEXT: u32 = 8;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;

const DAMAGED: &str = "the file is cut short or damaged: download it again";
const READABLE: &str = "finch reads F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K";

pub(super) struct Head {
    pub version: u32,
    pub metadata: Metadata,
    /// Where the values of the keys stand, with their types, in the order of the file.
    pub places: Vec<(String, Range<u64>)>,
    /// Shapes are turned round: slowest dimension first.
    pub tensors: BTreeMap<String, Entry>,
}

/// Reads and checks the head of a file of `size` bytes; its tensors are said to lie in `shard`.
pub(super) fn read(file: impl Read, size: u64, shard: usize) -> Result<Head> {
    let mut file = Source { file: BufReader::with_capacity(1 << 16, file), at: 0, size, items: MAX_ITEMS };
    if size < 4 || file.bytes::<4>("the magic number")? != MAGIC {
        return Err(Error::failure("this is no GGUF file: it does not begin with GGUF"));
    }
    let version = file.u32("the version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 2 | 3) => {
            return Err(Error::failure("the file is big-endian; finch reads little-endian files")
                .hint("choose the little-endian file of this model"));
        }
        _ => {
            return Err(Error::failure(format!("GGUF version {version}; finch reads 2 and 3"))
                .hint("convert the model again with today's llama.cpp"));
        }
    }
    let tensor_count = file.count("the number of tensors", 8 + 4 + 4 + 8)?;
    let key_count = file.count("the number of keys", 8 + 4 + 1)?;
    let (mut metadata, mut places) = (BTreeMap::new(), Vec::new());
    for number in 0..key_count {
        let key = file.name().with_context(|| format!("key {number}"))?;
        let start = file.at;
        let value = file.value().with_context(|| key.clone())?;
        places.push((key.clone(), start..file.at));
        if metadata.contains_key(&key) {
            return Err(Error::failure(format!("{key} appears twice")));
        }
        metadata.insert(key, value);
    }
    let metadata = Metadata(metadata);
    let alignment = alignment(&metadata)?;
    let mut tensors = Vec::new();
    for number in 0..tensor_count {
        let name = file.name().with_context(|| format!("tensor {number}"))?;
        let entry = file.tensor(shard).with_context(|| format!("tensor {name}"))?;
        tensors.push((name, entry));
    }
    // A file without tensors may end before the padding.
    let data = file.at.next_multiple_of(alignment);
    let tensors = place(tensors, data, alignment, size)?;
    Ok(Head { version, metadata, places, tensors })
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let key = "general.alignment";
    let alignment = metadata.whole(key)?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment) {
        Ok(alignment)
    } else {
        Err(Error::failure(format!("{key} is {alignment}, not a power of two from 8 to {MAX_ALIGNMENT}")))
    }
}

/// Entries whose start counts from `data` on, as entries whose start counts from the beginning of the file.
fn place(entries: Vec<(String, Entry)>, data: u64, alignment: u64, size: u64) -> Result<BTreeMap<String, Entry>> {
    let mut tensors = BTreeMap::new();
    for (name, mut entry) in entries {
        let fault = |what: String| Error::failure(format!("tensor {name} {what}"));
        let Entry { start, len, .. } = entry;
        if !start.is_multiple_of(alignment) {
            return Err(fault(format!("begins at {start}, which is no multiple of the alignment {alignment}")));
        }
        let inside = data.checked_add(start).and_then(|start| Some((start, start.checked_add(len)?)));
        let Some((start, _)) = inside.filter(|(_, end)| *end <= size) else {
            return Err(fault(format!("has {len} bytes from {start} on; the file has {}", size.saturating_sub(data)))
                .hint(DAMAGED));
        };
        entry.start = start;
        if tensors.contains_key(&name) {
            return Err(fault("appears twice".to_string()));
        }
        tensors.insert(name, entry);
    }
    let mut places: Vec<(&str, u64, u64)> = tensors.iter().map(|(name, e)| (name.as_str(), e.start, e.len)).collect();
    places.sort_by_key(|(_, start, _)| *start);
    for pair in places.windows(2) {
        let ((first, start, len), (second, next, _)) = (pair[0], pair[1]);
        if start + len > next {
            return Err(Error::failure(format!("tensors {first} and {second} overlap")));
        }
    }
    Ok(tensors)
}

/// A file read from front to back, which knows how much is left.
struct Source<R: Read> {
    file: BufReader<R>,
    at: u64,
    size: u64,
    /// List items that may still come.
    items: u64,
}

impl<R: Read> Source<R> {
    fn left(&self) -> u64 {
        self.size.min(MAX_HEAD).saturating_sub(self.at)
    }

    /// Errors unless `bytes` more are there.
    fn claim(&mut self, bytes: u64, what: &str) -> Result<()> {
        if bytes <= self.left() {
            self.at += bytes;
            return Ok(());
        }
        if self.size > MAX_HEAD {
            return Err(Error::failure(format!("{what} takes {bytes} bytes; a head may have {MAX_HEAD} in all")));
        }
        Err(Error::failure(format!("{what} takes {bytes} bytes, {} are left", self.left())).hint(DAMAGED))
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.claim(N as u64, what)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A number of entries that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: u64) -> Result<u64> {
        let count = self.u64(what)?;
        if count > MAX_ENTRIES {
            return Err(Error::failure(format!("{what} is {count}, more than {MAX_ENTRIES}")).hint(DAMAGED));
        }
        if count * least > self.left() {
            return Err(Error::failure(format!("{what} is {count}, {} bytes are left", self.left())).hint(DAMAGED));
        }
        Ok(count)
    }

    fn name(&mut self) -> Result<String> {
        let length = self.u64("the length of its name")?;
        if !(1..=MAX_NAME).contains(&length) {
            return Err(Error::failure(format!("its name has {length} bytes, not 1 to {MAX_NAME}")).hint(DAMAGED));
        }
        self.text_of(length, "its name")
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u64("the length of a text")?;
        self.text_of(length, "a text")
    }

    fn text_of(&mut self, length: u64, what: &str) -> Result<String> {
        self.claim(length, what)?;
        let mut bytes = vec![0; length as usize]; // at most MAX_HEAD
        self.file.read_exact(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| Error::failure(format!("{what} is not UTF-8")))
    }

    fn texts(&mut self, count: u64) -> Result<Texts> {
        let (mut texts, mut bytes) = (Texts::default(), Vec::new());
        for _ in 0..count {
            let length = self.u64("the length of a text")?;
            self.claim(length, "a text")?;
            bytes.resize(length as usize, 0); // at most MAX_HEAD
            self.file.read_exact(&mut bytes)?;
            texts.push(std::str::from_utf8(&bytes).map_err(|_| Error::failure("a text is not UTF-8"))?);
        }
        Ok(texts)
    }

    fn value(&mut self) -> Result<Value> {
        let kind = self.u32("the type of its value")?;
        if kind != 9 {
            return self.plain(kind, "its value");
        }
        let kind = self.u32("the type of a list")?;
        let length = self.u64("the length of a list")?;
        let Some(least) = least_size(kind) else {
            return Err(Error::failure(format!(
                "a list of values of type {kind}; finch knows types 0 to 12 without 9"
            )));
        };
        if length > self.items {
            return Err(Error::failure(format!(
                "a list of {length} items, more than the {} that may come",
                self.items
            ))
            .hint(DAMAGED));
        }
        if length * least > self.left() {
            let left = self.left();
            return Err(Error::failure(format!("a list of {length} items, {left} bytes are left")).hint(DAMAGED));
        }
        self.items -= length;
        if kind == TEXT {
            return self.texts(length).map(Value::Texts);
        }
        let items = (0..length).map(|_| self.plain(kind, "a list's item")).collect::<Result<Vec<_>>>()?;
        Ok(Value::List(items))
    }

    fn plain(&mut self, kind: u32, what: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::Whole(self.bytes::<1>(what)?[0].into()),
            1 => Value::Whole(i8::from_le_bytes(self.bytes(what)?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.bytes(what)?).into()),
            3 => Value::Whole(i16::from_le_bytes(self.bytes(what)?).into()),
            4 => Value::Whole(self.u32(what)?.into()),
            5 => Value::Whole(i32::from_le_bytes(self.bytes(what)?).into()),
            6 => Value::Real(f32::from_le_bytes(self.bytes(what)?).into()),
            7 => match self.bytes::<1>(what)?[0] {
                0 => Value::Flag(false),
                1 => Value::Flag(true),
                other => return Err(Error::failure(format!("{other} is neither true (1) nor false (0)"))),
            },
            TEXT => Value::Text(self.text()?),
            10 => Value::Whole(self.u64(what)?.into()),
            11 => Value::Whole(i64::from_le_bytes(self.bytes(what)?).into()),
            12 => Value::Real(f64::from_le_bytes(self.bytes(what)?)),
            other => return Err(Error::failure(format!("a value of type {other}; finch knows types 0 to 12"))),
        })
    }

    /// An entry whose start still counts from the beginning of the tensors' data.
    fn tensor(&mut self, shard: usize) -> Result<Entry> {
        let rank = self.u32("the number of dimensions")?;
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(Error::failure(format!("{rank} dimensions, not 1 to {MAX_RANK}")).hint(DAMAGED));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            shape.push(self.u64("a dimension")?);
        }
        let kind = self.u32("the type")?;
        let storage = storage(kind)?;
        let (numbers, bytes) = storage.block();
        let (numbers, bytes) = (numbers as u64, bytes as u64);
        let total = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n)).filter(|&total| total > 0);
        let width = shape[0]; // rank ≥ 1
        let len = total.and_then(|total| (total / numbers).checked_mul(bytes));
        let sizes = shape.iter().rev().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
        let (Some(len), Some(sizes)) = (len, sizes) else {
            return Err(Error::failure(format!(
                "dimensions {shape:?}: each must be 1 or more, and a file must have room for their product"
            ))
            .hint(DAMAGED));
        };
        if !width.is_multiple_of(numbers) {
            return Err(Error::failure(format!("rows of {width} do not divide into {storage}'s blocks of {numbers}")));
        }
        let start = self.u64("the offset")?;
        Ok(Entry { shard, storage, shape: sizes, start, len })
    }
}

/// Bytes that a value of this type takes at least; None for a list's and unknown types.
fn least_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        TEXT | 10..=12 => Some(8),
        _ => None,
    }
}

/// The type of ggml's number; what finch does not read is refused by its name.
fn storage(kind: u32) -> Result<Storage> {
    TYPES.iter().find(|(number, _)| *number == kind).map(|(_, storage)| *storage).ok_or_else(|| {
        let name = OTHER_TYPES.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name);
        let name = name.map_or(format!("type {kind}"), str::to_string);
        Error::failure(format!("it is stored as {name}"))
            .hint(format!("{READABLE}: choose another file of this model, for example its Q4_K_M or Q8_0"))
    })
}

/// ggml's number of a type; None for those of safetensors files alone.
pub(super) fn kind(storage: Storage) -> Option<u32> {
    TYPES.iter().find(|(_, known)| *known == storage).map(|(number, _)| *number)
}

/// ggml's numbers.
const TYPES: [(u32, Storage); 11] = [
    (0, Storage::F32),
    (1, Storage::F16),
    (2, Storage::Q4_0),
    (3, Storage::Q4_1),
    (6, Storage::Q5_0),
    (7, Storage::Q5_1),
    (8, Storage::Q8_0),
    (12, Storage::Q4K),
    (13, Storage::Q5K),
    (14, Storage::Q6K),
    (30, Storage::BF16),
];

const OTHER_TYPES: [(u32, &str); 23] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];
