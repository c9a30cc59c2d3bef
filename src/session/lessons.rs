//! Lessons in the prompts of a conversation: which stand there, and the prompt with them.

use serde_json::{Value, json};

use super::again::Retry;
use super::prompt::{self, Prompt};
use super::{AskEvent, Loaded, ModelState, Session};
use crate::engine::CancelFlag;
use crate::error::Result;
use crate::feedback::Feedback;
use crate::feedback::lesson::choose::{Candidate, choose, is_certain};
use crate::feedback::lesson::prompt as form;
use crate::feedback::lesson::relevance::{Relevance, relevance};
use crate::feedback::lesson::{self, Lesson};
use crate::model::load::Model;
use crate::model::message::{Message, Role};

/// Lessons take one part in so many of the model's context at most.
const CONTEXT_SHARE: usize = 4;
/// And leave the answer one part in so many, where it may be that long.
const ANSWER_SHARE: usize = 4;
/// Tokens that a template may put around a system message.
const SYSTEM_TURN: usize = 16;
/// Longer notes, in bytes, are not even measured: they would fill any prompt.
const MAX_RULE: usize = 1 << 14;

/// The lessons of the conversation so far.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// The ids of those in the last prompt, in their order there.
    chosen: Vec<i64>,
    /// Tokens that the last prompt had for them; `None`: there was none yet.
    budget: Option<usize>,
    told_left_out: bool,
}

/// A question with all that goes before it.
pub(super) struct Assembled {
    pub messages: Vec<Message>,
    pub prompt: Prompt,
    /// Which lessons stand in the messages.
    pub metadata: Value,
}

/// Where a lesson applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// It was in the last prompt of this conversation.
    Prompt,
    /// It is in the next one, whatever is asked.
    Next,
    /// The live adapter of this name obeys it without being told.
    Carried(String),
    /// Others fill the prompt; a question that it is about brings it in.
    Waiting,
    /// With the heading it takes so many tokens, more than lessons may.
    TooLong(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub struct LessonRow {
    pub lesson: Lesson,
    pub place: Place,
    /// What it shares with the last question, the weightiest word first.
    pub shared: Vec<String>,
}

/// All lessons, the earliest first.
#[derive(Debug, Clone, PartialEq)]
pub struct LessonList {
    pub rows: Vec<LessonRow>,
    /// Tokens that lessons may take in a prompt; 0: they are switched off.
    pub budget: usize,
}

/// The lessons of one moment, measured for a model and a question.
struct Measured {
    lessons: Vec<Lesson>,
    relevance: Vec<Relevance>,
    /// Those that no adapter carries.
    candidates: Vec<Candidate>,
    /// The live adapter, where it carries others.
    adapter: Option<String>,
    /// Tokens that one or more lessons need beside their lines.
    heading: usize,
}

impl Measured {
    fn choose(&self, before: &[i64], budget: usize) -> Vec<i64> {
        choose(before, &self.candidates, budget.saturating_sub(self.heading))
    }

    fn is_certain(&self, id: i64, budget: usize) -> bool {
        is_certain(id, &self.candidates, budget.saturating_sub(self.heading))
    }
}

impl Session {
    /// The conversation with `question` (and the hint of `retry`) at its end and the lessons that fit before it. Lessons give way: they never make a
    /// prompt too long, and leave the answer its room.
    pub(super) fn assemble(
        &mut self,
        loaded: &Loaded,
        question: &str,
        retry: Option<&Retry>,
        thinking: Option<bool>,
        on_event: &mut dyn FnMut(AskEvent),
    ) -> Result<Assembled> {
        let model = &loaded.model;
        let encode = |messages: &[Message]| match retry {
            Some(retry) => prompt::encode(model, &retry.hinted(messages), thinking),
            None => prompt::encode(model, messages, thinking),
        };
        let context = loaded.engine.context();
        let bare = self.messages(question, &[]);
        let plain = encode(&bare)?;
        let measured = self.measure(model, question)?;
        let wanted = self.lesson_budget(context);
        let answer = self.config.generation.max_tokens.min(context / ANSWER_SHARE);
        let room = context.saturating_sub(plain.ids.len() + answer + SYSTEM_TURN);

        let chosen = measured.choose(&self.rules.chosen, wanted.min(room));
        let left_out = measured.choose(&self.rules.chosen, wanted).len().saturating_sub(chosen.len());
        if left_out > 0 && !self.rules.told_left_out {
            on_event(AskEvent::LessonsLeftOut(left_out));
        }
        self.rules = Rules { chosen, budget: Some(wanted.min(room)), told_left_out: left_out > 0 };

        let standing: Vec<&Lesson> =
            self.rules.chosen.iter().filter_map(|id| measured.lessons.iter().find(|l| l.id == *id)).collect();
        if standing.is_empty() {
            return Ok(Assembled { messages: bare, prompt: plain, metadata: json!({}) });
        }
        let mut metadata = json!({});
        form::record(&mut metadata, self.system(), &standing);
        let rules: Vec<&str> = standing.iter().map(|lesson| lesson.text.as_str()).collect();
        let messages = self.messages(question, &rules);
        let prompt = encode(&messages)?;
        Ok(Assembled { messages, prompt, metadata })
    }

    fn messages(&self, question: &str, rules: &[&str]) -> Vec<Message> {
        let system = form::system_message(self.system(), rules).map(Message::system);
        system.into_iter().chain(self.history.iter().cloned()).chain([Message::user(question)]).collect()
    }

    /// All lessons and where they apply; waits for the model, which measures them.
    pub fn lessons(&mut self, cancel: &CancelFlag) -> Result<LessonList> {
        let loaded = self.host.wait(cancel)?;
        let last = self.history.iter().rev().find(|m| m.role == Role::User).map(|m| m.content.clone());
        self.adapters.look(&self.paths, &loaded.model);
        let measured = self.measure(&loaded.model, last.as_deref().unwrap_or_default())?;
        let full = self.lesson_budget(loaded.engine.context());
        let budget = self.rules.budget.map_or(full, |last| last.min(full));
        let place = |lesson: &Lesson| match measured.candidates.iter().find(|c| c.id == lesson.id) {
            None => Place::Carried(measured.adapter.clone().unwrap_or_default()),
            Some(_) if self.rules.chosen.contains(&lesson.id) => Place::Prompt,
            Some(_) if measured.is_certain(lesson.id, budget) => Place::Next,
            Some(c) if c.tokens + measured.heading > full => Place::TooLong(c.tokens + measured.heading),
            Some(_) => Place::Waiting,
        };
        let places: Vec<Place> = measured.lessons.iter().map(place).collect();
        let described = measured.lessons.into_iter().zip(places).zip(measured.relevance);
        let rows = described.map(|((lesson, place), near)| LessonRow { lesson, place, shared: near.words });
        Ok(LessonList { rows: rows.collect(), budget: full })
    }

    /// Takes a lesson away by its number; the rating that brought it stays.
    pub fn drop_lesson(&mut self, id: i64) -> Result<Lesson> {
        self.store.drop_lesson(id)
    }

    /// Whether feedback that is in force brought a lesson that the next prompt holds, whatever is asked.
    pub(super) fn applies_next(&mut self, given: &Feedback) -> bool {
        let Some(digest) = lesson::note(given).map(lesson::digest) else { return false };
        let ModelState::Ready(loaded) = self.host.state() else { return false };
        self.adapters.look(&self.paths, &loaded.model);
        // The rating is on disk already: that it cannot be measured is no fault of it.
        let Ok(measured) = self.measure(&loaded.model, "") else { return false };
        let full = self.lesson_budget(loaded.engine.context());
        let budget = self.rules.budget.map_or(full, |last| last.min(full));
        let id = measured.lessons.iter().find(|lesson| lesson.digest == digest).map(|lesson| lesson.id);
        id.is_some_and(|id| measured.is_certain(id, budget))
    }

    /// The lessons of this moment, for the adapter that was last looked at.
    fn measure(&self, model: &Model, question: &str) -> Result<Measured> {
        let lessons = self.store.lessons()?;
        let relevance = relevance(question, &lessons);
        let count = |text: &str| -> Result<usize> { Ok(model.tokenizer.encode_text(text)?.len()) };
        let mut candidates = Vec::new();
        for (lesson, near) in lessons.iter().zip(&relevance) {
            let carried = |(name, carries): (&str, &[String])| lesson.is_carried(name, carries);
            if self.adapters.carries().is_some_and(carried) {
                continue;
            }
            let tokens = match lesson.text.len() {
                0..=MAX_RULE => count(&form::line(&lesson.text))?,
                bytes => bytes,
            };
            let fresh = lesson.sessions.contains(&self.id);
            candidates.push(Candidate { id: lesson.id, tokens, score: near.score, fresh, weight: lesson.weight });
        }
        let adapter = self.adapters.carries().map(|(name, _)| name.to_owned());
        // The last one: the blank line behind the user's own system prompt.
        let heading = count(form::HEADING)? + 1;
        Ok(Measured { lessons, relevance, candidates, adapter, heading })
    }

    /// Tokens that lessons may take in a prompt.
    fn lesson_budget(&self, context: usize) -> usize {
        self.config.feedback.lesson_tokens.min(context / CONTEXT_SHARE)
    }
}
