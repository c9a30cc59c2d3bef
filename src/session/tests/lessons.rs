//! Notes as rules in the prompts of the turns that follow.

use super::*;
use crate::feedback::judge_all;

const HEADING: &str = "Follow these rules, which the user gave:";
const UNWRAP: &str = "Never use .unwrap() in production code";

/// The system message of an answer's prompt.
fn system(answer: &Interaction) -> Option<&str> {
    answer.messages.first().filter(|m| m.role == Role::System).map(|m| m.content.as_str())
}

/// Asks, and rates the answer critical with a note.
fn note(session: &mut Session, question: &str, note: &str) -> Acknowledgement {
    ask(session, question);
    session.rate(Kind::Critical, Some(note)).unwrap()
}

fn places(session: &mut Session) -> Vec<Place> {
    session.lessons(&CancelFlag::new()).unwrap().rows.into_iter().map(|row| row.place).collect()
}

fn left_out(events: &[AskEvent]) -> Vec<usize> {
    events.iter().filter_map(|e| if let AskEvent::LessonsLeftOut(n) = e { Some(*n) } else { None }).collect()
}

#[test]
fn a_note_is_a_rule_from_the_next_answer_on() {
    let house = House::echo();
    let mut session = house.session_with(Options { system: Some("Be brief.".into()), ..Default::default() });
    let given = note(&mut session, "a", &format!(" {UNWRAP}  "));
    assert!(given.applies);
    assert_eq!(places(&mut session), [Place::Next]);
    assert_eq!(system(&given.interaction), Some("Be brief."), "not before");

    let (answer, _) = ask(&mut session, "b");
    assert_eq!(system(&answer).unwrap(), format!("Be brief.\n\n{HEADING}\n- {UNWRAP}"));
    assert_eq!(answer.metadata["lessons"], json!([{"id": given.feedback.id, "text": UNWRAP}]));
    assert_eq!(answer.metadata["system"], "Be brief.");
    assert_eq!(answer.prompt()[0], Message::system("Be brief."), "training sees it without");
    assert_eq!(places(&mut session), [Place::Prompt]);
    assert_eq!(session.history().len(), 4);

    session.set_system(None);
    assert_eq!(system(&ask(&mut session, "c").0).unwrap(), format!("{HEADING}\n- {UNWRAP}"));
    session.clear();
    let (answer, _) = ask(&mut session, "d");
    assert_eq!((answer.messages.len(), answer.prompt()), (2, vec![Message::user("d")]));

    let mut another = house.session();
    assert!(system(&ask(&mut another, "e").0).unwrap().contains(UNWRAP), "kept over a restart");
    session.undo().unwrap();
    assert_eq!(system(&ask(&mut another, "f").0), None, "taken back with its rating");
}

#[test]
fn praise_and_bad_ratings_without_a_word_are_no_rules() {
    let house = House::echo();
    let mut session = house.session();
    ask(&mut session, "a");
    for (kind, note) in [(Kind::Critical, None), (Kind::Good, Some("Like this.")), (Kind::Medium, Some("  "))] {
        assert!(!session.rate(kind, note).unwrap().applies);
    }
    assert_eq!((system(&ask(&mut session, "b").0), places(&mut session).len()), (None, 0));
}

#[test]
fn the_rules_only_grow_so_that_the_cache_of_the_prompt_holds() {
    let house = House::echo();
    let mut session = house.session();
    note(&mut session, "how do I open a file", "first");
    note(&mut session, "and a folder", "second");
    let before = ask(&mut session, "write a poem").0;
    for question in ["about the second folder", "and the first file"] {
        let answer = ask(&mut session, question).0;
        assert_eq!(system(&answer), system(&before));
        let prompt = answer.timings["prompt_tokens"].as_u64().unwrap();
        assert!(reused(&answer) + 100 > prompt && reused(&answer) > 150, "{}", answer.timings);
    }
    note(&mut session, "more", "third");
    let grown = ask(&mut session, "third").0;
    assert_eq!(system(&grown).unwrap(), format!("{}\n- third", system(&before).unwrap()));
}

#[test]
fn a_budget_takes_the_rules_that_the_question_is_about() {
    let mut house = House::echo();
    // A token a byte: the heading, and two rules of twenty.
    house.config.feedback.lesson_tokens = HEADING.len() + 1 + 2 * "\n- Be polite to birds".len();
    let mut session = house.session();
    for (question, rule) in
        [("rust", "Be polite to crabs"), ("git", "Be polite to birds"), ("shell", "Be polite to fish")]
    {
        note(&mut session, question, rule);
    }
    drop(session);
    let mut session = house.session();
    assert_eq!(places(&mut session), [Place::Waiting, Place::Waiting, Place::Waiting], "the question decides");
    let answer = ask(&mut session, "a question about git and shell").0;
    assert_eq!(system(&answer).unwrap(), format!("{HEADING}\n- Be polite to fish\n- Be polite to birds"));
    assert_eq!(places(&mut session), [Place::Waiting, Place::Prompt, Place::Prompt]);
    let shared = session.lessons(&CancelFlag::new()).unwrap().rows[1].shared.clone();
    assert_eq!(shared, ["git"]);
    assert_eq!(system(&ask(&mut session, "go on").0), system(&answer));
    let about_rust = ask(&mut session, "now rust").0;
    assert!(system(&about_rust).unwrap().ends_with("\n- Be polite to crabs"));

    let given = session.rate(Kind::Critical, Some("Be polite to cats")).unwrap();
    assert!(given.applies, "what was just noted comes before what fills the prompt");
    assert!(system(&ask(&mut session, "rust and git and shell").0).unwrap().contains("cats"));
    let long = "Be polite ".repeat(12);
    assert!(!note(&mut session, "more", &long).applies);
    let budget = house.config.feedback.lesson_tokens;
    assert!(matches!(places(&mut session)[4], Place::TooLong(tokens) if tokens > budget));

    house.config.feedback.lesson_tokens = 0;
    let mut off = house.session();
    assert_eq!(system(&ask(&mut off, "rust").0), None);
    assert!(!off.rate(Kind::Critical, Some("Be")).unwrap().applies);
}

#[test]
fn rules_give_way_to_a_long_conversation() {
    let mut house = House::new(scripted(600, echo));
    house.config.generation.max_tokens = 60;
    let mut session = house.session();
    note(&mut session, "a", "Speak of birds.");
    assert!(note(&mut session, "b", "Speak of fish.").applies);
    assert!(system(&ask(&mut session, "c").0).unwrap().ends_with("- Speak of birds.\n- Speak of fish."));
    session.clear();
    // A token a byte, and 25 around the question: room for the heading and one rule.
    let (answer, events) = ask(&mut session, &format!("fish {}", "x".repeat(430)));
    assert_eq!((system(&answer).unwrap(), left_out(&events)), (&*format!("{HEADING}\n- Speak of fish."), vec![1]));
    assert_eq!(places(&mut session), [Place::Waiting, Place::Prompt]);
    session.clear();
    let (answer, events) = ask(&mut session, &"x".repeat(470));
    assert_eq!((system(&answer), left_out(&events), answer.finish), (None, vec![2], Finish::Length));
    assert!(!session.rate(Kind::Critical, Some("Speak.")).unwrap().applies);
    let refused = session.ask(&"y".repeat(60), &CancelFlag::new(), &mut |_| ()).unwrap_err();
    assert!(refused.message().contains("too long for this model"), "as without rules: {refused}");
    session.clear();
    let (answer, events) = ask(&mut session, "a");
    assert!(system(&answer).is_some() && left_out(&events).is_empty());
}

#[test]
fn that_rules_are_left_out_is_told_once() {
    let mut house = House::new(scripted(400, |_, _| Ok(ids("yes"))));
    house.config.generation.max_tokens = 10;
    let mut session = house.session();
    note(&mut session, "a", "Speak of birds.");
    session.clear();
    let told = ["x".repeat(300), "y".to_string()].map(|question| left_out(&ask(&mut session, &question).1));
    assert_eq!(told, [vec![1], vec![]]);
}

#[test]
fn a_rule_leaves_for_an_adapter_that_carries_it_and_comes_back() {
    let house = House::echo();
    let mut session = house.session();
    note(&mut session, "a", UNWRAP);
    note(&mut session, "b", "Be polite.");
    save_adapter_that_carries(&house, "lora_1", BASE, 1, &[UNWRAP]);
    active::activate(&house.paths(), BASE, "lora_1").unwrap();
    let carried = Place::Carried("lora_1".into());
    assert_eq!(places(&mut session), [carried, Place::Next]);
    let (answer, events) = ask(&mut session, "c");
    assert_eq!(system(&answer).unwrap(), format!("{HEADING}\n- Be polite."));
    assert_eq!(notices(&events), [&live("lora_1")], "looking at the lessons has told nothing");

    active::deactivate(&house.paths(), BASE).unwrap();
    assert_eq!(places(&mut session), [Place::Next, Place::Prompt]);
    assert_eq!(system(&ask(&mut session, "d").0).unwrap(), format!("{HEADING}\n- Be polite.\n- {UNWRAP}"));

    // Noted again on its own answer: it does not carry it after all.
    active::activate(&house.paths(), BASE, "lora_1").unwrap();
    assert!(note(&mut session, "e", UNWRAP).applies);
    assert!(system(&ask(&mut session, "f").0).unwrap().contains(UNWRAP));
}

#[test]
fn what_an_adapter_carries_on_another_base_is_not_believed() {
    let house = House::echo();
    let mut session = house.session();
    note(&mut session, "a", UNWRAP);
    save_adapter_that_carries(&house, "lora_1", "c0c0", 1, &[UNWRAP]);
    active::activate_forced(&house.paths(), BASE, "lora_1").unwrap();
    let (answer, _) = ask(&mut session, "b");
    assert_eq!(answer.adapter.as_deref(), Some("lora_1"));
    assert!(system(&answer).unwrap().contains(UNWRAP));
}

#[test]
fn a_dropped_lesson_is_no_rule_and_its_rating_stays() {
    let house = House::echo();
    let mut session = house.session();
    let given = note(&mut session, "a", UNWRAP);
    assert_eq!(session.drop_lesson(given.feedback.id).unwrap().text, UNWRAP);
    assert_eq!(system(&ask(&mut session, "b").0), None);
    assert_eq!(session.buffer().unwrap().waiting, 1);
    assert!(session.drop_lesson(given.feedback.id).is_err());
}

#[test]
fn an_answer_under_rules_teaches_without_them() {
    let house = House::echo();
    let mut session = house.session();
    note(&mut session, "a", UNWRAP);
    session.clear();
    let (answer, _) = ask(&mut session, "a");
    assert!(system(&answer).is_some());
    let praised = session.rate(Kind::Good, None).unwrap();
    // The same words as the answer that was rated bad: the rule beside the question does not make them another one.
    assert!(matches!(praised.verdict, Some(Verdict::Nothing(u)) if matches!(u.reason, UnusedReason::RatedBad(_))));
    session.clear();
    ask(&mut session, "b");
    let Some(Verdict::Trainable(example)) = session.rate(Kind::Good, None).unwrap().verdict else { panic!() };
    assert_eq!(example.messages, [Message::user("b")]);

    session.clear();
    ask(&mut session, "d");
    session.rate(Kind::ThumbsDown, None).unwrap();
    let judged = judge_all(&house.store.judged().unwrap(), BASE);
    assert_eq!(judged.bad.last().unwrap().messages, [Message::user("d")]);

    session.clear();
    ask(&mut session, "c");
    assert_eq!(house.store.unrated_prompts(BASE, 9).unwrap(), [[Message::user("c")]]);
    // Asked before the rule and rated bad, so not ordinary; asking again under the rule does not make it so.
    session.clear();
    ask(&mut session, "a");
    assert_eq!(house.store.unrated_prompts(BASE, 9).unwrap(), [[Message::user("c")]]);
}
