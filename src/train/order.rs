//! Which rows the steps take: as in the file, short to long, or drawn by weight; and which rows are held out.

use crate::feedback::buffer::systematic_draws;

/// The order of the rows of a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// As in the file, from its start again after its end; weights act in the loss.
    File,
    /// An epoch is as many systematic draws as rows, P(i) = wᵢ / Σw; weights act through them alone.
    Weighted,
    /// Short rows first, else as `File`.
    Curriculum,
}

impl Order {
    pub fn name(self) -> &'static str {
        match self {
            Order::File => "file",
            Order::Weighted => "weighted",
            Order::Curriculum => "curriculum",
        }
    }
}

/// What an order looks at in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// Digest of its content: draws and splits go by it, not by where the row stands.
    pub key: [u8; 32],
    pub weight: f64,
    /// In tokens.
    pub length: usize,
}

/// The first `needed` draws from `rows`, as indices, one epoch behind the other.
pub fn draws(order: Order, rows: &[Mark], needed: usize, seed: u64) -> Vec<usize> {
    match order {
        Order::File => round(0..rows.len(), needed),
        Order::Curriculum => {
            let mut sorted: Vec<usize> = (0..rows.len()).collect();
            sorted.sort_by_key(|i| rows[*i].length); // stable: equal lengths stay in the file's order
            round(sorted.into_iter(), needed)
        }
        Order::Weighted => {
            let weights: Vec<_> = rows.iter().map(|m| (m.key, m.weight)).collect();
            weighted_draws(&weights, needed, seed)
        }
    }
}

fn round(order: impl ExactSizeIterator<Item = usize> + Clone, needed: usize) -> Vec<usize> {
    order.cycle().take(needed).collect()
}

/// The first `needed` draws by weight, balanced within every epoch; empty where no weight can be drawn.
///
/// `rows` are (content, weight); the draws follow from content and seed, whatever the rows' order.
pub fn weighted_draws(rows: &[([u8; 32], f64)], needed: usize, seed: u64) -> Vec<usize> {
    let mut draws = Vec::with_capacity(needed);
    for epoch in 0.. {
        let drawn = systematic_draws(rows, rows.len(), seed.wrapping_add(epoch));
        if draws.len() >= needed || drawn.is_empty() {
            break;
        }
        draws.extend(drawn);
    }
    draws.truncate(needed);
    draws
}

/// Steps of `epochs` epochs, an epoch being as many draws as rows.
pub fn steps_of(epochs: usize, rows: usize, rows_a_step: usize) -> usize {
    epochs.saturating_mul(rows).div_ceil(rows_a_step.max(1))
}

/// Whether a row belongs to the held-out `share` (0 to 1): by its content alone, so once held out, always held out.
pub fn is_held_out(key: &[u8; 32], share: f64) -> bool {
    // Digests are uniform: their first four bytes are a fraction.
    let [a, b, c, d, ..] = *key;
    f64::from(u32::from_be_bytes([a, b, c, d])) < share * f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn mark(i: u8, weight: f64, length: usize) -> Mark {
        Mark { key: Sha256::digest([i]).into(), weight, length }
    }

    fn weighted(seed: u64) -> Vec<usize> {
        let rows: Vec<Mark> = [10.0, 1.0, 1.0, 1.0, 1.0].into_iter().zip(0..).map(|(w, i)| mark(i, w, 1)).collect();
        draws(Order::Weighted, &rows, 1000, seed)
    }

    #[test]
    fn the_file_order_wraps_round_and_a_curriculum_goes_from_short_to_long() {
        let rows = [mark(0, 1.0, 7), mark(1, 9.0, 2), mark(2, 1.0, 7)];
        assert_eq!(draws(Order::File, &rows, 7, 1), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(draws(Order::Curriculum, &rows, 4, 1), [1, 0, 2, 1]);
        for order in [Order::File, Order::Weighted, Order::Curriculum] {
            assert!(draws(order, &[], 4, 1).is_empty());
        }
    }

    #[test]
    fn weights_act_through_the_draws_epoch_by_epoch() {
        let draws = weighted(7);
        assert_eq!(draws.len(), 1000);
        for epoch in draws.chunks_exact(5) {
            let heavy = epoch.iter().filter(|i| **i == 0).count();
            assert!((3..=4).contains(&heavy), "10/14 of 5 draws are {heavy}");
        }
        let heavy = draws.iter().filter(|i| **i == 0).count();
        assert!(heavy.abs_diff(714) < 20, "{heavy}");
        assert_eq!(draws, weighted(7));
        assert_ne!(draws, weighted(8));
        assert!(weighted_draws(&[([0; 32], 0.0)], 5, 1).is_empty());
    }

    #[test]
    fn an_epoch_is_as_many_draws_as_rows() {
        assert_eq!((steps_of(3, 10, 4), steps_of(1, 1, 4), steps_of(0, 10, 4)), (8, 1, 0));
    }

    #[test]
    fn about_the_share_is_held_out_and_a_larger_share_keeps_the_smaller_one() {
        let keys: Vec<[u8; 32]> = (0..1000u32).map(|i| Sha256::digest(i.to_le_bytes()).into()).collect();
        let held = |share| keys.iter().filter(|k| is_held_out(k, share)).count();
        assert!((70..130).contains(&held(0.1)), "{}", held(0.1));
        assert_eq!((held(0.0), held(1.0)), (0, 1000));
        assert!(keys.iter().filter(|k| is_held_out(k, 0.1)).all(|k| is_held_out(k, 0.2)));
    }
}
