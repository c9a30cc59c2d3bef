//! The threads that compute: they wait awake for a short while, then asleep.
//!
//! A region is a number of tasks that any thread may take, one after the other. The caller takes part, and waits at its end
//! only for threads that are inside: one that the system has put aside holds nobody up. Who computes a task changes no
//! bit of it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread waits awake: regions of one token follow each other within a few microseconds, tokens within a
/// fraction of a millisecond. Longer waits would take the core from others.
const AWAKE: Duration = Duration::from_micros(500);
/// Set in `door` while a region takes threads in; below it, how many are inside.
const OPEN: usize = 1 << (usize::BITS - 1);

pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
    /// One region at a time.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Shared {
    door: AtomicUsize,
    /// Counts regions.
    region: AtomicUsize,
    asleep: AtomicUsize,
    ended: AtomicBool,
    job: job::Slot,
    /// The next task, and how many there are.
    next: AtomicUsize,
    tasks: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Pool {
    /// A pool of `threads`, the caller's counted: one makes everything run where it is called.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        // Whole at every step: those that were started end with it when the system refuses one.
        let mut pool = Pool { shared: Arc::default(), workers: Vec::new(), threads: Vec::new(), turn: Mutex::new(()) };
        for _ in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new().name("finch-compute".to_string()).spawn(move || shared.serve())?;
            pool.threads.push(worker.thread().clone());
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        1 + self.workers.len()
    }

    /// Runs `task(0)` to `task(tasks - 1)`, each once, in no order. A panic in one is the caller's. A task runs no region
    /// itself: it would wait for its own end.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || tasks < 2 {
            return (0..tasks).for_each(task);
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        shared.next.store(0, Ordering::Relaxed);
        shared.tasks.store(tasks, Ordering::Relaxed);
        shared.job.lend(task, || {
            shared.door.store(OPEN, Ordering::Release);
            shared.region.fetch_add(1, Ordering::SeqCst);
            if shared.asleep.load(Ordering::SeqCst) > 0 {
                self.threads.iter().for_each(Thread::unpark);
            }
            shared.work(task);
            // Nobody else comes in, and those inside have left, before the job is taken back.
            shared.door.fetch_and(!OPEN, Ordering::AcqRel);
            let mut looks = 0;
            while shared.door.load(Ordering::Acquire) != 0 {
                looks += 1;
                if looks % 1024 == 0 { thread::yield_now() } else { std::hint::spin_loop() }
            }
        });
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.region.fetch_add(1, Ordering::SeqCst);
        self.threads.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // its panics were the callers'
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait(seen);
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            if self.enter() {
                self.job.with(|task| self.work(task));
                self.door.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Waits for a region after the `seen`-th.
    fn wait(&self, seen: usize) -> usize {
        let begun = Instant::now();
        while begun.elapsed() < AWAKE {
            for _ in 0..32 {
                let region = self.region.load(Ordering::SeqCst);
                if region != seen {
                    return region;
                }
                std::hint::spin_loop();
            }
        }
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let region = loop {
            let region = self.region.load(Ordering::SeqCst);
            if region != seen {
                break region;
            }
            thread::park();
        };
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        region
    }

    fn enter(&self) -> bool {
        let go_in = |door| (door & OPEN != 0).then_some(door + 1);
        self.door.fetch_update(Ordering::AcqRel, Ordering::Relaxed, go_in).is_ok()
    }

    /// Takes tasks until there are none. A task that panics ends the region: what is left is not begun.
    fn work(&self, task: &(dyn Fn(usize) + Sync)) {
        let tasks = self.tasks.load(Ordering::Relaxed);
        let taken = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let next = self.next.fetch_add(1, Ordering::Relaxed);
                if next >= tasks {
                    return;
                }
                task(next);
            }
        }));
        if let Err(panic) = taken {
            self.next.store(tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
}

/// A borrowed closure that other threads see for as long as it is lent.
mod job {
    use std::cell::UnsafeCell;

    type Task<'a> = &'a (dyn Fn(usize) + Sync);

    #[derive(Default)]
    pub struct Slot(UnsafeCell<Option<Task<'static>>>);

    // SAFETY: `lend` writes while no other thread is inside a region, and `with` reads only inside one: the pool's door,
    // which is opened after the first write and found empty before the second, orders them.
    unsafe impl Sync for Slot {}
    // SAFETY: the closure behind the reference is `Sync`.
    unsafe impl Send for Slot {}

    impl Slot {
        /// Shows `task` to those who call [`with`](Self::with) while `during` runs, which must not return or unwind before
        /// they are done. The pool's `run` keeps to that: it waits until its door is empty, and its tasks' panics are caught.
        pub fn lend(&self, task: Task<'_>, during: impl FnOnce()) {
            // SAFETY: only the lifetime changes, and nobody uses the reference after `during`.
            let lent = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
            // SAFETY: nobody is inside a region before `during` opens one.
            unsafe { *self.0.get() = Some(lent) };
            during();
            // SAFETY: nobody is inside a region after `during`.
            unsafe { *self.0.get() = None };
        }

        /// To be called inside a region only.
        pub fn with(&self, work: impl FnOnce(Task<'_>)) {
            // SAFETY: inside a region the slot is only read.
            if let Some(task) = unsafe { *self.0.get() } {
                work(task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiles::Regions;
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for tasks in (0..40).chain([1000]) {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks}");
            }
        }
    }

    #[test]
    fn regions_follow_each_other_also_after_a_sleep() {
        let pool = Pool::new(4).unwrap();
        let mut numbers = vec![0u64; 257];
        for round in 0..2000 {
            pool.chunks(&mut numbers, 10, |at, chunk| {
                chunk.iter_mut().zip(10 * at..).for_each(|(number, at)| *number += at as u64);
            });
            if round % 500 == 0 {
                thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        assert!(numbers.iter().enumerate().all(|(at, number)| *number == 2000 * at as u64));
    }

    #[test]
    fn a_panic_is_the_callers_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..50 {
            let run = catch_unwind(AssertUnwindSafe(|| pool.run(20, &|task| assert!(task != 7, "task {task}"))));
            assert!(run.is_err());
            let done = AtomicUsize::new(0);
            pool.run(20, &|_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 20);
        }
    }

    #[test]
    fn callers_from_several_threads_take_turns() {
        let pool = Pool::new(3).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut numbers = [0; 64];
                        pool.each(&mut numbers, |at, number| *number = at);
                        assert!(numbers.iter().enumerate().all(|(at, number)| at == *number));
                    }
                });
            }
        });
    }
}
