//! A weight matrix as the kernels read it: sixteen rows side by side, at the file's own bits a number.
//!
//! It is made once, from the blocks of the file as they come (`pack`), and is the only copy in memory: the look-up of
//! embeddings reads it too.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

use super::in_place::InPlace;
use super::interleaved::{Interleaved, by_parts};
use super::kernels::dot::{
    ABREAST, BLOCK, Brains, Centred, Coded, Codes, Column, Eight, Five, Four, Scales, Shifted, Six, Super, SuperHalves,
    abreast, exact, plain, rounded, stretched, widen_coded, widen_plain,
};
use super::kernels::{Floats, Halves, Isa, LANES, Level, Line, Work};
use super::plane::Plane;
use super::rounded::Rounded;
use crate::error::Result;
use crate::model::mapped::Bytes;
use crate::model::storage::Storage;

/// `[rows, columns]`
#[derive(Debug)]
pub struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) body: Body,
}

/// Groups of sixteen rows; the last is filled up with zeros.
#[derive(Debug)]
pub(super) enum Body {
    F32(Vec<Floats>),
    F16(Vec<Halves>),
    BF16(Vec<Brains>),
    InPlace(InPlace),
    Q8_0(Coded),
    Q4_0(Coded),
    Q4_1(Coded),
    Q5_0(Coded),
    Q5_1(Coded),
    Q4K(Coded),
    Q5K(Coded),
    Q6K(Coded),
}

/// What a matrix is multiplied with: some rows of activations.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The rows, as matrices read them that stay in their file.
    pub plane: &'a Plane,
    /// The same as others do; of no meaning where nothing computes with every bit.
    pub numbers: &'a Interleaved,
    /// The same rows rounded, where matrices of codes may compute with that.
    pub rounded: Option<&'a Rounded>,
}

impl Matrix {
    /// One that stays in its file, see [`InPlace::new`].
    pub fn in_place(rows: usize, columns: usize, storage: Storage, bytes: Bytes) -> Result<Option<Matrix>> {
        let body = InPlace::new(rows, columns, storage, bytes)?;
        Ok(body.map(|body| Matrix { rows, columns, body: Body::InPlace(body) }))
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Made of codes, which can be multiplied with [`Rounded`] activations.
    pub fn is_coded(&self) -> bool {
        !matches!(self.body, Body::F32(_) | Body::F16(_) | Body::BF16(_) | Body::InPlace(_))
    }

    /// Whether its numbers have few bits, which scales that are powers of two keep.
    pub fn is_short(&self) -> bool {
        matches!(self.body, Body::F16(_) | Body::BF16(_))
    }

    /// The matrix, where it stays in its file.
    pub fn stays(&self) -> Option<&InPlace> {
        match &self.body {
            Body::InPlace(all) => Some(all),
            _ => None,
        }
    }

    /// Bytes in memory.
    #[cfg(test)]
    pub fn size(&self) -> usize {
        match &self.body {
            Body::F32(columns) => size_of_val(columns.as_slice()),
            Body::F16(columns) => size_of_val(columns.as_slice()),
            Body::BF16(columns) => size_of_val(columns.as_slice()),
            Body::InPlace(all) => all.bytes().len(),
            Body::Q8_0(c) | Body::Q4_0(c) | Body::Q4_1(c) | Body::Q5_0(c) => c.size(),
            Body::Q5_1(c) | Body::Q4K(c) | Body::Q5K(c) | Body::Q6K(c) => c.size(),
        }
    }

    /// Sixteen rows times vectors of `x`, the tile from the `first` on: `out[n]` gets the products with the n-th of them.
    pub fn times(&self, level: Level, group: usize, x: Input<'_>, first: usize, out: &mut [[f32; LANES]]) {
        let columns = group * self.columns..(group + 1) * self.columns;
        let Input { plane, numbers, rounded } = x;
        macro_rules! plain {
            ($columns:expr) => {
                level.run(Plain { columns: &$columns[columns], x: numbers, first, out })
            };
        }
        macro_rules! coded {
            ($coded:expr, $codes:ty, $scales:ty) => {{
                let of = PhantomData::<($codes, $scales)>;
                match rounded {
                    Some(x) => level.run(Narrow { coded: $coded, group, x, first, out, of }),
                    None => level.run(Exact { coded: $coded, group, x: numbers, first, out, of }),
                }
            }};
        }
        match &self.body {
            Body::F32(all) => plain!(all),
            Body::F16(all) => plain!(all),
            Body::BF16(all) => plain!(all),
            Body::InPlace(all) => {
                let (rows, vectors) = (group * LANES..(group + 1) * LANES, first..first + out.len());
                all.times(level, rows, (plane, vectors), (out.as_flattened_mut(), LANES));
            }
            Body::Q8_0(coded) => coded!(coded, Eight, Centred<0>),
            Body::Q4_0(coded) => coded!(coded, Four, Centred<8>),
            Body::Q4_1(coded) => coded!(coded, Four, Shifted),
            Body::Q5_0(coded) => coded!(coded, Five, Centred<16>),
            Body::Q5_1(coded) => coded!(coded, Five, Shifted),
            Body::Q4K(coded) => coded!(coded, Four, Super),
            Body::Q5K(coded) => coded!(coded, Five, Super),
            Body::Q6K(coded) => coded!(coded, Six, SuperHalves),
        }
    }

    /// Groups from `group` on times an `x` of one vector: `out[g]` gets the products of the g-th of them, bit for bit as
    /// [`times`](Self::times) gives them.
    pub fn times_one(&self, level: Level, mut group: usize, x: Input<'_>, out: &mut [[f32; LANES]]) {
        let alone = |group: usize, out: &mut [[f32; LANES]]| {
            (group..).zip(out.chunks_mut(1)).for_each(|(group, out)| self.times(level, group, x, 0, out));
        };
        if let Body::InPlace(all) = &self.body {
            return all.times_one(level, group, x.plane.row(0), out);
        }
        let (fours, rest) = out.as_chunks_mut::<ABREAST>();
        for out in fours {
            match &self.body {
                Body::F32(all) => level.run(self.abreast(all, group, x, out)),
                Body::F16(all) => level.run(self.abreast(all, group, x, out)),
                Body::BF16(all) => level.run(self.abreast(all, group, x, out)),
                _ => alone(group, out),
            }
            group += ABREAST;
        }
        alone(group, rest);
    }

    /// As [`times`](Self::times), of half of the columns, for matrices of few rows and many columns: the sum is taken in
    /// stretches, so that it waits less for itself, and the same whatever the number of vectors.
    pub fn times_half(
        &self,
        level: Level,
        (group, half): (usize, usize),
        x: Input<'_>,
        first: usize,
        out: &mut [[f32; LANES]],
    ) {
        let middle = self.columns.div_ceil(2);
        let within = if half == 0 { 0..middle } else { middle..self.columns };
        let columns = group * self.columns + within.start..group * self.columns + within.end;
        match &self.body {
            Body::F32(all) => level.run(Stretched { columns: &all[columns], x: x.numbers, within, first, out }),
            Body::F16(all) => level.run(Stretched { columns: &all[columns], x: x.numbers, within, first, out }),
            Body::BF16(all) => level.run(Stretched { columns: &all[columns], x: x.numbers, within, first, out }),
            // Other sums are not cut: the first half is all of one.
            _ if half == 0 => self.times(level, group, Input { rounded: None, ..x }, first, out),
            _ => out.as_flattened_mut().fill(0.0),
        }
    }

    fn abreast<'a, C>(
        &self,
        all: &'a [C],
        group: usize,
        x: Input<'a>,
        out: &'a mut [[f32; LANES]; ABREAST],
    ) -> Abreast<'a, C> {
        let columns = &all[group * self.columns..(group + ABREAST) * self.columns];
        Abreast { columns, x: x.numbers.part(0), out }
    }

    /// The numbers of sixteen rows: `out[k * stride]` gets those of the k-th of `columns`, which begin and end at whole
    /// blocks.
    pub fn widen(&self, level: Level, group: usize, columns: Range<usize>, out: &mut [Floats], stride: usize) {
        level.run(Widen { matrix: self, group, columns, out, stride });
    }

    /// Has the second cache fetch what [`widen`](Self::widen) will read, as far as it is there.
    pub fn fetch(&self, level: Level, group: usize, columns: Range<usize>) {
        level.run(Fetch { matrix: self, group, columns });
    }

    /// All rows, behind each other.
    #[cfg(test)]
    pub fn numbers(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.rows * self.columns];
        all.chunks_exact_mut(self.columns).enumerate().for_each(|(row, out)| self.read(row, out));
        all
    }

    /// Reads a row into `out`, `columns` long: the numbers of the file.
    pub fn read(&self, row: usize, out: &mut [f32]) {
        let (group, lane) = (row / LANES, row % LANES);
        let columns = group * self.columns..(group + 1) * self.columns;
        fn put<C>(out: &mut [f32], columns: &[C], number: impl Fn(&C) -> f32) {
            out.iter_mut().zip(columns).for_each(|(out, column)| *out = number(column));
        }
        match &self.body {
            Body::F32(all) => put(out, &all[columns], |column| column.0[lane]),
            Body::F16(all) => put(out, &all[columns], |column| f16::from_bits(column.0[lane]).to_f32()),
            Body::BF16(all) => put(out, &all[columns], |column| bf16::from_bits(column.0.0[lane]).to_f32()),
            Body::InPlace(all) => all.read(row, out),
            Body::Q8_0(c) => c.read::<Eight>(group, lane, out, |at| (c.scale(at, lane), 0.0)),
            Body::Q4_0(c) => c.read::<Four>(group, lane, out, |at| (c.scale(at, lane), -8.0 * c.scale(at, lane))),
            Body::Q5_0(c) => c.read::<Five>(group, lane, out, |at| (c.scale(at, lane), -16.0 * c.scale(at, lane))),
            Body::Q4_1(c) => c.read::<Four>(group, lane, out, |at| (c.scale(at, lane), c.minimum(at, lane))),
            Body::Q5_1(c) => c.read::<Five>(group, lane, out, |at| (c.scale(at, lane), c.minimum(at, lane))),
            Body::Q4K(c) => c.read::<Four>(group, lane, out, |at| c.super_scale(at, lane)),
            Body::Q5K(c) => c.read::<Five>(group, lane, out, |at| c.super_scale(at, lane)),
            Body::Q6K(c) => c.read::<Six>(group, lane, out, |at| {
                let scale = c.scale(at / 16, lane) * f32::from(c.factor[at][lane] as i8);
                (scale, -32.0 * scale)
            }),
        }
    }
}

/// Numbers times f32.
struct Plain<'a, C> {
    columns: &'a [C],
    x: &'a Interleaved,
    first: usize,
    out: &'a mut [[f32; LANES]],
}

impl<C: Column> Work for Plain<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Plain { columns, x, first: tile, out } = self;
        by_parts!(I::WIDEST, out.len(), |first, N| {
            let sums = plain(isa, columns, x.part(tile + first), [isa.splat(0.0); N]);
            out[first..].iter_mut().zip(sums).for_each(|(out, sum)| *out = isa.store(sum));
        });
    }
}

/// Numbers of neighbouring groups times one vector.
struct Abreast<'a, C> {
    columns: &'a [C],
    x: &'a [[f32; 1]],
    out: &'a mut [[f32; LANES]; ABREAST],
}

impl<C: Column> Work for Abreast<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Abreast { columns, x, out } = self;
        let each = columns.len() / ABREAST;
        let group = |at: usize| &columns[at * each..(at + 1) * each];
        let sums = abreast(isa, [group(0), group(1), group(2), group(3)], x, [isa.splat(0.0); ABREAST]);
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = isa.store(sum));
    }
}

/// Numbers times f32, of the columns `within`.
struct Stretched<'a, C> {
    columns: &'a [C],
    x: &'a Interleaved,
    within: Range<usize>,
    first: usize,
    out: &'a mut [[f32; LANES]],
}

impl<C: Column> Work for Stretched<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Stretched { columns, x, within, first: tile, out } = self;
        by_parts!(I::WIDEST, out.len(), |first, N| {
            let sums = stretched::<I, C, N>(isa, columns, &x.part(tile + first)[within.clone()]);
            out[first..].iter_mut().zip(sums).for_each(|(out, sum)| *out = isa.store(sum));
        });
    }
}

/// Codes times f32.
struct Exact<'a, T, S> {
    coded: &'a Coded,
    group: usize,
    x: &'a Interleaved,
    first: usize,
    out: &'a mut [[f32; LANES]],
    of: PhantomData<(T, S)>,
}

impl<T: Codes, S: Scales> Work for Exact<'_, T, S> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Exact { coded, group, x, first: tile, out, .. } = self;
        by_parts!(I::WIDEST, out.len(), |first, N| {
            let sums = exact::<I, T, S, N>(isa, coded, group, x.part(tile + first));
            out[first..].iter_mut().zip(sums).for_each(|(out, sum)| *out = isa.store(sum));
        });
    }
}

/// Codes times eight bits.
struct Narrow<'a, T, S> {
    coded: &'a Coded,
    group: usize,
    x: &'a Rounded,
    first: usize,
    out: &'a mut [[f32; LANES]],
    of: PhantomData<(T, S)>,
}

impl<T: Codes, S: Scales> Work for Narrow<'_, T, S> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Narrow { coded, group, x, first: tile, out, .. } = self;
        by_parts!(I::WIDEST, out.len(), |first, N| {
            let sums = rounded::<I, T, S, N>(isa, coded, group, x, tile + first);
            out[first..].iter_mut().zip(sums).for_each(|(out, sum)| *out = isa.store(sum));
        });
    }
}

struct Widen<'a> {
    matrix: &'a Matrix,
    group: usize,
    columns: Range<usize>,
    out: &'a mut [Floats],
    stride: usize,
}

impl Work for Widen<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Widen { matrix, group, columns, out, stride } = self;
        let blocks = columns.start / BLOCK..columns.end / BLOCK;
        let within = columns;
        let columns = group * matrix.columns + within.start..group * matrix.columns + within.end;
        macro_rules! coded {
            ($coded:expr, $codes:ty, $scales:ty) => {
                widen_coded::<I, $codes, $scales>(isa, $coded, group, blocks, out, stride)
            };
        }
        match &matrix.body {
            Body::F32(all) => widen_plain(isa, &all[columns], out, stride),
            Body::F16(all) => widen_plain(isa, &all[columns], out, stride),
            Body::BF16(all) => widen_plain(isa, &all[columns], out, stride),
            Body::InPlace(all) => all.widen(isa, group, within, out, stride),
            Body::Q8_0(all) => coded!(all, Eight, Centred<0>),
            Body::Q4_0(all) => coded!(all, Four, Centred<8>),
            Body::Q4_1(all) => coded!(all, Four, Shifted),
            Body::Q5_0(all) => coded!(all, Five, Centred<16>),
            Body::Q5_1(all) => coded!(all, Five, Shifted),
            Body::Q4K(all) => coded!(all, Four, Super),
            Body::Q5K(all) => coded!(all, Five, Super),
            Body::Q6K(all) => coded!(all, Six, SuperHalves),
        }
    }
}

struct Fetch<'a> {
    matrix: &'a Matrix,
    group: usize,
    columns: Range<usize>,
}

impl Work for Fetch<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Fetch { matrix, group, columns } = self;
        let end = columns.end.min(matrix.columns);
        if group >= matrix.groups() || columns.start >= end {
            return;
        }
        let (blocks, of_group) = (columns.start / BLOCK..end / BLOCK, group * (matrix.columns / BLOCK));
        let within = columns.start..end;
        let columns = group * matrix.columns + columns.start..group * matrix.columns + end;
        macro_rules! coded {
            ($coded:expr, $codes:ty) => {{
                let lines = of_group + blocks.start..of_group + blocks.end;
                let of_block = <$codes as Codes>::LINES;
                $coded.lines[lines.start * of_block..lines.end * of_block].iter().for_each(|line| isa.fetch(line))
            }};
        }
        match &matrix.body {
            Body::F32(all) => all[columns].iter().for_each(|line| isa.fetch(line)),
            Body::F16(all) => all[columns].iter().step_by(2).for_each(|line| isa.fetch(line)),
            Body::BF16(all) => all[columns].iter().step_by(2).for_each(|line| isa.fetch(line)),
            Body::InPlace(all) => all.fetch(isa, group, within),
            Body::Q8_0(all) => coded!(all, Eight),
            Body::Q4_0(all) | Body::Q4_1(all) | Body::Q4K(all) => coded!(all, Four),
            Body::Q5_0(all) | Body::Q5_1(all) | Body::Q5K(all) => coded!(all, Five),
            Body::Q6K(all) => coded!(all, Six),
        }
    }
}

impl Coded {
    #[cfg(test)]
    fn size(&self) -> usize {
        size_of_val(self.lines.as_slice())
            + size_of_val(self.scale.as_slice())
            + size_of_val(self.minimum.as_slice())
            + size_of_val(self.factor.as_slice())
            + size_of_val(self.minimum_factor.as_slice())
    }

    fn scale(&self, at: usize, lane: usize) -> f32 {
        f16::from_bits(self.scale[at].0[lane]).to_f32()
    }

    fn minimum(&self, at: usize, lane: usize) -> f32 {
        f16::from_bits(self.minimum[at].0[lane]).to_f32()
    }

    /// Of a block of a K type.
    fn super_scale(&self, at: usize, lane: usize) -> (f32, f32) {
        let factor = |of: &[[u8; LANES]]| f32::from(of[at][lane]);
        (self.scale(at / 8, lane) * factor(&self.factor), -self.minimum(at / 8, lane) * factor(&self.minimum_factor))
    }

    /// scale · code + shift, by what `scale` says of each place: a block, or a half block where factors are by halves.
    fn read<C: Codes>(&self, group: usize, lane: usize, out: &mut [f32], scale: impl Fn(usize) -> (f32, f32)) {
        let halves = if C::BITS == 6 { 2 } else { 1 };
        let first = group * self.blocks;
        let lines = self.lines[first * C::LINES..].chunks_exact(C::LINES);
        for ((block, lines), out) in (first..).zip(lines).zip(out.as_chunks_mut::<BLOCK>().0) {
            for (half, out) in out.chunks_exact_mut(BLOCK / halves).enumerate() {
                let (scale, shift) = scale(block * halves + half);
                for (k, out) in out.iter_mut().enumerate() {
                    let code = code::<C>(lines, lane, half * (BLOCK / halves) + k);
                    *out = scale * code + shift;
                }
            }
        }
    }
}

/// The code of a column of a block: what [`Codes::unpack`] gives for it.
fn code<C: Codes>(lines: &[Line], lane: usize, column: usize) -> f32 {
    let (g, byte) = (column / 4, 4 * lane + column % 4);
    if C::BITS == 8 {
        return f32::from(lines[g].0[byte] as i8);
    }
    let low = lines[g % 4].0[byte] >> (4 * (g / 4)) & 15;
    let high = match C::BITS {
        5 => lines[4].0[byte] >> g & 1,
        6 => lines[4 + g / 4].0[byte] >> (2 * (g % 4)) & 3,
        _ => 0,
    };
    f32::from(low | high << 4)
}
