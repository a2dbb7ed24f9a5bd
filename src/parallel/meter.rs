//! Counts the bytes every operation sends to other ranks, and lets the watchdog see where this rank is.

use super::comm::{Communicator, Solo};
use super::watchdog::{Operation, Pulse};
use crate::error::{Error, Result};
use crate::layout::Rank;
use std::cell::Cell;
use std::sync::Arc;
use tch::Tensor;

/// Bytes and messages since the start, per kind of operation.
#[derive(Debug, Default)]
pub struct Meter {
    all_to_all: Counter,
    all_gather: Counter,
    all_reduce: Counter,
}

#[derive(Debug, Default)]
struct Counter {
    messages: Cell<u64>,
    bytes: Cell<u64>,
}

impl Counter {
    fn add(&self, messages: usize, bytes: usize) {
        self.messages.set(self.messages.get() + messages as u64);
        self.bytes.set(self.bytes.get() + bytes as u64);
    }
}

impl Meter {
    /// Bytes this rank sent to others.
    pub fn total_bytes(&self) -> u64 {
        [&self.all_to_all, &self.all_gather, &self.all_reduce].iter().map(|c| c.bytes.get()).sum()
    }

    /// Ranks that this rank had something for, counted anew in every collective: messages, were each sent by itself.
    pub fn total_messages(&self) -> u64 {
        [&self.all_to_all, &self.all_gather, &self.all_reduce].iter().map(|c| c.messages.get()).sum()
    }
}

/// A communicator that counts.
pub(super) struct Metered {
    inner: Box<dyn Communicator>,
    pub(super) meter: Meter,
    pub(super) pulse: Arc<Pulse>,
}

impl Metered {
    pub(super) fn new(inner: Box<dyn Communicator>) -> Self {
        Self { inner, meter: Meter::default(), pulse: Arc::default() }
    }

    /// Puts another transport in the place of this one, which it may go on using; counts and the watchdog's pulse stay. Where that
    /// fails the old one stays.
    pub(super) fn replace(
        &mut self,
        by: impl FnOnce(Box<dyn Communicator>) -> Result<Box<dyn Communicator>, (Box<dyn Communicator>, Error)>,
    ) -> Result<()> {
        let (inner, outcome) = match by(std::mem::replace(&mut self.inner, Box::new(Solo))) {
            Ok(new) => (new, Ok(())),
            Err((old, error)) => (old, Err(error)),
        };
        self.inner = inner;
        outcome
    }
}

fn size_of(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

impl Communicator for Metered {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn barrier(&self) -> Result<()> {
        let _span = tracing::debug_span!("barrier").entered();
        let _inside = self.pulse.enter(Operation::Barrier);
        self.inner.barrier()
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<()> {
        let bytes = send.len() * (self.size() - 1);
        let _span = tracing::debug_span!("all-gather", bytes).entered();
        self.meter.all_gather.add(self.size() - 1, bytes);
        let _inside = self.pulse.enter(Operation::AllGather);
        self.inner.all_gather(send, receive)
    }

    fn all_to_all(&self, send: &Tensor, send_counts: &[usize], receive: &Tensor, receive_counts: &[usize]) -> Result<()> {
        let kept = send_counts[self.rank().0] * send.kind().elt_size_in_bytes();
        let receivers = (0..self.size()).filter(|&to| to != self.rank().0 && send_counts[to] > 0).count();
        let bytes = size_of(send) - kept;
        let _span = tracing::debug_span!("all-to-all", bytes).entered();
        self.meter.all_to_all.add(receivers, bytes);
        let _inside = self.pulse.enter(Operation::AllToAll);
        self.inner.all_to_all(send, send_counts, receive, receive_counts)
    }

    fn all_gather_parts(&self, part: &Tensor, whole: &Tensor, counts: &[usize]) -> Result<()> {
        let bytes = size_of(part) * (self.size() - 1);
        let _span = tracing::debug_span!("all-gather", bytes).entered();
        self.meter.all_gather.add(self.size() - 1, bytes);
        let _inside = self.pulse.enter(Operation::AllGather);
        self.inner.all_gather_parts(part, whole, counts)
    }

    fn exchange(&self, partner: Option<Rank>, send: &Tensor, receive: &Tensor) -> Result<()> {
        let bytes = if partner.is_some() { size_of(send) } else { 0 };
        let _span = tracing::debug_span!("exchange", bytes).entered();
        self.meter.all_to_all.add(usize::from(partner.is_some()), bytes);
        let _inside = self.pulse.enter(Operation::AllToAll);
        self.inner.exchange(partner, send, receive)
    }

    fn all_reduce_native(&self, tensor: &Tensor) -> Result<()> {
        let bytes = 2 * size_of(tensor) * (self.size() - 1) / self.size();
        let _span = tracing::debug_span!("all-reduce", bytes).entered();
        self.meter.all_reduce.add(2 * (self.size() - 1), bytes);
        let _inside = self.pulse.enter(Operation::AllReduce);
        self.inner.all_reduce_native(tensor)
    }
}
