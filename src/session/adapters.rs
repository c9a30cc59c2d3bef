//! The adapter of the next turn: the active file is read again before every turn, and a change is told.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::adapter::active;
use crate::adapter::provenance::Provenance;
use crate::adapter::registry::Registry;
use crate::engine::EngineAdapter;
use crate::error::Result;
use crate::model::load::Model;
use crate::paths::Paths;
use crate::text::sanitize;

/// A change of adapter since the turn before; names and reasons are safe for a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterNotice {
    /// This adapter answers from now on.
    Live { name: String },
    /// The base answers alone again.
    Off { previous: String },
    /// The active adapter cannot be used, so the base answers alone.
    Unusable {
        /// `None`: the file that names it could not be read.
        name: Option<String>,
        reason: String,
        hint: Option<String>,
    },
}

/// What identifies the files of an adapter without reading them whole: size and time of change.
type Stamp = Vec<Option<(u64, SystemTime)>>;

/// The active adapter as it was last looked at, and what the turn before had.
#[derive(Default)]
pub(super) struct AdapterWatch {
    /// The active adapter, whether it was forced, and its files' stamp when they were read; `None`: none was active.
    seen: Option<(String, bool, Stamp)>,
    loaded: Option<Usable>,
    /// Why there is none although one is active.
    trouble: Option<AdapterNotice>,
    /// The adapter that the last turn ran with.
    last: Option<Arc<EngineAdapter>>,
    /// The trouble told with the last turn: an adapter that cannot be used is no news every turn.
    told: Option<AdapterNotice>,
}

#[derive(Clone)]
struct Usable {
    adapter: Arc<EngineAdapter>,
    /// Digests of the notes that it obeys on this base without being told.
    carries: Vec<String>,
}

impl AdapterWatch {
    /// Name of the adapter that the last turn ran with.
    pub fn live(&self) -> Option<&str> {
        self.last.as_ref().map(|a| a.name.as_str())
    }

    /// The adapter that was active at the last look, and the digests of the notes that it carries.
    pub fn carries(&self) -> Option<(&str, &[String])> {
        self.loaded.as_ref().map(|usable| (usable.adapter.name.as_str(), usable.carries.as_slice()))
    }

    /// The adapter to use now, and what to tell when that is not what it was before.
    pub fn refresh(&mut self, paths: &Paths, model: &Model) -> (Option<Arc<EngineAdapter>>, Option<AdapterNotice>) {
        self.look(paths, model);
        let before = std::mem::replace(&mut self.last, self.loaded.as_ref().map(|usable| Arc::clone(&usable.adapter)));
        let told = std::mem::replace(&mut self.told, self.trouble.clone());
        let notice = match (&before, &self.last) {
            (Some(before), Some(now)) if before.digest == now.digest && before.name == now.name => None,
            (_, Some(now)) => Some(AdapterNotice::Live { name: clean(&now.name) }),
            _ if self.trouble.is_some() => self.trouble.clone().filter(|now| told.as_ref() != Some(now)),
            (Some(before), None) => Some(AdapterNotice::Off { previous: clean(&before.name) }),
            (None, None) => None,
        };
        (self.last.clone(), notice)
    }

    /// Reads what is active now; nothing is told by that.
    pub fn look(&mut self, paths: &Paths, model: &Model) {
        match active::read(paths, &model.base) {
            Ok(active) => match &active.live {
                None => (self.seen, self.loaded, self.trouble) = (None, None, None),
                Some(name) => {
                    let forced = active.is_forced(name);
                    let seen = Some((name.clone(), forced, stamp(&paths.adapters().join(name))));
                    // The same files again: the same outcome.
                    if self.seen != seen {
                        self.take(Some(name), load(&Registry::new(paths.clone()), name, model, forced));
                        self.seen = seen;
                    }
                }
            },
            Err(error) => {
                self.seen = None;
                self.take(None, Err(error));
            }
        }
    }

    fn take(&mut self, name: Option<&str>, outcome: Result<Usable>) {
        self.trouble = None;
        match outcome {
            Ok(usable) => self.loaded = Some(usable),
            Err(error) => {
                self.loaded = None;
                let (reason, hint) = (clean(error.message()), error.hint_text().map(clean));
                self.trouble = Some(AdapterNotice::Unusable { name: name.map(clean), reason, hint });
            }
        }
    }
}

fn clean(text: &str) -> String {
    sanitize(text).into_owned()
}

fn stamp(folder: &Path) -> Stamp {
    ["adapter_config.json", "adapter_model.safetensors", "finch.json"]
        .map(|file| {
            let data = std::fs::metadata(folder.join(file)).ok()?;
            Some((data.len(), data.modified().ok()?))
        })
        .to_vec()
}

/// Reads an adapter for `model`; errors when it is broken, does not fit, or was made for another base and not forced.
fn load(registry: &Registry, name: &str, model: &Model, forced: bool) -> Result<Usable> {
    let adapter = registry.open(name, model.network.config(), &model.base, forced)?;
    let made = Provenance::read(&registry.find(name)?.path)?;
    Ok(Usable {
        adapter: Arc::new(EngineAdapter { name: name.to_owned(), digest: adapter.digest, weights: adapter.weights }),
        carries: made.map(|made| made.carried_on(&model.base).to_vec()).unwrap_or_default(),
    })
}
