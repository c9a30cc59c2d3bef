//! The buffer: the examples that take part in training, at most its capacity of them, drawn by weight.
//!
//! It is a pure function of the store's feedback: filled anew from the examples in the order of their feedback. So a
//! restart, an undo or another finch's rating needs no bookkeeping here.

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::example::Example;

/// A weighted ring buffer. When it is full, the oldest of the lowest weight leaves; the newcomer never does. (A plain
/// ring would push a critical note out for small praise.)
#[derive(Debug, Clone)]
pub struct Buffer {
    capacity: usize,
    /// Oldest first.
    examples: Vec<Example>,
}

impl Buffer {
    /// An empty buffer for at least one example.
    pub fn new(capacity: usize) -> Buffer {
        Buffer { capacity: capacity.max(1), examples: Vec::new() }
    }

    /// A buffer that took in `examples` one after the other, oldest first.
    pub fn fill(capacity: usize, examples: impl IntoIterator<Item = Example>) -> Buffer {
        let mut buffer = Buffer::new(capacity);
        for example in examples {
            buffer.push(example);
        }
        buffer
    }

    /// Takes in `example` as the newest; returns the one that left for it.
    pub fn push(&mut self, example: Example) -> Option<Example> {
        let left = (self.examples.len() >= self.capacity)
            .then(|| {
                // `min_by` returns the first of equal ones: the oldest.
                (0..self.examples.len()).min_by(|&a, &b| self.examples[a].weight.total_cmp(&self.examples[b].weight))
            })
            .flatten()
            .map(|index| self.examples.remove(index));
        self.examples.push(example);
        left
    }

    /// Oldest first.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    pub fn len(&self) -> usize {
        self.examples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Σw, the "weighted" count of the acknowledgement.
    pub fn total_weight(&self) -> f64 {
        self.examples.iter().map(|example| example.weight).sum()
    }

    /// P(i) = wᵢ / Σw, in the order of [`examples`](Buffer::examples); sums to 1.
    pub fn probabilities(&self) -> Vec<f64> {
        let total = self.total_weight();
        self.examples.iter().map(|example| example.weight / total).collect()
    }

    /// `n` draws by weight: indices into [`examples`](Buffer::examples); see [`systematic_draws`].
    pub fn systematic(&self, n: usize, seed: u64) -> Vec<usize> {
        let rows: Vec<_> = self.examples.iter().map(|example| (example.content_digest(), example.weight)).collect();
        systematic_draws(&rows, n, seed)
    }
}

/// `n` draws with P(i) = wᵢ / Σw by systematic sampling: row i is drawn ⌊n·P(i)⌋ or ⌈n·P(i)⌉ times, which row gets the
/// odd draw and the order of all draws follow from the seed.
///
/// `rows` are (key, weight). Rows are taken in the order of their keys, so with keys made of content the draws are the
/// same whatever the order or the ids of the rows. Weights that are not positive and finite are never drawn; when none is
/// left, the result is empty.
pub fn systematic_draws<K: Ord>(rows: &[(K, f64)], n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].1 > 0.0 && rows[i].1.is_finite()).collect();
    order.sort_by(|&a, &b| rows[a].0.cmp(&rows[b].0).then(rows[a].1.total_cmp(&rows[b].1)));
    // Named and not `StdRng`: its numbers may not change with a release of the library.
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    // A new neighbourhood for every seed, or the odd draws of rows that lie together would always exclude each other.
    order.shuffle(&mut rng);
    let total: f64 = order.iter().map(|&i| rows[i].1).sum();
    let Some(&last) = order.last() else { return Vec::new() };
    let offset: f64 = rng.random();

    let mut draws = Vec::with_capacity(n);
    let mut below = 0.0;
    for &i in &order {
        below += rows[i].1;
        // The points of the draws lie at (k + offset)/n of the total; those below the running sum fall to this row.
        while draws.len() < n && (draws.len() as f64 + offset) * total < below * n as f64 {
            draws.push(i);
        }
    }
    // Rounding of the sum may leave the last point on its very end.
    draws.resize(n, last);
    draws.shuffle(&mut rng);
    draws
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback::example::Origin;
    use crate::model::message::Message;

    fn example(id: i64, weight: f64) -> Example {
        Example {
            interaction: id,
            messages: vec![Message::user(format!("question {id}"))],
            completion: format!("answer {id}"),
            rejected: None,
            weight,
            thinking: None,
            origin: Origin::Praise,
            note: None,
        }
    }

    fn ids(buffer: &Buffer) -> Vec<i64> {
        buffer.examples().iter().map(|e| e.interaction).collect()
    }

    fn counts(draws: &[usize], rows: usize) -> Vec<usize> {
        (0..rows).map(|i| draws.iter().filter(|d| **d == i).count()).collect()
    }

    #[test]
    fn a_full_buffer_loses_the_oldest_of_the_lowest_weight() {
        let weights = [3.0, 1.0, 10.0, 1.0];
        let mut buffer = Buffer::fill(4, (0..4).map(|i| example(i, weights[i as usize])));
        assert_eq!(buffer.push(example(4, 1.0)).map(|e| e.interaction), Some(1));
        assert_eq!(buffer.push(example(5, 10.0)).map(|e| e.interaction), Some(3));
        assert_eq!(buffer.push(example(6, 0.5)).map(|e| e.interaction), Some(4));
        assert_eq!(buffer.push(example(7, 10.0)).map(|e| e.interaction), Some(6));
        assert_eq!(buffer.push(example(8, 10.0)).map(|e| e.interaction), Some(0));
        assert_eq!(ids(&buffer), [2, 5, 7, 8]);
        assert_eq!(buffer.push(example(9, 0.1)).map(|e| e.interaction), Some(2), "the newcomer never leaves");
        assert_eq!(ids(&buffer), [5, 7, 8, 9]);
    }

    #[test]
    fn a_buffer_with_room_loses_nothing() {
        let mut buffer = Buffer::new(3);
        assert!(buffer.is_empty());
        assert!((0..3).all(|i| buffer.push(example(i, 1.0)).is_none()));
        assert_eq!((buffer.len(), buffer.capacity(), Buffer::new(0).capacity()), (3, 3, 1));
    }

    /// Against a plain restatement of the rule, on many random sequences.
    #[test]
    fn eviction_follows_the_rule_on_random_sequences() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        for _ in 0..200 {
            let capacity = rng.random_range(1..8);
            let mut buffer = Buffer::new(capacity);
            let mut expected: Vec<(i64, f64)> = Vec::new();
            for id in 0..30 {
                let weight = [0.5, 1.0, 3.0, 10.0][rng.random_range(0..4)];
                if expected.len() == capacity {
                    let lowest = expected.iter().map(|e| e.1).fold(f64::INFINITY, f64::min);
                    let oldest = expected.iter().position(|e| e.1 == lowest).unwrap();
                    expected.remove(oldest);
                }
                expected.push((id, weight));
                buffer.push(example(id, weight));
                assert_eq!(ids(&buffer), expected.iter().map(|e| e.0).collect::<Vec<_>>());
                assert_eq!(buffer.examples().last().map(|e| e.interaction), Some(id));
            }
        }
    }

    #[test]
    fn probabilities_are_weight_over_total() {
        let buffer = Buffer::fill(100, [10.0, 1.0, 1.0, 1.0, 1.0].into_iter().zip(0..).map(|(w, i)| example(i, w)));
        assert_eq!(buffer.total_weight(), 14.0);
        let p = buffer.probabilities();
        assert_eq!(p[0], 10.0 / 14.0);
        assert_eq!(p[1], 1.0 / 14.0);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(Buffer::new(5).probabilities().is_empty());
    }

    #[test]
    fn one_critical_among_four_good_is_drawn_ten_times_in_fourteen() {
        let buffer = Buffer::fill(100, [10.0, 1.0, 1.0, 1.0, 1.0].into_iter().zip(0..).map(|(w, i)| example(i, w)));
        for seed in 0..50 {
            assert_eq!(counts(&buffer.systematic(14, seed), 5), [10, 1, 1, 1, 1], "seed {seed}");
        }
    }

    #[test]
    fn every_row_is_drawn_its_share_to_within_one() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(11);
        for seed in 0..300 {
            let rows: Vec<(u32, f64)> =
                (0..rng.random_range(1..40)).map(|key| (key, rng.random_range(0.01..20.0))).collect();
            let n = rng.random_range(0..200);
            let total: f64 = rows.iter().map(|r| r.1).sum();
            let draws = systematic_draws(&rows, n, seed);
            assert_eq!(draws.len(), n);
            for (count, (_, weight)) in counts(&draws, rows.len()).into_iter().zip(&rows) {
                let share = n as f64 * weight / total;
                assert!((count as f64 - share).abs() < 1.0 + 1e-9, "{count} draws for a share of {share}");
            }
        }
    }

    #[test]
    fn over_many_seeds_the_draws_have_the_probabilities() {
        let rows = [(0, 10.0), (1, 3.0), (2, 1.0), (3, 0.5)];
        let mut sums = [0usize; 4];
        for seed in 0..4000 {
            for draw in systematic_draws(&rows, 3, seed) {
                sums[draw] += 1;
            }
        }
        for (sum, (_, weight)) in sums.iter().zip(rows) {
            let (seen, expected) = (*sum as f64 / 12_000.0, weight / 14.5);
            assert!((seen - expected).abs() < 0.01, "{seen} against {expected}");
        }
    }

    #[test]
    fn draws_follow_seed_and_content_not_ids_or_order() {
        let rows: Vec<Example> = (0..20).map(|i| example(i, [1.0, 3.0, 10.0][i as usize % 3])).collect();
        let forward = Buffer::fill(100, rows.clone());
        let backward =
            Buffer::fill(100, rows.into_iter().rev().map(|e| Example { interaction: e.interaction + 1000, ..e }));
        let texts = |buffer: &Buffer, seed| -> Vec<String> {
            buffer.systematic(60, seed).into_iter().map(|i| buffer.examples()[i].completion.clone()).collect()
        };
        assert_eq!(texts(&forward, 42), texts(&backward, 42));
        assert_ne!(texts(&forward, 42), texts(&forward, 43));
        assert_eq!(forward.systematic(60, 42), forward.systematic(60, 42));
    }

    /// Written down once: a change of these numbers would change every adapter trained with the same seed and data.
    #[test]
    fn the_draws_of_a_seed_stay_what_they_are() {
        let rows = [("a", 10.0), ("b", 1.0), ("c", 3.0)];
        assert_eq!(systematic_draws(&rows, 14, 42), EXPECTED_DRAWS);
    }
    const EXPECTED_DRAWS: [usize; 14] = [0, 1, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 2];

    #[test]
    fn rows_without_a_usable_weight_are_never_drawn() {
        let rows = [(0, 0.0), (1, f64::NAN), (2, 2.0), (3, -1.0), (4, f64::INFINITY)];
        assert_eq!(systematic_draws(&rows, 5, 1), [2; 5]);
        assert!(systematic_draws(&rows[..2], 5, 1).is_empty());
        assert!(systematic_draws::<u8>(&[], 5, 1).is_empty());
        assert!(systematic_draws(&rows, 0, 1).is_empty());
    }
}
