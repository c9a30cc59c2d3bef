//! Rows of f32 behind each other: the activations of some tokens.

use std::sync::Arc;

use super::kernels::LANES;
use super::learn::Stash;

/// `[rows, width]`. Rows are `stride` apart, a multiple of sixteen, so that a group of sixteen columns is whole.
#[derive(Debug, Clone, Default)]
pub struct Plane {
    data: Vec<f32>,
    rows: usize,
    width: usize,
    /// Where its memory goes.
    home: Option<Arc<Stash>>,
}

impl Drop for Plane {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.give(std::mem::take(&mut self.data));
        }
    }
}

impl Plane {
    /// Zeros.
    pub fn new(rows: usize, width: usize) -> Plane {
        let len = rows * width.next_multiple_of(LANES);
        Plane { data: vec![0.0; len], rows, width, home: None }
    }

    /// Numbers of no meaning, in memory of the stash.
    pub fn lent(stash: &Arc<Stash>, rows: usize, width: usize) -> Plane {
        let data = stash.take(rows * width.next_multiple_of(LANES));
        Plane { data, rows, width, home: Some(Arc::clone(stash)) }
    }

    /// Another size; the values are of no meaning then.
    pub fn resize(&mut self, rows: usize, width: usize) {
        (self.rows, self.width) = (rows, width);
        self.data.resize(rows * self.stride(), 0.0);
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn stride(&self) -> usize {
        self.width.next_multiple_of(LANES)
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride()..][..self.width]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let stride = self.stride();
        &mut self.data[row * stride..][..self.width]
    }

    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let (stride, width) = (self.stride().max(1), self.width);
        self.data.chunks_mut(stride).map(move |row| &mut row[..width])
    }

    /// From the first row on, rows a stride apart.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}
