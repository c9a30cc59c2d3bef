//! Which model answers: loaded on a thread of its own, so that a prompt is there at once and waits only when it must.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config::ModelSection;
use crate::engine::{CancelFlag, Engine};
use crate::error::{Error, Kind, Result};
use crate::model::digest::DigestCache;
use crate::model::load::{Model, ModelSource};
use crate::paths::Paths;

/// How often a wait looks at its cancel flag.
const GLANCE: Duration = Duration::from_millis(30);

/// What to do when the configured model cannot be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// Answer with the built-in model and say so.
    Builtin,
    /// Fail: the user asked for this model and nobody is there to be told otherwise.
    Nothing,
}

/// A model ready to answer.
pub struct Loaded {
    pub model: Model,
    pub engine: Engine,
    /// What the user has to know about it: the configured model could not be loaded, and why.
    pub notice: Option<String>,
}

impl Loaded {
    /// Starts an engine for `model`.
    pub fn new(model: Model) -> Result<Loaded> {
        let engine = Engine::start(Arc::clone(&model.network))?;
        Ok(Loaded { model, engine, notice: None })
    }

    /// Loads the configured model.
    pub fn load(model: &ModelSection, paths: &Paths, fallback: Fallback) -> Result<Loaded> {
        let digests = DigestCache::of(paths);
        match model.source().and_then(|source| Model::load(&source, &digests)) {
            Ok(model) => Loaded::new(model),
            Err(error) if fallback == Fallback::Builtin => {
                let mut loaded = Loaded::new(Model::load(&ModelSource::Builtin, &digests)?)?;
                let hint = error.hint_text().map(|h| format!(" ({h})")).unwrap_or_default();
                loaded.notice = Some(format!("{error}{hint}; the built-in model answers instead"));
                Ok(loaded)
            }
            Err(error) => Err(error),
        }
    }
}

/// Where the loading stands.
#[derive(Clone)]
pub enum ModelState {
    Loading,
    Ready(Arc<Loaded>),
    Failed(Fault),
}

/// An error that can be told more than once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

impl Fault {
    pub fn to_error(&self) -> Error {
        let error = Error::new(self.kind, self.message.clone());
        match &self.hint {
            Some(hint) => error.hint(hint.clone()),
            None => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault { kind: error.kind(), message: error.message().to_owned(), hint: error.hint_text().map(str::to_owned) }
    }
}

/// A model that is being loaded, or was.
pub struct ModelHost {
    name: String,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<ModelState>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ModelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: ModelState) {
        *self.lock() = state;
        self.changed.notify_all();
    }
}

impl ModelHost {
    /// Starts loading the configured model.
    pub fn start(model: &ModelSection, paths: &Paths, fallback: Fallback) -> ModelHost {
        let (wanted, paths) = (model.clone(), paths.clone());
        Self::start_with(&model.name, move || Loaded::load(&wanted, &paths, fallback))
    }

    /// Starts `load` on a thread of its own; `name` is what to call the model until it is there.
    pub fn start_with(name: &str, load: impl FnOnce() -> Result<Loaded> + Send + 'static) -> ModelHost {
        let shared = Arc::new(Shared { state: Mutex::new(ModelState::Loading), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let started = thread::Builder::new().name("load-model".into()).spawn(move || {
            let loaded = catch_unwind(AssertUnwindSafe(load))
                .unwrap_or_else(|panic| Err(Error::panicked("loading the model", &*panic)));
            theirs.set(match loaded {
                Ok(loaded) => ModelState::Ready(Arc::new(loaded)),
                Err(error) => ModelState::Failed(error.into()),
            });
        });
        if let Err(error) = started {
            shared.set(ModelState::Failed(Error::from(error).context("cannot start loading the model").into()));
        }
        ModelHost { name: name.to_owned(), shared }
    }

    /// A model that is there already.
    pub fn of(loaded: Loaded) -> ModelHost {
        let (name, state) = (loaded.model.name.clone(), ModelState::Ready(Arc::new(loaded)));
        ModelHost { name, shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    /// The name that was asked for; [`Model::name`] is what came of it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn state(&self) -> ModelState {
        self.shared.lock().clone()
    }

    /// Waits until the model is there, it failed, or `cancel` is set.
    pub fn wait(&self, cancel: &CancelFlag) -> Result<Arc<Loaded>> {
        let mut state = self.shared.lock();
        loop {
            match &*state {
                ModelState::Ready(loaded) => return Ok(Arc::clone(loaded)),
                ModelState::Failed(fault) => return Err(fault.to_error()),
                ModelState::Loading if cancel.is_cancelled() => return Err(Error::interrupted()),
                ModelState::Loading => {
                    let waited = self.shared.changed.wait_timeout(state, GLANCE);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}
