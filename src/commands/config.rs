//! `finch config`: where the configuration is.

use super::print;
use crate::cli::ConfigCommand;
use crate::error::Result;
use crate::paths::Paths;

/// Needs no readable configuration: it is what one asks for when that is broken.
pub fn run(command: ConfigCommand) -> Result<()> {
    match command {
        // In full and as it is: for other programs.
        ConfigCommand::Path => print(&format!("{}\n", Paths::from_env()?.config().display())),
    }
}
