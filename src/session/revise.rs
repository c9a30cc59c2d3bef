//! Revisions: better answers made from the notes of bad ratings, between the turns of the chat.
//!
//! A [`Reviser`] asks the model that answers now for candidates, drops those that fail the checks of
//! [`crate::feedback::revision`], and proposes the one that the note makes likelier the most. What is proposed is kept
//! with the rating, so that nothing is lost when finch ends; what is accepted becomes a correction.

use std::sync::Arc;

use super::adapters::AdapterWatch;
use super::answer::Answer;
use super::{Acknowledgement, Loaded, ModelHost, finish, prompt, record_feedback, sampling};
use crate::config::Config;
use crate::engine::{CancelFlag, EngineAdapter, Event, Reason, Request};
use crate::error::{Error, Result};
use crate::feedback::revision::{self, CANDIDATES, Case, Fault, Proposal};
use crate::feedback::{Finish, NewFeedback, Source};
use crate::learn::canaries::{self, REPLAYED};
use crate::model::courtesy::Courtesy;
use crate::model::load::Model;
use crate::model::message::{Message, Role};
use crate::model::sampling::Sampling;
use crate::paths::Paths;
use crate::store::Store;
use crate::train::chat::ChatFormat;

/// A candidate may have as many tokens as this many answers, and [`SPARE_TOKENS`] more: what goes on is too long anyway.
const LONGEST: usize = 3;
const SPARE_TOKENS: usize = 128;
/// Ordinary questions behind which a candidate is weighed as well.
const OTHER_QUESTIONS: usize = 4;
/// Temperature of a second candidate from the same prompt, where the model is greedy.
const LIVELY: f64 = 0.7;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Writing candidate `n` (from 1) of `of`.
    Writing { n: usize, of: usize },
    /// Comparing those that passed.
    Weighing,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Revised {
    /// The best candidate; it is on disk, with its rating.
    Proposed(Proposal),
    /// No candidate passed, for these reasons; the rating waits on.
    NonePassed(Vec<Fault>),
    /// The rating is out of force by now, or has a better answer.
    Settled,
}

/// What came of a better answer that is recorded without a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Taken {
    /// It is on disk, as a correction of this weight.
    Recorded {
        text: String,
        weight: f64,
    },
    /// As [`Revised::NonePassed`].
    NonePassed(Vec<Fault>),
    Settled,
}

/// Makes revisions and takes the user's word on them; cheap to clone, and for any thread.
#[derive(Clone)]
pub struct Reviser {
    pub(super) store: Arc<Store>,
    pub(super) paths: Paths,
    pub(super) config: Config,
    pub(super) host: Arc<ModelHost>,
    /// What is accepted is feedback of this session, so that undoing finds it.
    pub(super) session: Option<String>,
}

impl Reviser {
    /// For `model` and without a conversation: what is accepted belongs to no session. Errors when the system refuses a
    /// thread.
    pub fn alone(store: Arc<Store>, paths: Paths, config: Config, model: Model) -> Result<Reviser> {
        let host = Arc::new(ModelHost::of(Loaded::new(model)?));
        Ok(Reviser { store, paths, config, host, session: None })
    }

    /// Notes are rules in the prompt of the turns to come.
    pub fn notes_are_lessons(&self) -> bool {
        self.config.feedback.lesson_tokens > 0
    }

    /// The bad answers with a note that still wait, for the loaded model; waits for it.
    pub fn pending(&self, cancel: &CancelFlag) -> Result<Vec<Case>> {
        let loaded = self.host.wait(cancel)?;
        Ok(revision::pending(&self.store.judged()?, &loaded.model.base))
    }

    /// [`Reviser::pending`] without those whose better answer the user rejected: for these none is made without a word.
    pub fn undecided(&self, cancel: &CancelFlag) -> Result<Vec<Case>> {
        let rejected = |case: &Case| Proposal::of(&case.rating).is_some_and(|proposal| proposal.rejected);
        Ok(self.pending(cancel)?.into_iter().filter(|case| !rejected(case)).collect())
    }

    /// [`Reviser::make`], and [`Reviser::accept`] of what came of it: for who wants to be asked nothing. What this model
    /// proposed before, and nobody decided about, is taken as it is.
    pub fn take(&self, case: &Case, cancel: &CancelFlag, tell: &mut dyn FnMut(Stage)) -> Result<Taken> {
        let base = &self.host.wait(cancel)?.model.base;
        let proposed = Proposal::of(&case.rating).filter(|proposal| !proposal.rejected && proposal.base == *base);
        let revised = match proposed {
            Some(proposal) if self.waits(case)? => Revised::Proposed(proposal),
            _ => self.make(case, cancel, tell)?,
        };
        Ok(match revised {
            Revised::Proposed(proposal) => {
                let given = self.accept(case, &proposal, None)?;
                Taken::Recorded { text: proposal.text, weight: given.feedback.weight }
            }
            Revised::NonePassed(faults) => Taken::NonePassed(faults),
            Revised::Settled => Taken::Settled,
        })
    }

    /// Writes candidates and proposes the best; waits for the model, and lets every turn of the chat go first.
    ///
    /// Errors: interrupted once `cancel` is set; the model or the disk failed.
    pub fn make(&self, case: &Case, cancel: &CancelFlag, tell: &mut dyn FnMut(Stage)) -> Result<Revised> {
        let loaded = self.host.wait(cancel)?;
        if !self.waits(case)? {
            return Ok(Revised::Settled);
        }
        let (adapter, _) = AdapterWatch::default().refresh(&self.paths, &loaded.model);
        let work = Work { case, loaded: &loaded, adapter, config: &self.config, cancel };
        let (mut passed, mut faults): (Vec<String>, Vec<Fault>) = (Vec::new(), Vec::new());
        for n in 0..CANDIDATES {
            tell(Stage::Writing { n: n + 1, of: CANDIDATES });
            let (text, finish) = work.write(n)?;
            match revision::check(&text, finish, case.question(), &case.interaction.response, case.note()) {
                Ok(()) if passed.iter().any(|known| *known == text.trim()) => {}
                Ok(()) => passed.push(text.trim().to_string()),
                Err(fault) => faults.push(fault),
            }
        }
        if passed.is_empty() {
            return Ok(Revised::NonePassed(faults));
        }
        tell(Stage::Weighing);
        let (mut about, mut gains) = (Vec::new(), Vec::new());
        for text in passed {
            match work.gain(&text)? {
                Some(gain) => {
                    about.push(text);
                    gains.push(gain);
                }
                None => faults.push(Fault::OffTopic),
            }
        }
        if about.is_empty() {
            return Ok(Revised::NonePassed(faults));
        }
        let best = revision::best(&gains)
            .ok_or_else(|| Error::failure("the model gives no finite log-probabilities: its weights are damaged"))?;
        let base = loaded.model.base.clone();
        let proposal = Proposal { text: about.swap_remove(best), base, gain: gains[best], rejected: false };
        let kept = self.store.keep_proposal(case.rating.id, &proposal)?;
        Ok(if kept { Revised::Proposed(proposal) } else { Revised::Settled })
    }

    /// Records a proposal as the better answer; `edited`: as the user changed it. On disk when this returns.
    ///
    /// Errors when the rating has been taken back, or has another better answer by now.
    pub fn accept(&self, case: &Case, proposal: &Proposal, edited: Option<&str>) -> Result<Acknowledgement> {
        if !self.waits(case)? {
            return Err(Error::failure(
                "the rating that this answer was made for is settled already; nothing was recorded",
            ));
        }
        let rules = self.config.feedback.rules();
        let written_by = if edited.is_some() { None } else { Some(proposal.base.as_str()) };
        let text = edited.unwrap_or(&proposal.text);
        let new = NewFeedback {
            weight: case.rating.weight,
            session: self.session.clone(),
            ..NewFeedback::correction(text, &rules).from_source(Source::Revision, written_by)
        };
        record_feedback(&self.store, &rules, Some(&proposal.base), case.interaction.clone(), new)
    }

    /// Notes that the user does not want a proposal: it is not shown again by itself.
    pub fn reject(&self, case: &Case, proposal: &Proposal) -> Result<()> {
        self.store.keep_proposal(case.rating.id, &Proposal { rejected: true, ..proposal.clone() })?;
        Ok(())
    }

    /// The rating is in force, and no correction beside it.
    fn waits(&self, case: &Case) -> Result<bool> {
        let in_force = self.store.feedback_on(case.interaction.id)?;
        let rated = in_force.iter().any(|f| f.id == case.rating.id);
        Ok(rated && !in_force.iter().any(|f| f.corrected.is_some()))
    }
}

/// One revision in the making.
struct Work<'a> {
    case: &'a Case,
    loaded: &'a Loaded,
    adapter: Option<Arc<EngineAdapter>>,
    config: &'a Config,
    cancel: &'a CancelFlag,
}

impl Work<'_> {
    /// Candidate `n`: from the conversation that goes on with the note, and from the note as a rule, in turn.
    fn write(&self, n: usize) -> Result<(String, Finish)> {
        let Case { interaction, .. } = self.case;
        let messages = match n % 2 {
            0 => revision::rewriting(&interaction.messages, &interaction.response, self.case.note()),
            _ => revision::ruled(&interaction.messages, self.case.note()),
        };
        let model = &self.loaded.model;
        let prompt = prompt::encode(model, &messages, interaction.thinking)?;
        let answer = ChatFormat::of(model)?.completion(&interaction.response)?.len();
        let request = Request {
            ids: prompt.ids,
            max_tokens: self.config.generation.max_tokens.min(LONGEST * answer + SPARE_TOKENS),
            stop: model.generation.eos.clone(),
            sampling: self.sampling(n, interaction.thinking == Some(true) || prompt.inside_thought),
            adapter: self.adapter.clone(),
            draft: self.config.generation.draft,
        };
        loop {
            let mut answer = Answer::new(&model.tokenizer, prompt.inside_thought);
            let mut ended = Err(Error::failure("the thread that runs the model has stopped").hint("restart finch"));
            for event in self.loaded.engine.generate_aside(request.clone(), self.cancel.clone()) {
                match event {
                    Event::Prefill { .. } => {}
                    Event::Token(token) => answer.push(token, &mut |_| ()),
                    Event::Done(finished) => ended = Ok(finished.reason),
                    Event::Failed(error) => ended = Err(error),
                }
            }
            answer.finish(&mut |_| ());
            match ended? {
                Reason::Cancelled => return Err(Error::interrupted()),
                Reason::Yielded => {} // queued again, it comes after the turn that waited
                reason => return Ok((answer.text, finish(reason))),
            }
        }
    }

    /// As the chat samples, each candidate with a seed of its own; a greedy model would write the same one twice.
    fn sampling(&self, n: usize, thinking: bool) -> Sampling {
        let model = &self.loaded.model;
        let seed = u64::from(rand::random::<u32>());
        let chosen = sampling::choose(&self.config.generation, &model.generation, model.builtin, thinking, seed);
        if chosen.temperature > 0.0 || n < 2 { chosen } else { Sampling { temperature: LIVELY, ..chosen } }
    }

    /// mean_t[log p(y_t | x, note) − log p(y_t | x)], in nat, by the model as it answers now; `None`: the text is about
    /// something else than x.
    fn gain(&self, text: &str) -> Result<Option<f64>> {
        let messages = self.case.interaction.prompt(); // as training will see it
        let own = self.logprobs(&messages, text)?;
        let system = messages.first().filter(|first| first.role == Role::System);
        let asked = REPLAYED.iter().map(|question| canaries::conversation(question)).collect();
        let mut others = Vec::new();
        for other in canaries::unlike(asked, [messages.as_slice()].into_iter()).into_iter().take(OTHER_QUESTIONS) {
            others.push(self.logprobs(&system.cloned().into_iter().chain(other).collect::<Vec<_>>(), text)?);
        }
        if !revision::is_about(&own, &others) {
            return Ok(None);
        }
        let with_note = self.logprobs(&revision::ruled(&messages, self.case.note()), text)?;
        Ok(Some(revision::gain(&with_note, &own)))
    }

    /// Log-probability of each token of the answer `text`, its end included; waits while the chat answers.
    fn logprobs(&self, messages: &[Message], text: &str) -> Result<Vec<f32>> {
        Courtesy::beside(self.loaded.engine.chat_gate()).point()?;
        if self.cancel.is_cancelled() {
            return Err(Error::interrupted());
        }
        let model = &self.loaded.model;
        let tokens = ChatFormat::of(model)?.tokens(messages, text, self.case.interaction.thinking)?;
        let mut decoder = model.network.decoder(self.adapter.as_deref().map(|a| &a.weights))?;
        let all = decoder.score(&tokens.ids)?;
        // Nothing predicts the first token, so the log-probabilities begin with the second.
        Ok(all.into_iter().zip(&tokens.targets[1..]).filter(|(_, target)| **target).map(|(p, _)| p).collect())
    }
}
