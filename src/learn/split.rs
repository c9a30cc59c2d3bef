//! Which rows are held out: by their content alone, so that a row held out once is held out always.

use std::collections::HashSet;

use super::recipe::{HELD_OUT_MIN, HELD_OUT_SHARE};
use super::rows::Lesson;
use crate::feedback::example::Origin;
use crate::train::order::is_held_out;

/// Parts the rows into those to train on and those to measure on.
///
/// A correction is held out only where a row that is trained on carries the same lesson. With fewer than
/// [`HELD_OUT_MIN`] rows to measure on their figures would say nothing, so then all rows are trained on: every round
/// starts from the base anew, which has seen none of them.
pub fn split(lessons: Vec<Lesson>) -> (Vec<Lesson>, Vec<Lesson>) {
    let taught: HashSet<&str> =
        lessons.iter().filter(|l| !is_held_out(&l.key, HELD_OUT_SHARE)).map(|l| l.answer.as_str()).collect();
    let out: Vec<bool> = lessons
        .iter()
        .map(|l| {
            is_held_out(&l.key, HELD_OUT_SHARE) && (l.origin == Origin::Praise || taught.contains(l.answer.as_str()))
        })
        .collect();
    if out.iter().filter(|out| **out).count() < HELD_OUT_MIN {
        return (lessons, Vec::new());
    }
    let mut out = out.into_iter();
    let (held_out, trained) = lessons.into_iter().partition(|_| out.next() == Some(true));
    (trained, held_out)
}

#[cfg(test)]
mod tests {
    use super::super::testing::lesson;
    use super::*;

    fn many(n: usize, origin: Origin) -> Vec<Lesson> {
        (0..n).map(|i| lesson(&format!("question {i}"), &format!("answer {i}"), origin, 1.0)).collect()
    }

    #[test]
    fn a_share_is_held_out_once_there_are_enough() {
        let (trained, held_out) = split(many(400, Origin::Praise));
        assert_eq!(trained.len() + held_out.len(), 400);
        let share = held_out.len() as f64 / 400.0;
        assert!((share - HELD_OUT_SHARE).abs() < 0.05, "{share}");
        let (trained, held_out) = split(many(10, Origin::Praise));
        assert_eq!((trained.len(), held_out.len()), (10, 0));
    }

    #[test]
    fn membership_does_not_depend_on_the_other_rows() {
        let held = |rows: Vec<Lesson>| -> HashSet<[u8; 32]> { split(rows).1.into_iter().map(|l| l.key).collect() };
        let (some, all) = (held(many(200, Origin::Praise)), held(many(400, Origin::Praise)));
        assert!(some.is_subset(&all) && some.len() >= HELD_OUT_MIN);
    }

    #[test]
    fn a_correction_is_held_out_only_beside_a_sibling() {
        assert!(split(many(400, Origin::Correction)).1.is_empty());
        let same: Vec<Lesson> =
            (0..400).map(|i| lesson(&format!("wording {i}"), "the one answer", Origin::Correction, 10.0)).collect();
        let (trained, held_out) = split(same);
        assert!(held_out.len() >= HELD_OUT_MIN && trained.len() > held_out.len());
    }
}
