//! What a network takes, and whether this machine has it.

use crate::error::{Error, Result};

/// What a network takes while it runs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub weights: u64,
    /// What a training pass of [`PASS_TOKENS`] takes besides; less where it is short.
    pub learning: u64,
    /// Keys and values of one token.
    pub token: u64,
}

impl Memory {
    /// A network that this machine cannot hold is an error, where running out of memory would end the process: a file of
    /// holes can claim any size.
    pub fn check(&self) -> Result<()> {
        match machine() {
            Some(all) if self.weights > all => {
                let [needed, all] = [self.weights, all].map(|bytes| bytes as f64 / 1e9);
                Err(Error::failure(format!("its weights take {needed:.1} GB of memory, this machine has {all:.1} GB"))
                    .hint("choose a smaller model"))
            }
            _ => Ok(()),
        }
    }
}

/// Tokens of a training pass of a large network, or a row where one is longer.
pub const PASS_TOKENS: usize = 1024;

/// Memory that nobody uses, in bytes; None where the system has no `/proc/meminfo`.
pub fn free() -> Option<u64> {
    told("MemAvailable")
}

/// Memory and swap of this machine, in bytes; None where the system has no `/proc/meminfo`.
fn machine() -> Option<u64> {
    Some(told("MemTotal")? + told("SwapTotal").unwrap_or(0))
}

/// What the system says of its memory, in bytes.
fn told(key: &str) -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_holds_is_refused() {
        if machine().is_some() {
            let error = Memory { weights: 1 << 60, learning: 0, token: 0 }.check().unwrap_err().to_string();
            assert!(error.contains("GB of memory, this machine has"), "{error}");
        }
        assert!(Memory { weights: 1 << 20, learning: 0, token: 0 }.check().is_ok());
    }
}
