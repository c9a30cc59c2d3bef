//! Products of many rows: some rows or columns of a matrix are widened into a panel that stays in the processor's cache, and
//! all rows of activations go past it, as f32 or as sixteen-bit numbers (`words`).
//!
//! A sum of f32 goes on from where the last panel left it, over the columns in their order: how a product is cut into panels
//! changes no bit, and neither does computing one row alone (`kernels/dot`).

mod outer;
mod words;

use std::ops::Range;

pub use outer::outer;
pub use words::{PAIRS, Words, floats, narrow, scales};

use super::interleaved::{Interleaved, TILE, by_parts};
use super::kernels::dot::BLOCK;
use super::kernels::{Floats, Isa, LANES, Level, Line, Work};
use super::matrix::Matrix;
use super::tiles::Spot;

/// Most columns of a panel's product, a multiple of a block.
pub const WIDTH: usize = 64;
/// Most numbers that are summed over one panel: a strip of it and what is multiplied with it fit the first cache.
pub const DEPTH: usize = 256;
/// Rows that go past all strips of a panel before the next ones do, and stay in the second cache meanwhile.
const CHUNK: usize = 8 * TILE;

/// `[depth, width]`, in strips of as many columns as kernels take at once.
#[derive(Debug, Default)]
pub struct Panel {
    /// In f32, by strip, then by depth, then by sixteen columns.
    data: Vec<Floats>,
    depth: usize,
    /// In sixteens.
    groups: usize,
    /// In words: pairs by part, strip, block, pair and sixteen columns; and the scale of each column, by part.
    pairs: Vec<Line>,
    scales: Vec<Floats>,
    /// Words that are added up to a number: two where these are few, and much is multiplied by each.
    parts: usize,
}

/// What a panel holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Floats,
    Words,
}

/// Rows of activations that go past panels.
pub trait Rows {
    /// What they are multiplied with.
    fn form(&self) -> Form;

    fn past(&self, panel: &Panel, level: Level, product: Product<'_>);
}

/// out += rows[..][columns] · panel, see [`Panel::times`]; the second cache fetches `then`, and of the rows what goes past a
/// panel next: as many rows as these, and as many columns.
pub struct Product<'a> {
    pub columns: Range<usize>,
    pub first: usize,
    pub out: &'a mut [f32],
    pub then: Option<Spot>,
    pub next: Next,
}

/// The first of some rows and of their columns.
#[derive(Debug, Clone, Copy)]
pub struct Next {
    row: usize,
    column: usize,
}

impl Rows for Interleaved {
    fn form(&self) -> Form {
        Form::Floats
    }

    fn past(&self, panel: &Panel, level: Level, product: Product<'_>) {
        level.run(Times { panel, x: self, product });
    }
}

impl Panel {
    /// Some columns of `width` rows of a matrix from `first` on, both multiples of sixteen: multiplied with rows of x, this
    /// gives x Wᵀ. The columns begin and end at whole blocks.
    pub fn rows(
        &mut self,
        level: Level,
        form: Form,
        matrix: &Matrix,
        (first, width): (usize, usize),
        columns: Range<usize>,
    ) {
        self.resize(columns.len(), width);
        for group in 0..self.groups {
            let of_matrix = first / LANES + group;
            match matrix.stays() {
                Some(all) if form == Form::Words => {
                    let (at, step) = self.place_of_words(level, group);
                    let out = &mut self.pairs[at..];
                    self.scales[group] = all.words_of_rows(level, of_matrix, columns.clone(), out, step);
                }
                _ => {
                    let (at, step) = self.place(level, group);
                    matrix.widen(level, of_matrix, columns.clone(), &mut self.data[at..], step);
                }
            }
            // For the next panel, while this one is computed with.
            matrix.fetch(level, of_matrix, columns.end..columns.end + DEPTH);
        }
        if form == Form::Words && matrix.stays().is_none() {
            self.narrow(level, matrix.is_short());
        }
    }

    /// Some rows of a matrix, from a multiple of sixteen on, in some of its columns, whole blocks of at most [`WIDTH`]:
    /// multiplied with rows of dy, this gives dy W.
    pub fn columns(&mut self, level: Level, form: Form, matrix: &Matrix, rows: Range<usize>, columns: Range<usize>) {
        self.resize(rows.len().next_multiple_of(LANES), columns.len().next_multiple_of(LANES));
        // For the next panel, while this one is computed with.
        for above in 0..self.depth / LANES {
            matrix.fetch(level, (rows.start + DEPTH) / LANES + above, columns.clone());
        }
        if let (Some(all), Form::Words) = (matrix.stays(), form) {
            for group in 0..self.groups {
                let (at, step) = self.place_of_words(level, group);
                let (column, out) = (columns.start + group * LANES, &mut self.pairs[at..]);
                self.scales[group] = all.words_of_columns(level, rows.clone(), column, out, step);
            }
            return;
        }
        let mut widened = [Floats([0.0; LANES]); WIDTH];
        for above in 0..self.depth / LANES {
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
        if form == Form::Words {
            self.narrow(level, matrix.is_short());
        }
    }

    /// Numbers that are no matrix's, and keep nearly all of their bits: `row(k)` fills the k-th row.
    pub fn fill(&mut self, level: Level, form: Form, (depth, width): (usize, usize), row: impl Fn(usize, &mut [f32])) {
        self.resize(depth, width.next_multiple_of(LANES));
        let mut numbers = vec![0.0; self.groups * LANES];
        for k in 0..depth {
            row(k, &mut numbers[..width]);
            for (group, numbers) in numbers.as_chunks().0.iter().enumerate() {
                let (at, step) = self.place(level, group);
                self.data[at + k * step] = Floats(*numbers);
            }
        }
        if form == Form::Words {
            self.narrow_twice(level);
        }
    }

    /// out += x[rows][columns] · panel. `out`: `[rows, width]`, as wide as the panel; its first row is the `first` of x, which
    /// begins a tile. As many columns as the panel is deep, or fewer.
    pub fn times(&self, level: Level, x: &impl Rows, columns: Range<usize>, first: usize, out: &mut [f32]) {
        self.times_then(level, x, columns, first, out, None);
    }

    /// The same; meanwhile the second cache fetches the place `then`, as large as `out`, that the result will be put to. What
    /// is written into memory that no cache has waits for it.
    pub fn times_then(
        &self,
        level: Level,
        x: &impl Rows,
        columns: Range<usize>,
        first: usize,
        out: &mut [f32],
        then: Option<Spot>,
    ) {
        assert!(columns.len() <= self.depth && first.is_multiple_of(TILE), "a product that does not fit its panel");
        let (rows, width) = (first..first + out.len() / (self.groups * LANES), self.groups * LANES);
        for (row, out) in rows.clone().step_by(CHUNK).zip(out.chunks_mut(CHUNK * width)) {
            let then = then.map(|spot| spot.below(row - first));
            let next = match row + CHUNK {
                below if below < rows.end => Next { row: below, column: columns.start },
                _ => Next { row: first, column: columns.end },
            };
            x.past(self, level, Product { columns: columns.clone(), first: row, out, then, next });
        }
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
            self.rows(level, x.form(), matrix, (first, width), columns.clone());
            let then = then.filter(|_| columns.end == matrix.columns());
            self.times_then(level, x, columns, first_row, out, then);
        }
    }

    /// Its numbers are of no meaning.
    fn resize(&mut self, depth: usize, width: usize) {
        (self.depth, self.groups, self.parts) = (depth, width / LANES, 1);
        let (zero, pairs) = (Floats([0.0; LANES]), 2 * self.pairs_of_part());
        if self.data.len() < depth * self.groups {
            self.data.resize(depth * self.groups, zero);
        }
        if self.pairs.len() < pairs {
            self.pairs.resize(pairs, Line([0; 64]));
        }
        self.scales.resize(2 * self.groups, zero);
    }

    fn pairs_of_part(&self) -> usize {
        self.blocks() * PAIRS * self.groups
    }

    fn blocks(&self) -> usize {
        self.depth.div_ceil(BLOCK)
    }

    /// Where sixteen columns begin, and how far it is from one row to the next.
    fn place(&self, level: Level, group: usize) -> (usize, usize) {
        let (strip, step) = self.strip(level, group);
        (strip * self.depth + group - strip, step)
    }

    /// As [`place`](Self::place), of the pairs.
    fn place_of_words(&self, level: Level, group: usize) -> (usize, usize) {
        let (strip, step) = self.strip(level, group);
        (strip * self.blocks() * PAIRS + group - strip, step)
    }

    /// The first group of a group's strip, and how many it has.
    fn strip(&self, level: Level, group: usize) -> (usize, usize) {
        let whole = level.groups();
        let strip = group / whole * whole;
        (strip, whole.min(self.groups - strip))
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
    product: Product<'a>,
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
        let Times { panel, x, product: Product { columns, first: first_row, out: all, then, next } } = self;
        let (width, is_last) = (panel.groups * LANES, group + G == panel.groups);
        let strip: &[[Floats; G]] = &panel.data[group * panel.depth..].as_chunks().0[..columns.len()];
        by_parts!(I::WIDEST, all.len() / width, |first, N| {
            let part = &x.part::<N>(*first_row + first)[columns.clone()];
            let out = &mut all[first * width + group * LANES..];
            let mut sums: [[I::F; G]; N] = sums_of(isa, out, width);
            fetch_spot::<I, N, G>(isa, *then, first, group);
            // It lies elsewhere: the processor would not guess it.
            let all_next = next.column..next.column + columns.len();
            let next = x.some::<N>(next.row + first).get(all_next).filter(|_| is_last).unwrap_or(part);
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
