//! Decoding: one sequence through the packed weights, about five regions a layer.

use std::sync::Arc;

use super::attention::{HeadCache, STRETCH, Sight};
use super::interleaved::{Interleaved, TILE};
use super::math::{rms_norm, rotate};
use super::matrix::Input;
use super::pairs::Pairs;
use super::plane::Plane;
use super::products::{Layer, On};
use super::rounded::Rounded;
use super::tiles::Regions;
use super::weights::Block;
use super::{Shared, Turns};
use crate::error::Result;
use crate::model::Decoder;
use crate::model::lora::Target;

/// Tokens that go through the network at once.
const CHUNK: usize = 256;

pub(super) struct CpuDecoder {
    shared: Arc<Shared>,
    pairs: Option<Pairs>,
    /// By layer and key/value head.
    caches: Vec<Vec<HeadCache>>,
    len: usize,
    /// Every product is of f32 activations, and keys and values keep every bit: of a network that is exact, or since this
    /// decoder was asked to score.
    exact: bool,
    room: Room,
}

/// The activations of some tokens on their way, kept from call to call.
#[derive(Default)]
struct Room {
    /// The residual stream, `[tokens, hidden]`.
    stream: Plane,
    /// What a region reads, `[tokens, in]`, and the same as its products take it.
    x: Plane,
    taken: Taken,
    q: Plane,
    k: Plane,
    v: Plane,
    gated: Plane,
    /// `[tokens, head_dim / 2]`
    cos: Plane,
    sin: Plane,
}

/// See [`Input`].
#[derive(Default)]
struct Taken {
    numbers: Interleaved,
    rounded: Rounded,
}

impl CpuDecoder {
    pub fn new(shared: Arc<Shared>, pairs: Option<Pairs>) -> Self {
        let (exact, room) = (shared.exact, Room::default());
        let caches = caches(&shared, exact);
        CpuDecoder { shared, pairs, caches, len: 0, exact, room }
    }

    /// Appends `ids`, few and checked. Their hidden states after the last norm are `room.x` then.
    fn append(&mut self, ids: &[u32]) {
        let CpuDecoder { shared, pairs, caches, len: past, exact, room } = self;
        let (config, weights) = (&shared.config, &shared.weights);
        let (on, past, tokens) = (shared.on(*exact), *past, ids.len());
        room.stream.resize(tokens, config.hidden_size);
        room.turns(&shared.turns, past, tokens);
        on.pool.rows(&mut room.stream, |row, out| weights.embed.read(ids[row] as usize, out));
        for (at, (block, caches)) in weights.blocks.iter().zip(caches).enumerate() {
            let layer = |target: Target| {
                let pair = pairs.as_ref().and_then(|pairs| pairs.get(at, target));
                Layer { pair, ..block.layer(target) }
            };
            let [q, k, v] = [Target::Q, Target::K, Target::V].map(layer);
            for (layer, out) in [(q, &mut room.q), (k, &mut room.k), (v, &mut room.v)] {
                out.resize(tokens, layer.matrix.rows());
            }
            room.normalise(on, &block.input_norm, config.rms_norm_eps);
            let x = room.taken.of(on, &room.x, &[q, k, v]);
            on.linear([q, k, v], x, [&mut room.q, &mut room.k, &mut room.v], false);
            room.attend(on, block, caches, (past, config.head_dim), config.rms_norm_eps);
            let o = layer(Target::O);
            let x = room.taken.of(on, &room.x, &[o]);
            on.linear([o], x, [&mut room.stream], true);

            let [gate, up, down] = [Target::Gate, Target::Up, Target::Down].map(layer);
            room.normalise(on, &block.post_norm, config.rms_norm_eps);
            room.gated.resize(tokens, gate.matrix.rows());
            let x = room.taken.of(on, &room.x, &[gate, up]);
            on.gated(gate, up, x, &mut room.gated);
            let x = room.taken.of(on, &room.gated, &[down]);
            on.linear([down], x, [&mut room.stream], true);
        }
        room.normalise(on, &weights.norm, config.rms_norm_eps);
        self.len += tokens;
    }

    /// Logits of the rows of `hidden`, `[rows, vocab]`.
    fn logits(&mut self, hidden: &Plane) -> Plane {
        let (shared, head) = (&self.shared, self.shared.weights.head());
        let on = shared.on(self.exact);
        let mut logits = Plane::new(hidden.rows(), head.matrix.rows());
        let x = self.room.taken.of(on, hidden, &[head]);
        on.linear([head], x, [&mut logits], false);
        logits
    }
}

fn caches(shared: &Shared, full: bool) -> Vec<Vec<HeadCache>> {
    let config = &shared.config;
    let heads = || (0..config.kv_heads).map(|_| HeadCache::new(config.head_dim, full)).collect();
    (0..config.layers).map(|_| heads()).collect()
}

impl Taken {
    /// `x` in the forms that one of the layers can make use of.
    fn of<'a>(&'a mut self, on: On<'_>, x: &'a Plane, layers: &[Layer<'_>]) -> Input<'a> {
        let rounds = |layer: &Layer<'_>| !on.exact && layer.matrix.is_coded();
        let rounded = layers.iter().any(rounds);
        if rounded {
            self.rounded.fill(on.pool, on.level, x);
        }
        let stays = |layer: &Layer<'_>| layer.matrix.stays().is_some();
        if layers.iter().any(|layer| layer.pair.is_some() || !rounds(layer) && !stays(layer)) {
            self.numbers.fill(on.pool, on.level, x, 0..x.width());
        }
        Input { plane: x, numbers: &self.numbers, rounded: rounded.then_some(&self.rounded) }
    }
}

impl Room {
    /// Cosines and sines of the positions from `past` on.
    fn turns(&mut self, turns: &Turns, past: usize, tokens: usize) {
        self.cos.resize(tokens, turns.frequencies.len());
        self.sin.resize(tokens, turns.frequencies.len());
        for token in 0..tokens {
            turns.of(past + token, self.cos.row_mut(token), self.sin.row_mut(token));
        }
    }

    fn normalise(&mut self, on: On<'_>, weight: &[f32], eps: f64) {
        let stream = &self.stream;
        self.x.resize(stream.rows(), stream.width());
        on.pool.rows(&mut self.x, |row, out| rms_norm(on.level, stream.row(row), weight, eps as f32, out));
    }

    /// Appends keys and values to the caches of a layer, and puts what the queries see into `x`.
    fn attend(&mut self, on: On<'_>, block: &Block, caches: &mut [HeadCache], (past, dim): (usize, usize), eps: f64) {
        let Room { x, q, k, v, cos, sin, .. } = self;
        let (q, k, v, cos, sin) = (&*q, &*k, &*v, &*cos, &*sin);
        let head_of = |from: &Plane, token: usize, head: usize, norm: Option<&Vec<f32>>, out: &mut [f32]| {
            let head = &from.row(token)[head * dim..][..dim];
            match norm {
                Some(norm) => rms_norm(on.level, head, norm, eps as f32, out),
                None => out.copy_from_slice(head),
            }
            rotate(out, cos.row(token), sin.row(token));
        };
        on.pool.each(caches, |head, cache| {
            let mut key = vec![0.0; dim];
            for token in 0..k.rows() {
                head_of(k, token, head, block.k_norm.as_ref(), &mut key);
                cache.push(&key, &v.row(token)[head * dim..][..dim]);
            }
        });
        let (caches, group) = (&*caches, q.width() / dim / caches.len());
        let scale = 1.0 / (dim as f32).sqrt();
        // Queries of a tile and of the heads that share a key, and the positions that they see.
        let queries_of = |first: usize, tokens: usize, shared: usize| {
            let mut queries = vec![0.0; tokens * group * dim];
            for (at, query) in queries.chunks_exact_mut(dim).enumerate() {
                let (token, head) = (first + at / group, shared * group + at % group);
                head_of(q, token, head, block.q_norm.as_ref(), query);
                query.iter_mut().for_each(|x| *x *= scale);
            }
            let seen: Vec<usize> = (0..tokens * group).map(|at| past + first + at / group + 1).collect();
            (queries, seen)
        };
        x.resize(q.rows(), q.width());
        let (tokens, stretches) = (q.rows(), (past + q.rows()).div_ceil(STRETCH));
        if tokens <= TILE && stretches > 1 {
            // There are few heads: so the stretches are what threads share.
            let sights = on.pool.map(caches.len() * stretches, |at| {
                let (queries, seen) = queries_of(0, tokens, at / stretches);
                caches[at / stretches].look(on.level, at % stretches, &queries, &seen)
            });
            let mut sights = sights.into_iter();
            for head in 0..caches.len() {
                let Some(all) = sights.by_ref().take(stretches).reduce(Sight::and) else { continue };
                for (token, values) in all.values().chunks_exact(group * dim).enumerate() {
                    x.row_mut(token)[head * group * dim..][..group * dim].copy_from_slice(values);
                }
            }
            return;
        }
        on.pool.tiles([x], (TILE, group * dim), 1, |place, tile| {
            let (queries, seen) = queries_of(place.row * TILE, tile.rows(), place.column);
            let values = caches[place.column].attend(on.level, &queries, &seen);
            for (row, values) in values.chunks_exact(group * dim).enumerate() {
                tile.row(row).copy_from_slice(values);
            }
        });
    }
}

impl Decoder for CpuDecoder {
    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.caches.iter_mut().flatten().for_each(|cache| cache.truncate(len));
    }

    fn forward(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.shared.check(ids)?;
        ids.chunks(CHUNK).for_each(|chunk| self.append(chunk));
        let hidden = &self.room.x;
        let mut last = Plane::new(1, hidden.width());
        last.row_mut(0).copy_from_slice(hidden.row(hidden.rows() - 1));
        Ok(self.logits(&last).row(0).to_vec())
    }

    fn forward_each(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        self.shared.check(ids)?;
        let mut each = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            self.append(chunk);
            let hidden = std::mem::take(&mut self.room.x);
            let logits = self.logits(&hidden);
            self.room.x = hidden;
            each.extend((0..chunk.len()).map(|row| logits.row(row).to_vec()));
        }
        Ok(each)
    }

    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.shared.check(ids)?;
        if !self.exact {
            self.exact = true;
            self.caches = caches(&self.shared, true);
        }
        let mut logprobs = Vec::with_capacity(ids.len());
        for (at, chunk) in ids.chunks(CHUNK).enumerate() {
            self.append(chunk);
            let next = &ids[at * CHUNK + 1..ids.len().min(at * CHUNK + chunk.len() + 1)];
            for (first, next) in (0..).step_by(TILE).zip(next.chunks(TILE)) {
                let mut hidden = Plane::new(next.len(), self.room.x.width());
                for row in 0..next.len() {
                    hidden.row_mut(row).copy_from_slice(self.room.x.row(first + row));
                }
                let logits = self.logits(&hidden);
                logprobs.extend(next.iter().enumerate().map(|(row, id)| logprob(logits.row(row), *id as usize)));
            }
        }
        Ok(logprobs)
    }
}

/// log softmax(logits)[id]
fn logprob(logits: &[f32], id: usize) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - largest).exp())).sum();
    (f64::from(logits[id] - largest) - sum.ln()) as f32
}
