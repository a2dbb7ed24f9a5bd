//! Rows on their way from the shard that holds them to the logical rank that trains on them, and their losses on the way
//! home.
//!
//! Strata are ordered by shard, and row k is trained on by logical rank ⌊k·M/B⌋: both suppliers and consumers cover
//! contiguous ranges of the batch in the same order. With equal masses every row stays where it is; only the imbalance moves.

use crate::error::Result;
use crate::layout::Rank;
use crate::parallel::World;
use std::ops::Range;
use tch::{Kind, Tensor};

/// Who sends how many rows to whom.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Rows this rank sends to each rank.
    send: Vec<usize>,
    /// Rows this rank receives from each rank.
    receive: Vec<usize>,
}

/// What one draw sends between ranks, all of them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Rows of the batch that are trained on elsewhere than they are held.
    pub rows: usize,
    /// Bytes, the way home included.
    pub bytes: usize,
    /// Messages that are not empty.
    pub messages: usize,
}

impl Route {
    /// From the ranges of the batch that each rank supplies and consumes, in rank order.
    pub fn new(rank: Rank, supplied: &[Range<usize>], consumed: &[Range<usize>]) -> Self {
        let overlap = |a: &Range<usize>, b: &Range<usize>| a.end.min(b.end).saturating_sub(a.start.max(b.start));
        let mine = rank.0;
        Self {
            send: consumed.iter().map(|c| overlap(&supplied[mine], c)).collect(),
            receive: supplied.iter().map(|s| overlap(s, &consumed[mine])).collect(),
        }
    }

    /// Rows this rank sends to other ranks.
    pub fn rows_sent_away(&self, rank: Rank) -> usize {
        self.send.iter().sum::<usize>() - self.send[rank.0]
    }

    /// What all ranks together send for one draw of rows of `row_bytes` bytes over `logical` shards, from the same ranges: to every other rank
    /// 24 bytes per hosted shard; to those who train on them the rows that move; and back 4 bytes a row.
    pub fn cost(logical: usize, supplied: &[Range<usize>], consumed: &[Range<usize>], row_bytes: usize) -> Cost {
        let ranks = supplied.len();
        let routes = (0..ranks).map(|rank| (rank, Self::new(Rank(rank), supplied, consumed)));
        let (mut rows, mut pairs) = (0, 0);
        for (rank, route) in routes {
            rows += route.rows_sent_away(Rank(rank));
            pairs += (0..ranks).filter(|&to| to != rank && route.send[to] > 0).count();
        }
        Cost { rows, bytes: 24 * logical * (ranks - 1) + rows * (row_bytes + 4), messages: ranks * (ranks - 1) + 2 * pairs }
    }

    /// Moves rows of bytes, in batch order, to where they are trained on. A collective; one message to each rank.
    pub fn out(&self, world: &World, rows_nb: &Tensor) -> Result<Tensor> {
        Self::travel(world, rows_nb, &self.send, &self.receive)
    }

    /// Moves one f32 per trained row back to where the rows came from. A collective; 4 bytes a row that moved.
    pub fn home(&self, world: &World, values_n: &Tensor) -> Result<Tensor> {
        Self::travel(world, values_n, &self.receive, &self.send)
    }

    fn travel(world: &World, rows: &Tensor, send: &[usize], receive: &[usize]) -> Result<Tensor> {
        if world.layout().ranks() == 1 {
            return Ok(rows.shallow_clone());
        }
        let _span = tracing::debug_span!("communication", what = "rows").entered();
        let width: i64 = rows.size()[1..].iter().product();
        let mut size = rows.size();
        size[0] = receive.iter().sum::<usize>() as i64;
        let received = Tensor::empty(size.as_slice(), (rows.kind(), rows.device()));
        let elements = |counts: &[usize]| -> Vec<usize> { counts.iter().map(|n| n * width as usize).collect() };
        world.comm().all_to_all(&rows.contiguous(), &elements(send), &received, &elements(receive))?;
        Ok(received)
    }
}

/// Lays tensors side by side as bytes, `[n, …]` each → `[n, bytes]`.
pub fn pack(parts: &[&Tensor]) -> Tensor {
    let as_bytes = |t: &&Tensor| {
        let rows = t.size()[0];
        t.contiguous().view([rows, -1]).view_dtype(Kind::Uint8)
    };
    let wide: Vec<Tensor> = parts.iter().filter(|t| t.size()[1..].iter().product::<i64>() > 0).map(as_bytes).collect();
    Tensor::cat(&wide, 1)
}

/// Takes packed rows apart: each part's shape per row and kind, in order.
pub fn unpack(rows_nb: &Tensor, parts: &[(&[i64], Kind)]) -> Vec<Tensor> {
    let n = rows_nb.size()[0];
    let mut at = 0;
    parts
        .iter()
        .map(|(shape, kind)| {
            let size: Vec<i64> = std::iter::once(n).chain(shape.iter().copied()).collect();
            let bytes = shape.iter().product::<i64>() * kind.elt_size_in_bytes() as i64;
            if bytes == 0 {
                return Tensor::zeros(size.as_slice(), (*kind, rows_nb.device()));
            }
            // A copy of its own puts the values on an aligned address.
            let part = rows_nb.narrow(1, at, bytes).copy().contiguous();
            at += bytes;
            part.view_dtype(*kind).view(size.as_slice())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill;

    #[test]
    fn packed_rows_come_apart_unchanged() {
        let images = (fill(1, &[5, 3, 7]) * 100.0 + 100.0).to_kind(Kind::Uint8);
        let logits = fill(2, &[5, 4]);
        let nothing = Tensor::zeros([5, 0], (Kind::Float, tch::Device::Cpu));
        let ids = Tensor::arange(10, (Kind::Int64, tch::Device::Cpu)).view([5, 2]);
        let back = unpack(
            &pack(&[&images, &logits, &nothing, &ids]),
            &[(&[3, 7], Kind::Uint8), (&[4], Kind::Float), (&[0], Kind::Float), (&[2], Kind::Int64)],
        );
        for (got, want) in back.iter().zip([&images, &logits, &nothing, &ids]) {
            assert!(got.equal(want));
        }
    }

    #[test]
    fn equal_masses_move_nothing() {
        let ranges = [0..4, 4..8, 8..12];
        let route = Route::new(Rank(1), &ranges, &ranges);
        assert_eq!((route.rows_sent_away(Rank(1)), route.send, route.receive), (0, vec![0, 4, 0], vec![0, 4, 0]));
    }

    #[test]
    fn only_the_imbalance_moves() {
        let (supplied, consumed) = ([0..6, 6..7, 7..12], [0..4, 4..8, 8..12]);
        let routes: Vec<Route> = (0..3).map(|r| Route::new(Rank(r), &supplied, &consumed)).collect();
        assert_eq!(routes[0].send, [4, 2, 0]);
        assert_eq!(routes[1].receive, [2, 1, 1]);
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            assert_eq!(routes[from].send[to], routes[to].receive[from]);
        }
    }
}
