//! Room for what a task makes on its way: each thread has its own, and keeps it from task to task.

use std::cell::RefCell;

use super::learn::Strips;
use super::panel::Panel;

/// Room of a task.
#[derive(Default)]
pub struct Room {
    pub panel: Panel,
    pub out: Vec<f32>,
    pub more: Vec<f32>,
    /// Sides of attention's products.
    pub strips: [Strips; 5],
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Room that belongs to the thread. Tasks do not nest.
pub fn in_room<T>(work: impl FnOnce(&mut Room) -> T) -> T {
    ROOM.with_borrow_mut(work)
}

/// The first `len` numbers, of no meaning.
pub fn taken(room: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if room.len() < len {
        room.resize(len, 0.0);
    }
    &mut room[..len]
}

/// `len` zeros.
pub fn zeros(room: &mut Vec<f32>, len: usize) -> &mut [f32] {
    let out = taken(room, len);
    out.fill(0.0);
    out
}
