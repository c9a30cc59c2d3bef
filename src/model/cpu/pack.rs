//! From the bytes of a file to a packed [`Matrix`]: rows are taken as they come, sixteen at a time, and laid side by side in
//! words of four codes or numbers. A line is written once, whole.

use std::array::from_fn;
use std::ops::Range;

use super::kernels::dot::{BLOCK, Brains, Coded};
use super::kernels::{Floats, Halves, LANES, Line};
use super::matrix::{Body, Matrix};
use super::turn::columns_of;
use crate::error::{Error, Result};
use crate::model::storage::{Storage, scale_and_min};

/// Makes a matrix of the bytes of its file as they come.
pub struct Packer {
    rows: usize,
    columns: usize,
    storage: Storage,
    body: Body,
    /// Bytes of fewer than sixteen rows, that wait for the others.
    waiting: Vec<u8>,
    /// Rows that are done.
    done: usize,
    finite: bool,
}

impl Packer {
    /// Errors when finch does not read `storage`, or its blocks do not fit `columns`.
    pub fn new(rows: usize, columns: usize, storage: Storage) -> Result<Packer> {
        let groups = rows.div_ceil(LANES);
        let coded = |lines: usize, by_super: bool, minimum: bool, factors: usize| {
            let blocks = columns / BLOCK;
            let all = groups * blocks;
            let scales = if by_super { groups * (blocks / 8) } else { all };
            Coded {
                blocks,
                lines: Vec::with_capacity(all * lines),
                scale: Vec::with_capacity(scales),
                minimum: Vec::with_capacity(if minimum { scales } else { 0 }),
                factor: Vec::with_capacity(all * factors),
                minimum_factor: Vec::with_capacity(if minimum { all * factors } else { 0 }),
            }
        };
        let body = match storage {
            Storage::F32 => Body::F32(Vec::with_capacity(groups * columns)),
            Storage::F16 => Body::F16(Vec::with_capacity(groups * columns)),
            Storage::BF16 => Body::BF16(Vec::with_capacity(groups * columns)),
            Storage::Q8_0 => Body::Q8_0(coded(8, false, false, 0)),
            Storage::Q4_0 => Body::Q4_0(coded(4, false, false, 0)),
            Storage::Q4_1 => Body::Q4_1(coded(4, false, true, 0)),
            Storage::Q5_0 => Body::Q5_0(coded(5, false, false, 0)),
            Storage::Q5_1 => Body::Q5_1(coded(5, false, true, 0)),
            Storage::Q4K => Body::Q4K(coded(4, true, true, 1)),
            Storage::Q5K => Body::Q5K(coded(5, true, true, 1)),
            Storage::Q6K => Body::Q6K(coded(6, true, false, 2)),
            Storage::Other(_) => return Err(Error::failure(format!("weights are stored as {storage}"))),
        };
        let (block, _) = storage.block();
        if !columns.is_multiple_of(block) {
            return Err(Error::failure(format!("rows of {columns} numbers are no whole blocks of {storage}")));
        }
        Ok(Packer { rows, columns, storage, body, waiting: Vec::new(), done: 0, finite: true })
    }

    /// Takes the next bytes, a whole number of blocks.
    pub fn take(&mut self, mut bytes: &[u8]) {
        let whole = LANES * self.row_bytes();
        if !self.waiting.is_empty() {
            let (missing, rest) = bytes.split_at(bytes.len().min(whole - self.waiting.len()));
            self.waiting.extend_from_slice(missing);
            bytes = rest;
            if self.waiting.len() < whole {
                return;
            }
            let mut group = std::mem::take(&mut self.waiting);
            self.pack(&group);
            group.clear();
            self.waiting = group;
        }
        let groups = bytes.chunks_exact(whole);
        self.waiting.extend_from_slice(groups.remainder());
        groups.for_each(|group| self.pack(group));
    }

    /// Errors when bytes are missing, or a number is not finite.
    pub fn finish(mut self) -> Result<Matrix> {
        let rest = std::mem::take(&mut self.waiting);
        if !rest.is_empty() {
            self.pack(&rest);
        }
        match (self.done == self.rows, self.finite) {
            (true, true) => Ok(Matrix { rows: self.rows, columns: self.columns, body: self.body }),
            (false, _) => Err(Error::failure(format!("holds {} rows in place of {}", self.done, self.rows))),
            (_, false) => Err(Error::failure("holds a number that is not finite")),
        }
    }

    fn row_bytes(&self) -> usize {
        let (numbers, bytes) = self.storage.block();
        self.columns / numbers * bytes
    }

    /// The rows of one group: sixteen, or fewer at the end.
    fn pack(&mut self, rows: &[u8]) {
        let rows = Rows { bytes: rows, each: self.row_bytes() };
        self.done += rows.count();
        self.finite &= match &mut self.body {
            Body::F32(all) => floats(&rows, all),
            Body::F16(all) => halves(&rows, F16, |columns| all.extend_from_slice(columns)),
            Body::BF16(all) => halves(&rows, BF16, |columns| all.extend(columns.iter().map(|column| Brains(*column)))),
            Body::InPlace(_) => true, // no packer makes one
            Body::Q8_0(c) => c.put(&rows, q8_0),
            Body::Q4_0(c) => c.put(&rows, q4_0),
            Body::Q4_1(c) => c.put(&rows, q4_1),
            Body::Q5_0(c) => c.put(&rows, q5_0),
            Body::Q5_1(c) => c.put(&rows, q5_1),
            Body::Q4K(c) => c.put(&rows, q4_k),
            Body::Q5K(c) => c.put(&rows, q5_k),
            Body::Q6K(c) => c.put(&rows, q6_k),
        };
    }
}

/// Up to sixteen rows as they stand in a file.
struct Rows<'a> {
    bytes: &'a [u8],
    /// Bytes of a row.
    each: usize,
}

impl<'a> Rows<'a> {
    fn count(&self) -> usize {
        self.bytes.len() / self.each
    }

    /// Each row in pieces of `N` bytes, a lane each; the lanes behind the last row have none.
    fn pieces<const N: usize>(&self) -> [&'a [[u8; N]]; LANES] {
        let mut rows = self.bytes.chunks_exact(self.each);
        from_fn(|_| rows.next().map_or(&[][..], |row| row.as_chunks().0))
    }
}

/// A matrix of numbers in memory, row-major, `columns` not zero.
pub fn plain(rows: usize, columns: usize, numbers: &[f32]) -> Matrix {
    let mut all = vec![Floats([0.0; LANES]); rows.div_ceil(LANES) * columns];
    for (group, rows) in all.chunks_exact_mut(columns).zip(numbers.chunks(LANES * columns)) {
        for (lane, row) in rows.chunks_exact(columns).enumerate() {
            group.iter_mut().zip(row).for_each(|(column, number)| column.0[lane] = *number);
        }
    }
    Matrix { rows, columns, body: Body::F32(all) }
}

/// Bytes of a packed matrix.
pub fn packed_size(rows: usize, columns: usize, storage: Storage) -> u64 {
    let numbers = (rows.div_ceil(LANES) * LANES * columns) as u64;
    let (block, bytes) = storage.block();
    // Factors that share bytes in the file have one each.
    let more = if matches!(storage, Storage::Q4K | Storage::Q5K) { 4 } else { 0 };
    numbers / block as u64 * (bytes + more) as u64
}

/// The exponents of f16 and bf16 numbers: all ones are infinities and NaN.
const F16: u16 = 0x7c00;
const BF16: u16 = 0x7f80;

/// Appends the columns of `rows`; whether their numbers are finite.
fn floats(rows: &Rows<'_>, all: &mut Vec<Floats>) -> bool {
    let (rows, mut finite) = (rows.pieces::<4>(), true);
    for at in 0..rows[0].len() {
        let column = rows.map(|row| row.get(at).map_or(0.0, |&number| f32::from_le_bytes(number)));
        finite &= column.iter().fold(true, |finite, number| finite & number.is_finite());
        all.push(Floats(column));
    }
    finite
}

/// Hands out the columns of `rows`, some at a time; whether their numbers are finite.
fn halves(rows: &Rows<'_>, exponent: u16, mut put: impl FnMut(&[Halves])) -> bool {
    let (sixteens, singles) = (rows.pieces::<{ 2 * LANES }>(), rows.pieces::<2>());
    let mut infinite = [0; LANES];
    let mut look = |numbers: &[u16; LANES]| {
        for (infinite, bits) in infinite.iter_mut().zip(numbers) {
            *infinite |= if bits & exponent == exponent { u16::MAX } else { 0 };
        }
    };
    let mut numbers = [[0; LANES]; LANES];
    for at in 0..sixteens[0].len() {
        for (numbers, row) in numbers.iter_mut().zip(&sixteens) {
            if let Some(bytes) = row.get(at) {
                *numbers = from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
                look(numbers);
            }
        }
        put(&columns_of(&numbers));
    }
    for at in sixteens[0].len() * LANES..singles[0].len() {
        let column = singles.map(|row| row.get(at).map_or(0, |&number| u16::from_le_bytes(number)));
        look(&column);
        put(&[Halves(column)]);
    }
    infinite == [0; LANES]
}

/// Sixteen blocks of a file side by side: `K` packed blocks of `L` lines, with `M` minima (one or none) and `F` factors for
/// each packed block.
struct Side<const L: usize, const K: usize, const M: usize, const F: usize> {
    lines: [[Line; L]; K],
    scale: Halves,
    minimum: [Halves; M],
    factor: [[[u8; LANES]; F]; K],
    minimum_factor: [[[[u8; LANES]; F]; K]; M],
}

impl Coded {
    /// Appends the blocks of `rows`, of which `lay` puts one into its lane; whether their scales are finite.
    fn put<const N: usize, const L: usize, const K: usize, const M: usize, const F: usize>(
        &mut self,
        rows: &Rows<'_>,
        lay: impl Fn(&[u8; N], usize, &mut Side<L, K, M, F>),
    ) -> bool {
        let (rows, zero) = (rows.pieces::<N>(), Halves([0; LANES]));
        let mut side = Side {
            lines: [[Line([0; 64]); L]; K],
            scale: zero,
            minimum: [zero; M],
            factor: [[[0; LANES]; F]; K],
            minimum_factor: [[[[0; LANES]; F]; K]; M],
        };
        let mut finite = true;
        for at in 0..rows[0].len() {
            for (lane, row) in rows.iter().enumerate() {
                if let Some(block) = row.get(at) {
                    lay(block, lane, &mut side);
                }
            }
            self.lines.extend_from_slice(side.lines.as_flattened());
            self.scale.push(side.scale);
            self.minimum.extend_from_slice(&side.minimum);
            self.factor.extend_from_slice(side.factor.as_flattened());
            self.minimum_factor.extend_from_slice(side.minimum_factor.as_flattened().as_flattened());
            let is_finite = |scale: &Halves| scale.0.iter().fold(true, |all, x| all & (x & F16 != F16));
            finite &= is_finite(&side.scale) & side.minimum.iter().all(is_finite);
        }
        finite
    }
}

impl<const L: usize, const K: usize, const M: usize, const F: usize> Side<L, K, M, F> {
    /// The f16 at the start of `bytes`.
    #[inline(always)]
    fn scale(&mut self, lane: usize, bytes: &[u8]) {
        self.scale.0[lane] = u16::from_le_bytes([bytes[0], bytes[1]]);
    }

    /// The f16 at the start of `bytes`.
    #[inline(always)]
    fn minimum(&mut self, lane: usize, bytes: &[u8]) {
        self.minimum[0].0[lane] = u16::from_le_bytes([bytes[0], bytes[1]]);
    }

    /// Codes of a packed block, four columns a word: see `kernels::dot`'s `Codes` for where they lie.
    #[inline(always)]
    fn words(&mut self, lane: usize, block: usize, words: [u32; L]) {
        for (line, word) in self.lines[block].iter_mut().zip(words) {
            line.0[4 * lane..4 * lane + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
}

impl<const L: usize> Side<L, 8, 1, 1> {
    /// Scale, minimum and their factors of a Q4_K or Q5_K block, which begin alike.
    #[inline(always)]
    fn super_scales(&mut self, lane: usize, block: &[u8]) {
        self.scale(lane, block);
        self.minimum(lane, &block[2..]);
        for group in 0..8 {
            let (scale, minimum) = scale_and_min(&block[4..16], group);
            self.factor[group][0][lane] = scale as u8;
            self.minimum_factor[0][group][0][lane] = minimum as u8;
        }
    }
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]])
}

/// The low nibbles of 32 bytes, or the high ones: the first sixteen as low nibbles, the others as high ones.
#[inline(always)]
fn nibbles(bytes: &[u8], high: bool) -> [u32; 4] {
    const LOW: u32 = 0x0f0f_0f0f;
    [0, 1, 2, 3].map(|g| match (word(bytes, g), word(bytes, g + 4)) {
        (a, b) if high => a >> 4 & LOW | b & !LOW,
        (a, b) => a & LOW | (b & LOW) << 4,
    })
}

/// Bit 4g + n becomes bit g of byte n.
#[inline(always)]
fn fifths(bits: u32) -> u32 {
    // The five bits of a bit's place are turned by three, two of them changing places at a time.
    [(14, 0x0000_cccc), (7, 0x00aa_00aa), (2, 0x0c0c_0c0c), (1, 0x2222_2222)].into_iter().fold(
        bits,
        |bits, (by, from)| {
            let differs = (bits ^ bits >> by) & from;
            bits ^ differs ^ differs << by
        },
    )
}

/// Bits `shift` to `shift + N` of every byte of some words, those of the first word lowest.
#[inline(always)]
fn gathered<const N: u32>(bytes: &[u8], words: Range<usize>, shift: usize) -> u32 {
    let mask = 0x0101_0101 * ((1 << N) - 1);
    words.enumerate().fold(0, |all, (at, from)| all | (word(bytes, from) >> shift & mask) << (N as usize * at))
}

#[inline(always)]
fn q8_0(block: &[u8; 34], lane: usize, side: &mut Side<8, 1, 0, 0>) {
    side.scale(lane, block);
    side.words(lane, 0, from_fn(|g| word(&block[2..], g)));
}

// The nibbles of a block lie in the file as in a packed block: the first sixteen codes low, the others high.

#[inline(always)]
fn q4_0(block: &[u8; 18], lane: usize, side: &mut Side<4, 1, 0, 0>) {
    side.scale(lane, block);
    side.words(lane, 0, from_fn(|g| word(&block[2..], g)));
}

#[inline(always)]
fn q4_1(block: &[u8; 20], lane: usize, side: &mut Side<4, 1, 1, 0>) {
    side.scale(lane, block);
    side.minimum(lane, &block[2..]);
    side.words(lane, 0, from_fn(|g| word(&block[4..], g)));
}

#[inline(always)]
fn q5_0(block: &[u8; 22], lane: usize, side: &mut Side<5, 1, 0, 0>) {
    side.scale(lane, block);
    side.words(lane, 0, from_fn(|g| if g < 4 { word(&block[6..], g) } else { fifths(word(&block[2..], 0)) }));
}

#[inline(always)]
fn q5_1(block: &[u8; 24], lane: usize, side: &mut Side<5, 1, 1, 0>) {
    side.scale(lane, block);
    side.minimum(lane, &block[2..]);
    side.words(lane, 0, from_fn(|g| if g < 4 { word(&block[8..], g) } else { fifths(word(&block[4..], 0)) }));
}

#[inline(always)]
fn q4_k(block: &[u8; 144], lane: usize, side: &mut Side<4, 8, 1, 1>) {
    side.super_scales(lane, block);
    for group in 0..8 {
        side.words(lane, group, nibbles(&block[16 + group / 2 * 32..], group % 2 == 1));
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], lane: usize, side: &mut Side<5, 8, 1, 1>) {
    side.super_scales(lane, block);
    for group in 0..8 {
        let [a, b, c, d] = nibbles(&block[48 + group / 2 * 32..], group % 2 == 1);
        side.words(lane, group, [a, b, c, d, gathered::<1>(&block[16..], 0..8, group)]);
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], lane: usize, side: &mut Side<6, 8, 0, 2>) {
    side.scale(lane, &block[208..]);
    for group in 0..8 {
        let (half, part) = (group / 4, group % 4);
        let high = &block[128 + half * 32..];
        let [a, b, c, d] = nibbles(&block[half * 64 + part % 2 * 32..], part / 2 == 1);
        let [e, f] = [0..4, 4..8].map(|words| gathered::<2>(high, words, 2 * part));
        side.words(lane, group, [a, b, c, d, e, f]);
        for (factor, byte) in side.factor[group].iter_mut().zip(&block[192 + 2 * group..]) {
            factor[lane] = *byte;
        }
    }
}
