//! From the bytes of a file to a packed [`Matrix`]: rows are taken as they come, sixteen at a time.

use super::kernels::dot::{BLOCK, Brains, Coded};
use super::kernels::{Floats, Halves, LANES, Line};
use super::matrix::{Body, Matrix};
use crate::error::{Error, Result};
use crate::model::storage::{Storage, nibbles, scale_and_min};

/// Makes a matrix of the bytes of its file as they come.
pub struct Packer {
    rows: usize,
    columns: usize,
    storage: Storage,
    body: Body,
    /// Bytes of fewer than sixteen rows, that wait for the others.
    waiting: Vec<u8>,
    /// Groups that are done.
    group: usize,
    finite: bool,
}

impl Packer {
    /// Errors when finch does not read `storage`, or its blocks do not fit `columns`.
    pub fn new(rows: usize, columns: usize, storage: Storage) -> Result<Packer> {
        let groups = rows.div_ceil(LANES);
        let coded = |lines: usize, by_super: bool, minimum: bool, factors: usize| {
            let (blocks, zero) = (columns / BLOCK, Halves([0; LANES]));
            let all = groups * blocks;
            let scales = if by_super { groups * (blocks / 8) } else { all };
            Coded {
                blocks,
                lines: vec![Line([0; 64]); all * lines],
                scale: vec![zero; scales],
                minimum: vec![zero; if minimum { scales } else { 0 }],
                factor: vec![[0; LANES]; all * factors],
                minimum_factor: vec![[0; LANES]; if minimum { all * factors } else { 0 }],
            }
        };
        let body = match storage {
            Storage::F32 => Body::F32(vec![Floats([0.0; LANES]); groups * columns]),
            Storage::F16 => Body::F16(vec![Halves([0; LANES]); groups * columns]),
            Storage::BF16 => Body::BF16(vec![Brains(Halves([0; LANES])); groups * columns]),
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
        Ok(Packer { rows, columns, storage, body, waiting: Vec::new(), group: 0, finite: true })
    }

    /// Takes the next bytes, a whole number of blocks.
    pub fn take(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
        let whole = LANES * self.row_bytes();
        let waiting = std::mem::take(&mut self.waiting);
        let groups = waiting.chunks_exact(whole);
        self.waiting = groups.remainder().to_vec();
        groups.for_each(|group| self.pack(group));
    }

    /// Errors when bytes are missing, or a number is not finite.
    pub fn finish(mut self) -> Result<Matrix> {
        let rest = std::mem::take(&mut self.waiting);
        let rows = self.group * LANES + rest.len() / self.row_bytes();
        if !rest.is_empty() {
            self.pack(&rest);
        }
        match (rows == self.rows, self.finite) {
            (true, true) => Ok(Matrix { rows: self.rows, columns: self.columns, body: self.body }),
            (false, _) => Err(Error::failure(format!("holds {rows} rows in place of {}", self.rows))),
            (_, false) => Err(Error::failure("holds a number that is not finite")),
        }
    }

    fn row_bytes(&self) -> usize {
        let (numbers, bytes) = self.storage.block();
        self.columns / numbers * bytes
    }

    /// The rows of one group: sixteen, or fewer at the end.
    fn pack(&mut self, rows: &[u8]) {
        let (group, columns) = (self.group, self.columns);
        self.group += 1;
        for (lane, row) in rows.chunks_exact(self.row_bytes()).enumerate().take(LANES) {
            let place = group * columns..(group + 1) * columns;
            self.finite &= match &mut self.body {
                Body::F32(all) => {
                    all[place].iter_mut().zip(row.as_chunks().0).fold(true, |finite, (column, &number)| {
                        column.0[lane] = f32::from_le_bytes(number);
                        finite & column.0[lane].is_finite()
                    })
                }
                Body::F16(all) => halves(all[place].iter_mut().map(|column| &mut column.0[lane]), row, F16),
                Body::BF16(all) => halves(all[place].iter_mut().map(|column| &mut column.0.0[lane]), row, BF16),
                Body::Q8_0(c) => c.put(group, lane, row, q8_0),
                Body::Q4_0(c) => c.put(group, lane, row, q4_0),
                Body::Q4_1(c) => c.put(group, lane, row, q4_1),
                Body::Q5_0(c) => c.put(group, lane, row, q5_0),
                Body::Q5_1(c) => c.put(group, lane, row, q5_1),
                Body::Q4K(c) => c.put(group, lane, row, q4_k),
                Body::Q5K(c) => c.put(group, lane, row, q5_k),
                Body::Q6K(c) => c.put(group, lane, row, q6_k),
            };
        }
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

fn halves<'a>(places: impl Iterator<Item = &'a mut u16>, row: &[u8], exponent: u16) -> bool {
    places.zip(row.as_chunks().0).fold(true, |finite, (place, &number)| {
        *place = u16::from_le_bytes(number);
        finite & (*place & exponent != exponent)
    })
}

/// Where the parts of one block of a file go: a lane of the packed blocks from `at` on.
struct Place<'a> {
    coded: &'a mut Coded,
    at: usize,
    lane: usize,
}

impl Coded {
    /// Puts a row's blocks in their places; whether their scales are finite.
    fn put<const N: usize>(
        &mut self,
        group: usize,
        lane: usize,
        row: &[u8],
        unpack: impl Fn(&[u8; N], &mut Place<'_>),
    ) -> bool {
        let blocks = row.as_chunks::<N>().0;
        // One packed block a block of the file, or eight.
        let each = self.blocks / blocks.len().max(1);
        for (at, block) in blocks.iter().enumerate() {
            let at = group * self.blocks + at * each;
            unpack(block, &mut Place { coded: self, at, lane });
        }
        // A scale a packed block, or one for eight.
        let scales = blocks.len();
        let finite = |all: &[Halves]| {
            let of_row = all.get(group * scales..(group + 1) * scales).unwrap_or_default();
            of_row.iter().all(|scale| scale.0[lane] & F16 != F16)
        };
        finite(&self.scale) && finite(&self.minimum)
    }
}

impl Place<'_> {
    fn lines(&mut self, block: usize, of_a_block: usize) -> &mut [Line] {
        &mut self.coded.lines[(self.at + block) * of_a_block..][..of_a_block]
    }

    /// Codes of four bits and more, in the order of the columns: see `kernels::dot`'s `Codes` for where they lie.
    fn codes(&mut self, block: usize, bits: u32, codes: [u8; BLOCK]) {
        let (lane, of_a_block) = (4 * self.lane, bits as usize);
        let lines = self.lines(block, of_a_block);
        for (g, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
            for (at, code) in codes.iter().enumerate() {
                lines[g % 4].0[lane + at] |= (code & 15) << (4 * (g / 4));
                match bits {
                    5 => lines[4].0[lane + at] |= (code >> 4) << g,
                    6 => lines[4 + g / 4].0[lane + at] |= (code >> 4) << (2 * (g % 4)),
                    _ => {}
                }
            }
        }
    }

    /// The f16 at the start of `bytes`.
    fn scale(&mut self, at: usize, bytes: &[u8]) {
        self.coded.scale[at].0[self.lane] = u16::from_le_bytes([bytes[0], bytes[1]]);
    }

    fn minimum(&mut self, at: usize, bytes: &[u8]) {
        self.coded.minimum[at].0[self.lane] = u16::from_le_bytes([bytes[0], bytes[1]]);
    }

    /// Scale, minimum and their factors of a Q4_K or Q5_K block, which begin alike.
    fn super_scales(&mut self, block: &[u8]) {
        self.scale(self.at / 8, block);
        self.minimum(self.at / 8, &block[2..]);
        for group in 0..8 {
            let (scale, minimum) = scale_and_min(&block[4..16], group);
            self.coded.factor[self.at + group][self.lane] = scale as u8;
            self.coded.minimum_factor[self.at + group][self.lane] = minimum as u8;
        }
    }
}

/// All nibbles of sixteen bytes, with a fifth bit each from `high`, lowest first.
fn with_fifth(low: &[u8], high: &[u8]) -> [u8; BLOCK] {
    let high = high.iter().rev().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
    let mut codes = nibbles(low).enumerate().map(|(i, code)| code | ((high >> i & 1) as u8) << 4);
    std::array::from_fn(|_| codes.next().unwrap_or_default())
}

fn q8_0(block: &[u8; 34], place: &mut Place<'_>) {
    let lane = 4 * place.lane;
    place.scale(place.at, block);
    for (line, codes) in place.lines(0, 8).iter_mut().zip(block[2..].as_chunks::<4>().0) {
        line.0[lane..lane + 4].copy_from_slice(codes);
    }
}

fn q4_0(block: &[u8; 18], place: &mut Place<'_>) {
    place.scale(place.at, block);
    place.codes(0, 4, with_fifth(&block[2..], &[0; 4]));
}

fn q4_1(block: &[u8; 20], place: &mut Place<'_>) {
    place.scale(place.at, block);
    place.minimum(place.at, &block[2..]);
    place.codes(0, 4, with_fifth(&block[4..], &[0; 4]));
}

fn q5_0(block: &[u8; 22], place: &mut Place<'_>) {
    place.scale(place.at, block);
    place.codes(0, 5, with_fifth(&block[6..], &block[2..6]));
}

fn q5_1(block: &[u8; 24], place: &mut Place<'_>) {
    place.scale(place.at, block);
    place.minimum(place.at, &block[2..]);
    place.codes(0, 5, with_fifth(&block[8..], &block[4..8]));
}

fn q4_k(block: &[u8; 144], place: &mut Place<'_>) {
    place.super_scales(block);
    for group in 0..8 {
        let part = &block[16 + group / 2 * 32..];
        place.codes(group, 4, std::array::from_fn(|i| part[i] >> (group % 2 * 4) & 15));
    }
}

fn q5_k(block: &[u8; 176], place: &mut Place<'_>) {
    place.super_scales(block);
    let (high, low) = (&block[16..48], &block[48..]);
    for group in 0..8 {
        let part = &low[group / 2 * 32..];
        let code = |i: usize| (part[i] >> (group % 2 * 4) & 15) | (high[i] >> group & 1) << 4;
        place.codes(group, 5, std::array::from_fn(code));
    }
}

fn q6_k(block: &[u8; 210], place: &mut Place<'_>) {
    place.scale(place.at / 8, &block[208..]);
    for group in 0..8 {
        let (half, part) = (group / 4, group % 4);
        let (low, high) = (&block[half * 64 + part % 2 * 32..], &block[128 + half * 32..]);
        let code = |i: usize| (low[i] >> (part / 2 * 4) & 15) | (high[i] >> (part * 2) & 3) << 4;
        place.codes(group, 6, std::array::from_fn(code));
        for side in 0..2 {
            place.coded.factor[2 * (place.at + group) + side][place.lane] = block[192 + 2 * group + side];
        }
    }
}
