//! Sums over rows of activations: what the gradients of a pair are.

use std::ops::Range;

use crate::model::cpu::interleaved::by_parts;
use crate::model::cpu::kernels::{Isa, LANES, Level, Work};
use crate::model::cpu::plane::Plane;

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
            by_parts!(I::WIDEST, columns.len(), |first, N| {
                let mut sums = [isa.splat(0.0); N];
                for (n, sum) in sums.iter_mut().enumerate() {
                    let at = (first + n) * width + group * LANES;
                    *sum = isa.load(&out[at..at + LANES].as_chunks().0[0]);
                }
                let xs = x[columns.start + first..].chunks(stride).filter_map(|row| row.first_chunk::<N>());
                let lows = low[group * LANES..].chunks(width).filter_map(|row| row.first_chunk::<LANES>());
                for (w, x) in lows.zip(xs) {
                    let w = isa.load(w);
                    for n in 0..N {
                        sums[n] = isa.fma(w, isa.splat(x[n]), sums[n]);
                    }
                }
                for (n, sum) in sums.into_iter().enumerate() {
                    let at = (first + n) * width + group * LANES;
                    out[at..at + LANES].copy_from_slice(&isa.store(sum));
                }
            });
        }
    }
}
