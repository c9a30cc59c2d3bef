//! What a line leads to: (situation, line) → effects. Pure; the loop in [`super`] carries the effects out.

use super::command::{AdaptersAction, BufferAction, Command, Input, LessonsAction, SystemAction, TrainAction, parse};
use super::{help, render, render_training};
use crate::config::Revise;
use crate::feedback::Verdict;
use crate::feedback::kind::Kind;
use crate::feedback::revision::Case;
use crate::learn::coordinator::Status;
use crate::session::Acknowledgement;

/// What the decision depends on beside the line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Situation {
    /// The training that runs now, if one does.
    pub training: Option<Status>,
    /// Name of the active adapter.
    pub active_adapter: Option<String>,
    pub asking: Option<Asking>,
    /// A better answer is being made.
    pub revising: bool,
}

/// What finch has asked; only a line that fits is taken as the answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Asking {
    /// Why the last answer got this rating, which came without a note.
    Why(Kind),
    /// Whether the better answer on the screen is one.
    Offer,
}

/// Something for the loop to do. Those that can fail say so themselves, in the end.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Text for the screen as it is.
    Show(String),
    Ask(String),
    Rate {
        kind: Kind,
        note: Option<String>,
    },
    /// The note to a rating that was recorded without one.
    Explain {
        kind: Kind,
        note: String,
    },
    Correct(String),
    /// The last answer in the user's editor.
    Fix,
    /// The last question once more.
    Retry(Option<String>),
    AcceptOffer,
    EditOffer,
    RejectOffer,
    /// The user goes on to something else.
    LeaveOffer,
    CancelRevisions,
    Undo,
    ShowLessons,
    DropLesson(i64),
    ListAdapters,
    ShowAdapter(String),
    /// A folder to take in, as the user wrote it.
    ImportAdapter(String),
    LoadAdapter {
        name: String,
        force: bool,
    },
    UnloadAdapter,
    /// `ask`: only after a yes to this question.
    DeleteAdapter {
        name: String,
        ask: Option<String>,
    },
    RollbackAdapter(Option<String>),
    StartTraining,
    CancelTraining,
    ShowLastTraining,
    ShowBuffer,
    ReviewBuffer,
    ShowStats,
    ShowModel,
    ShowSystem,
    SetSystem(Option<String>),
    Clear,
    /// Ends the loop; a training that runs is cancelled by it.
    Leave,
}

/// What to do about one line.
pub fn decide(situation: &Situation, line: &str) -> Vec<Effect> {
    let input = parse(line);
    match (situation.asking, &input) {
        (Some(Asking::Why(kind)), Input::Prompt(note)) => return vec![Effect::Explain { kind, note: note.clone() }],
        (Some(Asking::Offer), Input::Prompt(word)) if let Some(decision) = decision(word) => return vec![decision],
        _ => {}
    }
    let leaves = situation.asking == Some(Asking::Offer) && input != Input::Empty;
    let mut effects = understood(situation, input);
    if leaves {
        effects.insert(0, Effect::LeaveOffer);
    }
    effects
}

/// The words that decide about an offer.
fn decision(word: &str) -> Option<Effect> {
    Some(match word.to_lowercase().as_str() {
        "a" | "accept" | "y" | "yes" => Effect::AcceptOffer,
        "e" | "edit" => Effect::EditOffer,
        "r" | "reject" | "n" | "no" => Effect::RejectOffer,
        _ => return None,
    })
}

/// Ctrl-C on an empty line.
pub fn interrupted(situation: &Situation) -> Vec<Effect> {
    match situation {
        Situation { asking: Some(Asking::Why(_)), .. } => Vec::new(),
        Situation { revising: true, .. } => vec![Effect::CancelRevisions],
        _ => vec![Effect::Show(help::HOW_TO_LEAVE.to_string())],
    }
}

/// What a bad rating leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum FollowUp {
    /// A word of why is asked for.
    AskWhy,
    /// A better answer is made, to be offered.
    Offer(Case),
    /// A better answer is made and accepted.
    Accept(Case),
    Nothing,
}

/// `asked`: the interaction about which why was asked last; it is asked once.
pub fn follow_up(given: &Acknowledgement, revise: Revise, asked: Option<i64>) -> FollowUp {
    let waits = matches!(given.verdict, Some(Verdict::Waiting(_)));
    let case = Case::of(&given.interaction, &given.feedback).filter(|_| waits);
    match (case, revise) {
        (Some(case), Revise::Ask) => FollowUp::Offer(case),
        (Some(case), Revise::Always) => FollowUp::Accept(case),
        (Some(_), Revise::Never) => FollowUp::Nothing,
        (None, _) if waits && given.feedback.note.is_none() && asked != Some(given.interaction.id) => FollowUp::AskWhy,
        (None, _) => FollowUp::Nothing,
    }
}

fn understood(situation: &Situation, input: Input) -> Vec<Effect> {
    match input {
        Input::Empty => Vec::new(),
        Input::Prompt(prompt) => vec![Effect::Ask(prompt)],
        Input::Unknown { word, nearest } => vec![Effect::Show(render::unknown_command(&word, nearest))],
        Input::Invalid { usage, fault } => vec![Effect::Show(render::invalid_command(&usage, &fault))],
        Input::Command(command) => carry_out(situation, command),
    }
}

fn carry_out(situation: &Situation, command: Command) -> Vec<Effect> {
    vec![match command {
        Command::Rate { kind, note } => Effect::Rate { kind, note },
        Command::Correct(text) => Effect::Correct(text),
        Command::Fix => Effect::Fix,
        Command::Retry(hint) => Effect::Retry(hint),
        Command::Undo => Effect::Undo,
        Command::Lessons(LessonsAction::List) => Effect::ShowLessons,
        Command::Lessons(LessonsAction::Drop(id)) => Effect::DropLesson(id),
        Command::Adapters(action) => adapters(situation, action),
        Command::Train(action) => train(situation, action),
        Command::Buffer(BufferAction::Show) => Effect::ShowBuffer,
        Command::Buffer(BufferAction::Review) => Effect::ReviewBuffer,
        Command::Stats => Effect::ShowStats,
        Command::Model => Effect::ShowModel,
        Command::System(SystemAction::Show) => Effect::ShowSystem,
        Command::System(SystemAction::Set(text)) => Effect::SetSystem(Some(text)),
        Command::System(SystemAction::Off) => Effect::SetSystem(None),
        Command::Clear => Effect::Clear,
        Command::Help(None) => Effect::Show(help::overview()),
        Command::Help(Some(entry)) => Effect::Show(help::details(entry)),
        Command::Quit => return leave(situation),
    }]
}

fn adapters(situation: &Situation, action: AdaptersAction) -> Effect {
    match action {
        AdaptersAction::List => Effect::ListAdapters,
        AdaptersAction::Show(name) => Effect::ShowAdapter(name),
        AdaptersAction::Import(folder) => Effect::ImportAdapter(folder),
        AdaptersAction::Load { name, force } => Effect::LoadAdapter { name, force },
        AdaptersAction::Unload if situation.active_adapter.is_none() => {
            Effect::Show(render_training::switched(None, None))
        }
        AdaptersAction::Unload => Effect::UnloadAdapter,
        AdaptersAction::Delete(name) => {
            let active = situation.active_adapter.as_ref() == Some(&name);
            let ask = active.then(|| render_training::delete_question(&name));
            Effect::DeleteAdapter { name, ask }
        }
        AdaptersAction::Rollback(name) => Effect::RollbackAdapter(name),
    }
}

fn train(situation: &Situation, action: TrainAction) -> Effect {
    match (action, &situation.training) {
        (TrainAction::Now, None) => Effect::StartTraining,
        (TrainAction::Now, Some(_)) => Effect::Show(render_training::ALREADY_RUNNING.into()),
        (TrainAction::Status, Some(status)) => Effect::Show(render_training::running(status)),
        (TrainAction::Status, None) => Effect::ShowLastTraining,
        (TrainAction::Cancel, Some(_)) => Effect::CancelTraining,
        (TrainAction::Cancel, None) => Effect::Show(render_training::NOTHING_RUNS.into()),
    }
}

/// Leaving, by command or by Ctrl-D.
pub fn leave(situation: &Situation) -> Vec<Effect> {
    match situation.training {
        Some(_) => vec![Effect::Show(render_training::LEAVING.into()), Effect::Leave],
        None => vec![Effect::Leave],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::coordinator::{Phase, Trigger};

    fn idle() -> Situation {
        Situation::default()
    }

    fn training() -> Situation {
        let status = Status { trigger: Trigger::Asked, examples: None, phase: Phase::Preparing, seconds: 3.0 };
        Situation { training: Some(status), ..idle() }
    }

    fn shown(effects: &[Effect]) -> &str {
        match effects {
            [Effect::Show(text)] => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn prompts_are_asked_and_slips_are_not() {
        assert_eq!(decide(&idle(), "hello"), [Effect::Ask("hello".into())]);
        assert_eq!(decide(&idle(), "//good"), [Effect::Ask("/good".into())]);
        assert_eq!(decide(&idle(), "  "), []);
        assert!(shown(&decide(&idle(), "/god it")).contains("nearest is /good"));
        assert!(shown(&decide(&idle(), "/rate 9")).contains("Usage: /rate"));
    }

    #[test]
    fn ratings_keep_their_notes() {
        let note = Some("Never use .unwrap() in production code".to_string());
        let line = "/critical Never use .unwrap() in production code";
        assert_eq!(decide(&idle(), line), [Effect::Rate { kind: Kind::Critical, note }]);
        assert_eq!(decide(&idle(), "👎🏿"), [Effect::Rate { kind: Kind::ThumbsDown, note: None }]);
        assert_eq!(decide(&idle(), "/correct So."), [Effect::Correct("So.".into())]);
    }

    #[test]
    fn a_why_takes_a_note_and_nothing_else() {
        let why = Situation { asking: Some(Asking::Why(Kind::ThumbsDown)), ..idle() };
        let note = "too long, and no example".to_string();
        assert_eq!(decide(&why, &note), [Effect::Explain { kind: Kind::ThumbsDown, note: note.clone() }]);
        assert_eq!(decide(&why, "  "), []);
        assert_eq!(decide(&why, "/stats"), [Effect::ShowStats], "a command skips the question");
        assert_eq!(decide(&why, "👍"), [Effect::Rate { kind: Kind::ThumbsUp, note: None }]);
        assert_eq!(interrupted(&why), []);
    }

    #[test]
    fn an_offer_is_decided_by_a_word_and_left_by_any_other_line() {
        let offer = Situation { asking: Some(Asking::Offer), ..idle() };
        for (line, effect) in [
            ("a", Effect::AcceptOffer),
            ("Accept", Effect::AcceptOffer),
            ("e", Effect::EditOffer),
            ("reject", Effect::RejectOffer),
            ("n", Effect::RejectOffer),
        ] {
            assert_eq!(decide(&offer, line), [effect], "{line}");
            assert_eq!(decide(&idle(), line), [Effect::Ask(line.into())], "nothing is open: {line}");
        }
        assert_eq!(decide(&offer, "a question"), [Effect::LeaveOffer, Effect::Ask("a question".into())]);
        assert_eq!(decide(&offer, "/buffer review"), [Effect::LeaveOffer, Effect::ReviewBuffer]);
        assert_eq!(decide(&offer, ""), [], "an empty line leaves it open");
    }

    #[test]
    fn ctrl_c_stops_what_is_being_made() {
        let revising = Situation { revising: true, ..idle() };
        assert_eq!(interrupted(&revising), [Effect::CancelRevisions]);
        assert_eq!(shown(&interrupted(&idle())), help::HOW_TO_LEAVE);
    }

    #[test]
    fn training_commands_depend_on_whether_one_runs() {
        assert_eq!(decide(&idle(), "/train"), [Effect::StartTraining]);
        assert_eq!(decide(&idle(), "/train status"), [Effect::ShowLastTraining]);
        assert_eq!(shown(&decide(&idle(), "/train cancel")), render_training::NOTHING_RUNS);
        assert_eq!(shown(&decide(&training(), "/train")), render_training::ALREADY_RUNNING);
        assert!(shown(&decide(&training(), "/train status")).contains("preparing"));
        assert_eq!(decide(&training(), "/train cancel"), [Effect::CancelTraining]);
    }

    #[test]
    fn leaving_during_a_training_says_that_it_is_stopped() {
        assert_eq!(decide(&idle(), "/quit"), [Effect::Leave]);
        let effects = decide(&training(), "/quit");
        assert!(
            matches!(&effects[..], [Effect::Show(text), Effect::Leave] if text.contains("Stopping")),
            "{effects:?}"
        );
    }

    #[test]
    fn only_deleting_the_active_adapter_asks() {
        let situation = Situation { active_adapter: Some("a".into()), ..idle() };
        let ask = |effects: Vec<Effect>| match effects.as_slice() {
            [Effect::DeleteAdapter { ask, .. }] => ask.clone(),
            other => panic!("{other:?}"),
        };
        assert!(ask(decide(&situation, "/adapters delete a")).is_some_and(|q| q.contains("active")));
        assert_eq!(ask(decide(&situation, "/adapters delete b")), None);
        assert_eq!(decide(&situation, "/adapters unload"), [Effect::UnloadAdapter]);
        assert!(shown(&decide(&idle(), "/adapters unload")).contains("No adapter"));
    }

    #[test]
    fn lessons_are_shown_and_dropped() {
        assert_eq!(decide(&idle(), "/lessons"), [Effect::ShowLessons]);
        assert_eq!(decide(&idle(), "/lessons drop 12"), [Effect::DropLesson(12)]);
    }

    #[test]
    fn system_prompts_are_shown_set_and_removed() {
        assert_eq!(decide(&idle(), "/system"), [Effect::ShowSystem]);
        assert_eq!(decide(&idle(), "/system Be brief."), [Effect::SetSystem(Some("Be brief.".into()))]);
        assert_eq!(decide(&idle(), "/system off"), [Effect::SetSystem(None)]);
    }
}
