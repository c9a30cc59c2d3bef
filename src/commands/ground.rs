//! What every command stands on: the data folder and the configuration.

use super::say;
use crate::config::Config;
use crate::error::Result;
use crate::fsio;
use crate::model::digest::DigestCache;
use crate::model::load::ModelSource;
use crate::paths::Paths;
use crate::store::Store;
use crate::text;

pub struct Ground {
    pub paths: Paths,
    pub config: Config,
}

impl Ground {
    /// Reads the configuration; its warnings go to standard error. `overrides`: dotted keys and values of flags.
    pub fn open(overrides: &[(&str, String)]) -> Result<Ground> {
        let paths = Paths::from_env()?;
        let (config, warnings) = Config::load(&paths, overrides)?;
        for warning in warnings {
            say(&format!("warning: {}\n", text::sanitize(&warning)));
        }
        Ok(Ground { paths, config })
    }

    /// The database; made where there is none yet.
    pub fn store(&self) -> Result<Store> {
        fsio::create_private_dir(self.paths.root())?;
        Store::open(&self.paths.db())
    }

    /// The digest of the configured model's weights.
    pub fn base(&self) -> Result<String> {
        Ok(self.source()?.facts(&DigestCache::of(&self.paths))?.digest)
    }

    /// Where the configured model comes from.
    pub fn source(&self) -> Result<ModelSource> {
        self.config.model.source()
    }
}
