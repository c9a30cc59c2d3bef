//! Better answers: made from notes, accepted and rejected; second and edited answers.

use super::*;
use crate::feedback::Source;
use crate::feedback::revision::{Case, Fault, Proposal, pending};

const NOTE: &str = "Never say plain";
const PLAIN: &str = "A plain answer of some words.";
/// From the conversation that goes on with the note.
const REWRITTEN: &str = "Something else, in other words.";
/// From the note as a rule.
const RULED: &str = "An answer that follows the rule.";

/// What other questions are answered, which shares no letter with any of them at the same place.
const ELSEWHERE: &str = "-----------------------------------";

/// Answers as the prompt asks for it: plainly, rewritten, or after the rules.
fn reviser(rewritten: &'static str, ruled: &'static str) -> House {
    reviser_with(rewritten, ruled, ELSEWHERE)
}

fn reviser_with(rewritten: &'static str, ruled: &'static str, elsewhere: &'static str) -> House {
    let tokenizer = tokenizer();
    let network = MockNetwork::new(tokenizer.vocab_size(), 4000, move |tokens, _| {
        let Some(turn) = tokens.iter().rposition(|t| *t == IM_START) else { return Ok(IM_END) };
        let prompt = tokenizer.decode_with_control(&tokens[..turn]);
        let answer = match () {
            () if prompt.contains("Answer the question again") => rewritten,
            () if prompt.contains("Follow these rules") => ruled,
            () if prompt.contains("how?") => PLAIN,
            () => elsewhere,
        };
        let mut said = tokens[turn + 1..].get(tokenizer.encode_text("assistant\n")?.len()..).unwrap_or_default();
        if let [304, 10, 10, 305, 10, 10, rest @ ..] = said {
            said = rest; // the template's way of switching thinking off
        }
        Ok(ids(answer).get(said.len()).copied().unwrap_or(IM_END))
    });
    House::new(network)
}

/// A conversation whose one answer got the note.
fn noted(house: &House) -> (Session, Case) {
    let mut session = house.session();
    ask(&mut session, "how?");
    let given = session.rate(Kind::Critical, Some(NOTE)).unwrap();
    let case = Case::of(&given.interaction, &given.feedback).unwrap();
    (session, case)
}

fn make(session: &Session, case: &Case) -> Revised {
    session.reviser().make(case, &CancelFlag::new(), &mut |_| ()).unwrap()
}

fn proposed(session: &Session, case: &Case) -> Proposal {
    match make(session, case) {
        Revised::Proposed(proposal) => proposal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_answer_that_the_note_makes_likelier_is_proposed_and_kept() {
    let house = reviser(REWRITTEN, RULED);
    let (session, case) = noted(&house);
    let proposal = proposed(&session, &case);
    assert_eq!((proposal.text.as_str(), proposal.base.as_str()), (RULED, BASE));
    assert!(proposal.gain > 5.0, "{}", proposal.gain);
    let waiting = pending(&house.store.judged().unwrap(), BASE);
    assert_eq!(Proposal::of(&waiting[0].rating), Some(proposal), "on disk, and still waiting for a word");
}

#[test]
fn an_accepted_answer_is_a_pair_with_the_weight_of_the_note() {
    let house = reviser(REWRITTEN, RULED);
    let (mut session, case) = noted(&house);
    let proposal = proposed(&session, &case);
    let given = session.reviser().accept(&case, &proposal, None).unwrap();
    assert_eq!((given.feedback.source(), given.feedback.written_by()), (Some(Source::Revision), Some(BASE)));
    let Some(Verdict::Trainable(example)) = given.verdict else { panic!("{:?}", given.verdict) };
    assert_eq!((example.completion.as_str(), example.rejected.as_deref()), (RULED, Some(PLAIN)));
    assert_eq!(example.weight, 10.0);
    assert!(session.reviser().accept(&case, &proposal, None).is_err(), "once");
    assert_eq!(make(&session, &case), Revised::Settled);
    assert_eq!(session.undo().unwrap().feedback.kind, Kind::Correction);
    let edited = session.reviser().accept(&case, &proposal, Some("Mine.")).unwrap();
    assert_eq!((edited.feedback.corrected.as_deref(), edited.feedback.written_by()), (Some("Mine."), None));
}

#[test]
fn what_fails_the_checks_is_not_proposed() {
    let house = reviser("A plain answer, once more.", "");
    let (session, case) = noted(&house);
    let Revised::NonePassed(faults) = make(&session, &case) else { panic!("one passed") };
    assert_eq!(faults.len(), 3);
    assert!(matches!(&faults[0], Fault::Breaks(rule) if rule.to_string() == "no plain"), "{faults:?}");
    assert_eq!(faults[1], Fault::Empty);
    assert_eq!(session.buffer().unwrap().waiting, 1);
}

#[test]
fn what_other_questions_make_as_likely_is_about_something_else() {
    let house = reviser_with(RULED, RULED, RULED);
    let (session, case) = noted(&house);
    // Three times the same, of which one is weighed.
    assert_eq!(make(&session, &case), Revised::NonePassed(vec![Fault::OffTopic]));
}

#[test]
fn an_answer_that_was_proposed_before_is_taken_as_it_is() {
    let house = reviser(REWRITTEN, RULED);
    let (session, case) = noted(&house);
    let proposal = Proposal { text: "Another one.".into(), base: BASE.into(), gain: 0.1, rejected: false };
    assert!(house.store.keep_proposal(case.rating.id, &proposal).unwrap());
    let cancel = CancelFlag::new();
    let case = session.reviser().undecided(&cancel).unwrap().remove(0);
    let taken = session.reviser().take(&case, &cancel, &mut |_| panic!("it is made anew")).unwrap();
    assert_eq!(taken, Taken::Recorded { text: "Another one.".into(), weight: 10.0 });
    assert_eq!(session.reviser().take(&case, &cancel, &mut |_| ()).unwrap(), Taken::Settled, "once");
}

#[test]
fn a_rejected_answer_waits_on_and_a_rating_taken_back_is_settled() {
    let house = reviser(REWRITTEN, RULED);
    let (mut session, case) = noted(&house);
    let proposal = proposed(&session, &case);
    session.reviser().reject(&case, &proposal).unwrap();
    let waiting = pending(&house.store.judged().unwrap(), BASE);
    assert!(Proposal::of(&waiting[0].rating).unwrap().rejected);
    session.undo().unwrap();
    assert_eq!(make(&session, &case), Revised::Settled);
    assert!(session.reviser().accept(&case, &proposal, None).is_err());
    assert!(house.store.feedback_on(case.interaction.id).unwrap().is_empty());
}

#[test]
fn without_a_word_all_is_taken_but_what_was_rejected() {
    let house = reviser(REWRITTEN, RULED);
    let (_, case) = noted(&house);
    let (session, rejected) = noted(&house);
    let proposal = Proposal { text: "No.".into(), base: BASE.into(), gain: 0.1, rejected: false };
    session.reviser().reject(&rejected, &proposal).unwrap();
    let (store, config) = (Arc::clone(&house.store), house.config.clone());
    let alone = Reviser::alone(store, house.paths(), config, model(house.network.clone())).unwrap();
    let cancel = CancelFlag::new();
    let undecided: Vec<i64> = alone.undecided(&cancel).unwrap().iter().map(|case| case.rating.id).collect();
    assert_eq!(undecided, [case.rating.id]);
    let taken = alone.take(&case, &cancel, &mut |_| ()).unwrap();
    assert_eq!(taken, Taken::Recorded { text: RULED.into(), weight: 10.0 });
    assert!(alone.undecided(&cancel).unwrap().is_empty());
    assert_eq!(alone.take(&case, &cancel, &mut |_| ()).unwrap(), Taken::Settled);
    let given = house.store.feedback_on(case.interaction.id).unwrap().pop().unwrap();
    let said = (given.corrected.as_deref(), given.written_by(), given.session.as_deref());
    assert_eq!(said, (Some(RULED), Some(BASE), None));
}

#[test]
fn making_stops_when_told() {
    let house = reviser(REWRITTEN, RULED);
    let (session, case) = noted(&house);
    let cancel = CancelFlag::new();
    let stopped = session.reviser().make(&case, &cancel, &mut |stage| {
        if stage == (Stage::Writing { n: 2, of: 3 }) {
            cancel.cancel();
        }
    });
    assert!(stopped.is_err_and(|e| e.is_interrupted()));
    assert_eq!(session.buffer().unwrap().waiting, 1, "the rating waits on");
}

/// Answers briefly where it is told to.
fn obliging() -> House {
    House::new(scripted(4000, |question, _| {
        Ok(ids(if question.contains("briefly") { "Short." } else { "A long answer." }))
    }))
}

fn retry(session: &mut Session, hint: Option<&str>) -> Again {
    session.retry(hint, &CancelFlag::new(), &mut |_| ()).unwrap()
}

#[test]
fn a_second_answer_takes_the_place_of_the_first_and_its_hint_is_not_kept() {
    let house = obliging();
    let mut session = house.session();
    assert!(session.retry(None, &CancelFlag::new(), &mut |_| ()).is_err_and(|e| e.message().contains("no answer")));
    ask(&mut session, "first?");
    let (first, _) = ask(&mut session, "second?");
    let same = retry(&mut session, None);
    assert!(same.same && same.interaction.sampling["seed"] != first.sampling["seed"]);
    let again = retry(&mut session, Some("briefly"));
    assert!(!again.same);
    assert_eq!(again.interaction.messages, first.messages, "what is trained on has no hint");
    assert_eq!(again.interaction.metadata["hint"], "briefly");
    let said: Vec<&str> = session.history().iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["first?", "A long answer.", "second?", "Short."]);
}

#[test]
fn praise_for_a_second_answer_prefers_it_to_the_first_and_is_undone_as_one() {
    let house = obliging();
    let mut session = house.session();
    let (first, _) = ask(&mut session, "how?");
    retry(&mut session, Some("briefly"));
    let given = session.rate(Kind::ThumbsUp, None).unwrap();
    let preferred = given.preferred.unwrap();
    assert_eq!((preferred.interaction, preferred.weight, preferred.source()), (first.id, 3.0, Some(Source::Retry)));
    let examples = house.store.training_set(BASE, 100).unwrap();
    let pair = examples.buffer.examples().iter().find(|e| e.interaction == first.id).unwrap();
    assert_eq!((pair.completion.as_str(), pair.rejected.as_deref()), ("Short.", Some("A long answer.")));
    assert_eq!(session.undo().unwrap().feedback.kind, Kind::ThumbsUp);
    assert!(house.store.judged().unwrap().is_empty(), "both are taken back");
}

#[test]
fn no_pair_comes_of_the_same_answer_of_blame_or_over_what_the_user_typed() {
    let house = obliging();
    let mut session = house.session();
    ask(&mut session, "how?");
    session.correct("My own.").unwrap();
    retry(&mut session, None);
    assert_eq!(session.rate(Kind::Good, None).unwrap().preferred, None, "the same text");
    let mut session = house.session();
    ask(&mut session, "why?");
    retry(&mut session, Some("briefly"));
    assert_eq!(session.rate(Kind::Critical, None).unwrap().preferred, None);
    let mut session = house.session();
    ask(&mut session, "when?");
    session.correct("My own.").unwrap();
    retry(&mut session, Some("briefly"));
    assert_eq!(session.rate(Kind::Good, None).unwrap().preferred, None);
}

#[test]
fn a_cancelled_second_answer_leaves_the_first() {
    let house = obliging();
    let mut session = house.session();
    ask(&mut session, "how?");
    let cancel = CancelFlag::new();
    cancel.cancel();
    assert!(session.retry(None, &cancel, &mut |_| ()).is_err_and(|e| e.is_interrupted()));
    assert_eq!(session.history().len(), 2);
    assert_eq!(session.history()[1].content, "A long answer.");
}

#[test]
fn an_edited_answer_is_a_correction_and_is_edited_on() {
    let house = obliging();
    let mut session = house.session();
    assert!(session.fixable().is_err());
    ask(&mut session, "how?");
    assert_eq!(session.fixable().unwrap().1, "A long answer.");
    let given = session.fix("A better answer.").unwrap();
    assert_eq!((given.feedback.kind, given.feedback.weight), (Kind::Correction, 10.0));
    assert_eq!((given.feedback.source(), given.feedback.written_by()), (Some(Source::Fix), None));
    assert_eq!(session.fixable().unwrap().1, "A better answer.");
}
