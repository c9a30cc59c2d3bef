//! The chat's screen: lines in, effects and text out.
//!
//! What a line means ([`command`]), what it leads to ([`decide`]) and what is said about it ([`render`] and its sisters) are
//! decided purely; the loop here carries the effects out. The terminal is touched by [`input`], [`printer`], [`answer`] and
//! [`terminal`] alone. A person sees one screen, so everything goes to standard output here.

pub mod answer;
pub mod background;
pub mod command;
pub mod complete;
pub mod decide;
pub mod edit;
pub mod help;
pub mod input;
pub mod interrupts;
pub mod printer;
pub mod render;
pub mod render_adapter;
pub mod render_lessons;
pub mod render_revision;
pub mod render_stats;
pub mod render_training;
pub mod revisions;
pub mod table;
pub mod terminal;
pub mod views;
pub mod wrap;

use std::io::{self, Write};
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::adapter::registry::Registry;
use crate::adapter::{active, switch};
use crate::config::Revise;
use crate::engine::CancelFlag;
use crate::error::{Error, Result};
use crate::feedback::kind::Kind;
use crate::feedback::{Finish, Interaction};
use crate::learn::round;
use crate::session::{Acknowledgement, AdapterNotice, AskEvent, Loaded, ModelState, Session};
use answer::{AnswerScreen, Style};
use background::{Announced, Background};
use decide::{Asking, Effect, FollowUp, Situation, decide, follow_up, interrupted, leave};
use edit::Edited;
use input::{AdapterNames, Input, Line};
use interrupts::Interrupts;
use revisions::{Manner, Offer, Revisions};
use terminal::QuietKeys;

const PROMPT: &str = "> ";

/// One chat on one terminal.
pub struct Repl {
    session: Session,
    input: Input,
    interrupts: Interrupts,
    background: Background,
    revisions: Revisions,
    style: Style,
    announced: Announced,
    /// The rating whose reason the next line may tell.
    why: Option<Kind>,
    /// The interaction about which that was asked last.
    asked_why: Option<i64>,
    quiet: Option<QuietKeys>,
}

impl Repl {
    /// `input`: from [`open_input`]. `runtime` carries what goes on beside the chat.
    /// Errors when the system refuses a thread.
    pub fn new(session: Session, input: Input, runtime: &Handle) -> Result<Repl> {
        let live = input.is_edited();
        let colours = live && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let announced = Announced::default();
        let revisions = Revisions::start(session.reviser(), input.printer())?;
        if session.config().feedback.revise == Revise::Always {
            revisions.catch_up();
        }
        let background = Background::start(&session, input.printer(), announced.clone(), revisions.clone(), runtime);
        revisions.when_accepted(background.nudge());
        let interrupts = Interrupts::listen(runtime);
        let style = Style { live, colours };
        let (why, asked_why, quiet) = (None, None, None);
        Ok(Repl { session, input, interrupts, background, revisions, style, announced, why, asked_why, quiet })
    }

    /// Runs until the user leaves. An interrupted error: without waiting for a training, which still runs.
    pub fn run(mut self) -> Result<()> {
        // Without an editor the terminal itself takes the line: it must echo.
        self.quiet = self.input.is_edited().then(QuietKeys::start).flatten();
        self.say(&self.welcome()?)?;
        loop {
            let line = self.input.read(if self.why.is_some() { render_revision::WHY } else { PROMPT })?;
            let situation = self.situation();
            self.why = None;
            let effects = match line {
                Line::Text(line) => decide(&situation, &line),
                Line::Interrupted => interrupted(&situation),
                Line::End => leave(&situation),
            };
            for effect in effects {
                if effect == Effect::Leave {
                    return self.leave();
                }
                if let Err(error) = self.carry_out(effect) {
                    if error.is_interrupted() {
                        self.say("Stopped.\n")?;
                    } else {
                        self.say(&render::error(error.message(), error.hint_text()))?;
                    }
                }
            }
        }
    }

    fn leave(self) -> Result<()> {
        let Repl { background, interrupts, input, revisions, .. } = self;
        revisions.stop();
        let hurry = CancelFlag::new();
        let stopped = interrupts.during(&hurry, || background.stop(&hurry));
        input.printer().drain();
        if stopped {
            return Ok(());
        }
        print(render_training::LEFT_AT_ONCE)?;
        Err(Error::interrupted())
    }

    fn welcome(&self) -> Result<String> {
        let first_time = self.session.store().last_interaction(None)?.is_none();
        Ok(if first_time { help::FIRST_RUN.to_string() } else { help::banner() })
    }

    fn situation(&self) -> Situation {
        let active = self.loaded().and_then(|l| active::read(self.session.paths(), &l.model.base).ok());
        let offered = self.revisions.offer().map(|_| Asking::Offer);
        Situation {
            training: self.background.status(),
            active_adapter: active.and_then(|a| a.live),
            asking: self.why.map(Asking::Why).or(offered),
            revising: self.revisions.is_busy(),
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Result<()> {
        match effect {
            Effect::Show(text) => self.say(&text),
            Effect::Ask(prompt) => {
                let asked = self.ask(&prompt);
                self.background.consider();
                asked
            }
            Effect::Rate { kind, note } => {
                let given = self.session.rate(kind, note.as_deref())?;
                self.acknowledge(&render::recorded(&views::recorded(&given)))?;
                self.follow_up(&given);
                Ok(())
            }
            Effect::Explain { kind, note } => {
                let given = self.session.rate(kind, Some(&note))?;
                self.acknowledge(&render_revision::explained(kind, &note))?;
                self.follow_up(&given);
                Ok(())
            }
            Effect::Correct(text) => {
                let given = self.session.correct(&text)?;
                self.acknowledge(&render::recorded(&views::recorded(&given)))
            }
            Effect::Fix => self.fix(),
            Effect::Retry(hint) => {
                let again = self.answer(|session, cancel, tell| session.retry(hint.as_deref(), cancel, tell))?;
                if again.same {
                    let greedy = again.interaction.sampling["temperature"].as_f64() == Some(0.0);
                    self.say(&render_revision::same_again(greedy))?;
                }
                self.ended(&again.interaction)
            }
            Effect::AcceptOffer => match self.revisions.offer() {
                Some(offer) => self.accept(&offer, None),
                None => Ok(()), // decided from elsewhere since the line was read
            },
            Effect::EditOffer => match self.revisions.offer() {
                Some(offer) => self.edit_offer(&offer),
                None => Ok(()),
            },
            Effect::RejectOffer => match self.revisions.offer() {
                Some(offer) => {
                    self.session.reviser().reject(&offer.case, &offer.proposal)?;
                    self.say(&render_revision::rejected(offer.earlier.then_some(&offer.case.interaction)))?;
                    self.revisions.decided();
                    Ok(())
                }
                None => Ok(()),
            },
            Effect::LeaveOffer => {
                self.revisions.leave_offer();
                Ok(())
            }
            Effect::CancelRevisions => {
                self.revisions.cancel();
                self.say(render_revision::STOPPED)
            }
            Effect::ReviewBuffer => self.review_buffer(),
            Effect::Undo => {
                let undone = self.session.undo()?;
                self.say(&render::undone(&views::undone(&undone)))
            }
            Effect::ShowLessons => {
                let (session, cancel) = (&mut self.session, CancelFlag::new());
                let list = self.interrupts.during(&cancel, || session.lessons(&cancel))?;
                self.say(&render_lessons::lessons(&views::lessons(list), "/lessons drop"))
            }
            Effect::DropLesson(id) => {
                let dropped = self.session.drop_lesson(id)?;
                self.say(&render_lessons::dropped(id, &dropped.text))
            }
            Effect::ListAdapters => {
                self.say(&render_training::adapters(&views::adapters(self.session.paths())?, terminal::columns()))
            }
            Effect::ShowAdapter(name) => {
                let entry = Registry::new(self.session.paths().clone()).find(&name)?;
                let live_on = active::bases_of(self.session.paths(), &name)?;
                self.say(&render_adapter::adapter(&entry, &live_on))
            }
            Effect::ImportAdapter(folder) => {
                let (loaded, folder) = (self.wait_for_model()?, switch::expanded(&folder));
                let (config, base) = (loaded.model.network.config(), &loaded.model.base);
                let imported = switch::import(self.session.paths(), &folder, None, config, base, false)?;
                self.say(&render_adapter::imported(&imported, Some("/adapters load")))
            }
            Effect::LoadAdapter { name, force } => {
                let loaded = self.wait_for_model()?;
                let config = loaded.model.network.config();
                let name = switch::load(self.session.paths(), &name, config, &loaded.model.base, force)?;
                self.switched(None, Some(name))
            }
            Effect::UnloadAdapter => {
                let base = self.base()?;
                let before = active::read(self.session.paths(), &base)?.live;
                active::deactivate(self.session.paths(), &base)?;
                self.switched(before, None)
            }
            Effect::RollbackAdapter(name) => {
                let (before, now) = switch::rollback(self.session.paths(), &self.base()?, name.as_deref())?;
                self.switched(before.live, now.live)
            }
            Effect::DeleteAdapter { name, ask } => self.delete_adapter(&name, ask.as_deref()),
            Effect::StartTraining => self.background.train_now(),
            Effect::CancelTraining => {
                self.background.cancel();
                Ok(())
            }
            Effect::ShowLastTraining => self.show_last_training(),
            Effect::ShowBuffer => {
                let view = views::buffer(self.session.store(), &self.base()?, &self.session.config().feedback)?;
                self.say(&render::buffer(&view))
            }
            Effect::ShowStats => self.say(&render_stats::stats(&self.session.store().stats()?)),
            Effect::ShowModel => self.say(&render::model(&self.model_view())),
            Effect::ShowSystem => self.say(&render::system(self.session.system())),
            Effect::SetSystem(text) => {
                self.session.set_system(text);
                self.say(&render::system(self.session.system()))
            }
            Effect::Clear => {
                self.session.clear();
                self.say("A new conversation begins.\n")
            }
            Effect::Leave => Ok(()), // the loop's own
        }
    }

    /// Says what is on disk by now, then lets the training see it.
    fn acknowledge(&mut self, text: &str) -> Result<()> {
        self.say(text)?;
        self.background.consider();
        Ok(())
    }

    fn ask(&mut self, prompt: &str) -> Result<()> {
        let interaction = self.answer(|session, cancel, tell| session.ask(prompt, cancel, tell))?;
        self.ended(&interaction)
    }

    /// Shows an answer as it comes; Ctrl-C stops it.
    fn answer<T>(
        &mut self,
        ask: impl FnOnce(&mut Session, &CancelFlag, &mut dyn FnMut(AskEvent)) -> Result<T>,
    ) -> Result<T> {
        let cancel = CancelFlag::new();
        let mut screen = AnswerScreen::new(io::stdout(), io::stdout(), self.style, terminal::columns);
        let announced = self.announced.take();
        let session = &mut self.session;
        let mut trouble = None;
        let answered = self.interrupts.during(&cancel, || {
            ask(session, &cancel, &mut |event| {
                // Whoever cannot be shown an answer need not wait for its end.
                if let Err(error) = show(&mut screen, event, announced.as_deref()) {
                    trouble = Some(error);
                    cancel.cancel();
                }
            })
        });
        if cancel.is_cancelled() {
            terminal::drop_typed();
        }
        screen.finish()?;
        match trouble {
            Some(error) => Err(Error::from(error).context("the terminal")),
            None => answered,
        }
    }

    /// What is left to say about an answer.
    fn ended(&self, interaction: &Interaction) -> Result<()> {
        match cut_off(interaction) {
            Some(notice) => self.say(&notice),
            None => Ok(()),
        }
    }

    fn follow_up(&mut self, given: &Acknowledgement) {
        match follow_up(given, self.session.config().feedback.revise, self.asked_why) {
            FollowUp::AskWhy => {
                self.why = Some(given.feedback.kind);
                self.asked_why = Some(given.interaction.id);
            }
            FollowUp::Offer(case) => self.revisions.make(case, Manner::Offer),
            FollowUp::Accept(case) => self.revisions.make(case, Manner::Accept),
            FollowUp::Nothing => {}
        }
    }

    fn fix(&mut self) -> Result<()> {
        let (_, text) = self.session.fixable()?;
        let Some((text, draft)) = self.edited(&text)? else { return Ok(()) };
        match self.session.fix(&text) {
            Ok(given) => self.acknowledge(&render::recorded(&views::recorded(&given))),
            Err(error) => Err(error.hint(edit::kept_in(&draft.keep()))),
        }
    }

    /// What the user made of `text` in the editor; `None`: nothing, which is said.
    fn edited(&self, text: &str) -> Result<Option<(String, edit::Draft)>> {
        if !self.style.live {
            return Err(Error::failure("an editor needs a terminal").hint("/correct TEXT"));
        }
        match edit::edit(self.session.paths(), text, self.quiet.as_ref())? {
            Edited::Changed(text, draft) => return Ok(Some((text, draft))),
            Edited::Unchanged => self.say(render_revision::UNCHANGED)?,
            Edited::Emptied => self.say(render_revision::EMPTIED)?,
        }
        Ok(None)
    }

    /// Records an offer, as it is or as the user edited it.
    fn accept(&mut self, offer: &Offer, edited: Option<&str>) -> Result<()> {
        let accepted = self.session.reviser().accept(&offer.case, &offer.proposal, edited);
        if accepted.is_ok() || edited.is_none() {
            self.revisions.decided();
        }
        self.session.has_given();
        self.acknowledge(&render::recorded(&views::recorded(&accepted?)))
    }

    /// Where the text stays as it is, the offer stays open.
    fn edit_offer(&mut self, offer: &Offer) -> Result<()> {
        let Some((text, draft)) = self.edited(&offer.proposal.text)? else { return Ok(()) };
        self.accept(offer, Some(&text)).map_err(|error| error.hint(edit::kept_in(&draft.keep())))
    }

    fn review_buffer(&mut self) -> Result<()> {
        let cancel = CancelFlag::new();
        let cases = self.interrupts.during(&cancel, || self.session.reviser().pending(&cancel))?;
        if cases.is_empty() {
            return self.say(render_revision::NOTHING_TO_REVIEW);
        }
        self.say(&render_revision::review(cases.len()))?;
        self.revisions.review(cases);
        Ok(())
    }

    fn switched(&mut self, from: Option<String>, to: Option<String>) -> Result<()> {
        self.say(&render_training::switched(from.as_deref(), to.as_deref()))?;
        self.announced.set(to.or(from));
        Ok(())
    }

    fn delete_adapter(&mut self, name: &str, ask: Option<&str>) -> Result<()> {
        let registry = Registry::new(self.session.paths().clone());
        registry.find(name)?;
        let live = !active::bases_of(self.session.paths(), name)?.is_empty();
        // Another finch may have made it live since the line was judged.
        let question = ask.map(String::from).or_else(|| live.then(|| render_training::delete_question(name)));
        if let Some(question) = question
            && !self.input.confirm(&question)?
        {
            return self.say("It is kept.\n");
        }
        registry.delete(name)?;
        self.announced.set(Some(name.to_string()));
        self.say(&render_training::deleted(name, live))
    }

    fn show_last_training(&mut self) -> Result<()> {
        let settings = self.session.config().feedback.clone();
        let store = Arc::clone(self.session.store());
        let new = store.training_set(&self.base()?, settings.buffer_capacity)?.new;
        let other = round::trainer(self.session.paths())?;
        let last = store.runs(1)?.first().map(|run| views::last_run(run, other.is_some()));
        if let Some(holder) = &other {
            self.say(&render_training::other_trains(holder))?;
        }
        self.say(&render_training::idle(new, settings.threshold, settings.auto_train, last.as_ref()))
    }

    fn model_view(&self) -> render::ModelView {
        let name = self.session.host().name().to_string();
        match self.session.host().state() {
            ModelState::Loading => render::ModelView::Loading { name },
            ModelState::Failed(fault) => {
                render::ModelView::Failed { name, reason: fault.to_error().message().to_string() }
            }
            ModelState::Ready(loaded) => render::ModelView::Ready {
                name: loaded.model.name.clone(),
                base: loaded.model.base.clone(),
                adapter: self.situation().active_adapter,
                context: loaded.engine.context(),
                builtin: loaded.model.builtin,
            },
        }
    }

    fn loaded(&self) -> Option<Arc<Loaded>> {
        match self.session.host().state() {
            ModelState::Ready(loaded) => Some(loaded),
            ModelState::Loading | ModelState::Failed(_) => None,
        }
    }

    fn wait_for_model(&self) -> Result<Arc<Loaded>> {
        let cancel = CancelFlag::new();
        self.interrupts.during(&cancel, || self.session.host().wait(&cancel))
    }

    /// The digest that adapters and examples go by: of the loaded model.
    fn base(&self) -> Result<String> {
        Ok(self.wait_for_model()?.model.base.clone())
    }

    fn say(&self, text: &str) -> Result<()> {
        print(text)
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = io::stdout();
    let rows = terminal::in_rows(text);
    out.write_all(rows.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::from(e).context("the terminal"))
}

/// The input of a chat, with the history and the adapters of its data folder.
pub fn open_input(paths: &crate::paths::Paths) -> Result<Input> {
    let registry = Registry::new(paths.clone());
    let names: AdapterNames = Arc::new(move || registry.names());
    Input::open(&paths.history(), names)
}

/// Shows what happens between a question and its answer. `announced`: an adapter whose change is known already.
pub fn show<O: Write, A: Write>(
    screen: &mut AnswerScreen<O, A>,
    event: AskEvent,
    announced: Option<&str>,
) -> io::Result<()> {
    match event {
        AskEvent::Loading => screen.remark("loading the model…"),
        AskEvent::Model(notice) => screen.notice(&format!("warning: {notice}")),
        AskEvent::Adapter(notice) => match adapter_notice(&notice, announced) {
            Some(notice) => screen.notice(&notice),
            None => Ok(()),
        },
        AskEvent::LessonsLeftOut(n) => screen.notice(&render_lessons::left_out(n)),
        AskEvent::Prefill { done, total, reused } => screen.reading(done, total, reused),
        AskEvent::Thought(piece) => screen.thought(&piece),
        AskEvent::Text(piece) => screen.text(&piece),
    }
}

fn adapter_notice(notice: &AdapterNotice, announced: Option<&str>) -> Option<String> {
    match notice {
        AdapterNotice::Live { name } => (announced != Some(name)).then(|| format!("Adapter {name} answers.")),
        AdapterNotice::Off { previous } => {
            (announced != Some(previous)).then(|| format!("Adapter {previous} is off; the base answers."))
        }
        AdapterNotice::Unusable { name, reason, hint } => {
            let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
            let hint = hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
            Some(format!("warning: adapter{name} cannot be used, the base answers: {reason}{hint}"))
        }
    }
}

/// What is said about an answer that did not end by itself, and what to do about it.
pub fn cut_off(interaction: &Interaction) -> Option<String> {
    let figure = |of: &serde_json::Value, name: &str| of[name].as_u64().unwrap_or_default();
    let (made, most) = (figure(&interaction.timings, "generated_tokens"), figure(&interaction.sampling, "max_tokens"));
    match interaction.finish {
        Finish::Stop => None,
        Finish::Length if made < most => {
            let context = figure(&interaction.timings, "prompt_tokens") + made;
            Some(format!(
                "(The answer was cut off: the conversation fills all {context} tokens that the model can see. /clear in the \
                 chat begins a new one.)\n"
            ))
        }
        Finish::Length => Some(format!(
            "(The answer was cut off after {most} tokens; --max-tokens, or max_tokens under [generation] in config.toml, \
             allows longer ones.)\n"
        )),
        Finish::Interrupted => Some("(Stopped; the part above is kept.)\n".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback::example::tests::interaction;

    #[test]
    fn a_change_of_adapter_is_told_once() {
        let live = AdapterNotice::Live { name: "a".into() };
        assert_eq!(adapter_notice(&live, None).as_deref(), Some("Adapter a answers."));
        assert_eq!(adapter_notice(&live, Some("a")), None);
        assert!(adapter_notice(&live, Some("b")).is_some());
        let off = AdapterNotice::Off { previous: "a".into() };
        assert!(adapter_notice(&off, None).is_some_and(|n| n.contains("base answers")));
        assert_eq!(adapter_notice(&off, Some("a")), None);
        let unusable = AdapterNotice::Unusable { name: Some("a".into()), reason: "torn".into(), hint: None };
        assert!(adapter_notice(&unusable, Some("a")).is_some_and(|n| n.starts_with("warning: adapter a ")));
    }

    #[test]
    fn only_answers_that_did_not_end_are_remarked_on() {
        let said = |finish, generated: u64| {
            let timings = serde_json::json!({"prompt_tokens": 100, "generated_tokens": generated});
            let sampling = serde_json::json!({"max_tokens": 10});
            cut_off(&Interaction { finish, timings, sampling, ..interaction(1, "how?", "so") })
        };
        assert_eq!(said(Finish::Stop, 10), None);
        let limit = "after 10 tokens; --max-tokens, or max_tokens under [generation]";
        assert!(said(Finish::Length, 10).is_some_and(|n| n.contains(limit)));
        assert!(
            said(Finish::Length, 7).is_some_and(|n| n.contains("fills all 107 tokens that the model can see. /clear"))
        );
        assert!(said(Finish::Interrupted, 7).is_some_and(|n| n.contains("kept")));
    }
}
