//! Rows through the network on several cores, with sums in a fixed order.
//!
//! How rows are grouped into passes depends on the rows alone, and gradients are added in the order of the passes; so the
//! number of cores changes the time and not one bit of the result.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::row::Row;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::memory::PASS_TOKENS;
use crate::model::{Learner, PassOptions};

/// What one step's rows gave.
#[derive(Debug, Clone)]
pub struct StepSum {
    /// Weighted mean of the rows' losses.
    pub loss: f64,
    /// Each row's own loss, in the order of the rows.
    pub row_losses: Vec<f64>,
    /// Gradient of `loss`, flat.
    pub grads: Vec<f32>,
}

/// Threads that each run whole passes, with products of their own on one thread.
pub struct Lanes {
    pools: Vec<rayon::ThreadPool>,
    /// Rows are packed into a pass until it has this many tokens.
    pass_tokens: usize,
}

/// How the passes of a step run.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepOptions {
    /// Probability of `lora_dropout` and the step's seed.
    pub dropout: Option<(f32, u64)>,
}

/// Tokens of a pass where several run side by side: below the size from which candle shares an operation between threads.
const SMALL_PASS: usize = 80;

impl Lanes {
    /// What suits the network: a core a pass where products are too small to be shared, else all cores for one pass.
    pub fn for_network(config: &ModelConfig, threads: usize) -> Result<Lanes> {
        if config.is_small() { Lanes::new(threads, SMALL_PASS) } else { Ok(Lanes::shared(PASS_TOKENS)) }
    }

    /// `threads` passes at a time, each on one core: for networks too small to share a product between cores.
    pub fn new(threads: usize, pass_tokens: usize) -> Result<Lanes> {
        let pools = (0..threads.max(1))
            .map(|_| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(1)
                    .build()
                    .map_err(|e| Error::failure(format!("cannot start a training thread: {e}")))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Lanes { pools, pass_tokens })
    }

    /// One pass at a time, whose products use all cores: for large networks.
    pub fn shared(pass_tokens: usize) -> Lanes {
        Lanes { pools: Vec::new(), pass_tokens }
    }

    /// Loss and gradient of Σ wᵢLᵢ / Σ wᵢ over the rows.
    pub fn step(&self, learner: &dyn Learner, rows: &[&Row], options: StepOptions) -> Result<StepSum> {
        let total: f64 = rows.iter().map(|r| r.weight).sum();
        if !(total.is_finite() && total > 0.0) {
            return Err(Error::failure(format!("the weights of a training step add up to {total}")));
        }
        let passes = group(rows, self.pass_tokens);
        let mut sum = StepSum { loss: 0.0, row_losses: Vec::new(), grads: vec![0.0; learner.len()] };
        let work = |i: usize| one_pass(learner, &passes[i], total, options, i as u64);
        self.in_order(passes.len(), work, |part| absorb(&mut sum, part))?;
        Ok(sum)
    }

    /// Each row's own loss, without gradients, in the order of the rows.
    pub fn losses(&self, learner: &dyn Learner, rows: &[&Row]) -> Result<Vec<f64>> {
        let passes = group(rows, self.pass_tokens);
        Ok(self.map(passes.len(), |i| measure(learner, &passes[i]))?.concat())
    }

    /// `work(0..n)` on the lanes, the results in that order.
    ///
    /// Errors: those of the first that failed or panicked; the others' results are lost.
    pub fn map<T: Send>(&self, n: usize, work: impl Fn(usize) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
        let mut all = Vec::with_capacity(n);
        self.in_order(n, work, |part| all.push(part))?;
        Ok(all)
    }

    /// Runs `work(0..n)` on the lanes and hands on the results in that order, up to the first that fails or panics.
    fn in_order<T: Send>(
        &self,
        n: usize,
        work: impl Fn(usize) -> Result<T> + Send + Sync,
        mut take: impl FnMut(T) + Send,
    ) -> Result<()> {
        // A lane that unwound would never take its turn, and the others would wait for it for ever. What `work` borrows is
        // only read, and a sum that lacks a part is thrown away with the error.
        let work = |i| {
            catch_unwind(AssertUnwindSafe(|| work(i))).unwrap_or_else(|panic| {
                Err(Error::panicked("a pass through the network", &*panic)
                    .hint("this is a fault in finch, not in your data"))
            })
        };
        if self.pools.is_empty() || n == 1 {
            let run = |i| match self.pools.first() {
                Some(pool) => pool.install(|| work(i)),
                None => work(i),
            };
            return (0..n).try_for_each(|i| {
                take(run(i)?);
                Ok(())
            });
        }
        let next = AtomicUsize::new(0);
        let turn = Mutex::new((0usize, take, None::<Error>));
        let changed = Condvar::new();
        std::thread::scope(|scope| {
            for pool in &self.pools {
                let (next, turn, changed, work) = (&next, &turn, &changed, &work);
                scope.spawn(move || {
                    loop {
                        let i = next.fetch_add(1, Ordering::SeqCst);
                        if i >= n {
                            return;
                        }
                        let part = pool.install(|| work(i));
                        let mut state = turn.lock().unwrap_or_else(PoisonError::into_inner);
                        while state.0 != i {
                            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                        }
                        state.0 += 1;
                        match part {
                            Ok(part) if state.2.is_none() => (state.1)(part),
                            Ok(_) => {}
                            Err(e) => {
                                next.store(n, Ordering::SeqCst);
                                state.2.get_or_insert(e);
                            }
                        }
                        changed.notify_all();
                    }
                });
            }
        });
        match turn.into_inner().unwrap_or_else(PoisonError::into_inner).2 {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }
}

fn absorb(sum: &mut StepSum, part: StepSum) {
    sum.loss += part.loss;
    sum.row_losses.extend(part.row_losses);
    for (s, g) in sum.grads.iter_mut().zip(part.grads) {
        *s += g;
    }
}

/// Consecutive rows of one kind, packed until a pass is full.
fn group<'a>(rows: &[&'a Row], pass_tokens: usize) -> Vec<Vec<&'a Row>> {
    let mut passes: Vec<Vec<&Row>> = Vec::new();
    let mut tokens = 0;
    for row in rows {
        let fits = tokens + row.len() <= pass_tokens;
        match passes.last_mut() {
            Some(pass) if fits && pass[0].needs_kl() == row.needs_kl() => pass.push(row),
            _ => {
                passes.push(vec![row]);
                tokens = 0;
            }
        }
        tokens += row.len();
    }
    passes
}

/// Forward and losses of the rows of one pass.
fn measure(learner: &dyn Learner, rows: &[&Row]) -> Result<Vec<f64>> {
    let sequences: Vec<_> = rows.iter().flat_map(|r| r.sequences()).collect();
    let pass = learner.forward(&sequences, PassOptions { kl: rows[0].needs_kl(), dropout: None })?;
    let (mut row_losses, mut at) = (Vec::with_capacity(rows.len()), 0);
    for row in rows {
        let n = row.sequences().len();
        row_losses.push(row.loss(&pass.logprobs()[at..at + n], &pass.kl()[at..at + n]).value);
        at += n;
    }
    Ok(row_losses)
}

/// Forward, losses, backward of the rows of one pass.
fn one_pass(learner: &dyn Learner, rows: &[&Row], total: f64, options: StepOptions, index: u64) -> Result<StepSum> {
    let sequences: Vec<_> = rows.iter().flat_map(|r| r.sequences()).collect();
    let kl = rows[0].needs_kl();
    let dropout = options.dropout.map(|(p, seed)| (p, seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index)));
    let pass = learner.forward(&sequences, PassOptions { kl, dropout })?;
    let mut sum = StepSum { loss: 0.0, row_losses: Vec::new(), grads: vec![0.0; learner.len()] };
    let (mut d_logprobs, mut d_kl, mut at) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let n = row.sequences().len();
        let mut loss = row.loss(&pass.logprobs()[at..at + n], &pass.kl()[at..at + n]);
        at += n;
        let share = row.weight / total;
        sum.loss += share * loss.value;
        sum.row_losses.push(loss.value);
        for d in loss.d_logprobs.iter_mut().chain(&mut loss.d_kl).flatten() {
            *d *= share as f32;
        }
        d_logprobs.extend(loss.d_logprobs);
        d_kl.extend(loss.d_kl);
    }
    pass.backward(&d_logprobs, kl.then_some(&d_kl), &mut sum.grads)?;
    Ok(sum)
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
