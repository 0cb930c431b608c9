//! The shell of Millrace: sockets, threads and clocks around the sans-IO cores.

pub mod backup;
pub mod bridge;
pub mod certificate;
pub mod cli;
mod clock;
pub mod config;
pub mod console;
pub mod control;
pub mod corpus;
pub mod extract;
pub mod gateway;
pub mod handover;
pub mod identity;
pub mod models;
pub mod net;
pub mod node;
pub mod obs;
pub mod plan;
pub mod reload;
pub mod shard;
pub mod sys;
pub mod trouble;
