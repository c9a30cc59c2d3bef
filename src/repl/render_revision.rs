//! What the chat says about better answers: revisions, second answers, edited ones (see [`super::render`]).

use super::render::{About, factor, label, quote};
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
pub const REJECTED: &str =
    "Rejected. Your note stays, and the answer keeps waiting: /correct TEXT, /retry or /buffer review.\n";

/// A better answer, shown above the prompt.
pub fn offer(note: &str, answer: &str) -> String {
    format!(
        "💡 Better answer? From your note {}:\n{}   accept, edit or reject (a, e, r); anything else leaves it for /buffer review\n",
        quote(note),
        indented(answer)
    )
}

/// Recorded without a question, as the configuration wants it.
pub fn accepted_by_itself(note: &str, answer: &str, weight: f64) -> String {
    let weight = factor(weight);
    format!("💡 Better answer recorded (weight: {weight}x), from your note {}:\n{}", quote(note), indented(answer))
        + "   /undo takes it back\n"
}

/// No candidate passed. `lesson`: the note is a rule in the prompt. `again`: the user asked for another try.
pub fn none_passed(faults: &[Fault], lesson: bool, again: bool) -> String {
    let why = text::one_line(&faults_in_words(faults), 200);
    let stays = if lesson { "stays a rule in the prompt" } else { "stays" };
    let then = if again {
        "/correct TEXT or /fix gives one."
    } else {
        "/correct TEXT or /fix gives one, /buffer review tries again."
    };
    format!("💡 No better answer came out ({why}). Your note {stays}, and the answer keeps waiting: {then}\n")
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
    use crate::feedback::rule::Rule;

    #[test]
    fn an_offer_shows_the_whole_answer_and_how_to_decide() {
        assert_eq!(
            offer("No  unwrap", "Use ?:\n\n    x?;\x1b[2J\n"),
            "💡 Better answer? From your note “No unwrap”:\n   Use ?:\n   \n       x?;\n   \
             accept, edit or reject (a, e, r); anything else leaves it for /buffer review\n"
        );
        assert!(accepted_by_itself("n", "So.", 10.0).starts_with("💡 Better answer recorded (weight: 10x)"));
    }

    #[test]
    fn failures_say_why_and_what_to_do() {
        let faults = [Fault::CutOff, Fault::Breaks(Rule::Absent(".unwrap()".into())), Fault::CutOff];
        assert_eq!(
            none_passed(&faults, true, false),
            "💡 No better answer came out (2 cut off, 1 against \"no .unwrap()\"). Your note stays a rule in the prompt, and \
             the answer keeps waiting: /correct TEXT or /fix gives one, /buffer review tries again.\n"
        );
        assert!(!none_passed(&faults, false, true).contains("review"));
        assert!(failed("it broke", Some("mend it")).contains("it broke (mend it)"));
        assert!(same_again(true).contains("likeliest") && !same_again(false).contains("likeliest"));
    }
}
