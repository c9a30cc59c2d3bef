//! Rows of activations as numbers of sixteen bits, for products that need not have every bit: learning on processors where
//! these are faster than f32's.
//!
//! Blocks of 32 columns share a scale, on both sides of a product. Weights become whole numbers of up to ±16383, by the
//! block's largest; activations such whose absolute values add up to 131,000 at most, so that the products of a block fit
//! into 32 bits whatever the signs. Both are rounded by less than a ten thousandth of what is usual in their block. A number
//! that is none makes its block's scale none.

use std::ops::Range;

use super::{Panel, Rows, fetch_spot, put_sums, sums_of};
use crate::model::cpu::interleaved::{TILE, by_parts};
use crate::model::cpu::kernels::dot::BLOCK;
use crate::model::cpu::kernels::{Floats, Isa, LANES, Level, Line, Work};
use crate::model::cpu::plane::Plane;
use crate::model::cpu::tiles::{Regions, Spot};

/// The largest of a panel's numbers, the largest of a row's, and the largest sum of these in a block, to which rounding adds
/// 16 at most: 16383 · 131016 < 2³¹.
const MOST: f32 = 16383.0;
const MOST_OF_ROW: f32 = 32000.0;
const SUM_OF_ROW: f32 = 131_000.0;
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

    /// The pairs of [`part`](Self::part), as far as there are some.
    #[inline(always)]
    fn rest<const N: usize>(&self, first: usize) -> &[[[f32; N]; PAIRS]] {
        self.pairs.data().get(first * self.blocks * PAIRS..).unwrap_or_default().as_chunks().0.as_chunks().0
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
        by_parts!(WIDEST, scales.len() / blocks.max(1), |first, N| {
            let pairs = pairs[first * blocks * PAIRS..][..N * blocks * PAIRS].as_chunks_mut::<N>().0;
            let scales = scales[first * blocks..][..N * blocks].as_chunks_mut::<N>().0;
            let mut lines = [Floats([0.0; LANES]); LANES];
            for (block, (pairs, scales)) in pairs.chunks_exact_mut(PAIRS).zip(scales).enumerate() {
                for n in 0..N {
                    let row = &plane.row(first_row + first + n)[columns.start + block * BLOCK..columns.end];
                    let (line, scale) = match row.first_chunk() {
                        Some(whole) => words(isa, whole),
                        None => {
                            let mut filled = [0.0; BLOCK];
                            filled[..row.len()].copy_from_slice(row);
                            words(isa, &filled)
                        }
                    };
                    for (bits, pair) in lines[n].0.iter_mut().zip(line.0.as_chunks().0) {
                        *bits = f32::from_le_bytes(*pair);
                    }
                    scales[n] = scale;
                }
                for (out, column) in pairs.iter_mut().zip(&isa.transpose(&lines)) {
                    out.copy_from_slice(&column.0[..N]);
                }
            }
        });
    }
}

/// The pairs of a block and their scale.
#[inline(always)]
fn words<I: Isa>(isa: I, numbers: &[f32; BLOCK]) -> (Line, f32) {
    let [a, b] = [isa.load(&numbers.as_chunks().0[0]), isa.load(&numbers.as_chunks().0[1])];
    let zero = isa.splat(0.0);
    let (a_size, b_size) = (isa.largest(zero, a), isa.largest(zero, b));
    let mut largest = isa.store(isa.largest(a_size, b_size));
    let mut sum = isa.store(isa.fma(a_size, isa.splat(1.0), b_size));
    let mut gone = isa.store(isa.fma(a, zero, isa.mul(b, zero)));
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            largest[lane] = if largest[lane] > largest[lane + half] { largest[lane] } else { largest[lane + half] };
            sum[lane] += sum[lane + half];
            gone[lane] += gone[lane + half];
        }
    }
    // The step of a row's numbers: by the one limit or the other.
    let (by_largest, by_sum) = (largest[0] / MOST_OF_ROW, sum[0] / SUM_OF_ROW);
    let step = if by_largest > by_sum { by_largest } else { by_sum };
    let factor = isa.splat(factor(step));
    (isa.pair(isa.mul(a, factor), isa.mul(b, factor)), step + gone[0])
}

/// What makes whole numbers of a block's numbers, which are multiples of `step`.
#[inline(always)]
fn factor(step: f32) -> f32 {
    // Below, the quotient would not be finite; such numbers are nothing beside any other.
    if step > 1e-35 { 1.0 / step } else { 0.0 }
}

impl Rows for Words {
    /// Columns begin at a whole block.
    fn past(
        &self,
        panel: &mut Panel,
        level: Level,
        columns: Range<usize>,
        first: usize,
        out: &mut [f32],
        then: Option<Spot>,
    ) {
        level.run(Narrow { panel });
        let blocks = columns.start / BLOCK..columns.end.div_ceil(BLOCK);
        level.run(TimesWords { panel, x: self, blocks, first, out, then });
    }
}

/// Makes words of a panel.
struct Narrow<'a> {
    panel: &'a mut Panel,
}

impl Work for Narrow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Panel { data, depth, groups, pairs, scales } = self.panel;
        let (depth, groups, blocks) = (*depth, *groups, depth.div_ceil(BLOCK));
        if scales.len() < blocks * groups {
            pairs.resize(blocks * groups * PAIRS, Line([0; 64]));
            scales.resize(blocks * groups, Floats([0.0; LANES]));
        }
        let zero = isa.splat(0.0);
        for strip in (0..groups).step_by(I::GROUPS) {
            let wide = I::GROUPS.min(groups - strip);
            for at in 0..blocks * wide {
                let (block, group) = (at / wide, at % wide);
                let rows = &data[strip * depth + block * BLOCK * wide + group..];
                let deep = BLOCK.min(depth - block * BLOCK);
                let (mut largest, mut gone) = (zero, zero);
                for k in 0..deep {
                    let row = isa.load(&rows[k * wide].0);
                    largest = isa.largest(largest, row);
                    gone = isa.fma(row, zero, gone);
                }
                let (largest, gone) = (isa.store(largest), isa.store(gone));
                let (mut factors, mut scale) = ([0.0; LANES], [0.0; LANES]);
                for lane in 0..LANES {
                    let step = largest[lane] / MOST;
                    factors[lane] = factor(step);
                    scale[lane] = step + gone[lane];
                }
                scales[strip * blocks + block * wide + group] = Floats(scale);
                let factors = isa.load(&factors);
                for pair in 0..PAIRS {
                    let a = if pair < deep { isa.mul(isa.load(&rows[pair * wide].0), factors) } else { zero };
                    let other = PAIRS + pair;
                    let b = if other < deep { isa.mul(isa.load(&rows[other * wide].0), factors) } else { zero };
                    pairs[(strip * blocks + block * wide) * PAIRS + pair * wide + group] = isa.pair(a, b);
                }
            }
        }
    }
}

struct TimesWords<'a> {
    panel: &'a Panel,
    x: &'a Words,
    blocks: Range<usize>,
    first: usize,
    out: &'a mut [f32],
    then: Option<Spot>,
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
        let TimesWords { panel, x, blocks, first: first_row, out: all, then } = self;
        let (width, deep) = (panel.groups * LANES, panel.depth.div_ceil(BLOCK));
        let strip: &[[[Line; G]; PAIRS]] = panel.pairs[group * deep * PAIRS..].as_chunks().0.as_chunks().0;
        let of_strip: &[[Floats; G]] = panel.scales[group * deep..].as_chunks().0;
        by_parts!(WIDEST, all.len() / width, |first, N| {
            let (pairs, scales) = x.part::<N>(*first_row + first);
            let rows = pairs[blocks.clone()].iter().zip(&scales[blocks.clone()]);
            // What is read next lies elsewhere: the processor would not guess it.
            let next = x.rest::<N>(*first_row + first + N).get(blocks.clone()).unwrap_or(&pairs[blocks.clone()]);
            let out = &mut all[first * width + group * LANES..];
            let mut sums: [[I::F; G]; N] = sums_of(isa, out, width);
            fetch_spot::<I, N, G>(isa, *then, first, group);
            for (((w, of_w), (x, of_x)), next) in strip.iter().zip(of_strip).zip(rows).zip(next) {
                let mut whole = [[isa.zero(); G]; N];
                for ((w, x), next) in w.iter().zip(x).zip(next) {
                    isa.fetch(next);
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
                for g in 0..G {
                    let of_w = isa.load(&of_w[g].0);
                    for n in 0..N {
                        let scale = isa.mul(of_w, isa.splat(of_x[n]));
                        sums[n][g] = isa.fma(isa.float(whole[n][g]), scale, sums[n][g]);
                    }
                }
            }
            put_sums(isa, sums, out, width);
        });
    }
}
