//! A block on the way forward, and on the way back.

use super::adapter::Adapter;
use super::attention::Attention;
use super::back::{Back, Dropped};
use super::linear::Linear;
use super::polite::Polite;
use crate::error::Result;
use crate::model::cpu::Shared;
use crate::model::cpu::math::{gated, gated_back, rms_back, rms_norm, rotate};
use crate::model::cpu::plane::Plane;
use crate::model::cpu::tiles::Regions;
use crate::model::cpu::weights::Block;
use crate::model::dropout::Dropout;
use crate::model::lora::Target;
use crate::model::packed::Packed;

use Target::{Down, Gate, K, O, Q, Up, V};

/// Rows, and what they run through; enough to compute any block, and to compute it again.
pub struct Course<'a> {
    pub on: Polite<'a>,
    pub shared: &'a Shared,
    /// None: the base alone.
    pub adapter: Option<&'a Adapter>,
    pub dropout: Option<Dropout>,
    pub packed: Packed,
    /// Of each token's position, `[tokens, head_dim / 2]`.
    pub cos: Plane,
    pub sin: Plane,
}

/// What the backward of a block takes from its forward; norms, scores and the gate's activation are made again.
pub struct Kept {
    /// As the products gave them.
    q: Plane,
    k: Plane,
    v: Plane,
    /// What the queries saw.
    mixed: Plane,
    /// The residual stream behind the attention.
    middle: Plane,
    gate: Plane,
    up: Plane,
    /// A(d) of each layer, by place in [`Target::ALL`].
    lows: [Plane; 7],
}

/// Numbers that [`Kept`] and a block's input have for each token, without those of the pairs.
pub fn kept_numbers(config: &crate::model::config::ModelConfig) -> usize {
    let outs = |target| config.linear_shape(target).1;
    2 * outs(Q) + outs(K) + outs(V) + outs(Gate) + outs(Up) + 2 * config.hidden_size
}

impl<'a> Course<'a> {
    /// The first hidden states, `[tokens, hidden]`.
    pub fn embed(&self) -> Result<Plane> {
        let (ids, weights) = (&self.packed.ids, &self.shared.weights);
        let mut x = Plane::new(ids.len(), self.shared.config.hidden_size);
        self.on.rows(&mut x, |token, out| weights.embed.read(ids[token] as usize, out))?;
        Ok(x)
    }

    pub fn normalised(&self, x: &Plane, weight: &[f32]) -> Result<Plane> {
        let (mut out, eps) = (self.on.plane(x.rows(), x.width()), self.eps());
        self.on.rows(&mut out, |row, out| rms_norm(self.on.level, x.row(row), weight, eps, out))?;
        Ok(out)
    }

    /// Of `[tokens, …]` the rows that predict the targets.
    fn predicting(&self, x: &Plane) -> Plane {
        let mut some = self.on.plane(self.packed.predicting.len(), x.width());
        for (row, token) in self.packed.predicting.iter().enumerate() {
            some.row_mut(row).copy_from_slice(x.row(*token as usize));
        }
        some
    }

    /// What comes back to rows that predict targets, beside nothing for the others: `[tokens, …]`.
    fn spread(&self, some: &Plane) -> Plane {
        let mut all = self.on.plane(self.packed.ids.len(), some.width());
        all.data_mut().fill(0.0);
        for (row, token) in self.packed.predicting.iter().enumerate() {
            all.row_mut(*token as usize).copy_from_slice(some.row(row));
        }
        all
    }

    /// Behind its attention, the last block has rows for the targets alone: nothing is asked of the others.
    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.shared.config.layers
    }

    /// One block: `x`, `[tokens, hidden]`, becomes the next; behind the last one, `[targets, hidden]`.
    pub fn forward(&self, layer: usize, x: &mut Plane) -> Result<Kept> {
        let block = &self.shared.weights.blocks[layer];
        let new = |rows, target| self.on.plane(rows, self.shared.config.linear_shape(target).1);
        let [mut q, mut k, mut v] = [Q, K, V].map(|target| new(x.rows(), target));
        let h = self.normalised(x, &block.input_norm)?;
        let [low_q, low_k, low_v] = self.linear(layer, [Q, K, V], &h, [&mut q, &mut k, &mut v], false)?;
        let [turned_q, turned_k] = self.turned(block, &q, &k)?;
        let mut mixed = self.on.attend(self.attention(&turned_q, &turned_k, &v))?;
        if self.is_last(layer) {
            (mixed, *x) = (self.predicting(&mixed), self.predicting(x));
        }
        let [low_o] = self.linear(layer, [O], &mixed, [&mut *x], true)?;
        let middle = self.on.copied(x)?;
        let h = self.normalised(x, &block.post_norm)?;
        let [mut gate, mut up] = [Gate, Up].map(|target| new(x.rows(), target));
        let [low_gate, low_up] = self.linear(layer, [Gate, Up], &h, [&mut gate, &mut up], false)?;
        let h = self.gated(&gate, &up)?;
        let [low_down] = self.linear(layer, [Down], &h, [&mut *x], true)?;
        let lows = [low_q, low_k, low_v, low_o, low_gate, low_up, low_down];
        Ok(Kept { q, k, v, mixed, middle, gate, up, lows })
    }

    /// From the gradient of a block's output, `d`, to that of its input `x`, in its place (both of the shapes that
    /// [`forward`](Self::forward) names). Those of the pairs are added to
    /// `grads`. In the `lowest` block that learns, what lies before its pairs is left out, and `d` is of no meaning then.
    pub fn back(
        &self,
        layer: usize,
        x: &Plane,
        kept: Kept,
        d: &mut Plane,
        grads: &mut [f32],
        lowest: bool,
    ) -> Result<()> {
        let (block, on, eps) = (&self.shared.weights.blocks[layer], self.on, self.eps());
        let Kept {
            q,
            k,
            v,
            mixed,
            middle,
            mut gate,
            up,
            lows: [low_q, low_k, low_v, low_o, low_gate, low_up, low_down],
        } = kept;
        let goes_on =
            |targets: &[Target]| !lowest || targets.iter().any(|target| self.linear_of(layer, *target).pair.is_some());
        let like = |x: &Plane| on.plane(x.rows(), x.width());

        let (h, mut d_h) = (self.gated(&gate, &up)?, like(&gate));
        let before = goes_on(&[Q, K, V, O, Gate, Up]);
        self.linear_back(layer, [Down], &h, [&*d], [&low_down], grads, before.then_some(&mut d_h))?;
        drop(h);
        if !before {
            return Ok(());
        }
        let stride = gate.stride();
        let mut both: Vec<(&mut [f32], &mut [f32])> =
            gate.data_mut().chunks_mut(stride).zip(d_h.data_mut().chunks_mut(stride)).collect();
        on.each(&mut both, |row, (gate, d)| gated_back(on.level, gate, up.row(row), d))?;
        let (d_gate, d_up) = (gate, d_h);
        drop(up);

        let (h, mut d_h) = (self.normalised(&middle, &block.post_norm)?, like(&middle));
        let before = goes_on(&[Q, K, V, O]);
        let (ds, lows) = ([&d_gate, &d_up], [&low_gate, &low_up]);
        self.linear_back(layer, [Gate, Up], &h, ds, lows, grads, before.then_some(&mut d_h))?;
        drop((d_gate, d_up));
        if !before {
            return Ok(());
        }
        on.rows(d, |row, d| rms_back(on.level, middle.row(row), &block.post_norm, eps, d_h.row(row), d))?;

        let (mut d_mixed, before) = (like(&mixed), goes_on(&[Q, K, V]));
        self.linear_back(layer, [O], &mixed, [&*d], [&low_o], grads, before.then_some(&mut d_mixed))?;
        if !before {
            return Ok(());
        }
        if self.is_last(layer) {
            (d_mixed, *d) = (self.spread(&d_mixed), self.spread(d));
        }
        let [turned_q, turned_k] = self.turned(block, &q, &k)?;
        let [mut d_q, mut d_k, d_v] = on.attend_back(self.attention(&turned_q, &turned_k, &v), &d_mixed)?;
        self.turned_back(&q, block.q_norm.as_deref(), self.scale(), &mut d_q)?;
        self.turned_back(&k, block.k_norm.as_deref(), 1.0, &mut d_k)?;

        let (h, mut d_h) = (self.normalised(x, &block.input_norm)?, like(x));
        let (ds, lows) = ([&d_q, &d_k, &d_v], [&low_q, &low_k, &low_v]);
        self.linear_back(layer, [Q, K, V], &h, ds, lows, grads, (!lowest).then_some(&mut d_h))?;
        if lowest {
            return Ok(());
        }
        on.rows(d, |row, d| rms_back(on.level, x.row(row), &block.input_norm, eps, d_h.row(row), d))
    }

    fn eps(&self) -> f32 {
        self.shared.config.rms_norm_eps as f32
    }

    /// Of the scores.
    fn scale(&self) -> f32 {
        1.0 / (self.shared.config.head_dim as f32).sqrt()
    }

    fn linear_of(&self, layer: usize, target: Target) -> Linear<'a> {
        let bare = self.shared.weights.blocks[layer].layer(target);
        let pair = self.adapter.and_then(|adapter| adapter.pair(layer, target));
        Linear { matrix: bare.matrix, bias: bare.bias, pair }
    }

    fn linear<const N: usize>(
        &self,
        layer: usize,
        targets: [Target; N],
        x: &Plane,
        outs: [&mut Plane; N],
        add: bool,
    ) -> Result<[Plane; N]> {
        let dropped = self.dropped(layer, targets, x)?;
        let dropped = dropped.each_ref().map(|dropped| dropped.as_ref().map(|dropped| &dropped.x));
        self.on.linear(targets.map(|target| self.linear_of(layer, target)), x, dropped, outs, add)
    }

    #[allow(clippy::too_many_arguments)] // the layers, what they took, what comes back, and where it goes
    fn linear_back<const N: usize>(
        &self,
        layer: usize,
        targets: [Target; N],
        x: &Plane,
        ds: [&Plane; N],
        lows: [&Plane; N],
        grads: &mut [f32],
        dx: Option<&mut Plane>,
    ) -> Result<()> {
        let dropped = self.dropped(layer, targets, x)?;
        let back = |at: usize| Back {
            layer: self.linear_of(layer, targets[at]),
            dy: ds[at],
            low: lows[at],
            dropped: dropped[at].as_ref(),
        };
        self.on.back(std::array::from_fn::<_, N, _>(back), x, grads, dx)
    }

    /// What the pairs see in place of x, where inputs are dropped.
    fn dropped<const N: usize>(&self, layer: usize, targets: [Target; N], x: &Plane) -> Result<[Option<Dropped>; N]> {
        let mut all = targets.map(|_| None);
        let Some(dropout) = self.dropout else { return Ok(all) };
        self.on.each(&mut all, |at, place| {
            if self.linear_of(layer, targets[at]).pair.is_none() {
                return;
            }
            let mut mask = Plane::new(self.packed.ids.len(), x.width());
            let mut numbers = dropout.mask(layer, targets[at]);
            for token in 0..mask.rows() {
                mask.row_mut(token).iter_mut().zip(&mut numbers).for_each(|(mask, number)| *mask = number);
            }
            if self.is_last(layer) && !matches!(targets[at], Q | K | V) {
                mask = self.predicting(&mask);
            }
            let mut kept = x.clone();
            for row in 0..x.rows() {
                kept.row_mut(row).iter_mut().zip(mask.row(row)).for_each(|(kept, mask)| *kept *= mask);
            }
            *place = Some(Dropped { x: kept, mask });
        })?;
        Ok(all)
    }

    fn gated(&self, gate: &Plane, up: &Plane) -> Result<Plane> {
        let mut out = self.on.plane(gate.rows(), gate.width());
        self.on.rows(&mut out, |row, out| gated(self.on.level, gate.row(row), up.row(row), out))?;
        Ok(out)
    }

    fn attention<'b>(&'b self, q: &'b Plane, k: &'b Plane, v: &'b Plane) -> Attention<'b> {
        Attention { rows: &self.packed.rows, head_dim: self.shared.config.head_dim, q, k, v }
    }

    /// Queries and keys as attention takes them: normalised (Qwen3), turned, queries scaled.
    fn turned(&self, block: &Block, q: &Plane, k: &Plane) -> Result<[Plane; 2]> {
        let turned = |x: &Plane, norm: Option<&Vec<f32>>, scale: f32| -> Result<Plane> {
            let (mut out, dim) = (self.on.plane(x.rows(), x.width()), self.shared.config.head_dim);
            self.on.rows(&mut out, |token, out| {
                for (head, x) in out.chunks_exact_mut(dim).zip(x.row(token).chunks_exact(dim)) {
                    match norm {
                        Some(norm) => rms_norm(self.on.level, x, norm, self.eps(), head),
                        None => head.copy_from_slice(x),
                    }
                    rotate(head, self.cos.row(token), self.sin.row(token));
                    head.iter_mut().for_each(|x| *x *= scale);
                }
            })?;
            Ok(out)
        };
        Ok([turned(q, block.q_norm.as_ref(), self.scale())?, turned(k, block.k_norm.as_ref(), 1.0)?])
    }

    /// What flows back through [`turned`](Self::turned) to queries or keys `x`, in the place of `d`.
    fn turned_back(&self, x: &Plane, norm: Option<&[f32]>, scale: f32, d: &mut Plane) -> Result<()> {
        let dim = self.shared.config.head_dim;
        self.on.rows(d, |token, d| {
            let back: Vec<f32> = self.sin.row(token).iter().map(|sin| -sin).collect();
            for (d, x) in d.chunks_exact_mut(dim).zip(x.row(token).chunks_exact(dim)) {
                d.iter_mut().for_each(|d| *d *= scale);
                rotate(d, self.cos.row(token), &back);
                if let Some(norm) = norm {
                    let mut before = vec![0.0; dim];
                    rms_back(self.on.level, x, norm, self.eps(), d, &mut before);
                    d.copy_from_slice(&before);
                }
            }
        })
    }
}
