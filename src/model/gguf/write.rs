//! Writing GGUF (version 3): keys, and tensors of f32.

use crate::error::{Error, Result};

const VERSION: u32 = 3;
/// ggml's default, which needs no key.
const ALIGNMENT: usize = 32;
/// ggml's number of the type F32.
const F32: u32 = 0;

/// A key's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    U32(u32),
    F32(f32),
    Text(String),
}

/// A tensor to write; `shape` has the slowest dimension first, as everywhere in finch.
#[derive(Debug, Clone, PartialEq)]
pub struct Plain {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The bytes of a file with these keys and tensors, in the given order. Errors when a shape does not fit its values.
pub fn file(keys: &[(&str, Item)], tensors: &[Plain]) -> Result<Vec<u8>> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, item) in keys {
        text(&mut out, key);
        match item {
            Item::U32(value) => {
                out.extend(4u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Item::F32(value) => {
                out.extend(6u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Item::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
        }
    }
    let mut at = 0usize;
    for Plain { name, shape, values } in tensors {
        if shape.iter().product::<usize>() != values.len() {
            return Err(Error::failure(format!("tensor {name} has {} values for the shape {shape:?}", values.len())));
        }
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
        out.extend(F32.to_le_bytes());
        out.extend((at as u64).to_le_bytes());
        at += (4 * values.len()).next_multiple_of(ALIGNMENT);
    }
    out.reserve(at + ALIGNMENT);
    for Plain { values, .. } in tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
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
            ("general.type", Item::Text("adapter".into())),
            ("n", Item::U32(7)),
            ("adapter.lora.alpha", Item::F32(6.5)),
        ];
        let bytes = file(&keys, &tensors).unwrap();
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.gguf");
        std::fs::write(&path, bytes).unwrap();
        let read = Gguf::open(&path).unwrap();
        assert_eq!(read.version, 3);
        for tensor in tensors {
            assert_eq!(read.checkpoint().tensor(&tensor.name, &tensor.shape).unwrap(), tensor.values);
        }
        assert!(file(&[], &[Plain { name: "x".into(), shape: vec![2, 2], values: vec![0.0] }]).is_err());
    }
}
