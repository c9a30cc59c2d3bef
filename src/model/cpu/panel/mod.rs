//! Products of many rows: some rows or columns of a matrix are widened into a panel that stays in the processor's cache, and
//! all rows of activations go past it, as f32 or as sixteen-bit numbers (`words`).
//!
//! A sum of f32 goes on from where the last panel left it, over the columns in their order: how a product is cut into panels
//! changes no bit, and neither does computing one row alone (`kernels/dot`).

mod outer;
mod words;

use std::ops::Range;

pub use outer::outer;
pub use words::Words;

use super::interleaved::{Interleaved, TILE, by_parts};
use super::kernels::{Floats, Isa, LANES, Level, Line, Work};
use super::matrix::Matrix;
use super::tiles::Spot;

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
    /// The same in words, where they are wanted: pairs by strip, block, pair and sixteen columns; their scales by strip, block
    /// and sixteen columns.
    pairs: Vec<Line>,
    scales: Vec<Floats>,
}

/// Rows of activations that go past panels.
pub trait Rows {
    /// out += rows[..][columns] · panel, see [`Panel::times`]; the second cache fetches `then`.
    fn past(
        &self,
        panel: &mut Panel,
        level: Level,
        columns: Range<usize>,
        first: usize,
        out: &mut [f32],
        then: Option<Spot>,
    );
}

impl Rows for Interleaved {
    fn past(
        &self,
        panel: &mut Panel,
        level: Level,
        columns: Range<usize>,
        first: usize,
        out: &mut [f32],
        then: Option<Spot>,
    ) {
        level.run(Times { panel, x: self, columns, first, out, then });
    }
}

impl Panel {
    /// Some columns of `width` rows of a matrix from `first` on, both multiples of sixteen: multiplied with rows of x, this
    /// gives x Wᵀ. The columns begin and end at whole blocks.
    pub fn rows(&mut self, level: Level, matrix: &Matrix, first: usize, width: usize, columns: Range<usize>) {
        self.resize(columns.len(), width);
        for group in 0..self.groups {
            let (at, step) = self.place(level, group);
            matrix.widen(level, first / LANES + group, columns.clone(), &mut self.data[at..], step);
            // For the next panel, while this one is computed with.
            matrix.fetch(level, first / LANES + group, columns.end..columns.end + DEPTH);
        }
    }

    /// Some rows of a matrix, from a multiple of sixteen on, in some of its columns, whole blocks of at most [`WIDTH`]:
    /// multiplied with rows of dy, this gives dy W.
    pub fn columns(&mut self, level: Level, matrix: &Matrix, rows: Range<usize>, columns: Range<usize>) {
        self.resize(rows.len().next_multiple_of(LANES), columns.len().next_multiple_of(LANES));
        let mut widened = [Floats([0.0; LANES]); WIDTH];
        for above in 0..self.depth / LANES {
            // For the next panel, while this one is computed with.
            matrix.fetch(level, (rows.start + DEPTH) / LANES + above, columns.clone());
            if let Some(all) = matrix.stays() {
                for group in 0..self.groups {
                    let (at, step) = self.place(level, group);
                    let (from, column) = (at + above * LANES * step, columns.start + group * LANES);
                    all.widen_rows(level, rows.start / LANES + above, column, &mut self.data[from..], step);
                }
                continue;
            }
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
    pub fn times(&mut self, level: Level, x: &impl Rows, columns: Range<usize>, first: usize, out: &mut [f32]) {
        self.times_then(level, x, columns, first, out, None);
    }

    /// The same; meanwhile the second cache fetches the place `then`, as large as `out`, that the result will be put to. What
    /// is written into memory that no cache has waits for it.
    pub fn times_then(
        &mut self,
        level: Level,
        x: &impl Rows,
        columns: Range<usize>,
        first: usize,
        out: &mut [f32],
        then: Option<Spot>,
    ) {
        assert!(columns.len() <= self.depth && first.is_multiple_of(TILE), "a product that does not fit its panel");
        x.past(self, level, columns, first, out, then);
    }

    /// out `[rows, width]` += rows of x from `first_row` on times `width` rows of a matrix from `first` on, a multiple of
    /// sixteen; through one panel after the other, and the last with `then`.
    pub fn product(
        &mut self,
        level: Level,
        matrix: &Matrix,
        x: &impl Rows,
        (first_row, first): (usize, usize),
        (out, width): (&mut [f32], usize),
        then: Option<Spot>,
    ) {
        for from in (0..matrix.columns()).step_by(DEPTH) {
            let columns = from..matrix.columns().min(from + DEPTH);
            self.rows(level, matrix, first, width, columns.clone());
            let then = then.filter(|_| columns.end == matrix.columns());
            self.times_then(level, x, columns, first_row, out, then);
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
    then: Option<Spot>,
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
        let Times { panel, x, columns, first: first_row, out: all, then } = self;
        let width = panel.groups * LANES;
        let strip: &[[Floats; G]] = &panel.data[group * panel.depth..].as_chunks().0[..columns.len()];
        by_parts!(I::WIDEST, all.len() / width, |first, N| {
            let part = &x.part::<N>(*first_row + first)[columns.clone()];
            let out = &mut all[first * width + group * LANES..];
            let mut sums: [[I::F; G]; N] = sums_of(isa, out, width);
            fetch_spot::<I, N, G>(isa, *then, first, group);
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
            put_sums(isa, sums, out, width);
        });
    }
}

/// Has the place of `N` rows from `first` on fetched, in `G` groups of columns from `group` on.
#[inline(always)]
fn fetch_spot<I: Isa, const N: usize, const G: usize>(isa: I, spot: Option<Spot>, first: usize, group: usize) {
    let Some(spot) = spot else { return };
    for n in 0..N {
        for g in 0..G {
            isa.fetch(spot.of(first + n, (group + g) * LANES));
        }
    }
}

/// `N` rows, `width` apart, of `G` times sixteen numbers each: the sums that a kernel goes on from.
#[inline(always)]
fn sums_of<I: Isa, const N: usize, const G: usize>(isa: I, out: &[f32], width: usize) -> [[I::F; G]; N] {
    let mut sums = [[isa.splat(0.0); G]; N];
    for n in 0..N {
        let sixteens = out[n * width..][..G * LANES].as_chunks().0;
        for g in 0..G {
            sums[n][g] = isa.load(&sixteens[g]);
        }
    }
    sums
}

/// Puts back what [`sums_of`] took.
#[inline(always)]
fn put_sums<I: Isa, const N: usize, const G: usize>(isa: I, sums: [[I::F; G]; N], out: &mut [f32], width: usize) {
    for n in 0..N {
        let sixteens = out[n * width..][..G * LANES].as_chunks_mut().0;
        for g in 0..G {
            sixteens[g] = isa.store(sums[n][g]);
        }
    }
}

#[cfg(test)]
mod tests;
