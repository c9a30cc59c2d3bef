//! Ctrl-C while something is going on: it cancels that, and nothing else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use crate::engine::CancelFlag;

/// Ctrl-C from here on, within a runtime; errors where signals cannot be had.
#[cfg(unix)]
pub(crate) fn ctrl_c() -> std::io::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
}

/// Ctrl-C from here on, within a runtime.
#[cfg(windows)]
pub(crate) fn ctrl_c() -> std::io::Result<tokio::signal::windows::CtrlC> {
    tokio::signal::windows::ctrl_c()
}

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
        let _inside = runtime.enter();
        // Registered here and not in the task: a Ctrl-C that comes before the task first runs would end the process.
        if let Ok(mut ctrl_c) = ctrl_c() {
            runtime.spawn(async move {
                while ctrl_c.recv().await.is_some() {
                    heard.interrupt();
                }
            });
        }
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
