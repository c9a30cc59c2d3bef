//! Which lessons a prompt holds: as many as its token budget takes, the most relevant ones first.
//!
//! The set of the turn before is the start, so that prompts of one conversation begin alike and the model's cache of them
//! holds. While there is room the set only grows, at its end. Once it is full, a lesson leaves only for one that is clearly
//! more relevant to the question.

use std::cmp::Ordering;

/// So many times as relevant is clearly more relevant.
const CLEARLY: f64 = 2.0;

/// A lesson that may stand in the prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub id: i64,
    /// Its line in the prompt.
    pub tokens: usize,
    /// See [`super::relevance`].
    pub score: f64,
    /// Noted in this very session, so about what is being talked of.
    pub fresh: bool,
    pub weight: f64,
}

impl Candidate {
    /// Fresh ones first, then by relevance, weight and newness.
    fn rank(&self, other: &Candidate) -> Ordering {
        let key = |c: &Candidate| (c.fresh, c.score, c.weight, c.id);
        let ((a, b, c, d), (w, x, y, z)) = (key(self), key(other));
        a.cmp(&w).then(b.total_cmp(&x)).then(c.total_cmp(&y)).then(d.cmp(&z))
    }

    fn clearly_beats(&self, other: &Candidate) -> bool {
        match self.fresh.cmp(&other.fresh) {
            Ordering::Equal => self.score > CLEARLY * other.score,
            order => order.is_gt(),
        }
    }
}

/// The ids of the lessons for the next prompt, in their order there. `before`: those of the last prompt; `budget`: tokens
/// for all their lines.
pub fn choose(before: &[i64], candidates: &[Candidate], budget: usize) -> Vec<i64> {
    let mut set: Vec<Candidate> =
        before.iter().filter_map(|id| candidates.iter().find(|c| c.id == *id)).copied().collect();
    while tokens(&set) > budget {
        let Some(least) = set.iter().copied().min_by(Candidate::rank) else { break };
        set.retain(|c| c.id != least.id);
    }
    let mut outside: Vec<Candidate> = candidates.iter().filter(|c| !before.contains(&c.id)).copied().collect();
    outside.sort_by(|a, b| b.rank(a));
    for newcomer in outside {
        let mut beaten: Vec<Candidate> = set.iter().filter(|c| newcomer.clearly_beats(c)).copied().collect();
        beaten.sort_by(Candidate::rank);
        let mut beaten = beaten.into_iter();
        let mut staying = set.clone();
        while tokens(&staying) + newcomer.tokens > budget {
            let Some(leaving) = beaten.next() else { break };
            staying.retain(|c| c.id != leaving.id);
        }
        if tokens(&staying) + newcomer.tokens <= budget {
            set = staying;
            set.push(newcomer);
        }
    }
    set.iter().map(|c| c.id).collect()
}

/// Whether the lesson `id` is in the next prompt whatever is asked: with `before` and `budget` as in [`choose`].
pub fn is_certain(id: i64, candidates: &[Candidate], budget: usize) -> bool {
    let fitting = || candidates.iter().filter(|c| c.tokens <= budget);
    let total = |fresh: bool| fitting().filter(|c| c.fresh || !fresh).map(|c| c.tokens).sum::<usize>();
    fitting().find(|c| c.id == id).is_some_and(|c| total(c.fresh) <= budget)
}

fn tokens(set: &[Candidate]) -> usize {
    set.iter().map(|c| c.tokens).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: i64, tokens: usize, score: f64) -> Candidate {
        Candidate { id, tokens, score, fresh: false, weight: 1.0 }
    }

    #[test]
    fn the_most_relevant_come_first_and_all_that_fit() {
        let all = [candidate(1, 10, 0.0), candidate(2, 10, 3.0), candidate(3, 10, 1.0)];
        assert_eq!(choose(&[], &all, 30), [2, 3, 1]);
        assert_eq!(choose(&[], &all, 29), [2, 3]);
        assert_eq!(choose(&[], &all, 9), [0; 0]);
        let heavy = Candidate { weight: 10.0, ..candidate(4, 10, 0.0) };
        assert_eq!(choose(&[], &[all[0], heavy, candidate(5, 10, 0.0)], 20), [4, 5], "then by weight, then the newest");
        let long = candidate(6, 25, 9.0);
        assert_eq!(choose(&[], &[long, all[1]], 20), [2], "one that is too long does not keep out the others");
    }

    #[test]
    fn while_there_is_room_the_set_only_grows_at_its_end() {
        let mut all = vec![candidate(1, 10, 0.0), candidate(2, 10, 1.0)];
        let mut set = choose(&[], &all, 100);
        assert_eq!(set, [2, 1]);
        // Whatever is asked next, and whatever joins.
        for (id, score) in [(3, 0.5), (4, 9.0), (5, 0.0)] {
            all.push(candidate(id, 10, score));
            all.iter_mut().for_each(|c| c.score = (c.score * 7.0 + c.id as f64) % 3.0);
            let next = choose(&set, &all, 100);
            assert!(next.starts_with(&set) && next.len() == all.len(), "{set:?} {next:?}");
            set = next;
        }
    }

    #[test]
    fn in_a_full_prompt_only_the_clearly_more_relevant_changes_places() {
        let set = [1, 2];
        let ask = |one, two, three| {
            choose(&set, &[candidate(1, 10, one), candidate(2, 10, two), candidate(3, 10, three)], 20)
        };
        assert_eq!(ask(1.0, 1.0, 1.9), [1, 2]);
        assert_eq!(ask(1.0, 0.9, 2.1), [1, 3], "the least relevant leaves");
        assert_eq!(ask(0.0, 0.0, 0.0), [1, 2]);
        assert_eq!(ask(0.0, 2.0, 0.1), [2, 3]);
        // One that needs the room of two does not drive out the one that is as good.
        let big = candidate(3, 20, 3.0);
        assert_eq!(choose(&set, &[candidate(1, 10, 2.0), candidate(2, 10, 0.0), big], 20), [1, 2]);
        assert_eq!(choose(&set, &[candidate(1, 10, 1.0), candidate(2, 10, 0.0), big], 20), [3]);
    }

    #[test]
    fn notes_of_this_session_come_before_all_others() {
        let fresh = |id| Candidate { fresh: true, ..candidate(id, 10, 0.0) };
        let old = [candidate(1, 10, 5.0), candidate(2, 10, 4.0)];
        assert_eq!(choose(&[1, 2], &[old[0], old[1], fresh(3)], 20), [1, 3]);
        assert_eq!(choose(&[3, 4], &[old[0], fresh(3), fresh(4)], 20), [3, 4], "an older one does not drive them out");
    }

    #[test]
    fn what_is_gone_leaves_and_a_smaller_budget_is_kept() {
        let all = [candidate(1, 10, 1.0), candidate(3, 10, 2.0), candidate(4, 10, 3.0)];
        assert_eq!(choose(&[1, 2, 3], &all, 100), [1, 3, 4]);
        assert_eq!(choose(&[1, 3, 4], &all, 20), [3, 4], "the least relevant leaves");
        assert_eq!(choose(&[1, 3, 4], &all, 0), [0; 0]);
    }

    #[test]
    fn a_lesson_is_certain_only_where_no_question_could_keep_it_out() {
        let fresh = |id| Candidate { fresh: true, ..candidate(id, 10, 0.0) };
        let long = Candidate { tokens: 40, ..fresh(4) };
        let all = [candidate(1, 10, 0.0), candidate(2, 10, 0.0), fresh(3), long];
        assert!(is_certain(3, &all, 10) && !is_certain(3, &all, 9));
        assert!(
            is_certain(1, &all, 30) && !is_certain(1, &all, 29) && !is_certain(9, &all, 99) && !is_certain(4, &all, 39)
        );
        // Against every question and every set before it.
        for budget in [10, 20, 30] {
            for before in [&[][..], &[1], &[2, 1], &[1, 2]] {
                for scores in [[0.0; 4], [5.0, 0.0, 0.0, 1.0], [1.0, 9.0, 0.1, 0.0]] {
                    let mut asked = all;
                    asked.iter_mut().zip(scores).for_each(|(c, score)| c.score = score);
                    let chosen = choose(before, &asked, budget);
                    for c in &all {
                        assert!(
                            !is_certain(c.id, &all, budget) || chosen.contains(&c.id),
                            "{budget} {before:?} {chosen:?}"
                        );
                    }
                }
            }
        }
    }
}
