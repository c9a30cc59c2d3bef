//! Keys and values of one head, and what queries see of them.
//!
//! Keys lie as a packed matrix whose rows are positions; values by position, so that both grow at their end. Queries of all
//! heads that share them go through together.

use half::f16;

use super::interleaved::{Interleave, by_parts};
use super::kernels::dot::{Column, plain};
use super::kernels::{Floats, Halves, Isa, LANES, Level, Work};
use super::math::softmax;

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

    /// What each query sees. `queries`: `[n, dim]`, scaled, replaced by `[n, dim]` mixed values; `seen[n]`: the positions,
    /// from the first on, that the n-th looks at, at least one.
    pub fn attend(&self, level: Level, queries: &mut [f32], seen: &[usize]) {
        match self {
            HeadCache::Half(columns) => columns.attend(level, queries, seen),
            HeadCache::Full(columns) => columns.attend(level, queries, seen),
        }
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

    fn attend(&self, level: Level, queries: &mut [f32], seen: &[usize]) {
        let most = seen.iter().copied().max().unwrap_or(0);
        let stride = most.next_multiple_of(LANES);
        let mut scores = vec![0.0; seen.len() * stride];
        level.run(Score { columns: self, queries, scores: &mut scores, stride });
        for (scores, &seen) in scores.chunks_exact_mut(stride).zip(seen) {
            softmax(level, &mut scores[..seen]);
            scores[seen..].fill(0.0);
        }
        level.run(Mix { columns: self, queries, scores: &scores, stride, most });
    }
}

/// scores[n][position] = query · key
struct Score<'a, C> {
    columns: &'a Columns<C>,
    queries: &'a [f32],
    scores: &'a mut [f32],
    stride: usize,
}

impl<C: Kept> Work for Score<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Score { columns, queries, scores, stride } = self;
        let dim = columns.dim;
        let mut lined = vec![0.0; queries.len()];
        Interleave { from: queries, stride: dim, width: dim, out: &mut lined }.run(isa);
        let keys = columns.keys.chunks_exact(dim).take(stride / LANES);
        for (group, keys) in keys.enumerate() {
            by_parts!(I::WIDEST, queries.len() / dim, |first, N| {
                let sums = plain::<I, C, N>(isa, keys, lined[first * dim..][..N * dim].as_chunks().0);
                for (n, sum) in sums.into_iter().enumerate() {
                    let at = (first + n) * stride + group * LANES;
                    scores[at..at + LANES].copy_from_slice(&isa.store(sum));
                }
            });
        }
    }
}

/// queries[n] = Σ over positions of scores[n][position] · value
struct Mix<'a, C> {
    columns: &'a Columns<C>,
    queries: &'a mut [f32],
    scores: &'a [f32],
    stride: usize,
    most: usize,
}

impl<C: Kept> Work for Mix<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Mix { columns, queries, scores, stride, most } = self;
        let (dim, groups) = (columns.dim, columns.dim.div_ceil(LANES));
        let values = &columns.values[..most * groups];
        let mut lined = vec![0.0; queries.len() / dim * most];
        Interleave { from: scores, stride, width: most, out: &mut lined }.run(isa);
        for group in 0..groups {
            let len = LANES.min(dim - group * LANES);
            by_parts!(I::WIDEST, queries.len() / dim, |first, N| {
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
                    queries[at..at + len].copy_from_slice(&isa.store(sum)[..len]);
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
                    let mut found = queries.concat();
                    cache.attend(level, &mut found, &seen);
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
}
