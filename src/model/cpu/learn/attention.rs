//! Causal attention of training rows, forward and backward: each row sees itself.
//!
//! Scores exist for a few queries at a time, and are made again in the backward, which needs queries, keys and values alone.
//! With P = softmax(s · Q Kᵀ) and O = P V: dV = Pᵀ dO; dS = P ∘ (dP − Σ dP ∘ P), dP = dO Vᵀ; dQ = s · dS K; dK = s · dSᵀ Q.

use std::ops::Range;

use super::polite::Polite;
use crate::error::Result;
use crate::model::cpu::kernels::Level;
use crate::model::cpu::math::{softmax, softmax_back};
use crate::model::cpu::plane::Plane;
use crate::model::cpu::products::put;
use crate::model::cpu::room::{Room, in_room, taken};
use crate::model::cpu::tiles::Regions;
use crate::model::product::{self, Parallelism, View};

/// Queries whose scores exist at once.
const QUERIES: usize = 64;
/// Queries of a task.
const SEGMENT: usize = 512;

/// What attends to what: tokens of rows that lie behind each other.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Where each row begins and how long it is.
    pub rows: &'a [(usize, usize)],
    pub head_dim: usize,
    /// `[tokens, heads · head_dim]`, turned, normalised and scaled.
    pub q: &'a Plane,
    /// `[tokens, kv_heads · head_dim]`, turned and normalised.
    pub k: &'a Plane,
    pub v: &'a Plane,
}

/// Some tokens of a row.
struct Part {
    /// Where the row begins.
    start: usize,
    tokens: Range<usize>,
}

/// Their queries of one head: a task.
struct Segment {
    start: usize,
    queries: Range<usize>,
    head: usize,
}

/// What flows back from a segment, row-major.
#[derive(Default)]
struct Slopes {
    /// `[queries, head_dim]`
    q: Vec<f32>,
    /// Of the tokens from the row's start to the last query, `[seen, head_dim]`.
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Attention<'_> {
    /// All tokens, in their order.
    fn parts(&self) -> Vec<Part> {
        let of_row = |&(start, len): &(usize, usize)| {
            let part = move |from| Part { start, tokens: start + from..start + len.min(from + SEGMENT) };
            (0..len).step_by(SEGMENT).map(part)
        };
        self.rows.iter().flat_map(of_row).collect()
    }

    fn heads(&self) -> usize {
        self.q.width() / self.head_dim
    }

    /// The tasks: all heads of the first part, then all of the next.
    fn segments(&self, parts: &[Part]) -> Vec<Segment> {
        let of_part = |part: &Part| {
            let (start, queries) = (part.start, part.tokens.clone());
            (0..self.heads()).map(move |head| Segment { start, queries: queries.clone(), head })
        };
        parts.iter().flat_map(of_part).collect()
    }

    /// The columns of a head of q, and of its keys and values.
    fn columns(&self, head: usize) -> (Range<usize>, Range<usize>) {
        let group = self.q.width() / self.k.width();
        let of = |head: usize| head * self.head_dim..(head + 1) * self.head_dim;
        (of(head), of(head / group))
    }

    /// softmax(q Kᵀ) of some queries of a segment, `[queries, seen]`: keys from the row's start to the last of them.
    fn scores(&self, level: Level, segment: &Segment, queries: Range<usize>, out: &mut [f32]) {
        let ((mine, theirs), seen) = (self.columns(segment.head), queries.end - segment.start);
        let k = self.k.view(segment.start..queries.end, theirs);
        multiply(out, seen, self.q.view(queries.clone(), mine), k.t(), 1.0, false);
        for (query, scores) in queries.zip(out.chunks_exact_mut(seen)) {
            let (visible, hidden) = scores.split_at_mut(query + 1 - segment.start);
            softmax(level, visible);
            hidden.fill(0.0);
        }
    }

    /// Pieces of a segment's queries.
    fn pieces(segment: &Segment) -> impl Iterator<Item = Range<usize>> {
        let Range { start, end } = segment.queries;
        (start..end).step_by(QUERIES).map(move |from| from..end.min(from + QUERIES))
    }
}

impl Polite<'_> {
    /// What the queries see, `[tokens, heads · head_dim]`.
    pub fn attend(self, attention: Attention<'_>) -> Result<Plane> {
        let (dim, parts) = (attention.head_dim, attention.parts());
        let segments = attention.segments(&parts);
        let mut mixed: Vec<Vec<f32>> = vec![Vec::new(); segments.len()];
        self.each(&mut mixed, |at, mixed| {
            let segment = &segments[at];
            let (_, theirs) = attention.columns(segment.head);
            mixed.resize(segment.queries.len() * dim, 0.0);
            for (queries, mixed) in Attention::pieces(segment).zip(mixed.chunks_mut(QUERIES * dim)) {
                in_room(|Room { out, .. }| {
                    let seen = queries.end - segment.start;
                    let p = taken(out, queries.len() * seen);
                    attention.scores(self.level, segment, queries.clone(), p);
                    let v = attention.v.view(segment.start..queries.end, theirs.clone());
                    multiply(mixed, dim, View::rows(p, queries.len(), seen, seen), v, 1.0, false);
                });
            }
        })?;
        let mut out = self.plane(attention.q.rows(), attention.q.width());
        self.rows(&mut out, |token, out| {
            let (part, at) = place(&parts, token);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                out.copy_from_slice(&mixed[part * attention.heads() + head][at * dim..][..dim]);
            }
        })?;
        Ok(out)
    }

    /// What flows back to q, k and v (as they are given) from that of the result.
    pub fn attend_back(self, attention: Attention<'_>, d_mixed: &Plane) -> Result<[Plane; 3]> {
        let (dim, heads, parts) = (attention.head_dim, attention.heads(), attention.parts());
        let segments = attention.segments(&parts);
        let mut slopes: Vec<Slopes> = segments.iter().map(|_| Slopes::default()).collect();
        self.each(&mut slopes, |at, slopes| {
            let segment = &segments[at];
            let (mine, theirs) = attention.columns(segment.head);
            let all = segment.queries.end - segment.start;
            *slopes =
                Slopes { q: vec![0.0; segment.queries.len() * dim], k: vec![0.0; all * dim], v: vec![0.0; all * dim] };
            for (queries, d_q) in Attention::pieces(segment).zip(slopes.q.chunks_mut(QUERIES * dim)) {
                in_room(|Room { out, more, .. }| {
                    let (n, seen) = (queries.len(), queries.end - segment.start);
                    let (p, d) = (taken(out, n * seen), taken(more, n * seen));
                    attention.scores(self.level, segment, queries.clone(), p);
                    let d_mixed = d_mixed.view(queries.clone(), mine.clone());
                    let keys = segment.start..queries.end;
                    let (k, v) =
                        (attention.k.view(keys.clone(), theirs.clone()), attention.v.view(keys, theirs.clone()));
                    multiply(&mut slopes.v, dim, View::rows(p, n, seen, seen).t(), d_mixed, 1.0, true);
                    multiply(d, seen, d_mixed, v.t(), 1.0, false);
                    for (p, d) in p.chunks_exact(seen).zip(d.chunks_exact_mut(seen)) {
                        softmax_back(self.level, p, d);
                    }
                    let d = View::rows(d, n, seen, seen);
                    multiply(d_q, dim, d, k, 1.0, false);
                    multiply(&mut slopes.k, dim, d.t(), attention.q.view(queries, mine.clone()), 1.0, true);
                });
            }
        })?;
        let [mut d_q, mut d_k, mut d_v] =
            [attention.q, attention.k, attention.v].map(|x| self.plane(x.rows(), x.width()));
        self.rows(&mut d_q, |token, out| {
            let (part, at) = place(&parts, token);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                out.copy_from_slice(&slopes[part * heads + head].q[at * dim..][..dim]);
            }
        })?;
        // A key is seen by all the heads that share it, from its own part of the row and from later ones.
        let sum = |token: usize, out: &mut [f32], of: &dyn Fn(&Slopes) -> &[f32]| {
            let (part, _) = place(&parts, token);
            let (start, group) = (parts[part].start, heads * dim / out.len());
            let of_row = parts.iter().enumerate().skip(part).take_while(|(_, part)| part.start == start);
            out.fill(0.0);
            for (part, _) in of_row {
                for head in 0..heads {
                    let slope = &of(&slopes[part * heads + head])[(token - start) * dim..][..dim];
                    put(&mut out[head / group * dim..][..dim], slope, true);
                }
            }
        };
        self.rows(&mut d_k, |token, out| sum(token, out, &|slopes| &slopes.k))?;
        self.rows(&mut d_v, |token, out| sum(token, out, &|slopes| &slopes.v))?;
        Ok([d_q, d_k, d_v])
    }
}

/// On one thread: the tasks around it run on the others.
fn multiply(out: &mut [f32], stride: usize, a: View<'_>, b: View<'_>, factor: f32, add: bool) {
    product::product(out, stride, a, b, factor, add, Parallelism::None);
}

/// The part that a token is in, and its place there.
fn place(parts: &[Part], token: usize) -> (usize, usize) {
    let part = parts.partition_point(|part| part.tokens.end <= token);
    (part, token - parts[part].tokens.start)
}
