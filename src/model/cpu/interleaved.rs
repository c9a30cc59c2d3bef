//! Activations as the products of f32 read them: a few rows side by side, the numbers of a column next to each other.
//!
//! Rows that lie behind each other would take an address of their own each, more than a processor has registers for.

use super::kernels::Level;
use super::plane::Plane;
use super::pool::Pool;
use super::tiles::Regions;

/// Rows that go to a product at once.
pub const TILE: usize = 12;

/// Rows of one width, cut into tiles of [`TILE`] and these into parts ([`part`]); of each part all of the first column's
/// numbers, then all of the second's. The part that begins with row r begins at r · width.
#[derive(Debug, Default)]
pub struct Interleaved {
    data: Vec<f32>,
    width: usize,
}

impl Interleaved {
    pub fn new(pool: &Pool, level: Level, plane: &Plane) -> Interleaved {
        let mut new = Interleaved::default();
        new.fill(pool, level, plane);
        new
    }

    /// Takes the place of what was there.
    pub fn fill(&mut self, pool: &Pool, level: Level, plane: &Plane) {
        self.width = plane.width();
        self.data.resize(plane.rows() * self.width, 0.0);
        let (from, stride, widest) = (plane.data(), plane.stride(), level.widest());
        pool.chunks(&mut self.data, TILE * self.width.max(1), |tile, out| {
            interleave(&from[tile * TILE * stride..], stride, self.width, widest, out);
        });
    }

    /// The part of `N` rows that begins with row `first`: by column, then by row.
    #[inline(always)]
    pub fn part<const N: usize>(&self, first: usize) -> &[[f32; N]] {
        self.data[first * self.width..][..N * self.width].as_chunks().0
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

/// Evaluates `$body` for each part of `$rows` rows, with the constant `$N` for its size.
macro_rules! by_parts {
    ($isa:ident, $rows:expr, |$first:ident, $N:ident| $body:expr) => {
        by_parts!($isa, $rows, |$first, $N| $body, 12 6 4 3 2 1)
    };
    ($isa:ident, $rows:expr, |$first:ident, $N:ident| $body:expr, $($size:literal)+) => {{
        let (mut $first, rows) = (0, $rows);
        while $first < rows {
            let size = $crate::model::cpu::interleaved::part($first, rows, $isa::WIDEST);
            $(if const { $crate::model::cpu::interleaved::is_size($size, $isa::WIDEST) } && size == $size {
                const $N: usize = $size;
                $body
            })+
            $first += size;
        }
    }};
}
pub(super) use by_parts;

/// Rows of `width`, `stride` apart, as many as `out` has room for.
pub fn interleave(from: &[f32], stride: usize, width: usize, widest: usize, out: &mut [f32]) {
    let (mut first, rows) = (0, out.len() / width.max(1));
    while first < rows {
        let of = part(first, rows, widest);
        let out = &mut out[first * width..][..of * width];
        for n in 0..of {
            let row = &from[(first + n) * stride..][..width];
            out[n..].iter_mut().step_by(of).zip(row).for_each(|(out, x)| *out = *x);
        }
        first += of;
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
                    let part = &interleaved.data[first * width..][..of * width];
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
