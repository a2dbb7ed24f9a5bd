//! Who hosts whom, who owns which slot and which batch row, and the shape of the reduction tree. Arithmetic only.
//!
//! A **logical rank** is the unit of everything that must not depend on the launch: randomness, batch slices, batch-norm
//! groups, replay shards, leaves of the reduction tree. A **rank** is a process; it hosts a contiguous block of logical
//! ranks and runs them one after the other.

use crate::error::{Error, Result};
use std::ops::Range;

/// A process of the launch, 0..R.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub usize);

/// A logical rank, 0..M. M belongs to the run, not to the launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogicalRank(pub usize);

/// How M logical ranks lie on R ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    logical: usize,
    ranks: usize,
}

/// A node of the reduction tree over logical ranks: covers leaves `index·2^level ..` up to `(index+1)·2^level` or M.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// 0 for leaves.
    pub level: u32,
    /// Position within the level.
    pub index: usize,
}

impl Layout {
    /// M logical ranks on R ranks.
    ///
    /// # Errors
    /// R must divide M; the message names the nearest launches that fit.
    pub fn new(logical: usize, ranks: usize) -> Result<Self> {
        if logical == 0 || ranks == 0 || !logical.is_multiple_of(ranks) {
            let fitting: Vec<String> = (1..=logical).filter(|r| logical.is_multiple_of(*r)).map(|r| r.to_string()).collect();
            return Err(Error::config(
                "parallel.logical_ranks",
                format!(
                    "{ranks} ranks were launched, which does not divide the {logical} logical ranks of this run: launch {} ranks, \
                     or start a new run with parallel.logical_ranks = {}",
                    or(&fitting),
                    ranks * logical.div_ceil(ranks).max(1),
                ),
            ));
        }
        Ok(Self { logical, ranks })
    }

    /// M, the number of logical ranks.
    pub fn logical_ranks(&self) -> usize {
        self.logical
    }

    /// R, the number of processes.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Logical ranks per rank, M/R.
    pub fn block(&self) -> usize {
        self.logical / self.ranks
    }

    /// Logical ranks hosted by `rank`, in order.
    pub fn hosted(&self, rank: Rank) -> impl DoubleEndedIterator<Item = LogicalRank> + ExactSizeIterator + use<> {
        (rank.0 * self.block()..(rank.0 + 1) * self.block()).map(LogicalRank)
    }

    /// The rank that hosts `logical`.
    pub fn host(&self, logical: LogicalRank) -> Rank {
        Rank(logical.0 / self.block())
    }

    /// Slots that `logical` owns of a global capacity: ⌈N/M⌉ for the first N mod M logical ranks, ⌊N/M⌋ for the others.
    pub fn capacity(&self, logical: LogicalRank, total: usize) -> usize {
        split(total, self.logical, logical.0).len()
    }

    /// Rows of a global batch that `logical` trains on: row k belongs to logical rank ⌊k·M/B⌋.
    pub fn rows(&self, logical: LogicalRank, batch: usize) -> Range<usize> {
        (logical.0 * batch).div_ceil(self.logical)..((logical.0 + 1) * batch).div_ceil(self.logical)
    }

    /// Logical rank that trains on row `row` of a global batch of `batch` rows.
    pub fn consumer(&self, row: usize, batch: usize) -> LogicalRank {
        LogicalRank(row * self.logical / batch)
    }

    /// Root of the reduction tree.
    pub fn root(&self) -> Node {
        Node { level: self.logical.next_power_of_two().trailing_zeros(), index: 0 }
    }

    /// Leaves covered by `node`.
    pub fn leaves(&self, node: Node) -> Range<usize> {
        (node.index << node.level)..((node.index + 1) << node.level).min(self.logical)
    }

    /// The two children of `node`; the right one may be absent.
    pub fn children(&self, node: Node) -> (Node, Option<Node>) {
        let left = Node { level: node.level - 1, index: 2 * node.index };
        let right = Node { level: node.level - 1, index: 2 * node.index + 1 };
        (left, (!self.leaves(right).is_empty()).then_some(right))
    }

    /// The maximal nodes that lie whole within the block of `rank`, in leaf order: what this rank may pre-add without
    /// changing a bit of the result. One node if M/R is a power of two.
    pub fn whole_nodes(&self, rank: Rank) -> Vec<Node> {
        let block = rank.0 * self.block()..(rank.0 + 1) * self.block();
        let mut found = Vec::new();
        let mut open = vec![self.root()];
        while let Some(node) = open.pop() {
            let leaves = self.leaves(node);
            if leaves.is_empty() || leaves.end <= block.start || leaves.start >= block.end {
                continue;
            }
            if block.start <= leaves.start && leaves.end <= block.end {
                found.push(node);
            } else {
                let (left, right) = self.children(node);
                open.extend(right);
                open.push(left);
            }
        }
        found
    }
}

/// Part `index` of 0..`total` cut into `parts` contiguous ranges whose lengths differ by one at most, longer ones first.
pub fn split(total: usize, parts: usize, index: usize) -> Range<usize> {
    let (short, longer) = (total / parts, total % parts);
    let start = index * short + index.min(longer);
    start..start + short + usize::from(index < longer)
}

fn or(choices: &[String]) -> String {
    match choices {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layouts() -> impl Iterator<Item = Layout> {
        (1..=24).flat_map(|m| (1..=m).filter(move |r| m % r == 0).map(move |r| Layout::new(m, r).unwrap()))
    }

    #[test]
    fn every_logical_rank_has_one_host() {
        for layout in layouts() {
            let all: Vec<_> = (0..layout.ranks()).flat_map(|r| layout.hosted(Rank(r))).collect();
            assert_eq!(all, (0..layout.logical_ranks()).map(LogicalRank).collect::<Vec<_>>());
            assert!(all.iter().all(|&l| layout.hosted(layout.host(l)).any(|h| h == l)));
        }
    }

    #[test]
    fn rows_and_consumer_agree() {
        for layout in layouts() {
            for batch in 1..60 {
                for l in 0..layout.logical_ranks() {
                    for row in layout.rows(LogicalRank(l), batch) {
                        assert_eq!(layout.consumer(row, batch), LogicalRank(l), "{layout:?} batch {batch} row {row}");
                    }
                }
            }
        }
    }

    #[test]
    fn capacities_add_up_and_differ_by_one_at_most() {
        for layout in layouts() {
            for total in [0, 1, 7, 500, 5000] {
                let each: Vec<_> = (0..layout.logical_ranks()).map(|l| layout.capacity(LogicalRank(l), total)).collect();
                assert_eq!(each.iter().sum::<usize>(), total);
                assert!(each.iter().max().unwrap() - each.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn whole_nodes_cover_the_block_once_and_are_maximal() {
        for layout in layouts() {
            for rank in (0..layout.ranks()).map(Rank) {
                let nodes = layout.whole_nodes(rank);
                let leaves: Vec<_> = nodes.iter().flat_map(|&n| layout.leaves(n)).collect();
                assert_eq!(leaves, layout.hosted(rank).map(|l| l.0).collect::<Vec<_>>(), "{layout:?} {rank:?}");
                if layout.block().is_power_of_two() {
                    assert_eq!(nodes.len(), 1, "{layout:?} {rank:?}");
                }
            }
        }
    }

    #[test]
    fn a_launch_that_does_not_fit_is_refused_with_what_does() {
        let text = Layout::new(6, 4).unwrap_err().to_string();
        assert!(text.contains("launch 1, 2, 3 or 6 ranks") && text.contains("logical_ranks = 8"), "{text}");
    }
}
