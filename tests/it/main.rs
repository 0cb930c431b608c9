//! What Millrace promises, proved from outside on the real binary with real models.

mod access;
mod bad_input;
mod browser;
mod channels;
mod cli;
mod clients;
mod crash_points;
mod drain;
mod kill;
mod limits;
mod metrics;
mod quic;
mod recall;
mod start;
mod streaming;
mod tidy;
mod tls;
