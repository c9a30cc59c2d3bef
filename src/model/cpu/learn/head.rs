//! The output layer: log-probabilities and KL of the targets from their hidden states, and what a hidden state changes in them.
//!
//! A row of Qwen's logits is 0.6 MB: they exist for a span of the vocabulary at a time, and sums over all of it go on from
//! span to span, as attention's do in FlashAttention (Dao et al. 2022). What flows back to a hidden state is a multiple of
//! ∂log p(t)/∂h and of ∂KL/∂h, whatever the loss, so both are made while the logits are there.
//!
//! All is told by sums over the words v other than the target t, which keep their bits where p(t) is close to 1. With
//! z = ln Σ eᵛ over them, p(others) = 1 / (1 + e^(t − z)), and E W the mean of their rows of W by their probabilities:
//! log p(t) = −ln(1 + e^(z − t)), and ∂log p(t)/∂h = p(others) · (W[t] − E W). With q of the base,
//! KL(q ‖ p) = Σ q · (log q − log p), and ∂KL/∂h = Σ (p − q) W, two sums that are nearly the same where the adapter has changed
//! little: the second is that of the differences.

use std::ops::Range;

use super::linear::Lined;
use super::polite::Polite;
use crate::error::Result;
use crate::model::cpu::kernels::Level;
use crate::model::cpu::math::{Exponentials, subtract};
use crate::model::cpu::matrix::Matrix;
use crate::model::cpu::plane::Plane;
use crate::model::cpu::room::{Room, in_room, zeros};
use crate::model::cpu::tiles::Regions;

/// Logits that are to exist at once; fewest and most words of a span, as many as fill panels.
const LOGITS: usize = 1 << 22;
const SPANS: (usize, usize) = (1024, 8192);
/// In the place of a logit that does not count: below all others, and finite.
const HIDDEN: f32 = -1e30;

/// Of each target.
pub struct Scored {
    pub logprobs: Vec<f32>,
    /// KL(base ‖ adapted) in nat; empty without a base.
    pub kl: Vec<f32>,
    pub slopes: Option<Slopes>,
}

/// `[targets, hidden]`
pub struct Slopes {
    /// ∂log p(t)/∂h
    pub logprob: Plane,
    /// ∂KL/∂h
    pub kl: Option<Plane>,
}

/// A distribution behind one hidden state, as far as spans have come.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// The target's logit.
    logit: f32,
    others: Exponentials,
    /// What sums over earlier spans are multiplied with.
    factor: f32,
}

impl Seen {
    fn of_others(self) -> f64 {
        1.0 / (1.0 + (f64::from(self.logit) - self.others.ln()).exp())
    }

    fn logprob(self) -> f64 {
        let above = self.others.ln() - f64::from(self.logit);
        // Far above, the 1 is nothing beside e to the power of it, which would not be finite at last.
        if above > 40.0 { -above } else { -above.exp().ln_1p() }
    }
}

/// One hidden state: the adapter's distribution, and the base's where there is one.
#[derive(Clone, Copy, Default)]
struct Row {
    ours: Seen,
    base: Seen,
    /// Σ over the others of e^(base's logit − their largest) · (base's logit − ours).
    apart: f64,
    /// How many of our exponentials are taken from the base's, as many as make their sums the same.
    alike: f32,
    /// What of our sum over earlier spans is added to that of the differences, since `alike` was another one there.
    moved: f32,
}

impl Row {
    /// Takes in the logits of a span: ours become e^(logit − largest), the base's what these are more than `alike` of ours,
    /// and those of the target 0.
    fn take(&mut self, level: Level, target: Option<usize>, ours: &mut [f32], base: &mut [f32]) {
        if let Some(at) = target {
            self.ours.logit = std::mem::replace(&mut ours[at], HIDDEN);
        }
        if !base.is_empty() {
            if let Some(at) = target {
                self.base.logit = std::mem::replace(&mut base[at], HIDDEN);
            }
            let Seen { others, factor, .. } = &mut self.base;
            *factor = others.reach(level, base);
            self.apart = self.apart * f64::from(*factor) + others.apart(level, base, ours);
            others.take(level, base, target);
        }
        let Seen { others, factor, .. } = &mut self.ours;
        *factor = others.reach(level, ours);
        others.take(level, ours, target);
        if !base.is_empty() {
            let before = self.base.factor * self.alike;
            self.alike = (self.base.others.sum / self.ours.others.sum) as f32;
            self.moved = before - self.alike * self.ours.factor;
            subtract(level, base, self.alike, ours);
        }
    }

    fn kl(self) -> f64 {
        let Row { ours, base, apart, .. } = self;
        // log of the sum over all words: the base's, and what is more in it than in ours.
        let more = (f64::from(base.logit) - base.logprob()) - (f64::from(ours.logit) - ours.logprob());
        let others = apart / base.others.sum - more;
        base.logprob().exp() * (base.logprob() - ours.logprob()) + base.of_others() * others
    }
}

/// The adapter's side of all rows, or the base's.
struct Side {
    lined: Lined,
    /// Σ over the others of what [`Row::take`] makes of logits · W, `[targets, hidden]`, where slopes are made.
    sums: Plane,
}

impl Polite<'_> {
    /// `hidden`: after the final norm, `[targets, hidden]`; `base`: the base's. Slopes are made where `sloped`.
    pub fn score(
        self,
        head: &Matrix,
        hidden: &Plane,
        base: Option<&Plane>,
        targets: &[u32],
        sloped: bool,
    ) -> Result<Scored> {
        let span = LOGITS / targets.len().max(1) / SPANS.0 * SPANS.0;
        self.score_by(span.clamp(SPANS.0, SPANS.1), head, hidden, base, targets, sloped)
    }

    /// The same, of so many words at a time.
    fn score_by(
        self,
        span: usize,
        head: &Matrix,
        hidden: &Plane,
        base: Option<&Plane>,
        targets: &[u32],
        sloped: bool,
    ) -> Result<Scored> {
        let side = |hidden: &Plane| -> Result<Side> {
            let sums = if sloped { Plane::new(targets.len(), head.columns()) } else { Plane::default() };
            Ok(Side { lined: self.lined(hidden)?, sums })
        };
        let (mut ours, mut base) = (side(hidden)?, base.map(side).transpose()?);
        let (mut rows, mut lined) = (vec![Row::default(); targets.len()], self.lined(&Plane::default())?);
        for first in (0..head.rows()).step_by(span) {
            let words = first..head.rows().min(first + span);
            let logits = |side: &Side| -> Result<Plane> {
                let mut out = self.plane(targets.len(), words.len());
                self.times(head, words.clone(), &side.lined, &mut out)?;
                Ok(out)
            };
            let (mut logits, mut based) = (logits(&ours)?, base.as_ref().map(logits).transpose()?.unwrap_or_default());
            let mut tasks: Vec<_> =
                rows.iter_mut().zip(logits.rows_mut()).map(|(row, l)| (row, l, &mut [][..])).collect();
            tasks.iter_mut().zip(based.rows_mut()).for_each(|((_, _, place), base)| *place = base);
            self.each(&mut tasks, |at, (row, ours, base)| {
                let target = words.contains(&(targets[at] as usize)).then(|| targets[at] as usize - first);
                row.take(self.level, target, ours, base);
            })?;
            if !sloped {
                continue;
            }
            if let Some(base) = &mut base {
                lined.fill(self, &based, 0..words.len())?;
                let go_on = |row: usize, columns: Range<usize>, sums: &mut [f32]| {
                    let (Row { base: Seen { factor, .. }, moved, .. }, ours) =
                        (rows[row], &ours.sums.row(row)[columns]);
                    sums.iter_mut().zip(ours).for_each(|(sum, ours)| *sum = factor * *sum + moved * ours);
                };
                self.through(head, words.clone(), &lined, go_on, &mut base.sums)?;
            }
            lined.fill(self, &logits, 0..words.len())?;
            let go_on = |row: usize, _: Range<usize>, sums: &mut [f32]| {
                sums.iter_mut().for_each(|sum| *sum *= rows[row].ours.factor);
            };
            self.through(head, words, &lined, go_on, &mut ours.sums)?;
        }
        Ok(Scored {
            logprobs: rows.iter().map(|row| row.ours.logprob() as f32).collect(),
            kl: if base.is_some() { rows.iter().map(|row| row.kl() as f32).collect() } else { Vec::new() },
            slopes: sloped
                .then(|| self.slopes(head, ours.sums, base.map(|base| base.sums), &rows, targets))
                .transpose()?,
        })
    }

    /// Sums over all spans become slopes: with o of the others, e of the exponentials and S their sum,
    /// ∂log p(t)/∂h = p(o) · (W[t] − e W / S), and ∂KL/∂h = (q(o) − p(o)) · (W[t] − e W / S) − q(o) · differences W / S of q.
    fn slopes(
        self,
        head: &Matrix,
        mut ours: Plane,
        mut base: Option<Plane>,
        rows: &[Row],
        targets: &[u32],
    ) -> Result<Slopes> {
        let mut tasks: Vec<_> = ours.rows_mut().map(|ours| (ours, &mut [][..])).collect();
        if let Some(base) = &mut base {
            tasks.iter_mut().zip(base.rows_mut()).for_each(|((_, place), base)| *place = base);
        }
        self.each(&mut tasks, |at, (ours, base)| {
            let Row { ours: p, base: q, .. } = rows[at];
            let (of_ours, of_base) = ((1.0 / p.others.sum) as f32, (q.of_others() / q.others.sum) as f32);
            let (others, more) = (p.of_others() as f32, (q.of_others() - p.of_others()) as f32);
            in_room(|Room { out, .. }| {
                let word = zeros(out, head.columns());
                head.read(targets[at] as usize, word);
                word.iter_mut().zip(ours.iter()).for_each(|(w, sum)| *w -= of_ours * sum);
                base.iter_mut().zip(word.iter()).for_each(|(sum, w)| *sum = more * w - of_base * *sum);
                ours.iter_mut().zip(word).for_each(|(sum, w)| *sum = others * *w);
            });
        })?;
        drop(tasks);
        Ok(Slopes { logprob: ours, kl: base })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::model::courtesy::Courtesy;
    use crate::model::cpu::kernels::tests::{matrix, plane};
    use crate::model::cpu::pool::Pool;
    use crate::model::storage::Storage;

    /// Plain sums in f64 over the whole vocabulary.
    struct Plain {
        logprob: f64,
        kl: f64,
        slope: Vec<f64>,
        kl_slope: Vec<f64>,
    }

    fn plain(w: &[f32], h: &[f32], base: &[f32], target: usize) -> Plain {
        let logs = |h: &[f32]| -> Vec<f64> {
            let dot = |row: &[f32]| row.iter().zip(h).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum::<f64>();
            let logits: Vec<f64> = w.chunks(h.len()).map(dot).collect();
            let all = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
            logits.iter().map(|x| x - all).collect()
        };
        let (p, q) = (logs(h), logs(base));
        let mut plain = Plain { logprob: p[target], kl: 0.0, slope: vec![0.0; h.len()], kl_slope: vec![0.0; h.len()] };
        for (v, w) in w.chunks(h.len()).enumerate() {
            plain.kl += q[v].exp() * (q[v] - p[v]);
            let is_target = f64::from(u8::from(v == target));
            for (at, w) in w.iter().enumerate() {
                plain.slope[at] += (is_target - p[v].exp()) * f64::from(*w);
                plain.kl_slope[at] += (p[v].exp() - q[v].exp()) * f64::from(*w);
            }
        }
        plain
    }

    #[test]
    fn spans_of_words_tell_all_of_them() {
        let (mut rng, pool, courtesy) = (StdRng::seed_from_u64(12), Pool::new(2).unwrap(), Arc::<Courtesy>::default());
        let (words, width) = (113, 32);
        let (head, w) = matrix(Storage::F32, words, width, &mut rng);
        let (mut hidden, mut base) = (plane(5, width, &mut rng), plane(5, width, &mut rng));
        // Some that are nearly sure of their word, and a base that is nearly the adapter's.
        let targets = [0, 16, 112, 50, 99];
        for (row, size) in [(1, 6.0), (4, 30.0)] {
            let of_target = &w[targets[row] as usize * width..][..width];
            hidden.row_mut(row).iter_mut().zip(of_target).for_each(|(h, w)| *h = size * w);
        }
        let near = hidden.row(3).to_vec();
        base.row_mut(3).iter_mut().zip(near).for_each(|(base, h)| *base = h * 1.001);
        for (span, use_words) in [(16, false), (112, false), (128, false), (48, true)] {
            let polite =
                Polite { pool: &pool, level: Level::detect(), courtesy: &courtesy, stash: None, words: use_words };
            let Scored { logprobs, kl, slopes } =
                polite.score_by(span, &head, &hidden, Some(&base), &targets, true).unwrap();
            let (slopes, most) = (slopes.unwrap(), if use_words { 1e-3 } else { 1e-5 });
            for (row, target) in targets.into_iter().enumerate() {
                let expected = plain(&w, hidden.row(row), base.row(row), target as usize);
                let what = format!("spans of {span}, row {row}, words {use_words}");
                let near = |found: f32, expected: f64, size: f64, what: &str| {
                    assert!((f64::from(found) - expected).abs() < most * size, "{what}: {found} and {expected}");
                };
                near(logprobs[row], expected.logprob, 1e-3 + expected.logprob.abs(), &what);
                near(kl[row], expected.kl, 0.1 + expected.kl.abs(), &format!("KL, {what}"));
                let length = |slope: &[f64]| slope.iter().map(|x| x * x).sum::<f64>().sqrt();
                for (at, expected_slope) in expected.slope.iter().enumerate() {
                    near(slopes.logprob.row(row)[at], *expected_slope, length(&expected.slope), &what);
                }
                for (at, kl_slope) in expected.kl_slope.iter().enumerate() {
                    let found = slopes.kl.as_ref().unwrap().row(row)[at];
                    near(found, *kl_slope, 0.05 + length(&expected.kl_slope), &format!("KL's slope, {what}"));
                }
            }
            let alone = polite.score_by(span, &head, &hidden, None, &targets, false).unwrap();
            assert!(alone.logprobs == logprobs && alone.kl.is_empty() && alone.slopes.is_none());
        }
    }
}
