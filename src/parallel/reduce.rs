//! Sums over logical ranks in the order of a fixed binary tree, so that no bit depends on how many processes share them.

use super::comm::BUCKET;
use super::world::World;
use crate::config::ReduceRule;
use crate::error::{Error, Result};
use crate::layout::{Layout, LogicalRank, Node, Rank, split};
use crate::rng::{Key, Purpose};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The partial sum of one rank: values of its logical ranks, pre-added where the tree adds them anyway.
pub struct TreeSum {
    layout: Layout,
    open: Vec<(Node, Tensor)>,
}

impl TreeSum {
    /// An empty sum.
    pub fn new(layout: Layout) -> Self {
        Self { layout, open: Vec::new() }
    }

    /// Adds the flat f32 value of one hosted logical rank; they come in order. The tensor is taken over and changed.
    pub fn add(&mut self, rank: LogicalRank, value: Tensor) {
        self.open.push((Node { level: 0, index: rank.0 }, value));
        while self.merge() {}
    }

    /// Joins the last two nodes if they are siblings, or lifts the last one if its sibling does not exist.
    fn merge(&mut self) -> bool {
        let Some((node, _)) = self.open.last() else { return false };
        let node = *node;
        if node == self.layout.root() {
            return false;
        }
        let parent = Node { level: node.level + 1, index: node.index / 2 };
        let (left, right) = self.layout.children(parent);
        if right.is_none() {
            if let Some(last) = self.open.last_mut() {
                last.0 = parent;
            }
            return true;
        }
        let left_is_here = self.open.len() >= 2 && self.open[self.open.len() - 2].0 == left;
        if Some(node) == right
            && left_is_here
            && let (Some((_, last)), Some((_, mut sum))) = (self.open.pop(), self.open.pop())
        {
            let _ = sum.g_add_(&last);
            self.open.push((parent, sum));
            return true;
        }
        false
    }

    fn finish(self) -> Vec<(Node, Tensor)> {
        self.open
    }
}

/// Value of `node` from the nodes that are there.
fn combine(layout: &Layout, node: Node, have: &mut BTreeMap<Node, Tensor>) -> Tensor {
    if let Some(value) = have.remove(&node) {
        return value;
    }
    let (left, right) = layout.children(node);
    let mut sum = combine(layout, left, have);
    if let Some(right) = right {
        let _ = sum.g_add_(&combine(layout, right, have));
    }
    sum
}

impl World {
    /// The sum over all logical ranks, flat f32, the same on every rank. A collective.
    ///
    /// Deterministic: an all-to-all hands each rank its chunk of every partial sum, which it adds in tree order; an
    /// all-gather returns the chunks. Bytes sent per rank: 2·4·n·(R−1)/R, those of a ring all-reduce, when each rank has one
    /// partial sum (M/R a power of two), else a multiple of the first half.
    pub fn reduce(&self, sum: TreeSum) -> Result<Tensor> {
        self.reduce_in_buckets(sum, BUCKET)
    }

    fn reduce_in_buckets(&self, sum: TreeSum, bucket: usize) -> Result<Tensor> {
        let _span = tracing::debug_span!("communication", what = "reduce").entered();
        let layout = *self.layout();
        let mut nodes = sum.finish();
        if layout.ranks() == 1 {
            return Ok(combine(&layout, layout.root(), &mut nodes.into_iter().collect()));
        }
        if self.reduce_rule() == ReduceRule::Native {
            let (_, total) = nodes.remove(0);
            nodes.into_iter().for_each(|(_, other)| drop(total.shallow_clone().g_add_(&other)));
            self.comm().all_reduce_native(&total)?;
            return Ok(total);
        }
        let length = nodes[0].1.numel();
        let total = Tensor::empty([length as i64], (Kind::Float, nodes[0].1.device()));
        for start in (0..length).step_by(bucket) {
            self.reduce_bucket(&nodes, start, bucket.min(length - start), &total)?;
        }
        Ok(total)
    }

    fn reduce_bucket(&self, nodes: &[(Node, Tensor)], start: usize, length: usize, total: &Tensor) -> Result<()> {
        let layout = self.layout();
        let ranks = layout.ranks();
        let chunks: Vec<usize> = (0..ranks).map(|r| split(length, ranks, r).len()).collect();
        let bucket = |of: &Tensor| of.narrow(0, start as i64, length as i64);
        let send = match nodes {
            // One partial sum lies in memory just as it is sent.
            [(_, one)] => bucket(one),
            several => {
                let parts: Vec<Tensor> = (0..ranks)
                    .flat_map(|r| several.iter().map(move |(_, value)| (r, value)))
                    .map(|(r, value)| {
                        let chunk = split(length, ranks, r);
                        value.narrow(0, (start + chunk.start) as i64, chunk.len() as i64)
                    })
                    .collect();
                Tensor::cat(&parts, 0)
            }
        };
        let mine = chunks[self.rank().0];
        let send_counts: Vec<usize> = chunks.iter().map(|n| n * nodes.len()).collect();
        let theirs: Vec<Vec<Node>> = (0..ranks).map(|r| layout.whole_nodes(Rank(r))).collect();
        let receive_counts: Vec<usize> = theirs.iter().map(|n| n.len() * mine).collect();
        let receive = Tensor::empty([receive_counts.iter().sum::<usize>() as i64], (Kind::Float, total.device()));
        self.comm().all_to_all(&send, &send_counts, &receive, &receive_counts)?;

        let parts = theirs.into_iter().flatten().enumerate();
        let mut have = parts.map(|(i, node)| (node, receive.narrow(0, (i * mine) as i64, mine as i64))).collect();
        let chunk = combine(layout, layout.root(), &mut have);
        self.comm().all_gather_parts(&chunk, &bucket(total), &chunks)
    }
}

/// The definition: leaves added pairwise, level by level; an odd one passes unchanged.
fn by_hand(mut level: Vec<Tensor>) -> Tensor {
    while level.len() > 1 {
        level = level.chunks(2).map(|pair| if let [a, b] = pair { a + b } else { pair[0].copy() }).collect();
    }
    level.remove(0)
}

/// Sums known values of all logical ranks and compares every bit with the definition. Returns the bytes this rank sent, and
/// those of a ring all-reduce. A collective.
///
/// # Errors
/// Within: a bit that differs. Without: the transport failed on this rank.
pub fn check_sum(world: &World, length: usize) -> Result<Result<(u64, u64)>> {
    let leaf = |rank: LogicalRank| Tensor::from_slice(&Key::of(1, Purpose::Latent, 0, rank).normals(length)).to_device(world.device());
    let mut sum = TreeSum::new(*world.layout());
    world.hosted().for_each(|rank| sum.add(rank, leaf(rank)));
    let before = world.meter().total_bytes();
    let total = world.reduce(sum)?;
    let sent = world.meter().total_bytes() - before;
    if !total.equal(&by_hand((0..world.layout().logical_ranks()).map(|l| leaf(LogicalRank(l))).collect())) {
        return Ok(Err(Error::Comm { operation: "deterministic sum", problem: format!("wrong bits on rank {}", world.rank().0) }));
    }
    let ranks = world.layout().ranks();
    Ok(Ok((sent, (2 * 4 * length * (ranks - 1) / ranks) as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::fill;
    use crate::parallel::test_ranks::{on_each_rank_by, on_ranks};

    #[test]
    fn the_sum_has_the_same_bits_on_any_number_of_ranks() {
        for logical in [1usize, 2, 3, 4, 6, 10, 12, 16] {
            let want = by_hand((0..logical).map(|l| fill(l as u64, &[1001])).collect());
            let ranks: Vec<usize> = (1..=logical).filter(|r| logical % r == 0).collect();
            let expected = Vec::<f32>::try_from(&want).unwrap();
            let got = on_ranks(logical, &ranks, |world| {
                let mut sum = TreeSum::new(*world.layout());
                for rank in world.hosted() {
                    sum.add(rank, fill(rank.0 as u64, &[1001]));
                }
                Vec::<f32>::try_from(world.reduce(sum).unwrap()).unwrap()
            });
            assert_eq!(got, expected, "{logical} logical ranks");
        }
    }

    /// Buckets shorter than the data, the last one shorter still; shorter than the ranks are many; and with several partial sums a
    /// rank (M = 6 on 2).
    #[test]
    fn the_length_of_a_bucket_changes_no_bit() {
        let length = 103;
        for bucket in [1usize, 3, 50, 102, 103, 104] {
            for (logical, ranks) in [(4, [2, 4]), (6, [2, 3])] {
                let want = by_hand((0..logical).map(|l| fill(l as u64, &[length])).collect());
                let got = on_ranks(logical, &ranks, |world| {
                    let mut sum = TreeSum::new(*world.layout());
                    world.hosted().for_each(|rank| sum.add(rank, fill(rank.0 as u64, &[length])));
                    Vec::<f32>::try_from(world.reduce_in_buckets(sum, bucket).unwrap()).unwrap()
                });
                assert_eq!(got, Vec::<f32>::try_from(&want).unwrap(), "{logical} logical ranks, buckets of {bucket}");
            }
        }
    }

    /// Whatever order the library adds in, M − 1 additions are off by no more than that many half units in the last place of the
    /// largest partial sum.
    #[test]
    fn the_librarys_own_sum_is_right_to_rounding() {
        for (logical, ranks) in [(4, 2), (6, 2), (6, 3), (4, 4)] {
            let leaf = |l: usize| fill(l as u64, &[1001]);
            let exact = (0..logical).map(|l| leaf(l).to_kind(Kind::Double)).reduce(|sum, x| sum + x).unwrap();
            let magnitude = (0..logical).map(|l| leaf(l).to_kind(Kind::Double).abs()).reduce(|sum, x| sum + x).unwrap();
            let bound = magnitude * ((logical - 1) as f64 * f64::from(f32::EPSILON) / 2.0);
            let (exact, bound) = (Vec::<f64>::try_from(&exact).unwrap(), Vec::<f64>::try_from(&bound).unwrap());
            let sums = on_each_rank_by(ReduceRule::Native, logical, ranks, |world| {
                let mut sum = TreeSum::new(*world.layout());
                world.hosted().for_each(|rank| sum.add(rank, leaf(rank.0)));
                Vec::<f32>::try_from(world.reduce(sum).unwrap()).unwrap()
            });
            for sum in sums {
                for ((got, want), bound) in sum.iter().zip(&exact).zip(&bound) {
                    assert!((f64::from(*got) - want).abs() <= *bound, "{logical} on {ranks}: {got} for {want}");
                }
            }
        }
    }

    /// With one partial sum a rank, bytes sent are those of a ring all-reduce: 2·(R−1)/R of the data.
    #[test]
    fn bytes_are_those_of_a_ring_all_reduce() {
        for ranks in [2usize, 4, 8] {
            let (sent, ring) = on_ranks(16, &[ranks], |world| check_sum(world, 64 * ranks).unwrap().unwrap());
            assert_eq!(sent, ring, "{ranks} ranks");
            assert_eq!(ring, (2 * 4 * 64 * (ranks - 1)) as u64);
        }
    }
}
