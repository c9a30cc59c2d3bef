//! Causal attention of training rows, forward and backward: each row sees itself.
//!
//! Scores exist for a few queries at a time, and are made again in the backward, which needs queries, keys and values alone.
//! With P = softmax(s · Q Kᵀ) and O = P V: dV = Pᵀ dO; dS = P ∘ (dP − Σ dP ∘ P), dP = dO Vᵀ; dQ = s · dS K; dK = s · dSᵀ Q.

use std::ops::Range;

use super::polite::Polite;
use super::strips::{Left, Strips};
use crate::error::Result;
use crate::model::cpu::kernels::{LANES, Level};
use crate::model::cpu::math::{softmax, softmax_back};
use crate::model::cpu::plane::Plane;
use crate::model::cpu::products::put;
use crate::model::cpu::room::{Room, in_room, taken};
use crate::model::cpu::tiles::Regions;

/// Queries whose scores exist at once, and which are all given as many keys as the last of them sees.
const QUERIES: usize = 48;
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
    /// The first rows of its results, in the order of the tasks: of a row for each query, and of one for each token from the
    /// row's start to the last query.
    first_query: usize,
    first_key: usize,
}

/// What flows back from a segment.
struct Slopes<'a> {
    /// `[queries, head_dim]`
    q: &'a mut [f32],
    /// Of the tokens from the row's start to the last query, `[seen, head_dim]`.
    k: &'a mut [f32],
    v: &'a mut [f32],
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
        let (mut all, mut first_query, mut first_key) = (Vec::new(), 0, 0);
        for Part { start, tokens } in parts {
            for head in 0..self.heads() {
                all.push(Segment { start: *start, queries: tokens.clone(), head, first_query, first_key });
                first_query += tokens.len();
                first_key += tokens.end - start;
            }
        }
        all
    }

    /// The columns of a head of q, and of its keys and values.
    fn columns(&self, head: usize) -> (Range<usize>, Range<usize>) {
        let group = self.q.width() / self.k.width();
        let of = |head: usize| head * self.head_dim..(head + 1) * self.head_dim;
        (of(head), of(head / group))
    }

    /// How far apart rows of scores lie: no power of two, whose rows would have the same few places in a cache.
    fn scores_stride(seen: usize) -> usize {
        seen.next_multiple_of(2 * LANES) + LANES
    }

    /// softmax(q Kᵀ) of some queries of a segment, `[queries, seen]`: keys from the row's start to the last of them.
    fn scores(&self, level: Level, segment: &Segment, queries: Range<usize>, turned_k: &Strips, out: &mut [f32]) {
        let (seen, stride) = (queries.end - segment.start, Self::scores_stride(queries.end - segment.start));
        let q = rows_of(self.q, queries.start, self.columns(segment.head).0);
        turned_k.times(level, q, (self.head_dim, seen), (out, stride), false);
        for (query, scores) in queries.zip(out.chunks_exact_mut(stride)) {
            let (visible, hidden) = scores[..seen].split_at_mut(query + 1 - segment.start);
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
        let (level, dim, heads, parts) = (self.level, attention.head_dim, attention.heads(), attention.parts());
        let segments = attention.segments(&parts);
        let mut mixed = self.plane(attention.q.rows() * heads, dim);
        let stride = mixed.stride();
        self.each(&mut split(&mut mixed, segments.iter().map(|segment| segment.queries.len())), |at, mixed| {
            let segment = &segments[at];
            let (_, theirs) = attention.columns(segment.head);
            in_room(|Room { out, strips: [turned_k, v, ..], .. }| {
                let keys = segment.start..segment.queries.end;
                turned_k.fill_turned(level, attention.k, keys.clone(), theirs.clone());
                v.fill(attention.v, keys, theirs);
                for (queries, mixed) in Attention::pieces(segment).zip(mixed.chunks_mut(QUERIES * stride)) {
                    let seen = queries.end - segment.start;
                    let p_stride = Attention::scores_stride(seen);
                    let p = taken(out, queries.len() * p_stride);
                    attention.scores(level, segment, queries, turned_k, p);
                    v.times(level, Left::Rows(p, p_stride), (seen, dim), (mixed, stride), false);
                }
            });
        })?;
        let mut out = self.plane(attention.q.rows(), attention.q.width());
        self.rows(&mut out, |token, out| {
            let (part, at) = place(&parts, token);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                out.copy_from_slice(mixed.row(segments[part * heads + head].first_query + at));
            }
        })?;
        Ok(out)
    }

    /// What flows back to q, k and v (as they are given) from that of the result.
    pub fn attend_back(self, attention: Attention<'_>, d_mixed: &Plane) -> Result<[Plane; 3]> {
        let (level, dim, heads, parts) = (self.level, attention.head_dim, attention.heads(), attention.parts());
        let segments = attention.segments(&parts);
        let seen = |segment: &Segment| segment.queries.end - segment.start;
        let all_seen = segments.iter().map(seen).sum();
        let [mut of_q, mut of_k, mut of_v] =
            [attention.q.rows() * heads, all_seen, all_seen].map(|rows| self.plane(rows, dim));
        let stride = of_q.stride();
        let of_q_split = split(&mut of_q, segments.iter().map(|segment| segment.queries.len()));
        let of_keys =
            split(&mut of_k, segments.iter().map(seen)).into_iter().zip(split(&mut of_v, segments.iter().map(seen)));
        let mut slopes: Vec<Slopes<'_>> =
            of_q_split.into_iter().zip(of_keys).map(|(q, (k, v))| Slopes { q, k, v }).collect();
        self.each(&mut slopes, |at, Slopes { q: d_q, k: d_k, v: d_v }| {
            let segment = &segments[at];
            let (mine, theirs) = attention.columns(segment.head);
            let keys = segment.start..segment.queries.end;
            d_k.fill(0.0);
            d_v.fill(0.0);
            in_room(|Room { out, more, strips: [turned_k, turned_v, k, q, d_out], .. }| {
                turned_k.fill_turned(level, attention.k, keys.clone(), theirs.clone());
                turned_v.fill_turned(level, attention.v, keys.clone(), theirs.clone());
                k.fill(attention.k, keys, theirs);
                for (queries, d_q) in Attention::pieces(segment).zip(d_q.chunks_mut(QUERIES * stride)) {
                    let (n, seen) = (queries.len(), queries.end - segment.start);
                    let p_stride = Attention::scores_stride(seen);
                    let (p, d) = (taken(out, n * p_stride), taken(more, n * p_stride));
                    attention.scores(level, segment, queries.clone(), turned_k, p);
                    q.fill(attention.q, queries.clone(), mine.clone());
                    d_out.fill(d_mixed, queries.clone(), mine.clone());
                    let (d_k, d_v) = (&mut d_k[..seen * stride], &mut d_v[..seen * stride]);
                    d_out.times(level, Left::Columns(p, p_stride), (n, dim), (d_v, stride), true);
                    let d_out = rows_of(d_mixed, queries.start, mine.clone());
                    turned_v.times(level, d_out, (dim, seen), (d, p_stride), false);
                    for (p, d) in p.chunks_exact(p_stride).zip(d.chunks_exact_mut(p_stride)) {
                        softmax_back(level, &p[..seen], &mut d[..seen]);
                    }
                    k.times(level, Left::Rows(d, p_stride), (seen, dim), (d_q, stride), false);
                    q.times(level, Left::Columns(d, p_stride), (n, dim), (d_k, stride), true);
                }
            });
        })?;
        let [mut d_q, mut d_k, mut d_v] =
            [attention.q, attention.k, attention.v].map(|x| self.plane(x.rows(), x.width()));
        self.rows(&mut d_q, |token, out| {
            let (part, at) = place(&parts, token);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                out.copy_from_slice(of_q.row(segments[part * heads + head].first_query + at));
            }
        })?;
        // A key is seen by all the heads that share it, from its own part of the row and from later ones.
        let sum = |token: usize, out: &mut [f32], of: &Plane| {
            let (part, _) = place(&parts, token);
            let (start, group) = (parts[part].start, heads * dim / out.len());
            let of_row = parts.iter().enumerate().skip(part).take_while(|(_, part)| part.start == start);
            out.fill(0.0);
            for (part, _) in of_row {
                for head in 0..heads {
                    let slope = of.row(segments[part * heads + head].first_key + token - start);
                    put(&mut out[head / group * dim..][..dim], slope, true);
                }
            }
        };
        self.rows(&mut d_k, |token, out| sum(token, out, &of_k))?;
        self.rows(&mut d_v, |token, out| sum(token, out, &of_v))?;
        Ok([d_q, d_k, d_v])
    }
}

/// Some columns of the rows from `first` on.
fn rows_of(x: &Plane, first: usize, columns: Range<usize>) -> Left<'_> {
    Left::Rows(&x.data()[first * x.stride() + columns.start..], x.stride())
}

/// A plane's rows, so many each.
fn split(plane: &mut Plane, rows: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let stride = plane.stride();
    let mut rest = plane.data_mut();
    rows.map(|rows| rest.split_off_mut(..rows * stride).unwrap_or_default()).collect()
}

/// The part that a token is in, and its place there.
fn place(parts: &[Part], token: usize) -> (usize, usize) {
    let part = parts.partition_point(|part| part.tokens.end <= token);
    (part, token - parts[part].tokens.start)
}
