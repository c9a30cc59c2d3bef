//! How a tensor's numbers are stored, and which numbers they are.
//!
//! Plain ones (F32, F16, BF16) and ggml's blocks: 32 or 256 neighbours of a row that share their scales. Layouts and
//! formulas are ggml's (`ggml-common.h`, `dequantize_row_*` in `ggml-quants.c`). All products in them fit f32's 24 bits, so
//! that a number is rounded once at most, and every implementation gives the same bits.

use std::fmt;

use half::{bf16, f16};
use safetensors::Dtype;

/// The way in which the numbers of one tensor lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Storage {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
    /// Types of safetensors files that hold no weights finch could use.
    Other(Dtype),
}

/// Appends the numbers of whole blocks.
pub type Decode = fn(&[u8], &mut Vec<f32>);

impl Storage {
    /// All that finch reads.
    pub const READABLE: [Storage; 11] = {
        use Storage::*;
        [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K]
    };

    /// Numbers in a block and the bytes that they take; (1, 1) for what finch does not read.
    pub fn block(self) -> (usize, usize) {
        match self {
            Storage::F32 => (1, 4),
            Storage::F16 | Storage::BF16 => (1, 2),
            Storage::Q8_0 => (32, 34),
            Storage::Q4_0 => (32, 18),
            Storage::Q4_1 => (32, 20),
            Storage::Q5_0 => (32, 22),
            Storage::Q5_1 => (32, 24),
            Storage::Q4K => (256, 144),
            Storage::Q5K => (256, 176),
            Storage::Q6K => (256, 210),
            Storage::Other(_) => (1, 1),
        }
    }

    /// What reads its blocks as f32; None for what finch does not read.
    pub fn decode(self) -> Option<Decode> {
        Some(match self {
            Storage::F32 => |bytes, out| out.extend(blocks(bytes).map(|&b: &[u8; 4]| f32::from_le_bytes(b))),
            Storage::F16 => |bytes, out| out.extend(blocks(bytes).map(|&b: &[u8; 2]| f16::from_le_bytes(b).to_f32())),
            Storage::BF16 => |bytes, out| out.extend(blocks(bytes).map(|&b: &[u8; 2]| bf16::from_le_bytes(b).to_f32())),
            Storage::Q8_0 => |bytes, out| blocks(bytes).for_each(|b| q8_0(b, out)),
            Storage::Q4_0 => |bytes, out| blocks(bytes).for_each(|b| q4_0(b, out)),
            Storage::Q4_1 => |bytes, out| blocks(bytes).for_each(|b| q4_1(b, out)),
            Storage::Q5_0 => |bytes, out| blocks(bytes).for_each(|b| q5_0(b, out)),
            Storage::Q5_1 => |bytes, out| blocks(bytes).for_each(|b| q5_1(b, out)),
            Storage::Q4K => |bytes, out| blocks(bytes).for_each(|b| q4_k(b, out)),
            Storage::Q5K => |bytes, out| blocks(bytes).for_each(|b| q5_k(b, out)),
            Storage::Q6K => |bytes, out| blocks(bytes).for_each(|b| q6_k(b, out)),
            Storage::Other(_) => return None,
        })
    }
}

impl From<Dtype> for Storage {
    fn from(dtype: Dtype) -> Storage {
        match dtype {
            Dtype::F32 => Storage::F32,
            Dtype::F16 => Storage::F16,
            Dtype::BF16 => Storage::BF16,
            other => Storage::Other(other),
        }
    }
}

/// As the formats themselves write it; the base digest is taken over this name.
impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Storage::Q4K => f.write_str("Q4_K"),
            Storage::Q5K => f.write_str("Q5_K"),
            Storage::Q6K => f.write_str("Q6_K"),
            Storage::Other(dtype) => dtype.fmt(f),
            plain => write!(f, "{plain:?}"),
        }
    }
}

fn blocks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = &[u8; N]> {
    bytes.as_chunks::<N>().0.iter()
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// d · q, for q in −128..128.
fn q8_0(block: &[u8; 34], out: &mut Vec<f32>) {
    let d = half_at(block, 0);
    out.extend(block[2..].iter().map(|&q| d * f32::from(q as i8)));
}

/// d · (q − 8): the low nibbles are the first 16 numbers.
fn q4_0(block: &[u8; 18], out: &mut Vec<f32>) {
    let d = half_at(block, 0);
    out.extend(nibbles(&block[2..]).map(|q| d * (f32::from(q) - 8.0)));
}

/// d · q + m
fn q4_1(block: &[u8; 20], out: &mut Vec<f32>) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    out.extend(nibbles(&block[4..]).map(|q| d * f32::from(q) + m));
}

/// d · (q − 16); the fifth bits stand apart, one a number.
fn q5_0(block: &[u8; 22], out: &mut Vec<f32>) {
    let d = half_at(block, 0);
    out.extend(nibbles(&block[6..]).zip(bits(&block[2..6])).map(|(q, bit)| d * (f32::from(q | bit << 4) - 16.0)));
}

/// d · q + m
fn q5_1(block: &[u8; 24], out: &mut Vec<f32>) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    out.extend(nibbles(&block[8..]).zip(bits(&block[4..8])).map(|(q, bit)| d * f32::from(q | bit << 4) + m));
}

/// d · s · q − d' · s', with 6-bit s and s' for every 32 numbers.
fn q4_k(block: &[u8; 144], out: &mut Vec<f32>) {
    let (d, d_min) = (half_at(block, 0), half_at(block, 2));
    let (scales, quants) = (&block[4..16], &block[16..]);
    for group in 0..8 {
        let (scale, min) = scale_and_min(scales, group);
        let (scale, min) = (d * scale, d_min * min);
        // Two groups share 32 bytes.
        let part = &quants[group / 2 * 32..][..32];
        out.extend(part.iter().map(|q| scale * f32::from(q >> (group % 2 * 4) & 15) - min));
    }
}

/// As Q4_K, with a fifth bit: bit g of byte i belongs to number i of group g.
fn q5_k(block: &[u8; 176], out: &mut Vec<f32>) {
    let (d, d_min) = (half_at(block, 0), half_at(block, 2));
    let (scales, high, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for group in 0..8 {
        let (scale, min) = scale_and_min(scales, group);
        let (scale, min) = (d * scale, d_min * min);
        let part = &quants[group / 2 * 32..][..32];
        let quants = part.iter().zip(high).map(|(q, h)| (q >> (group % 2 * 4) & 15) | (h >> group & 1) << 4);
        out.extend(quants.map(|q| scale * f32::from(q) - min));
    }
}

/// d · s · (q − 32), with an 8-bit s for every 16 numbers; four low bits and two high ones.
fn q6_k(block: &[u8; 210], out: &mut Vec<f32>) {
    let d = half_at(block, 208);
    for half in 0..2 {
        let (low, high) = (&block[half * 64..][..64], &block[128 + half * 32..][..32]);
        let scales = &block[192 + half * 8..][..8];
        for part in 0..4 {
            for i in 0..32 {
                let q = (low[part % 2 * 32 + i] >> (part / 2 * 4) & 15) | (high[i] >> (part * 2) & 3) << 4;
                let scale = d * f32::from(scales[part * 2 + i / 16] as i8);
                out.push(scale * (f32::from(q) - 32.0));
            }
        }
    }
}

/// The low halves of all bytes, then the high ones.
pub(super) fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}

/// Lowest first.
fn bits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().flat_map(|byte| (0..8).map(move |i| byte >> i & 1))
}

/// The 6-bit scale and minimum of a group: eight of each in 12 bytes, the top bits of the later four in the first eight.
pub(super) fn scale_and_min(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let both = scales[group + 4];
        ((both & 15) | (scales[group - 4] >> 6) << 4, (both >> 4) | (scales[group] >> 6) << 4)
    };
    (f32::from(scale), f32::from(min))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/fixtures/gguf/blocks.json`: random blocks of each type, and the numbers that Python's `gguf` reads in them.
    const BLOCKS: &str = include_str!("../../tests/fixtures/gguf/blocks.json");

    fn bytes_of(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn blocks_hold_the_numbers_that_ggml_reads_in_them() {
        let all: serde_json::Value = serde_json::from_str(BLOCKS).unwrap();
        for storage in Storage::READABLE {
            let case = &all[storage.to_string()];
            let stored = bytes_of(case["bytes"].as_str().expect("a case for every type"));
            let expected = bytes_of(case["f32"].as_str().unwrap());
            let expected: Vec<f32> = blocks(&expected).map(|&b| f32::from_le_bytes(b)).collect();
            let (numbers, bytes) = storage.block();
            assert!(stored.len() >= 3 * bytes && expected.len() == stored.len() / bytes * numbers, "{storage}");
            let mut found = Vec::new();
            storage.decode().unwrap()(&stored, &mut found);
            assert_eq!(found.len(), expected.len(), "{storage}");
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found.to_bits(), expected.to_bits(), "{storage}, number {i}: {found} and {expected}");
            }
        }
    }

    #[test]
    fn names_are_the_formats_own() {
        let names = Storage::READABLE.map(|storage| storage.to_string()).join(" ");
        assert_eq!(names, "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K");
        assert_eq!(Storage::from(Dtype::I64).to_string(), "I64");
        assert!(Storage::Other(Dtype::I64).decode().is_none());
    }
}
