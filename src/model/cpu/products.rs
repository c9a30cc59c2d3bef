//! Regions of matrix products: groups of sixteen rows are the tasks, and what follows a product is done where it is made.

use super::interleaved::{Interleaved, TILE};
use super::kernels::{LANES, Level};
use super::math::swiglu;
use super::matrix::{Input, Matrix};
use super::plane::Plane;
use super::pool::Pool;
use super::tiles::Regions;

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
    low: Interleaved,
}

impl Lowered<'_> {
    /// Sixteen columns of the layer's output, for rows of the input from `first` on.
    fn group(&self, on: On<'_>, group: usize, x: Input<'_>, first: usize, out: &mut [[f32; LANES]]) {
        let Layer { matrix, bias, pair } = self.layer;
        matrix.times(on.level, group, x, first, out);
        if let Some(pair) = pair {
            for b in on.parts(&pair.b) {
                let mut more = [[0.0; LANES]; TILE];
                let more = &mut more[..out.len()];
                b.times(on.level, group, Input { numbers: &self.low, rounded: None }, first, more);
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
}

impl On<'_> {
    /// What is computed with of a pair's matrix.
    fn parts(self, both: &[Matrix; 2]) -> &[Matrix] {
        if self.exact { both } else { &both[..1] }
    }

    /// outs[i] = layers[i](x), or += where `add`.
    pub fn linear<const N: usize>(self, layers: [Layer<'_>; N], x: Input<'_>, outs: [&mut Plane; N], add: bool) {
        let groups = layers.iter().map(|layer| layer.matrix.groups()).sum();
        let rows = outs[0].rows();
        let layers = self.lower(layers, x, rows);
        self.pool.tiles(outs, (rows, LANES), self.each(groups), |place, tile| {
            for first in (0..tile.rows()).step_by(TILE) {
                let mut out = [[0.0; LANES]; TILE];
                let out = &mut out[..TILE.min(tile.rows() - first)];
                layers[place.plane].group(self, place.column, x, first, out);
                for (row, values) in (first..).zip(out) {
                    let place = tile.row(row);
                    match add {
                        true => place.iter_mut().zip(values).for_each(|(place, value)| *place += *value),
                        false => place.copy_from_slice(values),
                    }
                }
            }
        });
    }

    /// out = silu(gate(x)) · up(x)
    pub fn gated(self, gate: Layer<'_>, up: Layer<'_>, x: Input<'_>, out: &mut Plane) {
        let groups = gate.matrix.groups();
        let all = out.rows();
        let [gate, up] = self.lower([gate, up], x, all);
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

    /// How many of `groups` a thread takes at once: neighbours in memory, and few enough that none waits long for the last.
    fn each(self, groups: usize) -> usize {
        (groups / (self.pool.threads() * 8)).max(1)
    }

    /// The first halves of the layers' pairs, in one region.
    fn lower<'a, const N: usize>(self, layers: [Layer<'a>; N], x: Input<'_>, rows: usize) -> [Lowered<'a>; N] {
        let mut lows =
            layers.map(|layer| layer.pair.map_or(Plane::default(), |pair| Plane::new(rows, pair.a[0].rows())));
        self.pool.tiles(lows.each_mut(), (TILE, LANES), 1, |place, tile| {
            let Some(pair) = layers[place.plane].pair else { return };
            for (part, a) in self.parts(&pair.a).iter().enumerate() {
                let mut out = [[0.0; LANES]; TILE];
                let out = &mut out[..tile.rows()];
                a.times(self.level, place.column, Input { rounded: None, ..x }, place.row * TILE, out);
                for (row, values) in out.iter().enumerate() {
                    let low = tile.row(row).iter_mut().zip(values);
                    low.for_each(|(low, value)| *low = if part == 0 { 0.0 } else { *low } + pair.scale * value);
                }
            }
        });
        let mut lows = lows.iter().map(|low| Interleaved::new(self.pool, self.level, low));
        layers.map(|layer| Lowered { layer, low: lows.next().unwrap_or_default() })
    }
}
