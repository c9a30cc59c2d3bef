//! What the chat and the commands say about training and adapters: plain figures in, text out (see [`super::render`]).

use std::path::Path;

use super::render::{bytes, count, duration, plain, short_digest};
use super::table::{Layout, table};
use crate::fsio::Holder;
use crate::learn::coordinator::{Phase, Status, Trigger};
use crate::learn::fit::Progress;
use crate::learn::gate::Measurements;
use crate::learn::recipe::HELD_OUT_MIN;
use crate::learn::round::Receipt;
use crate::learn::rows::Skipped;
use crate::paths::Paths;
use crate::text;

pub fn started(trigger: Trigger, skipped: &[Skipped]) -> String {
    let mut out = match trigger {
        Trigger::Threshold => "🔄 Training threshold reached, starting background training…\n".to_string(),
        Trigger::Asked => "🔄 Starting background training…\n".to_string(),
    };
    for skipped in skipped {
        out += &format!("   Left out: {}\n", plain(&skipped.to_string()));
    }
    out
}

/// One line, without its end: it stands above the prompt while the training runs.
pub fn progress(p: &Progress) -> String {
    let epochs = p.epochs.map(|epochs| format!("/{epochs}")).unwrap_or_default();
    let Progress { epoch, batch, batches, loss, seconds, .. } = p;
    format!("🔄 Training: epoch {epoch}{epochs}, batch {batch}/{batches}, loss {loss:.2}, {}", duration(*seconds))
}

/// In the place of [`progress`]: before the first batch, and after the last.
pub const PREPARING: &str = "🔄 Training: preparing…";
pub const JUDGING: &str = "🔄 Training: judging the new adapter…";

/// `/train status` while one runs: the time is that since its beginning, whatever it does.
pub fn running(s: &Status) -> String {
    match s.phase {
        Phase::Preparing => format!("{PREPARING} {}\n", duration(s.seconds)),
        Phase::Training(p) => progress(&Progress { seconds: s.seconds, ..p }) + "\n",
        Phase::Judging => format!("{JUDGING} {}\n", duration(s.seconds)),
    }
}

/// The last run, for `/train status`.
#[derive(Debug, Clone, PartialEq)]
pub struct LastRun {
    pub time: String,
    /// "completed", "refused", …
    pub outcome: String,
    pub loss: Option<(f64, f64)>,
    pub adapter: Option<String>,
}

/// `/train status` while nothing runs; `new` of `threshold` examples are there.
pub fn idle(new: usize, threshold: usize, auto_train: bool, last: Option<&LastRun>) -> String {
    let mut out = format!("No training is running; {}", count(new, "new example"));
    out += &match auto_train {
        true => format!(", it starts at {threshold} or with /train.\n"),
        false => ", it starts with /train (auto_train is off).\n".to_string(),
    };
    if let Some(run) = last {
        let loss = losses(run.loss);
        let adapter = run.adapter.as_ref().map(|name| format!(", {}", plain(name))).unwrap_or_default();
        out += &format!("   Last one: {}, {}{loss}{adapter}\n", run.time, plain(&run.outcome));
    }
    out
}

/// On what, how well, how long, and where the adapter is.
pub fn trained_on(r: &Receipt) -> String {
    let loss = losses(r.loss_after.map(|after| (r.loss_before, after)));
    saved(&format!("{}{loss}", count(r.examples, "example")), r.seconds, &r.path)
}

/// As [`trained_on`]; `rows`: on what, and how well.
pub fn saved(rows: &str, seconds: f64, path: &Path) -> String {
    format!("   Trained on {rows}, {}\n   Adapter saved to: {}\n", duration(seconds), Paths::display(path))
}

/// ", loss 2.31 → 0.85"; nothing where it was not measured.
pub fn losses(loss: Option<(f64, f64)>) -> String {
    loss.map(|(before, after)| format!(", loss {before:.2} → {after:.2}")).unwrap_or_default()
}

/// The adapter is saved, has passed the gate, and is live.
pub fn finished(r: &Receipt) -> String {
    let mut out = format!("✓ Background training completed!\n{}", trained_on(r));
    for warning in &r.warnings {
        out += &format!("   Note: {}\n", plain(warning));
    }
    out + &receipt(r)
}

/// The gate said no: the adapter is kept, and not used.
pub fn refused(r: &Receipt) -> String {
    let mut out = format!("✗ Background training completed, but the new adapter is not used\n{}", trained_on(r));
    for reason in &r.reasons {
        out += &format!("   Refused: {}\n", plain(reason));
    }
    out + "   Answers stay as they were; the next training waits for new examples.\n"
}

/// What the gate measured of an adapter that is live, behind [`trained_on`].
pub fn receipt(r: &Receipt) -> String {
    let basis = match r.measured.as_ref().is_some_and(|m| m.held_out.is_none()) {
        true => format!(
            "   Judged by what was trained and by ordinary prompts; {HELD_OUT_MIN} held-out rows would say more.\n"
        ),
        false => String::new(),
    };
    live(&r.adapter, r.measured.as_ref()) + &basis
}

/// One line about an adapter that is live.
pub fn live(adapter: &str, measured: Option<&Measurements>) -> String {
    format!("   adapter {} live{}\n", plain(adapter), figures(measured))
}

/// One line about an adapter that passed the gate and is not the registry's to make live.
pub fn passed(measured: &Measurements) -> String {
    format!("   It passes the gate{}\n", figures(Some(measured)))
}

/// " · held-out 2.31 → 1.87, pairs 7/8 · 5/5 corrections hold · canaries 20/20, KL 0.012". Figures that do not exist are
/// left out.
fn figures(measured: Option<&Measurements>) -> String {
    let Some(measured) = measured else { return String::new() };
    let pairs = measured.pairs.map(|(won, all)| format!(", pairs {won}/{all}")).unwrap_or_default();
    let held_out = measured.held_out.map(|(before, after)| format!("held-out {before:.2} → {after:.2}{pairs}"));
    let corrections = measured.corrections.map(|(hold, all)| format!("{hold}/{all} corrections hold"));
    let canaries = measured.canaries.map(|(fine, all)| format!("canaries {fine}/{all}"));
    let kl = measured.kl.map(|kl| format!("KL {kl:.3}"));
    let ordinary = [canaries, kl].into_iter().flatten().reduce(|a, b| format!("{a}, {b}"));
    [held_out, corrections, ordinary].into_iter().flatten().map(|figure| format!(" · {figure}")).collect()
}

/// What the gate could not measure of a data set's rows, and why; nothing where it measured all.
pub fn unmeasured(what: &[String]) -> String {
    if what.is_empty() { String::new() } else { format!("   The gate could not measure: {}\n", what.join("; ")) }
}

/// Another finch on the same data folder trains.
pub fn other_trains(holder: &Holder) -> String {
    let who = holder.pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    format!("Another finch{who} is training on this data; one at a time.\n")
}

pub fn cancelled(examples: usize) -> String {
    let stay = if examples == 1 { "its 1 example stays new" } else { &format!("its {examples} examples stay new") };
    format!("Training cancelled; {stay}.\n")
}

pub fn failed(message: &str, hint: Option<&str>) -> String {
    let hint = hint.map(|hint| format!("   {}\n", plain(hint))).unwrap_or_default();
    format!("✗ Training failed: {}\n{hint}   Its examples stay new; answers stay as they were.\n", plain(message))
}

pub const NOTHING_TO_TRAIN: &str = "There is nothing to train on yet: rate answers good, or correct them.\n";
/// `finch train` was interrupted while it made better answers.
pub const STOPPED_BEFORE: &str = "Stopped before the training; all feedback is kept.\n";
pub const NOTHING_NEW: &str = "There is nothing new since the last training.\n";
/// Leaving while a training runs.
pub const LEAVING: &str = "Stopping the running training… (Ctrl-C leaves at once)\n";
/// Leaving without waiting for its end.
pub const LEFT_AT_ONCE: &str = "The training is dropped unfinished; all feedback is kept.\n";
pub const NOTHING_RUNS: &str = "No training is running.\n";
pub const ALREADY_RUNNING: &str = "A training is running already; /train status shows how far it is.\n";

/// Another adapter answers from here on (or none).
pub fn switched(from: Option<&str>, to: Option<&str>) -> String {
    match (from, to) {
        (_, Some(to)) => format!("Adapter {} is live from the next answer on.\n", plain(to)),
        (Some(from), None) => format!("Adapter {} is unloaded; the base answers from here on.\n", plain(from)),
        (None, None) => "No adapter is loaded; the base answers.\n".to_string(),
    }
}

/// Asked before the active adapter is deleted.
pub fn delete_question(name: &str) -> String {
    format!("{} is the active adapter. Delete it?", plain(name))
}

pub fn deleted(name: &str, was_live: bool) -> String {
    let base = if was_live { "; the base answers from here on" } else { "" };
    format!("Adapter {} is deleted{base}.\n", plain(name))
}

/// One row of the table of adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterRow {
    pub name: String,
    /// Local time, "2026-02-06 14:30".
    pub time: String,
    pub base: String,
    pub rank: Option<usize>,
    pub examples: Option<usize>,
    pub loss: Option<(f64, f64)>,
    pub bytes: u64,
    pub state: AdapterState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterState {
    Live,
    /// What `rollback` goes back to.
    Previous,
    /// Refused by the gate, or just not in use.
    Kept(Option<String>),
    Broken(String),
}

/// `columns`: of the terminal that it is for.
pub fn adapters(rows: &[AdapterRow], columns: Option<usize>) -> String {
    if rows.is_empty() {
        return "There are no adapters yet; they come from training (/train or `finch train`).\n".to_string();
    }
    let dash = || "–".to_string();
    let mut cells = vec![["name", "time", "base", "rank", "examples", "loss", "size", ""].map(String::from)];
    for row in rows {
        cells.push([
            text::one_line(&row.name, 50),
            row.time.clone(),
            if row.base.is_empty() { dash() } else { short_digest(&row.base).chars().take(8).collect() },
            row.rank.map_or_else(dash, |n| n.to_string()),
            row.examples.map_or_else(dash, |n| n.to_string()),
            row.loss.map_or_else(dash, |(before, after)| format!("{before:.2} → {after:.2}")),
            bytes(row.bytes),
            match &row.state {
                AdapterState::Live => "live".to_string(),
                AdapterState::Previous => "previous".to_string(),
                AdapterState::Kept(remark) => remark.as_deref().map(|r| text::one_line(r, 80)).unwrap_or_default(),
                AdapterState::Broken(reason) => format!("broken: {}", text::one_line(reason, 60)),
            },
        ]);
    }
    let layout = Layout { right: &[3, 4, 6], spare: &[2, 6, 3, 1, 4, 5], least: 20 };
    table(&cells, &layout, columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::fit::Ending;

    fn run() -> Receipt {
        Receipt {
            run: 1,
            adapter: "lora_adapter_20260206_143025".into(),
            path: "/data/adapters/lora_adapter_20260206_143025".into(),
            examples: 10,
            skipped: Vec::new(),
            loss_before: 2.31,
            loss_after: Some(0.85),
            measured: None,
            reasons: Vec::new(),
            warnings: Vec::new(),
            steps: 30,
            ending: Ending::Learned,
            seconds: 21.2,
        }
    }

    #[test]
    fn training_reads_as_its_users_know_it() {
        assert_eq!(started(Trigger::Threshold, &[]), "🔄 Training threshold reached, starting background training…\n");
        assert_eq!(
            finished(&run()),
            "✓ Background training completed!\n\
             \x20  Trained on 10 examples, loss 2.31 → 0.85, 21 s\n\
             \x20  Adapter saved to: /data/adapters/lora_adapter_20260206_143025\n\
             \x20  adapter lora_adapter_20260206_143025 live\n"
        );
    }

    #[test]
    fn examples_that_are_left_out_are_named() {
        let skipped = Skipped { interaction: 7, question: "long \x1b[2Jone".into(), tokens: 2000, context: 1024 };
        let shown = started(Trigger::Asked, &[skipped]);
        assert!(shown.contains("Left out: #7") && shown.contains("2000 tokens") && !shown.contains('\x1b'), "{shown}");
    }

    #[test]
    fn progress_is_one_line_and_leaves_out_what_is_not_known() {
        let known = Progress { epoch: 2, epochs: Some(5), batch: 14, batches: 75, loss: 1.324, seconds: 8.0 };
        assert_eq!(progress(&known), "🔄 Training: epoch 2/5, batch 14/75, loss 1.32, 8.0 s");
        assert_eq!(
            progress(&Progress { epochs: None, ..known }),
            "🔄 Training: epoch 2, batch 14/75, loss 1.32, 8.0 s"
        );
        let status = |phase| Status { trigger: Trigger::Asked, examples: None, phase, seconds: 30.0 };
        assert_eq!(running(&status(Phase::Preparing)), "🔄 Training: preparing… 30 s\n");
        let training = running(&status(Phase::Training(known)));
        assert_eq!(training, "🔄 Training: epoch 2/5, batch 14/75, loss 1.32, 30 s\n", "since its beginning");
        assert_eq!(running(&status(Phase::Judging)), "🔄 Training: judging the new adapter… 30 s\n");
    }

    #[test]
    fn a_refusal_names_its_reasons_and_claims_nothing_live() {
        let shown = refused(&Receipt { reasons: vec!["KL 0.31 is above 0.15".into()], ..run() });
        assert!(shown.contains("is not used") && shown.contains("   Refused: KL 0.31"), "{shown}");
        assert!(!shown.contains("live"), "{shown}");
    }

    #[test]
    fn the_receipt_has_the_figures_that_exist() {
        let measured = Measurements {
            corrections: Some((5, 5)),
            canaries: Some((20, 20)),
            kl: Some(0.0123),
            ..Measurements::default()
        };
        let full = Receipt { loss_after: Some(0.09), examples: 12, measured: Some(measured), seconds: 94.0, ..run() };
        assert_eq!(
            finished(&full),
            "✓ Background training completed!\n\
             \x20  Trained on 12 examples, loss 2.31 → 0.09, 94 s\n\
             \x20  Adapter saved to: /data/adapters/lora_adapter_20260206_143025\n\
             \x20  adapter lora_adapter_20260206_143025 live · 5/5 corrections hold · canaries 20/20, KL 0.012\n\
             \x20  Judged by what was trained and by ordinary prompts; 8 held-out rows would say more.\n"
        );
        let held_out = Measurements { held_out: Some((2.31, 1.87)), pairs: Some((7, 8)), ..Measurements::default() };
        let shown = receipt(&Receipt { measured: Some(held_out), ..run() });
        assert!(shown.ends_with(" live · held-out 2.31 → 1.87, pairs 7/8\n"), "{shown}");
        let bare = Receipt { adapter: "a".into(), examples: 1, loss_after: None, seconds: 2.0, ..run() };
        assert_eq!(receipt(&bare), "   adapter a live\n");
        assert!(trained_on(&bare).starts_with("   Trained on 1 example, 2.0 s\n"));
        assert_eq!(unmeasured(&["a (b)".into(), "c".into()]), "   The gate could not measure: a (b); c\n");
    }

    #[test]
    fn cancelling_and_failing_say_that_examples_stay_new() {
        assert_eq!(cancelled(10), "Training cancelled; its 10 examples stay new.\n");
        assert_eq!(cancelled(1), "Training cancelled; its 1 example stays new.\n");
        assert!(failed("the loss is not a number", Some("lower the learning rate")).contains("stay new"));
    }

    #[test]
    fn status_without_a_run() {
        assert_eq!(
            idle(3, 10, true, None),
            "No training is running; 3 new examples, it starts at 10 or with /train.\n"
        );
        let last = LastRun {
            time: "2026-02-06 14:30".into(),
            outcome: "completed".into(),
            loss: Some((2.31, 0.85)),
            adapter: Some("a".into()),
        };
        let shown = idle(0, 10, false, Some(&last));
        assert!(shown.contains("auto_train is off"));
        assert!(shown.ends_with("   Last one: 2026-02-06 14:30, completed, loss 2.31 → 0.85, a\n"));
    }

    #[test]
    fn the_table_of_adapters_is_aligned() {
        let row = |name: &str, state| AdapterRow {
            name: name.into(),
            time: "2026-02-06 14:30".into(),
            base: "0123456789abcdef".into(),
            rank: Some(16),
            examples: Some(10),
            loss: Some((2.31, 0.85)),
            bytes: 3_400_000,
            state,
        };
        let mut foreign = row("héllo", AdapterState::Broken("no\x1b[1m lora_B".into()));
        (foreign.rank, foreign.examples, foreign.loss) = (None, None, None);
        let rows = [row("lora_adapter_20260206_143025", AdapterState::Live), foreign];
        let shown = adapters(&rows, None);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines,
            [
                "name                          time              base      rank  examples  loss           size",
                "lora_adapter_20260206_143025  2026-02-06 14:30  01234567    16        10  2.31 → 0.85  3.4 MB  live",
                "héllo                         2026-02-06 14:30  01234567     –         –  –            3.4 MB  broken: no lora_B",
            ]
        );
        let narrow = adapters(&rows, Some(80));
        assert_eq!(narrow.lines().next(), Some("name                          examples  loss"), "{narrow}");
        assert!(narrow.lines().nth(1).is_some_and(|line| line.ends_with("2.31 → 0.85  live")), "{narrow}");
        assert!(adapters(&[], None).contains("no adapters yet"));
    }

    #[test]
    fn switching_names_both_ways() {
        assert_eq!(switched(None, Some("a")), "Adapter a is live from the next answer on.\n");
        assert_eq!(switched(Some("a"), None), "Adapter a is unloaded; the base answers from here on.\n");
        assert!(switched(None, None).contains("No adapter"));
    }
}
