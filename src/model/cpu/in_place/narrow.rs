//! Panels of words made straight of the rows of a file, which are widened for no more than a moment.

use std::marker::PhantomData;
use std::ops::Range;

use super::{InPlace, Kind, Row, Stored};
use crate::model::cpu::kernels::dot::{BLOCK, Brains};
use crate::model::cpu::kernels::{Floats, Halves, Isa, LANES, Level, Line, Work};
use crate::model::cpu::panel::{PAIRS, floats, narrow, scales};

impl InPlace {
    /// Words of some columns, whole blocks, of the rows of a group: pairs of the sixteen rows, `step` apart, and their scales.
    pub fn words_of_rows(
        &self,
        level: Level,
        group: usize,
        columns: Range<usize>,
        out: &mut [Line],
        step: usize,
    ) -> Floats {
        by_kind!(self, C => {
            level.run(OfRows { rows: self.group(group), columns, even: self.is_even(), out, step, by: PhantomData::<C> })
        })
    }

    /// Words of sixteen columns, from the start of a sixteen on, of some rows: pairs of the columns, and their scales.
    pub fn words_of_columns(
        &self,
        level: Level,
        rows: Range<usize>,
        column: usize,
        out: &mut [Line],
        step: usize,
    ) -> Floats {
        by_kind!(self, C => level.run(OfColumns { of: self, rows, column, out, step, by: PhantomData::<C> }))
    }

    /// Whether powers of two are the scales that keep its numbers' bits.
    fn is_even(&self) -> bool {
        self.kind != Kind::F32
    }
}

struct OfRows<'a, C> {
    rows: [Row<'a>; LANES],
    columns: Range<usize>,
    even: bool,
    out: &'a mut [Line],
    step: usize,
    by: PhantomData<C>,
}

/// A block of a row, in two halves.
#[inline(always)]
fn halves<I: Isa, C: Stored>(isa: I, row: Row<'_>, column: usize) -> [I::F; 2] {
    let (a, b) = (column / LANES, column / LANES + 1);
    let of_line = C::OF_LINE / LANES;
    [C::sixteen(isa, &row[a / of_line], a % of_line), C::sixteen(isa, &row[b / of_line], b % of_line)]
}

impl<C: Stored> Work for OfRows<'_, C> {
    type Out = Floats;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Floats {
        let OfRows { rows, columns, even, out, step, .. } = self;
        let mut most = isa.splat(0.0);
        for column in columns.clone().step_by(BLOCK) {
            let mut squares = [isa.splat(0.0); LANES];
            for (squares, row) in squares.iter_mut().zip(rows) {
                let [a, b] = halves::<I, C>(isa, row, column);
                *squares = isa.fma(a, a, isa.mul(b, b));
            }
            most = isa.largest(most, isa.load(&isa.added(&squares)));
        }
        // The numbers of a file are finite.
        let (scales, factors) = scales(isa.store(most), [0.0; LANES], even);
        for (column, out) in columns.step_by(BLOCK).zip(out.chunks_mut(PAIRS * step)) {
            let mut lines = [Floats([0.0; LANES]); LANES];
            for ((line, row), factor) in lines.iter_mut().zip(rows).zip(factors.0) {
                let ([a, b], factor) = (halves::<I, C>(isa, row, column), isa.splat(factor));
                *line = floats(isa.pair(isa.mul(a, factor), isa.mul(b, factor)));
            }
            for (out, pair) in out.iter_mut().step_by(step).zip(&isa.transpose(&lines)) {
                for (out, bits) in out.0.as_chunks_mut().0.iter_mut().zip(pair.0) {
                    *out = bits.to_le_bytes();
                }
            }
        }
        scales
    }
}

struct OfColumns<'a, C> {
    of: &'a InPlace,
    rows: Range<usize>,
    column: usize,
    out: &'a mut [Line],
    step: usize,
    by: PhantomData<C>,
}

impl<C: Stored> Work for OfColumns<'_, C> {
    type Out = Floats;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Floats {
        let OfColumns { of, rows, column, out, step, .. } = self;
        let (line, at) = (column / C::OF_LINE, column % C::OF_LINE / LANES);
        let all = &of.all()[rows.start * of.lines + line..];
        narrow(
            isa,
            rows.len(),
            of.is_even(),
            #[inline(always)]
            |row| C::sixteen(isa, &all[row * of.lines], at),
            out,
            step,
        )
    }
}
