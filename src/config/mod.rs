//! Configuration: the schema, how its layers are merged, what is refused, and the numbers derived from it.

mod check;
mod load;
mod plan;
mod reference;
mod schema;

pub use check::{Job, check, check_paths};
pub use load::{Loaded, PREFIX, flat, literal, load, load_with, method_values, misread};
pub use plan::{Plan, is_free, steps_per_round, values};
pub use reference::{Key, is_path, keys, markdown};
pub use schema::*;
