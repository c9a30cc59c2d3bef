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
pub mod help;
pub mod input;
pub mod interrupts;
pub mod printer;
pub mod render;
pub mod render_lessons;
pub mod render_stats;
pub mod render_training;
pub mod table;
pub mod terminal;
pub mod views;
pub mod wrap;

use std::io::{self, Write};
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::adapter::registry::Registry;
use crate::adapter::{active, switch};
use crate::engine::CancelFlag;
use crate::error::{Error, Result};
use crate::feedback::Finish;
use crate::session::{AdapterNotice, AskEvent, Loaded, ModelState, Session};
use answer::{AnswerScreen, Style};
use background::{Announced, Background};
use decide::{Effect, Situation, decide, leave};
use input::{AdapterNames, Input, Line};
use interrupts::Interrupts;
use terminal::QuietKeys;

const PROMPT: &str = "> ";

/// One chat on one terminal.
pub struct Repl {
    session: Session,
    input: Input,
    interrupts: Interrupts,
    background: Background,
    style: Style,
    announced: Announced,
}

impl Repl {
    /// `input`: from [`open_input`]. `runtime` carries what goes on beside the chat.
    pub fn new(session: Session, input: Input, runtime: &Handle) -> Repl {
        let live = input.is_edited();
        let colours = live && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let announced = Announced::default();
        let background = Background::start(&session, input.printer(), announced.clone(), runtime);
        let interrupts = Interrupts::listen(runtime);
        Repl { session, input, interrupts, background, style: Style { live, colours }, announced }
    }

    /// Runs until the user leaves. An interrupted error: without waiting for a training, which still runs.
    pub fn run(mut self) -> Result<()> {
        // Without an editor the terminal itself takes the line: it must echo.
        let _quiet = self.input.is_edited().then(QuietKeys::start);
        self.say(&self.welcome()?)?;
        loop {
            let effects = match self.input.read(PROMPT)? {
                Line::Text(line) => decide(&self.situation(), &line),
                Line::Interrupted => vec![Effect::Show(help::HOW_TO_LEAVE.to_string())],
                Line::End => leave(&self.situation()),
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
        let Repl { background, interrupts, input, .. } = self;
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
        Situation { training: self.background.status(), active_adapter: active.and_then(|a| a.live) }
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
                self.acknowledge(&render::recorded(&views::recorded(&given)))
            }
            Effect::Correct(text) => {
                let given = self.session.correct(&text)?;
                self.acknowledge(&render::recorded(&views::recorded(&given)))
            }
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
            Effect::RollbackAdapter => {
                let (before, now) = switch::rollback(self.session.paths(), &self.base()?)?;
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
        let cancel = CancelFlag::new();
        let mut screen = AnswerScreen::new(io::stdout(), io::stdout(), self.style, terminal::columns);
        let announced = self.announced.take();
        let session = &mut self.session;
        let mut trouble = None;
        let answered = self.interrupts.during(&cancel, || {
            session.ask(prompt, &cancel, &mut |event| {
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
        if let Some(error) = trouble {
            return Err(Error::from(error).context("the terminal"));
        }
        let interaction = answered?;
        if let Some(notice) = cut_off(interaction.finish, self.session.config().generation.max_tokens) {
            self.say(&notice)?;
        }
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
        let last = store.runs(1)?.first().map(views::last_run);
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

/// What is said about an answer that did not end by itself.
pub fn cut_off(finish: Finish, max_tokens: usize) -> Option<String> {
    match finish {
        Finish::Stop => None,
        Finish::Length => Some(format!(
            "(The answer was cut off: it may have {max_tokens} tokens, and must fit the model's context.)\n"
        )),
        Finish::Interrupted => Some("(Stopped; the part above is kept.)\n".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(cut_off(Finish::Stop, 10), None);
        assert!(cut_off(Finish::Length, 10).is_some_and(|n| n.contains("10 tokens")));
        assert!(cut_off(Finish::Interrupted, 10).is_some_and(|n| n.contains("kept")));
    }
}
