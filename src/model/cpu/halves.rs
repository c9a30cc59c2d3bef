//! An adapter's numbers as two matrices of f16: the nearest numbers, and what these leave.

use super::kernels::{Halves, Isa, LANES, Level, Work};
use super::matrix::{Body, Matrix};
use super::turn::columns_of;

/// A matrix of numbers in memory, row-major, `columns` not zero, in two parts of f16, and by what to multiply their products:
/// numbers = factor · (first + second), the second of which is the first's rounding. Together they keep 22 bits.
pub fn halved(level: Level, rows: usize, columns: usize, numbers: &[f32]) -> ([Matrix; 2], f32) {
    let most = f32::from_bits(level.run(Largest { numbers }));
    // A power of two moves the largest into the upper half of f16's range, so that small ones keep their bits too. To
    // multiply with its inverse, another power of two, is to divide.
    let factor = if most > 0.0 { (most.log2().floor() - 14.0).clamp(-126.0, 126.0).exp2() } else { 1.0 };
    let both = level.run(Split { rows, columns, numbers, inverse: 1.0 / factor });
    (both.map(|all| Matrix { rows, columns, body: Body::F16(all) }), factor)
}

/// The bits of the largest magnitude; numbers that are none do not count.
struct Largest<'a> {
    numbers: &'a [f32],
}

impl Work for Largest<'_> {
    type Out = u32;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> u32 {
        // The bits of magnitudes are in the order of the magnitudes, and whole numbers may be compared in any order.
        let mut most = [0; LANES];
        let infinity = f32::INFINITY.to_bits();
        let (whole, rest) = self.numbers.as_chunks::<LANES>();
        for numbers in whole {
            for lane in 0..LANES {
                let bits = numbers[lane].to_bits() & !(1 << 31);
                most[lane] = if bits > most[lane] && bits <= infinity { bits } else { most[lane] };
            }
        }
        let rest = rest.iter().map(|number| number.abs().to_bits()).filter(|&bits| bits <= infinity);
        most.into_iter().chain(rest).fold(0, u32::max)
    }
}

/// numbers · inverse, sixteen rows side by side: the nearest f16 numbers, and those nearest to what is left.
struct Split<'a> {
    rows: usize,
    columns: usize,
    numbers: &'a [f32],
    inverse: f32,
}

impl Work for Split<'_> {
    type Out = [Vec<Halves>; 2];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> [Vec<Halves>; 2] {
        let Split { rows, columns, numbers, inverse } = self;
        let size = rows.div_ceil(LANES) * columns;
        let (mut first, mut second) = (Vec::with_capacity(size), Vec::with_capacity(size));
        let (inverse, minus) = (isa.splat(inverse), isa.splat(-1.0));
        for group in numbers.chunks(LANES * columns) {
            for start in (0..columns).step_by(LANES) {
                let mut near = [[0; LANES]; LANES];
                let mut left = [[0; LANES]; LANES];
                let width = LANES.min(columns - start);
                for (lane, row) in group.chunks_exact(columns).enumerate() {
                    let row = &row[start..start + width];
                    let mut filled = [0.0; LANES];
                    let sixteen = <&[f32; LANES]>::try_from(row).unwrap_or_else(|_| {
                        filled[..width].copy_from_slice(row);
                        &filled
                    });
                    let number = isa.mul(isa.load(sixteen), inverse);
                    near[lane] = isa.narrow(number);
                    left[lane] = isa.narrow(isa.fma(isa.half(&near[lane]), minus, number));
                }
                first.extend_from_slice(&columns_of(&near)[..width]);
                second.extend_from_slice(&columns_of(&left)[..width]);
            }
        }
        [first, second]
    }
}
