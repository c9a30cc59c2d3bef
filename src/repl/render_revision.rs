//! What the chat says about better answers: revisions, second answers, edited ones (see [`super::render`]).

use super::render::{About, factor, label, quote};
use super::render_stats::question;
use crate::feedback::Interaction;
use crate::feedback::kind::Kind;
use crate::feedback::revision::{Fault, faults_in_words};
use crate::session::Stage;
use crate::text;

/// Asked once after a bad rating without a note, in front of the line that answers it.
pub const WHY: &str = "Why? What should it be instead? (Enter skips) ";
pub const UNCHANGED: &str = "The text is unchanged; nothing was recorded.\n";
pub const EMPTIED: &str = "The text is empty; nothing was recorded.\n";
pub const STOPPED: &str = "Stopped. The answer keeps waiting for a better one; /buffer review tries again.\n";
pub const NOTHING_TO_REVIEW: &str = "No answer with a note waits for a better one.\n";

/// A better answer, shown above the prompt.
pub fn offer(note: &str, answer: &str) -> String {
    format!(
        "💡 Better answer? From your note {}:\n{}   accept, edit or reject (a, e, r); anything else leaves it for /buffer review\n",
        quote(note),
        indented(answer)
    )
}

/// The user does not want what was offered. `earlier`: as with [`none_passed`].
pub fn rejected(earlier: Option<&Interaction>) -> String {
    let then = match earlier {
        None => "/correct TEXT, /retry or /buffer review".to_string(),
        Some(answer) => format!("/buffer review, or `{}`", correct_by_number(answer)),
    };
    format!("Rejected. Your note stays, and the answer keeps waiting: {then}.\n")
}

/// What gives a better answer to any question, in a shell.
fn correct_by_number(answer: &Interaction) -> String {
    format!("finch feedback correct --id {} \"TEXT\"", answer.id)
}

/// Recorded without a question, as the configuration wants it. `undo`: the command that takes it back.
pub fn accepted_by_itself(note: &str, answer: &str, weight: f64, undo: &str) -> String {
    let weight = factor(weight);
    format!("💡 Better answer recorded (weight: {weight}x), from your note {}:\n{}", quote(note), indented(answer))
        + &format!("   {undo} takes it back\n")
}

/// No candidate passed. `lesson`: the note is a rule in the prompt. `earlier`: the answer, where it need not be the last
/// one, the only one that /correct and /fix are about.
pub fn none_passed(faults: &[Fault], lesson: bool, earlier: Option<&Interaction>) -> String {
    let why = text::one_line(&faults_in_words(faults), 200);
    let stays = if lesson { "stays a rule in the prompt" } else { "stays" };
    let (about, then) = match earlier {
        None => (String::new(), "/correct TEXT or /fix gives one, /buffer review tries again".to_string()),
        Some(answer) => (
            format!(" for {}", quote(question(&answer.messages))),
            format!("`{}` gives one", correct_by_number(answer)),
        ),
    };
    format!("💡 No better answer came out{about} ({why}). Your note {stays}, and the answer keeps waiting: {then}.\n")
}

/// Better answers are about to be made, one for each of so many.
pub fn making(n: usize) -> String {
    match n {
        1 => "1 answer with a note waits for a better one: making it…\n".to_string(),
        n => format!("{n} answers with a note wait for a better one: making them…\n"),
    }
}

/// Before a training that no chat stands around: bad answers without a better one, and how many of them have a note.
/// `always`: better answers are made without a question. `None`: none waits.
pub fn waiting(bad: usize, noted: usize, always: bool) -> Option<String> {
    let (wait, with) = match (bad, noted) {
        (0, _) => return None,
        (1, 0) => ("1 bad answer waits".to_string(), String::new()),
        (1, _) => ("1 bad answer waits".to_string(), " It has a note:".to_string()),
        (n, 0) => (format!("{n} bad answers wait"), String::new()),
        (n, 1) => (format!("{n} bad answers wait"), " 1 of them has a note:".to_string()),
        (n, noted) => (format!("{n} bad answers wait"), format!(" {noted} of them have a note:")),
    };
    let review = match (noted, always) {
        (0, _) => "",
        (_, true) => " /buffer review in the chat tries again.",
        (_, false) => {
            " /buffer review in the chat offers one made from it, and feedback.revise = \"always\" has it made and \
             recorded here."
        }
    };
    Some(format!(
        "{wait} for a better one.{with}{review} `finch feedback correct --id N \"TEXT\"` gives your own; \
         `finch feedback list` has the numbers.\n"
    ))
}

/// In front of an offer in a review: which answer it is about.
pub fn reviewed(about: &About) -> String {
    format!("Waiting: {}\n   {}\n", quote(&about.prompt), text::one_line(&about.response, 70))
}

/// How many are gone through.
pub fn review(n: usize) -> String {
    match n {
        1 => "1 answer waits for a better one.\n".to_string(),
        n => format!("{n} answers wait for a better one; one after the other, and any other line ends it.\n"),
    }
}

/// One line, without its end.
pub fn progress(stage: Stage) -> String {
    match stage {
        Stage::Writing { n, of } => format!("💡 Better answer? Writing {n} of {of} (Ctrl-C stops)"),
        Stage::Weighing => "💡 Better answer? Comparing (Ctrl-C stops)".to_string(),
    }
}

pub fn failed(message: &str, hint: Option<&str>) -> String {
    let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("💡 No better answer could be made: {}\n", text::one_line(&format!("{message}{hint}"), 400))
}

/// The note that came after the rating.
pub fn explained(kind: Kind, note: &str) -> String {
    format!("Noted with your {}: {}\n", label(kind), quote(note))
}

/// The second answer is the first one once more.
pub fn same_again(greedy: bool) -> String {
    if greedy {
        "(The same answer again: this model takes the likeliest words. A hint, /retry HINT, or --temperature 0.7 changes that.)\n".to_string()
    } else {
        "(The same answer again. /retry HINT says what should be different.)\n".to_string()
    }
}

/// Untrusted text as it stands, each line under the sentence above it.
fn indented(answer: &str) -> String {
    text::sanitize(answer.trim()).lines().map(|line| format!("   {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback::example::tests::interaction;
    use crate::feedback::rule::Rule;

    #[test]
    fn an_offer_shows_the_whole_answer_and_how_to_decide() {
        assert_eq!(
            offer("No  unwrap", "Use ?:\n\n    x?;\x1b[2J\n"),
            "💡 Better answer? From your note “No unwrap”:\n   Use ?:\n   \n       x?;\n   \
             accept, edit or reject (a, e, r); anything else leaves it for /buffer review\n"
        );
        let recorded = accepted_by_itself("n", "So.", 10.0, "`finch feedback undo`");
        assert!(recorded.starts_with("💡 Better answer recorded (weight: 10x)"), "{recorded}");
        assert!(recorded.ends_with("\n   `finch feedback undo` takes it back\n"), "{recorded}");
    }

    #[test]
    fn failures_say_why_and_what_to_do() {
        let faults = [Fault::CutOff, Fault::Breaks(Rule::Absent(".unwrap()".into())), Fault::CutOff];
        assert_eq!(
            none_passed(&faults, true, None),
            "💡 No better answer came out (2 cut off, 1 against \"no .unwrap()\"). Your note stays a rule in the prompt, and \
             the answer keeps waiting: /correct TEXT or /fix gives one, /buffer review tries again.\n"
        );
        let earlier = Interaction { id: 12, ..interaction(12, "how?", "so") };
        assert_eq!(
            none_passed(&faults[..1], false, Some(&earlier)),
            "💡 No better answer came out for “how?” (1 cut off). Your note stays, and the answer keeps waiting: \
             `finch feedback correct --id 12 \"TEXT\"` gives one.\n"
        );
        assert!(rejected(None).ends_with("waiting: /correct TEXT, /retry or /buffer review.\n"));
        let shown = rejected(Some(&earlier));
        assert!(shown.contains("--id 12") && !shown.contains("/correct"), "/correct is about another: {shown}");
        let waits = |bad, noted, always| waiting(bad, noted, always).unwrap_or_default();
        assert_eq!(waits(0, 0, false), "");
        let shown = waits(1, 1, false);
        assert!(shown.starts_with("1 bad answer waits for a better one. It has a note: /buffer review"), "{shown}");
        assert!(shown.contains("feedback.revise = \"always\" has it made"), "{shown}");
        let shown = waits(3, 2, true);
        assert!(shown.starts_with("3 bad answers wait for a better one. 2 of them have a note: /buffer"), "{shown}");
        assert!(!shown.contains("always"), "it is switched on: {shown}");
        assert!(waits(2, 1, false).contains(" 1 of them has a note: "));
        let shown = waits(2, 0, false);
        assert!(shown.contains("feedback correct --id N") && !shown.contains("/buffer review"), "{shown}");
        assert!(failed("it broke", Some("mend it")).contains("it broke (mend it)"));
        assert!(same_again(true).contains("likeliest") && !same_again(false).contains("likeliest"));
    }
}
