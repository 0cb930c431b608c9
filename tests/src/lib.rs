//! The harness of Millrace's integration tests: it starts the real `millrace` binary on free ports
//! with real models and a data folder of its own, and offers the outside world that the tests need:
//! a plain HTTP client that can also misbehave, fake messenger platforms, third-party clients.
//!
//! It knows the product only through its command line, its sockets and its files. It never links it.

pub mod client;
pub mod platform;
pub mod server;
pub mod tools;

pub use client::{Reply, Stream};
pub use platform::{Platform, Seen};
pub use server::{Server, ServerBuilder};
pub use tools::{eventually, python, random_seed};
