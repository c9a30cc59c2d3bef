//! Products in f32 of many rows: some rows or columns of a matrix are widened into a panel that stays in the processor's
//! cache, and all rows of activations go past it.
//!
//! A sum goes on from where the last panel left it, over the columns in their order: how a product is cut into panels
//! changes no bit, and neither does computing one row alone (`kernels/dot`).

use std::ops::Range;

use super::interleaved::{Interleaved, TILE, by_parts};
use super::kernels::{Floats, Isa, LANES, Level, Work};
use super::matrix::Matrix;
use super::plane::Plane;

/// Most columns of a panel's product, a multiple of a block.
pub const WIDTH: usize = 64;
/// Most numbers that are summed over one panel: a strip of it and what is multiplied with it fit the first cache.
pub const DEPTH: usize = 256;

/// `[depth, width]` of f32, in strips of as many columns as kernels take at once.
#[derive(Debug, Default)]
pub struct Panel {
    /// By strip, then by depth, then by sixteen columns.
    data: Vec<Floats>,
    depth: usize,
    /// In sixteens.
    groups: usize,
}

impl Panel {
    /// Some columns of `width` rows of a matrix from `first` on, both multiples of sixteen: multiplied with rows of x, this
    /// gives x Wᵀ. The columns begin and end at whole blocks.
    pub fn rows(&mut self, level: Level, matrix: &Matrix, first: usize, width: usize, columns: Range<usize>) {
        self.resize(columns.len(), width);
        for group in 0..self.groups {
            let (at, step) = self.place(level, group);
            matrix.widen(level, first / LANES + group, columns.clone(), &mut self.data[at..], step);
        }
    }

    /// Some rows of a matrix, from a multiple of sixteen on, in some of its columns, whole blocks of at most [`WIDTH`]:
    /// multiplied with rows of dy, this gives dy W.
    pub fn columns(&mut self, level: Level, matrix: &Matrix, rows: Range<usize>, columns: Range<usize>) {
        self.resize(rows.len().next_multiple_of(LANES), columns.len().next_multiple_of(LANES));
        let mut widened = [Floats([0.0; LANES]); WIDTH];
        for above in 0..self.depth / LANES {
            matrix.widen(level, rows.start / LANES + above, columns.clone(), &mut widened, 1);
            for (group, square) in widened.as_chunks::<LANES>().0.iter().enumerate().take(self.groups) {
                let (at, step) = self.place(level, group);
                let from = at + above * LANES * step;
                level.run(Turn { square, out: &mut self.data[from..], step });
            }
        }
    }

    /// Numbers that are no matrix's: `row(k)` fills the k-th row.
    pub fn fill(&mut self, level: Level, depth: usize, width: usize, row: impl Fn(usize, &mut [f32])) {
        self.resize(depth, width.next_multiple_of(LANES));
        let mut numbers = vec![0.0; self.groups * LANES];
        for k in 0..depth {
            row(k, &mut numbers[..width]);
            for (group, numbers) in numbers.as_chunks().0.iter().enumerate() {
                let (at, step) = self.place(level, group);
                self.data[at + k * step] = Floats(*numbers);
            }
        }
    }

    /// out += x[rows][columns] · panel. `out`: `[rows, width]`, as wide as the panel; its first row is the `first` of x, which
    /// begins a tile. As many columns as the panel is deep, or fewer.
    pub fn times(&self, level: Level, x: &Interleaved, columns: Range<usize>, first: usize, out: &mut [f32]) {
        assert!(columns.len() <= self.depth && first.is_multiple_of(TILE), "a product that does not fit its panel");
        level.run(Times { panel: self, x, columns, first, out });
    }

    /// out `[rows, width]` += rows of x from `first_row` on times `width` rows of a matrix from `first` on, a multiple of
    /// sixteen; through one panel after the other.
    pub fn product(
        &mut self,
        level: Level,
        matrix: &Matrix,
        x: &Interleaved,
        (first_row, first): (usize, usize),
        (out, width): (&mut [f32], usize),
    ) {
        for from in (0..matrix.columns()).step_by(DEPTH) {
            let columns = from..matrix.columns().min(from + DEPTH);
            self.rows(level, matrix, first, width, columns.clone());
            self.times(level, x, columns, first_row, out);
        }
    }

    /// Its numbers are of no meaning.
    fn resize(&mut self, depth: usize, width: usize) {
        (self.depth, self.groups) = (depth, width / LANES);
        if self.data.len() < depth * self.groups {
            self.data.resize(depth * self.groups, Floats([0.0; LANES]));
        }
    }

    /// Where sixteen columns begin, and how far it is from one row to the next.
    fn place(&self, level: Level, group: usize) -> (usize, usize) {
        let whole = level.groups();
        let strip = group / whole * whole;
        (strip * self.depth + group - strip, whole.min(self.groups - strip))
    }
}

/// Sixteen columns of sixteen rows, to rows of sixteen columns that lie `step` apart.
struct Turn<'a> {
    square: &'a [Floats; LANES],
    out: &'a mut [Floats],
    step: usize,
}

impl Work for Turn<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Turn { square, out, step } = self;
        let rows = isa.transpose(square);
        for (row, out) in rows.iter().zip(out.chunks_mut(step)) {
            out[0] = *row;
        }
    }
}

struct Times<'a> {
    panel: &'a Panel,
    x: &'a Interleaved,
    columns: Range<usize>,
    first: usize,
    out: &'a mut [f32],
}

impl Work for Times<'_> {
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

impl Times<'_> {
    /// All rows past the strip of `G` groups that begins with `group`.
    #[inline(always)]
    fn past<I: Isa, const G: usize>(&mut self, isa: I, group: usize) {
        let Times { panel, x, columns, first: first_row, out: all } = self;
        let width = panel.groups * LANES;
        let strip: &[[Floats; G]] = &panel.data[group * panel.depth..].as_chunks().0[..columns.len()];
        by_parts!(I, all.len() / width, |first, N| {
            let part = &x.part::<N>(*first_row + first)[columns.clone()];
            let out = &mut all[first * width..];
            let mut sums = [[isa.splat(0.0); G]; N];
            for n in 0..N {
                let sixteens = out[n * width + group * LANES..][..G * LANES].as_chunks().0;
                for g in 0..G {
                    sums[n][g] = isa.load(&sixteens[g]);
                }
            }
            // What is read next lies elsewhere: the processor would not guess it.
            let next = x.rest::<N>(*first_row + first + N).get(columns.clone()).unwrap_or(part);
            for ((w, x), next) in strip.iter().zip(part).zip(next) {
                isa.fetch(next);
                let mut wide = [isa.splat(0.0); G];
                for g in 0..G {
                    wide[g] = isa.load(&w[g].0);
                }
                for n in 0..N {
                    let x = isa.splat(x[n]);
                    for g in 0..G {
                        sums[n][g] = isa.fma(wide[g], x, sums[n][g]);
                    }
                }
            }
            for n in 0..N {
                let sixteens = out[n * width + group * LANES..][..G * LANES].as_chunks_mut().0;
                for g in 0..G {
                    sixteens[g] = isa.store(sums[n][g]);
                }
            }
        });
    }
}

/// Rows of x whose products with `low` are summed before the next: what is read of both stays in a cache.
const OUTER: usize = 64;

/// out += x[..][columns]ᵀ · low, a sum over all rows of both. `out`: `[columns, width of low]`, filled up to sixteens.
pub fn outer(level: Level, x: &Plane, columns: Range<usize>, low: &Plane, out: &mut [f32]) {
    assert!(x.rows() == low.rows() && columns.end <= x.width(), "rows that do not fit");
    for from in (0..x.rows()).step_by(OUTER) {
        let rows = from..x.rows().min(from + OUTER);
        level.run(Outer { x, rows, columns: columns.clone(), low, out });
    }
}

struct Outer<'a> {
    x: &'a Plane,
    rows: Range<usize>,
    columns: Range<usize>,
    low: &'a Plane,
    out: &'a mut [f32],
}

impl Work for Outer<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Outer { x, rows, columns, low, out } = self;
        let (stride, width) = (x.stride(), low.stride());
        let (x, low) =
            (&x.data()[rows.start * stride..rows.end * stride], &low.data()[rows.start * width..rows.end * width]);
        for group in 0..width / LANES {
            by_parts!(I, columns.len(), |first, N| {
                let mut sums = [isa.splat(0.0); N];
                for n in 0..N {
                    let at = (first + n) * width + group * LANES;
                    sums[n] = isa.load(&out[at..at + LANES].as_chunks().0[0]);
                }
                let xs = x[columns.start + first..].chunks(stride).filter_map(|row| row.first_chunk::<N>());
                let lows = low[group * LANES..].chunks(width).filter_map(|row| row.first_chunk::<LANES>());
                for (w, x) in lows.zip(xs) {
                    let w = isa.load(w);
                    for n in 0..N {
                        sums[n] = isa.fma(w, isa.splat(x[n]), sums[n]);
                    }
                }
                for n in 0..N {
                    let at = (first + n) * width + group * LANES;
                    out[at..at + LANES].copy_from_slice(&isa.store(sums[n]));
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::kernels::tests::{matrix, plane, widths};
    use super::super::matrix::Input;
    use super::super::pool::Pool;
    use super::*;
    use crate::model::storage::Storage;

    fn near(found: f32, products: impl Iterator<Item = (f32, f32)>, what: &str) {
        let products = products.map(|(a, b)| f64::from(a) * f64::from(b));
        let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
        assert!((f64::from(found) - sum).abs() <= 4e-6 * size + 1e-6, "{what}: {found} and {sum}");
    }

    #[test]
    fn rows_of_a_matrix_give_the_bits_of_one_row_alone() {
        let (mut rng, pool) = (StdRng::seed_from_u64(3), Pool::new(1).unwrap());
        for storage in Storage::READABLE {
            for &columns in widths(storage) {
                let (rows, tokens) = if cfg!(miri) { (17, 4) } else { (85, 29) };
                let (matrix, x) = (matrix(storage, rows, columns, &mut rng).0, plane(tokens, columns, &mut rng));
                for level in Level::all() {
                    let (lined, mut panel) = (Interleaved::new(&pool, level, &x), Panel::default());
                    for (first, width) in [(0, 64), (64, 32), (16, 48), (80, 16)] {
                        let width = width.min(rows.next_multiple_of(LANES).saturating_sub(first));
                        // From a tile on, in two pieces where there are two blocks.
                        let from = if tokens > TILE { TILE } else { 0 };
                        let mut out = vec![0.0; (tokens - from) * width];
                        let cut = if columns > 64 { columns / 64 * 32 } else { 0 };
                        for piece in [0..cut, cut..columns].into_iter().filter(|piece| !piece.is_empty()) {
                            panel.rows(level, &matrix, first, width, piece.clone());
                            panel.times(level, &lined, piece, from, &mut out);
                        }
                        for token in from..tokens {
                            let mut alone = [[0.0; LANES]];
                            let one = plane_of(x.row(token));
                            let one = Interleaved::new(&pool, level, &one);
                            for group in 0..width / LANES {
                                let input = Input { numbers: &one, rounded: None };
                                matrix.times(level, first / LANES + group, input, 0, &mut alone);
                                let found = &out[(token - from) * width + group * LANES..][..LANES];
                                assert_eq!(found, alone[0], "{storage}, {level:?}, {columns} columns from {first}");
                            }
                        }
                    }
                }
            }
        }
    }

    fn plane_of(row: &[f32]) -> Plane {
        let mut plane = Plane::new(1, row.len());
        plane.row_mut(0).copy_from_slice(row);
        plane
    }

    #[test]
    fn columns_of_a_matrix_are_summed_over_its_rows() {
        let (mut rng, pool) = (StdRng::seed_from_u64(4), Pool::new(1).unwrap());
        for storage in Storage::READABLE {
            let wide = widths(storage)[0];
            let (rows, tokens) = if cfg!(miri) { (17, 4) } else { (85, 29) };
            let ((matrix, numbers), dy) = (matrix(storage, rows, wide, &mut rng), plane(tokens, rows, &mut rng));
            for level in Level::all() {
                let (lined, mut panel) = (Interleaved::new(&pool, level, &dy), Panel::default());
                for first in (0..wide).step_by(WIDTH) {
                    let columns = first..wide.min(first + WIDTH);
                    let width = columns.len().next_multiple_of(LANES);
                    let mut out = vec![0.0; tokens * width];
                    for span in [0..16, 16..rows] {
                        panel.columns(level, &matrix, span.clone(), columns.clone());
                        panel.times(level, &lined, span, 0, &mut out);
                    }
                    for (token, out) in out.chunks(width).enumerate() {
                        for (column, found) in columns.clone().zip(out) {
                            let w = numbers[column..].iter().step_by(wide).copied();
                            near(*found, w.zip(dy.row(token).iter().copied()), &format!("{storage}, {level:?}"));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_that_are_no_matrix() {
        let (mut rng, pool) = (StdRng::seed_from_u64(5), Pool::new(1).unwrap());
        for (depth, width, tokens) in [(1, 1, 1), (16, 64, 13), (5, 37, 30)] {
            let (b, x) = (plane(depth, width, &mut rng), plane(tokens, depth, &mut rng));
            for level in Level::all() {
                let (lined, mut panel) = (Interleaved::new(&pool, level, &x), Panel::default());
                panel.fill(level, depth, width, |k, row| row.copy_from_slice(b.row(k)));
                let mut out = vec![0.0; tokens * b.stride()];
                panel.times(level, &lined, 0..depth, 0, &mut out);
                for (token, out) in out.chunks(b.stride()).enumerate() {
                    for (column, found) in out[..width].iter().enumerate() {
                        let products = (0..depth).map(|k| (x.row(token)[k], b.row(k)[column]));
                        near(*found, products, &format!("{level:?}, {depth} × {width}"));
                    }
                }
            }
        }
    }

    #[test]
    fn outer_products_are_summed_over_all_rows() {
        let mut rng = StdRng::seed_from_u64(6);
        for (rows, wide, rank, columns) in [(1, 1, 1, 0..1), (70, 50, 16, 3..50), (130, 40, 20, 0..13)] {
            let (x, low) = (plane(rows, wide, &mut rng), plane(rows, rank, &mut rng));
            for level in Level::all() {
                let mut out = vec![0.0; columns.len() * low.stride()];
                outer(level, &x, columns.clone(), &low, &mut out);
                for (column, out) in columns.clone().zip(out.chunks(low.stride())) {
                    for (k, found) in out[..rank].iter().enumerate() {
                        let products = (0..rows).map(|row| (x.row(row)[column], low.row(row)[k]));
                        near(*found, products, &format!("{level:?}, {rows} × {wide}, rank {rank}"));
                    }
                }
            }
        }
    }
}
