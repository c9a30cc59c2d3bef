//! Where a learner computes: regions that the chat can interrupt after any task.

use std::sync::{Arc, Mutex, PoisonError};

use super::stash::Stash;
use crate::error::Result;
use crate::model::courtesy::Courtesy;
use crate::model::cpu::kernels::Level;
use crate::model::cpu::plane::Plane;
use crate::model::cpu::pool::Pool;
use crate::model::cpu::tiles::Regions;

/// The threads of a network, lent from task to task.
#[derive(Clone, Copy)]
pub struct Polite<'a> {
    pub pool: &'a Pool,
    pub level: Level,
    pub courtesy: &'a Courtesy,
    pub stash: Option<&'a Arc<Stash>>,
    /// Products are of sixteen-bit numbers.
    pub words: bool,
}

impl Polite<'_> {
    /// `[rows, width]` of no meaning.
    pub fn plane(self, rows: usize, width: usize) -> Plane {
        self.stash.map_or_else(|| Plane::new(rows, width), |stash| Plane::lent(stash, rows, width))
    }

    pub fn copied(self, x: &Plane) -> Result<Plane> {
        let mut copy = self.plane(x.rows(), x.width());
        self.rows(&mut copy, |row, out| out.copy_from_slice(x.row(row)))?;
        Ok(copy)
    }
}

// SAFETY: a task is either run or put aside, and what was put aside is run once in the same way.
unsafe impl Regions for Polite<'_> {
    /// An interrupted error once the training is cancelled.
    type Done = Result<()>;

    /// Tasks that find an answer being generated leave at once, and are taken up when it is done: the threads are the chat's
    /// as soon as the tasks under way end. Tasks should take no more than a few milliseconds.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.courtesy.point()?;
        let aside = Mutex::new(Vec::new());
        let or_later = |at: usize| {
            if self.courtesy.is_wanted() {
                aside.lock().unwrap_or_else(PoisonError::into_inner).push(at);
            } else {
                task(at);
            }
        };
        self.pool.run(tasks, &or_later);
        loop {
            let waiting = std::mem::take(&mut *aside.lock().unwrap_or_else(PoisonError::into_inner));
            if waiting.is_empty() {
                return Ok(());
            }
            self.courtesy.point()?;
            self.pool.run(waiting.len(), &|at| or_later(waiting[at]));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::model::courtesy::ChatGate;

    #[test]
    fn an_answer_takes_the_threads_and_gives_them_back() {
        let (pool, gate) = (Pool::new(2).unwrap(), Arc::<ChatGate>::default());
        let courtesy = Courtesy::beside(Arc::clone(&gate));
        let polite = Polite { pool: &pool, level: Level::detect(), courtesy: &courtesy, stash: None, words: false };
        let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        let done = || counts.iter().map(|count| count.load(Ordering::SeqCst)).sum::<usize>();
        let answering = Mutex::new(None);
        std::thread::scope(|scope| {
            let training = scope.spawn(|| {
                polite.run(100, &|task| {
                    if task == 10 {
                        *answering.lock().unwrap() = Some(gate.answering());
                    }
                    counts[task].fetch_add(1, Ordering::SeqCst);
                })
            });
            while answering.lock().unwrap().is_none() {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            assert!(done() <= 12, "{} tasks ran beside the answer", done() - 11);
            pool.run(4, &|_| {}); // the pool is free meanwhile
            answering.lock().unwrap().take();
            training.join().unwrap().unwrap();
        });
        assert!(counts.iter().all(|count| count.load(Ordering::SeqCst) == 1), "each once");
    }

    #[test]
    fn a_cancelled_region_ends() {
        let (pool, courtesy) = (Pool::new(2).unwrap(), Courtesy::default());
        let polite = Polite { pool: &pool, level: Level::detect(), courtesy: &courtesy, stash: None, words: false };
        let done = AtomicUsize::new(0);
        let run = polite.run(1000, &|_| {
            done.fetch_add(1, Ordering::SeqCst);
            courtesy.cancel();
        });
        assert!(run.is_err());
        assert!(done.into_inner() <= 2);
    }
}
