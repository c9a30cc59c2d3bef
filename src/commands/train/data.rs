//! `finch train --data`: one training on the rows of a file, into a folder of its own or through the gate.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::keep::{self, Kept};
use super::screen::Bar;
use crate::adapter::peft;
use crate::cli::TrainArgs;
use crate::commands::ground::Ground;
use crate::commands::say;
use crate::error::{Context, Error, Result};
use crate::fsio::{self, Attempt};
use crate::learn::canaries::{self, Answered};
use crate::learn::dataset::{Request, Training};
use crate::learn::fit::Ending;
use crate::learn::keep::{Keeper, Made};
use crate::learn::round;
use crate::model::Network;
use crate::model::courtesy::Courtesy;
use crate::model::digest::DigestCache;
use crate::model::load::{Base, Model, ModelSource};
use crate::paths::Paths;
use crate::repl::{render, render_training};
use crate::text;
use crate::train::data::{DataSet, Objective, Reader};
use crate::train::lanes::Lanes;
use crate::train::run::StepReport;

pub fn run(ground: &Ground, args: &TrainArgs, file: &Path, courtesy: Arc<Courtesy>) -> Result<()> {
    let request = request(args)?;
    if let Some(output) = &args.output {
        fsio::refuse_occupied(output)?;
    }
    let _lock = match round::lock(&ground.paths)? {
        Attempt::Acquired(lock) => lock,
        Attempt::Held(holder) => return Err(holder.into()),
    };
    let source = ground.source()?;
    // Only what judges or replays needs the model's words; ids alone need no tokenizer.
    let judged = request.objective == Objective::Auto || args.output.is_none();
    let subject = Subject::load(&source, judged || request.replay_weight().is_some(), ground)?;
    let set = rows(args, source, file, &*subject.network)?;
    let init = args.init_adapter.as_ref().map(|folder| peft::read(folder, subject.network.config())).transpose()?;
    let ordinary = subject.ordinary(&set, &courtesy).inspect_err(tell_if_interrupted)?;
    let lora = &ground.config.lora;
    let training = Training::prepare(&*subject.network, &set, lora, init, &ordinary.replayed, request)?;
    let parameters = training.parameters()?;
    let examples = training.sizes().0;
    say(&format!("{}\n", opening(&training, args.objective)));

    let exam = subject.model.as_ref().filter(|_| judged).map(|model| training.exam(&set, model, &ordinary.watched));
    let exam = exam.transpose()?;
    let keeper = Keeper {
        paths: &ground.paths,
        model: &subject.name,
        base: &subject.digest,
        network: &*subject.network,
        keep_interrupted: true,
        threads: round::default_threads(),
        courtesy: &courtesy,
    };
    let started = Instant::now();
    let train = || {
        let mut metrics = args.metrics.as_deref().map(Metrics::create).transpose()?;
        let mut bar = Bar::start(training.recipe.steps);
        let network = Arc::clone(&subject.network);
        let trained = training.run(&*network, round::default_threads(), Arc::clone(&courtesy), &mut |report, _| {
            bar.step(report);
            metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(report))
        });
        bar.end();
        let (trained, settings) = trained?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Made { trained, settings, examples, parameters: parameters.clone(), seconds })
    };
    let kept = match &args.output {
        Some(output) => keep::in_folder(&keeper, output, exam.as_ref(), train),
        None => keep::in_registry(ground, &keeper, exam.as_ref(), &parameters, train),
    };
    tell(&kept.inspect_err(tell_if_interrupted)?)
}

fn tell_if_interrupted(error: &Error) {
    if error.is_interrupted() {
        say("Interrupted before there was a state worth keeping; nothing is saved.\n");
    }
}

/// The model as far as a training needs it.
pub struct Subject {
    pub name: String,
    /// Digest of the base's weights.
    pub digest: String,
    pub network: Arc<dyn Network>,
    /// With tokenizer and template.
    pub model: Option<Model>,
}

/// The base's answers to ordinary prompts; empty where they are not needed.
#[derive(Default)]
struct Ordinary {
    replayed: Vec<Answered>,
    watched: Vec<Answered>,
}

impl Subject {
    fn load(source: &ModelSource, with_words: bool, ground: &Ground) -> Result<Subject> {
        let digests = DigestCache::of(&ground.paths);
        if with_words {
            let model = Model::load(source, &digests)?;
            let (name, digest, network) = (model.name.clone(), model.base.clone(), Arc::clone(&model.network));
            return Ok(Subject { name, digest, network, model: Some(model) });
        }
        let Base { name, digest, network, .. } = Base::load(source, &digests)?;
        Ok(Subject { name, digest, network, model: None })
    }

    fn ordinary(&self, set: &DataSet, courtesy: &Courtesy) -> Result<Ordinary> {
        let Some(model) = &self.model else { return Ok(Ordinary::default()) };
        let taught = set.rows.iter().filter_map(|row| row.question.as_ref()).map(|asked| asked.messages.as_slice());
        let lanes = Lanes::for_network(model.network.config(), round::default_threads())?;
        let (replayed, watched) = canaries::ordinary(model, Default::default(), taught, &lanes, courtesy)?;
        Ok(Ordinary { replayed, watched })
    }
}

/// What the flags ask for, checked as far as no model is needed.
fn request(args: &TrainArgs) -> Result<Request> {
    let objective = args.objective;
    if args.sft_weight.is_some_and(|weight| weight != 0.0) && objective != Objective::Dpo {
        return Err(Error::usage("--sft-weight goes with --objective dpo"));
    }
    if args.beta.is_some() && matches!(objective, Objective::Auto | Objective::Sft) {
        say(&format!("warning: --beta means nothing to --objective {}\n", objective.name()));
    }
    at_least_one("--steps", args.steps)?;
    at_least_one("--gradient-accumulation", args.gradient_accumulation)?;
    at_least_one("--max-length", args.max_length)?;
    in_range("--beta", args.beta, |x| x > 0.0 && x.is_finite(), "a number above 0")?;
    in_range("--sft-weight", args.sft_weight, |x| x >= 0.0 && x.is_finite(), "0 or more")?;
    in_range("--replay", args.replay, |x| x >= 0.0 && x.is_finite(), "0 or more")?;
    in_range("--eval-split", args.eval_split, |x| (0.0..1.0).contains(&x), "from 0 to below 1")?;
    Ok(Request {
        objective,
        order: args.order,
        steps: args.steps,
        accumulation: args.gradient_accumulation.unwrap_or(1),
        warmup_steps: args.warmup_steps,
        beta: args.beta.unwrap_or(0.1),
        sft_weight: args.sft_weight.unwrap_or(0.0),
        replay: args.replay,
        held_out: args.eval_split,
    })
}

fn at_least_one(flag: &str, value: Option<usize>) -> Result<()> {
    match value {
        Some(0) => Err(Error::usage(format!("{flag} should be 1 or more, it is 0"))),
        _ => Ok(()),
    }
}

fn in_range(flag: &str, value: Option<f64>, fits: fn(f64) -> bool, range: &str) -> Result<()> {
    match value {
        Some(value) if !fits(value) => Err(Error::usage(format!("{flag} should be {range}, it is {value}"))),
        _ => Ok(()),
    }
}

/// The rows to train on; what is left out is told.
fn rows(args: &TrainArgs, source: ModelSource, file: &Path, network: &dyn Network) -> Result<DataSet> {
    let config = network.config();
    let longest = args.max_length.unwrap_or(config.context);
    let mut set = Reader::new(source, config.vocab_size, longest).read(file)?;
    if !set.unknown.is_empty() {
        let fields: Vec<String> = set.unknown.iter().map(|field| text::one_line(field, 40)).collect();
        say(&format!("warning: {}: fields that mean nothing here are ignored: {}\n", set.name, fields.join(", ")));
    }
    for (line, tokens) in &set.skipped {
        say(&format!("warning: {}:{line}: skipped, it has {tokens} tokens, more than {longest}\n", set.name));
    }
    if args.objective == Objective::Auto {
        let bad;
        (set, bad) = set.without_bad();
        if !bad.is_empty() {
            let count = render::count(bad.len(), "answer");
            say(&format!("warning: {}: {count} judged bad left out; --objective kto learns from them\n", set.name));
        }
    }
    Ok(set)
}

fn opening(training: &Training, objective: Objective) -> String {
    let (rows, held_out) = training.sizes();
    let held_out = if held_out > 0 { format!(" ({held_out} more held out)") } else { String::new() };
    let most = if training.recipe.stop_at.is_some() { "at most " } else { "" };
    format!(
        "Training on {}{held_out}: {}, {most}{} of {}, learning rate {}",
        render::count(rows, "row"),
        objective.name(),
        render::count(training.recipe.steps, "step"),
        render::count(training.recipe.batch_size, "row"),
        training.recipe.learning_rate
    )
}

/// Says what there is now; the error carries the exit code.
fn tell(kept: &Kept) -> Result<()> {
    let Kept { ending, steps, step, loss, held_out, seconds, path, report, live, .. } = kept;
    let refused = report.as_ref().filter(|report| !report.passed());
    say(&format!(
        "{}\n",
        match (ending, refused) {
            (Ending::Interrupted, _) =>
                format!("Interrupted; the state after {} is kept", render::count(*step, "step")),
            (_, Some(_)) => "✗ Training completed, but the gate refuses the adapter".to_string(),
            _ if step < steps => {
                format!("✓ Training completed! The state after step {step} of {steps} is the best")
            }
            _ => "✓ Training completed!".to_string(),
        }
    ));
    // Where the gate measured it too, its figure counts: against what answers until now.
    let held_out = held_out.filter(|_| report.as_ref().is_none_or(|report| report.measured.held_out.is_none()));
    let held_out = held_out.map(|(before, after)| format!(", held-out {before:.2} → {after:.2}")).unwrap_or_default();
    let rows = format!("{}{}{held_out}", render::count(kept.examples, "row"), render_training::losses(*loss));
    say(&render_training::saved(&rows, *seconds, path));
    if let Some(report) = report {
        for warning in &report.warnings {
            say(&format!("warning: {}\n", text::sanitize(warning)));
        }
        match live {
            Some(name) => say(&render_training::live(name, Some(&report.measured))),
            None if report.passed() => say(&render_training::passed(&report.measured)),
            None => {}
        }
        say(&render_training::unmeasured(&report.unmeasured));
    }
    match (ending, refused) {
        (Ending::Interrupted, _) => Err(Error::interrupted()),
        (_, Some(report)) => Err(super::refused(&report.reasons)),
        _ => Ok(()),
    }
}

/// A row for each optimiser step, there as soon as the step is done.
struct Metrics {
    file: File,
    name: String,
}

impl Metrics {
    fn create(path: &Path) -> Result<Metrics> {
        let name = Paths::display(path);
        let file = File::create(path).with_context(|| format!("--metrics {name}"))?;
        Ok(Metrics { file, name })
    }

    fn write(&mut self, report: &StepReport) -> Result<()> {
        let line = format!("{}\n", serde_json::to_string(report)?);
        self.file.write_all(line.as_bytes()).with_context(|| format!("--metrics {}", self.name))
    }
}
