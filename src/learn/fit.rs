//! From rows to trained adapter weights: what is measured before, between and after the steps, and which state is kept.
//!
//! The steps themselves are [`crate::train::run`]'s. Nothing here knows where the rows come from or what becomes of the
//! weights.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::mix::Beside;
use crate::error::{Error, Result};
use crate::model::courtesy::Courtesy;
use crate::model::lora::LoraWeights;
use crate::model::{Learner, Network};
use crate::train::lanes::Lanes;
use crate::train::row::Row;
use crate::train::run::{Plan, State, StepReport, Then, train};

/// Steps between two looks at whether the rows are learned, at least.
const LOOK_STEPS: usize = 10;

/// One training to do; every number is resolved.
pub struct Fit<'a> {
    pub network: &'a dyn Network,
    /// Where training starts; its layout is what is trained.
    pub start: LoraWeights,
    pub rows: &'a [Row],
    /// What the first rows are measured by, row for row: themselves, or how likely their completion is. Rows behind them (other
    /// wordings of the same question, say) are trained and not measured.
    pub measured: &'a [Row],
    /// What each of those counts in the measured loss: as it does in training, through sampling or through the loss.
    pub importance: &'a [f64],
    /// Indices into `rows`, `batch` a step, one step behind the other.
    pub draws: &'a [usize],
    pub batch: usize,
    /// Rows that join every step beside the drawn ones.
    pub beside: &'a Beside,
    /// Measured, never trained on.
    pub held_out: &'a [Row],
    pub plan: Plan,
    pub stopping: Stopping,
    /// They change the time and no bit of the result.
    pub threads: usize,
    pub courtesy: Arc<Courtesy>,
}

/// When a training may end before its last step; the default is never.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stopping {
    /// After the warm-up, when every row's loss is at most this.
    pub learned: Option<f64>,
    /// Steps that are still taken then, at a rate that falls to zero.
    pub settle: usize,
    /// When the held-out loss has not improved for so many epochs. The state with the best held-out loss is then kept,
    /// also where all steps were taken. Without held-out rows it means nothing.
    pub patience: Option<usize>,
}

/// Losses of one state, measured without dropout.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Mean over the trained rows by importance.
    pub loss: f64,
    /// Each trained row's.
    pub rows: Vec<f64>,
    /// Mean over the held-out rows, if there are any.
    pub held_out: Option<f64>,
}

/// Why the steps ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// Every row was learned.
    Learned,
    /// The held-out loss stopped improving.
    Patience,
    /// All steps were taken.
    Complete,
    /// The courtesy was cancelled; the best state so far is kept.
    Interrupted,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Trained {
    pub weights: LoraWeights,
    pub ending: Ending,
    /// Steps taken, and steps after which `weights` stood so.
    pub steps: usize,
    pub kept_step: usize,
    /// Of the start.
    pub before: Figures,
    /// Of `weights`; `None`: interrupted before they could be measured.
    pub after: Option<Figures>,
    pub curve: Vec<StepReport>,
}

/// How far a training is; epochs and batches count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Progress {
    pub epoch: usize,
    /// `None`: it stops when the rows are learned.
    pub epochs: Option<usize>,
    pub batch: usize,
    pub batches: usize,
    /// Mean loss of the step's trained rows, replayed ones apart.
    pub loss: f64,
    pub seconds: f64,
}

impl Fit<'_> {
    /// Trains. `on_step` sees every finished step.
    ///
    /// Errors: a loss or gradient that is not finite (nothing is kept); interrupted before the first step was finished.
    pub fn run(self, on_step: &mut dyn FnMut(&StepReport, &Progress) -> Result<()>) -> Result<Trained> {
        self.check()?;
        let started = Instant::now();
        let config = self.network.config();
        let lanes = Lanes::for_network(config, self.threads)?;
        let mut learner = self.network.learner(&self.start, Arc::clone(&self.courtesy))?;
        let mut meter = Meter {
            learner: self.network.learner(&self.start, Arc::clone(&self.courtesy))?,
            lanes: &lanes,
            rows: self.measured.iter().chain(self.held_out).collect(),
            importance: self.importance,
        };
        let before = meter.measure(&self.start.data)?;
        let mut keeper = Keeper { stopping: self.stopping, warmup: self.plan.schedule.warmup, best: None, worse: 0 };
        let mut state = State::new(self.start.data.clone(), self.plan.weight_decay);
        let (mut curve, stopped) = (Vec::new(), Cell::new(None));

        let mut batch = |step: usize| -> Vec<&Row> {
            let drawn = self.draws[step * self.batch..][..self.batch].iter().map(|i| &self.rows[*i]);
            let Beside { rows, draws, a_step } = self.beside;
            drawn.chain(draws[step * a_step..][..*a_step].iter().map(|i| &rows[*i])).collect()
        };
        let mut after = |report: &StepReport, params: &[f32]| -> Result<Then> {
            let progress = self.progress(report, started);
            curve.push(report.clone());
            on_step(report, &progress)?;
            if stopped.get().is_some() || !self.is_measured(report.step) {
                return Ok(Then::GoOn);
            }
            stopped.set(keeper.consider(report.step, params, meter.measure(params)?));
            Ok(if stopped.get().is_some() { Then::Stop } else { Then::GoOn })
        };
        let mut steps = |state: &mut State, plan: &Plan| {
            train(learner.as_mut(), &lanes, state, plan, &self.courtesy, &mut batch, &mut after)
        };
        let mut trained = steps(&mut state, &self.plan);
        if trained.is_ok() && stopped.get() == Some(Ending::Learned) {
            let schedule = self.plan.schedule.settling(state.step, self.stopping.settle);
            trained = steps(&mut state, &Plan { schedule, ..self.plan.clone() });
        }
        let (mut ending, mut last) = (stopped.get().unwrap_or(Ending::Complete), None);
        match trained {
            Ok(()) => match keeper.figures_of(state.step) {
                Some(figures) => last = Some(figures),
                None => match meter.measure(&state.params) {
                    Ok(figures) => last = Some(figures),
                    Err(e) if e.is_interrupted() => ending = Ending::Interrupted,
                    Err(e) => return Err(e),
                },
            },
            Err(e) if e.is_interrupted() && state.step > 0 => ending = Ending::Interrupted,
            Err(e) => return Err(e),
        }
        let steps = state.step;
        let (kept_step, params, after) = keeper.choose(ending, state, last);
        let weights = LoraWeights { data: params, ..self.start };
        Ok(Trained { weights, ending, steps, kept_step, before, after, curve })
    }

    /// What the caller promised.
    fn check(&self) -> Result<()> {
        let steps = self.plan.schedule.total;
        let drawn = self.draws.len() >= steps * self.batch && self.draws.iter().all(|i| *i < self.rows.len());
        let Beside { rows: beside, draws, a_step } = self.beside;
        let joined = draws.len() >= steps * a_step && draws.iter().all(|i| *i < beside.len());
        let measurable = self.importance.len() == self.measured.len() && self.measured.len() <= self.rows.len();
        match self.measured.is_empty() || self.batch == 0 || !measurable {
            false if drawn && joined => Ok(()),
            _ => Err(Error::failure("a training was asked for without rows for each of its steps")),
        }
    }

    /// Whether the state after this step, counted from 1, is measured.
    fn is_measured(&self, step: usize) -> bool {
        match self.stopping.learned {
            // As often as the measuring, a step of so many rows, stays cheap beside the steps between.
            Some(_) => step.is_multiple_of(self.measured.len().max(LOOK_STEPS)),
            None => self.ends_epoch(step),
        }
    }

    /// Whether an epoch (as many draws as rows) ends with this step, counted from 1.
    fn ends_epoch(&self, step: usize) -> bool {
        let epochs = |step: usize| step * self.batch / self.rows.len();
        epochs(step) > epochs(step - 1)
    }

    fn progress(&self, report: &StepReport, started: Instant) -> Progress {
        let rows = self.rows.len();
        let done = (report.step - 1) * self.batch;
        let epoch = done / rows;
        let first = (epoch * rows).div_ceil(self.batch); // first step whose draws begin in this epoch
        let total = self.plan.schedule.total * self.batch;
        let trained = &report.row_losses[..self.batch.min(report.row_losses.len())];
        Progress {
            epoch: epoch + 1,
            epochs: (self.stopping == Stopping::default()).then(|| total.div_ceil(rows)),
            batch: report.step - first,
            batches: ((epoch + 1) * rows).div_ceil(self.batch) - first,
            loss: trained.iter().sum::<f64>() / trained.len().max(1) as f64,
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// Measures states between the steps, with a learner of its own.
struct Meter<'a> {
    learner: Box<dyn Learner>,
    lanes: &'a Lanes,
    /// The trained rows, then the held-out ones.
    rows: Vec<&'a Row>,
    importance: &'a [f64],
}

impl Meter<'_> {
    fn measure(&mut self, params: &[f32]) -> Result<Figures> {
        self.learner.load(params)?;
        let mut rows = self.lanes.losses(self.learner.as_ref(), &self.rows)?;
        if let Some(loss) = rows.iter().find(|loss| !loss.is_finite()) {
            return Err(Error::failure(format!("a training row has a loss of {loss}"))
                .hint("lower the learning rate, or look for broken rows in the data"));
        }
        let held_out = rows.split_off(self.importance.len());
        let weighted: f64 = rows.iter().zip(self.importance).map(|(loss, w)| loss * w).sum();
        Ok(Figures {
            loss: weighted / self.importance.iter().sum::<f64>(),
            rows,
            held_out: (!held_out.is_empty()).then(|| held_out.iter().sum::<f64>() / held_out.len() as f64),
        })
    }
}

/// The best measured state, and whether to go on.
struct Keeper {
    stopping: Stopping,
    warmup: usize,
    best: Option<(usize, Vec<f32>, Figures)>,
    /// Measurements since then.
    worse: usize,
}

impl Keeper {
    /// The figure by which states are compared: held-out loss where it decides, else the trained rows'.
    fn rank(&self, figures: &Figures) -> f64 {
        self.by_held_out(figures).unwrap_or(figures.loss)
    }

    fn by_held_out(&self, figures: &Figures) -> Option<f64> {
        figures.held_out.filter(|_| self.stopping.patience.is_some())
    }

    /// Takes note of a measured state; `Some`: stop here, for this reason.
    fn consider(&mut self, step: usize, params: &[f32], figures: Figures) -> Option<Ending> {
        let learned = step >= self.warmup
            && self.stopping.learned.is_some_and(|limit| figures.rows.iter().all(|loss| *loss <= limit));
        let held_out = self.by_held_out(&figures).is_some();
        // On a tie the later state: it has gone on learning.
        if self.best.as_ref().is_none_or(|(_, _, best)| self.rank(&figures) <= self.rank(best)) {
            self.best = Some((step, params.to_vec(), figures));
            self.worse = 0;
        } else {
            self.worse += 1;
        }
        let tired = held_out && self.stopping.patience.is_some_and(|patience| self.worse >= patience);
        learned.then_some(Ending::Learned).or(tired.then_some(Ending::Patience))
    }

    /// What was measured after that step, if that is the best state.
    fn figures_of(&self, step: usize) -> Option<Figures> {
        self.best.as_ref().filter(|(at, _, _)| *at == step).map(|(_, _, figures)| figures.clone())
    }

    /// The state to keep: the last one, but the best one where held-out rows decide or the last one is unmeasured.
    fn choose(self, ending: Ending, state: State, last: Option<Figures>) -> (usize, Vec<f32>, Option<Figures>) {
        let by_held_out = last.as_ref().is_some_and(|figures| self.by_held_out(figures).is_some());
        let better = match (&self.best, &last) {
            (None, _) => false,
            (Some(_), None) => ending == Ending::Interrupted,
            (Some((_, _, best)), Some(last)) => by_held_out && self.rank(best) < self.rank(last),
        };
        match self.best {
            Some((step, params, figures)) if better => (step, params, Some(figures)),
            _ => (state.step, state.params, last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{config, lesson, network};
    use super::*;
    use crate::adapter::peft::{self, LoraSettings};
    use crate::feedback::example::Origin;
    use crate::model::Tokens;
    use crate::model::candle::CandleNetwork;
    use crate::train::schedule::{Schedule, Shape};

    fn rows(n: usize) -> Vec<Row> {
        let lesson = |i| lesson(&format!("q{i}"), &format!("answer {i}"), Origin::Correction, 1.0);
        (0..n).map(|i| Row::imitate(lesson(i).tokens, 1.0)).collect()
    }

    fn settings() -> LoraSettings {
        LoraSettings { rank: 4, alpha: 8.0, ..LoraSettings::default() }
    }

    /// A training of `steps` steps over `rows` in their order, two a step.
    struct Bench {
        network: CandleNetwork,
        rows: Vec<Row>,
        held_out: Vec<Row>,
        replay: Vec<Row>,
        steps: usize,
        rate: f64,
        stopping: Stopping,
        threads: usize,
    }

    impl Bench {
        fn new(rows: Vec<Row>, steps: usize) -> Bench {
            let network = network(&config(), 3);
            let stopping = Stopping::default();
            Bench { network, rows, held_out: vec![], replay: vec![], steps, rate: 5e-3, stopping, threads: 2 }
        }

        fn run(&self, courtesy: &Arc<Courtesy>, on_step: &mut dyn FnMut(usize)) -> Result<Trained> {
            let fit = Fit {
                network: &self.network,
                start: peft::init(&self.network, &settings(), 42).unwrap(),
                rows: &self.rows,
                measured: &self.rows,
                importance: &vec![1.0; self.rows.len()],
                draws: &(0..self.steps * 2).map(|i| i % self.rows.len()).collect::<Vec<_>>(),
                batch: 2,
                beside: &Beside {
                    rows: self.replay.clone(),
                    draws: (0..self.steps).filter_map(|i| i.checked_rem(self.replay.len())).collect(),
                    a_step: usize::from(!self.replay.is_empty()),
                },
                held_out: &self.held_out,
                plan: Plan {
                    schedule: Schedule { shape: Shape::Constant, peak: self.rate, warmup: 0, total: self.steps },
                    weight_decay: 0.0,
                    max_grad_norm: 1.0,
                    dropout: 0.0,
                    seed: 1,
                },
                stopping: self.stopping,
                threads: self.threads,
                courtesy: Arc::clone(courtesy),
            };
            fit.run(&mut |report, _| {
                on_step(report.step);
                Ok(())
            })
        }

        fn trained(&self) -> Trained {
            self.run(&Arc::default(), &mut |_| {}).unwrap()
        }
    }

    #[test]
    fn rows_are_learned_and_then_it_stops() {
        let stopping = Stopping { learned: Some(2.5), patience: None, settle: 0 };
        let bench = Bench { stopping, ..Bench::new(rows(3), 200) };
        let trained = bench.trained();
        assert_eq!(trained.ending, Ending::Learned);
        assert!(trained.steps < 200 && trained.kept_step == trained.steps, "{} steps", trained.steps);
        let after = trained.after.unwrap();
        assert!(after.rows.iter().all(|loss| *loss <= 2.5), "{after:?}");
        assert!(trained.before.rows.iter().all(|loss| *loss > 2.5), "{:?}", trained.before);
        assert_eq!(trained.curve.len(), trained.steps);
    }

    #[test]
    fn what_is_learned_settles_at_a_falling_rate() {
        let stopping = Stopping { learned: Some(2.5), patience: None, settle: 0 };
        let bench = Bench { stopping, ..Bench::new(rows(3), 200) };
        let at_once = bench.trained();
        let settled = Bench { stopping: Stopping { settle: 4, ..stopping }, ..bench }.trained();
        assert_eq!((settled.ending, settled.steps), (Ending::Learned, at_once.steps + 4));
        assert_eq!(settled.kept_step, settled.steps);
        let rates: Vec<f64> = settled.curve[at_once.steps..].iter().map(|step| step.learning_rate / 5e-3).collect();
        assert!(rates.iter().zip([0.8, 0.6, 0.4, 0.2]).all(|(rate, line)| (rate - line).abs() < 1e-9), "{rates:?}");
        assert!(settled.after.unwrap().loss < at_once.after.unwrap().loss);
    }

    #[test]
    fn threads_change_no_bit() {
        let replay = vec![Row::stay(Tokens::new(&[1, 2, 3], &[4, 5, 6, 7]), 0.5)];
        let run = |threads| Bench { threads, replay: replay.clone(), ..Bench::new(rows(3), 5) }.trained();
        let (one, three) = (run(1), run(3));
        assert_eq!(one.weights.data, three.weights.data);
        assert_eq!((one.before, one.after), (three.before, three.after));
    }

    #[test]
    fn replay_holds_the_adapter_to_the_base() {
        let kept: Vec<Row> =
            (0..4u32).map(|i| Row::stay(Tokens::new(&[i, 9, 8], &[20 + i, 30, 40 + i, 50]), 8.0)).collect();
        let moved = |replay: &[Row]| {
            let bench = Bench { replay: replay.to_vec(), ..Bench::new(rows(3), 40) };
            let trained = bench.trained();
            let learner = bench.network.learner(&trained.weights, Arc::default()).unwrap();
            let lanes = Lanes::for_network(&config(), 1).unwrap();
            let kl = lanes.losses(learner.as_ref(), &kept.iter().collect::<Vec<_>>()).unwrap();
            (kl.iter().sum::<f64>() / 4.0, trained.after.unwrap().loss)
        };
        let ((free, loss), (held, held_loss)) = (moved(&[]), moved(&kept));
        assert!(held < 0.3 * free, "KL {held} with replay, {free} without");
        assert!(loss < 2.0 && held_loss < 4.0, "losses {loss} and {held_loss}");
    }

    #[test]
    fn an_interruption_keeps_the_best_state_so_far() {
        let courtesy: Arc<Courtesy> = Arc::default();
        let bench = Bench::new(rows(4), 200);
        let stop_at = |at: usize, courtesy: &Arc<Courtesy>| {
            let theirs = Arc::clone(courtesy);
            bench.run(courtesy, &mut |step| {
                if step == at {
                    theirs.cancel();
                }
            })
        };
        let trained = stop_at(7, &courtesy).unwrap();
        assert_eq!((trained.ending, trained.steps, trained.kept_step), (Ending::Interrupted, 7, 6));
        assert!(trained.after.unwrap().loss < trained.before.loss);
        let early = stop_at(1, &Arc::default()).unwrap();
        assert_eq!((early.kept_step, early.after), (1, None), "kept, though nobody could measure it");
        assert!(bench.run(&courtesy, &mut |_| {}).unwrap_err().is_interrupted(), "nothing to keep");
    }

    #[test]
    fn held_out_rows_decide_where_patience_is_set() {
        // The same questions with other answers: what is learned first helps them, what comes later does not.
        let held_out: Vec<Row> = (0..2)
            .map(|i| Row::imitate(lesson(&format!("q{i}"), "ANSWER", Origin::Correction, 1.0).tokens, 1.0))
            .collect();
        let bench = Bench { held_out, rate: 2e-2, ..Bench::new(rows(2), 60) };
        let held = |t: &Trained| t.after.as_ref().and_then(|f| f.held_out).unwrap();
        let last = bench.trained();
        assert_eq!((last.ending, last.kept_step), (Ending::Complete, 60), "without patience the last step is kept");

        let run = |patience| {
            let stopping = Stopping { learned: None, patience: Some(patience), settle: 0 };
            Bench { stopping, held_out: bench.held_out.clone(), rate: 2e-2, ..Bench::new(rows(2), 60) }.trained()
        };
        let best = run(1000);
        assert!(best.steps == 60 && best.kept_step < 60, "{:?} at {}", best.ending, best.kept_step);
        assert!(held(&best) < held(&last), "{} against {}", held(&best), held(&last));
        let tired = run(3);
        assert_eq!(tired.ending, Ending::Patience);
        assert_eq!(tired.steps, tired.kept_step + 3, "an epoch is one step here");
    }

    #[test]
    fn progress_counts_epochs_and_batches() {
        let bench = Bench::new(rows(5), 8);
        let mut seen = Vec::new();
        let fit = |on: &mut dyn FnMut(&StepReport, &Progress) -> Result<()>| {
            Fit {
                network: &bench.network,
                start: peft::init(&bench.network, &settings(), 1).unwrap(),
                rows: &bench.rows,
                measured: &bench.rows,
                importance: &[1.0; 5],
                draws: &(0..16).map(|i| i % 5).collect::<Vec<_>>(),
                batch: 2,
                beside: &Beside::default(),
                held_out: &[],
                plan: Plan {
                    schedule: Schedule { shape: Shape::Constant, peak: 1e-3, warmup: 0, total: 8 },
                    weight_decay: 0.0,
                    max_grad_norm: 1.0,
                    dropout: 0.0,
                    seed: 1,
                },
                stopping: Stopping::default(),
                threads: 1,
                courtesy: Arc::default(),
            }
            .run(on)
        };
        fit(&mut |_, p| {
            seen.push((p.epoch, p.epochs, p.batch, p.batches));
            Ok(())
        })
        .unwrap();
        let epochs = Some(4); // 16 draws of 5 rows
        assert_eq!(
            seen,
            [(1, 1, 3), (1, 2, 3), (1, 3, 3), (2, 1, 2), (2, 2, 2), (3, 1, 3), (3, 2, 3), (3, 3, 3)]
                .map(|(epoch, batch, batches)| (epoch, epochs, batch, batches))
        );
    }

    #[test]
    fn a_training_that_diverges_stops_with_an_error() {
        let bench = Bench { rate: 1e30, ..Bench::new(rows(2), 20) };
        let error = bench.run(&Arc::default(), &mut |_| {}).unwrap_err();
        assert!(!error.is_interrupted() && error.hint_text().is_some(), "{error}");
    }
}
