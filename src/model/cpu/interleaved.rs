//! Activations as the products of f32 read them: a few rows side by side, the numbers of a column next to each other.
//!
//! Rows that lie behind each other would take an address of their own each, more than a processor has registers for.

use std::ops::Range;

use super::kernels::{Floats, Isa, LANES, Level, Work};
use super::plane::Plane;
use super::pool::Pool;
use super::tiles::Regions;

/// Rows that go to a product at once.
pub const TILE: usize = 12;

/// Rows of one width, cut into tiles of [`TILE`] and these into parts ([`part`]); of each part all of the first column's
/// numbers, then all of the second's. The part that begins with row r begins at r · width.
#[derive(Debug, Default)]
pub struct Interleaved {
    /// As much memory as its numbers take; its rows are of no meaning.
    memory: Plane,
}

impl Interleaved {
    pub fn new(pool: &Pool, level: Level, plane: &Plane) -> Interleaved {
        let mut new = Interleaved::default();
        new.fill(pool, level, plane, 0..plane.width());
        new
    }

    /// In the memory of a plane.
    pub fn within(memory: Plane) -> Interleaved {
        Interleaved { memory }
    }

    /// Some columns of all rows of a plane take the place of what was there.
    pub fn fill<R: Regions>(&mut self, on: &R, level: Level, plane: &Plane, columns: Range<usize>) -> R::Done {
        let (rows, width, stride) = (plane.rows(), columns.len(), plane.stride());
        self.memory.resize(rows, width);
        let from = plane.data().get(columns.start..).unwrap_or_default();
        on.chunks(&mut self.memory.data_mut()[..rows * width], TILE * width.max(1), |tile, out| {
            interleave(level, &from[tile * TILE * stride..], stride, width, out);
        })
    }

    /// As [`part`](Self::part); empty where there are no such rows.
    #[inline(always)]
    pub fn some<const N: usize>(&self, first: usize) -> &[[f32; N]] {
        let width = self.memory.width();
        self.memory.data().get(first * width..(first + N) * width).unwrap_or_default().as_chunks().0
    }

    /// The part of `N` rows that begins with row `first`: by column, then by row.
    #[inline(always)]
    pub fn part<const N: usize>(&self, first: usize) -> &[[f32; N]] {
        let width = self.memory.width();
        self.memory.data()[first * width..][..N * width].as_chunks().0
    }
}

/// Sizes of parts, for kernels that take at most `widest` rows at once. Few: each is compiled for every type.
const fn sizes(widest: usize) -> [usize; 3] {
    [widest, widest / 3, 1]
}

/// Whether kernels of that width take parts of that size.
pub const fn is_size(size: usize, widest: usize) -> bool {
    let [wide, narrow, one] = sizes(widest);
    size == wide || size == narrow || size == one
}

/// Size of the part that begins with row `first` of `rows`.
#[inline(always)]
pub fn part(first: usize, rows: usize, widest: usize) -> usize {
    let left = (rows - first).min(TILE - first % TILE);
    sizes(widest).into_iter().find(|&size| size <= left).unwrap_or(1)
}

/// Evaluates `$body` for each part of `$rows` rows, with the constant `$N` for its size, at most `$widest`.
macro_rules! by_parts {
    ($widest:expr, $rows:expr, |$first:ident, $N:ident| $body:expr) => {
        by_parts!($widest, $rows, |$first, $N| $body, 12 6 4 3 2 1)
    };
    ($widest:expr, $rows:expr, |$first:ident, $N:ident| $body:expr, $($size:literal)+) => {{
        let (mut $first, rows) = (0, $rows);
        while $first < rows {
            let size = $crate::model::cpu::interleaved::part($first, rows, $widest);
            $(if const { $crate::model::cpu::interleaved::is_size($size, $widest) } && size == $size {
                const $N: usize = $size;
                $body
            })+
            $first += size;
        }
    }};
}
pub(super) use by_parts;

/// Rows of `width`, `stride` apart, as many as `out` has room for.
pub fn interleave(level: Level, from: &[f32], stride: usize, width: usize, out: &mut [f32]) {
    level.run(Interleave { from, stride, width, out });
}

pub struct Interleave<'a> {
    pub from: &'a [f32],
    pub stride: usize,
    pub width: usize,
    pub out: &'a mut [f32],
}

impl Work for Interleave<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Interleave { from, stride, width, out } = self;
        by_parts!(I::WIDEST, out.len() / width.max(1), |first, N| {
            let out = out[first * width..][..N * width].as_chunks_mut::<N>().0;
            let (squares, rest) = out.as_chunks_mut::<LANES>();
            let mut square = [Floats([0.0; LANES]); LANES];
            for (at, out) in squares.iter_mut().enumerate() {
                for n in 0..N {
                    square[n].0.copy_from_slice(&from[(first + n) * stride + at * LANES..][..LANES]);
                }
                let columns = isa.transpose(&square);
                for (out, column) in out.iter_mut().zip(&columns) {
                    out.copy_from_slice(&column.0[..N]);
                }
            }
            let done = width / LANES * LANES;
            for (at, out) in rest.iter_mut().enumerate() {
                for n in 0..N {
                    out[n] = from[(first + n) * stride + done + at];
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_where_its_part_has_it() {
        let number = |row: usize, column: usize| (100 * row + column) as f32;
        for (rows, width) in [(1, 5), (3, 4), (11, 7), (12, 16), (41, 33)] {
            let mut plane = Plane::new(rows, width);
            for row in 0..rows {
                (0..width).for_each(|column| plane.row_mut(row)[column] = number(row, column));
            }
            for level in Level::all() {
                let interleaved = Interleaved::new(&Pool::new(2).unwrap(), level, &plane);
                let (mut first, mut sizes) = (0, Vec::new());
                while first < rows {
                    let of = part(first, rows, level.widest());
                    let part = &interleaved.memory.data()[first * width..][..of * width];
                    for (column, numbers) in part.chunks(of).enumerate() {
                        let expected: Vec<f32> = (0..of).map(|n| number(first + n, column)).collect();
                        assert_eq!(numbers, expected, "{level:?}, {rows} × {width}");
                    }
                    sizes.push(of);
                    first += of;
                }
                assert!(sizes.iter().all(|size| *size <= level.widest()) && first == rows, "{sizes:?}");
            }
        }
    }
}
