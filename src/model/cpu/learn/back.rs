//! Linear layers with their pairs, backward: gradients of the pairs, and of the input. The weights are frozen and get none.
//!
//! With g = DoRA's gain (else 1), dz = g ∘ dy and dl = s · dz B, the gradient of A(d): dB = s · dzᵀ A(d), dA = dlᵀ d,
//! dx = dz W + dl A, the magnitude's Σ over tokens of dy ∘ (W d + s · B(A d)) / ‖W + s · B A‖. With dropout what comes through
//! the pair is masked: dx = dy W + mask ∘ ((g − 1) ∘ dy W + dl A).

use std::ops::Range;

use super::linear::{LOW, Linear, Lined, Pair, share};
use super::polite::Polite;
use crate::error::Result;
use crate::model::cpu::kernels::Level;
use crate::model::cpu::matrix::Matrix;
use crate::model::cpu::panel::{DEPTH, Panel, Rows, WIDTH, outer};
use crate::model::cpu::plane::Plane;
use crate::model::cpu::products::put;
use crate::model::cpu::room::{Room, in_room, taken, zeros};
use crate::model::cpu::tiles::{Regions, Spot, Tile};
use crate::model::lora::LoraModule;

/// Rows or columns of a pair's gradient that are a task.
const PIECE: usize = 240;

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

/// Gradients as products take them.
struct Coming {
    dz: Lined,
    /// Where the pair has DoRA and sees another input than the weights.
    dy: Option<Lined>,
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
        let dz: [&Plane; N] = std::array::from_fn(|at| if gained[at].rows() > 0 { &gained[at] } else { backs[at].dy });
        let lined = backs.iter().zip(dz).map(|(back, dz)| {
            let is_other = back.dropped.is_some() && back.layer.pair.is_some_and(|pair| pair.dora.is_some());
            let dy = is_other.then(|| self.lined(back.dy)).transpose()?;
            Ok(Coming { dz: self.lined(dz)?, dy })
        });
        let lined: Vec<Coming> = lined.collect::<Result<_>>()?;
        let d_low = self.d_low(&backs, &lined)?;
        let inner: [Inner<'_>; N] = std::array::from_fn(|at| Inner { back: backs[at], dz: dz[at], d_low: &d_low[at] });
        self.pairs(inner, x, grads)?;
        for back in &backs {
            if let Some(pair) = back.layer.pair {
                self.magnitude(back, pair, x, grads)?;
            }
        }
        dx.map_or(Ok(()), |dx| self.input(inner, &lined, dx))
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

    /// dl
    fn d_low<const N: usize>(self, backs: &[Back<'_>; N], lined: &[Coming]) -> Result<[Plane; N]> {
        let low = |back: &Back<'_>| {
            let pair = back.layer.pair;
            pair.map_or(Plane::default(), |pair| Plane::new(back.dy.rows(), pair.module.rank))
        };
        let (mut d_low, rows) = (backs.each_ref().map(low), share(backs[0].dy.rows(), LOW));
        self.tiles(d_low.each_mut(), (rows, usize::MAX), 1, |place, tile| {
            let Some(pair) = backs[place.plane].layer.pair else { return };
            let LoraModule { rank, out_features, scale, .. } = *pair.module;
            in_room(|Room { panel, out, .. }| {
                let (first, width, dz) = (place.row * rows, tile.columns(), &lined[place.plane].dz);
                let out = zeros(out, tile.rows() * width);
                for from in (0..out_features).step_by(DEPTH) {
                    let outs = from..out_features.min(from + DEPTH);
                    panel.fill(self.level, dz.form(), (outs.len(), rank), |k, row| {
                        let b = &pair.b[(from + k) * rank..][..rank];
                        row.iter_mut().zip(b).for_each(|(place, b)| *place = scale * b);
                    });
                    panel.times(self.level, dz, outs, first, out);
                }
                out.chunks_exact(width).enumerate().for_each(|(row, d)| put(tile.row(row), d, false));
            });
        })?;
        Ok(d_low)
    }

    /// dA and dB.
    fn pairs<const N: usize>(self, inner: [Inner<'_>; N], x: &Plane, grads: &mut [f32]) -> Result<()> {
        let pairs = inner.map(|inner| inner.back.layer.pair);
        // dB, and dAᵀ: `[out, rank]`, `[in, rank]`.
        let new = |of: fn(&LoraModule) -> usize| {
            pairs.map(|p| p.map_or(Plane::default(), |p| Plane::new(of(p.module), p.module.rank)))
        };
        let (mut d_b, mut d_a) = (new(|module| module.out_features), new(|module| module.in_features));
        let outer_of = |from: &Plane, low: &Plane, first: usize, tile: &mut Tile<'_>| {
            in_room(|Room { out, .. }| {
                let (rows, width) = (tile.rows(), tile.columns());
                let out = zeros(out, rows * width);
                outer(self.level, from, first..first + rows, low, out);
                out.chunks_exact(width).enumerate().for_each(|(row, d)| put(tile.row(row), d, false));
            });
        };
        self.tiles(d_b.each_mut(), (PIECE, usize::MAX), 1, |place, tile| {
            let Inner { back, dz, .. } = inner[place.plane];
            outer_of(dz, back.low, place.row * PIECE, tile);
        })?;
        self.tiles(d_a.each_mut(), (PIECE, usize::MAX), 1, |place, tile| {
            let Inner { back, d_low, .. } = inner[place.plane];
            outer_of(back.dropped.map_or(x, |dropped| &dropped.x), d_low, place.row * PIECE, tile);
        })?;
        for ((pair, d_a), d_b) in pairs.into_iter().zip(&d_a).zip(&d_b) {
            let Some(Pair { module, .. }) = pair else { continue };
            for (out, grads) in grads[module.b.clone()].chunks_exact_mut(module.rank).enumerate() {
                grads.iter_mut().zip(d_b.row(out)).for_each(|(grad, d)| *grad += module.scale * d);
            }
            for (at, grads) in grads[module.a.clone()].chunks_exact_mut(module.in_features).enumerate() {
                let column = d_a.data()[at..].iter().step_by(d_a.stride());
                grads.iter_mut().zip(column).for_each(|(grad, d)| *grad += d);
            }
        }
        Ok(())
    }

    /// DoRA's, if the pair has one.
    fn magnitude(self, back: &Back<'_>, pair: Pair<'_>, x: &Plane, grads: &mut [f32]) -> Result<()> {
        let (Some(dora), Some(place)) = (pair.dora, pair.module.magnitude.clone()) else { return Ok(()) };
        let (Back { layer, dy, low, .. }, x) = (back, back.dropped.map_or(x, |dropped| &dropped.x));
        let (rows, x, low) = (share(x.rows(), self.tokens()), self.lined(x)?, self.lined(low)?);
        let mut along = Plane::new(1, pair.module.out_features);
        self.tiles([&mut along], (1, WIDTH), 1, |place, tile| {
            let (first, width) = (place.column * WIDTH, tile.columns());
            let columns = first..layer.matrix.rows().min(first + width);
            let mut sums = [0f64; WIDTH];
            for from in (0..dy.rows()).step_by(rows) {
                let rows = from..dy.rows().min(from + rows);
                in_room(|Room { panel, out, .. }| {
                    let out = zeros(out, rows.len() * width);
                    panel.product(self.level, layer.matrix, &x, (from, first), (out, width), None);
                    pair.raise_tile(self.level, &low, from, columns.clone(), panel, (out, width));
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
    fn input<const N: usize>(self, inner: [Inner<'_>; N], lined: &[Coming], dx: &mut Plane) -> Result<()> {
        let (inputs, level, rows) = (dx.width(), self.level, share(dx.rows(), self.tokens()));
        let d_lows = inner.iter().map(|inner| self.lined(inner.d_low)).collect::<Result<Vec<_>>>()?;
        self.tiles([dx], (rows, WIDTH), 1, |place, tile| {
            let (first_row, first, width) = (place.row * rows, place.column * WIDTH, tile.columns());
            let columns = first..inputs.min(first + width);
            in_room(|Room { panel, out, more, .. }| {
                let out = zeros(out, tile.rows() * width);
                for ((this, lined), d_low) in inner.into_iter().zip(lined).zip(&d_lows) {
                    let Back { layer, dropped, .. } = this.back;
                    let dy = lined.dy.as_ref().unwrap_or(&lined.dz);
                    let all = 0..layer.matrix.rows();
                    let then = Some(tile.spot());
                    back_tile(level, layer.matrix, all.clone(), dy, &columns, first_row, panel, out, then);
                    let Some(pair) = layer.pair else { continue };
                    let LoraModule { rank, in_features, .. } = *pair.module;
                    let lower = |out: &mut [f32], panel: &mut Panel| {
                        panel.fill(level, d_low.form(), (rank, width), |k, row| {
                            let a = &pair.a[k * in_features..][columns.clone()];
                            row[..a.len()].copy_from_slice(a);
                        });
                        panel.times(level, d_low, 0..rank, first_row, out);
                    };
                    let Some(dropped) = dropped else {
                        lower(out, panel);
                        continue;
                    };
                    let more = zeros(more, tile.rows() * width);
                    if lined.dy.is_some() {
                        back_tile(level, layer.matrix, all.clone(), dy, &columns, first_row, panel, more, None);
                        more.iter_mut().for_each(|more| *more = -*more);
                        back_tile(level, layer.matrix, all, &lined.dz, &columns, first_row, panel, more, None);
                    }
                    lower(more, panel);
                    let masked = out.chunks_exact_mut(width).zip(more.chunks_exact(width));
                    for (row, (out, more)) in (first_row..).zip(masked) {
                        let mask = &dropped.mask.row(row)[columns.clone()];
                        out.iter_mut().zip(more).zip(mask).for_each(|((out, more), mask)| *out += more * mask);
                    }
                }
                out.chunks_exact(width).enumerate().for_each(|(row, values)| put(tile.row(row), values, false));
            });
        })
    }

    /// dx += dy W, of some rows of W from a multiple of sixteen on; dy is of these alone. What is added to is first changed by
    /// `before(row, columns, its numbers)`.
    pub fn through(
        self,
        matrix: &Matrix,
        span: Range<usize>,
        dy: &Lined,
        before: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
        dx: &mut Plane,
    ) -> Result<()> {
        let (inputs, rows) = (dx.width(), share(dx.rows(), self.tokens()));
        self.tiles([dx], (rows, WIDTH), 1, |place, tile| {
            let (first_row, first, width) = (place.row * rows, place.column * WIDTH, tile.columns());
            let columns = first..inputs.min(first + width);
            in_room(|Room { panel, out, .. }| {
                let out = taken(out, tile.rows() * width);
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    out.copy_from_slice(tile.row(row));
                    before(first_row + row, columns.clone(), out);
                }
                back_tile(self.level, matrix, span.clone(), dy, &columns, first_row, panel, out, None);
                out.chunks_exact(width).enumerate().for_each(|(row, values)| put(tile.row(row), values, false));
            });
        })
    }
}

/// out += dy W: rows of dy from `first_row` on, some columns of W, and of what is summed over the rows `span` of W, which
/// begins at a multiple of sixteen. `dy` has the columns of the span alone.
#[allow(clippy::too_many_arguments)] // what, where, into what: no three of them belong together
fn back_tile(
    level: Level,
    matrix: &Matrix,
    span: Range<usize>,
    dy: &Lined,
    columns: &Range<usize>,
    first_row: usize,
    panel: &mut Panel,
    out: &mut [f32],
    then: Option<Spot>,
) {
    for from in span.clone().step_by(DEPTH) {
        let to = span.end.min(from + DEPTH);
        panel.columns(level, dy.form(), matrix, from..to, columns.clone());
        let then = then.filter(|_| to == span.end);
        panel.times_then(level, dy, from - span.start..to - span.start, first_row, out, then);
    }
}
