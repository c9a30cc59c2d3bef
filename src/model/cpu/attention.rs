//! Keys and values of one head, and what queries see of them.
//!
//! Keys lie as a packed matrix whose rows are positions; values by position, so that both grow at their end. Queries of all
//! heads that share them go through together, a stretch of positions after the other: what they see of each is added up in
//! their order, and may have been computed side by side.

use std::ops::Range;

use half::f16;

use super::interleaved::{Interleave, by_parts};
use super::kernels::dot::{Column, plain};
use super::kernels::{Floats, Halves, Isa, LANES, Level, Work};
use super::math::{exp, exponentials};

/// Positions of a stretch: their scores and values stay in a core's caches.
pub const STRETCH: usize = 512;

/// Keys and values of one head: as f16, or as they are.
#[derive(Debug)]
pub enum HeadCache {
    Half(Columns<Halves>),
    Full(Columns<Floats>),
}

#[derive(Debug)]
pub struct Columns<C> {
    /// By sixteen positions, then by the key's dimensions.
    keys: Vec<C>,
    /// By position, then by sixteen of the value's dimensions.
    values: Vec<C>,
    len: usize,
    dim: usize,
}

/// How a number is kept.
pub trait Kept: Column + Copy {
    const ZERO: Self;
    fn set(&mut self, lane: usize, x: f32);
}

impl Kept for Halves {
    const ZERO: Self = Halves([0; LANES]);

    fn set(&mut self, lane: usize, x: f32) {
        self.0[lane] = f16::from_f32(x).to_bits();
    }
}

impl Kept for Floats {
    const ZERO: Self = Floats([0.0; LANES]);

    fn set(&mut self, lane: usize, x: f32) {
        self.0[lane] = x;
    }
}

impl HeadCache {
    /// Of heads of `dim` numbers, with every bit (`full`) or as f16.
    pub fn new(dim: usize, full: bool) -> HeadCache {
        if full { HeadCache::Full(Columns::new(dim)) } else { HeadCache::Half(Columns::new(dim)) }
    }

    pub fn truncate(&mut self, len: usize) {
        match self {
            HeadCache::Half(columns) => columns.truncate(len),
            HeadCache::Full(columns) => columns.truncate(len),
        }
    }

    pub fn push(&mut self, key: &[f32], value: &[f32]) {
        match self {
            HeadCache::Half(columns) => columns.push(key, value),
            HeadCache::Full(columns) => columns.push(key, value),
        }
    }

    /// What each query sees of a stretch of positions, the `stretch`-th. `queries`: `[n, dim]`, scaled; `seen[n]`: the
    /// positions, from the first on, that the n-th looks at, of which one at least belongs to the first stretch, and one of
    /// somebody's to this.
    pub fn look(&self, level: Level, stretch: usize, queries: &[f32], seen: &[usize]) -> Sight {
        match self {
            HeadCache::Half(columns) => columns.look(level, stretch, queries, seen),
            HeadCache::Full(columns) => columns.look(level, stretch, queries, seen),
        }
    }

    /// What each query sees of all that it looks at, `[n, dim]`.
    pub fn attend(&self, level: Level, queries: &[f32], seen: &[usize]) -> Vec<f32> {
        let most = seen.iter().copied().max().unwrap_or(0);
        let sights = (0..most.div_ceil(STRETCH)).map(|stretch| self.look(level, stretch, queries, seen));
        sights.reduce(Sight::and).map(Sight::values).unwrap_or_default()
    }
}

/// What queries saw of some positions.
pub struct Sight {
    /// Of each query the largest score, and Σ of e^(score − largest).
    sums: Vec<(f32, f32)>,
    /// `[n, dim]`: Σ of e^(score − largest) · value
    mixed: Vec<f32>,
}

impl Sight {
    /// Numbers of a head.
    fn dim(&self) -> usize {
        (self.mixed.len() / self.sums.len().max(1)).max(1)
    }

    /// Together with what the same queries saw of the positions behind these.
    pub fn and(mut self, more: Sight) -> Sight {
        let dim = self.dim();
        let mixed = self.mixed.chunks_exact_mut(dim).zip(more.mixed.chunks_exact(dim));
        for ((sums, more), (mixed, more_mixed)) in self.sums.iter_mut().zip(&more.sums).zip(mixed) {
            let largest = if more.0 > sums.0 { more.0 } else { sums.0 };
            let (of_this, of_more) = (exp(sums.0 - largest), exp(more.0 - largest));
            *sums = (largest, sums.1 * of_this + more.1 * of_more);
            mixed.iter_mut().zip(more_mixed).for_each(|(mixed, more)| *mixed = *mixed * of_this + *more * of_more);
        }
        self
    }

    /// Σ of softmax(score) · value, `[n, dim]`.
    pub fn values(mut self) -> Vec<f32> {
        let dim = self.dim();
        for (mixed, (_, sum)) in self.mixed.chunks_exact_mut(dim).zip(&self.sums) {
            let factor = 1.0 / sum;
            mixed.iter_mut().for_each(|mixed| *mixed *= factor);
        }
        self.mixed
    }
}

impl<C: Kept> Columns<C> {
    fn new(dim: usize) -> Self {
        Columns { keys: Vec::new(), values: Vec::new(), len: 0, dim }
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.keys.truncate(self.len.div_ceil(LANES) * self.dim);
        self.values.truncate(self.len * self.dim.div_ceil(LANES));
    }

    fn push(&mut self, key: &[f32], value: &[f32]) {
        let (at, lane) = (self.len / LANES * self.dim, self.len % LANES);
        if lane == 0 {
            self.keys.resize(at + self.dim, C::ZERO);
        }
        self.keys[at..].iter_mut().zip(key).for_each(|(column, x)| column.set(lane, *x));
        for part in value.chunks(LANES) {
            let mut column = C::ZERO;
            part.iter().enumerate().for_each(|(lane, x)| column.set(lane, *x));
            self.values.push(column);
        }
        self.len += 1;
    }

    fn look(&self, level: Level, stretch: usize, queries: &[f32], seen: &[usize]) -> Sight {
        let start = stretch * STRETCH;
        let seen = || seen.iter().map(|seen| seen.saturating_sub(start).min(STRETCH));
        let positions = start..start + seen().max().unwrap_or(0);
        let stride = positions.len().next_multiple_of(LANES);
        let mut scores = vec![0.0; seen().count() * stride];
        level.run(Score { columns: self, queries, scores: &mut scores, start, stride });
        let sums = scores.chunks_exact_mut(stride.max(1)).zip(seen()).map(|(scores, seen)| {
            scores[seen..].fill(0.0);
            exponentials(level, &mut scores[..seen])
        });
        let (sums, mut mixed) = (sums.collect(), vec![0.0; queries.len()]);
        level.run(Mix { columns: self, mixed: &mut mixed, scores: &scores, stride, positions });
        Sight { sums, mixed }
    }
}

/// scores[n][position] = query · key, of the positions from `start` on, a multiple of sixteen
struct Score<'a, C> {
    columns: &'a Columns<C>,
    queries: &'a [f32],
    scores: &'a mut [f32],
    start: usize,
    stride: usize,
}

impl<C: Kept> Work for Score<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Score { columns, queries, scores, start, stride } = self;
        let dim = columns.dim;
        let mut lined = vec![0.0; queries.len()];
        Interleave { from: queries, stride: dim, width: dim, out: &mut lined }.run(isa);
        let keys = columns.keys.chunks_exact(dim).skip(start / LANES).take(stride / LANES);
        for (group, keys) in keys.enumerate() {
            by_parts!(I::WIDEST, queries.len() / dim, |first, N| {
                let none = [isa.splat(0.0); N];
                let sums = plain(isa, keys, lined[first * dim..][..N * dim].as_chunks().0, none);
                for (n, sum) in sums.into_iter().enumerate() {
                    let at = (first + n) * stride + group * LANES;
                    scores[at..at + LANES].copy_from_slice(&isa.store(sum));
                }
            });
        }
    }
}

/// mixed[n] = Σ over positions of scores[n][position] · value
struct Mix<'a, C> {
    columns: &'a Columns<C>,
    mixed: &'a mut [f32],
    scores: &'a [f32],
    stride: usize,
    positions: Range<usize>,
}

impl<C: Kept> Work for Mix<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Mix { columns, mixed, scores, stride, positions } = self;
        let (dim, groups, most) = (columns.dim, columns.dim.div_ceil(LANES), positions.len());
        let values = &columns.values[positions.start * groups..positions.end * groups];
        let mut lined = vec![0.0; mixed.len() / dim * most];
        Interleave { from: scores, stride, width: most, out: &mut lined }.run(isa);
        for group in 0..groups {
            let len = LANES.min(dim - group * LANES);
            by_parts!(I::WIDEST, mixed.len() / dim, |first, N| {
                let p: &[[f32; N]] = lined[first * most..][..N * most].as_chunks().0;
                let mut sum = [isa.splat(0.0); N];
                for (value, p) in values[group..].iter().step_by(groups).zip(p) {
                    let value = value.widen(isa);
                    for n in 0..N {
                        sum[n] = isa.fma(value, isa.splat(p[n]), sum[n]);
                    }
                }
                for (n, sum) in sum.into_iter().enumerate() {
                    let at = (first + n) * dim + group * LANES;
                    mixed[at..at + len].copy_from_slice(&isa.store(sum)[..len]);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One query, in f64.
    fn plainly(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let weights: Vec<f64> = keys.iter().map(|key| dot(query, key).exp()).collect();
        let all: f64 = weights.iter().sum();
        let mixed = |i: usize| weights.iter().zip(values).map(|(p, v)| p / all * f64::from(v[i])).sum();
        (0..query.len()).map(mixed).collect()
    }

    #[test]
    fn queries_see_the_positions_that_they_may() {
        for dim in [10, 64] {
            let number = |i: usize, seed: usize| ((i * 7919 + seed * 31) % 97) as f32 / 48.0 - 1.0;
            let rows = |n: usize, seed: usize| -> Vec<Vec<f32>> {
                (0..n).map(|row| (0..dim).map(|i| number(row * dim + i, seed)).collect()).collect()
            };
            let (keys, values, queries) = (rows(37, 1), rows(37, 2), rows(15, 3));
            for (full, tolerance) in [(true, 1e-5), (false, 2e-3)] {
                let mut cache = HeadCache::new(dim, full);
                // More than is wanted first, and taken back.
                keys.iter().zip(&values).rev().for_each(|(key, value)| cache.push(key, value));
                cache.truncate(20);
                cache.truncate(0);
                keys.iter().zip(&values).for_each(|(key, value)| cache.push(key, value));
                let seen: Vec<usize> = (0..15).map(|n| 1 + n * 18 / 7).collect();
                for level in Level::all() {
                    let found = cache.attend(level, &queries.concat(), &seen);
                    for ((found, query), &seen) in found.chunks(dim).zip(&queries).zip(&seen) {
                        let expected = plainly(query, &keys[..seen], &values[..seen]);
                        for (found, expected) in found.iter().zip(expected) {
                            assert!((f64::from(*found) - expected).abs() < tolerance, "{found} and {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn stretches_add_up_and_change_no_bit() {
        let (dim, len) = (16, 2 * STRETCH + 40);
        let number = |i: usize, seed: usize| ((i * 7919 + seed * 31) % 97) as f32 / 48.0 - 1.0;
        let rows = |n: usize, seed: usize| -> Vec<Vec<f32>> {
            (0..n).map(|row| (0..dim).map(|i| number(row * dim + i, seed)).collect()).collect()
        };
        let (keys, values, queries) = (rows(len, 1), rows(len, 2), rows(5, 3));
        let mut cache = HeadCache::new(dim, true);
        keys.iter().zip(&values).for_each(|(key, value)| cache.push(key, value));
        let seen = [STRETCH - 1, STRETCH, STRETCH + 1, 2 * STRETCH, len];
        for level in Level::all() {
            let found = cache.attend(level, &queries.concat(), &seen);
            for ((found, query), seen) in found.chunks(dim).zip(&queries).zip(seen) {
                assert_eq!(found, cache.attend(level, query, &[seen]), "{level:?}, {seen} positions");
                for (found, expected) in found.iter().zip(plainly(query, &keys[..seen], &values[..seen])) {
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{level:?}: {found} and {expected}");
                }
            }
        }
    }
}
