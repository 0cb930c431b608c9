//! `millrace-load`: a load generator that tells the truth about latency.
//!
//! Open loop: requests start when the schedule says so, whether or not earlier ones have been answered, and
//! every latency is counted from the intended start. A server that stalls is therefore charged for all the
//! requests that had to wait, not only for the one that was in flight (coordinated omission). When the
//! generator itself could not keep its schedule, the report says that it is invalid.
//!
//! A black box: it knows the server by its sockets only. Main parts: [`Schedule`] (when), [`Workload`]
//! (what), [`run`] (the run), [`Report`] (what came out), [`Requirement`] (what should have come out).

mod client;
mod options;
pub mod quic;
mod report;
mod require;
mod run;
mod schedule;
mod stats;
mod target;
mod workload;

pub use options::{Arrivals, Options, WorkloadKind};
pub use report::{Checked, Percentiles, Report};
pub use require::Requirement;
pub use run::run;
pub use schedule::Schedule;
pub use stats::LAG_P99_MS_MAX;
pub use target::Target;
pub use workload::Workload;
