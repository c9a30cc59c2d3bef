//! From trained weights to the live adapter: saved, judged by the gate, and made live if it passes.

use std::path::PathBuf;
use std::sync::Arc;

use chrono::Local;

use super::gate::{self, Evidence, Report};
use crate::adapter::active;
use crate::adapter::peft::{Adapter, LoraSettings};
use crate::adapter::provenance::Provenance;
use crate::adapter::registry::Registry;
use crate::error::{Context, Result};
use crate::model::Network;
use crate::model::courtesy::Courtesy;
use crate::model::lora::LoraWeights;
use crate::paths::Paths;

/// An adapter that wants to go live.
pub struct Candidate<'a> {
    pub weights: LoraWeights,
    pub settings: LoraSettings,
    /// All but the gate's verdict; its base is the one on which the adapter goes live.
    pub provenance: Provenance,
    /// `None`: it is only to be kept, without a verdict.
    pub evidence: Option<Evidence<'a>>,
}

/// An adapter that is on disk now.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    pub adapter: String,
    pub path: PathBuf,
    /// `None`: it was not judged.
    pub report: Option<Report>,
    /// The active pointer names it, on disk.
    pub live: bool,
}

/// The adapter that answers on `base` now; `None`: the base alone does, or what is named cannot be used.
pub fn live(paths: &Paths, network: &dyn Network, base: &str) -> Option<LoraWeights> {
    let active = active::read(paths, base).ok()?;
    let name = active.live.as_deref()?;
    let adapter = Registry::new(paths.clone()).open(name, network.config(), base, active.is_forced(name));
    adapter.ok().map(|adapter| adapter.weights)
}

/// Saves the candidate under a new name; where there is evidence, judges it and makes it live if it passes.
///
/// An interruption amid the judging is an error, and leaves the adapter behind only with `keep`.
pub fn publish(
    paths: &Paths,
    network: &dyn Network,
    candidate: Candidate,
    keep: bool,
    threads: usize,
    courtesy: &Arc<Courtesy>,
) -> Result<Published> {
    let Candidate { weights, settings, mut provenance, evidence } = candidate;
    let registry = Registry::new(paths.clone());
    let name = registry.new_name(Local::now().naive_local());
    let adapter = Adapter::new(weights, settings);
    let path = registry.save(&name, &adapter, &provenance).context("the trained adapter could not be saved")?;
    let mut published = Published { adapter: name, path, report: None, live: false };
    let Some(evidence) = evidence else { return Ok(published) };

    let judged = gate::inspect(network, &published.path, &adapter.weights, &evidence, threads, courtesy)
        .and_then(|report| Ok((report.provenance()?, report)));
    let (verdict, report) = match judged {
        Ok(judged) => judged,
        Err(e) if e.is_interrupted() && keep => return Ok(published),
        Err(e) => {
            let _ = registry.delete(&published.adapter); // the fault that is told is the first one
            return Err(e.context("judging the new adapter"));
        }
    };
    provenance.gate = Some(verdict);
    provenance.carries = report.carries.clone();
    provenance.write(&published.path)?;
    if report.passed() {
        active::activate(paths, &provenance.base, &published.adapter)?;
        published.live = true;
    }
    published.report = Some(report);
    Ok(published)
}
