//! Rows of activations as numbers of sixteen bits, for products that need not have every bit: learning on processors where
//! these are faster than f32's.
//!
//! A row's 32 columns of a block share a scale, and so does a panel's column. Of a block's whole numbers x and w, the
//! lengths are ‖x‖ ≤ 65,503 and ‖w‖ ≤ 32,770 with what rounding adds, and so |x · w| < 2³¹ (Cauchy and Schwarz): sums of a
//! block fit into 32 bits. Both sides are rounded by less than a ten thousandth of what is usual in their block; weights of
//! F16 and BF16 take a power of two for their scale, by which all but small ones keep every bit, and the numbers of pairs
//! become words twice, the second time what the first ones leave. A number that is none makes its scale none.

use std::ops::Range;

use super::{Form, Panel, Product, Rows, fetch_spot, put_sums, sums_of};
use crate::model::cpu::interleaved::{TILE, by_parts};
use crate::model::cpu::kernels::dot::BLOCK;
use crate::model::cpu::kernels::{Floats, Isa, LANES, Level, Line, Work};
use crate::model::cpu::plane::Plane;
use crate::model::cpu::tiles::Regions;

/// The length of a block's numbers: of a row's, and their largest; of a panel's column's, which is no less than theirs.
const LENGTH_OF_ROW: f32 = 65_500.0;
const LARGEST_OF_ROW: f32 = 32_767.0;
const LENGTH: f32 = 32_767.0;
/// Pairs of a block: a column and the sixteenth behind it.
pub const PAIRS: usize = BLOCK / 2;
/// Most rows that go to a product at once: their sums, and those of a block, are in registers.
const WIDEST: usize = 6;

/// Rows of one width, cut into parts as [`Interleaved`](super::interleaved::Interleaved) is, of six at most.
#[derive(Debug, Default)]
pub struct Words {
    /// A pair of numbers in the bits of each: of each part by block, pair and row.
    pairs: Plane,
    /// Of each part by block and row.
    scales: Plane,
    blocks: usize,
}

impl Words {
    /// How wide the planes are that hold pairs and scales of so many columns.
    pub fn room(columns: usize) -> (usize, usize) {
        (columns.div_ceil(BLOCK) * PAIRS, columns.div_ceil(BLOCK))
    }

    /// In the memory of planes.
    pub fn within(pairs: Plane, scales: Plane) -> Words {
        Words { pairs, scales, blocks: 0 }
    }

    /// Some columns of all rows of a plane take the place of what was there.
    pub fn fill<R: Regions>(&mut self, on: &R, level: Level, plane: &Plane, columns: Range<usize>) -> R::Done {
        let (rows, blocks) = (plane.rows(), columns.len().div_ceil(BLOCK));
        self.blocks = blocks;
        self.pairs.resize(rows, blocks * PAIRS);
        self.scales.resize(rows, blocks);
        let pairs = self.pairs.data_mut()[..rows * blocks * PAIRS].chunks_mut((TILE * blocks * PAIRS).max(1));
        let scales = self.scales.data_mut()[..rows * blocks].chunks_mut((TILE * blocks).max(1));
        let mut tiles: Vec<(&mut [f32], &mut [f32])> = pairs.zip(scales).collect();
        on.each(&mut tiles, |tile, (pairs, scales)| {
            let (first, columns) = (tile * TILE, columns.clone());
            level.run(Fill { plane, first, columns, blocks, pairs, scales });
        })
    }

    /// The pairs of [`part`](Self::part), from a block on; empty where there are no such rows.
    #[inline(always)]
    fn some<const N: usize>(&self, first: usize, block: usize) -> &[[[f32; N]; PAIRS]] {
        let all = first * self.blocks * PAIRS..(first + N) * self.blocks * PAIRS;
        let blocks = self.pairs.data().get(all).unwrap_or_default().as_chunks().0.as_chunks().0;
        blocks.get(block..).unwrap_or_default()
    }

    /// Pairs and scales of the part of `N` rows that begins with row `first`.
    #[inline(always)]
    pub fn part<const N: usize>(&self, first: usize) -> (&[[[f32; N]; PAIRS]], &[[f32; N]]) {
        let (pairs, scales) =
            (&self.pairs.data()[first * self.blocks * PAIRS..], &self.scales.data()[first * self.blocks..]);
        let (pairs, scales) = (&pairs[..N * self.blocks * PAIRS], &scales[..N * self.blocks]);
        (pairs.as_chunks().0.as_chunks().0, scales.as_chunks().0)
    }
}

struct Fill<'a> {
    plane: &'a Plane,
    first: usize,
    columns: Range<usize>,
    blocks: usize,
    pairs: &'a mut [f32],
    scales: &'a mut [f32],
}

impl Work for Fill<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Fill { plane, first: first_row, columns, blocks, pairs, scales } = self;
        let (rows, zero) = (scales.len() / blocks.max(1), isa.splat(0.0));
        let mut lines = [Floats([0.0; LANES]); LANES];
        for block in 0..blocks {
            let mut halves = [[zero; 2]; TILE];
            let (mut largest, mut squares) = ([zero; LANES], [zero; LANES]);
            for n in 0..rows {
                let row = &plane.row(first_row + n)[columns.start + block * BLOCK..columns.end];
                let mut filled = [0.0; BLOCK];
                let whole = row.first_chunk().unwrap_or_else(|| {
                    filled[..row.len()].copy_from_slice(row);
                    &filled
                });
                let [a, b] = [isa.load(&whole.as_chunks().0[0]), isa.load(&whole.as_chunks().0[1])];
                halves[n] = [a, b];
                largest[n] = isa.largest(isa.largest(zero, a), b);
                squares[n] = isa.fma(a, a, isa.mul(b, b));
            }
            let (largest, squares) = (isa.largest_of(&largest), isa.added(&squares));
            let (mut steps, mut factors) = ([0.0; LANES], [0.0; LANES]);
            for lane in 0..LANES {
                let (by_largest, by_length) = (largest[lane] / LARGEST_OF_ROW, squares[lane].sqrt() / LENGTH_OF_ROW);
                steps[lane] = if by_largest > by_length { by_largest } else { by_length };
                factors[lane] = factor(steps[lane]);
            }
            for n in 0..rows {
                let factor = isa.splat(factors[n]);
                lines[n] = floats(isa.pair(isa.mul(halves[n][0], factor), isa.mul(halves[n][1], factor)));
            }
            let turned = isa.transpose(&lines);
            by_parts!(WIDEST, rows, |first, N| {
                let pairs = pairs[first * blocks * PAIRS..][..N * blocks * PAIRS].as_chunks_mut::<N>().0;
                let scales = scales[first * blocks..][..N * blocks].as_chunks_mut::<N>().0;
                scales[block].copy_from_slice(&steps[first..first + N]);
                for (out, column) in pairs[block * PAIRS..][..PAIRS].iter_mut().zip(&turned) {
                    out.copy_from_slice(&column.0[first..first + N]);
                }
            });
        }
    }
}

/// The bits of pairs.
#[inline(always)]
pub fn floats(line: Line) -> Floats {
    let mut floats = Floats([0.0; LANES]);
    for (bits, pair) in floats.0.iter_mut().zip(line.0.as_chunks().0) {
        *bits = f32::from_le_bytes(*pair);
    }
    floats
}

/// What makes whole numbers of numbers that are to be multiples of `step`.
#[inline(always)]
fn factor(step: f32) -> f32 {
    // Below, squares are not told from nothing; such numbers are nothing beside any other.
    if step > 1e-21 { 1.0 / step } else { 0.0 }
}

impl Rows for Words {
    fn form(&self) -> Form {
        Form::Words
    }

    /// Columns begin at a whole block.
    fn past(&self, panel: &Panel, level: Level, product: Product<'_>) {
        level.run(TimesWords { panel, x: self, product });
    }
}

impl Panel {
    /// Words of its numbers; scales are powers of two where `even`.
    pub fn narrow(&mut self, level: Level, even: bool) {
        self.narrow_part(level, even, 0);
    }

    /// Words of its numbers, and words of what these leave.
    pub fn narrow_twice(&mut self, level: Level) {
        self.narrow_part(level, false, 0);
        for group in 0..self.groups {
            let ((from, step), (to, _)) = (self.place(level, group), self.place_of_words(level, group));
            let (pairs, scales, data) = (&self.pairs[to..], &self.scales[group], &mut self.data[from..]);
            level.run(Leave { pairs, scales, depth: self.depth, data, step });
        }
        self.parts = 2;
        self.narrow_part(level, false, 1);
    }

    fn narrow_part(&mut self, level: Level, even: bool, part: usize) {
        let before = self.pairs_of_part() * part;
        for group in 0..self.groups {
            let ((from, step), (to, _)) = (self.place(level, group), self.place_of_words(level, group));
            let (data, depth, out) = (&self.data[from..], self.depth, &mut self.pairs[before + to..]);
            self.scales[part * self.groups + group] = level.run(Narrow { data, depth, even, out, step });
        }
    }
}

/// Makes words of sixteen columns, whose rows lie `step` apart.
struct Narrow<'a> {
    data: &'a [Floats],
    depth: usize,
    even: bool,
    out: &'a mut [Line],
    step: usize,
}

impl Work for Narrow<'_> {
    type Out = Floats;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Floats {
        let Narrow { data, depth, even, out, step } = self;
        narrow(
            isa,
            depth,
            even,
            #[inline(always)]
            |k| isa.load(&data[k * step].0),
            out,
            step,
        )
    }
}

/// Takes from sixteen columns what their words hold.
struct Leave<'a> {
    pairs: &'a [Line],
    scales: &'a Floats,
    depth: usize,
    data: &'a mut [Floats],
    step: usize,
}

impl Work for Leave<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Leave { pairs, scales, depth, data, step } = self;
        for k in 0..depth {
            let (at, half) = (k / BLOCK * PAIRS + k % PAIRS, k % BLOCK / PAIRS);
            let (pairs, data) = (pairs[at * step].0.as_chunks::<4>().0, &mut data[k * step].0);
            for ((x, pair), scale) in data.iter_mut().zip(pairs).zip(scales.0) {
                let word = i16::from_le_bytes([pair[2 * half], pair[2 * half + 1]]);
                *x = f32::from(word).mul_add(-scale, *x);
            }
        }
    }
}

/// Pairs of sixteen columns of a panel, `step` apart, and the columns' scales; `row` gives the `depth` rows of them. Scales
/// are powers of two where `even`.
#[inline(always)]
pub fn narrow<I: Isa>(
    isa: I,
    depth: usize,
    even: bool,
    row: impl Fn(usize) -> I::F,
    out: &mut [Line],
    step: usize,
) -> Floats {
    let zero = isa.splat(0.0);
    let (mut most, mut gone) = (zero, zero);
    for block in (0..depth).step_by(BLOCK) {
        let mut squares = zero;
        for k in block..depth.min(block + BLOCK) {
            let row = row(k);
            squares = isa.fma(row, row, squares);
        }
        most = isa.largest(most, squares);
        gone = isa.fma(squares, zero, gone);
    }
    let (scales, factors) = scales(isa.store(most), isa.store(gone), even);
    let factors = isa.load(&factors.0);
    for (block, out) in (0..depth).step_by(BLOCK).zip(out.chunks_mut(PAIRS * step)) {
        for (pair, out) in out.iter_mut().step_by(step).enumerate() {
            let [a, b] = [block + pair, block + PAIRS + pair];
            let a = if a < depth { isa.mul(row(a), factors) } else { zero };
            let b = if b < depth { isa.mul(row(b), factors) } else { zero };
            *out = isa.pair(a, b);
        }
    }
    scales
}

/// Scales of columns, and what makes whole numbers, by the most that the squares of a block add up to. `gone` is 0 where all
/// are numbers.
#[inline(always)]
pub fn scales(most: [f32; LANES], gone: [f32; LANES], even: bool) -> (Floats, Floats) {
    let (mut scales, mut factors) = (Floats([0.0; LANES]), Floats([0.0; LANES]));
    for lane in 0..LANES {
        let step = most[lane].sqrt() / LENGTH;
        // Up to the next power of two: an exponent without a fraction.
        let up = f32::from_bits((step.to_bits() + 0x7f_ffff) & 0xff80_0000);
        let step = if even { up } else { step };
        factors.0[lane] = factor(step);
        scales.0[lane] = step + gone[lane];
    }
    (scales, factors)
}

struct TimesWords<'a> {
    panel: &'a Panel,
    x: &'a Words,
    product: Product<'a>,
}

impl Work for TimesWords<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let mut group = 0;
        while group < self.panel.groups {
            if const { I::GROUPS == 2 } && group + 2 <= self.panel.groups {
                self.past::<I, 2>(isa, group);
                group += 2;
            } else {
                self.past::<I, 1>(isa, group);
                group += 1;
            }
        }
    }
}

impl TimesWords<'_> {
    /// All rows past the strip of `G` groups that begins with `group`.
    #[inline(always)]
    fn past<I: Isa, const G: usize>(&mut self, isa: I, group: usize) {
        let TimesWords { panel, x, product: Product { columns, first: first_row, out: all, then, next } } = self;
        let is_last = group + G == panel.groups;
        let blocks = columns.start / BLOCK..columns.end.div_ceil(BLOCK);
        let (width, deep) = (panel.groups * LANES, panel.depth.div_ceil(BLOCK));
        by_parts!(WIDEST, all.len() / width, |first, N| {
            let (pairs, scales) = x.part::<N>(*first_row + first);
            let rows = pairs[blocks.clone()].iter().zip(&scales[blocks.clone()]);
            // It lies elsewhere: the processor would not guess it.
            let next = if is_last { x.some::<N>(next.row + first, next.column / BLOCK) } else { &[] };
            let out = &mut all[first * width + group * LANES..];
            fetch_spot::<I, N, G>(isa, *then, first, group);
            for part in 0..panel.parts {
                let first = part * panel.groups + group;
                let strip: &[[[Line; G]; PAIRS]] = panel.pairs[first * deep * PAIRS..].as_chunks().0.as_chunks().0;
                let mut sums = [[isa.splat(0.0); G]; N];
                for (block, (w, (x, of_x))) in strip.iter().zip(rows.clone()).enumerate() {
                    if let Some(next) = next.get(block) {
                        next.as_flattened().chunks(LANES).for_each(|line| isa.fetch(line.as_ptr()));
                    }
                    let mut whole = [[isa.zero(); G]; N];
                    for (w, x) in w.iter().zip(x) {
                        let mut pair = [isa.bytes(&w[0]); G];
                        for g in 1..G {
                            pair[g] = isa.bytes(&w[g]);
                        }
                        for n in 0..N {
                            for g in 0..G {
                                whole[n][g] = isa.dot_pair(whole[n][g], pair[g], x[n]);
                            }
                        }
                    }
                    for n in 0..N {
                        let of_x = isa.splat(of_x[n]);
                        for g in 0..G {
                            sums[n][g] = isa.fma(isa.float(whole[n][g]), of_x, sums[n][g]);
                        }
                    }
                }
                let before: [[I::F; G]; N] = sums_of(isa, out, width);
                for g in 0..G {
                    let scales = isa.load(&panel.scales[first + g].0);
                    for n in 0..N {
                        sums[n][g] = isa.fma(sums[n][g], scales, before[n][g]);
                    }
                }
                put_sums(isa, sums, out, width);
            }
        });
    }
}
