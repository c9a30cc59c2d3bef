//! Activations rounded to eight bits, in blocks of 32 that share a step: products with them are whole numbers.

use super::kernels::dot::BLOCK;
use super::kernels::{Isa, Level, Work};
use super::plane::Plane;
use super::pool::Pool;
use super::tiles::Regions;

/// Vectors of one width, a multiple of [`BLOCK`].
#[derive(Debug, Default)]
pub struct Rounded {
    /// Blocks of a vector.
    blocks: usize,
    all: Vec<Rounding>,
}

/// One block.
#[derive(Debug, Clone, Copy)]
pub struct Rounding {
    /// −127 to 127.
    pub q: [i8; BLOCK],
    pub step: f32,
    /// Step times the sum of the codes, of each half block.
    pub sum: [f32; 2],
    /// And of the whole.
    pub total: f32,
}

impl Rounding {
    const NOTHING: Rounding = Rounding { q: [0; BLOCK], step: 0.0, sum: [0.0; 2], total: 0.0 };
}

impl Rounded {
    /// Takes the place of what was there.
    pub fn fill(&mut self, pool: &Pool, level: Level, plane: &Plane) {
        self.blocks = plane.width() / BLOCK;
        self.all.resize(plane.rows() * self.blocks, Rounding::NOTHING);
        pool.chunks(&mut self.all, self.blocks, |row, out| level.run(Round { x: plane.row(row), out }));
    }

    pub fn row(&self, row: usize) -> &[Rounding] {
        &self.all[row * self.blocks..(row + 1) * self.blocks]
    }

    /// What a vector's codes stand for.
    #[cfg(test)]
    pub fn numbers(&self, row: usize) -> Vec<f32> {
        self.row(row).iter().flat_map(|block| block.q.map(|q| block.step * f32::from(q))).collect()
    }
}

struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [Rounding],
}

impl Work for Round<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (out, block) in self.out.iter_mut().zip(self.x.as_chunks().0) {
            *out = round(block);
        }
    }
}

/// Whole numbers of −127 to 127, and the step that makes the block's numbers of them: not finite where one of them is not.
#[inline(always)]
fn round(block: &[f32; BLOCK]) -> Rounding {
    // Added to a number of less than 2²², this leaves the nearest whole number in the lowest bits.
    const NEAREST: f32 = 12_582_912.0;
    let (mut most, mut strange) = ([0f32; 16], [0f32; 16]);
    for part in block.as_chunks::<16>().0 {
        for ((most, strange), x) in most.iter_mut().zip(&mut strange).zip(part) {
            *most = if x.abs() > *most { x.abs() } else { *most };
            *strange += x * 0.0; // NaN where x is, or is infinite
        }
    }
    let most = most.into_iter().fold(0f32, f32::max);
    let step = most / 127.0 + strange.into_iter().sum::<f32>();
    let per_step = if most > 0.0 { 127.0 / most } else { 0.0 };
    let whole = block.map(|x| (x * per_step + NEAREST).to_bits() as i32 - NEAREST.to_bits() as i32);
    let sum = [0, 16].map(|at| whole[at..at + 16].iter().sum::<i32>());
    Rounding {
        q: whole.map(|q| q as i8),
        step,
        sum: sum.map(|sum| step * sum as f32),
        total: step * (sum[0] + sum[1]) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_within_half_a_step() {
        let mut plane = Plane::new(3, 2 * BLOCK);
        for row in 0..3 {
            let numbers = (0..2 * BLOCK).map(|i| ((i * 37 + row) % 61) as f32 / 7.0 - 4.0);
            plane.row_mut(row).iter_mut().zip(numbers).for_each(|(x, number)| *x = number);
        }
        for level in Level::all() {
            let mut rounded = Rounded::default();
            rounded.fill(&Pool::new(2).unwrap(), level, &plane);
            for row in 0..3 {
                for (block, values) in rounded.row(row).iter().zip(plane.row(row).as_chunks::<BLOCK>().0) {
                    let numbers = block.q.map(|q| block.step * f32::from(q));
                    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.5001 * block.step;
                    assert!(numbers.iter().zip(values).all(near), "{numbers:?} and {values:?}");
                    let sum: f32 = numbers.iter().sum();
                    let halves: f32 = block.sum.iter().sum();
                    assert!((block.total - sum).abs() < 1e-4 && (halves - sum).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn nothing_and_strange_numbers() {
        let nothing = round(&[0.0; BLOCK]);
        assert_eq!((nothing.q, nothing.step), ([0; BLOCK], 0.0));
        for strange in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut block = [1.0; BLOCK];
            block[5] = strange;
            assert!(!round(&block).step.is_finite(), "{strange}");
        }
        assert_eq!(round(&[-3.0; BLOCK]).q, [-127; BLOCK]);
    }
}
