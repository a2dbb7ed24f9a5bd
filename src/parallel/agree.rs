//! Errors are local, decisions are global: what can fail on one rank only is agreed on before anyone goes on.

use super::comm::{Communicator, all_gather_varied, end_job};
use super::world::{Launch, World, host_name};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::Write;

/// An error on its way to the other ranks.
#[derive(Serialize, Deserialize)]
struct Notice {
    host: String,
    message: String,
    hint: Option<String>,
    code: i32,
}

/// `mine` if it is well everywhere; otherwise an error on every rank. A collective.
///
/// A rank that failed keeps its own error; the others get the first failing rank's as [`Error::Remote`]. When all fail alike
/// (the same bad file), every rank keeps its own, and the leader prints it once.
pub fn agree<T>(comm: &dyn Communicator, mine: Result<T>) -> Result<T> {
    let notice = mine.as_ref().err().map(|e| Notice { host: host_name(), message: e.to_string(), hint: e.hint(), code: e.exit_code() });
    let text = notice.map(|n| serde_json::to_vec(&n).unwrap_or_default()).unwrap_or_default();
    let all = all_gather_varied(comm, &text)?;
    let first = all.iter().enumerate().find_map(|(rank, text)| Some((rank, serde_json::from_slice::<Notice>(text).ok()?)));
    match (mine, first) {
        (Err(own), _) => Err(own),
        (Ok(_), Some((rank, n))) => Err(Error::Remote { rank, host: n.host, message: n.message, hint: n.hint, code: n.code }),
        (Ok(value), None) => Ok(value),
    }
}

/// The leading rank's value, or its error, on every rank: what lies on a shared disk is looked at once. A collective.
pub fn from_leader<T: Serialize + DeserializeOwned>(comm: &dyn Communicator, value: impl FnOnce() -> Result<T>) -> Result<T> {
    let as_text = |value: T| serde_json::to_vec(&value).map_err(|e| Error::refused(e.to_string()));
    let mine = if comm.rank().0 == 0 { value().and_then(as_text) } else { Ok(Vec::new()) };
    let text = all_gather_varied(comm, &agree(comm, mine)?)?.swap_remove(0);
    serde_json::from_slice(&text).map_err(|e| Error::Comm { operation: "word of the leading rank", problem: e.to_string() })
}

impl Launch {
    /// [`from_leader`] among the ranks of the launch. A collective.
    pub fn from_leader<T: Serialize + DeserializeOwned>(&self, value: impl FnOnce() -> Result<T>) -> Result<T> {
        from_leader(self.comm(), value)
    }

    /// [`agree`] among the ranks of the launch. A collective.
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        agree(self.comm(), mine)
    }
}

impl World {
    /// [`from_leader`] among the ranks of the job. A collective.
    pub fn from_leader<T: Serialize + DeserializeOwned>(&self, value: impl FnOnce() -> Result<T>) -> Result<T> {
        from_leader(self.comm(), value)
    }

    /// [`agree`] among the ranks of the job. A collective.
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        agree(self.comm(), mine)
    }
}

/// Prints an error that this rank alone knows of, and ends the job.
pub fn end_with(error: &Error, rank: usize) -> ! {
    // A stderr that is gone must not keep the job.
    let _ = writeln!(std::io::stderr(), "{}", error.render_of(rank, &host_name()));
    end_job(error.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::test_ranks::on_each_rank;

    #[test]
    fn one_ranks_error_reaches_all() {
        let texts = on_each_rank(3, 3, |world| {
            let mine = if world.rank().0 == 1 { Err(Error::refused("bad").with_hint("do this")) } else { Ok(()) };
            let error = world.agree(mine).unwrap_err();
            (error.to_string(), error.hint(), error.exit_code())
        });
        assert_eq!(texts[1], ("bad".into(), Some("do this".into()), 2));
        assert!(texts[0].0.starts_with("rank 1 on ") && texts[0].0.ends_with(": bad"), "{}", texts[0].0);
        assert_eq!((&texts[2].1, texts[2].2), (&Some("do this".into()), 2));
    }

    #[test]
    fn the_leader_alone_looks_and_all_know() {
        let look = |world: &World, wanted: Result<usize>| world.from_leader(|| if world.leads() { wanted } else { unreachable!() });
        assert_eq!(on_each_rank(3, 3, |world| look(world, Ok(7)).unwrap()), [7, 7, 7]);
        let errors = on_each_rank(2, 2, |world| look(world, Err(Error::refused("gone"))).unwrap_err().to_string());
        assert!(errors.iter().all(|text| text.ends_with("gone")), "{errors:?}");
    }

    #[test]
    fn all_well_is_well() {
        assert_eq!(on_each_rank(2, 2, |world| world.agree(Ok(world.rank().0)).unwrap()), [0, 1]);
    }
}
