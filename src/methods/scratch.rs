//! Training on real data with labels: teachers, and the reference a student without data is held against.

use super::{Memory, Method};
use crate::distill::Criterion;

pub(super) fn method() -> Method {
    Method { name: "scratch", memory: Memory::RealData, criterion: Criterion::CrossEntropy }
}
