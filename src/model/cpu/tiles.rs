//! Regions whose tasks write: each gets a piece of the data for itself.

use std::marker::PhantomData;

use super::plane::Plane;
use super::pool::Pool;

/// A slice of which the tasks of a region take parts.
struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    _of: PhantomData<&'a mut [T]>,
}

// SAFETY: what tasks hold at the same time does not overlap (the contract of `part`), so that threads share no element.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    fn new(slice: &'a mut [T]) -> Parts<'a, T> {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), _of: PhantomData }
    }

    /// Elements `at` to `at + len`; panics where there are none.
    ///
    /// # Safety
    ///
    /// No other part in use may hold one of them.
    #[allow(clippy::mut_from_ref)] // that is the point: the parts are apart
    unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "a part outside the slice");
        // SAFETY: in range by the line above, and nobody else has them by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// Some columns of some rows of a plane.
pub struct Tile<'a> {
    parts: &'a Parts<'a, f32>,
    stride: usize,
    first_row: usize,
    rows: usize,
    first_column: usize,
    columns: usize,
}

/// Where a tile lies: for caches, which may be told in time; nothing is read or written at it.
#[derive(Debug, Clone, Copy)]
pub struct Spot {
    start: *const f32,
    stride: usize,
}

impl Spot {
    pub fn of(self, row: usize, column: usize) -> *const f32 {
        self.start.wrapping_add(row * self.stride + column)
    }

    /// From one of its rows on.
    pub fn below(self, row: usize) -> Spot {
        Spot { start: self.of(row, 0), ..self }
    }
}

impl Tile<'_> {
    pub fn spot(&self) -> Spot {
        let at = self.first_row * self.stride + self.first_column;
        Spot { start: self.parts.start.wrapping_add(at), stride: self.stride }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The tile's columns of its `row`-th row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "a row outside the tile");
        let at = (self.first_row + row) * self.stride + self.first_column;
        // SAFETY: tiles of one region do not overlap, and this one is borrowed for as long as the row.
        unsafe { self.parts.part(at, self.columns) }
    }
}

/// Which tile a task has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of the planes that were given.
    pub plane: usize,
    /// Counted in tiles.
    pub row: usize,
    pub column: usize,
}

/// Something that runs tasks.
///
/// # Safety
///
/// `run` runs each of `task(0)` to `task(tasks - 1)` once at most, and is done with them when it returns.
pub unsafe trait Regions {
    /// Says whether all were run.
    type Done;

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Self::Done;

    /// Cuts planes into tiles of `rows` × `columns` and runs `task` on each; tiles of sixteen columns may reach into the
    /// room behind a row's end. `each` neighbours go to one thread.
    fn tiles<const N: usize>(
        &self,
        planes: [&mut Plane; N],
        (rows, columns): (usize, usize),
        each: usize,
        task: impl Fn(Place, &mut Tile<'_>) + Sync,
    ) -> Self::Done {
        let planes = planes.map(|plane| {
            let (all, stride, across) = (plane.rows(), plane.stride(), plane.width().div_ceil(columns));
            (all, stride, across, Parts::new(plane.data_mut()))
        });
        let tiles = |(all, _, across, _): &(usize, usize, usize, Parts<'_, f32>)| all.div_ceil(rows) * across;
        let all: usize = planes.iter().map(tiles).sum();
        self.run(all.div_ceil(each), &|chunk| {
            for at in chunk * each..all.min((chunk + 1) * each) {
                let (mut plane, mut at) = (0, at);
                while at >= tiles(&planes[plane]) {
                    at -= tiles(&planes[plane]);
                    plane += 1;
                }
                let (all, stride, across, parts) = &planes[plane];
                let place = Place { plane, row: at / across, column: at % across };
                let (first_row, first_column) = (place.row * rows, place.column * columns);
                let rows = rows.min(all - first_row);
                let columns = columns.min(stride - first_column);
                // Tiles are apart: every place is the task of one only.
                task(place, &mut Tile { parts, stride: *stride, first_row, rows, first_column, columns });
            }
        })
    }

    /// Runs `task` on each row.
    fn rows(&self, plane: &mut Plane, task: impl Fn(usize, &mut [f32]) + Sync) -> Self::Done {
        let (stride, width) = (plane.stride(), plane.width());
        self.chunks(plane.data_mut(), stride.max(1), |row, out| task(row, &mut out[..width]))
    }

    /// Runs `task` on each element.
    fn each<T: Send>(&self, elements: &mut [T], task: impl Fn(usize, &mut T) + Sync) -> Self::Done {
        self.chunks(elements, 1, |at, chunk| task(at, &mut chunk[0]))
    }

    /// Runs `task` on each chunk of `size` elements; the last may be shorter.
    fn chunks<T: Send>(&self, elements: &mut [T], size: usize, task: impl Fn(usize, &mut [T]) + Sync) -> Self::Done {
        let (len, tasks) = (elements.len(), elements.len().div_ceil(size));
        let parts = Parts::new(elements);
        self.run(tasks, &|at| {
            // SAFETY: every task has its own chunk, and runs once.
            let chunk = unsafe { parts.part(at * size, size.min(len - at * size)) };
            task(at, chunk);
        })
    }
}

// SAFETY: see `Pool::run`, whose tasks are each taken from one counter.
unsafe impl Regions for Pool {
    type Done = ();

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        Pool::run(self, tasks, task);
    }
}

impl Pool {
    /// What `task` makes of 0 to `tasks - 1`, in their order.
    pub fn map<T: Send>(&self, tasks: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let mut made: Vec<Option<T>> = (0..tasks).map(|_| None).collect();
        self.each(&mut made, |at, place| *place = Some(task(at)));
        made.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_planes_once() {
        let pool = Pool::new(3).unwrap();
        for (rows, width) in [(1, 16), (5, 48), (9, 37)] {
            let (mut first, mut second) = (Plane::new(rows, width), Plane::new(rows, 32));
            for each in [1, 3] {
                pool.tiles([&mut first, &mut second], (4, 16), each, |place, tile| {
                    for row in 0..tile.rows() {
                        let value = (place.plane * 1000 + place.column) as f32;
                        tile.row(row).iter_mut().for_each(|x| *x += value + 1.0);
                    }
                });
            }
            for (plane, base) in [(&first, 2.0), (&second, 2002.0)] {
                for row in 0..rows {
                    for (column, x) in plane.row(row).iter().enumerate() {
                        assert_eq!(*x, base + 2.0 * (column / 16) as f32);
                    }
                }
            }
        }
    }
}
