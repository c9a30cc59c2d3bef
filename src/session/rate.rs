//! Rating the last answer: on disk first, acknowledged afterwards, with figures read back from the store.

use super::{Last, ModelState, Session, again};
use crate::error::{Error, Result};
use crate::feedback::{
    Buffer, Feedback, FeedbackConfig, Interaction, Judged, Kind, NewFeedback, Source, Verdict, judge_all,
};
use crate::store::{self, Recorded, Store};

/// What the user is told about feedback that is on disk now.
#[derive(Debug, Clone, PartialEq)]
pub struct Acknowledgement {
    pub feedback: Feedback,
    /// What was rated.
    pub interaction: Interaction,
    /// It is the last answer of an earlier session: show it, the user may have another one in mind.
    pub earlier_session: bool,
    /// What this feedback put out of force.
    pub replaced: Vec<Feedback>,
    /// It praises a second answer, which was recorded as better than the first: that correction.
    pub preferred: Option<Feedback>,
    /// What training can make of the answer now; `None` for signals that are only observed.
    pub verdict: Option<Verdict>,
    pub buffer: BufferCounts,
    /// Its note is a lesson, and in the prompt of the next answer whatever is asked.
    pub applies: bool,
}

/// Feedback that was taken back.
#[derive(Debug, Clone, PartialEq)]
pub struct Undone {
    pub feedback: Feedback,
    pub interaction: Interaction,
    /// It was given in an earlier session: show what it was about.
    pub earlier_session: bool,
    /// What is in force again instead.
    pub restored: Vec<Feedback>,
    pub buffer: BufferCounts,
}

/// The training buffer in figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BufferCounts {
    /// Examples in the buffer.
    pub examples: usize,
    /// Sum of their weights.
    pub weighted: f64,
    /// Bad answers without a better one; they hold no place in the buffer.
    pub waiting: usize,
}

/// Puts feedback on an interaction and reads back what came of it. The figures are for training on `base`; `None`: on the
/// base that gave the answer.
pub fn record_feedback(
    store: &Store,
    rules: &FeedbackConfig,
    base: Option<&str>,
    interaction: Interaction,
    new: NewFeedback,
) -> Result<Acknowledgement> {
    let (Recorded { feedback, replaced }, preferred) = match again::preferred(store, rules, &interaction, &new)? {
        Some(first) => {
            let (given, implied) = store.add_feedback_with(interaction.id, new, first)?;
            (given, Some(implied.feedback))
        }
        None => (store.add_feedback(interaction.id, new)?, None),
    };
    let base = base.or(interaction.base.as_deref()).unwrap_or_default();
    let judged = judge_all(&store.judged()?, base);
    let verdict = verdict_on(interaction.id, &judged);
    let buffer = BufferCounts::of(judged, rules);
    Ok(Acknowledgement {
        feedback,
        interaction,
        earlier_session: false,
        replaced,
        preferred,
        verdict,
        buffer,
        applies: false,
    })
}

/// What the rules made of one interaction; `None`: nothing is in force on it.
fn verdict_on(interaction: i64, judged: &Judged) -> Option<Verdict> {
    let example = judged.examples.iter().find(|e| e.interaction == interaction).cloned().map(Verdict::Trainable);
    let waiting = || judged.waiting.iter().find(|w| w.interaction == interaction).cloned().map(Verdict::Waiting);
    let unused = || judged.unused.iter().find(|u| u.interaction == interaction).cloned().map(Verdict::Nothing);
    example.or_else(waiting).or_else(unused)
}

impl BufferCounts {
    fn of(judged: Judged, rules: &FeedbackConfig) -> BufferCounts {
        let waiting = judged.waiting.len();
        let buffer = Buffer::fill(rules.buffer_capacity, judged.examples);
        BufferCounts { examples: buffer.len(), weighted: buffer.total_weight(), waiting }
    }
}

impl Session {
    /// Rates the last answer: of this session, else of the last one. `note` is kept exactly as given.
    pub fn rate(&mut self, kind: Kind, note: Option<&str>) -> Result<Acknowledgement> {
        let mut new = NewFeedback::new(kind, &self.rules());
        new.note = note.filter(|n| !n.trim().is_empty()).map(str::to_owned);
        self.give(new)
    }

    /// Records a better answer to the last question.
    pub fn correct(&mut self, text: &str) -> Result<Acknowledgement> {
        if text.trim().is_empty() {
            return Err(Error::failure("a correction needs the better answer").hint("/correct TEXT"));
        }
        self.give(NewFeedback::correction(text, &self.rules()))
    }

    /// The last answer for editing: as it was corrected, else as it was given.
    pub fn fixable(&self) -> Result<(Interaction, String)> {
        let (interaction, _) = self.last_answer("fix")?;
        let in_force = self.store().feedback_on(interaction.id)?;
        let corrected = in_force.into_iter().rev().find_map(|f| f.corrected);
        let text = corrected.unwrap_or_else(|| interaction.response.clone());
        Ok((interaction, text))
    }

    /// Records the last answer as the user edited it.
    pub fn fix(&mut self, text: &str) -> Result<Acknowledgement> {
        self.give(NewFeedback::correction(text, &self.rules()).from_source(Source::Fix, None))
    }

    /// Feedback was given in this session by other means than its own: undoing looks no further back.
    pub fn has_given(&mut self) {
        self.has_rated = true;
    }

    /// Takes back the last feedback: of this session, else, while this one has given none, of those before.
    pub fn undo(&mut self) -> Result<Undone> {
        let mut undone = self.store().undo_last(Some(self.id()))?;
        let earlier_session = undone.is_none() && !self.has_rated;
        if earlier_session {
            undone = self.store().undo_last(None)?;
        }
        let Some(store::Undone { feedback, interaction, restored }) = undone else {
            return Err(Error::failure("there is no feedback to take back"));
        };
        Ok(Undone { feedback, interaction, earlier_session, restored, buffer: self.buffer()? })
    }

    /// The training buffer as it stands, for the loaded model (else for the model of the last answer).
    pub fn buffer(&self) -> Result<BufferCounts> {
        let base = match self.base() {
            Some(base) => Some(base),
            None => self.store().last_interaction(None)?.and_then(|i| i.base),
        };
        let judged = judge_all(&self.store().judged()?, base.as_deref().unwrap_or_default());
        Ok(BufferCounts::of(judged, &self.rules()))
    }

    fn give(&mut self, new: NewFeedback) -> Result<Acknowledgement> {
        let (interaction, earlier_session) = self.last_answer("rate")?;
        let new = new.in_session(self.id());
        let mut given = record_feedback(self.store(), &self.rules(), self.base().as_deref(), interaction, new)?;
        given.earlier_session = earlier_session;
        given.applies = self.applies_next(&given.feedback);
        self.has_rated = true;
        Ok(given)
    }

    /// The answer that the user means, and whether it is an earlier session's; `what` is to be done with it, in a verb.
    pub(super) fn last_answer(&self, what: &str) -> Result<(Interaction, bool)> {
        let found = match self.last {
            Last::Recorded(id) => self.store().interaction(id)?.map(|i| (i, false)),
            Last::Nothing => self.store().last_interaction(None)?.map(|i| (i, true)),
            Last::Lost => {
                return Err(Error::failure(format!("the last answer could not be stored, so there is none to {what}"))
                    .hint("ask again; `finch config path` shows where the data lies"));
            }
        };
        found.ok_or_else(|| Error::failure(format!("there is no answer to {what} yet")).hint("ask something first"))
    }

    /// Digest of the loaded model; `None` while it is loading or failed.
    fn base(&self) -> Option<String> {
        match self.host().state() {
            ModelState::Ready(loaded) => Some(loaded.model.base.clone()),
            ModelState::Loading | ModelState::Failed(_) => None,
        }
    }

    fn rules(&self) -> FeedbackConfig {
        self.config.feedback.rules()
    }
}
