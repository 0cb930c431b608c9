//! What Millrace promises, proved from outside on the real binary with real models.

mod access;
mod bad_input;
mod browser;
mod channels;
mod cli;
mod clients;
mod corpus;
mod crash_points;
mod drain;
mod forgetting;
mod handover;
mod io;
mod kill;
mod limits;
mod metrics;
mod oauth;
mod platform_access;
mod quic;
mod recall;
mod reload;
mod slow;
mod start;
mod streaming;
mod tidy;
mod tls;
mod tokens;
