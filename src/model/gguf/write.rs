//! Writing GGUF (version 3): keys, and where the tensors lie that follow them.

use super::header::kind;
use crate::error::{Error, Result};
use crate::model::storage::Storage;

const VERSION: u32 = 3;
/// ggml's default, which needs no key.
const ALIGNMENT: u64 = 32;

/// A key's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    U32(u32),
    F32(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    /// Type and value as they stood in another file.
    Raw(Vec<u8>),
}

impl Item {
    pub fn text(text: impl Into<String>) -> Item {
        Item::Text(text.into())
    }

    fn write(&self, out: &mut Vec<u8>) {
        let list = |out: &mut Vec<u8>, kind: u32, length: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((length as u64).to_le_bytes());
        };
        match self {
            Item::U32(value) => {
                out.extend(4u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Item::F32(value) => {
                out.extend(6u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Item::Flag(value) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*value));
            }
            Item::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(out, value);
            }
            Item::Texts(values) => {
                list(out, 8, values.len());
                values.iter().for_each(|value| text(out, value));
            }
            Item::I32s(values) => {
                list(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Item::Raw(bytes) => out.extend(bytes),
        }
    }
}

/// A tensor that will be written; `shape` has the slowest dimension first, as everywhere in finch.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    pub name: String,
    pub shape: Vec<usize>,
    pub storage: Storage,
}

impl Declared {
    /// Bytes of the tensor. Errors when its rows are no whole blocks.
    fn size(&self) -> Result<u64> {
        let (numbers, bytes) = self.storage.block();
        let all: usize = self.shape.iter().product();
        if self.shape.last().is_none_or(|columns| !columns.is_multiple_of(numbers)) {
            let (name, shape, storage) = (&self.name, &self.shape, self.storage);
            return Err(Error::failure(format!("tensor {name} of shape {shape:?} is no whole blocks of {storage}")));
        }
        Ok((all / numbers) as u64 * bytes as u64)
    }
}

/// A tensor to write as it is; `shape` has the slowest dimension first.
#[derive(Debug, Clone, PartialEq)]
pub struct Plain {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Everything before the tensors' data, in the given order. After it the tensors follow, each with [`padding`] behind it.
pub fn head(keys: &[(impl AsRef<str>, Item)], tensors: &[Declared]) -> Result<Vec<u8>> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, item) in keys {
        text(&mut out, key.as_ref());
        item.write(&mut out);
    }
    let mut at = 0u64;
    for tensor in tensors {
        let Declared { name, shape, storage } = tensor;
        let kind = kind(*storage).ok_or_else(|| Error::failure(format!("tensor {name} is stored as {storage}")))?;
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(at.to_le_bytes());
        at += tensor.size()?.next_multiple_of(ALIGNMENT);
    }
    let padding = padding(out.len() as u64);
    out.extend(padding);
    Ok(out)
}

/// What stands between `length` bytes and the next tensor.
pub fn padding(length: u64) -> &'static [u8] {
    &[0; ALIGNMENT as usize][..(length.next_multiple_of(ALIGNMENT) - length) as usize]
}

/// The bytes of a file with these keys and F32 tensors, in the given order. Errors when a shape does not fit its values.
pub fn file(keys: &[(impl AsRef<str>, Item)], tensors: &[Plain]) -> Result<Vec<u8>> {
    let declared = |Plain { name, shape, values }: &Plain| {
        if shape.iter().product::<usize>() != values.len() {
            return Err(Error::failure(format!("tensor {name} has {} values for the shape {shape:?}", values.len())));
        }
        Ok(Declared { name: name.clone(), shape: shape.clone(), storage: Storage::F32 })
    };
    let mut out = head(keys, &tensors.iter().map(declared).collect::<Result<Vec<_>>>()?)?;
    for Plain { values, .. } in tensors {
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        let padding = padding(out.len() as u64);
        out.extend(padding);
    }
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::Gguf;
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let plain = |name: &str, shape: &[usize]| {
            let n: usize = shape.iter().product();
            Plain { name: name.into(), shape: shape.to_vec(), values: (0..n).map(|i| i as f32 - 1.5).collect() }
        };
        let tensors = [plain("blk.0.attn_q.weight.lora_a", &[3, 5]), plain("b", &[7]), plain("c", &[2, 8])];
        let keys = [
            ("general.type", Item::text("adapter")),
            ("n", Item::U32(7)),
            ("adapter.lora.alpha", Item::F32(6.5)),
            ("flag", Item::Flag(true)),
            ("texts", Item::Texts(vec!["a".into(), "ü".into()])),
            ("numbers", Item::I32s(vec![-1, 3])),
        ];
        let bytes = file(&keys, &tensors).unwrap();
        assert_eq!(bytes.len() as u64 % ALIGNMENT, 0);
        let read = Gguf::from_bytes("adapter.gguf", bytes.clone()).unwrap();
        assert_eq!(read.version, 3);
        for tensor in &tensors {
            assert_eq!(read.checkpoint().tensor(&tensor.name, &tensor.shape).unwrap(), tensor.values);
        }
        assert_eq!(file(&read.keys().unwrap(), &tensors).unwrap(), bytes, "keys go over as they are");
        assert!(file(&keys[..0], &[Plain { name: "x".into(), shape: vec![2, 2], values: vec![0.0] }]).is_err());
        let narrow = Declared { name: "x".into(), shape: vec![2, 33], storage: Storage::Q8_0 };
        assert!(head(&keys, &[narrow]).unwrap_err().to_string().contains("no whole blocks of Q8_0"));
    }
}
