//! `finch train --data`: one training on the rows of a file.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::screen::Bar;
use crate::adapter::peft::{self, Adapter};
use crate::adapter::provenance::Provenance;
use crate::adapter::registry;
use crate::cli::TrainArgs;
use crate::commands::ground::Ground;
use crate::error::{Context, Error, Result};
use crate::fsio::{self, Lock};
use crate::learn::dataset::{Request, Training};
use crate::learn::fit::{Ending, Trained};
use crate::model::courtesy::Courtesy;
use crate::model::digest::DigestCache;
use crate::model::load::Base;
use crate::paths::Paths;
use crate::repl::render;
use crate::text;
use crate::train::data::{DataSet, Objective, Reader};
use crate::train::order::Order;
use crate::train::run::StepReport;

pub fn run(ground: &Ground, args: &TrainArgs, file: &Path, courtesy: Arc<Courtesy>) -> Result<()> {
    let request = request(args)?;
    let Some(output) = &args.output else {
        return Err(Error::usage("--output DIR is missing: where the adapter goes"));
    };
    fsio::refuse_occupied(output)?;
    fsio::create_private_dir(ground.paths.root())?;
    let _lock = Lock::try_acquire(&ground.paths.lock("training"), "a training")?;

    let source = ground.source()?;
    let base = Base::load(&source, &DigestCache::of(&ground.paths))?;
    let config = base.network.config();
    let set = Reader::new(source, config.vocab_size, args.max_length.unwrap_or(config.context)).read(file)?;
    tell_left_out(&set, args.max_length.is_some());
    let init = args.init_adapter.as_ref().map(|folder| peft::read(folder, config)).transpose()?;
    let training = Training::prepare(&*base.network, &set, &ground.config.lora, init, request)?;
    let parameters = training.parameters();
    let (rows, held_out) = training.sizes();
    let steps = training.plan.schedule.total;
    eprintln!("{}", opening(&training, args.objective));

    let started = Instant::now();
    let mut metrics = args.metrics.as_deref().map(Metrics::create).transpose()?;
    let mut screen = Bar::start(steps);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let trained = training.run(&*base.network, threads, courtesy, &mut |report, _| {
        screen.step(report);
        metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(report))
    });
    screen.end();
    let (trained, settings) = trained.inspect_err(|error| {
        if error.is_interrupted() {
            eprintln!("Interrupted before the first step was finished; nothing is saved.");
        }
    })?;
    let provenance = Provenance {
        examples: rows,
        parameters,
        loss_before: Some(trained.before.loss),
        loss_after: trained.after.as_ref().map(|figures| figures.loss),
        seconds: Some(started.elapsed().as_secs_f64()),
        ..Provenance::new(&base.digest, &base.name)
    };
    let outcome = outcome(&trained, &provenance, held_out, output);
    let ending = trained.ending;
    registry::save_folder(output, &Adapter::new(trained.weights, settings), &provenance)?;
    eprint!("{outcome}");
    match ending {
        Ending::Interrupted => Err(Error::interrupted()),
        _ => Ok(()),
    }
}

/// What the flags ask for, checked as far as no model is needed.
fn request(args: &TrainArgs) -> Result<Request> {
    let objective = args.objective;
    if objective == Objective::Auto {
        return Err(Error::usage("a data set needs --objective sft, dpo or kto for now"));
    }
    if args.replay.is_some() {
        return Err(Error::usage(format!("--replay does not go with --objective {}", objective.name())));
    }
    if args.sft_weight.is_some() && objective != Objective::Dpo {
        return Err(Error::usage("--sft-weight goes with --objective dpo"));
    }
    if args.beta.is_some() && objective == Objective::Sft {
        return Err(Error::usage("--beta goes with --objective dpo or kto"));
    }
    at_least_one("--steps", args.steps)?;
    at_least_one("--gradient-accumulation", args.gradient_accumulation)?;
    at_least_one("--max-length", args.max_length)?;
    let in_range = |flag: &str, value: Option<f64>, fits: fn(f64) -> bool, range: &str| match value {
        Some(value) if !fits(value) => Err(Error::usage(format!("{flag} should be {range}, it is {value}"))),
        _ => Ok(()),
    };
    in_range("--beta", args.beta, |x| x > 0.0 && x.is_finite(), "a number above 0")?;
    in_range("--sft-weight", args.sft_weight, |x| x >= 0.0 && x.is_finite(), "0 or more")?;
    in_range("--eval-split", args.eval_split, |x| (0.0..1.0).contains(&x), "from 0 to below 1")?;
    Ok(Request {
        objective,
        order: args.order.unwrap_or(Order::File),
        steps: args.steps,
        accumulation: args.gradient_accumulation.unwrap_or(1),
        warmup_steps: args.warmup_steps,
        beta: args.beta.unwrap_or(0.1),
        sft_weight: args.sft_weight.unwrap_or(0.0),
        held_out: args.eval_split,
    })
}

fn at_least_one(flag: &str, value: Option<usize>) -> Result<()> {
    match value {
        Some(0) => Err(Error::usage(format!("{flag} should be 1 or more, it is 0"))),
        _ => Ok(()),
    }
}

/// Rows and fields that training does not see.
fn tell_left_out(set: &DataSet, limited: bool) {
    if !set.unknown.is_empty() {
        let fields: Vec<String> = set.unknown.iter().map(|field| text::one_line(field, 40)).collect();
        eprintln!("warning: {}: fields that mean nothing here are ignored: {}", set.name, fields.join(", "));
    }
    let limit = if limited { "--max-length" } else { "the model's context" };
    for (line, tokens) in &set.skipped {
        eprintln!("warning: {}:{line}: skipped, its {tokens} tokens are more than {limit}", set.name);
    }
}

fn opening(training: &Training, objective: Objective) -> String {
    let (rows, held_out) = training.sizes();
    let held_out = if held_out > 0 { format!(" ({held_out} more held out)") } else { String::new() };
    format!(
        "Training on {}{held_out}: {}, {} of {}, learning rate {}",
        render::count(rows, "row"),
        objective.name(),
        render::count(training.plan.schedule.total, "step"),
        render::count(training.rows_a_step, "row"),
        training.plan.schedule.peak
    )
}

fn outcome(trained: &Trained, made: &Provenance, held_out: usize, output: &Path) -> String {
    let mut out = match trained.ending {
        Ending::Interrupted => {
            format!("Interrupted; the state after {} is kept\n", render::count(trained.kept_step, "step"))
        }
        _ if trained.kept_step < trained.steps => {
            format!("Training completed; the state after step {} of {} is the best\n", trained.kept_step, trained.steps)
        }
        _ => "Training completed\n".to_string(),
    };
    let mut figures = vec![format!("Trained on {}", render::count(made.examples, "row"))];
    if let Some(after) = &trained.after {
        figures.push(format!("loss {:.2} → {:.2}", trained.before.loss, after.loss));
        if let Some((before, after)) = trained.before.held_out.zip(after.held_out).filter(|_| held_out > 0) {
            figures.push(format!("held-out {before:.2} → {after:.2}"));
        }
    }
    figures.extend(made.seconds.map(render::duration));
    out += &format!("   {}\n   Adapter saved to: {}\n", figures.join(", "), Paths::display(output));
    out
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
