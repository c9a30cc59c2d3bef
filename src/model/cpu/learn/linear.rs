//! Linear layers with their pairs, forward: y = W x + b + s · B(A(d)), with d = dropout(x).
//!
//! A task makes some columns of the output for some tokens: it widens the rows of W behind them into a panel that stays in
//! the processor's cache, and multiplies. Which tasks there are depends on the shapes alone, so that the number of threads
//! changes no bit.

use std::cell::RefCell;
use std::ops::Range;

use super::polite::Polite;
use crate::error::Result;
use crate::model::cpu::kernels::{LANES, Level};
use crate::model::cpu::matrix::Matrix;
use crate::model::cpu::plane::Plane;
use crate::model::cpu::tiles::Regions;
use crate::model::lora::LoraModule;
use crate::model::product::{self, Parallelism, View};

/// Tokens and columns of a task: enough tokens that widening is little beside multiplying.
pub const TOKENS: usize = 512;
pub const PANEL: usize = 64;
/// Numbers that are summed between two looks at the panel, which bounds its size.
const DEPTH: usize = 1024;

/// A linear layer as it learns.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    pub matrix: &'a Matrix,
    pub bias: Option<&'a [f32]>,
    pub pair: Option<Pair<'a>>,
}

/// The pair on it. With DoRA, as PEFT has it: W x + b + (g − 1) · W d + g · s · B(A(d)), with g = magnitude / row length,
/// which without dropout is g · (W x + s · B(A x)) + b.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    pub module: &'a LoraModule,
    /// `[rank, in]`
    pub a: &'a [f32],
    /// `[out, rank]`
    pub b: &'a [f32],
    pub dora: Option<&'a Dora>,
}

/// Of each output.
pub struct Dora {
    /// 1 / ‖W + s · B A‖: a constant, as in PEFT.
    pub inverse_norms: Vec<f32>,
    /// magnitude / ‖W + s · B A‖
    pub gain: Vec<f32>,
}

impl<'a> Pair<'a> {
    /// `[rank, columns]` of A.
    pub fn a(&self, columns: Range<usize>) -> View<'a> {
        let stride = self.module.in_features;
        View::rows(self.a.get(columns.start..).unwrap_or_default(), self.module.rank, columns.len(), stride)
    }

    /// `[rows, rank]` of B.
    pub fn b(&self, rows: Range<usize>) -> View<'a> {
        let rank = self.module.rank;
        View::rows(self.b.get(rows.start * rank..).unwrap_or_default(), rows.len(), rank, rank)
    }
}

/// Room for the panels of a task.
#[derive(Default)]
pub struct Room {
    pub panel: Vec<f32>,
    pub out: Vec<f32>,
    pub more: Vec<f32>,
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

/// On one thread: the tasks around it run on the others.
pub fn multiply(out: &mut [f32], stride: usize, a: View<'_>, b: View<'_>, factor: f32, add: bool) {
    product::product(out, stride, a, b, factor, add, Parallelism::None);
}

/// out `[rows, width]` = some rows of `x` times `width` rows of the matrix from `first` on, both multiples of sixteen.
pub fn forward_tile(
    level: Level,
    matrix: &Matrix,
    x: &Plane,
    rows: Range<usize>,
    first: usize,
    panel: &mut Vec<f32>,
    (out, width): (&mut [f32], usize),
) {
    for from in (0..matrix.columns()).step_by(DEPTH) {
        let columns = from..matrix.columns().min(from + DEPTH);
        let panel = taken(panel, columns.len() * width);
        for group in 0..width / LANES {
            matrix.widen(level, first / LANES + group, columns.clone(), &mut panel[group * LANES..], width);
        }
        let w = View::rows(panel, columns.len(), width, width);
        multiply(out, width, x.view(rows.clone(), columns), w, 1.0, from > 0);
    }
}

impl Polite<'_> {
    /// outs = layers(x), or += where `add`. `dropped`: what the pairs see where it is not x. Returns A(d) of each layer,
    /// `[tokens, rank]`.
    pub fn linear<const N: usize>(
        self,
        layers: [Linear<'_>; N],
        x: &Plane,
        dropped: [Option<&Plane>; N],
        outs: [&mut Plane; N],
        add: bool,
    ) -> Result<[Plane; N]> {
        let lows = self.lower(layers, x, dropped)?;
        self.tiles(outs, (TOKENS, PANEL), 1, |place, tile| {
            let (layer, dropped, low) = (layers[place.plane], dropped[place.plane], &lows[place.plane]);
            let (first_row, first, width) = (place.row * TOKENS, place.column * PANEL, tile.columns());
            let rows = first_row..first_row + tile.rows();
            in_room(|Room { panel, out, more }| {
                let out = taken(out, rows.len() * width);
                forward_tile(self.level, layer.matrix, x, rows.clone(), first, panel, (out, width));
                // Behind the last column there is room and nothing else.
                let columns = first..layer.matrix.rows().min(first + width);
                if let Some(pair) = layer.pair {
                    let (low, b) = (low.view(rows.clone(), 0..low.width()), pair.b(columns.clone()).t());
                    match (pair.dora, dropped) {
                        (None, _) => multiply(out, width, low, b, pair.module.scale, true),
                        (Some(Dora { gain, .. }), None) => {
                            multiply(out, width, low, b, pair.module.scale, true);
                            by_column(out, width, &gain[columns.clone()], |y, gain| *y *= gain);
                        }
                        (Some(Dora { gain, .. }), Some(dropped)) => {
                            let (more, gain) = (taken(more, rows.len() * width), &gain[columns.clone()]);
                            forward_tile(self.level, layer.matrix, dropped, rows.clone(), first, panel, (more, width));
                            add_by_column(out, more, width, gain, |more, gain| (gain - 1.0) * more);
                            multiply(more, width, low, b, pair.module.scale, false);
                            add_by_column(out, more, width, gain, |more, gain| gain * more);
                        }
                    }
                }
                if let Some(bias) = layer.bias {
                    by_column(out, width, &bias[columns], |y, bias| *y += bias);
                }
                for (row, values) in out.chunks_exact(width).enumerate() {
                    put(tile.row(row), values, add);
                }
            });
        })?;
        Ok(lows)
    }

    /// A(d) of each layer.
    fn lower<const N: usize>(
        self,
        layers: [Linear<'_>; N],
        x: &Plane,
        dropped: [Option<&Plane>; N],
    ) -> Result<[Plane; N]> {
        let low = |layer: Linear<'_>| layer.pair.map_or(Plane::default(), |p| Plane::new(x.rows(), p.module.rank));
        let mut lows = layers.map(low);
        self.tiles(lows.each_mut(), (LOW, usize::MAX), 1, |place, tile| {
            let (Some(pair), x) = (layers[place.plane].pair, dropped[place.plane].unwrap_or(x)) else { return };
            let (rows, rank) = (place.row * LOW..place.row * LOW + tile.rows(), pair.module.rank);
            in_room(|Room { out, .. }| {
                let out = taken(out, rows.len() * rank);
                multiply(out, rank, x.view(rows, 0..x.width()), pair.a(0..x.width()).t(), 1.0, false);
                out.chunks_exact(rank).enumerate().for_each(|(row, low)| put(&mut tile.row(row)[..rank], low, false));
            });
        })?;
        Ok(lows)
    }
}

/// Tokens of a task whose result is as wide as a rank.
pub const LOW: usize = 128;

/// Runs over rows of `width` numbers beside what belongs to each column.
pub fn by_column(out: &mut [f32], width: usize, columns: &[f32], with: impl Fn(&mut f32, f32)) {
    for row in out.chunks_exact_mut(width) {
        row.iter_mut().zip(columns).for_each(|(y, of)| with(y, *of));
    }
}

fn add_by_column(out: &mut [f32], more: &[f32], width: usize, columns: &[f32], with: impl Fn(f32, f32) -> f32) {
    for (row, more) in out.chunks_exact_mut(width).zip(more.chunks_exact(width)) {
        row.iter_mut().zip(more).zip(columns).for_each(|((y, more), of)| *y += with(*more, *of));
    }
}

pub fn put(place: &mut [f32], values: &[f32], add: bool) {
    match add {
        true => place.iter_mut().zip(values).for_each(|(place, value)| *place += *value),
        false => place.copy_from_slice(values),
    }
}
