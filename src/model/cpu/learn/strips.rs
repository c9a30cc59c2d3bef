//! The small products that attention is made of, in f32: one side lies in strips of sixteen columns, which stay in the
//! processor's caches, the other as it is.

use std::ops::Range;

use crate::model::cpu::interleaved::by_parts;
use crate::model::cpu::kernels::{Floats, Isa, LANES, Level, Work};
use crate::model::cpu::plane::Plane;

/// Numbers of a sum that go past a strip at once: as much of one as stays in the first cache.
const DEPTH: usize = 256;

/// `[depth, columns]`, filled up to whole strips: of the first sixteen columns all rows, then of the next.
#[derive(Debug, Default)]
pub struct Strips {
    data: Vec<Floats>,
    depth: usize,
}

/// The other side, `[rows, depth]`.
#[derive(Debug, Clone, Copy)]
pub enum Left<'a> {
    /// Rows a stride apart.
    Rows(&'a [f32], usize),
    /// Its columns are rows of what is given, a stride apart.
    Columns(&'a [f32], usize),
}

impl Strips {
    /// Some columns of some rows.
    pub fn fill(&mut self, x: &Plane, rows: Range<usize>, columns: Range<usize>) {
        self.resize(rows.len(), columns.len());
        for (at, row) in rows.enumerate() {
            for (strip, numbers) in x.row(row)[columns.clone()].chunks(LANES).enumerate() {
                let place = &mut self.data[strip * self.depth + at].0;
                place[..numbers.len()].copy_from_slice(numbers);
                place[numbers.len()..].fill(0.0);
            }
        }
    }

    /// The same, transposed.
    pub fn fill_turned(&mut self, level: Level, x: &Plane, rows: Range<usize>, columns: Range<usize>) {
        self.resize(columns.len(), rows.len());
        let depth = self.depth.max(1);
        for (first, strip) in rows.clone().step_by(LANES).zip(self.data.chunks_mut(depth)) {
            let rows = first..rows.end.min(first + LANES);
            level.run(Turn { x, rows, columns: columns.clone(), strip });
        }
    }

    fn resize(&mut self, depth: usize, columns: usize) {
        self.depth = depth;
        self.data.resize(depth * columns.div_ceil(LANES), Floats([0.0; LANES]));
    }

    /// out = left · some of these, or += where `add`: of the rows the first `depth`, of the columns the first `columns`,
    /// filled up to whole strips. `out` is as many rows as it has room for, `stride` apart.
    pub fn times(
        &self,
        level: Level,
        left: Left<'_>,
        (depth, columns): (usize, usize),
        (out, stride): (&mut [f32], usize),
        add: bool,
    ) {
        let strips = columns.div_ceil(LANES);
        assert!(0 < depth && depth <= self.depth && strips * LANES <= stride, "a product outside its strips");
        for from in (0..depth).step_by(DEPTH) {
            let span = from..depth.min(from + DEPTH);
            level.run(Times { right: self, left, span, strips, out, stride, add: add || from > 0 });
        }
    }
}

/// Sixteen rows at most to the columns of a strip.
struct Turn<'a> {
    x: &'a Plane,
    rows: Range<usize>,
    columns: Range<usize>,
    strip: &'a mut [Floats],
}

impl Work for Turn<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Turn { x, rows, columns, strip } = self;
        for (from, strip) in columns.clone().step_by(LANES).zip(strip.chunks_mut(LANES)) {
            let mut square = [Floats([0.0; LANES]); LANES];
            for (row, line) in rows.clone().zip(&mut square) {
                line.0[..strip.len()].copy_from_slice(&x.row(row)[from..from + strip.len()]);
            }
            strip.copy_from_slice(&isa.transpose(&square)[..strip.len()]);
        }
    }
}

struct Times<'a> {
    right: &'a Strips,
    left: Left<'a>,
    span: Range<usize>,
    strips: usize,
    out: &'a mut [f32],
    stride: usize,
    add: bool,
}

impl Work for Times<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let mut strip = 0;
        while strip < self.strips {
            if const { I::GROUPS == 2 } && strip + 4 <= self.strips {
                self.past::<I, 4>(isa, strip);
                strip += 4;
            } else if const { I::GROUPS == 2 } && strip + 2 <= self.strips {
                self.past::<I, 2>(isa, strip);
                strip += 2;
            } else {
                self.past::<I, 1>(isa, strip);
                strip += 1;
            }
        }
    }
}

impl Times<'_> {
    /// All rows past `G` strips.
    #[inline(always)]
    fn past<I: Isa, const G: usize>(&mut self, isa: I, strip: usize) {
        let Times { right, left, span, out, stride, add, .. } = self;
        let mut strips: [&[Floats]; G] = [&[]; G];
        for (g, numbers) in strips.iter_mut().enumerate() {
            *numbers = &right.data[(strip + g) * right.depth..][span.clone()];
        }
        by_parts!(6, out.len() / *stride, |first, N| {
            let mut sums = [[isa.splat(0.0); G]; N];
            let place = first * *stride + strip * LANES;
            if *add {
                for n in 0..N {
                    for g in 0..G {
                        sums[n][g] = isa.load(&out[place + n * *stride + g * LANES..].as_chunks().0[0]);
                    }
                }
            }
            match left {
                Left::Rows(values, step) => {
                    let mut rows: [&[f32]; N] = [&[]; N];
                    for (n, row) in rows.iter_mut().enumerate() {
                        *row = &values[(first + n) * *step..][span.clone()];
                    }
                    for k in 0..span.len() {
                        let mut x = [0.0; N];
                        for (x, row) in x.iter_mut().zip(&rows) {
                            *x = row[k];
                        }
                        add_products(isa, &mut sums, &strips, k, &x);
                    }
                }
                Left::Columns(values, step) => {
                    for k in 0..span.len() {
                        let at = (span.start + k) * *step + first;
                        add_products(isa, &mut sums, &strips, k, &values[at..at + N].as_chunks().0[0]);
                    }
                }
            }
            for (n, sums) in sums.into_iter().enumerate() {
                for (g, sum) in sums.into_iter().enumerate() {
                    let at = place + n * *stride + g * LANES;
                    out[at..at + LANES].copy_from_slice(&isa.store(sum));
                }
            }
        });
    }
}

#[inline(always)]
fn add_products<I: Isa, const N: usize, const G: usize>(
    isa: I,
    sums: &mut [[I::F; G]; N],
    strips: &[&[Floats]; G],
    k: usize,
    x: &[f32; N],
) {
    let mut w = [isa.splat(0.0); G];
    for g in 0..G {
        w[g] = isa.load(&strips[g][k].0);
    }
    for n in 0..N {
        let x = isa.splat(x[n]);
        for g in 0..G {
            sums[n][g] = isa.fma(w[g], x, sums[n][g]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(rows: usize, width: usize, seed: usize) -> Plane {
        let mut plane = Plane::new(rows, width);
        for row in 0..rows {
            for (at, x) in plane.row_mut(row).iter_mut().enumerate() {
                *x = ((row * 31 + at * 17 + seed * 7) % 29) as f32 / 14.0 - 1.0;
            }
        }
        plane
    }

    #[test]
    fn products_of_odd_sizes() {
        for level in Level::all() {
            for (rows, depth, columns) in [(1, 1, 1), (5, 7, 16), (24, 40, 70), (13, 600, 33), (6, 64, 128)] {
                // Each within a larger one.
                let (a, b) = (plane(rows + 2, depth + 3, 1), plane(depth + 2, columns + 3, 2));
                let (turned_a, turned_b) = (plane(depth + 2, rows + 3, 3), plane(columns + 2, depth + 3, 4));
                let stride = columns.next_multiple_of(LANES) + LANES;
                let mut strips = Strips::default();
                strips.fill(&plane(700, 99, 5), 0..700, 0..99); // what was there before leaves nothing behind
                for (is_left_turned, is_right_turned) in [(false, false), (true, false), (false, true), (true, true)] {
                    if is_right_turned {
                        strips.fill_turned(level, &turned_b, 1..1 + columns, 2..2 + depth);
                    } else {
                        strips.fill(&b, 1..1 + depth, 2..2 + columns);
                    }
                    let left = if is_left_turned {
                        Left::Columns(&turned_a.data()[turned_a.stride() + 1..], turned_a.stride())
                    } else {
                        Left::Rows(&a.data()[a.stride() + 1..], a.stride())
                    };
                    let of_left = |m: usize, k: usize| {
                        f64::from(if is_left_turned { turned_a.row(1 + k)[1 + m] } else { a.row(1 + m)[1 + k] })
                    };
                    let of_right = |k: usize, n: usize| {
                        f64::from(if is_right_turned { turned_b.row(1 + n)[2 + k] } else { b.row(1 + k)[2 + n] })
                    };
                    let mut out = vec![9.0; rows * stride];
                    for add in [false, true] {
                        strips.times(level, left, (depth, columns), (&mut out, stride), add);
                    }
                    for (m, row) in out.chunks(stride).enumerate() {
                        for (n, found) in row[..columns].iter().enumerate() {
                            let terms = (0..depth).map(|k| 2.0 * of_left(m, k) * of_right(k, n));
                            let (expected, all) = (terms.clone().sum::<f64>(), terms.map(f64::abs).sum::<f64>());
                            assert!(
                                (f64::from(*found) - expected).abs() <= 1e-5 * all,
                                "{level:?} {rows} {depth} {columns}: {found} and {expected}"
                            );
                        }
                        assert!(row[columns..stride - LANES].iter().all(|x| *x == 0.0), "nothing behind the last");
                        assert!(row[stride - LANES..].iter().all(|x| *x == 9.0), "other places are left alone");
                    }
                    // Fewer rows of the strips, and columns.
                    let (some, less) = (depth.div_ceil(2), columns.min(LANES));
                    strips.times(level, left, (some, less), (&mut out, stride), false);
                    let expected: f64 = (0..some).map(|k| of_left(0, k) * of_right(k, 0)).sum();
                    assert!((f64::from(out[0]) - expected).abs() < 1e-3, "{level:?}: {} and {expected}", out[0]);
                }
            }
        }
    }
}
