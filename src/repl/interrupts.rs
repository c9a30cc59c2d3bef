//! Ctrl-C while something is going on: it cancels that, and nothing else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use crate::engine::CancelFlag;

/// From its making on, Ctrl-C no longer ends the process; what is going on decides what it does.
#[derive(Clone, Default)]
pub struct Interrupts {
    current: Arc<Mutex<Option<CancelFlag>>>,
}

impl Interrupts {
    /// Listens for Ctrl-C as long as the runtime lives. Where signals cannot be had, Ctrl-C ends the process as ever.
    pub fn listen(runtime: &Handle) -> Interrupts {
        let interrupts = Interrupts::default();
        let heard = interrupts.clone();
        runtime.spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                heard.interrupt();
            }
        });
        interrupts
    }

    /// Cancels what is going on, as Ctrl-C does.
    pub fn interrupt(&self) {
        if let Some(flag) = &*self.lock() {
            flag.cancel();
        }
    }

    /// Does `work`; Ctrl-C sets `flag` meanwhile.
    pub fn during<T>(&self, flag: &CancelFlag, work: impl FnOnce() -> T) -> T {
        *self.lock() = Some(flag.clone());
        let done = work();
        *self.lock() = None;
        done
    }

    fn lock(&self) -> MutexGuard<'_, Option<CancelFlag>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_reaches_what_is_going_on_only() {
        let interrupts = Interrupts::default();
        let (before, during, after) = (CancelFlag::new(), CancelFlag::new(), CancelFlag::new());
        interrupts.during(&before, || ());
        interrupts.interrupt();
        interrupts.during(&during, || interrupts.interrupt());
        interrupts.during(&after, || ());
        assert_eq!([before, during, after].map(|flag| flag.is_cancelled()), [false, true, false]);
    }
}
