//! Runs a test body on several in-process ranks.

use super::comm::Threads;
use super::world::{Launch, World};
use crate::config::ReduceRule;
use crate::layout::Layout;
use tch::Device;

/// The body's value on each rank of a launch of `ranks`.
pub(crate) fn on_each_rank<T: Send>(logical: usize, ranks: usize, body: impl Fn(&World) -> T + Sync) -> Vec<T> {
    on_each_rank_by(ReduceRule::Deterministic, logical, ranks, body)
}

/// The same with a rule for sums.
pub(crate) fn on_each_rank_by<T: Send>(rule: ReduceRule, logical: usize, ranks: usize, body: impl Fn(&World) -> T + Sync) -> Vec<T> {
    on_launches(ranks, |launch| body(&launch.into_world(Layout::new(logical, ranks).unwrap(), rule, Device::Cpu)))
}

/// The same before logical ranks are known.
pub(crate) fn on_launches<T: Send>(ranks: usize, body: impl Fn(Launch) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let handles: Vec<_> = Threads::group(ranks)
            .into_iter()
            .map(|comm| {
                let body = &body;
                scope.spawn(move || body(Launch::over(Box::new(comm)).unwrap()))
            })
            .collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

/// The body's value, which must be the same on every rank of every launch size.
pub(crate) fn on_ranks<T: Send + PartialEq + std::fmt::Debug>(logical: usize, ranks: &[usize], body: impl Fn(&World) -> T + Sync) -> T {
    let mut all = ranks.iter().flat_map(|&r| on_each_rank(logical, r, &body));
    let first = all.next().unwrap();
    for other in all {
        assert_eq!(first, other, "{logical} logical ranks on {ranks:?} ranks");
    }
    first
}
