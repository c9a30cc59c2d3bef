//! A matrix that stays as its file has it, row behind row: plain numbers, which take as much memory packed, and longer to be
//! there.
//!
//! A product of a row is summed in sixteen lanes, one for the columns 0, 16, 32 and so on, the next for 1, 17, 33; then the
//! lanes are added up by twos. Each sum is taken in this order whatever is computed beside it, so one vector alone and many
//! get the same bits. Panels, which training makes, turn sixteen rows into columns a line at a time.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::kernels::dot::{Brains, Column, widen_plain};
use super::kernels::{Floats, Halves, Isa, LANES, Level, Work};
use super::plane::Plane;
use crate::error::{Error, Result};
use crate::model::mapped::Bytes;
use crate::model::storage::Storage;

/// Bytes of a line of the processor's cache, and of what is turned at once of a row.
const LINE: usize = 64;
/// Rows whose sums go on side by side: one alone would wait for itself.
const ROWS: usize = 4;
/// Most rows that are widened side by side.
const MOST_ROWS: usize = 8;
/// Lines of a row that are widened at once for many vectors, at most two sixteens each: of eight rows, which processors with
/// AVX-512 take, 32 KB, of four 16 KB.
const PIECE: usize = 32;
const WIDE: usize = PIECE * LINE / 2 / LANES;
/// Vectors that meet a piece before the next is widened: their sums, 96 KB of eight rows, come from the second cache.
const VECTORS: usize = 192;

thread_local! {
    /// A piece and its sums: each thread has its own, and keeps them from task to task. No part of [`Room`](super::room::Room),
    /// which some callers have taken.
    static SCRATCH: RefCell<Vec<Floats>> = const { RefCell::new(Vec::new()) };
}

type Row<'a> = &'a [[u8; LINE]];

/// `[rows, columns]`, row-major: whole groups of sixteen rows, and whole lines.
#[derive(Debug)]
pub struct InPlace {
    bytes: Bytes,
    /// Lines of a row.
    lines: usize,
    kind: Kind,
}

/// What lies in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    F32,
    F16,
    BF16,
}

/// Numbers as files have them, lowest byte first; as a type, a column of sixteen rows of them.
trait Stored: Column + Copy {
    /// Numbers of a line.
    const OF_LINE: usize;
    const NONE: Self;
    /// Whether all numbers of a line are.
    fn is_finite(line: &[u8; LINE]) -> bool;
    /// Sixteen numbers of a line, the `at`-th.
    fn sixteen<I: Isa>(isa: I, line: &[u8; LINE], at: usize) -> I::F;
    /// The columns of a line of sixteen rows.
    fn turn<I: Isa>(isa: I, rows: [&[u8; LINE]; LANES], out: &mut [Self]);
}

/// Evaluates `$body` with the type of `$of`'s numbers as `$C`.
macro_rules! by_kind {
    ($of:expr, $C:ident => $body:expr) => {
        match $of.kind {
            Kind::F32 => {
                type $C = Floats;
                $body
            }
            Kind::F16 => {
                type $C = Halves;
                $body
            }
            Kind::BF16 => {
                type $C = Brains;
                $body
            }
        }
    };
}

mod narrow; // below what it takes of here
#[cfg(test)]
mod tests;

impl InPlace {
    /// None where a matrix of that type or shape is to be packed. Errors when a number is not finite, or bytes are missing.
    pub fn new(rows: usize, columns: usize, storage: Storage, bytes: Bytes) -> Result<Option<InPlace>> {
        let (kind, size) = match storage {
            Storage::F32 => (Kind::F32, 4),
            Storage::F16 => (Kind::F16, 2),
            Storage::BF16 => (Kind::BF16, 2),
            _ => return Ok(None),
        };
        if !rows.is_multiple_of(LANES) || !(columns * size).is_multiple_of(LINE) {
            return Ok(None);
        }
        if bytes.len() != rows * columns * size {
            return Err(Error::failure(format!("holds {} bytes in place of {}", bytes.len(), rows * columns * size)));
        }
        let new = InPlace { lines: columns * size / LINE, bytes, kind };
        match by_kind!(new, C => new.all().iter().all(C::is_finite)) {
            true => Ok(Some(new)),
            false => Err(Error::failure("holds a number that is not finite")),
        }
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Reads a row into `out`.
    pub fn read(&self, row: usize, out: &mut [f32]) {
        by_kind!(self, C => Level::PLAIN.run(Read { row: self.row(row), out, by: PhantomData::<C> }));
    }

    /// Sixteen rows a group times one vector: `out[g]` gets the products of the g-th group from `group` on.
    pub fn times_one(&self, level: Level, group: usize, x: &[f32], out: &mut [[f32; LANES]]) {
        by_kind!(self, C => level.run(One { of: self, group, x, out, by: PhantomData::<C> }));
    }

    /// Some rows times some vectors: `out[v * stride + r]` gets the product of the r-th of `rows`, whole groups, and the v-th
    /// of `vectors`.
    pub fn times(
        &self,
        level: Level,
        rows: Range<usize>,
        (x, vectors): (&Plane, Range<usize>),
        (out, stride): (&mut [f32], usize),
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(MOST_ROWS * (WIDE + VECTORS), Floats([0.0; LANES]));
            by_kind!(self, C => level.run(Many { of: self, rows, x, vectors, out, stride, scratch, by: PhantomData::<C> }));
        });
    }

    /// See [`Matrix::widen`](super::matrix::Matrix::widen).
    #[inline(always)]
    pub(super) fn widen<I: Isa>(&self, isa: I, group: usize, columns: Range<usize>, out: &mut [Floats], stride: usize) {
        let rows = self.group(group);
        by_kind!(self, C => {
            let mut turned = [C::NONE; LINE / 2];
            let lines = columns.start / C::OF_LINE..columns.end / C::OF_LINE;
            for (line, out) in lines.zip(out.chunks_mut(C::OF_LINE * stride)) {
                let mut all = [&rows[0][line]; LANES];
                all.iter_mut().zip(rows).for_each(|(all, row)| *all = &row[line]);
                let turned = &mut turned[..C::OF_LINE];
                C::turn(isa, all, turned);
                widen_plain(isa, turned, out, stride);
            }
        });
    }

    /// Sixteen columns of the rows of a group, from the start of a sixteen on, as rows: `out[r * stride]` gets those of the
    /// r-th.
    pub fn widen_rows(&self, level: Level, group: usize, column: usize, out: &mut [Floats], stride: usize) {
        by_kind!(self, C => level.run(Rows { rows: self.group(group), column, out, stride, by: PhantomData::<C> }));
    }

    /// See [`Matrix::fetch`](super::matrix::Matrix::fetch): columns that are there.
    #[inline(always)]
    pub(super) fn fetch<I: Isa>(&self, isa: I, group: usize, columns: Range<usize>) {
        let of_line = by_kind!(self, C => C::OF_LINE);
        let lines = columns.start / of_line..columns.end / of_line;
        self.group(group).iter().for_each(|row| row[lines.clone()].iter().for_each(|line| isa.fetch(line)));
    }

    #[inline(always)]
    fn all(&self) -> &[[u8; LINE]] {
        self.bytes.as_chunks().0
    }

    #[inline(always)]
    fn row(&self, row: usize) -> Row<'_> {
        &self.all()[row * self.lines..][..self.lines]
    }

    /// The rows of a group.
    #[inline(always)]
    fn group(&self, group: usize) -> [Row<'_>; LANES] {
        let mut rows = [self.row(group * LANES); LANES];
        rows.iter_mut().enumerate().for_each(|(at, row)| *row = self.row(group * LANES + at));
        rows
    }
}

struct Read<'a, C> {
    row: Row<'a>,
    out: &'a mut [f32],
    by: PhantomData<C>,
}

impl<C: Stored> Work for Read<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (out, line) in self.out.chunks_exact_mut(C::OF_LINE).zip(self.row) {
            for (at, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                *out = isa.store(C::sixteen(isa, line, at));
            }
        }
    }
}

struct Rows<'a, C> {
    rows: [Row<'a>; LANES],
    column: usize,
    out: &'a mut [Floats],
    stride: usize,
    by: PhantomData<C>,
}

impl<C: Stored> Work for Rows<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (line, at) = (self.column / C::OF_LINE, self.column % C::OF_LINE / LANES);
        for (out, row) in self.out.chunks_mut(self.stride).zip(self.rows) {
            out[0].0 = isa.store(C::sixteen(isa, &row[line], at));
        }
    }
}

struct One<'a, C> {
    of: &'a InPlace,
    group: usize,
    x: &'a [f32],
    out: &'a mut [[f32; LANES]],
    by: PhantomData<C>,
}

impl<C: Stored> Work for One<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let One { of, group, x, out, .. } = self;
        let x = x.as_chunks().0;
        let mut group = group;
        let (fours, rest) = out.as_chunks_mut::<ROWS>();
        for out in fours {
            // A row of each group: four walks through memory, far from each other, come faster than one.
            let groups = [0, 1, 2, 3].map(|at| of.group(group + at));
            let mut sums = [[isa.splat(0.0); LANES]; ROWS];
            for row in 0..LANES {
                let four = four(isa, PhantomData::<C>, [0, 1, 2, 3].map(|at| groups[at][row]), x);
                for at in 0..ROWS {
                    sums[at][row] = four[at];
                }
            }
            for at in 0..ROWS {
                out[at] = isa.added(&sums[at]);
            }
            group += ROWS;
        }
        for (group, out) in (group..).zip(rest) {
            let rows = of.group(group);
            let mut sums = [isa.splat(0.0); LANES];
            for (sums, rows) in sums.as_chunks_mut::<ROWS>().0.iter_mut().zip(rows.as_chunks::<ROWS>().0) {
                *sums = four(isa, PhantomData::<C>, *rows, x);
            }
            *out = isa.added(&sums);
        }
    }
}

/// Four rows times a vector, in lanes.
#[inline(always)]
fn four<I: Isa, C: Stored>(isa: I, _: PhantomData<C>, rows: [Row<'_>; ROWS], x: &[[f32; LANES]]) -> [I::F; ROWS] {
    let [a, b, c, d] = rows;
    let mut sums = [isa.splat(0.0); ROWS];
    for ((((a, b), c), d), x) in a.iter().zip(b).zip(c).zip(d).zip(x.chunks_exact(C::OF_LINE / LANES)) {
        for (at, x) in x.iter().enumerate() {
            let x = isa.load(x);
            sums[0] = isa.fma(C::sixteen(isa, a, at), x, sums[0]);
            sums[1] = isa.fma(C::sixteen(isa, b, at), x, sums[1]);
            sums[2] = isa.fma(C::sixteen(isa, c, at), x, sums[2]);
            sums[3] = isa.fma(C::sixteen(isa, d, at), x, sums[3]);
        }
    }
    sums
}

struct Many<'a, C> {
    of: &'a InPlace,
    rows: Range<usize>,
    x: &'a Plane,
    vectors: Range<usize>,
    out: &'a mut [f32],
    stride: usize,
    scratch: &'a mut [Floats],
    by: PhantomData<C>,
}

impl<C: Stored> Work for Many<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // The registers hold 24 sums, or eight; of each line of x as few as there may be, which is further away.
        if const { I::WIDEST == 12 } { self.by::<I, MOST_ROWS>(isa) } else { self.by::<I, 4>(isa) }
    }
}

impl<C: Stored> Many<'_, C> {
    /// `R` rows at a time, which sixteen are a multiple of.
    #[inline(always)]
    fn by<I: Isa, const R: usize>(self, isa: I) {
        let Many { of, rows, x, vectors, out, stride, scratch, .. } = self;
        let (wide, sums) = scratch.split_at_mut(R * WIDE);
        let (Some(wide), sums) = (wide.as_chunks_mut::<WIDE>().0.first_chunk_mut::<R>(), sums.as_chunks_mut::<R>().0)
        else {
            unreachable!("the split above");
        };
        for (first, out) in vectors.clone().step_by(VECTORS).zip(out.chunks_mut(VECTORS * stride)) {
            let many = VECTORS.min(vectors.end - first);
            for (at, row) in rows.clone().step_by(R).enumerate() {
                for line in (0..of.lines).step_by(PIECE) {
                    let lines = line..of.lines.min(line + PIECE);
                    for (row, wide) in (row..).zip(&mut *wide) {
                        let row = of.row(row);
                        for (wide, line) in wide.chunks_exact_mut(C::OF_LINE / LANES).zip(&row[lines.clone()]) {
                            for (at, wide) in wide.iter_mut().enumerate() {
                                wide.0 = isa.store(C::sixteen(isa, line, at));
                            }
                        }
                        // What is widened next, here or in the rows that follow.
                        let next = if lines.end < of.lines { lines.end } else { R * of.lines };
                        let next = row.as_ptr().wrapping_add(next);
                        (0..lines.len()).for_each(|at| isa.fetch(next.wrapping_add(at)));
                    }
                    let sixteens = lines.start * C::OF_LINE / LANES..lines.end * C::OF_LINE / LANES;
                    past(isa, wide, x, (first, sixteens), &mut sums[..many]);
                }
                let all = sums[..many.next_multiple_of(LANES / R)].as_flattened().as_chunks::<LANES>().0;
                for (sums, out) in all.iter().zip(out.chunks_mut(LANES / R * stride)) {
                    let mut lanes = [isa.splat(0.0); LANES];
                    for (lanes, sum) in lanes.iter_mut().zip(sums) {
                        *lanes = isa.load(&sum.0);
                    }
                    let values = isa.added(&lanes);
                    for (out, values) in out.chunks_mut(stride).zip(values.chunks_exact(R)) {
                        out[at * R..(at + 1) * R].copy_from_slice(values);
                    }
                }
            }
        }
    }
}

/// `sums[v][r]` goes on with the products of widened row r, and of row `first` + v of x in the same columns, by sixteens;
/// from zero where they are the first.
#[inline(always)]
fn past<I: Isa, const S: usize, const R: usize>(
    isa: I,
    wide: &[[Floats; S]; R],
    x: &Plane,
    (first, sixteens): (usize, Range<usize>),
    sums: &mut [[Floats; R]],
) {
    let mut at = 0;
    while at < sums.len() {
        let (left, place) = (sums.len() - at, (first + at, sixteens.clone()));
        let sums = &mut sums[at..];
        at += match left {
            3.. if const { R == 8 } => tile::<I, S, R, 3>(isa, wide, x, place, sums),
            2 if const { R == 8 } => tile::<I, S, R, 2>(isa, wide, x, place, sums),
            _ => tile::<I, S, R, 1>(isa, wide, x, place, sums),
        };
    }
}

/// As [`past`], of the first `N` vectors.
#[inline(always)]
fn tile<I: Isa, const S: usize, const R: usize, const N: usize>(
    isa: I,
    wide: &[[Floats; S]; R],
    x: &Plane,
    (first, sixteens): (usize, Range<usize>),
    sums: &mut [[Floats; R]],
) -> usize {
    let len = sixteens.len();
    let mut vectors = [&x.row(first).as_chunks::<LANES>().0[sixteens.clone()][..len]; N];
    let mut now = [[isa.splat(0.0); R]; N];
    for n in 0..N {
        vectors[n] = &x.row(first + n).as_chunks::<LANES>().0[sixteens.clone()][..len];
        for r in 0..R {
            if sixteens.start > 0 {
                now[n][r] = isa.load(&sums[n][r].0);
            }
        }
    }
    let mut rows = [&wide[0][..len]; R];
    for r in 0..R {
        rows[r] = &wide[r][..len];
    }
    for k in 0..len {
        let mut x = [isa.splat(0.0); N];
        for n in 0..N {
            x[n] = isa.load(&vectors[n][k]);
        }
        for r in 0..R {
            let w = isa.load(&rows[r][k].0);
            for n in 0..N {
                now[n][r] = isa.fma(w, x[n], now[n][r]);
            }
        }
    }
    for n in 0..N {
        for r in 0..R {
            sums[n][r].0 = isa.store(now[n][r]);
        }
    }
    N
}

impl Stored for Floats {
    const OF_LINE: usize = 16;
    const NONE: Floats = Floats([0.0; LANES]);

    fn is_finite(line: &[u8; LINE]) -> bool {
        floats(line).into_iter().fold(true, |all, number| all & number.is_finite())
    }

    #[inline(always)]
    fn sixteen<I: Isa>(isa: I, line: &[u8; LINE], _: usize) -> I::F {
        isa.load(&floats(line))
    }

    #[inline(always)]
    fn turn<I: Isa>(isa: I, rows: [&[u8; LINE]; LANES], out: &mut [Floats]) {
        let mut square = [Floats([0.0; LANES]); LANES];
        square.iter_mut().zip(rows).for_each(|(square, row)| square.0 = floats(row));
        out.copy_from_slice(&isa.transpose(&square));
    }
}

#[inline(always)]
fn floats(line: &[u8; LINE]) -> [f32; LANES] {
    let mut numbers = [0.0; LANES];
    numbers.iter_mut().zip(line.as_chunks().0).for_each(|(number, bytes)| *number = f32::from_le_bytes(*bytes));
    numbers
}

/// The exponents of f16 and bf16 numbers: all ones are infinities and NaN.
const F16: u16 = 0x7c00;
const BF16: u16 = 0x7f80;

/// Sixteen numbers of a line, the `at`-th, as their bits.
#[inline(always)]
fn bits(line: &[u8; LINE], at: usize) -> [u16; LANES] {
    let mut numbers = [0; LANES];
    let bytes = line[at * LINE / 2..].as_chunks().0;
    numbers.iter_mut().zip(bytes).for_each(|(number, bytes)| *number = u16::from_le_bytes(*bytes));
    numbers
}

fn below(exponent: u16, line: &[u8; LINE]) -> bool {
    [bits(line, 0), bits(line, 1)].as_flattened().iter().fold(true, |all, bits| all & (bits & exponent != exponent))
}

impl Stored for Halves {
    const OF_LINE: usize = 32;
    const NONE: Halves = Halves([0; LANES]);

    fn is_finite(line: &[u8; LINE]) -> bool {
        below(F16, line)
    }

    #[inline(always)]
    fn sixteen<I: Isa>(isa: I, line: &[u8; LINE], at: usize) -> I::F {
        isa.half(&bits(line, at))
    }

    #[inline(always)]
    fn turn<I: Isa>(isa: I, rows: [&[u8; LINE]; LANES], out: &mut [Halves]) {
        if let Some(out) = out.first_chunk_mut() {
            isa.turn(rows, out);
        }
    }
}

impl Stored for Brains {
    const OF_LINE: usize = 32;
    const NONE: Brains = Brains(Halves::NONE);

    fn is_finite(line: &[u8; LINE]) -> bool {
        below(BF16, line)
    }

    #[inline(always)]
    fn sixteen<I: Isa>(isa: I, line: &[u8; LINE], at: usize) -> I::F {
        isa.brain(&bits(line, at))
    }

    #[inline(always)]
    fn turn<I: Isa>(isa: I, rows: [&[u8; LINE]; LANES], out: &mut [Brains]) {
        Halves::turn(isa, rows, Brains::as_halves(out));
    }
}
