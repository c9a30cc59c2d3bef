//! Linear layers with their pairs, backward: gradients of the pairs, and of the input. The weights are frozen and get none.
//!
//! With g = DoRA's gain (else 1), dz = g ∘ dy and dl = s · dz B, the gradient of A(d): dB = s · dzᵀ A(d), dA = dlᵀ d,
//! dx = dz W + dl A, the magnitude's Σ over tokens of dy ∘ (W d + s · B(A d)) / ‖W + s · B A‖. With dropout what comes through
//! the pair is masked: dx = dy W + mask ∘ ((g − 1) ∘ dy W + dl A).

use std::ops::Range;

use super::linear::{LOW, Linear, PANEL, Pair, Room, TOKENS, forward_tile, in_room, multiply, put, taken};
use super::polite::Polite;
use crate::error::Result;
use crate::model::cpu::kernels::{LANES, Level};
use crate::model::cpu::matrix::Matrix;
use crate::model::cpu::plane::Plane;
use crate::model::cpu::tiles::Regions;
use crate::model::product::View;

/// Rows of W that lie in a panel at once.
const DEPTH: usize = 512;
/// Rows of W that a task goes through: an output layer has many.
const SPAN: usize = 8192;
/// Rows or columns of a pair's gradient that are a task.
const PIECE: usize = 256;

/// A layer on the way back.
#[derive(Clone, Copy)]
pub struct Back<'a> {
    pub layer: Linear<'a>,
    /// dL/dy, `[tokens, out]`
    pub dy: &'a Plane,
    /// A(d) of the forward, `[tokens, rank]`
    pub low: &'a Plane,
    pub dropped: Option<&'a Dropped>,
}

/// What a pair sees in place of the layer's input.
pub struct Dropped {
    /// mask ∘ input
    pub x: Plane,
    pub mask: Plane,
}

/// A layer, and gradients within it.
#[derive(Clone, Copy)]
struct Inner<'a> {
    back: Back<'a>,
    /// g ∘ dy
    dz: &'a Plane,
    /// dL/dA(d), `[tokens, rank]`; empty without a pair.
    d_low: &'a Plane,
}

impl Polite<'_> {
    /// Adds the gradients of the pairs on layers that share the input `x` to `grads`, and puts that of x into `dx`, if it is
    /// wanted.
    pub fn back<const N: usize>(
        self,
        backs: [Back<'_>; N],
        x: &Plane,
        grads: &mut [f32],
        dx: Option<&mut Plane>,
    ) -> Result<()> {
        let gained = self.gained(&backs)?;
        let dz = std::array::from_fn(|at| if gained[at].rows() > 0 { &gained[at] } else { backs[at].dy });
        let d_low = self.d_low(&backs, dz)?;
        let inner: [Inner<'_>; N] = std::array::from_fn(|at| Inner { back: backs[at], dz: dz[at], d_low: &d_low[at] });
        self.pairs(inner, x, grads)?;
        for back in &backs {
            if let Some(pair) = back.layer.pair {
                self.magnitude(back, pair, x, grads)?;
            }
        }
        dx.map_or(Ok(()), |dx| self.input(inner, dx))
    }

    /// g ∘ dy of the layers that have DoRA.
    fn gained<const N: usize>(self, backs: &[Back<'_>; N]) -> Result<[Plane; N]> {
        let doras = backs.each_ref().map(|back| back.layer.pair.and_then(|pair| pair.dora));
        let like = |back: &Back<'_>| self.plane(back.dy.rows(), back.dy.width());
        let mut gained: [Plane; N] = std::array::from_fn(|at| doras[at].map_or(Plane::default(), |_| like(&backs[at])));
        self.tiles(gained.each_mut(), (LOW, usize::MAX), 1, |place, tile| {
            let (Some(dora), dy) = (doras[place.plane], backs[place.plane].dy) else { return };
            for row in 0..tile.rows() {
                let dy = dy.row(place.row * LOW + row);
                let out = tile.row(row).iter_mut().zip(dy).zip(&dora.gain);
                out.for_each(|((out, dy), gain)| *out = dy * gain);
            }
        })?;
        Ok(gained)
    }

    fn d_low<const N: usize>(self, backs: &[Back<'_>; N], dz: [&Plane; N]) -> Result<[Plane; N]> {
        let low = |back: &Back<'_>| {
            let pair = back.layer.pair;
            pair.map_or(Plane::default(), |pair| Plane::new(back.dy.rows(), pair.module.rank))
        };
        let mut d_low = backs.each_ref().map(low);
        self.tiles(d_low.each_mut(), (LOW, usize::MAX), 1, |place, tile| {
            let (Some(pair), dz) = (backs[place.plane].layer.pair, dz[place.plane]) else { return };
            let (rows, outs) = (place.row * LOW..place.row * LOW + tile.rows(), 0..dz.width());
            let rank = pair.module.rank;
            in_room(|Room { out, .. }| {
                let out = taken(out, rows.len() * rank);
                multiply(out, rank, dz.view(rows, outs.clone()), pair.b(outs), pair.module.scale, false);
                out.chunks_exact(rank).enumerate().for_each(|(row, d)| put(&mut tile.row(row)[..rank], d, false));
            });
        })?;
        Ok(d_low)
    }

    /// dA and dB.
    fn pairs<const N: usize>(self, inner: [Inner<'_>; N], x: &Plane, grads: &mut [f32]) -> Result<()> {
        let pairs = inner.map(|inner| inner.back.layer.pair);
        let mut d_b = pairs.map(|p| p.map_or(Plane::default(), |p| Plane::new(p.module.out_features, p.module.rank)));
        self.tiles(d_b.each_mut(), (PIECE, usize::MAX), 1, |place, tile| {
            let Inner { back, dz, .. } = inner[place.plane];
            let Some(pair) = back.layer.pair else { return };
            let (rows, rank) = (place.row * PIECE..place.row * PIECE + tile.rows(), pair.module.rank);
            in_room(|Room { out, .. }| {
                let (out, tokens) = (taken(out, rows.len() * rank), 0..dz.rows());
                let (dz, low) = (dz.view(tokens.clone(), rows).t(), back.low.view(tokens, 0..rank));
                multiply(out, rank, dz, low, pair.module.scale, false);
                out.chunks_exact(rank).enumerate().for_each(|(row, d)| put(&mut tile.row(row)[..rank], d, false));
            });
        })?;
        let mut d_a = pairs.map(|p| p.map_or(Plane::default(), |p| Plane::new(p.module.rank, p.module.in_features)));
        self.tiles(d_a.each_mut(), (usize::MAX, PIECE), 1, |place, tile| {
            let Inner { back, d_low, .. } = inner[place.plane];
            let x = back.dropped.map_or(x, |dropped| &dropped.x);
            let columns = place.column * PIECE..x.width().min(place.column * PIECE + tile.columns());
            in_room(|Room { out, .. }| {
                let (width, tokens) = (columns.len(), 0..x.rows());
                let out = taken(out, tile.rows() * width);
                let d_low = d_low.view(tokens.clone(), 0..tile.rows()).t();
                multiply(out, width, d_low, x.view(tokens, columns), 1.0, false);
                out.chunks_exact(width).enumerate().for_each(|(row, d)| put(&mut tile.row(row)[..width], d, false));
            });
        })?;
        for ((pair, d_a), d_b) in pairs.into_iter().zip(&d_a).zip(&d_b) {
            let Some(Pair { module, .. }) = pair else { continue };
            for (plane, place) in [(d_a, &module.a), (d_b, &module.b)] {
                let rows = grads[place.clone()].chunks_exact_mut(plane.width());
                rows.enumerate().for_each(|(row, grads)| put(grads, plane.row(row), true));
            }
        }
        Ok(())
    }

    /// DoRA's, if the pair has one.
    fn magnitude(self, back: &Back<'_>, pair: Pair<'_>, x: &Plane, grads: &mut [f32]) -> Result<()> {
        let (Some(dora), Some(place)) = (pair.dora, pair.module.magnitude.clone()) else { return Ok(()) };
        let (Back { layer, dy, low, .. }, x) = (back, back.dropped.map_or(x, |dropped| &dropped.x));
        let mut along = Plane::new(1, pair.module.out_features);
        self.tiles([&mut along], (1, PANEL), 1, |place, tile| {
            let (first, width) = (place.column * PANEL, tile.columns());
            let columns = first..layer.matrix.rows().min(first + width);
            let mut sums = [0f64; PANEL];
            for from in (0..x.rows()).step_by(TOKENS) {
                let rows = from..x.rows().min(from + TOKENS);
                in_room(|Room { panel, out, .. }| {
                    let out = taken(out, rows.len() * width);
                    forward_tile(self.level, layer.matrix, x, rows.clone(), first, panel, (out, width));
                    let (low, b) = (low.view(rows.clone(), 0..low.width()), pair.b(columns.clone()).t());
                    multiply(out, width, low, b, pair.module.scale, true);
                    for (row, z) in rows.zip(out.chunks_exact(width)) {
                        let dy = &dy.row(row)[columns.clone()];
                        sums.iter_mut().zip(z).zip(dy).for_each(|((sum, z), dy)| *sum += f64::from(z * dy));
                    }
                });
            }
            tile.row(0).iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
        })?;
        let along = along.row(0).iter().zip(&dora.inverse_norms);
        grads[place].iter_mut().zip(along).for_each(|(grad, (along, inverse))| *grad += along * inverse);
        Ok(())
    }

    /// The sum of what comes back through all layers.
    fn input<const N: usize>(self, inner: [Inner<'_>; N], dx: &mut Plane) -> Result<()> {
        let inputs = dx.width();
        self.tiles([dx], (TOKENS, PANEL), 1, |place, tile| {
            let (first_row, first, width) = (place.row * TOKENS, place.column * PANEL, tile.columns());
            let rows = first_row..first_row + tile.rows();
            let columns = first..inputs.min(first + width);
            in_room(|Room { panel, out, more }| {
                let (out, more) = (taken(out, rows.len() * width), taken(more, rows.len() * width));
                let level = self.level;
                for (at, this) in inner.into_iter().enumerate() {
                    let Back { layer, dy, dropped, .. } = this.back;
                    let mut through = |dy: &Plane, out: &mut [f32], factor: f32, add: bool| {
                        let all = 0..layer.matrix.rows();
                        back_tile(level, layer.matrix, all, (dy, factor), &rows, &columns, panel, (out, width), add);
                    };
                    through(if dropped.is_some() { dy } else { this.dz }, out, 1.0, at > 0);
                    let Some(pair) = layer.pair else { continue };
                    let (d_low, a) = (this.d_low.view(rows.clone(), 0..pair.module.rank), pair.a(columns.clone()));
                    let Some(dropped) = dropped else {
                        multiply(out, width, d_low, a, 1.0, true);
                        continue;
                    };
                    multiply(more, width, d_low, a, 1.0, false);
                    if pair.dora.is_some() {
                        through(this.dz, more, 1.0, true);
                        through(dy, more, -1.0, true);
                    }
                    let masked = out.chunks_exact_mut(width).zip(more.chunks_exact(width));
                    for (row, (out, more)) in rows.clone().zip(masked) {
                        let mask = &dropped.mask.row(row)[columns.clone()];
                        out.iter_mut().zip(more).zip(mask).for_each(|((out, more), mask)| *out += more * mask);
                    }
                }
                out.chunks_exact(width).enumerate().for_each(|(row, values)| put(tile.row(row), values, false));
            });
        })
    }

    /// dx = dy W, of the output layer.
    pub fn through(self, matrix: &Matrix, dy: &Plane, dx: &mut Plane) -> Result<()> {
        for from in (0..matrix.rows()).step_by(SPAN) {
            let span = from..matrix.rows().min(from + SPAN);
            let inputs = dx.width();
            self.tiles([&mut *dx], (TOKENS, PANEL), 1, |place, tile| {
                let (first_row, first, width) = (place.row * TOKENS, place.column * PANEL, tile.columns());
                let rows = first_row..first_row + tile.rows();
                let columns = first..inputs.min(first + width);
                in_room(|Room { panel, out, .. }| {
                    let out = taken(out, rows.len() * width);
                    let dy = (dy, 1.0);
                    back_tile(self.level, matrix, span.clone(), dy, &rows, &columns, panel, (out, width), false);
                    out.chunks_exact(width).enumerate().for_each(|(row, values)| put(tile.row(row), values, from > 0));
                });
            })?;
        }
        Ok(())
    }
}

/// out `[rows, width]` = factor · dy W, or += where `add`: some rows of dy, some columns of W, and of what is summed over the
/// rows `span` of W, which begins at a multiple of sixteen.
#[allow(clippy::too_many_arguments)] // what, where, into what: no three of them belong together
fn back_tile(
    level: Level,
    matrix: &Matrix,
    span: Range<usize>,
    (dy, factor): (&Plane, f32),
    rows: &Range<usize>,
    columns: &Range<usize>,
    panel: &mut Vec<f32>,
    (out, width): (&mut [f32], usize),
    add: bool,
) {
    for from in span.clone().step_by(DEPTH) {
        let to = span.end.min(from + DEPTH);
        let stride = (to - from).next_multiple_of(LANES);
        let panel = taken(panel, columns.len() * stride);
        for group in 0..stride / LANES {
            matrix.widen(level, from / LANES + group, columns.clone(), &mut panel[group * LANES..], stride);
        }
        let w = View::rows(panel, columns.len(), to - from, stride).t();
        multiply(out, width, dy.view(rows.clone(), from..to), w, factor, add || from > span.start);
    }
}
