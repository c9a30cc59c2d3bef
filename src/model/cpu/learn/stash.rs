//! Memory that is used again: what comes fresh from the system costs more to touch than much of what is computed in it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rooms that nobody uses.
#[derive(Debug, Default)]
pub struct Stash(Mutex<Vec<Vec<f32>>>);

impl Stash {
    /// `len` numbers of no meaning.
    pub fn take(&self, len: usize) -> Vec<f32> {
        let mut all = self.lock();
        let fits = |room: &Vec<f32>| (len..=len + len / 8).contains(&room.capacity());
        let Some(at) = all.iter().rposition(fits) else {
            drop(all);
            return vec![0.0; len];
        };
        let mut room = all.swap_remove(at);
        drop(all);
        room.resize(len, 0.0);
        room
    }

    pub fn give(&self, room: Vec<f32>) {
        self.lock().push(room);
    }

    /// Gives the memory back.
    pub fn clear(&self) {
        self.lock().clear();
    }

    pub fn bytes(&self) -> u64 {
        self.lock().iter().map(|room| 4 * room.capacity() as u64).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_of_a_size_are_used_again() {
        let stash = Stash::default();
        let mut room = stash.take(100);
        room[99] = 7.0;
        stash.give(room);
        assert_eq!(stash.bytes(), 400);
        assert_eq!(stash.take(50).len(), 50, "one that is much larger stays");
        let room = stash.take(95);
        assert_eq!((room.len(), room.capacity(), stash.bytes()), (95, 100, 0));
        stash.give(room);
        assert_eq!(stash.take(100).len(), 100);
        stash.give(vec![0.0; 8]);
        stash.clear();
        assert_eq!(stash.bytes(), 0);
    }
}
