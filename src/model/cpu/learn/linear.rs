//! Linear layers with their pairs, forward: y = W x + b + s · B(A(d)), with d = dropout(x).
//!
//! A task makes some columns of the output for some tokens: it widens the rows of W behind them into a panel that stays in
//! the processor's cache, and multiplies. Which tasks there are depends on the shapes alone, so that the number of threads
//! changes no bit.

use std::ops::Range;

use super::polite::Polite;
use crate::error::Result;
use crate::model::cpu::interleaved::{Interleaved, TILE};
use crate::model::cpu::kernels::Level;
use crate::model::cpu::matrix::Matrix;
use crate::model::cpu::panel::{DEPTH, Form, Panel, Product, Rows, WIDTH, Words};
use crate::model::cpu::plane::Plane;
use crate::model::cpu::products::put;
use crate::model::cpu::room::{Room, in_room, zeros};
use crate::model::cpu::tiles::Regions;
use crate::model::lora::LoraModule;

/// Most tokens of a task, enough that making a panel is little beside multiplying, and few enough that a panel's share of
/// them fits the second cache: of f32, and of words.
const TOKENS: usize = 576;
const WORD_TOKENS: usize = 1152;

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

/// Rows of activations as products take them: with every bit, or with sixteen of a block's largest.
pub enum Lined {
    Floats(Interleaved),
    Words(Words),
}

impl Lined {
    /// Some columns of a plane take the place of what was there.
    pub fn fill(&mut self, on: Polite<'_>, x: &Plane, columns: Range<usize>) -> Result<()> {
        match self {
            Lined::Floats(lined) => lined.fill(&on, on.level, x, columns),
            Lined::Words(lined) => lined.fill(&on, on.level, x, columns),
        }
    }
}

impl Rows for Lined {
    fn form(&self) -> Form {
        match self {
            Lined::Floats(lined) => lined.form(),
            Lined::Words(lined) => lined.form(),
        }
    }

    fn past(&self, panel: &Panel, level: Level, product: Product<'_>) {
        match self {
            Lined::Floats(lined) => lined.past(panel, level, product),
            Lined::Words(lined) => lined.past(panel, level, product),
        }
    }
}

/// Rows of a task, whole tiles, where no task should have many more than `most`.
pub fn share(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(TILE)
}

impl Pair<'_> {
    /// out `[rows, width]` += rows of `low`, A(d), from `first_row` on times s · `rows` of B.
    pub fn raise_tile(
        self,
        level: Level,
        low: &Lined,
        first_row: usize,
        rows: Range<usize>,
        panel: &mut Panel,
        (out, width): (&mut [f32], usize),
    ) {
        let LoraModule { rank, scale, .. } = *self.module;
        panel.fill(level, low.form(), (rank, width), |k, row| {
            let b = self.b[rows.start * rank..rows.end * rank].iter().skip(k).step_by(rank);
            row.iter_mut().zip(b).for_each(|(place, b)| *place = scale * b);
        });
        panel.times(level, low, 0..rank, first_row, out);
    }
}

impl Polite<'_> {
    pub fn tokens(self) -> usize {
        if self.words { WORD_TOKENS } else { TOKENS }
    }

    /// Rows as products take them.
    pub fn lined(self, x: &Plane) -> Result<Lined> {
        let mut lined = if self.words {
            let (pairs, scales) = Words::room(x.width());
            Lined::Words(Words::within(self.plane(x.rows(), pairs), self.plane(x.rows(), scales)))
        } else {
            Lined::Floats(Interleaved::within(self.plane(x.rows(), x.width())))
        };
        lined.fill(self, x, 0..x.width())?;
        Ok(lined)
    }

    /// Of those that there are.
    fn each_lined<const N: usize>(self, all: [Option<&Plane>; N]) -> Result<Vec<Option<Lined>>> {
        all.into_iter().map(|x| x.map(|x| self.lined(x)).transpose()).collect()
    }

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
        let (rows, x, dropped) = (share(x.rows(), self.tokens()), self.lined(x)?, self.each_lined(dropped)?);
        let lows = self.lower(layers, &x, &dropped, outs[0].rows())?;
        let lined = self.each_lined(lows.each_ref().map(|low| (low.rows() > 0).then_some(low)))?;
        self.tiles(outs, (rows, WIDTH), 1, |place, tile| {
            let (layer, dropped, low) = (layers[place.plane], &dropped[place.plane], &lined[place.plane]);
            let (level, first_row, first, width) = (self.level, place.row * rows, place.column * WIDTH, tile.columns());
            in_room(|Room { panel, out, more, .. }| {
                let out = zeros(out, tile.rows() * width);
                panel.product(level, layer.matrix, &x, (first_row, first), (out, width), Some(tile.spot()));
                // Behind the last column there is room and nothing else.
                let columns = first..layer.matrix.rows().min(first + width);
                if let (Some(pair), Some(low)) = (layer.pair, low) {
                    match (pair.dora, dropped) {
                        (None, _) => pair.raise_tile(level, low, first_row, columns.clone(), panel, (out, width)),
                        (Some(Dora { gain, .. }), None) => {
                            pair.raise_tile(level, low, first_row, columns.clone(), panel, (out, width));
                            by_column(out, width, &gain[columns.clone()], |y, gain| *y *= gain);
                        }
                        (Some(Dora { gain, .. }), Some(dropped)) => {
                            let gain = &gain[columns.clone()];
                            let base = zeros(more, tile.rows() * width);
                            panel.product(level, layer.matrix, dropped, (first_row, first), (base, width), None);
                            add_by_column(out, base, width, gain, |base, gain| (gain - 1.0) * base);
                            let raised = zeros(more, tile.rows() * width);
                            pair.raise_tile(level, low, first_row, columns.clone(), panel, (raised, width));
                            add_by_column(out, raised, width, gain, |raised, gain| gain * raised);
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

    /// out = x Wᵀ, of some rows of W from a multiple of sixteen on.
    pub fn times(self, matrix: &Matrix, span: Range<usize>, x: &Lined, out: &mut Plane) -> Result<()> {
        let rows = share(out.rows(), self.tokens());
        self.tiles([out], (rows, WIDTH), 1, |place, tile| {
            let (first_row, first, width) = (place.row * rows, span.start + place.column * WIDTH, tile.columns());
            in_room(|Room { panel, out, .. }| {
                let out = zeros(out, tile.rows() * width);
                panel.product(self.level, matrix, x, (first_row, first), (out, width), Some(tile.spot()));
                out.chunks_exact(width).enumerate().for_each(|(row, values)| put(tile.row(row), values, false));
            });
        })
    }

    /// A(d) of each layer, of so many rows.
    fn lower<const N: usize>(
        self,
        layers: [Linear<'_>; N],
        x: &Lined,
        dropped: &[Option<Lined>],
        rows: usize,
    ) -> Result<[Plane; N]> {
        let low = |layer: Linear<'_>| layer.pair.map_or(Plane::default(), |p| Plane::new(rows, p.module.rank));
        let (mut lows, most) = (layers.map(low), share(rows, LOW));
        self.tiles(lows.each_mut(), (most, usize::MAX), 1, |place, tile| {
            let (Some(pair), x) = (layers[place.plane].pair, dropped[place.plane].as_ref().unwrap_or(x)) else {
                return;
            };
            let LoraModule { rank, in_features, .. } = *pair.module;
            in_room(|Room { panel, out, .. }| {
                let (first, width) = (place.row * most, tile.columns());
                let out = zeros(out, tile.rows() * width);
                for from in (0..in_features).step_by(DEPTH) {
                    let columns = from..in_features.min(from + DEPTH);
                    panel.fill(self.level, x.form(), (columns.len(), rank), |k, row| {
                        let a = pair.a[from + k..].iter().step_by(in_features);
                        row.iter_mut().zip(a).for_each(|(place, a)| *place = *a);
                    });
                    panel.times(self.level, x, columns, first, out);
                }
                out.chunks_exact(width).enumerate().for_each(|(row, low)| put(tile.row(row), low, false));
            });
        })?;
        Ok(lows)
    }
}

/// Tokens of a task whose result is as wide as a rank.
pub const LOW: usize = 256;

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
