//! Regions of matrix products: groups of sixteen rows are the tasks, and what follows a product is done where it is made.

use super::kernels::{LANES, Level};
use super::math::swiglu;
use super::matrix::{Input, Matrix, TILE};
use super::plane::Plane;
use super::pool::Pool;

/// Where products are computed.
#[derive(Clone, Copy)]
pub struct On<'a> {
    pub pool: &'a Pool,
    pub level: Level,
}

/// A linear layer: its weights, and what comes on top.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    pub matrix: &'a Matrix,
    pub bias: Option<&'a [f32]>,
    pub pair: Option<&'a Pair>,
}

/// A LoRA pair: y += scale · B(A x).
#[derive(Debug)]
pub struct Pair {
    /// `[rank, in]`
    pub a: Matrix,
    /// `[out, rank]`
    pub b: Matrix,
    pub scale: f32,
}

/// A layer with scale · A x of all rows.
struct Lowered<'a> {
    layer: Layer<'a>,
    low: Option<Plane>,
}

impl Lowered<'_> {
    /// Sixteen columns of the layer's output, for rows of the input from `first` on.
    fn group(&self, level: Level, group: usize, x: Input<'_>, first: usize, out: &mut [[f32; LANES]]) {
        let Layer { matrix, bias, pair } = self.layer;
        matrix.times(level, group, x, first, out);
        if let (Some(pair), Some(low)) = (pair, &self.low) {
            let mut more = [[0.0; LANES]; TILE];
            let more = &mut more[..out.len()];
            pair.b.times(level, group, Input { plane: low, rounded: None }, first, more);
            out.as_flattened_mut().iter_mut().zip(more.as_flattened()).for_each(|(out, more)| *out += more);
        }
        if let Some(bias) = bias.and_then(|bias| bias.get(group * LANES..)) {
            out.iter_mut().for_each(|out| out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias));
        }
    }
}

impl On<'_> {
    /// outs[i] = layers[i](x), or += where `add`.
    pub fn linear<const N: usize>(self, layers: [Layer<'_>; N], x: Input<'_>, outs: [&mut Plane; N], add: bool) {
        let groups = layers.iter().map(|layer| layer.matrix.groups()).sum();
        let layers = layers.map(|layer| self.lower(layer, x));
        self.pool.tiles(outs, (x.plane.rows(), LANES), self.each(groups), |place, tile| {
            for first in (0..tile.rows()).step_by(TILE) {
                let mut out = [[0.0; LANES]; TILE];
                let out = &mut out[..TILE.min(tile.rows() - first)];
                layers[place.plane].group(self.level, place.column, x, first, out);
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
        let [gate, up] = [gate, up].map(|layer| self.lower(layer, x));
        self.pool.tiles([out], (x.plane.rows(), LANES), self.each(groups), |place, tile| {
            for first in (0..tile.rows()).step_by(TILE) {
                let (mut gated, mut ups) = ([[0.0; LANES]; TILE], [[0.0; LANES]; TILE]);
                let rows = TILE.min(tile.rows() - first);
                let (gated, ups) = (&mut gated[..rows], &mut ups[..rows]);
                gate.group(self.level, place.column, x, first, gated);
                up.group(self.level, place.column, x, first, ups);
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

    fn lower<'a>(self, layer: Layer<'a>, x: Input<'_>) -> Lowered<'a> {
        let low = layer.pair.map(|pair| {
            let plain = Input { plane: x.plane, rounded: None };
            let mut low = Plane::new(x.plane.rows(), pair.a.rows());
            self.linear([Layer { matrix: &pair.a, bias: None, pair: None }], plain, [&mut low], false);
            low.data_mut().iter_mut().for_each(|low| *low *= pair.scale);
            low
        });
        Lowered { layer, low }
    }
}
