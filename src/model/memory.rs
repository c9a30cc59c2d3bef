//! What a network takes, and whether this machine has it.

use crate::error::{Error, Result};

/// What a network takes while it runs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub weights: u64,
    /// Weights that are there besides while something learns.
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

/// Memory and swap of this machine, in bytes; None where the system has no `/proc/meminfo`.
fn machine() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = |key: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kilobytes("MemTotal")? + kilobytes("SwapTotal").unwrap_or(0)) * 1024)
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
