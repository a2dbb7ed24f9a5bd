//! Configuration: the schema, how its layers are merged, what is refused, and the numbers derived from it.

mod check;
mod load;
mod plan;
mod reference;
mod schema;

pub use check::{Job, check, check_paths};
pub use load::{Loaded, load};
pub use plan::Plan;
pub use reference::{Key, keys, markdown};
pub use schema::*;
