//! One adapter in detail, and what was taken in or written out.

use std::path::Path;

use super::{render, render_stats};
use crate::adapter::peft::Summary;
use crate::adapter::registry::{Entry, Imported, State};
use crate::paths::Paths;
use crate::text;

/// All that is known of an adapter. `live_on`: the digests of the bases on which it is live.
pub fn adapter(entry: &Entry, live_on: &[String]) -> String {
    let mut rows: Vec<(&str, String)> = vec![("name", entry.name.clone()), ("folder", Paths::display(&entry.path))];
    rows.extend(entry.created.map(|time| ("created", render_stats::local_time(time))));
    if let Some(summary) = &entry.summary {
        rows.push(("kind", kind(summary).to_string()));
        rows.push(("rank", summary.rank.to_string()));
        rows.push(("alpha", summary.alpha.to_string()));
    }
    rows.push(("size", render::bytes(entry.bytes)));
    if let Some(made) = &entry.provenance {
        rows.push(("model", made.model.clone()));
        rows.push(("base", made.base.clone()));
        rows.extend(made.run.map(|run| ("run", run.to_string())));
        rows.push(("examples", made.examples.to_string()));
        let loss = made.loss_before.zip(made.loss_after);
        rows.extend(loss.map(|(before, after)| ("loss", format!("{before:.2} → {after:.2}"))));
        rows.extend(made.seconds.map(|seconds| ("time taken", render::duration(seconds))));
        if let Some(parameters) = made.parameters.as_object().filter(|p| !p.is_empty()) {
            let listed: Vec<String> = parameters.iter().map(|(key, value)| format!("{key} {value}")).collect();
            rows.push(("parameters", listed.join(", ")));
        }
        if let Some(gate) = &made.gate {
            let verdict =
                if gate.passed { "passed".to_string() } else { format!("refused: {}", gate.reasons.join("; ")) };
            rows.push(("gate", verdict));
            if let Some(figures) = gate.measurements.as_object().filter(|m| !m.is_empty()) {
                let listed: Vec<String> = figures.iter().map(|(key, value)| format!("{key} {value}")).collect();
                rows.push(("measured", listed.join(", ")));
            }
        }
    } else {
        rows.push(("origin", "not trained by finch: its base and data are not known".to_string()));
    }
    if let State::Broken(reason) = &entry.state {
        rows.push(("broken", reason.clone()));
    }
    let live = live_on.iter().map(|base| format!("on base {}", render::short_digest(base))).collect::<Vec<_>>();
    rows.push(("live", if live.is_empty() { "no".to_string() } else { live.join(", ") }));
    rows.iter().map(|(what, value)| format!("{what:12}{}\n", text::one_line(value, 1000))).collect()
}

fn kind(summary: &Summary) -> &'static str {
    match (summary.use_rslora, summary.use_dora) {
        (false, false) => "LoRA",
        (true, false) => "rsLoRA",
        (false, true) => "DoRA",
        (true, true) => "DoRA, scaled as rsLoRA",
    }
}

/// A folder was taken in. `load`: the command that makes it live, where that is still to be done.
pub fn imported(imported: &Imported, load: Option<&str>) -> String {
    let name = text::one_line(&imported.name, 100);
    let done = if imported.is_new { "was taken in" } else { "was here already" };
    let next = load.map(|load| format!(" It is not live: {load} {name}")).unwrap_or_default();
    format!("Adapter {name} {done}.{next}\n")
}

/// An adapter of `modules` pairs was written to `out`.
pub fn exported(what: &str, out: &Path, modules: usize) -> String {
    format!("Adapter {} was written to {} ({modules} modules).\n", text::one_line(what, 200), Paths::display(out))
}
