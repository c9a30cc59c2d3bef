//! Products of sixteen rows of a packed matrix with a few vectors at once, built from [`Isa`]'s operations.
//!
//! A vector is a row of activations: f32, some of them side by side ([`Interleaved`](super::super::interleaved::Interleaved)),
//! or rounded to eight bits in blocks ([`Rounded`]). Every sum runs over the columns in their order, whoever computes it.

use std::ops::Range;

use super::{Floats, Halves, Isa, LANES, Line};
use crate::model::cpu::rounded::{Rounded, Rounding};

/// Columns that share a scale.
pub const BLOCK: usize = 32;

/// Sixteen rows of floating-point numbers: a value a column.
pub trait Column {
    fn widen<I: Isa>(&self, isa: I) -> I::F;
}

impl Column for Floats {
    #[inline(always)]
    fn widen<I: Isa>(&self, isa: I) -> I::F {
        isa.load(&self.0)
    }
}

/// f16.
impl Column for Halves {
    #[inline(always)]
    fn widen<I: Isa>(&self, isa: I) -> I::F {
        isa.half(&self.0)
    }
}

/// bf16.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(transparent)]
pub struct Brains(pub Halves);

impl Brains {
    /// Their bits, to be written.
    pub fn as_halves(all: &mut [Brains]) -> &mut [Halves] {
        // SAFETY: `Brains` is a transparent wrapper of `Halves`, of which every bit pattern is one.
        unsafe { std::slice::from_raw_parts_mut(all.as_mut_ptr().cast(), all.len()) }
    }
}

impl Column for Brains {
    #[inline(always)]
    fn widen<I: Isa>(&self, isa: I) -> I::F {
        isa.brain(&self.0.0)
    }
}

/// Sixteen rows times `N` vectors: `columns[k]` · x[k][n], added up to `sum`.
#[inline(always)]
pub fn plain<I: Isa, C: Column, const N: usize>(
    isa: I,
    columns: &[C],
    x: &[[f32; N]],
    mut sum: [I::F; N],
) -> [I::F; N] {
    for (column, x) in columns.iter().zip(x) {
        let w = column.widen(isa);
        for n in 0..N {
            sum[n] = isa.fma(w, isa.splat(x[n]), sum[n]);
        }
    }
    sum
}

/// Groups of rows that one vector meets at once: their sums go on side by side, each alone would wait for itself.
pub const ABREAST: usize = 4;

/// As [`plain`], of several groups and one vector.
#[inline(always)]
pub fn abreast<I: Isa, C: Column>(
    isa: I,
    groups: [&[C]; ABREAST],
    x: &[[f32; 1]],
    mut sum: [I::F; ABREAST],
) -> [I::F; ABREAST] {
    let [a, b, c, d] = groups;
    for ((((a, b), c), d), x) in a.iter().zip(b).zip(c).zip(d).zip(x) {
        let x = isa.splat(x[0]);
        sum[0] = isa.fma(a.widen(isa), x, sum[0]);
        sum[1] = isa.fma(b.widen(isa), x, sum[1]);
        sum[2] = isa.fma(c.widen(isa), x, sum[2]);
        sum[3] = isa.fma(d.widen(isa), x, sum[3]);
    }
    sum
}

/// As [`plain`], of which stretches of one length go on side by side: the sum of their sums, in their order.
#[inline(always)]
pub fn stretched<I: Isa, C: Column, const N: usize>(isa: I, columns: &[C], x: &[[f32; N]]) -> [I::F; N] {
    let each = columns.len().div_ceil(ABREAST).max(1);
    let mut sums = [[isa.splat(0.0); N]; ABREAST];
    if N == 1 && columns.len() == ABREAST * each {
        let of = |at: usize| columns[at * each..(at + 1) * each].iter().zip(&x[at * each..(at + 1) * each]);
        for ((((w, x), (w1, x1)), (w2, x2)), (w3, x3)) in of(0).zip(of(1)).zip(of(2)).zip(of(3)) {
            sums[0][0] = isa.fma(w.widen(isa), isa.splat(x[0]), sums[0][0]);
            sums[1][0] = isa.fma(w1.widen(isa), isa.splat(x1[0]), sums[1][0]);
            sums[2][0] = isa.fma(w2.widen(isa), isa.splat(x2[0]), sums[2][0]);
            sums[3][0] = isa.fma(w3.widen(isa), isa.splat(x3[0]), sums[3][0]);
        }
    } else {
        for ((columns, x), sums) in columns.chunks(each).zip(x.chunks(each)).zip(&mut sums) {
            *sums = plain(isa, columns, x, *sums);
        }
    }
    let mut all = [isa.splat(0.0); N];
    for sums in sums {
        for n in 0..N {
            all[n] = isa.fma(sums[n], isa.splat(1.0), all[n]);
        }
    }
    all
}

/// How the codes of a block lie in lines.
pub trait Codes {
    /// Of a code; eight-bit ones are signed, others not.
    const BITS: u32;
    /// Lines of a block.
    const LINES: usize;
    /// Codes of the columns 4g to 4g + 3, for g in 0..8.
    fn unpack<I: Isa>(isa: I, lines: &[Line]) -> [I::B; 8];
}

pub struct Eight;
pub struct Four;
pub struct Five;
pub struct Six;

// Written out: closures that are not inlined would be compiled for a lesser processor.

impl Codes for Eight {
    const BITS: u32 = 8;
    const LINES: usize = 8;

    #[inline(always)]
    fn unpack<I: Isa>(isa: I, lines: &[Line]) -> [I::B; 8] {
        let line = |g: usize| isa.bytes(&lines[g]);
        [line(0), line(1), line(2), line(3), line(4), line(5), line(6), line(7)]
    }
}

/// Line g holds the groups g (low nibbles) and g + 4.
impl Codes for Four {
    const BITS: u32 = 4;
    const LINES: usize = 4;

    #[inline(always)]
    fn unpack<I: Isa>(isa: I, lines: &[Line]) -> [I::B; 8] {
        let [a, b, c, d] = [isa.bytes(&lines[0]), isa.bytes(&lines[1]), isa.bytes(&lines[2]), isa.bytes(&lines[3])];
        [
            isa.shr(a, 0, 15),
            isa.shr(b, 0, 15),
            isa.shr(c, 0, 15),
            isa.shr(d, 0, 15),
            isa.shr(a, 4, 15),
            isa.shr(b, 4, 15),
            isa.shr(c, 4, 15),
            isa.shr(d, 4, 15),
        ]
    }
}

/// As [`Four`], and bit g of the fifth line's bytes for group g.
impl Codes for Five {
    const BITS: u32 = 5;
    const LINES: usize = 5;

    #[inline(always)]
    fn unpack<I: Isa>(isa: I, lines: &[Line]) -> [I::B; 8] {
        let ([a, b, c, d, e, f, g, h], high) = (Four::unpack(isa, &lines[..4]), isa.bytes(&lines[4]));
        [
            isa.or(a, isa.shl(high, 4, 16)),
            isa.or(b, isa.shl(high, 3, 16)),
            isa.or(c, isa.shl(high, 2, 16)),
            isa.or(d, isa.shl(high, 1, 16)),
            isa.or(e, isa.shl(high, 0, 16)),
            isa.or(f, isa.shr(high, 1, 16)),
            isa.or(g, isa.shr(high, 2, 16)),
            isa.or(h, isa.shr(high, 3, 16)),
        ]
    }
}

/// As [`Four`], and two bits for the groups 0..4 in the fifth line, for 4..8 in the sixth.
impl Codes for Six {
    const BITS: u32 = 6;
    const LINES: usize = 6;

    #[inline(always)]
    fn unpack<I: Isa>(isa: I, lines: &[Line]) -> [I::B; 8] {
        let [a, b, c, d, e, f, g, h] = Four::unpack(isa, &lines[..4]);
        let (left, right) = (isa.bytes(&lines[4]), isa.bytes(&lines[5]));
        [
            isa.or(a, isa.shl(left, 4, 48)),
            isa.or(b, isa.shl(left, 2, 48)),
            isa.or(c, isa.shl(left, 0, 48)),
            isa.or(d, isa.shr(left, 2, 48)),
            isa.or(e, isa.shl(right, 4, 48)),
            isa.or(f, isa.shl(right, 2, 48)),
            isa.or(g, isa.shl(right, 0, 48)),
            isa.or(h, isa.shr(right, 2, 48)),
        ]
    }
}

/// What makes numbers of a block's codes: scale · code + shift, in the first and the second half of its columns.
#[derive(Clone, Copy)]
pub struct Scale<F> {
    pub scale: [F; 2],
    pub shift: [F; 2],
}

/// Where the scales of a matrix come from.
pub trait Scales {
    /// The halves of a block differ.
    const HALVES: bool;
    /// The shift is always zero.
    const UNSHIFTED: bool;
    fn at<I: Isa>(isa: I, coded: &Coded, group: usize, block: usize) -> Scale<I::F>;
}

/// A matrix of codes with scales, by groups of sixteen rows.
#[derive(Debug, Default, PartialEq)]
pub struct Coded {
    /// Blocks of a row.
    pub blocks: usize,
    /// By group and block.
    pub lines: Vec<Line>,
    /// f16 scales, by group and block, or by group and superblock of eight blocks.
    pub scale: Vec<Halves>,
    /// f16 minima, likewise; empty where there are none.
    pub minimum: Vec<Halves>,
    /// Small whole factors of the scale, by group, block (and half block).
    pub factor: Vec<[u8; LANES]>,
    /// Small whole factors of the minimum, by group and block.
    pub minimum_factor: Vec<[u8; LANES]>,
}

/// scale · (code − ZERO)
pub struct Centred<const ZERO: u32>;
/// scale · code + minimum
pub struct Shifted;
/// scale · factor · code − minimum · factor
pub struct Super;
/// scale · factor · (code − 32), with a factor for each half
pub struct SuperHalves;

impl<const ZERO: u32> Scales for Centred<ZERO> {
    const HALVES: bool = false;
    const UNSHIFTED: bool = ZERO == 0;

    #[inline(always)]
    fn at<I: Isa>(isa: I, coded: &Coded, group: usize, block: usize) -> Scale<I::F> {
        let scale = isa.half(&coded.scale[group * coded.blocks + block].0);
        let shift = isa.mul(scale, isa.splat(-(ZERO as f32)));
        Scale { scale: [scale; 2], shift: [shift; 2] }
    }
}

impl Scales for Shifted {
    const HALVES: bool = false;
    const UNSHIFTED: bool = false;

    #[inline(always)]
    fn at<I: Isa>(isa: I, coded: &Coded, group: usize, block: usize) -> Scale<I::F> {
        let at = group * coded.blocks + block;
        Scale { scale: [isa.half(&coded.scale[at].0); 2], shift: [isa.half(&coded.minimum[at].0); 2] }
    }
}

impl Scales for Super {
    const HALVES: bool = false;
    const UNSHIFTED: bool = false;

    #[inline(always)]
    fn at<I: Isa>(isa: I, coded: &Coded, group: usize, block: usize) -> Scale<I::F> {
        let (above, at) = (group * (coded.blocks / 8) + block / 8, group * coded.blocks + block);
        let scale = isa.mul(isa.half(&coded.scale[above].0), isa.unsigned(&coded.factor[at]));
        let minimum = isa.mul(isa.half(&coded.minimum[above].0), isa.splat(-1.0));
        let shift = isa.mul(minimum, isa.unsigned(&coded.minimum_factor[at]));
        Scale { scale: [scale; 2], shift: [shift; 2] }
    }
}

impl Scales for SuperHalves {
    const HALVES: bool = true;
    const UNSHIFTED: bool = false;

    #[inline(always)]
    fn at<I: Isa>(isa: I, coded: &Coded, group: usize, block: usize) -> Scale<I::F> {
        let (above, at) = (group * (coded.blocks / 8) + block / 8, group * coded.blocks + block);
        let whole = isa.half(&coded.scale[above].0);
        let first = isa.mul(whole, isa.signed(&coded.factor[2 * at]));
        let second = isa.mul(whole, isa.signed(&coded.factor[2 * at + 1]));
        let zero = isa.splat(-32.0);
        Scale { scale: [first, second], shift: [isa.mul(first, zero), isa.mul(second, zero)] }
    }
}

/// Sixteen rows times `N` vectors of f32: what the numbers say, each rounded once.
#[inline(always)]
pub fn exact<I: Isa, C: Codes, S: Scales, const N: usize>(
    isa: I,
    coded: &Coded,
    group: usize,
    x: &[[f32; N]],
) -> [I::F; N] {
    let lines = &coded.lines[group * coded.blocks * C::LINES..][..coded.blocks * C::LINES];
    let mut sum = [isa.splat(0.0); N];
    for ((block, lines), x) in lines.chunks_exact(C::LINES).enumerate().zip(x.as_chunks::<BLOCK>().0) {
        let codes = C::unpack(isa, lines);
        let Scale { scale, shift } = S::at(isa, coded, group, block);
        for (g, (codes, x)) in codes.into_iter().zip(x.as_chunks::<4>().0).enumerate() {
            for (at, x) in (0..).zip(x) {
                let code = if C::BITS == 8 { isa.code::<true>(codes, at) } else { isa.code::<false>(codes, at) };
                let w = isa.fma(code, scale[g / 4], shift[g / 4]);
                for n in 0..N {
                    sum[n] = isa.fma(w, isa.splat(x[n]), sum[n]);
                }
            }
        }
    }
    sum
}

/// The numbers of sixteen rows, from column to column: `out[k * stride..]` gets those of `columns[k]`.
#[inline(always)]
pub fn widen_plain<I: Isa, C: Column>(isa: I, columns: &[C], out: &mut [Floats], stride: usize) {
    for (column, out) in columns.iter().zip(out.iter_mut().step_by(stride)) {
        out.0 = isa.store(column.widen(isa));
    }
}

/// As [`widen_plain`], of the `blocks` of a group: as [`exact`] multiplies with them.
#[inline(always)]
pub fn widen_coded<I: Isa, C: Codes, S: Scales>(
    isa: I,
    coded: &Coded,
    group: usize,
    blocks: Range<usize>,
    out: &mut [Floats],
    stride: usize,
) {
    let lines = &coded.lines[group * coded.blocks * C::LINES..][..coded.blocks * C::LINES];
    let lines = &lines[blocks.start * C::LINES..blocks.end * C::LINES];
    let mut out = out.iter_mut().step_by(stride);
    for (block, lines) in blocks.zip(lines.chunks_exact(C::LINES)) {
        let codes = C::unpack(isa, lines);
        let Scale { scale, shift } = S::at(isa, coded, group, block);
        for (g, codes) in codes.into_iter().enumerate() {
            for at in 0..4 {
                let code = if C::BITS == 8 { isa.code::<true>(codes, at) } else { isa.code::<false>(codes, at) };
                if let Some(out) = out.next() {
                    out.0 = isa.store(isa.fma(code, scale[g / 4], shift[g / 4]));
                }
            }
        }
    }
}

/// A block of eight-bit codes, as [`Isa::dot`] takes them.
#[inline(always)]
fn eight<I: Isa>(isa: I, lines: &[Line]) -> [I::B; 8] {
    let line = |g: usize| isa.eight(&lines[g]);
    [line(0), line(1), line(2), line(3), line(4), line(5), line(6), line(7)]
}

/// Sixteen rows times `N` vectors of eight-bit numbers, from `first` on: products and sums of a block are whole numbers.
#[inline(always)]
pub fn rounded<I: Isa, C: Codes, S: Scales, const N: usize>(
    isa: I,
    coded: &Coded,
    group: usize,
    x: &Rounded,
    first: usize,
) -> [I::F; N] {
    let lines = &coded.lines[group * coded.blocks * C::LINES..][..coded.blocks * C::LINES];
    let x: [&[Rounding]; N] = std::array::from_fn(|n| &x.row(first + n)[..coded.blocks]);
    let mut sum = [isa.splat(0.0); N];
    for (block, lines) in lines.chunks_exact(C::LINES).enumerate() {
        let codes = if C::BITS == 8 { eight(isa, lines) } else { C::unpack(isa, lines) };
        let Scale { scale, mut shift } = S::at(isa, coded, group, block);
        if C::BITS == 8 && I::OFFSET != 0.0 {
            shift = [isa.mul(scale[0], isa.splat(-I::OFFSET)); 2];
        }
        let [a, b, c, d, e, f, g, h] = codes;
        let (low, high) = ([a, b, c, d], [e, f, g, h]);
        for n in 0..N {
            let x = &x[n][block];
            let step = isa.splat(x.step);
            let [x_low, x_high] = [0, 1].map(|half| &x.q.as_chunks::<16>().0[half]);
            let first = isa.dot(C::BITS, isa.zero(), low, x_low);
            if S::HALVES {
                let second = isa.dot(C::BITS, isa.zero(), high, x_high);
                for (half, part) in [first, second].into_iter().enumerate() {
                    sum[n] = isa.fma(isa.mul(scale[half], step), isa.float(part), sum[n]);
                    sum[n] = isa.fma(shift[half], isa.splat(x.sum[half]), sum[n]);
                }
            } else {
                let whole = isa.dot(C::BITS, first, high, x_high);
                sum[n] = isa.fma(isa.mul(scale[0], step), isa.float(whole), sum[n]);
                if !S::UNSHIFTED || (C::BITS == 8 && I::OFFSET != 0.0) {
                    sum[n] = isa.fma(shift[0], isa.splat(x.total), sum[n]);
                }
            }
        }
    }
    sum
}
