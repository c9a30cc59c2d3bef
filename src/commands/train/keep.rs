//! Where an adapter trained on a data set goes: into a folder of the user's choice, or through the gate into the registry.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::screen::{JUDGING, Spinner};
use crate::adapter::peft::Adapter;
use crate::adapter::provenance::Provenance;
use crate::adapter::registry;
use crate::commands::ground::Ground;
use crate::error::{Context, Result};
use crate::learn::fit::Ending;
use crate::learn::gate::{self, Report};
use crate::learn::keep::{self, Exam, Keeper, Made};
use crate::store::NewRun;

/// An adapter that is on disk.
pub struct Kept {
    pub ending: Ending,
    /// Steps taken, and steps after which the kept state stood.
    pub steps: usize,
    pub step: usize,
    pub examples: usize,
    /// Before and after; absent where it was not measured.
    pub loss: Option<(f64, f64)>,
    pub held_out: Option<(f64, f64)>,
    pub seconds: f64,
    pub path: PathBuf,
    /// `None`: it was not judged.
    pub report: Option<Report>,
    /// Its name, where it is live now.
    pub live: Option<String>,
}

impl Kept {
    fn of(made: &Made, path: &Path) -> Kept {
        let trained = &made.trained;
        let (before, after) = (&trained.before, trained.after.as_ref());
        Kept {
            ending: trained.ending,
            steps: trained.steps,
            step: trained.kept_step,
            examples: made.examples,
            loss: after.map(|after| (before.loss, after.loss)),
            held_out: before.held_out.zip(after.and_then(|after| after.held_out)),
            seconds: made.seconds,
            path: path.to_path_buf(),
            report: None,
            live: None,
        }
    }
}

/// Trains, and saves what came of it in the folder `output`; `exam`: judged there.
pub fn in_folder(
    keeper: &Keeper,
    output: &Path,
    exam: Option<&Exam>,
    train: impl FnOnce() -> Result<Made>,
) -> Result<Kept> {
    let made = train()?;
    let mut kept = Kept::of(&made, output);
    let provenance = keeper.provenance(&made, None);
    let evidence = exam.and_then(|exam| keeper.evidence(&made, exam));
    let adapter = Adapter::new(made.trained.weights, made.settings);
    registry::save_folder(output, &adapter, &provenance)?;
    if let Some(evidence) = evidence {
        let _shown = Spinner::start(JUDGING);
        let judged =
            gate::inspect(keeper.network, output, &adapter.weights, &evidence, keeper.threads, keeper.courtesy);
        let report = judged.context("the adapter is saved, but could not be judged")?;
        Provenance { gate: Some(report.provenance()?), ..provenance }.write(output)?;
        kept.report = Some(report);
    }
    Ok(kept)
}

/// Trains as a run of the store, and lets the adapter through the gate into the registry.
pub fn in_registry(
    ground: &Ground,
    keeper: &Keeper,
    exam: Option<&Exam>,
    parameters: &Value,
    train: impl FnOnce() -> Result<Made>,
) -> Result<Kept> {
    let store = ground.store()?;
    let new = NewRun { model: keeper.model, base: keeper.base, parameters, examples: &[] };
    keep::as_run(&store, &new, Instant::now(), |run, result| {
        let made = train()?;
        made.note(result);
        let mut kept = Kept::of(&made, Path::new(""));
        let _shown = exam.filter(|_| made.loss().is_some()).map(|_| Spinner::start(JUDGING));
        let published = keeper.publish(run, made, exam, result)?;
        if published.report.is_none() {
            kept.ending = Ending::Interrupted; // amid the judging, at the latest
        }
        let live = published.live.then_some(published.adapter);
        Ok(Kept { path: published.path, report: published.report, live, ..kept })
    })
}
