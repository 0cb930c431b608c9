//! Sockets: listeners and the connection loop on completion IO.

pub mod listener;

pub use listener::{ListenError, Listeners, listen};
