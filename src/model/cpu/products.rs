//! Regions of matrix products: groups of sixteen rows are the tasks, and what follows a product is done where it is made.
//! One row of input takes several groups abreast, many rows take panels where f32 is computed with; the bits are the same.

use super::interleaved::{Interleaved, TILE};
use super::kernels::dot::ABREAST;
use super::kernels::{LANES, Level};
use super::math::swiglu;
use super::matrix::{Input, Matrix};
use super::panel::Panel;
use super::plane::Plane;
use super::pool::Pool;
use super::room::{Room, in_room, taken};
use super::tiles::Regions;

/// Columns of a task that makes panels: as many as kernels take at once, or twice that.
const PANEL: usize = 32;

/// Where products are computed, and how.
#[derive(Clone, Copy)]
pub struct On<'a> {
    pub pool: &'a Pool,
    pub level: Level,
    /// Every bit counts: see `CpuDecoder::exact`.
    pub exact: bool,
}

/// A linear layer: its weights, and what comes on top.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    pub matrix: &'a Matrix,
    pub bias: Option<&'a [f32]>,
    pub pair: Option<&'a Pair>,
}

/// A LoRA pair: y = gain ∘ (W x + scale · B(A x)).
///
/// Each matrix is the sum of two ([`halved`](super::halves::halved)); the first alone serves where not every bit counts.
#[derive(Debug)]
pub struct Pair {
    /// `[rank, in]`
    pub a: [Matrix; 2],
    /// `[out, rank]`
    pub b: [Matrix; 2],
    pub scale: f32,
    /// DoRA's factor of each output, `[out]`; None: 1.
    pub gain: Option<Vec<f32>>,
}

/// A layer with scale · A x of all rows, if it has a pair.
struct Lowered<'a> {
    layer: Layer<'a>,
    low: Plane,
    /// The same, as the second products read it.
    numbers: Interleaved,
}

impl Lowered<'_> {
    fn low(&self) -> Input<'_> {
        Input { plane: &self.low, numbers: &self.numbers, rounded: None }
    }

    /// Sixteen columns of the layer's output, for rows of the input from `first` on.
    fn group(&self, on: On<'_>, group: usize, x: Input<'_>, first: usize, out: &mut [[f32; LANES]]) {
        let Layer { matrix, bias, pair } = self.layer;
        matrix.times(on.level, group, x, first, out);
        if let Some(pair) = pair {
            for b in on.parts(&pair.b) {
                let mut more = [[0.0; LANES]; TILE];
                let more = &mut more[..out.len()];
                b.times(on.level, group, self.low(), first, more);
                out.as_flattened_mut().iter_mut().zip(more.as_flattened()).for_each(|(out, more)| *out += more);
            }
            if let Some(gain) = pair.gain.as_ref().and_then(|gain| gain.get(group * LANES..)) {
                out.iter_mut().for_each(|out| out.iter_mut().zip(gain).for_each(|(out, gain)| *out *= gain));
            }
        }
        if let Some(bias) = bias.and_then(|bias| bias.get(group * LANES..)) {
            out.iter_mut().for_each(|out| out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias));
        }
    }

    /// Columns of the layer's output from `first` on, `[rows, width]`, for all rows of the input.
    fn panel(&self, on: On<'_>, first: usize, x: Input<'_>, panel: &mut Panel, (out, width): (&mut [f32], usize)) {
        let Layer { matrix, bias, pair } = self.layer;
        match matrix.stays() {
            // Whole groups, as all of its rows are.
            Some(all) => all.times(on.level, first..first + width, (x.plane, 0..out.len() / width), (out, width)),
            None => {
                out.fill(0.0);
                panel.product(on.level, matrix, x.numbers, (0, first), (out, width), None);
            }
        }
        if let Some(pair) = pair {
            for b in on.parts(&pair.b) {
                let mut more = vec![0.0; out.len()];
                panel.product(on.level, b, &self.numbers, (0, first), (&mut more, width), None);
                out.iter_mut().zip(more).for_each(|(out, more)| *out += more);
            }
        }
        let gain = pair.and_then(|pair| pair.gain.as_deref()).and_then(|gain| gain.get(first..));
        let bias = bias.and_then(|bias| bias.get(first..));
        for out in out.chunks_exact_mut(width) {
            out.iter_mut().zip(gain.unwrap_or_default()).for_each(|(out, gain)| *out *= gain);
            out.iter_mut().zip(bias.unwrap_or_default()).for_each(|(out, bias)| *out += bias);
        }
    }

    /// Columns of the layer's output from a group on, for an input of one row.
    fn row(&self, on: On<'_>, group: usize, x: Input<'_>, out: &mut [[f32; LANES]]) {
        let Layer { matrix, bias, pair } = self.layer;
        if let Some(pair) = pair {
            // What comes when the groups are done lies elsewhere: it is there by then.
            for (b, group) in on.parts(&pair.b).iter().flat_map(|b| (group..).take(out.len()).map(move |g| (b, g))) {
                b.fetch(on.level, group, 0..b.columns());
            }
        }
        matrix.times_one(on.level, group, x, out);
        if let Some(pair) = pair {
            for b in on.parts(&pair.b) {
                let mut more = [[0.0; LANES]; ABREAST];
                let more = &mut more[..out.len()];
                b.times_one(on.level, group, self.low(), more);
                out.as_flattened_mut().iter_mut().zip(more.as_flattened()).for_each(|(out, more)| *out += more);
            }
            if let Some(gain) = pair.gain.as_ref().and_then(|gain| gain.get(group * LANES..)) {
                out.as_flattened_mut().iter_mut().zip(gain).for_each(|(out, gain)| *out *= gain);
            }
        }
        if let Some(bias) = bias.and_then(|bias| bias.get(group * LANES..)) {
            out.as_flattened_mut().iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }
}

impl On<'_> {
    /// What is computed with of a pair's matrix.
    fn parts(self, both: &[Matrix; 2]) -> &[Matrix] {
        if self.exact { both } else { &both[..1] }
    }

    /// outs[i] = layers[i](x), or += where `add`.
    pub fn linear<const N: usize>(self, layers: [Layer<'_>; N], x: Input<'_>, outs: [&mut Plane; N], add: bool) {
        let groups = layers.iter().map(|layer| layer.matrix.groups()).sum();
        let (rows, abreast) = (outs[0].rows(), self.abreast(&layers, outs[0].rows()));
        let layers = self.lower(layers, x, rows);
        if abreast {
            self.pool.tiles(outs, (1, ABREAST * LANES), self.each(groups / ABREAST), |place, tile| {
                let mut out = [[0.0; LANES]; ABREAST];
                let out = &mut out[..tile.columns() / LANES];
                layers[place.plane].row(self, place.column * ABREAST, x, out);
                put(tile.row(0), out.as_flattened(), add);
            });
            return;
        }
        if x.rounded.is_none() && rows > TILE {
            self.pool.tiles(outs, (rows, PANEL), 1, |place, tile| {
                in_room(|Room { panel, out, .. }| {
                    let width = tile.columns();
                    let out = taken(out, rows * width);
                    layers[place.plane].panel(self, place.column * PANEL, x, panel, (out, width));
                    out.chunks_exact(width).enumerate().for_each(|(row, values)| put(tile.row(row), values, add));
                });
            });
            return;
        }
        self.pool.tiles(outs, (rows, LANES), self.each(groups), |place, tile| {
            for first in (0..tile.rows()).step_by(TILE) {
                let mut out = [[0.0; LANES]; TILE];
                let out = &mut out[..TILE.min(tile.rows() - first)];
                layers[place.plane].group(self, place.column, x, first, out);
                for (row, values) in (first..).zip(out) {
                    put(tile.row(row), values, add);
                }
            }
        });
    }

    /// out = silu(gate(x)) · up(x)
    pub fn gated(self, gate: Layer<'_>, up: Layer<'_>, x: Input<'_>, out: &mut Plane) {
        let groups = gate.matrix.groups();
        let (all, abreast) = (out.rows(), self.abreast(&[gate, up], out.rows()));
        let [gate, up] = self.lower([gate, up], x, all);
        if abreast {
            self.pool.tiles([out], (1, ABREAST * LANES), self.each(groups / ABREAST), |place, tile| {
                let (mut gated, mut ups) = ([[0.0; LANES]; ABREAST], [[0.0; LANES]; ABREAST]);
                let (of, first) = (tile.columns() / LANES, place.column * ABREAST);
                let (gated, ups) = (&mut gated[..of], &mut ups[..of]);
                gate.row(self, first, x, gated);
                up.row(self, first, x, ups);
                swiglu(self.level, gated, ups);
                tile.row(0).copy_from_slice(gated.as_flattened());
            });
            return;
        }
        if x.rounded.is_none() && all > TILE {
            self.pool.tiles([out], (all, PANEL), 1, |place, tile| {
                in_room(|Room { panel, out, more, .. }| {
                    let (first, width) = (place.column * PANEL, tile.columns());
                    let (gated, ups) = (taken(out, all * width), taken(more, all * width));
                    gate.panel(self, first, x, panel, (gated, width));
                    up.panel(self, first, x, panel, (ups, width));
                    swiglu(self.level, gated.as_chunks_mut().0, ups.as_chunks().0);
                    gated.chunks_exact(width).enumerate().for_each(|(row, values)| put(tile.row(row), values, false));
                });
            });
            return;
        }
        self.pool.tiles([out], (all, LANES), self.each(groups), |place, tile| {
            for first in (0..tile.rows()).step_by(TILE) {
                let (mut gated, mut ups) = ([[0.0; LANES]; TILE], [[0.0; LANES]; TILE]);
                let rows = TILE.min(tile.rows() - first);
                let (gated, ups) = (&mut gated[..rows], &mut ups[..rows]);
                gate.group(self, place.column, x, first, gated);
                up.group(self, place.column, x, first, ups);
                swiglu(self.level, gated, ups);
                for (row, values) in (first..).zip(gated) {
                    tile.row(row).copy_from_slice(values);
                }
            }
        });
    }

    /// Whether one row of input goes through several groups at once: where products wait for their own sums, those of the
    /// weights or those of pairs.
    fn abreast(self, layers: &[Layer<'_>], rows: usize) -> bool {
        rows == 1 && layers.iter().all(|layer| layer.pair.is_some() || !layer.matrix.is_coded())
    }

    /// How many of `groups` a thread takes at once: neighbours in memory, and few enough that none waits long for the last.
    fn each(self, groups: usize) -> usize {
        (groups / (self.pool.threads() * 8)).max(1)
    }

    /// The first products of the layers' pairs, in one region: each half of the columns is a task, so that two threads read.
    fn lower<'a, const N: usize>(self, layers: [Layer<'a>; N], x: Input<'_>, rows: usize) -> [Lowered<'a>; N] {
        let groups = |layer: Layer<'_>| layer.pair.map_or(0, |pair| pair.a[0].groups());
        let mut halves = layers.map(|layer| Plane::new(rows, 2 * groups(layer) * LANES));
        self.pool.tiles(halves.each_mut(), (TILE, LANES), 1, |place, tile| {
            let Some(pair) = layers[place.plane].pair else { return };
            for a in self.parts(&pair.a) {
                let mut out = [[0.0; LANES]; TILE];
                let out = &mut out[..tile.rows()];
                a.times_half(self.level, (place.column / 2, place.column % 2), x, place.row * TILE, out);
                out.iter().enumerate().for_each(|(row, values)| put(tile.row(row), values, true));
            }
        });
        let mut halves = halves.iter();
        layers.map(|layer| {
            let (Some(pair), Some(halves)) = (layer.pair, halves.next()) else {
                return Lowered { layer, low: Plane::default(), numbers: Interleaved::default() };
            };
            let mut low = Plane::new(rows, pair.a[0].rows());
            for row in 0..rows {
                let sixteens = halves.row(row).as_chunks::<LANES>().0.as_chunks().0;
                for (low, [left, right]) in low.row_mut(row).chunks_mut(LANES).zip(sixteens) {
                    let both = left.iter().zip(right);
                    low.iter_mut().zip(both).for_each(|(low, (left, right))| *low = pair.scale * (left + right));
                }
            }
            let numbers = Interleaved::new(self.pool, self.level, &low);
            Lowered { layer, low, numbers }
        })
    }
}

/// place = values, or += where `add`.
pub fn put(place: &mut [f32], values: &[f32], add: bool) {
    match add {
        true => place.iter_mut().zip(values).for_each(|(place, value)| *place += *value),
        false => place.copy_from_slice(values),
    }
}
