//! `finch stats`: what was asked, rated and trained.

use super::ground::Ground;
use super::print;
use crate::error::Result;
use crate::repl::render_stats;

pub fn run(ground: &Ground) -> Result<()> {
    print(&render_stats::stats(&ground.store()?.stats()?))
}
