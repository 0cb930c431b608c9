//! What Millrace promises, proved from outside on the real binary with real models.

mod bad_input;
mod browser;
mod channels;
mod cli;
mod clients;
mod drain;
mod kill;
mod limits;
mod metrics;
mod onboarding;
mod people;
mod platforms;
mod quic;
mod recall;
mod start;
mod tidy;
mod tls;
