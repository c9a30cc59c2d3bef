//! Does feedback teach? Three rounds of ten rows of feedback each on the built-in model, by three ways of learning.
//!
//! `cargo bench --bench learning` prints the table; `-- --quick` is a short form, `-- --json FILE` writes all figures,
//! `-- --search` tries finch's recipe with one number changed at a time. README.md holds the tables.

mod arms;
mod measure;
mod search;
mod tasks;
mod user;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use finch::model::digest::DigestCache;
use finch::model::load::{Model, ModelSource};
use serde_json::{Value, json};

use arms::{Arm, Bench, Outcome, Variant};
use measure::Asker;

#[derive(Parser)]
struct Options {
    /// One draw and one round.
    #[arg(long)]
    quick: bool,
    /// Only these ways of learning.
    #[arg(long, value_enum)]
    arm: Vec<Arm>,
    /// Draws of tasks: 2k and 2k+1 share none.
    #[arg(long)]
    seed: Vec<u64>,
    /// Rounds in a row.
    #[arg(long, default_value_t = tasks::ROUNDS)]
    rounds: usize,
    /// Write all figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Try other recipes: the built-in list, or these (`auto`, `rate=2e-3,wordings=12`, …).
    #[arg(long, value_name = "SETTINGS", num_args = 0..)]
    search: Option<Vec<String>>,
    /// Print every answer to a taught, paraphrased or near prompt, and the unrelated ones that have changed.
    #[arg(long)]
    answers: bool,
    /// Another model than the built-in one, as a folder.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Cores to use: all that there are.
    #[arg(long)]
    threads: Option<usize>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let (all, prompts) = tasks::load()?;
    let source = options.model.clone().map_or(ModelSource::Builtin, ModelSource::Folder);
    let model = Model::load(&source, &DigestCache::none())?;
    let threads = options.threads.unwrap_or_else(finch::learn::round::default_threads);
    let asker = Asker::new(&model, threads)?;
    let unrelated = asker.base(&prompts.unrelated.iter().map(String::as_str).collect::<Vec<_>>())?;
    let rounds = if options.quick { 1 } else { options.rounds.clamp(1, tasks::ROUNDS) };
    let bench = Bench { asker: &asker, unrelated: &unrelated, rounds };
    let seeds = match options.seed.as_slice() {
        [] if options.quick => vec![0],
        [] => vec![0, 1],
        seeds => seeds.to_vec(),
    };
    let arms = if options.arm.is_empty() { vec![Arm::None, Arm::Naive, Arm::Finch] } else { options.arm.clone() };

    let mut results: Vec<(String, Outcome)> = Vec::new();
    println!("{HEAD}");
    let mut run = |name: &str, arm: Arm, variant: &Variant| -> Result<()> {
        for &seed in &seeds {
            let draw = tasks::draw(&all, &prompts, seed);
            bench.run(arm, seed, &draw, variant, &mut |outcome| {
                println!("{}", line(name, &outcome));
                if options.answers {
                    outcome.seen.answers.iter().for_each(|s| println!("  {} {:?} → {:?}", mark(s), s.prompt, s.answer));
                    for c in &outcome.seen.changed {
                        let [old, new] = c.base;
                        let (prompt, before, after) = (&c.prompt, &c.before, &c.after);
                        println!(
                            "  unrelated, CHANGED at {} ({old:.3}, {new:.3}) {prompt:?}: {before:?} → {after:?}",
                            c.at
                        );
                    }
                }
                results.push((name.to_string(), outcome));
            })?;
        }
        Ok(())
    };
    match &options.search {
        Some(trials) => {
            let trials: Vec<&str> = match trials.is_empty() {
                true => search::TRIALS.to_vec(),
                false => trials.iter().map(String::as_str).collect(),
            };
            for name in trials {
                let trial = search::Trial::parse(name)?;
                let (configure, adjust) = (|c: &mut _| trial.configure(c), |r: &mut _| trial.adjust(r));
                run(name, Arm::Finch, &Variant { configure: &configure, adjust: &adjust, whatever: true })?;
            }
        }
        None => {
            for arm in arms {
                run(&format!("{arm:?}").to_lowercase(), arm, &Variant::AS_IT_IS)?;
            }
        }
    }
    println!();
    summary(&results, rounds);
    if let Some(path) = &options.json {
        let rows: Vec<Value> = results.iter().map(|(name, o)| json!({"name": name, "outcome": o})).collect();
        let text = serde_json::to_string_pretty(&json!({"model": model.name, "base": model.base, "rows": rows}))?;
        let mut file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
        writeln!(file, "{text}")?;
    }
    Ok(())
}

const HEAD: &str = "| who | seed | round | hold | word for word | first round's hold | paraphrases | near, wrongly | unrelated \
                    unchanged | KL | gate | steps | s | peak MiB |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

fn line(name: &str, o: &Outcome) -> String {
    let f = &o.figures;
    let share = |s: measure::Share| format!("{}/{}", s.yes, s.of);
    let gate = match (o.live, o.gate_kl) {
        (Some(true), kl) => format!("live, KL {:.3}", kl.unwrap_or(f64::NAN)),
        (Some(false), _) => format!("refused: {}", o.reasons.join("; ")),
        (None, _) => "–".into(),
    };
    let cells = [
        name.to_string(),
        o.seed.to_string(),
        o.round.to_string(),
        share(f.hold),
        share(f.verbatim),
        share(f.first_round),
        share(f.paraphrases),
        share(f.near),
        share(f.unchanged),
        format!("{:.4}", f.kl),
        gate,
        o.steps.to_string(),
        format!("{:.0}", o.seconds),
        o.peak_mib.map_or("–".into(), |m| format!("{m:.0}")),
    ];
    format!("| {} |", cells.join(" | "))
}

fn mark(seen: &measure::Answer) -> &'static str {
    match (seen.what, seen.obeyed) {
        ("near", true) => "near, WRONGLY",
        ("near", false) => "near, rightly not",
        ("paraphrase", true) => "paraphrase, obeyed",
        ("paraphrase", false) => "paraphrase, MISSED",
        (_, true) => "taught, holds",
        (_, false) => "taught, LOST",
    }
}

/// Means over the draws: all rounds together, and what the last round left of the first.
fn summary(results: &[(String, Outcome)], rounds: usize) {
    println!(
        "| who | hold % | paraphrases % | near, wrongly % | unrelated unchanged % | KL | first round after the last % | live | s a round |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut names: Vec<&str> = results.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    for name in names {
        let of: Vec<&Outcome> = results.iter().filter(|(n, _)| n == name).map(|(_, o)| o).collect();
        let percent = |get: &dyn Fn(&Outcome) -> measure::Share, last: bool| {
            let some = of.iter().filter(|o| !last || o.round == rounds);
            some.map(|o| get(o)).fold(measure::Share::default(), measure::Share::plus).percent()
        };
        let mean = |get: &dyn Fn(&Outcome) -> f64| of.iter().map(|o| get(o)).sum::<f64>() / of.len() as f64;
        let live = of.iter().filter(|o| o.live == Some(true)).count();
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} | {:.4} | {:.1} | {live}/{} | {:.0} |",
            percent(&|o| o.figures.hold, false),
            percent(&|o| o.figures.paraphrases, false),
            percent(&|o| o.figures.near, false),
            percent(&|o| o.figures.unchanged, false),
            mean(&|o| o.figures.kl),
            percent(&|o| o.figures.first_round, true),
            of.len(),
            mean(&|o| o.seconds),
        );
    }
}
